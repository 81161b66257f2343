"""The report on data: what is wrong stands first, what is missing is no fault of the report, a phantom is marked."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write_prior, write_site
from PIL import Image

from preprocess import data_report
from preprocess.data_report import as_text, report
from preprocess.survey.pictures import spread_rows
from preprocess.survey.problems import find_problems, find_unchecked
from preprocess.survey.sets import survey_set
from processes.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path):
    return write_site(tmp_path / "site", inside=200, outside=60, seed=1)


def problems(*roots, prior=None):
    return data_report.group(find_problems([survey_set(root) for root in roots], prior))


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def test_a_sound_set_has_no_problem_and_counts_what_lies_there(site):
    survey = survey_set(site)
    assert problems(site) == {}
    assert data_report.summarise_split(survey, "train") | {"pixels": 0} == {
        "patients": 4,
        "slices": 16,
        "labelled": 16,
        "empty": 4,
        "slices_with_class": [16, 12],
        "pixels": 0,
    }
    true = sum(int((np.asarray(Image.open(path)) == 1).sum()) for path in site.glob("val/GT/*.png"))
    assert data_report.summarise_split(survey, "val")["pixels"][1] == true


def test_white_masks_are_named_as_that_and_not_as_empty(site):
    for path in site.glob("*/GT/*.png"):
        save(path, np.asarray(Image.open(path)) * 255)
    found = problems(site)
    (white,) = (what for what in found if "255" in what)
    assert white.startswith("site: label 255, no class: of a 0/255 mask write 1 for 255")
    assert len(found[white]) == 18
    assert not any("empty" in what for what in found)


def test_labels_that_shaped_the_images_are_named(site, tmp_path):
    card = {"name": "site", "uses_labels": "slices are cut round all that is labelled"}
    (site / "dataset.json").write_text(json.dumps(card))
    text = data_report.report([survey_set(site)], None, tmp_path / "out")
    assert f"LABELS SHAPED THE IMAGES of {site.name}: {card['uses_labels']}." in text
    numbers = json.loads((tmp_path / "out/numbers.json").read_text())
    assert numbers["sets"][site.name]["uses_labels"] == card["uses_labels"]


def test_every_planted_fault_is_found_and_named(site, tmp_path):
    other = write_site(tmp_path / "other", inside=150, outside=90, seed=2)
    save(site / "train/IMG/Case00_1.png", np.full((24, 20), 7))
    shutil.copy(site / "train/IMG/Case01_1.png", site / "train/IMG/Case01_2.png")
    shutil.copy(site / "train/IMG/Case02_2.png", site / "val/IMG/Case05_2.png")
    shutil.copy(site / "train/IMG/Case03_1.png", other / "train/IMG/Case03_1.png")
    (site / "train/GT/Case02_3.png").unlink()
    (site / "val/IMG/Case04_3.png").write_bytes(b"torn")
    save(site / "val/IMG/Case00_9.png", np.arange(480).reshape(24, 20) % 251)
    save(site / "val/GT/Case00_9.png", np.zeros((24, 20)))
    save(other / "train/GT/Case01_2.png", np.zeros((24, 24)))
    for path in other.glob("val/GT/*.png"):
        save(path, np.zeros((24, 20)))
    found = problems(site, other)
    expected = {
        "site: flat image, one grey level throughout": "train/Case00_1",
        "the same image under several names, in one split": "train/Case01_1 = site/train/Case01_2",
        "the same image under several names, in two splits of a set": "train/Case02_2 = site/val/Case05_2",
        "the same image under several names, in two sets": "site/train/Case03_1 = other/train/Case03_1",
        "site: no label in GT": "train/Case02_3",
        "site: cannot be read or used": "Case04_3.png",
        "site: patient in more than one split": "Case00 (train and val)",
        "other: label of another size than its image": "train/Case01_2",
        "other: class absent from val": "class 1",
        "other: most slices are empty, without any class": "val (100%)",
    }
    for what, which in expected.items():
        assert any(which in each for each in found[what]), (what, found)
    assert set(found) == set(expected)


def test_splits_by_blocks_may_share_a_patient(site):
    save(site / "val/IMG/Case00_9.png", np.arange(480).reshape(24, 20) % 251)
    save(site / "val/GT/Case00_9.png", np.zeros((24, 20)))
    assert "site: patient in more than one split" in problems(site)
    (site / "dataset.json").write_text(json.dumps({"split_unit": "slice blocks"}))
    assert problems(site) == {}


def manifest(root, mm):
    names = [path.stem for path in root.glob("*/IMG/*")]
    rows = [f"{name},5,{mm(name)},{mm(name)}" for name in names]
    (root / "manifest.csv").write_text("\n".join(["slice,spacing_slice,spacing_w,spacing_h", *rows]) + "\n")


def test_spacings_that_differ_in_a_set_and_between_sites(site, tmp_path):
    other = write_site(tmp_path / "other", inside=150, outside=90, seed=2)
    manifest(site, lambda name: 1.0 if name < "Case03" else 1.3)
    manifest(other, lambda _: 2.0)
    found = problems(site, other)
    assert found["site: very different spacing along W"] == ["1 mm (Case00) to 1.3 mm (Case03)"]
    assert any("1.15 and 2 mm" in which for which in found["very different spacing along H at two sites"])
    manifest(other, lambda _: 1.1)
    assert not [what for what in problems(other) if "spacing" in what]


def test_grey_levels_outside_0_to_1_unless_the_card_says_so(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(4):
            path = tmp_path / "set" / split / "IMG" / f"{split}{index % 2}_{index // 2}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, rng.normal(0, 2, (2, 16, 16)).astype(np.float32))
    found = problems(tmp_path / "set")
    assert list(found) == ["set: grey levels outside 0..1"]
    assert found["set: grey levels outside 0..1"][0].startswith("8 of 8 in IMG")
    (tmp_path / "set/dataset.json").write_text(json.dumps({"normalisation": {"kind": "zscore"}}))
    assert problems(tmp_path / "set") == {}


def test_a_prior_that_is_not_there_yet_is_no_problem_but_not_checked(site, tmp_path):
    text = report([survey_set(site)], tmp_path / "none.csv", tmp_path / "out")
    assert "Nothing is wrong with what was checked.\nNot checked: " in text
    assert f"Not checked: the class-ratio prior {tmp_path / 'none.csv'}: it is not there yet" in text
    numbers = json.loads((tmp_path / "out/numbers.json").read_text())
    assert (numbers["problems"], "none.csv" in numbers["not_checked"][-1]) == ({}, True)
    there = write_prior(tmp_path / "there.csv", site, size=80)
    assert "Not checked: the class-ratio prior" not in report([survey_set(site)], there, tmp_path / "out")


def test_a_prior_that_lacks_slices_or_is_far_off(site, tmp_path):
    good = write_prior(tmp_path / "good.csv", site, size=80)
    assert not [what for what in problems(site, prior=good) if "dumbpredwtags" in what]
    off = write_prior(tmp_path / "off.csv", site, size=350)
    found = problems(site, prior=off)
    assert "times its true size" in found[f"{off}: dumbpredwtags is far from the truth"][0]
    zero = tmp_path / "zero.csv"
    zero.write_text("val_ids,dumbprednotags\n" + "".join(f'{p.stem},"[0, 0]"\n' for p in site.glob("*/IMG/*")))
    assert list(problems(site, prior=zero)) == [f"{zero} cannot be compared"]
    good.write_text("\n".join(good.read_text().splitlines()[:-1]) + "\n")
    assert f"{good}: dumbpredwtags lacks slices of site" in problems(site, prior=good)


@pytest.mark.parametrize("phantom", [None, "small"])
def test_all_files_are_written_and_a_phantom_is_marked(site, tmp_path, phantom, monkeypatch):
    (site / "dataset.json").write_text(json.dumps({"split_unit": "patient", "phantom": phantom}))
    banners = []
    monkeypatch.setattr(
        "preprocess.survey.pictures.save", lambda figure, path: banners.append((path.name, len(figure.subfigs)))
    )
    text = report([survey_set(site)], None, tmp_path / "out")
    assert ("PHANTOM" in text) == bool(phantom)
    assert text == (tmp_path / "out/report.txt").read_text()
    assert {name for name, _ in banners} == {"histograms.png", "ratios.png", "montage_site.png"}
    assert all((count == 2) == bool(phantom) for _, count in banners)
    with (tmp_path / "out/slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert {row["split"] for row in rows} == {"train", "val"}
    assert json.loads((tmp_path / "out/numbers.json").read_text())["sets"]["site"]["splits"]["val"]["slices"] == 8


def test_problems_stand_first(site, tmp_path):
    (site / "train/GT/Case02_3.png").unlink()
    text = report([survey_set(site)], None, tmp_path / "out")
    assert text.index("no label in GT") < text.index("Splits") < text.index("Labels")
    assert "train/Case02_3" in text


def test_no_ground_truth_no_card_no_manifest_several_folders(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for patient in ("a", "b"):
            for folder in ("Inn", "Wat"):
                path = tmp_path / "set" / split / folder / f"{split}{patient}_0.nii"
                path.parent.mkdir(parents=True, exist_ok=True)
                nib.Nifti1Image(rng.random((16, 12), np.float32), np.eye(4)).to_filename(path)
    survey = survey_set(tmp_path / "set")
    assert (survey.images, survey.labels, survey.n_class) == (["Inn", "Wat"], "", 0)
    text = report([survey], None, tmp_path / "out")
    assert "Nothing is wrong with what was checked." in text
    assert [words in text for words in ("checked: set: ground truth", "checked: set: spacing")] == [True, True]
    assert text.count("\nNot checked: ") == 4
    assert not (tmp_path / "out/ratios.png").exists()
    assert (tmp_path / "out/montage_set.png").stat().st_size > 1000


def test_what_no_card_tells_to_be_volumes_is_told_by_its_ground_truth(tmp_path):
    label = np.zeros((8, 10, 8), np.uint8)
    label[2:4, 3:7] = 1
    for split in ("train", "val"):
        for folder, volume in (("IMG", np.random.default_rng(0).random((8, 10, 8))), ("GT", label)):
            (tmp_path / split / folder).mkdir(parents=True)
            for name in ("a_1", "b_2"):
                np.save(tmp_path / split / folder / f"{split}{name}.npy", volume)
    survey = survey_set(tmp_path)
    assert (survey.volumetric, survey.faults, survey.items[0].size) == (True, [], (8, 10, 8))
    (line,) = (line for line in find_unchecked([survey], None) if "volumes" in line)
    assert 'ground truth of (8, 10, 8) were taken for volumes; if they are slices, write {"volumetric": false}' in line
    shutil.rmtree(tmp_path / "train/GT")
    shutil.rmtree(tmp_path / "val/GT")
    survey = survey_set(tmp_path)  # as well slices of eight channels
    (line,) = (line for line in find_unchecked([survey], None) if "volumes" in line)
    assert (
        'images of (8, 10, 8) were taken for slices of 8 channels; if they are volumes, write {"volumetric": true}'
        in line
    )
    (tmp_path / "dataset.json").write_text('{"volumetric": true}')
    survey = survey_set(tmp_path)
    assert (survey.volumetric, survey.taken_for) == (True, "")


def test_a_set_of_volumes(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "unlabelled"):
        for number in range(2):
            for folder, array in (("IMG", rng.normal(0, 9, (2, 6, 8, 8))), ("GT", np.zeros((6, 8, 8), np.uint8))):
                if folder == "GT":
                    array[4, 2:5, 2:5] = 2
                    array[3, :1] = 1
                if (split, folder) != ("unlabelled", "GT"):
                    (tmp_path / "set" / split / folder).mkdir(parents=True, exist_ok=True)
                    np.save(tmp_path / "set" / split / folder / f"{split}{number}.npy", array)
    (tmp_path / "set/dataset.json").write_text(json.dumps({"volumetric": True, "n_class": 3}))
    survey = survey_set(tmp_path / "set")
    assert problems(tmp_path / "set") == {}
    assert survey.class_counts("train").tolist() == [[384 - 17, 8, 9]] * 2
    assert survey.image(0).shape == (2, 8, 8)
    assert (survey.truth(0) == 2).sum() == 9  # the plane with most foreground
    report([survey], None, tmp_path / "out")


def test_the_montage_shows_every_patient_and_slices_with_foreground(site):
    survey = survey_set(site)
    rows = spread_rows(survey, 12)
    assert {survey.items[row].patient for row in rows} == set(survey.patients)
    assert all(survey.items[row].pixels[1] for row in rows)


def test_a_folder_without_images_is_told_in_words(python, tmp_path):
    (tmp_path / "set/train/other").mkdir(parents=True)
    (tmp_path / "set/train/GT").mkdir()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in .*empty"):
        survey_set(tmp_path / "empty")
    done = subprocess.run(
        [python, "-m", "preprocess.data_report", "--data", tmp_path / "none", "--out", tmp_path / "out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "There is no folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("makefile", ["prostate.make", "spine.make", "gta5.make", "brats.make"])
def test_every_makefile_has_the_goal(makefile):
    words = ["make", "-n", "-f", makefile, f"CC={sys.executable}", "data-report"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stderr
    assert "-m preprocess.data_report --data data/" in done.stdout


def test_no_problem_is_said_where_every_check_ran_and_nowhere_else(site, tmp_path):
    other = write_site(tmp_path / "other", inside=150, outside=90, seed=2)
    names = [path.stem for path in other.glob("*/IMG/*")]
    prior = tmp_path / "good.csv"
    prior.write_text("val_ids,dumbprednotags\n" + "".join(f'{name},"[400, 80]"\n' for name in names))
    for root in (site, other):
        (root / "dataset.json").write_text(json.dumps({"split_unit": "patient", "n_class": 2}))
        manifest(root, lambda _: 1.0)

    def told(*roots, prior=prior):
        surveys = [survey_set(root) for root in roots]
        return as_text(surveys, find_problems(surveys, prior), find_unchecked(surveys, prior))

    assert "No problem found." in told(site, other)
    assert "Not checked" not in told(site, other)
    assert "another site: one set was named" in told(other)
    assert "prior: none was named" in told(site, other, prior=None)
    (other / "manifest.csv").unlink()
    assert "other: spacing: no manifest.csv tells it" in told(site, other)
    (site / "dataset.json").unlink()
    assert "site: labels against a number of classes" in told(site, other)
    assert "No problem found." not in told(site, other)


def test_gaps_and_slices_of_one_number_are_named(site):
    for folder in ("IMG", "GT"):
        (site / "train" / folder / "Case01_1.png").unlink()
        (site / "train" / folder / "Case02_1.png").rename(site / "train" / folder / "Case02_03.png")
    assert problems(site) == {
        "site: slices lack between others (distances keep the gap)": ["train/Case01 (1)"],
        "site: slices of one patient and number": ["train/Case02 (3)"],
    }
    (site / "dataset.json").write_text(json.dumps({"split_unit": "slice blocks"}))
    assert problems(site) == {}
