"""Ways to learn, a file each: importing the package reads every file in it, which fills METHODS.

`base` says what the training loop asks of a method, `objective` what all of them minimise.
"""

import importlib
import pkgutil

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
