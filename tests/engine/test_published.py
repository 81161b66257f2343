"""Command lines as the published makefiles print them: each is taken, or refused with what to write instead."""

import argparse
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import main as program
from dataloader import grey_note
from datasets.slices import open_slices
from datasets.transforms import parse_folders
from engine.arguments import get_args, get_parser
from engine.published import FOREIGN, as_published
from methods.base import METHODS
from methods.optimisers import Learning, learning_rate
from methods.settings import add_flags
from methods.terms import LossSpec
from processes.errors import UserError
from utils import settings_of

PRIOR = (
    "'PredictionBounds', {{'margin':0,'dir':'high','idc':{idc},'predcol':'dumbpredwtags','power': 1,"
    "'mode':'percentage',{more}'sizefile':'{sizes}'}},'norm_soft_size',{weight}"
)


def sfda(images, classes, more, losses):
    """A line of main_sfda.py."""
    return (
        f'--batch_size 24 --n_class {classes} --workdir run_tmp --target_dataset "data/target" --metric_axis 1 '
        f'--n_epoch 100 --dice_3d --l_rate 5e-4 --weight_decay 1e-4 --grp_regex="Case\\d+_\\d+" --network=UNet '
        f'--val_target_folders="{images}" --lr_decay 0.9  --model_weights="" --target_folders="{images}" '
        f'--target_losses="{losses}" {more}'
    )


def boundary(losses, labels, more="", folders="('in_npy', tensor_transform, False), ('gt_npy', gt_transform, True)"):
    """A line of the boundary loss's main.py on the two sets of lesions."""
    return (
        "--dataset=data/ISLES/ --batch_size=8 --in_memory --l_rate=0.001 --schedule --use_spacing --n_epoch=100 "
        "--workdir=run_tmp --csv=metrics.csv --n_class=2 --modalities=5 --metric_axis 1 "
        '--grp_regex="(case_\\d+_\\d+)_\\d+" '
        f'--network=UNet --losses="{losses}" --folders="[{folders}]+[{labels}]" {more}'
    )


def ventricles(loss, label):
    return (
        "--dataset=data/ACDC-2D/ --batch_size=8 --group --schedule --n_epoch=100 --workdir=run_tmp --csv=metrics.csv "
        '--n_class=4 --metric_axis 1 2 3 --compute_3d_dice --grp_regex="(patient\\d+_\\d+_\\d+)_\\d+" --network=ENet '
        f"--losses=\"[('{loss}', {{'idc': [0, 1, 2, 3]}}, 1)]\" "
        f"--folders=\"[('img', png_transform, False), ('gt', gt_transform, True)]+[('gt', {label})]\""
    )


NII = "[('IMG', nii_transform{0}, False), ('GT', nii_gt_transform{0}, False), ('GT', nii_gt_transform{0}, False)]"
PNG = "[('Inn', png_transform, False), ('GT', gtpng_transform, False),('GT', gtpng_transform, False)]"
CE = "[('CrossEntropy', {{'idc': {0}, 'weights':{1}}}, None, None, None, 1)]"
ENTKL = (
    "'EntKLProp', {{'lamb_se':1, 'lamb_consprior':1,'ivd':True,'weights_se':{0},'idc_c': {1},'curi':True,'power': 1}}"
)
GDL, TRUE = "('GeneralizedDice', {'idc': [0, 1]}, 1)", "('gt_npy', gt_transform, True)"
PHI = "('gt_npy', dist_map_transform, False)"
STEAL = "--scheduler=StealWeight --scheduler_params=\"{'to_steal': 0.01}\""


def entropy(weights, classes, **prior):
    return f"[({ENTKL.format(weights, classes)},{PRIOR.format(**prior)})]"


