"""The condition at one prefix, and the recursion from the last token to the first.

In float64 NumPy: fixed points are searched for by comparing many candidates on the host, and what
they are compared by has to be more accurate than what is reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy.special import logsumexp, wrightomega

from kltarget.implied._slopes import Slope
from kltarget.spaces import Branches

Rule = Literal["reverse", "forward"] | Slope
"""Which f′ a regulariser has."""

_BISECTIONS = 100
_ROUNDING = 1e-13
"""Levels of equal outcomes may differ by this much."""
_LEAST_TAUGHT = -300.0


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A second policy that is charged for, ``[..., V]`` each.

    Attributes:
        log_probs: of the teacher.
        cost: coefficient; 0 where the teacher is not asked.
        rule: ``"reverse"`` or ``"forward"``.
        top_k: how many of its likeliest tokens are asked about at each prefix; None for all.
        onward: whether a token pays for what is charged to those that follow it.
    """

    log_probs: np.ndarray
    cost: np.ndarray
    rule: Literal["reverse", "forward"]
    top_k: int | None = None
    onward: bool = False

    def at_prefix(self) -> Teacher:
        """Nothing charged for but the likeliest of the next tokens that these are."""
        if self.top_k is None:
            return self
        # Of equally likely tokens the first, as a sort that keeps the order does.
        order = np.argsort(-self.log_probs, axis=-1, kind="stable")
        rank = np.argsort(order, axis=-1, kind="stable")
        return dataclasses.replace(self, cost=np.where(rank < self.top_k, self.cost, 0.0))


def stationary(
    gain: np.ndarray,
    cost: np.ndarray,
    log_ref: np.ndarray,
    entropy: np.ndarray,
    rule: Rule,
    teacher: Teacher | None = None,
) -> np.ndarray:
    """The π with ``gain − cost·f′(π/π_ref) − entropy·log π`` equal on its support, as ``log π``.

    ``f′`` is ``log u`` for the reverse and ``1 − 1/u`` for the forward KL, or a :class:`Slope`.
    Everything is per outcome, ``[..., V]``; outcomes without reference mass stay without.
    """
    if teacher is not None:
        gain, cost, log_ref, entropy, rule = _taught(gain, cost, log_ref, entropy, rule, teacher)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inside = log_ref > -np.inf
        gain, cost, entropy, log_ref = np.broadcast_arrays(gain, cost, entropy, log_ref)
        log_ref = np.where(inside, log_ref, 0.0)
        numbers = (inside, gain, cost, log_ref, entropy)
        if isinstance(rule, Slope):
            found = _sloped(*numbers, rule)
        elif rule == "reverse":
            found = _tilted(*numbers)
        else:
            found = _hyperbolic_and_tilted(*numbers) if entropy.any() else _hyperbolic(*numbers)
        found = np.where(inside, found, -np.inf)
        some = inside.any(-1, keepdims=True)
        return np.where(some, found - logsumexp(found, axis=-1, keepdims=True), -np.inf)


def slope(rule: Rule, log_ratio: np.ndarray) -> np.ndarray:
    """``f′`` at log ratios, up to a constant."""
    if isinstance(rule, Slope):
        return rule.height(log_ratio)
    return log_ratio if rule == "reverse" else -np.exp(-log_ratio)


def _taught(
    gain: np.ndarray,
    cost: np.ndarray,
    log_ref: np.ndarray,
    entropy: np.ndarray,
    rule: Rule,
    teacher: Teacher,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Rule]:
    """The same condition without the teacher.

    What it charges is ``log π − log T`` or ``1 − T/π``: every sum of such terms is one tilt and one
    hyperbola.
    """
    own, told = teacher.cost, teacher.log_probs
    if teacher.rule == "reverse":
        asked = own > 0
        known = np.where(asked & (told > -np.inf), told, 0.0)
        # Over all outcomes the 1 in the derivative of π log π/T is a constant.
        gain = gain + own * (known - (teacher.top_k is not None))
        log_ref = np.where(asked & (told == -np.inf), -np.inf, log_ref)
        return gain, cost, log_ref, entropy + own, rule
    inside, told = log_ref > -np.inf, np.maximum(told, _LEAST_TAUGHT)
    # Over all outcomes the 1 in 1 − T/π is a constant.
    gain = gain + own * (teacher.top_k is not None)
    if rule == "forward":
        with np.errstate(divide="ignore"):
            mixed = np.logaddexp(np.log(cost) + log_ref, np.log(own) + told) - np.log(cost + own)
        return gain, cost + own, np.where(inside, mixed, -np.inf), entropy, rule
    gain = gain + cost * np.where(inside, log_ref, 0.0)
    return gain, own + 0 * cost, np.where(inside, told, -np.inf), entropy + cost, "forward"


