"""The folders of an OPT line, `[('IMG', png_transform, False), …]`, and the transforms that it names.

A transform is a function of the array in a file. That array is (W, H) or (C, W, H) for an image, and (W, H) for ground
truth. A transform that takes `n_class` makes (K, W, H) maps from the class numbers of the ground truth. One that takes
`spacing` as well needs the lengths (W, H) of a pixel in mm.
"""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from datasets.distance_maps import signed_distance_maps
from files.grey_levels import wide_fault
from processes.errors import UserError
from utils import Registry, read_literal

TRANSFORMS = Registry("transform")
PUBLISHED_CROP = 384  # nii_transform2 keeps the first 384 rows and columns: the published prostate slices are 385


@TRANSFORMS.register("npy_transform", "tensor_transform", "torch.tensor")
def nii_transform(raw: np.ndarray) -> np.ndarray:
    """(W, H) or (C, W, H) -> the same shape: the image as it is stored, float32.

    Raises UserError for numbers that float32 cannot tell apart.
    """
    if fault := wide_fault(raw):
        raise UserError(fault)
    return raw.astype(np.float32, copy=False)


@TRANSFORMS.register()
def nii_zscore_transform(raw: np.ndarray) -> np.ndarray:
    """(W, H) or (C, W, H) -> the same shape: takes an image of mean 0 and sd 1 to (x + 4) / 8.5, float32 from 0 to 1.

    The published heart recipe calls this nii_transform.

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
    """(W, H) or (C, W, H) -> its first 384 rows and columns, as published; grey levels as stored, float32."""
    return nii_transform(raw)[..., :PUBLISHED_CROP, :PUBLISHED_CROP]


@TRANSFORMS.register("imnpy_transform")
def png_transform(raw: np.ndarray) -> np.ndarray:
    """(W, H) or (C, W, H) -> the same shape: an image that will be divided by the largest value of its bit depth.

    The integers stay integers until they are batched, and are divided then. Raises UserError for anything but unsigned
    grey levels of 8 or 16 bits, since no largest value is known for others.
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
    """(W, H) -> (W, H): the class numbers of the ground truth as stored."""
    return raw


@TRANSFORMS.register()
def nii_gt_transform2(raw: np.ndarray) -> np.ndarray:
    """(W, H) -> the first 384 rows and columns of the ground truth, as published."""
    return raw[..., :PUBLISHED_CROP, :PUBLISHED_CROP]


@TRANSFORMS.register()
def dist_map_transform(raw: np.ndarray, n_class: int) -> np.ndarray:
    """(W, H) class numbers -> (K, W, H) signed distance maps in pixels, for the boundary loss."""
    return signed_distance_maps(raw, n_class)


@TRANSFORMS.register()
def dist_map_mm_transform(raw: np.ndarray, n_class: int, spacing: tuple[float, float]) -> np.ndarray:
    """(W, H) class numbers -> (K, W, H) signed distance maps in mm."""
    return signed_distance_maps(raw, n_class, spacing)


@TRANSFORMS.register()
def dist_map_max_transform(raw: np.ndarray, n_class: int) -> np.ndarray:
    """(W, H) class numbers -> (K, W, H) signed distance maps, each divided by its largest absolute value."""
    return signed_distance_maps(raw, n_class, normalise=True)


@TRANSFORMS.register()
def dist_map_legacy_transform(raw: np.ndarray, n_class: int) -> np.ndarray:
    """(W, H) class numbers -> (K, W, H) signed distance maps in whole pixels, as published."""
    return signed_distance_maps(raw, n_class, legacy=True)


@TRANSFORMS.register()
def dist_map_legacy_mm_transform(raw: np.ndarray, n_class: int, spacing: tuple[float, float]) -> np.ndarray:
    """(W, H) class numbers -> (K, W, H) signed distance maps in whole mm, as published with a spacing."""
    return signed_distance_maps(raw, n_class, spacing, legacy=True)


@TRANSFORMS.register()
def raw_npy_transform(raw: np.ndarray) -> np.ndarray:
    """(K, W, H) maps as stored, float32, one a class: distances that were measured in the volume."""
    return raw.astype(np.float32, copy=False)


OF_IMAGES = (nii_transform, nii_zscore_transform, nii_transform2, png_transform)


OF_LABELS = (nii_gt_transform, nii_gt_transform2)


@cache
def _parameters(transform: str) -> frozenset[str]:
    return frozenset(inspect.signature(TRANSFORMS[transform]).parameters)


@dataclass(frozen=True)
class FolderSpec:
    """One tuple of `--target_folders`: the subfolder, the name of its transform, and the published one-hot flag."""

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
        """What the transform makes of a file's array: (W, H) or (C, W, H) of an image, (W, H) of ground truth.

        spacing: (W, H) in mm, for a transform in mm
        """
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
    """Reads the first tuple of a list of folders: the image. The rest of the list is not looked at.

    Raises UserError if that tuple is not the folder of an image.
    """
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
    """Raises UserError for a transform of ground truth where images are read, and for the reverse."""
    if TRANSFORMS[spec.transform] not in (OF_LABELS if is_image else OF_IMAGES):
        return
    here, there = ("images", "ground truth") if is_image else ("ground truth", "images")
    right = "png_transform (.png), nii_transform or npy_transform" if is_image else "gt_transform"
    raise UserError(
        f"'{spec.transform}' is for {there}, and {spec.folder} is read as {here}: name {right} there, or another "
        f"folder. The images come first, as in {FOLDERS}."
    )
