"""The scores themselves, for whoever wants to calculate: a line a row, seed, network, patient and class."""

from collections.abc import Iterator
from typing import Any

from metrics import SCORES
from study.reading import NETWORKS, Study

PLACE = ("row", "seed", "network")
COLUMNS = ("patient", "class", "outcome", *SCORES, "predicted", "true", "diagonal")
OF_IOU = ("patient", "class", "iou", "intersection", "union")


def every_cell(study: Study) -> Iterator[list[Any]]:
    """The header, then the lines."""
    columns = OF_IOU if study.by_iou else COLUMNS
    yield [*PLACE, *columns]
    for (row, seed), run in sorted(study.runs.items()):
        for which in NETWORKS:
            for entry in study.entries(run, which):
                yield [row, seed, which, *(entry[name] for name in columns)]