def _unknown_end(
    gain: np.ndarray,
    cost: np.ndarray,
    log_ref: np.ndarray,
    entropy: np.ndarray,
    rule: Rule,
    eos: int,
) -> np.ndarray:
    """The stationary π of a loss that is a sum over all tokens but ``eos``.

    ``gain − cost·f′`` is then not only equal but 0 for them, as long as that leaves mass for
    ``eos``; otherwise it dies out.
    """
    ends = np.arange(log_ref.shape[-1]) == eos
    others = np.where(ends, -np.inf, log_ref)
    alone = stationary(gain, cost, others, entropy, rule)
    some = others > -np.inf
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if isinstance(rule, Slope):
            free = others + rule.log_ratio(gain / cost, np.zeros_like(gain))
        elif rule == "forward":
            free = np.where(cost > gain, others + np.log(cost) - np.log(cost - gain), np.inf)
        else:
            free = others + gain / cost
        free = np.where(some, free, -np.inf)
        used = np.exp(free).sum(-1, keepdims=True)
        mixed = np.where(ends, np.log1p(-np.minimum(used, 1)), free)
    can_end = (log_ref[..., [eos]] > -np.inf) & (used < 1)
    return np.where(can_end, mixed, alone)


def _tilted(
    inside: np.ndarray, gain: np.ndarray, cost: np.ndarray, log_ref: np.ndarray, entropy: np.ndarray
) -> np.ndarray:
    total = np.where(inside, cost + entropy, 1.0)

    def log_policy(level: np.ndarray) -> np.ndarray:
        return (gain - level + cost * log_ref) / total

    same = np.where(inside, total, np.inf).min(-1, keepdims=True)
    if np.all(~inside | (total == same)):
        return log_policy(np.zeros_like(same))  # up to normalisation
    # One outcome alone has probability 1 at the lower level, none more than 1/V at the upper.
    each = np.where(inside, gain + cost * log_ref, -np.inf)
    crowd = np.log(np.maximum(inside.sum(-1, keepdims=True), 1))
    high = (each + total * crowd).max(-1, keepdims=True)
    return _normalised(log_policy, each.max(-1, keepdims=True), high, inside)


def _sloped(
    inside: np.ndarray,
    gain: np.ndarray,
    cost: np.ndarray,
    log_ref: np.ndarray,
    entropy: np.ndarray,
    slope: Slope,
) -> np.ndarray:
    share = entropy / cost

    def log_policy(level: np.ndarray) -> np.ndarray:
        pulled = (gain - level - entropy * log_ref) / cost
        return log_ref + slope.log_ratio(pulled, share)

    def level_where(log_probability: np.ndarray) -> np.ndarray:
        """The highest level at which an outcome has this probability."""
        each = gain - cost * slope.height(log_probability - log_ref) - entropy * log_probability
        return np.where(inside, each, -np.inf).max(-1, keepdims=True)

    crowd = np.log(np.maximum(inside.sum(-1, keepdims=True), 1))
    low, high = _level(log_policy, level_where(0 * crowd), level_where(-crowd), inside, _ROUNDING)
    found, most = log_policy(high), log_policy(low)
    probs = np.where(inside, np.exp(found), 0.0)
    missing = np.maximum(1 - probs.sum(-1, keepdims=True), 0)
    # Where f′(∞) is finite the best outcome takes what the others leave, at one level.
    endless = inside & (most == np.inf)
    among = np.where(endless, log_ref, -np.inf)
    among = np.exp(among - logsumexp(among, axis=-1, keepdims=True))
    # So does whoever is on another flat piece, as far as it goes.
    rise = np.where(inside, np.exp(most) - probs, 0.0)
    total = rise.sum(-1, keepdims=True)
    part = np.where(total > 0, np.minimum(missing / total, 1), 0.0) * rise
    more = np.where(endless.any(-1, keepdims=True), np.where(endless, missing * among, 0), part)
    return np.where(more > 0, np.log(probs + more), found)


