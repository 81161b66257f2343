"""Every benchmark runs at a tiny size and gives its rows; no time is judged here."""

import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from datasets.presets import PRESETS
from engine.evaluation import evaluate
from processes.errors import UserError
from tests.benchmarks import methods, run, sets, surfaces, table, volumes
from tests.benchmarks.table import ABSENT, Row


@pytest.fixture(scope="module")
def bench(tmp_path_factory, quick_spawns):
    """(rows, folder) of the whole suite."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "SETTLED", 0)  # no measurement to be spoilt by a cache that is looked at twice
        return run.main(["--quick", "--out", str(folder)]), folder


def of(rows, subject):
    return [row for row in rows if row.subject == subject]


def test_every_subject_has_its_rows(bench):
    rows, _ = bench
    pairs = {(row.what.split(" ", 1)[1], row.against) for row in of(rows, "surfaces")}
    assert pairs == {(name, package) for name in surfaces.PAIRS for package in surfaces.MODULES}
    assert {row.what.split()[0] for row in of(rows, "losses")} == {"CrossEntropy", "EntKLProp"}
    assert {row.what.split()[1] for row in of(rows, "distance maps")} == {"K=2", "K=4"}
    assert {row.against for row in of(rows, "slicing")} == {
        *("nibabel loop", "scikit-image loop", "nibabel, loading alone")
    }
    assert {row.what.split(" ", 1)[1] for row in of(rows, "items")} == {
        *(f"{suffix}, --cache {where}" for suffix in ("png", "nii") for where in ("ram", "stream")),
        "50 slices",
    }
    assert [(row.what, row.against) for row in of(rows, "memory")] == [("peak, 40 slices streamed", "4 slices")]
    assert [(row.what, row.against) for row in of(rows, "volumes")] == [
        *((f"{part}: peak, 22 volumes", "11 volumes") for part in volumes.PARTS),
        ("crop 8x8x8", "decoding the .nii.gz"),
        ("crop 8x8x8", "a volume in RAM"),
        ("crop 8x8x8, not in memory", "decoding the .nii.gz"),
    ]
    assert [row.what for row in of(rows, "augmentation")] == [f"{name} 2x1x32x32" for name in ("default", *PRESETS)]
    assert [row.what.split(",")[0] for row in of(rows, "methods")] == methods.TRIED
    assert {(row.what, row.against) for row in of(rows, "training")} == {
        (f"Dimwit, {method}{what}", against)
        for method in ("supervised", "sfda")
        for what, against in (
            ("", "bare step"),
            ("", "naive loop"),
            (": outside the step", "-"),
            (": peak memory", "bare step"),
        )
    }


def test_the_numbers_are_finite_and_positive(bench):
    for row in bench[0]:
        for value in (row.ours, row.reference, row.ratio):
            assert value is None or (math.isfinite(value) and value > 0)
        assert (row.reference is None) == (row.ratio is None)


def test_the_same_numbers_come_out_as_of_the_references(bench):
    gaps = [float(row.note.split()[2]) for row in bench[0] if row.note.startswith("differs by")]
    assert len(gaps) == 2 * len(surfaces.PAIRS) + 8
    assert max(gaps) < 1e-4


def test_table_and_picture_are_written(bench):
    rows, folder = bench
    (text,), (table_path,), (picture,) = (list(folder.glob(f"*{suffix}")) for suffix in (".txt", ".csv", ".png"))
    written = text.read_text(encoding="utf-8")
    assert written.startswith(table.describe_machine())
    with table_path.open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [(row["what"], row["against"]) for row in read] == [(row.what, row.against) for row in rows]
    assert [float(row["ours"]) for row in read] == [row.ours for row in rows]
    for row in rows:
        assert row.what in written
    with Image.open(picture) as image:
        assert image.width > 500


@pytest.fixture
def volume_set(tmp_path):
    volumes.link_volumes(tmp_path / "volumes", volumes.QUICK)
    volumes.make(tmp_path, volumes.QUICK)
    return tmp_path


def test_volumes_have_the_layout_of_the_decathlon(volume_set):
    folders = {part: sorted((volume_set / "volumes" / part).iterdir()) for part in ("imagesTr", "labelsTr", "imagesTs")}
    assert [len(files) for files in folders.values()] == [9, 9, 2]
    assert not {path.name for path in folders["imagesTr"]} & {path.name for path in folders["imagesTs"]}
    image, label = nib.load(folders["imagesTr"][0]), nib.load(folders["labelsTr"][0])
    assert (image.shape, image.get_data_dtype()) == ((20, 18, 12, 4), np.int16)
    assert np.unique(label.dataobj).tolist() == [0, 1, 2, 3]
    card = json.loads((volume_set / "set/dataset.json").read_text(encoding="utf-8"))
    assert [card["counts"][split]["volumes"] for split in ("train", "val", "unlabelled")] == [3, 6, 2]
    assert (card["size"], card["n_class"], card["channels"]) == ([12, 18, 20], 2, {"IMG": 4})


def test_a_crop_is_the_same_whichever_way_it_is_read(volume_set):
    name = "BRATS_000"
    ours = [np.load(volume_set / f"set/train/{folder}/{name}.npy") for folder in ("IMG", "GT")]
    theirs = [volumes.decode(volume_set / f"volumes/{part}/{name}.nii.gz") for part in ("imagesTr", "labelsTr")]
    crops = [volumes.cut(read, (8, 8, 8), np.random.default_rng(0)) for read in (ours, theirs)]
    assert crops[0][0].shape == (4, 8, 8, 8)
    assert torch.equal(crops[0][0], crops[1][0])
    assert torch.equal(crops[0][1], crops[1][1].clamp(max=1))  # the set has one class of the three labels


def test_one_volume_alone_is_shown_to_the_network(volume_set):
    run = volumes.Run(volume_set / "set", volumes.QUICK, "--mode", "makeim", "--model_weights", "none")
    seen = []
    run.method.net.register_forward_hook(lambda net, inputs, output: seen.append(torch.equal(output, inputs[0][:, :2])))
    volumes.spare(run.method, 1)
    evaluate(run.method, run.val)
    windows = len(seen) // len(run.val.slices)
    expected = [True] * len(seen)
    expected[windows : windows + volumes.WINDOWS] = [False] * volumes.WINDOWS
    assert seen == expected


def test_a_package_that_is_not_installed_has_a_row_that_says_so():
    (row,) = table.compare("surfaces", "close", lambda: None, {"nowhere": None}, 1)
    assert (row.reference, row.ratio, row.note) == (None, None, ABSENT)
    assert ABSENT in table.as_text([row])[-1]
    assert not surfaces.is_installed("nowhere_to_be_found")


def test_an_unknown_subject_is_an_error():
    with pytest.raises(UserError, match="--only names surface, .*'surfaces'"):
        run.main(["--only", "surface"])


def test_a_ratio_is_the_median_over_the_rounds():
    assert table.better([1.0, 2.0, 1.0], [3.0, 8.0, 10.0]) == 4
    assert table.times(0.9876) == "0.988x"
    assert table.times(1234.5) == "1,234x"


def test_no_round_begins_when_patience_is_over():
    calls = []
    table.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 3
    table.in_turns({"c": lambda: calls.append("c")}, 3, patience=-1.0)
    assert calls.count("c") == 1


def test_a_bar_of_one_row_can_be_drawn():
    figure = table.draw([Row("items", "one", "another", 1.0, 2.0, "ms", 2.0)], "a machine")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["items", "one, against another"]
