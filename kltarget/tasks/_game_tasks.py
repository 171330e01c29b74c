"""The games that come with the package, by name."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

from kltarget.spaces import MarkovGame, MatrixGame, PreferenceGame
from kltarget.tasks._found_by_name import found_by_name


@dataclasses.dataclass(frozen=True, eq=False)
class GameTask:
    """A game with the references of both players and what its actions are called.

    Attributes:
        name: how :func:`load_game` finds it.
        description: one line for a reader who has not seen the game.
        game: the game.
        log_ref: natural-log reference probabilities of both players, float64 ``[A]``; or a tuple of
            those of the row and of the column player.
        labels: what the actions are called, of the row and of the column player.
        states: what the states of a Markov game are called.
    """

    name: str
    description: str
    game: PreferenceGame | MatrixGame | MarkovGame
    log_ref: np.ndarray | tuple[np.ndarray, np.ndarray]
    labels: tuple[tuple[str, ...], tuple[str, ...]]
    states: tuple[str, ...] = ()


def game_names() -> tuple[str, ...]:
    """Names that :func:`load_game` accepts."""
    return tuple(_GAMES)


def load_game(name: str) -> GameTask:
    """The game called ``name``.

    Args:
        name: one of :func:`game_names`.

    Returns:
        The game with its references, built once per process.

    Raises:
        ValueError: there is no such game; the message lists the names.

    Example:
        >>> from kltarget import tasks
        >>> tasks.game_names()
        ('cycle', 'penalty', 'duel', 'soccer')
        >>> task = tasks.load_game("cycle")
        >>> task.labels[0], task.game.num_actions
        (('rock', 'stone', 'paper', 'scissors'), (4, 4))

    References:
        ``soccer``: Littman, "Markov games as a framework for multi-agent reinforcement learning",
        1994, on a smaller field with wider goals. The others are made for this package.
    """
    return found_by_name("game", _GAMES, name)


@functools.cache
def _cycle() -> GameTask:
    """Rock, paper, scissors with noise; the reference hardly knows the answer to what it likes."""
    win = np.array([[0.5, 0.1, 0.8], [0.9, 0.5, 0.2], [0.2, 0.8, 0.5]])
    kind = np.array([0, 0, 1, 2])
    names = ("rock", "stone", "paper", "scissors")
    return GameTask(
        name="cycle",
        description="preferences in a cycle; two names for rock, reference ratio 7:1, little paper",
        game=PreferenceGame(win[np.ix_(kind, kind)]),
        log_ref=np.log([0.7, 0.1, 0.05, 0.15]),
        labels=(names, names),
    )


@functools.cache
def _penalty() -> GameTask:
    """Chances of a goal for three corners of the kick and three of the dive, made for this task."""
    scored = np.array([[0.6, 0.95, 0.9], [0.9, 0.4, 0.9], [0.95, 0.95, 0.55]])
    names = ("left", "middle", "right")
    return GameTask(
        name="penalty",
        description="a kicker and a keeper who choose corners; both have habits",
        game=MatrixGame(scored),
        log_ref=(np.log([0.6, 0.1, 0.3]), np.log([0.45, 0.05, 0.5])),
        labels=(names, names),
    )


@functools.cache
def _duel() -> GameTask:
    """Three states of a fight over a line: behind, level, ahead. Both attack or hold."""
    # The chance that the row player gains ground, by both actions; it loses it otherwise.
    gains = np.array([[0.5, 0.3], [0.8, 0.5]])
    transition = np.zeros((3, 2, 2, 3))
    for state in range(3):
        transition[state, :, :, min(state + 1, 2)] += gains
        transition[state, :, :, max(state - 1, 0)] += 1 - gains
    # Ground is worth 1 a step, and to attack costs where one is ahead already.
    cost = np.array([[0.0, 0.0], [0.25, 0.25]])
    names = ("hold", "attack")
    reward = np.stack([-1.0 + 0 * cost + cost.T, 0 * cost, 1.0 - cost])
    return GameTask(
        name="duel",
        description="six steps of attack or hold over a line that moves, from three states",
        game=MarkovGame(transition, reward, horizon=6),
        log_ref=(np.log([0.8, 0.2]), np.log([0.5, 0.5])),
        labels=(names, names),
        states=("behind", "level", "ahead"),
    )


_FIELD = (2, 3)
_STEPS = {"up": (-1, 0), "down": (1, 0), "ahead": (0, 1), "back": (0, -1), "stay": (0, 0)}
_Field = tuple[tuple[int, int], tuple[int, int], int]
"""The places of both players and which of them has the ball."""


@functools.cache
def _soccer() -> GameTask:
    """A field of two rows and three columns: who carries the ball over the far end has won."""
    places = list(itertools.product(range(_FIELD[0]), range(_FIELD[1])))
    fields: list[_Field] = [
        (row, column, ball)
        for row in places
        for column in places
        if row != column
        for ball in (0, 1)
    ]
    at = {field: state for state, field in enumerate(fields)}
    over, size = len(fields), len(_STEPS)
    transition = np.zeros((over + 1, size, size, over + 1))
    reward = np.zeros((over + 1, size, size))
    transition[over, ..., over] = 1.0
    moves = list(itertools.product(range(size), repeat=2))
    for (state, field), chosen, first in itertools.product(enumerate(fields), moves, (0, 1)):
        # Either may be the first to move, with equal chances.
        after, scored = field, 0
        for who in (first, 1 - first):
            if not scored:
                after, scored = _moved(after, who, list(_STEPS.values())[chosen[who]])
        reward[(state, *chosen)] += scored / 2
        transition[(state, *chosen, over if scored else at[after])] += 0.5
    habit = np.log([0.1, 0.1, 0.6, 0.1, 0.1])
    names = tuple(_STEPS)
    return GameTask(
        name="soccer",
        description="two players on a field of 2 × 3, whose habit is to run ahead; a goal ends it",
        game=MarkovGame(transition, reward, discount=0.9),
        log_ref=(habit, habit),
        labels=(names, names),
        states=(*map(_said, fields), "over"),
    )


def _moved(field: _Field, who: int, step: tuple[int, int]) -> tuple[_Field, int]:
    """Where one player's move leads, and what it scores for the row player."""
    *pair, ball = field
    # The players face each other, and each calls its own way ahead.
    line, place = pair[who][0] + step[0], pair[who][1] + (1 - 2 * who) * step[1]
    if ball == who and 0 <= line < _FIELD[0] and place == (_FIELD[1], -1)[who]:
        return field, 1 - 2 * who
    if (line, place) == pair[1 - who]:
        return (pair[0], pair[1], 1 - who), 0
    if 0 <= line < _FIELD[0] and 0 <= place < _FIELD[1]:
        pair[who] = (line, place)
    return (pair[0], pair[1], ball), 0


def _said(field: _Field) -> str:
    row, column, ball = field
    who = ("row", "column")[ball]
    return f"{row[0] + 1}.{row[1] + 1} against {column[0] + 1}.{column[1] + 1}, ball of the {who}"


_GAMES = {"cycle": _cycle, "penalty": _penalty, "duel": _duel, "soccer": _soccer}
