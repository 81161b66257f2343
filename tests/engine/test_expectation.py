"""patients_expected.csv of a run: what is in it, who writes it, and that it touches no label and no other file."""

import csv
import shutil

import numpy as np
import pytest
import torch
from conftest import CROSS_ENTROPY, FOLDERS, write_site
from PIL import Image

import main as program
from engine import calibration, expectation
from engine.calibration import SHIFTED, SHIFTS, Points, fit
from engine.expectation import COLUMNS, Expectation
from files.run_names import EXPECTED
from nets.bundle import read_bundle
from nets.checkpoint_files import load_checkpoint
from nets.expected_dice import ConfidenceSums, expected_dice
from networks import build_network
from preprocess.shifts.acquisitions import ACQUISITIONS, SEVERITIES
from tests.tools.chaos import _bits as bits
from tests.tools.chaos import ask_to_stop, before_call, differences

BLIND = "[('IMG', png_transform, False)]"
ENTROPY = "[('SelfEntropy', {}, None, None, None, 1)]"
CUBES = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]"


def arguments(site, run, *more):
    words = ["--target_dataset", site, "--workdir", run, "--target_folders", FOLDERS, "--target_losses", CROSS_ENTROPY]
    words += ["--n_class", 2, "--grp_regex", r"(Case\d+)_(\d+)", "--network", "Dimwit", "--cpu", "--n_epoch", 1]
    return list(map(str, [*words, "--l_rate", 1e-2, *more]))


