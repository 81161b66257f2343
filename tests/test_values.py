"""Values typed or stored: each is taken with its meaning or refused in one paragraph, before anything is lost."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CROSS_ENTROPY, FOLDERS

import main as program
import networks
import report
import score_masks
from bounds import BOUNDS
from engine.arguments import get_args
from engine.loop import on_cpu
from methods.optimisers import Learning, load_optimiser, make_optimiser
from methods.terms import build_loss, parse_losses
from nets.checkpoint_files import load_checkpoint
from networks import build_network, ghost_network
from prediction import model
from processes.errors import LONGEST, UserError
from tests.fake_runs import make_run, make_set
from tests.tools import fuzz_checkpoints, fuzz_options
from utils import settings_of

FUZZERS = {"options": (fuzz_options, 140), "checkpoints": (fuzz_checkpoints, 60)}


@pytest.mark.parametrize("kind", FUZZERS)
def test_a_short_campaign(kind):
    """More of it: python -m tests.fuzz_<kind> --mutations 5000."""
    fuzzer, count = FUZZERS[kind]
    tallies = fuzzer.campaign(count, seed=1)
    assert [words for tally in tallies for words in tally.wrong] == []
    assert min(sum(tally.read for tally in tallies), sum(tally.refused for tally in tallies)) > 10


# -- what is typed ------------------------------------------------------------------------------------------------


LINE = ["--target_dataset", "nowhere", "--workdir", "nowhere", "--target_folders", FOLDERS, "--device", "cpu"]
LINE += ["--target_losses", CROSS_ENTROPY, "--grp_regex", r"(Case\d+)_(\d+)", "--n_class", "2"]


def build(*more):
    return program.build_objective(get_args([*LINE, *more]))


BAD = {
    "a weight of a class too large": (
        ("--target_losses", "[('CrossEntropy', {'idc': [0, 1], 'weights': [1, 1e308]}, 1)]"),
        "is not finite on a made-up image, in epoch 1: tot inf, CrossEntropy inf",
    ),
    "a power too large": (
        (
            "--target_losses",
            "[('EntKLProp', {'power': 1e308}, 'ConstantBounds', {'values': [1, 1]}, 'norm_soft_size', 1)]",
        ),
        "is not finite on a made-up image, in epoch 1: its gradient",
    ),
    "a weight too large": (("--target_losses", "[('CrossEntropy', {}, 1e300)]"), "is not finite on a made-up image"),
    "a parameter too large": (
        ("--target_losses", "[('CrossEntropy', {'weights': [1e300, 1]}, 1)]"),
        "is not finite on a made-up image, in epoch 1: tot inf, CrossEntropy inf",
    ),
    "a class that counts below 0": (
        ("--target_losses", "[('CrossEntropy', {'weights': [1, -1]}, 1)]"),
        "the weights of the classes are numbers from 0 up",
    ),
    "a label that no byte holds": (
        ("--target_losses", "[('CrossEntropy', {'ignore_index': 1000000000}, 1)]"),
        "'ignore_index' is a label, at most 255",
    ),
    "a label that no number of 64 bits holds": (
        ("--target_losses", "[('CrossEntropy', {'ignore_index': -10000000000000000000000}, 1)]"),
        "'ignore_index' is a label, at most 255, or below 0; got -1000000",
    ),
    "gamma below 0": (("--target_losses", "[('FocalLoss', {'gamma': -1}, 1)]"), "'gamma' is at least 0; got -1"),
    "smooth of 0": (("--target_losses", "[('DiceLoss', {'smooth': 0}, 1)]"), "'smooth' is at least 1e-10; got 0"),
    "a share above 1": (
        ("--target_losses", "[('BCEGDice', {'alpha': 2}, 1)]"),
        "'alpha' is at least 0 and at most 1; got 2",
    ),
    "a power of 0": (
        ("--target_losses", "[('KLPropInv', {'power': 0}, 'ConstantBounds', {'values': [1, 1]}, None, 1)]"),
        "'power' is at least 1e-10; got 0",
    ),
    "a weight that would switch its loss off": (
        ("--target_losses", "[('EntKLProp', {}, 'ConstantBounds', {'values': [1, 1]}, None, -1)]"),
        "stands alone: its weight counts for nothing",
    ),
    "a bound without a name": (
        ("--target_losses", "[('NaivePenalty', {}, '', {}, None, 1)]"),
        "There is no bounds ''",
    ),
    "a bound of a wrong type": (
        ("--target_losses", "[('NaivePenalty', {}, 'PredictionBounds', {'sizefile': 1, 'predcol': 'a'}, None, 1)]"),
        "'sizefile' takes a word, not 1",
    ),
    "a bound of next to nothing": (
        ("--target_losses", "[('KLPropInv', {}, 'ConstantBounds', {'values': [1e-308, 5]}, None, 1)]"),
        "neither above 1e\\+12 or next to 0",
    ),
    "a weight on its way past 0": (
        ("--scheduler", "AddWeightLoss", "--scheduler_params", "{'to_add': [-0.1]}", "--n_epoch", "20"),
        r"takes the weights of the losses from \[1.0\] in the first epoch to \[-0.9.*\] in epoch 20, past 0",
    ),
    "a scheduled weight without end": (
        ("--scheduler", "AddWeightLoss", "--scheduler_params", "{'to_add': [1e308]}", "--n_epoch", "20"),
        "is not finite on a made-up image, in epoch 20",
    ),
    "a regex": (("--grp_regex", "("), r"--grp_regex '\(' is not a regular expression"),
    "the source's regex": (("--source_regex", "*"), r"--source_regex '\*' is not a regular expression"),
    "a label to ignore": (("--ignore", "1"), "expected a label that is no class, 2..255"),
    "a class twice": (("--metric_axis", "1", "1"), "names each once"),
    "epochs": (("--n_epoch", "10000000"), "--n_epoch is 10000000; it must be at most 1000000"),
    "a device of no kind": (("--device", "gpu"), "--device gpu: there is none of that name here. There is cpu"),
    "a device of a number that is not here": (("--device", "cuda:99"), "--device cuda:99: there is none"),
    "a device that computes nothing": (("--device", "meta"), "--device meta: there is none"),
    "a log in another folder": (("--csv", "../metrics.csv"), "a file of the run's own folder"),
    "a log in the place of the weights": (("--csv", "last.pkl"), "that nothing else there is called"),
    "a log in the place of the scores": (("--csv", "patients_last.csv"), "that nothing else there is called"),
    "a rate": (("--l_rate", "1e39"), "--l_rate is 1e\\+39; it must be at least 0 and at most 3e\\+38"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_value_is_refused_before_the_data_are_read(name):
    flags, message = BAD[name]
    with pytest.raises(UserError, match=message):
        build(*flags)


def test_a_whole_number_may_stand_for_any_number():
    (spec,) = parse_losses(f"[('DiceLoss', {{'smooth': {10**30}}}, 1)]")
    assert build_loss(spec)(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)).isfinite()


def test_an_error_stays_one_paragraph_whatever_was_typed():
    said = str(UserError("There is no run 'a\nb\x00\u2028'. " + "x" * 10000))
    assert "\n" not in said
    assert r"'a\nb\x00\u2028'" in said
    assert len(said) < LONGEST + 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("UNet:nG=100000", "it cannot have nG=100000 .at most 65536"),
        ("UNet:nG=65536", "GiB of weights, and this machine"),
        ("UNet3D:depth=99999999999", "depth=99999999999 .at most 12"),
        ("UNet:nG=True", "nG=True .at least 1"),
    ],
)
def test_a_network_beyond_the_memory_is_counted_and_not_made(text, message):
    with pytest.raises(UserError, match=message):
        build_network(text, 1, 2)


def test_counting_a_network_draws_no_random_number():
    state = torch.get_rng_state()
    ghost = ghost_network("UNet:nG=2", 1, 2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(weight.is_meta for weight in ghost.state_dict().values())


def test_bounds_have_the_types_that_they_state():
    with pytest.raises(UserError, match="'margins' takes a list of numbers, not 'wide'"):
        BOUNDS.build("BoxBounds", 2, margins="wide")


# -- what is stored -----------------------------------------------------------------------------------------------


def network(folder, **more):
    path, net = folder / "weights.pkl", build_network("Dimwit:nG=2", 1, 2)
    torch.save({"network": "Dimwit:nG=2", "in_channels": 1, "n_class": 2, "net": net.state_dict()} | more, path)
    return path


def test_a_member_that_would_grow_is_not_unpacked(tmp_path):
    path = network(tmp_path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as whole:
        whole.writestr("archive/data/99", bytes(10**8))
    with pytest.raises(UserError, match="is torn .BadZipFile"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (torch.zeros(1).expand(10**12), "holds a tensor of 1000000000000 numbers in 4 bytes"),
        (torch.zeros(4, device="meta"), "more than tensors and plain types"),
        (torch.eye(3).to_sparse(), "more than tensors and plain types"),
        (bytearray(10), "more than tensors and plain types"),
    ],
)
def test_a_tensor_that_the_file_does_not_hold_is_refused(tmp_path, odd, message):
    with pytest.raises(UserError, match=message):
        load_checkpoint(network(tmp_path, other=odd))


def test_a_best_epoch_of_words_is_refused(tmp_path):
    """Of a checkpoint's notes on its best epoch each is a number, or None."""
    best = {"epoch": 1, "dice": 0.5, "start": None}
    assert load_checkpoint(network(tmp_path, best=best))["best"] == best
    with pytest.raises(UserError, match="'best' is dict, expected"):
        load_checkpoint(network(tmp_path, best=best | {"start": "a word"}))


