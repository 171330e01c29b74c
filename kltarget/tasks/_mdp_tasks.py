"""The decision processes that come with the package, by name."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kltarget.spaces import MDP
from kltarget.tasks._found_by_name import found_by_name


@dataclasses.dataclass(frozen=True, eq=False)
class MDPTask:
    """A decision process with a reference policy and what its states and actions are called.

    Attributes:
        name: how :func:`load_mdp` finds it.
        description: one line for a reader who has not seen the process.
        mdp: the process.
        log_ref: natural-log reference probabilities of the actions, float64 ``[S, A]``.
        labels: what the actions are called.
        states: what the states are called.
        goals: absorbing states in which to end, integers ``[G]``; empty where nothing ends.
        places: row and column of each state of a grid world, integers ``[S, 2]``; None of others.
    """

    name: str
    description: str
    mdp: MDP
    log_ref: np.ndarray
    labels: tuple[str, ...]
    states: tuple[str, ...]
    goals: tuple[int, ...] = ()
    places: np.ndarray | None = None

    def goal_masses(self, log_policy: ArrayLike) -> np.ndarray:
        """How likely a policy is to end in each goal, however late, float64 ``[*batch, G]``.

        Args:
            log_policy: log-probabilities ``[*batch, S, A]`` of a policy that ends sooner or later;
                what it gives to actions that a state lacks is shared by the others.

        Raises:
            ValueError: a process with a horizon, a policy that can go on for ever.

        Example:
            >>> from kltarget import tasks
            >>> task = tasks.load_mdp("two-goals")
            >>> print([f"{x:.3f}" for x in task.goal_masses(task.log_ref)])
            ['0.800', '0.200']
        """
        if self.mdp.horizon is not None:
            raise ValueError(
                f"task {self.name!r} has a horizon: masses are of processes that go on until they "
                "end in a goal"
            )
        policy = np.exp(np.asarray(log_policy, float)) * (np.asarray(self.mdp.reward) > -np.inf)
        policy /= policy.sum(-1, keepdims=True)
        chances = np.asarray(self.mdp.dense_transition, float)
        moves = np.einsum("...sa,sat->...st", policy, chances)
        on = np.setdiff1d(np.arange(self.mdp.num_states), self.goals)
        stay = np.eye(len(on)) - moves[..., on[:, None], on]
        try:
            ends = np.linalg.solve(stay, moves[..., on[:, None], list(self.goals)])
        except np.linalg.LinAlgError:
            raise ValueError(
                f"log_policy of task {self.name!r} can go on for ever: from every state it must "
                "lead to a goal"
            ) from None
        start = np.asarray(self.mdp.start, float)
        return np.einsum("s,...sg->...g", start[on], ends) + start[list(self.goals)]


def mdp_names() -> tuple[str, ...]:
    """Names that :func:`load_mdp` accepts."""
    return tuple(_MDPS)


def load_mdp(name: str) -> MDPTask:
    """The decision process called ``name``.

    Args:
        name: one of :func:`mdp_names`.

    Returns:
        The process with its reference, built once per process.

    Raises:
        ValueError: there is no such process; the message lists the names.

    Example:
        >>> from kltarget import tasks
        >>> tasks.mdp_names()
        ('two-goals', 'river-swim', 'five-arms')
        >>> task = tasks.load_mdp("river-swim")
        >>> task.labels, task.mdp.num_states
        (('left', 'right'), 6)

    References:
        ``river-swim``: Strehl, Littman, "An analysis of model-based interval estimation for Markov
        decision processes", 2008; chances and rewards of Osband, Russo, Van Roy, "(More) efficient
        reinforcement learning via posterior sampling", 2013. The other two are made for this
        package.
    """
    return found_by_name("decision process", _MDPS, name)


_ROOM = (
    "A..#..B",
    "...#...",
    ".#...#.",
    ".......",
    "...S...",
)
_MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_STUCK = 0.1
"""The chance that a move does not happen."""


@functools.cache
def _two_goals() -> MDPTask:
    """A room that is its own mirror image but for a reference that goes left in the middle."""
    places = [(i, j) for i, row in enumerate(_ROOM) for j, x in enumerate(row) if x != "#"]
    at = {place: state for state, place in enumerate(places)}
    goals = tuple(at[i, row.index(x)] for x in "AB" for i, row in enumerate(_ROOM) if x in row)
    size = len(places)
    transition = np.zeros((size, len(_MOVES), size))
    for state, (i, j) in enumerate(places):
        for action, (down, right) in enumerate(_MOVES.values()):
            after = state if state in goals else at.get((i + down, j + right), state)
            transition[state, action, after] += 1 - _STUCK
            transition[state, action, state] += _STUCK
    reward = transition[..., list(goals)].sum(-1)
    reward[list(goals)] = 0.0
    reference = np.full((size, len(_MOVES)), 0.25)
    middle = [state for state, (_, j) in enumerate(places) if j == len(_ROOM[0]) // 2]
    reference[middle] = [0.25, 0.25, 0.4, 0.1]
    start = np.array([_ROOM[i][j] == "S" for i, j in places], float)
    return MDPTask(
        name="two-goals",
        description="a grid world with two goals of equal reward; reference ratio 4:1",
        mdp=_process(transition, reward, 0.95, start),
        log_ref=np.log(reference),
        labels=tuple(_MOVES),
        states=tuple(
            f"goal {_ROOM[i][j]}" if at[i, j] in goals else f"row {i + 1}, column {j + 1}"
            for i, j in places
        ),
        goals=goals,
        places=np.array(places),
    )


@functools.cache
def _river_swim() -> MDPTask:
    """Six places along a river: a little is earned downstream, much upstream, against it."""
    size = 6
    transition = np.zeros((size, 2, size))
    for state in range(size):
        transition[state, 0, max(state - 1, 0)] = 1.0
        transition[state, 1, max(state - 1, 0)] += 0.05
        transition[state, 1, state] += 0.6
        transition[state, 1, min(state + 1, size - 1)] += 0.35
    transition[0, 1, :2] = 0.4, 0.6
    transition[-1, 1, -2:] = 0.4, 0.6
    reward = np.zeros((size, 2))
    reward[0, 0], reward[-1, 1] = 0.005, 1.0
    return MDPTask(
        name="river-swim",
        description="six places along a river; much is earned at its head, the reference drifts",
        mdp=_process(transition, reward, 0.95, np.eye(size)[0]),
        log_ref=np.log(np.tile([0.7, 0.3], (size, 1))),
        labels=("left", "right"),
        states=tuple(f"place {k + 1}" for k in range(size)),
    )


@functools.cache
def _five_arms() -> MDPTask:
    """A bandit: one state, in which the best arm is tried least."""
    return MDPTask(
        name="five-arms",
        description="a bandit, one state; two arms are as good as each other, the best is rare",
        mdp=_process(np.ones((1, 5, 1)), np.array([[0.2, 0.5, 0.5, 0.0, 1.0]]), 0.9),
        log_ref=np.log([[0.3, 0.35, 0.05, 0.28, 0.02]]),
        labels=("fair", "good", "as good", "nothing", "best"),
        states=("the only one",),
    )


def _process(
    transition: np.ndarray, reward: np.ndarray, discount: float, start: np.ndarray | None = None
) -> MDP:
    return MDP(jnp.asarray(transition), jnp.asarray(reward), jnp.asarray(discount), start)


_MDPS = {"two-goals": _two_goals, "river-swim": _river_swim, "five-arms": _five_arms}
