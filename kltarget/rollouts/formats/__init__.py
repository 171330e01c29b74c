"""What trainers and evaluators write, a file for each.

The files called after a trainer's log, or an evaluator's samples, say which columns its files are
known by, and how a row of them becomes a rollout. What a trainer's log fits is one.
"""

import importlib
import pkgutil

from kltarget.rollouts.formats._format import FORMATS as FORMATS

_names = [module.name for module in pkgutil.iter_modules(__path__, f"{__name__}.")]
for _ending in ("_log", "_samples"):
    for _name in _names:
        if _name.endswith(_ending):
            importlib.import_module(_name)
