"""The coefficient at which two recipes, or a recipe and a divergence, come out the same."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.numerics import double_precision
from kltarget.divergences import Divergence, kl
from kltarget.implied._implied_target import implied_target
from kltarget.objectives import Objective
from kltarget.recipes import Recipe
from kltarget.spaces import SequenceSpace
from kltarget.targets import solve

_BISECTIONS = 60
_RANGE = (1e-6, 1e6)


def equivalent_beta(
    recipe: Recipe,
    reward: ArrayLike,
    log_ref: ArrayLike,
    other: Recipe | Divergence,
    *,
    match: Literal["reward", "kl"] = "reward",
    space: SequenceSpace | None = None,
    beta: ArrayLike | None = None,
) -> Float[Array, "*batch"]:
    """The β at which another recipe, or a divergence, gives the same expected reward or KL.

    Args:
        recipe: whose implied target is to be met.
        reward: of every outcome, ``[*batch, A]``.
        log_ref: log-probabilities of the reference, ``[*batch, A]``.
        other: a recipe, whose own ``beta`` is not used, or the divergence of a plain
            ``E_π[reward] − β · D(π, π_ref)``.
        match: ``"reward"`` for the same ``E_π[reward]``, ``"kl"`` for the same ``KL(π‖π_ref)``.
        space: the sequences that the outcomes are.
        beta: coefficient of ``recipe``, by default its own.

    Returns:
        Coefficients of shape ``[*batch]``; NaN where none between 1e-6 and 1e6 times the spread of
        the rewards gives it, as for the expected reward of a recipe without a target. As ``other``
        a recipe with a ``"batch-std"`` takes each row as a batch of its own.

    Raises:
        TypeError: ``other`` is neither.
        ValueError: as for :func:`implied_target`; an unknown ``match``.

    Example:
        The reverse KL that does as much as k3 in the loss:

        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.implied import equivalent_beta
        >>> from kltarget.recipes import Recipe
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> reward = jnp.array([1.0, 1.0, 0.0])
        >>> k3 = Recipe("loss", "k3", beta=0.1)
        >>> print(f"{equivalent_beta(k3, reward, log_ref, kt.ReverseKL()):.4f}")
        0.2935
    """
    if not isinstance(other, (Recipe, Divergence)):
        raise TypeError(f"other must be a Recipe or a Divergence, got {other!r}")
    if match not in ("reward", "kl"):
        raise ValueError(f"match must be 'reward' or 'kl', got {match!r}")
    if recipe.reward_weights is not None:
        raise ValueError("equivalent_beta takes one reward, the recipe has several: add them up")
    wanted = implied_target(recipe, reward, log_ref, space=space, beta=beta)
    dtype, batch = wanted.log_probs.dtype, wanted.log_probs.shape[:-1]
    with double_precision():
        rewards, logs = (
            np.broadcast_to(np.asarray(x, np.float64), wanted.log_probs.shape)
            for x in (reward, log_ref)
        )
        logs = logs - np.logaddexp.reduce(logs, axis=-1, keepdims=True)

        def measured(log_probs: Any) -> np.ndarray:
            if match == "kl":
                return np.asarray(kl(jnp.asarray(log_probs), jnp.asarray(logs)))
            probs = np.exp(np.asarray(log_probs, np.float64))
            return (probs * np.where(probs > 0, rewards, 0.0)).sum(-1)

        def at(coefficient: np.ndarray) -> np.ndarray:
            if isinstance(other, Recipe):
                found = implied_target(other, rewards, logs, space=space, beta=coefficient)
            else:
                found = solve(Objective(rewards, logs, coefficient, other))
            return measured(found.log_probs)

        goal = measured(np.asarray(wanted.log_probs, np.float64))
        inside = np.where(logs > -np.inf, rewards, np.nan)
        spread = np.maximum(np.nanmax(inside, -1) - np.nanmin(inside, -1), np.finfo(float).tiny)
        if isinstance(other, Recipe) and other.normalized:
            spread = np.ones_like(spread)  # its rewards are numbers of deviations
        low, high = (np.broadcast_to(np.log(x * spread), batch) for x in _RANGE)
        # Rewards fall and divergences fall as β grows.
        within = (at(np.exp(low)) > goal) & (at(np.exp(high)) <= goal)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            more = at(np.exp(middle)) > goal
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        found = np.where(within, np.exp((low + high) / 2), np.nan)
    return jnp.asarray(found, dtype)
