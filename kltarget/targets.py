"""``solve``: from an objective to the policy that maximises it, in closed form.

Every f-divergence target has the form ``π_i = π_ref,i · u((r_i − λ)/β)`` with ``u = (f′)⁻¹`` and one
scalar per problem, the multiplier λ, fixed by ``Σπ = 1``. The scalar used here is ``ℓ = log u_max``,
the log density ratio of the best supported outcome: it lies in ``[0, −log m]`` with ``m`` the
reference mass of the best outcomes, knows no unit, survives reference masses of e^−800, and turns
the equation into ``G(ℓ) = logsumexp(log π_ref + log u(ℓ, v)) = 0`` with ``v = (r − r_max)/β``,
increasing in ℓ. Derivatives come from the implicit function theorem, never from the iterations.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from kltarget._numerics import divide_exactly, paired_sum, two_sum
from kltarget.divergences import Divergence, ReverseKL, TotalVariation
from kltarget.objectives import Objective, _value, broadcast_fields, mass_tolerance

__all__ = ["Status", "Target", "greedy_limit", "reference_limit", "solve"]


class Status(enum.IntFlag):
    """What :func:`solve` has to say about a row. The first three are remarks, the rest failures."""

    OK = 0
    CONDENSED = 1
    """Part of the target stands on outcomes without reference mass."""
    TRUNCATED = 2
    """The target is exactly 0 on outcomes that have reference mass and a finite reward."""
    NOT_UNIQUE = 4
    """Tied outcomes share a mass of which only the total is determined."""
    NOT_CONVERGED = 16
    """The root of the multiplier was not found to the accuracy of the dtype."""
    INVALID_BETA = 32
    """beta is not above 0 and finite."""
    INVALID_REWARD = 64
    """A reward is NaN or +inf."""
    INVALID_REFERENCE = 128
    """The reference is NaN or its masses do not sum to one; see :func:`normalize`."""
    EMPTY_SUPPORT = 256
    """No outcome has both a finite reward and reference mass."""


_FAILURES = (
    Status.NOT_CONVERGED
    | Status.INVALID_BETA
    | Status.INVALID_REWARD
    | Status.INVALID_REFERENCE
    | Status.EMPTY_SUPPORT
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """The policy that maximises an :class:`Objective`, with its certificate.

    Attributes:
        objective: what it maximises.
        log_probs: log π*, shape ``[*batch, A]``; ``-inf`` where the target is exactly 0.
        multiplier: λ, the dual variable of ``Σπ = 1`` in reward units, shape ``[*batch]``:
            ``π* = π_ref (f′)⁻¹((r − λ)/β)``. For reverse KL it is ``β log Z``.
        status: :class:`Status` bits, shape ``[*batch]``; 0 where there is nothing to say.
    """

    objective: Objective
    log_probs: Float[Array, "*batch A"]
    multiplier: Float[Array, "*batch"]
    status: Int[Array, "*batch"]

    @property
    def probs(self) -> Float[Array, "*batch A"]:
        """The probabilities π*, shape ``[*batch, A]``."""
        return jnp.exp(self.log_probs)

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The maximum J* in reward units, shape ``[*batch]``; its gradient is the envelope's.

        ``−inf`` where every policy has an infinite divergence or loss: forward KL with reward
        ``−inf`` on an outcome of the reference. NaN where the row failed.
        """
        reward, log_ref, beta, divergence = broadcast_fields(self.objective)
        wide = self.log_probs.astype(reward.dtype)
        return _optimal_value(divergence, reward, log_ref, beta, wide)[..., 0].astype(
            self.log_probs.dtype
        )

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_π*[reward]`` in reward units, shape ``[*batch]``."""
        reward, *_ = broadcast_fields(self.objective)
        log_probs = self.log_probs.astype(reward.dtype)
        gain = jnp.exp(log_probs) * _where(log_probs > -jnp.inf, reward)
        return gain.sum(-1).astype(self.log_probs.dtype)

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """``D(π*, π_ref)`` in nats, the objective's own divergence, shape ``[*batch]``."""
        reward, log_ref, _, divergence = broadcast_fields(self.objective)
        cost = divergence._integrand(self.log_probs.astype(reward.dtype), log_ref)
        return cost.sum(-1).astype(self.log_probs.dtype)

    def raise_if_failed(self) -> Target:
        """This target, or an error naming the first failed row.

        Raises:
            ValueError: a row's status has a failure bit.
        """
        status = np.asarray(self.status)
        failed = np.argwhere(status & int(_FAILURES))
        if failed.size or (status.ndim == 0 and status & int(_FAILURES)):
            at = tuple(int(i) for i in failed[0]) if failed.size else ()
            bits = Status(int(status[at])) & _FAILURES
            names = ", ".join(str(bit.name) for bit in Status if bit & bits)
            raise ValueError(
                f"solve failed{f' at index {at}' if at else ''}: {names} "
                f"({len(failed) if status.ndim else 1} of {status.size} rows)"
            )
        return self

    def sample(self, *, key: Shaped[Array, ""], num_samples: int) -> Int[Array, "num_samples *batch"]:
        """Independent draws of outcomes.

        Args:
            key: a JAX random key.
            num_samples: how many, per row.

        Returns:
            Outcome indices, shape ``[num_samples, *batch]``.

        Example:
            >>> import jax, jax.numpy as jnp, kltarget as kt
            >>> target = kt.solve(kt.Objective(jnp.array([0.0, 9.0]), jnp.log(jnp.full(2, 0.5)), 1.0))
            >>> print(target.sample(key=jax.random.key(0), num_samples=4))
            [1 1 1 1]
        """
        shape = (num_samples, *self.log_probs.shape[:-1])
        return jax.random.categorical(key, self.log_probs, axis=-1, shape=shape)


