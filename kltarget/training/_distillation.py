"""Training of Gaussian students by differences of scores, on a line or in a plane."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import positive
from kltarget._core.matrices import inverse_lower, times, transposed
from kltarget._core.numerics import log_sum_exp
from kltarget._core.pytrees import pytree
from kltarget.divergences import Divergence
from kltarget.divergences._score_weight import require_weights
from kltarget.spaces import GaussianMixture
from kltarget.spaces._gaussian_mixture import log_joint, unchecked

_POINTS = {1: 1001, 2: 161}
_REACH = 8.0
_WHOLE_REACH = 6.0
"""How many standard deviations of components, and of whole mixtures, the lattice holds."""

_UNHELD = 0.01
"""How much of a student's mass the lattice may miss, or count twice."""


@pytree
class Distillation:
    """Students that were trained on scores of a target, and what each holds of it.

    Attributes:
        target: q.
        divergences: F of them.
        student: of batch shape ``[F, *batch]``, a row per divergence.
        divergence_value: ``D_f(p, q)`` in nats before each step and after the last,
            ``[num_steps + 1, F, *batch]``.
        covered: the share of each of the target's components that the student has too,
            ``∫ min(p, w_k N_k)/w_k``, ``[F, *batch, K]``.
    """

    target: GaussianMixture
    divergences: tuple[Divergence, ...]
    student: GaussianMixture
    divergence_value: Float[Array, "times F *batch"]
    covered: Float[Array, "F *batch K"]


def distill(
    target: GaussianMixture,
    divergences: Sequence[Divergence],
    start: GaussianMixture,
    *,
    learning_rate: float,
    num_steps: int,
    bounds: ArrayLike | None = None,
    num_points: int | None = None,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam,
) -> Distillation:
    """Trains students towards a target under several divergences, all starts in one program.

    Descends ``D_f(p_θ, q)`` of students ``x = μ_k + L_k z`` in their means and factors, with the
    students' weights fixed, along ``E_z[w(x) (∇ log p − ∇ log q) · ∂x/∂θ]`` with the weights of
    :func:`kltarget.divergences.score_weight`: what f-distill does with a generator of one step.
    Densities, scores and expectations are exact but for a lattice in x.

    Args:
        target: q, on a line or in a plane, without batch axes.
        divergences: of the student from the target, F of them; not total variation.
        start: students before training, of any batch shape.
        learning_rate: what ``optimizer`` is called with.
        num_steps: number of gradient steps.
        bounds: ends of the lattice, ``[d, 2]``. Default: 8 standard deviations of all components
            and 6 of whole mixtures.
        num_points: points of the lattice along each axis, by default 1001 on a line and 161 in a
            plane. A student that is narrower than half their distance is not resolved.
        optimizer: makes an optax transformation from a learning rate.

    Returns:
        The students, their divergences along the way and what they cover.

    Raises:
        TypeError: what is no mixture or no divergence.
        ValueError: shapes that do not fit, values out of range, total variation.

    Divergences are NaN where the lattice does not hold a student's mass to a percent, because it is
    too narrow or has left the bounds. χ² is infinite for students of more than twice the target's
    variance, so start those narrow; Neyman's χ² for students of less than half of it, so start
    those wide. Where the divergence has overflowed, a student stays where it is or becomes NaN.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.training import distill
        >>> target = kt.GaussianMixture(
        ...     jnp.log(jnp.array([0.6, 0.4])),
        ...     [[-3.0], [3.0]],
        ...     [0.5, 0.5],
        ...     covariance_type="spherical",
        ... )
        >>> start = kt.GaussianMixture([0.0], [[1.0]], [1.0], covariance_type="spherical")
        >>> both = kt.ReverseKL(), kt.ForwardKL()
        >>> found = distill(target, both, start, learning_rate=0.05, num_steps=300)
        >>> for divergence, covered in zip(both, found.covered):
        ...     print(divergence.name, [f"{x:.2f}" for x in covered])
        reverse KL ['0.00', '1.00']
        forward KL ['0.46', '0.47']

    References:
        Xu, Nie and Vahdat, "One-step Diffusion Models with f-Divergence Distribution Matching",
        2025, arXiv 2502.15681.
    """
    for name, mixture in (("target", target), ("start", start)):
        if not isinstance(mixture, GaussianMixture):
            raise TypeError(f"{name} must be a GaussianMixture, got {type(mixture).__name__}")
    if target.batch_shape or target.dim not in _POINTS:
        raise ValueError(
            f"target has {target.dim} dimensions and batch shape {target.batch_shape}: give one on "
            "a line or in a plane, without batch axes"
        )
    if start.dim != target.dim:
        raise ValueError(f"start has {start.dim} dimensions and target {target.dim}: give as many")
    if isinstance(divergences, Divergence):
        raise TypeError("divergences must be several, got one: put it in a list")
    divergences = tuple(divergences)
    if not divergences:
        raise ValueError("divergences is empty: give at least one, such as kltarget.ReverseKL()")
    for divergence in divergences:
        require_weights(divergence)
    positive("num_steps", num_steps)
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be above 0, got {learning_rate}")
    count = _POINTS[target.dim] if num_points is None else num_points
    positive("num_points", count, 2)
    box = _box(target, start) if bounds is None else np.asarray(bounds, float)
    if (
        box.shape != (target.dim, 2)
        or not np.isfinite(box).all()
        or not (box[:, 0] < box[:, 1]).all()
    ):
        raise ValueError(
            f"bounds must be {target.dim} finite and increasing pairs [low, high], got {box}"
        )
    dtype = jnp.result_type(target.means.dtype, start.means.dtype)
    axes = [np.linspace(low, high, count) for low, high in box]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, target.dim)
    log_cell = float(np.log((box[:, 1] - box[:, 0]) / (count - 1)).sum())
    target, start = (jax.tree.map(lambda x: x.astype(dtype), m) for m in (target, start))
    lattice = jnp.asarray(points, dtype), jnp.asarray(log_cell, dtype)
    rate = jnp.asarray(learning_rate, dtype)
    fields = start._broadcast()
    student, history, covered = _train(
        target, divergences, fields, lattice, rate, num_steps, optimizer
    )
    return Distillation(target, divergences, student, history, covered)


