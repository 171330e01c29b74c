"""Assertions and hypothesis strategies for unit tests of code that works with targets.

The assertions need nothing beyond the library; the strategies need ``hypothesis``, which is
imported where they are called.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kltarget._core.checks import mass_tolerance
from kltarget._core.numerics import as_float
from kltarget.divergences import (
    Alpha,
    ChiSquared,
    ChiSquaredKL,
    Divergence,
    ForwardKL,
    JensenShannon,
    KLMixture,
    NeymanChiSquared,
    ReverseKL,
    Scaled,
    SquaredHellinger,
    TotalVariation,
    Tsallis,
    named,
)
from kltarget.objectives import Objective
from kltarget.recipes import Recipe, divergence_of_loss
from kltarget.targets import DiscreteTarget, solve

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = [
    "assert_optimal",
    "assert_target",
    "assert_targets_close",
    "divergences",
    "log_policies",
    "objectives",
]


def assert_optimal(
    log_policy: ArrayLike, objective: Objective, *, tol: float | None = None
) -> None:
    """Fails unless a policy maximises an objective, ``J* − J(π) ≤ tol·β``.

    The shortfall is compared in units of β, so the verdict does not depend on the unit of the
    reward; for reverse KL it is ``KL(π‖π*)`` in nats. It is of second order: a policy whose
    probabilities are off by a small factor 1 ± δ falls short by about δ²/2. Where the optimum is
    not unique, every optimal policy passes.

    Args:
        log_policy: log-probabilities, shape ``[*batch, A]``.
        objective: what the policy is to maximise; the policy broadcasts to its batch.
        tol: largest shortfall accepted, in nats; by default 32 eps of the objective's dtype.

    Raises:
        AssertionError: the policy falls short somewhere, is NaN, or its masses do not sum to one.
            The message names the row that falls shortest and the outcome whose probability is
            furthest from the target's.
        ValueError: the objective has no target, or ``log_policy`` does not fit it.

    Behaviour at ``-inf``: a policy that may do what has reward ``-inf``, or what has an infinite
    cost, falls short by ``inf``. Forbidden outcomes are otherwise left out of the comparison, also
    where they make every policy's own J infinite.

    Example:
        >>> import jax, jax.numpy as jnp, kltarget as kt
        >>> from kltarget.testing import assert_optimal
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> objective = kt.Objective(jnp.array([1.0, 1.0, 0.0]), log_ref, 0.5)
        >>> assert_optimal(jax.nn.log_softmax(log_ref + objective.reward / 0.5), objective)
        >>> assert_optimal(log_ref, objective, tol=1e-3)
        Traceback (most recent call last):
            ...
        AssertionError: the policy falls short of the optimum by 0.473 nats, more than tol = 0.001
          gap 0.237 in reward at beta = 0.5
          worst outcome 2: probability 0.68 here, 0.223354 at the optimum
    """
    reward, log_ref = objective.reward, objective.log_ref
    allowed = jnp.broadcast_to(reward > -jnp.inf, jnp.broadcast_shapes(reward.shape, log_ref.shape))
    log_ref = jnp.where(allowed, jnp.broadcast_to(log_ref, allowed.shape), -jnp.inf)
    solve(objective).raise_if_failed()
    comparable = dataclasses.replace(objective, log_ref=log_ref, measure=True)
    target = solve(comparable).raise_if_failed()
    shape = (*objective.batch_shape, objective.num_outcomes)
    gap = np.asarray(target.gap(log_policy), np.float64)
    here = np.broadcast_to(np.exp(np.asarray(as_float(log_policy), np.float64)), shape)
    best = np.exp(np.asarray(target.log_probs, np.float64))
    beta = np.broadcast_to(np.asarray(objective.beta, np.float64), gap.shape)
    if tol is None:
        tol = 32 * float(jnp.finfo(objective.reward.dtype).eps)

    mass = here.sum(-1)
    unnormalised = ~(np.abs(mass - 1) <= mass_tolerance(objective.reward.dtype))
    if unnormalised.any():
        at = _first(unnormalised)
        raise AssertionError(
            f"the policy is not normalised: its masses sum to {mass[at]:.6g}{_in_row(at)}, not 1"
        )
    short = gap / beta
    if not np.all(short <= tol):
        at = _first(np.isnan(short)) if np.isnan(short).any() else _largest(short)
        raise AssertionError(
            f"the policy falls short of the optimum by {short[at]:.3g} nats{_in_row(at)}, "
            f"more than tol = {tol:.3g}\n  gap {gap[at]:.3g} in reward at beta = {beta[at]:.6g}\n"
            + _worst(here[at], best[at], np.abs(here[at] - best[at]), "at the optimum")
        )


def assert_target(loss: Callable[..., Any], expected: str | Divergence | Recipe) -> None:
    """Fails unless a trainer's loss function asks for the target that it is meant to.

    Args:
        loss: ``loss(logp, ref_logp, old_logp, advantages, mask)`` in torch or JAX, as
            :func:`kltarget.recipes.divergence_of_loss` takes.
        expected: the divergence of its KL term, by name (``"reverse-kl"``) or itself, whatever its
            coefficient; ``"none"`` for a loss whose KL term holds nothing; or a recipe, of which
            divergence, level, length and clips are compared and, if it has one, ``beta``.

    Raises:
        AssertionError: it asks for something else, or does what no divergence of the log ratio
            explains, such as a KL where the advantage is above 0; the message says what.
        TypeError: no loss, or ``expected`` is none of these.
        ValueError: an unknown name, a loss that does not ascend the advantage.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.testing import assert_target
        >>> def loss(logp, ref_logp, old_logp, advantages, mask):
        ...     gain = jnp.exp(logp - old_logp) * advantages[:, None]
        ...     k3 = jnp.exp(ref_logp - logp) - 1 - (ref_logp - logp)
        ...     return -((gain - 0.04 * k3) * mask).sum() / mask.sum()
        >>> assert_target(loss, "forward-kl")
        >>> assert_target(loss, "reverse-kl")
        Traceback (most recent call last):
        ...
        AssertionError: loss asks for 0.04 × forward KL, expected reverse KL
    """
    if not isinstance(expected, str | Divergence | Recipe):
        raise TypeError(
            "expected must be the name of a divergence, a Divergence or a Recipe, got "
            f"{type(expected).__name__}"
        )
    wanted: Divergence | None
    if isinstance(expected, Recipe):
        wanted = expected.divergence
    else:
        wanted = expected if isinstance(expected, Divergence) else None
        if isinstance(expected, str) and expected != "none":
            wanted = named(expected)
    reading = divergence_of_loss(loss)
    name, found = getattr(loss, "__name__", "loss"), reading.recipe
    if reading.unexplained:
        raise AssertionError(f"{name} is not what it reads as: {'; '.join(reading.unexplained)}")
    term = reading.term
    asked = "nothing: no term holds the policy" if term is None else str(term)
    title = "none" if wanted is None else wanted.title
    own = None if term is None else (term.family or term.divergence)
    if _base(own) != _base(wanted):
        raise AssertionError(f"{name} asks for {asked}, expected {title}")
    if term is not None and term.divergence is None:
        raise AssertionError(f"{name} asks for {asked}, expected {title}")
    if not isinstance(expected, Recipe):
        return
    compared = ["level", "length", "clip", "clip_high", "log_ratio_clip", "kl_clip"]
    compared += ["beta"] if expected.beta is not None else []
    for field in compared:
        got, want = getattr(found, field), getattr(expected, field)
        if field == "clip_high" and want == expected.clip:
            want = None
        same = got == want
        if isinstance(got, float) and isinstance(want, float):
            same = math.isclose(got, want, rel_tol=1e-2)
        if not same:
            raise AssertionError(f"{name} has {field}={got!r}, expected {field}={want!r}")


def _base(divergence: Divergence | None) -> Divergence | None:
    return divergence.base if isinstance(divergence, Scaled) else divergence


def assert_targets_close(
    actual: DiscreteTarget | ArrayLike,
    desired: DiscreteTarget | ArrayLike,
    *,
    tol: float | None = None,
) -> None:
    """Fails unless two targets agree, ``|log π − log π'| ≤ tol·(1 + |log π'|)`` at every outcome.

    Args:
        actual: a target, or log-probabilities of shape ``[*batch, A]``.
        desired: what it is to agree with, a target or log-probabilities; the two broadcast.
        tol: by default 32 eps of the coarser of the two dtypes, the accuracy :func:`solve` has.

    Raises:
        AssertionError: they differ somewhere, one alone is ``-inf`` there, or one is NaN. The
            message names the outcome that is furthest off and its two probabilities.
        ValueError: the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.testing import assert_targets_close
        >>> log_ref = jnp.log(jnp.array([0.5, 0.5]))
        >>> target = kt.solve(kt.Objective(jnp.array([1.0, 0.0]), log_ref, 1.0))
        >>> assert_targets_close(target, kt.normalize(jnp.array([1.0, 0.0])))
        >>> assert_targets_close(target, log_ref, tol=1e-3)
        Traceback (most recent call last):
            ...
        AssertionError: the targets differ by 0.366·(1 + |log π|), more than tol = 0.001
          worst outcome 1: probability 0.268941 here, 0.5 wanted
    """
    arrays = [
        as_float(x.log_probs if isinstance(x, DiscreteTarget) else x) for x in (actual, desired)
    ]
    if min(x.ndim for x in arrays) == 0 or arrays[0].shape[-1] != arrays[1].shape[-1]:
        raise ValueError(
            f"actual has shape {arrays[0].shape} and desired {arrays[1].shape}; "
            "both need the same last axis of outcomes"
        )
    if tol is None:
        tol = 32 * max(float(jnp.finfo(x.dtype).eps) for x in arrays)
    got, want = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in arrays))
    for name, x in (("actual", got), ("desired", want)):
        failed = np.asarray(np.isnan(x).any(-1))
        if failed.any():
            raise AssertionError(f"the {name} target is NaN{_in_row(_first(failed))}")
    both_zero = np.isneginf(got) & np.isneginf(want)
    size = 1 + np.abs(np.where(np.isneginf(want), 0, want))
    with np.errstate(invalid="ignore"):
        error = np.where(both_zero, 0, np.abs(got - want) / size)
    if not np.all(error <= tol):
        at = _largest(error.max(-1))
        raise AssertionError(
            f"the targets differ by {error[at].max():.3g}·(1 + |log π|){_in_row(at)}, "
            f"more than tol = {tol:.3g}\n"
            + _worst(np.exp(got[at]), np.exp(want[at]), error[at], "wanted")
        )


def _worst(here: np.ndarray, there: np.ndarray, error: np.ndarray, where: str) -> str:
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
    return (
        f"  worst outcome {worst}: probability {here[worst]:.6g} here, {there[worst]:.6g} {where}"
    )


def _first(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(bad)[0])


def _largest(x: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(x)), x.shape))


def _in_row(index: tuple[int, ...]) -> str:
    if not index:
        return ""
    return f" in row {index[0] if len(index) == 1 else index}"


def divergences() -> SearchStrategy[Divergence]:
    """A hypothesis strategy for the library's divergences, reverse KL first.

    Every class without parameters, :class:`Alpha` at orders from −2 to 3 and :class:`Tsallis` at
    orders from ¼ to 3. :class:`TotalVariation` is among them: its targets need not be unique.

    Example:
        >>> import kltarget as kt
        >>> from hypothesis import given
        >>> from kltarget.testing import divergences
        >>> @given(divergences())
        ... def test_f_vanishes_at_one(divergence):
        ...     assert abs(divergence.f(1.0)) < 1e-6
        >>> test_f_vanishes_at_one()
    """
    from hypothesis import strategies as st

    named: list[Divergence] = [
        ReverseKL(),
        ForwardKL(),
        JensenShannon(),
        SquaredHellinger(),
        ChiSquared(),
        NeymanChiSquared(),
        ChiSquaredKL(),
        KLMixture(0.5),
        TotalVariation(),
    ]
    # Orders on a grid: their differences are exact in every float type, and failures read well.
    return st.one_of(
        st.sampled_from(named),
        st.integers(-8, 12).map(lambda k: Alpha(k / 4)),
        st.integers(1, 12).map(lambda k: Tsallis(k / 4)),
    )


def log_policies(
    num_outcomes: int,
    *,
    batch_shape: tuple[int, ...] = (),
    dtype: Any = None,
    zeros: bool = True,
) -> SearchStrategy[np.ndarray]:
    """A hypothesis strategy for normalised log-probabilities.

    Args:
        num_outcomes: the number A of outcomes.
        batch_shape: the leading axes.
        dtype: float type; by default JAX's default float.
        zeros: whether outcomes of probability 0 occur.

    Returns:
        A strategy for NumPy arrays of shape ``[*batch_shape, A]``.

    Example:
        >>> import numpy as np
        >>> from hypothesis import given
        >>> from kltarget.testing import log_policies
        >>> @given(log_policies(3))
        ... def test_sums_to_one(log_policy):
        ...     assert abs(np.exp(log_policy).sum() - 1) < 1e-5
        >>> test_sums_to_one()
    """
    from hypothesis import strategies as st

    kind = _dtype(dtype)
    weight: SearchStrategy[float] = st.floats(-30, 0, width=32, allow_subnormal=False)
    if zeros:
        weight = st.one_of(weight, weight, st.just(-math.inf))
    rows = math.prod(batch_shape)

    def build(weights: list[list[float]]) -> np.ndarray:
        table = np.array(weights, np.float64).reshape(*batch_shape, num_outcomes)
        # A row without any weight becomes certain of its first outcome.
        table[..., 0] = np.where(np.isneginf(table).all(-1), 0, table[..., 0])
        top = table.max(-1, keepdims=True)
        return (table - top - np.log(np.exp(table - top).sum(-1, keepdims=True))).astype(kind)

    row = st.lists(weight, min_size=num_outcomes, max_size=num_outcomes)
    return st.lists(row, min_size=rows, max_size=rows).map(build)


def objectives(
    *,
    num_outcomes: int | SearchStrategy[int] = 4,
    batch_shape: tuple[int, ...] = (),
    divergence: Divergence | SearchStrategy[Divergence] | None = None,
    betas: SearchStrategy[float] | None = None,
    rewards: SearchStrategy[float] | None = None,
    dtype: Any = None,
    zeros: bool = True,
) -> SearchStrategy[Objective]:
    """A hypothesis strategy for objectives that have a target.

    The rewards are drawn so that ties are common, among the best outcomes too.

    Args:
        num_outcomes: the number A of outcomes, or a strategy for it. Each new number compiles the
            code under test once more.
        batch_shape: the leading axes of every field.
        divergence: one to use throughout, or a strategy; by default :func:`divergences`.
        betas: a strategy for beta; by default the powers of ten from 1e-3 to 1e3 and what lies
            between them.
        rewards: a strategy for single rewards, ``-inf`` allowed; by default −10 to 10.
        dtype: float type of the fields; by default JAX's default float.
        zeros: whether outcomes without reference mass and outcomes of reward ``-inf`` occur.

    Returns:
        A strategy for objectives of batch shape ``batch_shape``.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from hypothesis import given
        >>> from kltarget.testing import objectives
        >>> @given(objectives(num_outcomes=3, divergence=kt.ReverseKL(), zeros=False))
        ... def test_the_reference_is_never_better(objective):
        ...     assert kt.solve(objective).value >= objective.value(objective.log_ref) - 1e-4
        >>> test_the_reference_is_never_better()
    """
    from hypothesis import strategies as st

    kind = _dtype(dtype)
    counts = st.just(num_outcomes) if isinstance(num_outcomes, int) else num_outcomes
    if betas is None:
        betas = st.one_of(
            st.integers(-3, 3).map(lambda k: 10.0**k), st.floats(2.0**-10, 1e3, width=32)
        )
    if rewards is None:
        rewards = st.one_of(
            st.sampled_from([0.0, 1.0]),
            st.floats(-10, 10, width=32, allow_subnormal=False),
            *([st.just(-math.inf)] if zeros else []),
        )
    if divergence is None:
        divergence = divergences()
    regularisers = st.just(divergence) if isinstance(divergence, Divergence) else divergence
    rows = math.prod(batch_shape)

    @st.composite
    def build(draw: Any) -> Objective:
        size = draw(counts)
        log_ref = draw(log_policies(size, batch_shape=batch_shape, dtype=kind, zeros=zeros))
        cells = st.lists(rewards, min_size=rows * size, max_size=rows * size)
        reward = np.array(draw(cells), np.float64).reshape(*batch_shape, size).astype(kind)
        # Every row needs one outcome that is both allowed and possible.
        dead = ~np.any((reward > -np.inf) & (log_ref > -np.inf), axis=-1, keepdims=True)
        reward = np.where(dead & (log_ref > -np.inf), np.zeros_like(reward), reward)
        beta = np.array(draw(st.lists(betas, min_size=rows, max_size=rows)), np.float64)
        beta = beta.reshape(batch_shape).astype(kind)
        return Objective(reward, log_ref, beta, draw(regularisers))

    return build()


def _dtype(dtype: Any) -> np.dtype:
    return np.dtype(jnp.result_type(float) if dtype is None else dtype)
