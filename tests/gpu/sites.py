"""Every method, and every loss, on the tests' small sites, built as main.py builds them, on any device."""

from argparse import Namespace
from pathlib import Path

from dataloader import AnyStream, Reading, open_data
from engine.arguments import get_args
from losses import LOSSES
from main import build_method, build_objective, demand_of
from methods.base import METHODS, Method
from tests.conftest import CROSS_ENTROPY, FOLDERS, write_site
from tests.gpu.checks import Place
from utils import settings_of

ENTROPY = "[('SelfEntropy', {}, 1)]"
UNIFORM = "[('EntKLProp', {}, 'ConstantBounds', {'values': [400, 80]}, 'soft_size', 1)]"
BOUNDS = "'ConstantBounds', {'values': [400, 80]}, 'norm_soft_size', 1"
LEARNING = [name for name in METHODS if METHODS[name].streams]


def write_sites(place: Place) -> tuple[Path, Path]:
    """(source, target), of 16 slices of 24x20 pixels each to learn from."""
    folder = place.folder / "sites"
    if not folder.exists():
        write_site(folder / "source", inside=200, outside=60, seed=1)
        write_site(folder / "target", inside=150, outside=90, seed=2)
    return folder / "source", folder / "target"


def losses_of(name: str) -> str:
    """Losses that a method can be tried with: those of images without labels where it learns from nothing else."""
    kind = METHODS[name]
    if kind is METHODS["online"]:
        return ENTROPY
    return CROSS_ENTROPY if kind.labelled or not issubclass(kind, METHODS["sfda"]) else UNIFORM


def line_of(place: Place, name: str, losses: str, *more: str) -> list[str]:
    """The command line of a method; the network is a tiny one in the dry form."""
    kind, (source, target) = METHODS[name], write_sites(place)
    # a pre-training wants an encoder, which the tiniest network has not
    network = "Dimwit" if place.dry and kind.segments else "UNet:nG=4"
    folders = FOLDERS
    if any(LOSSES[loss].needs_maps and f"'{LOSSES[loss].__name__}'" in losses for loss in LOSSES):
        folders = FOLDERS.replace("('GT', gt_transform, False)]", "('GT', dist_map_transform, False)]")
    argv = ["--target_dataset", str(target), "--target_folders", folders, "--grp_regex", r"(Case\d+)_(\d+)"]
    argv += ["--workdir", str(place.folder / "unused"), "--n_class", "2", "--network", network, "--method", name]
    argv += ["--target_losses", losses, "--l_rate", "1e-4", *kind.example]
    argv += ["--model_weights", "given"] if kind.needs_weights else []
    argv += ["--source_dataset", str(source)] if "source" in kind.streams else []
    if "unlabelled" in kind.streams:
        argv += ["--unlabelled_dataset", str(source), "--unlabelled_split", "train", "--warmup_start", "0"]
    return [*argv, *more]


def build(
    place: Place, device: str, name: str, losses: str, *more: str
) -> tuple[Method, dict[str, AnyStream], Namespace]:
    """The method from random weights, which are the same on every device, and its streams."""
    args = get_args([*line_of(place, name, losses, *more), "--device", device])
    loss = build_objective(args)
    streams, _ = open_data(demand_of(args), settings_of(Reading, vars(args)), loss.bounds)
    method = build_method(args, loss, 1)
    method.meet(streams)
    method.begin_epoch(0)
    return method, streams, args


def loss_lines() -> dict[str, str]:
    """Every loss as a line says it, with the parameters that it gives as an example."""
    kinds = {LOSSES[name].__name__: LOSSES[name] for name in LOSSES}
    return {name: f"[('{name}', {kind.example}, {BOUNDS if kind.needs_bounds else 1})]" for name, kind in kinds.items()}
