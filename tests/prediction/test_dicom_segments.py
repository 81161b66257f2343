"""A mask as DICOM keeps one: read back by another package, voxel by voxel, place by place."""

import sys
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pytest

import predict
from files.faults import VolumeFault
from files.reading import read_grid, read_voxels
from prediction.dicom_segments import Maker, write_dicom_segments
from processes.errors import UserError
from tests.prediction.test_predict import run, trained  # noqa: F401  a fixture
from tests.tools import fuzz_volumes

TAGS = {"0020|0052": "1.2.3.99", "0010|0020": "P7", "0020|0011": "4", "0020|000d": "1.2.3.1"}
PLACES = [9, 0, 15, 3, 6, 12]  # mm, of the files by their names
LPS = np.diag([-1, -1, 1, 1])


def write_series(folder, voxels, places=None, tags=TAGS, uid="1.2.77.4"):
    return fuzz_volumes.write_series(folder, voxels, 3.0, places, uid, tags=tags)


def read_back(path):
    """The label map (X, Y, Z) of a segmentation on the grid of its series, by place alone; and the segmentation."""
    highdicom = pytest.importorskip("highdicom", reason="pip install highdicom")
    return highdicom.seg.segread(path)


def labels_at(found, grid):
    """Class numbers on a grid, out of the frames of a segmentation and the place that each states."""
    labels = np.zeros(grid.shape, np.uint8)
    rows, columns = found.Rows, found.Columns
    groups = zip(found.PerFrameFunctionalGroupsSequence, found.pixel_array.reshape(-1, rows, columns), strict=True)
    for told, plane in groups:
        place = [*map(float, told.PlanePositionSequence[0].ImagePositionPatient), 1]
        corner = np.linalg.inv(LPS @ grid.affine) @ place
        np.testing.assert_allclose(corner, np.rint(corner), atol=1e-3)
        assert np.allclose(np.rint(corner)[:2], 0)
        shared = found.SharedFunctionalGroupsSequence[0]  # of what is the same in every frame
        group = told if "SegmentIdentificationSequence" in told else shared
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        labels[..., round(corner[2])][plane.T > 0] = number
    return labels


@pytest.fixture
def series(tmp_path):
    """A folder of six slices whose files lie in another order than their places, and classes on it."""
    pytest.importorskip("highdicom", reason="pip install highdicom")
    voxels = np.arange(7 * 5 * 6, dtype=np.int16).reshape(7, 5, 6)
    write_series(tmp_path / "series", voxels, PLACES)
    classes = np.zeros((7, 5, 6), np.uint8)
    classes[1:4, 2:5, 1:5], classes[5, 0, 3] = 1, 3
    return tmp_path / "series", classes


def test_segments_lie_on_the_slices_they_refer_to(series, tmp_path):
    folder, classes = series
    names = ["background", "left \\ kidney", "right kidney", "Zyste ä" + "x" * 80]
    write_dicom_segments(tmp_path / "out.dcm", classes, folder, names, Maker("UNet:nG=4", "abc"))
    found, grid = read_back(tmp_path / "out.dcm"), read_grid(folder)
    np.testing.assert_array_equal(labels_at(found, grid), classes)
    assert [each.SegmentLabel for each in found.SegmentSequence] == ["left / kidney", "right kidney", names[3][:64]]
    assert (found.Modality, found.PatientID, found.StudyInstanceUID) == ("SEG", "P7", "1.2.3.1")
    assert (found.FrameOfReferenceUID, found.SeriesNumber) == ("1.2.3.99", 1004)
    (referenced,) = found.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == "1.2.77.4"
    measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(mm) for mm in (*measures.PixelSpacing, measures.SpacingBetweenSlices)] == [0.75, 0.5, 3]
    # each frame refers to the file that lies there
    uids = {f"1.2.77.4.{k}": place for k, place in enumerate(PLACES)}
    for told in found.PerFrameFunctionalGroupsSequence:
        source = told.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert float(told.PlanePositionSequence[0].ImagePositionPatient[2]) == uids[source]


