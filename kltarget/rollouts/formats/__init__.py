"""What trainers write, a file per trainer.

The files called after a trainer's log say which columns its files are known by, and how a row of
them becomes a rollout.
"""

import importlib
import pkgutil

from kltarget.rollouts.formats._format import FORMATS as FORMATS

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    if _module.name.endswith("_log"):
        importlib.import_module(_module.name)
