"""What a regularised optimum gains on a question of right and wrong, by how hard it is."""

from __future__ import annotations

from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kltarget._core.checks import float_arguments, raise_first, worded
from kltarget._core.numerics import select, working_dtype
from kltarget._core.pytrees import pytree
from kltarget._core.status import Status, flag, raise_if_failed

_POINTS, _WEIGHTS = (x / 2 for x in np.polynomial.legendre.leggauss(20))
_POINTS = _POINTS + 0.5
# Below it the integrals are exact to rounding, above it nothing cancels in the closed forms.
_LARGE = 2.0
_HALVINGS = 100


@pytree
class SuccessGain:
    """What :func:`success_gain` returns; all of shape ``[*batch]``, in reward units if not said.

    Attributes:
        gain: ``J* − J(π_ref) = beta·KL(π_ref‖π*)``, by how much the optimum beats the reference.
        lower: ``min{p(1 − p), p*(1 − p*)}/(2·beta)``, which ``gain`` is never below.
        upper: the largest ``q(1 − q)/(2·beta)`` of any q from p to p*, which it never exceeds.
        second_order: ``p(1 − p)/(2·beta)``, which it tends to as beta grows.
        bound_holds_to: the largest p at which ``second_order`` is a lower bound; from there on to 1
            it is above the gain. A probability below ½.
        success: p*, the target's probability of a right answer.
        best: the reference's probability at which the gain is largest, below ½ and near beta where
            that is small.
        status: :class:`~kltarget.Status` bits; 0 where there is nothing to say.
    """

    gain: Float[Array, "*batch"]
    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    second_order: Float[Array, "*batch"]
    bound_holds_to: Float[Array, "*batch"]
    success: Float[Array, "*batch"]
    best: Float[Array, "*batch"]
    status: Int[Array, "*batch"]

    def raise_if_failed(self) -> Self:
        """These numbers, or an error naming the first failed row.

        Raises:
            ValueError: a row's status has a failure bit.
        """
        raise_if_failed(self.status, "success_gain")
        return self


def success_gain(success: ArrayLike, beta: ArrayLike) -> SuccessGain:
    """How much a question of a given difficulty has to gain, and at which difficulty it is most.

    Of ``max_π E_π[reward] − beta·KL(π‖π_ref)`` with a reward of 1 for right answers and 0 for wrong
    ones, by how probable the reference makes a right answer, p. The rewards' size is in beta: for a
    reward of R divide beta by R, and multiply the gain by it. What an answer is made of does not
    matter, as equal rewards keep the reference's proportions.

    Args:
        success: p, the reference's probability of a right answer, from 0 to 1.
        beta: coefficient of the KL in units of the reward of a right answer per nat. Both
            broadcast.

    Returns:
        The gain, its bounds, and the difficulty at which it is largest.

    Raises:
        TypeError: complex numbers.
        ValueError: shapes that do not broadcast; outside a trace a ``success`` that is no
            probability or a ``beta`` that is not above 0 and finite. Under a trace these rows are
            NaN, and ``status`` says why.

    Where p is 0 or 1 there is nothing to gain. Differentiable in both arguments. For another
    divergence the gain is ``solve(Objective(jnp.array([1.0, 0.0]), jnp.log(jnp.stack([p, 1 - p],
    -1)), beta, divergence)).value - p``; to second order all of equal ``beta·f″(1)`` gain the same.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> found = kt.frontier.success_gain(jnp.array([0.02, 0.1, 0.5, 0.9]), 0.1)
        >>> print([f"{x:.3f}" for x in found.gain])
        ['0.589', '0.670', '0.431', '0.089']
        >>> print([f"{x:.3f}" for x in found.success])
        ['0.998', '1.000', '1.000', '1.000']
        >>> print(f"most at {found.best[0]:.3f}")
        most at 0.100

    References:
        Bae et al., "Online Difficulty Filtering for Reasoning Oriented Reinforcement Learning",
        2025, arXiv 2504.03380, who take ``second_order`` for a lower bound at every p. With p_s of
        log-odds ``logit p + s``, ``KL(π_ref‖π*) = ∫₀^{1/beta} (1/beta − s) p_s(1 − p_s) ds``, and
        ``p_s(1 − p_s)`` lies between its values at the ends or rises to ¼ between them.
    """
    given = float_arguments(success=success, beta=beta)
    p, coefficient = given["success"], given["beta"]
    outside, bad = ~((p >= 0) & (p <= 1)), ~((coefficient > 0) & (coefficient < jnp.inf))
    raise_first("success", p, outside, "must be a probability, from 0 to 1")
    raise_first("beta", coefficient, bad, "must be above 0 and finite")
    with worded(f"success of shape {p.shape} and beta of shape {coefficient.shape} do not fit"):
        shape = jnp.broadcast_shapes(p.shape, coefficient.shape)
    return _success_gain(*(jnp.broadcast_to(x, shape) for x in (p, coefficient, outside, bad)))


