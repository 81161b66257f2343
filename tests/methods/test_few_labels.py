"""Pre-training without labels, weights handed on in parts, and training on the labels of a few volumes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CROSS_ENTROPY, FOLDERS

import main as program
from analysis.run import open_run
from nets.checkpoint_files import load_checkpoint
from nets.filling import load_blocks
from networks import build_network
from processes.errors import UserError


def flags(site, workdir, *more):
    return [
        *("--target_dataset", str(site), "--workdir", str(workdir), "--target_folders", FOLDERS, "--n_class", "2"),
        *("--target_losses", CROSS_ENTROPY, "--grp_regex", r"(Case\d+)_(\d+)", "--network", "UNet:nG=4", "--cpu"),
        *("--batch_size", "4", "--n_epoch", "3", "--l_rate", "1e-2", *map(str, more)),
    ]


PRETRAIN = ("--method", "contrastive_global", "--n_parts", 2)
GO_ON = ("--method", "contrastive_local", "--local_blocks", 2, "--load_blocks", 0)


@pytest.fixture(scope="module")
def images(sites, tmp_path_factory):
    """The target's training images, and no ground truth anywhere."""
    root = tmp_path_factory.mktemp("few") / "images"
    shutil.copytree(sites[1] / "train" / "IMG", root / "train" / "IMG")
    return root


@pytest.fixture(scope="module")
def stages(images):
    """The folder of both pre-trainings."""
    root = images.parent
    program.main(flags(images, root / "global", *PRETRAIN))
    program.main(flags(images, root / "local", *GO_ON, "--model_weights", root / "global" / "last.pkl"))
    return root


def net(run):
    return load_checkpoint(run / "last.pkl")["net"]


def test_a_pretraining_needs_no_ground_truth_and_has_no_scores(stages):
    for run in (stages / "global", stages / "local"):
        log = pd.read_csv(run / "IMG_target_metrics.csv")
        assert not [name for name in log if name.startswith("val")]
        assert np.isfinite(log.tra_loss_tot).all()
        assert np.load(run / "tra_loss.npy").shape == (3, 4, 3)
        assert not (run / "best_3d.pkl").exists()
        assert not list(run.glob("patients_*.csv"))
        provenance = json.loads((run / "provenance.json").read_text())
        assert provenance["training_volumes"] == [f"Case{patient:02d}" for patient in range(4)]
        assert provenance["supervision"] == "none"


def test_each_stage_goes_on_from_the_one_before(stages):
    first, second = net(stages / "global"), net(stages / "local")
    kept = {name for name in first if torch.equal(first[name], second[name])}
    encoder = {name for name in first if name.startswith(("encoder.", "bridge."))}
    assert encoder <= kept
    assert not any(name in kept for name in first if name.startswith("decoder.0.") and name.endswith("0.weight"))


def test_blocks_are_loaded_and_told(sites, stages, tmp_path, capsys):
    start = ("--model_weights", stages / "local" / "last.pkl", "--load_blocks", 2)
    program.main(flags(sites[1], tmp_path / "run", *start, "--n_labelled", 2, "--draw", 1))
    told = capsys.readouterr().out
    assert "loaded encoder, bridge, up.0, decoder.0, up.1, decoder.1; left random up.2, decoder.2, classifier." in told
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["loaded_blocks"] == 2
    assert len(provenance["training_volumes"]) == 2
    assert provenance["supervision"] == "labels of 2"
    assert np.load(tmp_path / "run" / "tra_dice.npy").shape == (3, 8, 2)  # two volumes of four slices


def test_what_is_loaded_is_bit_for_bit_what_was_saved(stages):
    torch.manual_seed(1)
    ours, theirs = build_network("UNet:nG=4", 1, 3), net(stages / "local")  # another number of classes does not matter
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    load_blocks(ours, stages / "local" / "last.pkl", 1, 1)
    for name, value in ours.state_dict().items():
        loaded = name.startswith(("encoder.", "bridge.", "up.0.", "decoder.0."))
        assert torch.equal(value, theirs[name] if loaded else before[name])


def test_draws_are_of_the_asked_number_and_differ(sites, tmp_path):
    volumes = []
    for draw in range(6):
        run = tmp_path / str(draw)
        program.main(flags(sites[1], run, "--n_labelled", 1, "--draw", draw, "--n_epoch", 1))
        volumes += json.loads((run / "provenance.json").read_text())["training_volumes"]
    assert len(volumes) == 6
    assert len(set(volumes)) > 1


def test_steps_make_an_epoch(sites, tmp_path):
    program.main(flags(sites[1], tmp_path / "run", "--steps", 9, "--n_epoch", 2))
    assert np.load(tmp_path / "run" / "tra_loss.npy").shape[:2] == (2, 9)
    program.main(flags(sites[1], tmp_path / "short", "--steps", 9, "--n_epoch", 2, "--debug"))
    assert np.load(tmp_path / "short" / "tra_loss.npy").shape[:2] == (2, 5)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--load_blocks", 1), "none are given"),
        (("--load_blocks", 1, "--network", "UNet:nG=8", "--model_weights", "LOCAL"), "does not fit the encoder"),
        (("--load_blocks", 9, "--model_weights", "LOCAL"), "3"),
        (("--load_blocks", 0, "--network", "Dimwit", "--model_weights", "LOCAL"), "encoder"),
        (("--n_labelled", 5), "holds 4 volumes: Case00"),
        (("--n_labelled", -1), "at least 0"),
        (("--n_labelled", 1, "--draw", -1), "at least 0"),
        (("--n_labelled", 1, *PRETRAIN), "learns from no label"),
        ((*PRETRAIN, "--mode", "makeim", "--model_weights", "LOCAL"), "segments nothing yet"),
        ((*PRETRAIN, "--target_folders", "[('IMG', dist_map_transform, False)]"), "no distance maps"),
        ((*PRETRAIN, "--crop", 8, 8, 8, "--network", "UNet3D"), "no --crop"),
        (("--method", "mixup", "--batch_size", 1), "2 or more"),
        (("--method", "mixup", "--mixup_alpha", 0), "above 0"),
        (("--method", "contrastive_global", "--n_parts", 5, "--batch_size", 10), r"fewer slices: Case00 \(4\)"),
        (("--method", "contrastive_local"), "--model_weights"),
    ],
)
def test_bad_input_is_told(sites, stages, tmp_path, more, says):
    more = [stages / "local" / "last.pkl" if word == "LOCAL" else word for word in more]
    with pytest.raises(UserError, match=says):
        program.main(flags(sites[1], tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_losses_are_asked_for_where_they_are_learnt_from(sites, tmp_path):
    argv = flags(sites[1], tmp_path / "run")
    at = argv.index("--target_losses")
    with pytest.raises(UserError, match="give --target_losses"):
        program.main(argv[:at] + argv[at + 2 :])


def test_a_report_says_that_a_pretraining_has_no_scores(stages):
    with pytest.raises(UserError, match="is a pre-training"):
        open_run(stages / "global").patients("last")
