"""The program end to end on a small two-site set: what it writes, what it must not see, and bad input."""

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CROSS_ENTROPY, FOLDERS
from PIL import Image

import main as program
from datasets.augmentation import Augmentation
from datasets.files import check_class_count
from datasets.presets import PRESETS
from engine.arguments import get_args
from nets.checkpoint_files import load_checkpoint
from processes.errors import UserError

EPOCHS = 6


def flags(dataset, workdir, losses=CROSS_ENTROPY, *more):
    return [
        *("--target_dataset", str(dataset), "--workdir", str(workdir), "--target_losses", losses),
        *("--target_folders", FOLDERS, "--grp_regex", r"(Case\d+)_(\d+)", "--n_class", "2", "--network", "UNet:nG=4"),
        *("--batch_size", "4", "--n_epoch", str(EPOCHS), "--l_rate", "1e-2", "--cpu", *map(str, more)),
    ]


def adapting(prior, column="dumbpredwtags", fn="soft_size"):
    bounds = {"sizefile": str(prior), "predcol": column, "margin": 0, "dir": "high"}
    return f"[('EntKLProp', {{'lamb_se': 1, 'lamb_consprior': 1}}, 'PredictionBounds', {bounds}, '{fn}', 1)]"


def weights(run, name="last.pkl"):
    return load_checkpoint(run / name)["net"]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def runs(sites, tmp_path_factory):
    """The source model, evaluated on the target, adapted to it, and trained on it."""
    source, target, prior = sites
    root = tmp_path_factory.mktemp("runs")
    program.main(flags(source, root / "cesource", CROSS_ENTROPY, "--n_epoch", 12))
    start = ("--model_weights", root / "cesource" / "last.pkl")
    program.main(flags(target, root / "noadap", CROSS_ENTROPY, "--method", "noadap", *start))
    picture = ("--saveim", "True", "--entmap", "--do_hd", "1", "--do_asd", "4")
    program.main(flags(target, root / "sfda", adapting(prior), "--method", "sfda", *start, *picture))
    program.main(flags(target, root / "fs"))
    return root


def log(run):
    return pd.read_csv(run / "IMG_target_metrics.csv")


# -- what a run writes ------------------------------------------------------------------------------------------


def test_adaptation_gains_on_the_target(runs):
    assert log(runs / "sfda").val_dice_3d.iloc[-1] > log(runs / "noadap").val_dice_3d.iloc[-1]
    assert log(runs / "sfda").val_dice_3d.iloc[-1] > 0.8


def test_the_log_has_one_row_an_epoch_and_the_contract_s_columns(runs):
    table = log(runs / "sfda")
    assert table.epoch.tolist() == list(range(EPOCHS))
    wanted = "tra_loss_tot val_loss_tot tra_dice val_dice val_dice_3d val_dice_3d_sd val_size_mean val_gt_size_mean"
    assert {*wanted.split(), "tra_loss_EntKLProp_entropy", "val_dice_3d_1", "val_hd95_vox_1"} <= set(table.columns)
    parts = table.tra_loss_EntKLProp_entropy + table.tra_loss_EntKLProp_prior
    assert np.allclose(table.tra_loss_tot, parts, atol=1e-5)


def test_distances_are_logged_in_the_epochs_asked_for(runs):
    table = log(runs / "sfda")
    assert table.val_hd95_vox_1.notna().all()
    for name in ("val_assd_vox_1", "val_masd_vox_1"):
        assert table.index[table[name].notna()].tolist() == [4, 5]  # every fourth, and the last


def test_raw_arrays_are_epoch_by_slice_by_class(runs, sites):
    run = runs / "sfda"
    dice = np.load(run / "val_dice.npy")
    names = (run / "val_names.txt").read_text().split()
    assert dice.shape == (EPOCHS, len(names), 2)
    sizes, true = np.load(run / "val_sizes.npy"), np.load(run / "val_gt_sizes.npy")
    mask = np.asarray(Image.open(sites[1] / "val" / "GT" / f"{names[1]}.png"))
    assert true[1].tolist() == [480 - mask.sum(), mask.sum()]
    assert (sizes.sum(-1) == 480).all()
    assert np.load(run / "prior_sizes.npy")[1].tolist() == [400, 80]
    assert np.load(run / "tra_loss.npy").shape == (EPOCHS, 4, 3)


