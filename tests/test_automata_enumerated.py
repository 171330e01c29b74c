"""Targets over texts against all texts, up to fourteen thousand, one by one in NumPy.

The flat problem has every text as an outcome, the tree of texts a problem at every prefix. Both are
solved here by bisection of what must sum to one: nothing of the library is used, states of an
automaton are not merged, and no prefix shares its answer with another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from oracles import DTYPES, X64

import kltarget as kt
from kltarget.spaces import Automaton, MarkovReference
from kltarget.targets.automata import token_local_on_automaton

STATES = 4


@dataclasses.dataclass(frozen=True)
class Law:
    """A divergence by plain formulas: how far ``f'(u)`` is below ``f'(∞)`` (reverse KL, χ²: 0).

    Attributes:
        drop: that distance for a density ratio given as its logarithm, a decreasing function.
        log_ratio: its inverse.
        f: the generator, for ratios above 0.
        at_zero: ``f(0)``.
        slope: ``f(u)/u`` for large u.
        bounded: whether ``f'`` is.
    """

    divergence: kt.Divergence
    drop: Callable[[np.ndarray], np.ndarray]
    log_ratio: Callable[[np.ndarray], np.ndarray]
    f: Callable[[np.ndarray], np.ndarray]
    at_zero: float
    slope: float

    @property
    def bounded(self) -> bool:
        return np.isfinite(self.slope)


def _clipped(w: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(0.0, 1 - w / 2))


LAWS = {
    "reverse KL": Law(
        kt.ReverseKL(),
        lambda x: -x,
        lambda w: -w,
        lambda u: u * np.log(u) - u + 1,
        1.0,
        np.inf,
    ),
    "forward KL": Law(
        kt.ForwardKL(),
        lambda x: np.exp(-x),
        lambda w: -np.log(w),
        lambda u: u - 1 - np.log(u),
        np.inf,
        1.0,
    ),
    "alpha": Law(
        kt.Alpha(0.5),
        lambda x: 2 * np.exp(-x / 2),
        lambda w: 2 * np.log(2 / w),
        lambda u: 2 * (np.sqrt(u) - 1) ** 2,
        2.0,
        2.0,
    ),
    "chi-squared": Law(
        kt.ChiSquared(),
        lambda x: -2 * np.expm1(x),
        _clipped,
        lambda u: (u - 1) ** 2,
        1.0,
        np.inf,
    ),
    "Jensen-Shannon": Law(
        kt.JensenShannon(),
        lambda x: np.log1p(np.exp(-x)),
        lambda w: -np.log(np.expm1(w)),
        lambda u: u * np.log(u) - (u + 1) * np.log((u + 1) / 2),
        np.log(2),
        np.log(2),
    ),
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """Targets of problems ``[..., A]`` and what they are worth, ``[...]``."""

    log_probs: np.ndarray
    reward: np.ndarray
    divergence: np.ndarray
    condensed: np.ndarray


def solved(reward: np.ndarray, log_ref: np.ndarray, beta: np.ndarray, law: Law) -> Answer:
    """Targets of problems ``[..., A]``, of which each has an outcome that may be and is allowed."""
    reward, log_ref = np.broadcast_arrays(reward, log_ref)
    reference = np.exp(log_ref)
    on = (log_ref > -np.inf) & (reward > -np.inf)
    best = np.where(on, reward, -np.inf).max(-1, keepdims=True)
    below = np.where(on, best - np.where(on, reward, 0.0), 0.0) / beta
    tied = np.where(on & (reward == best), reference, 0.0).sum(-1, keepdims=True)

    def log_ratios(drop: np.ndarray) -> np.ndarray:
        return np.where(on, law.log_ratio(drop + below), -np.inf)

    def total(log_ratio: np.ndarray) -> np.ndarray:
        return (reference * np.exp(log_ratio)).sum(-1, keepdims=True)

    # The best outcome's log-ratio, between what all and what only the best would have.
    low = -np.log(np.where(on, reference, 0.0).sum(-1, keepdims=True)) - 1e-3
    high = -np.log(tied) + 1e-3
    for _ in range(64):
        middle = (low + high) / 2
        enough = total(log_ratios(law.drop(middle))) > 1
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    drop = law.drop((low + high) / 2)
    # What the reference lacks may be better than what it has, where f' is bounded.
    off = np.where(log_ref > -np.inf, -np.inf, reward).max(-1, keepdims=True)
    lead = np.where(off > best, off - np.where(off > best, best, 0.0), 0.0) / beta
    condensed = law.bounded & (lead > drop)
    log_ratio = log_ratios(np.where(condensed, lead, drop))
    share = np.where(condensed, 1 - total(log_ratio), 0.0)
    holders = condensed & (log_ref == -np.inf) & (reward == off)
    each = np.log(np.where(holders, share / np.maximum(holders.sum(-1, keepdims=True), 1), 1.0))
    log_probs = np.where(holders, each, log_ratio + np.where(on, log_ref, 0.0))
    probs, ratio = np.exp(log_probs), np.exp(log_ratio)
    gain = np.where(probs > 0, probs * np.where(probs > 0, reward, 0.0), 0.0).sum(-1)
    some = on & (ratio > 0)
    cost = reference * np.where(some, law.f(np.where(some, ratio, 1.0)), law.at_zero)
    charged = np.where(reference > 0, cost, 0.0).sum(-1)
    if law.bounded:
        charged = charged + law.slope * share[..., 0]
    return Answer(log_probs, gain, charged, condensed[..., 0])


@dataclasses.dataclass(frozen=True)
class Texts:
    """All texts of a problem.

    Attributes:
        tokens: of each text, ``[N, T]``.
        steps: log-probabilities of the next token after each prefix of t tokens, ``[V**t, V]``.
        log_ref: log-probabilities of the texts, ``[N]``.
        finals: the states that they end in, ``[N]``.
    """

    tokens: np.ndarray
    steps: list[np.ndarray]
    log_ref: np.ndarray
    finals: np.ndarray


def enumerated(first: np.ndarray, then: np.ndarray, table: np.ndarray, length: int) -> Texts:
    order, size = first.ndim, then.shape[-1]
    rows = [then]
    for _ in range(order):
        top = np.logaddexp.reduce(first, axis=-1)
        rows.insert(0, first - top[..., None])
        first = top
    tokens = np.indices((size,) * length).reshape(length, -1).T
    finals = np.zeros(len(tokens), int)
    for column in tokens.T:
        finals = table[finals, column]
    steps, log_ref = [], np.zeros(1)
    for t in range(length):
        back = min(t, order)
        context = np.arange(size**t) % size**back
        steps.append(rows[back].reshape(-1, size)[context])
        log_ref = (log_ref[:, None] + steps[-1]).reshape(-1)
    return Texts(tokens, steps, log_ref - np.logaddexp.reduce(log_ref), finals)


def tree_solved(texts: Texts, reward: np.ndarray, beta: np.ndarray, law: Law, full: bool) -> Answer:
    """The fixed point of a per-token loss, a problem at every prefix from the longest to none."""
    values, beta = reward[:, texts.finals], beta[:, None, None]
    here = []
    for steps in reversed(texts.steps):
        values = values.reshape(len(values), *steps.shape)
        empty = ~((values > -np.inf) & (steps > -np.inf)).any(-1)
        # Nobody comes where nothing is allowed: what is said there does not matter.
        answer = solved(np.where(empty[..., None], 0.0, values), steps, beta, law)
        here.insert(0, answer)
        worth = answer.reward - beta[..., 0] * answer.divergence if full else answer.reward
        values = np.where(empty, -np.inf, worth)
    log_probs, charged, condensed = np.zeros((len(beta), 1)), 0.0, False
    for answer in here:
        reach = np.exp(log_probs)
        charged += np.where(reach > 0, reach * answer.divergence, 0.0).sum(-1)
        condensed |= (answer.condensed & (reach > 0)).any(-1)
        log_probs = (log_probs[..., None] + answer.log_probs).reshape(len(beta), -1)
    probs = np.exp(log_probs)
    each = np.where(probs > 0, reward[:, texts.finals], 0.0)
    return Answer(log_probs, (probs * each).sum(-1), charged, condensed)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What the library is given, and all its texts with rewards and β in 64 bits."""

    given: tuple[Any, ...]
    texts: Texts
    reward: np.ndarray
    beta: np.ndarray


