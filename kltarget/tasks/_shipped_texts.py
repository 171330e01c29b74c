"""The tasks over texts that come with the package, by name."""

from __future__ import annotations

import calendar
import csv
import functools
import importlib.resources
import string
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from kltarget.spaces import Automaton, MarkovReference
from kltarget.tasks._found_by_name import found_by_name
from kltarget.tasks._keywords import KEYWORDS
from kltarget.tasks._text_task import TextTask

_LETTERS = string.ascii_lowercase + " "
_SMOOTHING = 0.1
"""Added to every count, so that no text is impossible and no policy infinitely far from it."""


def text_names() -> tuple[str, ...]:
    """Names that :func:`load_texts` accepts."""
    return tuple(_TEXT_TASKS)


def load_texts(name: str) -> TextTask:
    """The task over texts called ``name``.

    Args:
        name: one of :func:`text_names`.

    Returns:
        The task. It is built once per process.

    Raises:
        ValueError: there is no such task; the message lists the names.

    Example:
        >>> from kltarget import tasks
        >>> task = tasks.load_texts("keywords-64")
        >>> f"{task.num_texts:.1e}", len(task.mode_names)
        ('4.0e+91', 35)
    """
    return found_by_name("task", _TEXT_TASKS, name)


@functools.cache
def _keywords() -> TextTask:
    words = sorted(KEYWORDS)
    automaton = Automaton.from_words([f" {word} " for word in words], _LETTERS, match="which")
    # The names have their spaces, which tells the keyword None from texts with none.
    places = {f" {word} ": i for i, word in enumerate(words)}
    modes = np.array([places.get(name, -1) for name in automaton.names or ()])
    return _task(
        "keywords-64",
        "64 letters and spaces; right texts contain exactly one Python keyword as a word",
        _letters(2),
        automaton,
        modes,
        dict(enumerate(words)),
        64,
    )


# Days on which Python 2.0 and 2.2 to 2.7 and 3.0 to 3.13 were released (PEPs 200, 251, 283, 320,
# 356, 361, 373, 375, 392, 398, 429, 478, 494, 537, 569, 596, 619, 664, 693 and 719).
# fmt: off
_RELEASES = (
    "2000-10-16", "2001-12-21", "2003-07-29", "2004-11-30", "2006-09-19", "2008-10-01",
    "2010-07-03", "2008-12-03", "2009-06-27", "2011-02-20", "2012-09-29", "2014-03-16",
    "2015-09-13", "2016-12-23", "2018-06-27", "2019-10-14", "2020-10-05", "2021-10-04",
    "2022-10-24", "2023-10-02", "2024-10-07",
)
# fmt: on


@functools.cache
def _dates() -> TextTask:
    def step(state: Any, token: int) -> Any:
        """The year so far, or whether it is a leap year, the month and the day's first digit."""
        if state is None:
            return None
        kind, *known = state
        dash = token == 10
        if kind == "year":
            digits, year = known
            if digits == 4:
                return ("month", calendar.isleap(year), -1) if dash else None
            return None if dash else ("year", digits + 1, 10 * year + token)
        if kind == "month":
            leap, first = known
            if first < 0:
                return ("month", leap, token) if token in (0, 1) else None
            month = 10 * first + token
            return ("day", leap, month, -2) if not dash and 1 <= month <= 12 else None
        if kind == "day":
            leap, month, first = known
            if first == -2:
                return ("day", leap, month, -1) if dash else None
            if first == -1:
                return ("day", leap, month, token) if token <= 3 else None
            day, last = 10 * first + token, calendar.monthrange(4 if leap else 1, month)[1]
            return ("date", month) if not dash and 1 <= day <= last else None
        return None

    automaton, states = _explored(("year", 0, 0), step, 11)
    months = np.array([state[1] - 1 if state and state[0] == "date" else -1 for state in states])
    smaller, became = automaton.minimized(months)
    modes = np.zeros(smaller.num_states, int)
    modes[became] = months
    return _task(
        "dates",
        "ten digits and dashes; right are the days of the calendar, modes are months",
        MarkovReference.fit(
            _RELEASES, order=2, smoothing=_SMOOTHING, alphabet=[*string.digits, "-"]
        ),
        smaller,
        modes,
        {i: calendar.month_name[i + 1] for i in range(12)},
        10,
    )


