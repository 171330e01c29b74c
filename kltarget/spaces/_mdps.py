"""Decision processes: states, actions, where they lead and what they are rewarded with."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from kltarget._core.checks import (
    at_index,
    first_index,
    float_arguments,
    mass_tolerance,
    raise_first,
    traced,
)
from kltarget._core.pytrees import register


@dataclasses.dataclass(frozen=True, eq=False)
class MDP:
    """A discounted decision process of S states and A actions.

    Args:
        transition: probabilities of the next state, ``[*batch, S, A, S]``; with ``successors``
            those of K successors, ``[*batch, S, A, K]``.
        reward: of an action in a state, ``[*batch, S, A]``; ``-inf`` where a state lacks it.
        discount: γ, above 0 and below 1, one for the whole batch.
        start: how likely each state is the first, ``[*batch, S]``; all equally by default.
        successors: of a sparse process, which states may follow, integers ``[S, A, K]``.

    Raises:
        TypeError: successors that are not integers.
        ValueError: shapes that do not fit; and outside a trace, a discount outside (0, 1), a
            transition that is negative or does not sum to one, a reward that is NaN or +inf, a
            state without any action, a start that does not sum to one.

    An absorbing state leads to itself under every action. Rows of actions that a state lacks are
    not looked at.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import MDP
        >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> mdp = MDP(stay_or_go, jnp.array([[0.0, 1.0], [0.5, 0.5]]), 0.9)
        >>> print(mdp.num_states, mdp.num_actions, mdp.start, mdp.reached())
        2 2 [0.5 0.5] [ True  True]
    """

    transition: Float[Array, "*#batch S A K"]
    reward: Float[Array, "*#batch S A"]
    discount: Float[Array, ""]
    start: Any = None
    successors: Any = None

    def __post_init__(self) -> None:
        given: dict[str, Any] = {
            "transition": self.transition,
            "reward": self.reward,
            "discount": self.discount,
        }
        if self.start is not None:
            given["start"] = self.start
        for name, x in float_arguments(**given).items():
            object.__setattr__(self, name, x)
        self._check_shapes()
        if self.start is None:
            even = jnp.full(self.num_states, 1 / self.num_states, self.reward.dtype)
            object.__setattr__(self, "start", even)
        self._check_values()

    def _check_shapes(self) -> None:
        shape = self.reward.shape
        if len(shape) < 2:
            raise ValueError(f"reward has shape {shape}: its last axes are states and actions")
        if self.transition.ndim < 3 or self.transition.shape[-3:-1] != shape[-2:]:
            raise ValueError(
                f"transition has shape {self.transition.shape} and reward {shape}: the axes of "
                "transition must be those of reward and one of next states"
            )
        if self.discount.ndim:
            raise ValueError(f"discount must be one number, got shape {self.discount.shape}")
        if self.successors is None:
            if self.transition.shape[-1] != shape[-2]:
                raise ValueError(
                    f"transition leads to {self.transition.shape[-1]} states, but there are "
                    f"{shape[-2]}: give successors where not all are listed"
                )
        else:
            table = np.asarray(self.successors)
            if not np.issubdtype(table.dtype, np.integer):
                raise TypeError(f"successors must be integers, got dtype {table.dtype}")
            if table.shape != self.transition.shape[-3:]:
                raise ValueError(
                    f"successors has shape {table.shape}, but transition ends in "
                    f"{self.transition.shape[-3:]}: give one state per probability"
                )
            outside = (table < 0) | (table >= shape[-2])
            raise_first("successors", table, outside, f"must be from 0 to {shape[-2] - 1}")
            object.__setattr__(self, "successors", table.astype(np.int32))
        if self.start is not None and (not self.start.ndim or self.start.shape[-1] != shape[-2]):
            raise ValueError(
                f"start has shape {self.start.shape}, but there are {shape[-2]} states: its last "
                f"axis must be {shape[-2]}"
            )

    def _check_values(self) -> None:
        if traced(self.transition, self.reward, self.discount, self.start):
            return
        discount = float(self.discount)
        if not 0 < discount < 1:
            raise ValueError(
                f"discount must be above 0 and below 1, got {discount:g}; without discounting "
                "sums of rewards need not end"
            )
        reward = np.asarray(self.reward)
        raise_first("reward", reward, ~(reward < np.inf), "must be below +inf")
        lost = ~(reward > -np.inf).any(-1)
        raise_first("reward", None, lost, "is -inf for every action of a state: give it one")
        present = np.broadcast_to(reward > -np.inf, np.broadcast_shapes(reward.shape, self._rows))
        transition = np.broadcast_to(
            np.asarray(self.transition), (*present.shape, self.transition.shape[-1])
        )
        negative = ~(transition >= 0) & present[..., None]
        raise_first("transition", transition, negative, "must not be below 0")
        for name, rows, counted in (
            ("transition", transition, present),
            ("start", np.asarray(self.start), True),
        ):
            total = rows.sum(-1)
            far = ~(np.abs(total - 1) <= mass_tolerance(rows.dtype)) & counted
            if far.any():
                at = first_index(far)
                raise ValueError(
                    f"{name} sums to {total[at]:.7g}{at_index(at)}, not 1: divide it by its sum "
                    "over the last axis"
                )
        raise_first("start", self.start, ~(np.asarray(self.start) >= 0), "must not be below 0")

    @property
    def _rows(self) -> tuple[int, ...]:
        return self.transition.shape[:-1]

    @property
    def num_states(self) -> int:
        """The number S of states."""
        return self.reward.shape[-2]

    @property
    def num_actions(self) -> int:
        """The number A of actions."""
        return self.reward.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape ``*batch`` that transition, reward and start broadcast to."""
        shapes = self.transition.shape[:-3], self.reward.shape[:-2], self.start.shape[:-1]
        return np.broadcast_shapes(*shapes)

    def expected_next(self, values: ArrayLike) -> Float[Array, "*batch S A"]:
        """Means of the next state's values, ``[*batch, S]`` in, ``[*batch, S, A]`` out."""
        v = jnp.asarray(values)
        if self.successors is None:
            return jnp.einsum("...sat,...t->...sa", self.transition, v, precision="highest")
        after = v[..., self.successors]
        shape = jnp.broadcast_shapes(after.shape, self.transition.shape)
        return (jnp.broadcast_to(self.transition, shape) * jnp.broadcast_to(after, shape)).sum(-1)

    def reached(self) -> Bool[np.ndarray, " S"]:
        """Which states some policy reaches from the start in some row, booleans ``[S]``."""
        present = np.asarray(self.reward) > -np.inf
        moves = (np.asarray(self.transition) > 0) & present[..., None]
        leads: np.ndarray = np.any(moves.reshape(-1, *moves.shape[-3:]), axis=0)
        starts = np.asarray(self.start) > 0
        found: np.ndarray = np.any(starts.reshape(-1, self.num_states), axis=0)
        while True:
            more = found.copy()
            if self.successors is None:
                more |= leads[found].any((0, 1))
            else:
                more[np.asarray(self.successors)[found][leads[found]]] = True
            if (more == found).all():
                return found
            found = more


register(MDP, ("transition", "reward", "discount", "start", "successors"))
