"""Exact target distributions of KL- and f-divergence-regularised reward maximisation.

An :class:`Objective` is what is maximised over policies π, ``E_π[reward] − beta · D(π, π_ref)``,
and :func:`solve` computes the :class:`Target` that maximises it. A :class:`Recipe` is how a trainer
really applies the regulariser, and :func:`implied_target` the policy it leads to. :func:`fine_tune`
gets there by gradients, :func:`verify` puts the two side by side, and :func:`diagnose` reads what a
run logged.

What is typed first stands here; everything else is in a room of its own, such as
``kltarget.mixtures.tilt`` or ``kltarget.training.sft``, and needs no further import.

Example:
    >>> import jax.numpy as jnp
    >>> import kltarget as kt
    >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
    >>> target = kt.solve(kt.Objective(jnp.array([1.0, 1.0, 0.0]), log_ref, beta=0.1))
    >>> print([f"{p:.3f}" for p in target.probs])
    ['0.937', '0.062', '0.000']
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kltarget import (
        diagnosis as diagnosis,
        divergences as divergences,
        evidence as evidence,
        frontier as frontier,
        implied as implied,
        mixtures as mixtures,
        modes as modes,
        objectives as objectives,
        pages as pages,
        plot as plot,
        policies as policies,
        projections as projections,
        recipes as recipes,
        rollouts as rollouts,
        spaces as spaces,
        studies as studies,
        sweeps as sweeps,
        targets as targets,
        tasks as tasks,
        testing as testing,
        training as training,
        verification as verification,
    )
    from kltarget._core.status import Status
    from kltarget.comparisons import compare
    from kltarget.diagnosis import diagnose
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
    from kltarget.forecasts import forecast
    from kltarget.implied import implied_target
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
    from kltarget.pages import explore
    from kltarget.policies import GRUPolicy, TabularPolicy, TransformerPolicy
    from kltarget.recipes import Recipe, recipe
    from kltarget.rollouts import read_rollouts
    from kltarget.spaces import GaussianMixture, SequenceSpace
    from kltarget.sweeps import phase_boundaries, sweep
    from kltarget.targets import Target, soft_values, solve, token_advantages, token_local_target
    from kltarget.targets._samples import solve_on_samples
    from kltarget.targets.automata import solve_on_automaton
    from kltarget.targets.grids import solve_on_grid
    from kltarget.training import fine_tune
    from kltarget.verification import verify

# Loaded when first used, so that a program pays for the rooms that it enters.
_ROOMS = {
    "_core.status": ("Status",),
    "adapters": (),
    "diagnosis": ("diagnose",),
    "divergences": (
        "Alpha",
        "ChiSquared",
        "ChiSquaredKL",
        "Divergence",
        "FDivergence",
        "ForwardKL",
        "JensenShannon",
        "NeymanChiSquared",
        "ReverseKL",
        "SquaredHellinger",
        "TotalVariation",
        "Tsallis",
        "kl",
    ),
    "comparisons": ("compare",),
    "evidence": (),
    "forecasts": ("forecast",),
    "frontier": (),
    "implied": ("implied_target",),
    "mixtures": (),
    "modes": (
        "collapse_beta",
        "coverage",
        "effective_modes",
        "entropy",
        "flip_beta",
        "log_odds",
        "mode_log_mass",
        "pass_at_k",
        "summarize",
    ),
    "objectives": ("Objective", "mara", "normalize", "reward_for"),
    "pages": ("explore",),
    "plot": (),
    "policies": ("GRUPolicy", "TabularPolicy", "TransformerPolicy"),
    "projections": (),
    "recipes": ("Recipe", "recipe"),
    "rollouts": ("read_rollouts",),
    "spaces": ("GaussianMixture", "SequenceSpace"),
    "studies": (),
    "sweeps": ("phase_boundaries", "sweep"),
    "targets": ("Target", "soft_values", "solve", "token_advantages", "token_local_target"),
    "targets._samples": ("solve_on_samples",),
    "targets.automata": ("solve_on_automaton",),
    "targets.grids": ("solve_on_grid",),
    "tasks": (),
    "testing": (),
    "training": ("fine_tune",),
    "verification": ("verify",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

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
    "compare",
    "coverage",
    "diagnose",
    "effective_modes",
    "entropy",
    "explore",
    "fine_tune",
    "flip_beta",
    "forecast",
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
    "solve_on_automaton",
    "solve_on_grid",
    "solve_on_samples",
    "summarize",
    "sweep",
    "token_advantages",
    "token_local_target",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _ROOM_OF:
        room = importlib.import_module(f"kltarget.{_ROOM_OF[name]}")
        globals()[name] = found = getattr(room, name)
        return found
    if name in _ROOMS:
        return importlib.import_module(f"kltarget.{name}")
    raise AttributeError(f"module 'kltarget' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *(room for room in _ROOMS if room.isidentifier())]
