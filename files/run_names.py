"""What is called how in a run's folder, for who writes it and who reads it: of the last, best and chosen network."""

import re
from pathlib import Path

MASKS = {"last": "last_epoch", "chosen": "chosen", "best_3d": "best_epoch_3d"}  # folders, as is iter007 of an epoch
PATIENTS = {which: f"patients_{which}.csv" for which in MASKS}  # scores, a row a patient and class
COST = "cost.json"  # seconds, updates, memory, energy
EXPECTED = "patients_expected.csv"  # what is expected of the masks without labels, a row a patient and class
CLASSES = {which: f"classes_{which}.csv" for which in MASKS}  # of pictures, over all of a set
CHOSEN = "chosen.pkl"  # the network that was chosen without labels
SELECTION = "selection"  # .csv and .txt: what spoke for it
DECIDING = ("cmr_ei", "continuity")  # the validators, columns of selection.csv, whose mean chooses
WITNESSES = ("edge", "contrast", "mixval")  # those that may speak against a choice
HEARD = (*DECIDING, "refresh", *WITNESSES)  # all that a choice listens to
LABELLED = "labelled_dice"  # the column that chooses where a few patients' labels do
CANDIDATES = "candidates"  # folder with copies of the network, of which one is chosen without labels
SHOWN = "shown"  # folder with pictures of a few slices, for logs that show them (--log)


def candidate_name(epochs_done: int) -> str:
    """Where in a run's folder the network after so many epochs is kept; 0: before the first step."""
    return f"{CANDIDATES}/epoch_{epochs_done:04d}.pkl"


def shown_name(epoch: int) -> str:
    """Where in a run's folder the picture of an epoch is kept, the first epoch being 0."""
    return f"{SHOWN}/epoch_{epoch:04d}.png"


def candidates_of(run: Path) -> dict[int, Path]:
    """Number of epochs done -> the copy of the network then, in this order; {} where none was kept."""
    found = {path: re.fullmatch(r"epoch_(\d{4,})\.pkl", path.name) for path in (run / CANDIDATES).glob("*.pkl")}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))
