"""Newton's method for smooth functions of a few variables, convex or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

Derivatives = tuple[Array, Array, Array, Array]
"""Value, gradient ``[P]``, Hessian ``[P, P]`` and the size that rounding lets the gradient have."""


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
    trial: Array
    promised: Array
    damping: Array
    steps: Array


def minimise(
    derivatives: Callable[[Array], Derivatives], start: Float[Array, "P"], *, max_steps: ArrayLike
) -> Minimum:
    """A local minimum, by steps ``−(|H| + σ‖g‖)⁻¹g`` with σ as small as the descent allows.

    ``|H|`` has the eigenvalues' absolute values, so that saddles are left and not sought; the
    damping vanishes with the gradient, so that convergence is quadratic; where the Hessian vanishes
    steps grow by factors, so that a far minimum behind a plateau is reached.
    """
    size, dtype = start.shape[0], start.dtype
    huge = float(jnp.finfo(dtype).eps) ** -1.0

    def going(state: _State) -> Array:
        _, gradient, _, noise = state.at
        settled = jnp.abs(gradient).max() <= noise
        return ~settled & (state.damping < huge) & (state.steps < max_steps)

    def step(state: _State) -> _State:
        # The derivatives are written once, since they are most of what there is to compile.
        at = derivatives(state.trial)
        value, norm = state.at[0], jnp.linalg.norm(state.at[1])
        gained = value - at[0]
        # Close to the minimum values differ by rounding alone and the gradient has to decide.
        rounding = 8 * jnp.finfo(dtype).eps * (1 + jnp.abs(at[0]))
        near = (jnp.abs(gained) <= rounding) & (jnp.linalg.norm(at[1]) < 0.9 * norm)
        first = state.steps == 0
        taken = first | near | (gained > jnp.maximum(0.01 * state.promised, rounding))
        good = ~first & (near | (gained > 0.7 * state.promised))
        damping = state.damping * jnp.where(taken, jnp.where(good, 0.2, 1.0), 8.0)
        damping = jnp.maximum(damping, 1 / huge)
        moves = zip(at, state.at, strict=True)
        value, gradient, hessian, noise = (jnp.where(taken, new, old) for new, old in moves)
        x = jnp.where(taken, state.trial, state.x)
        bends, axes = jnp.linalg.eigh(hessian)
        slopes = jnp.einsum("ji,j->i", axes, gradient, precision="highest")
        stiffness = jnp.abs(bends) + damping * jnp.linalg.norm(gradient)
        lengths = jnp.where(stiffness > 0, slopes / jnp.where(stiffness > 0, stiffness, 1.0), 0.0)
        promised = (slopes * lengths - jnp.abs(bends) * jnp.square(lengths) / 2).sum()
        trial = x - jnp.einsum("ij,j->i", axes, lengths, precision="highest")
        now = (value, gradient, hessian, noise)
        return _State(x, now, trial, promised, damping, state.steps + 1)

    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    nothing = (one * jnp.inf, jnp.full(size, jnp.inf, dtype), jnp.zeros((size, size), dtype), zero)
    first = _State(start, nothing, start, zero, one, jnp.int32(0))
    last = lax.while_loop(going, step, first)
    value, gradient, hessian, noise = last.at
    converged = jnp.abs(gradient).max() <= 64 * noise
    return Minimum(last.x, value, gradient, hessian, converged)
