"""Where two modes swap as a weight moves: a teacher's, a soup's, or that of replayed data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import traced
from kltarget._core.numerics import select, working_dtype
from kltarget.modes._labels import log_mass_of, members_of
from kltarget.objectives import Objective
from kltarget.objectives._objective import require_objective
from kltarget.targets import solve

_PIECES = 64
"""Into how many pieces an interval is cut, first and whenever it is made smaller."""


def flip_weight(
    objective_at: Callable[[Array], Objective],
    i: ArrayLike,
    j: ArrayLike,
    *,
    between: tuple[float, float] = (0.0, 1.0),
    modes: ArrayLike | None = None,
) -> Float[Array, "*batch"]:
    """The weight at which two outcomes, or two modes, are equally probable in the target.

    ``objective_at(w)`` is what is maximised at weight w: w may be the coefficient of a teacher, of
    replayed data or of an entropy bonus, the share of a soup, a scale of rewards. Some are linear,
    of ``ρ = log(π_ref,i/π_ref,j)``, ``τ = log(T_i/T_j)`` and ``Δ = r_i − r_j``:

    - reverse KL to a soup of logits, ``∝ π_ref^{1−w} T^w``: ``w = (ρ + Δ/β)/(ρ − τ)``;
    - reverse KL to the reference at β and to a teacher at w: ``w = −(β ρ + Δ)/τ``;
    - an entropy bonus w beside reverse KL: there is none, w only flattens ``β ρ + Δ``;
    - reverse KL to a soup of probabilities: ``w/(1 − w) = −d(π_ref)/d(T)`` with
      ``d(p) = p_i e^{r_i/β} − p_j e^{r_j/β}``, and sums of these for modes;
    - forward KL to the reference at β and to a teacher at w is not linear:
      ``(β π_ref,i + w T_i)/(Λ − r_i)`` is to be the same of j, and Λ moves with w.

    All are found as a root: the log-odds at 65 weights, then in the first piece in which they
    change their sign, down to rounding. Two changes in one piece are missed.

    Args:
        objective_at: a function of weights to objectives whose batch they broadcast with, as
            :func:`kltarget.objectives.references.combine` makes of them. It is given weights of the
            default float type, of shape ``[*batch]`` or with further axes before it.
        i: index of an outcome, or the label of a mode if ``modes`` are given.
        j: the same, of the other one.
        between: the range of weights that is searched.
        modes: integer labels of the outcomes' modes, ``[A]``, concrete.

    Returns:
        The smallest such weight, ``[*batch]``, in the float type of the objectives; NaN where the
        odds keep their sign, and where they are level at an end only. Where a target jumps, it is
        the weight of the jump.

    Raises:
        TypeError: ``objective_at`` makes no objective, or an index or label is no integer.
        ValueError: a range that is none, an index that is out of range; weights whose further axes
            are not those of the batch; what ``objective_at`` raises within the range.

    Outcomes that never have any mass never flip. Differentiable in what ``objective_at`` is made
    of, by the implicit function theorem.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.modes import flip_weight
        >>> from kltarget.objectives import references
        >>> log_ref, log_teacher = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]]))
        >>> reward = jnp.array([0.0, 0.0, 0.1])
        >>> def with_teacher(w):
        ...     return references.combine(reward, reverse=[(log_ref, 0.5), (log_teacher, w)])
        >>> print(f"{flip_weight(with_teacher, 0, 2, between=(0.0, 5.0)):.4f}")
        0.7946
        >>> print(f"{(0.5 * jnp.log(7.0) - 0.1) / jnp.log(3.0):.4f}")
        0.7946

    References:
        The log-odds are those of ``∝ Π T_i^{b_i/b} e^{r/b}`` for reverse KLs of coefficients b_i.
    """
    low, high = map(float, between)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"between must be two finite numbers, the smaller first, got {between}")
    middle = 0.5 * (low + high)
    first = objective_at(jnp.asarray(middle))
    require_objective(first, "objective_at", "a function to kltarget.Objective")
    masks = members_of(i, j, modes, first.num_outcomes)
    batch, own = first.batch_shape, first.reward.dtype
    dtype = working_dtype(own)

    def odds(weight: Array) -> tuple[Array, Array]:
        objective = objective_at(weight.astype(own))
        if objective.batch_shape != weight.shape:
            raise ValueError(
                f"objective_at made objectives of shape {objective.batch_shape} of weights of "
                f"shape {weight.shape}: it must take weights with any axes before {batch}"
            )
        log_probs = solve(objective).log_probs.astype(dtype)
        one, other = (log_mass_of(log_probs, x)[..., 0] for x in masks)
        sizes = (jnp.abs(select(jnp.isfinite(x), x, 0.0)) for x in (one, other))
        return one - other, jnp.maximum(*sizes)

    pieces = jnp.linspace(0.0, 1.0, _PIECES + 1, dtype=dtype)
    pieces = jnp.broadcast_to(pieces.reshape(-1, *[1] * len(batch)), (_PIECES + 1, *batch))
    start, end = (jnp.full(batch, x, dtype) for x in (low, high))

    def narrowed(k: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        start, end, found = state
        at = lax.stop_gradient(start[None] + (end - start)[None] * pieces)
        changed, after, before = _first_change(at, *lax.stop_gradient(odds(at)))
        start, end = jnp.where(changed, after, start), jnp.where(changed, before, end)
        return start, end, jnp.where(k == 0, changed, found)

    state = start, end, jnp.zeros(batch, bool)
    rounds = 1 + math.ceil(int(jnp.finfo(dtype).nmant) / math.log2(_PIECES))
    moving = traced(*jax.tree.leaves(first))
    if moving:
        start, end, found = lax.fori_loop(0, rounds, narrowed, state)
    else:
        # What is compiled already serves, where a loop would have to be compiled at each call.
        for k in range(rounds):
            state = narrowed(k, state)
        start, end, found = state
    root = lax.stop_gradient(0.5 * (start + end))
    if not moving:
        return select(found, root, jnp.nan).astype(own)
    # A Newton step, at the frozen root, carries the derivatives of the implicit function.
    value, slope = jax.jvp(lambda w: odds(w)[0], (root,), (jnp.ones_like(root),))
    slope = lax.stop_gradient(slope)
    step = value / select(slope != 0, slope, jnp.inf)
    smooth = jnp.isfinite(step) & (jnp.abs(step) < (high - low) * jnp.finfo(dtype).eps ** 0.5)
    return select(found, root - select(smooth, step, 0.0), jnp.nan).astype(own)


def _first_change(at: Array, odds: Array, size: Array) -> tuple[Array, Array, Array]:
    """Whether the sign of log-odds changes along the first axis, and the ends of the first piece.

    Odds that are level but for rounding, or of two outcomes without mass, have no sign: those of
    the last weight before that had one stand for them.
    """
    clear = jnp.abs(odds) > 32 * float(jnp.finfo(odds.dtype).eps) * (1 + size)
    place = jnp.arange(len(at)).reshape(-1, *[1] * (at.ndim - 1))
    last = lax.cummax(jnp.where(clear, jnp.broadcast_to(place, at.shape), -1), axis=0)
    known = jnp.take_along_axis(odds, jnp.maximum(last, 0), axis=0) > 0
    change = (last[:-1] >= 0) & (known[1:] != known[:-1])
    first = jnp.argmax(change, axis=0)[None]
    before = jnp.maximum(jnp.take_along_axis(last, first, axis=0), 0)
    start, end = (jnp.take_along_axis(at, x, axis=0)[0] for x in (before, first + 1))
    return jnp.any(change, axis=0), start, end