def reached(table: np.ndarray, order: int) -> int:
    """How many pairs of the last tokens and a state texts lead to, with the beginning."""
    found: set[tuple[tuple[int, ...], int]] = {((), 0)}
    fresh = [*found]
    while fresh:
        last, state = fresh.pop()
        for token, after in enumerate(table[state].tolist()):
            node = (*last, token)[-order:], after
            if node not in found:
                found.add(node)
                fresh.append(node)
    return len(found)


def random_automaton(rng: Any, size: int, order: int) -> np.ndarray:
    """A table of as many reached pairs as many have: automata of one number share programs."""
    number = 1 + round(2.6 * size) if order == 1 else 23
    while reached(table := rng.integers(STATES, size=(STATES, size)), order) != number:
        pass
    return table


def random_problem(seed: int, zeros: float, size: int, order: int, length: int) -> Problem:
    """Rewards tie and forbid states, and the reference has zeros in its beginning and later."""
    rng = np.random.default_rng(seed)
    dtype = DTYPES[0]

    def rows(number: int, some: float) -> np.ndarray:
        probs = np.maximum(rng.dirichlet(np.full(size, 0.7), size=number), 1e-6)
        gone = rng.uniform(size=probs.shape) < some
        gone[np.arange(number), rng.integers(size, size=number)] = False
        probs = np.where(gone, 0.0, probs)
        with np.errstate(divide="ignore"):
            return np.log(probs / probs.sum(-1, keepdims=True))

    first = rows(1, zeros if order == 1 else 0.0)[0]
    if order == 2:
        # What follows an impossible beginning is nobody's.
        first = first[:, None] + rows(size, 0.0)
    then = rows(size**order, zeros).reshape((size,) * (order + 1))
    first, then, table = first.astype(dtype), then.astype(dtype), random_automaton(rng, size, order)
    levels = np.array([0.0, 1.0, 0.5, rng.normal(), -np.inf])
    reward = levels[rng.integers(5, size=(2, STATES))].astype(dtype)
    beta = np.exp(rng.uniform(np.log(0.1), np.log(5), size=2)).astype(dtype)
    texts = enumerated(first.astype(np.float64), then.astype(np.float64), table, length)
    allowed = np.unique(texts.finals[texts.log_ref > -np.inf])
    for row in reward:
        if np.isneginf(row[allowed]).all():
            row[allowed[0]] = 1.0
    given = (MarkovReference(first, then), Automaton(table), reward, beta)
    return Problem(given, texts, reward.astype(np.float64), beta.astype(np.float64))


