"""Layouts in which data sets are handed on: a file each, which finds images, labels, names and split in a folder.

Importing the package reads every file in it, which fills LAYOUTS; `layout` says what each of them has to find.
"""

import importlib
import pkgutil

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
