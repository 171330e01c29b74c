"""Estimators of the KL divergence and the quantity whose derivative a trainer follows.

Everything here is a pure function of log-probabilities. An expectation over all sequences and an
average over samples differ by their weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.numerics import as_float
from kltarget.divergences import Divergence
from kltarget.recipes import Recipe
from kltarget.recipes._terms import in_jax
from kltarget.training._advantages import in_expectation, of_samples, shaped

__all__ = [
    "absolute",
    "k1",
    "k2",
    "k3",
    "pseudo_reward",
    "surrogate",
    "swapped_k3",
    "weighted_k3",
]


def k1(log_ratio: ArrayLike) -> Array:
    """The estimator ``ℓ = log π/π_ref``: unbiased for the reverse KL, of either sign.

    Its derivative is the score of the policy, whose expectation is 0: as a loss it regularises
    nothing.

    Example:
        >>> from kltarget.training import estimators
        >>> print(estimators.k1(0.5))
        0.5
    """
    return as_float(log_ratio)


def k2(log_ratio: ArrayLike) -> Array:
    """The estimator ``ℓ²/2``: biased in value, but as a loss its gradient is the reverse KL's.

    Example:
        >>> from kltarget.training import estimators
        >>> print(estimators.k2(0.5))
        0.125
    """
    return jnp.square(as_float(log_ratio)) / 2


def k3(log_ratio: ArrayLike) -> Array:
    """The estimator ``e^(−ℓ) − 1 + ℓ``: unbiased and non-negative; as a loss, the forward KL.

    Its derivative ``1 − π_ref/π`` has the expectation of the *forward* KL's gradient, although its
    value is the reverse KL's.

    Example:
        >>> from kltarget.training import estimators
        >>> print(f"{estimators.k3(0.5):.4f}")
        0.1065
    """
    x = as_float(log_ratio)
    small = jnp.abs(x) < 0.03
    y = jnp.where(small, x, jnp.zeros_like(x))
    # expm1(−x) + x cancels near 0, where the target of every run is not far
    series = y * y * (1 / 2 - y * (1 / 6 - y * (1 / 24 - y * (1 / 120 - y / 720))))
    return jnp.where(small, series, jnp.expm1(-x) + x)


def swapped_k3(log_ratio: ArrayLike) -> Array:
    """The estimator ``e^ℓ − 1 − ℓ``, k3 with its arguments exchanged: as a loss, half of χ².

    Example:
        >>> from kltarget.training import estimators
        >>> print(f"{estimators.swapped_k3(0.5):.4f}")
        0.1487
    """
    return k3(-as_float(log_ratio))


def weighted_k3(log_ratio: ArrayLike, log_probs: ArrayLike) -> Array:
    """k3 times ``π/sg(π)``: equal to k3, but its derivative includes the sampling's.

    As a loss its expected gradient is ``E_π[(k3 + dk3/dℓ)∇log π]``, that of the reverse KL.

    Args:
        log_ratio: ``log π/π_ref``.
        log_probs: ``log π`` of the same tokens or sequences.

    Example:
        >>> from kltarget.training import estimators
        >>> print(f"{estimators.weighted_k3(0.5, -1.0):.4f}")
        0.1065
    """
    log_probs = as_float(log_probs)
    return jnp.exp(log_probs - lax.stop_gradient(log_probs)) * k3(log_ratio)


def pseudo_reward(
    divergence: Divergence, log_policy: ArrayLike, log_target: ArrayLike
) -> Float[Array, "..."]:
    """The reward ``−f′(π/p)`` with which policy gradient descends ``D_f(π‖p)``.

    ``∇ D_f(π‖p) = E_π[f′(π/p) ∇log π]``, so maximising this reward as if it did not depend on the
    policy minimises the divergence to the target p.

    Args:
        divergence: any f-divergence, the policy first.
        log_policy: log-probabilities of the samples under the policy.
        log_target: under the target; the shapes broadcast.

    Returns:
        Rewards of the broadcast shape. Where the target is impossible, minus the slope of f at
        infinity; where only the policy is, minus that at 0.

    Example:
        >>> import kltarget as kt
        >>> from kltarget.training import estimators
        >>> print(f"{estimators.pseudo_reward(kt.ReverseKL(), -1.0, -0.5):.2f}")
        0.50

    References:
        Go et al., "Aligning Language Models with Preferences through f-divergence Minimization",
        2023, arXiv 2302.08215.
    """
    return -divergence._slope(as_float(log_policy), as_float(log_target))


def absolute(log_ratio: ArrayLike) -> Array:
    """The estimator ``|ℓ|``: as a loss its gradient is that of twice the total variation.

    Example:
        >>> from kltarget.training import estimators
        >>> print(estimators.absolute(-0.5))
        0.5
    """
    return jnp.abs(as_float(log_ratio))


def surrogate(
    recipe: Recipe,
    token_log_probs: Float[Array, "*batch N L"],
    token_log_ref: Float[Array, "*batch N L"],
    reward: Float[Array, "*batch N"],
    beta: ArrayLike,
    weights: Float[Array, "*batch N"] | None = None,
    *,
    log_sampler: Float[Array, "*batch N L"] | None = None,
    lengths: Float[Array, "*batch N"] | None = None,
    trained: Float[Array, "*batch N L"] | None = None,
    groups: Any = None,
    rewards: Float[Array, "*batch N J"] | None = None,
    token_log_teacher: Float[Array, "*batch N L"] | None = None,
    asked: Float[Array, "*batch N L"] | None = None,
    entropy_bonus: ArrayLike | None = None,
) -> Float[Array, "*batch N"]:
    """The contribution of each sequence to what a trainer's gradient ascends.

    Its value means nothing; its derivative is what the recipe follows. With samples it is
    ``w sg(A) log π − β w_KL K`` over their number, where A is the normalised advantage and K the
    estimate that is differentiated, if it is in the loss. No derivative is taken of what is in the
    return, and none of the sampling is taken for what is in the loss.

    Args:
        recipe: how the regulariser is estimated and where it is put, and how returns become
            advantages. Its ``beta`` and ``group_size`` are not looked at where samples are given.
        token_log_probs: log-probabilities of the tokens under the policy; the last axis runs over
            positions and the one before over the sequences of a group.
        token_log_ref: the same under the reference.
        reward: reward of each sequence, before the recipe's ``reward_scale``.
        beta: coefficient of the regulariser, in reward units per nat; broadcasts against
            ``*batch``.
        weights: probabilities of the sequences under the sampler for an exact expectation over an
            enumerated space; then baselines and deviations are expected ones. By default each axis
            of sequences is a group of samples, which count alike and are compared with each other.
        log_sampler: log-probabilities of the tokens under the policy that drew them, for more than
            one update per batch; by default the policy itself.
        lengths: number of tokens of each sequence, for recipes that divide by it.
        trained: 1 for tokens that the loss knows of, 0 for those that a sampler has cut off; by
            default all.
        groups: what an exact expectation over finite groups runs over.
        rewards: of several, where each is normalised by itself; ``reward`` is then not looked at.
        token_log_teacher: log-probabilities of the tokens under a teacher, for recipes with one.
        asked: 1 for tokens among the likeliest of the teacher that are compared with it.
        entropy_bonus: coefficient of the entropy, by default the recipe's.

    Returns:
        Contributions whose sum's derivative is the gradient, shape ``[*batch, N]``. Sequences that
        are impossible under the policy contribute nothing.

    Differentiable in ``token_log_probs``.

    Example:
        The exact gradient of the expected reward, at a policy over three sequences of one token:

        >>> import jax, jax.numpy as jnp
        >>> from kltarget.recipes import Recipe
        >>> from kltarget.training import estimators
        >>> reward = jnp.array([1.0, 0.0, 0.0])
        >>> def ascent(logits):
        ...     log_probs = jax.nn.log_softmax(logits)
        ...     weights = jax.lax.stop_gradient(jnp.exp(log_probs))
        ...     tokens = log_probs[:, None]
        ...     recipe = Recipe(place="none")
        ...     return estimators.surrogate(recipe, tokens, tokens, reward, 1.0, weights).sum()
        >>> [f"{x:.4f}" for x in jax.grad(ascent)(jnp.zeros(3))]
        ['0.2222', '-0.1111', '-0.1111']
    """
    possible = token_log_probs > -jnp.inf
    log_probs = jnp.where(possible, token_log_probs, jnp.zeros_like(token_log_probs))
    log_ref = jnp.where(possible, token_log_ref, jnp.zeros_like(token_log_ref))
    sampler = log_probs if log_sampler is None else jnp.where(possible, log_sampler, log_probs)
    sampler = lax.stop_gradient(sampler)
    whole = possible.all(-1)
    if trained is not None:
        log_probs, log_ref, sampler = (
            jnp.where(trained > 0, x, jnp.zeros_like(x)) for x in (log_probs, log_ref, sampler)
        )
    zero = jnp.zeros_like(reward)
    reward = jnp.where(whole, shaped(recipe, reward), zero)
    if weights is None:
        share = jnp.full_like(reward, 1 / reward.size)
    else:
        share = jnp.where(whole, lax.stop_gradient(weights), zero)

    # A reward is what the drawn sample earned, whatever has been learned from it since.
    drawn = sampler if recipe.place == "reward" else log_probs
    cost = estimate(recipe, drawn, log_ref, sampler, lengths)
    beta = jnp.asarray(beta, log_probs.dtype)
    beta = jnp.broadcast_to(beta.reshape(*beta.shape, *[1] * (cost.ndim - beta.ndim)), cost.shape)
    charged = jnp.where(beta == 0, jnp.zeros_like(cost), beta * cost)

    toll = jnp.zeros_like(cost[..., :1])
    if recipe.place == "reward":
        if recipe.kl_centre != "none" and lengths is not None:
            charged = _less_their_mean(charged, share, lengths)
        onward = recipe.charge == "onward"
        toll = lax.cumsum(charged, axis=charged.ndim - 1, reverse=True) if onward else charged
    before = recipe.normalize_when == "before"
    earned = [reward]
    if recipe.combine != "sum" and rewards is not None:
        earned = [jnp.where(whole, shaped(recipe, x), zero) for x in jnp.moveaxis(rewards, -1, 0)]
    # Unless tokens are charged each for itself, all of a sequence have the same returns.
    width = cost.shape[-1] if recipe.place == "reward" else 1
    returns = [jnp.broadcast_to(x[..., None], (*cost.shape[:-1], width)) for x in earned]
    returns = [lax.stop_gradient(x if before else x - toll) for x in returns]
    advantage, kept = _advantages(recipe, returns, share, weights, groups)
    if before:
        advantage = advantage - kept * toll
    fresh = log_sampler is None
    if recipe.ratio_level == "sequence" and not fresh:
        now, then = (x.sum(-1, keepdims=True) for x in (log_probs, sampler))
    else:
        now, then = log_probs, sampler
    advantage = lax.stop_gradient(jnp.broadcast_to(advantage, now.shape))
    gain = _policy_term(recipe, advantage, now, then, fresh).sum(-1)
    bonus = recipe.entropy_bonus if entropy_bonus is None else entropy_bonus
    if entropy_bonus is not None or recipe.entropy_bonus:
        # ½ log² π has the expected derivative of −H, as k2 that of the reverse KL.
        gain = gain - bonus / 2 * (kept * jnp.square(log_probs)).sum(-1)
    if token_log_teacher is not None:
        told = jnp.where(possible, token_log_teacher, jnp.zeros_like(token_log_teacher))
        gain = gain - recipe.teacher * (kept * _lesson(recipe, log_probs, told, asked)).sum(-1)
    gain = gain * _length_weight(recipe.length, lengths, share, gain)
    if recipe.place == "loss":
        counted = _length_weight(recipe.kl_length or recipe.length, lengths, share, gain)
        gain = gain - counted * (kept * charged).sum(-1)
    return jnp.where(whole, share * gain, zero)


def estimate(
    recipe: Recipe,
    log_probs: Array,
    log_ref: Array,
    sampler: Array,
    lengths: Array | None = None,
) -> Array:
    """The estimate of the divergence, per sequence or per token."""
    if recipe.level == "sequence":
        log_probs, log_ref, sampler = (
            x.sum(-1, keepdims=True) for x in (log_probs, log_ref, sampler)
        )
    log_ratio = log_probs - (sampler if recipe.estimator == "sampler" else log_ref)
    if recipe.log_ratio_clip is not None:
        log_ratio = jnp.clip(log_ratio, -recipe.log_ratio_clip, recipe.log_ratio_clip)
    simple = {
        "k1": k1,
        "k2": k2,
        "k3": k3,
        "swapped-k3": swapped_k3,
        "absolute": absolute,
        "sampler": k2,
    }
    if callable(recipe.estimator):
        cost = in_jax(recipe.estimator)(log_ratio)
    else:
        cost = simple[recipe.estimator.removeprefix("weighted-")](log_ratio)
    if recipe.weighted:
        cost = jnp.exp(_log_weight(recipe, log_probs - sampler, lengths)) * cost
    return cost if recipe.kl_clip is None else jnp.clip(cost, -recipe.kl_clip, recipe.kl_clip)


def _log_weight(recipe: Recipe, log_ratio: Array, lengths: Array | None) -> Array:
    """By what an estimate is weighed: its own ratio or, of all tokens, their geometric mean."""
    if recipe.ratio_level == "token" or recipe.level == "sequence":
        return log_ratio
    count = log_ratio.shape[-1] if lengths is None else lengths[..., None].astype(log_ratio.dtype)
    return jnp.broadcast_to(log_ratio.sum(-1, keepdims=True) / count, log_ratio.shape)


def _less_their_mean(charged: Array, share: Array, lengths: Array) -> Array:
    """Charges of tokens less the mean charge of a token of the batch."""
    positions = jnp.broadcast_to(jnp.arange(charged.shape[-1], dtype=charged.dtype), charged.shape)
    inside = positions < lengths[..., None].astype(charged.dtype)
    share = share[..., None]
    counted = jnp.where(inside, share, jnp.zeros_like(share))
    mean = (share * charged).sum() / counted.sum()
    return jnp.where(inside, charged - lax.stop_gradient(mean), charged)


def _lesson(recipe: Recipe, log_probs: Array, log_teacher: Array, asked: Array | None) -> Array:
    """What has the expected derivative of the KL to a teacher, per token or per sequence."""
    if recipe.level == "sequence":
        log_probs, log_teacher = (x.sum(-1, keepdims=True) for x in (log_probs, log_teacher))
    log_ratio = log_probs - log_teacher
    if recipe.teacher_direction == "reverse":
        # Of a sum over some tokens the 1 in the derivative of π log π is not the same for all.
        return k2(log_ratio) if asked is None else asked * (k2(log_ratio) + log_ratio)
    return k3(log_ratio) if asked is None else asked * jnp.exp(-log_ratio)


def _advantages(
    recipe: Recipe, returns: Sequence[Array], share: Array, weights: Any, groups: Any
) -> tuple[Array, Array]:
    if weights is None:
        return of_samples(recipe, returns)
    return in_expectation(recipe, returns, share, groups)


def _policy_term(
    recipe: Recipe, advantage: Array, log_probs: Array, sampler: Array, fresh: bool
) -> Array:
    """What the score function weighs; with samples of another policy, by their clipped ratio."""
    if fresh:
        return advantage * log_probs
    ratio = jnp.exp(log_probs - sampler)
    if recipe.clip is None:
        return advantage * ratio
    high = recipe.clip if recipe.clip_high is None else recipe.clip_high
    return jnp.minimum(advantage * ratio, advantage * jnp.clip(ratio, 1 - recipe.clip, 1 + high))


def _length_weight(kind: str, lengths: Array | None, share: Array, like: Array) -> Array:
    if kind == "sum" or lengths is None:
        return jnp.ones_like(like)
    counts = lengths.astype(like.dtype)
    if kind == "mean":
        return 1 / counts
    mean = (share * counts).sum() / share.sum()
    return jnp.broadcast_to(1 / mean, like.shape)
