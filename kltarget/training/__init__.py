"""Gradient-based training of small policies; knows nothing of closed forms."""

from kltarget.training import estimators
from kltarget.training._forgetting import ForgettingPath, forgetting_path
from kltarget.training._mixture_policy import GaussianMixturePolicy
from kltarget.training.fitting import Fit, fit, load_params, save_params
from kltarget.training.mirror import MirrorAscent, mirror_ascent
from kltarget.training.policies import GRUPolicy, Policy, TabularPolicy, TransformerPolicy
from kltarget.training.recipes import Recipe, recipe
from kltarget.training.runs import History, Run, RunStatus
from kltarget.training.solver import dpo, f_dpg, fine_tune, sft

__all__ = [
    "Fit",
    "ForgettingPath",
    "GRUPolicy",
    "GaussianMixturePolicy",
    "History",
    "MirrorAscent",
    "Policy",
    "Recipe",
    "Run",
    "RunStatus",
    "TabularPolicy",
    "TransformerPolicy",
    "dpo",
    "estimators",
    "f_dpg",
    "fine_tune",
    "fit",
    "forgetting_path",
    "load_params",
    "mirror_ascent",
    "recipe",
    "save_params",
    "sft",
]
