"""Volumes of two sites become a makefile: what is found, what is proposed, what is refused, and that it runs."""

import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import disc_slice
from nasty import NASTY

from files.grids import Grid, turn
from files.pairing import read_id
from preprocess import new_dataset as program
from preprocess import size_priors
from preprocess.layouts.layout import SiteFiles
from preprocess.slice_volumes import read_spec
from preprocess.survey.classes import Classes
from preprocess.survey.makefile import batch_of, makefile_text
from preprocess.survey.patients import find_patient
from preprocess.survey.plan import Plan
from preprocess.survey.sites import Site, compare_grids, read_site
from preprocess.survey.wishes import Wishes
from processes.errors import UserError
from tests.tools.check_makefiles import check, dry_run
from tests.tools.checkout import working_folder


def write_volumes(folder, names, value=1, shape=(24, 20), spacing=1.0, dtype=np.uint8, seed=0):
    """Volumes of four slices with a disc, the label being `value`; three slices show it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        planes = [disc_slice(rng, index > 0, 200, 60) for index in range(4)]
        image, label = (np.stack([plane[which] for plane in planes], -1) for which in (0, 1))
        wide = [(0, shape[0] - 24), (0, shape[1] - 20), (0, 0)]
        affine = np.diag([spacing, spacing, 3, 1])
        nib.Nifti1Image(np.pad(image, wide), affine).to_filename(folder / f"{name}_t2.nii.gz")
        label = np.pad(label.astype(dtype) * value, wide).astype(dtype)
        nib.Nifti1Image(label, affine).to_filename(folder / f"{name}_mask.nii.gz")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with what a makefile needs, and two sites of volumes in it."""
    monkeypatch.chdir(working_folder(tmp_path))
    write_volumes(tmp_path / "old", [f"case{n}" for n in range(4)], value=255, seed=1)
    write_volumes(tmp_path / "new", [f"case{n}" for n in range(4)], value=255, seed=2)
    return tmp_path


def run(*more, labelled=True, patient=r"(case\d+)"):
    flags = ["--name", "mine", "--source", "old/*_t2.nii.gz", "--source_label", "old/*_mask.nii.gz"]
    flags += ["--target", "new/*_t2.nii.gz", "--patient", patient, *more]
    flags += ["--target_label", "new/*_mask.nii.gz"] if labelled else []
    program.new_dataset(program.parse_args(flags))
    return Path("mine.make").read_text()


