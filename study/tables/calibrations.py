"""How true the probabilities of each row are, as a table."""

from analysis.tables.table import Report
from study.calibration import band_words, calibration_cells, calibration_table, without_calibration
from study.reading import Study
from study.tables.words import warnings

SCORES = (
    "Of the pixels of all patients together, the mean ± sd over seeds; lower is better. NLL: negative log-likelihood; "
    "Brier: mean squared error of the probability; CW-ECE: class-wise expected calibration error; ACE, TACE: average "
    "and thresholded adaptive calibration error."
)
REGIONS = (
    "Region: the whole image, or the band: what prediction or truth give the class, and {} round it, as the background "
    "is easy. Tempered: at the temperature that is fitted to unlabelled training images."
)


def make_calibration(study: Study) -> Report | None:
    """None where no run was evaluated."""
    header, rows = calibration_cells(study)
    if not rows:
        return None
    lines = calibration_table(study).to_dict("records")
    notes = [SCORES, REGIONS.format(band_words(study))]
    above = [*warnings(study), *without_calibration(study)]
    return Report(f"Calibration of {study.asked.name}", above, header, [("Rows", rows)], notes, lines)