WEIGHTS = {
    "a variance below 0": (
        lambda net: net | {"body.1.running_var": -torch.ones(2)},
        "1 of its 8 tensors are variances below 0, which there are none of: body.1.running_var",
    ),
    "beyond 32 bits": (
        lambda net: net | {"body.1.running_mean": torch.full((2,), 1e300, dtype=torch.float64)},
        "hold NaN or infinite weights: body.1.running_mean",
    ),
    "a complex variance": (
        lambda net: net | {"body.1.running_var": torch.ones(2, dtype=torch.complex64)},
        "1 of its 8 tensors hold complex numbers, and no network here has such weights: body.1.running_var",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_none_are_refused(tmp_path, name):
    spoil, message = WEIGHTS[name]
    net = spoil(build_network("Dimwit:nG=2", 1, 2).state_dict())
    with pytest.raises(UserError, match=message):
        load_checkpoint(network(tmp_path, net=net))


def test_a_huge_network_in_a_small_checkpoint_is_compared_and_not_made(tmp_path, monkeypatch):
    made = {
        "card": {"normalisation": {"kind": "none"}, "orient": "LPS"},
        "image": ["IMG", "png_transform"],
        "crop": None,
    }
    path = network(tmp_path, network="UNet:nG=20000", preprocessing=made)
    monkeypatch.setattr(networks, "build_network", None)
    with pytest.raises(
        UserError, match=r"says that it holds weights of UNet:nG=20000 .1 channel, 2 classes., as this run has, and"
    ):
        model.load_model(path, "cpu")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"size": [10**9, 10**9]}, "size is .* expected pixels along W and H"),
        ({"size": "large"}, "size is 'large', expected a list of whole numbers or None"),
        ({"spacing": [0, 1]}, "spacing is .0, 1., expected mm above 0"),
        ({"normalisation": {"window": [float("nan"), 1]}}, "normalisation.window is "),
        ({"channels": {"IMG": 10**9}}, "channels is .* expected counts from 1 to 64"),
        ({"cut": [1]}, "cut is '.1.', expected a dict of words"),
    ],
)
def test_a_card_that_tells_what_cannot_be_is_refused(tmp_path, card, message):
    told = {"card": {"normalisation": {}, "orient": "LPS"} | card, "image": ["IMG", "png_transform"], "crop": None}
    with pytest.raises(UserError, match=message):
        model.load_model(network(tmp_path, preprocessing=told), "cpu")


