"""The only training entry: builds network, losses, bounds and method from the flags, fits, evaluates, records.

    python main.py --target_dataset data/spine_mr --workdir results/spine/sfda --method sfda --target_losses "[…]" …

It names no method, loss or data set: those come by name from METHODS, LOSSES, BOUNDS, NETWORKS and TRANSFORMS.

Letters in shapes, here and everywhere: B is the images in a batch, C the channels, K the classes (background included),
N the slices or volumes in a set. W and H are the axes of a slice, D is that of a volume across its slices. W is the
first axis of an array of an image, H the second.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import math
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bounds import Bounds
from dataloader import AnyStream, Demand, Reading, describe_inputs, describe_preprocessing, label_uses, open_data
from datasets.augmentation import Augmentation
from datasets.class_places import warn_of_flips
from datasets.grey_matching import AUTO, SHARE, SourceLevels, levels_to_match
from datasets.transforms import parse_folders
from engine.arguments import get_args
from engine.begun import begun_with
from engine.compilation import try_to_compile
from engine.cost import Meter
from engine.expectation import Expectation
from engine.loop import Looping, Training
from engine.published import as_published
from engine.recorder import Recorder, Recording
from engine.run_folder import RunFolder
from engine.source_bundle import SourceBundle, handed_on, writes_bundle
from engine.watching import Watch
from methods.base import METHODS, Method
from methods.objective import LossSum, check_finite
from methods.schedules import read_params
from methods.settings import Settings
from methods.terms import (
    build_term,
    check_classes,
    check_company,
    check_folders,
    check_ignore,
    check_sizes,
    parse_losses,
)
from nets.base import check_batch_norms
from nets.bundle import read_bundle
from nets.checkpoint_files import load_checkpoint
from nets.filling import load_blocks, load_weights
from nets.norm_mixing import mixes_norms, mixing
from nets.precision import set_up_machine
from networks import build_network, network_class
from processes.alone import run_alone
from processes.errors import UserError
from processes.interrupt import STOP, Interrupted
from processes.lock import locked
from processes.ownership import RUN, RUN_FILES, refuse_taken
from processes.team import ALONE, Team, join_team, leave_team
from selection.choosing import choose_epoch
from selection.labelled import Selecting, patients_who_choose
from selection.looks import find_look
from utils import run_program, seed_everything, settings_of

# ---------------------------------------------------------------------------------------------------- build


def build_objective(args: Namespace) -> LossSum:
    """The weighted sum of the listed losses, with their bounds.

    A pre-training has a loss of its own, so its sum is empty.
    """
    specs = parse_losses(args.target_losses) if METHODS[args.method].segments else []
    terms = [build_term(as_published(spec, args.published), args.n_class) for spec in specs]
    losses, params = [term.loss for term in terms], read_params(args.scheduler_params)
    check_classes(losses, args.n_class)
    check_company(losses, args.n_class)
    check_ignore(losses, args.ignore)
    learns = args.mode == "learn" and METHODS[args.method].streams
    check_sizes(terms, Augmentation.read(args.augmentation).resizing if args.augment and learns else [])
    for text in (args.target_folders, args.val_target_folders, args.source_folders) if losses else ():
        folders = parse_folders(text or args.target_folders, len(losses))
        if len(folders) > 1:
            check_folders(losses, [folder.is_map for folder in folders[2:]])
    loss = LossSum(terms, args.scheduler, **params)
    check_finite(loss, args.n_class, args.n_epoch)
    return loss


def build_method(
    args: Namespace, loss: LossSum, in_channels: int, start: Mapping[str, Any] | None = None, team: Team = ALONE
) -> Method:
    """Builds the method around its network, and fills the network from --model_weights.

    start: what their file holds (`read_start`); None leaves the network random, without its backbone's weights too
    """
    seed_everything(args.seed)
    net = build_network(args.network, in_channels, args.n_class)
    if args.backbone_weights and start is not None:
        net.load_backbone(Path(args.backbone_weights))
    if start:
        fill(net, start, args, in_channels, team.leads)
    net.to(args.device)
    if args.channels_last:
        net.to(memory_format=torch.channels_last_3d if net.axes == 3 else torch.channels_last)
    kind = METHODS[args.method]
    return kind(team.synchronise(net), loss, settings_of(kind.Settings, vars(args)), team)


def demand_of(args: Namespace) -> Demand:
    """What the run wants of the data: what its method wants, and no stream where nothing is to be learnt."""
    kind = METHODS[args.method]
    demand = kind.demand(settings_of(kind.Settings, vars(args)))
    return demand if args.mode == "learn" else replace(demand, streams={})


def read_start(args: Namespace) -> dict[str, Any]:
    """What the file of --model_weights holds; nothing where there is none."""
    return load_checkpoint(Path(args.model_weights), bare=True) if args.model_weights else {}


def fill(net: nn.Module, start: Mapping[str, Any], args: Namespace, in_channels: int, tell: bool) -> None:
    """Fills the network from --model_weights, read as `start`: all of it, or what --load_blocks says."""
    path = Path(args.model_weights)
    if args.load_blocks is None:
        load_weights(net, path, args.network, in_channels, args.n_class, start)
        return
    parts = load_blocks(net, path, args.load_blocks, in_channels, start)
    if tell:
        print(f"{path}: loaded {', '.join(parts['loaded'])}; left random {', '.join(parts['left'])}.", flush=True)


def as_used(args: Namespace, start: Mapping[str, Any]) -> SourceLevels | None:
    """What the images are matched to (--match_source): the grey levels that the network of --model_weights knows.

    What the flags do not say is as that network was used: this, and --bn_mix, which --network then tells.
    """
    if not start or args.load_blocks is not None:
        return None
    if args.bn_mix is None and mixes_norms(start.get("network", "")):
        args.network = mixing(args.network, True)
    return levels_to_match(start, args.match_source)


def check_axes(args: Namespace) -> None:
    """Raises UserError for a network of volumes on slices, or the reverse."""
    axes = network_class(args.network).axes
    if axes != (3 if args.crop else 2):
        kinds = {2: "slices (W, H)", 3: "volumes (D, W, H), of which --crop D W H gives the size of the crops"}
        raise UserError(
            f"--network {args.network} is made for {kinds[axes]}; this run reads {kinds[5 - axes]}. Give "
            f"{'another network, or leave --crop out' if args.crop else '--crop D W H, or another network'}."
        )


def check_batches(method: Method, streams: Mapping[str, AnyStream]) -> None:
    """Raises UserError where the smallest batch of an epoch is too small for the network."""
    if not streams:
        return
    rows = {name: min(map(len, stream.sampler(torch.Generator()))) for name, stream in streams.items()}
    method.set_modes()
    shape = next(iter(streams.values())).slices.shape
    check_batch_norms(method.module, (method.images_at_once(rows), *shape))


def warn_of_augmentation(streams: Mapping[str, AnyStream], args: Namespace, team: Team) -> None:
    """Warns of a flip that swaps classes which differ only by their side, if a step may look at the labels."""
    for name in METHODS[args.method].labelled if args.augment and team.leads else ():
        if name in streams:
            warning = warn_of_flips(streams[name].slices, Augmentation.read(args.augmentation), args.n_class)
            print(warning, end="\n" * bool(warning), file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------- main


def check(args: Namespace, loss: LossSum) -> str:
    """Builds everything that needs no data, and returns one line about it."""
    method = build_method(args, loss, in_channels=args.modalities or 1)
    if args.load_blocks is not None:
        method.net.parts(args.load_blocks)
    weights = sum(parameter.numel() for parameter in method.net.parameters())
    terms = ", ".join(method.columns[1:])
    return f"{args.workdir}: {args.method}, {args.network} ({weights} parameters), {terms}: fine"


def choose(args: Namespace, priors: Sequence[Bounds | None]) -> str:
    """Chooses one of the copies that a run kept, and says why; in a process of its own.

    That opens no ground truth, or with --select_with that of these few patients alone.
    """
    set_up_machine(args.precision, args.deterministic)
    reading, settings = settings_of(Reading, vars(args)), settings_of(Settings, vars(args))
    return choose_epoch(args.workdir, reading, settings, args.network, priors, settings_of(Selecting, vars(args)))


def have_chosen(args: Namespace, loss: LossSum) -> str:
    """Starts that process."""
    torch.cuda.empty_cache()  # what the epochs needed, the process may have
    return run_alone(choose, args, priors_of(loss))


def priors_of(loss: LossSum) -> list[Bounds | None]:
    """What the losses that compare ratios are told, which is no ground truth."""
    bounds = zip(loss.losses, loss.bounds, strict=True)
    return [bound if part.compares_ratios else None for part, bound in bounds]


def look(args: Namespace, priors: Sequence[Bounds | None]) -> tuple[float, str]:
    """The share by which the target's images are matched, and why; in a process of its own, which opens no labels.

    The network is asked as it is, without --bn_mix, which would cost six times as much.
    """
    set_up_machine(args.precision, args.deterministic)
    reading, settings = settings_of(Reading, vars(args)), settings_of(Settings, vars(args))
    return find_look(Path(args.model_weights), reading, settings, mixing(args.network, False), priors)


def settle_look(args: Namespace, loss: LossSum, team: Team) -> None:
    """Puts the share that is found without labels in the place of --match_source auto; a run that goes on has it."""
    if args.match_source != AUTO:
        return
    share: float | None = None
    if team.leads:
        begun = begun_with(args.workdir) if args.resume else None
        if begun is not None:
            share = begun.get(SHARE)
        else:
            share, why = run_alone(look, args, priors_of(loss))
            print(why, flush=True)
    heard = team.heard(math.nan if share is None else share, args.device)
    args.match_source = None if math.isnan(heard) else heard


def train(args: Namespace, loss: LossSum, team: Team) -> None:
    """Trains one run, from the data to the scores. Writes nothing before everything it needs was found in order."""
    meter = Meter(args.device, team.world)
    settle_look(args, loss, team)
    start = read_start(args)
    demand, reading, levels = demand_of(args), settings_of(Reading, vars(args)), as_used(args, start)
    streams, val = open_data(demand, reading, loss.bounds, team, levels)
    in_channels = (val or next(iter(streams.values()))).slices.shape[0]
    method = build_method(args, loss, in_channels, start, team)
    check_batches(method, streams)
    warn_of_augmentation(streams, args, team)
    weights = {name: getattr(args, name) for name in ("model_weights", "backbone_weights")}
    inputs = describe_inputs(weights, streams, val)
    starts_whole = bool(args.model_weights) and args.load_blocks is None
    handed = handed_on(start, starts_whole)
    del start  # a second copy of the weights
    selecting = settings_of(Selecting, vars(args))
    choosers = patients_who_choose(reading, selecting) if args.select_with and team.leads else ()
    if team.leads and (idle := team.idle(args.batch_size)):
        print(
            f"{team.world} processes share batches of {args.batch_size} images: {idle} of them have nothing to do. "
            "Start fewer (NPROC), or give a larger --batch_size.",
            flush=True,
        )
    with locked(args.workdir) if team.leads else nullcontext():
        folder, record = RunFolder(args.workdir, vars(args), inputs), None
        watch = Watch(method, streams, val, whole=starts_whole)
        if team.leads:
            folder.begin()
            recording = settings_of(Recording, vars(args))
            record = Recorder(folder, method, val and val.slices, streams, recording, watch.is_on, meter)
            record.start(inputs, label_uses(demand, reading), choosers, handed.get("labelled", ()))
        if args.compile and streams and method.segments:
            try_to_compile(method, next(iter(streams.values())))
        looping, beside = settings_of(Looping, vars(args)), {"preprocessing": describe_preprocessing(reading, levels)}
        beside |= handed
        measures = team.leads and writes_bundle(method, streams, starts_whole)
        source = SourceBundle(method, streams["target"].slices, val, looping) if measures else None
        chooser = partial(have_chosen, args, loss)
        expectation = None
        if team.leads and starts_whole and val:
            bundle = read_bundle(beside | {"n_class": args.n_class, "in_channels": in_channels})
            expectation = Expectation(method, folder, reading, bundle, levels)
        Training(method, streams, val, watch, folder, record, looping, beside, chooser, source, expectation).run()
        team.wait()


def main(argv: Sequence[str] | None = None) -> None:
    run(get_args(argv))


def run(args: Namespace) -> None:
    """Trains the run of these arguments; with --check, builds what needs no data and says so."""
    set_up_machine(args.precision, args.deterministic)
    check_axes(args)
    loss = build_objective(args)
    if args.check:
        print(check(args, loss))
        return
    refuse_taken(args.workdir, RUN, "--workdir", *RUN_FILES)
    team, args.device = join_team(args.device)
    STOP.listen(team.leads)
    try:
        train(args, loss, team)
        leave_team(team)  # not after a fault: it would wait for processes that are gone
    except Interrupted as stopped:
        raise SystemExit(stopped.exit_code) from None
    finally:
        STOP.forget()


if __name__ == "__main__":
    run_program(main)
