"""Where targets change character with β: flips of two modes, and collapse."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import traced
from kltarget._core.numerics import expm1_ratio, log1p_ratio, log_sum_exp, select, working_dtype
from kltarget.divergences import Divergence, Scaled, TotalVariation
from kltarget.divergences._base import slope_at_zero
from kltarget.divergences._families import PowerDivergence
from kltarget.modes._labels import log_mass_of, members_of
from kltarget.objectives import Objective
from kltarget.objectives._objective import broadcast_fields, require_objective
from kltarget.targets import greedy_limit, solve


def flip_beta(
    objective: Objective, i: ArrayLike, j: ArrayLike, *, modes: ArrayLike | None = None
) -> Float[Array, "*batch"]:
    """The β at which two outcomes, or two modes, are equally probable in the target.

    The target is that of ``max_π E_π[reward] − β·D(π, π_ref)``. Below the flip the one of higher
    reward leads, above it the one the reference prefers. Equal rewards never flip, at any β.

    - Reverse KL: ``β = (r_j − r_i)/log(π_ref,i/π_ref,j)``, if positive.
    - Forward KL: ``β = 1/Σ_k π_ref,k/(L − r_k)`` with
      ``L = (π_ref,i r_j − π_ref,j r_i)/(π_ref,i − π_ref,j)``, if ``L > r_max``; otherwise the
      outcome that the reference prefers stays ahead at every β.
    - The α family, γ = α − 1: with ``ω = π_ref^γ`` and ``L = (ω_i r_i − ω_j r_j)/(ω_i − ω_j)``,
      ``β = {Σ_k π_ref,k [γ(r_k − L)]₊^{1/γ}}^γ``; for α < 1 if ``L > r_max``. A multiple ``c·f_α``
      flips at ``β/c``.
    - An outcome that the reference lacks and that α < 1 condenses on (better than any it has; ``n``
      such share alike) is level with another, i, at ``β = (n a_i + Σ_k a_k)^γ``,
      ``a = π_ref [γ(r − r_out)]^{1/γ}``.
    - All other divergences, and modes of unequal rewards: a root of the log-odds in ``log β``. They
      are scanned from 1e9 down to 1e-9 times the objective's reward range, eight points per decade;
      the first change of sign is closed in on by bisection. Of several roots it is the one of
      largest β. Only modes of unequal rewards can have several: no more than the signs change in
      the list of both modes' outcomes by their rewards, those of i counted + and those of j −. Two
      that are less than an eighth of a decade apart, with no third one between the same points, are
      missed. Where the target jumps, as that of total variation does, it is the β of the jump.

    Args:
        objective: of any batch shape. Its own ``beta`` is not used.
        i: index of an outcome, or the label of a mode if ``modes`` are given.
        j: the same, of the other one.
        modes: integer labels of the outcomes' modes, shape ``[A]``, concrete. Modes whose outcomes
            are equally rewarded are merged exactly and keep the closed forms.

    Returns:
        β in reward units per nat, shape ``[*batch]``; NaN where there is none: the rewards are
        equal, the reference prefers the better one already, or one of the two never has any mass.

    Raises:
        TypeError: no objective, or an index or label that is not an integer.
        ValueError: an index that is out of range, or a label that does not occur.

    Outcomes of reward ``-inf``, and those the reference lacks, never flip, but for the condensed
    case above. Differentiable in reward, log_ref and the divergence's parameters, roots by the
    implicit function theorem.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = kt.normalize(jnp.array([0.0, -4.05, -5.95]))
        >>> reward = jnp.array([0.0, 0.75, 1.0])
        >>> print(f"{kt.flip_beta(kt.Objective(reward, log_ref, 1.0), 1, 2):.4f}")
        0.1316
        >>> print(f"{kt.flip_beta(kt.Objective(reward, log_ref, 1.0, kt.ForwardKL()), 1, 2):.4f}")
        0.9476
        >>> print(kt.flip_beta(kt.Objective(jnp.ones(3), log_ref, 1.0), 1, 2))
        nan

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817, for the odds of both KLs. The rest follows from ``u_k^γ = γ(r_k − L)/β``,
        the target's density ratio in the α family, by ``π_ref,i u_i = π_ref,j u_j`` and ``Σπ = 1``.
    """
    require_objective(objective, "flip_beta")
    masks = members_of(i, j, modes, objective.num_outcomes)
    problem, failed = _without_beta(objective)
    if not isinstance(problem.divergence, PowerDivergence):
        beta = _flip_root(problem, *masks)
    else:
        beta, exact = _flip_power(problem, *masks)
        if modes is not None and (traced(exact) or not bool(jnp.all(exact))):
            beta = jnp.where(exact, beta, _flip_root(problem, *masks))
    return _as_asked(objective, select(~failed, beta, jnp.nan))


def collapse_beta(objective: Objective) -> Float[Array, "*batch"]:
    """The largest β at which the target stands on the outcomes of highest reward alone.

    The target is that of ``max_π E_π[reward] − β·D(π, π_ref)``. Divergences whose ``f′(0)`` is
    finite reach exact zeros: all mass is on the argmax set, of reference mass m and with a gap g to
    the second-best reward, exactly if ``β ≤ g/(f′(1/m) − f′(0))``. For ``c·f_α``, α > 1, this is
    ``(α − 1)·g·m^(α−1)/c``, for total variation the gap itself. All others give every possible
    outcome some mass at every positive β.

    Args:
        objective: of any batch shape. Its own ``beta`` is not used.

    Returns:
        β in reward units per nat, shape ``[*batch]``; 0 for divergences that never collapse
        exactly, ``inf`` where nothing is worse than the best.

    Raises:
        TypeError: no objective.

    Only outcomes that can have mass count: those of reward ``-inf``, or without reference mass, do
    not, unless ``f′(∞)`` is finite (total variation, for one) and the best outcome is one the
    reference lacks. Then all mass is on it exactly if ``β ≤ g/(f′(∞) − f′(0))``, g the gap to the
    best outcome the reference has. Differentiable in reward, log_ref and the divergence's
    parameters; the gap's derivative goes to one outcome where several tie.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.4, 0.3, 0.15, 0.1, 0.05]))
        >>> reward = jnp.array([0.1, 0.5, 1.0, 0.9, 0.3])
        >>> print(f"{kt.collapse_beta(kt.Objective(reward, log_ref, 1.0, kt.Alpha(2.0))):.4f}")
        0.0150
        >>> print(f"{kt.collapse_beta(kt.Objective(reward, log_ref, 1.0)):.4f}")
        0.0000

    References:
        The condition is ``(f′)⁻¹(s) = 0`` for ``s ≤ f′(0)`` in ``π* = π_ref (f′)⁻¹((r − λ)/β)``:
        Roulet et al., "Loss Functions and Operators Generated by f-Divergences", 2025,
        arXiv 2501.18537.
    """
    require_objective(objective, "collapse_beta")
    problem, failed = _without_beta(objective)
    return _as_asked(objective, select(~failed, _collapse_beta(problem), jnp.nan))


def _without_beta(objective: Objective) -> tuple[Objective, Array]:
    """The problem at β = 1, in the working dtype, and which of its rows are invalid.

    Rows that differ in beta alone share their answer, which is computed once.
    """
    problem = dataclasses.replace(objective, beta=jnp.ones((), objective.reward.dtype))
    failed = jnp.isnan(greedy_limit(problem).log_probs[..., 0])
    dtype = working_dtype(objective.reward.dtype)
    # The reference has been checked by the tolerance of its own dtype.
    fields = {n: getattr(problem, n).astype(dtype) for n in ("reward", "log_ref", "beta")}
    divergence = objective.divergence
    base = divergence.base if isinstance(divergence, Scaled) else divergence
    return dataclasses.replace(problem, **fields, divergence=base, measure=True), failed


def _as_asked(objective: Objective, beta: Array) -> Array:
    divergence = objective.divergence
    beta = beta / divergence.factor if isinstance(divergence, Scaled) else beta
    return jnp.broadcast_to(beta.astype(objective.reward.dtype), objective.batch_shape)


@dataclasses.dataclass(frozen=True)
class _Support:
    """Which outcomes can have mass at some β, and the rewards that decide it, ``[*batch, 1]``."""

    usable: Array
    atoms: Array
    """Outcomes the reference lacks and that are better than any it has, at a finite price."""
    best: Array
    outside: Array
    beyond: Array
    """Whether there are any atoms."""

    @staticmethod
    def of(divergence: Divergence, reward: Array, log_ref: Array) -> _Support:
        in_ref = log_ref > -jnp.inf
        usable = in_ref & (reward > -jnp.inf)
        best = jnp.max(select(usable, reward, -jnp.inf), axis=-1, keepdims=True)
        outside = jnp.max(select(~in_ref, reward, -jnp.inf), axis=-1, keepdims=True)
        beyond = (outside > best) & (divergence.slope_at_infinity < jnp.inf)
        return _Support(usable, ~in_ref & (reward == outside) & beyond, best, outside, beyond)


@jax.jit
def _flip_power(objective: Objective, first: Array, second: Array) -> tuple[Array, Array]:
    """The flip in the α family, and whether each of the two has but one reward, as it takes."""
    reward, log_ref, _, divergence = broadcast_fields(objective)
    assert isinstance(divergence, PowerDivergence)
    dtype = reward.dtype
    gamma = jnp.asarray(divergence._gamma, dtype)
    scale = jnp.asarray(divergence._scale, dtype)
    support = _Support.of(divergence, reward, log_ref)
    log_mass = select(support.usable, log_ref, -jnp.inf)

    def merged(members: Array) -> tuple[Array, Array, Array, Array]:
        members = jnp.broadcast_to(members, reward.shape)
        alive = members & (support.usable | support.atoms)
        high = jnp.max(select(alive, reward, -jnp.inf), axis=-1, keepdims=True)
        low = jnp.min(select(alive, reward, jnp.inf), axis=-1, keepdims=True)
        atoms = (members & support.atoms).sum(-1, keepdims=True).astype(dtype)
        return high, log_mass_of(log_mass, members), atoms, high <= low

    (r_i, log_i, atoms_i, one_i), (r_j, log_j, atoms_j, one_j) = merged(first), merged(second)
    higher = r_i > r_j
    top, bottom = jnp.where(higher, r_i, r_j), jnp.where(higher, r_j, r_i)
    log_top, log_bottom = jnp.where(higher, log_i, log_j), jnp.where(higher, log_j, log_i)
    among = (log_i > -jnp.inf) & (log_j > -jnp.inf)
    gap = select(among, top, 0) - select(among, bottom, 0)
    lead = select(among, log_bottom, 0) - select(among, log_top, 0)
    flips = (gap > 0) & (lead > 0)
    gap, lead = select(flips, gap, 1), select(flips, lead, 1)

    # X = γ(r − L) at the one of the two where it is smaller, so that it is a sum for the other: the
    # better one for γ < 0, the worse one for γ > 0. At γ = 0 it is the reverse-KL flip itself.
    base = jnp.where(gamma > 0, bottom, top)
    log_x = jnp.log(gap) - jnp.log(lead) - _log_expm1_ratio(jnp.abs(gamma) * lead)
    excess, kept = _relative(gamma, reward - base, log_x, flips & support.usable)
    log_sum = log_sum_exp(select(kept & support.usable, log_ref + excess, -jnp.inf))
    outranked = (gamma < 0) & jnp.any(support.usable & ~kept, axis=-1, keepdims=True)
    # L must not lie below what condensed rows are pinned to either.
    has_atoms = jnp.any(support.atoms, axis=-1, keepdims=True)
    out = select(has_atoms & flips, support.outside - top, 0)
    outranked = outranked | ((gamma < 0) & has_atoms & (jnp.log(-gamma * out) > log_x))
    weighted = gamma * select(flips & ~outranked, log_sum, 0)
    beta = jnp.exp(log_x + weighted)
    if isinstance(divergence._gamma, (int, float)) and divergence._gamma == 0:
        beta = gap / lead
    beta = select(flips & ~outranked, beta, jnp.nan)

    # One of the two stands where the reference has nothing.
    log_in = jnp.where(log_i > -jnp.inf, log_i, log_j)
    r_in = jnp.where(log_i > -jnp.inf, r_i, r_j)
    share = (atoms_i + atoms_j) / jnp.maximum(support.atoms.sum(-1, keepdims=True), 1).astype(dtype)
    mixed = ((atoms_i > 0) & (log_j > -jnp.inf)) | ((atoms_j > 0) & (log_i > -jnp.inf))
    mixed = mixed & ((log_i > -jnp.inf) ^ (log_j > -jnp.inf)) & (gamma < 0)
    negative = select(gamma < 0, gamma, -1)

    def against_atoms(log_weight: Array, gap: Array, present: Array) -> Array:
        gap = select(present, gap, 1)
        return select(present, log_weight + jnp.log(-negative * gap) / negative, -jnp.inf)

    alone = against_atoms(select(mixed, log_in - jnp.log(share), 0), support.outside - r_in, mixed)
    everyone = against_atoms(log_ref, support.outside - reward, support.usable & mixed)
    both = log_sum_exp(jnp.concatenate([alone, log_sum_exp(everyone)], axis=-1))
    beta = jnp.where(mixed, jnp.exp(negative * select(mixed, both, 0)), beta)

    beta = beta / scale
    return beta[..., 0], jnp.broadcast_to(one_i & one_j, beta.shape)[..., 0]


def _log_expm1_ratio(x: Array) -> Array:
    """``log((e^x − 1)/x)``, where ``e^x`` overflows too."""
    large = x > 1
    y = select(large, x, 1)
    moderate = jnp.log(expm1_ratio(select(~large, x, 0)))
    return jnp.where(large, y + jnp.log(-jnp.expm1(-y)) - jnp.log(y), moderate)


def _relative(gamma: Array, gap: Array, log_x: Array, on: Array) -> tuple[Array, Array]:
    """``log(1 + z)/γ`` with ``z = γ·gap/X``, and where ``1 + z`` is positive."""
    apart = on & (gap != 0)
    gap = select(apart, gap, 1)
    log_y = jnp.log(jnp.abs(gap)) - log_x
    steep = select(gamma != 0, jnp.broadcast_to(gamma, gap.shape), 1)
    log_z = jnp.log(jnp.abs(steep)) + log_y
    far = apart & (gamma != 0) & (log_z > 0)
    y = jnp.sign(gap) * jnp.exp(select(apart & ~far, log_y, 0))
    near = y * log1p_ratio(gamma * select(apart & ~far, y, 0))
    beyond = jnp.logaddexp(select(far, log_z, 0), jnp.zeros_like(log_z)) / steep
    value = jnp.where(far, beyond, select(apart & ~far, near, 0))
    kept = ~(far & (steep * gap < 0)) & (value > -jnp.inf)
    return select(kept, value, 0), kept


_DECADES = 9
_PER_DECADE = 8


@jax.jit
def _flip_root(objective: Objective, first: Array, second: Array) -> Array:
    fixed = lax.stop_gradient(objective)
    reward, log_ref, _, divergence = broadcast_fields(fixed)
    support = _Support.of(divergence, reward, log_ref)
    alive = support.usable | support.atoms
    highest = jnp.max(select(alive, reward, -jnp.inf), axis=-1)
    spread = highest - jnp.min(select(alive, reward, jnp.inf), axis=-1)
    none = ~((spread > 0) & (spread < jnp.inf))
    log_spread = jnp.log(select(~none, spread, 1))
    eps = float(jnp.finfo(reward.dtype).eps)

    def best_of(members: Array) -> Array:
        return jnp.max(
            select(alive & jnp.broadcast_to(members, alive.shape), reward, -jnp.inf), axis=-1
        )

    one, other = best_of(first), best_of(second)
    last = select((one > -jnp.inf) & (other > -jnp.inf), jnp.sign(one - other), 0)

    def odds(problem: Objective, log_beta: Array) -> tuple[Array, Array, Array]:
        beta = jnp.exp(log_beta).astype(problem.reward.dtype)
        log_probs = solve(dataclasses.replace(problem, beta=beta)).log_probs.astype(log_beta.dtype)
        log_first, log_second = log_mass_of(log_probs, first), log_mass_of(log_probs, second)
        return (log_first - log_second)[..., 0], log_first[..., 0], log_second[..., 0]

    ends = _DECADES * math.log(10.0)
    num_scanned = 2 * _DECADES * _PER_DECADE + 1
    num_halvings = int(jnp.finfo(reward.dtype).nmant) + 8

    # One loop for both, so that the solver is compiled once: a row is scanned until its odds change
    # sign, then its bracket is halved.
    def advance(state: _Bracket) -> _Bracket:
        exponent = ends - state.scanned.astype(reward.dtype) * (2 * ends / (num_scanned - 1))
        middle = 0.5 * (state.low + state.high)
        at = jnp.where(state.found, middle, log_spread + exponent)
        difference, *sides = odds(fixed, at)
        size = jnp.maximum(*(jnp.abs(select(jnp.isfinite(x), x, 0)) for x in sides))
        # Of two that are both cut off, the better one went last and was ahead until then.
        gone = jnp.isneginf(sides[0]) & jnp.isneginf(sides[1])
        difference = jnp.where(gone, last, difference)
        clear = jnp.abs(difference) > 32 * eps * (1 + size)
        now = select(clear, jnp.sign(difference), 0)
        change = ~state.found & (now * state.sign < 0)
        seen = ~state.found & ~change & (now != 0)
        like_high = difference * state.sign > 0
        low = jnp.where(change | (state.found & ~like_high), at, state.low)
        high = jnp.where(seen | (state.found & like_high), at, state.high)
        sign, found = jnp.where(seen, now, state.sign), state.found | change
        halved = state.halved + state.found.astype(jnp.int32)
        return _Bracket(low, high, sign, found, state.scanned + 1, halved)

    def unfinished(state: _Bracket) -> Array:
        scanning = ~state.found & ~none & (state.scanned < num_scanned)
        return jnp.any(scanning | (state.found & (state.halved < num_halvings)))

    zero = jnp.zeros_like(log_spread)
    no, nothing = jnp.zeros(zero.shape, bool), jnp.zeros(zero.shape, jnp.int32)
    start = _Bracket(zero, zero, zero, no, jnp.int32(0), nothing)
    state = lax.while_loop(unfinished, advance, start)
    log_beta = 0.5 * (state.low + state.high)
    # A last Newton step, at the frozen root, carries the derivatives of the implicit function.
    value, slope = jax.jvp(lambda x: odds(objective, x)[0], (log_beta,), (jnp.ones_like(log_beta),))
    slope = lax.stop_gradient(slope)
    step = value / select(slope != 0, slope, jnp.inf)
    smooth = jnp.isfinite(step) & (jnp.abs(step) < eps**0.5)
    log_beta = log_beta - select(smooth, step, 0)
    return select(state.found & ~none, jnp.exp(log_beta), jnp.nan)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Bracket:
    low: Array
    high: Array
    """While a row is scanned, the smallest β so far whose odds were clear."""
    sign: Array
    """Of the log-odds at ``high``; 0 until they are clear of rounding."""
    found: Array
    scanned: Array
    halved: Array


@jax.jit
def _collapse_beta(objective: Objective) -> Array:
    reward, log_ref, _, divergence = broadcast_fields(objective)
    dtype = reward.dtype
    support = _Support.of(divergence, reward, log_ref)
    outside = support.beyond
    tied = support.usable & (reward == support.best)
    best = jnp.where(outside, support.outside, support.best)
    rival = support.usable & (outside | ~tied)
    second = jnp.max(select(rival, reward, -jnp.inf), axis=-1, keepdims=True)
    alone = jnp.isneginf(second)
    gap = select(~alone, best, 0) - select(~alone, second, 0)

    log_m = log_sum_exp(select(tied, log_ref, -jnp.inf))
    slope = jnp.asarray(divergence.slope_at_infinity, dtype)
    zero = slope_at_zero(divergence, dtype)
    exact = zero > -jnp.inf
    zero = select(exact, zero, 0)
    if isinstance(divergence, TotalVariation):
        rise = jnp.broadcast_to(slope - zero, gap.shape)
    else:
        # 1/m of a likely best outcome is near 1, where f′ is 0 or close to it.
        rise = divergence._f_prime_at(select(~outside, -log_m, 0)) - zero
        rise = jnp.where(outside, jnp.broadcast_to(slope - zero, rise.shape), rise)
    beta = gap / select(exact & (rise > 0), rise, 1)
    if isinstance(divergence, PowerDivergence):
        # The same, for masses m whose f′(1/m) overflows or rounds to f′(0) in a difference.
        gamma = jnp.asarray(divergence._gamma, dtype)
        gamma = select(gamma > 0, gamma, 1)
        scale = jnp.asarray(divergence._scale, dtype)
        closed = gamma * gap * jnp.exp(gamma * select(~outside, log_m, 0)) / scale
        beta = jnp.where(outside, beta, closed)
    beta = select(exact, beta, 0)
    return select(~alone, beta, jnp.inf)[..., 0]
