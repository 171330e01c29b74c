"""Equilibria of Markov games, stage game by stage game."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import float_argument, integer_rows, require_normalized, worded
from kltarget._core.matrices import times, transposed
from kltarget._core.pytrees import made, pytree
from kltarget._core.status import Status, flag
from kltarget.divergences import Divergence, ReverseKL
from kltarget.objectives import Objective
from kltarget.spaces import MDP, MarkovGame, MatrixGame, StageGames, backward
from kltarget.targets._protocol import Distribution
from kltarget.targets.discrete import Target, solve
from kltarget.targets.games._equilibrium import Equilibrium, equilibrium_of, faced_by, players
from kltarget.targets.games._saddle_points import Faced
from kltarget.targets.mdps import MDPTarget

_MAX_SWEEPS = 10_000


@pytree
class MarkovEquilibrium(Distribution):
    """What both players do in every state, and at every step of a game with a horizon.

    Outcomes are plays: states and both players' actions in turn, integers ``[…, T, 3]``. A game has
    no first state of its own, so that values, rewards and divergences are from each state on.

    Attributes:
        game: the game.
        stages: the equilibria of the stage games, whose payoffs include what is to come; of batch
            shape ``[*batch, T, S]``, without a horizon ``[*batch, S]``.
        value: what the row player gets from each state on, both regularisers included, in reward
            units, ``[*batch, S]``.
        status: :class:`~kltarget.Status` bits, shape ``[*batch]``.
    """

    made_by = "solve_game"

    game: MarkovGame
    stages: Equilibrium
    value: Float[Array, "*batch S"]
    status: Int[Array, "*batch"]

    @property
    def expected_reward(self) -> Float[Array, "*batch S"]:
        """What the row player gets from each state on without regularisers, in reward units."""
        return self.expectation(self.game.reward)

    @property
    def divergence_value(self) -> Float[Array, "*batch S"]:
        """The discounted sum of both players' divergences from each state on, in nats."""
        return _summed(self, self.stages.divergence_value)

    def expectation(self, fn: ArrayLike) -> Float[Array, "*batch S"]:
        """``E[Σ_t γ^t fn(s_t, a_t, b_t)]`` from each state on.

        Args:
            fn: values of states and both actions, ``[S, A, B]`` or ``[*batch, S, A, B]``.

        Raises:
            ValueError: other shapes.
        """
        values = jnp.asarray(fn, self.value.dtype)
        shape = (self.game.num_states, *self.game.num_actions)
        if values.shape[-3:] != shape:
            raise ValueError(
                f"fn has shape {values.shape}: its last axes must be states and both players' "
                f"actions, {shape}"
            )
        return _expectation(self, values)

    def log_prob(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of plays from their first states on.

        Args:
            x: states, the row player's and the column player's actions, integers ``[..., T, 3]``.

        Returns:
            Shape ``[*batch, ...]``: of the actions and of the moves between the states.

        Raises:
            TypeError: what is no integer.
            ValueError: other shapes, more steps than the game has; outside a trace, states or
                actions that there are not.
        """
        rows, columns = self.game.num_actions
        sizes = {"state": self.game.num_states, "row action": rows, "column action": columns}
        path = integer_rows(x, "x", sizes, 2)
        pairs = path[..., 1] * columns + path[..., 2]
        both = _process(self).log_prob(jnp.stack([path[..., 0], pairs], -1))
        # The decision process of both begins in any state alike.
        return both + float(np.log(self.game.num_states))

    def sample(
        self,
        *,
        key: Shaped[Array, ""],
        num_samples: int,
        num_steps: int | None = None,
        start: int = 0,
    ) -> Int[Array, "num_samples *batch T 3"]:
        """Independent plays: states and both actions in turn.

        Args:
            key: a JAX random key.
            num_samples: how many, per row.
            num_steps: by default as many as the horizon has, or 100.
            start: the first state.

        Returns:
            Integers, shape ``[num_samples, *batch, T, 3]``.

        Raises:
            ValueError: no such state, more steps than the game has.
        """
        states, columns = self.game.num_states, self.game.num_actions[1]
        if not 0 <= start < states:
            raise ValueError(f"start must be a state, from 0 to {states - 1}, got {start}")
        process = _process(self, jax.nn.one_hot(start, states, dtype=self.value.dtype))
        path = process.sample(key=key, num_samples=num_samples, num_steps=num_steps)
        state, pair = path[..., 0], path[..., 1]
        return jnp.stack([state, pair // columns, pair % columns], -1)

    def gap(self, log_row: ArrayLike, log_column: ArrayLike) -> Float[Array, "*batch S"]:
        """What two players could gain by answering each other best, added, from each state on.

        Args:
            log_row: log-probabilities of the row player, shaped as ``stages.row.log_probs``.
            log_column: of the column player, shaped as ``stages.column.log_probs``.

        Returns:
            ``max_μ′ J(μ′, ν) − min_ν′ J(μ, ν′)`` in reward units, shape ``[*batch, S]``; a
            difference of two values, which rounding may make negative.
        """
        policies = []
        for name, given, target in (
            ("log_row", log_row, self.stages.row),
            ("log_column", log_column, self.stages.column),
        ):
            x = float_argument(given, name)
            shape = target.log_probs.shape
            if x.shape != shape:
                raise ValueError(f"{name} has shape {x.shape}, but the equilibrium's is {shape}")
            require_normalized(**{name: x})
            policies.append(x.astype(target.log_probs.dtype))
        return _gap(self, *policies)

    @property
    def duality_gap(self) -> Float[Array, "*batch S"]:
        """The gap of the equilibrium itself, its certificate."""
        return self.gap(self.stages.row.log_probs, self.stages.column.log_probs)


def _process(equilibrium: MarkovEquilibrium, start: Array | None = None) -> MDPTarget:
    """Both players as one who acts in pairs, ``a·B + b``, with no rewards of its own."""
    game, stages = equilibrium.game, equilibrium.stages
    states, pairs = game.num_states, game.num_actions[0] * game.num_actions[1]
    row, column = stages.row.log_probs, stages.column.log_probs
    both = row[..., :, None] + column[..., None, :]
    both = both.reshape(*both.shape[:-2], pairs)
    even = jnp.full(states, 1 / states, both.dtype)
    transition = game.transition.astype(both.dtype)
    process = made(
        MDP,
        transition=transition.reshape(*transition.shape[:-4], states, pairs, states),
        reward=jnp.zeros((states, pairs), both.dtype),
        discount=jnp.asarray(game.discount, both.dtype),
        start=even if start is None else start,
        successors=None,
        horizon=game.horizon,
    )
    one = jnp.ones((), both.dtype)
    acted = Target(
        Objective.unchecked(jnp.zeros_like(both), both, one, ReverseKL()),
        both,
        jnp.zeros_like(both[..., 0]),
        stages.status,
    )
    return MDPTarget(process, acted, jnp.zeros_like(equilibrium.value[..., 0]), equilibrium.status)


@jax.jit
def _expectation(equilibrium: MarkovEquilibrium, values: Array) -> Array:
    row, column = equilibrium.stages.row.probs, equilibrium.stages.column.probs
    if equilibrium.game.horizon is not None:
        values = values[..., None, :, :, :]
    gain = jnp.einsum("...a,...ab,...b->...", row, values, column, precision="highest")
    return _summed(equilibrium, gain)


@jax.jit
def _summed(equilibrium: MarkovEquilibrium, gain: Array) -> Array:
    """Discounted sums of what each state and step is worth, from each state on."""
    game, stages = equilibrium.game, equilibrium.stages
    discount = jnp.asarray(game.discount, gain.dtype)
    transition = game.transition.astype(gain.dtype)
    if game.horizon is None:
        return _for_ever(discount, _moves(transition, stages), gain)
    moves = _moves(transition[..., None, :, :, :, :], stages)

    def step(after: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        gain, moves = now
        return gain + discount * times(moves, after), None

    steps = jnp.moveaxis(gain, -2, 0), jnp.moveaxis(moves, -3, 0)
    return lax.scan(step, jnp.zeros_like(steps[0][0]), steps, reverse=True)[0]


def _moves(transition: Array, stages: Equilibrium) -> Array:
    """How likely each state leads to each under both policies, ``[…, S, S]``."""
    return jnp.einsum(
        "...sa,...sabt,...sb->...st",
        stages.row.probs,
        transition,
        stages.column.probs,
        precision="highest",
    )


def _for_ever(discount: Array, moves: Array, gain: Array) -> Array:
    """``(I − γP)⁻¹ gain``."""
    eye = jnp.broadcast_to(jnp.eye(gain.shape[-1], dtype=gain.dtype), moves.shape)
    return jnp.linalg.solve(eye - discount * moves, gain[..., None])[..., 0]


def solve_markov_game(
    game: MarkovGame, log_ref: Any, beta: ArrayLike, divergence: Divergence
) -> MarkovEquilibrium:
    """:func:`kltarget.targets.games.solve_game` of a Markov game."""
    wide = float_argument(beta, "beta")[..., None]
    divergence = jax.tree.map(lambda x: x[..., None] if jnp.ndim(x) else x, divergence)
    sides = players(log_ref, game.num_actions, wide, divergence)
    for side, who in zip(sides, ("row", "column"), strict=True):
        states = side.batch_shape[-1]
        if states not in (1, game.num_states):
            raise ValueError(
                f"log_ref of the {who} player has {states} states and the game "
                f"{game.num_states}: give [*batch, S, A], or one row [A] for all states"
            )
    with worded(
        f"the batch axes of the game {game.reward.shape[:-3]} and of log_ref and beta "
        f"{sides[0].batch_shape[:-1]} do not broadcast"
    ):
        batch = jnp.broadcast_shapes(
            game.reward.shape[:-3], game.transition.shape[:-4], *(x.batch_shape[:-1] for x in sides)
        )
    return _solve(game, *sides, batch)


@functools.partial(jax.jit, static_argnums=3)
def _solve(
    game: MarkovGame, row: Objective, column: Objective, batch: tuple[int, ...]
) -> MarkovEquilibrium:
    layer, shape = _layer(game, row, column), (*batch, game.num_states)

    def stage(payoff: Array, start: Faced | None = None) -> tuple[Equilibrium, Faced, Array]:
        payoff = jnp.broadcast_to(payoff, (*shape, *game.num_actions))
        matrices = made(MatrixGame, payoff=payoff)
        faced, found = faced_by(matrices, row, column, shape, start)
        return equilibrium_of(matrices, row, column, faced, found), faced, found

    if game.horizon is None:
        return _stationary(game, layer, stage, shape)

    def backup(payoff: Array, _: StageGames) -> Any:
        equilibrium, faced, found = stage(payoff)
        return equilibrium.value, (equilibrium.game.payoff, faced, found)

    end = jnp.zeros(shape, layer.reward.dtype)
    values, kept = backward((layer,) * game.horizon, end, backup)
    payoff, faced, found = jax.tree.map(lambda *x: jnp.stack(x, axis=len(batch)), *kept)
    steps = made(MatrixGame, payoff=payoff)
    stages = equilibrium_of(steps, _each_step(row), _each_step(column), faced, found)
    return MarkovEquilibrium(game, stages, values[0], _bits(stages.status, len(batch)))


def _layer(game: MarkovGame, row: Objective, column: Objective) -> StageGames:
    dtype = jnp.result_type(game.reward.dtype, row.reward.dtype)
    arrays = (game.transition, game.reward, game.discount, row.log_ref, column.log_ref)
    transition, reward, discount, *refs = (jnp.asarray(x, dtype) for x in arrays)
    return StageGames(transition, reward, discount, refs[0], refs[1])


def _each_step(side: Objective) -> Objective:
    """The same player with an axis of steps before that of states."""
    log_ref = side.log_ref if side.log_ref.ndim < 3 else side.log_ref[..., None, :, :]
    divergence = jax.tree.map(lambda x: x[..., None] if jnp.ndim(x) else x, side.divergence)
    return Objective.unchecked(side.reward, log_ref, side.beta[..., None], divergence)


def _any_step(side: Objective) -> Objective:
    """What :func:`_each_step` was made of."""
    log_ref = side.log_ref if side.log_ref.ndim < 3 else side.log_ref[..., 0, :, :]
    divergence = jax.tree.map(lambda x: x[..., 0] if jnp.ndim(x) else x, side.divergence)
    return Objective.unchecked(side.reward[..., 0, :, :], log_ref, side.beta[..., 0], divergence)


def _bits(status: Array, num_batch: int) -> Array:
    """The bits of any stage game, ``[*batch]``."""
    axes = tuple(range(num_batch, status.ndim))
    return lax.reduce(status, jnp.int32(0), lax.bitwise_or, axes)


def _stationary(
    game: MarkovGame, layer: StageGames, stage: Any, shape: tuple[int, ...]
) -> MarkovEquilibrium:
    """The fixed point of the same backup, by Newton's steps where these are better than it.

    The backup contracts by the discount. Its derivative in the values is the transition under the
    stage equilibria, so a Newton step is what these two policies would earn for ever.
    """
    fixed = lax.stop_gradient(layer)
    eps = float(jnp.finfo(layer.reward.dtype).eps)

    def sweep(values: Array, start: Faced | None) -> tuple[Array, Array, Faced, Array]:
        equilibrium, faced, found = stage(fixed.children(values), start)
        equilibrium, faced, found = lax.stop_gradient((equilibrium, faced, found))
        after = equilibrium.value
        return after, _newton_step(fixed, equilibrium, values, after), faced, found

    def going(state: Any) -> Array:
        *_, done, count = state
        return jnp.any(~done) & (count < _MAX_SWEEPS)

    def advance(state: Any) -> Any:
        trial, plain, miss, faced, done, count = state
        after, newton, faced, found = sweep(trial, faced)
        now = jnp.abs(after - trial).max(-1, keepdims=True)
        scale = 1 + jnp.abs(after).max(-1, keepdims=True)
        better = (now <= fixed.discount * miss) & jnp.isfinite(newton).all(-1, keepdims=True)
        settled = (now <= 16 * eps * scale) & found.all(-1, keepdims=True)
        # A step that did not help is taken back, and the contraction goes on from there.
        following = jnp.where(better, newton, plain)
        following = jnp.where(done, trial, jnp.where(settled, after, following))
        plain = jnp.where(better, after, plain)
        miss = jnp.where(better, now, jnp.inf)
        return following, plain, miss, faced, done | settled, count + 1

    zero = jnp.zeros(shape, layer.reward.dtype)
    first, _, faced, _ = sweep(zero, None)
    none = jnp.full((*shape[:-1], 1), jnp.inf, layer.reward.dtype)
    no = jnp.zeros((*shape[:-1], 1), bool)
    state = (first, first, none, faced, no, jnp.int32(0))
    values, *_, faced, done, _ = lax.while_loop(going, advance, state)
    values = lax.stop_gradient(values)
    stages, _, _ = stage(layer.children(values), lax.stop_gradient(faced))
    # One more step, at frozen policies, has the derivatives of the fixed point.
    final = _newton_step(fixed, lax.stop_gradient(stages), values, stages.value)
    stages, _, _ = stage(layer.children(final), lax.stop_gradient(faced))
    status = _bits(stages.status, len(shape) - 1) | flag(~done[..., 0], Status.NOT_CONVERGED)
    return MarkovEquilibrium(game, stages, final, status)


def _newton_step(layer: StageGames, stages: Equilibrium, values: Array, after: Array) -> Array:
    moves = _moves(layer.transition, stages)
    return values + _for_ever(layer.discount, moves, after - values)


@jax.jit
def _gap(equilibrium: MarkovEquilibrium, log_row: Array, log_column: Array) -> Array:
    game, stages = equilibrium.game, equilibrium.stages
    row, column = stages.row.objective, stages.column.objective
    if game.horizon is not None:
        row, column = _any_step(row), _any_step(column)
    batch = equilibrium.value.shape[:-1]
    dtype = equilibrium.value.dtype
    layer = _layer(game, row, column)

    def values(of_row: bool) -> Array:
        own, other = (row, column) if of_row else (column, row)
        played = log_column if of_row else log_row

        def best(after: Array, log_other: Array) -> Array:
            payoff = layer.children(after)
            payoff = payoff if of_row else -transposed(payoff)
            faced = times(payoff, jnp.exp(log_other))
            answer = solve(Objective.unchecked(faced, own.log_ref, own.beta, own.divergence))
            nothing = jnp.zeros_like(log_other)
            paid = Objective.unchecked(nothing, other.log_ref, own.beta, own.divergence)
            # The other's divergence counts for the one who answers.
            value = answer.value - paid.value(log_other)
            return value if of_row else -value

        start = jnp.zeros(equilibrium.value.shape, dtype)
        if game.horizon is None:
            eps = float(jnp.finfo(dtype).eps)
            # Rounding keeps values moving: after so many sweeps the discount has left nothing else.
            enough = (jnp.log(eps * (1 - layer.discount)) / jnp.log(layer.discount)).astype(
                jnp.int32
            )

            def going(state: Any) -> Array:
                _, change, count = state
                return (change > eps) & (count <= enough)

            def again(state: Any) -> Any:
                old, _, count = state
                new = best(old, played)
                return new, (jnp.abs(new - old) / (1 + jnp.abs(new))).max(), count + 1

            return lax.while_loop(
                going, again, (start, jnp.full((), jnp.inf, dtype), jnp.int32(0))
            )[0]
        steps = jnp.moveaxis(played, len(batch), 0)

        def step(after: Array, log_other: Array) -> tuple[Array, None]:
            return best(after, log_other), None

        return lax.scan(step, start, steps, reverse=True)[0]

    return values(True) - values(False)