def test_the_labelled_case_runs_from_volumes_to_an_adapted_network(place, python, capsys):
    text = run()
    told = capsys.readouterr().out
    assert "--label_map 0:0,255:1: a 0/255 mask" in told
    assert "make -f mine.make data-report" in told
    assert "--size 24 24" in text
    assert check(str(place / "mine.make")) > 6
    words = ["make", "-f", "mine.make", f"CC={python}", "NET=Dimwit", "EPC=1", "DEBUG=--debug"]
    done = subprocess.run([*words, "results/mine/chosen"], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for run_name in (
        "sfda",
        "sfda_at_1e-5",
        "sfda_at_1e-4",
        "cesource_transfer",
        "srcmatch",
        "srcmatch_transfer",
        "chosen",
    ):
        assert (place / "results/mine" / run_name / "last.pkl").is_file()
    for choice in ("choice", "start"):
        candidates = (place / f"results/mine/{choice}/selection.csv").read_text()
        assert candidates.startswith("candidate,epoch,chosen")
    assert "\nsrcmatch_transfer," in candidates
    assert json.loads((place / "data/mine_source/dataset.json").read_text())["label_map"] == {"0": 0, "255": 1}
    prior = (place / "sizes/mine.csv").read_text()
    assert "mean of the labelled slices of data/mine_source" in prior


def test_settings_follow_the_machine_and_the_size_of_slices(place, python):
    run()
    words = ["make", "-n", "-f", "mine.make", f"CC={python}", "results/mine/cesource", "SIZE="]
    for size, network, epochs in (("small", "UNet:nG=8", 30), ("full", "UNet", 100)):
        words[-1] = f"SIZE={size}"
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert f"--n_epoch {epochs} " in told
        assert f"--network {network} " in told
        assert "--batch_size 8 " in told
    assert [batch_of(size) for size in ((64, 64), (384, 384), (512, 512), (768, 768), (4000, 4000))] == [8, 8, 4, 2, 1]


def test_without_target_labels_no_line_reads_them_and_all_lines_build(place, python):
    text = run("--organ_mm2", "90", labelled=False)
    assert "new/*_mask" not in text
    assert "TT_DATA = [('IMG', nii_transform, False)]" in text
    assert "--constant_mm2 90 --folder IMG --unlabelled" in text
    assert not any(word in text for word in ("/fs:", "SFDA_TrueSize", "dumbpredwtags", "val_gt_size"))
    path = place / "mine.make"
    assert check(str(path)) == 13
    assert "plot.py selection --run results/mine/sfda" in dry_run(str(path))[0]
    among = " ".join(f"results/mine/sfda{more}" for more in ("", "_at_1e-5", "_at_1e-4"))
    assert f"choose.py --runs {among} --out" in dry_run(str(path))[0]
    words = ["make", "-n", "-f", "mine.make", f"CC={python}"]
    usual = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert f"choose.py --runs {among} --out" in usual  # nobody has to ask for it, or to try rates
    assert "--workdir results/mine/tent_tmp" not in usual
    assert "too low" not in text


def prior_line(text):
    return next(line for line in text.splitlines() if line.startswith("PRIOR "))


def test_target_labels_never_make_the_prior(place):
    first = prior_line(run())
    Path("mine.make").unlink()
    write_volumes(place / "new", [f"case{n}" for n in range(4)], value=255, seed=9)
    assert prior_line(run()) == first
    assert "--source_mean data/mine_source" in first


def test_every_label_out_of_place_stands_in_one_table_and_nothing_is_written(place, capsys):
    def move(name, affine, shape=(24, 20, 4)):
        nib.Nifti1Image(np.ones(shape, np.uint8), affine).to_filename(place / name)

    shifted, turned = np.diag([1.0, 1, 3, 1]), np.diag([1.0, 1, 3, 1])
    shifted[0, 3] = 5
    turned[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    move("old/case0_mask.nii.gz", shifted)
    move("old/case1_mask.nii.gz", turned)
    move("old/case2_mask.nii.gz", np.diag([1.2, 1, 3, 1]))
    move("new/case3_mask.nii.gz", np.diag([1.0, 1, 3, 1]), (24, 20, 5))
    with pytest.raises(UserError, match="4 labels do not lie where their images lie"):
        run()
    table = capsys.readouterr().out
    assert table in Path("results/mine/volumes.txt").read_text() + "\n"
    rows = {line.split()[0]: line for line in table.splitlines() if "_mask.nii.gz" in line}
    assert "origin     5 mm apart" in rows["old/case0_mask.nii.gz"]
    assert "direction  5.73 degrees" in rows["old/case1_mask.nii.gz"]
    assert "spacing    1.2x1x3 and 1x1x3 mm" in rows["old/case2_mask.nii.gz"]
    assert "shape      (24, 20, 5), its image (24, 20, 4)" in rows["new/case3_mask.nii.gz"]
    assert all("0.1 mm" in rows[f"old/case{n}_mask.nii.gz"] for n in range(3))
    assert not Path("mine.make").exists()


def test_a_small_shift_is_within_the_tolerance_that_is_given():
    near = np.eye(4)
    near[1, 3] = 0.3
    image, label = Grid((8, 8, 4), np.eye(4)), Grid((8, 8, 4), near)
    assert [each.what for each in compare_grids(image, label, "x", 0.1)] == ["origin"]
    assert compare_grids(image, label, "x", 0.5) == []


def test_gaps_floats_and_labels_of_the_target_alone_are_told(place, capsys):
    write_volumes(place / "old", [f"case{n}" for n in range(2)], value=3, dtype=np.float32)
    write_volumes(place / "old", [f"case{n}" for n in range(2, 4)], value=7)
    write_volumes(place / "new", ["case0"], value=9)
    write_volumes(place / "new", [f"case{n}" for n in range(1, 4)], value=3)
    text = run()
    told = capsys.readouterr().out
    assert "--label_map 0:0,3:1,7:2 --others 0" in text
    assert "2 source labels are whole numbers stored as fractions" in told
    assert "target labels 9 are in no source volume" in told
    assert "label 7 is in no target volume" in told
    assert "\nN_CLASS = 3\n" in text


def test_fractions_are_no_labels(place):
    write_volumes(place / "old", ["case1"], value=0.5, dtype=np.float32)
    with pytest.raises(UserError, match=r"holds no labels \(round it.*case1_mask.*fractions, as 0.5"):
        run()
    assert not Path("mine.make").exists()


def test_scans_of_one_person_stay_together(place):
    for path in [*place.glob("old/*"), *place.glob("new/*")]:
        path.unlink()
    names = [f"case{n}{scan}" for n in range(5) for scan in "ab"]
    write_volumes(place / "old", names)
    write_volumes(place / "new", [f"case{n}a" for n in range(5)])
    text = run(patient=r"(case\d+[ab])")
    assert r"--group '(case\d+)'" in text
    assert "--site source --val 2" in text
    assert "--label_map" not in text  # 0 and 1 are classes


def test_unlike_spacings_and_sizes(place):
    write_volumes(place / "new", [f"case{n}" for n in range(4)], shape=(60, 50), spacing=0.5, value=255)
    text = run()
    assert "--spacing 0.75 0.75" in text
    assert "--size 40 40" in text  # 60 pixels of 0.5 mm are 40 of 0.75


def test_volumes_that_lie_differently_are_told(place, capsys):
    for kind in ("t2", "mask"):
        path = place / f"new/case1_{kind}.nii.gz"
        voxels = np.asarray(nib.load(path).dataobj)
        nib.Nifti1Image(voxels, np.diag([-1, 1, 3, 1])).to_filename(path)
    run()
    assert "voxel axes point differently, 7 RAS, 1 LAS: all are turned to LPS" in capsys.readouterr().out


def store_anew(folder, codes, lengths):
    """The same volumes of a folder, their axes to the right, front and head, in another order of voxels."""
    for path in folder.glob("*.nii.gz"):
        grid = Grid(nib.load(path).shape, np.diag([*lengths, 1.0]))
        voxels = turn(np.asarray(nib.load(path).dataobj), "RAS", codes)
        nib.Nifti1Image(np.ascontiguousarray(voxels), grid.turned(codes).affine).to_filename(path)


@pytest.mark.parametrize(
    ("lengths", "flags", "plane", "size"),
    [
        ((1, 1, 3), (), "axial", "24 24"),
        ((3, 1, 1), (), "sagittal", "24 8"),
        ((1, 1, 1), (), "axial", "24 24"),
        ((1, 1, 3), ("--plane", "coronal"), "coronal", "24 8"),
    ],
)
def test_a_plane_is_proposed_by_its_name_whatever_the_order_of_voxels(place, lengths, flags, plane, size):
    for site, codes in (("old", "RAS"), ("new", "PSR")):
        store_anew(place / site, codes, lengths)
    text = run(*flags)
    assert f"--plane {plane} --size {size}" in text
    assert "--axis" not in text.replace("--metric_axis", "")


def test_nothing_is_overwritten(place):
    run()
    before = Path("mine.make").read_text()
    with pytest.raises(UserError, match=r"mine.make is there already"):
        run("--val", "2")
    assert Path("mine.make").read_text() == before
    Path("mine.make").unlink()
    Path("data/mine_target").mkdir()
    with pytest.raises(UserError, match="data/mine_target is there already"):
        run()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--organ_mm2", "5", "6"), "one number above 0 for each class"),
        (("--group", "(nobody)"), "does not match the image file"),
        (("--patient", "(t2|mask)"), "two files for"),
        (("--val_list", "case9"), "--val_list names patients who are at neither site: case9"),
        (("--label_map", "9:1"), "--label_map 9:1 makes background of all source labels, 0, 255"),
        (("--class_names", "a,b,c"), "names of all 2 classes"),
        (("--nnunet", "x"), "with one of --source, .*--nnunet.*; given: --source, --nnunet"),
    ],
)
def test_what_cannot_be_is_told(place, flags, words):
    with pytest.raises(UserError, match=words):
        run(*flags)
    assert not Path("mine.make").exists()


