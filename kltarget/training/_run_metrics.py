"""What is measured of a run whose outcomes are listed, and what a bar shows of it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kltarget.divergences import Divergence, kl


def metrics_of(num_modes: int, log_probs: Array, facts: Any) -> dict[str, Array]:
    """The numbers of a history, from log-probabilities ``[A]``; KLs and entropies in nats."""
    log_ref = facts["log_ref"].astype(log_probs.dtype)
    possible, reward = facts["possible"], facts["reward"]
    probs = jnp.exp(log_probs)
    modes = facts["modes"]
    if modes is None:
        masses = probs
    else:
        inside = jnp.where(modes >= 0, probs, jnp.zeros_like(probs))
        masses = jnp.zeros(num_modes, probs.dtype).at[modes].add(inside, mode="drop")
        masses = masses / masses.sum()
    entropy = _entropy(probs)
    if facts["log_measure"] is not None:
        entropy = entropy + jnp.sum(probs * facts["log_measure"])
    metrics = {
        "expected_reward": jnp.sum(probs * reward),
        "reverse_kl": kl(log_probs, log_ref),
        "forward_kl": kl(log_ref, log_probs),
        "entropy": entropy,
        "effective_modes": jnp.exp(_entropy(masses)),
    }
    gain = reward * facts["reward_scale"]
    divergence: Divergence | None = facts["divergence"]
    if divergence is not None:
        cost = facts["beta"] * divergence._slope(log_probs, log_ref)
        gain = gain - jnp.where(facts["beta"] == 0, jnp.zeros_like(cost), cost)
    best = jnp.max(jnp.where(possible, gain, -jnp.inf))
    missing = jnp.where(probs > 0, best - gain, jnp.zeros_like(gain))
    metrics["gap"] = jnp.sum(probs * missing)
    return metrics


def _entropy(probs: Array) -> Array:
    present = probs > 0
    log_probs = jnp.log(jnp.where(present, probs, jnp.ones_like(probs)))
    return -jnp.sum(probs * log_probs)


def show_progress(bar: Any, num_steps: int, numbers: dict[str, Any]) -> None:
    """Moves a bar on and shows means over the runs where they are finite."""
    if bar.disable:
        return
    shown = {}
    for name, x in numbers.items():
        finite = np.asarray(x)[np.isfinite(x)]
        shown[name] = f"{finite.mean():.4g}" if finite.size else "nan"
    bar.set_postfix(shown, refresh=False)
    bar.update(num_steps)


def shown_of_runs(measured: list[dict[str, Array]]) -> dict[str, Array]:
    """What a progress bar says of training, as far as it has been measured."""
    return {
        label: metrics[name]
        for metrics in measured[-1:]
        for label, name in (("reward", "expected_reward"), ("KL", "reverse_kl"))
        if name in metrics
    }
