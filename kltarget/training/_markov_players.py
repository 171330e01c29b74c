"""Markov games as arrays: what a pair of policies is worth in every state, and what it could gain.

Values are sums over steps or solutions of linear equations; gains are found by plain iteration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import float_argument, worded
from kltarget._core.pytrees import register
from kltarget.spaces import MarkovGame, StageGames
from kltarget.training._two_players import TwoPlayers, references


@dataclasses.dataclass(frozen=True, eq=False)
class MarkovPlayers:
    """A Markov game with both references, which the stages hold.

    Attributes:
        stages: one step of the game, with references ``[*batch, S, A]`` and ``[*batch, S, B]``.
        beta: ``[*batch, S, 1]``.
        horizon: the number T of steps, None without end. With it policies are
            ``[*batch, T, S, A]``, without it ``[*batch, S, A]``.
    """

    stages: StageGames
    beta: Float[Array, "*batch S 1"]
    horizon: int | None

    @property
    def references(self) -> tuple[Array, Array]:
        """Both references in the shape of policies."""
        pair = self.stages.log_ref, self.stages.log_ref_column
        if self.horizon is None:
            return pair
        lead = self.beta.shape[:-2]
        row, column = (
            jnp.broadcast_to(x[..., None, :, :], (*lead, self.horizon, *x.shape[-2:])) for x in pair
        )
        return row, column

    def repeated(self, times: int) -> MarkovPlayers:
        """The same game for each of several pairs of policies, on an axis in front."""
        wide = [jnp.broadcast_to(x, (times, *x.shape)) for x in self.stages[-2:]]
        stages = self.stages._replace(log_ref=wide[0], log_ref_column=wide[1])
        beta = jnp.broadcast_to(self.beta, (times, *self.beta.shape))
        return MarkovPlayers(stages, beta, self.horizon)

    def objective(self, log_row: Array, log_column: Array) -> Array:
        """What the row player gets from an even first state on, ``[…]``."""
        return self.worth(log_row, log_column).mean(-1)

    def gap(self, log_row: Array, log_column: Array) -> Array:
        """What both players could gain together from an even first state on, ``[…]``."""
        return self.gains(log_row, log_column).mean(-1)

    def worth(self, log_row: Array, log_column: Array) -> Array:
        """What the row player gets from each state on, both regularisers included, ``[…, S]``."""
        if self.horizon is not None:

            def now(after: Array, log_mu: Array, log_nu: Array) -> Array:
                return self._stage(after).objective(log_mu, log_nu)

            return self._backwards(now, log_row, log_column)
        at_once = self._played(self.stages.reward).objective(log_row, log_column)
        pairs = jnp.exp(log_row)[..., :, None] * jnp.exp(log_column)[..., None, :]
        chances = jnp.einsum(
            "...sab,...sabt->...st", pairs, self.stages.transition, precision="highest"
        )
        eye = jnp.broadcast_to(jnp.eye(at_once.shape[-1], dtype=at_once.dtype), chances.shape)
        matrix = eye - self.stages.discount * chances
        return jnp.linalg.solve(matrix, at_once[..., None])[..., 0]

    def gains(self, log_row: Array, log_column: Array) -> Array:
        """What both players could gain together by best answers, from each state on, ``[…, S]``."""

        def high(after: Array, log_nu: Array) -> Array:
            return self._stage(after).most(log_nu)

        def low(after: Array, log_mu: Array) -> Array:
            return self._stage(after).least(log_mu)

        if self.horizon is None:
            return self._for_ever(high, log_column) - self._for_ever(low, log_row)
        return self._backwards(high, log_column) - self._backwards(low, log_row)

    @property
    def _nothing(self) -> Array:
        return jnp.zeros(self.beta.shape[:-1], self.beta.dtype)

    def _stage(self, after: Array) -> TwoPlayers:
        return self._played(self.stages.children(after))

    def _played(self, payoff: Array) -> TwoPlayers:
        return TwoPlayers(payoff, self.stages.log_ref, self.stages.log_ref_column, self.beta)

    def _backwards(self, now: Callable[..., Array], *policies: Array) -> Array:
        steps = [jnp.moveaxis(x, -3, 0) for x in policies]

        def step(after: Array, given: list[Array]) -> tuple[Array, None]:
            return now(after, *given), None

        return lax.scan(step, self._nothing, steps, reverse=True)[0]

    def _for_ever(self, now: Callable[..., Array], log_policy: Array) -> Array:
        eps = float(jnp.finfo(self.beta.dtype).eps)
        discount = self.stages.discount
        # Rounding keeps values moving: after this many sweeps the discount has left nothing else.
        enough = (jnp.log(eps * (1 - discount)) / jnp.log(discount)).astype(jnp.int32)

        def going(state: Any) -> Array:
            _, change, count = state
            return (change > eps) & (count <= enough)

        def again(state: Any) -> Any:
            old, _, count = state
            new = now(old, log_policy)
            return new, (jnp.abs(new - old) / (1 + jnp.abs(new))).max(), count + 1

        far = jnp.full((), jnp.inf, self.beta.dtype)
        return lax.while_loop(going, again, (self._nothing, far, jnp.int32(0)))[0]


register(MarkovPlayers, ("stages", "beta"), ("horizon",))


def markov_players(game: MarkovGame, log_ref: Any, beta: ArrayLike) -> MarkovPlayers:
    """A Markov game, references of every state or one for all, and beta, of one batch shape."""
    states = game.num_states
    refs = [x if x.ndim > 1 else x[None] for x in references(log_ref, game.num_actions, beta)]
    for x, who in zip(refs, ("row", "column"), strict=True):
        if x.shape[-2] not in (1, states):
            raise ValueError(
                f"log_ref of the {who} player has {x.shape[-2]} states and the game {states}: give "
                "[*batch, S, A], or one row [A] for all states"
            )
    dtype = refs[0].dtype
    coefficient = float_argument(beta, "beta").astype(dtype)
    shapes = (
        game.transition.shape[:-4],
        game.reward.shape[:-3],
        *(x.shape[:-2] for x in refs),
        coefficient.shape,
    )
    with worded(
        f"the batch axes of the game, of both references and of beta, {shapes}, do not fit"
    ):
        batch = jnp.broadcast_shapes(*shapes)
    row, column = (jnp.broadcast_to(x, (*batch, states, x.shape[-1])) for x in refs)
    transition, reward, discount = (
        jnp.asarray(x, dtype) for x in (game.transition, game.reward, game.discount)
    )
    wide = jnp.broadcast_to(coefficient[..., None, None], (*batch, states, 1))
    return MarkovPlayers(StageGames(transition, reward, discount, row, column), wide, game.horizon)