def test_logged_dice_3d_is_that_of_the_saved_masks(runs, sites):
    run = runs / "sfda"
    scores = []
    for patient in ("Case04", "Case05"):
        predicted, true = (
            np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob(f"{patient}_*.png"))])
            for folder in (run / "iter003" / "val", sites[1] / "val" / "GT")
        )
        scores.append(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
    assert log(run).val_dice_3d[3] == pytest.approx(np.mean(scores))
    assert log(run).val_dice_3d_sd[3] == pytest.approx(np.std(scores, ddof=1))


def test_best_epoch_is_the_best_and_saved_once_it_is_better(runs):
    run = runs / "sfda"
    epoch, score = (run / "3dbestepoch.txt").read_text().split(", ")
    assert int(epoch) == log(run).val_dice_3d.idxmax()
    assert float(score) == pytest.approx(log(run).val_dice_3d.max(), abs=1e-6)
    assert load_checkpoint(run / "best_3d.pkl")["epoch"] == int(epoch)


def test_scores_per_patient_agree_with_the_log(runs):
    scores = pd.read_csv(runs / "sfda" / "patients_last.csv")
    assert scores.patient.tolist() == ["Case04", "Case05"]
    assert scores.dice.mean() == pytest.approx(log(runs / "sfda").val_dice_3d.iloc[-1])
    assert scores.hd95_vox.mean() == pytest.approx(log(runs / "sfda").val_hd95_vox_1.iloc[-1], rel=1e-6)


def test_pictures_are_where_the_readme_says(runs):
    run = runs / "sfda"
    for folder in ("iter000/val", "iter005/val", "best_epoch_3d/val", "last_epoch/val", "ent_map"):
        assert len(list((run / folder).glob("*.png"))) == 8, folder


def test_provenance_says_what_was_seen(runs):
    card = json.loads((runs / "sfda" / "provenance.json").read_text())
    assert card["supervision"] == "image-level tags"
    assert not card["oracle"]
    codes = {"code of png_transform", "code of gt_transform"}
    assert set(card["inputs"]) == {"val", "target", "bounds of target", "model_weights"} | codes
    assert json.loads((runs / "fs" / "provenance.json").read_text())["supervision"] == "full"
    assert json.loads((runs / "noadap" / "provenance.json").read_text())["supervision"] == "none"


def test_labels_that_shaped_the_images_are_said_at_once_and_noted(sites, tmp_path, capsys):
    _, target, prior = sites
    shutil.copytree(target, tmp_path / "cut")
    told = {"name": "cut", "uses_labels": "slices are cut round all that is labelled"}
    (tmp_path / "cut/dataset.json").write_text(json.dumps(told))
    bounds = adapting(prior).replace("EntKLProp", "NaivePenalty").replace("'lamb_se': 1, 'lamb_consprior': 1", "")
    losses = CROSS_ENTROPY[:-1] + ", " + bounds[1:]
    program.main(flags(tmp_path / "cut", tmp_path / "run", losses, "--n_epoch", 1))
    assert capsys.readouterr().out.startswith(f"Labels shaped the images of cut: {told['uses_labels']}.\n")
    provenance = json.loads((tmp_path / "run/provenance.json").read_text())
    assert provenance["uses_labels"] == {"cut": told["uses_labels"]}
    assert provenance["supervision"] == "full, image-level tags"


def test_labels_that_shaped_the_source_are_no_concern_of_a_run_without_it(runs, sites, tmp_path, capsys):
    source, target, prior = sites
    shutil.copytree(source, tmp_path / "cut")
    (tmp_path / "cut/dataset.json").write_text(json.dumps({"uses_labels": "cut round the labels"}))
    start = ("--model_weights", runs / "cesource" / "last.pkl", "--n_epoch", 1, "--source_dataset", tmp_path / "cut")
    program.main(flags(target, tmp_path / "alone", adapting(prior), "--method", "sfda", *start))
    assert "Labels shaped" not in capsys.readouterr().out
    program.main(
        flags(
            target, tmp_path / "both", CROSS_ENTROPY, "--method", "adversarial", "--d_width", 4, "--d_stride", 1, *start
        )
    )
    assert "Labels shaped the images of cut: cut round the labels." in capsys.readouterr().out


def test_true_sizes_mark_the_run_oracle(runs, sites, tmp_path):
    start = ("--method", "sfda", "--model_weights", runs / "cesource" / "last.pkl", "--n_epoch", 1)
    program.main(flags(sites[1], tmp_path / "run", adapting(sites[2], "val_gt_size"), *start))
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["oracle"]


def test_noadap_leaves_the_network_as_it_came(runs):
    assert same(weights(runs / "noadap"), weights(runs / "cesource"))


def test_makeim_saves_masks_and_learns_nothing(runs, sites, tmp_path):
    start = ("--mode", "makeim", "--model_weights", runs / "sfda" / "last.pkl", "--l_rate", 0)
    program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, *start))
    assert same(weights(tmp_path / "run"), weights(runs / "sfda"))
    for path in (runs / "sfda" / "last_epoch" / "val").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "run" / "last_epoch" / "val" / path.name).read_bytes()


