"""The folders of an OPT line, `[('IMG', png_transform, False), …]`, and the transforms that it names.

A transform is a function of the array in a file, (W, H) or (C, W, H) of an image, (W, H) of ground truth. One that
takes `n_class` makes (K, W, H) maps out of the ground truth's class numbers; one that takes `spacing` too needs the
(W, H) lengths of a pixel in mm.
"""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from datasets.distance_maps import signed_distance_maps
from processes.errors import UserError
from utils import Registry, read_literal

TRANSFORMS = Registry("transform")
PUBLISHED_CROP = 384  # nii_transform2 keeps the first 384 rows and columns: the published prostate slices are 385
EXACT = 2**24  # up to here float32 holds every whole number


@TRANSFORMS.register("npy_transform", "tensor_transform", "torch.tensor")
def nii_transform(raw: np.ndarray) -> np.ndarray:
    """Image as stored, float. Raises UserError for numbers that float32 cannot tell apart."""
    if fault := wide_fault(raw):
        raise UserError(fault)
    return raw.astype(np.float32, copy=False)


@TRANSFORMS.register()
def nii_zscore_transform(raw: np.ndarray) -> np.ndarray:
    """Image of mean 0 and sd 1, whose -4 to 4.5 become 0 to 1: what the published heart recipe calls nii_transform.

    Raises UserError for grey levels outside of that, as the published loader does.
    """
    image = (nii_transform(raw) + 4) / 8.5
    if image.min() < 0 or image.max() > 1:
        raise UserError(
            f"holds grey levels from {raw.min():.4g} to {raw.max():.4g}; nii_zscore_transform is for images of mean 0 "
            "and standard deviation 1, from -4 to 4.5 (nii_transform reads them as they are stored)"
        )
    return image


@TRANSFORMS.register()
def nii_transform2(raw: np.ndarray) -> np.ndarray:
    """Image as stored, cropped to the published 384 x 384."""
    return nii_transform(raw)[..., :PUBLISHED_CROP, :PUBLISHED_CROP]


@TRANSFORMS.register("imnpy_transform")
def png_transform(raw: np.ndarray) -> np.ndarray:
    """Image divided by the largest value of its depth; the integers stay integers until they are batched.

    Raises UserError for anything but grey levels of 8 or 16 bits, of which no largest value is known.
    """
    if raw.dtype == np.bool_:
        return raw.astype(np.uint8) * 255
    if raw.dtype.kind == "u" and raw.dtype.itemsize <= 2:
        return raw
    raise UserError(
        f"holds {raw.dtype} values from {raw.min():.6g} to {raw.max():.6g}, and png_transform is for grey levels of "
        "unsigned 8 or 16 bits; name nii_transform or npy_transform"
    )


@TRANSFORMS.register("gtpng_transform", "gt_transform", "npy_gt_transform", "gtnpy_transform")
def nii_gt_transform(raw: np.ndarray) -> np.ndarray:
    """Ground truth: class numbers as stored."""
    return raw


@TRANSFORMS.register()
def nii_gt_transform2(raw: np.ndarray) -> np.ndarray:
    """Ground truth, cropped to the published 384 x 384."""
    return raw[..., :PUBLISHED_CROP, :PUBLISHED_CROP]


@TRANSFORMS.register()
def dist_map_transform(raw: np.ndarray, n_class: int) -> np.ndarray:
    """(K, W, H) signed distance maps of the ground truth, in pixels, for the boundary loss."""
    return signed_distance_maps(raw, n_class)


@TRANSFORMS.register()
def dist_map_mm_transform(raw: np.ndarray, n_class: int, spacing: tuple[float, float]) -> np.ndarray:
    """Signed distance maps in mm."""
    return signed_distance_maps(raw, n_class, spacing)


@TRANSFORMS.register()
def dist_map_max_transform(raw: np.ndarray, n_class: int) -> np.ndarray:
    """Signed distance maps, each divided by its largest absolute value."""
    return signed_distance_maps(raw, n_class, normalise=True)


@TRANSFORMS.register()
def dist_map_legacy_transform(raw: np.ndarray, n_class: int) -> np.ndarray:
    """Signed distance maps in whole pixels, as published."""
    return signed_distance_maps(raw, n_class, legacy=True)


@TRANSFORMS.register()
def dist_map_legacy_mm_transform(raw: np.ndarray, n_class: int, spacing: tuple[float, float]) -> np.ndarray:
    """Signed distance maps in whole mm, as published with a spacing."""
    return signed_distance_maps(raw, n_class, spacing, legacy=True)


@TRANSFORMS.register()
def raw_npy_transform(raw: np.ndarray) -> np.ndarray:
    """(K, W, H) maps as stored, one a class: distances that were measured in the volume."""
    return raw.astype(np.float32, copy=False)


OF_IMAGES = (nii_transform, nii_zscore_transform, nii_transform2, png_transform)


OF_LABELS = (nii_gt_transform, nii_gt_transform2)


@cache
def _parameters(transform: str) -> frozenset[str]:
    return frozenset(inspect.signature(TRANSFORMS[transform]).parameters)


