"""Where the action that an equilibrium likes best changes as β does."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kltarget.divergences import Divergence
from kltarget.spaces import MatrixGame, PreferenceGame
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
    game: PreferenceGame | MatrixGame,
    log_ref: ArrayLike | tuple[ArrayLike, ArrayLike],
    beta: ArrayLike,
    divergence: Divergence | None = None,
    *,
    num_halvings: int = 50,
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

    Returns:
        The flips, from the smallest β on; a game of preferences has those of the row player.

    Raises:
        TypeError: no game of one stage.
        ValueError: β that do not increase, and what :func:`solve_game` refuses.

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
    if not isinstance(game, PreferenceGame | MatrixGame):
        raise TypeError(f"game must be a PreferenceGame or a MatrixGame, got {type(game).__name__}")
    if game.payoff.ndim != 2:
        raise ValueError(f"game has batch axes, of payoffs {game.payoff.shape}: give one game")

    def leaders(at: np.ndarray) -> np.ndarray:
        found = solve_game(game, log_ref, jnp.asarray(at), divergence).raise_if_failed()
        sides = [found.row] if isinstance(game, PreferenceGame) else [found.row, found.column]
        return np.stack([np.asarray(side.log_probs).argmax(-1) for side in sides], -1)

    names = ("row", "column")
    flips = [
        Flip(change.beta, names[change.place[0]], change.below, change.above)
        for change in leader_changes(leaders, beta, num_halvings)
    ]
    return tuple(sorted(flips))
