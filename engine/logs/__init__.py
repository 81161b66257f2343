"""Other logs of a run, a file each: importing the package reads every file in it, which fills LOGS.

The csv is the log of a run, and these are copies of it that other programs show. `base` says what a log has to do.
"""

import importlib
import pkgutil

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
