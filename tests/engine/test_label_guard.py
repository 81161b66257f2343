"""No label of the target reaches an adaptation: over METHODS, and over every flag that a run of them may have.

A run is made four times, to the same images: with their labels as they are, wiped, at random, and absent. Weights,
optimiser, alarms, log, masks and the network that is chosen must be the same bits; only scores, which tell the truth,
may differ. A flag that cannot be must be refused. A new flag is tried because it exists: see test_every_flag_is_tried.
What chooses runs in this process, for speed; that its own opens no ground truth is shown in test_choice.py.
"""

import contextlib
import functools
import io
import itertools
import json
import re
import shlex
from argparse import Action
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import main as program
from datasets.augmentation import LARGEST
from engine.arguments import get_args, get_parser
from engine.evaluation import Evaluation
from files.run_names import CANDIDATES, CHOSEN, COST, EXPECTED, PATIENTS, SELECTION, candidate_name
from methods.base import METHODS
from methods.settings import add_flags
from nets.checkpoint_files import load_checkpoint
from processes.errors import UserError
from tests.tools.chaos import _bits as bits
from utils import tell_once

VARIANTS = ("as they are", "wiped", "at random", "absent")
BLIND = [name for name in METHODS if "target" not in METHODS[name].labelled or not METHODS[name].streams]
IGNORED = 255
SIZE, CUBE = (16, 16), (8, 9, 8)

# ------------------------------------------------------------------------------------- what is tried

