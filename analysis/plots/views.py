"""Which slices are shown, and how: the part that matters, upright, its grey levels or colours spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import nibabel as nib
import numpy as np
from PIL import Image

from analysis.plots.patients import patient_scores
from analysis.run import Run
from datasets.set_tables import affine_of, read_rows

if TYPE_CHECKING:
    from datasets.slices import SliceSet  # opened where it is needed: it brings torch, which takes seconds


def choose_slices(slices: "SliceSet", run: Run, which: str, number: int) -> dict[int, str]:
    """Row of each slice to show -> what it stands for.

    With enough patients one slice each, from the patient whom `run` segments best to the worst; else from different
    places of the volumes. Of each patient or place, the slice with the most foreground.
    """
    truths = (slices.truth(row) for row in range(len(slices)))
    area = np.array([np.count_nonzero((true > 0) & (true < run.n_class)) for true in truths])
    order = list(dict.fromkeys(slices.patients))
    if len(order) >= number > 1:
        scores = patient_scores(run, "dice", which, None)
        ranked = sorted(order, key=lambda patient: -scores.get(patient, 0.0))
        picks = np.linspace(0, len(ranked) - 1, number).round().astype(int)
        roles = {0: f"best of {len(ranked)}", len(ranked) - 1: f"worst of {len(ranked)}"}
        members = {pick: np.flatnonzero(np.array(slices.patients) == ranked[pick]) for pick in picks}
        return {int(rows[area[rows].argmax()]): roles.get(pick, "") for pick, rows in members.items()}
    rows = np.flatnonzero(area) if area.any() else np.arange(len(slices))
    blocks = np.array_split(rows, min(number, len(rows)))
    return {int(block[area[block].argmax()]): "" for block in blocks}


class ShownSlices(Protocol):
    """Slices as they are shown: those that a run was evaluated on, or those of a set that nobody trained on yet."""

    root: Path
    names: Sequence[str]
    patients: Sequence[str]
    spacing: Mapping[str, tuple[float, float, float]] | None

    def image(self, row: int) -> np.ndarray:
        """(C, W, H) grey levels of the slice in this row of `names`."""

    def truth(self, row: int) -> np.ndarray:
        """(W, H) class numbers of the slice in this row of `names`."""


@dataclass(frozen=True)
class View:
    """How a slice is shown: the part of it that matters, upright."""

    part: tuple[slice, slice]  # of W and H
    swap: bool  # H runs downwards
    flip: tuple[bool, bool]  # downwards and sideways, after the swap
    aspect: float  # height of a pixel over its width

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """(…, W, H) as stored -> (…, rows, columns) as shown."""
        shown = array[..., *self.part]
        shown = np.swapaxes(shown, -1, -2) if self.swap else shown
        return shown[..., :: -1 if self.flip[0] else 1, :: -1 if self.flip[1] else 1]

    @property
    def size(self) -> tuple[float, float]:
        """Height and width as shown, in widths of a pixel."""
        w, h = (part.stop - part.start for part in self.part)
        rows, columns = (h, w) if self.swap else (w, h)
        return rows * self.aspect, columns


def make_view(slices: ShownSlices, row: int, masks: Sequence[np.ndarray], whole: bool) -> View:
    """The view of a slice.

    A window around these masks (W, H), or the whole, upright if the manifest says how it lies.
    """
    spacing = (1.0, 1.0, 1.0) if slices.spacing is None else slices.spacing[slices.patients[row]]
    swap, flip = upright(axis_codes(slices.root, slices.names[row]))
    aspect = spacing[2] / spacing[1] if swap else spacing[1] / spacing[2]
    part = (slice(0, masks[0].shape[0]), slice(0, masks[0].shape[1])) if whole else window(masks)
    return View(part, swap, flip, aspect)


def upright(codes: str) -> tuple[bool, tuple[bool, bool]]:
    """Swap and flips that show a slice as radiologists do: head or front up, the patient's right or front on the left.

    `codes`: where W and H point, two of RLAPSI; '' leaves the slice as it is.
    """
    if not codes:
        return False, (False, False)
    rank = {code: number for number, pair in enumerate(("RL", "AP", "SI")) for code in pair}
    swap = rank[codes[1]] > rank[codes[0]]  # of two axes, the one of higher rank runs downwards
    down, across = codes[::-1] if swap else codes
    return swap, (down in "AS", across in "RA")


def axis_codes(root: Path, name: str) -> str:
    """Where the slice's W and H axes point, such as 'PI'; '' where the set's manifest.csv does not tell."""
    row = next((row for row in read_rows(root) if row["name"] == name), {})
    if not row.get("affine") or not row.get("axis"):
        return ""
    return "".join(code for axis, code in enumerate(nib.aff2axcodes(affine_of(row))) if axis != int(row["axis"]))


def window(masks: Sequence[np.ndarray]) -> tuple[slice, slice]:
    """The part of the image to show: all that the masks (W, H) hold, with a margin, and at least half of each axis."""
    seen = np.any([mask > 0 for mask in masks], axis=0)
    parts = []
    for axis, size in enumerate(seen.shape):
        hit = np.flatnonzero(seen.any(1 - axis))
        low, high = (hit[0], hit[-1] + 1) if len(hit) else (0, size)
        margin = max(size // 10, -(-(size // 2 - (high - low)) // 2))
        parts.append(slice(max(0, low - margin), min(size, high + margin)))
    return parts[0], parts[1]


def grey_or_colour(slices: ShownSlices, row: int) -> np.ndarray:
    """(1 or 3, W, H) image in 0..1, as large as its ground truth: three channels are colour, else the first is shown.

    Its darkest and brightest hundredth are clipped.
    """
    image, (W, H) = slices.image(row), slices.truth(row).shape
    image = image if len(image) == 3 else image[:1]
    low, high = np.percentile(image, (1, 99))
    spread = np.clip((image - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    if image.shape[1:] == (W, H):
        return spread
    return np.stack([Image.fromarray(channel).resize((H, W), Image.Resampling.BILINEAR) for channel in spread])
