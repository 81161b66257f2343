"""Runs on volumes: crops in training, windows in evaluation, every method that volumes can have, killed and gone on."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

import main as program
from analysis.masks import Masks
from analysis.run import open_run
from methods.pseudo_label import PseudoLabel
from nets.checkpoint_files import load_checkpoint
from preprocess.packing import VolumeSpec
from preprocess.volume_set import make_volume_set
from processes.errors import UserError
from tests.tools.chaos import ASKED, ask_to_stop, before_call, differences

SIZES = {
    "train": [(14, 12, 10), (6, 14, 12), (12, 12, 12)],
    "val": [(13, 11, 12), (9, 16, 10)],
    "unlabelled": [(12, 12, 9)],
}
FOLDERS = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]"
HALVES = "[('DiceLoss', {'idc': [1], 'smooth': 1}, 0.5), ('CrossEntropy', {}, 0.5)]"
ON_LABELS = "[('CrossEntropy', {}, 1)]"
SIZED = "[('EntKLProp', {}, 'ConstantBounds', {'values': [1400, 200]}, 'soft_size', 1)]"
AFFINE = np.diag([2.0, 1.5, 1.0, 1.0])


def ball(rng, size):
    """A noisy image of two channels with a bright ball, and its mask."""
    grid = np.indices(size)
    centre = np.array(size)[:, None, None, None] / 2 + rng.uniform(-1, 1, (3, 1, 1, 1))
    mask = ((grid - centre) ** 2).sum(0) < rng.uniform(2.5, 4) ** 2
    return mask * np.array([2.0, -1.0])[:, None, None, None] + rng.normal(0, 0.3, (2, *size)), mask.astype(np.uint8)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("volumes") / "site", np.random.default_rng(0)
    for split, sizes in SIZES.items():
        for case, size in enumerate(sizes):
            for folder, voxels in zip(("IMG", "GT"), ball(rng, size), strict=True):
                if (split, folder) == ("unlabelled", "GT"):
                    continue
                path = root / split / folder / f"{split}_{case:03}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                voxels = np.moveaxis(voxels, 0, -1).astype(np.float32) if voxels.ndim == 4 else voxels
                nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return root


def flags(site, workdir, *more):
    return [
        *("--target_dataset", str(site), "--workdir", str(workdir), "--target_folders", FOLDERS),
        *("--grp_regex", r"\w+_\d+", "--n_class", "2", "--network", "UNet3D:width=2,depth=1", "--crop", "8", "8", "8"),
        *(
            "--target_losses",
            HALVES,
            "--batch_size",
            "2",
            "--steps",
            "4",
            "--n_epoch",
            "3",
            "--l_rate",
            "1e-2",
            "--cpu",
        ),
        *map(str, more),
    ]


@pytest.fixture(scope="module")
def supervised(site, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "sup"
    program.main(flags(site, run, "--n_epoch", 12, "--saveim", 100, "--entmap", "--do_hd", 6, "--l_rate", "4e-3"))
    return run


def test_a_network_of_volumes_learns(site, supervised):
    log = pd.read_csv(supervised / "IMG_target_metrics.csv")
    assert log.val_dice_3d.iloc[-1] > 0.8
    assert log.val_hd95_mm_1.notna().tolist() == [epoch in (6, 11) for epoch in range(12)]
    assert np.load(supervised / "tra_loss.npy").shape == (12, 4, 3)


def test_masks_lie_where_their_volumes_lie(site, supervised):
    scores = pd.read_csv(supervised / "patients_last.csv").set_index("patient")
    for case, size in enumerate(SIZES["val"]):
        mask = nib.load(supervised / "last_epoch" / "val" / f"val_{case:03}.nii.gz")
        truth = nib.load(site / "val" / "GT" / f"val_{case:03}.nii.gz")
        assert mask.shape == size
        assert np.array_equal(mask.affine, truth.affine)
        found, true = np.asarray(mask.dataobj), np.asarray(truth.dataobj)
        dice = 2 * (found & true).sum() / (found.sum() + true.sum())
        assert scores.dice[f"val_{case:03}"] == pytest.approx(dice, abs=1e-6)
    assert len(list((supervised / "ent_map").iterdir())) == 2


CASES = {
    "pseudo labels": ("--method", "pseudo_label", "--threshold", "learnt", "--warmup_start", 0, "--augment"),
    "no images without labels": ("--method", "pseudo_label", "--batch_u", 0),
    "adaptation": ("--method", "sfda", "--target_losses", SIZED, "--crop", 14, 14, 12, "--batch_size", 1),
    "own labels": ("--method", "self_training"),
    "labels that positions agree on": ("--method", "upl", "--tau", 0.6),
    "labels that are denoised": ("--method", "denoised", "--most_spread", 0.2),
    "labels that are refined": ("--method", "cpr", "--most_spread", 0.2),
    "labels of an average": ("--method", "mean_teacher", "--target_losses", ON_LABELS, "--ema", 0.5),
    "images that are remembered": ("--method", "rotta", "--target_losses", ON_LABELS, "--memory", 3),
    "mixed": ("--method", "mixup"),
    "mixed styles": ("--method", "mix_style"),
    "curves where the loss is steep": ("--method", "saliency", "--target_losses", ON_LABELS),
    "two views that agree": ("--method", "ipa"),
    "half precision": ("--precision", "bf16"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_method_runs_and_goes_on_after_a_stop(site, supervised, tmp_path, name):
    more = ("--overlap", 0, *CASES[name])
    if {"sfda", "self_training", "mean_teacher", "upl", "denoised", "cpr", "rotta"} & set(more):
        more += ("--model_weights", supervised / "last.pkl")
    program.main(flags(site, tmp_path / "whole", *more))
    argv = flags(site, tmp_path / "run", *more, "--resume")
    kind = program.METHODS[more[3]] if more[2] == "--method" else program.METHODS["supervised"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", before_call(6, kind.step, ask_to_stop))
        with pytest.raises(SystemExit) as end:
            program.main(argv)
    assert end.value.code == ASKED
    program.main(argv)
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_no_volume_of_the_unlabelled_needs_a_label(site, tmp_path):
    program.main(flags(site, tmp_path / "run", "--method", "pseudo_label", "--n_epoch", 1))
    assert not (site / "unlabelled" / "GT").exists()
    assert load_checkpoint(tmp_path / "run" / "last.pkl")["epoch"] == 0
    assert PseudoLabel.streams == ("target", "unlabelled")


def test_few_labels_of_volumes(site, tmp_path):
    for draw in (0, 1):
        program.main(flags(site, tmp_path / str(draw), "--n_labelled", 1, "--draw", draw, "--n_epoch", 1))
    runs = [torch.load(tmp_path / str(draw) / "last.pkl", weights_only=True)["net"] for draw in (0, 1)]
    assert any(not torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--network", "UNet:nG=2"), "made for slices"),
        (("--target_losses", SIZED, "--method", "supervised"), "Raise --crop D W H to the largest"),
        (("--crop", 0, 8, 8), "from 1 upwards"),
        (("--overlap", 1), "below 1"),
        (("--n_labelled", 4), "holds 3 volumes"),
        (("--method", "pseudo_label", "--unlabelled_split", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_told(site, tmp_path, more, says):
    with pytest.raises(UserError, match=says):
        program.main(flags(site, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_a_network_of_volumes_asks_for_crops(site, tmp_path):
    argv = flags(site, tmp_path / "run")
    at = argv.index("--crop")
    with pytest.raises(UserError, match=r"Give --crop D W H, or another network"):
        program.main(argv[:at] + argv[at + 4 :])


def test_pictures_of_volumes_are_refused(supervised):
    run = open_run(supervised)
    assert len(run.patients("last")) == 2
    for ask in (lambda: Masks(run).names("last"), Masks(run).slices):
        with pytest.raises(UserError, match="evaluated on volumes"):
            ask()


def test_a_set_of_images_alone_can_be_adapted_to(site, supervised, tmp_path):
    """The same weights as with ground truth beside the images."""
    made = []
    for name, label in (("alone", None), ("labelled", f"{site}/[tv]*/GT/*.nii.gz")):
        spec = VolumeSpec(tmp_path / name, (f"{site}/[tv]*/IMG/*.nii.gz",), label, r"(\w+_\d+)", train=3)
        make_volume_set(spec)
        folders = FOLDERS if label else "[('IMG', nii_transform, False)]"
        start = ("--model_weights", supervised / "last.pkl", "--target_folders", folders)
        program.main(flags(tmp_path / name, tmp_path / f"run_{name}", *start, *CASES["adaptation"]))
        made.append(load_checkpoint(tmp_path / f"run_{name}" / "last.pkl")["net"])
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])