def _hyperbolic(
    inside: np.ndarray, gain: np.ndarray, cost: np.ndarray, log_ref: np.ndarray, entropy: np.ndarray
) -> np.ndarray:
    """``π = cost π_ref/(g + d)`` by the logarithm of g, which may be as small as a mass is."""
    weight = np.where(inside, np.log(cost) + log_ref, -np.inf)
    apart = np.where(inside, cost - gain, np.inf)
    apart = apart - apart.min(-1, keepdims=True)

    def log_policy(log_gap: np.ndarray) -> np.ndarray:
        return weight - np.log(np.exp(log_gap) + apart)

    some = inside.any(-1, keepdims=True)
    crowd = np.log(np.maximum(inside.sum(-1, keepdims=True), 1))
    low = np.where(some, np.where(apart == 0, weight, -np.inf).max(-1, keepdims=True), 0.0)
    high = np.where(some, weight.max(-1, keepdims=True) + crowd, 0.0)
    at, eps = high, np.finfo(high.dtype).eps
    for _ in range(_BISECTIONS):
        probs = np.where(inside, np.exp(log_policy(at)), 0.0)
        total = probs.sum(-1, keepdims=True)
        low, high = np.where(total > 1, at, low), np.where(total > 1, high, at)
        # Newton's step for the logarithm of the total, within the bounds; else half way.
        fall = (probs / (1 + apart * np.exp(-at))).sum(-1, keepdims=True) / total
        newton = at + np.log(total) / fall
        there = ~some | (np.abs(newton - at) <= eps * np.maximum(np.abs(at), 1))
        within = (newton > low) & (newton < high)
        at = np.where(there, at, np.where(within, newton, low + (high - low) / 2))
        if there.all():
            break
    return log_policy(at)


def _hyperbolic_and_tilted(
    inside: np.ndarray, gain: np.ndarray, cost: np.ndarray, log_ref: np.ndarray, entropy: np.ndarray
) -> np.ndarray:
    """``cost (1 − π_ref/π) + entropy log π = gain − level``, by ``z = cost π_ref/(entropy π)``.

    Where one of the two coefficients is 0, by what is left.
    """
    mixed, tilted = (cost > 0) & (entropy > 0), cost == 0
    own, share = np.where(mixed, cost, 1.0), np.where(entropy > 0, entropy, 1.0)
    scale = np.log(own / share) + log_ref

    def log_policy(level: np.ndarray) -> np.ndarray:
        both = scale - np.log(wrightomega(scale + (own - gain + level) / share))
        if mixed.all():
            return both
        alone = np.log(cost) + log_ref - np.log(np.maximum(cost - gain + level, 0.0))
        return np.where(mixed, both, np.where(tilted, (gain - level) / share, alone))

    def level_where(log_probability: np.ndarray) -> np.ndarray:
        """The highest level at which an outcome has this probability."""
        slope = -np.expm1(log_ref - log_probability)
        each = gain - cost * slope - entropy * log_probability
        return np.where(inside, each, -np.inf).max(-1, keepdims=True)

    crowd = np.log(np.maximum(inside.sum(-1, keepdims=True), 1))
    return _normalised(log_policy, level_where(0 * crowd), level_where(-crowd), inside)


