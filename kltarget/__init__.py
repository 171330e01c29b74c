"""Exact target distributions of KL- and f-divergence-regularised reward maximisation."""

import importlib
from typing import TYPE_CHECKING, Any

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
    TokenLocalTarget,
    soft_values,
    token_advantages,
    token_local_target,
)
from kltarget.status import Status
from kltarget.summary import Summary, SummaryRow, summarize
from kltarget.targets import Target, greedy_limit, reference_limit, solve

if TYPE_CHECKING:
    from kltarget import (
        explorer,
        implied,
        plot,
        rollouts,
        sweeps,
        tables,
        tasks,
        testing,
        training,
        verification,
    )
    from kltarget.explorer import explore
    from kltarget.implied import ImpliedTarget, implied_target
    from kltarget.projections import MomentProjection, moment_projection
    from kltarget.spaces.mixtures import (
        GaussianMixture,
        GridTarget,
        LogDensityReward,
        MixtureFit,
        MixtureTarget,
        PowerTarget,
        Projection,
        QuadraticReward,
        SampleTarget,
        fit_mixture,
        power_tilt,
        project,
        solve_on_grid,
        solve_on_samples,
        tilt,
    )
    from kltarget.sweeps import phase_boundaries, sweep
    from kltarget.training import (
        Fit,
        GaussianMixturePolicy,
        GRUPolicy,
        History,
        MirrorAscent,
        Policy,
        Recipe,
        Run,
        RunStatus,
        TabularPolicy,
        TransformerPolicy,
        dpo,
        f_dpg,
        fine_tune,
        fit,
        load_params,
        mirror_ascent,
        save_params,
        sft,
    )
    from kltarget.verification import Report, verify

# Loaded when first used: they bring pandas, matplotlib, hypothesis or optax.
_MODULES = (
    "explorer",
    "implied",
    "plot",
    "rollouts",
    "sweeps",
    "tables",
    "tasks",
    "testing",
    "training",
    "verification",
)
_LAZY = {
    "explorer": ("explore",),
    "implied": ("ImpliedTarget", "implied_target"),
    "projections": ("MomentProjection", "moment_projection"),
    "spaces.mixtures": (
        "GaussianMixture",
        "GridTarget",
        "LogDensityReward",
        "MixtureFit",
        "MixtureTarget",
        "PowerTarget",
        "Projection",
        "QuadraticReward",
        "SampleTarget",
        "fit_mixture",
        "power_tilt",
        "project",
        "solve_on_grid",
        "solve_on_samples",
        "tilt",
    ),
    "sweeps": ("phase_boundaries", "sweep"),
    "training": (
        "Fit",
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
        "f_dpg",
        "fine_tune",
        "fit",
        "load_params",
        "mirror_ascent",
        "save_params",
        "sft",
    ),
    "verification": ("Report", "verify"),
}

__all__ = [
    "Alpha",
    "ChiSquared",
    "ChiSquaredKL",
    "Divergence",
    "FDivergence",
    "Fit",
    "ForwardKL",
    "GRUPolicy",
    "GaussianMixture",
    "GaussianMixturePolicy",
    "GridTarget",
    "History",
    "ImpliedTarget",
    "JensenShannon",
    "LogDensityReward",
    "MirrorAscent",
    "MixtureFit",
    "MixtureTarget",
    "MomentProjection",
    "NeymanChiSquared",
    "Objective",
    "Policy",
    "PowerTarget",
    "Projection",
    "QuadraticReward",
    "Recipe",
    "Report",
    "ReverseKL",
    "Run",
    "RunStatus",
    "SampleTarget",
    "SequenceSpace",
    "SquaredHellinger",
    "Status",
    "Summary",
    "SummaryRow",
    "TabularPolicy",
    "Target",
    "TokenLocalTarget",
    "TotalVariation",
    "TransformerPolicy",
    "Tsallis",
    "collapse_beta",
    "coverage",
    "dpo",
    "effective_modes",
    "entropy",
    "explore",
    "explorer",
    "f_dpg",
    "fine_tune",
    "fit",
    "fit_mixture",
    "flip_beta",
    "greedy_limit",
    "implied",
    "implied_target",
    "kl",
    "load_params",
    "log_odds",
    "mara",
    "mirror_ascent",
    "mode_log_mass",
    "moment_projection",
    "normalize",
    "pass_at_k",
    "pass_at_k_from_counts",
    "phase_boundaries",
    "plot",
    "power_tilt",
    "project",
    "reference_limit",
    "reward_for",
    "rollouts",
    "save_params",
    "sft",
    "soft_values",
    "solve",
    "solve_on_grid",
    "solve_on_samples",
    "summarize",
    "sweep",
    "sweeps",
    "tables",
    "tasks",
    "testing",
    "tilt",
    "token_advantages",
    "token_local_target",
    "training",
    "verification",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"kltarget.{name}")
    for module, names in _LAZY.items():
        if name in names:
            found = getattr(importlib.import_module(f"kltarget.{module}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'kltarget' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
