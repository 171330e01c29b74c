"""Best-of-n: the distribution of the best of n draws from the reference, level by level."""

from __future__ import annotations

from typing import Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kltarget._core.checks import float_arguments, raise_first, worded
from kltarget._core.numerics import (
    expm1_ratio,
    log1p,
    log1p_ratio,
    log_sum_exp,
    safe_exp_product,
    select,
    working_dtype,
)
from kltarget._core.pytrees import pytree
from kltarget._core.status import FAILURES, Status, flag, raise_if_failed
from kltarget.divergences import ReverseKL
from kltarget.objectives import Objective
from kltarget.targets import reference_limit
from kltarget.targets._protocol import OverOutcomes


@pytree
class BestOfN(OverOutcomes):
    """What :func:`best_of_n` returns: the distribution and what it costs and wins.

    It maximises no objective and so is no target, but answers what targets do, except ``value``.

    Attributes:
        log_probs: log q, shape ``[*batch, A]``; ``-inf`` where the reference is 0.
        kl: ``KL(q‖π_ref)`` in nats, shape ``[*batch]``.
        kl_bound: ``log n − (n − 1)/n``, which ``kl`` never exceeds, in nats, shape ``[*batch]``.
        expected_reward: ``E_q[reward]`` in reward units, shape ``[*batch]``.
        win_rate: the probability that its reward is higher than that of one draw from the
            reference, ties counted ½, shape ``[*batch]``; at most ``n/(n + 1)``.
        status: :class:`~kltarget.Status` bits, shape ``[*batch]``; 0 where there is nothing to say.
    """

    log_probs: Float[Array, "*batch A"]
    kl: Float[Array, "*batch"]
    kl_bound: Float[Array, "*batch"]
    expected_reward: Float[Array, "*batch"]
    win_rate: Float[Array, "*batch"]
    status: Int[Array, "*batch"]

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """The same as ``kl``, shape ``[*batch]``."""
        return self.kl

    def raise_if_failed(self) -> Self:
        """This distribution, or an error naming the first failed row.

        Raises:
            ValueError: a row's status has a failure bit.
        """
        raise_if_failed(self.status, "best_of_n")
        return self


def best_of_n(reward: ArrayLike, log_ref: ArrayLike, n: ArrayLike) -> BestOfN:
    """The distribution of the draw of highest reward among n independent ones of the reference.

    It maximises no regularised objective, but is compared with the targets of ``E_π[reward] − beta
    · D(π, π_ref)``: at equal ``KL(π‖π_ref)`` that of reverse KL, π*, has at least its expected
    reward, more by ``beta · KL(q‖π*)``. Of several draws of the highest reward any may be taken;
    they keep the reference's proportions.

    With F and F⁻ the reference's mass of outcomes up to and strictly below a reward, and μ = F − F⁻
    that of the reward itself, ``q = π_ref/μ · (Fⁿ − (F⁻)ⁿ)``. It is computed in log space: neither
    an n of 1e6 and more nor an Fⁿ that underflows costs digits.

    Args:
        reward: larger is better, shape ``[*batch, A]``.
        log_ref: natural-log reference probabilities, shape ``[*batch, A]``, normalised.
        n: number of draws, a real number of 1 or more, whose shape broadcasts against ``*batch``.

    Returns:
        The distribution, its KL and the KL's bound, its expected reward and its win rate. As a
        target does, it answers ``log_prob``, ``sample`` and ``expectation``.

    Raises:
        TypeError: complex numbers.
        ValueError: shapes that do not fit; outside a trace an ``n`` below 1 or not finite, and
            whatever :class:`kltarget.Objective` refuses of a reward and a reference. Under a trace
            these rows are NaN, and ``status`` says why.

    An outcome of reward ``-inf`` is the worst there is and not forbidden: it comes out if all draws
    are such, and the expected reward is ``-inf`` then. Differentiable in ``log_ref``, among
    normalised ones, and in ``n``; in ``reward`` only ``expected_reward`` has derivatives, the
    probabilities, as nothing changes unless two rewards trade places.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.4, 0.3, 0.15, 0.1, 0.05]))
        >>> reward = jnp.array([0.1, 0.5, 1.0, 0.9, 0.3])
        >>> best = kt.frontier.best_of_n(reward, log_ref, 4)
        >>> print([f"{p:.4f}" for p in best.probs])
        ['0.0256', '0.2754', '0.4780', '0.2056', '0.0154']
        >>> print(f"{best.kl:.4f} of at most {best.kl_bound:.4f} nats, wins {best.win_rate:.4f}")
        0.5901 of at most 0.6363 nats, wins 0.7835
        >>> print(f"{best.expectation(reward):.4f} as {best.expected_reward:.4f}")
        0.8079 as 0.8079

    References:
        Beirami et al., "Theoretical guarantees on the best-of-n alignment policy", 2024, arXiv
        2401.01879, for the distribution and the bound. All n draws lie at or below a reward with
        probability Fⁿ, all strictly below it with (F⁻)ⁿ. The comparison at equal KL follows from
        ``KL(q‖π*) = (E_π*[r] − E_q[r])/beta + KL(q‖π_ref) − KL(π*‖π_ref)``.
    """
    given = float_arguments(reward=reward, log_ref=log_ref, n=n)
    draws = given["n"]
    bad = ~((draws >= 1) & (draws < jnp.inf))
    raise_first("n", draws, bad, "must be a finite number of 1 or more")
    objective = Objective(given["reward"], given["log_ref"], jnp.ones((), draws.dtype))
    with worded(
        f"n has shape {draws.shape}, which does not broadcast against the batch axes "
        f"{objective.batch_shape} of reward and log_ref"
    ):
        jnp.broadcast_shapes(draws.shape, objective.batch_shape)
    return _best_of_n(objective, select(~bad, draws, jnp.nan))


