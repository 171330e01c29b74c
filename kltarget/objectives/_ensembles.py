"""One reward of several reward models: their mean, the worst case, the mean less a spread."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import float_arguments, raise_first, require_outcomes, worded
from kltarget._core.numerics import select, working_dtype

Method = Literal["mean", "worst-case", "uncertainty"]


def ensemble_reward(
    rewards: ArrayLike, *, method: Method = "mean", weight: ArrayLike | None = None
) -> Float[Array, "*batch A"]:
    """The reward that several reward models stand for together.

    ``"mean"`` is ``Σ_m r_m/M``, ``"worst-case"`` ``min_m r_m`` (WCO) and ``"uncertainty"`` the mean
    less ``weight`` times the members' variance ``Σ_m (r_m − r̄)²/M`` at the outcome (UWO). All are
    rewards like any other: ``max_π E_π[r] − beta·D(π, π_ref)`` of them has a target.

    - The target of the mean, by reverse KL, is the soup of the members' targets by logits,
      :func:`kltarget.objectives.references.soup`; the mean of their probabilities is another one.
    - ``E_π[min_m r_m]`` is at most what any member or weighted mean of members earns, so a true
      reward that is nowhere below the worst case earns, of its target at every β, at least what
      the worst case earns of the reference. An error that all members share stays what it was.

    Args:
        rewards: of each member, ``[M, *batch, A]``; ``-inf`` of any member forbids an outcome.
        method: ``"mean"``, ``"worst-case"`` or ``"uncertainty"``.
        weight: of the variance, per reward unit, ``[*batch]``, 0 or more; for ``"uncertainty"``.

    Returns:
        Rewards, ``[*batch, A]``, in the members' units. Differentiable in both arguments, the worst
        case in its lowest member.

    Raises:
        TypeError: complex numbers.
        ValueError: no axis of members, an unknown method, a weight that is missing or not used or
            that does not broadcast; outside a trace, a NaN or +inf reward, a negative weight.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.objectives import ensemble_reward
        >>> rewards = jnp.array([[0.0, 0.5, 1.0], [0.0, 0.6, 0.1]])
        >>> for method, weight in (("mean", None), ("worst-case", None), ("uncertainty", 1.0)):
        ...     reward = ensemble_reward(rewards, method=method, weight=weight)
        ...     target = kt.solve(kt.Objective(reward, jnp.log(jnp.full(3, 1 / 3)), 0.1))
        ...     print([f"{r:.3f}" for r in reward], [f"{p:.3f}" for p in target.probs])
        ['0.000', '0.550', '0.550'] ['0.002', '0.499', '0.499']
        ['0.000', '0.500', '0.100'] ['0.007', '0.976', '0.018']
        ['0.000', '0.548', '0.348'] ['0.004', '0.878', '0.119']

    References:
        Coste et al., "Reward Model Ensembles Help Mitigate Overoptimization", 2023, arXiv
        2310.02743.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if (weight is None) == (method == "uncertainty"):
        given = "give one" if weight is None else "leave it out"
        raise ValueError(f"weight belongs to method='uncertainty', got {method!r}: {given}")
    arrays = float_arguments(rewards=rewards, **({} if weight is None else {"weight": weight}))
    members = arrays["rewards"]
    if members.ndim < 2 or not len(members):
        raise ValueError(
            f"rewards needs a first axis of members and a last of outcomes, got {members.shape}"
        )
    require_outcomes(members, "rewards")
    bad = jnp.isnan(members) | jnp.isposinf(members)
    raise_first("rewards", members, bad, "must be finite or -inf (an outcome to forbid)")
    penalty = arrays.get("weight")
    if penalty is not None:
        raise_first("weight", penalty, ~((penalty >= 0) & (penalty < jnp.inf)), "must be 0 or more")
        batch = members.shape[1:-1]
        with worded(f"weight {penalty.shape} and the batch axes {batch} do not broadcast"):
            batch = jnp.broadcast_shapes(penalty.shape, batch)
        penalty = jnp.broadcast_to(penalty, batch)
        members = jnp.broadcast_to(members, (len(members), *batch, members.shape[-1]))
    return _ensemble_reward(members, penalty, method)


@functools.partial(jax.jit, static_argnames="method")
def _ensemble_reward(members: Array, weight: Array | None, method: Method) -> Array:
    own = members.dtype
    members = members.astype(working_dtype(own))
    possible = jnp.all(members > -jnp.inf, axis=0)
    known = select(possible[None] & jnp.ones(members.shape, bool), members, 0.0)
    if method == "worst-case":
        reward = known.min(0)
    else:
        reward = known.mean(0)
        if weight is not None:
            spread = ((known - reward[None]) ** 2).mean(0)
            reward = reward - weight.astype(reward.dtype)[..., None] * spread
    return select(possible, reward, -jnp.inf).astype(own)
