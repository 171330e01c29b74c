"""Learning to play a game from noisy payoffs: best answers with optimistic bonuses."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from kltarget._core.checks import positive, typed_key
from kltarget._core.pytrees import pytree
from kltarget.spaces import MarkovGame, MatrixGame, PreferenceGame, StageGames
from kltarget.training._game_iterations import prox_step
from kltarget.training._markov_players import MarkovPlayers
from kltarget.training._two_players import (
    TwoPlayers,
    gibbs,
    one_stage,
    owed,
    references,
    seen,
)


@pytree
class OptimisticPlay:
    """How learning went.

    Attributes:
        regret: after each round, the sum of what both players could have gained by best answers to
            the policies held until then, in reward units, ``[num_seeds, num_rounds]``.
        log_row: the last policies of the row player, ``[num_seeds, T, S, A]``, or
            ``[num_seeds, A]`` of a matrix game.
        log_column: of the column player.
        visits: how often each pair of actions was tried, ``[num_seeds, T, S, A, B]``, or
            ``[num_seeds, A, B]``.
    """

    regret: Float[Array, "seeds rounds"]
    log_row: Float[Array, "seeds ..."]
    log_column: Float[Array, "seeds ..."]
    visits: Float[Array, "seeds ..."]


class _Setting(NamedTuple):
    transition: Array
    reward: Array
    log_row: Array
    log_column: Array
    beta: Array
    noise: Array
    bonus: Array
    discount: Array


class _Known(NamedTuple):
    """What one learner has seen and holds: sums of payoffs, visits, moves, and policies."""

    paid: Array
    visits: Array
    moves: Array
    log_row: Array
    log_column: Array


def optimistic_play(
    game: PreferenceGame | MatrixGame | MarkovGame,
    log_ref: ArrayLike | tuple[ArrayLike, ArrayLike],
    beta: float,
    *,
    key: Shaped[Array, ""],
    num_rounds: int,
    num_seeds: int = 1,
    noise: float = 0.5,
    bonus: float = 0.5,
    inner_steps: int = 10,
) -> OptimisticPlay:
    """Learns ``max_μ min_ν E[payoff] − β·KL(μ‖μ_ref) + β·KL(ν‖ν_ref)`` from noisy bandit feedback.

    In every round the policies (μ, ν) are those of the game of mean payoffs seen so far. What is
    tried are best answers under optimism: the row player answers ν with a bonus of
    ``bonus/√(1 + visits)`` on every pair of actions, the column player answers μ with the same
    taken off, and each pair, (answer, ν) and (μ, answer), is played once. In a Markov game the
    same is done at every step and state, backwards, with values of the means, of the optimistic and
    of the pessimistic estimates, and two episodes are played from state 0. Because answers are
    smooth in the payoffs, what is lost in round t is of the order of a squared error, 1/t.

    Args:
        game: without batch axes; a Markov game with a horizon.
        log_ref: reference log-probabilities of both players or a tuple of two, ``[A]``; of a Markov
            game for all states.
        beta: coefficient, in reward units per nat, above 0.
        key: a random key.
        num_rounds: how many rounds, each of two plays.
        num_seeds: how many learners, all in one program.
        noise: standard deviation of what is added to payoffs that are seen.
        bonus: factor of the bonuses, in reward units, 0 or more.
        inner_steps: steps of Mirror Prox by which a round's policies follow the estimates, from
            those of the last round.

    Returns:
        The regret and what was learnt.

    Raises:
        TypeError: no game.
        ValueError: shapes that do not fit, values out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.spaces import MatrixGame
        >>> from kltarget.training import optimistic_play
        >>> even = jnp.log(jnp.array([0.5, 0.5]))
        >>> learnt = optimistic_play(
        ...     MatrixGame([[1.0, 0.0], [0.0, 1.0]]),
        ...     even,
        ...     1.0,
        ...     key=jax.random.key(0),
        ...     num_rounds=500,
        ... )
        >>> learnt.regret.shape, bool(learnt.regret[0, -1] < 2 * learnt.regret[0, 99])
        ((1, 500), True)

    References:
        Nayak et al., "Achieving Logarithmic Regret in KL-Regularized Zero-Sum Markov Games", 2025,
        arXiv 2510.13060 (OMG and SOMG). Here estimates are means per pair of actions, the factor of
        the bonus is given and not that of the proof, and the equilibria of the estimates are
        followed by Mirror Prox.
    """
    if not isinstance(game, PreferenceGame | MatrixGame | MarkovGame):
        raise TypeError(
            f"game must be a PreferenceGame, MatrixGame or MarkovGame, got {type(game).__name__}"
        )
    flat = not isinstance(game, MarkovGame)
    stages = one_stage(game) if flat else game
    if stages.horizon is None:
        raise ValueError("game has no horizon: play of episodes needs one, MarkovGame(horizon=T)")
    if stages.reward.ndim != 3 or stages.transition.ndim != 4:
        raise ValueError(f"game has batch axes, of payoffs {stages.reward.shape}: give one game")
    for name, x in (("num_rounds", num_rounds), ("num_seeds", num_seeds)):
        positive(name, x)
    positive("inner_steps", inner_steps)
    for name, x in (("noise", noise), ("bonus", bonus)):
        if not 0 <= x < float("inf"):
            raise ValueError(f"{name} must be 0 or more and finite, got {x}")
    rows, columns = references(log_ref, game.num_actions, beta)
    if rows.ndim != 1 or columns.ndim != 1 or jnp.ndim(beta):
        raise ValueError(
            f"log_ref has shapes {rows.shape} and {columns.shape}, beta {jnp.shape(beta)}: one "
            "reference for all states and one beta are taken"
        )
    states, dtype = stages.num_states, rows.dtype
    numbers = (jnp.asarray(x, dtype) for x in (beta, noise, bonus, stages.discount))
    setting = _Setting(
        stages.transition.astype(dtype),
        stages.reward.astype(dtype),
        jnp.broadcast_to(rows, (states, rows.shape[0])),
        jnp.broadcast_to(columns, (states, columns.shape[0])),
        *numbers,
    )
    keys = jax.random.split(typed_key(key), num_seeds)
    regret, known = _learn(setting, keys, stages.horizon, num_rounds, inner_steps)
    parts = (known.log_row, known.log_column, known.visits)
    log_row, log_column, visits = (x[:, 0, 0] if flat else x for x in parts)
    return OptimisticPlay(regret, log_row, log_column, visits)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _learn(
    setting: _Setting, keys: Array, horizon: int, num_rounds: int, inner_steps: int
) -> tuple[Array, _Known]:
    states, rows, columns = setting.reward.shape
    dtype = setting.reward.dtype

    def learner(key: Array) -> tuple[Array, _Known]:
        tries = jnp.zeros((horizon, states, rows, columns), dtype)
        start = _Known(
            tries,
            tries,
            jnp.zeros((horizon, states, rows, columns, states), dtype),
            jnp.broadcast_to(setting.log_row, (horizon, states, rows)),
            jnp.broadcast_to(setting.log_column, (horizon, states, columns)),
        )

        def advance(state: tuple[_Known, Array], key: Array) -> tuple[tuple[_Known, Array], Array]:
            known, total = state
            policies, answers = _policies(setting, known, inner_steps)
            total = total + _lost(setting, *policies)
            known = known._replace(log_row=policies[0], log_column=policies[1])
            first, second = jax.random.split(key)
            known = _episode(setting, known, answers[0], policies[1], first)
            known = _episode(setting, known, policies[0], answers[1], second)
            return (known, total), total

        steps = jax.random.split(key, num_rounds)
        (known, _), regret = lax.scan(advance, (start, jnp.zeros((), dtype)), steps)
        return regret, known

    return jax.vmap(learner)(keys)


def _policies(
    setting: _Setting, known: _Known, inner_steps: int
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Policies of the mean estimates, and optimistic answers to them, backwards."""
    visits, beta = known.visits, setting.beta
    mean = known.paid / (1 + visits)
    # A move that was never seen is taken to lead anywhere.
    states = setting.reward.shape[0]
    chance = (known.moves + 1 / states) / (1 + visits)[..., None]
    horizon = visits.shape[0]
    left = horizon - jnp.arange(horizon, dtype=mean.dtype)
    extra = (setting.bonus * left)[:, None, None, None] / jnp.sqrt(1 + visits)
    # The size of rewards is known beforehand, as bounds on regret assume.
    most = jnp.abs(setting.reward).max() + setting.bonus

    def step(values: tuple[Array, Array, Array], given: Any) -> tuple[Any, Any]:
        mean, chance, extra, left, log_mu, log_nu = given

        def payoff(after: Array) -> Array:
            return mean + setting.discount * jnp.einsum("sabt,t->sab", chance, after)

        middle, high, low = map(payoff, values)
        limit = most * left
        high = jnp.clip(high + extra, -limit, limit)
        low = jnp.clip(low - extra, -limit, limit)
        wide = jnp.broadcast_to(beta, (states, 1))
        play = TwoPlayers(middle, setting.log_row, setting.log_column, wide)
        half = (middle.max((-1, -2)) - middle.min((-1, -2)))[..., None] / 2
        size = beta / jnp.maximum(half, 0.1 * beta)

        def follow(_: Any, pair: tuple[Array, Array]) -> tuple[Array, Array]:
            return prox_step(play, pair[0], pair[1], size)

        log_mu, log_nu = lax.fori_loop(0, inner_steps, follow, (log_mu, log_nu))
        up = gibbs(setting.log_row, seen(high, log_nu) / beta)
        down = gibbs(setting.log_column, -owed(low, log_mu) / beta)
        pairs = ((middle, log_mu, log_nu), (high, up, log_nu), (low, log_mu, down))
        now = tuple(play._replace(payoff=x).objective(*pair) for x, *pair in pairs)
        return now, (log_mu, log_nu, up, down)

    nothing = jnp.zeros(states, mean.dtype)
    given = (mean, chance, extra, left, known.log_row, known.log_column)
    _, kept = lax.scan(step, (nothing, nothing, nothing), given, reverse=True)
    return kept[:2], kept[2:]


