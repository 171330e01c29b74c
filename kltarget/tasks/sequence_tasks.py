"""Tasks whose outcomes are all sequences of a space, each with a model trained on a corpus.

A task is the right answers and a corpus: a distribution over all sequences that prefers some right
answers to others and leaves most of its mass to wrong ones, so that what a regulariser does to the
right answers has something to act on. The reference is a small recurrent model fitted to samples
of it; its parameters are shipped, so that everybody has the same one.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
import string
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kltarget._core.numerics import double_precision
from kltarget.spaces import SequenceSpace
from kltarget.tasks._task import Labels, Task, one_mode_each


@dataclasses.dataclass(frozen=True)
class SequenceTask:
    """All that defines a task over sequences but the parameters of its reference.

    Attributes:
        name: the task's name, and the stem of its parameters' file.
        description: one line for a reader who has not seen the problem.
        space: the sequences.
        alphabet: the tokens' characters: one string, or a tuple of one string per position.
        num_right: the number of right answers.
        right: which sequences are right, booleans ``[A]``.
        corpus: the probability of each sequence in the corpus, ``[A]``.
        width: hidden units of the reference.
        num_steps: steps of its training.
    """

    name: str
    description: str
    space: SequenceSpace
    alphabet: str | tuple[str, ...]
    num_right: int
    right: Callable[[], np.ndarray]
    corpus: Callable[[], np.ndarray]
    width: int = 32
    num_steps: int = 4000

    @property
    def num_outcomes(self) -> int:
        """Number of sequences ``A``."""
        return self.space.num_sequences

    @property
    def policy(self) -> Any:
        """The reference's architecture."""
        from kltarget.policies import GRUPolicy

        return GRUPolicy(self.space.vocab_size, self.space.length, width=self.width)


@functools.cache
def load_sequence_task(spec: SequenceTask) -> Task:
    """The task, with the shipped parameters and the probabilities that they give."""
    from kltarget.policies import load_params

    policy = spec.policy
    like = jax.eval_shape(lambda: policy.init(key=jax.random.key(0)))
    data = importlib.resources.files("kltarget") / "data" / f"{spec.name}.npz"
    with jax.ensure_compile_time_eval(), importlib.resources.as_file(data) as path:
        params = load_params(path, like=like)
        # In double precision on the processor: an accelerator may multiply float32 with few bits,
        # and the reference is to be the same everywhere.
        with double_precision(), jax.default_device(jax.local_devices(backend="cpu")[0]):
            wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), params)
            log_ref = np.asarray(spec.space.joint(policy.conditionals(wide, spec.space)))
    right = spec.right()
    fields = ("name", "description", "space", "alphabet")
    return Task(
        **{field: getattr(spec, field) for field in fields},
        log_ref=log_ref,
        reward=right,
        labels=Labels(spec.space, spec.alphabet),
        modes=one_mode_each(right),
        policy=policy,
        params=params,
    )


def word_counts() -> tuple[tuple[str, ...], np.ndarray]:
    """The shipped words and how often they occur."""
    data = importlib.resources.files("kltarget") / "data" / "words.csv"
    rows = csv.DictReader(data.read_text(encoding="utf-8").splitlines())
    words, counts = zip(*((row["word"], int(row["count"])) for row in rows), strict=True)
    return words, np.array(counts)


def _words_of(length: int) -> np.ndarray:
    """How often each string of letters is a word of the list, ``[26**length]``."""
    counts = np.zeros((26,) * length)
    for word, count in zip(*word_counts(), strict=True):
        if len(word) == length:
            counts[tuple(string.ascii_lowercase.index(letter) for letter in word)] = count
    return counts.ravel()


def _misspelt_words(length: int) -> np.ndarray:
    """Words as frequent as in the list; every fourth letter is replaced by one drawn uniformly."""
    probs = _words_of(length).reshape((26,) * length)
    spelling = 0.75 * np.eye(26) + 0.25 / 26
    for _ in range(length):
        # Each product takes the first axis and gives it back as the last.
        probs = np.tensordot(probs, spelling, axes=(0, 0))
    return probs.ravel() / probs.sum()


_EXPRESSIONS = SequenceSpace((9, 3, 9, 3, 9, 3, 9), 7)


def _tokens(space: SequenceSpace) -> list[np.ndarray]:
    """The tokens of all sequences, a small-integer array ``[A]`` per position."""
    shape = space.sizes
    grid = np.ogrid[tuple(map(slice, shape))]
    return [np.broadcast_to(axis.astype(np.int8), shape).ravel() for axis in grid]


