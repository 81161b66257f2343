"""The only training entry: builds network, losses, bounds and method from the flags, fits, evaluates, records.

    python main.py --target_dataset data/spine_mr --workdir results/spine/sfda --method sfda --target_losses "[…]" …

It names no method, loss or data set: those come by name from METHODS, LOSSES, BOUNDS, NETWORKS and TRANSFORMS.
"""

import hashlib
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from arguments import get_args
from augmentation import Augmentation
from bounds import BOUNDS
from compilation import try_to_compile
from dataloader import SliceSet, Stream, check_patients, join, lay_bounds, open_slices, parse_folders, place
from distributed import ALONE, Team, join_team, leave_team
from folder_lock import locked
from interrupt import STOP, Interrupted
from losses import LossSum, build_loss, check_company, check_folders, check_ignore, parse_losses
from methods import METHODS, Method
from networks import build_network
from recorder import Recorder
from run_folder import RunFolder, load_weights, sha256_of
from schedules import read_params
from training import Training
from utils import UserError, derived_seed, run_program, seed_everything

DEBUG_SLICES = 10


# ---------------------------------------------------------------------------------------------------- build


def build_losses(args: Namespace) -> tuple[LossSum, list[Any]]:
    """The weighted sum of the listed losses, and the bound of each, or None."""
    specs = parse_losses(args.target_losses)
    bounds = [spec.bounds and BOUNDS.build(spec.bounds, args.n_class, **spec.bounds_params) for spec in specs]
    losses, params = [build_loss(spec) for spec in specs], read_params(args.scheduler_params)
    check_company(losses, args.n_class)
    check_ignore(losses, args.ignore)
    for text in (args.target_folders, args.val_target_folders, args.source_folders):
        folders = parse_folders(text or args.target_folders, len(losses))
        check_folders(losses, [folder.is_map for folder in folders[2:]])
    return LossSum(losses, [spec.weight for spec in specs], args.scheduler, **params), bounds


def build_method(args: Namespace, loss: LossSum, in_channels: int, load: bool = True, team: Team = ALONE) -> Method:
    """The method around its network, the network filled from --model_weights."""
    seed_everything(args.seed)
    net = build_network(args.network, in_channels, args.n_class)
    if args.backbone_weights and load:
        net.load_backbone(Path(args.backbone_weights))
    if args.model_weights and load:
        load_weights(net, Path(args.model_weights), args, in_channels)
    net.to(args.device)
    if args.channels_last:
        net.to(memory_format=torch.channels_last)
    return METHODS[args.method](team.synchronise(net), loss, args, team)


def open_data(args: Namespace, bounds: Sequence[Any], team: Team = ALONE) -> tuple[dict[str, Stream], Stream]:
    """The streams that the method consumes, and the one that evaluation goes through."""
    method, device = METHODS[args.method], torch.device(args.device)
    texts = {"val": args.val_target_folders, "target": args.target_folders, "source": args.source_folders}
    folders = {name: parse_folders(text or args.target_folders, len(bounds)) for name, text in texts.items()}
    check_patients(args.target_dataset, folders["target"][0].folder, args.grp_regex)

    def read(name: str, split: str) -> SliceSet:
        root, regex = args.target_dataset, args.grp_regex
        if name == "source":
            root, regex = args.source_dataset, args.source_regex or regex
        limit, wide = DEBUG_SLICES if args.debug else None, name == "val" and args.scores == "iou"
        return open_slices(
            root, split, folders[name], args.n_class, regex, limit, ignore=args.ignore, any_truth_size=wide
        )

    val_split = "test" if args.ontest else "train" if args.ontrain else "val"
    sets = {"val": lay_bounds(read("val", val_split), bounds, required=False)}
    splits = ["train", "val"] if args.trainval else ["val"] if args.valonly else ["train"]
    for name in method.streams if args.mode == "learn" else ():
        parts = [read(name, split) for split in (splits if name == "target" else ["train"])]
        sets[name] = lay_bounds(join(parts), bounds)
    check_channels(sets, args.modalities)

    sets = place(sets, args.cache, device, team.world)
    val = Stream(sets.pop("val"), args.batch_size, device, shuffle=False, team=team, workers=args.workers)
    augmentation = Augmentation.read(args.augmentation) if args.augment else None
    streams = {
        name: Stream(
            slices,
            args.batch_size,
            device,
            derived_seed(args.seed, number),
            augmentation=augmentation,
            with_targets=name in method.labelled,
            team=team,
            workers=args.workers,
        )
        for number, (name, slices) in enumerate(sets.items())
    }
    return streams, val


def check_channels(sets: Mapping[str, SliceSet], wanted: int) -> None:
    """Raises UserError for images of another number of channels than --modalities, or than those of another set."""
    found = {name: slices.shape[0] for name, slices in sets.items()}
    if len({*found.values(), wanted or found["val"]}) > 1:
        told = ", ".join(f"{count} in {sets[name].root}/{sets[name].split}" for name, count in found.items())
        asked = f"--modalities {wanted}" if wanted else "one number of channels"
        raise UserError(f"Expected images of {asked}, found {told}; slice them anew with the same --image volumes.")


def describe_inputs(args: Namespace, streams: dict[str, Stream], val: Stream) -> dict[str, str]:
    """SHA-256 of everything that the run reads: what makes it this run and no other."""
    inputs = {"val": val.slices.digest} | {name: stream.slices.digest for name, stream in streams.items()}
    for name, stream in streams.items():
        laid = b"".join(bound.tobytes() for bound in stream.slices.bounds if bound is not None)
        inputs |= {f"bounds of {name}": hashlib.sha256(laid).hexdigest()} if laid else {}
    for name in ("model_weights", "backbone_weights"):
        if getattr(args, name):
            inputs[name] = sha256_of(Path(getattr(args, name)))
    return inputs


# ----------------------------------------------------------------------------------------------------- main


def set_up_machine(args: Namespace) -> None:
    """Precision and determinism of the device."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.precision == "tf32"
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def check(args: Namespace, loss: LossSum) -> str:
    """Builds everything that needs no data; one line about it."""
    method = build_method(args, loss, in_channels=args.modalities or 1, load=False)
    weights = sum(parameter.numel() for parameter in method.net.parameters())
    return f"{args.workdir}: {args.method}, {args.network} ({weights} parameters), {', '.join(loss.columns[1:])}: fine"


def train(args: Namespace, loss: LossSum, bounds: Sequence[Any], team: Team) -> None:
    """One run, from the data to the scores; nothing is written before everything it needs was found sound."""
    streams, val = open_data(args, bounds, team)
    method = build_method(args, loss, val.slices.shape[0], team=team)
    inputs = describe_inputs(args, streams, val)
    with locked(args.workdir) if team.leads else nullcontext():
        folder, record = RunFolder(args.workdir, args, inputs), None
        if team.leads:
            folder.begin()
            record = Recorder(folder, method, val.slices, streams, args)
            record.start(bounds, inputs)
        if args.compile and streams:
            try_to_compile(method, next(iter(streams.values())))
        Training(method, streams, val, folder, record, args).run()
        team.wait()


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    set_up_machine(args)
    loss, bounds = build_losses(args)
    if args.check:
        print(check(args, loss))
        return
    team, args.device = join_team(args.device)
    STOP.listen(team.leads)
    try:
        train(args, loss, bounds, team)
        leave_team(team)  # not after a fault: it would wait for processes that are gone
    except Interrupted as stopped:
        raise SystemExit(stopped.exit_code) from None
    finally:
        STOP.forget()


if __name__ == "__main__":
    run_program(main)