@functools.partial(jax.jit, static_argnums=(5, 6))
def _train(
    target: GaussianMixture,
    divergences: tuple[Divergence, ...],
    start: tuple[Array, Array, Array],
    lattice: tuple[Array, Array],
    rate: Array,
    num_steps: int,
    optimizer: Any,
) -> tuple[GaussianMixture, Array, Array]:
    points, log_cell = lattice
    log_weights, means, factors = (jnp.broadcast_to(x, (len(divergences), *x.shape)) for x in start)
    lead = log_weights.shape[:-1]
    x = points.reshape(len(points), *(1,) * len(lead), points.shape[-1])
    x = jnp.broadcast_to(x, (len(points), *lead, points.shape[-1]))
    joint_q = log_joint(target, points)
    log_q, pull = log_sum_exp(joint_q)[..., 0], _scores(target, points, joint_q)
    eye = jnp.broadcast_to(jnp.eye(target.dim, dtype=bool), factors.shape)
    below = jnp.broadcast_to(jnp.tril(jnp.ones((target.dim,) * 2, bool), -1), factors.shape)
    method = optimizer(rate)

    def student_of(params: dict[str, Array]) -> GaussianMixture:
        noise = params["noise"]
        factor = jnp.where(eye, jnp.exp(jnp.where(eye, noise, 0.0)), jnp.where(below, noise, 0.0))
        return unchecked(log_weights, params["means"], factor)

    def step(state: Any, _: None) -> tuple[Any, tuple[dict[str, Array], Array]]:
        params, memory = state
        student = student_of(params)
        joint = log_joint(student, x)
        log_p = log_sum_exp(joint)[..., 0]
        log_u = log_p - _over(log_q, log_p)
        values, log_weights = [], []
        for k, divergence in enumerate(divergences):
            row = jnp.moveaxis(log_p[:, k], 0, -1)
            value = divergence(row + log_cell, log_q + log_cell)
            held = jnp.exp(row + log_cell).sum(-1)
            values.append(jnp.where(jnp.abs(held - 1) < _UNHELD, value, jnp.nan))
            log_weights.append(-divergence._log_elasticity(log_u[:, k]))
        # Of one exponent with the mass: a weight by itself may be more than a float holds.
        mass = jnp.exp(joint + log_cell + jnp.stack(log_weights, 1)[..., None])
        apart = _scores(student, x, joint) - _over(pull, x)
        force = mass[..., None] * apart[..., None, :]
        turn = (force[..., :, None] * _noise(student, x)[..., None, :]).sum(0)
        turn = jnp.where(eye, turn * student.cholesky, jnp.where(below, turn, 0.0))
        slopes = {"means": force.sum(0), "noise": turn}
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = method.update(slopes, memory, params)
            return (optax.apply_updates(params, updates), memory), (params, jnp.stack(values))

    scale = jnp.log(jnp.where(eye, factors, 1.0))
    params = {"means": means, "noise": jnp.where(eye, scale, factors)}
    with jax.numpy_dtype_promotion("standard"):
        memory = method.init(params)
    # One round more, of which only what it measures before its step is kept.
    _, (path, history) = lax.scan(step, (params, memory), None, length=num_steps + 1)
    student = student_of(jax.tree.map(lambda x: x[-1], path))
    own = log_sum_exp(log_joint(student, x))
    joint_q = _over(joint_q, own)
    shared = jnp.exp(jnp.minimum(own, joint_q) + log_cell).sum(0)
    weights = jnp.broadcast_to(jnp.exp(target.log_weights), shared.shape)
    known = ~jnp.isnan(history[-1])[..., None]
    return student, history, jnp.where(known, shared / weights, jnp.nan)


