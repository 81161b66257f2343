"""Slicing a volume, against plain loops that write one file a slice; a cohort, against loading it."""

import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter
from skimage import io

from preprocess.slice_volumes import slice_set
from preprocess.slicing.spec import Blocks, SliceSpec
from tests.benchmarks.table import Row, better, in_turns


def write_volume(path: Path, shape: tuple[int, ...]) -> None:
    """A smooth int16 volume with some noise, as a scanner's."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.standard_normal(shape, np.float32), 8)
    volume = 400 + 300 * smooth / smooth.std() + 10 * rng.standard_normal(shape)
    nib.save(nib.Nifti1Image(volume.clip(0).astype(np.int16), np.diag([0.625, 0.625, 3.6, 1])), path)


def ours(volume: Path, folder: Path, suffix: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    split = Blocks(4, 3)
    slice_set(SliceSpec(folder, {"IMG": str(volume)}, r"(\w+)\.nii", format=suffix, split_by_blocks=split))


def by_nibabel(volume: Path, folder: Path) -> None:
    """One .nii a slice, scaled to 0..1."""
    folder.mkdir(exist_ok=True)
    image = nib.load(volume)
    array = image.get_fdata()
    array = (array - array.min()) / (array.max() - array.min())
    for index in range(array.shape[2]):
        nib.save(nib.Nifti1Image(array[:, :, index].astype(np.float32), image.affine), folder / f"{index}.nii")


def by_skimage(volume: Path, folder: Path) -> None:
    """One .png a slice, scaled to 0..255."""
    folder.mkdir(exist_ok=True)
    array = nib.load(volume).get_fdata()
    array = (255 * (array - array.min()) / (array.max() - array.min())).astype(np.uint8)
    for index in range(array.shape[2]):
        io.imsave(folder / f"{index}.png", array[:, :, index], check_contrast=False)


def write_cohort(folder: Path, shape: tuple[int, ...], count: int = 3) -> None:
    """Volumes with a label each."""
    write_volume(folder / "Case00.nii.gz", shape)
    image = nib.load(folder / "Case00.nii.gz")
    label = nib.Nifti1Image((image.get_fdata() > 600).astype(np.uint8), image.affine)
    for number in range(count):
        if number:
            shutil.copy(folder / "Case00.nii.gz", folder / f"Case{number:02d}.nii.gz")
        nib.save(label, folder / f"Case{number:02d}_seg.nii.gz")


def cut_cohort(folder: Path, made: Path, suffix: str) -> None:
    images, labels = {"IMG": f"{folder}/Case??.nii.gz"}, f"{folder}/Case??_seg.nii.gz"
    dest = made / f"{len(list(made.iterdir()))}"  # a new folder: emptying the last one is not measured
    slice_set(SliceSpec(dest, images, r"(Case\d+)", label=labels, format=suffix, val=1))


def load_cohort(folder: Path) -> None:
    for path in folder.glob("*.nii.gz"):
        nib.load(path).get_fdata()


def measure(options: Namespace) -> Iterator[Row]:
    """MB of voxels a second. Ours also checks the volume, hashes it and writes the manifest."""
    yield from _one_volume(options)
    shape = (32, 32, 8) if options.quick else (256, 256, 160)
    with tempfile.TemporaryDirectory() as temporary:
        root, made = Path(temporary) / "volumes", Path(temporary) / "made"
        root.mkdir()
        made.mkdir()
        write_cohort(root, shape)
        for suffix in ("nii", "png"):
            times = in_turns(
                {"ours": partial(cut_cohort, root, made, suffix), "theirs": partial(load_cohort, root)}, options.rounds
            )
            megabytes = 3 * 3 * np.prod(shape) / 1e6
            yield Row(
                "slicing",
                f"3 volumes {'x'.join(map(str, shape))} and labels to .{suffix}, one core",
                "nibabel, loading alone",
                *(megabytes / np.median(times[who]) for who in ("ours", "theirs")),
                "MB/s",
                better(times["ours"], times["theirs"]),
            )


def _one_volume(options: Namespace) -> Iterator[Row]:
    shape = (48, 40, 6) if options.quick else (384, 384, 24)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        volume = root / "Case00.nii.gz"
        write_volume(volume, shape)
        for suffix, name, loop in (("nii", "nibabel loop", by_nibabel), ("png", "scikit-image loop", by_skimage)):
            works = {"ours": partial(ours, volume, root / f"ours_{suffix}", suffix)}
            works["theirs"] = partial(loop, volume, root / f"theirs_{suffix}")
            works["ours"]()
            times = in_turns(works, options.rounds)
            megabytes = 2 * np.prod(shape) / 1e6
            yield Row(
                "slicing",
                f"{'x'.join(map(str, shape))} int16 .nii.gz to .{suffix}",
                name,
                *(megabytes / np.median(times[who]) for who in works),
                "MB/s",
                better(times["ours"], times["theirs"]),
            )