@functools.cache
def _balanced() -> TextTask:
    length = 40

    def step(state: Any, token: int) -> Any:
        """How many brackets are open, and how many were at most."""
        if state is None:
            return None
        now, most = state[0] + 1 - 2 * token, state[1]
        # Deeper than half of the text nothing can be closed again.
        return (now, max(most, now)) if 0 <= now <= length // 2 else None

    automaton, states = _explored((0, 0), step, 2)
    modes = np.array(
        [state[1] - 1 if state and state[0] == 0 < state[1] else -1 for state in states]
    )
    return _task(
        "balanced-40",
        "forty brackets; right texts close all they open, modes are how deep they go",
        _brackets(),
        automaton,
        modes,
        {i: f"depth {i + 1}" for i in range(length // 2)},
        length,
    )


@functools.cache
def _arithmetic() -> TextTask:
    def step(state: Any, token: int) -> Any:
        """The sum so far, and the sign that waits for a digit or the digit that was last."""
        if state is None:
            return None
        total, last = state
        if token >= 9:
            return (total, "+-"[token - 9]) if last not in ("+", "-") else None
        if last not in ("+", "-"):
            return None
        digit = token + 1
        return total + (digit if last == "+" else -digit), digit

    automaton, states = _explored((0, None), step, 11, most=64)
    worth = [s[1] if s and s[0] == 24 and isinstance(s[1], int) else 0 for s in states]
    digit = 1.0 / np.arange(1, 10) ** 2
    counts = np.full((11, 11), _SMOOTHING)
    counts[9:, :9] += 1000 * digit / digit.sum()
    counts[:9, 9:] += np.array([600.0, 400.0])
    first = np.full(11, _SMOOTHING)
    first[9:] += np.array([600.0, 400.0])
    return _task(
        "arithmetic-64",
        "32 digits, a sign before each; right are sums worth 24, modes are their last digit",
        MarkovReference(_log_shares(first), _log_shares(counts), tuple("123456789+-")),
        automaton,
        np.array(worth) - 1,
        {i: f"…{i + 1}" for i in range(9)},
        64,
    )


@functools.cache
def _no_repeats() -> TextTask:
    letters = "etaoinsrh"

    def step(state: Any, token: int) -> Any:
        """Which letters there were."""
        return None if state is None or token in state else state | {token}

    automaton, states = _explored(frozenset(), step, len(letters))
    whole = frozenset(range(len(letters)))
    left = [whole - state if state is not None else whole for state in states]
    return _task(
        "no-repeats",
        "eight of the nine commonest letters; right texts have none twice, modes lack one",
        _letters(1, letters),
        automaton,
        np.array([min(x) if len(x) == 1 else -1 for x in left]),
        {i: f"no {letter}" for i, letter in enumerate(letters)},
        len(letters) - 1,
    )


def _task(
    name: str,
    description: str,
    reference: MarkovReference,
    automaton: Automaton,
    modes: np.ndarray,
    mode_names: dict[int, str],
    length: int,
) -> TextTask:
    """Right are the final states that are in a mode."""
    reward = (modes >= 0).astype(float)
    return TextTask(name, description, reference, automaton, reward, modes, mode_names, length)


def _explored(
    start: Hashable, step: Callable[[Any, int], Any], vocab_size: int, most: int | None = None
) -> tuple[Automaton, list[Any]]:
    """The automaton of a function from states to states, and its states in order.

    With ``most`` tokens what is reached by as many leads nowhere else.
    """
    places: dict[Any, int] = {start: 0}
    queue, rows = deque([(start, 0)]), []
    while queue:
        state, time = queue.popleft()
        row = []
        for token in range(vocab_size):
            after = step(state, token) if most is None or time < most else None
            if after not in places:
                places[after] = len(places)
                queue.append((after, time + 1))
            row.append(places[after])
        rows.append(row)
    return Automaton(np.array(rows)), list(places)


def _letters(order: int, alphabet: str = _LETTERS) -> MarkovReference:
    """A model of the shipped counts of letters, of those of an alphabet alone."""
    data = importlib.resources.files("kltarget") / "data" / "letters.csv"
    counts = np.zeros((len(_LETTERS),) * 4)
    for row in csv.DictReader(data.read_text(encoding="utf-8").splitlines()):
        at = tuple(_LETTERS.index(x) for x in row["letters"].replace("_", " "))
        counts[at] = int(row["count"])
    counts = counts[np.ix_(*[[_LETTERS.index(x) for x in alphabet]] * 4)]
    return _of_counts(counts, order, tuple(alphabet))


def _brackets() -> MarkovReference:
    """A model of the brackets of the text that the letters were counted in, of order 3."""
    counts = np.zeros((2, 2, 2, 2))
    for brackets, count in _FOUR_BRACKETS.items():
        counts[tuple("()".index(x) for x in brackets)] = count
    return _of_counts(counts, 3, ("(", ")"))


# fmt: off
_FOUR_BRACKETS = {
    ")()(": 2271, "()()": 2200, ")(()": 124, "())(": 124, "()((": 103, "(())": 103, "))()": 103,
    "(()(": 31, ")())": 31, "))((": 31, ")(((": 10, "((()": 10, "()))": 10, ")))(": 10,
}
# fmt: on


def _of_counts(counts: np.ndarray, order: int, alphabet: tuple[str, ...]) -> MarkovReference:
    """A chain that is everywhere as in the counts of four tokens in a row."""
    then = counts.sum(tuple(range(counts.ndim - order - 1))) + _SMOOTHING
    return MarkovReference(
        _log_shares(then.sum(-1).reshape(-1)).reshape(then.shape[:-1]), _log_shares(then), alphabet
    )


def _log_shares(counts: np.ndarray) -> Any:
    return np.log(counts / counts.sum(-1, keepdims=True))


_TEXT_TASKS = {
    "keywords-64": _keywords,
    "dates": _dates,
    "balanced-40": _balanced,
    "arithmetic-64": _arithmetic,
    "no-repeats": _no_repeats,
}
