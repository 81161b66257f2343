"""Pictures as cameras, microscopes and film scanners write them: PNG, JPEG, TIFF, BMP, read as one number a pixel."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from files.decoding import DEFLATED, read_slice
from files.faults import VolumeFault
from files.foreign import Refused, reading
from processes.errors import UserError

KINDS = {  # suffix -> the format that a file of this name must have
    **dict.fromkeys((".jpg", ".jpeg"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".bmp": "BMP",
    ".png": "PNG",
}
LOSSY = (".jpg", ".jpeg")
RED, GREEN, BLUE = 0.299, 0.587, 0.114  # shares in the brightness of a colour, Rec. ITU-R BT.601
ORIENTATION = 274  # the EXIF tag that says how a viewer turns a picture; 1 is not at all
WHOLE = {"1": np.uint8, "L": np.uint8, "P": np.uint8, "I;16": np.uint16, "I;16L": np.uint16, "I;16B": np.uint16}
CURE = "write it anew, as PNG"


def is_picture(path: Path) -> bool:
    """Whether a file of this name is read here."""
    return path.suffix.lower() in KINDS


def read_picture(path: Path, is_label: bool = False) -> np.ndarray:
    """(W, H), the rows of the picture along W: grey levels or, of a mask, the numbers as they are stored.

    Colours become their brightness, float32; grey levels keep their type, of 8 or 16 bits, or float32. Opacity goes
    where it is full. A mask in colours is read where its channels are alike.

    Raises VolumeFault for a file that cannot be read, of several pages, of another kind than its name says, one that a
    viewer turns (EXIF), that is transparent, that has NaN, and for a mask in several colours.
    """
    try:
        with reading(path, CURE):
            pixels = _read_png(path, is_label) if path.suffix.lower() == ".png" else _read_other(path, is_label)
            pixels = _one_channel(pixels, is_label)
            if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
                raise Refused("has pixels that are NaN or infinite")
            return pixels
    except UserError as error:
        raise VolumeFault("cannot be used as a picture", str(error)) from error


def _read_png(path: Path, is_label: bool) -> np.ndarray:
    """(W, H), or (W, H, C)."""
    pixels = read_slice(path, is_image=not is_label)
    return np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels


def _read_other(path: Path, is_label: bool) -> np.ndarray:
    """(W, H), or (W, H, C). Out of its bytes: out of a file Pillow takes the memory that the file claims."""
    kind, content = KINDS.get(path.suffix.lower()), path.read_bytes()
    if kind is None:
        raise Refused(f"is no picture; those are {', '.join(KINDS)}")
    with Image.open(io.BytesIO(content), formats=(kind,)) as picture:
        width, height = picture.size
        if width * height * len(picture.getbands()) > 8 * DEFLATED * len(content):
            raise Refused(f"promises {width} x {height} pixels, more than its {len(content):,} bytes can hold")
        if getattr(picture, "n_frames", 1) > 1:
            raise Refused(f"holds {picture.n_frames} pages; write each as a picture of its own, or a volume as NIfTI")
        if (turn := picture.getexif().get(ORIENTATION, 1)) != 1:
            raise Refused(f"is turned by its viewers (EXIF orientation {turn}); write it upright, without that tag")
        return _pixels(picture, is_label)


def _pixels(picture: Image.Image, is_label: bool) -> np.ndarray:
    """(W, H), or (W, H, C); of an image a palette becomes the colours that it stands for."""
    if picture.mode == "P" and not is_label:
        picture = picture.convert("RGB")
    if picture.mode in WHOLE:
        return np.asarray(picture).astype(WHOLE[picture.mode])
    if picture.mode in ("I", "F"):
        return np.asarray(picture).astype(np.int32 if picture.mode == "I" and is_label else np.float32)
    if picture.mode in ("LA", "RGBA"):
        pixels = np.asarray(picture)
        if clear := int((pixels[..., -1] < 255).sum()):
            raise Refused(
                f"is transparent in {clear} of its pixels; lay it on a background, and write it without alpha"
            )
        return pixels[..., 0] if picture.mode == "LA" else pixels[..., :3]
    if picture.mode == "RGB":
        return np.asarray(picture)
    raise Refused(f"is a picture of the kind {picture.mode}; those that are read are grey or RGB")


def _one_channel(pixels: np.ndarray, is_label: bool) -> np.ndarray:
    """(W, H) of (W, H), or of (W, H, C): the brightness, or what all channels of a mask have."""
    if pixels.ndim == 2:
        return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise Refused(f"is an array of {' x '.join(map(str, pixels.shape))}, not one of rows and columns")
    if (pixels == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., 0])
    if is_label:
        raise Refused("is a mask in several colours; write it in grey, one number a class")
    red, green, blue = np.moveaxis(pixels.astype(np.float32), -1, 0)
    return RED * red + GREEN * green + BLUE * blue
