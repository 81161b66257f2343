"""3D from the disk: peak memory on a set of volumes and on one of twice as many, and what a crop of a volume costs.

The volumes have the size and the layout of Task01 of the Medical Segmentation Decathlon (brain tumours, four MR
sequences); network, crop and batch are the published ones (brats.make). Making the set, training and evaluation have
a process each, whose peak is then theirs. All volumes are links to one, since only their number and size matter.
"""

import itertools
import multiprocessing
import os
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from dataloader import Reading, open_data
from datasets.streams import AHEAD, Batch
from datasets.volume_files import read_volume
from engine.arguments import get_args
from engine.cost import peak_memory
from engine.epoch import train_epoch
from engine.evaluation import Scoring, evaluate, score_patients_of
from main import build_method, build_objective, demand_of
from methods.base import Method
from nets.precision import set_up_machine
from preprocess.packing import VolumeSpec
from preprocess.volume_set import make_volume_set
from tests.benchmarks.table import Row, compare
from utils import settings_of

FOLDERS = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]"
HALVES = "[('DiceLoss', {'idc': [1], 'smooth': 1}, 0.5), ('CrossEntropy', {}, 0.5)]"
PATIENT = r"(BRATS_\d+)"
AXES = (2, 1, 0)  # stored axes that become D, W, H
CHANNELS = 4
LIMIT = 6  # GiB that making a set, training on it and evaluation stay below
STEPS = 4  # the memory in use grows no more after the second
WINDOWS = 4  # that the network sees in evaluation
MORE = 2  # times as many volumes
ROUNDS = 5  # of a crop, which takes milliseconds, for each of another comparison


@dataclass(frozen=True)
class Case:
    """The volumes, how many of them each split has, and the run on them."""

    size: tuple[int, int, int]  # as stored: W, H, D
    crop: tuple[int, int, int]
    network: str
    device: str = "cpu"
    train: int = 3
    val: int = AHEAD + 2  # more than are in memory at a time
    unlabelled: int = 2

    def enlarged(self) -> "Case":
        counts = {split: MORE * getattr(self, split) for split in ("train", "val", "unlabelled")}
        return replace(self, **counts)

    def __len__(self) -> int:
        return self.train + self.val + self.unlabelled

    @property
    def voxels(self) -> float:
        """MiB of all images, two bytes a voxel."""
        return len(self) * 2 * CHANNELS * np.prod(self.size) / 2**20


PUBLISHED = Case((240, 240, 155), (32, 128, 128), "UNet3D:width=10,depth=3,binary=True")
QUICK = Case((20, 18, 12), (8, 8, 8), "UNet3D:width=2,depth=1,binary=True")


# -------------------------------------------------------------------------------------------- volumes


def link_volumes(root: Path, case: Case) -> None:
    """imagesTr, labelsTr and imagesTs: int16 images (W, H, D, C), uint8 labels 0..3 (W, H, D), each links to one."""
    labelled = case.train + case.val
    every = range(labelled + case.unlabelled)
    parts = {"imagesTr": every[:labelled], "labelsTr": every[:labelled], "imagesTs": every[labelled:]}
    image, label = draw_volume(case.size)
    for part, numbers in parts.items():
        (root / part).mkdir(parents=True)
        first = root / "first.nii.gz"
        nib.save(nib.Nifti1Image(label if part == "labelsTr" else image, np.eye(4)), first)
        for number in numbers:
            os.link(first, root / part / f"BRATS_{number:03}.nii.gz")
        first.unlink()


