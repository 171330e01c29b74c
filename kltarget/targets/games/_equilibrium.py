"""What two players who are each regularised to a reference play against one another."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import float_argument, integer_rows, require_normalized, typed_key
from kltarget._core.matrices import times, transposed
from kltarget._core.numerics import working_dtype
from kltarget._core.pytrees import pytree
from kltarget._core.status import Status, flag, unless_failed
from kltarget.divergences import Divergence
from kltarget.objectives import Objective
from kltarget.objectives._objective import broadcast_fields
from kltarget.spaces import MatrixGame, PreferenceGame
from kltarget.targets._protocol import Distribution
from kltarget.targets.discrete import Target, solve
from kltarget.targets.games._saddle_points import Faced, Play, faced_at_equilibrium, log_answer


@pytree
class Equilibrium(Distribution):
    """The pair of policies that are each best against the other, and what either can be asked.

    Outcomes are pairs of actions, the row player's first, integers ``[…, 2]``.

    Attributes:
        game: the game.
        row: the row player's policy: the :class:`kltarget.Target` of what it faces, the payoffs
            against ``column``. Its own value is without the other's divergence.
        column: the column player's, whose rewards are what it pays, negated. Of a game of
            preferences it is the row player's policy.
        status: :class:`~kltarget.Status` bits, shape ``[*batch]``; ``NOT_CONVERGED`` where the
            policies are not best against each other to the accuracy of the dtype.
    """

    made_by = "solve_game"

    game: PreferenceGame | MatrixGame
    row: Target
    column: Target
    status: Int[Array, "*batch"]

    @property
    def value(self) -> Float[Array, "*batch"]:
        """``E[payoff] − β·D(row) + β·D(column)`` in reward units, shape ``[*batch]``.

        Of a game of preferences it is ½.
        """
        cost = self.row.divergence_value - self.column.divergence_value
        return self.expected_reward - self.row.objective.beta * cost

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """What the row player gets on average, in reward units, shape ``[*batch]``."""
        return self.row.expected_reward

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """Both players' divergences from their references, added, in nats, shape ``[*batch]``."""
        return self.row.divergence_value + self.column.divergence_value

    @property
    def duality_gap(self) -> Float[Array, "*batch"]:
        """What both players together could still gain here, the solution's certificate.

        It is 0 at an equilibrium and nowhere else, and bounds how far the value is off.
        """
        return self.gap(self.row.log_probs, self.column.log_probs)

    def gap(
        self, log_row: ArrayLike, log_column: ArrayLike | None = None
    ) -> Float[Array, "*batch"]:
        """What two players could gain by answering each other best, added, in reward units.

        ``max_μ′ J(μ′, ν) − min_ν′ J(μ, ν′) ≥ 0`` with ``J(μ, ν) = μᵀAν − β·D(μ) + β·D(ν)``. It is
        a sum of Bregman divergences, not a difference, and keeps its digits near the equilibrium.

        Args:
            log_row: log-probabilities of the row player, ``[*batch, A]``.
            log_column: of the column player, ``[*batch, B]``; by default the same.

        Returns:
            The duality gap, shape ``[*batch]``, ``inf`` where a divergence is.
        """
        log_mu = float_argument(log_row, "log_row")
        log_nu = log_mu if log_column is None else float_argument(log_column, "log_column")
        require_normalized(log_row=log_mu, log_column=log_nu)
        return _gap(self, log_mu, log_nu)

    def exploitability(self, log_policy: ArrayLike, player: str = "row") -> Float[Array, "*batch"]:
        """What the other player could gain over the equilibrium if it answered a policy best.

        ``J* − min_ν J(π, ν) ≥ 0`` of the row player, ``max_μ J(μ, π) − J*`` of the column player;
        0 at the equilibrium alone.

        Args:
            log_policy: log-probabilities, ``[*batch, A]`` or ``[*batch, B]``.
            player: ``"row"`` or ``"column"``, whose policy it is.

        Returns:
            In reward units, shape ``[*batch]``.
        """
        if player not in ("row", "column"):
            raise ValueError(f"player must be 'row' or 'column', got {player!r}")
        log_pi = float_argument(log_policy, "log_policy")
        require_normalized(log_policy=log_pi)
        return _exploitability(self, log_pi, player == "row")

    def log_prob(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of pairs of actions.

        Args:
            x: the row player's and the column player's actions, integers ``[..., 2]``, whose
                leading axes broadcast against ``*batch``.

        Returns:
            Log-probabilities, of the broadcast shape.

        Raises:
            TypeError: what is no integer.
            ValueError: other shapes; outside a trace, actions that there are not.
        """
        rows, columns = self.game.num_actions
        pairs = integer_rows(x, "x", {"row action": rows, "column action": columns}, 1)
        return self.row.log_prob(pairs[..., 0]) + self.column.log_prob(pairs[..., 1])

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Int[Array, "num_samples *batch 2"]:
        """Independent draws of pairs of actions, shape ``[num_samples, *batch, 2]``."""
        first, second = jax.random.split(typed_key(key))
        rows = self.row.sample(key=first, num_samples=num_samples)
        return jnp.stack([rows, self.column.sample(key=second, num_samples=num_samples)], -1)

    def expectation(self, fn: Any) -> Float[Array, "*batch"]:
        """The mean of values ``[A, B]`` of pairs of actions, shape ``[*batch]``."""
        values = jnp.asarray(fn, self.row.log_probs.dtype)
        if values.shape != self.game.num_actions:
            raise ValueError(
                f"fn has shape {values.shape}, but pairs of actions are {self.game.num_actions}"
            )
        return (self.row.probs * times(values, self.column.probs)).sum(-1)


def _faces(equilibrium: Equilibrium, log_row: Array, log_column: Array) -> tuple[Target, Target]:
    """Each player's best answer to the other's policy, as targets."""
    row, column = equilibrium.row.objective, equilibrium.column.objective
    payoff = equilibrium.game.payoff
    seen = times(payoff, jnp.exp(log_column).astype(payoff.dtype))
    paid = -times(transposed(payoff), jnp.exp(log_row).astype(payoff.dtype))
    best = [
        solve(Objective.unchecked(x.astype(o.reward.dtype), o.log_ref, o.beta, o.divergence))
        for x, o in ((seen, row), (paid, column))
    ]
    return best[0], best[1]


@jax.jit
def _gap(equilibrium: Equilibrium, log_row: Array, log_column: Array) -> Array:
    row, column = _faces(equilibrium, log_row, log_column)
    return row.gap(log_row) + column.gap(log_column)


@functools.partial(jax.jit, static_argnums=2)
def _exploitability(equilibrium: Equilibrium, log_policy: Array, of_row: bool) -> Array:
    own, other = equilibrium.row, equilibrium.column
    if not of_row:
        own, other = other, own
    pair = (log_policy, other.log_probs) if of_row else (other.log_probs, log_policy)
    answer = _faces(equilibrium, *pair)[1 if of_row else 0]
    # Against the equilibrium's other half the policy falls short, and that half of the best answer.
    return own.gap(log_policy) + answer.gap(other.log_probs)


def players(
    log_ref: Any, sizes: tuple[int, int], beta: ArrayLike, divergence: Divergence
) -> tuple[Objective, Objective]:
    """Each player's objective with nothing to gain, whose constructor checks what was given."""
    pair = log_ref if isinstance(log_ref, tuple) else (log_ref, log_ref)
    if len(pair) != 2:
        raise ValueError(f"log_ref has {len(pair)} entries: a tuple is of the row and the column")
    sides = []
    for given, size, who in zip(pair, sizes, ("row", "column"), strict=True):
        log_probs = float_argument(given, "log_ref")
        if log_probs.ndim == 0 or log_probs.shape[-1] != size:
            raise ValueError(
                f"log_ref of the {who} player has shape {log_probs.shape}, but it has {size} "
                f"actions: the last axis must be {size}"
            )
        nothing = jnp.zeros(size, log_probs.dtype)
        sides.append(Objective(nothing, log_probs, beta, divergence))
    return sides[0], sides[1]


def faced_by(
    game: PreferenceGame | MatrixGame,
    row: Objective,
    column: Objective,
    batch: tuple[int, ...],
    start: Faced | None,
) -> tuple[Faced, Array]:
    """What the players face at the equilibrium, ``[*batch, A]`` and ``[*batch, B]``."""
    symmetric = isinstance(game, PreferenceGame)
    dtype = working_dtype(jnp.result_type(game.payoff.dtype, row.reward.dtype))

    rows = math.prod(batch)

    def flat(x: Array, axes: int) -> Array:
        own = x.shape[x.ndim - axes :]
        return jnp.broadcast_to(x, (*batch, *own)).reshape(rows, *own).astype(dtype)

    full = Objective.unchecked(
        jnp.zeros((*batch, row.num_outcomes), dtype),
        row.log_ref.astype(dtype),
        row.beta.astype(dtype),
        row.divergence,
    )
    _, log_row, scale, divergence = broadcast_fields(full)
    divergence = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (*batch, 1)).reshape(rows, 1) if x.ndim else x, divergence
    )
    play = Play(
        divergence,
        flat(game.payoff, 2),
        flat(log_row, 1),
        None if symmetric else flat(column.log_ref, 1),
        flat(scale, 1),
    )
    if start is not None:
        start = jax.tree.map(lambda x: flat(x, 1), start)
    (u, v), found = faced_at_equilibrium(play, start)
    u = u.reshape(*batch, u.shape[-1])
    return (u, u if v is None else v.reshape(*batch, v.shape[-1])), found.reshape(batch)


