"""What the tasks of the Medical Segmentation Decathlon have in common: training and test scans, a table of contents."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from preprocess.phantom.render import Site


@dataclass(frozen=True)
class Contents:
    """What dataset.json says of a task, apart from its channels and scans."""

    task: str  # the folder
    name: str
    labels: tuple[str, ...]  # names of 0, 1, …


def with_tests(training: Site, scans: dict[str, int], **change: object) -> tuple[Site, Site]:
    """The training scans and those of the test, `scans` of each size: the same but for `change`, and without labels."""
    grids = {size: replace(grid, scans=scans[size]) for size, grid in training.grids.items()}
    stack = training.stack.replace("imagesTr", "imagesTs")
    return training, replace(training, stack=stack, labels=None, grids=grids, **change)


def write_contents(folder: Path, contents: Contents, channels: list[str]) -> None:
    """Writes dataset.json next to the scans that lie in the task's folder below `folder`."""
    root = folder / contents.task
    training, test = (sorted(path.name for path in (root / part).iterdir()) for part in ("imagesTr", "imagesTs"))
    card = {
        "name": contents.name,
        "description": f"PHANTOM, made up in the layout of {contents.task}: proves nothing about real patients",
        "reference": "preprocess.phantom",
        "licence": "none needed: no patient is in it",
        "tensorImageSize": "4D",
        "modality": {str(number): name for number, name in enumerate(channels)},
        "labels": {str(number): name for number, name in enumerate(contents.labels)},
        "numTraining": len(training),
        "numTest": len(test),
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in training],
        "test": [f"./imagesTs/{name}" for name in test],
    }
    (root / "dataset.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
