"""The masks and entropy maps that a run saved, and the slices that they were predicted on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.run import AGAIN, Run, regex
from datasets.transforms import parse_folders
from files.decoding import open_picture
from files.foreign import reading
from files.run_names import MASKS
from processes.errors import UserError
from utils import listing, read_literal

if TYPE_CHECKING:
    from datasets.slices import SliceSet  # opened where it is needed: it brings torch, which takes seconds


@dataclass(frozen=True)
class Masks:
    """What lies in a run's folder beside its numbers. The methods raise UserError naming what is missing or broken."""

    run: Run

    def picture(self, which: str, name: str) -> np.ndarray:
        """(W, H) class numbers predicted on a slice; `which`: last, chosen, best_3d or a folder such as iter004."""
        return read_mask(self.folder(which) / f"{name}.png")

    def folder(self, which: str) -> Path:
        """Where the masks of an epoch lie."""
        return self.run.folder / MASKS.get(self.run.standing_for(which), which) / "val"

    def names(self, which: str) -> list[str]:
        """The slices whose prediction was saved; raises UserError where none was."""
        self._must_be_slices()
        names = sorted(path.stem for path in self.folder(which).glob("*.png"))
        if not names:
            raise UserError(f"{self.folder(which)} holds no mask; run it again with --saveim 1.")
        return names

    def prediction(self, which: str, slices: "SliceSet", row: int) -> np.ndarray:
        """(W, H) class numbers predicted on a slice of the set.

        Raises UserError if they do not fit its ground truth.
        """
        mask, true = self.picture(which, slices.names[row]), slices.truth(row)
        if mask.shape != true.shape:
            raise UserError(
                f"{self.run.folder} predicted {mask.shape} pixels on {slices.names[row]}, the ground truth in "
                f"{slices.root} has {true.shape}: these are not the images of that run."
            )
        if mask.max() >= self.run.n_class:
            raise UserError(
                f"{self.run.folder} predicted class {mask.max()} on {slices.names[row]}, but has {self.run.n_class} "
                "classes; run it again."
            )
        return mask

    def entropy(self, name: str) -> np.ndarray:
        """(W, H) entropy of the last network on a slice, 1 where every class is equally likely."""
        return read_mask(self.run.folder / "ent_map" / f"{name}.png") / 255

    @property
    def has_entropy(self) -> bool:
        return (self.run.folder / "ent_map").is_dir()

    def epochs(self) -> dict[int, str]:
        """Number -> name of the folders iter000, iter001, …, in order; raises UserError where there is none."""
        names = [path.parent.name for path in self.run.folder.glob("iter*/val")]
        if not names:
            raise UserError(f"{self.run.folder} holds no iter000/val; run it again with --saveim 1.")
        found = dict(sorted((int(name[4:]), name) for name in names))
        if max(found) >= self.run.n_epoch:
            raise UserError(
                f"{self.run.folder} holds masks of epoch {max(found)}, counted from 0, and its provenance.json has "
                f"{self.run.n_epoch} epochs: these are not files of one run; {AGAIN}."
            )
        return found

    def slices(self, data: Path | None = None) -> "SliceSet":
        """The slices that the run was evaluated on, with their ground truth.

        `data`: where the set lies now; else where it lay when the run was made. Raises UserError when it is not there.
        """
        self._must_be_slices()
        slices = self._open(data, 2)
        seen = set(self.run.names)
        rows = [row for row, name in enumerate(slices.names) if name in seen]
        if lost := sorted(seen - set(slices.names)):
            raise UserError(
                f"{slices.root / slices.split} lacks {len(lost)} of the {len(seen)} slices that {self.run.folder} was "
                f"evaluated on (its val_names.txt): {listing(lost)}. Put them back, or name the set of that run with "
                "--data."
            )
        return slices.keep(rows)

    def are_of(self, slices: "SliceSet") -> bool:
        """Whether these slices are, byte for byte, what the run was evaluated on; True where it does not tell."""
        noted = self.run.provenance.get("inputs", {}).get("val")
        if not noted or slices.digest == noted or self.run.provenance.get("debug"):  # which has few slices of the set
            return True
        try:
            return self._open(slices.root).digest == noted  # the maps of its losses included
        except UserError:  # which lie there no more
            return False

    def _open(self, data: Path | None, n_folder: int | None = None) -> "SliceSet":
        """Opens the split that the run was evaluated on, with the first so many folders: image, ground truth, …"""
        params = self.run.params
        split = next((name for name in ("test", "train") if params.get(f"on{name}", "0") not in ("0", "False")), "val")
        root = data or Path(self.run.provenance["dataset"]["path"])
        if not (root / split).is_dir():
            raise UserError(
                f"The pictures of {self.run.folder} are drawn over the images it was evaluated on, and {root / split} "
                "is not there. Make the data set again, or name its folder with --data."
            )
        keys = ("val_target_folders", "target_folders")
        key = next((key for key in keys if params.get(key, "").startswith("[")), keys[-1])
        folders = self.run.param(key, "", lambda text: parse_folders(text, len(read_literal(text))))[:n_folder]
        pattern = self.run.param("grp_regex", "", regex)
        from datasets.slices import open_slices  # brings torch, which a report does without

        return open_slices(root, split, folders, self.run.n_class, pattern, ignore=self.run.ignore, any_truth_size=True)

    def _must_be_slices(self) -> None:
        if not self.run.scored:
            raise UserError(
                f"{self.run.folder} was evaluated without ground truth, which pictures and scores of saved masks need."
            )
        if self.run.provenance.get("volumes"):
            raise UserError(
                f"{self.run.folder} was evaluated on volumes, whose masks are .nii.gz; pictures, and scores of saved "
                "masks, are made of slices."
            )


def read_mask(path: Path) -> np.ndarray:
    """(W, H) grey levels of a saved prediction (class numbers) or entropy map (0..255)."""
    if not path.exists():
        raise UserError(f"{path} is missing; run it again with --saveim 1 (--entmap 1 for entropy).")
    with reading(path, "run it again"), open_picture(path.read_bytes()) as image:
        return np.asarray(image.convert("L") if image.mode == "RGB" else image)
