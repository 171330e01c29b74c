"""Losses between a policy and a target that distillation uses, as functions of log-probabilities.

Each takes ``log_policy`` and ``log_target``, ``[A]`` over the same outcomes, and one parameter. It
gives a number that is differentiable in the policy, which :func:`kltarget.training.imitate`
descends.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget.divergences import kl

__all__ = ["kl_mixture", "plackett_luce", "sinkhorn"]


def kl_mixture(
    log_policy: Float[Array, "A"], log_target: Float[Array, "A"], share: ArrayLike
) -> Float[Array, ""]:
    """``share · KL(π‖p) + (1 − share) · KL(p‖π)``: reverse and forward KL, as BD-KD mixes them.

    Args:
        log_policy: log-probabilities π, ``[A]``.
        log_target: log-probabilities p, ``[A]``.
        share: of reverse KL, from 0 to 1.

    Returns:
        The mixture in nats; a KL whose share is 0 does not count where it is infinite.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.training.losses import kl_mixture
        >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> print([f"{kl_mixture(q, p, share):.3f}" for share in (0.0, 0.5, 1.0)])
        ['0.511', '0.439', '0.368']
    """
    share = jnp.asarray(share, log_policy.dtype)
    reverse, forward = kl(log_policy, log_target), kl(log_target, log_policy)
    some = jnp.where(share > 0, share * jnp.where(share > 0, reverse, 0.0), 0.0)
    return some + jnp.where(share < 1, (1 - share) * jnp.where(share < 1, forward, 0.0), 0.0)


def plackett_luce(
    log_policy: Float[Array, "A"], log_target: Float[Array, "A"], temperature: ArrayLike
) -> Float[Array, ""]:
    """How unlikely the target's ranking is where outcomes are chosen by the policy, as in PLD.

    ``−Σ_k α_k log π(y_k | y_k, y_(k+1), …)`` over outcomes in the order of their target masses,
    each chosen among those that are left; ``α ∝ p^{1/temperature}``. There is no minimum: the loss
    falls towards 0 as the policy puts all on the target's likeliest outcome, and all that is left
    on the next. A policy that can hold every ranking is thus driven onto one outcome.

    Args:
        log_policy: log-probabilities π, ``[A]``.
        log_target: log-probabilities p, ``[A]``; outcomes at ``-inf`` are ranked last and count for
            nothing, and what is alike is ranked by its index.
        temperature: of the target's masses as weights, above 0.

    Returns:
        The weighted negative log-likelihood in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.training.losses import plackett_luce
        >>> p = jnp.log(jnp.array([0.6, 0.3, 0.1]))
        >>> sharp = jnp.log(jnp.array([0.98, 0.0196, 0.0004]))
        >>> print(f"{plackett_luce(p, p, 1.0):.3f} {plackett_luce(sharp, p, 1.0):.3f}")
        0.393 0.018

    References:
        Bassam, Zhu and Bian, "PLD: A Choice-Theoretic List-Wise Knowledge Distillation", 2025,
        arXiv 2506.12542; the target's likeliest outcome stands for the true label.
    """
    order = jnp.argsort(-log_target, stable=True)
    ranked = log_policy[order]
    left = lax.cumlogsumexp(ranked, reverse=True)
    weights = jax.nn.softmax(log_target / jnp.asarray(temperature, log_target.dtype))[order]
    return -jnp.where(weights > 0, weights * (ranked - left), 0.0).sum()


def sinkhorn(cost: ArrayLike, *, debiased: bool = True) -> Callable[[Array, Array, Any], Array]:
    """A loss by entropy-regularised optimal transport between the policy and the target.

    ``OT_ε(π, p) = min_P ⟨P, cost⟩ + ε KL(P‖π⊗p)`` over couplings P, by Sinkhorn's iterations, which
    ott-jax does and differentiates implicitly.

    Args:
        cost: of moving mass between outcomes, ``[A, A]``, 0 on the diagonal and symmetric.
        debiased: the Sinkhorn divergence, ``OT_ε(π, p) − ½OT_ε(π, π) − ½OT_ε(p, p)``, which is 0 at
            the target alone. Without, it is the distance itself, which is least at another law,
            narrower than the target.

    Returns:
        The loss, a function of the log-probabilities and ε, in units of the cost.

    Raises:
        ImportError: ott-jax is not installed.
        ValueError: a cost that is not square.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from kltarget.training.losses import sinkhorn
        >>> cost = np.square(np.subtract.outer(np.arange(3.0), np.arange(3.0)))
        >>> loss = sinkhorn(cost)
        >>> p, q = jnp.log(jnp.array([0.8, 0.1, 0.1])), jnp.log(jnp.array([0.1, 0.1, 0.8]))
        >>> print(f"{loss(q, p, 0.1):.1f}")
        2.5

    References:
        Cui et al., "Sinkhorn Distance Minimization for Knowledge Distillation", 2024, arXiv
        2402.17110. Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn
        Divergences", 2018, arXiv 1810.08278 (debiased).
    """
    table = np.asarray(cost, float)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"cost has shape {table.shape}: it needs shape [A, A]")
    try:
        with warnings.catch_warnings():
            # ott-jax asks for a solver that is no longer looked after and is not used here.
            warnings.simplefilter("ignore", DeprecationWarning)
            from ott.geometry.geometry import Geometry  # pyright: ignore[reportMissingImports]
            from ott.problems.linear.linear_problem import LinearProblem  # pyright: ignore[reportMissingImports]
            from ott.solvers.linear.sinkhorn import Sinkhorn  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError('sinkhorn needs ott-jax: pip install "kltarget[transport]"') from None
    # The derivative of the optimum is that at fixed potentials: there is nothing to solve for it.
    solver = Sinkhorn(threshold=1e-3, max_iterations=500, use_danskin=True, implicit_diff=None)

    def transported(one: Array, other: Array, epsilon: Any) -> Any:
        geometry = Geometry(cost_matrix=jnp.asarray(table, one.dtype), epsilon=epsilon)
        return solver(LinearProblem(geometry, jnp.exp(one), jnp.exp(other))).reg_ot_cost

    def loss(log_policy: Array, log_target: Array, epsilon: Any) -> Array:
        epsilon = jnp.asarray(epsilon, log_policy.dtype)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            between = transported(log_policy, log_target, epsilon)
            if not debiased:
                return between
            own = transported(log_policy, log_policy, epsilon)
            return between - own / 2 - transported(log_target, log_target, epsilon) / 2

    return loss
