"""Rewards that are proxies: what χ² promises of the true reward, and what promises most."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import (
    float_arguments,
    raise_first,
    require_normalized,
    worded,
)
from kltarget._core.numerics import safe_exp_product, select
from kltarget.divergences import ChiSquared
from kltarget.objectives import Objective
from kltarget.objectives._objective import broadcast_fields, policy_argument


def proxy_bound(
    log_policy: ArrayLike, reward: ArrayLike, log_ref: ArrayLike, correlation: ArrayLike
) -> Float[Array, "*batch"]:
    """What a policy gains of the true reward at least, from a proxy that correlates with it.

    If a true reward R and the proxy r have the correlation ρ under the reference,

    ``(E_π[R] − E_ref[R])/σ_R ≥ [(E_π[r] − E_ref[r])/σ_r − √((1 − ρ²) χ²(π‖π_ref))]/ρ``,

    standard deviations σ and ``χ² = Σ (π − π_ref)²/π_ref`` those of the reference. The policy of
    the best bound is the target of χ² at :func:`beta_for_root` with ``charge = σ_r √(1 − ρ²)``.

    Args:
        log_policy: log π, ``[*batch, A]``.
        reward: the proxy, ``[*batch, A]``.
        log_ref: log-probabilities of the reference, ``[*batch, A]``.
        correlation: ρ, above 0 and at most 1, ``[*batch]``.

    Returns:
        The right-hand side, in standard deviations of the true reward, ``[*batch]``; ``-inf``
        where the policy does what the reference lacks, NaN where the proxy is constant under the
        reference. Differentiable in every argument where finite.

    Raises:
        TypeError: complex numbers.
        ValueError: shapes that do not fit; outside a trace, a correlation out of range, and what
            :class:`kltarget.Objective` refuses of a reward and a reference.

    A proxy of ``-inf`` where the reference has mass has no correlation: NaN.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref, log_policy = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.4, 0.4, 0.2]]))
        >>> proxy = jnp.array([0.0, 1.0, 2.0])
        >>> bound = kt.frontier.proxy_bound(log_policy, proxy, log_ref, jnp.array([0.6, 0.9]))
        >>> print([f"{x:.3f}" for x in bound])
        ['0.149', '0.280']

    References:
        Laidlaw, Singhal, Dragan, "Correlated Proxies: A New Definition and Improved Mitigation for
        Reward Hacking", 2024, arXiv 2403.03185. R is ``ρ r + √(1 − ρ²) e`` in units of σ, e without
        correlation to r, and ``|E_π[e] − E_ref[e]| ≤ √χ²`` by Cauchy and Schwarz.
    """
    given = float_arguments(
        reward=reward, log_ref=log_ref, correlation=correlation, log_policy=log_policy
    )
    rho = given["correlation"]
    raise_first("correlation", rho, ~((rho > 0) & (rho <= 1)), "must be above 0 and at most 1")
    problem = Objective(given["reward"], given["log_ref"], jnp.ones((), rho.dtype), ChiSquared())
    with worded(
        f"correlation {rho.shape}, log_policy {given['log_policy'].shape} and the batch axes "
        f"{problem.batch_shape} do not broadcast"
    ):
        shape = (rho.shape, given["log_policy"].shape[:-1], problem.batch_shape)
        batch = jnp.broadcast_shapes(*shape)
    outcomes = (*batch, problem.num_outcomes)
    problem = Objective.unchecked(
        jnp.broadcast_to(problem.reward, outcomes), problem.log_ref, problem.beta, ChiSquared()
    )
    policy = policy_argument(problem, given["log_policy"])
    require_normalized(log_policy=policy)
    return _proxy_bound(problem, policy, jnp.broadcast_to(rho, batch)).astype(rho.dtype)


@jax.jit
def _proxy_bound(problem: Objective, log_policy: Array, rho: Array) -> Array:
    reward, log_ref, _, divergence = broadcast_fields(problem)
    log_policy = jnp.broadcast_to(log_policy, reward.shape)
    known = reward > -jnp.inf
    reward = select(known, reward, 0.0)
    mean = safe_exp_product(reward, log_ref).sum(-1)
    centred = reward - mean[..., None]
    variance = safe_exp_product(centred**2, log_ref).sum(-1)
    correlated = (variance > 0) & jnp.all(known | jnp.isneginf(log_ref), axis=-1)
    deviation = _root(variance, correlated)
    apart = safe_exp_product(centred, log_policy).sum(-1) / deviation
    distance = divergence._total(log_policy, log_ref)
    finite = jnp.isfinite(distance)
    far = jnp.where(distance > 0, _root(distance, finite & (distance > 0)), 0.0)
    rho = rho.astype(reward.dtype)
    slack = jnp.where(rho < 1, _root((1 - rho) * (1 + rho), rho < 1), 0.0)
    bound = jnp.where(correlated, (apart - slack * far) / rho, jnp.nan)
    return jnp.where(jnp.isposinf(distance), -jnp.inf, bound)


def _root(x: Array, positive: Array) -> Array:
    """The square root where that is smooth, and 1 elsewhere."""
    return jnp.sqrt(jnp.where(positive, x, 1.0))


def beta_for_root(
    reward: ArrayLike, log_ref: ArrayLike, charge: ArrayLike
) -> Float[Array, "*batch"]:
    """The β of χ² whose target maximises ``E_π[r] − charge·√χ²(π‖π_ref)``.

    It is the β with ``2β √χ² = charge`` at its own target. From ``charge = σ``, the reward's
    standard deviation under the reference, on there is none but the reference: targets of χ² that
    cut nothing off have ``2β √χ² = σ`` at every β, so that the root begins where cutting does. With
    the k best levels of mass m, mean reward μ and ``v = E_ref[(r − μ)²; these]``,
    ``1/(2β)² = (1 − m)/m / (charge² − v)``.

    The same on occupancy measures is :func:`kltarget.targets.mdps.solve_occupancy` with
    ``root=True``.

    Args:
        reward: r, in reward units, ``[*batch, A]``; ``-inf`` forbids an outcome.
        log_ref: log-probabilities of the reference, ``[*batch, A]``.
        charge: of √χ², in reward units, ``[*batch]``, above 0.

    Returns:
        β for :class:`kltarget.ChiSquared`, in reward units per nat, ``[*batch]``; ``inf`` where the
        reference is the optimum, and under a trace NaN where the arguments are invalid.
        Differentiable in every argument where finite and while the levels that are kept stay.

    Raises:
        TypeError: complex numbers.
        ValueError: shapes that do not fit; outside a trace, a charge that is not above 0, and what
            :class:`kltarget.Objective` refuses.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.4, 0.3, 0.15, 0.1, 0.05]))
        >>> reward = jnp.array([0.1, 0.5, 1.0, 0.9, 0.3])
        >>> charge = jnp.array([0.1, 0.3, 0.5])
        >>> beta = kt.frontier.beta_for_root(reward, log_ref, charge)
        >>> print([f"{x:.4f}" for x in beta])
        ['0.0280', '0.1408', 'inf']
        >>> target = kt.solve(kt.Objective(reward, log_ref, beta[:2], kt.ChiSquared()))
        >>> print([f"{x:.4f}" for x in 2 * beta[:2] * jnp.sqrt(target.divergence_value)])
        ['0.1000', '0.3000']

    References:
        Laidlaw, Singhal, Dragan, 2024, arXiv 2403.03185, who charge the root. Where the density
        ratio ``u = 1/m + a(r − μ)``, ``a = 1/(2β)``, is positive it is kept, so that
        ``χ² = (1 − m)/m + a² v``; ``√χ² = a·charge`` gives a.
    """
    given = float_arguments(reward=reward, log_ref=log_ref, charge=charge)
    own = given["charge"]
    bad = ~((own > 0) & (own < jnp.inf))
    raise_first("charge", own, bad, "must be above 0 and finite")
    safe = select(~bad, own, jnp.nan)
    problem = Objective.unchecked(given["reward"], given["log_ref"], safe, ChiSquared())
    Objective(given["reward"], given["log_ref"], jnp.ones((), own.dtype))
    with worded(f"charge {own.shape} does not broadcast to the batch of reward and log_ref"):
        _ = problem.batch_shape
    return _beta_for_root(problem).astype(own.dtype)


@jax.jit
def _beta_for_root(problem: Objective) -> Array:
    reward, log_ref, charge, _ = broadcast_fields(problem)
    on = (log_ref > -jnp.inf) & (reward > -jnp.inf)
    best = jnp.max(select(on, reward, -jnp.inf), axis=-1, keepdims=True)
    # Distances from the best, in the order of it; what cannot be comes last, without mass.
    short = select(on, best - select(on, reward, 0.0), jnp.inf)
    order = jnp.argsort(short, axis=-1)
    short = jnp.take_along_axis(short, order, -1)
    kept = short < jnp.inf
    mass = jnp.take_along_axis(jnp.exp(select(on, log_ref, -jnp.inf)), order, -1)
    lost = jnp.exp(select(log_ref > -jnp.inf, log_ref, -jnp.inf)).sum(-1, keepdims=True)
    lost = lost - mass.sum(-1, keepdims=True)
    depth = select(kept, short, 0.0)
    m = jnp.cumsum(mass, axis=-1)
    rest = jnp.flip(jnp.cumsum(jnp.flip(mass, -1), axis=-1), -1) - mass + lost
    mean = jnp.cumsum(mass * depth, axis=-1) / m
    spread = jnp.maximum(jnp.cumsum(mass * depth**2, axis=-1) - m * mean**2, 0.0)
    after = jnp.concatenate([short[..., 1:], jnp.full_like(short[..., :1], jnp.inf)], axis=-1)
    room = charge**2 - spread
    steep = jnp.sqrt(select(room > 0, rest / (m * select(room > 0, room, 1.0)), 0.0))
    # The next level is cut off if its ratio, 1/m − a(its distance from the mean), is not positive.
    gap = select(after < jnp.inf, after, 0.0) - mean
    cut = (after == jnp.inf) | (steep * m * gap >= 1)
    ends = kept & (after > short) & (room > 0) & cut
    k = jnp.argmax(ends, axis=-1, keepdims=True)
    a = jnp.take_along_axis(steep, k, -1)[..., 0]
    some = jnp.any(ends, axis=-1) & (a > 0)
    beta = jnp.where(some, 0.5 / jnp.where(some, a, 1.0), jnp.inf)
    return jnp.where(jnp.isnan(charge[..., 0]), jnp.nan, beta)
