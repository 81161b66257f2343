"""The only training entry: builds network, losses, bounds and method from the flags, fits, evaluates, records.

    python main.py --target_dataset data/spine_mr --workdir results/spine/sfda --method sfda --target_losses "[…]" …

It names no method, loss or data set: those come by name from METHODS, LOSSES, BOUNDS, NETWORKS and TRANSFORMS.
"""

import hashlib
import os
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from arguments import get_args
from bounds import BOUNDS
from dataloader import (
    Batch,
    SliceSet,
    Stream,
    check_patients,
    join,
    lay_bounds,
    open_slices,
    parse_folders,
)
from evaluation import class_counts, evaluate
from losses import LossSum, build_loss, parse_losses
from methods import METHODS, Method
from networks import build_network
from recorder import Recorder, epoch_line
from run_folder import RunFolder, load_weights, sha256_of
from utils import UserError, derived_seed, listing, run_program, seed_everything

DEBUG_SLICES = 10


# ---------------------------------------------------------------------------------------------------- build


def build_losses(args: Namespace) -> tuple[LossSum, list[Any]]:
    """The weighted sum of the listed losses, and the bound of each, or None."""
    specs = parse_losses(args.target_losses)
    bounds = [spec.bounds and BOUNDS.build(spec.bounds, args.n_class, **spec.bounds_params) for spec in specs]
    return LossSum([build_loss(spec) for spec in specs], [spec.weight for spec in specs]), bounds


def build_method(args: Namespace, loss: LossSum, in_channels: int, load: bool = True) -> Method:
    """The method around its network, the network filled from --model_weights."""
    seed_everything(args.seed)
    net = build_network(args.network, in_channels, args.n_class)
    if args.model_weights and load:
        load_weights(net, Path(args.model_weights), args.network, in_channels, args.n_class)
    net.to(args.device)
    if args.compile:
        net.compile()
    return METHODS[args.method](net, loss, args)


def open_data(args: Namespace, bounds: Sequence[Any]) -> tuple[dict[str, Stream], SliceSet]:
    """The streams that the method consumes, and the set that evaluation sees."""
    method = METHODS[args.method]
    roots = {"target": args.target_dataset, "source": args.source_dataset}
    folders = parse_folders(args.target_folders, len(bounds))
    val_folders = parse_folders(args.val_target_folders or args.target_folders, len(bounds))
    limit = DEBUG_SLICES if args.debug else None
    check_patients(args.target_dataset, folders[0].folder, args.grp_regex)

    val_split = "test" if args.ontest else "train" if args.ontrain else "val"
    val = open_slices(args.target_dataset, val_split, val_folders, args.n_class, args.grp_regex, limit)
    splits = ["train", "val"] if args.trainval else ["val"] if args.valonly else ["train"]
    streams = {}
    for number, name in enumerate(method.streams if args.mode == "learn" else ()):
        sets = [open_slices(roots[name], split, folders, args.n_class, args.grp_regex, limit) for split in splits]
        slices = lay_bounds(join(sets), bounds)
        seed = derived_seed(args.seed, number)
        device = torch.device(args.device)
        streams[name] = Stream(slices, args.batch_size, seed, device, bool(args.augment), method.sees_truth)
    return streams, lay_bounds(val, bounds, required=False)


# ------------------------------------------------------------------------------------------------------ fit


def endless(stream: Stream, epoch: int) -> Iterator[Batch]:
    """Batches without end: each pass is a new epoch of the stream, in an order of its own."""
    lap = 0
    while True:
        yield from stream.epoch(derived_seed(epoch, lap))
        lap += 1


def train_epoch(method: Method, streams: dict[str, Stream], epoch: int, args: Namespace) -> dict[str, np.ndarray]:
    """One pass over the first stream. Everything stays on the device until the pass is over.

    Returns "terms" (steps, terms), "sizes" (steps,) slices a step, and "counts" (3, slices, K) with "rows" (slices,).
    Raises UserError if a loss is not finite.
    """
    method.begin_epoch(epoch)
    first, *others = streams
    beside = {name: endless(streams[name], epoch) for name in others}
    truth = torch.from_numpy(streams[first].slices.truth)
    terms, counts, rows = [], [], []
    bar = tqdm(streams[first].epoch(epoch), f"epoch {epoch}", len(streams[first]), leave=False, disable=None)
    for batch in bar:
        values, logits = method.step({first: batch} | {name: next(stream) for name, stream in beside.items()})
        terms.append(torch.stack([values[name] for name in method.columns]))
        label = truth[batch.rows].to(logits.device, non_blocking=True)
        counts.append(class_counts(logits.argmax(1), label, args.n_class))
        rows.append(batch.rows)
    found = {
        "terms": torch.stack(terms).float().cpu().numpy(),
        "sizes": np.array([len(step) for step in rows]),
        "counts": torch.cat(counts, 1).cpu().numpy(),
        "rows": torch.cat(rows).numpy(),
    }
    _must_be_finite(found["terms"], rows, epoch, method, streams[first].slices)
    return found


