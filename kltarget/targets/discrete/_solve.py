"""``solve``: from an objective to the policy that maximises it, in closed form."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import mass_tolerance
from kltarget._core.numerics import MANY, rounded_once
from kltarget._core.pytrees import pytree
from kltarget._core.status import Status, flag, unless_failed
from kltarget.divergences import ReverseKL, TotalVariation
from kltarget.objectives import Objective
from kltarget.objectives._objective import (
    broadcast_fields,
    charged,
    policy_argument,
    require_objective,
)
from kltarget.targets._protocol import DiscreteTarget, Optimum
from kltarget.targets.discrete._anchor import supported_max
from kltarget.targets.discrete._closed_forms import total_variation
from kltarget.targets.discrete._found import Solution
from kltarget.targets.discrete._implicit import differentiable_closed_form, optimal_value
from kltarget.targets.discrete._root import Side
from kltarget.tasks import ProblemLike, as_task


def _where(condition: Array, x: Array) -> Array:
    return jnp.where(condition, x, jnp.zeros_like(x))


@pytree
class Target(DiscreteTarget, Optimum):
    """The policy that maximises an :class:`Objective`, with its certificate.

    Attributes:
        objective: what it maximises.
        log_probs: log π*, shape ``[*batch, A]``; ``-inf`` where the target is exactly 0.
        multiplier: λ, the dual variable of ``Σπ = 1`` in reward units, shape ``[*batch]``:
            ``π* = π_ref (f′)⁻¹((r − λ)/β)``. For reverse KL it is ``β log Z``.
        status: :class:`Status` bits, shape ``[*batch]``; 0 where there is nothing to say.
    """

    made_by = "solve"

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The maximum J* in reward units, shape ``[*batch]``; its gradient is the envelope's.

        ``−inf`` where every policy has an infinite divergence or loss: forward KL with reward
        ``−inf`` on an outcome of the reference. NaN where the row failed.
        """
        reward, log_ref, beta, divergence = broadcast_fields(self.objective)
        wide = self.log_probs.astype(reward.dtype)
        value = optimal_value(divergence, reward, log_ref, beta, wide)
        return value[..., 0].astype(self.log_probs.dtype)

    def gap(self, log_policy: ArrayLike) -> Float[Array, "*batch"]:
        """How far a policy falls short of this optimum, ``J* − J(π) ≥ 0``, in reward units.

        It is computed as a Bregman divergence to the target, not as a difference of two values, so
        it keeps its relative accuracy near the optimum. For reverse KL it is ``β·KL(π‖π*)``.

        Args:
            log_policy: log-probabilities, shape ``[*batch, A]``.

        Returns:
            The gap, shape ``[*batch]``; ``inf`` where ``J(π) = −∞`` and the optimum is finite, 0
            where every policy has ``J = −∞``. Differentiable in the policy where finite.

        Raises:
            ValueError: ``log_policy`` does not broadcast against the objective.

        Example:
            >>> import jax.numpy as jnp, kltarget as kt
            >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
            >>> target = kt.solve(kt.Objective(jnp.array([1.0, 1.0, 0.0]), log_ref, 1.0))
            >>> print(f"{target.gap(log_ref):.4f}")
            0.1182
        """
        policy = policy_argument(self.objective, log_policy)
        return _gap(self, policy).astype(self.objective.reward.dtype)


