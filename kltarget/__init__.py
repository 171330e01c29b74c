"""Exact target distributions of KL- and f-divergence-regularised reward maximisation."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from kltarget.divergences import (
    Alpha,
    ChiSquared,
    ChiSquaredKL,
    Divergence,
    FDivergence,
    ForwardKL,
    JensenShannon,
    NeymanChiSquared,
    ReverseKL,
    SquaredHellinger,
    TotalVariation,
    Tsallis,
    kl,
)
from kltarget.modes import (
    collapse_beta,
    coverage,
    effective_modes,
    entropy,
    flip_beta,
    log_odds,
    mode_log_mass,
    pass_at_k,
    pass_at_k_from_counts,
)
from kltarget.objectives import Objective, normalize
from kltarget.rewards import mara, reward_for
from kltarget.spaces.sequences import (
    SequenceSpace,
    soft_values,
    token_advantages,
    token_local_target,
)
from kltarget.status import Status
from kltarget.summary import Summary, SummaryRow, summarize
from kltarget.targets import Target, greedy_limit, reference_limit, solve

if TYPE_CHECKING:
    from kltarget import plot, tables, tasks, testing

__all__ = [
    "Alpha",
    "ChiSquared",
    "ChiSquaredKL",
    "Divergence",
    "FDivergence",
    "ForwardKL",
    "JensenShannon",
    "NeymanChiSquared",
    "Objective",
    "ReverseKL",
    "SequenceSpace",
    "SquaredHellinger",
    "Status",
    "Summary",
    "SummaryRow",
    "Target",
    "TotalVariation",
    "Tsallis",
    "collapse_beta",
    "coverage",
    "effective_modes",
    "entropy",
    "flip_beta",
    "greedy_limit",
    "kl",
    "log_odds",
    "mara",
    "mode_log_mass",
    "normalize",
    "pass_at_k",
    "pass_at_k_from_counts",
    "plot",
    "reference_limit",
    "reward_for",
    "soft_values",
    "solve",
    "summarize",
    "tables",
    "tasks",
    "testing",
    "token_advantages",
    "token_local_target",
]


def __getattr__(name: str) -> ModuleType:
    # Loaded when first used: they bring pandas, matplotlib or hypothesis.
    if name in ("plot", "tables", "tasks", "testing"):
        return importlib.import_module(f"kltarget.{name}")
    raise AttributeError(f"module 'kltarget' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
