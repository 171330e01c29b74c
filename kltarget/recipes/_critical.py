"""The least β at which a group-normalised trainer with a reverse-KL gradient has a target."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

# From where Newton starts, the digits have doubled up to full precision after seven steps.
_STEPS = 12


def critical_beta(p_ref: ArrayLike) -> Any:
    """The critical β of group-std advantages and a reverse-KL gradient, for a binary reward.

    Maximise ``E_π[A] − β KL(π‖π_ref)`` with ``A = (r − mean)/std``, a large group, rewards 0 and 1
    and the regulariser outside of the normalisation (in the loss, say). Below the critical β no
    target but certainty exists: training runs to a success probability of 1 and loses its
    regulariser on the way. Above it there are two fixed points, and from the reference training
    reaches the one with the lower success probability.

    Dividing by the standard deviation ``σ = √(p(1−p))`` multiplies β by σ, so at a fixed point the
    success probability p has ``logit p − logit p_ref = 1/(βσ)``. Solved for β and minimised over p
    that gives ``p_c > ½`` with ``logit p_c − logit p_ref = 2/(2p_c − 1)`` and
    ``β_c = (2p_c − 1)/(2√(p_c(1−p_c)))``. In ``x = logit p_c`` the equation is
    ``x − logit p_ref = 2 coth(x/2)``, whose left side less its right side increases and is concave,
    and ``β_c = sinh(x/2)``. Newton's method from below converges without overshooting; as
    ``coth(x/2)`` is above 1 and above ``2/x``, ``logit p_ref + 2`` and the root of
    ``x − logit p_ref = 4/x`` both are below.

    A finite group of G samples always has a fixed point, but for β below the critical one it is
    next to certainty.

    Args:
        p_ref: success probability of the reference, any shape, each in (0, 1), concrete.

    Returns:
        β_c in units of normalised reward per nat, of the shape of ``p_ref``: a JAX array for a JAX
        array, of NumPy otherwise. Accurate to 1e-10 relative for 64-bit inputs.

    Raises:
        ValueError: ``p_ref`` is outside of (0, 1).

    Example:
        >>> print(f"{critical_beta(0.3):.6f}")
        1.081878
        >>> critical_beta([0.1, 0.5]).round(4)
        array([0.697 , 1.5089])

    References:
        Shao et al., "DeepSeekMath", 2024, arXiv 2402.03300 (group normalisation). Vojnovic and Yun,
        "What is the Alignment Objective of GRPO?", 2025, arXiv 2502.18548 (fixed points).
    """
    p = np.asarray(p_ref)
    dtype = p.dtype if np.issubdtype(p.dtype, np.floating) else np.dtype(float)
    p = p.astype(float)
    outside = ~((p > 0) & (p < 1))
    if outside.any():
        raise ValueError(f"p_ref must be between 0 and 1, exclusive, got {p[outside].flat[0]}")
    logit = np.log(p) - np.log1p(-p)
    root = np.hypot(logit, 4)
    # The positive root of x² − logit·x − 4, without the cancellation of logit + root.
    near_zero = np.where(logit > 0, (logit + root) / 2, 8 / (root - np.minimum(logit, 0)))
    x = np.maximum(near_zero, logit + 2)
    for _ in range(_STEPS):
        x = x - (x - logit - 2 / np.tanh(x / 2)) / (1 + 1 / np.sinh(x / 2) ** 2)
    beta = np.sinh(x / 2).astype(dtype)
    return jnp.asarray(beta) if isinstance(p_ref, jax.Array) else beta[()]