def _lost(setting: _Setting, log_row: Array, log_column: Array) -> Array:
    """What best answers to each policy would gain together in the true game, from state 0."""
    refs = setting.log_row, setting.log_column
    stages = StageGames(setting.transition, setting.reward, setting.discount, *refs)
    beta = jnp.broadcast_to(setting.beta, (setting.reward.shape[0], 1))
    return MarkovPlayers(stages, beta, log_row.shape[0]).gains(log_row, log_column)[0]


def _episode(
    setting: _Setting, known: _Known, log_row: Array, log_column: Array, key: Array
) -> _Known:
    """One episode of play from state 0 and what is seen of it."""
    horizon = log_row.shape[0]

    def step(state: Array, given: Any) -> tuple[Array, Any]:
        log_mu, log_nu, key = given
        of_row, of_column, of_noise, of_state = jax.random.split(key, 4)
        i = jax.random.categorical(of_row, log_mu[state])
        j = jax.random.categorical(of_column, log_nu[state])
        dtype = setting.reward.dtype
        got = setting.reward[state, i, j] + setting.noise * jax.random.normal(of_noise, (), dtype)
        after = jax.random.categorical(of_state, jnp.log(setting.transition[state, i, j]))
        return after, (state, i, j, got, after)

    keys = jax.random.split(key, horizon)
    start = jnp.zeros((), jnp.result_type(int))
    _, (state, i, j, got, after) = lax.scan(step, start, (log_row, log_column, keys))
    at = (jnp.arange(horizon), state, i, j)
    return known._replace(
        paid=known.paid.at[at].add(got),
        visits=known.visits.at[at].add(1.0),
        moves=known.moves.at[(*at, after)].add(1.0),
    )