def _normalised(
    log_policy: Callable[[np.ndarray], np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    inside: np.ndarray,
) -> np.ndarray:
    """The policy whose probabilities, which fall from ``low`` to ``high``, add up to 1."""
    return log_policy(_level(log_policy, low, high, inside)[1])


def _level(
    log_policy: Callable[[np.ndarray], np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    inside: np.ndarray,
    apart: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The levels between which the probabilities fall from more than 1 to 1 or less.

    ``apart`` is how far apart they are at least, relative to their size.
    """
    some = inside.any(-1, keepdims=True)
    low, high = (np.where(some, x, 0.0) for x in (low, high))
    for _ in range(_BISECTIONS):
        before = low, high
        middle = low + (high - low) / 2
        probs = np.where(inside, np.exp(log_policy(middle)), 0.0)
        more = probs.sum(-1, keepdims=True) > 1
        low, high = np.where(more, middle, low), np.where(more, high, middle)
        if np.array_equal(low, before[0]) and np.array_equal(high, before[1]):
            break
    room = apart * np.maximum(np.abs(high), 1)
    return low - room, high + room


def one_level(size: int) -> Branches:
    """The tree of outcomes that are one token each."""
    every = np.arange(size)
    return Branches((every[None],), (every[:0], every))


def next_tokens(tree: Branches, log_probs: np.ndarray) -> list[np.ndarray]:
    """Log-probabilities of each next token ``[..., nodes, V]``, the last position first."""
    levels, below = [], log_probs[..., tree.leaves[-1]]
    for children, leaves in zip(tree.children[::-1], tree.leaves[-2::-1], strict=True):
        given = _of_children(below, children, -np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            masses = logsumexp(given, axis=-1)
            levels.append(np.where(given > -np.inf, given - masses[..., None], -np.inf))
        below = np.concatenate([masses, log_probs[..., leaves]], -1)
    return levels


def _of_children(values: np.ndarray, children: np.ndarray, missing: float) -> np.ndarray:
    """Values of nodes as those of their parents' choices, ``[..., nodes, V]``."""
    return np.where(children < 0, missing, values[..., children])


def over_tree(
    tree: Branches,
    gain: np.ndarray,
    cost: np.ndarray,
    log_ref: np.ndarray,
    entropy: np.ndarray,
    rule: Rule,
    charged: bool,
    eos: int | None = None,
    teacher: Teacher | None = None,
    among: np.ndarray | None = None,
) -> np.ndarray:
    """The policy that is stationary at every prefix, given per sequence ``[..., A]``.

    The loss knows nothing of the token ``eos``, if there is one. Nothing but what has log-masses
    ``among [A]``, if they are given, is chosen.

    Sees from a prefix the expected gain below it; ``charged`` also what the cost takes there. Log-
    probabilities of whole sequences, ``[..., A]``.
    """
    other = np.zeros_like(entropy) if teacher is None else teacher.cost
    gain, cost, entropy, other, masses = np.broadcast_arrays(gain, cost, entropy, other, log_ref)
    at_leaves, policy = (gain, cost, entropy, other), []
    below = [x[..., tree.leaves[-1]] for x in at_leaves]
    teachers = [None] * len(tree.children)
    if teacher is not None:
        teachers = next_tokens(tree, np.broadcast_to(teacher.log_probs, masses.shape))
    references = next_tokens(tree, masses)
    if among is not None:
        allowed = next_tokens(tree, np.broadcast_to(among, masses.shape))
        pairs = zip(references, allowed, strict=True)
        references = [np.where(some > -np.inf, x, -np.inf) for x, some in pairs]
    levels = zip(references, teachers, tree.children[::-1], tree.leaves[-2::-1], strict=True)
    for given, of_teacher, children, leaves in levels:
        # What has no mass costs nothing that is not 0.
        gain, cost, entropy, other = (_of_children(x, children, 1.0) for x in below)
        if teacher is not None and of_teacher is not None:
            second = dataclasses.replace(teacher, log_probs=of_teacher, cost=other)
            found = stationary(gain, cost, given, entropy, rule, second.at_prefix())
        elif eos is None:
            found = stationary(gain, cost, given, entropy, rule)
        else:
            found = _unknown_end(gain, cost, given, entropy, rule, eos)
        policy.append(found)
        probs = np.exp(found)
        value = gain
        if charged:
            log_ratio = np.where(probs > 0, found, 0) - np.where(probs > 0, given, 0)
            value = gain - cost * log_ratio
        elif teacher is not None and of_teacher is not None and teacher.onward:
            told = np.where(probs > 0, found, 0) - np.where(probs > 0, of_teacher, 0)
            value = gain - other * told
        sums = (np.where(probs > 0, probs * x, 0).sum(-1) for x in (value, cost, entropy, other))
        ended = (x[..., leaves] for x in at_leaves)
        below = [np.concatenate(pair, -1) for pair in zip(sums, ended, strict=True)]
    return _joined(tree, policy, masses.shape)


def token_by_token(
    tree: Branches, change: Callable[..., np.ndarray], *log_probs: np.ndarray
) -> np.ndarray:
    """A policy whose next tokens are a function of those of others, ``[..., A]``.

    >>> import numpy as np
    >>> half = np.log([0.5, 0.5])
    >>> token_by_token(one_level(2), lambda x: 2 * x, half).tolist() == half.tolist()
    True
    """
    policy = []
    for given in zip(*(next_tokens(tree, x) for x in log_probs), strict=True):
        with np.errstate(invalid="ignore"):
            found = np.where(given[0] > -np.inf, change(*given), -np.inf)
            total = logsumexp(found, axis=-1, keepdims=True)
            policy.append(np.where(found > -np.inf, found - total, -np.inf))
    return _joined(tree, policy, log_probs[0].shape)


def _joined(tree: Branches, policy: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Log-probabilities of sequences from those of next tokens, the last position first."""
    total, log_probs = np.zeros((*shape[:-1], 1)), np.empty(shape)
    for found, children, leaves in zip(policy[::-1], tree.children, tree.leaves[1:], strict=True):
        reached = (total[..., : len(children), None] + found)[..., children >= 0]
        total = np.empty_like(reached)
        total[..., children[children >= 0]] = reached
        log_probs[..., leaves] = total[..., total.shape[-1] - len(leaves) :]
    return log_probs