LINES = {
    "prostate cesource": sfda(NII.format(2), 2, "--lr_decay 1", CE.format("[0,1]", "[1,1]")),
    "prostate sfda": sfda(
        NII.format(2),
        2,
        "--do_hd 90 --saveim True --entmap --l_rate 0.000001 --wh 384 --mix True",
        entropy("[0.1,0.9]", "[1]", idc="[0,1]", more="", sizes="sizes/prostate.csv", weight=1),
    ),
    "ivd sfda": sfda(
        PNG,
        2,
        "--lr_decay 0.2 --lr_decay_epoch 50",
        entropy("[0.1,0.9]", "[1]", idc="[0,1]", more="'sep':',',", sizes="sizes/ivd.csv", weight=1),
    ),
    "whs sfda": sfda(
        NII.format(""),
        5,
        "--batch_size 22 --ontest --l_rate 0.000001 --weight_decay 1e-3 --do_asd 1 --do_hd 1",
        entropy(
            "[0.02, 0.27, 0.18, 0.21, 0.32]",
            "[1,2,3,4]",
            idc="[1]",
            more="'fake':False,'prop':False,'sep':';',",
            sizes="sizes/whs.csv",
            weight=50,
        ),
    ),
    "whs cesourceim": sfda(
        NII.format(""),
        5,
        "--mode makeim --batch_size 1 --l_rate 0 --model_weights=results/whs/cesource/last.pkl --pprint --saveim True",
        CE.format("[0,1,2,3,4]", "[1,1,1,1,1]"),
    ),
    "acdc ce": ventricles("CrossEntropy", "gt_transform, True"),
    "acdc boundary": ventricles("BoundaryLoss", "dist_map_transform, False"),
    "isles gdl": boundary(f"[{GDL}]", TRUE),
    "isles gdl_surface_w": boundary(f"[{GDL}, ('SurfaceLoss', {{'idc': [1]}}, 0.1)]", f"{TRUE}, {PHI}"),
    "isles gdl_surface_steal": boundary(f"[{GDL}, ('SurfaceLoss', {{'idc': [1]}}, 0.01)]", f"{TRUE}, {PHI}", STEAL),
    "isles gdl_hausdorff_w": boundary(f"[{GDL}, ('HausdorffLoss', {{'idc': [1]}}, 0.1)]", f"{TRUE}, {TRUE}"),
    "isles gdl_3d_surface_steal": boundary(
        f"[{GDL}, ('SurfaceLoss', {{'idc': [1]}}, 0.01)]", f"{TRUE}, ('3d_distmap', raw_npy_transform, False)", STEAL
    ),
    "wmh gdl with stochastic descent": boundary(f"[{GDL}]", TRUE, "--use_sgd --temperature 1"),
}


@pytest.mark.parametrize("published", [[], ["--published", "sfda"], ["--published", "boundary"]])
@pytest.mark.parametrize("line", LINES)
def test_published_lines_work_as_pasted(line, published, capsys):
    program.main([*shlex.split(LINES[line]), *published, "--check", "--cpu"])
    assert capsys.readouterr().out.endswith(": fine\n")


def test_the_boundary_loss_alone_is_refused_with_a_reason():
    with pytest.raises(UserError, match="ends in an empty prediction"):
        program.main([*shlex.split(boundary("[('SurfaceLoss', {'idc': [1]}, 0.1)]", PHI)), "--check", "--cpu"])


def read(line, *more):
    return get_args([*shlex.split(LINES[line]), *more])


def test_use_spacing_measures_the_maps_in_mm():
    assert "('gt_npy', dist_map_mm_transform, False)" in read("isles gdl_surface_w").target_folders
    legacy = read("isles gdl_surface_w", "--published", "boundary").target_folders
    assert "('gt_npy', dist_map_legacy_mm_transform, False)" in legacy
    assert "('gt', dist_map_transform, False)" in read("acdc boundary").target_folders
    assert "('gt', dist_map_legacy_transform, False)" in read("acdc boundary", "--published", "boundary").target_folders


def test_use_sgd_is_what_it_was_and_gives_way_to_what_is_said():
    args = read("wmh gdl with stochastic descent")
    assert (args.optimiser, args.momentum, args.weight_decay) == ("sgd", 0.99, 5e-4)
    args = read("wmh gdl with stochastic descent", "--momentum", "0.9")
    assert (args.optimiser, args.momentum, args.weight_decay) == ("sgd", 0.9, 5e-4)


def test_what_a_line_leaves_unsaid_is_as_in_the_published_code():
    shared = ["--target_dataset", "d", "--workdir", "w", "--grp_regex", "x", "--n_class", "2", "--target_folders"]
    shared += [NII.format(""), "--target_losses", CE.format("[0,1]", "[1,1]"), "--network", "UNet"]
    args = get_args([*shared, "--published", "sfda"])
    assert (args.batch_size, args.n_epoch, args.lr_decay, args.weight_decay) == (1, 200, 0.7, 1e-5)
    assert (args.betas, args.lr_rule, args.network) == ((0.9, 0.999), "late", "UNet")
    assert args.target_folders == NII.format("").replace("nii_transform", "nii_zscore_transform")
    assert get_args([*shared, "--published", "sfda", "--network", "ENet"]).network == "PublishedENet"
    assert get_args([*shared, "--published", "sfda", "--adamw", "--weight_decay", "1"]).weight_decay == 0.01
    args = get_args([*shared, "--published", "boundary"])
    assert (args.batch_size, args.n_epoch, tuple(args.betas), args.network) == (1, 200, (0.9, 0.99), "UNet:nG=64")
    assert get_args([*shared, "--published", "boundary", "--n_epoch", "3"]).n_epoch == 3
    args = get_args(shared)
    assert (args.batch_size, args.n_epoch, tuple(args.betas), args.network) == (4, 100, (0.9, 0.999), "UNet")