def _must_be_finite(
    terms: np.ndarray, rows: Sequence[torch.Tensor], epoch: int, method: Method, slices: SliceSet
) -> None:
    bad = np.flatnonzero(~np.isfinite(terms).all(1))
    if len(bad):
        step = int(bad[0])
        values = [f"{name} {value:g}" for name, value in zip(method.columns, terms[step], strict=True)]
        raise UserError(
            f"The loss is not finite in epoch {epoch}, step {step}: {listing(values)}; slices "
            f"{listing([slices.names[row] for row in rows[step]])}. The checkpoint of the epoch before is whole; lower "
            "--l_rate, or look at these slices."
        )


def fit(method: Method, streams: dict[str, Stream], record: Recorder, args: Namespace) -> None:
    """The epochs that are not done yet, then the scores of the last and of the best network."""
    folder, val, in_channels = record.folder, record.val, record.val.image.shape[1]
    best = {"epoch": -1, "dice": -1.0}
    if folder.checkpoint:
        best = folder.checkpoint["best"]
        method.net.load_state_dict(folder.checkpoint["net"])
        method.load_state_dict(folder.checkpoint["method"])
        print(f"Going on after epoch {folder.done - 1}.")
    for epoch in range(folder.done, args.n_epoch):
        start = time.perf_counter()
        seed_everything(derived_seed(args.seed, epoch, 1))
        trained = train_epoch(method, streams, epoch, args) if streams else None
        found = evaluate(method.net, val, method.loss, args)
        row = record.epoch(epoch, trained, found, time.perf_counter() - start)
        state = describe_network(method.net, args, in_channels) | {"epoch": epoch}
        if best["epoch"] < 0 or row["val_dice_3d"] > best["dice"]:
            best = {"epoch": epoch, "dice": float(np.nan_to_num(row["val_dice_3d"], nan=-1.0))}
            folder.save("best_3d.pkl", state | {"best": best})
            folder.write_text("3dbestepoch.txt", [f"{epoch}, {best['dice']:.6f}"])
        folder.save("last.pkl", state | {"best": best, "method": method.state_dict()})
        print(epoch_line(row, best, args), flush=True)
    record.finish("last", evaluate(method.net, val, method.loss, args, keep_entropy=bool(args.entmap)))
    load_weights(method.net, folder.path / "best_3d.pkl", args.network, in_channels, args.n_class)
    record.finish("best_3d", evaluate(method.net, val, method.loss, args))


def describe_network(net: nn.Module, args: Namespace, in_channels: int) -> dict[str, Any]:
    """What it takes to build this network again, and its weights."""
    return {
        "network": args.network,
        "in_channels": in_channels,
        "n_class": args.n_class,
        "seed": args.seed,
        "net": net.state_dict(),
    }


# ----------------------------------------------------------------------------------------------------- main


def set_up_machine(args: Namespace) -> None:
    """Precision and determinism of the device."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.precision == "tf32"
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    set_up_machine(args)
    loss, bounds = build_losses(args)
    if args.check:
        parse_folders(args.target_folders, len(bounds))
        parse_folders(args.val_target_folders or args.target_folders, len(bounds))
        method = build_method(args, loss, in_channels=1, load=False)
        weights = sum(parameter.numel() for parameter in method.net.parameters())
        print(
            f"{args.workdir}: {args.method}, {args.network} ({weights} parameters), {', '.join(loss.columns[1:])}: fine"
        )
        return
    streams, val = open_data(args, bounds)
    method = build_method(args, loss, val.image.shape[1])
    inputs = {"val": val.digest} | {name: stream.slices.digest for name, stream in streams.items()}
    for name, stream in streams.items():
        laid = b"".join(bound.tobytes() for bound in stream.slices.bounds if bound is not None)
        inputs |= {f"bounds of {name}": hashlib.sha256(laid).hexdigest()} if laid else {}
    if args.model_weights:
        inputs["model_weights"] = sha256_of(Path(args.model_weights))
    folder = RunFolder(args.workdir, args, inputs)
    record = Recorder(folder, method, val, streams, args)
    record.start(bounds, inputs)
    fit(method, streams, record, args)


if __name__ == "__main__":
    run_program(main)