@jax.jit
def _gap(target: Target, log_policy: Array) -> Array:
    """``J* − J(π)`` as a Bregman divergence to the target plus the cost of forbidden moves."""
    reward, log_ref, beta, divergence = broadcast_fields(target.objective)
    log_star = target.log_probs.astype(reward.dtype)
    log_policy = jnp.broadcast_to(log_policy, reward.shape)
    value = target.value.astype(reward.dtype)
    if isinstance(divergence, TotalVariation):
        # Outcome by outcome against the multiplier: every term is non-negative.
        probs, star, ref = jnp.exp(log_policy), jnp.exp(log_star), jnp.exp(log_ref)
        price = (jnp.max(reward, axis=-1, keepdims=True) - reward) - beta / 2
        paid = jnp.where(probs == star, jnp.zeros_like(price), price * (probs - star))
        moved = beta / 2 * (jnp.abs(probs - ref) - jnp.abs(star - ref))
        gap = jnp.maximum(paid + moved, 0).sum(-1)
    else:
        in_ref = log_ref > -jnp.inf
        held = in_ref & (log_star > -jnp.inf)
        # A forbidden outcome costs infinitely much already.
        counted = in_ref & (held | (reward > -jnp.inf))
        apart = divergence._bregman(*(_where(counted, x) for x in (log_policy, log_star, log_ref)))
        zero = jnp.zeros((), reward.dtype)
        endless = jnp.asarray(divergence.slope_at_infinity, reward.dtype)
        slope = jnp.where(in_ref, divergence.f_prime(zero), endless)
        allowed = (reward > -jnp.inf) & (slope > -jnp.inf)
        slack = target.multiplier.astype(reward.dtype)[..., None] - _where(allowed, reward)
        slack = jnp.where(allowed, slack + charged(beta, slope), jnp.inf)
        used = (log_policy > -jnp.inf) & jnp.isneginf(log_star)
        extra = jnp.exp(log_policy) * jnp.maximum(_where(used, slack), 0)
        gap = charged(beta[..., 0], _where(counted, apart).sum(-1)) + extra.sum(-1)
    gap = jnp.where(jnp.isneginf(value), jnp.zeros_like(gap), gap)
    return jnp.where(jnp.isnan(value), jnp.full_like(gap, jnp.nan), gap)


def solve(
    objective: Objective | ProblemLike, *, beta: ArrayLike | None = None, **options: Any
) -> Target:
    """The policy that maximises ``J(π) = E_π[reward] − beta · D(π, π_ref)``.

    Reverse KL: ``π* = π_ref e^{r/β}/Z``. Any other f-divergence: ``π* = π_ref (f′)⁻¹((r − λ)/β)``
    with λ from ``Σπ* = 1``, a root in one scalar; forward KL: ``π* = β π_ref/(Λ − r)``, Λ = λ + β.

    Where the reference has no mass, a finite slope of f at infinity lets the target put mass at
    small β ("condensation"): with ``λ_c = r_out − β f′(∞)`` above the supported problem's own
    multiplier, λ = λ_c and the best unsupported outcomes hold what is missing, in equal parts.

    Args:
        objective: of any batch shape; or a problem in any form that ``tasks.as_task`` takes, such
            as the name of a task or a DataFrame, whose ``objective(beta, …)`` is solved.
        beta: of a problem, reward units per nat, shape ``[*batch]``; an objective has its own.
        **options: of a problem those of ``Task.objective``: ``divergence=`` chooses the
            regulariser.

    Returns:
        The target. Log-probabilities carry the inputs' dtype and an error of a few ``eps·(1 +
        |log π|)``, for β from 1e-12 to 1e12 and reference masses down to e^−800.

    Raises:
        TypeError: no problem, a problem without ``beta``, or an objective with one.

    Status:
        ``CONDENSED``, ``TRUNCATED``, ``NOT_UNIQUE`` are remarks. Failures (``INVALID_BETA``,
        ``INVALID_REWARD``, ``INVALID_REFERENCE``, ``EMPTY_SUPPORT``, ``NOT_CONVERGED``) come with
        NaN in every number of the row; :meth:`Target.raise_if_failed` makes them an exception.

    Where the reward is ``-inf`` or the reference 0 (and not condensed) the target is 0. A NaN in
    one row does not touch another.

    Differentiable, forward and in reverse, in reward, log_ref, beta and the divergence's parameters
    by the implicit function theorem: ``∂π_i/∂r_j = (w_i δ_ij − w_i w_j/W)/β`` with
    ``w = π_ref/f″(π/π_ref)`` and ``W = Σw``. Derivatives at outcomes of probability 0 are 0; at the
    kinks of truncating divergences they are one-sided. Works under ``jit``, ``vmap`` and sharding
    of the batch axes or of the outcomes.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> reward = jnp.array([1.0, 1.0, 0.0])
        >>> target = kt.solve(kt.Objective(reward, log_ref, 0.1))
        >>> print([f"{p:.4f}" for p in target.probs])
        ['0.9374', '0.0625', '0.0001']
        >>> target = kt.solve(kt.Objective(reward, log_ref, 0.1, kt.ForwardKL()))
        >>> print([f"{p:.4f}" for p in target.probs])
        ['0.8759', '0.0584', '0.0657']
        >>> print([f"{p:.4f}" for p in kt.solve("one-two", beta=0.1).probs])
        ['0.9374', '0.0625', '0.0001']

    References:
        Korbak et al., 2022, arXiv 2205.11275 (reverse KL). GX-Chen et al., "KL-Regularized
        Reinforcement Learning is Designed to Mode Collapse", 2025, arXiv 2510.20817 (both KLs).
        Grill et al., 2020, arXiv 2007.12509 (forward KL). Roulet et al., "Loss Functions and
        Operators Generated by f-Divergences", 2025, arXiv 2501.18537 (any f).
    """
    objective = _posed(objective, beta, options)
    # An α that is a number is traced too, but what is known of it need not be asked while solving.
    gamma = getattr(objective.divergence, "_gamma", None)
    side = Side.of(gamma, objective.measure) if isinstance(gamma, (int, float)) else None
    # Values that the constructor saw are not checked again.
    return Target(objective, *_solve(objective, trusted=objective.checked, side=side))