def _worth_24() -> np.ndarray:
    """Which expressions have the value 24; × goes before + and −."""
    first, *rest = (x.astype(np.int32) for x in _tokens(_EXPRESSIONS))
    total, term = np.zeros_like(first), first + 1
    for operator, digit in zip(rest[::2], rest[1::2], strict=True):
        times = operator == 2
        total = np.where(times, total, total + term)
        signed = np.where(operator == 1, -(digit + 1), digit + 1)
        term = np.where(times, term * (digit + 1), signed)
    return total + term == 24


def _small_digits() -> np.ndarray:
    """Digits as often as 1/d², + every other time, × every fifth; a fifth is drawn among the right.

    That fifth has the same preferences as the rest.
    """
    digit = 1.0 / np.arange(1, 10) ** 2
    digit = digit / digit.sum()
    sign = np.array([0.5, 0.3, 0.2])
    first, *rest = _tokens(_EXPRESSIONS)
    probs = digit[first]
    for operator, token in zip(rest[::2], rest[1::2], strict=True):
        probs = probs * sign[operator] * digit[token]
    among_right = np.where(_worth_24(), probs, 0.0)
    return 0.8 * probs + 0.2 * among_right / among_right.sum()


_BRACKETS = SequenceSpace(2, 20)


def _balanced() -> np.ndarray:
    """Which strings close what they open: never below depth 0, and there at the end."""
    depth, never_below = np.zeros(_BRACKETS.num_sequences, np.int8), True
    for bracket in _tokens(_BRACKETS):
        depth = depth + (1 - 2 * bracket)
        never_below = never_below & (depth >= 0)
    return never_below & (depth == 0)


def _shallow_walk() -> np.ndarray:
    """A walk that opens with probability 1/(1 + depth), and 19 times in 20 where none is open."""
    depth, probs = np.zeros(_BRACKETS.num_sequences, np.int8), np.ones(_BRACKETS.num_sequences)
    for bracket in _tokens(_BRACKETS):
        opens = np.where(depth > 0, 1 / (1 + np.maximum(depth, 0.0)), 0.95)
        probs *= np.where(bracket == 0, opens, 1 - opens)
        depth = depth + (1 - 2 * bracket)
    return probs / probs.sum()


_NUMBERS = SequenceSpace(10, 6)


def _prime() -> np.ndarray:
    """Which of the numbers below a million are prime, by Eratosthenes' sieve."""
    prime = np.ones(_NUMBERS.num_sequences, bool)
    prime[:2] = False
    for n in range(2, 1001):
        if prime[n]:
            prime[n * n :: n] = False
    return prime


def _log_uniform() -> np.ndarray:
    """Numbers of log-uniform size, the larger the rarer: n as often as log(1 + 1/n)."""
    probs = np.zeros(_NUMBERS.num_sequences)
    probs[1:] = np.log1p(1 / np.arange(1, _NUMBERS.num_sequences))
    return probs / probs.sum()


def _words_task(length: int, in_words: str, num_right: int) -> SequenceTask:
    return SequenceTask(
        name=f"words-{length}",
        description=f"{in_words} letters; right are the words of Python's documentation",
        space=SequenceSpace(26, length),
        alphabet=string.ascii_lowercase,
        num_right=num_right,
        right=lambda: _words_of(length) > 0,
        corpus=lambda: _misspelt_words(length),
    )


SEQUENCE_TASKS: dict[str, SequenceTask] = {
    task.name: task
    for task in (
        _words_task(3, "three", 159),
        _words_task(4, "four", 291),
        SequenceTask(
            name="arithmetic-24",
            description="four digits, three signs of + − ×; right are expressions worth 24",
            space=_EXPRESSIONS,
            alphabet=("123456789", "+−×") * 3 + ("123456789",),
            num_right=1788,
            right=_worth_24,
            corpus=_small_digits,
            num_steps=6000,
        ),
        SequenceTask(
            name="brackets",
            description="twenty brackets; right are strings that close all they open",
            space=_BRACKETS,
            alphabet="()",
            num_right=16_796,
            right=_balanced,
            corpus=_shallow_walk,
            width=12,
        ),
        SequenceTask(
            name="primes",
            description="six digits, smaller numbers more likely; right are primes",
            space=_NUMBERS,
            alphabet="0123456789",
            num_right=78_498,
            right=_prime,
            corpus=_log_uniform,
        ),
    )
}
"""The tasks over sequences by name."""
