"""A training with the boundary loss, from folders of slices to the log."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import main as program
from datasets.distance_maps import signed_distance_maps
from processes.errors import UserError

GDL = "('GeneralizedDice', {'idc': [0, 1]}, None, None, None, 1)"
LOSSES = f"[{GDL}, ('BoundaryLoss', {{'idc': [1]}}, None, None, None, 0.01)]"
STEAL = ("--scheduler", "StealWeight", "--scheduler_params", "{'to_steal': 0.2}")


def folders(last):
    return f"[('IMG', png_transform, False), ('GT', gt_transform, True), ('GT', gt_transform, True), {last}]"


def train(dataset, workdir, *more, losses=LOSSES, last="('GT', dist_map_transform, False)"):
    program.main(
        [
            *("--dataset", str(dataset), "--workdir", str(workdir), "--losses", losses, "--folders", folders(last)),
            *("--grp_regex", r"(Case\d+)_(\d+)", "--n_class", "2", "--network", "UNet:nG=4", "--n_epoch", "6"),
            *("--batch_size", "4", "--l_rate", "1e-2", "--cpu", "--csv", "metrics.csv", *map(str, more)),
        ]
    )
    return pd.read_csv(workdir / "metrics.csv")


def test_the_log_shows_the_loss_its_lower_bound_and_the_weights(sites, tmp_path, capsys):
    log = train(sites[0], tmp_path / "run", *STEAL)
    assert log.weight_GeneralizedDice.tolist() == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.1])
    assert log.weight_BoundaryLoss.tolist() == pytest.approx([0.01, 0.21, 0.41, 0.61, 0.81, 1.01])
    parts = log.tra_loss_GeneralizedDice + log.tra_loss_BoundaryLoss
    np.testing.assert_allclose(log.tra_loss_tot, parts, atol=1e-5)
    assert (log.tra_loss_BoundaryLoss > log.tra_loss_BoundaryLoss_lowest).all()
    assert log.val_loss_BoundaryLoss.iloc[-1] < 0
    assert log.val_dice_3d.iloc[-1] > log.val_dice_3d.iloc[0]
    said = capsys.readouterr().out
    assert said.count("a value below 0 is right") == 1
    assert said.count("lowest possible") == 6


def test_maps_made_beforehand_are_those_made_on_the_fly(sites, tmp_path):
    data = shutil.copytree(sites[0], tmp_path / "data")
    for split in ("train", "val"):
        (data / split / "3d_distmap").mkdir()
        for path in (data / split / "GT").iterdir():
            maps = signed_distance_maps(np.asarray(Image.open(path)), 2)
            np.save(data / split / "3d_distmap" / f"{path.stem}.npy", maps)
    ready = train(data, tmp_path / "ready", "--augment", last="('3d_distmap', raw_npy_transform, False)")
    made = train(data, tmp_path / "made", "--augment")
    pd.testing.assert_frame_equal(ready.drop(columns="seconds"), made.drop(columns="seconds"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": "[('BoundaryLoss', {'idc': [1]}, 1)]"}, "ends in an empty prediction"),
        ({"last": "('GT', gt_transform, True)"}, "BoundaryLoss needs distance maps"),
        ({"last": "('GT', dist_map_mm_transform, False)"}, "manifest"),
    ],
)
def test_what_cannot_work_is_one_paragraph(sites, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train(sites[0], tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()