def close(found: Any, wanted: np.ndarray, what: str) -> None:
    """Within 32 roundings in 32 bits and 1e-12 in 64; ``-inf`` where ``-inf`` is."""
    bar = 1e-12 if X64 else 32 * float(np.finfo(np.float32).eps)
    found, wanted = np.broadcast_arrays(np.asarray(found, np.float64), wanted)
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(wanted), err_msg=what)
    np.testing.assert_array_equal(np.isposinf(found), np.isposinf(wanted), err_msg=what)
    known = np.isfinite(wanted)
    error = np.abs(found[known] - wanted[known]) / (1 + np.abs(wanted[known]))
    assert not np.isnan(error).any(), what
    assert error.max(initial=0.0) <= bar, f"{what}: {error.max():.3g} against {bar:.3g}"


def by_position(probs: np.ndarray, size: int, length: int) -> np.ndarray:
    """How likely each token is at each position, ``[B, T, V]``."""
    cubes = (probs.reshape(len(probs), size**t, size, -1).sum((1, 3)) for t in range(length))
    return np.stack(list(cubes), axis=1)


def by_state(probs: np.ndarray, texts: Texts) -> np.ndarray:
    return np.stack([np.bincount(texts.finals, p, minlength=STATES) for p in probs])


def entropy_of(log_probs: np.ndarray) -> np.ndarray:
    probs = np.exp(log_probs)
    return -np.where(probs > 0, probs * np.where(probs > 0, log_probs, 0.0), 0.0).sum(-1)


def after_prefix(probs: np.ndarray, prefix: int, size: int) -> np.ndarray:
    """Log-probabilities of the third token after a prefix of two, by its number."""
    shares = probs.reshape(len(probs), size**2, size, -1).sum(-1)[:, prefix]
    with np.errstate(divide="ignore"):
        return np.log(shares) - np.log(shares.sum(-1, keepdims=True))