LOSS = "('CrossEntropy', {'idc': [0, 1]}, None, None, None, 1)"
ENTROPY = "('SelfEntropy', {}, None, None, None, 0.5)"
SIZED = "('EntKLProp', {}, 'PredictionBounds', {'sizefile': 'PRIOR', 'predcol': 'p', 'margin': 0}, 'soft_size', 1)"
START = "--model_weights NET --network Dimwit:nG=3"
SOURCE = "--source_dataset SOURCE --source_folders FOLDERS_OF_SOURCE --source_regex 'Case(..)_(.)'"
BENT = SIZED.replace("{}", "{'reestimate': 0.5}").replace("'margin': 0", "'margin': 0.1, 'dir': 'both'")
SHAPED = SIZED.replace("EntKLProp", "ShapeMoments").replace("'soft_size'", "None")
BASE = {  # method -> its losses, and flags of every run of it
    "noadap": ([LOSS], START),
    "sfda": ([SIZED], START),
    "online": ([ENTROPY], START),
    "cotta": ([LOSS], START),
    "rotta": ([LOSS], START),
    "prototype_alignment": ([SIZED], START),
    "consistency": ([SIZED], START),
    "self_training": ([LOSS], START),
    "mean_teacher": ([LOSS], START),
    "upl": ([LOSS], START),
    "denoised": ([LOSS], START),
    "cpr": ([LOSS], START),
    "adversarial": ([LOSS], f"{START} {SOURCE} --d_width 2 --d_stride 1"),
    "contrastive_global": ([], "--network UNet:nG=2 --model_weights UNET --n_parts 2 --embedding 4 --head_grid 1"),
    "contrastive_local": ([], "--network UNet:nG=2 --model_weights UNET --n_parts 2 --embedding 4 --local_blocks 2"),
}
WARPS = {"rotate": 180, "scale": 0.2, "crop": 0.7, "shift": 2, "elastic": 1, "elastic_share": 0.9}
GREYS = {"equalise": 0.5, "contrast": 0.3, "spread": 0.1, "brightness": 0.1, "offset": 0.1, "gamma": 0.3, "noise": 0.1}
GREYS |= {"curves": 0.5, "gin": 0.3, "ipa": 0.3, "fourier": 0.5, "invert": 0.2, "gradient": 0.3, "local_gamma": 0.3}
GREYS |= {"blur": 0.3, "sharpen": 0.2, "low_resolution": 0.3, "blank": 0.3}
BY_LABELS = """--augment --augmentation "{'rotate': 0, 'label_curves': 0.1, 'label_gin': 0.1}\""""
MOVED = shlex.quote(repr(WARPS | GREYS | {"clip": 3, "flip": True, "turn": 90, "elastic_points": 3}))
# name -> flags; a run of them goes with every method, unless REFUSED says otherwise
RUNS = {
    "plain": "",
    "read and written otherwise": f"--metric_axis 0 1 --modalities 1 --group --draw 3 --batch_size 6 --workers 1 "
    "--cache stream --val_target_folders FOLDERS --csv log.csv --dice_3d 0 --do_hd 1 --do_asd 1 --nsd_tolerance 1 "
    f"--saveim 1 --entmap --pprint --jobs 2 --resume --device cpu --seed 5 {SOURCE} --unlabelled_dataset SOURCE "
    "--unlabelled_split train --lr_rule poly --poly_power 0.5 --poly_epochs 4 --optimiser sgd --momentum 0.8",
    "pixels to ignore, rolled back": "--ignore 255 --on_collapse rollback --l_rate 0.5 --lr_decay 0.9 "
    "--lr_decay_epoch 1 --betas 0.8 0.9 --n_warmup 1 --augment --augmentation \"{'rotate': 0}\" --cache ram --trainval",
    "pixels to ignore, stopped": "--ignore 255 --on_collapse stop --l_rate 0.5 --scores iou --valonly --ontrain",
    "moved images": f"--augment --augmentation {MOVED} --in_memory --ontest --weight_decay 0.01 --optimiser adamw",
    "loss weights that move": "--scheduler StealWeight --scheduler_params \"{'to_steal': 0.1}\" --adamw --flr "
    "--eval_every 2 --debug --bn_mix 0",
    "other machine": "--lr_rule late --precision bf16 --channels_last --deterministic --steps 3 --anchor 0.1 "
    "--decode dice",
    "as one published code": "--published sfda --use_spacing",
    "as the other": "--published boundary --use_sgd",
    "masks alone": "--mode makeim --saveim 1 --match_source 0.5 --bn_mix",
    "copies to choose from": "--keep_every 1 --n_epoch 3 --saveim 1 --average_last 2 --match_source 1",
    "volumes": "--crop 8 9 8 --overlap 0.25 --network UNet3D:width=2,depth=1 --steps 2",
}
TWO_LOSSES = ("loss weights that move",)
FREE = ("moved images",)  # of sizes: an augmentation that changes them does not go with a bound
OWN = {  # method -> runs with its own flags
    "sfda": [
        "--trainable bn --bn_stats refresh",
        "--trainable features --bn_stats freeze",
        "--trainable none --match_source auto",
        "--keep_every 2 --crop 8 9 8 --overlap 0.25 --network UNet3D:width=2,depth=1 --ignore 255 --eval_every 2 "
        "--match_source auto",
        "--keep_every 1 --trainval --augment --augmentation \"{'rotate': 0}\" --l_rate 0.1 --precision bf16",
        f'--n_epoch 3 --keep_every 1 --l_rate 0.1 --target_losses "[{BENT}]"',
        f'--n_epoch 3 --keep_every 1 --trainable bn --target_losses "[{SHAPED}]"',
    ],
    "rotta": [
        "--ema 0.9 --memory 5 --norm_rate 0.2 --trainable all --keep_every 1 --n_epoch 3",
        "--memory 4 --trainable features",
    ],
    "cotta": ["--ema 0.9 --views 3 --confidence 0.7 --restored 0.1 --keep_every 1 --n_epoch 3"],
    "online": [
        "--trainable all --bn_stats refresh --online eata --fisher 10",
        "--trainable features --bn_stats freeze --online deyo --reset_below 0.3 --reset_fall 0.02",
        "--online deyo --crop 8 9 8 --network UNet3D:width=2,depth=1",
    ],
    "prototype_alignment": [
        "--trainable bn --bn_stats refresh --temperature 0.2 --prior_rate 0.1",
        "--bn_stats freeze --prior_rate 0",
    ],
    "consistency": [
        "--trainable bn --bn_stats refresh --strength 0.1",
        "--trainable features --bn_stats freeze",
        "--trainable none",
    ],
    "self_training": [
        "--threshold learnt --prior_mu 0.5 --prior_sd 0.1 --pri_mu 1 --pri_sd 1 --post_mu 1 --post_sd 1 --alpha 0.9 "
        "--threshold_moves network --threshold_draw published --kl_weight 0.2 --skip_empty 0.005 --conf_lower 0.1",
        "--threshold learnt --post_mu 2 --straight_through --beta 0.5 --warmup 0.5 --warmup_start 0.1 --temperature 2",
        "--threshold learnt --post_sd 2 --threshold_value 0.4",
        "--threshold_value 0.4 --skip_empty 0.005",
    ],
    "upl": ["--tau 0.6 --entropy_weight 0.5 --dropout 0.2 --pieces all --keep_every 1 --n_epoch 3"],
    "cpr": [
        "--most_spread 0.2 --quantile 0.1 --radius 2 --walk 3 --keep_every 1 --n_epoch 3",
        "--passes 3 --dropout 0.2 --walk 2",
    ],
    "denoised": ["--passes 3 --dropout 0.2 --most_spread 0.2 --quantile 0.1 --keep_every 1 --n_epoch 3"],
    "mean_teacher": ["--ema 0.9 --threshold_value 0.6 --keep_every 1 --n_epoch 3"],
    "adversarial": [
        "--lambda_adv 0.1 --lambda_seg 0.2 --lambda_ent 0.1 --d_input entropy --gan ls --d_l_rate 1e-3 --bn_stats both "
        "--iter_size 2",
    ],
    "contrastive_global": ["--strategy GR --temperature 0.2", "--strategy GD-"],
    "contrastive_local": ["--strategy LD --temperature 0.2"],
}
REFUSED = {  # (method or kind, flags) -> what is said of them
    ("learns", "--schedule"): "--schedule.* follows the best epoch",
    ("learns", BY_LABELS): "label_curves, label_gin, which follow the classes of the ground truth",
    ("learns", "--lr_rule legacy"): "--schedule.* follows the best epoch",
    ("sfda", "--n_labelled 1"): "learns from no label",
    ("self_training", "--n_labelled 1"): "learns from no label",
    ("mean_teacher", "--n_labelled 1"): "learns from no label",
    ("upl", "--n_labelled 1"): "learns from no label",
    ("denoised", "--n_labelled 1"): "learns from no label",
    ("cpr", "--n_labelled 1"): "learns from no label",
    ("prototype_alignment", "--n_labelled 1"): "learns from no label",
    ("consistency", "--n_labelled 1"): "learns from no label",
    ("noadap", "--n_labelled 1"): "learns from no label",
    ("online", "--n_labelled 1"): "learns from no label",
    ("cotta", "--n_labelled 1"): "learns from no label",
    ("rotta", "--n_labelled 1"): "learns from no label",
    ("online", "--trainable none"): "has nothing to learn",
    ("online", RUNS["loss weights that move"]): "and nothing else",
    ("rotta", RUNS["loss weights that move"]): "nothing else",
    ("pre-training", "--n_labelled 1"): "learns from no label",
    ("pre-training", RUNS["masks alone"]): "segments nothing yet",
    ("pre-training", RUNS["volumes"]): "segments nothing yet",
    ("adversarial", RUNS["volumes"]): "judges the maps of slices",
    ("noadap", RUNS["copies to choose from"]): "makes no such network",
    ("adversarial", RUNS["copies to choose from"]): "makes no such network",
    ("pre-training", RUNS["copies to choose from"]): "makes no such network",
    ("pre-training", RUNS["loss weights that move"]): "moves weight between two losses",
}
EXEMPT = {  # flag, or flag and value -> why no run tries it
    "--help": "prints and ends",
    "--check": "reads no data",
    "--log": "the numbers of the csv once more, as test_logs.py shows; its pictures have the truth in them",
    "--log_images": "as --log",
    "--compile": "the same step, compiled; minutes on a CPU",
    "--backbone_weights": "fills the network before any image is read, and no tiny one has a trunk",
    "--load_blocks": "fills the network before any image is read",
    "--cpu": "as --device cpu",
    "--cache gpu": "needs a GPU",
    "--precision auto": "the default without a GPU",
    "--precision fp32": "what auto is without a GPU",
    "--precision tf32": "needs a GPU",
    "--precision fp16": "needs a GPU",
    "--select_with": "a few patients' labels choose; that no step sees them, nor others': test_choice_with_labels.py",
    "--select_folders": "as --select_with",
    "--n_target": "patients are drawn by their names: test_dataloader.py",
    "--n_labelled": "of the adversarial method: the labels of the source",
    "--schedule": "of a method without a step, which has no learning rate",
    "--lr_rule legacy": "of a method without a step, which has no learning rate",
}
# what tells the truth: it may differ
SCORES = ("best_3d.pkl", "3dbestepoch.txt", "best_epoch_3d/*", "val_dice.npy", "tra_dice.npy", "val_gt_sizes.npy")
SCORES += (*PATIENTS.values(), "classes_*.csv", ".lock", COST, ".made")  # the last lists the files of scores too
SCORE_COLUMNS = r"(tra|val)_dice.*|val_gt_size_mean|val_(hd95|assd|masd)_.*|val_m?iou.*|seconds"
OF_KNOWN_PIXELS = r"|val_size_mean"  # with --ignore beside the true sizes, hence of the same pixels
ON_LABELS = r"|val_loss_.*"  # of a loss that compares with ground truth


