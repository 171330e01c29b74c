"""Gradient-based training of small policies; knows nothing of closed forms."""

from kltarget.training import estimators, losses
from kltarget.training._bandit_play import BanditPlay, bandit_play
from kltarget.training._chain_training import ChainRun, fine_tune_chain
from kltarget.training._distillation import Distillation, distill
from kltarget.training._fine_tune import dpo, f_dpg, fine_tune, sft
from kltarget.training._fine_tune_texts import f_dpg_on_texts, fine_tune_on_texts, sft_on_texts
from kltarget.training._fitting import Fit, fit
from kltarget.training._game_iterations import GamePath, mirror_prox, nash_md
from kltarget.training._imitate import imitate
from kltarget.training._mdp_training import MDPRun, fine_tune_mdp
from kltarget.training._mirror import MirrorAscent, mirror_ascent
from kltarget.training._optimistic_play import OptimisticPlay, optimistic_play
from kltarget.training._runs import History, Run, RunStatus, TextHistory, TextRun
from kltarget.training._self_play import SelfPlay, self_play
from kltarget.training._value_iterations import (
    ValueIterates,
    mirror_descent_vi,
    munchausen_vi,
)

__all__ = [
    "BanditPlay",
    "ChainRun",
    "Distillation",
    "Fit",
    "GamePath",
    "History",
    "MDPRun",
    "MirrorAscent",
    "OptimisticPlay",
    "Run",
    "RunStatus",
    "SelfPlay",
    "TextHistory",
    "TextRun",
    "ValueIterates",
    "bandit_play",
    "distill",
    "dpo",
    "estimators",
    "f_dpg",
    "f_dpg_on_texts",
    "fine_tune",
    "fine_tune_chain",
    "fine_tune_mdp",
    "fine_tune_on_texts",
    "fit",
    "imitate",
    "losses",
    "mirror_ascent",
    "mirror_descent_vi",
    "mirror_prox",
    "munchausen_vi",
    "nash_md",
    "optimistic_play",
    "self_play",
    "sft",
    "sft_on_texts",
]
