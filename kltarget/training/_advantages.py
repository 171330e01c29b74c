"""From returns to advantages, as trainers compute them on groups of samples.

Exact gradients need the expectation of an advantage over the groups a sample may find itself in.
It is taken by the same code, on every group there is.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
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
    recipe: Recipe, returns: Sequence[Float[Array, "*groups G T"]]
) -> tuple[Float[Array, "*groups G T"], Float[Array, "*groups G T"]]:
    """Advantages of groups of samples, and 1 where they count, 0 where their group is dropped.

    ``returns`` are those of each reward that is normalised by itself.
    """
    advantage, kept = _in_groups(recipe, returns)
    if recipe.normalize == "batch-std":
        (only,) = returns
        axes = tuple(range(only.ndim - 1))
        same = only.max(axes, keepdims=True) == only.min(axes, keepdims=True)
        apart = jnp.where(same, 0.0, only - only.mean(axes, keepdims=True))
        count = math.prod(only.shape[axis] for axis in axes)
        std = jnp.sqrt(jnp.square(apart).sum(axes, keepdims=True) / (count - recipe.ddof))
        advantage = _over(advantage, jnp.broadcast_to(std, only.shape), recipe.epsilon)
    advantage = _once_more(recipe, advantage, kept, kept, tuple(range(kept.ndim - 1)))
    return advantage * kept, kept


def _in_groups(recipe: Recipe, returns: Sequence[Array]) -> tuple[Array, Array]:
    """What groups make of their returns: their sum, and whether the group counts."""
    weights = _weights(recipe, returns)
    advantage = sum(
        (w * _of_one(recipe, x) for w, x in zip(weights, returns, strict=True)),
        start=jnp.zeros_like(returns[0]),
    )
    kept = jnp.ones_like(returns[0])
    if recipe.zero_std == "drop":
        equal = [x.max(-2, keepdims=True) == x.min(-2, keepdims=True) for x in returns]
        same = functools.reduce(jnp.logical_and, equal)
        kept = jnp.broadcast_to(jnp.where(same, 0.0, 1.0).astype(kept.dtype), kept.shape)
    return advantage, kept


def _weights(recipe: Recipe, returns: Sequence[Array]) -> tuple[float, ...]:
    return recipe.reward_weights or (1.0,) if len(returns) > 1 or _apart(recipe) else (1.0,)


def _apart(recipe: Recipe) -> bool:
    return recipe.combine == "normalize-then-sum"


def _of_one(recipe: Recipe, returns: Array) -> Array:
    """Returns less their baseline, divided by what is taken of the group."""
    size = returns.shape[-2]
    mean = returns.mean(-2, keepdims=True)
    # Rounding of the mean makes tiny differences where there are none.
    equal = returns.max(-2, keepdims=True) == returns.min(-2, keepdims=True)
    centred = returns
    if recipe.baseline != "none":
        centred = jnp.where(equal, jnp.zeros_like(returns), returns - mean)
    if recipe.baseline == "leave-one-out":
        centred = centred * size / (size - 1)
    if recipe.normalize == "others-std":
        return _over(centred, _std_of_others(returns, recipe.ddof), recipe.epsilon, skip=True)
    if recipe.normalize == "group-mean":
        return _over(centred, jnp.broadcast_to(mean, returns.shape), recipe.epsilon)
    if recipe.normalize == "group-std":
        apart = jnp.where(equal, 0.0, returns - mean)
        std = jnp.sqrt(jnp.square(apart).sum(-2, keepdims=True) / (size - recipe.ddof))
        return _over(centred, jnp.broadcast_to(std, returns.shape), recipe.epsilon)
    return centred


def _once_more(
    recipe: Recipe, advantage: Array, kept: Array, weight: Array, axes: tuple[int, ...]
) -> Array:
    """Advantages as they are after the last division and cut; ``weight`` of each in the batch."""
    if recipe.renormalize != "none":
        weight = weight * kept
        total = weight.sum(axes, keepdims=True)
        weight = weight / jnp.where(total > 0, total, jnp.ones_like(total))
        if recipe.renormalize == "mean-abs":
            size = (weight * jnp.abs(advantage)).sum(axes, keepdims=True)
        else:
            apart = advantage - (weight * advantage).sum(axes, keepdims=True)
            size = jnp.sqrt((weight * jnp.square(apart)).sum(axes, keepdims=True))
        advantage = _over(advantage, jnp.broadcast_to(size, advantage.shape), recipe.epsilon)
    if recipe.advantage_clip is None:
        return advantage
    return jnp.clip(advantage, -recipe.advantage_clip, recipe.advantage_clip)


def in_expectation(
    recipe: Recipe, returns: Sequence[Float[Array, "*batch A T"]], share: Array, groups: Any
) -> tuple[Array, Array]:
    """Expected advantages of outcomes of probability ``share``, and how often they count."""
    weight = share[..., None]
    if groups is not None:
        return _tabulated(recipe, returns, share, groups)
    advantage = jnp.zeros_like(returns[0])
    for part, one in zip(_weights(recipe, returns), returns, strict=True):
        mean = _expected(one, share)
        centred = one if recipe.baseline == "none" else one - mean
        if recipe.baseline == "mean" and recipe.group_size is not None:
            # The sample's own share in its group's mean.
            centred = centred * (1 - 1 / recipe.group_size)
        if recipe.normalize == "group-mean":
            centred = _over(centred, jnp.broadcast_to(mean, one.shape), recipe.epsilon)
        elif recipe.normalize != "none":
            std = _expected_std(one, share)
            centred = _over(centred, jnp.broadcast_to(std, one.shape), recipe.epsilon)
        advantage = advantage + part * centred
    ones = jnp.ones_like(advantage)
    return _once_more(recipe, advantage, ones, weight * ones, (advantage.ndim - 2,)), ones


def _expected(returns: Array, share: Array) -> Array:
    """The mean over outcomes, whose axis is kept."""
    if returns.shape[-1] == 1:
        mean = (share * returns[..., 0]).sum(-1, keepdims=True)[..., None]
    else:
        mean = (share[..., None] * returns).sum(-2, keepdims=True)
    # XLA gives a sum and what follows it to its library for CPUs, which goes along the last axis, a
    # few tokens at a time. A choice, which the library does not know, ends that; what is not finite
    # is lost all the same.
    return jnp.where(jnp.isfinite(mean), mean, jnp.nan)


def _expected_std(returns: Array, share: Array) -> Array:
    weight = share[..., None]
    mean = (weight * returns).sum(-2, keepdims=True)
    return jnp.sqrt((weight * jnp.square(returns - mean)).sum(-2, keepdims=True))


def all_groups(recipe: Recipe, reward: np.ndarray, possible: np.ndarray) -> dict[str, Any]:
    """Every group of the other G − 1 samples, by the returns ``[A]`` or ``[A, J]`` of outcomes.

    Outcomes of equal return are one. Returns that contain the estimate of a divergence are
    different for every outcome.
    """
    size = recipe.group_size or 0
    if recipe.place == "reward" and recipe.normalize_when == "after":
        first, level = np.flatnonzero(possible), np.cumsum(possible) - 1
    else:
        _, first, inverse = np.unique(
            reward[possible], axis=0, return_index=True, return_inverse=True
        )
        first = np.flatnonzero(possible)[first]
        level = np.zeros(possible.size, int)
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


def _tabulated(
    recipe: Recipe, returns: Sequence[Array], share: Array, groups: Any
) -> tuple[Array, Array]:
    """See :func:`in_expectation`; without batch axes."""
    others, level = groups["others"], groups["level"]
    own = [x[groups["first"]] for x in returns]
    mass = jax.ops.segment_sum(share, level, num_segments=own[0].shape[0])
    chance = groups["arrangements"].astype(mass.dtype) * jnp.prod(mass[others], axis=-1)

    def of_level(values: list[Array]) -> tuple[Array, Array]:
        drawn = [
            jnp.concatenate(
                [jnp.broadcast_to(x, (others.shape[0], 1, *x.shape)), one[others]], axis=1
            )
            for x, one in zip(values, own, strict=True)
        ]
        advantage, kept = _in_groups(recipe, drawn)
        return advantage[:, 0], kept[:, 0]

    # Of every level [K], in every group of others [C].
    advantage, kept = lax.map(of_level, own)
    if recipe.normalize == "batch-std":
        # A batch of many groups has the deviation of all samples, whichever groups are dropped.
        std = jnp.broadcast_to(_expected_std(returns[0], share), advantage.shape)
        advantage = _over(advantage, std, recipe.epsilon)
    weight = (mass[:, None] * chance[None])[..., None]
    advantage = _once_more(recipe, advantage, kept, weight, (0, 1)) * kept
    expected, counted = (jnp.einsum("c,kct->kt", chance, x) for x in (advantage, kept))
    return expected[level], counted[level]


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
