"""Deterministic automata that read tokens one by one: what a text is rewarded for, as states."""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from kltarget._core.checks import positive, raise_first, traced
from kltarget._core.pytrees import register
from kltarget._core.short_repr import short_repr
from kltarget.spaces._markov_reference import walk


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton over V tokens with D states, of which 0 is the first.

    Rewards and modes are given per final state: whatever an automaton can tell of a text by
    reading it once.

    Args:
        transitions: the state that each token leads to from each, integers ``[D, V]``.
        accepting: which states accept, booleans ``[D]``; none where it does not matter.
        names: what the states are called, for tables and pictures.

    Raises:
        TypeError: transitions that are not integers.
        ValueError: shapes that do not fit, or states that there are not.

    Example:
        Does a text of a and b contain "ab"?

        >>> from kltarget.spaces import Automaton
        >>> found = Automaton.from_words(["ab"], "ab", match="contains")
        >>> print(found.run([[0, 1, 1], [1, 1, 0]]), found.accepting)
        [2 1] [False False  True]
    """

    __repr__ = short_repr

    transitions: Int[np.ndarray, "D V"]
    accepting: Any = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        table = np.asarray(self.transitions)
        if not np.issubdtype(table.dtype, np.integer):
            raise TypeError(f"transitions must be integers, got dtype {table.dtype}")
        if table.ndim != 2 or not table.size:
            raise ValueError(f"transitions has shape {table.shape}: it needs states and tokens")
        outside = (table < 0) | (table >= len(table))
        if outside.any():
            state, token = np.argwhere(outside)[0]
            raise ValueError(
                f"transitions: token {token} leads from state {state} to {table[state, token]}, "
                f"but there are {len(table)} states"
            )
        object.__setattr__(self, "transitions", table.astype(np.int32))
        if self.accepting is not None:
            accepting = np.asarray(self.accepting)
            if accepting.shape != (len(table),) or accepting.dtype != bool:
                raise ValueError(
                    f"accepting must be a boolean for each of {len(table)} states, got shape "
                    f"{accepting.shape} of {accepting.dtype}"
                )
            object.__setattr__(self, "accepting", accepting)
        if self.names is not None:
            object.__setattr__(self, "names", tuple(self.names))
            if len(self.names) != len(table):
                raise ValueError(
                    f"names must be one for each of {len(table)} states, got {len(self.names)}"
                )

    @property
    def num_states(self) -> int:
        """The number D of states."""
        return self.transitions.shape[0]

    @property
    def vocab_size(self) -> int:
        """The number V of tokens."""
        return self.transitions.shape[1]

    def run(self, tokens: ArrayLike) -> Int[Array, "..."]:
        """The final states of texts, integers ``[..., T]`` in, ``[...]`` out.

        Raises:
            TypeError: tokens that are not integers.
            ValueError: no axis of tokens; outside a trace, tokens that there are not.
        """
        read: Any = tokens if traced(tokens) else np.asarray(tokens)
        if not (traced(read) or read.size):
            # Of no tokens NumPy makes floats.
            read = read.astype(np.int32)
        if not jnp.issubdtype(read.dtype, jnp.integer):
            raise TypeError(
                f"tokens must be integers, got dtype {read.dtype}; MarkovReference.tokens makes "
                "them from strings"
            )
        if not read.ndim:
            raise ValueError(f"tokens must have an axis of tokens, got the number {read}")
        if not traced(read):
            outside = (read < 0) | (read >= self.vocab_size)
            raise_first("tokens", read, outside, f"must be from 0 to {self.vocab_size - 1}")
        return _ends(self.transitions, read)

    def complement(self) -> Automaton:
        """The automaton that accepts what this one does not."""
        if self.accepting is None:
            raise ValueError("complement needs accepting states, and this automaton has none")
        return dataclasses.replace(self, accepting=~self.accepting)

    def product(self, other: Automaton) -> Automaton:
        """Both at once: states are pairs, that of this automaton first, and accept where both do.

        Pairs that no text reaches are left out; the names say which pairs there are.
        """
        if other.vocab_size != self.vocab_size:
            raise ValueError(
                f"other reads {other.vocab_size} tokens and this automaton {self.vocab_size}"
            )
        places, queue, rows = {(0, 0): 0}, deque([(0, 0)]), []
        while queue:
            first, second = queue.popleft()
            row = []
            for pair in zip(
                self.transitions[first].tolist(), other.transitions[second].tolist(), strict=True
            ):
                if pair not in places:
                    places[pair] = len(places)
                    queue.append(pair)
                row.append(places[pair])
            rows.append(row)
        accepting = None
        if self.accepting is not None and other.accepting is not None:
            accepting = np.array([self.accepting[a] & other.accepting[b] for a, b in places])
        names = tuple(f"{self._name(a)}, {other._name(b)}" for a, b in places)
        return Automaton(np.array(rows), accepting, names)

    def _name(self, state: int) -> str:
        return str(state) if self.names is None else self.names[state]

    def minimized(self, labels: ArrayLike | None = None) -> tuple[Automaton, np.ndarray]:
        """The smallest automaton that tells texts apart by the labels of their final states.

        Args:
            labels: integers or booleans ``[D]``, such as modes; by default ``accepting``.

        Returns:
            The automaton, and for each state of this one the state of that it became; -1 for
            states that no text reaches.

        Raises:
            ValueError: labels that are not one for each state.
        """
        wanted = self.accepting if labels is None else labels
        if wanted is None:
            raise ValueError("labels are needed where no states are accepting")
        if np.shape(wanted) != (self.num_states,):
            raise ValueError(
                f"labels has shape {np.shape(wanted)}: it needs one for each of "
                f"{self.num_states} states"
            )
        reached = self._reached()
        table = self.transitions
        classes = np.unique(np.asarray(wanted), return_inverse=True)[1].reshape(-1)
        while True:
            # States are alike as long as every token leads them to states that are.
            signature = np.column_stack([classes, classes[table]])
            _, finer = np.unique(signature[reached], axis=0, return_inverse=True)
            finer = finer.reshape(-1)
            done = finer.max() == np.unique(classes[reached]).size - 1
            classes = np.full(len(table), -1)
            classes[reached] = finer
            if done:
                break
        # In the order in which states are first met, so that the beginning is 0.
        order = np.full(classes.max() + 1, -1)
        for state in reached.tolist():
            if order[classes[state]] < 0:
                order[classes[state]] = order.max() + 1
        became = np.where(classes >= 0, order[classes], -1)
        smaller = np.zeros((order.size, self.vocab_size), np.int32)
        smaller[became[reached]] = became[table[reached]]
        accepting = None
        if self.accepting is not None:
            accepting = np.zeros(order.size, bool)
            accepting[became[reached]] = self.accepting[reached]
        return Automaton(smaller, accepting), became

    def _reached(self) -> np.ndarray:
        """States that some text reaches, in the order in which they are met."""
        met, queue = {0: None}, deque([0])
        while queue:
            for state in self.transitions[queue.popleft()].tolist():
                if state not in met:
                    met[state] = None
                    queue.append(state)
        return np.array(list(met))

    @classmethod
    def from_words(
        cls,
        words: Sequence[str],
        alphabet: Iterable[str],
        *,
        match: Literal["contains", "equals", "which"] = "contains",
        end: str | None = None,
    ) -> Automaton:
        """An automaton that looks for words (Aho and Corasick).

        Args:
            words: the words; one that is given twice counts once.
            alphabet: the letters, in the order of their tokens.
            match: ``"contains"`` accepts texts in which any word occurs, ``"equals"`` those that
                are one of the words, up to ``end`` if there is one. ``"which"`` tells apart which
                word occurs: accepting are states whose text contains exactly one of the words,
                once or more often, and their names are the words.
            end: the letter after which texts are over.

        Raises:
            TypeError: one string instead of several, or words that are not strings.
            ValueError: no words, an empty one, one with letters outside the alphabet, an end
                outside of it or in a word that texts are to equal, an alphabet with a letter twice.
        """
        if isinstance(words, str):
            raise TypeError(
                f"words must be several strings, got one: put it in a list, [{words!r}]"
            )
        letters, words = _letters(alphabet), list(dict.fromkeys(words))
        over = _place_of_end(end, letters)
        spelled = [_spelled(word, letters) for word in words]
        if not spelled:
            raise ValueError("words must be one or more")
        if match == "equals":
            for word in words:
                if end is not None and end in word:
                    raise ValueError(
                        f"words: {word!r} contains the end {end!r}, and what comes before it must "
                        "equal a word; leave it out"
                    )
            return _equal_to(spelled, len(letters), over)
        table, found = _searching(spelled, len(letters))
        if match == "contains":
            return _once_found(table, found)
        if match != "which":
            raise ValueError(f"match must be 'contains', 'equals' or 'which', got {match!r}")
        return _which(table, found, words)

    @classmethod
    def counter(cls, tokens: Iterable[int], vocab_size: int, *, most: int) -> Automaton:
        """An automaton that counts how often tokens occur, up to ``most``; state n is the count n.

        Example:
            >>> from kltarget.spaces import Automaton
            >>> print(Automaton.counter([1], 2, most=3).run([1, 0, 1]))
            2
        """
        positive("vocab_size", vocab_size)
        positive("most", most)
        listed = np.asarray(list(tokens))
        if listed.size and not np.issubdtype(listed.dtype, np.integer):
            raise TypeError(f"tokens must be integers, got dtype {listed.dtype}")
        counted = np.unique(listed).tolist()
        if not counted or counted[0] < 0 or counted[-1] >= vocab_size:
            raise ValueError(f"tokens must be from 0 to {vocab_size - 1}, got {counted}")
        table = np.repeat(np.arange(most + 1)[:, None], vocab_size, axis=1)
        table[:, counted] = np.minimum(np.arange(most + 1) + 1, most)[:, None]
        names = (*map(str, range(most)), f"{most} or more")
        return cls(table, None, names)

    @classmethod
    def from_regex(
        cls, pattern: str, alphabet: Iterable[str], *, end: str | None = None
    ) -> Automaton:
        r"""The smallest automaton that accepts the texts which match a regular expression whole.

        Args:
            pattern: in the syntax of automata-lib: ``|``, ``*``, ``+``, ``?``, ``{n,m}``, ``.``,
                classes such as ``[a-z]``, of which letters outside the alphabet are left out. These
                signs, ``&`` and ``^`` too, are never letters, even where the alphabet has them:
                a backslash before one means the letter.
            alphabet: the letters, in the order of their tokens.
            end: the letter after which texts are over: what comes before it is what must match.

        Raises:
            ImportError: automata-lib is not installed.
            ValueError: a pattern that it does not read or that has letters outside the alphabet,
                an end outside of it, an alphabet with a letter twice.

        Example:
            >>> from kltarget.spaces import Automaton
            >>> any_letter = Automaton.from_regex("a.b", "ab.")
            >>> a_dot = Automaton.from_regex(r"a\.b", "ab.")
            >>> print([x.accepting[x.run([0, 1, 1])].item() for x in (any_letter, a_dot)])
            [True, False]
        """
        try:
            from automata.base.exceptions import AutomatonException, RegexException
            from automata.fa.dfa import DFA
            from automata.fa.nfa import NFA
        except ImportError:
            raise ImportError(
                'from_regex needs automata-lib: pip install "kltarget[automata]"'
            ) from None
        letters = _letters(alphabet)
        over = _place_of_end(end, letters)
        read = {x for x in letters if x != end}
        _require_letters(pattern, read, end)
        try:
            nfa = NFA.from_regex(pattern.translate(_BLANKS), input_symbols=read)
            machine = DFA.from_nfa(nfa, minify=True)
        except (AutomatonException, RegexException) as error:
            raise ValueError(f"pattern {pattern!r}: {error}") from None
        states = [machine.initial_state, *sorted(machine.states - {machine.initial_state})]
        places = {state: i for i, state in enumerate(states)}
        lost, size = len(states), len(letters)
        table = np.full((lost + 1, size), lost)
        for state, row in machine.transitions.items():
            for letter, after in row.items():
                # Classes bring letters that the alphabet lacks.
                if letter in read:
                    table[places[state], letters.index(letter)] = places[after]
        accepting = np.array([*(state in machine.final_states for state in states), False])
        if over is not None:
            table, accepting = _ended(table, accepting, over)
        return cls(table, accepting).minimized()[0]


register(Automaton, ("transitions", "accepting"), ("names",))


@jax.jit
def _ends(transitions: Array, tokens: Array) -> Array:
    return walk(transitions, tokens)[..., -1]


# The library reads them as escapes alone.
_BLANKS = {ord("\n"): r"\n", ord("\t"): r"\t", ord("\r"): r"\r"}
_CLASS_OR_COUNT = re.compile(r"\\[A-Za-z0-9]|\[(?:\\.|[^\]\\])*\]|\{[-\d,]*\}", re.DOTALL)
_SIGNS = set("|*+?.()&^[]{}\\")


def _require_letters(pattern: str, read: set[str], end: str | None) -> None:
    """An error about a letter that a pattern asks for and texts cannot have."""
    rest = _CLASS_OR_COUNT.sub("", pattern)
    for escaped, letter in re.findall(r"(\\?)(.)", rest, re.DOTALL):
        if letter in read or (not escaped and letter in _SIGNS):
            continue
        if letter == end:
            raise ValueError(
                f"pattern {pattern!r}: {letter!r} is the end, and what comes before it must match; "
                "leave it out"
            )
        raise ValueError(f"pattern {pattern!r}: {letter!r} is not in the alphabet")


def _letters(alphabet: Iterable[str]) -> list[str]:
    letters = list(alphabet)
    for i, letter in enumerate(letters):
        if letter in letters[:i]:
            raise ValueError(
                f"alphabet has {letter!r} twice, at {letters.index(letter)} and {i}: name each "
                "token once"
            )
    return letters


def _place_of_end(end: str | None, letters: list[str]) -> int | None:
    if end is None:
        return None
    if end not in letters:
        raise ValueError(f"end {end!r} is not in the alphabet {''.join(letters)!r}: add it there")
    return letters.index(end)


def _ended(table: np.ndarray, accepting: np.ndarray, over: int) -> tuple[np.ndarray, np.ndarray]:
    """With two states more, in which a text that is over has been accepted or not."""
    size = len(table)
    last = np.array([[size], [size + 1]]).repeat(table.shape[1], axis=1)
    # What follows an end changes nothing.
    ended = np.concatenate([table, last])
    ended[:size, over] = np.where(accepting, size, size + 1)
    return ended, np.concatenate([accepting, [True, False]])


def _spelled(word: str, letters: list[str]) -> list[int]:
    if not isinstance(word, str):
        raise TypeError(f"words must be strings, got {word!r}")
    if not word:
        raise ValueError("words: one of them is empty")
    strange = [x for x in word if x not in letters]
    if strange:
        raise ValueError(f"words: {strange[0]!r} of {word!r} is not in the alphabet")
    return [letters.index(x) for x in word]


def _trie(words: list[list[int]], size: int) -> tuple[list[list[int]], list[set[int]]]:
    """A node per prefix, -1 where no word goes on, and the words that end in each."""
    below, ends = [[-1] * size], [set()]
    for i, word in enumerate(words):
        node = 0
        for token in word:
            if below[node][token] < 0:
                below[node][token] = len(below)
                below.append([-1] * size)
                ends.append(set())
            node = below[node][token]
        ends[node].add(i)
    return below, ends


def _searching(words: list[list[int]], size: int) -> tuple[np.ndarray, list[set[int]]]:
    """The longest suffix that begins a word, as a state, and the words that end in each."""
    below, ends = _trie(words, size)
    shorter = [0] * len(below)
    queue = deque()
    for token in range(size):
        node = below[0][token]
        if node < 0:
            below[0][token] = 0
        else:
            queue.append(node)
    while queue:
        node = queue.popleft()
        ends[node] |= ends[shorter[node]]
        for token in range(size):
            after = below[node][token]
            if after < 0:
                below[node][token] = below[shorter[node]][token]
            else:
                shorter[after] = below[shorter[node]][token]
                queue.append(after)
    return np.array(below), ends


def _once_found(table: np.ndarray, found: list[set[int]]) -> Automaton:
    """What has been found once stays found."""
    hit = np.array([bool(x) for x in found])
    table = table.copy()
    table[hit] = np.flatnonzero(hit)[:, None]
    return Automaton(table, hit).minimized()[0]


def _which(table: np.ndarray, found: list[set[int]], words: list[str]) -> Automaton:
    """Which word has been found: none, one of them, or several."""
    none, several, size = len(words), len(words) + 1, table.shape[1]
    places: dict[tuple[int, int], int] = {(0, none): 0}
    queue, rows = deque([(0, none)]), []
    while queue:
        node, seen = queue.popleft()
        row = []
        for token in range(size):
            after = int(table[node, token])
            now = seen
            for word in sorted(found[after]):
                now = word if now in (none, word) else several
            # Where several were found, where the search stands matters no more.
            pair = (0, several) if now == several else (after, now)
            if pair not in places:
                places[pair] = len(places)
                queue.append(pair)
            row.append(places[pair])
        rows.append(row)
    seen = np.array([x for _, x in places])
    smaller, became = Automaton(np.array(rows)).minimized(seen)
    kept = np.zeros(smaller.num_states, int)
    kept[became] = seen
    called = [*words, "none", "several"]
    return Automaton(smaller.transitions, kept < none, tuple(called[i] for i in kept))


def _equal_to(words: list[list[int]], size: int, end: int | None) -> Automaton:
    below, ends = _trie(words, size)
    lost = len(below)
    table = np.array([*below, [lost] * size])
    table[table < 0] = lost
    accepting = np.array([*(bool(x) for x in ends), False])
    if end is not None:
        table, accepting = _ended(table, accepting, end)
    return Automaton(table, accepting).minimized()[0]
