"""Names and colours of labels, as the viewers' own readers take them apart; where masks lie in the forms of others."""

import json
import re

import pytest
from nasty import NASTY

from prediction.forms import FORMS
from prediction.label_tables import COLOURS, bids_table, colour_of, itk_snap_table, slicer_table
from processes.errors import UserError
from processes.quoting import visible

NAMES = {0: "background", 1: "peripheral zone", 7: "transition zone"}
ITK_SNAP_LINE = re.compile(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([01])\s+([01])\s+"([^"\n]*)"')


def read_itk_snap(text):
    """Label -> (red, green, blue), name."""
    rows = [ITK_SNAP_LINE.fullmatch(line).groups() for line in text.splitlines() if not line.startswith("#")]
    return {int(row[0]): (tuple(map(int, row[1:4])), row[7]) for row in rows}


def read_slicer(text):
    """Label -> (red, green, blue), name: six words a line."""
    rows = [line.split(" ") for line in text.splitlines() if not line.startswith("#")]
    assert {len(row) for row in rows} == {6}
    return {int(row[0]): (tuple(map(int, row[2:5])), row[1].replace("_", " ")) for row in rows}


def test_both_viewers_read_the_same_names_and_colours():
    snap, slicer = read_itk_snap(itk_snap_table(NAMES)), read_slicer(slicer_table(NAMES))
    assert [*snap] == [*slicer] == [0, 1, 7]
    assert snap[0] == ((0, 0, 0), "Clear Label")
    assert {label: snap[label] for label in (1, 7)} == {label: slicer[label] for label in (1, 7)}
    assert snap[1] == ((230, 159, 0), "peripheral zone")
    red, green, blue = (f"{level:02x}" for level in COLOURS[1])
    assert bids_table(NAMES).splitlines()[0] == "index\tname\tcolor"
    assert bids_table(NAMES).splitlines()[3] == f"7\ttransition zone\t#{red}{green}{blue}"


def test_names_of_any_letters_stay_on_their_line():
    names = {0: "background"} | dict(enumerate(NASTY, start=1))
    snap, slicer = read_itk_snap(itk_snap_table(names)), read_slicer(slicer_table(names))
    assert [*snap] == [*slicer] == [*names]
    assert all(snap[label][1] == visible(name).replace('"', "'") for label, name in names.items() if label)
    rows = [row.split("\t") for row in bids_table(names).split("\n")[1:-1]]
    assert [int(index) for index, *_ in rows] == [*names]
    assert {len(row) for row in rows} == {3}


def test_no_two_of_forty_classes_have_one_colour():
    colours = [colour_of(number) for number in range(1, 41)]
    assert len(set(colours)) == 40
    assert all(0 <= level <= 255 for colour in colours for level in colour)


@pytest.mark.parametrize(
    ("form", "patient", "place"),
    [
        ("plain", "case0", "case0.nii.gz"),
        ("nnunet", "case0", "case0.nii.gz"),
        ("bids", "sub-01_T2w", "sub-01/anat/sub-01_desc-predicted_dseg.nii.gz"),
        ("bids", "sub-01_ses-2_acq-ax_desc-n4_T2w", "sub-01/ses-2/anat/sub-01_ses-2_acq-ax_desc-predicted_dseg.nii.gz"),
        ("bids", "case_0-7", "sub-case07/anat/sub-case07_desc-predicted_dseg.nii.gz"),
    ],
)
def test_where_a_mask_lies(form, patient, place):
    assert FORMS[form].place(patient) == place


def test_the_channel_is_no_part_of_a_case_of_nnunet():
    for name, case in (("p_0001_0000.nii.gz", "p_0001"), ("p.nrrd", "p"), ("p_0000.NII.GZ", "p")):
        assert re.fullmatch(FORMS["nnunet"].patient, name)[1] == case


def test_masks_that_would_be_one_file_are_refused():
    with pytest.raises(UserError, match="the masks of sub-01_T1w, sub-01_T2w would be one file, sub-01/anat/"):
        FORMS["bids"].check(["sub-01_T1w", "sub-02_T2w", "sub-01_T2w"])
    FORMS["bids"].check(["sub-01_T2w", "sub-01_ses-1_T2w"])


def test_notes_tell_other_programs_what_the_labels_are(tmp_path):
    for form in ("nnunet", "bids"):
        (tmp_path / form).mkdir()
        FORMS[form].write_notes(tmp_path / form, {0: "nothing", 1: "zone", 2: "zone"})
    told = json.loads((tmp_path / "nnunet/dataset.json").read_text())
    assert told["labels"] == {"background": 0, "zone": 1, "zone (2)": 2}
    assert told["file_ending"] == ".nii.gz"
    about = json.loads((tmp_path / "bids/dataset_description.json").read_text())
    assert (about["DatasetType"], bool(about["GeneratedBy"])) == ("derivative", True)
    assert (tmp_path / "bids/dseg.tsv").read_text().startswith("index\tname\tcolor\n")