def _posed(given: Any, beta: ArrayLike | None, options: dict[str, Any]) -> Objective:
    """The objective itself, or that of a problem at a β, which is never guessed."""
    if isinstance(given, Objective):
        if beta is not None or options:
            named = ", ".join([*(["beta"] if beta is not None else []), *options])
            raise TypeError(
                f"an objective has a beta and a divergence of its own: leave out {named}"
            )
        return given
    if isinstance(getattr(given, "objective", None), Objective):  # that of a target, say
        require_objective(given, "solve")
    task = as_task(given)
    if beta is None:
        raise TypeError(
            f"a {type(given).__name__} has no beta, and none is guessed: give the trainer's "
            "coefficient in reward units per nat, kltarget.solve(problem, beta=0.1)"
        )
    return task.objective(beta, **options)


@functools.partial(jax.jit, static_argnames=("trusted", "side"))
def _solve(objective: Objective, trusted: bool, side: Side | None = None) -> Solution:
    reward, log_ref, beta, divergence = broadcast_fields(objective)
    if objective.log_ref.size < reward.size and reward.shape[-1] > MANY:
        # Copies of a long reference would take as long as a pass.
        given = objective.log_ref
        log_ref = given.reshape((1,) * (reward.ndim - given.ndim) + given.shape).astype(beta.dtype)
    if not (trusted or isinstance(divergence, ReverseKL)):
        # It may be computed by the same program, and all but reverse KL ask which is the best.
        reward = rounded_once(reward)
    unchecked = objective.measure or trusted
    tolerance = None if unchecked else mass_tolerance(objective.log_ref.dtype)
    problem = (divergence, reward, log_ref, beta)
    found = differentiable_closed_form(*problem, tolerance, objective.measure, side)
    dtype = objective.reward.dtype
    log_probs, multiplier = found.log_probs.astype(dtype), found.multiplier[..., 0].astype(dtype)
    return Solution(log_probs, multiplier, found.status[..., 0])


def greedy_limit(objective: Objective) -> Target:
    """The limit of the target for beta → 0: the best outcomes, in the reference's proportions.

    At β = 0 itself every distribution on the best outcomes is optimal and the training path decides
    which one is reached; the limit of the targets is the reference restricted to them. Divergences
    with a finite slope at infinity prefer a better outcome without reference mass; several tied
    ones share equally. The objective's own beta is not used.

    Args:
        objective: of any batch shape.

    Returns:
        A target whose value is the best reward it reaches (the regulariser counts for nothing).
        ``NOT_UNIQUE`` marks ties, ``CONDENSED`` mass outside the reference.

    Raises:
        TypeError: no objective.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> limit = kt.targets.greedy_limit(kt.Objective(jnp.array([1.0, 1.0, 0.0]), log_ref, 1.0))
        >>> print(limit.probs.round(4))
        [0.9375 0.0625 0.    ]
    """
    require_objective(objective, "greedy_limit")
    return Target(*_limits(objective, greedy=True))


