"""Self-training of a source network: it learns on the target from its own pseudo labels, and from nothing else."""

from methods.base import METHODS
from methods.pseudo_label import PseudoLabel
from methods.thresholds import ThresholdSettings


@METHODS.register()
class SelfTraining(PseudoLabel):
    """Pseudo labels without any label: a source network goes on from its own predictions on the target.

    No ground truth holds the border, so keep the threshold near 0.5: above it the foreground shrinks step by step, and
    below it grows.
    """

    streams = ("target",)
    labelled = ()
    needs_weights = True
    supervision = "none"

    Settings = ThresholdSettings
