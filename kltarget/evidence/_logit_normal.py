"""Success rates whose log-odds are normal over the prompts, given how often each was solved.

On a grid of log-odds, for its integrals have no closed form.
"""

from __future__ import annotations

import numpy as np

_NODES = np.linspace(-30.0, 20.0, 501)
_SPACING = _NODES[1] - _NODES[0]


def log_marginals(normals: np.ndarray, correct: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Log-probabilities of pairs of counts, in one order of the samples, ``[H, U]``."""
    log_likelihood = _log_likelihood(correct, samples)
    top = log_likelihood.max(1)
    found = normal_masses(normals) @ np.exp(log_likelihood - top[:, None]).T
    with np.errstate(divide="ignore"):
        return np.log(found) + top


def draw_log_odds(
    normals: np.ndarray, correct: np.ndarray, samples: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draws of the log-odds given counts: one of each prompt per mean and deviation, ``[D, K]``."""
    pairs, which = np.unique(np.stack([correct, samples]), axis=1, return_inverse=True)
    which = which.ravel()
    log_likelihood = _log_likelihood(*pairs)
    likelihood = np.exp(log_likelihood - log_likelihood.max(1, keepdims=True))
    different, of_draw = np.unique(normals, axis=0, return_inverse=True)
    found = np.empty((len(normals), len(correct)))
    for at, prior in enumerate(normal_masses(different)):
        rows = np.flatnonzero(of_draw.ravel() == at)
        upto = (likelihood * prior).cumsum(1)
        upto /= upto[:, -1:]
        # One ascending list for all pairs: each has a unit of its own.
        places = upto + np.arange(len(upto))[:, None]
        wanted = rng.uniform(size=(rows.size, which.size)) + which
        at_node = np.searchsorted(places.ravel(), wanted) - which * _NODES.size
        found[rows] = _NODES[np.clip(at_node, 0, _NODES.size - 1)]
    return found + _SPACING * (rng.uniform(size=found.shape) - 0.5)


def normal_masses(normals: np.ndarray, nodes: np.ndarray = _NODES) -> np.ndarray:
    """Shares of evenly spaced log-odds, ``[H, N]``."""
    from scipy.special import ndtr

    # What lies beyond is at the last ones.
    edges = (nodes[1:] + nodes[:-1]) / 2
    below = ndtr((edges - normals[:, :1]) / normals[:, 1:])
    return np.diff(below, axis=1, prepend=0, append=1)


def _log_likelihood(correct: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Of pairs of counts at the nodes, ``[U, N]``."""
    from scipy.special import log_expit

    wrong = (samples - correct)[:, None]
    return correct[:, None] * log_expit(_NODES) + wrong * log_expit(-_NODES)