def test_losses_are_those_of_the_published_code():
    def built(line, *more):
        loss = program.build_objective(read(line, *more))
        return loss.losses[0]

    assert built("isles gdl", "--published", "boundary").legacy
    assert not built("isles gdl").legacy
    legacy = as_published(LossSpec("DiceLoss", {"legacy": False}), "boundary")
    assert legacy.params == {"legacy": False}
    assert as_published(LossSpec("KLPropInv"), "sfda").params == {"direction": "predicted", "silent": False}
    assert as_published(LossSpec("EntKLProp"), "sfda").params == {"silent": False}
    assert as_published(LossSpec("KLPropInv"), None).params == {}


def test_a_line_of_the_boundary_loss_says_what_is_other_there(capsys):
    read("isles gdl")
    said = capsys.readouterr().out
    assert "--betas 0.9 0.99; --network UNet:nG=64; a Dice without a gradient on images that lack a class. Here" in said
    assert "add --published boundary for that" in said
    read("acdc boundary")
    said = capsys.readouterr().out
    assert "--betas 0.9 0.99; --network PublishedENet; distance maps in whole numbers, half a pixel off" in said
    read("isles gdl", "--published", "boundary")
    read("prostate cesource")
    assert capsys.readouterr().out == ""


def test_flags_that_change_nothing_say_so(capsys):
    read("prostate sfda")
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "--wh 384 changes nothing: the size of the slices is read off them.",
        "--mix True changes nothing: the published code does not use it.",
    ]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--temperature 2", "--temperature 2: the logits are taken as they are"),
        ("--dimensions=3", "--dimensions 3: give --crop D W H"),
        ("--source_metrics", "--source_metrics: score the source in a run of its own, --method noadap"),
        ("--training_folders train unlabelled", "give --trainval, --valonly"),
        ("--wh 256 --nonsense 3", "unrecognized arguments: --nonsense 3"),
        ("stray", "unrecognized arguments: stray"),
    ],
)
def test_what_has_no_meaning_here_is_refused_with_what_to_write(flag, message):
    with pytest.raises(UserError, match=message):
        read("isles gdl", *shlex.split(flag))


def test_the_published_rate_falls_an_epoch_later():
    learning, rates = settings_of(Learning, vars(read("prostate sfda"))), {}
    for rule in ("step", "late"):
        rates[rule] = [learning_rate(epoch, replace(learning, lr_rule=rule), 1.0) for epoch in range(43)]
    # As exp_lr_scheduler of the published code lays them, which is called after an epoch.
    assert rates["late"] == pytest.approx([1.0] * 21 + [0.9] * 20 + [0.81] * 2)
    assert rates["step"] == pytest.approx([1.0] * 20 + [0.9] * 20 + [0.81] * 3)


def zscored(root, shift=0.0):
    """A set of two slices of .npy, of mean `shift` and sd 1, without a card."""
    rng = np.random.default_rng(0)
    for folder, image in (("IMG", True), ("GT", False)):
        (root / "train" / folder).mkdir(parents=True)
        for n in range(2):
            values = rng.normal(shift, 1, (8, 8)).clip(-4, 4.4) if image else np.eye(8, dtype=np.uint8)
            np.save(root / "train" / folder / f"slice{n}_1.npy", values.astype(np.float32 if image else np.uint8))
    return root


def opened(root, transform):
    folders = f"[('IMG', {transform}, False), ('GT', npy_gt_transform, False)]"
    return open_slices(root, "train", parse_folders(folders, 1), 2, r"(slice\d+)_(\d+)")


def test_zscored_slices_that_are_read_as_stored_are_told(tmp_path):
    root = zscored(tmp_path / "ct")
    assert "name nii_zscore_transform, or give --published sfda" in grey_note(opened(root, "nii_transform"))
    assert grey_note(opened(root, "nii_zscore_transform")) == ""
    (root / "dataset.json").write_text('{"normalisation": {"kind": "zscore"}}')
    assert grey_note(opened(root, "nii_transform")) == ""
    assert grey_note(opened(zscored(tmp_path / "far", shift=4.0), "nii_transform")) == ""


def test_the_table_of_differences_names_flags_that_there_are():
    parser = argparse.ArgumentParser(conflict_handler="resolve", parents=[get_parser()], add_help=False)
    for method in METHODS:
        add_flags(parser, METHODS[method].Settings)
    table = (Path(__file__).parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
    elsewhere = {"--normalise"}  # of preprocess.volume_set
    assert set(re.findall(r"--[a-z]\w+", table)) <= {*parser._option_string_actions, *FOREIGN, *elsewhere}
