"""What a target does to the diversity of modes: odds, flips, collapse, and metrics of diversity.

A mode is a set of outcomes that count as one answer. Modes are given as ``modes``, one integer
label per outcome, shape ``[A]``; a label below 0 marks outcomes that belong to no mode, wrong
answers for one. Results list the modes in increasing order of their labels, so labels 0…M−1 are
indices. Labels decide shapes, so they must be concrete, never traced.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._numerics import as_float, expm1_ratio, log1p_ratio, two_sum, widest, working_dtype
from kltarget.divergences import Divergence, PowerDivergence, TotalVariation
from kltarget.objectives import Objective, _traced, broadcast_fields
from kltarget.targets import Target, greedy_limit, solve

__all__ = [
    "collapse_beta",
    "coverage",
    "effective_modes",
    "entropy",
    "flip_beta",
    "log_odds",
    "mode_log_mass",
    "pass_at_k",
    "pass_at_k_from_counts",
]


def mode_log_mass(log_probs: ArrayLike, modes: ArrayLike) -> Float[Array, "*batch M"]:
    """The log-probability of each mode, ``log Σ_{y in mode} π(y)``.

    Args:
        log_probs: log-probabilities, shape ``[*batch, A]``.
        modes: one integer label per outcome, shape ``[A]``, concrete; outcomes of labels below 0
            are left out.

    Returns:
        Log-masses, shape ``[*batch, M]``: one entry for each of the M distinct labels from 0 up, in
        increasing order.

    Raises:
        TypeError: ``modes`` is traced or not of integers.
        ValueError: ``modes`` is not of shape ``[A]``, or no label is 0 or more.

    A mode whose outcomes are all ``-inf`` has log-mass ``-inf``. Differentiable in ``log_probs``;
    the derivatives at ``-inf`` are 0.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_probs = jnp.log(jnp.array([0.5, 0.25, 0.125, 0.125]))
        >>> print(jnp.exp(kt.mode_log_mass(log_probs, [0, 1, 1, -1])).round(4))
        [0.5   0.375]
    """
    log_probs = _log_probabilities(log_probs)
    return _mode_log_mass(log_probs, _blocks(_labels(modes, log_probs.shape[-1])))


def log_odds(
    target: Target | ArrayLike, i: ArrayLike, j: ArrayLike, *, modes: ArrayLike | None = None
) -> Float[Array, "*batch"]:
    """The log-odds ``log π(i) − log π(j)`` of two outcomes, or of two modes.

    For the target of reverse KL they are ``log(π_ref,i/π_ref,j) + (r_i − r_j)/β``, whatever the
    other outcomes; for forward KL ``log(π_ref,i/π_ref,j) + log((Λ − r_j)/(Λ − r_i))``, where Λ
    depends on all. Equal rewards keep the reference's odds for every f-divergence and every β.

    Args:
        target: a :class:`Target`, or log-probabilities of shape ``[*batch, A]``.
        i: index of an outcome, or the label of a mode if ``modes`` are given.
        j: the same, of the other one.
        modes: integer labels of the outcomes' modes, shape ``[A]``, concrete.

    Returns:
        Log-odds in nats, shape ``[*batch]``; positive where ``i`` is the likelier one.

    Raises:
        TypeError: an index or label that is not an integer.
        ValueError: an index that is out of range, or a label that does not occur.

    ``inf`` or ``-inf`` where only one of the two is impossible, NaN where both are. Differentiable
    in the log-probabilities.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> target = kt.solve(kt.Objective(jnp.array([1.0, 1.0, 0.0]), log_ref, 0.1))
        >>> print(jnp.exp(kt.log_odds(target, 0, 1)).round(4))
        15.0

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817.
    """
    log_probs = target.log_probs if isinstance(target, Target) else _log_probabilities(target)
    masks = _members(i, j, modes, log_probs.shape[-1])
    return _masked_log_odds(log_probs.astype(working_dtype(log_probs.dtype)), *masks).astype(
        log_probs.dtype
    )


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
      largest β. Total variation has targets that jump: it is the β of the jump.

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
        TypeError: an index or label that is not an integer.
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
    masks = _members(i, j, modes, objective.num_outcomes)
    problem, failed = _without_beta(objective)
    if not isinstance(problem.divergence, PowerDivergence):
        beta = _flip_root(problem, *masks)
    else:
        beta, exact = _flip_power(problem, *masks)
        if modes is not None and (_traced(exact) or not bool(jnp.all(exact))):
            beta = jnp.where(exact, beta, _flip_root(problem, *masks))
    return _as_asked(objective, _select(~failed, beta, jnp.nan))


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
    problem, failed = _without_beta(objective)
    return _as_asked(objective, _select(~failed, _collapse_beta(problem), jnp.nan))


def effective_modes(
    log_probs: ArrayLike, modes: ArrayLike | None = None, *, order: float = 1
) -> Float[Array, "*batch"]:
    """The effective number of modes: how many equally likely modes would be as diverse.

    Hill numbers ``(Σ c^q)^{1/(1−q)}`` of the modes' shares c, the masses divided by their sum:
    order 1 is ``exp(entropy)``, order 2 ``1/Σc²``, order inf ``1/max c``, order 0 the number of
    modes with any mass at all.

    Args:
        log_probs: log-probabilities, shape ``[*batch, A]``; they need not be normalised.
        modes: integer labels of the outcomes' modes, shape ``[A]``, concrete. Outcomes of labels
            below 0 are in no mode: the shares are of the rest. By default each outcome is a mode.
        order: q ≥ 0, a Python number; larger orders weigh rare modes less.

    Returns:
        A number between 1 and the number of modes, shape ``[*batch]``; NaN where no mode has mass.

    Raises:
        TypeError: ``modes`` is traced or not of integers.
        ValueError: ``modes`` is not of shape ``[A]`` or without a label of 0 or more; ``order`` is
            below 0 or NaN.

    Modes of mass 0 count for nothing. Differentiable in ``log_probs`` for orders above 0.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_probs = jnp.log(jnp.array([0.48, 0.3, 0.02, 0.1, 0.1]))
        >>> print(f"{kt.effective_modes(log_probs, [0, 1, 2, 3, -1]):.4f}")
        2.8016
        >>> print(f"{kt.effective_modes(log_probs, [0, 1, 2, 3, -1], order=2):.4f}")
        2.4486

    References:
        Hill, "Diversity and Evenness: A Unifying Notation and Its Consequences", Ecology, 1973.
    """
    order = float(order)
    if not order >= 0:
        raise ValueError(f"order must be 0 or more, got {order}")
    log_mass = _masses(log_probs, modes)
    return _hill_number(log_mass, order)


def coverage(
    log_probs: ArrayLike,
    modes: ArrayLike | None = None,
    *,
    threshold: ArrayLike,
    relative: bool = False,
) -> Float[Array, "*batch"]:
    """The fraction of modes that hold at least a threshold of probability.

    With ``relative=False`` a mode counts if its mass, as it is and not renormalised, is at least
    ``threshold``; with ``relative=True`` if it is at least ``threshold`` times the largest mode's.
    Say which one wherever the number is reported.

    Args:
        log_probs: log-probabilities, shape ``[*batch, A]``.
        modes: integer labels of the outcomes' modes, shape ``[A]``, concrete. Outcomes of labels
            below 0 are in no mode. By default each outcome is a mode.
        threshold: a number above 0 and at most 1; an array broadcasts against ``*batch``.
        relative: what the threshold is relative to.

    Returns:
        A fraction of the M modes, shape ``[*batch]``. A mass that is equal to the threshold but for
        rounding counts.

    Raises:
        TypeError: ``modes`` is traced or not of integers.
        ValueError: ``modes`` is not of shape ``[A]`` or without a label of 0 or more; a concrete
            ``threshold`` is not in (0, 1].

    A mode of mass 0 is never covered. Piecewise constant: its derivatives are 0.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_probs = jnp.log(jnp.array([0.48, 0.3, 0.02, 0.1, 0.1]))
        >>> print(kt.coverage(log_probs, [0, 1, 2, 3, -1], threshold=0.05))
        0.75
    """
    log_mass = _masses(log_probs, modes)
    threshold = as_float(threshold)
    if not _traced(threshold):
        wrong = ~((np.asarray(threshold) > 0) & (np.asarray(threshold) <= 1))
        if wrong.any():
            raise ValueError(
                f"threshold must be above 0 and at most 1, got {np.asarray(threshold)[wrong][0]}"
            )
    return _coverage(log_mass, threshold.astype(log_mass.dtype), relative=bool(relative))


def entropy(log_probs: ArrayLike) -> Float[Array, "*batch"]:
    """Shannon's entropy ``−Σ π log π`` of a distribution, in nats.

    Args:
        log_probs: normalised log-probabilities, shape ``[*batch, A]``.

    Returns:
        The entropy in nats, shape ``[*batch]``; ``exp`` of it is the perplexity, and equal to
        :func:`effective_modes` of single outcomes.

    Outcomes of ``-inf`` count for nothing. Differentiable; the derivatives at ``-inf`` are 0.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> print(f"{kt.entropy(jnp.log(jnp.array([0.5, 0.25, 0.25]))):.4f}")
        1.0397
    """
    return _entropy(_log_probabilities(log_probs))


def pass_at_k(success_probability: ArrayLike, k: ArrayLike) -> Float[Array, "..."]:
    """The probability that at least one of k independent samples succeeds, ``1 − (1 − p)^k``.

    Exact, from a probability. Of several prompts, average the results: the mean comes after the
    power. The power of a mean success probability is larger, at times by far.

    Args:
        success_probability: p in [0, 1], for instance the exponential of the correct modes'
            :func:`mode_log_mass`; any shape.
        k: number of samples, 0 or more; broadcasts against it.

    Returns:
        Probabilities, of the shape the two broadcast to. Small ones keep their relative accuracy.

    Raises:
        ValueError: shapes that do not broadcast, and outside a trace a p outside [0, 1] (but for
            rounding) or a k below 0. Under a trace these give NaN.

    Differentiable in ``success_probability``, the ends of [0, 1] included.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> print(kt.pass_at_k(jnp.array(0.05), jnp.array([1, 4, 16])).round(4))
        [0.05   0.1855 0.5599]
        >>> p = jnp.array([0.01, 0.2, 0.9])
        >>> print(f"{kt.pass_at_k(p, 8).mean():.3f}, not {kt.pass_at_k(p.mean(), 8):.3f}")
        0.636, not 0.975

    References:
        Chen et al., "Evaluating Large Language Models Trained on Code", 2021, arXiv 2107.03374.
    """
    p = as_float(success_probability)
    shape = _common_shape(success_probability=jnp.shape(p), k=jnp.shape(k))
    dtype = working_dtype(p.dtype)
    wide, count = p.astype(dtype), as_float(k).astype(dtype)
    above = 1 + 32 * float(jnp.finfo(p.dtype).eps)  # sums of probabilities reach past 1 by rounding
    bad_p, bad_k = ~((wide >= 0) & (wide <= above)), ~(count >= 0)
    _require("success_probability", wide, bad_p, "must be between 0 and 1")
    _require("k", count, bad_k, "must be 0 or more")
    wide = jnp.where(bad_p, jnp.full_like(wide, jnp.nan), _select(wide <= 1, wide, 1))
    count = jnp.where(bad_k, jnp.full_like(count, jnp.nan), count)
    result = _pass_at_k(jnp.broadcast_to(wide, shape), jnp.broadcast_to(count, shape))
    return result.astype(p.dtype)


def pass_at_k_from_counts(
    num_correct: ArrayLike, num_samples: ArrayLike, k: ArrayLike
) -> Float[Array, "..."]:
    """The unbiased estimate of pass@k from counts, ``1 − C(n − c, k)/C(n, k)``.

    Its expectation over n samples is ``1 − (1 − p)^k``; that of ``pass_at_k(c/n, k)`` is less. Of
    several prompts, average the results.

    Args:
        num_correct: how many of the samples were correct, c.
        num_samples: how many there were, n.
        k: number of samples the question is about, from 1 to n. The three broadcast.

    Returns:
        Estimates in [0, 1], of the shape the three broadcast to; exactly 1 where fewer than k
        samples were wrong. The default float type, unless floats were passed.

    Raises:
        ValueError: shapes that do not broadcast, and outside a trace a c outside [0, n] or a k
            outside [1, n]: there is no unbiased estimate from fewer than k samples. Under a trace
            these give NaN.

    Not differentiable: counts are integers.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> print(kt.pass_at_k_from_counts(3, 20, jnp.array([5, 10, 18])).round(4))
        [0.6009 0.8947 1.    ]

    References:
        Chen et al., "Evaluating Large Language Models Trained on Code", 2021, arXiv 2107.03374,
        equation 1.
    """
    given = {"num_correct": num_correct, "num_samples": num_samples, "k": k}
    shape = _common_shape(**{name: jnp.shape(x) for name, x in given.items()})
    typed = [jnp.dtype(x.dtype) for x in given.values() if isinstance(x, (jax.Array, np.ndarray))]
    typed = [dtype for dtype in typed if jnp.issubdtype(dtype, jnp.floating)]
    dtype = widest(*typed) if typed else jnp.result_type(float)
    c, n, wanted = (as_float(x).astype(working_dtype(dtype)) for x in given.values())
    c, n, wanted = (jnp.broadcast_to(x, shape) for x in (c, n, wanted))
    bad_c, bad_k = ~((c >= 0) & (c <= n)), ~((wanted >= 1) & (wanted <= n))
    _require("num_correct", c, bad_c, "must be between 0 and num_samples")
    _require("k", wanted, bad_k, "must be between 1 and num_samples")
    bad = bad_c | bad_k
    result = _pass_at_k_from_counts(*(jnp.where(bad, jnp.ones_like(x), x) for x in (c, n, wanted)))
    return jnp.where(bad, jnp.full_like(result, jnp.nan), result).astype(dtype)


def _log_probabilities(x: object) -> Array:
    log_probs = as_float(x)
    if log_probs.ndim == 0 or log_probs.shape[-1] == 0:
        raise ValueError(
            f"log_probs needs a last axis of at least one outcome, got shape {log_probs.shape}"
        )
    return log_probs


def _labels(modes: Any, num_outcomes: int) -> np.ndarray:
    if _traced(modes):
        raise TypeError(
            "modes must be concrete labels, not traced ones: they decide the shape of the result; "
            "close over them instead of passing them through jit or vmap"
        )
    labels = np.asarray(modes)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"modes must be integer labels, got dtype {labels.dtype}")
    if labels.shape != (num_outcomes,):
        raise ValueError(
            f"modes has shape {labels.shape}, but there are {num_outcomes} outcomes: "
            f"give one label per outcome, shape ({num_outcomes},)"
        )
    if not (labels >= 0).any():
        raise ValueError("modes has no label of 0 or more: every outcome is in no mode")
    return labels


def _blocks(labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Gathers that turn sums over modes into two sums over short rows, padded with index A.

    Adding the outcomes of a large mode one by one would lose digits in proportion to their number.
    """
    order = np.argsort(labels, kind="stable")
    order = order[np.searchsorted(labels[order], 0) :]
    sizes = np.unique(labels[order], return_counts=True)[1]
    width = math.isqrt(int(sizes.max()) - 1) + 1
    per_mode = -(-sizes // width)
    members = np.split(order, np.cumsum(sizes)[:-1])
    first = np.full((int(per_mode.sum()), width), labels.size, np.int32)
    second = np.full((sizes.size, int(per_mode.max())), len(first), np.int32)
    row = 0
    for mode, (outcomes, rows) in enumerate(zip(members, per_mode, strict=True)):
        first[row : row + rows].flat[: outcomes.size] = outcomes
        second[mode, :rows] = np.arange(row, row + rows)
        row += int(rows)
    return (first,) if len(first) == sizes.size else (first, second)


@jax.jit
def _mode_log_mass(log_probs: Array, blocks: tuple[Array, ...]) -> Array:
    x = log_probs.astype(working_dtype(log_probs.dtype))
    for block in blocks:
        nothing = jnp.full((*x.shape[:-1], 1), -jnp.inf, x.dtype)
        x = _log_sum_exp(jnp.concatenate([x, nothing], axis=-1)[..., block])[..., 0]
    return x.astype(log_probs.dtype)


def _log_sum_exp(x: Array) -> Array:
    """Over the last axis, which stays; -inf, with derivatives of 0, where there is nothing."""
    top = lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    none = jnp.isneginf(top)
    shifted = x - jnp.where(none, jnp.zeros_like(top), top)
    total = jnp.exp(shifted).sum(-1, keepdims=True)
    log_total = jnp.log(jnp.where(none, jnp.ones_like(total), total))
    return jnp.where(none, top, top + log_total)


def _masses(log_probs: ArrayLike, modes: ArrayLike | None) -> Array:
    if modes is None:
        return _log_probabilities(log_probs)
    return mode_log_mass(log_probs, modes)


def _members(
    i: ArrayLike, j: ArrayLike, modes: ArrayLike | None, num_outcomes: int
) -> tuple[Array, Array]:
    """Which outcomes belong to each of the two, as booleans of shape ``[A]``."""
    labels = None if modes is None else _labels(modes, num_outcomes)

    def members(which: Any, name: str) -> Array:
        if _traced(which):
            if which.ndim or not jnp.issubdtype(which.dtype, jnp.integer):
                raise TypeError(
                    f"{name} must be an integer, got {which.dtype} of shape {which.shape}"
                )
            where = np.arange(num_outcomes, dtype=np.int32) if labels is None else labels
            return jnp.asarray(where).astype(which.dtype) == which
        try:
            index = operator.index(which)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {which!r}") from None
        if labels is None:
            if not 0 <= index < num_outcomes:
                raise ValueError(
                    f"{name} must be the index of an outcome, from 0 to {num_outcomes - 1}, "
                    f"got {index}"
                )
            return jnp.asarray(np.arange(num_outcomes) == index)
        if index < 0 or not (labels == index).any():
            raise ValueError(f"{name} must be a label of 0 or more among modes, got {index}")
        return jnp.asarray(labels == index)

    return members(i, "i"), members(j, "j")


@jax.jit
def _masked_log_odds(log_probs: Array, first: Array, second: Array) -> Array:
    log_first, log_second = _log_mass_of(log_probs, first), _log_mass_of(log_probs, second)
    return (log_first - log_second)[..., 0]


def _log_mass_of(log_probs: Array, members: Array) -> Array:
    members = jnp.broadcast_to(members, log_probs.shape)
    return _log_sum_exp(jnp.where(members, log_probs, jnp.full_like(log_probs, -jnp.inf)))


def _select(condition: Array, x: Array, y: Array | float) -> Array:
    return jnp.where(condition, x, jnp.broadcast_to(jnp.asarray(y, x.dtype), x.shape))


def _without_beta(objective: Objective) -> tuple[Objective, Array]:
    """The problem at β = 1, in the working dtype, and which of its rows are invalid.

    Rows that differ in beta alone share their answer, which is computed once.
    """
    problem = dataclasses.replace(objective, beta=jnp.ones((), objective.reward.dtype))
    failed = jnp.isnan(greedy_limit(problem).log_probs[..., 0])
    dtype = working_dtype(objective.reward.dtype)
    # The reference has been checked by the tolerance of its own dtype.
    wide = dataclasses.replace(
        problem,
        reward=problem.reward.astype(dtype),
        log_ref=problem.log_ref.astype(dtype),
        beta=problem.beta.astype(dtype),
        measure=True,
    )
    return wide, failed


def _as_asked(objective: Objective, beta: Array) -> Array:
    return jnp.broadcast_to(beta.astype(objective.reward.dtype), objective.batch_shape)


@dataclasses.dataclass(frozen=True)
class _Support:
    """Which outcomes can have mass at some β, and the rewards that decide it, ``[*batch, 1]``."""

    usable: Array
    atoms: Array
    """Outcomes the reference lacks and that are better than any it has, at a finite price."""
    best: Array
    outside: Array

    @staticmethod
    def of(divergence: Divergence, reward: Array, log_ref: Array) -> _Support:
        in_ref = log_ref > -jnp.inf
        usable = in_ref & (reward > -jnp.inf)
        best = jnp.max(_select(usable, reward, -jnp.inf), axis=-1, keepdims=True)
        outside = jnp.max(_select(~in_ref, reward, -jnp.inf), axis=-1, keepdims=True)
        beyond = (outside > best) & (divergence.slope_at_infinity < jnp.inf)
        return _Support(usable, ~in_ref & (reward == outside) & beyond, best, outside)


@jax.jit
def _flip_power(objective: Objective, first: Array, second: Array) -> tuple[Array, Array]:
    """The flip in the α family, and whether each of the two has but one reward, as it takes."""
    reward, log_ref, _, divergence = broadcast_fields(objective)
    assert isinstance(divergence, PowerDivergence)
    dtype = reward.dtype
    gamma = jnp.asarray(divergence._gamma, dtype)
    scale = jnp.asarray(divergence._scale, dtype)
    support = _Support.of(divergence, reward, log_ref)
    log_mass = _select(support.usable, log_ref, -jnp.inf)

    def merged(members: Array) -> tuple[Array, Array, Array, Array]:
        members = jnp.broadcast_to(members, reward.shape)
        alive = members & (support.usable | support.atoms)
        high = jnp.max(_select(alive, reward, -jnp.inf), axis=-1, keepdims=True)
        low = jnp.min(_select(alive, reward, jnp.inf), axis=-1, keepdims=True)
        atoms = (members & support.atoms).sum(-1, keepdims=True).astype(dtype)
        return high, _log_mass_of(log_mass, members), atoms, high <= low

    (r_i, log_i, atoms_i, one_i), (r_j, log_j, atoms_j, one_j) = merged(first), merged(second)
    higher = r_i > r_j
    top, bottom = jnp.where(higher, r_i, r_j), jnp.where(higher, r_j, r_i)
    log_top, log_bottom = jnp.where(higher, log_i, log_j), jnp.where(higher, log_j, log_i)
    among = (log_i > -jnp.inf) & (log_j > -jnp.inf)
    gap = _select(among, top, 0) - _select(among, bottom, 0)
    lead = _select(among, log_bottom, 0) - _select(among, log_top, 0)
    flips = (gap > 0) & (lead > 0)
    gap, lead = _select(flips, gap, 1), _select(flips, lead, 1)

    # X = γ(r − L) at the one of the two where it is smaller, so that it is a sum for the other: the
    # better one for γ < 0, the worse one for γ > 0. At γ = 0 it is the reverse-KL flip itself.
    base = jnp.where(gamma > 0, bottom, top)
    log_x = jnp.log(gap) - jnp.log(lead) - _log_expm1_ratio(jnp.abs(gamma) * lead)
    excess, kept = _relative(gamma, reward - base, log_x, flips & support.usable)
    log_sum = _log_sum_exp(_select(kept & support.usable, log_ref + excess, -jnp.inf))
    outranked = (gamma < 0) & jnp.any(support.usable & ~kept, axis=-1, keepdims=True)
    # L must not lie below what condensed rows are pinned to either.
    has_atoms = jnp.any(support.atoms, axis=-1, keepdims=True)
    out = _select(has_atoms & flips, support.outside - top, 0)
    outranked = outranked | ((gamma < 0) & has_atoms & (jnp.log(-gamma * out) > log_x))
    weighted = gamma * _select(flips & ~outranked, log_sum, 0)
    beta = jnp.exp(log_x + weighted)
    if isinstance(divergence._gamma, (int, float)) and divergence._gamma == 0:
        beta = gap / lead
    beta = _select(flips & ~outranked, beta, jnp.nan)

    # One of the two stands where the reference has nothing.
    log_in = jnp.where(log_i > -jnp.inf, log_i, log_j)
    r_in = jnp.where(log_i > -jnp.inf, r_i, r_j)
    share = (atoms_i + atoms_j) / jnp.maximum(support.atoms.sum(-1, keepdims=True), 1).astype(dtype)
    mixed = ((atoms_i > 0) & (log_j > -jnp.inf)) | ((atoms_j > 0) & (log_i > -jnp.inf))
    mixed = mixed & ((log_i > -jnp.inf) ^ (log_j > -jnp.inf)) & (gamma < 0)
    negative = _select(gamma < 0, gamma, -1)

    def against_atoms(log_weight: Array, gap: Array, present: Array) -> Array:
        gap = _select(present, gap, 1)
        return _select(present, log_weight + jnp.log(-negative * gap) / negative, -jnp.inf)

    alone = against_atoms(_select(mixed, log_in - jnp.log(share), 0), support.outside - r_in, mixed)
    everyone = against_atoms(log_ref, support.outside - reward, support.usable & mixed)
    both = _log_sum_exp(jnp.concatenate([alone, _log_sum_exp(everyone)], axis=-1))
    beta = jnp.where(mixed, jnp.exp(negative * _select(mixed, both, 0)), beta)

    beta = beta / scale
    return beta[..., 0], jnp.broadcast_to(one_i & one_j, beta.shape)[..., 0]


def _log_expm1_ratio(x: Array) -> Array:
    """``log((e^x − 1)/x)``, where ``e^x`` overflows too."""
    large = x > 1
    y = _select(large, x, 1)
    moderate = jnp.log(expm1_ratio(_select(~large, x, 0)))
    return jnp.where(large, y + jnp.log(-jnp.expm1(-y)) - jnp.log(y), moderate)


def _relative(gamma: Array, gap: Array, log_x: Array, on: Array) -> tuple[Array, Array]:
    """``log(1 + z)/γ`` with ``z = γ·gap/X``, and where ``1 + z`` is positive."""
    apart = on & (gap != 0)
    gap = _select(apart, gap, 1)
    log_y = jnp.log(jnp.abs(gap)) - log_x
    steep = _select(gamma != 0, jnp.broadcast_to(gamma, gap.shape), 1)
    log_z = jnp.log(jnp.abs(steep)) + log_y
    far = apart & (gamma != 0) & (log_z > 0)
    y = jnp.sign(gap) * jnp.exp(_select(apart & ~far, log_y, 0))
    near = y * log1p_ratio(gamma * _select(apart & ~far, y, 0))
    beyond = jnp.logaddexp(_select(far, log_z, 0), jnp.zeros_like(log_z)) / steep
    value = jnp.where(far, beyond, _select(apart & ~far, near, 0))
    kept = ~(far & (steep * gap < 0)) & (value > -jnp.inf)
    return _select(kept, value, 0), kept


_DECADES = 9
_PER_DECADE = 8


@jax.jit
def _flip_root(objective: Objective, first: Array, second: Array) -> Array:
    fixed = lax.stop_gradient(objective)
    reward, log_ref, _, divergence = broadcast_fields(fixed)
    support = _Support.of(divergence, reward, log_ref)
    alive = support.usable | support.atoms
    highest = jnp.max(_select(alive, reward, -jnp.inf), axis=-1)
    spread = highest - jnp.min(_select(alive, reward, jnp.inf), axis=-1)
    none = ~((spread > 0) & (spread < jnp.inf))
    log_spread = jnp.log(_select(~none, spread, 1))
    eps = float(jnp.finfo(reward.dtype).eps)

    def odds(problem: Objective, log_beta: Array) -> tuple[Array, Array, Array]:
        beta = jnp.exp(log_beta).astype(problem.reward.dtype)
        log_probs = solve(dataclasses.replace(problem, beta=beta)).log_probs.astype(log_beta.dtype)
        log_first, log_second = _log_mass_of(log_probs, first), _log_mass_of(log_probs, second)
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
        size = jnp.maximum(*(jnp.abs(_select(jnp.isfinite(x), x, 0)) for x in sides))
        clear = jnp.abs(difference) > 32 * eps * (1 + size)
        now = _select(clear, jnp.sign(difference), 0)
        change = ~state.found & (now * state.sign < 0)
        seen = ~state.found & ~change & (now != 0)
        like_high = difference * state.sign > 0
        low = jnp.where(change | (state.found & ~like_high), at, state.low)
        high = jnp.where(seen | (state.found & like_high), at, state.high)
        return _Bracket(
            low=low,
            high=high,
            sign=jnp.where(seen, now, state.sign),
            found=state.found | change,
            scanned=state.scanned + 1,
            halved=state.halved + state.found.astype(jnp.int32),
        )

    def unfinished(state: _Bracket) -> Array:
        scanning = ~state.found & ~none & (state.scanned < num_scanned)
        return jnp.any(scanning | (state.found & (state.halved < num_halvings)))

    zero = jnp.zeros_like(log_spread)
    start = _Bracket(
        low=zero,
        high=zero,
        sign=zero,
        found=jnp.zeros(zero.shape, bool),
        scanned=jnp.int32(0),
        halved=jnp.zeros(zero.shape, jnp.int32),
    )
    state = lax.while_loop(unfinished, advance, start)
    log_beta = 0.5 * (state.low + state.high)
    # A last Newton step, at the frozen root, carries the derivatives of the implicit function.
    value, slope = jax.jvp(lambda x: odds(objective, x)[0], (log_beta,), (jnp.ones_like(log_beta),))
    slope = lax.stop_gradient(slope)
    step = value / _select(slope != 0, slope, jnp.inf)
    smooth = jnp.isfinite(step) & (jnp.abs(step) < eps**0.5)
    log_beta = log_beta - _select(smooth, step, 0)
    return _select(state.found & ~none, jnp.exp(log_beta), jnp.nan)


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


def _slope_at_zero(divergence: Divergence, dtype: Any) -> Array:
    """``f′(0)``; read off ``f′`` near 0 where a caller's generator is NaN at 0 itself."""
    at_zero = divergence.f_prime(jnp.zeros((), dtype))
    before, last = (divergence.f_prime(jnp.asarray(2.0**-k, dtype)) for k in (40, 80))
    settled = jnp.abs(last - before) <= 1e-4 * jnp.maximum(jnp.abs(last), 1e-3)
    return jnp.where(jnp.isnan(at_zero), _select(settled, last, -jnp.inf), at_zero)


@jax.jit
def _collapse_beta(objective: Objective) -> Array:
    reward, log_ref, _, divergence = broadcast_fields(objective)
    dtype = reward.dtype
    support = _Support.of(divergence, reward, log_ref)
    outside = jnp.any(support.atoms, axis=-1, keepdims=True)
    tied = support.usable & (reward == support.best)
    best = jnp.where(outside, support.outside, support.best)
    rival = support.usable & (outside | ~tied)
    second = jnp.max(_select(rival, reward, -jnp.inf), axis=-1, keepdims=True)
    alone = jnp.isneginf(second)
    gap = _select(~alone, best, 0) - _select(~alone, second, 0)

    log_m = _log_sum_exp(_select(tied, log_ref, -jnp.inf))
    slope = jnp.asarray(divergence.slope_at_infinity, dtype)
    zero = _slope_at_zero(divergence, dtype)
    exact = zero > -jnp.inf
    zero = _select(exact, zero, 0)
    if isinstance(divergence, TotalVariation):
        rise = jnp.broadcast_to(slope - zero, gap.shape)
    else:
        # 1/m of a likely best outcome is near 1, where f′ is 0 or close to it.
        rise = divergence._f_prime_at(_select(~outside, -log_m, 0)) - zero
        rise = jnp.where(outside, jnp.broadcast_to(slope - zero, rise.shape), rise)
    beta = gap / _select(exact & (rise > 0), rise, 1)
    if isinstance(divergence, PowerDivergence):
        # The same, for masses m whose f′(1/m) overflows or rounds to f′(0) in a difference.
        gamma = jnp.asarray(divergence._gamma, dtype)
        gamma = _select(gamma > 0, gamma, 1)
        scale = jnp.asarray(divergence._scale, dtype)
        closed = gamma * gap * jnp.exp(gamma * _select(~outside, log_m, 0)) / scale
        beta = jnp.where(outside, beta, closed)
    beta = _select(exact, beta, 0)
    return _select(~alone, beta, jnp.inf)[..., 0]


@functools.partial(jax.jit, static_argnames="order")
def _hill_number(log_mass: Array, order: float) -> Array:
    wide = log_mass.astype(working_dtype(log_mass.dtype))
    log_total = _log_sum_exp(wide)
    some = log_total > -jnp.inf
    log_share = wide - _select(some, log_total, 0)
    present = log_share > -jnp.inf
    finite = _select(present, log_share, 0)
    if order == 0:
        log_number = jnp.log(_select(present, jnp.ones_like(wide), 0).sum(-1, keepdims=True))
    elif order == 1:
        log_number = -_select(present, jnp.exp(finite) * finite, 0).sum(-1, keepdims=True)
    elif math.isinf(order):
        log_number = -jnp.max(log_share, axis=-1, keepdims=True)
    else:
        powers = _log_sum_exp(_select(present, order * finite, -jnp.inf))
        log_number = powers / (1 - order)
    known = some & ~jnp.any(jnp.isnan(wide), axis=-1, keepdims=True)
    number = jnp.exp(_select(known, log_number, jnp.nan))
    return number[..., 0].astype(log_mass.dtype)


@functools.partial(jax.jit, static_argnames="relative")
def _coverage(log_mass: Array, threshold: Array, *, relative: bool) -> Array:
    wide = log_mass.astype(working_dtype(log_mass.dtype))
    batch = jnp.broadcast_shapes(wide.shape[:-1], threshold.shape)
    wide = jnp.broadcast_to(wide, (*batch, wide.shape[-1]))
    bar = jnp.log(jnp.broadcast_to(threshold.astype(wide.dtype), batch))[..., None]
    if relative:
        top = jnp.max(wide, axis=-1, keepdims=True)
        bar = bar + top
    slack = 8 * float(jnp.finfo(log_mass.dtype).eps) * (1 + jnp.abs(bar))
    covered = (wide > -jnp.inf) & (wide >= bar - slack)
    fraction = covered.sum(-1).astype(wide.dtype) / wide.shape[-1]
    # XLA divides by a constant with its rounded reciprocal.
    fraction = _select(~jnp.all(covered, axis=-1), fraction, 1)
    fraction = _select(~jnp.any(jnp.isnan(wide), axis=-1), fraction, jnp.nan)
    return fraction.astype(log_mass.dtype)


@jax.jit
def _entropy(log_probs: Array) -> Array:
    wide = log_probs.astype(working_dtype(log_probs.dtype))
    possible = ~jnp.isneginf(wide)
    finite = _select(possible, wide, 0)
    return -_select(possible, jnp.exp(finite) * finite, 0).sum(-1).astype(log_probs.dtype)


@jax.custom_jvp
def _pass_at_k(p: Array, k: Array) -> Array:
    return -jnp.expm1(jax.scipy.special.xlog1py(k, -p))


@_pass_at_k.defjvp
def _pass_at_k_jvp(primals: Any, tangents: Any) -> Any:
    # The chain rule through the logarithm would meet 0·∞ at p = 1.
    p, k = primals
    p_dot, _ = tangents
    slope = k * jnp.exp(jax.scipy.special.xlog1py(jnp.maximum(k - 1, 0), -p))
    return _pass_at_k(p, k), slope * p_dot


@jax.jit
def _pass_at_k_from_counts(c: Array, n: Array, k: Array) -> Array:
    # C(n−c, k)/C(n, k) is a product of min(c, k) factors, symmetric in c and k.
    few, many = jnp.minimum(c, k), jnp.maximum(c, k)

    def multiply(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        t, log_product, low = state
        inside = (t < few) & (n - t > many)
        factor = jnp.log1p(-many / _select(inside, n - t, jnp.inf))
        log_product, error = two_sum(log_product, _select(inside, factor, 0))
        return t + 1, log_product, low + error

    zero = jnp.zeros_like(c)
    start = (jnp.zeros((), c.dtype), zero, zero)
    _, log_product, low = lax.while_loop(lambda s: jnp.any(s[0] < few), multiply, start)
    return _select(n - c >= k, -jnp.expm1(log_product + low), 1)


def _common_shape(**shapes: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return jnp.broadcast_shapes(*shapes.values())
    except ValueError:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"the shapes of {listed} do not broadcast") from None


def _require(name: str, x: Array, bad: Array, rule: str) -> None:
    if _traced(bad):
        return
    wrong = np.argwhere(np.asarray(bad))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        where = f" at index {at[0] if len(at) == 1 else at}" if at else ""
        got = np.broadcast_to(np.asarray(x), np.shape(bad))[at]
        raise ValueError(f"{name} {rule}, got {got}{where}")
