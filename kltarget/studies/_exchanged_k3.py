"""A loss that was shipped with its arguments in the wrong order."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def exchanged_k3(
    logp: Float[Array, "N T"],
    ref_logp: Float[Array, "N T"],
    old_logp: Float[Array, "N T"],
    advantages: Float[Array, "N"],
    mask: Float[Array, "N T"],
) -> Float[Array, ""]:
    """A policy-gradient loss whose k3 has policy and reference exchanged: it charges half a χ².

    ``−E[(π/π_old)·A − ½ k]`` with ``k = e^ℓ − 1 − ℓ`` and ``ℓ = log π/π_ref``, where k3 is
    ``e^−ℓ − 1 + ℓ``. Under samples of the policy the mean derivative of k is that of
    ``½ χ²(π‖π_ref)``, whose target is linear in the reward and drops outcomes altogether. With the
    coefficient ½ of the loss that is a quarter.

    Args:
        logp: log-probabilities of the sampled tokens by the policy.
        ref_logp: by the reference.
        old_logp: by the policy that sampled.
        advantages: one per sequence.
        mask: 1 for tokens that count.

    Returns:
        The loss, a number.

    Differentiable in ``logp``.

    Example:
        >>> from kltarget import recipes, studies
        >>> print(recipes.divergence_of_loss(studies.exchanged_k3).term)
        0.25 × χ²

    References:
        RLinf, up to 0.3.0, calls ``kl_penalty(ref_logprobs, logprobs)`` in its FSDP actor, where
        the function takes the policy first.
    """
    gain = jnp.exp(logp - old_logp) * advantages[:, None]
    log_ratio = ref_logp - logp  # of the reference to the policy
    k3 = jnp.exp(-log_ratio) - 1 + log_ratio
    return -((gain - 0.5 * k3) * mask).sum() / mask.sum()