def test_an_optimiser_of_another_shape_or_setting_is_refused():
    net = torch.nn.Conv2d(2, 2, 3)
    learning = settings_of(Learning, vars(get_args([*LINE, "--l_rate", "0.1"])))
    optimiser = make_optimiser([(list(net.parameters()), 1.0)], learning)
    net(torch.ones(1, 2, 4, 4)).sum().backward()
    optimiser.step()
    sound = on_cpu(optimiser.state_dict())
    load_optimiser(optimiser, sound)
    load_optimiser(optimiser, sound)  # and once more, of what it made of lists
    odd = on_cpu(sound)
    odd["state"][0]["exp_avg"] = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match="exp_avg is not of its parameter"):
        load_optimiser(optimiser, odd)
    odd = on_cpu(sound)
    odd["param_groups"][0]["weight_decay"] = 5.0
    with pytest.raises(ValueError, match="had another weight_decay"):
        load_optimiser(optimiser, odd)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    data = make_set(folder / "data", n_patient=2, n_slice=3, size=(16, 16))
    return make_run(folder / "sfda", data, n_epoch=2)


RUNS = {
    "a rate": ("params.txt", b"l_rate: 0.001", b"l_rate: 0,001", "params.txt says 'l_rate: 0,001': could not convert"),
    "an axis": (
        "params.txt",
        b"axis: [1]",
        b"axis: [7]",
        r"params.txt says 'metric_axis: \[7\]': expected classes, 0..1",
    ),
    "a regex": ("params.txt", rb"(Case\d+)_", b"(Case_", "params.txt says 'grp_regex: .*is not a regular expression"),
    "a label": ("params.txt", b"ignore: None", b"ignore: [1]", r"says 'ignore: \[1\]': expected a label, or None"),
    "the best epoch": ("3dbestepoch.txt", b"1,", b"7,", "3dbestepoch.txt names epoch 7, and the log has 0..1"),
    "an epoch": ("IMG_target_metrics.csv", b"\n1,", b"\n4,", "IMG_target_metrics.csv has no epoch in it, or not each"),
    "epochs": ("provenance.json", b'"n_epoch": 2', b'"n_epoch": 1', "its shape is|holds masks of epoch 1"),
    "names": (
        "val_names.txt",
        b"Case00_00\n",
        b"",
        r"val_gt_sizes.npy has the shape \(6, 2\), not that of the 5 slices in val_names.txt",
    ),
}


def report_and_scores(run):
    report.main(["--runs", str(run)])
    score_masks.main(["--run", str(run), "--score", "dice", "--out", str(run / "out.npy")])


@pytest.mark.parametrize("name", RUNS)
def test_a_damaged_file_of_a_run_is_named(sound, tmp_path, name):
    file, old, new, message = RUNS[name]
    run = Path(shutil.copytree(sound, tmp_path / "sfda"))
    content = (run / file).read_bytes()
    assert old in content
    (run / file).write_bytes(content.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        report_and_scores(run)


def test_words_in_the_place_of_numbers_are_named(sound, tmp_path):
    run = Path(shutil.copytree(sound, tmp_path / "sfda"))
    np.save(run / "val_sizes.npy", np.load(run / "val_sizes.npy").astype(str))
    with pytest.raises(UserError, match="sfda/val_sizes.npy .*it holds <U32, no numbers"):
        report.main(["--runs", str(run)])