def test_check_builds_without_data_and_leaves_nothing(tmp_path, capsys):
    start = ("--method", "sfda", "--model_weights", "nowhere.pkl", "--check")
    program.main(flags(tmp_path / "nowhere", tmp_path / "run", adapting("nowhere.csv", fn="norm_soft_size"), *start))
    assert capsys.readouterr().out.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_debug_takes_ten_slices(sites, tmp_path):
    program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, "--debug", "--n_epoch", 1))
    assert np.load(tmp_path / "run" / "tra_dice.npy").shape[1] == 10


@pytest.mark.parametrize(("split", "n"), [((), 8), (("--ontrain",), 16)])
def test_evaluation_split(sites, tmp_path, split, n):
    program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, "--n_epoch", 1, *split))
    assert np.load(tmp_path / "run" / "val_dice.npy").shape[1] == n


@pytest.mark.parametrize(("split", "n"), [(("--trainval",), 24), (("--valonly",), 8)])
def test_training_split(sites, tmp_path, split, n):
    program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, "--n_epoch", 1, *split))
    assert np.load(tmp_path / "run" / "tra_dice.npy").shape[1] == n


def test_two_training_splits_are_refused(sites, tmp_path):
    with pytest.raises(UserError, match="--trainval trains on train and val, --valonly on val alone"):
        get_args(list(map(str, flags(sites[1], tmp_path / "run", CROSS_ENTROPY, "--trainval", "--valonly"))))


def test_published_switches_mean_what_they_say():
    typed = ("--saveim", "False", "--do_hd", "90", "--entmap", "--do_asd", "True", "--metric_axis", "1")
    args = get_args(flags("x", "y", CROSS_ENTROPY, *typed))
    assert (args.saveim, args.do_hd, args.entmap, args.do_asd) == (0, 90, 1, 1)
    with pytest.raises(UserError, match="invalid flag value: 'maybe'|got 'maybe'"):
        get_args(flags("x", "y", CROSS_ENTROPY, "--saveim", "maybe"))
    with pytest.raises(UserError, match="unrecognized arguments: --save"):
        get_args(flags("x", "y", CROSS_ENTROPY, "--save"))


