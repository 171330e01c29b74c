"""What trainers write, a file per trainer.

The files called after a trainer's log have `FORMATS`: the columns that its files are known by, and
how a row of them becomes a rollout.
"""

import importlib
import pkgutil

FORMATS = tuple(
    format
    for module in pkgutil.iter_modules(__path__, f"{__name__}.")
    if module.name.endswith("_log")
    for format in importlib.import_module(module.name).FORMATS
)
