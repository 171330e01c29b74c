"""Where the completions of a prompt part: at their first token alone, or along a tree of tokens.

A KL that is counted per token has a target of its own at every prefix, which differs from that over
whole answers wherever completions part after their first token.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget.spaces import PrefixTree

if TYPE_CHECKING:
    import pandas as pd

# More prefixes take too long, and completions that long never recur.
_MOST_TOKENS = 50_000
# What rounding, of logarithms in float32, leaves of a sum of probabilities or adds to it.
_ROUNDING = 1e-5
_NEARLY_ALL = 0.999
_STEP = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """What a log knows of the tokens of its completions, a row each.

    Attributes:
        number: how many there are, NaN where that is not logged, ``[N]``.
        initial: code of the completion's first character, -1 of an empty one, ``[N]``.
        single: whether it has one character at most, ``[N]``.
        ids: its tokens, None where they are not logged, ``[N]``.
        ref_logps: their log-probabilities by the reference, as many.
    """

    number: np.ndarray
    initial: np.ndarray
    single: np.ndarray
    ids: np.ndarray
    ref_logps: np.ndarray


def tokens_of(table: pd.DataFrame, said: np.ndarray, texts: list[str]) -> Tokens:
    """The tokens of rows that ``read_rollouts`` made, whose completions are ``texts[said]``."""
    size, codes = len(table), {"": -1}
    number = np.full(size, np.nan)
    # Nothing takes no memory.
    ids = ref_logps = np.broadcast_to(np.array(None, object), size)
    if "num_tokens" in table:
        number = table["num_tokens"].to_numpy(np.float64)
    if "tokens" in table and "ref_token_logps" in table:
        ids, ref_logps = (table[name].to_numpy() for name in ("tokens", "ref_token_logps"))
    return Tokens(
        number=number,
        initial=np.array([codes.setdefault(text[:1], len(codes)) for text in texts], np.int32)[
            said
        ],
        single=np.array([len(text) < 2 for text in texts], bool)[said],
        ids=ids,
        ref_logps=ref_logps,
    )


def part_at_once(
    tokens: Tokens, completion: np.ndarray, rows: np.ndarray, seen_mass: float
) -> bool:
    """Whether completions are known to be single choices: to part at their first token.

    Texts say so where nothing is known of tokens: those of one character have but one, and those
    that begin with different characters begin with different tokens. What may follow these is
    certain if there is next to nothing that was not seen.
    """
    number = tokens.number[rows]
    if np.isfinite(number).any():
        return bool((number == 1).all())
    if tokens.single[rows].all():
        return True
    _, once = np.unique(completion[rows], return_index=True)
    initial = tokens.initial[rows[once]]
    return seen_mass > _NEARLY_ALL and len(np.unique(initial)) == len(initial)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTree:
    """The tree of a prompt's completions.

    Attributes:
        space: the completions, and for what else may follow a prefix one sequence that ends there.
        log_ref: log-probabilities of these sequences by the reference, ``[S]``.
        outcome: which of the prompt's outcomes each is, the last for what was not seen, ``[S]``.
        largest_sum: what the logged probabilities of the tokens after a prefix add up to, where
            that is the most; more than 1 by more than rounding is impossible.
    """

    space: PrefixTree
    log_ref: np.ndarray
    outcome: np.ndarray
    largest_sum: float

    def over_outcomes(self, log_probs: np.ndarray, size: int) -> np.ndarray:
        """Log-probabilities of the ``size`` outcomes from those of sequences, ``[..., S]``."""
        total = np.full((*log_probs.shape[:-1], size), -np.inf)
        np.logaddexp.at(total.T, self.outcome, log_probs.T)
        return total


def tree_of(tokens: Tokens, rows: np.ndarray, place: np.ndarray, size: int) -> TokenTree | None:
    """The tree of a prompt's rows, whose answers are ``place``; None where it is not known."""
    ends: dict[tuple[Any, ...], int] = {}
    chance: dict[tuple[Any, ...], float] = {}
    for row, answer in zip(rows.tolist(), place.tolist(), strict=True):
        ids, ref_logps = tokens.ids[row], tokens.ref_logps[row]
        if not isinstance(ids, (list, tuple, np.ndarray)) or not len(ids):
            return None
        sequence = tuple(np.asarray(ids).tolist())
        if sequence in ends:
            continue
        ends[sequence] = answer
        masses = np.exp(np.minimum(ref_logps, 0.0)).tolist()
        for t, mass in enumerate(masses, 1):
            chance.setdefault(sequence[:t], mass)
        if len(chance) > _MOST_TOKENS:
            return None
    if any(sequence[:t] in ends for sequence in ends for t in range(1, len(sequence))):
        # What ends the shorter one is a token that was not logged.
        return None
    below: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for prefix in chance:
        below.setdefault(prefix[:-1], []).append(prefix)
    largest_sum = 0.0
    with np.errstate(divide="ignore"):
        log_prob: dict[tuple[Any, ...], float] = {(): 0.0}
        found = list(ends.items())
        # Prefixes were met in the order of their lengths along each sequence.
        for prefix, children in sorted(below.items(), key=lambda item: len(item[0])):
            seen = sum(chance[child] for child in children)
            largest_sum = max(largest_sum, seen)
            # Logged numbers are rounded: those of all that can follow are made to add up to 1.
            whole = seen if seen >= 1 - _ROUNDING else 1.0
            for child in children:
                log_prob[child] = log_prob[prefix] + float(np.log(chance[child] / whole))
            if seen < 1 - _ROUNDING:
                rest = (*prefix, None)
                log_prob[rest] = log_prob[prefix] + float(np.log1p(-seen))
                found.append((rest, size))
    # Impossible sequences, so that other trees find programs that are compiled already.
    for i in range(-len(found) % _STEP):
        log_prob[("padding", i),] = -np.inf
        found.append(((("padding", i),), size))
    sequences, outcome = zip(*found, strict=True)
    log_ref = np.array([log_prob[sequence] for sequence in sequences])
    return TokenTree(PrefixTree(sequences), log_ref, np.array(outcome), largest_sum)
