"""Newton's method for smooth functions of a few variables, convex or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

Derivatives = tuple[Array, Array, Array, Array]
"""Value, gradient ``[P]``, Hessian ``[P, P]`` and the size that rounding lets the gradient have."""

_STEPS = 500


class Minimum(NamedTuple):
    """Where the descent ended."""

    x: Float[Array, "P"]
    value: Float[Array, ""]
    gradient: Float[Array, "P"]
    hessian: Float[Array, "P P"]
    converged: Bool[Array, ""]


class _State(NamedTuple):
    x: Array
    at: Derivatives
    damping: Array
    steps: Array


def minimise(derivatives: Callable[[Array], Derivatives], start: Float[Array, "P"]) -> Minimum:
    """A local minimum, by steps ``−(|H| + σ‖g‖)⁻¹g`` with σ as small as the descent allows.

    ``|H|`` has the eigenvalues' absolute values, so that saddles are left and not sought; the
    damping vanishes with the gradient, so that convergence is quadratic; where the Hessian vanishes
    steps grow by factors, so that a far minimum behind a plateau is reached.
    """
    huge = float(jnp.finfo(start.dtype).eps) ** -1.0

    def going(state: _State) -> Array:
        _, gradient, _, noise = state.at
        settled = jnp.abs(gradient).max() <= noise
        return ~settled & (state.damping < huge) & (state.steps < _STEPS)

    def step(state: _State) -> _State:
        value, gradient, hessian, _ = state.at
        size = jnp.linalg.norm(gradient)
        bends, axes = jnp.linalg.eigh(hessian)
        slopes = jnp.einsum("ji,j->i", axes, gradient, precision="highest")
        stiffness = jnp.abs(bends) + state.damping * size
        lengths = jnp.where(stiffness > 0, slopes / jnp.where(stiffness > 0, stiffness, 1.0), 0.0)
        x = state.x - jnp.einsum("ij,j->i", axes, lengths, precision="highest")
        at = derivatives(x)
        promised = (slopes * lengths - jnp.abs(bends) * jnp.square(lengths) / 2).sum()
        gained = value - at[0]
        # Close to the minimum values differ by rounding alone and the gradient has to decide.
        rounding = 8 * jnp.finfo(value.dtype).eps * (1 + jnp.abs(value))
        near = (jnp.abs(gained) <= rounding) & (jnp.linalg.norm(at[1]) < size)
        taken = (gained > jnp.maximum(0.01 * promised, rounding)) | near
        good = near | (gained > 0.7 * promised)
        damping = jnp.where(taken, state.damping * jnp.where(good, 0.2, 1.0), state.damping * 8)
        kept = [jnp.where(taken, new, old) for new, old in zip(at, state.at, strict=True)]
        return _State(
            jnp.where(taken, x, state.x),
            (kept[0], kept[1], kept[2], kept[3]),
            jnp.maximum(damping, 1 / huge),
            state.steps + 1,
        )

    first = _State(start, derivatives(start), jnp.ones((), start.dtype), jnp.int32(0))
    last = lax.while_loop(going, step, first)
    value, gradient, hessian, noise = last.at
    converged = jnp.abs(gradient).max() <= 64 * noise
    return Minimum(last.x, value, gradient, hessian, converged)