def test_one_seed_one_result_and_another_seed_another(sites, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        program.main(flags(sites[1], tmp_path / name, CROSS_ENTROPY, "--n_epoch", 1, "--seed", seed, "--augment"))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


# -- what adaptation must not see -------------------------------------------------------------------------------


def test_adaptation_is_source_free_and_blind(runs, sites, tmp_path):
    """Without the source folder, and with the target's ground truth wiped, the adapted weights are the same."""
    target = shutil.copytree(sites[1], tmp_path / "target")
    for mask in target.glob("*/GT/*.png"):
        Image.fromarray(np.zeros((24, 20), np.uint8)).save(mask)
    hidden = sites[0].rename(sites[0].with_name("hidden"))
    try:
        start = ("--method", "sfda", "--model_weights", runs / "cesource" / "last.pkl")
        program.main(flags(target, tmp_path / "run", adapting(sites[2]), *start))
    finally:
        hidden.rename(sites[0])
    assert same(weights(tmp_path / "run"), weights(runs / "sfda"))


def test_checkpoints_run_no_code(runs):
    state = torch.load(runs / "sfda" / "last.pkl", weights_only=True)
    assert {"network", "n_class", "in_channels", "net", "epoch", "method", "identity", "seed"} <= set(state)


# -- one folder, one run ------------------------------------------------------------------------------------------


def test_a_run_is_neither_overwritten_nor_mixed(runs, sites):
    before = weights(runs / "fs")
    with pytest.raises(UserError, match="Continue it with --resume"):
        program.main(flags(sites[1], runs / "fs"))
    with pytest.raises(UserError, match=r"other arguments or inputs \(l_rate: 0.01 -> 0.5"):
        program.main(flags(sites[1], runs / "fs", CROSS_ENTROPY, "--resume", "--l_rate", 0.5))
    assert same(weights(runs / "fs"), before)


def test_what_only_scores_does_not_make_another_run(runs, sites, tmp_path):
    run = shutil.copytree(runs / "fs", tmp_path / "fs")
    before = weights(run)
    program.main(flags(sites[1], run, CROSS_ENTROPY, "--resume", "--nsd_tolerance", 0, "--entmap", "--saveim"))
    assert same(weights(run), before)
    nsd = {place: pd.read_csv(place / "patients_last.csv")["nsd"].mean() for place in (run, runs / "fs")}
    assert nsd[run] < nsd[runs / "fs"]
    assert json.loads((run / "provenance.json").read_text())["nsd_tolerance"] == 0
    assert any((run / "ent_map").iterdir())
    assert any((run / "last_epoch/val").iterdir())


def test_names_that_are_not_of_the_classes_cost_no_training(sites, tmp_path):
    root = shutil.copytree(sites[1], tmp_path / "named")
    (root / "dataset.json").write_text(json.dumps({"split_unit": "patient", "class_names": ["one"]}))
    program.main(flags(root, tmp_path / "run", CROSS_ENTROPY, "--scores", "iou", "--n_epoch", 1, "--network", "Dimwit"))
    assert pd.read_csv(tmp_path / "run/classes_last.csv")["name"].tolist() == [1]


@pytest.mark.parametrize("split", ["train", "val"])
def test_ground_truth_of_ignored_pixels_alone_is_refused(sites, tmp_path, split):
    root = shutil.copytree(sites[1], tmp_path / "ignored")
    for path in root.glob(f"{split}/GT/*.png"):
        Image.fromarray(np.full((24, 20), 255, np.uint8)).save(path)
    with pytest.raises(UserError, match=f"Every pixel of .*{split}/GT is 255, which --ignore takes for no class"):
        program.main(flags(root, tmp_path / "run", CROSS_ENTROPY, "--ignore", 255, "--n_epoch", 1))
    assert not (tmp_path / "run").exists()


def test_images_may_lie_in_a_folder_of_a_folder(sites, tmp_path):
    target = shutil.copytree(sites[1], tmp_path / "target")
    for split in ("train", "val"):
        (target / split / "scans").mkdir()
        (target / split / "IMG").rename(target / split / "scans/IMG")
    folders = FOLDERS.replace("'IMG'", "'scans/IMG'")
    program.main(flags(target, tmp_path / "run", CROSS_ENTROPY, "--n_epoch", 1, "--target_folders", folders))
    assert (tmp_path / "run/scans_IMG_target_metrics.csv").is_file()


def test_other_data_under_the_same_name_is_another_run(sites, tmp_path):
    target = shutil.copytree(sites[1], tmp_path / "target")
    program.main(flags(target, tmp_path / "run", CROSS_ENTROPY, "--n_epoch", 1))
    Image.fromarray(np.zeros((24, 20), np.uint8)).save(target / "train" / "IMG" / "Case00_1.png")
    with pytest.raises(UserError, match=r"inputs \(content of: target\)"):
        program.main(flags(target, tmp_path / "run", CROSS_ENTROPY, "--n_epoch", 1, "--resume"))


def test_another_prior_under_the_same_name_is_another_run(runs, sites, tmp_path):
    prior = Path(shutil.copy(sites[2], tmp_path / "prior.csv"))
    start = ("--method", "sfda", "--model_weights", runs / "cesource" / "last.pkl", "--n_epoch", 1)
    program.main(flags(sites[1], tmp_path / "run", adapting(prior), *start))
    prior.write_text(prior.read_text().replace("80.0", "90.0"))
    with pytest.raises(UserError, match="inputs"):
        program.main(flags(sites[1], tmp_path / "run", adapting(prior), *start, "--resume"))


# -- bad input: one paragraph, exit code 2, nothing left behind ---------------------------------------------------


def shell(python, argv):
    return subprocess.run([python, "main.py", *argv], cwd=Path(__file__).parents[1], capture_output=True, text=True)


def test_an_error_is_one_paragraph_and_exit_code_2(python, tmp_path):
    done = shell(python, flags(tmp_path / "nowhere", tmp_path / "run"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "nowhere" in done.stderr
    assert list(tmp_path.iterdir()) == []


BAD = {
    "loss": (("--target_losses", "[('CrossEntrop', {}, 1)]"), "Did you mean 'CrossEntropy'"),
    "bound": (
        ("--target_losses", "[('KLPropInv', {}, 'PredictionBound', {}, None, 1)]"),
        "Did you mean 'PredictionBounds'",
    ),
    "bound's parameter": (
        ("--target_losses", "[('KLPropInv', {}, 'PredictionBounds', {'predcolumn': 'a'}, None, 1)]"),
        "Did you mean 'predcol'",
    ),
    "network": (("--network", "Unet"), "Did you mean 'UNet'"),
    "network's parameter": (("--network", "UNet:ng=4"), "Did you mean 'nG'"),
    "method": (("--method", "sdfa"), "Did you mean 'sfda'"),
    "transform": (
        ("--target_folders", FOLDERS.replace("png_transform", "png_transforms")),
        "Did you mean 'png_transform'",
    ),
    "call in an OPT string": (("--target_losses", "[('CrossEntropy', dict(), 1)]"), "nothing in it is run"),
    "regex": (("--grp_regex", "(Patient)"), "does not match"),
    "class": (("--metric_axis", "2"), "--n_class is 2"),
    "epochs": (("--n_epoch", "0"), "at least 1"),
    "classes that uint8 cannot hold": (("--n_class", "300"), "at least 2 and at most 255"),
    "rate": (("--l_rate", "nan"), "--l_rate is nan; it must be a finite number"),
    "rate below 0": (("--l_rate", "-1"), "--l_rate is -1.0; it must be at least 0"),
    "weight decay": (("--weight_decay", "-1"), "--weight_decay is -1.0; it must be at least 0"),
    "betas": (("--betas", "nan", "0.9"), "--betas is nan 0.9; it must be a finite number"),
    "overlap": (("--overlap", "nan"), "--overlap is nan"),
    "seed": (("--seed", str(2**64)), f"at most {2**64 - 1}"),
    "tolerance": (("--nsd_tolerance", "-1"), "--nsd_tolerance is -1.0; it must be at least 0"),
    "tolerance that is no number": (("--nsd_tolerance", "nan"), "must be a finite number"),
    "tolerance without end": (("--nsd_tolerance", "inf"), "must be a finite number"),
    "a method's number": (("--method", "mixup", "--mixup_alpha", "nan"), "--mixup_alpha is nan"),
    "weights": (("--model_weights", "nowhere.pkl"), "do not exist"),
    "csv": (
        ("--target_losses", "[('KLPropInv', {}, 'PredictionBounds', {'predcol': 'a', 'sizefile': 'no.csv'}, None, 1)]"),
        "no.csv",
    ),
}


def test_tags_are_a_prior_of_slices_without_the_organ_too(runs, sites, tmp_path):
    losses = "[('EntKLProp', {}, 'TagBounds', {'values': {1: [80, 90]}}, 'soft_size', 1)]"
    start = ("--method", "sfda", "--model_weights", runs / "cesource" / "last.pkl", "--n_epoch", 1)
    program.main(flags(sites[1], tmp_path / "run", losses, *start))
    assert log(tmp_path / "run").tra_loss_tot.notna().all()


MOVED = {  # augmentation, and whether sizes stay what they were
    "{}": False,
    "{'rotate': 0}": True,
    "{'rotate': 0, 'flip': True, 'turn': 180, 'noise': 0.1, 'equalise': 0.5}": True,
    "{'rotate': 0, 'turn': 90}": False,
    "{'rotate': 0, 'scale': 0.1}": False,
    "{'rotate': 0, 'crop': 0.5}": False,
    "{'rotate': 0, 'shift': 2}": False,
    "{'rotate': 0, 'elastic': 1}": False,
}


@pytest.mark.parametrize(
    ("loss", "bound"),
    [
        ("'EntKLProp', {}", "'ConstantBounds', {'values': [400, 80]}"),
        ("'KLPropInv', {}", "'TagBounds', {'values': {1: 80}}"),
        ("'NaivePenalty', {}", "'PreciseBounds', {}"),
    ],
)
def test_bounds_and_images_that_outgrow_them_do_not_go_together(sites, tmp_path, loss, bound):
    losses = f"[({loss}, {bound}, 'soft_size', 1), ('CrossEntropy', {{}}, 1)]"
    folders = ("--target_folders", FOLDERS.replace("]", ", ('GT', gt_transform, False)]"))
    for augmentation, stays in MOVED.items():
        line = flags(sites[1], tmp_path / "run", losses, *folders, "--augmentation", augmentation, "--check")
        program.main(line)  # without --augment
        program.main(
            [*line, "--augment", "--method", "noadap", "--model_weights", "source.pkl"]
        )  # which learns nothing
        if stays:
            program.main([*line, "--augment"])
            continue
        with pytest.raises(UserError, match=f"^{loss[1:-5]} compares sizes with bounds of whole slices") as error:
            program.main([*line, "--augment"])
        told = re.search(r'--augmentation "(.*?)"', str(error.value)).group(1)
        assert Augmentation(**{**ast.literal_eval(augmentation), **ast.literal_eval(told)}).resizing == []


def test_ranges_of_an_augmentation_that_is_off_are_said_to_do_nothing(sites, tmp_path, capsys):
    line = flags(sites[1], tmp_path / "run", CROSS_ENTROPY, "--augmentation", "{'rotate': 5}", "--check")
    program.main(line)
    assert "--augment whether: it is off, so nothing is augmented." in capsys.readouterr().out
    program.main([*line, "--augment"])
    assert "nothing is augmented" not in capsys.readouterr().out


def test_what_follows_the_classes_needs_labels_of_every_image(sites, tmp_path):
    line = flags(sites[1], tmp_path / "run", CROSS_ENTROPY, "--augment", "--augmentation", "transfer", "--check")
    program.main(line)
    start = ("--method", "self_training", "--model_weights", "source.pkl")
    with pytest.raises(UserError, match=r"label_curves, which follow the classes.*without any \(target\).*'curves'"):
        program.main([*line, *start])
    program.main([*line, *start, "--augmentation", "{'preset': 'transfer', 'label_curves': 0}"])
    program.main([*line, *start, "--mode", "makeim"])  # which learns nothing


def test_a_run_notes_the_ranges_that_a_preset_stands_for(sites, tmp_path):
    more = ("--augment", "--augmentation", "{'preset': 'slaug', 'rotate': 0}", "--n_epoch", 1)
    program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, *more))
    noted = re.search(r"^augmentation: (.*)$", (tmp_path / "run" / "params.txt").read_text(), re.M).group(1)
    assert ast.literal_eval(noted) == PRESETS["slaug"] | {"rotate": 0}


def test_a_prior_that_no_image_made_goes_with_any_augmentation(sites, tmp_path):
    losses = "[('EntKLProp', {}, 'ConstantBounds', {'values': 'uniform'}, 'soft_size', 1)]"
    program.main(flags(sites[1], tmp_path / "run", losses, "--augment", "--check"))
    program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, "--augment", "--check"))


