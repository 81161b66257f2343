"""How true the probabilities of each row are, as a table."""

from analysis.tables.table import Report
from study.calibration import calibration_cells, calibration_table, without_calibration
from study.reading import Study
from study.tables.words import warnings

NOTES = [
    "Of the pixels of all patients together, the mean ± sd over seeds; lower is better. NLL: negative log-likelihood; "
    "Brier: mean squared error of the probability; CW-ECE: class-wise expected calibration error; ACE, TACE: average "
    "and thresholded adaptive calibration error.",
    "Region: the whole image, or the band of 5 mm round prediction and truth, as the background is easy. Tempered: at "
    "the temperature that is fitted to unlabelled training images.",
]


def make_calibration(study: Study) -> Report | None:
    """None where no run was evaluated."""
    header, rows = calibration_cells(study)
    if not rows:
        return None
    lines = calibration_table(study).to_dict("records")
    above = [*warnings(study), *without_calibration(study)]
    return Report(f"Calibration of {study.asked.name}", above, header, [("Rows", rows)], NOTES, lines)