def solve(objective: Objective) -> Target:
    """The policy that maximises ``J(π) = E_π[reward] − beta · D(π, π_ref)``.

    Reverse KL: ``π* = π_ref e^{r/β}/Z``. Any other f-divergence: ``π* = π_ref (f′)⁻¹((r − λ)/β)``
    with λ from ``Σπ* = 1``, a root in one scalar; forward KL: ``π* = β π_ref/(Λ − r)``, Λ = λ + β.

    Where the reference has no mass, a finite slope of f at infinity lets the target put mass at
    small β ("condensation"): with ``λ_c = r_out − β f′(∞)`` above the supported problem's own
    multiplier, λ = λ_c and the best unsupported outcomes hold what is missing, in equal parts.

    Args:
        objective: of any batch shape.

    Returns:
        The target. Log-probabilities carry the inputs' dtype and an error of a few ``eps·(1 +
        |log π|)``, for β from 1e-12 to 1e12 and reference masses down to e^−800.

    Status:
        ``CONDENSED``, ``TRUNCATED``, ``NOT_UNIQUE`` are remarks. Failures (``INVALID_BETA``,
        ``INVALID_REWARD``, ``INVALID_REFERENCE``, ``EMPTY_SUPPORT``, ``NOT_CONVERGED``) come with
        NaN in every number of the row; :meth:`Target.raise_if_failed` turns them into an exception.

    Where the reward is ``-inf`` or the reference 0 (and not condensed) the target is 0. A NaN in one
    row does not touch another.

    Differentiable, forward and in reverse, in reward, log_ref, beta and the divergence's parameters
    by the implicit function theorem: ``∂π_i/∂r_j = (w_i δ_ij − w_i w_j/W)/β`` with
    ``w = π_ref/f″(π/π_ref)`` and ``W = Σw``. Derivatives at outcomes of probability 0 are 0; at the
    kinks of truncating divergences they are one-sided. Works under ``jit``, ``vmap`` and sharding
    of the batch axes or of the outcomes.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> reward = jnp.array([1.0, 1.0, 0.0])
        >>> print(kt.solve(kt.Objective(reward, log_ref, 0.1)).probs.round(4))
        [0.9374 0.0625 0.0001]
        >>> print(kt.solve(kt.Objective(reward, log_ref, 0.1, kt.ForwardKL())).probs.round(4))
        [0.8759 0.0584 0.0657]

    References:
        Korbak et al., 2022, arXiv 2205.11275 (reverse KL). GX-Chen et al., "KL-Regularized
        Reinforcement Learning is Designed to Mode Collapse", 2025, arXiv 2510.20817 (both KLs).
        Grill et al., 2020, arXiv 2007.12509 (forward KL). Roulet et al., "Loss Functions and
        Operators Generated by f-Divergences", 2025, arXiv 2501.18537 (any f).
    """
    log_probs, multiplier, status = _solve(objective)
    return Target(objective, log_probs, multiplier, status)


