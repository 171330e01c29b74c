"""Exact target distributions of KL- and f-divergence-regularised reward maximisation."""

import importlib
from typing import TYPE_CHECKING, Any

from kltarget._core.status import Status
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
    summarize,
)
from kltarget.objectives import Objective, mara, normalize, reward_for
from kltarget.recipes import Recipe, recipe
from kltarget.spaces import SequenceSpace
from kltarget.targets import (
    Target,
    soft_values,
    solve,
    token_advantages,
    token_local_target,
)

if TYPE_CHECKING:
    from kltarget import (
        diagnosis as diagnosis,
    )
    from kltarget import (
        evidence as evidence,
    )
    from kltarget import (
        implied as implied,
    )
    from kltarget import (
        mixtures as mixtures,
    )
    from kltarget import (
        pages as pages,
    )
    from kltarget import (
        plot as plot,
    )
    from kltarget import (
        policies as policies,
    )
    from kltarget import (
        projections as projections,
    )
    from kltarget import (
        rollouts as rollouts,
    )
    from kltarget import (
        studies as studies,
    )
    from kltarget import (
        sweeps as sweeps,
    )
    from kltarget import (
        tasks as tasks,
    )
    from kltarget import (
        testing as testing,
    )
    from kltarget import (
        training as training,
    )
    from kltarget import (
        verification as verification,
    )
    from kltarget.diagnosis import diagnose
    from kltarget.implied import implied_target
    from kltarget.pages import explore
    from kltarget.policies import GRUPolicy, TabularPolicy, TransformerPolicy
    from kltarget.rollouts import read_rollouts
    from kltarget.spaces import GaussianMixture
    from kltarget.sweeps import phase_boundaries, sweep
    from kltarget.targets._samples import solve_on_samples
    from kltarget.targets.grids import solve_on_grid
    from kltarget.training import fine_tune
    from kltarget.verification import verify

# Loaded when first used: they bring pandas, matplotlib, hypothesis or optax, or are for few.
_ROOMS = (
    "diagnosis",
    "evidence",
    "implied",
    "mixtures",
    "pages",
    "plot",
    "policies",
    "projections",
    "rollouts",
    "studies",
    "sweeps",
    "tasks",
    "testing",
    "training",
    "verification",
)
_LAZY = {
    "GRUPolicy": "policies",
    "GaussianMixture": "spaces",
    "TabularPolicy": "policies",
    "TransformerPolicy": "policies",
    "diagnose": "diagnosis",
    "explore": "pages",
    "fine_tune": "training",
    "implied_target": "implied",
    "phase_boundaries": "sweeps",
    "read_rollouts": "rollouts",
    "solve_on_grid": "targets.grids",
    "solve_on_samples": "targets._samples",
    "sweep": "sweeps",
    "verify": "verification",
}

__all__ = [
    "Alpha",
    "ChiSquared",
    "ChiSquaredKL",
    "Divergence",
    "FDivergence",
    "ForwardKL",
    "GRUPolicy",
    "GaussianMixture",
    "JensenShannon",
    "NeymanChiSquared",
    "Objective",
    "Recipe",
    "ReverseKL",
    "SequenceSpace",
    "SquaredHellinger",
    "Status",
    "TabularPolicy",
    "Target",
    "TotalVariation",
    "TransformerPolicy",
    "Tsallis",
    "collapse_beta",
    "coverage",
    "diagnose",
    "effective_modes",
    "entropy",
    "explore",
    "fine_tune",
    "flip_beta",
    "implied_target",
    "kl",
    "log_odds",
    "mara",
    "mode_log_mass",
    "normalize",
    "pass_at_k",
    "phase_boundaries",
    "read_rollouts",
    "recipe",
    "reward_for",
    "soft_values",
    "solve",
    "solve_on_grid",
    "solve_on_samples",
    "summarize",
    "sweep",
    "token_advantages",
    "token_local_target",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"kltarget.{name}")
    if name in _LAZY:
        attribute = getattr(importlib.import_module(f"kltarget.{_LAZY[name]}"), name)
        globals()[name] = attribute
        return attribute
    raise AttributeError(f"module 'kltarget' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS, "divergences", "modes", "objectives", "recipes", "spaces", "targets"]
