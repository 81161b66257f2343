"""One file per family; importing the package fills METHODS."""

from methods import adversarial, contrastive, pseudo_label, sfda, supervised
from methods.base import METHODS, Method

__all__ = ["METHODS", "Method", "adversarial", "contrastive", "pseudo_label", "sfda", "supervised"]