@jax.jit
def _solve(objective: Objective) -> tuple[Array, Array, Array]:
    reward, log_ref, beta, divergence = broadcast_fields(objective)
    status = _check(objective, reward, log_ref, beta)
    failed = (status & int(_FAILURES)) != 0
    # A failed row is replaced by a harmless one, so that neither its loop nor its NaNs spread.
    safe_reward = jnp.where(failed, jnp.zeros_like(reward), reward)
    safe_ref = jnp.where(failed, jnp.zeros_like(log_ref), log_ref)
    safe_beta = jnp.where(failed, jnp.ones_like(beta), beta)
    log_probs, multiplier, flags = _closed_form(divergence, safe_reward, safe_ref, safe_beta)
    status = status | flags
    failed = (status & int(_FAILURES)) != 0
    dtype = objective.reward.dtype
    log_probs = jnp.where(failed, jnp.full_like(log_probs, jnp.nan), log_probs)
    multiplier = jnp.where(failed, jnp.full_like(multiplier, jnp.nan), multiplier)
    return log_probs.astype(dtype), multiplier[..., 0].astype(dtype), status[..., 0]


def _check(objective: Objective, reward: Array, log_ref: Array, beta: Array) -> Array:
    """Failure bits of the inputs, shape ``[*batch, 1]``."""
    mass = jnp.exp(log_ref).sum(-1, keepdims=True)
    tolerance = mass_tolerance(objective.log_ref.dtype)
    normalised = jnp.isfinite(mass) if objective.measure else jnp.abs(mass - 1) <= tolerance
    best = _supported_max(reward, log_ref)
    highest = jnp.max(reward, axis=-1, keepdims=True)
    return (
        _flag(~((beta > 0) & (beta < jnp.inf)), Status.INVALID_BETA)
        | _flag(~(highest < jnp.inf), Status.INVALID_REWARD)
        | _flag(~normalised, Status.INVALID_REFERENCE)
        | _flag(jnp.isneginf(best), Status.EMPTY_SUPPORT)
    )


def _supported_max(reward: Array, log_ref: Array) -> Array:
    supported = jnp.where(log_ref > -jnp.inf, reward, jnp.full_like(reward, -jnp.inf))
    return jnp.max(supported, axis=-1, keepdims=True)


def _where(condition: Array, x: Array) -> Array:
    return jnp.where(condition, x, jnp.zeros_like(x))


@jax.custom_jvp
def _closed_form(
    divergence: Divergence, reward: Array, log_ref: Array, beta: Array
) -> tuple[Array, Array, Array]:
    """Log-probabilities ``[*batch, A]``, multiplier and remarks ``[*batch, 1]`` of valid rows."""
    if isinstance(divergence, ReverseKL):
        return _gibbs(reward, log_ref, beta)
    if isinstance(divergence, TotalVariation):
        return _total_variation(reward, log_ref, beta)
    return _root(divergence, reward, log_ref, beta)


def _scaled_gaps(reward: Array, best: Array, beta: Array) -> tuple[Array, Array]:
    """``v = (r − r_max)/β`` with a correction that doubles its precision."""
    gap, gap_low = two_sum(reward, -best)
    return divide_exactly(gap, gap_low, beta)


def _gibbs(reward: Array, log_ref: Array, beta: Array) -> tuple[Array, Array, Array]:
    # log π_ref and r/β cancel in a likely outcome the reference holds unlikely: at a reference mass
    # of e^−800 plain sums would lose three digits, so the sum carries its rounding error along.
    best = _supported_max(reward, log_ref)
    v, v_low = _scaled_gaps(reward, best, beta)
    score, low = two_sum(log_ref, v)
    low = low + v_low
    top = jnp.max(score, axis=-1, keepdims=True)
    shifted = (score - top) + low
    log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))
    log_probs = shifted - log_sum
    multiplier = best + beta * (top + log_sum)
    return log_probs, multiplier, jnp.zeros(beta.shape, jnp.int32)


