"""Iterations towards the equilibrium of a game that look at payoffs alone: Mirror Prox, Nash-MD."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import float_argument, positive, raise_first, worded
from kltarget._core.pytrees import pytree
from kltarget.spaces import MatrixGame, PreferenceGame
from kltarget.training._two_players import TwoPlayers, gibbs, owed, seen, two_players


@pytree
class GamePath:
    """Both players' policies along an iteration, from the references on.

    Attributes:
        log_row: log-probabilities of the row player, ``[num_steps + 1, *batch, A]``.
        log_column: of the column player, ``[num_steps + 1, *batch, B]``; in a game of preferences
            the same.
        gap: what both could gain by their best answers, added, in reward units,
            ``[num_steps + 1, *batch]``; 0 at the equilibrium alone.
    """

    log_row: Float[Array, "steps *batch A"]
    log_column: Float[Array, "steps *batch B"]
    gap: Float[Array, "steps *batch"]


def mirror_prox(
    game: PreferenceGame | MatrixGame,
    log_ref: ArrayLike | tuple[ArrayLike, ArrayLike],
    beta: ArrayLike,
    *,
    num_steps: int,
    step_size: ArrayLike | None = None,
) -> GamePath:
    """Steps of Mirror Prox in ``max_μ min_ν μᵀAν − β·KL(μ‖μ_ref) + β·KL(ν‖ν_ref)``.

    A step of each player is ``prox(π, x) ∝ [π_ref^η π e^{ηx/β}]^{1/(1+η)}`` with x what it faces.
    Both look half a step ahead, ``h = prox(π_k, x(π_k))``, and then step from where they are with
    what they face there, ``π_{k+1} = prox(π_k, x(h))``. The divergence from the equilibrium
    ``KL(μ*‖μ_k) + KL(ν*‖ν_k)`` then shrinks by ``1 + η`` a step at least.

    Args:
        game: payoffs ``[*batch, A, B]`` or preferences ``[*batch, A, A]``.
        log_ref: reference log-probabilities of both players or a tuple of two, ``[*batch, A]``.
        beta: coefficient, in reward units per nat, ``[*batch]``.
        num_steps: how many steps to take; each looks at the payoffs twice.
        step_size: η; by default the largest that is safe, β over half of the payoffs' range, which
            is 2β for preferences. Broadcasts with ``*batch``.

    Returns:
        The path of both policies.

    Raises:
        TypeError: no such game.
        ValueError: shapes that do not fit, values out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import PreferenceGame
        >>> from kltarget.training import mirror_prox
        >>> game = PreferenceGame([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])
        >>> path = mirror_prox(game, jnp.log(jnp.array([0.8, 0.1, 0.1])), 1.0, num_steps=30)
        >>> print([f"{p:.3f}" for p in jnp.exp(path.log_row[-1])])
        ['0.782', '0.144', '0.074']

    References:
        Tiapkin et al., "Accelerating Nash Learning from Human Feedback via Mirror Prox", 2025,
        arXiv 2505.19731. Nemirovski, "Prox-method with rate of convergence O(1/t)", 2004.
    """
    positive("num_steps", num_steps, 0)
    play = two_players(game, log_ref, beta)
    if step_size is None:
        half = 0.5
        if isinstance(game, MatrixGame):
            half = (play.payoff.max((-1, -2)) - play.payoff.min((-1, -2)))[..., None] / 2
        step = play.beta / jnp.maximum(jnp.asarray(half, play.beta.dtype), play.beta * 1e-6)
    else:
        play, step = _with_step(step_size, play)
    return _mirror_prox(play, step, num_steps)


def nash_md(
    game: PreferenceGame,
    log_ref: ArrayLike,
    beta: ArrayLike,
    *,
    step_size: ArrayLike,
    num_steps: int,
) -> GamePath:
    """Steps of Nash-MD in a game of preferences, against a mixture of policy and reference.

    With η the step and ``π̄ ∝ π^{1−ηβ} π_ref^{ηβ}`` the geometric mixture, a step is
    ``π ← argmax η·P(π ≻ π̄) − KL(π‖π̄)``, thus ``π ∝ π̄ e^{η P π̄}``. Because the opponent is π̄ and
    not π, a constant step comes to rest at ``π ∝ π_ref e^{P π̄/β}``, which is off the equilibrium by
    a bias that shrinks with the step.

    Args:
        game: preferences ``[*batch, A, A]``.
        log_ref: reference log-probabilities, ``[*batch, A]``.
        beta: coefficient, in reward units per nat, ``[*batch]``.
        step_size: η, in nats per unit of preference, with ηβ at most 1; broadcasts with
            ``*batch``.
        num_steps: how many steps to take; each looks at the preferences once.

    Returns:
        The path of the policy.

    Raises:
        TypeError: no game of preferences.
        ValueError: shapes that do not fit, values out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import PreferenceGame
        >>> from kltarget.training import nash_md
        >>> game = PreferenceGame([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])
        >>> log_ref = jnp.log(jnp.array([0.8, 0.1, 0.1]))
        >>> path = nash_md(game, log_ref, 1.0, step_size=0.5, num_steps=100)
        >>> print(f"{path.gap[-1]:.1e}")
        1.1e-04

    References:
        Munos et al., "Nash Learning from Human Feedback", 2023, arXiv 2312.00886.
    """
    if not isinstance(game, PreferenceGame):
        raise TypeError(f"game must be a PreferenceGame, got {type(game).__name__}")
    positive("num_steps", num_steps, 0)
    play = two_players(game, log_ref, beta)
    play, step = _with_step(step_size, play)
    rule = "times beta must be at most 1"
    raise_first("step_size", step, step * play.beta > 1, rule)
    return _nash_md(play, step, num_steps)


def _with_step(step_size: ArrayLike, play: TwoPlayers) -> tuple[TwoPlayers, Array]:
    """The games and their steps, of one batch shape, which either may extend."""
    step = float_argument(step_size, "step_size").astype(play.beta.dtype)
    raise_first("step_size", step, ~((step > 0) & (step < jnp.inf)), "must be above 0 and finite")
    batch = play.beta.shape[:-1]
    with worded(f"step_size has shape {step.shape}, which does not broadcast to {batch}"):
        full = jnp.broadcast_shapes(step.shape, batch)
    wide = [jnp.broadcast_to(x, (*full, *x.shape[len(batch) :])) for x in play]
    return TwoPlayers(*wide), jnp.broadcast_to(step, full)[..., None]


def prox(log_policy: Array, log_ref: Array, scaled: Array, step: Array) -> Array:
    """``[π_ref^η π e^{η·scaled}]^{1/(1+η)}``, normalised, in logarithms."""
    return gibbs((log_policy + step * (log_ref + scaled)) / (1 + step), jnp.zeros_like(scaled))


def prox_step(play: TwoPlayers, log_mu: Array, log_nu: Array, step: Array) -> tuple[Array, Array]:
    """One step of Mirror Prox of both players."""

    def ahead(faced_mu: Array, faced_nu: Array) -> tuple[Array, Array]:
        up = seen(play.payoff, faced_nu) / play.beta
        down = -owed(play.payoff, faced_mu) / play.beta
        row = prox(log_mu, play.log_row, up, step)
        return row, prox(log_nu, play.log_column, down, step)

    return ahead(*ahead(log_mu, log_nu))


@functools.partial(jax.jit, static_argnums=2)
def _mirror_prox(play: TwoPlayers, step: Array, num_steps: int) -> GamePath:
    def advance(pair: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple]:
        after = prox_step(play, *pair, step)
        return after, after

    return _path(play, advance, num_steps)


@functools.partial(jax.jit, static_argnums=2)
def _nash_md(play: TwoPlayers, step: Array, num_steps: int) -> GamePath:
    kept = 1 - step * play.beta

    def advance(pair: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple]:
        log_policy = pair[0]
        on = play.log_row > -jnp.inf
        own = jnp.where(on, log_policy, 0.0)
        mixed = jnp.where(on, kept * own + (1 - kept) * jnp.where(on, play.log_row, 0.0), -jnp.inf)
        mixed = gibbs(mixed, jnp.zeros_like(mixed))
        after = gibbs(mixed, step * seen(play.payoff, mixed))
        pair = (after, after)
        return pair, pair

    return _path(play, advance, num_steps)


def _path(play: TwoPlayers, advance: Any, num_steps: int) -> GamePath:
    start = (play.log_row, play.log_column)
    _, after = lax.scan(advance, start, None, length=num_steps)
    row, column = (jnp.concatenate([x[None], y]) for x, y in zip(start, after, strict=True))
    return GamePath(row, column, jax.vmap(play.gap)(row, column))