def kinds(method: str) -> set[str]:
    """What REFUSED may call a method."""
    named = {"learns": bool(METHODS[method].streams), "pre-training": not METHODS[method].segments}
    return {method} | {name for name, is_so in named.items() if is_so}


def refusal(method: str, words: str) -> str | None:
    return next((said for (whose, what), said in REFUSED.items() if what == words and whose in kinds(method)), None)


def tried(method: str) -> list[str]:
    """The flags of each run of a method."""
    refused = [words for _, words in REFUSED if refusal(method, words)]
    return list(dict.fromkeys([*RUNS.values(), *OWN.get(method, ()), *refused]))


RULES = next(action.choices for action in get_parser()._actions if action.dest == "lr_rule")
TRIED = [(method, words) for method in BLIND for words in tried(method)]
NAMES = {words: name for name, words in RUNS.items()}

# ------------------------------------------------------------------------------------- the data


def labels_of(truth: np.ndarray, variant: str, ignores: bool, rng: np.random.Generator) -> np.ndarray | None:
    """The label map of a variant, None where there is none; `ignores`: some of its pixels are to be ignored."""
    if variant == "absent":
        return None
    if (
        variant == "at random"
    ):  # a slice of these may be empty, nearly empty or nearly full: what samples by class sees it
        label = rng.random(truth.shape) < rng.choice([0, 0.2, 0.8])
        return np.where(ignores & (rng.random(truth.shape) < 0.3), IGNORED, label).astype(np.uint8)
    label = truth * (variant == "as they are")
    if ignores and variant == "as they are":
        label[: len(label) // 2] = IGNORED
    return label.astype(np.uint8)


def write_site(root: Path, variant: str, *, ignores: bool = False, grey: float = 150, axes: int = 2) -> Path:
    """Images with a bright block, the same whatever the labels: 9 slices to train on, 4 to validate, 2 to test."""
    images, others = np.random.default_rng(0), np.random.default_rng(1)
    for case in range(6):
        split = {3: "val", 4: "val", 5: "test"}.get(case, "train")
        for index in range((3 if split == "train" else 2) if axes == 2 else 1):
            shape = SIZE if axes == 2 else CUBE
            truth = np.zeros(shape, int)
            lows = images.integers(0, 4, axes).tolist()
            truth[tuple(slice(low, low + n // 2) for low, n in zip(lows, shape, strict=True))] = 1
            image = np.where(truth, grey, 80) + images.normal(0, 20, shape)
            label = labels_of(truth, variant, ignores, others)
            for folder, array in (("IMG", image.clip(0, 255).astype(np.uint8)), ("GT", label)):
                if array is not None:
                    path = root / split / folder / f"Case{case:02d}_{index}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if axes == 2:
                        Image.fromarray(array).save(f"{path}.png")
                    else:
                        np.save(f"{path}.npy", array)
    (root / "dataset.json").write_text(json.dumps({"name": "target", "split_unit": "patient"}))
    return root


def folders(losses: int, axes: int, labelled: bool) -> str:
    image, label = ("png_transform", "gt_transform") if axes == 2 else ("nii_transform", "nii_gt_transform")
    truth = [f"('GT', {label}, False)"] * (1 + losses) if labelled else []
    return "[" + ", ".join([f"('IMG', {image}, False)", *truth]) + "]"


class Sites:
    """The target in its variants, a source, a prior that knows nothing of the target, and networks to start from."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prior = root / "prior.csv"
        names = [f"Case{case:02d}_{index}" for case in range(6) for index in range(3)]
        rows = [f'{name},"[200, 56]"' for name in names]
        self.prior.write_text("\n".join(["val_ids,p", *rows]) + "\n")
        self.source = write_site(root / "source", "as they are", grey=200)
        self.cubes = write_site(root / "cubes", "as they are", grey=200, axes=3)
        self.nets = {
            "NET": self.trained("Dimwit:nG=3", self.source),
            "UNET": self.trained("UNet:nG=2", self.source),
            "CUBES": self.trained("UNet3D:width=2,depth=1", self.cubes, "--crop", *map(str, CUBE)),
        }

    def trained(self, network: str, site: Path, *more: str) -> Path:
        run = self.root / network.partition(":")[0]
        argv = ["--target_dataset", str(site), "--workdir", str(run), "--network", network, "--n_epoch", "1", *more]
        argv += ["--target_folders", folders(1, 3 if more else 2, True), "--target_losses", f"[{LOSS}]", "--cpu"]
        program.main([*argv, "--n_class", "2", "--grp_regex", r"(Case\d+)_(\d+)", "--l_rate", "1e-2"])
        return run / "last.pkl"

    def target(self, variant: str, ignores: bool, axes: int) -> Path:
        path = self.root / f"target {variant}{' ignoring' * ignores}{' cubes' * (axes == 3)}"
        return path if path.exists() else write_site(path, variant, ignores=ignores, axes=axes)

    def argv(self, method: str, words: str, variant: str, run: Path) -> list[str]:
        losses, flags = BASE[method]
        losses = [*losses, ENTROPY] if losses and words in [RUNS[name] for name in TWO_LOSSES] else losses
        losses = [ENTROPY if words in [RUNS[name] for name in FREE] and loss == SIZED else loss for loss in losses]
        axes, own = 3 if "--crop" in words else 2, folders(len(losses), 3 if "--crop" in words else 2, True)
        here = folders(len(losses), axes, variant != "absent")
        told = "--target_losses " + shlex.quote("[" + ", ".join(losses) + "]") if losses else ""
        source = self.source if axes == 2 else self.cubes
        text = f"{told} {flags} {words}".replace("FOLDERS_OF_SOURCE", shlex.quote(own))
        text = text.replace("FOLDERS", shlex.quote(here)).replace("PRIOR", str(self.prior))
        text = text.replace("SOURCE", str(source)).replace("UNET", str(self.nets["UNET"]))
        text = text.replace(" NET ", f" {self.nets['CUBES' if axes == 3 else 'NET']} ")
        data = ["--target_dataset", str(self.target(variant, "--ignore" in words, axes)), "--target_folders", here]
        start = ["--workdir", str(run), "--method", method, "--n_class", "2", "--grp_regex", r"(Case\d+)_(\d+)"]
        usual = ["--n_epoch", "2", "--l_rate", "1e-2", "--batch_size", "4"]
        return [*data, *start, *usual, *shlex.split(text)]


@functools.cache
def content_of(start: Path) -> bytes:
    """The bytes of a checkpoint that main.py reads without complaint."""
    load_checkpoint(start)
    return start.read_bytes()


def read_again(start: Path, bare: bool) -> dict[str, Any]:
    """What main.py reads of the network to start from, anew each time: nine hundred runs start from three networks."""
    return torch.load(io.BytesIO(content_of(start)), weights_only=False)  # one of ours, and three times as fast


@pytest.fixture(scope="module", autouse=True)
def chosen_here():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "run_alone", lambda function, *args: function(*args))
        patch.setattr(program, "load_checkpoint", read_again)
        yield


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    return Sites(tmp_path_factory.mktemp("sites"))


# ------------------------------------------------------------------------------------- what a run gave


def made(argv: list[str], run: Path) -> dict[str, Any]:
    """What is there after a run, by name, without what tells the truth, the clock, and where things lie."""
    out, err = io.StringIO(), io.StringIO()
    found: dict[str, Any] = {"ends with": None}
    tell_once.cache_clear()  # each run says what it has to say
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            program.main(argv)
        except UserError as error:
            found["ends with"] = str(error)
        finally:
            torch.use_deterministic_algorithms(False)
    lines = [line for line in out.getvalue().splitlines() if not re.match(r"epoch |    val_|train |val ", line)]
    alarms = [line for line in err.getvalue().splitlines() if not line.startswith("This adaptation did harm")]
    found |= {"said": lines, "alarms": "\n".join(alarms)}
    scores = SCORE_COLUMNS + OF_KNOWN_PIXELS * ("--ignore" in argv) + ON_LABELS * any(LOSS in word for word in argv)
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        is_score = any(fnmatch(name, each) for each in SCORES) or (name == "val_sizes.npy" and "--ignore" in argv)
        if path.is_file() and not is_score:
            found[name] = content(path, scores)
    where = [str(run), argv[argv.index("--target_dataset") + 1]]
    return {name: re.sub("|".join(map(re.escape, where)), "HERE", v) if isinstance(v, str) else v
            for name, v in found.items()}  # fmt: skip


def content(path: Path, scores: str) -> Any:
    if path.suffix == ".csv":
        table = pd.read_csv(path, dtype=str)
        return {name: table[name].tolist() for name in table if not re.fullmatch(scores, name)}
    if path.suffix == ".pkl":
        state = torch.load(path, weights_only=False)  # one of ours, and three times as fast
        return bits({k: v for k, v in state.items() if k not in ("identity", "best", "preprocessing")})
    if path.name == "provenance.json":
        told = json.loads(path.read_text())
        return {name: told[name] for name in ("supervision", "oracle", "uses_labels", "method", "training_volumes")}
    if path.name == "params.txt":
        lines = path.read_text().splitlines()
        return [line for line in lines if not line.startswith(("target_", "val_target_", "workdir"))]
    return path.read_bytes()


def differences(first: Any, second: Any, blind: bool, where: str = "") -> list[str]:
    """What two of them have not in common; `blind`: the second had no labels, and has its own columns."""
    if isinstance(first, dict) and isinstance(second, dict):
        shared = [key for key in first if key in second]
        lost = [] if blind else [f"{where}{key} is in one alone" for key in sorted(set(first) ^ set(second), key=str)]
        return lost + [d for key in shared for d in differences(first[key], second[key], blind, f"{where}{key}: ")]
    return [] if first == second else [f"{where.removesuffix(': ')} differs"]


@pytest.mark.parametrize(("method", "words"), TRIED, ids=lambda value: NAMES.get(value, value))
def test_a_run_is_the_same_whatever_the_target_s_labels_say(sites, tmp_path, method, words):
    found = {}
    for variant in VARIANTS:
        run = tmp_path / variant.replace(" ", "_")
        found[variant] = made(sites.argv(method, words, variant, run), run)
    for variant in VARIANTS[1:]:
        assert differences(found[VARIANTS[0]], found[variant], variant == "absent") == [], variant
    told = found[VARIANTS[0]]["ends with"]
    if said := refusal(method, words):
        assert re.search(said, told or "nothing was said")
        return
    if told and "--on_collapse stop" in words and told.startswith("Alarm in epoch 1:"):
        assert "last.pkl" not in found[VARIANTS[0]]
        return
    assert told is None or ("--on_collapse stop" in words and told.startswith("Alarm in epoch 2:"))
    assert {"last.pkl", "params.txt", "provenance.json"} <= set(found[VARIANTS[0]])
    kept = {name for name in found[VARIANTS[0]] if name.startswith(CANDIDATES)}
    assert kept == ({candidate_name(0)} if "--keep_every" in words else set())
    chosen = {CHOSEN, f"{SELECTION}.csv", f"{SELECTION}.txt"} & set(found[VARIANTS[0]])
    assert len(chosen) == (3 if kept else 0)
    tells = METHODS[method].segments and "--decode dice" not in words and not told
    assert (EXPECTED in found[VARIANTS[0]]) == tells
    if "makeim" not in words and METHODS[method].streams:
        learnt = load_checkpoint(tmp_path / "as_they_are" / "last.pkl")
        assert learnt["epoch"] == (2 if "--n_epoch 3" in words else 1) or told


# ------------------------------------------------------------------------------------- nothing is left out


def choices(action: Action) -> list[str]:
    """A flag, or each of its values where it has a choice, as a run would type it; the default is in "plain"."""
    name = max(action.option_strings, key=len)
    if not action.choices or action.nargs:
        return [name]
    return [f"{name} {value}" for value in action.choices if value != action.default]


def is_tried(typed: str, action: Action, words: list[str]) -> bool:
    _, *value = typed.split()
    places = [at for at, word in enumerate(words, 1) if word in action.option_strings]
    return any(not value or words[at : at + 1] == value for at in places)


@pytest.mark.parametrize("method", BLIND)
def test_every_flag_is_tried(method):
    """A new flag, or a new value of one, belongs into RUNS (OWN, if a method has it), REFUSED, or EXEMPT, and why."""
    parser = get_parser()
    add_flags(parser.add_argument_group(method), METHODS[method].Settings)
    usual = "--target_dataset --target_folders --workdir --method --n_class --grp_regex --n_epoch --l_rate --batch_size"
    words = f"{usual} {BASE[method][1]} --target_losses".split()
    for each in tried(method):
        words += ["|", *shlex.split(each)]
    left = [
        typed
        for action in parser._actions
        for typed in choices(action)
        if not is_tried(typed, action, words) and typed not in EXEMPT and typed.split()[0] not in EXEMPT
    ]
    assert left == []


def test_every_method_without_the_target_s_labels_is_tried_with_each_of_its_augmentations():
    assert set(BASE) == set(BLIND)
    assert set(LARGEST) <= set(WARPS | GREYS | {"clip": 3}) | {"label_curves", "label_gin"}  # BY_LABELS


@pytest.mark.parametrize("method", [name for name in BLIND if METHODS[name].streams])
@pytest.mark.parametrize("rule", RULES)
def test_what_was_the_best_epoch_moves_no_rate(sites, method, rule):
    """Sixty epochs without a step: the best epoch, which labels tell, was always the first, or always the last."""
    try:
        args = get_args(sites.argv(method, f"--lr_rule {rule} --n_epoch 60", "absent", Path("unused")))
    except UserError:
        assert refusal(method, f"--lr_rule {rule}")
        return
    rates = []
    for last_is_best in (False, True):
        loss = program.build_objective(args)
        learner = program.build_method(args, loss, 1)
        rates.append([])
        for epoch in range(args.n_epoch):
            learner.begin_epoch(epoch)
            rates[-1].append(learner.moving())
            learner.rates.end_epoch(epoch, epoch * last_is_best)
    assert rates[0] == rates[1]


def test_what_the_scores_say_moves_no_long_run(sites, tmp_path, monkeypatch):
    """Thirty epochs whose score only rises, or only falls: what waits for it, such as an early stop, would show."""
    learnt = []
    for name, sign in (("rising", 1), ("falling", -1)):
        told = itertools.count()
        monkeypatch.setattr(Evaluation, "score", lambda *_, sign=sign, told=told: 0.5 + sign * next(told) / 1000)
        program.main(sites.argv("sfda", "--steps 1 --n_epoch 30", "as they are", tmp_path / name))
        state = load_checkpoint(tmp_path / name / "last.pkl")
        learnt.append(bits({key: state[key] for key in ("epoch", "net", "method")}))
    assert learnt[0] == learnt[1]


def test_the_variants_have_other_labels_and_the_scores_see_them(sites, tmp_path):
    """Else the runs above would be alike for a reason that proves nothing."""
    scores = []
    for variant in VARIANTS[:3]:
        program.main(sites.argv("noadap", "", variant, tmp_path / variant))
        scores.append((tmp_path / variant / "patients_last.csv").read_text())
    assert len(set(scores)) == 3
