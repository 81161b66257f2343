"""The images of a split without their ground truth: the same as a run sees, and no file of a label is opened."""

import os
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import FOLDERS, write_prior, write_site

from dataloader import Reading, open_data, open_images
from engine.arguments import get_args
from main import build_objective, demand_of
from processes.errors import UserError
from selection.labelled import UNLABELLED
from selection.target import open_target
from utils import settings_of

LOSS = "[('SelfEntropy', {}, None, None, None, 1)"
PRIOR = "('EntKLProp', {}, 'PredictionBounds', {'sizefile': 'CSV', 'predcol': 'COLUMN', 'margin': 0}, 'soft_size', 1)"
TAGS = "('NaivePenalty', {}, 'TagBounds', {'values': {1: [1, 2]}}, 'soft_size', 1)"
CUBES = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]"
OPENED: list[str] | None = None  # paths, while somebody listens


def note(event, words):
    if OPENED is not None and event in ("open", "os.scandir", "os.listdir"):
        OPENED.append(os.fsdecode(words[0]) if isinstance(words[0], str | bytes | os.PathLike) else "")


sys.addaudithook(note)


@pytest.fixture
def opened(monkeypatch):
    """Every file and folder that is opened from now on."""
    paths = []
    monkeypatch.setattr(sys.modules[__name__], "OPENED", paths)
    return paths


@pytest.fixture
def site(tmp_path):
    return write_site(tmp_path / "site", 150, 90, seed=2)


@pytest.fixture
def cubes(tmp_path):
    """Four volumes of two sizes, of which one is validated on."""
    rng = np.random.default_rng(0)
    for case in range(4):
        split = "val" if case == 3 else "train"
        for folder, kind in (("IMG", np.float32), ("GT", np.uint8)):
            path = tmp_path / "cubes" / split / folder / f"Case{case:02d}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, rng.integers(0, 2, (4 + case % 2, 6, 5)).astype(kind))
    return tmp_path / "cubes"


def read(site, *words, **more):
    """The arguments of an adaptation of the site, its settings of reading, and its losses."""
    flags = {"target_dataset": site, "workdir": site.parent / "run", "method": "sfda", "n_class": 2, "device": "cpu"}
    flags |= {"target_folders": FOLDERS[: FOLDERS.rindex(", (")] + "]", "target_losses": LOSS + "]"}
    flags |= {"grp_regex": r"(Case\d+)_(\d+)", "model_weights": "unread.pkl", "network": "Dimwit", "batch_size": 5}
    args = get_args([*words, *(word for name, value in (flags | more).items() for word in (f"--{name}", str(value)))])
    return args, settings_of(Reading, vars(args)), build_objective(args)


def read_cubes(cubes, *words):
    of_volumes = {"target_folders": CUBES, "grp_regex": r"(Case\d+)", "network": "UNet3D:width=2,depth=1"}
    return read(cubes, *words, "--crop", "4", "6", "5", **of_volumes)


def images(stream):
    return [batch.image for batch, truth in stream.epoch(0)]