@dataclass(frozen=True)
class FolderSpec:
    """One tuple of `--target_folders`: subfolder, transform name, and whether the published code one-hot encodes it."""

    folder: str
    transform: str
    is_one_hot: bool = False

    @property
    def holds_maps(self) -> bool:
        """Whether (K, W, H) maps lie in its files ready-made."""
        return self.transform == raw_npy_transform.__name__

    @property
    def is_map(self) -> bool:
        """Whether it gives (K, W, H) maps, not class numbers."""
        return self.holds_maps or "n_class" in _parameters(self.transform)

    @property
    def in_mm(self) -> bool:
        """Whether what it gives depends on the spacing."""
        return "spacing" in _parameters(self.transform)

    def apply(self, raw: np.ndarray, n_class: int, spacing: tuple[float, float] | None = None) -> np.ndarray:
        """What the transform makes of a file's array; `spacing`: (W, H) mm, for one in mm."""
        known, wanted = {"n_class": n_class, "spacing": spacing}, _parameters(self.transform)
        return TRANSFORMS[self.transform](raw, **{name: known[name] for name in known if name in wanted})


FOLDERS = "[('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', gt_transform, False)]"


def parse_folders(text: str, n_loss: int) -> list[FolderSpec]:
    """Reads `[(folder, transform, is_one_hot), …]`: the image, the metrics' ground truth, then one per loss.

    A list shorter than that repeats its last ground truth; the image alone stays alone: there is no ground truth.
    Raises UserError for anything else.
    """
    items = read_literal(text)
    if not isinstance(items, list) or not items:
        raise UserError(f"A list of folders starts with the image and the ground truth, like {FOLDERS}; got {text!r}.")
    if len(items) == 1:
        return [parse_image_folder(text)]
    folders = [_read_folder(item) for item in items]
    for number, spec in enumerate(folders):
        _check_role(spec, is_image=number == 0)
    if folders[0].folder == folders[1].folder:
        raise UserError(
            f"Image and ground truth are both read from {folders[0].folder}, so that the network would be shown what "
            f"it is to find: the first folder is the images, the second the ground truth; got {text!r}."
        )
    if any(spec.is_map for spec in folders[:2]):
        raise UserError(
            f"The first two folders, image and ground truth of the metrics, are no distance maps; got {text!r}. A map "
            "stands in the place of the loss that needs it, third or later."
        )
    if len(folders) > 2 + n_loss:
        raise UserError(
            f"{len(folders)} folders for {n_loss} losses: after the image and the ground truth comes one folder a loss."
        )
    return folders + [folders[-1]] * (2 + n_loss - len(folders))


def parse_image_folder(text: str) -> FolderSpec:
    """The first tuple of such a list, the image, for who reads nothing else. Raises UserError for anything else."""
    items = read_literal(text)
    if not isinstance(items, list) or not items:
        raise UserError(f"A list of folders starts with the image, like {FOLDERS}; got {text!r}.")
    image = _read_folder(items[0])
    _check_role(image, is_image=True)
    if image.is_map:
        raise UserError(f"The first folder is the image, no distance maps; got {text!r}.")
    return image


def _read_folder(item: Any) -> FolderSpec:
    match item:
        case (str(folder), str(transform), bool(is_one_hot)):
            TRANSFORMS[transform]
            return FolderSpec(folder, transform, is_one_hot)
    raise UserError(f"Cannot read the folder {item!r}: expected (folder, transform, is_one_hot) as in {FOLDERS}.")


def _check_role(spec: FolderSpec, is_image: bool) -> None:
    """Raises UserError for a transform of ground truth where images are read, which it does not scale; the reverse."""
    if TRANSFORMS[spec.transform] not in (OF_LABELS if is_image else OF_IMAGES):
        return
    here, there = ("images", "ground truth") if is_image else ("ground truth", "images")
    right = "png_transform (.png), nii_transform or npy_transform" if is_image else "gt_transform"
    raise UserError(
        f"'{spec.transform}' is for {there}, and {spec.folder} is read as {here}: name {right} there, or another "
        f"folder. The images come first, as in {FOLDERS}."
    )


def wide_fault(image: np.ndarray) -> str:
    """The same of numbers that float32, which networks compute in, cannot hold, and whole ones it cannot tell apart."""
    if not image.size or image.dtype.kind not in "iuf" or image.dtype.itemsize <= (4 if image.dtype.kind == "f" else 2):
        return ""
    low, high = image.min(), image.max()
    if -EXACT <= low and high <= EXACT:
        return ""
    words = f"holds grey levels from {low:.10g} to {high:.10g}"
    if max(abs(float(low)), abs(float(high))) > float(np.finfo(np.float32).max):
        return f"{words}, beyond what 32 bits hold; divide them first"
    if image.dtype.kind == "f" and (image != np.rint(image)).any():
        return ""  # rounded to 7 digits, as any image is
    return f"{words}, whole numbers of which 32 bits tell only each second or fewer apart; subtract or divide first"
