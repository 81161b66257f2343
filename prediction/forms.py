"""The form in which predictions are handed on: where a mask lies, by the name of its volume, and what lies beside it.

`plain` is this project's own. `nnunet` is as nnU-Net v2 predicts: <case>.nii.gz of <case>_0000.nii.gz, and a
dataset.json that names the labels. `bids` is a data set of derivatives, with masks called
sub-<label>/[ses-<label>/]anat/…_desc-predicted_dseg.nii.gz.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from files.volume_names import FILE_NAME
from prediction.label_tables import bids_table, write_label_tables, write_text
from processes.errors import UserError
from utils import listing

SUFFIX = ".nii.gz"
BIDS_VERSION = "1.9.0"


def _beside(patient: str) -> str:
    return f"{patient}{SUFFIX}"


def _in_bids(patient: str) -> str:
    """The path of the mask of a volume called so; its contrast gives way to dseg, its other entities stay."""
    parts = [part for part in patient.split("_") if re.fullmatch(r"[A-Za-z]+-[A-Za-z0-9]+", part)]
    entities = dict(part.split("-") for part in parts)
    if "sub" not in entities:
        entities = {"sub": re.sub(r"[^A-Za-z0-9]", "", patient) or "x"}
    entities["desc"] = "predicted"
    name = "_".join(f"{key}-{value}" for key, value in entities.items())
    folders = "/".join(f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities)
    return f"{folders}/anat/{name}_dseg{SUFFIX}"


def _no_notes(folder: Path, names: Mapping[int, str]) -> None:
    """The masks, and the tables that all forms have, are all there is."""


def _nnunet_notes(folder: Path, names: Mapping[int, str]) -> None:
    """The dataset.json of the predictions: one name a label, the background under the name that nnU-Net looks for."""
    labels: dict[str, int] = {"background": 0}
    for label, name in names.items():
        if label:
            labels[f"{name} ({label})" if name in labels else name] = label
    about = {"channel_names": {"0": "image"}, "labels": labels, "file_ending": SUFFIX}
    write_text(folder / "dataset.json", _as_json(about))


def _bids_notes(folder: Path, names: Mapping[int, str]) -> None:
    about = {"Name": "Predicted segmentations", "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative"}
    about["GeneratedBy"] = [{"Name": "predict.py", "Description": "see predict.json"}]
    write_text(folder / "dataset_description.json", _as_json(about))
    write_text(folder / "dseg.tsv", bids_table(names))
    write_text(
        folder / ".bidsignore", "predict.json\nvolumes.csv\nlabels_*\nprobabilities/\nentropy/\nsegments/\nmontage/\n"
    )


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"


@dataclass(frozen=True)
class Form:
    """name; place: patient -> the mask's path in the folder; patient: expression of an id where none is typed."""

    name: str = "plain"
    place: Callable[[str], str] = _beside
    patient: str = FILE_NAME
    notes: Callable[[Path, Mapping[int, str]], None] = _no_notes

    def check(self, patients: Iterable[str]) -> None:
        """Raises UserError where two patients' masks would be one file."""
        homes: dict[str, list[str]] = {}
        for patient in patients:
            homes.setdefault(self.place(patient), []).append(patient)
        if shared := [names for names in homes.values() if len(names) > 1]:
            raise UserError(
                f"--layout {self.name}: the masks of {listing(shared[0])} would be one file, "
                f"{self.place(shared[0][0])}. Narrow --volumes to one image of each patient."
            )

    def write_notes(self, folder: Path, names: Mapping[int, str]) -> None:
        """What tells viewers and other programs what the labels are. `names`: label -> name, by class."""
        write_label_tables(folder, names)
        self.notes(folder, names)


CHANNEL = FILE_NAME.replace("(.+?)", r"(.+?)(?:_\d{4})?", 1)
PLAIN = Form()
NNUNET = Form("nnunet", _beside, CHANNEL, _nnunet_notes)
BIDS = Form("bids", _in_bids, FILE_NAME, _bids_notes)
FORMS = {form.name: form for form in (PLAIN, NNUNET, BIDS)}