def _total_variation(
    reward: Array, log_ref: Array, beta: Array
) -> tuple[Array, Array, Array]:
    best = jnp.max(reward, axis=-1, keepdims=True)
    argmax = reward == best
    kept = (best - reward < beta) & ~argmax
    minus_inf = jnp.full_like(log_ref, -jnp.inf)
    log_kept = jnp.where(kept, log_ref, minus_inf)
    held = jnp.exp(jnp.where(argmax, log_ref, minus_inf)).sum(-1, keepdims=True)
    lost = jnp.exp(jnp.where(kept | argmax, minus_inf, log_ref)).sum(-1, keepdims=True)
    # Ties share in proportion to the reference, or equally where it has none of them.
    absent = held == 0
    count = argmax.sum(-1, keepdims=True).astype(reward.dtype)
    shares = jnp.where(
        absent,
        jnp.broadcast_to(-jnp.log(count), reward.shape),
        log_ref - jnp.log(jnp.where(absent, jnp.ones_like(held), held)),
    )
    some = held + lost > 0
    log_freed = jnp.log(jnp.where(some, held + lost, jnp.ones_like(held)))
    log_freed = jnp.where(some, log_freed, jnp.full_like(held, -jnp.inf))
    log_probs = jnp.where(argmax, shares + log_freed, log_kept)

    def anywhere(condition: Array) -> Array:
        return jnp.any(condition, axis=-1, keepdims=True)

    in_ref = log_ref > -jnp.inf
    flags = (
        _flag(anywhere((log_probs > -jnp.inf) & ~in_ref), Status.CONDENSED)
        | _flag(
            anywhere(in_ref & (reward > -jnp.inf) & jnp.isneginf(log_probs)), Status.TRUNCATED
        )
        | _flag(
            anywhere((best - reward == beta) & in_ref) | ((lost > 0) & (count > 1)),
            Status.NOT_UNIQUE,
        )
    )
    return log_probs, best - beta / 2, flags


def _root(
    divergence: Divergence, reward: Array, log_ref: Array, beta: Array
) -> tuple[Array, Array, Array]:
    eps = float(jnp.finfo(reward.dtype).eps)
    tol = 0.25 * eps**0.5  # what is left after a step from this close is of order eps
    minus_inf = jnp.full_like(log_ref, -jnp.inf)
    in_ref = log_ref > -jnp.inf
    usable = in_ref & (reward > -jnp.inf)
    best = _supported_max(reward, log_ref)
    stiff = divergence._stiff

    def gaps() -> tuple[Array, Array | float]:
        v, v_low = _scaled_gaps(reward, best, beta) if stiff else ((reward - best) / beta, 0.0)
        return jnp.where(usable, v, minus_inf), v_low

    tied = usable & (gaps()[0] == 0)

    # m, the reference mass of the best outcomes, as a logarithm
    log_best_ref = jnp.where(tied, log_ref, minus_inf)
    pivot = jnp.max(log_best_ref, axis=-1, keepdims=True)
    log_m = pivot + jnp.log(jnp.exp(log_best_ref - pivot).sum(-1, keepdims=True))

    def rest(log_u_max: Array) -> tuple[Array, Array]:
        """Target mass on all but the best outcomes, and its derivative in ``log_u_max``."""
        log_u, rho = divergence._log_ratio(log_u_max, *gaps())
        mass = jnp.exp(jnp.where(usable & ~tied, log_ref + log_u, minus_inf))
        return paired_sum(mass, jnp.where(mass > 0, mass * rho, jnp.zeros_like(mass)))

    # Where the reference lacks a better outcome, ℓ cannot rise above the point at which that
    # outcome's density ratio is infinite.
    outside = jnp.max(jnp.where(in_ref, minus_inf, reward), axis=-1, keepdims=True)
    beyond = (outside > best) & (divergence.slope_at_infinity < jnp.inf)
    v_out = jnp.where(beyond, (best - outside) / beta, -jnp.ones_like(best))
    infinite = jnp.full_like(best, jnp.inf)
    cap = jnp.where(beyond, divergence._log_ratio(infinite, v_out)[0], infinite)
    high = 0.5 - log_m  # a little beyond the root's own bound, so that no root lies on an end
    capped = cap <= high
    start = jnp.where(capped, cap, jnp.zeros_like(cap))
    low = jnp.minimum(jnp.zeros_like(high), start) - 1
    high = jnp.where(capped, cap, high)

    def evaluate(state: _Search) -> _Search:
        mass, slope = rest(state.at)
        total = mass + jnp.exp(log_m + state.at)
        short = total < 1
        low = jnp.where(short, state.at, state.low)
        high = jnp.where(short, state.high, state.at)
        condensed = (state.steps == 0) & capped & short
        step = _next(divergence, log_m, state.at, mass, slope, low, high, tol)
        # At a kink (truncation) the model's steps can swing forever; bisection ends that.
        swings = jnp.abs(step) > 0.5 * jnp.abs(state.step)
        swings = swings & (jnp.abs(step) > tol) & (state.steps > 1)
        step = jnp.where(swings, 0.5 * (low + high) - state.at, step)
        step = jnp.where(condensed | state.done, jnp.zeros_like(step), step)
        close = jnp.abs(step) <= tol
        closed = high - low <= 2 * eps * jnp.maximum(jnp.abs(high), 1)
        done = condensed | close | closed
        return _Search(
            at=state.at,
            step=step,
            low=low,
            high=high,
            total=total,
            done=done,
            condensed=condensed | state.condensed,
            steps=state.steps + 1,
        )

    def advance(state: _Search) -> _Search:
        # Rows that are done stay where they are: another evaluation there changes nothing.
        moved = dataclasses.replace(
            state, at=jnp.where(state.done, state.at, state.at + state.step)
        )
        after = evaluate(moved)
        return jax.tree.map(
            lambda new, old: jnp.where(state.done, old, new) if jnp.ndim(new) else new, after, state
        )

    no = jnp.zeros(best.shape, bool)
    zero = jnp.zeros_like(best)
    state = evaluate(
        _Search(start, zero, low, high, zero, done=no, condensed=no, steps=jnp.int32(0))
    )
    state = lax.while_loop(
        lambda s: jnp.any(~s.done) & (s.steps < _MAX_STEPS), advance, state
    )

    log_u_max, low_part = two_sum(state.at, state.step)
    log_u, rho = divergence._log_ratio(log_u_max, *gaps())
    here = usable & (log_u > -jnp.inf)
    log_probs = jnp.where(here, (log_ref + log_u) + rho * low_part, minus_inf)
    if stiff:
        # Rounding of ℓ itself, magnified in the others: one more step from the values as rounded.
        probs = jnp.exp(log_probs)
        total, slope = paired_sum(probs, jnp.where(here, probs * rho, jnp.zeros_like(probs)))
        shift = -jnp.log(total) * total / slope
        shift = jnp.where(state.done & ~state.condensed, shift, jnp.zeros_like(shift))
        log_probs = jnp.where(here, log_probs + jnp.log1p(jnp.maximum(rho * shift, -0.5)), minus_inf)

    atoms = ~in_ref & (reward == outside) & state.condensed
    count = atoms.sum(-1, keepdims=True).astype(reward.dtype)
    missing = jnp.where(state.condensed, 1 - state.total, jnp.ones_like(best))
    log_atom = jnp.log(missing) - jnp.log(jnp.maximum(count, 1))
    log_probs = jnp.where(atoms, jnp.broadcast_to(log_atom, log_probs.shape), log_probs)

    truncated = jnp.any(usable & jnp.isneginf(log_u), axis=-1, keepdims=True)
    flags = (
        _flag(state.condensed, Status.CONDENSED)
        | _flag(state.condensed & (count > 1), Status.NOT_UNIQUE)
        | _flag(truncated, Status.TRUNCATED)
        | _flag(~state.done, Status.NOT_CONVERGED)
    )
    slope_of_best = divergence._f_prime_at(log_u_max)
    multiplier = best - beta * slope_of_best
    slope = jnp.asarray(divergence.slope_at_infinity, reward.dtype)
    slope = jnp.where(slope < jnp.inf, slope, jnp.zeros_like(slope))
    multiplier = jnp.where(state.condensed, outside - beta * slope, multiplier)
    return log_probs, multiplier, flags