@jax.jit
def _best_of_n(objective: Objective, n: Array) -> BestOfN:
    own, dtype = objective.reward.dtype, working_dtype(objective.reward.dtype)
    # Of rows that are refused everything is NaN, and so is what it is carried into.
    reference = reference_limit(objective)
    failed = jnp.isnan(reference.log_probs[..., :1])
    batch = jnp.broadcast_shapes(n.shape, objective.batch_shape)
    shape = (*batch, objective.num_outcomes)
    draws = jnp.broadcast_to(n.astype(dtype), batch)[..., None]
    reward, log_ref = (
        jnp.broadcast_to(select(~failed, x, 0).astype(dtype), shape)
        for x in (objective.reward, objective.log_ref)
    )
    log_ref = log_ref - log_sum_exp(log_ref)

    below, level, above = _masses(reward, log_ref)
    log_ratio = _log_ratio(draws, below, level, above)
    log_probs = select(log_ref > -jnp.inf, log_ref + log_ratio, -jnp.inf)
    probs = jnp.exp(log_probs)
    gain = safe_exp_product(reward, log_probs)
    wins = probs * (jnp.exp(below) + jnp.exp(level) / 2)
    flat = draws[..., 0]
    found = {
        "kl": ReverseKL()._total(log_probs, log_ref),
        "kl_bound": jnp.log(flat) - (flat - 1) / flat,
        "expected_reward": gain.sum(-1),
        "win_rate": wins.sum(-1),
    }
    refused = jnp.broadcast_to(failed[..., 0], batch) | jnp.isnan(flat)
    numbers = {name: select(~refused, x, jnp.nan).astype(own) for name, x in found.items()}
    log_probs = select(~refused[..., None] & (probs == probs), log_probs, jnp.nan)
    status = jnp.broadcast_to(reference.status & FAILURES, batch)
    status |= flag(jnp.isnan(flat), Status.INVALID_N)
    return BestOfN(log_probs=log_probs.astype(own), **numbers, status=status)


def _masses(reward: Array, log_ref: Array) -> tuple[Array, Array, Array]:
    """Log-masses of the outcomes below, at and above the reward of each outcome."""
    order = jnp.argsort(reward, axis=-1)
    sorted_reward = jnp.take_along_axis(reward, order, -1)
    mass = jnp.take_along_axis(log_ref, order, -1)
    size = reward.shape[-1]
    place = jnp.broadcast_to(jnp.arange(size), reward.shape)
    rises = sorted_reward[..., 1:] > sorted_reward[..., :-1]
    edge = jnp.ones((*reward.shape[:-1], 1), bool)
    starts = jnp.concatenate([edge, rises], axis=-1)
    ends = jnp.concatenate([rises, edge], axis=-1)
    axis = reward.ndim - 1
    first = lax.cummax(jnp.where(starts, place, 0), axis)
    last = lax.cummin(jnp.where(ends, place, size - 1), axis, reverse=True)

    def up_to(x: Array, starts: Array) -> Array:
        """Sums from the last start on."""
        return lax.associative_scan(_add_since, (x, starts), axis=axis)[0]

    none = jnp.full_like(mass[..., :1], -jnp.inf)
    nowhere = jnp.zeros_like(starts)
    rising = jnp.concatenate([none, up_to(mass, nowhere)], axis=-1)
    falling = jnp.concatenate([jnp.flip(up_to(jnp.flip(mass, -1), nowhere), -1), none], axis=-1)
    own = up_to(mass, starts)
    back = jnp.argsort(order, axis=-1)
    sums = ((rising, first), (own, last), (falling, last + 1))
    below, level, above = (
        jnp.take_along_axis(jnp.take_along_axis(x, at, -1), back, -1) for x, at in sums
    )
    return below, level, above


def _add_since(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
    """Logarithms of running sums that start anew where they are marked."""
    (x, started), (y, starts) = one, two
    pair = jnp.stack([select(~starts, x, -jnp.inf), y], axis=-1)
    return log_sum_exp(pair)[..., 0], started | starts


def _log_ratio(n: Array, below: Array, level: Array, above: Array) -> Array:
    """``log[(Fⁿ − (F⁻)ⁿ)/μ]``, of 0 where μ is 0."""
    some = level > -jnp.inf
    level = select(some, level, 0)
    under = some & (below > -jnp.inf)
    low = select(under, below, 0)
    upper = jnp.exp(select(some, above, -jnp.inf))
    # From whichever side of 1/2 it loses no digits.
    mostly = upper < 0.5
    pair = jnp.stack([select(under, low, -jnp.inf), level], axis=-1)
    together = log_sum_exp(pair)[..., 0]
    log_f = jnp.where(mostly, log1p(-select(mostly, upper, 0)), select(~mostly, together, -1))
    share = level - log_f
    thin = under & (share < -0.5)
    ratio = jnp.exp(select(thin, share, -1))
    # (1 − (1 − ρ)ⁿ)/ρ for a level of a small share ρ of F, however small.
    log_rest = -ratio * log1p_ratio(-ratio)
    spread = jnp.log(n) + jnp.log(log1p_ratio(-ratio)) + jnp.log(expm1_ratio(n * log_rest))
    thick = under & ~thin
    fall = n * select(thick, low - log_f, -1)
    lost = jnp.log(-jnp.expm1(fall)) - share
    own = jnp.where(thin, spread, jnp.where(thick, lost, select(under, share, 0) - share))
    return select(some, (n - 1) * log_f + own, 0)
