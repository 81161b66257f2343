"""Label maps for 3D Slicer: the names, values and place of the segments, read back from the header."""

from datetime import datetime, timedelta

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

from files.nifti_headers import header_at, write_nifti
from files.segments import write_segments
from tests.files.test_reading import oblique


@pytest.mark.parametrize("codes", ["LPS", "RAS", "IRA"])
def test_slicer_finds_names_labels_and_place(tmp_path, codes):
    labels = np.zeros((5, 6, 7), np.int16)
    labels[1:3, 2, 3], labels[4, 5, 6] = 205, 820
    header, names = header_at(oblique(codes, (1.5, 1.2, 2.0))), {205: "the organ", 820: "Aorta: ä\n|"}
    write_segments(tmp_path / "a.seg.nrrd", labels, header, names)
    voxels, told = nrrd.read(str(tmp_path / "a.seg.nrrd"))
    np.testing.assert_array_equal(voxels, labels)
    assert [told[f"Segment{n}_Name"] for n in range(2)] == ["the organ", "Aorta: \\xe4\\n|"]
    assert [told[f"Segment{n}_LabelValue"] for n in range(2)] == ["205", "820"]
    assert [told[f"Segment{n}_ID"] for n in range(2)] == ["Segment_1", "Segment_2"]
    assert told["Segment0_Extent"] == "0 4 0 5 0 6"
    assert told["Segment0_Color"] != told["Segment1_Color"]
    assert told["Segmentation_SourceRepresentation"] == "Binary labelmap"
    write_nifti(tmp_path / "a.nii.gz", labels, header)
    found, wanted = (sitk.ReadImage(str(tmp_path / name)) for name in ("a.seg.nrrd", "a.nii.gz"))
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(found, get)(), getattr(wanted, get)(), atol=1e-5)
    assert found.GetMetaData("Segment0_Name") == "the organ"
    assert nib.load(tmp_path / "a.nii.gz").shape == labels.shape


class LaterAndLater:
    """A clock that is a day ahead each time it is asked."""

    days = 0

    @classmethod
    def utcnow(cls):
        cls.days += 1
        return datetime(2020, 1, 1) + timedelta(days=cls.days)


def test_the_same_labels_are_the_same_bytes_whenever_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(nrrd.writer, "datetime", LaterAndLater)
    labels, header = np.arange(210, dtype=np.int16).reshape(5, 6, 7) % 3, header_at(np.eye(4))
    for name in ("a", "b"):
        write_segments(tmp_path / f"{name}.seg.nrrd", labels, header, {1: "# on top", 2: "organ"})
    first, second = (tmp_path / f"{name}.seg.nrrd" for name in ("a", "b"))
    assert LaterAndLater.days == 2
    assert first.read_bytes() == second.read_bytes()
    voxels, told = nrrd.read(str(first))
    np.testing.assert_array_equal(voxels, labels)
    assert told["Segment0_Name"] == "# on top"