def test_the_same_mask_has_the_same_identity(series, tmp_path):
    folder, classes = series
    told = []
    for number, (mask, maker) in enumerate([(classes, "a"), (classes, "a"), (classes, "b"), (classes * 0, "a")]):
        path = tmp_path / f"{number}.dcm"
        write_dicom_segments(path, mask, folder, ["no", "a", "b", "c"], Maker("net", maker))
        found = read_back(path)
        told.append((found.SOPInstanceUID, found.SeriesInstanceUID))
    assert told[0] == told[1]
    assert told[0][1] == told[3][1] != told[2][1]
    assert len({instance for instance, _ in told}) == 3


@pytest.mark.parametrize(("lacks", "words"), [("0020|0052", "Frame Of Reference"), ("0020|000d", "Study")])
def test_a_series_that_tells_too_little_is_told(tmp_path, lacks, words):
    pydicom = pytest.importorskip("pydicom", reason="pip install highdicom")
    pytest.importorskip("highdicom", reason="pip install highdicom")
    for path in write_series(tmp_path / "series", np.ones((4, 5, 3), np.int16)):
        content = pydicom.dcmread(path)
        del content[lacks.replace("|", "")]
        content.save_as(path)
    with pytest.raises(VolumeFault, match="lacks what a DICOM segmentation") as error:
        write_dicom_segments(tmp_path / "o.dcm", np.ones((4, 5, 3), np.uint8), tmp_path / "series", "ab", Maker())
    assert words in error.value.fault[1]
    assert not (tmp_path / "o.dcm").exists()


def test_predicted_out_of_an_export(trained, tmp_path, capsys):  # noqa: F811
    """Each mask as its label map has it; the second series lacks what is needed, and stops no other."""
    pytest.importorskip("highdicom", reason="pip install highdicom")
    folder, weights = trained
    image = np.asarray(nib.load(folder / "p0_i0.nii.gz").dataobj)
    for patient, tags in (("P1", TAGS), ("P2", {}), ("P3", TAGS)):
        tags = tags | {"0010|0020": patient}
        write_series(tmp_path / "export" / patient / "T1", image, tags=tags, uid=f"1.2.77.{patient[1]}")
    words = ["--weights", weights, "--volumes", tmp_path / "export", "--out", tmp_path / "out", "--device", "cpu"]
    words = [*map(str, words), "--segments", "dicom", "nrrd"]
    with pytest.raises(UserError, match="1 of 3 volumes were not predicted: lacks what a DICOM segmentation.*P2"):
        predict.main(words)
    assert sorted(path.name for path in (tmp_path / "out/segments").iterdir()) == [
        *("P1.dcm", "P1.seg.nrrd", "P2.seg.nrrd", "P3.dcm", "P3.seg.nrrd")
    ]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.gz")) == ["P1.nii.gz", "P3.nii.gz"]
    for patient in ("P1", "P3"):
        mask = read_voxels(tmp_path / f"out/{patient}.nii.gz")
        found = read_back(tmp_path / f"out/segments/{patient}.dcm")
        np.testing.assert_array_equal(labels_at(found, read_grid(tmp_path / "export" / patient / "T1")), mask)
        assert mask.any()
        assert found.SegmentSequence[0].SegmentLabel == "class 1"
    capsys.readouterr()
    with pytest.raises(UserError, match="1 of 3"):
        predict.main(words)
    assert "0 predicted, 2 were there" in capsys.readouterr().out


def test_without_its_package_or_without_dicom_nothing_begins(trained, tmp_path, monkeypatch):  # noqa: F811
    folder, weights = trained
    words = ("--volumes", f"{folder}/p?_i0.nii.gz", "--out", tmp_path / "out", "--segments", "dicom")
    if find_spec("highdicom"):
        with pytest.raises(UserError, match="files of another format: p0, p1, p2, p3, p4, p5"):
            run(weights, *words)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UserError, match="needs the package highdicom.*pip install highdicom"):
        run(weights, *words)
    assert not (tmp_path / "out").exists()