def equilibrium_of(
    game: PreferenceGame | MatrixGame,
    row: Objective,
    column: Objective,
    faced: Faced,
    found: Array,
) -> Equilibrium:
    """The policies as targets, from what they face."""
    dtype = jnp.result_type(game.payoff.dtype, row.reward.dtype)
    log_mu, log_nu = (_log_probs(x, side) for x, side in zip(faced, (row, column), strict=True))
    payoff = game.payoff.astype(log_mu.dtype)
    seen, paid = times(payoff, jnp.exp(log_nu)), -times(transposed(payoff), jnp.exp(log_mu))
    sides = []
    for x, log_probs, side in ((seen, log_mu, row), (paid, log_nu, column)):
        objective = Objective.unchecked(
            x.astype(dtype), side.log_ref.astype(dtype), side.beta.astype(dtype), side.divergence
        )
        target = solve(objective)
        condensed = (target.status & int(Status.CONDENSED)) != 0
        unfound = flag(~found | condensed, Status.NOT_CONVERGED)
        status = jnp.broadcast_to(target.status | unfound, found.shape)
        # What a best answer to rounded payoffs loses at small β, the equations' solution keeps.
        kept = unless_failed(status, log_probs.astype(dtype))
        multiplier = unless_failed(status, jnp.broadcast_to(target.multiplier, found.shape))
        sides.append(Target(objective, kept, multiplier, status))
    return Equilibrium(game, sides[0], sides[1], sides[0].status | sides[1].status)


def _log_probs(faced: Any, side: Objective) -> Array:
    batch = faced.shape[:-1]
    full = Objective.unchecked(
        jnp.zeros_like(faced),
        jnp.broadcast_to(side.log_ref, faced.shape).astype(faced.dtype),
        jnp.ones(batch, faced.dtype),
        side.divergence,
    )
    _, log_ref, _, divergence = broadcast_fields(full)
    return log_answer(divergence, faced, log_ref)