def test_one_volume_is_split_by_blocks_and_loudly_so(place):
    for path in place.glob("new/case[1-3]*"):
        path.unlink()
    text = run()
    assert "--site target --split_by_blocks 1 4 --image" in text
    assert "--site source --val 1 --image" in text
    assert "THE TARGET IS ONE VOLUME, case0" in text.split("include")[0]
    assert "NO SCORE OF IT PROVES ANYTHING" in text


def test_what_is_typed_stands_in_place_of_what_is_proposed(place):
    write_volumes(place / "old", ["case3"], value=7)
    flags = ("--label_map", "255:1,7:1", "--spacing", "2", "1.5", "--size", "16", "8", "--val_list", "case2,case0")
    text = run(*flags, "--class_names", "background,organ x")
    for words in ("--label_map 255:1,7:1", "--spacing 2 1.5", "--size 16 8", "--class_names 'background,organ x'"):
        assert f"{words} " in text.replace("\\\n", " ")
    assert text.count("--val_list 'case2,case0' ") == 2
    assert "\nN_CLASS = 2\n" in text


def test_a_phantom_stays_marked(place):
    (place / "old/phantom.json").write_text(json.dumps({"phantom": "small"}))
    assert "--phantom small" in run()


@pytest.mark.parametrize(
    "told",
    ['{"phantom": "small\\n$(shell touch PWNED)"}', '{"phantom": "small; touch PWNED"}', "[1]", "{", "{}", "\xff"],
)
def test_a_card_beside_the_volumes_that_says_something_else_reaches_no_makefile(place, told):
    (place / "old/phantom.json").write_text(told, encoding="latin-1")
    with pytest.raises(
        UserError, match=r'phantom.json (is not JSON|should say .* "phantom": small or full in it)'
    ) as error:
        run()
    assert "\n" not in str(error.value)
    assert not Path("mine.make").exists()