def reference_limit(objective: Objective) -> Target:
    """The limit of the target for beta → ∞: the reference, as far as the reward allows it.

    The larger beta, the less the reward counts in ``E_π[reward] − beta · D(π, π_ref)``; what is
    left of it is which outcomes it forbids. The objective's own beta is not used.

    Args:
        objective: of any batch shape.

    Returns:
        A target whose ``log_probs``, shape ``[*batch, A]``, are those of the reference, and whose
        value is the reference's expected reward, in its unit, shape ``[*batch]``. A row of which
        ``solve`` would refuse the reward or the reference is NaN, with the same ``Status`` bits.

    Raises:
        TypeError: no objective.

    Outcomes of reward ``-inf`` stay at 0: the reference is restricted to the others, in its own
    proportions but for total variation, which gives what is free to the best of them; the value is
    ``-inf`` if it has to give up mass for that. Differentiable in the reward and the reference.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> limit = kt.targets.reference_limit(
        ...     kt.Objective(jnp.array([1.0, 1.0, 0.0]), log_ref, 1.0)
        ... )
        >>> print([f"{p:.4f}" for p in limit.probs])
        ['0.3000', '0.0200', '0.6800']
    """
    require_objective(objective, "reference_limit")
    return Target(*_limits(objective, greedy=False))


@functools.partial(jax.jit, static_argnames="greedy")
def _limits(objective: Objective, greedy: bool) -> tuple[Objective, Array, Array, Array]:
    reward, log_ref, _, divergence = broadcast_fields(objective)
    reward = rounded_once(reward)
    dtype = objective.reward.dtype
    in_ref = log_ref > -jnp.inf
    minus_inf = jnp.full_like(log_ref, -jnp.inf)
    best = supported_max(reward, log_ref)
    mass = jnp.exp(log_ref).sum(-1, keepdims=True)
    tolerance = jnp.inf if objective.measure else mass_tolerance(objective.log_ref.dtype)
    status = (
        flag(~(jnp.max(reward, axis=-1, keepdims=True) < jnp.inf), Status.INVALID_REWARD)
        | flag(~(jnp.abs(mass - 1) <= tolerance), Status.INVALID_REFERENCE)
        | flag(jnp.isneginf(best), Status.EMPTY_SUPPORT)
    )
    level = best
    if greedy:
        outside = jnp.max(jnp.where(in_ref, minus_inf, reward), axis=-1, keepdims=True)
        beyond = (outside > best) & (divergence.slope_at_infinity < jnp.inf)
        level = jnp.where(beyond, outside, best)
        members = (reward == level) & (in_ref ^ beyond)
        weights = jnp.where(members, jnp.where(beyond, jnp.zeros_like(log_ref), log_ref), minus_inf)
        tied = members.sum(-1, keepdims=True) > 1
        status = status | flag(tied, Status.NOT_UNIQUE) | flag(beyond, Status.CONDENSED)
        limit_beta = jnp.zeros_like(objective.beta)
    else:
        weights = jnp.where(reward > -jnp.inf, log_ref, minus_inf)
        limit_beta = jnp.full_like(objective.beta, jnp.inf)
    log_sum = jax.nn.logsumexp(weights, axis=-1, keepdims=True)
    log_probs = jnp.where(weights > -jnp.inf, weights - log_sum, minus_inf)
    if greedy:
        multiplier = level
    else:
        if isinstance(divergence, TotalVariation):
            # What it may not keep is all worth most with the best outcomes, at every beta.
            endless = jnp.full_like(best, jnp.inf)
            moved = total_variation(reward, log_ref, endless, best, objective.measure)
            log_probs = jnp.where(jnp.isneginf(reward), minus_inf, moved.log_probs)
        mean = (jnp.exp(log_probs) * _where(log_probs > -jnp.inf, reward)).sum(-1, keepdims=True)
        lift = divergence._f_prime_at(jnp.zeros_like(best))
        multiplier = jnp.where(lift == 0, mean, -jnp.inf * jnp.sign(lift))
    log_probs, multiplier = (unless_failed(status, x) for x in (log_probs, multiplier))
    limit = dataclasses.replace(objective, beta=limit_beta)
    return limit, log_probs.astype(dtype), multiplier[..., 0].astype(dtype), status[..., 0]
