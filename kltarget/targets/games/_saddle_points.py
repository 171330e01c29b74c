"""Equilibria of zero-sum games by Newton's method on what each player answers to the other.

In units of the regulariser the row player faces ``u = Aν/β`` and the column player
``v = −Aᵀμ/β``; both answer by the targets of these rewards at β = 1, so the unknowns are u and v,
each up to a constant, and the equations ``u = Aν(v)/β`` and ``v = −Aᵀμ(u)/β``. Their Jacobian,
the identity plus a skew matrix times a positive one, is never singular, and Newton's steps always
shorten the residual if they are short enough. β comes down from the payoffs' range by factors: at
small β the answers jump from one action to another, and steps from afar would be tiny.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from kltarget._core.matrices import product, times, transposed
from kltarget._core.numerics import log_sum_exp
from kltarget.divergences import Divergence
from kltarget.targets.discrete._implicit import differentiable_closed_form

MAX_STEPS = 1000
_FACTOR = 1.4
"""By how much β comes down at a time."""


class Play(NamedTuple):
    """A batch of games with everything that both players' answers depend on.

    Attributes:
        divergence: with parameters, if arrays, of shape ``[N, 1]``.
        payoff: ``[N, A, B]``.
        log_row: the row player's reference, ``[N, A]``.
        log_column: the column player's, ``[N, B]``; None where both are one player's, as in a game
            of preferences, whose payoff less ½ is skew.
        beta: ``[N, 1]``.
    """

    divergence: Divergence
    payoff: Float[Array, "N A B"]
    log_row: Float[Array, "N A"]
    log_column: Float[Array, "N B"] | None
    beta: Float[Array, "N 1"]


Faced = tuple[Float[Array, "... A"], Float[Array, "... B"] | None]
"""What the players face, u and v; of a symmetric game u alone."""


class _Answer(NamedTuple):
    probs: Array
    weights: Array
    """``∂ log π/∂u`` is diagonal in these but for a constant, times 1/π."""


def log_answer(divergence: Divergence, faced: Array, log_ref: Array) -> Array:
    """Log-probabilities of the target of rewards in units of the regulariser."""
    one = jnp.ones_like(faced[..., :1])
    # A divergence of finite slope at infinity must not find an action that nobody faces.
    faced = jnp.where(log_ref > -jnp.inf, faced, -jnp.inf)
    return differentiable_closed_form(divergence, faced, log_ref, one, None, False, None).log_probs


def _answer(divergence: Divergence, faced: Array, log_ref: Array) -> _Answer:
    log_probs = log_answer(divergence, faced, log_ref)
    on = (log_probs > -jnp.inf) & (log_ref > -jnp.inf)
    log_u = jnp.where(on, log_probs, 0.0) - jnp.where(on, log_ref, 0.0)
    probs = jnp.exp(log_probs)
    steep = jnp.where(on, divergence._log_elasticity(log_u), 0.0)
    return _Answer(probs, jnp.where(on, probs * jnp.exp(steep), 0.0))


def _answers(play: Play, faced: Faced) -> tuple[_Answer, _Answer | None]:
    row = _answer(play.divergence, faced[0], play.log_row)
    if faced[1] is None or play.log_column is None:
        return row, None
    return row, _answer(play.divergence, faced[1], play.log_column)


def _levelled(faced: Array, log_ref: Array) -> Array:
    """Shifted so that a player who pays reverse KL would gain nothing: close to 0 where played."""
    return faced - log_sum_exp(log_ref + faced)


def _centred(matrix: Array, weights: Array) -> Array:
    """Rows less their weighted means, of whose multiples answers do not depend."""
    total = weights.sum(-1, keepdims=True)
    share = weights / jnp.where(total > 0, total, 1.0)
    return matrix - times(matrix, share)[..., None]


def _direction(play: Play, scaled: Array, missing: Faced, answers: Any) -> Faced:
    """Minus the inverse Jacobian times what is missing."""
    row, column = answers
    r, s = missing
    eye = jnp.broadcast_to(jnp.eye(scaled.shape[-2], dtype=scaled.dtype), _square(scaled))
    if s is None:
        jacobian = eye - _centred(scaled, row.weights) * row.weights[..., None, :]
        return _solved(jacobian, -r), None
    left = _centred(scaled, column.weights) * column.weights[..., None, :]
    curvature = product(left, transposed(_centred(scaled, column.weights)))
    jacobian = eye + _centred(curvature, row.weights) * row.weights[..., None, :]
    du = _solved(jacobian, -r - times(left, s))
    back = _centred(transposed(scaled), row.weights) * row.weights[..., None, :]
    return du, -s - times(back, du)


def _square(x: Array) -> tuple[int, ...]:
    return (*x.shape[:-1], x.shape[-2])


def _solved(matrix: Array, x: Array) -> Array:
    return jnp.linalg.solve(matrix, x[..., None])[..., 0]


def _missing(scaled: Array, faced: Faced, answers: Any, refs: Any) -> Faced:
    """How far each player is from facing what the other answers."""
    (u, v), (row, column) = faced, answers
    if v is None:
        return u - _levelled(times(scaled, row.probs), refs[0]), None
    r = u - _levelled(times(scaled, column.probs), refs[0])
    return r, v - _levelled(-times(transposed(scaled), row.probs), refs[1])


class _State(NamedTuple):
    faced: Faced
    step: Faced
    """Of full length; what is tried next is ``share`` of it."""
    share: Array
    miss: Array
    beta: Array
    done: Bool[Array, "N 1"]
    failed: Bool[Array, "N 1"]
    taken: Array


def _newton(play: Play, start: Faced | None) -> tuple[Faced, Bool[Array, "N 1"]]:
    """What the players face at the equilibrium, and whether it was found."""
    play = lax.stop_gradient(play)
    refs = (play.log_row, play.log_column)
    possible = [None if x is None else x > -jnp.inf for x in refs]
    dtype = play.payoff.dtype
    inside = _inside(play)
    high = jnp.where(inside, play.payoff, -jnp.inf).max((-1, -2))[..., None]
    low = jnp.where(inside, play.payoff, jnp.inf).min((-1, -2))[..., None]
    # Constants change nothing, and rounding less where payoffs are small.
    payoff = jnp.where(inside, play.payoff - ((high + low) / 2)[..., None], 0.0)
    first = jnp.maximum(play.beta, high - low)
    near = jnp.asarray(float(jnp.finfo(dtype).eps) ** 0.5, dtype)
    if start is not None:
        first = play.beta
    zeros = jax.tree.map(jnp.zeros_like, (play.log_row, play.log_column))
    begin = zeros if start is None else start
    one = jnp.ones_like(play.beta)
    no = jnp.zeros(one.shape, bool)

    def evaluate(faced: Faced, beta: Array) -> tuple[Faced, Array, Faced]:
        faced = jax.tree.map(lambda x, ref: _levelled(x, ref), faced, refs)
        row, column = _answers(play, faced)
        scaled = payoff / beta[..., None]
        missing = _missing(scaled, faced, (row, column), refs)
        missing = jax.tree.map(lambda x, on: jnp.where(on, x, 0.0), missing, tuple(possible))
        step = _direction(play, scaled, missing, (row, column))
        return faced, _norm(missing), step

    def going(state: _State) -> Array:
        return jnp.any(~(state.done | state.failed)) & (state.taken < MAX_STEPS)

    def advance(state: _State) -> _State:
        moved = jax.tree.map(lambda x, d: x + state.share * d, state.faced, state.step)
        faced, miss, step = evaluate(moved, state.beta)
        length = _relative(step, faced)
        taken = (miss <= (1 - 0.1 * state.share) * state.miss) | (length < near)
        settled = taken & (length < jnp.where(state.beta > play.beta, 0.1, near))
        at_end = settled & (state.beta <= play.beta)
        lower = settled & ~at_end
        active = ~(state.done | state.failed)
        # The last step is short enough that what it leaves is rounding.
        last = jax.tree.map(jnp.add, faced, step)
        keep = jax.tree.map(
            lambda end, new, old: jnp.where(
                active & at_end, end, jnp.where(active & taken, new, old)
            ),
            last,
            faced,
            state.faced,
        )
        new_step = jax.tree.map(lambda new, old: jnp.where(taken, new, old), step, state.step)
        # At a new β its own step is not known yet: what is tried first is to stay.
        new_step = jax.tree.map(lambda x: jnp.where(lower, 0.0, x), new_step)
        share = jnp.where(taken, one, state.share / 2)
        failed = state.failed | (share < near**2) | ~jnp.isfinite(length)
        return _State(
            keep,
            new_step,
            share,
            jnp.where(lower, jnp.inf, jnp.where(taken, miss, state.miss)),
            jnp.where(lower, jnp.maximum(play.beta, state.beta / _FACTOR), state.beta),
            state.done | (active & at_end),
            failed & ~state.done,
            state.taken + 1,
        )

    infinite = jnp.full_like(one, jnp.inf)
    state = _State(begin, zeros, one, infinite, first, no, no, jnp.int32(0))
    state = lax.while_loop(going, advance, state)
    return jax.tree.map(_levelled, state.faced, refs), state.done


def _inside(play: Play) -> Array:
    """Pairs of actions that both players may play."""
    rows = play.log_row > -jnp.inf
    columns = rows if play.log_column is None else play.log_column > -jnp.inf
    return rows[..., :, None] & columns[..., None, :]


def _norm(x: Faced) -> Array:
    return jnp.sqrt(sum(jnp.square(leaf).sum(-1, keepdims=True) for leaf in jax.tree.leaves(x)))


def _relative(step: Faced, faced: Faced) -> Array:
    """The largest change, of those of large numbers relative to them."""
    pairs = zip(jax.tree.leaves(step), jax.tree.leaves(faced), strict=True)
    sizes = [(jnp.abs(d) / (1 + jnp.abs(x))).max(-1, keepdims=True) for d, x in pairs]
    return sizes[0] if len(sizes) == 1 else jnp.maximum(*sizes)


@jax.custom_jvp
def faced_at_equilibrium(play: Play, start: Faced | None) -> tuple[Faced, Array]:
    """What the players face at the equilibrium, up to constants, and whether it was found.

    Args:
        play: the games.
        start: where to begin, as of a game that is nearly the same; None begins at the references.

    Differentiable in everything in ``play`` by the implicit function theorem.
    """
    return _newton(play, start)


@faced_at_equilibrium.defjvp
def _faced_jvp(primals: Any, tangents: Any) -> Any:
    (play, start), (play_dot, _) = primals, tangents
    faced, found = faced_at_equilibrium(play, start)
    fixed = lax.stop_gradient(faced)
    refs = (play.log_row, play.log_column)

    def missing(play: Play) -> Faced:
        u, v = fixed
        payoff = jnp.where(_inside(play), play.payoff, 0.0) / play.beta[..., None]
        row = jnp.exp(log_answer(play.divergence, u, play.log_row))
        if v is None or play.log_column is None:
            return u - times(payoff, row), None
        column = jnp.exp(log_answer(play.divergence, v, play.log_column))
        return u - times(payoff, column), v + times(transposed(payoff), row)

    _, missing_dot = jax.jvp(missing, (play,), (play_dot,))
    row, column = _answers(play, faced)
    scaled = jnp.where(_inside(play), play.payoff, 0.0) / play.beta[..., None]
    # A constant in all payoffs moves nothing, but its rounding would.
    step = _direction(play, scaled, missing_dot, (row, column))
    step = jax.tree.map(lambda d, ref: jnp.where(ref > -jnp.inf, d, 0.0), step, refs)
    return (faced, found), (step, jnp.zeros(found.shape, jax.dtypes.float0))
