"""What leaves the source beside its network: a few named numbers, an entry of its checkpoints in plain types.

A method that never sees a source image may know these, and nothing else. They describe whole sets of images; no patient
and no slice is named.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from processes.errors import UserError
from utils import fits, listing

FORMAT = 1
LEVELS = 256  # quantiles of grey levels
KNOTS = 16  # of a curve from confidence to Dice
STATISTICS = ("mean", "sd", "median", "q05", "q25", "q75", "q95", "count")  # over the patients, or slices, that have it
SUMMARY = len(STATISTICS)
MOST = {"K": 256, "C": 1024, "*": 4096}  # classes, channels, features: more is no bundle of this program
LONGEST = 1000  # letters of a text
RISING = ("grey_quantiles", "grey_quantiles_body", "dice_curve")  # along their last axis
NETWORKS_OWN = "batch_norm"  # in the manifest, of numbers that stand in the network itself


class Quantity(NamedTuple):
    """Numbers of one kind: their shape, over which images they are taken, their unit, and what they are.

    dims: C channels, K classes, F of them foreground, * features, SUMMARY the STATISTICS; else a length
    """

    dims: tuple[str | int, ...]
    of: str
    unit: str
    what: str


A_CLASS, AN_AXIS = ("F", SUMMARY), ("F", 3, SUMMARY)
QUANTITIES = {
    "grey_quantiles": Quantity(
        ("C", LEVELS), "training", "grey level as the network sees it", "quantiles (i + 1/2) / 256, mean over patients"
    ),
    "grey_quantiles_body": Quantity(
        ("C", LEVELS), "training", "grey level as the network sees it", "the same, above the lowest level of a patient"
    ),
    "image_shares": Quantity(("K",), "training", "1", "share of the image, mean over slices, or over volumes"),
    "patients_with_class": Quantity(("F",), "training", "1", "share of the patients who have the class"),
    "slices_with_class": Quantity(A_CLASS, "training", "1", "share of a patient's slices that hold the class"),
    "volume_voxels": Quantity(A_CLASS, "training", "voxels", "volume in a patient who has the class"),
    "volume_mm3": Quantity(A_CLASS, "training", "mm3", "volume in a patient who has the class"),
    "area_pixels": Quantity(A_CLASS, "training", "pixels", "area in a slice that holds the class"),
    "area_share": Quantity(A_CLASS, "training", "1", "share of a slice that holds the class"),
    "area_mm2": Quantity(A_CLASS, "training", "mm2", "area in a slice that holds the class"),
    "components": Quantity(A_CLASS, "training", "pieces", "pieces of the class in a patient, joined by faces"),
    "largest_component": Quantity(A_CLASS, "training", "1", "share of the class in its largest piece"),
    "holes": Quantity(A_CLASS, "training", "1", "pixels in holes of its slices, per voxel of the class"),
    "continuity": Quantity(A_CLASS, "training", "1", "mean Dice of a patient's neighbouring slices, first to last"),
    "centroid": Quantity(AN_AXIS, "training", "field of view", "centre along D, W, H"),
    "spread": Quantity(AN_AXIS, "training", "field of view", "standard deviation of its voxels along D, W, H"),
    "spread_mm": Quantity(AN_AXIS, "training", "mm", "standard deviation of its voxels along D, W, H"),
    "prototypes": Quantity(("K", "*"), "training", "1", "mean over a class of the features that the classifier reads"),
    "dice": Quantity(A_CLASS, "validation", "1", "Dice of a patient"),
    "sdc": Quantity(A_CLASS, "validation", "1", "soft Dice confidence of a patient"),
    "sdc_scaled": Quantity(A_CLASS, "validation", "1", "soft Dice confidence of a patient at the temperatures"),
    "temperatures": Quantity(("K",), "validation", "1", "divide the logits of a pixel, by the class predicted there"),
    "temperature_residuals": Quantity(
        ("K",), "validation", "1", "confidence less score at the temperatures: accuracy of class 0, Dice of the others"
    ),
    "confusion": Quantity(("K", "K"), "validation", "1", "share of all pixels, by class (row) and predicted class"),
    "dice_curve": Quantity(
        ("F", 2, KNOTS),
        "validation",
        "1",
        "sdc at the temperatures, and the Dice expected there; of shifted images too",
    ),
    "dice_residuals": Quantity(
        ("F", 2), "validation", "1", "5 % and 95 % quantile of Dice less expected, by 1 + grey distance"
    ),
    "grey_distance": Quantity(
        ("C",),
        "validation",
        "grey level",
        "distance of a patient's levels from grey_quantiles, mean over patients",
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """The QUANTITIES as float64 arrays. NaN is a number that cannot be told, None a quantity that was left out.

    manifest: name -> what, unit, over (which images), numbers (how many), and left_out (why) where there are none
    """

    manifest: Mapping[str, Mapping[str, Any]]
    grey_quantiles: np.ndarray | None = None
    grey_quantiles_body: np.ndarray | None = None
    image_shares: np.ndarray | None = None
    patients_with_class: np.ndarray | None = None
    slices_with_class: np.ndarray | None = None
    volume_voxels: np.ndarray | None = None
    volume_mm3: np.ndarray | None = None
    area_pixels: np.ndarray | None = None
    area_share: np.ndarray | None = None
    area_mm2: np.ndarray | None = None
    components: np.ndarray | None = None
    largest_component: np.ndarray | None = None
    holes: np.ndarray | None = None
    continuity: np.ndarray | None = None
    centroid: np.ndarray | None = None
    spread: np.ndarray | None = None
    spread_mm: np.ndarray | None = None
    prototypes: np.ndarray | None = None
    dice: np.ndarray | None = None
    sdc: np.ndarray | None = None
    sdc_scaled: np.ndarray | None = None
    temperatures: np.ndarray | None = None
    temperature_residuals: np.ndarray | None = None
    confusion: np.ndarray | None = None
    dice_curve: np.ndarray | None = None
    dice_residuals: np.ndarray | None = None
    grey_distance: np.ndarray | None = None

    def statistic(self, name: str, which: str) -> np.ndarray | None:
        """One of the STATISTICS of a quantity that has them: (F,) or (F, 3); None where the quantity was left out."""
        values: np.ndarray | None = getattr(self, name)
        if QUANTITIES[name].dims[-1] != SUMMARY:
            raise KeyError(f"{name} has no {which}")
        return None if values is None else values[..., STATISTICS.index(which)]

    def state(self) -> dict[str, Any]:
        """The entry of a checkpoint, in plain types; `read_bundle` makes this of it again."""
        held = {name: getattr(self, name) for name in QUANTITIES}
        numbers = {name: _plain(values) for name, values in held.items() if values is not None}
        return {"format": FORMAT, "manifest": dict(self.manifest), "numbers": numbers}


def make_bundle(
    values: Mapping[str, np.ndarray], over: Mapping[str, str], left_out: Mapping[str, str], batch_norm: int
) -> Bundle:
    """The bundle of these quantities with its manifest.

    over: in words the images of "training" and of "validation"
    left_out: why a quantity is not among the values, of every other one
    batch_norm: numbers of statistics that the network's batch norms hold, as they leave the source too
    """
    manifest: dict[str, dict[str, Any]] = {}
    for name, (dims, of, unit, what) in QUANTITIES.items():
        of_all = f"{', '.join(STATISTICS)} of each foreground class: " if dims[-1] == SUMMARY else ""
        manifest[name] = {"what": of_all + what, "unit": unit, "over": over[of], "numbers": 0}
        if name in values:
            manifest[name]["numbers"] = values[name].size
        else:
            manifest[name]["left_out"] = left_out[name]
    what = "running mean and variance of each batch norm; they stand among the network's weights"
    manifest[NETWORKS_OWN] = {"what": what, "unit": "1", "over": over["training"], "numbers": batch_norm}
    return Bundle(manifest=manifest, **values)


def summarise(values: np.ndarray) -> np.ndarray:
    """(N, …) values -> (…, 8) STATISTICS: mean, deviation (of a sample), median, quantiles, and their number.

    NaN are left out; of nothing all but the number is NaN, and of one value the deviation.
    """
    columns = values.reshape(len(values), -1).T
    found = np.full((len(columns), SUMMARY), np.nan)
    for row, column in zip(found, columns, strict=True):
        known = column[~np.isnan(column)]
        row[7] = len(known)
        if len(known):
            quantiles = np.quantile(known, (0.5, 0.05, 0.25, 0.75, 0.95))
            row[:7] = [known.mean(), known.std(ddof=1) if len(known) > 1 else np.nan, *quantiles]
    return found.reshape(*values.shape[1:], SUMMARY)


def _plain(values: np.ndarray) -> list[Any]:
    """Nested lists of floats, None for NaN."""
    return np.where(np.isnan(values), None, values.astype(object)).tolist()


# ------------------------------------------------------------------------------------------------- reading


def read_bundle(state: Mapping[str, Any]) -> Bundle | None:
    """The bundle of a checkpoint, as load_checkpoint reads it; None where there is none, as in those of before.

    Raises UserError for an entry that is no bundle.
    """
    if "bundle" not in state:
        return None
    if faults := bundle_faults(state):
        raise UserError(f"The checkpoint's entry 'bundle' was not written by this program: {listing(faults, 3)}.")
    entry = state["bundle"]
    numbers = {name: np.array(values, dtype=np.float64) for name, values in entry["numbers"].items()}
    return Bundle(manifest=entry["manifest"], **numbers)


def bundle_faults(state: Mapping[str, Any]) -> list[str]:
    """What is wrong with the entry "bundle" of a checkpoint, whose network has "n_class" and "in_channels"."""
    entry = state["bundle"]
    sizes = {"K": state.get("n_class"), "C": state.get("in_channels")}
    if wrong := [name for name, size in sizes.items() if not fits(size, int) or not 0 < size <= MOST[name]]:
        return [f"the network's number of {' and '.join(wrong)} is {[sizes[name] for name in wrong]}"]
    if not isinstance(entry, Mapping) or set(entry) != {"format", "manifest", "numbers"}:
        return ["expected a format, a manifest and numbers"]
    if entry["format"] != FORMAT:
        return [f"its format is {entry['format']!r}, and {FORMAT} is the one that is known"]
    if not isinstance(entry["manifest"], Mapping) or not isinstance(entry["numbers"], Mapping):
        return ["its manifest or its numbers have no names"]
    told = [f"its manifest does not name {name}" for name in entry["numbers"] if name not in entry["manifest"]]
    return [*told, *_faults_of_manifest(entry["manifest"]), *_faults_of_numbers(entry["numbers"], sizes)]


def _faults_of_manifest(manifest: Mapping[Any, Any]) -> Iterator[str]:
    known = {*QUANTITIES, NETWORKS_OWN}
    for name, about in manifest.items():
        if name not in known:
            yield "its manifest names what is none of its quantities"
        elif not isinstance(about, Mapping) or not {"what", "unit", "over", "numbers"} <= about.keys():
            yield f"its manifest does not tell what {name} is"
        elif not fits(about["numbers"], int) or not all(
            isinstance(each, str) and len(each) <= LONGEST for key, each in about.items() if key != "numbers"
        ):
            yield f"its manifest says something else than words of {name}"


def _faults_of_numbers(numbers: Mapping[Any, Any], sizes: Mapping[str, int]) -> Iterator[str]:
    sizes = {**sizes, "F": sizes["K"] - 1}
    for name, values in numbers.items():
        if name not in QUANTITIES:
            yield "its numbers are of what is none of its quantities"
            continue
        dims = [_features(values) if size == "*" else sizes.get(size, size) for size in QUANTITIES[name].dims]
        if not _has_shape(values, dims):
            yield f"{name} is no list of {' x '.join(map(str, dims))} finite numbers"
        elif name == "temperatures" and not all(each is None or each > 0 for each in values):
            yield "a temperature is not above 0"
        elif name in RISING and any(map(_falls, itertools.chain(*values) if name == "dice_curve" else values)):
            yield f"{name} falls"


def _features(values: Any) -> int:
    """How many features a prototype has, as far as that can be."""
    first = values[0] if isinstance(values, list) and values else None
    return min(len(first), MOST["*"]) if isinstance(first, list) else 0


def _has_shape(value: Any, dims: Sequence[int]) -> bool:
    if not dims:
        return value is None or fits(value, float)
    if not isinstance(value, list) or len(value) != dims[0]:
        return False
    if len(dims) == 1 and set(map(type, value)) == {float}:  # most are, and one by one takes long
        return all(map(math.isfinite, value))
    return all(_has_shape(each, dims[1:]) for each in value)


def _falls(channel: Sequence[float | None]) -> bool:
    known = [level for level in channel if level is not None]
    return known != sorted(known)
