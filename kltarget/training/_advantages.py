"""From returns to advantages, as trainers compute them on groups of samples.

Exact gradients need the expectation of an advantage over the groups a sample may find itself in.
It is taken by the same code, on every group there is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from kltarget.recipes import Recipe

_MOST_GROUPS = 200_000


def shaped(recipe: Recipe, reward: Array) -> Array:
    """The reward as a trainer uses it: scaled, then cut."""
    reward = recipe.reward_scale * reward
    return jnp.clip(reward, *recipe.reward_bounds) if recipe.reward_bounds else reward


def of_samples(
    recipe: Recipe, returns: Float[Array, "*groups G T"]
) -> tuple[Float[Array, "*groups G T"], Float[Array, "*groups G T"]]:
    """Advantages of groups of samples, and 1 where they count, 0 where their group is dropped."""
    size = returns.shape[-2]
    mean = returns.mean(-2, keepdims=True)
    # Rounding of the mean makes tiny differences where there are none.
    equal = returns.max(-2, keepdims=True) == returns.min(-2, keepdims=True)
    centred = returns
    if recipe.baseline != "none":
        centred = jnp.where(equal, jnp.zeros_like(returns), returns - mean)
    if recipe.baseline == "leave-one-out":
        centred = centred * size / (size - 1)
    advantage = centred
    if recipe.normalize == "others-std":
        advantage = _over(centred, _std_of_others(returns, recipe.ddof), recipe.epsilon, skip=True)
    elif recipe.normalize != "none":
        axes = (returns.ndim - 2,) if recipe.normalize == "group-std" else range(returns.ndim - 1)
        axes = tuple(axes)
        count = math.prod(returns.shape[axis] for axis in axes)
        same = returns.max(axes, keepdims=True) == returns.min(axes, keepdims=True)
        apart = jnp.where(same, 0.0, returns - returns.mean(axes, keepdims=True))
        std = jnp.sqrt(jnp.square(apart).sum(axes, keepdims=True) / (count - recipe.ddof))
        advantage = _over(centred, jnp.broadcast_to(std, returns.shape), recipe.epsilon)
    kept = jnp.ones_like(returns)
    if recipe.zero_std == "drop":
        kept = jnp.broadcast_to(jnp.where(equal, 0.0, 1.0).astype(kept.dtype), kept.shape)
    return advantage * kept, kept


def in_expectation(
    recipe: Recipe, returns: Float[Array, "*batch A T"], share: Array, groups: Any
) -> tuple[Array, Array]:
    """Expected advantages of outcomes of probability ``share``, and how often they count."""
    ones = jnp.ones_like(returns)
    weight = share[..., None]
    mean = jnp.broadcast_to((weight * returns).sum(-2, keepdims=True), returns.shape)
    std = jnp.sqrt((weight * jnp.square(returns - mean)).sum(-2, keepdims=True))
    std = jnp.broadcast_to(std, returns.shape)
    if groups is not None and recipe.normalize == "batch-std":
        # A batch of many groups has the deviation of all samples, whichever groups are dropped.
        before = dataclasses.replace(recipe, normalize="none")
        advantage, kept = _tabulated(before, returns, share, groups)
        return _over(advantage, std, recipe.epsilon), kept
    if groups is not None:
        return _tabulated(recipe, returns, share, groups)
    advantage = returns if recipe.baseline == "none" else returns - mean
    if recipe.baseline == "mean" and recipe.group_size is not None:
        # The sample's own share in its group's mean.
        advantage = advantage * (1 - 1 / recipe.group_size)
    if recipe.normalize == "none":
        return advantage, ones
    return _over(advantage, std, recipe.epsilon), ones


def all_groups(recipe: Recipe, reward: np.ndarray, possible: np.ndarray) -> dict[str, Any]:
    """Every group of the other G − 1 samples, by the returns that outcomes can have.

    Outcomes of equal return are one. Returns that contain the estimate of a divergence are
    different for every outcome.
    """
    size = recipe.group_size or 0
    if recipe.place == "reward" and recipe.normalize_when == "after":
        first, level = np.flatnonzero(possible), np.cumsum(possible) - 1
    else:
        _, first, inverse = np.unique(reward[possible], return_index=True, return_inverse=True)
        first = np.flatnonzero(possible)[first]
        level = np.zeros(reward.size, int)
        level[possible] = inverse.reshape(-1)
    number = math.comb(first.size + size - 2, size - 1)
    if number > _MOST_GROUPS:
        raise ValueError(
            f"exact gradients with group_size={size} and {first.size} different returns sum over "
            f"{number:,} groups, more than {_MOST_GROUPS:,}: give a batch_size, or "
            "group_size=None for the limit of large groups"
        )
    drawn = itertools.combinations_with_replacement(range(first.size), size - 1)
    others = np.array(list(drawn), np.int32).reshape(-1, size - 1)
    counts = (others[:, :, None] == np.arange(first.size)).sum(1)
    ways = math.factorial(size - 1)
    arrangements = [ways // math.prod(map(math.factorial, row)) for row in counts.tolist()]
    return {
        "others": others,
        "arrangements": np.array(arrangements, float),
        "first": first.astype(np.int32),
        "level": np.where(possible, level, 0).astype(np.int32),
    }


def _tabulated(recipe: Recipe, returns: Array, share: Array, groups: Any) -> tuple[Array, Array]:
    """See :func:`in_expectation`; without batch axes."""
    others, level = groups["others"], groups["level"]
    own = returns[groups["first"]]
    mass = jax.ops.segment_sum(share, level, num_segments=own.shape[0])
    chance = groups["arrangements"].astype(mass.dtype) * jnp.prod(mass[others], axis=-1)

    def of_level(value: Array) -> tuple[Array, Array]:
        first = jnp.broadcast_to(value, (others.shape[0], 1, *value.shape))
        advantage, kept = of_samples(recipe, jnp.concatenate([first, own[others]], axis=1))
        return jnp.tensordot(chance, advantage[:, 0], 1), jnp.tensordot(chance, kept[:, 0], 1)

    advantage, kept = lax.map(of_level, own)
    return advantage[level], kept[level]


def _over(centred: Array, std: Array, epsilon: float, skip: bool = False) -> Array:
    """``centred/(std + epsilon)``; where the deviation is 0, 0, or untouched if that is skipped."""
    some = std > 0
    safe = jnp.where(some, std, jnp.ones_like(std)) + epsilon
    return jnp.where(some, centred / safe, centred if skip else jnp.zeros_like(centred))


def _std_of_others(returns: Array, ddof: int) -> Array:
    """Per sample the standard deviation of the others in its group."""
    size = returns.shape[-2]
    others = ~jnp.eye(size, dtype=bool)[..., None]
    # [*groups, own, other, T]
    each = jnp.broadcast_to(returns[..., None, :, :], (*returns.shape[:-1], *returns.shape[-2:]))
    most = jnp.where(others, each, -jnp.inf).max(-2)
    least = jnp.where(others, each, jnp.inf).min(-2)
    mean = jnp.where(others, each, jnp.zeros_like(each)).sum(-2, keepdims=True) / (size - 1)
    apart = jnp.where(others, jnp.square(each - mean), jnp.zeros_like(each)).sum(-2)
    return jnp.where(most == least, 0.0, jnp.sqrt(apart / (size - 1 - ddof)))
