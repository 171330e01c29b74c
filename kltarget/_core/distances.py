"""Numbers that compare a policy with a target, in NumPy's double precision."""

from __future__ import annotations

from typing import Any

import numpy as np


def normalised(log_probs: Any) -> np.ndarray:
    """Log-probabilities in float64 without the rounding of their sum."""
    x = np.asarray(log_probs, np.float64)
    with np.errstate(invalid="ignore"):
        return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def total_variation(log_p: np.ndarray, log_q: np.ndarray) -> float:
    """Half the sum of absolute differences."""
    return float(np.abs(np.exp(log_p) - np.exp(log_q)).sum(-1) / 2)


def kl(log_p: np.ndarray, log_q: np.ndarray) -> float:
    """``E_p[log p − log q]`` in nats."""
    p = np.exp(log_p)
    inside = p > 0
    # Rounding makes a divergence of 0 negative.
    return max(float((p[inside] * (log_p[inside] - log_q[inside])).sum()), 0.0)


def mode_masses(log_probs: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """Probability of every mode, ``[M]``; sequences in no mode carry a negative label."""
    inside = modes >= 0
    return np.bincount(modes[inside], np.exp(log_probs[inside]), minlength=modes.max() + 1)


def effective_number(log_masses: np.ndarray) -> float:
    """``exp(entropy)`` of log-masses that need not be normalised; NaN where there are none."""
    present = log_masses[log_masses > -np.inf]
    if not present.size:
        return float("nan")
    share = present - np.logaddexp.reduce(present)
    return float(np.exp(-(np.exp(share) * share).sum()))
