"""Street-like pictures from end to end: colour, three classes and a label to ignore, truth larger than the image."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import main as program
from engine.evaluation import class_counts
from processes.errors import UserError

K, IGNORE = 3, 255
FOLDERS = "[('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', gt_transform, False)]"


def write_streets(root, grey, seed, shape, val_scale=1):
    """Pictures of a road (0), a wall (1) of a grey level of its own and a bonnet that is to be ignored."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", 8), ("val", 3)):
        for folder in ("IMG", "GT"):
            (root / split / folder).mkdir(parents=True)
        scale = val_scale if split == "val" else 1
        for number in range(count):
            truth = np.zeros(shape, np.uint8)
            truth[: rng.integers(8, 20), :] = 1
            truth[-4:, :] = IGNORE
            image = np.where(truth == 1, *grey)[..., None] + rng.normal(0, 6, (*shape, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / "IMG" / f"{split}_{number}.png")
            large = Image.fromarray(truth.repeat(scale, 0).repeat(scale, 1))
            large.save(root / split / "GT" / f"{split}_{number}.png")
    (root / "dataset.json").write_text(json.dumps({"name": root.name, "class_names": ["road", "wall", "train"]}))
    return root


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    """A game's pictures and a city's: another size, another look, validation truth of twice the size."""
    root = tmp_path_factory.mktemp("towns")
    game = write_streets(root / "game", (200, 80), 0, (32, 40))
    return game, write_streets(root / "city", (160, 110), 1, (36, 44), val_scale=2)


def flags(target, workdir, *more):
    return [
        *("--target_dataset", str(target), "--workdir", str(workdir), "--target_folders", FOLDERS, "--n_class", str(K)),
        *("--grp_regex", r"([a-z]+)_(\d+)", "--target_losses", "[('CrossEntropy', {}, 1)]", "--network", "UNet:nG=4"),
        *(
            "--metric_axis",
            "0",
            "1",
            "2",
            "--scores",
            "iou",
            "--modalities",
            "3",
            "--n_epoch",
            "3",
            "--batch_size",
            "2",
        ),
        *("--l_rate", "1e-2", "--cpu", *(["--ignore", str(IGNORE)] if "--ignore" not in more else []), *map(str, more)),
    ]


@pytest.fixture(scope="module")
def adapted(towns, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "adapt"
    both = ("--method", "adversarial", "--source_dataset", towns[0], "--d_width", 4, "--lambda_adv", 1e-2, 1e-3)
    program.main(flags(towns[1], run, *both, "--saveim"))
    return run


def by_hand(towns, run):
    """Intersection and union of each class, (2, K), counted in the saved masks."""
    total = np.zeros((2, K), int)
    for path in sorted((towns[1] / "val" / "GT").iterdir()):
        truth = np.asarray(Image.open(path))
        mask = np.asarray(Image.open(run / "last_epoch" / "val" / path.name))
        assert mask.shape == truth.shape
        for k in range(K):
            predicted, true = (mask == k) & (truth != IGNORE), truth == k
            total[:, k] += (predicted & true).sum(), (predicted | true).sum()
    return total


def test_the_intersection_over_union_is_that_of_the_masks_at_full_size(towns, adapted):
    intersection, union = by_hand(towns, adapted)
    scores = pd.read_csv(adapted / "classes_last.csv")
    assert scores.name.tolist() == ["road", "wall", "train"]
    assert scores.intersection.tolist() == intersection.tolist()
    assert scores.union.tolist() == union.tolist()
    iou = [i / u if u else np.nan for i, u in zip(intersection, union, strict=True)]
    np.testing.assert_allclose(scores.iou, iou)
    log = pd.read_csv(adapted / "IMG_target_metrics.csv")
    assert log.val_miou.iloc[-1] == pytest.approx(np.nanmean(iou), abs=1e-6)
    assert log.val_iou_0.iloc[-1] == pytest.approx(iou[0], abs=1e-6)


def test_the_best_epoch_is_that_of_the_best_mean_iou(adapted):
    log = pd.read_csv(adapted / "IMG_target_metrics.csv")
    epoch, score = (adapted / "3dbestepoch.txt").read_text().split(",")
    assert int(epoch) == log.val_miou.idxmax()
    assert float(score) == pytest.approx(log.val_miou.max(), abs=1e-5)


def test_pictures_have_dice_and_no_distances(adapted):
    scores = pd.read_csv(adapted / "patients_last.csv")
    assert scores.dice.notna().any()
    assert scores.filter(regex="^(hd95|assd)").isna().to_numpy().all()


def test_pixels_to_be_ignored_count_nowhere_but_in_what_depends_on_no_truth():
    truth = torch.tensor([[[0, 1, IGNORE, 2]]], dtype=torch.uint8)
    predicted = torch.tensor([[[0, 2, 1, 2]]])
    intersection, of_prediction, of_truth, everywhere = class_counts(predicted, truth, K)
    assert intersection.tolist() == [[1, 0, 1]]
    assert of_prediction.tolist() == [[1, 0, 2]]
    assert of_truth.tolist() == [[1, 1, 1]]
    assert everywhere.tolist() == [[1, 1, 2]]
    assert torch.equal(class_counts(predicted, None, K)[3], everywhere.double())


def test_without_the_flag_the_ignored_label_is_refused(towns, tmp_path):
    argv = [word for word in flags(towns[1], tmp_path / "run") if word not in ("--ignore", str(IGNORE))]
    with pytest.raises(UserError, match="255"):
        program.main(argv)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--modalities", 1), "Expected images of --modalities 1, found 3 in"),
        (("--target_losses", "[('DiceLoss', {}, 1)]"), "DiceLoss does not leave these pixels out"),
        (("--method", "adversarial"), "--source_dataset"),
    ],
)
def test_what_does_not_fit_is_one_paragraph(towns, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        program.main(flags(towns[1], tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()
