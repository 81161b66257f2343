"""One file per family; importing the package fills METHODS."""

from methods import sfda, supervised
from methods.base import METHODS, Method

__all__ = ["METHODS", "Method", "sfda", "supervised"]