def _noise(mixture: GaussianMixture, x: Array) -> Array:
    """The noise ``L⁻¹(x − μ)`` from which each component makes a point, ``[..., K, d]``."""
    lead = jnp.broadcast_shapes(x.shape[:-1], mixture.batch_shape)
    shape = (*lead, mixture.num_components, mixture.dim)
    whiten = jnp.broadcast_to(inverse_lower(mixture.cholesky), (*shape, mixture.dim))
    return times(
        whiten, jnp.broadcast_to(x[..., None, :], shape) - jnp.broadcast_to(mixture.means, shape)
    )


def _scores(mixture: GaussianMixture, x: Array, joint: Array) -> Array:
    """``∇ log p(x)``, of each component ``−L⁻ᵀ`` its noise."""
    share = jnp.exp(joint - log_sum_exp(joint))
    noise = _noise(mixture, x)
    whiten = transposed(inverse_lower(mixture.cholesky))
    pulls = times(jnp.broadcast_to(whiten, (*noise.shape, mixture.dim)), noise)
    return -(share[..., None] * pulls).sum(-2)


def _over(values: Array, like: Array) -> Array:
    """Values of the lattice's points ``[N, …]`` beside those of many students."""
    own = values.shape[1:]
    missing = like.ndim - 1 - len(own)
    return values.reshape(len(values), *(1,) * missing, *own)


def _box(*mixtures: GaussianMixture) -> np.ndarray:
    """Room for every component, and for a student as wide as a whole mixture."""
    ends = []
    for mixture in mixtures:
        means, factors = np.asarray(mixture.means, float), np.asarray(mixture.cholesky, float)
        spread = np.sqrt(np.square(factors).sum(-1))
        center = np.asarray(mixture.mean, float)
        whole = np.sqrt(np.diagonal(np.asarray(mixture.covariance, float), axis1=-2, axis2=-1))
        for middle, reach in ((means, _REACH * spread), (center, _WHOLE_REACH * whole)):
            both = np.stack([middle - reach, middle + reach], -1).reshape(-1, mixture.dim, 2)
            ends.append(np.stack([both[..., 0].min(0), both[..., 1].max(0)], -1))
    low, high = np.stack(ends)[..., 0].min(0), np.stack(ends)[..., 1].max(0)
    return np.stack([low, high], -1)
