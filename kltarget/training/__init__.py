"""Gradient-based training of small policies; knows nothing of closed forms."""

from kltarget.training import estimators
from kltarget.training._bandit_play import BanditPlay, bandit_play
from kltarget.training._fine_tune import dpo, f_dpg, fine_tune, sft
from kltarget.training._fitting import Fit, fit
from kltarget.training._mirror import MirrorAscent, mirror_ascent
from kltarget.training._runs import History, Run, RunStatus
from kltarget.training._value_iterations import (
    ValueIterates,
    mirror_descent_vi,
    munchausen_vi,
)

__all__ = [
    "BanditPlay",
    "Fit",
    "History",
    "MirrorAscent",
    "Run",
    "RunStatus",
    "ValueIterates",
    "bandit_play",
    "dpo",
    "estimators",
    "f_dpg",
    "fine_tune",
    "fit",
    "mirror_ascent",
    "mirror_descent_vi",
    "munchausen_vi",
    "sft",
]
