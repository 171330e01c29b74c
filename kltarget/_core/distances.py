"""Numbers that compare a policy with a target, in NumPy's double precision."""

from __future__ import annotations

from typing import Any

import numpy as np

TARGETS = {
    "sequence_reverse": "sequence reverse KL",
    "sequence_forward": "sequence forward KL",
    "token_reverse": "token-local reverse KL",
    "token_forward": "token-local forward KL",
}


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
    return float((p[inside] * (log_p[inside] - log_q[inside])).sum())


def mode_masses(log_probs: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """Probability of every mode, `[M]`; sequences in no mode carry a negative label."""
    inside = modes >= 0
    return np.bincount(modes[inside], np.exp(log_probs[inside]), minlength=modes.max() + 1)


def effective(masses: np.ndarray) -> float:
    """``exp`` of the entropy of the modes' shares."""
    share = masses[masses > 0] / masses.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
