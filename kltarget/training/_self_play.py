"""Two softmax policies that train against each other by gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from kltarget._core.checks import positive, positive_if_given, typed_key
from kltarget._core.pytrees import pytree
from kltarget.spaces import MarkovGame, MatrixGame, PreferenceGame
from kltarget.training._markov_players import MarkovPlayers, markov_players
from kltarget.training._two_players import TwoPlayers, two_players


@pytree
class SelfPlay:
    """Two trained policies and how their training went.

    Attributes:
        log_row: the row player's log-probabilities, ``[num_seeds, *batch, A]``; of a Markov game
            ``[num_seeds, *batch, T, S, A]``, without a horizon ``[num_seeds, *batch, S, A]``.
        log_column: the column player's, with B actions in place of A.
        gap: what both could gain by their best answers, added, in reward units, at
            ``num_history`` even steps of the way, ``[num_history + 1, num_seeds, *batch]``; of a
            Markov game the mean over the states that play can begin in.
        step: the numbers of steps taken then, ``[num_history + 1]``.
    """

    log_row: Float[Array, "seeds ... A"]
    log_column: Float[Array, "seeds ... B"]
    gap: Float[Array, "history seeds *batch"]
    step: Any


def self_play(
    game: PreferenceGame | MatrixGame | MarkovGame,
    log_ref: ArrayLike | tuple[ArrayLike, ArrayLike],
    beta: ArrayLike,
    *,
    learning_rate: float,
    num_steps: int,
    key: PRNGKeyArray | None = None,
    batch_size: int | None = None,
    num_seeds: int = 1,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.sgd,
    num_history: int = 20,
) -> SelfPlay:
    """Trains two softmax policies against each other, all games and seeds in one program.

    The row player ascends ``J = μᵀAν − β·KL(μ‖μ_ref) + β·KL(ν‖ν_ref)`` in its logits, the column
    player descends it in its own, both at once. They start at the references, from the second seed
    on next to them. In a Markov game J is the discounted sum of this over the steps, differentiated
    through the values of the pair, from a first state that is drawn evenly.

    Args:
        game: payoffs ``[*batch, A, B]``, preferences ``[*batch, A, A]`` or a Markov game.
        log_ref: reference log-probabilities of both players or a tuple of two, ``[*batch, A]``; of
            a Markov game also ``[*batch, S, A]``.
        beta: coefficient, in reward units per nat, ``[*batch]``.
        learning_rate: what ``optimizer`` is called with.
        num_steps: number of gradient steps of each player.
        key: a random key; needed with ``batch_size`` and for several seeds.
        batch_size: pairs of actions drawn per step, whose payoffs less β times the log ratio are
            the advantages of a score-function gradient, centred by the mean of the others; None
            follows the exact gradient, as Markov games must.
        num_seeds: how many pairs of policies per game.
        optimizer: makes an optax transformation from a learning rate, such as ``optax.adam``.
        num_history: how often the gap is measured on the way.

    Returns:
        Both policies and the gap along the way. The gap needs best answers alone, no equilibrium.

    Raises:
        TypeError: no such game.
        ValueError: shapes that do not fit, values out of range, a missing key.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import MatrixGame
        >>> from kltarget.training import self_play
        >>> log_ref = jnp.log(jnp.array([0.6, 0.4]))
        >>> game = MatrixGame([[1.0, 0.0], [0.0, 1.0]])
        >>> run = self_play(game, log_ref, 0.5, learning_rate=1.0, num_steps=200)
        >>> bool(run.gap[-1, 0] < 1e-5)
        True
    """
    if isinstance(game, MarkovGame):
        if batch_size is not None:
            raise ValueError(
                "batch_size is for games of one stage, but game is a MarkovGame: leave it out"
            )
        play = markov_players(game, log_ref, beta)
    elif isinstance(game, PreferenceGame | MatrixGame):
        play = two_players(game, log_ref, beta)
    else:
        raise TypeError(
            "game must be a PreferenceGame, a MatrixGame or a MarkovGame, "
            f"got {type(game).__name__}"
        )
    for name, x in (("num_seeds", num_seeds), ("num_history", num_history)):
        positive(name, x)
    positive("num_steps", num_steps, 1)
    positive_if_given("batch_size", batch_size, 2)
    if jnp.ndim(learning_rate) or not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be a number above 0, got {learning_rate}")
    if key is None and (batch_size is not None or num_seeds > 1):
        raise ValueError("key is needed for samples and for several seeds: key=jax.random.key(0)")
    given = jax.random.key(0) if key is None else typed_key(key)
    each = -(-num_steps // num_history)
    rate = jnp.asarray(learning_rate, play.beta.dtype)
    program = (num_seeds, batch_size, optimizer, each, num_steps)
    log_row, log_column, gap = _train(play, rate, given, *program)
    step = [min(each * k, num_steps) for k in range(len(gap))]
    return SelfPlay(log_row, log_column, gap, jnp.asarray(step))


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _train(
    play: TwoPlayers | MarkovPlayers,
    rate: Array,
    key: Array,
    num_seeds: int,
    batch_size: int | None,
    optimizer: Any,
    each: int,
    num_steps: int,
) -> tuple[Array, Array, Array]:
    play = play.repeated(num_seeds)
    refs, method = play.references, optimizer(rate)
    start_key, key = jax.random.split(key)
    keys = jax.random.split(start_key)

    def beside(log_ref: Array, key: Array) -> Array:
        # What has no reference mass has none in training either.
        some = jnp.where(log_ref > -jnp.inf, log_ref, 0.0)
        apart = 0.1 * jax.random.normal(key, some.shape, some.dtype)
        return some + apart.at[0].set(0.0)

    params = tuple(beside(ref, k) for ref, k in zip(refs, keys, strict=True))

    def policies(params: Any) -> tuple[Array, Array]:
        masked = [jnp.where(r > -jnp.inf, x, -jnp.inf) for x, r in zip(params, refs, strict=True)]
        row, column = (jax.nn.log_softmax(x, axis=-1) for x in masked)
        return row, column

    def gradient(params: Any, key: Array) -> Any:
        """Of what each player minimises."""
        if batch_size is None:
            up, down = jax.grad(lambda p: play.objective(*policies(p)).sum())(params)
            return -up, down
        assert isinstance(play, TwoPlayers)
        size, pair = batch_size, play
        return jax.grad(lambda p: _surrogate(pair, *policies(p), key, size))(params)

    def step(state: Any, time: Array) -> tuple[Any, None]:
        params, memory = state
        slopes = gradient(params, jax.random.fold_in(key, time))
        with jax.numpy_dtype_promotion("standard"):
            updates, after = method.update(slopes, memory, params)
            moved = optax.apply_updates(params, updates)
        go = time < num_steps
        keep = functools.partial(jnp.where, go)
        return (jax.tree.map(keep, moved, params), jax.tree.map(keep, after, memory)), None

    def stretch(state: Any, begin: Array) -> tuple[Any, Array]:
        state, _ = lax.scan(step, state, begin + jnp.arange(each))
        return state, play.gap(*policies(state[0]))

    with jax.numpy_dtype_promotion("standard"):
        memory = method.init(params)
    begins = jnp.arange(0, num_steps, each)
    (last, _), gaps = lax.scan(stretch, (params, memory), begins)
    first = play.gap(*policies(params))
    return *policies(last), jnp.concatenate([first[None], gaps])


def _surrogate(
    play: TwoPlayers, log_mu: Array, log_nu: Array, key: Array, batch_size: int
) -> Array:
    """A sum whose derivative is minus what each player's samples say it should ascend."""
    of_row, of_column = jax.random.split(key)
    shape = (batch_size, *log_mu.shape[:-1])
    i = jax.random.categorical(of_row, log_mu, axis=-1, shape=shape)
    j = jax.random.categorical(of_column, log_nu, axis=-1, shape=shape)

    def at(x: Array, k: Array) -> Array:
        return jnp.take_along_axis(jnp.broadcast_to(x, (*k.shape, x.shape[-1])), k[..., None], -1)[
            ..., 0
        ]

    rows = jnp.broadcast_to(play.payoff, (batch_size, *play.payoff.shape))
    got = at(jnp.take_along_axis(rows, i[..., None, None], -2)[..., 0, :], j)
    beta = jnp.broadcast_to(play.beta[..., 0], shape)
    total = jnp.zeros((), got.dtype)
    sides = ((i, log_mu, play.log_row, got), (j, log_nu, play.log_column, -got))
    for k, log_policy, log_ref, earned in sides:
        chosen = at(log_policy, k)
        advantage = earned - beta * lax.stop_gradient(chosen - at(log_ref, k))
        # Against the mean of the others, of which one's own sample is independent.
        centred = (advantage - advantage.mean(0, keepdims=True)) * batch_size / (batch_size - 1)
        total = total - (lax.stop_gradient(centred) * chosen).mean(0).sum()
    return total