@pytest.mark.parametrize("size", [1, 5])
def test_a_single_image_that_a_network_halves_to_one_pixel_is_refused(sites, tmp_path, size):
    """24 x 20 pixels are padded to 32 x 32; 16 slices by 5 leave one for the last batch."""
    more = ("--network", "PooledUNet:nG=2", "--batch_size", size, "--n_epoch", 1)
    with pytest.raises(UserError, match=r"2 batch norms .* in a batch of 1 image of 24 x 20 pixels"):
        program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, *more))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", BAD)
def test_bad_input(sites, tmp_path, name):
    changed, message = BAD[name]
    with pytest.raises(UserError, match=message):
        program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, *changed))
    assert list(tmp_path.iterdir()) == []


def test_labels_beyond_n_class(sites, tmp_path):
    target = shutil.copytree(sites[1], tmp_path / "target")
    Image.fromarray(np.full((24, 20), 255, np.uint8)).save(target / "val" / "GT" / "Case04_1.png")
    with pytest.raises(UserError, match="Case04_1"):
        program.main(flags(target, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_class_count_that_contradicts_the_set_s_card(sites, tmp_path):
    """Each set whose card says otherwise is named."""
    roots = [shutil.copytree(site, tmp_path / name) for name, site in zip(("source", "target"), sites, strict=False)]
    for root in roots:
        (root / "dataset.json").write_text('{"n_class": 3}')
    more = ("--method", "adversarial", "--source_dataset", roots[0])
    with pytest.raises(
        UserError, match=r"--n_class is 2, .*target/dataset\.json says 3, .*source/dataset\.json says 3"
    ):
        program.main(flags(roots[1], tmp_path / "run", CROSS_ENTROPY, *more))
    assert not (tmp_path / "run").exists()
    (roots[1] / "dataset.json").write_text('{"n_class": 2}')
    program.main(flags(roots[1], tmp_path / "run", CROSS_ENTROPY, "--n_epoch", 1))  # the source is not read


@pytest.mark.parametrize("foreign", ['"n_class": "3"', '"n_class": 3.0', '"n_class": null', '"n_class": true', ""])
def test_the_card_of_another_tool_states_no_class_count(tmp_path, foreign):
    (tmp_path / "dataset.json").write_text(f"{{{foreign}}}")
    check_class_count([tmp_path], 2)


def test_prior_of_another_number_of_classes(runs, sites, tmp_path):
    prior = tmp_path / "prior.csv"
    prior.write_text(sites[2].read_text().replace("]", ", 0]"))
    start = ("--method", "sfda", "--model_weights", runs / "cesource" / "last.pkl")
    with pytest.raises(UserError, match=r"prior\.csv.*3"):
        program.main(flags(sites[1], tmp_path / "run", adapting(prior), *start))


@pytest.mark.parametrize("changed", [("--network", "UNet:nG=8"), ("--network", "Dimwit"), ("--n_class", "3")])
def test_weights_of_another_network(runs, sites, tmp_path, changed):
    with pytest.raises(UserError, match=r"holds weights of UNet:nG=4 \(1 channel, 2 classes\)"):
        program.main(
            flags(sites[1], tmp_path / "run", CROSS_ENTROPY, "--model_weights", runs / "fs" / "last.pkl", *changed)
        )


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_torn_weights(runs, sites, tmp_path, content):
    path = tmp_path / "torn.pkl"
    whole = (runs / "fs" / "last.pkl").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match="no checkpoint of this program or is torn"):
        program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, "--model_weights", path))


