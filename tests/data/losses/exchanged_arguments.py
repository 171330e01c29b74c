"""A policy loss whose k3 has its arguments exchanged, for a page of the documentation."""

import jax.numpy as jnp


def loss(logp, ref_logp, old_logp, advantages, mask):
    gain = jnp.exp(logp - old_logp) * advantages[:, None]
    log_ratio = ref_logp - logp
    k3 = jnp.exp(-log_ratio) - 1 + log_ratio
    return ((0.01 * k3 - gain) * mask).sum() / mask.sum()
