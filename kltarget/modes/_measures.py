"""What a target does to the diversity of modes: odds, flips, collapse, and metrics of diversity.

A mode is a set of outcomes that count as one answer. Modes are given as ``modes``, one integer
label per outcome, shape ``[A]``; a label below 0 marks outcomes that belong to no mode, wrong
answers for one. Results list the modes in increasing order of their labels, so labels 0…M−1 are
indices. Labels decide shapes, so they must be concrete, never traced.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import (
    raise_first,
    require_normalized,
    require_outcomes,
    traced,
    worded,
)
from kltarget._core.numerics import as_float, log_sum_exp, select, two_sum, widest, working_dtype
from kltarget.modes._labels import concrete_labels, log_mass_of, members_of, mode_blocks
from kltarget.targets import DiscreteTarget


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
    return log_mass_of_blocks(log_probs, mode_blocks(concrete_labels(modes, log_probs.shape[-1])))


def log_odds(
    target: DiscreteTarget | ArrayLike,
    i: ArrayLike,
    j: ArrayLike,
    *,
    modes: ArrayLike | None = None,
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
    given = target.log_probs if isinstance(target, DiscreteTarget) else target
    log_probs = _log_probabilities(given)
    masks = members_of(i, j, modes, log_probs.shape[-1])
    return _masked_log_odds(log_probs, *masks)


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
    least_probability: ArrayLike,
    relative: bool = False,
) -> Float[Array, "*batch"]:
    """The fraction of modes that hold at least so much probability.

    With ``relative=False`` a mode counts if its mass, as it is and not renormalised, is at least
    ``least_probability``; with ``relative=True`` at least that share of the largest mode's.
    Say which one wherever the number is reported.

    Args:
        log_probs: log-probabilities, shape ``[*batch, A]``.
        modes: integer labels of the outcomes' modes, shape ``[A]``, concrete. Outcomes of labels
            below 0 are in no mode. By default each outcome is a mode.
        least_probability: a number above 0 and at most 1; an array broadcasts against ``*batch``.
        relative: whether it is a share of the largest mode's probability.

    Returns:
        A fraction of the M modes, shape ``[*batch]``. A mass that is equal to the least one but for
        rounding counts.

    Raises:
        TypeError: ``modes`` is traced or not of integers.
        ValueError: ``modes`` is not of shape ``[A]`` or without a label of 0 or more; a concrete
            ``least_probability`` is not in (0, 1].

    A mode of mass 0 is never covered. Piecewise constant: its derivatives are 0.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_probs = jnp.log(jnp.array([0.48, 0.3, 0.02, 0.1, 0.1]))
        >>> print(kt.coverage(log_probs, [0, 1, 2, 3, -1], least_probability=0.05))
        0.75
    """
    log_mass = _masses(log_probs, modes)
    least_probability = as_float(least_probability)
    if not traced(least_probability):
        wrong = ~((np.asarray(least_probability) > 0) & (np.asarray(least_probability) <= 1))
        if wrong.any():
            bad = np.asarray(least_probability)[wrong][0]
            raise ValueError(f"least_probability must be above 0 and at most 1, got {bad}")
    return _coverage(log_mass, least_probability.astype(log_mass.dtype), relative=bool(relative))


def entropy(log_probs: ArrayLike) -> Float[Array, "*batch"]:
    """Shannon's entropy ``−Σ π log π`` of a distribution, in nats.

    Args:
        log_probs: normalised log-probabilities, shape ``[*batch, A]``.

    Returns:
        The entropy in nats, shape ``[*batch]``; ``exp`` of it is the perplexity, and equal to
        :func:`effective_modes` of single outcomes.

    Raises:
        ValueError: outside a trace, rows that are not normalised.

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
    raise_first("success_probability", wide, bad_p, "must be between 0 and 1")
    raise_first("k", count, bad_k, "must be 0 or more")
    wide = jnp.where(bad_p, jnp.full_like(wide, jnp.nan), select(wide <= 1, wide, 1))
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
        num_correct: how many of the samples were correct, c. It comes first here; the paper's
            estimator takes (n, c, k).
        num_samples: how many there were, n.
        k: number of samples the question is about, from 1 to n. The three broadcast.

    Returns:
        Estimates in [0, 1], of the shape the three broadcast to; exactly 1 where fewer than k
        samples were wrong. The default float type, unless floats were passed.

    Raises:
        ValueError: shapes that do not broadcast, and outside a trace a c outside [0, n] or a k
            outside [1, n]: there is no unbiased estimate from fewer than k samples; and what is no
            whole number. Under a trace these give NaN.

    Not differentiable: counts are integers.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> print(kt.modes.pass_at_k_from_counts(3, 20, jnp.array([5, 10, 18])).round(4))
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
    for name, x in zip(given, (c, n, wanted), strict=True):
        raise_first(name, x, jnp.floor(x) != x, "must be a whole number")
    bad_c, bad_k = ~((c >= 0) & (c <= n)), ~((wanted >= 1) & (wanted <= n))
    raise_first("num_correct", c, bad_c, "must be between 0 and num_samples")
    raise_first("k", wanted, bad_k, "must be between 1 and num_samples")
    bad = bad_c | bad_k
    result = _pass_at_k_from_counts(*(jnp.where(bad, jnp.ones_like(x), x) for x in (c, n, wanted)))
    return jnp.where(bad, jnp.full_like(result, jnp.nan), result).astype(dtype)


