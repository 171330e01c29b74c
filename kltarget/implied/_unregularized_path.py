"""Where exact policy gradients go when nothing regularises them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.numerics import as_float
from kltarget.implied._fixed_points import crossing


def unregularized_path(
    reward: ArrayLike, log_ref: ArrayLike, failure_mass: float
) -> Float[Array, "A"]:
    """The policy that unregularised training has become when only so much failure is left.

    Exact policy gradient on the logits θ of a softmax, for ``max E_π[reward]`` with two different
    rewards, moves them by ``θ̇_i = π_i A`` with one advantage A for all successes and one for all
    failures. So ``e^(−θ_i) − e^(−θ_j)`` stays what it was for any two successes, and for any two
    failures, as does ``Σθ``. From ``θ = log π_ref`` this leaves one policy for every failure mass:
    of two successes the likelier gains without bound, ``π_1/π_2 = 1 + C e^(θ_1)`` with ``C =
    1/π_ref,2 − 1/π_ref,1``. Every learning rate that is small enough ends in full collapse on the
    likeliest success, without any sampling noise. (Natural gradients, ``θ̇_i = A``, keep all
    ratios.)

    Args:
        reward: of every outcome, of two different values, shape ``[A]``.
        log_ref: log-probabilities of the reference, from which training starts, ``[A]``.
        failure_mass: probability of all failures together, above 0 and at most the reference's.

    Returns:
        Log-probabilities of shape ``[A]``; ``-inf`` where the reference has no mass.

    Raises:
        ValueError: not one prompt, not two rewards, or a failure mass out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.implied import unregularized_path
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> path = jnp.exp(unregularized_path(jnp.array([1.0, 1.0, 0.0]), log_ref, 0.01))
        >>> print(f"{path[0] / path[1]:.1f} : 1, from 15 : 1")
        203.6 : 1, from 15 : 1

    References:
        Mei et al., "On the Global Convergence Rates of Softmax Policy Gradient Methods", 2020,
        arXiv 2005.06392 (the flow). The conserved quantities follow by differentiating them.
    """
    given, reference = as_float(reward), as_float(log_ref)
    if given.ndim != 1 or given.shape != reference.shape:
        raise ValueError(
            f"reward and log_ref must be of one prompt, [A] each, got {given.shape} and "
            f"{reference.shape}"
        )
    dtype = reference.dtype
    rewards, logs = np.asarray(given, np.float64), np.asarray(reference, np.float64)
    possible = logs > -np.inf
    levels = np.unique(rewards[possible])
    if levels.size != 2:
        raise ValueError(f"reward must have two different values, got {levels.size}")
    logs = logs - np.logaddexp.reduce(logs)
    good, bad = possible & (rewards == levels[1]), possible & (rewards == levels[0])
    start = np.exp(logs[bad]).sum()
    # The mass may have been summed in the inputs' precision.
    if not 0 < failure_mass <= start * (1 + 1e-6):
        raise ValueError(
            f"failure_mass must be above 0 and at most the reference's {start:.6g}, "
            f"got {failure_mass}"
        )
    inverse = np.exp(-logs, where=possible, out=np.ones_like(logs))
    least = inverse[good].min()

    def logits(left: float) -> np.ndarray:
        """θ, where the likeliest success has ``e^(−θ) = e^left``."""
        theta = np.full_like(logs, -np.inf)
        theta[good] = -np.log(inverse[good] - least + np.exp(left))
        gained = max(float((theta[good] - logs[good]).sum()), 0.0)

        def lost(raised: float) -> float:
            return float((np.log(inverse[bad] + np.expm1(raised)) + logs[bad]).sum() - gained)

        most = gained + np.log(inverse[bad].max()) + 1
        raised = crossing(lost, 0.0, most) if gained else 0.0
        theta[bad] = -np.log(inverse[bad] + np.expm1(raised))
        return theta

    def failures(left: float) -> float:
        theta = logits(left)
        odds = np.logaddexp.reduce(theta[bad]) - np.logaddexp.reduce(theta[good])
        return float(odds - np.log(failure_mass / (1 - failure_mass)))

    top = float(np.log(least))
    if failures(top) <= 0:
        return jnp.asarray(logs, dtype)
    bottom = top - 1.0
    while failures(bottom) > 0:
        bottom = top - 2 * (top - bottom)
    theta = logits(crossing(failures, bottom, top))
    return jnp.asarray(theta - np.logaddexp.reduce(theta), dtype)
