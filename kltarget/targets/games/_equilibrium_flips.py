"""Where the action that an equilibrium likes best changes as β does."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kltarget.divergences import Divergence
from kltarget.spaces import MarkovGame, MatrixGame, PreferenceGame
from kltarget.targets._leader_changes import leader_changes
from kltarget.targets.games._solve_game import solve_game


class Flip(NamedTuple):
    """A β at which two actions of a player are level and lead.

    Attributes:
        beta: where, in reward units per nat.
        player: ``"row"`` or ``"column"``.
        below: the action that leads below it.
        above: the action that leads above it.
    """

    beta: float
    player: str
    below: int
    above: int


def equilibrium_flips(
    game: PreferenceGame | MatrixGame | MarkovGame,
    log_ref: ArrayLike | tuple[ArrayLike, ArrayLike],
    beta: ArrayLike,
    divergence: Divergence | None = None,
    *,
    num_halvings: int = 50,
    state: int = 0,
) -> tuple[Flip, ...]:
    """Every β between given ones at which a player's likeliest action changes.

    The equilibria at all given β are found at once, and each interval in which the likeliest action
    changes is halved until it is a point, all intervals in one program. Unlike in a problem of one
    player, two actions may change places more than once.

    Args:
        game: without batch axes.
        log_ref: reference log-probabilities of both players, or a tuple of two.
        beta: increasing, in reward units per nat, at least two; of several flips
            between neighbours the lowest is found, or none if they undo each other.
        divergence: reverse KL by default.
        num_halvings: how often an interval is halved, in the logarithm of β.
        state: of a Markov game in which state, at the first step.

    Returns:
        The flips, from the smallest β on; a game of preferences has those of the row player.

    Raises:
        TypeError: no game.
        ValueError: β that do not increase, no such state, and what :func:`solve_game` refuses.

    Example:
        >>> import numpy as np
        >>> from kltarget import tasks
        >>> from kltarget.targets.games import equilibrium_flips
        >>> task = tasks.load_game("cycle")
        >>> for flip in equilibrium_flips(task.game, task.log_ref, np.geomspace(0.01, 1, 30)):
        ...     print(f"{flip.beta:.3f}", task.labels[0][flip.below], task.labels[0][flip.above])
        0.022 scissors paper
        0.073 paper rock
    """
    if not isinstance(game, PreferenceGame | MatrixGame | MarkovGame):
        raise TypeError(
            "game must be a PreferenceGame, a MatrixGame or a MarkovGame, "
            f"got {type(game).__name__}"
        )
    several = isinstance(game, MarkovGame)
    shape, own = (game.reward.shape, 3) if several else (game.payoff.shape, 2)
    if len(shape) != own:
        raise ValueError(f"game has batch axes, of payoffs {shape}: give one game")
    states = game.num_states if several else 1
    if not 0 <= state < states:
        raise ValueError(f"state must be from 0 to {states - 1}, got {state}")

    def leaders(at: np.ndarray) -> np.ndarray:
        found: Any = solve_game(game, log_ref, jnp.asarray(at), divergence).raise_if_failed()
        pair = found.stages if several else found
        sides = [pair.row] if isinstance(game, PreferenceGame) else [pair.row, pair.column]
        chosen = [np.asarray(side.log_probs).argmax(-1) for side in sides]
        # Of a game with a horizon the first step, and the state is on the last axis.
        chosen = [x.reshape(len(at), -1)[:, state] for x in chosen]
        return np.stack(chosen, -1)

    names = ("row", "column")
    flips = [
        Flip(change.beta, names[change.place[0]], change.below, change.above)
        for change in leader_changes(leaders, beta, num_halvings)
    ]
    return tuple(sorted(flips))
