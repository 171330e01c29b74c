"""``solve_game``: the equilibrium of any of the games, both players regularised to a reference."""

from __future__ import annotations

import functools
from typing import overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kltarget._core.checks import worded
from kltarget.divergences import Divergence, ReverseKL, Scaled, TotalVariation
from kltarget.objectives import Objective
from kltarget.spaces import MarkovGame, MatrixGame, PreferenceGame
from kltarget.targets.games._equilibrium import Equilibrium, equilibrium_of, faced_by, players
from kltarget.targets.games._markov_equilibrium import MarkovEquilibrium, solve_markov_game


@overload
def solve_game(
    game: PreferenceGame | MatrixGame,
    log_ref: ArrayLike | tuple[ArrayLike, ArrayLike],
    beta: ArrayLike,
    divergence: Divergence | None = None,
) -> Equilibrium: ...


@overload
def solve_game(
    game: MarkovGame,
    log_ref: ArrayLike | tuple[ArrayLike, ArrayLike],
    beta: ArrayLike,
    divergence: Divergence | None = None,
) -> MarkovEquilibrium: ...


def solve_game(
    game: PreferenceGame | MatrixGame | MarkovGame,
    log_ref: ArrayLike | tuple[ArrayLike, ArrayLike],
    beta: ArrayLike,
    divergence: Divergence | None = None,
) -> Equilibrium | MarkovEquilibrium:
    """The equilibrium of a game in which both players are regularised to a reference.

    ``max_μ min_ν μᵀAν − β·D(μ, μ_ref) + β·D(ν, ν_ref)``. With reverse KL ``μ ∝ μ_ref e^{Aν/β}``
    and ``ν ∝ ν_ref e^{−Aᵀμ/β}``, each the target of the other; there is one such pair. Of a game of
    preferences both are one policy, ``π ∝ π_ref e^{Pπ/β}``. Actions with equal rows of payoffs keep
    their reference proportions.

    Args:
        game: payoffs ``[*batch, A, B]``, preferences ``[*batch, A, A]``, or a Markov game.
        log_ref: reference log-probabilities, ``[*batch, A]``, of both players; or a tuple of two,
            of the row player ``[*batch, A]`` and of the column player ``[*batch, B]``. Of a Markov
            game with the axis of states, ``[*batch, S, A]``. Games of preferences have one.
        beta: coefficient of the regulariser, in reward units per nat, shape ``[*batch]``.
        divergence: any but those with flat pieces, as total variation is: reverse KL by default.

    Returns:
        An :class:`~kltarget.targets.games.Equilibrium`, or of a Markov game a
        :class:`~kltarget.targets.games.MarkovEquilibrium`.

    Raises:
        TypeError: no game, a divergence that is not one.
        ValueError: shapes that do not fit, values out of range, a divergence under which best
            answers are not unique.

    Newton's method on what the players face, with β brought down from the payoffs' range, in one
    program for the whole batch. What has not been found is flagged ``NOT_CONVERGED``; the duality
    gap certifies what has. In float32 that takes β from about a thousandth of the payoffs' range
    on. Actions without reference mass are not played: where a divergence of finite slope at
    infinity would play them, ``NOT_CONVERGED`` says so. Differentiable in payoffs, references, beta
    and the divergence's parameters by the implicit function theorem.

    Example:
        Rock, paper, scissors and a reference that likes rock; the less it counts, the more even:

        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import PreferenceGame
        >>> from kltarget.targets.games import solve_game
        >>> game = PreferenceGame([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])
        >>> log_ref = jnp.log(jnp.array([0.8, 0.1, 0.1]))
        >>> for policy in solve_game(game, log_ref, jnp.array([1.0, 0.1])).row.probs:
        ...     print([f"{p:.3f}" for p in policy])
        ['0.782', '0.144', '0.074']
        ['0.387', '0.424', '0.189']

    References:
        Munos et al., "Nash Learning from Human Feedback", 2023, arXiv 2312.00886. Nayak et al.,
        "Achieving Logarithmic Regret in KL-Regularized Zero-Sum Markov Games", 2025,
        arXiv 2510.13060.
    """
    divergence = ReverseKL() if divergence is None else divergence
    if not isinstance(divergence, Divergence):
        raise TypeError(f"divergence must be a kltarget.Divergence, got {divergence!r}")
    if isinstance(_base(divergence), TotalVariation) or divergence._flats:
        raise ValueError(
            f"divergence {divergence.name} has flat pieces, on which best answers are not unique: "
            "use a strictly convex one such as kltarget.ReverseKL()"
        )
    if isinstance(game, MarkovGame):
        return solve_markov_game(game, log_ref, beta, divergence)
    if not isinstance(game, PreferenceGame | MatrixGame):
        raise TypeError(
            "game must be a PreferenceGame, a MatrixGame or a MarkovGame, "
            f"got {type(game).__name__}"
        )
    one = isinstance(game, PreferenceGame)
    if one and isinstance(log_ref, tuple):
        raise ValueError(
            "log_ref is a pair, but players of a game of preferences share one reference: "
            "MatrixGame(game.payoff) takes two"
        )
    sides = players(log_ref, game.num_actions, beta, divergence)
    batches = [x.batch_shape for x in sides]
    with worded(
        f"the batch axes of the payoffs {game.payoff.shape[:-2]} and of log_ref and beta "
        f"{batches[0]} do not broadcast"
    ):
        batch = jnp.broadcast_shapes(game.payoff.shape[:-2], *batches)
    return _solve_game(game, sides[0], sides[1], batch)


def _base(divergence: Divergence) -> Divergence:
    return divergence.base if isinstance(divergence, Scaled) else divergence


@functools.partial(jax.jit, static_argnums=3)
def _solve_game(
    game: PreferenceGame | MatrixGame, row: Objective, column: Objective, batch: tuple[int, ...]
) -> Equilibrium:
    faced, found = faced_by(game, row, column, batch, None)
    return equilibrium_of(game, row, column, faced, found)