@jax.jit
def _success_gain(p: Array, beta: Array, outside: Array, bad: Array) -> SuccessGain:
    own = p.dtype
    refused = outside | bad
    p = select(~refused, p.astype(working_dtype(own)), 0.5)
    beta = select(~refused, beta.astype(p.dtype), 1.0)
    shift = 1 / beta
    # Of a tilt by the shift, from whichever side loses no digits.
    right = p / (p + (1 - p) * jnp.exp(-shift))
    wrong = (1 - p) * jnp.exp(-shift) / (p + (1 - p) * jnp.exp(-shift))
    right, wrong = select(p > 0, right, 0.0), select(p > 0, wrong, 1.0)
    spread, after = p * (1 - p), right * wrong
    between = (p < 0.5) & (right > 0.5)
    most = select(between, jnp.full_like(p, 0.25), jnp.maximum(spread, after))
    found = {
        "gain": beta * _kl(p, shift),
        "lower": jnp.minimum(spread, after) * shift / 2,
        "upper": most * shift / 2,
        "second_order": spread * shift / 2,
        "bound_holds_to": _bound_holds_to(shift),
        "success": right,
        "best": _best(shift),
    }
    status = flag(bad, Status.INVALID_BETA) | flag(outside, Status.INVALID_REFERENCE)
    numbers = {name: select(~refused, x, jnp.nan).astype(own) for name, x in found.items()}
    return SuccessGain(**numbers, status=status)


def _rule(like: Array) -> tuple[Array, Array]:
    """Points and weights of integrals from 0 to 1, on an axis behind those of an array."""
    points, weights = (jnp.asarray(x, like.dtype) for x in (_POINTS, _WEIGHTS))
    shape = (1,) * like.ndim + points.shape
    return points.reshape(shape), weights.reshape(shape)


def _kl(p: Array, shift: Array) -> Array:
    """``KL(π_ref‖π*) = log(1 − p + p e^shift) − p·shift``."""
    small = shift < _LARGE
    near = select(small, shift, 1.0)
    points, weights = _rule(near)
    odds = (1 - p[..., None]) * jnp.exp(-near[..., None] * points)
    spread = p[..., None] * odds / (p[..., None] + odds) ** 2
    integral = near**2 * (weights * (1 - points) * spread).sum(-1)
    far = select(~small, shift, _LARGE)
    inner = select((p > 0) & (p < 1), p, 0.5)
    # Of p e^shift below 1 and above, neither overflows.
    under = jnp.log(inner) + far < 0
    rare = jnp.log1p(inner * jnp.expm1(select(under, far, 1.0))) - inner * far
    rest = (1 - inner) * jnp.exp(-far)
    usual = far * (1 - inner) + jnp.log(inner + rest)
    likely = far * (1 - inner) + jnp.log1p(-(1 - inner) * -jnp.expm1(-far))
    closed = jnp.where(under, rare, jnp.where(inner < 0.5, usual, likely))
    return select((p > 0) & (p < 1), jnp.where(small, integral, closed), 0.0)


def _best(shift: Array) -> Array:
    """``1/shift − 1/(e^shift − 1)``, the mean on [0, 1] under the density ∝ e^{−shift x}."""
    small = shift < _LARGE
    points, weights = _rule(shift)
    density = weights * jnp.exp(-select(small, shift, 1.0)[..., None] * points)
    near = (points * density).sum(-1) / density.sum(-1)
    far = select(~small, shift, _LARGE)
    return jnp.where(small, near, 1 / far - jnp.exp(-far) / -jnp.expm1(-far))


def _bound_holds_to(shift: Array) -> Array:
    """Where ``KL(π_ref‖π*)`` falls below ``p(1 − p)·shift²/2`` for good as p grows."""

    def half(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        above = _excess(middle, fixed) > 0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    fixed = lax.stop_gradient(shift)
    ends = jnp.zeros_like(shift), jnp.full_like(shift, 0.5)
    root = lax.stop_gradient(lax.fori_loop(0, _HALVINGS, half, ends)[0])
    # One step of Newton's that changes nothing but carries the derivative.
    slope = jax.grad(lambda p: _excess(p, fixed).sum())(root)
    return root - (_excess(root, shift) - _excess(root, fixed)) / slope


def _excess(p: Array, shift: Array) -> Array:
    """``2 KL(π_ref‖π*)/(p(1 − p) shift²) − 1``, without cancelling for small shifts."""
    small = shift < _LARGE
    points, weights = _rule(shift)
    q = p[..., None]
    # p_s(1 − p_s)/(p(1 − p)) is e^s/(1 + p(e^s − 1))².
    grown = jnp.expm1(select(small, shift, 1.0)[..., None] * points)
    bottom = 1 + q * grown
    ratio = (grown * (1 - 2 * q) - q**2 * grown**2) / bottom**2
    near = 2 * (weights * (1 - points) * ratio).sum(-1)
    far = select(~small, shift, _LARGE)
    inner = jnp.maximum(p, jnp.finfo(p.dtype).tiny)
    return jnp.where(small, near, 2 * _kl(inner, far) / (inner * (1 - inner)) / far / far - 1)