_MAX_STEPS = 100
"""Bisection alone closes the widest bracket, e^±1000 to the last bit of a double, in about 65."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Search:
    at: Array
    step: Array
    low: Array
    high: Array
    total: Array
    done: Array
    condensed: Array
    steps: Array


def _next(
    divergence: Divergence,
    log_m: Array,
    at: Array,
    mass: Array,
    slope: Array,
    low: Array,
    high: Array,
    tol: float,
) -> Array:
    """The step from ``at`` to the root of a two-level model of the equation.

    The best outcomes are exact in the model; the others act as one outcome, whose mass and distance
    match the value and the slope found at ``at``. For two reward levels (verifiable rewards) the
    model is the problem itself. Outside the bracket the step falls back to bisection.
    """
    present = mass > 0
    log_mass = jnp.log(jnp.where(present, mass, jnp.ones_like(mass)))
    rho = jnp.where(present, slope / jnp.where(present, mass, jnp.ones_like(mass)), 1 + 0 * mass)
    v = divergence._gap(at, rho)
    level = divergence._log_ratio(at, v)[0]
    fits = jnp.isfinite(v) & jnp.isfinite(level) & (v < 0) & present
    safe_v = jnp.where(fits, v, -jnp.ones_like(v))
    base = jnp.where(fits, level, jnp.zeros_like(level))

    def level_mass(to: Array) -> tuple[Array, Array]:
        """Logarithm of the model's total mass and its derivative."""
        log_u, local = divergence._log_ratio(to, safe_v)
        # without such a level: a power law of the same slope
        log_u = jnp.where(fits, log_u - base, rho * (to - at))
        local = jnp.where(fits, local, rho)
        log_rest = jnp.where(present, log_mass + log_u, jnp.full_like(log_u, -jnp.inf))
        log_total = jnp.logaddexp(log_m + to, log_rest)
        share = jnp.exp(log_rest - log_total)
        return log_total, 1 - share + jnp.where(share > 0, share * local, jnp.zeros_like(share))

    def improve(_: int, search: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        to, low, high = search
        log_total, local = level_mass(to)
        low, high = jnp.where(log_total < 0, to, low), jnp.where(log_total < 0, high, to)
        newton = to - log_total / local
        inside = ((newton >= low) & (newton <= high)) | (log_total == 0)
        return jnp.where(inside, newton, 0.5 * (low + high)), low, high

    to, _, _ = lax.fori_loop(0, _MODEL_STEPS, improve, (at, low, high))
    log_total, local = level_mass(at)
    newton = -log_total / local
    small = jnp.abs(newton) <= tol
    inside = (to > low) & (to < high)
    return jnp.where(small, newton, jnp.where(inside, to, 0.5 * (low + high)) - at)


_MODEL_STEPS = 8


def _flag(condition: Array, flag: Status) -> Array:
    return jnp.where(condition, jnp.int32(int(flag)), jnp.int32(0))


@_closed_form.defjvp
def _closed_form_jvp(primals: Any, tangents: Any) -> Any:
    divergence, reward, log_ref, beta = primals
    divergence_dot, reward_dot, log_ref_dot, beta_dot = tangents
    log_probs, multiplier, flags = _closed_form(divergence, reward, log_ref, beta)
    out = (log_probs, multiplier, flags)
    no_flags_dot = np.zeros(flags.shape, jax.dtypes.float0)
    if isinstance(divergence, TotalVariation):
        moved = jax.jvp(
            lambda *args: _total_variation(*args)[:2],
            (reward, log_ref, beta),
            (reward_dot, log_ref_dot, beta_dot),
        )[1]
        return out, (*moved, no_flags_dot)

    alive = log_probs > -jnp.inf
    on = alive & (log_ref > -jnp.inf)
    probs = jnp.where(on, jnp.exp(log_probs), jnp.zeros_like(log_probs))
    log_u = _where(on, log_probs) - _where(on, log_ref)
    best = _supported_max(reward, log_ref)
    gap = jnp.where(on, reward - best, jnp.zeros_like(reward))

    # η, the shift of the scaled reward s = (r − λ)/β at fixed λ, up to a constant of the row
    def shift(gap: Array, gap_dot: Array) -> Array:
        return (gap_dot - gap / beta * beta_dot) / beta

    eta = shift(gap, jnp.where(on, reward_dot, jnp.zeros_like(reward)))
    if jax.tree.leaves(divergence):
        eta = eta - jax.jvp(lambda d: d._f_prime_at(log_u), (divergence,), (divergence_dot,))[1]
    eta = _where(on, eta)
    ref_dot = _where(on, log_ref_dot)

    # κ = d log u/d s, infinite for all practical purposes where u is; it enters relative to that of
    # the best outcomes, whose own rows are summed in an order that never meets ∞ − ∞.
    log_kappa = _where(on, divergence._log_elasticity(log_u))
    tied = on & (gap == 0)
    count = tied.sum(-1, keepdims=True)
    top = jnp.max(jnp.where(tied, log_kappa, jnp.full_like(log_kappa, -jnp.inf)), -1, keepdims=True)
    relative = jnp.where(on, jnp.exp(log_kappa - top), jnp.zeros_like(log_kappa))
    weight = probs * relative
    total = weight.sum(-1, keepdims=True)
    omega = weight / total
    mean = (omega * eta).sum(-1, keepdims=True)
    rest = on & ~tied
    kappa = jnp.exp(jnp.where(rest, log_kappa, jnp.zeros_like(log_kappa)))
    kappa_top = jnp.exp(top)
    psi = jnp.where(rest, probs * kappa, jnp.zeros_like(probs)) / total

    def dot(a: Array, b: Array) -> Array:
        return (a * b).sum(-1, keepdims=True)

    among = omega * tied
    several = jnp.where(count > 1, jnp.minimum(kappa_top, jnp.finfo(eta.dtype).max), 0 * kappa_top)
    of_rest = kappa * (eta - mean)
    of_best = (
        psi.sum(-1, keepdims=True) * eta
        - dot(psi, eta)
        + several * (among.sum(-1, keepdims=True) * eta - dot(among, eta))
    )
    drawn = dot(probs, ref_dot) / total
    free = ref_dot + jnp.where(tied, of_best, of_rest) - relative * drawn

    # A condensed row: λ follows the best outcome outside, which takes up the difference.
    atoms = alive & ~on
    holders = jnp.maximum(atoms.sum(-1, keepdims=True), 1).astype(reward.dtype)
    pinned = jnp.any(atoms, axis=-1, keepdims=True)
    outside = jnp.max(
        jnp.where(atoms, reward, jnp.full_like(reward, -jnp.inf)), axis=-1, keepdims=True
    )
    outside_dot = jnp.sum(jnp.where(atoms, reward_dot, jnp.zeros_like(reward)), -1, keepdims=True)
    gap_out = jnp.where(pinned, outside - best, jnp.zeros_like(best))
    eta_out = shift(gap_out, outside_dot / holders)
    slope = jnp.asarray(divergence.slope_at_infinity, reward.dtype)
    slope = jnp.where(slope < jnp.inf, slope, jnp.zeros_like(slope))
    slope_dot = jnp.zeros_like(best)
    if jax.tree.leaves(divergence):
        finite = lambda d: jnp.where(  # noqa: E731
            d.slope_at_infinity < jnp.inf, d.slope_at_infinity, 0.0 * d.slope_at_infinity
        )
        slope_dot = slope_dot + jax.jvp(finite, (divergence,), (divergence_dot,))[1]
        eta_out = eta_out - slope_dot
    kappa_on = jnp.where(tied, jnp.broadcast_to(kappa_top, kappa.shape), kappa)
    held = ref_dot + kappa_on * (eta - eta_out)
    atom = jnp.exp(jnp.max(jnp.where(atoms, log_probs, jnp.full_like(log_probs, -jnp.inf)), -1, keepdims=True))
    given = -dot(probs, jnp.where(pinned, held, jnp.zeros_like(held)))
    atom_dot = given / jnp.where(pinned, holders * atom, jnp.ones_like(atom))

    log_probs_dot = jnp.where(on, jnp.where(pinned, held, free), jnp.zeros_like(free))
    log_probs_dot = jnp.where(atoms, jnp.broadcast_to(atom_dot, free.shape), log_probs_dot)

    # λ: the ω-average of r − βf′(u), at fixed shares
    s_best = (best - multiplier) / beta
    reward_mean = dot(omega, jnp.where(on, reward_dot, jnp.zeros_like(reward)))
    gap_mean = dot(omega, gap) / beta
    lifted = drawn * jnp.exp(-top)
    multiplier_free = reward_mean - (s_best + gap_mean) * beta_dot + beta * lifted
    if jax.tree.leaves(divergence):
        own = jax.jvp(lambda d: d._f_prime_at(log_u), (divergence,), (divergence_dot,))[1]
        multiplier_free = multiplier_free - beta * dot(omega, _where(on, own))
    multiplier_out = outside_dot / holders - slope * beta_dot - beta * slope_dot
    multiplier_dot = jnp.where(pinned, multiplier_out, multiplier_free)
    return out, (log_probs_dot, multiplier_dot, no_flags_dot)


@jax.custom_jvp
def _optimal_value(
    divergence: Divergence, reward: Array, log_ref: Array, beta: Array, log_probs: Array
) -> Array:
    """J at the target, shape ``[*batch, 1]``."""
    gain = jnp.exp(log_probs) * _where(log_probs > -jnp.inf, reward)
    cost = divergence._integrand(log_probs, log_ref)
    cost = cost.sum(-1, keepdims=True)
    # In the limits beta → 0 and beta → ∞ the regulariser contributes nothing: 0·∞ is 0 there.
    priced = ~((cost == 0) | (beta == 0))
    price = _where(priced, beta) * _where(priced, cost)
    return gain.sum(-1, keepdims=True) - price


@_optimal_value.defjvp
def _optimal_value_jvp(primals: Any, tangents: Any) -> Any:
    # Envelope theorem: at the maximum the policy's own change does not count.
    *explicit, log_probs = primals
    *explicit_dot, _ = tangents

    def at_target(*args: Any) -> Array:
        return _optimal_value.fun(*args, log_probs)

    return jax.jvp(at_target, tuple(explicit), tuple(explicit_dot))


@jax.jit
def optimality_gap(objective: Objective, log_policy: Array) -> Array:
    """``J* − J(π)`` as a Bregman divergence to the target plus the cost of forbidden moves."""
    reward, log_ref, beta, divergence = broadcast_fields(objective)
    target = solve(objective)
    log_star = target.log_probs.astype(reward.dtype)
    log_policy = jnp.broadcast_to(log_policy, reward.shape)
    value = target.value.astype(reward.dtype)
    if isinstance(divergence, TotalVariation):
        gap = jnp.maximum(value - _value(objective, log_policy), 0)
    else:
        in_ref = log_ref > -jnp.inf
        log_u = jnp.where(in_ref, log_policy - _where(in_ref, log_ref), jnp.zeros_like(log_ref))
        log_u_star = jnp.where(in_ref, log_star - _where(in_ref, log_ref), jnp.zeros_like(log_ref))
        apart = divergence._bregman(log_u, log_u_star, log_ref)
        zero = jnp.zeros((), reward.dtype)
        slope = jnp.where(in_ref, divergence.f_prime(zero), divergence.slope_at_infinity)
        slack = target.multiplier.astype(reward.dtype)[..., None] + beta * slope - reward
        used = (log_policy > -jnp.inf) & jnp.isneginf(log_star)
        extra = jnp.exp(log_policy) * jnp.maximum(_where(used, slack), 0)
        gap = beta[..., 0] * _where(in_ref, apart).sum(-1) + extra.sum(-1)
    return jnp.where(jnp.isneginf(value), jnp.zeros_like(gap), gap)


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

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> limit = kt.greedy_limit(kt.Objective(jnp.array([1.0, 1.0, 0.0]), log_ref, 1.0))
        >>> print(limit.probs.round(4))
        [0.9375 0.0625 0.    ]
    """
    return _limit(objective, greedy=True)


def reference_limit(objective: Objective) -> Target:
    """The limit of the target for beta → ∞: the reference itself, whatever the divergence.

    Outcomes of reward ``-inf`` stay at 0: the reference is restricted to the others.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> print(kt.reference_limit(kt.Objective(jnp.array([1.0, 1.0, 0.0]), log_ref, 1.0)).probs)
        [0.3  0.02 0.68]
    """
    return _limit(objective, greedy=False)


def _limit(objective: Objective, *, greedy: bool) -> Target:
    return Target(*_limits(objective, greedy))


@functools.partial(jax.jit, static_argnames="greedy")
def _limits(objective: Objective, greedy: bool) -> tuple[Objective, Array, Array, Array]:
    reward, log_ref, beta, divergence = broadcast_fields(objective)
    dtype = objective.reward.dtype
    status = _check(objective, reward, log_ref, jnp.ones_like(beta))
    in_ref = log_ref > -jnp.inf
    minus_inf = jnp.full_like(log_ref, -jnp.inf)
    best = _supported_max(reward, log_ref)
    if greedy:
        outside = jnp.max(jnp.where(in_ref, minus_inf, reward), axis=-1, keepdims=True)
        beyond = (outside > best) & (divergence.slope_at_infinity < jnp.inf)
        level = jnp.where(beyond, outside, best)
        members = (reward == level) & (in_ref ^ beyond)
        weights = jnp.where(members, jnp.where(beyond, jnp.zeros_like(log_ref), log_ref), minus_inf)
        tied = members.sum(-1, keepdims=True) > 1
        status = status | _flag(tied, Status.NOT_UNIQUE) | _flag(beyond, Status.CONDENSED)
        limit_beta = jnp.zeros_like(objective.beta)
    else:
        weights = jnp.where(reward > -jnp.inf, log_ref, minus_inf)
        limit_beta = jnp.full_like(objective.beta, jnp.inf)
    log_probs = weights - jax.nn.logsumexp(weights, axis=-1, keepdims=True)
    if greedy:
        multiplier = level
    else:
        mean = (jnp.exp(log_probs) * _where(log_probs > -jnp.inf, reward)).sum(-1, keepdims=True)
        lift = divergence._f_prime_at(jnp.zeros_like(best))
        multiplier = jnp.where(lift == 0, mean, -jnp.inf * jnp.sign(lift))
    failed = (status & int(_FAILURES)) != 0
    log_probs = jnp.where(failed, jnp.full_like(log_probs, jnp.nan), log_probs).astype(dtype)
    multiplier = jnp.where(failed, jnp.full_like(multiplier, jnp.nan), multiplier).astype(dtype)
    limit = dataclasses.replace(objective, beta=limit_beta)
    return limit, log_probs, multiplier[..., 0], status[..., 0]
