"""Games of two players whose gains sum to zero: of preference, in a matrix, from state to state."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import (
    at_index,
    first_index,
    float_argument,
    float_arguments,
    mass_tolerance,
    positive_if_given,
    raise_first,
    traced,
    worded,
)
from kltarget._core.pytrees import register


@dataclasses.dataclass(frozen=True, eq=False)
class PreferenceGame:
    """Two players answer, and the one whose answer is preferred wins; both have the same answers.

    Args:
        preference: how likely answer i is preferred to answer j, ``[*batch, A, A]``, from 0 to 1;
            either one is, so that ``P + Pᵀ = 1``, with ½ on the diagonal.

    Raises:
        ValueError: no square matrix; outside a trace, entries that are NaN or not from 0 to 1, or
            that do not add to 1 with their counterparts.

    Example:
        >>> from kltarget.spaces import PreferenceGame
        >>> game = PreferenceGame([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])
        >>> game.num_actions
        (3, 3)

    References:
        Munos et al., "Nash Learning from Human Feedback", 2023, arXiv 2312.00886.
    """

    if TYPE_CHECKING:  # anything that becomes an array may be given; arrays are what is kept

        def __init__(self, preference: ArrayLike | Sequence[Any]) -> None: ...

    preference: Float[Array, "*batch A A"]

    def __post_init__(self) -> None:
        table = float_argument(self.preference, "preference")
        if table.ndim < 2 or not table.shape[-1] or table.shape[-1] != table.shape[-2]:
            raise ValueError(
                f"preference has shape {table.shape}: it needs as many rows as columns, "
                "[*batch, A, A]"
            )
        if not traced(table):
            raise_first("preference", table, ~((table >= 0) & (table <= 1)), "must be from 0 to 1")
            total = np.asarray(table + jnp.swapaxes(table, -1, -2))
            off = np.abs(total - 1) > mass_tolerance(table.dtype)
            if off.any():
                at = first_index(off)
                raise ValueError(
                    f"preference and its transpose must add to 1, got {total[at]:.6g}"
                    f"{at_index(at)}: one of two answers is preferred; MatrixGame takes any payoff"
                )
        object.__setattr__(self, "preference", table)

    @classmethod
    def bradley_terry(cls, reward: ArrayLike) -> PreferenceGame:
        """The game of preferences that follow rewards, ``P(i ≻ j) = σ(r_i − r_j)``.

        Args:
            reward: of each answer, in nats of preference, ``[*batch, A]``.
        """
        r = float_argument(reward, "reward")
        if r.ndim == 0:
            raise ValueError("reward needs a last axis of answers, got shape ()")
        raise_first("reward", r, ~jnp.isfinite(r), "must be finite")
        return cls(jax.nn.sigmoid(r[..., :, None] - r[..., None, :]))

    @property
    def payoff(self) -> Float[Array, "*batch A A"]:
        """What the row player gets, its probability of being preferred."""
        return self.preference

    @property
    def num_actions(self) -> tuple[int, int]:
        """The numbers of actions of the row and of the column player."""
        return self.preference.shape[-2], self.preference.shape[-1]


register(PreferenceGame, ("preference",))


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixGame:
    """The row player gets ``payoff[i, j]``, and the column player pays it.

    Args:
        payoff: ``[*batch, A, B]``, in reward units, finite.

    Raises:
        ValueError: no matrix; outside a trace, a payoff that is NaN or infinite. An action that
            must not be played is one of reference 0.

    Example:
        >>> from kltarget.spaces import MatrixGame
        >>> MatrixGame([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.5]]).num_actions
        (2, 3)
    """

    if TYPE_CHECKING:  # anything that becomes an array may be given; arrays are what is kept

        def __init__(self, payoff: ArrayLike | Sequence[Any]) -> None: ...

    payoff: Float[Array, "*batch A B"]

    def __post_init__(self) -> None:
        table = float_argument(self.payoff, "payoff")
        if table.ndim < 2 or not table.shape[-1] or not table.shape[-2]:
            raise ValueError(
                f"payoff has shape {table.shape}: it needs rows and columns, [*batch, A, B]"
            )
        rule = "must be finite: forbid an action by a reference of 0"
        raise_first("payoff", table, ~jnp.isfinite(table), rule)
        object.__setattr__(self, "payoff", table)

    @property
    def num_actions(self) -> tuple[int, int]:
        """The numbers A and B of actions of the row and of the column player."""
        return self.payoff.shape[-2], self.payoff.shape[-1]


register(MatrixGame, ("payoff",))


@dataclasses.dataclass(frozen=True, eq=False)
class MarkovGame:
    """States in each of which a matrix game is played, and both actions lead to the next state.

    Args:
        transition: probability of each next state, ``[*batch, S, A, B, S]``.
        reward: what the row player gets, ``[*batch, S, A, B]``, in reward units, finite.
        discount: what a reward one step later is worth, from 0 to 1; below 1 without a horizon.
        horizon: the number T of steps after which the game is over; None for one without end.

    Raises:
        ValueError: shapes that do not fit, a discount that is out of range; outside a trace, rows
            that are no distributions and rewards that are not finite.

    Example:
        A state of matching pennies, which whoever wins may have to leave for a state of rest:

        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import MarkovGame
        >>> reward = jnp.array([[[1.0, -1.0], [-1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
        >>> transition = jnp.array([[[[0.5, 0.5]] * 2] * 2, [[[0.0, 1.0]] * 2] * 2])
        >>> game = MarkovGame(transition, reward, horizon=3)
        >>> game.num_states, game.num_actions
        (2, (2, 2))

    References:
        Shapley, "Stochastic Games", 1953.
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            transition: ArrayLike | Sequence[Any],
            reward: ArrayLike | Sequence[Any],
            *,
            discount: ArrayLike = ...,
            horizon: int | None = ...,
        ) -> None: ...

    transition: Float[Array, "*#batch S A B S"]
    reward: Float[Array, "*#batch S A B"]
    discount: Any = dataclasses.field(default=1.0, kw_only=True)
    horizon: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        arrays = float_arguments(
            transition=self.transition, reward=self.reward, discount=self.discount
        )
        transition, reward, discount = arrays.values()
        if transition.ndim < 4 or transition.shape[-1] != transition.shape[-4]:
            raise ValueError(
                f"transition has shape {transition.shape}: it needs [*batch, S, A, B, S], with as "
                "many next states as states"
            )
        if reward.shape[-3:] != transition.shape[-4:-1]:
            raise ValueError(
                f"reward has shape {reward.shape} and transition {transition.shape}: reward needs "
                f"the axes {transition.shape[-4:-1]} last, of states and both players' actions"
            )
        batches = transition.shape[:-4], reward.shape[:-3]
        with worded(
            f"the batch axes of transition {batches[0]} and of reward {batches[1]} do not broadcast"
        ):
            np.broadcast_shapes(*batches)
        if not np.prod(transition.shape[-4:]):
            raise ValueError(f"transition has shape {transition.shape}: no axis may be empty")
        if discount.ndim:
            raise ValueError(f"discount has shape {discount.shape}: it must be one number")
        positive_if_given("horizon", self.horizon)
        raise_first("discount", discount, ~((discount >= 0) & (discount <= 1)), "must be in [0, 1]")
        if self.horizon is None:
            rule = "must be below 1 in a game without a horizon: give horizon=T for T steps"
            raise_first("discount", discount, ~(discount < 1), rule)
        raise_first("reward", reward, ~jnp.isfinite(reward), "must be finite")
        raise_first("transition", transition, ~(transition >= 0), "must be 0 or more")
        if not traced(transition):
            total = np.asarray(transition).sum(-1)
            off = np.abs(total - 1) > mass_tolerance(transition.dtype)
            if off.any():
                at = first_index(off)
                raise ValueError(
                    f"transition sums to {total[at]:.6g}{at_index(at)} over next states, not to 1: "
                    "divide it by its sum, and let a state where play ends lead to itself"
                )
        for name, x in arrays.items():
            object.__setattr__(self, name, x)

    @property
    def num_states(self) -> int:
        """The number S of states."""
        return self.reward.shape[-3]

    @property
    def num_actions(self) -> tuple[int, int]:
        """The numbers A and B of actions of the row and of the column player."""
        return self.reward.shape[-2], self.reward.shape[-1]


register(MarkovGame, ("transition", "reward", "discount"), ("horizon",))


class StageGames(NamedTuple):
    """One step of a Markov game as a layer that is walked backwards: a matrix game per state.

    Attributes:
        transition: probability of each next state, ``[*batch, S, A, B, S]``.
        reward: ``[*batch, S, A, B]``.
        discount: what the next values are worth.
        log_ref: the row player's reference, ``[*batch, S, A]``.
        log_ref_column: the column player's, ``[*batch, S, B]``.
    """

    transition: Float[Array, "*batch S A B S"]
    reward: Float[Array, "*batch S A B"]
    discount: Float[Array, ""]
    log_ref: Float[Array, "*batch S A"]
    log_ref_column: Float[Array, "*batch S B"]

    def children(self, values: Float[Array, "*batch S"]) -> Float[Array, "*batch S A B"]:
        """Payoffs of the stage games, what is to come included."""
        after = jnp.einsum("...sabt,...t->...sab", self.transition, values, precision="highest")
        shape = jnp.broadcast_shapes(self.reward.shape, after.shape)
        return jnp.broadcast_to(self.reward, shape) + self.discount * after