def renamed(prefix):
    return lambda net: {f"{prefix}{name}": value for name, value in net.items()}


def poisoned(net):
    return net | {"classifier.bias": torch.tensor([0.0, torch.nan])}


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_of_a_wrapped_network_are_taken_out_of_their_wrapper(runs, sites, tmp_path, wrapper):
    state = load_checkpoint(runs / "fs" / "last.pkl")
    torch.save(state | {"net": renamed(wrapper)(state["net"])}, tmp_path / "wrapped.pkl")
    start = ("--method", "noadap", "--model_weights", tmp_path / "wrapped.pkl")
    program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, *start))
    assert same(weights(tmp_path / "run"), state["net"])


STRANGE = {  # weights, what is said of them
    "nothing": (lambda net: None, "its entry 'net' is NoneType, where tensors by name"),
    "a list": (lambda net: list(net.values()), "its entry 'net' is list"),
    "NaN": (poisoned, r"1 of its \d+ tensors hold NaN or infinite weights: classifier.bias"),
    "another prefix": (renamed("net."), r"do not fit, such as .*\(missing\).*are foreign, such as net\."),
    "one missing": (
        lambda net: {name: value for name, value in net.items() if name != "classifier.bias"},
        r"Of the weights 1 do not fit, such as classifier.bias \(missing\)\.",
    ),
    "int8": (
        lambda net: net | {"classifier.bias": net["classifier.bias"].to(torch.int8)},
        r"classifier.bias \(integers, not real numbers\)",
    ),
    "complex": (
        lambda net: net | {"classifier.bias": net["classifier.bias"].to(torch.complex64)},
        r"1 of its \d+ tensors hold complex numbers, .*: classifier.bias",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_weights(runs, sites, tmp_path, name):
    change, message = STRANGE[name]
    state = load_checkpoint(runs / "fs" / "last.pkl")
    torch.save(state | {"net": change(state["net"])}, tmp_path / "strange.pkl")
    start = ("--method", "noadap", "--model_weights", tmp_path / "strange.pkl")
    with pytest.raises(UserError, match=message):
        program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, *start))
    assert not (tmp_path / "run").exists()