def _log_probabilities(x: object) -> Array:
    log_probs = as_float(x)
    require_outcomes(log_probs, "log_probs")
    require_normalized(log_probs=log_probs)
    return log_probs


@jax.jit
def log_mass_of_blocks(log_probs: Array, blocks: tuple[Array, ...]) -> Array:
    x = log_probs.astype(working_dtype(log_probs.dtype))
    for block in blocks:
        nothing = jnp.full((*x.shape[:-1], 1), -jnp.inf, x.dtype)
        x = log_sum_exp(jnp.concatenate([x, nothing], axis=-1)[..., block])[..., 0]
    return x.astype(log_probs.dtype)


def _masses(log_probs: ArrayLike, modes: ArrayLike | None) -> Array:
    if modes is None:
        return _log_probabilities(log_probs)
    return mode_log_mass(log_probs, modes)


@jax.jit
def _masked_log_odds(log_probs: Array, first: Array, second: Array) -> Array:
    wide = log_probs.astype(working_dtype(log_probs.dtype))
    log_first, log_second = log_mass_of(wide, first), log_mass_of(wide, second)
    return (log_first - log_second)[..., 0].astype(log_probs.dtype)


@functools.partial(jax.jit, static_argnames="order")
def _hill_number(log_mass: Array, order: float) -> Array:
    wide = log_mass.astype(working_dtype(log_mass.dtype))
    log_total = log_sum_exp(wide)
    some = log_total > -jnp.inf
    log_share = wide - select(some, log_total, 0)
    present = log_share > -jnp.inf
    finite = select(present, log_share, 0)
    if order == 0:
        log_number = jnp.log(select(present, jnp.ones_like(wide), 0).sum(-1, keepdims=True))
    elif order == 1:
        log_number = -select(present, jnp.exp(finite) * finite, 0).sum(-1, keepdims=True)
    elif math.isinf(order):
        log_number = -jnp.max(log_share, axis=-1, keepdims=True)
    else:
        powers = log_sum_exp(select(present, order * finite, -jnp.inf))
        log_number = powers / (1 - order)
    known = some & ~jnp.any(jnp.isnan(wide), axis=-1, keepdims=True)
    number = jnp.exp(select(known, log_number, jnp.nan))
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
    fraction = select(~jnp.all(covered, axis=-1), fraction, 1)
    fraction = select(~jnp.any(jnp.isnan(wide), axis=-1), fraction, jnp.nan)
    return fraction.astype(log_mass.dtype)


@jax.jit
def _entropy(log_probs: Array) -> Array:
    wide = log_probs.astype(working_dtype(log_probs.dtype))
    possible = ~jnp.isneginf(wide)
    finite = select(possible, wide, 0)
    return -select(possible, jnp.exp(finite) * finite, 0).sum(-1).astype(log_probs.dtype)


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
        factor = jnp.log1p(-many / select(inside, n - t, jnp.inf))
        log_product, error = two_sum(log_product, select(inside, factor, 0))
        return t + 1, log_product, low + error

    zero = jnp.zeros_like(c)
    start = (jnp.zeros((), c.dtype), zero, zero)
    _, log_product, low = lax.while_loop(lambda s: jnp.any(s[0] < few), multiply, start)
    return select(n - c >= k, -jnp.expm1(log_product + low), 1)


def _common_shape(**shapes: tuple[int, ...]) -> tuple[int, ...]:
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    with worded(f"the shapes of {listed} do not broadcast"):
        return jnp.broadcast_shapes(*shapes.values())