def arguments_of(words):
    """What each command of these recipes is given: printf stands for python, and tells its words."""
    done = subprocess.run(["make", "-s", *words, r"CC=printf '%s\0'"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


def test_words_of_any_letters_arrive_at_the_commands_of_the_makefile_as_they_were_typed(place):
    (case, *_) = read_site("source", SiteFiles(("old/*_t2.nii.gz",), None, r"(case\d+)"), 0.1).cases
    plan = Plan(Classes((None, None), None, 2), ("--val 1", "--val 1"), "", "axial", None, (24, 20), ())
    names = [text for text in NASTY if "\0" not in text]
    given = [names[n : n + 8] for n in range(0, len(names), 8)]
    for number, row in enumerate(given):
        row += ["x"] * (8 - len(row))
        sites = [
            Site(name, SiteFiles((row[at],), row[at + 1], row[5]), [case], [], Counter(), Counter(), 0, [], [])
            for name, at in (("s", 0), ("t", 2))
        ]
        classes = replace(plan.classes, names=("background", row[4]))
        told = replace(plan, classes=classes, group=row[4], reasons=tuple(row))
        wishes = Wishes(f"n{number}", modality=row[6], organ_mm2=(5,), tags=row[7])
        Path(f"n{number}.make").write_text(makefile_text(sites, told, wishes), encoding="utf-8")
    for number, row in enumerate(given):
        name = f"n{number}"
        goals = [f"data/{name}_source", f"data/{name}_target", f"sizes/{name}.csv"]
        found = arguments_of(["-f", f"{name}.make", *goals])
        parts = [list(part) for is_one, part in groupby(found, lambda word: word == "once") if not is_one]
        for part, image, label in zip(parts[1:3], row[0:3:2], row[1:4:2], strict=True):
            spec = read_spec(part[part.index("preprocess.slice_volumes") + 1 : part.index("processes.lock") - 1])
            assert (spec.images, spec.label) == ({"IMG": image}, label)
            assert (spec.group, spec.patient, spec.modality) == tuple(row[4:7])
            assert spec.class_names == ("background", row[4].replace(",", ";"))
        assert size_priors.parse_args(parts[3][parts[3].index("make") :]).tags == Path(row[7])
    assert not list(place.glob("**/PWNED*"))


@pytest.mark.parametrize("typed", [r"(case\d+)", r"^(case\d+)", None])
def test_ids_in_the_names_of_folders_are_found(place, typed):
    for site in ("old", "new"):
        for path in sorted(place.glob(f"{site}/*.nii.gz")):
            case, _, kind = path.name.partition("_")
            (place / site / case / "anat").mkdir(parents=True, exist_ok=True)
            path.rename(place / site / case / (f"anat/{kind}" if kind.startswith("t2") else kind))
    flags = ["--name", "mine", "--source", "old/*/anat/t2.nii.gz", "--source_label", "old/*/mask.nii.gz"]
    flags += ["--target", "new/*/anat/t2.nii.gz", *(["--patient", typed] if typed else [])]
    program.new_dataset(program.parse_args(flags))
    text = Path("mine.make").read_text()
    assert "at the source" in text
    for site, folder in (("source", "old/*/*"), ("target", "new/*/*")):
        words = arguments_of(["-f", "mine.make", f"data/mine_{site}"])
        spec = read_spec(words[words.index("preprocess.slice_volumes") + 1 :])
        found = {read_id(path, re.compile(spec.patient)) for path in place.glob(f"{folder}/t2.nii.gz")}
        assert found == {f"case{n}" for n in range(4)}


@pytest.mark.parametrize(
    ("names", "patient"),
    [
        ({"IMG": ["T2_case01", "T2_case02"], "GT": ["case01_mask2", "case02_mask2"]}, r"(case\d+)"),
        ({"IMG": ["img/anna", "img/berta"], "GT": ["gt/anna", "gt/berta"]}, r"^(.+?)(?:"),
        ({"IMG": ["anna_t2", "berta_t2"], "GT": ["anna_mask", "berta_mask"]}, r"^([^_.]+)[_.]"),
        ({"IMG": ["anna/t2", "berta/t2"], "GT": ["anna/mask", "berta/mask"]}, r"([^/]+)/[^/]*$"),
        ({"IMG": ["17/s2/t2", "18/s2/t2"], "GT": ["17/s2/mask", "18/s2/mask"]}, r"(\d+)[^/]*/[^/]*/[^/]*$"),
    ],
)
def test_what_tells_patients_apart_is_found_by_itself(tmp_path, names, patient):
    for name in (name for each in names.values() for name in each):
        (tmp_path / "a" / f"{name}.nii").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / f"{name}.nii").touch()
    patterns = {role: "|".join(f"{tmp_path}/a/{name}.nii" for name in each) for role, each in names.items()}
    found, (told,) = find_patient(patterns, None, "source")
    assert found.startswith(patient)
    assert "found by itself" in told


def test_names_that_tell_no_patients_apart_are_refused(tmp_path):
    for name in ("x/a.nii", "x/b.nii", "x/c.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="No part of the names tells which files of the source are of one patient"):
        find_patient({"IMG": f"{tmp_path}/x/[ab].nii", "GT": f"{tmp_path}/x/c.nii"}, None, "source")
    with pytest.raises(UserError, match="No file matches .*, the images of the target"):
        find_patient({"IMG": f"{tmp_path}/y/*.nii"}, None, "target")