def test_weights_in_the_old_format_are_told_how_to_be_saved_anew(runs, sites, tmp_path):
    torch.save(load_checkpoint(runs / "fs" / "last.pkl"), tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"format of torch before 1\.6.*torch\.save\(torch\.load\('old\.pkl'"):
        load_checkpoint(tmp_path / "old.pkl")


def test_a_network_that_the_last_update_ruined_is_not_saved(sites, tmp_path):
    """Its losses were finite."""
    with pytest.raises(UserError, match="not finite after epoch 1: .* tensors hold NaN or infinity"):
        program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, "--batch_size", 16, "--l_rate", 1e38))
    assert not (tmp_path / "run" / "last.pkl").exists()


def test_a_loss_that_is_not_finite_names_the_step(sites, tmp_path):
    with pytest.raises(UserError, match=r"not finite in epoch 1, step \d: .*tot.*slices Case"):
        program.main(flags(sites[1], tmp_path / "run", CROSS_ENTROPY, "--batch_size", 4, "--l_rate", 1e38))
    assert not (tmp_path / "run" / "last.pkl").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_paragraph(python, sites, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".params.txt.part-0").symlink_to("/dev/full")
    done = shell(python, flags(sites[1], run))
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert not (run / "last.pkl").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_to(sites, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        program.main(flags(sites[1], tmp_path / "run"))


def test_a_screen_without_greek_letters_shows_the_help_all_the_same(python):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([python, program.__file__, "--help"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"--target_losses" in done.stdout
    assert done.stdout.isascii()
