"""The condition at one prefix, and the recursion from the last token to the first.

In float64 NumPy: fixed points are searched for by comparing many candidates on the host, and what
they are compared by has to be more accurate than what is reported.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, wrightomega

_BISECTIONS = 100


def stationary(
    gain: np.ndarray,
    cost: np.ndarray,
    log_ref: np.ndarray,
    entropy: np.ndarray,
    forward: bool,
) -> np.ndarray:
    """The π with ``gain − cost·f′(π/π_ref) − entropy·log π`` equal on its support, as ``log π``.

    ``f′`` is ``log u`` for the reverse and ``1 − 1/u`` for the forward KL. Everything is per
    outcome, ``[..., V]``; outcomes without reference mass stay without.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inside = log_ref > -np.inf
        some = inside.any(-1, keepdims=True)
        count = np.maximum(inside.sum(-1, keepdims=True), 1)
        safe_ref = np.where(inside, log_ref, 0.0)

        def log_policy(level: np.ndarray) -> np.ndarray:
            left = gain - level
            if not forward:
                found = (left + cost * safe_ref) / (cost + entropy)
            elif not entropy.any():
                found = np.log(cost) + safe_ref - np.log(cost - left)
            else:
                # cost (1 − π_ref/π) + entropy log π = left, by z = cost π_ref/(entropy π).
                scale = np.log(cost / entropy) + safe_ref
                found = scale - np.log(wrightomega(scale + (cost - left) / entropy))
            return np.where(inside, found, -np.inf)

        def level_where(log_probability: np.ndarray) -> np.ndarray:
            """The level at which an outcome has a probability, where it is highest."""
            ratio = log_probability - safe_ref
            slope = -np.expm1(-ratio) if forward else ratio
            each = gain - cost * slope - entropy * log_probability
            return np.where(inside, each, -np.inf).max(-1, keepdims=True)

        total = np.where(inside, cost + entropy, np.inf)
        if not forward and np.all(~inside | (total == total.min(-1, keepdims=True))):
            found = log_policy(np.zeros_like(count, float))
            return np.where(some, found - logsumexp(found, axis=-1, keepdims=True), -np.inf)

        # One outcome alone has probability 1 at the lower, none has more than 1/V at the upper.
        low = level_where(np.zeros_like(count, float))
        high = level_where(-np.log(count))
        low, high = (np.where(some, x, 0.0) for x in (low, high))
        for _ in range(_BISECTIONS):
            middle = low + (high - low) / 2
            # Inside the bracket no outcome has much more than probability 1.
            more = np.exp(log_policy(middle)).sum(-1, keepdims=True) > 1
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        found = log_policy(high)
        return np.where(some, found - logsumexp(found, axis=-1, keepdims=True), -np.inf)


def over_tree(
    sizes: tuple[int, ...],
    gain: np.ndarray,
    cost: np.ndarray,
    log_ref: np.ndarray,
    entropy: np.ndarray,
    forward: bool,
    charged: bool,
) -> np.ndarray:
    """The policy that is stationary at every prefix, given per sequence ``[..., A]``.

    Sees from a prefix the expected gain below it; ``charged`` also what the cost takes there. Log-
    probabilities of whole sequences, ``[..., A]``.
    """
    gain, cost, entropy, masses = np.broadcast_arrays(gain, cost, entropy, log_ref)
    batch, levels = gain.shape[:-1], []
    for size in sizes[::-1]:
        given = masses.reshape(*masses.shape[:-1], -1, size)
        with np.errstate(divide="ignore", invalid="ignore"):
            masses = logsumexp(given, axis=-1)
            levels.append(np.where(given > -np.inf, given - masses[..., None], -np.inf))
    policy = []
    for given in levels:
        gain, cost, entropy = (x.reshape(given.shape) for x in (gain, cost, entropy))
        found = stationary(gain, cost, given, entropy, forward)
        policy.append(found)
        probs = np.exp(found)
        below = gain
        if charged:
            below = gain - np.where(probs > 0, cost * (found - np.where(probs > 0, given, 0)), 0)
        gain, cost, entropy = (
            np.where(probs > 0, probs * x, 0).sum(-1) for x in (below, cost, entropy)
        )
    total = np.zeros((*batch, 1))
    for found in policy[::-1]:
        total = (total[..., None] + found).reshape(*batch, -1)
    return total