def rows(run):
    with (run / EXPECTED).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A source, its network, a target, and its twin whose labels are wiped."""
    root = tmp_path_factory.mktemp("world")
    write_site(root / "source", 200, 60, seed=1, patients=8)
    write_site(root / "target", 150, 90, seed=2, patients=8)
    shutil.copytree(root / "target", root / "wiped")
    for path in (root / "wiped").glob("*/GT/*.png"):
        Image.fromarray(np.zeros((24, 20), np.uint8)).save(path)
    program.main(arguments(root / "source", root / "trained", "--n_epoch", 6))
    return root


def noadap(world, run, *more, site="target"):
    program.main(
        arguments(world / site, run, "--method", "noadap", "--model_weights", world / "trained/last.pkl", *more)
    )
    return run


# -- what is in it ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_it_is_what_the_bundle_tells_of_the_network_s_masks(world, tmp_path):
    run, state = noadap(world, tmp_path / "run"), load_checkpoint(world / "trained/last.pkl")
    told, net = expected_dice(read_bundle(state)), build_network(state["network"], 1, 2)
    net.load_state_dict(state["net"])
    images = {}
    for path in sorted((world / "target/val/IMG").glob("*.png")):
        images.setdefault(path.stem.split("_")[0], []).append(np.asarray(Image.open(path)).astype(np.float32) / 255)
    table = rows(run)
    assert [row["patient"] for row in table] == [*images]
    assert tuple(table[0]) == COLUMNS
    for row, slices in zip(table, images.values(), strict=True):
        sums = ConfidenceSums(1, told.temperatures, "cpu")
        sums.add([0] * len(slices), net.eval()(torch.from_numpy(np.stack(slices))[:, None]).log_softmax(1))
        scores, predicted = sums.read()
        steps = (np.arange(256) + 0.5) / 256
        distance = told.distance(np.quantile(np.stack(slices), steps)[None, None])
        wanted = told.estimate(scores, predicted, distance)
        for name in ("expected", "low", "high"):
            assert float(row[name]) == pytest.approx(getattr(wanted, name)[0, 0], abs=1e-3)
        assert float(row["confidence"]) == pytest.approx(scores[0, 1], abs=1e-4)
        assert float(row["grey_distance"]) == pytest.approx(distance[0], abs=0.05)
        assert row["note"] == wanted.notes[0][0]
        assert 0 <= float(row["low"]) <= float(row["expected"]) <= float(row["high"]) <= 1
        assert row["network"] == "last"


def test_on_the_source_itself_it_is_near_the_truth(world, tmp_path):
    run = noadap(world, tmp_path / "run", site="source")
    with (run / "patients_last.csv").open() as file:
        real = {row["patient"]: float(row["dice"]) for row in csv.DictReader(file)}
    for row in rows(run):
        assert float(row["low"]) <= real[row["patient"]] <= float(row["high"])
        assert float(row["expected"]) == pytest.approx(real[row["patient"]], abs=0.1)
        assert (
            float(row["grey_distance"]) < 2 < float(rows(noadap(world, tmp_path / row["patient"]))[0]["grey_distance"])
        )


def test_the_worst_are_told(world, tmp_path, capsys):
    run = noadap(world, tmp_path / "run")
    worst = min(rows(run), key=lambda row: (float(row["expected"]), float(row["low"])))
    assert f"labels: {worst['patient']} {float(worst['expected']):.2f}" in capsys.readouterr().out


def test_of_a_run_that_chooses_it_is_that_of_the_chosen_network(world, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "run_alone", lambda function, *args: function(*args))
    more = ["--method", "sfda", "--target_losses", ENTROPY, "--keep_every", 1, "--l_rate", 0.5]
    chooses, ends = tmp_path / "chooses", tmp_path / "ends"
    program.main(arguments(world / "target", chooses, "--model_weights", world / "trained/last.pkl", *more))
    assert {row["network"] for row in rows(chooses)} == {"chosen"}
    program.main(arguments(world / "target", ends, "--model_weights", chooses / "chosen.pkl", "--method", "noadap"))
    assert [list(row.values())[:-2] for row in rows(ends)] == [list(row.values())[:-2] for row in rows(chooses)]


def test_three_classes_in_volumes(tmp_path):
    rng, folders = np.random.default_rng(0), CUBES
    for site, grey in (("source", 100), ("target", 60)):
        for split, cases in {"train": 3, "val": 2}.items():
            for case in range(cases):
                truth = np.zeros((10, 9, 12), np.uint8)
                truth[2 : 6 + case, 3:7, 4:8] = 1
                truth[2 : 6 + case, 3:7, 8:11] = 2
                image = (truth * grey + rng.normal(50, 9, truth.shape)).astype(np.float32)
                for folder, array in (("IMG", image), ("GT", truth)):
                    path = tmp_path / site / split / folder / f"Case{split}{case}.npy"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.save(path, array)
    three = CROSS_ENTROPY.replace("[0, 1]", "[0, 1, 2]").replace("[1, 1]", "[1, 1, 1]")
    more = ["--crop", 8, 12, 8, "--network", "UNet3D:width=2,depth=1", "--steps", 4, "--n_class", 3, "--n_epoch", 3]
    more += ["--target_folders", folders, "--target_losses", three, "--grp_regex", "(.*)"]
    program.main(arguments(tmp_path / "source", tmp_path / "trained", *more))
    told = expected_dice(read_bundle(load_checkpoint(tmp_path / "trained/last.pkl")))
    assert told.curve.shape == (2, 2, 16)
    start = ["--model_weights", tmp_path / "trained/last.pkl", "--method", "noadap"]
    program.main(arguments(tmp_path / "target", tmp_path / "run", *more, *start))
    found = rows(tmp_path / "run")
    assert [(row["patient"], row["class"]) for row in found] == [
        (f"Caseval{n}", f"{k}") for n in (0, 1) for k in (1, 2)
    ]
    blind = ["--target_folders", "[('IMG', nii_transform, False)]"]
    program.main(arguments(tmp_path / "target", tmp_path / "blind", *more, *start, *blind))
    assert rows(tmp_path / "blind") == found


# -- no label, no other file --------------------------------------------------------------------------------------


def test_labels_wiped_or_absent_give_the_same_bytes(world, tmp_path):
    runs = [noadap(world, tmp_path / "seen"), noadap(world, tmp_path / "wiped", site="wiped")]
    runs += [noadap(world, tmp_path / "absent", "--target_folders", BLIND)]
    assert len({(run / EXPECTED).read_bytes() for run in runs}) == 1


def test_no_ground_truth_is_read_for_it(world, tmp_path, monkeypatch):
    """With the folders gone when its turn comes."""
    site, write = shutil.copytree(world / "target", tmp_path / "site"), Expectation.write

    def without_truth(self, network):
        for folder in site.glob("*/GT"):
            shutil.rmtree(folder)
        return write(self, network)

    monkeypatch.setattr(Expectation, "write", without_truth)
    start = ["--method", "noadap", "--model_weights", world / "trained/last.pkl"]
    program.main(arguments(site, tmp_path / "run", *start))
    assert not [*site.glob("*/GT")]
    assert len(rows(tmp_path / "run")) == 2


@pytest.mark.parametrize("method", ["noadap", "sfda"])
def test_no_other_file_of_the_run_knows_of_it(world, tmp_path, monkeypatch, method):
    more = [
        "--method",
        method,
        "--model_weights",
        world / "trained/last.pkl",
        "--n_epoch",
        2,
        "--target_losses",
        ENTROPY,
    ]
    program.main(arguments(world / "target", tmp_path / "with", *more, "--saveim", 1, "--entmap"))
    monkeypatch.setattr(Expectation, "write", lambda *_: "")
    program.main(arguments(world / "target", tmp_path / "without", *more, "--saveim", 1, "--entmap"))
    made = (tmp_path / "with" / ".made").read_text().split()
    assert EXPECTED in made
    (tmp_path / "with" / EXPECTED).unlink()
    (tmp_path / "with" / ".made").write_text("".join(f"{name}\n" for name in made if name != EXPECTED))
    assert differences(tmp_path / "with", tmp_path / "without") == []


# -- where it is not written --------------------------------------------------------------------------------------


def test_without_a_bundle_a_line_says_why(world, tmp_path, capsys):
    state = load_checkpoint(world / "trained/last.pkl")
    del state["bundle"]
    torch.save(state, tmp_path / "older.pkl")
    start = ["--method", "noadap", "--model_weights", tmp_path / "older.pkl"]
    program.main(arguments(world / "target", tmp_path / "run", *start))
    assert not (tmp_path / "run" / EXPECTED).exists()
    assert f"there is no {EXPECTED}: its checkpoint has no source bundle" in capsys.readouterr().out


def test_a_source_without_validation_labels_says_so(world, tmp_path, capsys):
    program.main(arguments(world / "source", tmp_path / "trained", "--val_target_folders", BLIND))
    start = ["--method", "noadap", "--model_weights", tmp_path / "trained/last.pkl"]
    program.main(arguments(world / "target", tmp_path / "run", *start))
    assert "the validation images have no labels" in capsys.readouterr().out


def test_a_source_s_own_run_writes_none(world):
    assert not (world / "trained" / EXPECTED).exists()


def test_one_validation_patient_tells_a_dice_and_no_interval(tmp_path):
    root = write_site(tmp_path / "source", 200, 60, seed=1)
    for path in root.glob("val/*/Case05_*.png"):
        path.unlink()
    program.main(arguments(root, tmp_path / "trained", "--n_epoch", 6))
    start = ["--method", "noadap", "--model_weights", tmp_path / "trained/last.pkl"]
    program.main(arguments(root, tmp_path / "run", *start))
    (row,) = rows(tmp_path / "run")
    assert (float(row["low"]), float(row["high"])) == (0, 1)
    assert 0 < float(row["expected"]) < 1


# -- kills --------------------------------------------------------------------------------------------------------


def test_stopped_while_it_is_estimated(world, tmp_path, monkeypatch):
    whole = noadap(world, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(expectation, "infer", before_call(1, expectation.infer, ask_to_stop))
        with pytest.raises(SystemExit):
            noadap(world, tmp_path / "run", "--resume", "--batch_size", 4)
    assert not (tmp_path / "run" / EXPECTED).exists()
    noadap(world, tmp_path / "run", "--resume", "--batch_size", 4)
    assert (tmp_path / "run" / EXPECTED).read_bytes() == (whole / EXPECTED).read_bytes()


def test_the_source_is_stopped_while_it_shows_images_again(world, tmp_path, monkeypatch):
    argv = arguments(world / "source", tmp_path / "run", "--n_epoch", 6, "--resume")
    with monkeypatch.context() as patch:
        patch.setattr(calibration, "acquire", before_call(5, calibration.acquire, ask_to_stop))
        with pytest.raises(SystemExit):
            program.main(argv)
    program.main(argv)
    ours, theirs = (load_checkpoint(run / "last.pkl")["bundle"] for run in (tmp_path / "run", world / "trained"))
    assert bits(ours) == bits(theirs)


# -- calibration --------------------------------------------------------------------------------------------------


def test_the_shifts_exist_and_no_pair_comes_twice():
    assert all(name in ACQUISITIONS and severity in SEVERITIES for name, severity in SHIFTS)
    for patients in range(2, 65):
        pairs = [(number % patients, number % len(SHIFTS)) for number in range(SHIFTED)]
        assert patients % len(SHIFTS) == 0 or len(set(pairs)) == SHIFTED


def test_masks_without_the_class_teach_nothing():
    """Their Dice is known, and they would make the interval narrow."""
    levels = np.zeros((1, 256))

    def points(scores, dice, patients):
        both = (np.stack([np.full(len(scores), 0.9), values], 1) for values in (np.array(scores), np.array(dice)))
        return Points(*both, np.full((len(scores), 1, 256), 0.5), np.array(patients))

    seen = points([0.8, 0.9], [0.7, 0.9], [10, 11])
    shown = points([0.5, 0.6] * 10, [0.4, 0.3] * 10, [0, 1] * 10)
    empty = points([0.5, 0.6, 0.0, 0.7] * 10, [0.4, 0.3, 0.0, np.nan] * 10, [0, 1, 0, 1] * 10)
    first, second = (fit(seen, each, np.ones(1), levels) for each in (shown, empty))
    for name, values in first.items():
        assert np.array_equal(values, second[name])
        assert np.isfinite(values).all()
