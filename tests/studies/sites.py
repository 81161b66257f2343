"""Sites of a study: folders of slices, made once out of real images beside the repository, of a download, of phantoms.

A site is a data set with train/ and val/, and the name of its folder of images. Slices are called <patient>_<number>.
"""

import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from preprocess.new_set import whole_folder
from preprocess.shifts.acquisitions import acquire
from processes.errors import UserError
from tests.tools.checkout import ROOT

REAL = ROOT.parent / "shared" / "data"  # real images, which are no part of the repository
Stack = tuple[np.ndarray, np.ndarray]  # image and label (D, W, H) uint8 of one patient
SIDE = 64  # of a nuclei picture
HIPPOCAMPUS = (40, 64)  # W and H of a slice of the hippocampus, which is padded to it
MISSING = 3  # one patient in so many lacks the organ


@dataclass(frozen=True)
class Site:
    """What makes a folder of slices, and the name of its images there."""

    make: Callable[[Path], None]
    images: str = "IMG"


def must_be_there(folder: Path) -> Path:
    """Raises UserError for real images that are not there."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not here: the real images of this study lie beside the repository.")
    return folder


def write(root: Path, splits: dict[str, Iterator[tuple[str, Stack]]]) -> None:
    """Writes stacks as root/split/IMG|GT/<patient>_<number>.png."""
    with whole_folder(root) as made:
        for split, patients in splits.items():
            for patient, (image, label) in patients:
                for number, slices in enumerate(zip(image, label, strict=True)):
                    for folder, pixels in zip(("IMG", "GT"), slices, strict=True):
                        path = made / split / folder / f"{patient}_{number:03d}.png"
                        path.parent.mkdir(parents=True, exist_ok=True)
                        Image.fromarray(pixels).save(path)


# ----------------------------------------------------------------------------------------------------- pictures


def nuclei(domain: str, root: Path) -> None:
    """One domain of the nuclei, grey, SIDE x SIDE; a picture is a patient."""
    folder = must_be_there(REAL / "nuclei_dsb2018" / domain)

    def pictures(split: str) -> Iterator[tuple[str, Stack]]:
        for path in sorted((folder / split / "IMG").glob("*.png")):
            size = (SIDE, SIDE)
            image = Image.open(path).convert("L").resize(size, Image.Resampling.BILINEAR)
            label = Image.open(folder / split / "GT" / path.name).resize(size, Image.Resampling.NEAREST)
            yield path.stem, (np.asarray(image)[None], np.asarray(label)[None])

    write(root, {split: pictures(split) for split in ("train", "val")})


# ------------------------------------------------------------------------------------------------------ volumes


def volumes_of(split: str) -> list[Path]:
    return sorted((must_be_there(REAL / "hippocampus") / split / "images").glob("*.nii.gz"))


def old_scanner() -> dict[str, list[Path]]:
    """The patients of the source: none of them is one of the target's."""
    return {"train": volumes_of("train")[:12], "val": volumes_of("test")[:4]}


def new_scanner(count: int = 8) -> dict[str, list[Path]]:
    """The patients of the target, of whom `count` are learnt from."""
    return {"train": volumes_of("train")[12 : 12 + count], "val": volumes_of("val")}


Change = Callable[[str, Stack], Stack]


def hippocampus(patients: Callable[[], dict[str, list[Path]]], change: Change, root: Path) -> None:
    """Slices across the third axis, padded or cut to one size; `change` is done to each patient's stack first."""

    def stacks(split: str, paths: list[Path]) -> Iterator[tuple[str, Stack]]:
        return ((path.name.split(".")[0], change(split, stack_of(path))) for path in paths)

    write(root, {split: stacks(split, paths) for split, paths in patients().items()})


def stack_of(path: Path) -> Stack:
    image, label = (nib.load(file).get_fdata() for file in (path, path.parents[1] / "labels" / path.name))
    low, high = np.percentile(image, (0.5, 99.5))
    grey = np.clip((image - low) / (high - low) * 255, 0, 255)
    return fitted(grey), fitted(label)


