"""Learning a KL-regularised bandit from noisy rewards, and what learning costs."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from kltarget._core.checks import (
    float_arguments,
    positive,
    raise_first,
    require_normalized,
    require_outcomes,
    typed_key,
)
from kltarget._core.pytrees import pytree


@pytree
class BanditPlay:
    """How learning a bandit went.

    Attributes:
        regret: after each round, the sum of ``J* − J(π_t)`` until then, both regularised, in reward
            units, ``[num_seeds, num_rounds]``.
        log_policy: the last policies, ``[num_seeds, A]``.
        visits: how often each action was tried, ``[num_seeds, A]``.
    """

    regret: Float[Array, "seeds rounds"]
    log_policy: Float[Array, "seeds A"]
    visits: Float[Array, "seeds A"]


def bandit_play(
    reward: ArrayLike,
    log_ref: ArrayLike,
    beta: ArrayLike,
    *,
    key: Shaped[Array, ""],
    num_rounds: int,
    num_seeds: int = 1,
    noise: float = 1.0,
    bonus: float = 0.0,
) -> BanditPlay:
    """Learns ``max_π E_π[reward] − β·KL(π‖π_ref)`` from one noisy reward a round.

    In every round an action is drawn from ``π_t ∝ π_ref e^{r̂_t/β}``, where r̂ is the mean of the
    rewards that the action was seen to have, of which there is one of 0 at first; with a bonus,
    ``bonus/√(1 + visits)`` is added, the optimism of UCB. Without, this is the plug-in of the
    regularised optimum, which explores as far as β and the reference let it. What a round loses is
    ``β·KL(π_t‖π*)``, a squared error of r̂ of the order 1/t: regret grows like log T, where an
    unregularised bandit may pay √T.

    Args:
        reward: mean reward of each action, ``[A]``, finite where the reference has mass.
        log_ref: reference log-probabilities, ``[A]``.
        beta: coefficient above 0, in reward units per nat, a number.
        key: a random key.
        num_rounds: how many actions are tried.
        num_seeds: how many learners, all in one program.
        noise: standard deviation of what is added to rewards that are seen.
        bonus: factor of the bonuses, in reward units, 0 or more.

    Returns:
        The regret and what was learnt.

    Raises:
        ValueError: shapes that do not fit, values out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.training import bandit_play
        >>> even = jnp.log(jnp.full(3, 1 / 3))
        >>> options = {"key": jax.random.key(0), "num_rounds": 1000, "num_seeds": 8}
        >>> learnt = bandit_play(jnp.array([0.0, 0.5, 1.0]), even, 0.5, **options)
        >>> learnt.regret.shape, bool((learnt.regret[:, -1] < 3 * learnt.regret[:, 99]).all())
        ((8, 1000), True)

    References:
        Zhao, Ye, Gu, Zhang, "Sharp Analysis for KL-Regularized Contextual Bandits and RLHF", 2024,
        arXiv 2411.04625. Zhao, Ye, Xiong, Gu, Zhang, "Logarithmic Regret for Online KL-Regularized
        Reinforcement Learning", 2025, arXiv 2502.07460, whose bonus has the factor of the proof.
    """
    given = float_arguments(reward=reward, log_ref=log_ref, beta=beta)
    r, reference, coefficient = given.values()
    require_outcomes(r, "reward")
    if r.ndim != 1 or reference.shape != r.shape or coefficient.ndim:
        raise ValueError(
            f"reward has shape {r.shape}, log_ref {reference.shape} and beta {coefficient.shape}: "
            "give [A], [A] and a number"
        )
    require_normalized(log_ref=reference)
    raise_first(
        "beta",
        coefficient,
        ~((coefficient > 0) & (coefficient < jnp.inf)),
        "must be above 0 and finite",
    )
    endless = (reference > -jnp.inf) & ~jnp.isfinite(r)
    raise_first("reward", r, endless, "must be finite where log_ref has mass")
    positive("num_rounds", num_rounds)
    positive("num_seeds", num_seeds)
    for name, x in (("noise", noise), ("bonus", bonus)):
        if not 0 <= x < float("inf"):
            raise ValueError(f"{name} must be 0 or more and finite, got {x}")
    numbers = (jnp.asarray(x, r.dtype) for x in (noise, bonus))
    setting = _Setting(jnp.where(reference > -jnp.inf, r, 0.0), reference, coefficient, *numbers)
    keys = jax.random.split(typed_key(key), num_seeds)
    return BanditPlay(*_learn(setting, keys, num_rounds))


class _Setting(NamedTuple):
    reward: Array
    log_ref: Array
    beta: Array
    noise: Array
    bonus: Array


@functools.partial(jax.jit, static_argnums=2)
def _learn(setting: _Setting, keys: Array, num_rounds: int) -> tuple[Array, Array, Array]:
    reward, log_ref, beta, noise, bonus = setting
    best = jax.nn.log_softmax(log_ref + reward / beta)

    def policy(paid: Array, visits: Array) -> Array:
        extra = bonus / jnp.sqrt(1 + visits)
        return jax.nn.log_softmax(log_ref + (paid / (1 + visits) + extra) / beta)

    def learner(key: Array) -> tuple[Array, Array, Array]:
        def advance(state: tuple, key: Array) -> tuple[tuple, Array]:
            paid, visits, total = state
            log_policy = policy(paid, visits)
            on = log_policy > -jnp.inf
            ratio = jnp.where(on, log_policy, 0.0) - jnp.where(on, best, 0.0)
            total = total + beta * (jnp.exp(log_policy) * ratio).sum()
            first, second = jax.random.split(key)
            action = jax.random.categorical(first, log_policy)
            got = reward[action] + noise * jax.random.normal(second, (), reward.dtype)
            return (paid.at[action].add(got), visits.at[action].add(1.0), total), total

        nothing = jnp.zeros_like(reward)
        start = (nothing, nothing, jnp.zeros((), reward.dtype))
        (paid, visits, _), regret = lax.scan(advance, start, jax.random.split(key, num_rounds))
        return regret, policy(paid, visits), visits

    return jax.vmap(learner)(keys)
