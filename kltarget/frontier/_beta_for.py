"""``beta_for``: the coefficient at which the target is as one wishes it to be."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import (
    ArgumentError,
    at_index,
    concrete_labels,
    first_index,
    float_argument,
    traced,
    worded,
)
from kltarget.frontier._budget_root import DECADES, Found, beta_root
from kltarget.frontier._measured import UNITS
from kltarget.modes._labels import mode_blocks
from kltarget.objectives import Objective
from kltarget.objectives._objective import require_objective

_OF_MODES = ("effective_modes", "success")
_IN_WORDS = {
    "kl": "KL(π‖π_ref)",
    "forward_kl": "KL(π_ref‖π)",
    "expected_reward": "the expected reward",
    "effective_modes": "the effective number of modes",
    "success": "the probability of success",
}


def beta_for(
    objective: Objective,
    *,
    kl: ArrayLike | None = None,
    forward_kl: ArrayLike | None = None,
    expected_reward: ArrayLike | None = None,
    effective_modes: ArrayLike | None = None,
    success: ArrayLike | None = None,
    modes: ArrayLike | None = None,
) -> Float[Array, "*batch"]:
    """The β whose target spends a given KL, or earns, keeps or achieves what is asked for.

    The target is that of ``max_π E_π[reward] − beta·D(π, π_ref)``, D any divergence. Spending all
    of a budget of D itself is the best there is within it: ``max E_π[reward]`` subject to ``D ≤ Δ``
    is solved by the target with ``D = Δ``, and along these targets ``dE_π[reward] = beta·dD``.
    With a loss for the reward and the data for the reference that is the worst case in a ball of KL
    (KL-DRO), ``min over β of β log E[e^{loss/β}] + β·Δ`` its expected loss.

    Exactly one of the five is asked for. As β grows, the first three and the success by default
    only fall, whatever the divergence, and have one β. The effective number of modes, and the
    success of ``modes`` of one's own, may rise and fall again: these are scanned from 1e9 down to
    1e-9 times the rewards' range, eight points per decade, and of several β it is the largest.

    Args:
        objective: of any batch shape. Its own ``beta`` is not used.
        kl: ``KL(π‖π_ref)`` in nats, above 0. Shapes of all five broadcast against ``*batch``.
        forward_kl: ``KL(π_ref‖π)`` in nats, above 0.
        expected_reward: ``E_π[reward]`` in reward units.
        effective_modes: exponential of the entropy of the modes, as
            :func:`kltarget.effective_modes`; by default each outcome is a mode.
        success: probability of the outcomes in any mode; by default of those of positive reward,
            or, if that is all or none of them, of those above the lowest reward.
        modes: integer labels of the outcomes' modes, shape ``[A]``, concrete, below 0 for none.

    Returns:
        β in reward units per nat, shape ``[*batch]``; under a trace NaN where there is none.

    Raises:
        TypeError: no objective; not one of the five, but none or several; ``modes`` with a measure
            that knows none.
        ValueError: outside a trace, what no β gives: the message names the range that is reached,
            whose ends, the reference and the limit of β to 0, are not reached themselves, or the
            jump that leaves it out. Shapes that do not broadcast.

    Warns:
        UserWarning: outside a trace, there are several β; the message names one more.

    For reverse KL, ``kl`` ends at −log m, m the reference's mass of the best outcomes; for forward
    KL every ``forward_kl`` is reached, if its β is no smaller than the smallest float. Where the
    target condenses on outcomes that the reference lacks, ``kl`` jumps to infinity; the target of
    total variation jumps throughout. Outcomes of reward ``-inf`` are impossible, so the
    reference's ``forward_kl`` is infinite. Differentiable in reward, log_ref, the divergence's
    parameters and what is asked for, once, by the implicit function theorem.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.4, 0.3, 0.15, 0.1, 0.05]))
        >>> objective = kt.Objective(jnp.array([0.1, 0.5, 1.0, 0.9, 0.3]), log_ref, 1.0)
        >>> beta = kt.frontier.beta_for(objective, kl=jnp.array([0.1, 0.5, 1.0]))
        >>> print([f"{x:.4f}" for x in beta])
        ['0.7876', '0.3268', '0.1864']
        >>> print(f"{kt.frontier.beta_for(objective, expected_reward=0.9):.4f}")
        0.2031
        >>> kt.frontier.beta_for(objective, kl=2.0)
        Traceback (most recent call last):
            ...
        kltarget...ArgumentError: kl=2.0 is not reached: KL(π‖π_ref) lies between 0 and 1.897 nats

    References:
        For any two β, log ratios ``π/π_ref = (f′)⁻¹((r − λ)/β)`` cross once as the reward grows, so
        the smaller β gives the larger one in convex order: every f-divergence and the mass of the
        better outcomes fall in β. ``dE_π[r] = beta·dD`` is the first-order condition along the
        path. Budgets of KL: Beirami et al., "Theoretical guarantees on the best-of-n alignment
        policy", 2024, arXiv 2401.01879, who compare best-of-n with them.
        Worst cases of a loss: Zou et al., "Generalization Analysis of Machine Learning Algorithms
        via the Worst-Case Data-Generating Probability Measure", 2023, arXiv 2312.12236.
    """
    require_objective(objective, "beta_for")
    asked = {
        "kl": kl,
        "forward_kl": forward_kl,
        "expected_reward": expected_reward,
        "effective_modes": effective_modes,
        "success": success,
    }
    given = {name: x for name, x in asked.items() if x is not None}
    if len(given) != 1:
        got = ", ".join(given) or "none"
        raise TypeError(f"beta_for takes exactly one of {', '.join(asked)}, got {got}")
    ((kind, goal),) = given.items()
    if modes is not None and kind not in _OF_MODES:
        raise TypeError(f"modes is for {' and '.join(_OF_MODES)}, not for {kind}: leave it out")
    wanted = float_argument(goal, kind)
    with worded(
        f"{kind} has shape {wanted.shape}, which does not broadcast against the objective's batch "
        f"shape {objective.batch_shape}"
    ):
        jnp.broadcast_shapes(wanted.shape, objective.batch_shape)
    blocks = right = None
    if modes is not None:
        labels = concrete_labels(modes, objective.num_outcomes)
        blocks, right = tuple(map(jnp.asarray, mode_blocks(labels))), jnp.asarray(labels >= 0)
    # Whatever its own β is, good or bad, it plays no part.
    problem = Objective.unchecked(
        objective.reward,
        objective.log_ref,
        jnp.ones(objective.beta.shape, objective.reward.dtype),
        objective.divergence,
        measure=objective.measure,
    )
    turns = kind == "effective_modes" or modes is not None
    found = beta_root(problem, wanted, blocks, right, kind=kind, turns=turns)
    if not traced(found.beta):
        _say(found, kind, wanted, turns=turns)
    return found.beta.astype(objective.reward.dtype)


def _say(found: Found, kind: str, wanted: Array, *, turns: bool) -> None:
    """Raises for what no β gives, and warns where several do."""
    rows: Any = jax.device_get(found)
    goals = np.broadcast_to(np.asarray(wanted), rows.beta.shape)
    missed = np.isnan(rows.beta) & ~rows.failed
    if missed.any():
        at = first_index(missed)
        goal = float(goals[at])
        why = _why_not(kind, goal, *(float(x[at]) for x in rows[1:5]), turns=turns)
        raise ArgumentError(f"{{}} is not reached{at_index(at)}: {why}", kind, _plain(goal))
    several = rows.other > 0
    if several.any():
        at = first_index(several)
        warnings.warn(
            f"{kind}={_plain(float(goals[at]))} is met at several β{at_index(at)}: "
            f"{_short(rows.beta[at])} is the largest, another is near {_short(rows.other[at])}",
            stacklevel=3,
        )


def _why_not(
    kind: str, goal: float, lower: float, upper: float, jumps: float, at: float, *, turns: bool
) -> str:
    what, unit = _IN_WORDS[kind], f" {UNITS[kind]}" if UNITS[kind] else ""
    if jumps and not min(lower, upper) <= goal <= max(lower, upper):
        return f"{what} is {_short(upper)}{unit} at the smallest β that is a float of this size"
    lower, upper = sorted((lower, upper))
    span = f"between {_short(lower)} and {_short(upper)}{unit}"
    if jumps:
        return f"{what} jumps {span}, at β = {_short(at)}"
    found = f", as a scan over {2 * DECADES} decades of β finds" if turns else ""
    return f"{what} lies {span}{found}"


def _short(x: Any) -> str:
    return f"{float(x):.4g}"


def _plain(x: float) -> float:
    """A number as it was typed, free of the digits that 32 bits add to it."""
    return float(f"{x:.7g}")