draws = hypothesis.given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3]))


@pytest.mark.precise
@pytest.mark.slow
@pytest.mark.parametrize(("size", "length", "order"), [(2, 12, 1), (3, 8, 2), (46, 3, 1)])
@draws
@hypothesis.settings(max_examples=3)
def test_texts(size, length, order, seed, zeros):
    problem = random_problem(seed, zeros, size, order, length)
    texts = problem.texts
    each, beta = problem.reward[:, texts.finals], problem.beta[:, None]
    for name, law in LAWS.items():
        with np.errstate(all="ignore"):
            wanted = solved(each, texts.log_ref, beta, law)
        target = kt.solve_on_automaton(*problem.given, law.divergence, length=length)
        condensed = (np.asarray(target.status) & int(kt.Status.CONDENSED)) > 0
        np.testing.assert_array_equal(condensed, wanted.condensed)
        probs = np.exp(wanted.log_probs)
        close(target.states.probs, by_state(probs, texts), f"{name}: states")
        close(target.expected_reward, wanted.reward, f"{name}: expected_reward")
        close(target.divergence_value, wanted.divergence, f"{name}: divergence_value")
        worth = wanted.reward - problem.beta * wanted.divergence
        close(target.value, worth, f"{name}: value")
        # Of texts that only the target has, no more than their states is known.
        known = ~(condensed[:, None] & (texts.log_ref == -np.inf))
        found = np.where(known, target.log_prob(texts.tokens), 0.0)
        close(found, np.where(known, wanted.log_probs, 0.0), f"{name}: log_prob")
        if condensed.any():
            continue
        close(target.entropy, entropy_of(wanted.log_probs), f"{name}: entropy")
        close(target.marginals(), by_position(probs, size, length), f"{name}: marginals")
        best = int(wanted.log_probs[0].argmax())
        given = after_prefix(probs[:1], best // size ** (length - 2), size)
        close(target.conditionals(texts.tokens[best, :2])[:1], given, f"{name}: conditionals")
        _, scores = target.likeliest(4)
        close(scores, -np.sort(-wanted.log_probs, axis=-1)[:, :4], f"{name}: likeliest")


TREES = {
    "reverse KL": (24, 3, 1, False),
    "forward KL": (3, 8, 2, False),
    "alpha": (10, 5, 1, True),
    "chi-squared": (3, 8, 2, False),
    "Jensen-Shannon": (3, 8, 2, True),
}


@pytest.mark.precise
@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
@draws
@hypothesis.settings(max_examples=2)
def test_fixed_points_of_per_token_losses(name, seed, zeros):
    size, length, order, full = TREES[name]
    law, problem = LAWS[name], random_problem(seed, zeros, size, order, length)
    texts = problem.texts
    with np.errstate(all="ignore"):
        wanted = tree_solved(texts, problem.reward, problem.beta, law, full)
    found = token_local_on_automaton(
        *problem.given, law.divergence, length=length, full_gradient=full
    ).raise_if_failed()
    condensed = (np.asarray(found.status) & int(kt.Status.CONDENSED)) > 0
    np.testing.assert_array_equal(condensed, wanted.condensed)
    probs = np.exp(wanted.log_probs)
    # Of so many texts as take no time: sums over all of them follow.
    some = np.random.default_rng(seed).integers(len(texts.tokens), size=600)
    close(found.log_prob(texts.tokens[some]), wanted.log_probs[:, some], "log_prob")
    close(found.expected_reward, wanted.reward, "expected_reward")
    close(found.state_probs, by_state(probs, texts), "state_probs")
    close(found.state_marginals()[:, -1], by_state(probs, texts), "state_marginals")
    close(found.divergence_value, wanted.divergence, "divergence_value")
    worth = wanted.reward - problem.beta * wanted.divergence
    close(found.objective_value, worth, "objective_value")
    close(found.entropy, entropy_of(wanted.log_probs), "entropy")
    close(found.marginals(), by_position(probs, size, length), "marginals")
    best = int(wanted.log_probs[0].argmax())
    given = after_prefix(probs[:1], best // size ** (length - 2), size)
    close(found.conditionals(texts.tokens[best, :2])[:1], given, "conditionals")
