"""What all that plays games here shares: games as arrays, and what a pair of policies could gain.

A matrix game is a Markov game of one state and one step, so that there is one form for both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import float_argument, worded
from kltarget._core.numerics import log_sum_exp, safe_exp_product
from kltarget.objectives import Objective
from kltarget.spaces import MarkovGame, MatrixGame, PreferenceGame


class TwoPlayers(NamedTuple):
    """A matrix game with both references.

    Attributes:
        payoff: ``[*batch, A, B]``.
        log_row: the row player's reference, ``[*batch, A]``.
        log_column: the column player's, ``[*batch, B]``.
        beta: ``[*batch, 1]``.
    """

    payoff: Float[Array, "*batch A B"]
    log_row: Float[Array, "*batch A"]
    log_column: Float[Array, "*batch B"]
    beta: Float[Array, "*batch 1"]

    @property
    def references(self) -> tuple[Array, Array]:
        """Both references in the shape of policies."""
        return self.log_row, self.log_column

    def repeated(self, times: int) -> TwoPlayers:
        """The same game for each of several pairs of policies, on an axis in front."""
        return TwoPlayers(*(jnp.broadcast_to(x, (times, *x.shape)) for x in self))

    def objective(self, log_mu: Array, log_nu: Array) -> Array:
        """What the row player gets from a pair of policies, both regularisers included."""
        gain = (jnp.exp(log_mu) * seen(self.payoff, log_nu)).sum(-1)
        cost = paid(log_mu, self.log_row) - paid(log_nu, self.log_column)
        return gain - self.beta[..., 0] * cost

    def most(self, log_nu: Array) -> Array:
        """What the row player's best answer to a policy is worth.

        ``log Σ π_ref e^{x/β}`` is the most that a player who faces x can get, in units of β.
        """
        up = log_sum_exp(self.log_row + seen(self.payoff, log_nu) / self.beta)[..., 0]
        return self.beta[..., 0] * (up + paid(log_nu, self.log_column))

    def least(self, log_mu: Array) -> Array:
        """What the column player's best answer to a policy leaves the row player."""
        down = log_sum_exp(self.log_column - owed(self.payoff, log_mu) / self.beta)[..., 0]
        return -self.beta[..., 0] * (down + paid(log_mu, self.log_row))

    def gap(self, log_mu: Array, log_nu: Array) -> Array:
        """What both players could gain together by their best answers."""
        return self.most(log_nu) - self.least(log_mu)


def two_players(game: Any, log_ref: Any, beta: ArrayLike) -> TwoPlayers:
    """A game of preferences or a matrix game as arrays of one batch shape."""
    if not isinstance(game, PreferenceGame | MatrixGame):
        raise TypeError(f"game must be a PreferenceGame or a MatrixGame, got {type(game).__name__}")
    log_row, log_column = references(log_ref, game.num_actions, beta)
    coefficient = float_argument(beta, "beta").astype(log_row.dtype)
    shapes = (game.payoff.shape[:-2], log_row.shape[:-1], log_column.shape[:-1], coefficient.shape)
    with worded(f"the batch axes of payoffs, of both references and of beta, {shapes}, do not fit"):
        batch = jnp.broadcast_shapes(*shapes)
    return TwoPlayers(
        jnp.broadcast_to(game.payoff, (*batch, *game.num_actions)).astype(log_row.dtype),
        jnp.broadcast_to(log_row, (*batch, log_row.shape[-1])),
        jnp.broadcast_to(log_column, (*batch, log_column.shape[-1])),
        jnp.broadcast_to(coefficient, batch)[..., None],
    )


def references(log_ref: Any, sizes: tuple[int, int], beta: ArrayLike) -> tuple[Array, Array]:
    """Both players' references, checked: a tuple of two or one for both."""
    pair = log_ref if isinstance(log_ref, tuple) else (log_ref, log_ref)
    if len(pair) != 2:
        raise ValueError(f"log_ref has {len(pair)} entries: a tuple is of the row and the column")
    found = []
    for given, size, who in zip(pair, sizes, ("row", "column"), strict=True):
        x = float_argument(given, "log_ref")
        if x.ndim == 0 or x.shape[-1] != size:
            raise ValueError(
                f"log_ref of the {who} player has shape {x.shape}, but it has {size} actions: the "
                f"last axis must be {size}"
            )
        # The constructor looks at the values.
        coefficient = float_argument(beta, "beta").reshape(-1, 1)
        Objective(jnp.zeros(size, x.dtype), x.reshape(-1, size), coefficient)
        found.append(x)
    dtype = jnp.result_type(found[0].dtype, found[1].dtype)
    return found[0].astype(dtype), found[1].astype(dtype)


def gibbs(log_ref: Array, scaled: Array) -> Array:
    """``log π`` with ``π ∝ π_ref e^scaled``."""
    tilted = log_ref + scaled
    return tilted - log_sum_exp(tilted)


def paid(log_policy: Array, log_ref: Array) -> Array:
    """``KL(π‖π_ref)`` over the last axis."""
    on = log_policy > -jnp.inf
    ratio = jnp.where(on, log_policy, 0.0) - jnp.where(on, log_ref, 0.0)
    return safe_exp_product(ratio, log_policy).sum(-1)


def seen(payoff: Array, log_column: Array) -> Array:
    """What each row gets against the column player."""
    return jnp.einsum("...ab,...b->...a", payoff, jnp.exp(log_column), precision="highest")


def owed(payoff: Array, log_row: Array) -> Array:
    """What each column pays against the row player."""
    return jnp.einsum("...ab,...a->...b", payoff, jnp.exp(log_row), precision="highest")


def one_stage(game: Any) -> MarkovGame:
    """A matrix game as a Markov game of one state and one step."""
    sizes = game.num_actions
    batch = game.payoff.shape[:-2]
    transition = jnp.ones((*batch, 1, *sizes, 1), game.payoff.dtype)
    return MarkovGame(transition, game.payoff[..., None, :, :], horizon=1)