def fitted(volume: np.ndarray) -> np.ndarray:
    """(W, H, D) -> (D, *HIPPOCAMPUS) uint8, around the middle."""
    found = volume.round().astype(np.uint8)
    for axis, wanted in enumerate(HIPPOCAMPUS):
        lacking = max(0, wanted - found.shape[axis])
        pads = [(0, 0)] * 3
        pads[axis] = (lacking // 2, lacking - lacking // 2)
        found = np.pad(found, pads)
        start = (found.shape[axis] - wanted) // 2
        found = found.take(range(start, start + wanted), axis)
    return np.moveaxis(found, 2, 0)


def as_it_is(_: str, stack: Stack) -> Stack:
    return stack


def shifted(acquisition: str, severity: int, _: str, stack: Stack) -> Stack:
    """The stack as another acquisition shows it, drawn anew for each patient."""
    image, label = stack
    rng = np.random.default_rng(zlib.crc32(image.tobytes()))
    return acquire(image, (1.0, 1.0, 1.0), acquisition, severity, rng), label


class WithoutOrgan:
    """Leaves of one training patient in MISSING the slices alone that show no organ; changes the rest as told."""

    def __init__(self, change: Change) -> None:
        self.change, self.seen = change, 0

    def __call__(self, split: str, stack: Stack) -> Stack:
        image, label = self.change(split, stack)
        self.seen += 1
        if split == "train" and self.seen % MISSING == 0:
            bare = ~label.any((1, 2))
            return image[bare], label[bare]
        return image, label


# ------------------------------------------------------------------------------- what the repository's programs make


def program(name: str, *flags: str) -> None:
    """Runs a program of preprocess/. What it makes appears when it is whole."""
    subprocess.run([sys.executable, "-m", f"preprocess.{name}", *flags], cwd=ROOT, check=True)


def vertebrae(modality: str, root: Path) -> None:
    """The demo's vertebrae, CT or MR, out of its download."""
    program("archives.tptbox", f"--dest_{modality}", str(root), "--downloads", str(root.parent / "downloads"))


def phantom(kind: str, slicer: str, flags: Sequence[str], root: Path) -> None:
    """A phantom's volumes, cut as its makefile cuts them, but to png."""
    volumes = root.parent / f"{kind}_volumes"
    if not volumes.is_dir():
        program("phantom", kind, "--dest", str(volumes), "--jobs", "1")
    cut = ("--volumes", str(volumes), "--jobs", "1", "--normalise", "percentile", "--format", "png")
    program(f"archives.{slicer}", *cut, "--dest", str(root), *flags)


HEART, DISCS = ("--val", "3", "--orient", "LAS"), ("--val", "4", "--axis", "0", "--images", "wat", "inn")

SITES = {
    **{name: Site(partial(nuclei, name)) for name in ("fluo_a", "fluo_b", "histology")},
    "ct": Site(partial(vertebrae, "ct")),
    "mr": Site(partial(vertebrae, "mr")),
    "prostate_source": Site(partial(phantom, "prostate", "saml", ("--val", "4", "--site", "BMC"))),
    "prostate_target": Site(partial(phantom, "prostate", "saml", ("--val", "4", "--site", "RUNMC"))),
    "heart_source": Site(partial(phantom, "whs", "mmwhs", (*HEART, "--modality", "MR"))),
    "heart_target": Site(partial(phantom, "whs", "mmwhs", (*HEART, "--modality", "CT"))),
    "discs_source": Site(partial(phantom, "ivd", "ivdm3seg", DISCS), "Wat"),
    "discs_target": Site(partial(phantom, "ivd", "ivdm3seg", DISCS), "Inn"),
    "hippocampus": Site(partial(hippocampus, old_scanner, as_it_is)),
    "hippocampus_same": Site(partial(hippocampus, new_scanner, as_it_is)),
    **{
        f"hippocampus_{name}": Site(partial(hippocampus, new_scanner, partial(shifted, name, severity)))
        for name, severity in (("inverted_contrast", 5), ("gamma", 5), ("bias_field", 5), ("noise", 4))
    },
    **{
        f"hippocampus_{name}_3": Site(partial(hippocampus, new_scanner, partial(shifted, name, 3)))
        for name in ("inverted_contrast", "gamma", "bias_field", "noise")
    },
    "hippocampus_one": Site(partial(hippocampus, partial(new_scanner, 1), partial(shifted, "gamma", 5))),
    "hippocampus_missing": Site(
        lambda root: hippocampus(new_scanner, WithoutOrgan(partial(shifted, "gamma", 5)), root)
    ),
}


def make_site(name: str, data: Path) -> Path:
    """The folder of a site, made if it is not there. Raises UserError where its images are not here."""
    folder = data / name
    if not folder.is_dir():
        data.mkdir(parents=True, exist_ok=True)
        SITES[name].make(folder)
    return folder
