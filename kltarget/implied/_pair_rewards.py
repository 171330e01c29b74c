"""Rewards that explain pairs: Bradley–Terry by maximum likelihood, IPO by least squares."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse
from scipy.sparse import csgraph
from scipy.special import expit

_MOST_STEPS = 1000
_SETTLED = 8 * np.finfo(np.float64).eps


class Fitted(NamedTuple):
    """Rewards of outcomes, and what the pairs leave open.

    Attributes:
        reward: ``[A]``; -inf where an outcome is driven to nothing by what beats it always.
        group: ``[A]``; within a group differences of rewards are determined, between groups not.
            Negative where the reward is -inf.
        unanimous: which pairs ``(winner, loser)`` have no finite difference.
    """

    reward: np.ndarray
    group: np.ndarray
    unanimous: list[tuple[int, int]]


def bradley_terry(wins: np.ndarray) -> Fitted:
    """The rewards with ``Σ_ij wins_ij log σ(r_i − r_j)`` largest, of mean 0 in each group.

    They are finite if and only if everyone in a group that pairs join is reached from everyone else
    along wins. Where that is not so, the likelihood grows for ever as those above move away.
    """
    beats = sparse.csr_matrix(wins)
    _, strong = csgraph.connected_components(beats, connection="strong")
    winners, losers = beats.nonzero()
    apart = strong[winners] != strong[losers]
    unanimous = sorted(zip(winners[apart].tolist(), losers[apart].tolist(), strict=True))
    below = np.zeros(strong.max() + 1, bool)
    below[strong[losers[apart]]] = True
    reward = np.zeros(len(wins))
    for part in np.flatnonzero(~below):
        members = np.flatnonzero(strong == part)
        if members.size > 1:
            reward[members] = _most_likely(wins[np.ix_(members, members)])
    group = np.where(below[strong], -1, strong)
    return Fitted(np.where(group < 0, -np.inf, reward), group, unanimous)


def _most_likely(wins: np.ndarray) -> np.ndarray:
    """Newton's method with steps ``log(1 + δ)/δ``, δ the largest change of a difference.

    With that length no step of a logistic likelihood loses, and near the maximum it is Newton's.
    """
    reward, compared = np.zeros(len(wins)), wins + wins.T
    for _ in range(_MOST_STEPS):
        margin = reward[:, None] - reward[None]
        won, lost = expit(margin), expit(-margin)
        # Both terms are small where a pair is nearly unanimous, and their difference is exact.
        ascent = (wins * lost - wins.T * won).sum(1)
        step = _solved(compared * won * lost, ascent)
        longest = float(np.ptp(step))
        reward = reward + step * (np.log1p(longest) / longest if longest else 1.0)
        if longest <= _SETTLED * (1 + np.ptp(reward)):
            break
    return reward - reward.mean()


def least_squares(wins: np.ndarray) -> Fitted:
    """The rewards with ``Σ wins_ij (r_i − r_j − ½)²`` least, of mean 0 in each group."""
    compared = wins + wins.T
    count, group = csgraph.connected_components(sparse.csr_matrix(compared), directed=False)
    reward = np.zeros(len(wins))
    for part in range(count):
        members = np.flatnonzero(group == part)
        if members.size > 1:
            inside = np.ix_(members, members)
            pull = (wins[inside] - wins.T[inside]).sum(1) / 2
            solved = _solved(compared[inside], pull)
            reward[members] = solved - solved.mean()
    return Fitted(reward, group, [])


def _solved(weights: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """The x with ``Σ_j weights_ij (x_i − x_j) = pull_i``, of which the last is 0."""
    laplacian = np.diag(weights.sum(1)) - weights
    return np.append(linalg.solve(laplacian[:-1, :-1], pull[:-1], assume_a="pos"), 0.0)
