"""What a set of slices shall look like: every setting of the slicer, checked against the others."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from files.grey_levels import Normalisation
from files.grids import ORIENT_RULE, RADIOLOGICAL, TOLERANCE, TOLERANCE_RULE, Grid, is_direction
from files.labels import LabelMap, parse_label_map
from preprocess.slicing.frames import Frame
from processes.errors import UserError
from utils import doubled, listing

FORMATS = ("png", "nii", "nii.gz", "npy")
IGNORED = 255  # what a slice holds where --ignore says that nobody knows the class
LONGEST = 2**15 - 1  # pixels of a side: what the header of a NIfTI can say


@dataclass(frozen=True)
class Blocks:
    """A split inside one volume: blocks of `size` neighbouring slices, every `every`-th of them for validation.

    For demonstrations with one patient only: neighbours in two splits look alike.
    """

    size: int
    every: int

    def split_of(self, index: int) -> str:
        return "val" if index // self.size % self.every == self.every - 1 else "train"


def cut_round_labels(card: Mapping[str, Any]) -> bool:
    """Whether a set's slices were cut round what is labelled, by its card (older ones: a use of labels)."""
    return card.get("centre", "labels" if card.get("uses_labels") else "volume") == "labels"


@dataclass(frozen=True)
class SliceSpec:
    """Everything that decides what a set looks like; the fields are the flags of the command line (see its help).

    images: folder -> glob, or the globs of its channels. Raises UserError for settings that contradict each other.
    """

    dest: Path
    images: dict[str, str | tuple[str, ...]]
    patient: str
    label: str | None = None
    label_folder: str = "GT"
    distance_maps: str | None = None
    channel: int | None = None
    axis: int = 2
    orient: str | None = RADIOLOGICAL  # directions that the axes are turned to; None: as stored
    format: str = "png"
    bits: int = 8
    normalisation: Normalisation = field(default_factory=Normalisation)
    size: tuple[int, int] | None = None
    multiple: int | None = None
    centre: str = "volume"  # or "labels": the middle of all that is labelled, which is a use of labels
    resize: tuple[int, int] | None = None
    spacing: tuple[float, float] | None = None
    n4: bool = False
    n4_shrink: int = 1
    label_map: str | None = None
    others: int | None = None  # None: an error
    n_class: int | None = None  # None: what --label_map or the labels say
    ignore: int | None = None  # a label without a class, which becomes IGNORED and counts nowhere
    class_names: tuple[str, ...] = ()  # of all classes, the background first
    val: int = 0
    val_list: tuple[str, ...] = ()
    test: int = 0
    test_list: tuple[str, ...] = ()
    split_by_blocks: Blocks | None = None
    seed: int = 0
    group: str | None = None
    tolerance: float = TOLERANCE
    place_labels: bool = False
    site: str = ""
    modality: str = ""
    phantom: str | None = None
    jobs: int = 1

    @classmethod
    def from_card(cls, card: Mapping[str, Any], **files: Any) -> "SliceSpec":
        """The settings that a set's dataset.json tells of, for other volumes; `files`: the fields it cannot tell of.

        Of a set that was cut round its labels no size is told: other volumes have none, so their planes stay whole.
        Raises UserError for a card that lacks any setting. One written before `cut` was told cuts to the set's size.
        """
        try:
            how, n4, resized = card["normalisation"], card["n4"], card["resized"] and not card["spacing"]
            usual = {"size": None if resized else card["size"], "resize": card["size"] if resized else None}
            cut = {name: n and tuple(n) for name, n in card.get("cut", {**usual, "spacing": card["spacing"]}).items()}
            cut |= {"size": None} if cut_round_labels(card) else {}
            return cls(
                normalisation=Normalisation.from_card(how),
                n4=n4 is not None,
                n4_shrink=n4["shrink"] if n4 else 1,
                label_map=card["label_map"] and ",".join(f"{old}:{new}" for old, new in card["label_map"].items()),
                others=None if card["other_labels"] == "error" else card["other_labels"],
                ignore=card.get("ignore_label"),
                bits=card["bits"] or 8,
                multiple=card.get("multiple"),
                orient=card.get("orient"),
                **{name: card[name] for name in ("channel", "axis", "format", "n_class", "phantom")},
                **cut,
                **files,
            )
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"The card (dataset.json) of the set {card.get('name', 'without a name')} does not tell how its "
                f"volumes were made slices ({error!r}); expected one that preprocess.slice_volumes wrote."
            ) from error

    def __post_init__(self) -> None:
        checks = [*self._checks_of_folders(), *self._checks_of_slices(), *self._checks_of_the_split()]
        wrong = [text for is_right, text in checks if not is_right]
        if wrong:
            raise UserError(f"Cannot slice into {self.dest}: {'; '.join(wrong)}.")

    def _checks_of_folders(self) -> list[tuple[bool, str]]:
        """(whether it is right, what to say if not)."""
        names = [*self.images, self.label_folder, *([self.distance_maps] if self.distance_maps else [])]
        twice = doubled(names)
        layered = [name for name, globs in self.images.items() if not isinstance(globs, str)]
        return [
            (
                all(re.fullmatch(r"[\w-]+", name) for name in names),
                f"folders are named with letters, digits, _ and -, got {listing(names)}",
            ),
            (
                not twice,
                f"image, ground truth and distance maps lie in folders of their own, {listing(twice)} is named twice",
            ),
            (
                not layered or self.format != "png",
                f"png holds one channel a slice and {listing(layered)} has several: take --format npy or nii",
            ),
            (
                self.centre == "volume" or (self.label and self.size and not self.place_labels),
                "--centre labels goes with --label and --size, and without --place_labels",
            ),
            (self.label or not self.place_labels, "--place_labels moves label volumes: give --label"),
            (self.label or not self.distance_maps, "--distance_maps are made of the ground truth: give --label"),
            (
                self.n_class or self.label_map or not self.distance_maps,
                "--distance_maps, one a class, need the number of classes: give --n_class K or --label_map",
            ),
        ]

    def _checks_of_slices(self) -> list[tuple[bool, str]]:
        sizes = [*(self.size or ()), *(self.resize or ()), *([] if self.multiple is None else [self.multiple])]
        return [
            (self.axis in (0, 1, 2), f"--axis is 0, 1 or 2, got {self.axis}"),
            (
                self.orient is None or is_direction(self.orient),
                f"{ORIENT_RULE}; got {self.orient}",
            ),
            (self.format in FORMATS, f"--format is one of {listing(FORMATS)}, got {self.format}"),
            (self.bits == 8 or (self.bits, self.format) == (16, "png"), "--bits is 8, or 16 with --format png"),
            (
                self.format != "png" or not (self.normalisation.no_clip or self.normalisation.kind == "zscore"),
                "png holds 0..1 and z-scores leave that range, as --no_clip does: take --format nii or npy, or another "
                "--normalise",
            ),
            (
                all(0 < size <= LONGEST for size in sizes),
                f"--size W H, --resize W H and --multiple M are numbers from 1 upwards, to {LONGEST}",
            ),
            (self.tolerance >= 0, f"{TOLERANCE_RULE}, got {self.tolerance:g}"),
            (
                not (self.resize and (self.size or self.multiple or self.spacing)),
                "--resize W H excludes --size, --multiple and --spacing",
            ),
            (all(0 < mm < math.inf for mm in self.spacing or ()), "--spacing W H are mm, above 0"),
            (self.channel is None or self.channel >= 0, f"--channel counts from 0, got {self.channel}"),
            (self.n4_shrink >= 1, f"--n4_shrink is at least 1, got {self.n4_shrink}"),
            (self.n4 or self.n4_shrink == 1, "--n4_shrink goes with --n4"),
            (self.others is None or self.label_map, "--others goes with --label_map"),
            (
                self.ignore is None or (self.label_map and self.label and not self.distance_maps),
                "--ignore goes with --label and --label_map, and without --distance_maps",
            ),
            (
                self.ignore is None or self.ignore not in (self._given() or LabelMap({0: 0})).classes,
                f"--ignore {self.ignore} is a label that --label_map gives a class",
            ),
            (
                not self.class_names or len(self.class_names) == self.class_count(),
                f"--class_names are the names of all classes, the background first, and go with --n_class or "
                f"--label_map: {self.class_count() or 'how many'}, got {len(self.class_names)}",
            ),
            (self.n_class is None or 1 <= self.n_class <= 256, f"--n_class is 1 to 256, got {self.n_class}"),
            (self.jobs > 0, "--jobs is at least 1"),
        ]

    def _checks_of_the_split(self) -> list[tuple[bool, str]]:
        chosen = self.val or self.test or self.val_list or self.test_list
        return [
            (not (self.val and self.val_list), "--val N and --val_list exclude each other"),
            (not (self.test and self.test_list), "--test N and --test_list exclude each other"),
            (min(self.val, self.test) >= 0, "--val and --test are numbers of patients"),
            (self.val or self.val_list or self.split_by_blocks, "say who validates, with --val N or --val_list"),
            (not (self.split_by_blocks and chosen), "a split by blocks of slices takes no other split"),
            (
                not self.split_by_blocks or (self.split_by_blocks.size >= 1 and self.split_by_blocks.every >= 2),
                "--split_by_blocks are slices a block, 1 or more, and how often a block validates, each 2nd or more",
            ),
        ]

    def folders(self) -> dict[str, dict[str, str]]:
        """Folder of slices -> role -> glob, images first.

        A role is what one volume of a patient is for: the folder, and which channel if it has several.
        """
        labels = {self.label_folder: self.label} if self.label else {}
        return {
            name: {name: globs} if isinstance(globs, str) else {f"{name}[{c}]": g for c, g in enumerate(globs)}
            for name, globs in {**self.images, **labels}.items()
        }

    def mapping(self) -> LabelMap | None:
        """What each label becomes: its class, or IGNORED."""
        mapping = self._given()
        if mapping is None or self.ignore is None:
            return mapping
        return LabelMap({**mapping.classes, self.ignore: IGNORED}, mapping.others)

    def _given(self) -> LabelMap | None:
        """The label map as it is written."""
        return parse_label_map(self.label_map, self.others) if self.label_map else None

    def class_count(self) -> int | None:
        """K by --n_class, else by --label_map; None if only the labels tell."""
        mapping = self._given()
        return self.n_class or (1 + max(mapping.numbers()) if mapping else None)

    def frame(self, grid: Grid) -> Frame:
        """How the planes of this grid become slices. Raises UserError for a spacing that makes them too large."""
        shape = tuple(n for axis, n in enumerate(grid.shape) if axis != self.axis)
        if self.resize:
            return Frame(shape, self.resize, self.resize)
        scaled = shape
        if self.spacing:
            own = (mm for axis, mm in enumerate(grid.spacing()) if axis != self.axis)
            scaled = tuple(max(1, round(n * mm / new)) for n, mm, new in zip(shape, own, self.spacing, strict=True))
            if max(scaled) > LONGEST:
                raise UserError(
                    f"--spacing {listing(self.spacing)} makes planes of {scaled[0]} x {scaled[1]} pixels; a side has "
                    f"{LONGEST} at most. It is in mm."
                )
        centre = grid.centre and tuple(place for axis, place in enumerate(grid.centre) if axis != self.axis)
        return Frame.centred(shape, scaled, self.size, self.multiple, centre)

    def spacing_of(self, grid: Grid) -> tuple[float, float, float]:
        """mm from slice to slice, and between the pixels of a slice along W and H."""
        w, h = (axis for axis in range(3) if axis != self.axis)
        spacing, step = grid.spacing(), self.frame(grid).step
        return spacing[self.axis], spacing[w] * step[0], spacing[h] * step[1]