@pytest.mark.parametrize("cache", ["ram", "stream"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_no_label_is_opened_and_the_images_are_those_of_the_run(site, opened, split, cache):
    args, reading, loss = read(site, *["--ontrain"] * (split == "train"), cache=cache)
    stream = open_images(reading, split, loss.bounds)
    ours = images(stream)
    assert any("IMG" in path for path in opened)
    assert not [path for path in opened if f"{os.sep}GT" in path]
    opened.clear()
    _, val = open_data(demand_of(args), reading, loss.bounds)
    assert [path for path in opened if f"{os.sep}GT" in path]  # else nothing was proved
    assert stream.slices.names == val.slices.names
    assert all(torch.equal(*pair) for pair in zip(ours, images(val), strict=True))
    assert not stream.slices.has_truth
    batch, truth = next(stream.epoch(0))
    assert (truth, batch.targets, batch.bounds) == (None, [None], [None])
    assert [len(batch) for batch in ours] == ([5, 5, 5, 1] if split == "train" else [5, 3])


@pytest.mark.parametrize("split", ["train", "val"])
def test_volumes_too(cubes, opened, split):
    args, reading, loss = read_cubes(cubes, *["--ontrain"] * (split == "train"))
    stream = open_images(reading, split, loss.bounds)
    ours = images(stream)
    assert not [path for path in opened if f"{os.sep}GT" in path]
    _, val = open_data(demand_of(args), reading, loss.bounds)
    assert [path for path in opened if f"{os.sep}GT" in path]
    assert all(torch.equal(*pair) for pair in zip(ours, images(val), strict=True))
    sizes = {"train": [(4, 6, 5), (5, 6, 5), (4, 6, 5)], "val": [(5, 6, 5)]}
    assert [tuple(image.shape) for image in ours] == [(1, 1, *size) for size in sizes[split]]
    shutil.rmtree(cubes / split / "GT")
    assert all(torch.equal(*pair) for pair in zip(ours, images(open_images(reading, split)), strict=True))


@pytest.mark.parametrize("labels", ["wiped", "absent"])
def test_labels_change_nothing(site, labels):
    _, reading, _ = read(site)
    before = images(open_images(reading, "val"))
    for path in site.glob("*/GT"):
        shutil.rmtree(path)
        if labels == "wiped":
            path.mkdir()
    after = images(open_images(reading, "val"))
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_priors_come_along_unless_ground_truth_went_into_them(site):
    csv = write_prior(site.parent / "prior.csv", site)
    one, other = (PRIOR.replace("CSV", str(csv)).replace("COLUMN", name) for name in ("dumbpredwtags", "val_gt_size"))
    args, reading, loss = read(site, target_losses=f"{LOSS}, {one}, {TAGS}, {other}]")
    streams, _ = open_data(demand_of(args), reading, loss.bounds)
    stream = open_images(reading, "train", loss.bounds)
    assert [None if bound is None else bound.shape for bound in stream.slices.bounds] == [None, (16, 2, 2), None, None]
    theirs = dict(zip(streams["target"].slices.names, streams["target"].slices.bounds[1], strict=True))
    for name, bound in zip(stream.slices.names, stream.slices.bounds[1], strict=True):
        assert (bound == theirs[name]).all()
    batch, _ = next(stream.epoch(0))
    assert torch.equal(batch.bounds[1], torch.from_numpy(stream.slices.bounds[1][:5]))
    lines = csv.read_text().splitlines(keepends=True)
    csv.write_text("".join(line for line in lines if "Case00_2" not in line))
    _, reading, loss = read(site, target_losses=f"{LOSS}, {one}]")
    assert open_images(reading, "train", loss.bounds).slices.bounds == [None, None]


def test_a_split_of_validation_is_read_as_validation_reads_it(site):
    """And train as training does, of which nobody says that it has the other folder."""
    for path in (site / "val" / "IMG").iterdir():
        (site / "val" / "SEEN").mkdir(exist_ok=True)
        shutil.copy(path, site / "val" / "SEEN" / path.name)
    val = "[('SEEN', nii_transform, False), ('GT', gt_transform, False)]"
    _, reading, _ = read(site, val_target_folders=val)
    assert open_images(reading, "val").slices.folders[0].folder == "SEEN"
    assert images(open_images(reading, "val"))[0].max() > 1
    assert open_images(reading, "train").slices.folders[0].folder == "IMG"


def test_what_is_wrong_is_said(site):
    _, reading, _ = read(site, modalities=3)
    with pytest.raises(UserError, match="Expected images of --modalities 3, found 1 in"):
        open_images(reading, "val")
    _, reading, _ = read(site)
    with pytest.raises(UserError, match="test.* is missing"):
        open_images(reading, "test")


# ------------------------------------------------------------------------------------------------ few patients


def test_few_patients_are_what_is_learnt_from_and_chosen_by(site):
    """Four train; of fewer each is among those of more, and the images to choose by are of the same patients."""
    seen = []
    for number in (1, 2, 4):
        args, reading, loss = read(site, "--n_target", str(number), "--draw", "3")
        streams, val = open_data(demand_of(args), reading, loss.bounds)
        found = set(streams["target"].slices.patients)
        assert len(found) == number
        assert len(set(val.slices.patients)) == 2  # all that are scored
        target = open_target(reading, loss.bounds, UNLABELLED)
        assert set(target.slices.patients) == found
        seen.append(found)
    assert seen[0] < seen[1] < seen[2]
    assert len({tuple(patients_drawn(site, draw)) for draw in range(6)}) > 1


def patients_drawn(site, draw):
    """The patient that a draw of one leaves."""
    return sorted(set(open_with(site, ["--n_target", "1", "--draw", str(draw)])[0]["target"].slices.patients))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--n_target", "5"), "--n_target 5, but .*train holds 4 volumes"),
        (("--n_target", "-1"), "--n_target is -1"),
        (("--n_target", "1", "--keep_every", "5", "--select_with", "1"), "--select_with draws among all patients"),
    ],
)
def test_patients_that_are_not_there_are_refused(site, words, told):
    with pytest.raises(UserError, match=told):
        open_with(site, words)


def open_with(site, words):
    args, reading, loss = read(site, *words)
    return open_data(demand_of(args), reading, loss.bounds)
