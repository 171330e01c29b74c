"""Where a reward is largest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax import lax
from jaxtyping import Array

from kltarget.objectives._point_rewards import QuadraticReward

_STARTS = 6


def of_quadratic(reward: QuadraticReward) -> np.ndarray:
    """The maximiser of a quadratic reward, of least norm where there are several.

    Raises:
        ValueError: the reward is unbounded.
    """
    matrix = np.asarray(reward.matrix, np.float64)
    vector = np.asarray(reward.vector, np.float64)
    values, axes = np.linalg.eigh(matrix)
    tiny = 1e-12 * max(np.abs(values).max(), 1e-300)
    flat = np.abs(values) <= tiny
    along = axes.T @ vector
    if (values > tiny).any() or (np.abs(along[flat]) > 1e-12 * np.abs(vector).max()).any():
        raise ValueError(
            "reward is unbounded and the divergence has a finite slope at infinity: a small mass "
            "at ever larger rewards makes the objective as large as one likes; give a reward that "
            "is bounded above, or bounds with truncate=True, which makes them the space"
        )
    return axes @ np.where(flat, 0.0, -along / np.where(flat, 1.0, values))


def search(reward: Callable[[Any], Any], points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The best maximiser in a box ``[d, 2]``, by ascent from the best of ``points`` ``[M, d]``."""
    slopes = jax.jit(jax.value_and_grad(lambda x: reward(x[None])[0]))
    values = np.asarray(reward(jnp.asarray(points)))
    width = box[:, 1] - box[:, 0]

    def downhill(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = slopes(jnp.asarray(box[:, 0] + x * width))
        slope = np.asarray(slope, np.float64) * width
        # A kink has no slope and ends this search; what is found is compared by its reward.
        slope = np.where(np.isfinite(slope), slope, 0.0)
        return (-float(value) if np.isfinite(value) else 1e300), -slope

    ends = [points[i] for i in np.argsort(-values)[:_STARTS]]
    for start in list(ends):
        found = scipy.optimize.minimize(
            downhill,
            (start - box[:, 0]) / width,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, 1.0)] * len(box),
            options={"ftol": 0.0, "gtol": 1e-12},
        )
        ends.append(box[:, 0] + np.clip(found.x, 0, 1) * width)
    at = np.array(ends)
    heights = np.asarray(reward(jnp.asarray(at)))
    best = at[int(np.argmax(heights))]
    stepped = best
    step = jax.jit(lambda x: newton(reward, x))
    for _ in range(3):
        stepped = np.asarray(step(jnp.asarray(stepped)))
    inside = ((stepped >= box[:, 0]) & (stepped <= box[:, 1])).all()
    near = (np.abs(stepped - best) <= 1e-4 * width).all()
    if inside and near and float(reward(jnp.asarray(stepped)[None])[0]) >= np.max(heights):
        return stepped
    return best


def newton(reward: Callable[[Any], Any], place: Array) -> Array:
    """One Newton step to a maximiser, from a place ``[d]`` next to it; none without curvature.

    From the maximiser itself the step is 0 and carries the derivatives of its place.
    """

    def at(x: Array) -> Array:
        return reward(x[None])[0]

    slope, curvature = jax.grad(at)(place), jax.hessian(at)(place)
    eye = jnp.eye(place.shape[0], dtype=place.dtype)
    finite = jnp.isfinite(slope).all() & jnp.isfinite(curvature).all()
    known = lax.stop_gradient(jnp.where(finite, curvature, eye))
    values = jnp.linalg.eigvalsh(known)
    peaked = finite & (values.max() < -1e-6 * jnp.abs(values).max())
    step = jnp.linalg.solve(jnp.where(peaked, curvature, -eye), jnp.where(peaked, slope, 0.0))
    return place - jnp.where(peaked, step, jnp.zeros_like(step))