def draw_volume(size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Smooth noise in an ellipsoid and nothing around it, as of a head without its skull; a tumour of three shells."""
    rng = np.random.default_rng(0)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in size), indexing="ij"))
    label = sum(((place - 0.2) ** 2).sum(0) < radius**2 for radius in (0.2, 0.3, 0.4)).astype(np.uint8)
    tissue = gaussian_filter(rng.standard_normal(size, np.float32), 4)
    tissue = (500 + 100 * tissue / tissue.std() + 80 * label) * ((place**2).sum(0) < 0.8)
    image = np.empty((*size, CHANNELS), np.int16)
    for channel, gain in enumerate(np.linspace(0.6, 1.4, CHANNELS)):
        image[..., channel] = tissue * (gain + 0.02 * rng.standard_normal(size, np.float32))
    return image, label


# -------------------------------------------------------------------------------------------- parts


class Run:
    """A run on the set, ready to go: what this benchmark touches of the pipeline is all here."""

    def __init__(self, root: Path, case: Case, *more: str) -> None:
        argv = f"--target_dataset {root} --workdir {root}/run --n_class 2 --network {case.network}".split()
        argv += f"--method pseudo_label --threshold learnt --warmup_start 0 --device {case.device}".split()
        argv += f"--batch_size 2 --batch_u 1 --steps {STEPS} --n_epoch 1 --optimiser adamw".split()
        argv += ["--target_folders", FOLDERS, "--grp_regex", PATIENT, "--crop", *map(str, case.crop), *more]
        self.args = get_args([*argv, "--target_losses", HALVES])
        set_up_machine(self.args.precision, self.args.deterministic)
        loss = build_objective(self.args)
        self.streams, self.val = open_data(demand_of(self.args), settings_of(Reading, vars(self.args)), loss.bounds)
        self.method = build_method(self.args, loss, CHANNELS)
        self.method.begin_epoch(0)


def make(root: Path, case: Case) -> None:
    volumes = root / "volumes"
    spec = VolumeSpec(
        root / "set",
        (str(volumes / "imagesTr/*.nii.gz"),),
        str(volumes / "labelsTr/*.nii.gz"),
        PATIENT,
        (str(volumes / "imagesTs/*.nii.gz"),),
        orient=None,  # as the volumes that it is compared with are read
        axes=AXES,
        label_map="1-3:1",
        train=case.train,
        normalise="foreground",
    )
    make_volume_set(spec)


def train(root: Path, case: Case) -> None:
    run = Run(root / "set", case)
    train_epoch(run.method, run.streams, 0, run.args.seed)


def validate(root: Path, case: Case) -> None:
    """All volumes, by windows side by side: such as overlap take more time and no more memory."""
    run = Run(root / "set", case, "--mode", "makeim", "--model_weights", "none", "--overlap", "0")
    spare(run.method, case.val - AHEAD - 1)
    score_patients_of(evaluate(run.method, run.val), run.val.slices, settings_of(Scoring, vars(run.args)))


def spare(method: Method, row: int) -> None:
    """The network sees a few windows of this volume alone; of all others two channels are taken for their logits.

    What is found does not matter, and with this volume as much memory is in use as with any: so many are done, and as
    many as can be are read ahead.
    """
    rows, forward, predict = itertools.count(), method.net.forward, method.predict

    def predict_few(batch: Batch, size: Sequence[int] | None = None) -> Tensor:
        left = iter(range(WINDOWS if next(rows) == row else 0))
        method.net.forward = lambda part: part[:, :2] if next(left, None) is None else forward(part)
        return predict(batch, size)

    method.predict = predict_few


PARTS = {"making the set": make, "training": train, "evaluation": validate}


# -------------------------------------------------------------------------------------------- peaks


def peak(work: Callable[[Path, Case], None], threads: int, root: Path, case: Case) -> float:
    """MiB at the most, of a process that does this alone."""
    torch.set_num_threads(threads)
    work(root, case)
    return peak_memory()


def peaks(root: Path, case: Case, options: Namespace) -> list[float]:
    """MiB of each part, one after the other; in this process where all is quick."""
    link_volumes(root / "volumes", case)
    found = []
    for work in PARTS.values():
        if options.quick:
            found.append(peak(work, options.threads, root, case))
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found.append(pool.submit(peak, work, options.threads, root, case).result())
    return found


def compare_peaks(fewer: Sequence[float], more: Sequence[float], case: Case) -> Iterator[Row]:
    """Compares the peaks of memory with fewer and with more volumes; `case` is that of the fewer."""
    for part, few, many in zip(PARTS, fewer, more, strict=True):
        what, against = f"{part}: peak, {MORE * len(case)} volumes", f"{len(case)} volumes"
        note = f"{many / 1024 / LIMIT:.0%} of {LIMIT} GiB; {MORE * case.voxels:,.0f} MiB of voxels"
        yield Row("volumes", what, against, many, few, "MiB", few / many, note)


# -------------------------------------------------------------------------------------------- a crop


def compare_crops(root: Path, case: Case, rounds: int) -> Iterator[Row]:
    """A random crop of an image and its labels, ready for the network, against other ways to it.

    Where the files are not in memory, as those of a large set are not, the system has been told to forget them.
    """
    stream = Run(root / "set", replace(case, device="cpu")).streams["target"]
    name, steps, rng = stream.slices.names[0], itertools.count(), np.random.default_rng(0)
    ours = [root / f"set/train/{folder}/{name}.npy" for folder in ("IMG", "GT")]
    theirs = [root / f"volumes/{folder}/{name}.nii.gz" for folder in ("imagesTr", "labelsTr")]
    held = [np.load(path) for path in ours]

    def streamed() -> None:
        stream.batch(torch.tensor([0]), step=next(steps))

    def decoded() -> None:
        cut([decode(path) for path in theirs], case.crop, rng)

    def afresh(paths: Sequence[Path], work: Callable[[], None]) -> None:
        forget(paths)
        work()

    what = f"crop {'x'.join(map(str, case.crop))}"
    references = {"decoding the .nii.gz": decoded, "a volume in RAM": partial(cut, held, case.crop, rng)}
    yield from compare("volumes", what, streamed, references, rounds)
    references = {"decoding the .nii.gz": partial(afresh, theirs, decoded)}
    yield from compare("volumes", f"{what}, not in memory", partial(afresh, ours, streamed), references, rounds)


def decode(path: Path) -> np.ndarray:
    """The voxels of a volume: (C, D, W, H), or (D, W, H) of labels."""
    voxels = read_volume(path)[0]
    return voxels.transpose(*range(voxels.ndim - 3), *(voxels.ndim - 3 + axis for axis in AXES))


def cut(volumes: Sequence[np.ndarray], crop: Sequence[int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random crop of an image, float32 and standardised, and of its labels, int64."""
    corner = [rng.integers(n - c + 1) for n, c in zip(volumes[0].shape[-3:], crop, strict=True)]
    box = (..., *(slice(at, at + length) for at, length in zip(corner, crop, strict=True)))
    image, label = (torch.from_numpy(np.array(volume[box])) for volume in volumes)
    return image.float().sub_(500).div_(150), label.long()


def forget(paths: Sequence[Path]) -> None:
    """Their content is read from the disk when it is next looked at, where the system has such a call."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(options: Namespace) -> Iterator[Row]:
    case = replace(QUICK if options.quick else PUBLISHED, device=options.device)
    with tempfile.TemporaryDirectory() as temporary:
        fewer = peaks(Path(temporary), case, options)
        crops = list(compare_crops(Path(temporary), case, ROUNDS * options.rounds))
    with tempfile.TemporaryDirectory() as temporary:
        more = peaks(Path(temporary), case.enlarged(), options)
    yield from compare_peaks(fewer, more, case)
    yield from crops
