"""Decision processes: states, actions, where they lead and what they are rewarded with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from kltarget._core.checks import (
    at_index,
    first_index,
    float_argument,
    float_arguments,
    mass_tolerance,
    positive,
    raise_first,
    traced,
    worded,
)
from kltarget._core.numerics import working_dtype
from kltarget._core.pytrees import register
from kltarget._core.short_repr import short_repr


@dataclasses.dataclass(frozen=True, eq=False)
class MDP:
    """A decision process of S states and A actions, discounted, of so many steps, or both.

    Args:
        transition: probabilities of the next state, ``[*batch, S, A, S]``; with ``successors``
            those of K successors, ``[*batch, S, A, K]``.
        reward: of an action in a state, ``[*batch, S, A]``; ``-inf`` where a state lacks it.
        discount: γ, above 0, one for the whole batch; below 1, or 1, which it is by default with a
            horizon and where every state can end in an absorbing one.
        start: how likely each state is the first, ``[*batch, S]``; all equally by default.
        successors: of a sparse process, which states may follow, integers ``[S, A, K]``.
        horizon: the number H of steps; without it the process goes on.

    Raises:
        TypeError: successors that are not integers.
        ValueError: shapes that do not fit, neither discount nor horizon, a horizon below 1; and
            outside a trace, a discount outside (0, 1], a transition that is negative or does not
            sum to one, a reward that is NaN or +inf, a state without any action, a start that does
            not sum to one. At γ = 1 without a horizon: an absorbing state with a reward, a state
            that no policy leads to an absorbing one, a reward above 0 where a policy can stay for
            ever without being absorbed.

    An absorbing state leads to itself under every action. At γ = 1 it is the end: nothing is earned
    or charged there. Rows of actions that a state lacks count for nothing. States that are never
    reached are solved like any other. Arrays of 16 bits are held, and computed with, in float32,
    their probabilities normalised anew.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import MDP
        >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> mdp = MDP(stay_or_go, jnp.array([[0.0, 1.0], [0.5, 0.5]]), 0.9)
        >>> print(mdp.num_states, mdp.num_actions, mdp.start, mdp.reached())
        2 2 [0.5 0.5] [ True  True]
        >>> print(mdp.absorbing)
        [False  True]
    """

    __repr__ = short_repr

    if TYPE_CHECKING:  # anything that becomes an array may be given; arrays are what is kept

        def __init__(
            self,
            transition: ArrayLike | Sequence[Any],
            reward: ArrayLike | Sequence[Any],
            discount: ArrayLike | None = None,
            start: ArrayLike | Sequence[Any] | None = None,
            successors: ArrayLike | Sequence[Any] | None = None,
            *,
            horizon: int | None = None,
        ) -> None: ...

    transition: Float[Array, "*#batch S A K"]
    reward: Float[Array, "*#batch S A"]
    discount: Any = None
    start: Any = None
    successors: Any = None
    horizon: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._check_horizon()
        given: dict[str, Any] = {
            "transition": self.transition,
            "reward": self.reward,
            "discount": self.discount,
        }
        if self.start is not None:
            given["start"] = self.start
        dtype = float_arguments(**given)["reward"].dtype
        held, tolerance = working_dtype(dtype), mass_tolerance(dtype)
        for name, x in given.items():
            object.__setattr__(self, name, float_argument(x, name).astype(held))
        self._check_shapes()
        if self.start is None:
            even = jnp.full(self.num_states, 1 / self.num_states, self.reward.dtype)
            object.__setattr__(self, "start", even)
        self._check_values(tolerance)
        if held != dtype:
            # What 16 bits leave of a sum of 1 would add up over time.
            for name in ("transition", "start"):
                object.__setattr__(self, name, _summed_to_one(getattr(self, name), tolerance))

    def _check_horizon(self) -> None:
        if self.horizon is None:
            if self.discount is None:
                raise ValueError("give a discount, or a horizon, after how many steps it ends")
            return
        positive("horizon", self.horizon)
        object.__setattr__(self, "horizon", int(self.horizon))
        if self.discount is None:
            object.__setattr__(self, "discount", 1.0)

    def _check_shapes(self) -> None:
        shape = self.reward.shape
        if len(shape) < 2:
            raise ValueError(f"reward has shape {shape}: its last axes are states and actions")
        if not shape[-2] or not shape[-1]:
            raise ValueError(f"reward has shape {shape}: give one state and one action at least")
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
        batches = [self.transition.shape[:-3], shape[:-2]]
        batches += [] if self.start is None else [self.start.shape[:-1]]
        with worded(
            f"the batch axes {', '.join(map(str, batches))} of transition, reward and start do "
            "not broadcast"
        ):
            np.broadcast_shapes(*batches)

    def _check_values(self, tolerance: float) -> None:
        if traced(self.transition, self.reward, self.discount, self.start):
            return
        discount = float(self.discount)
        if not 0 < discount <= 1:
            raise ValueError(f"discount must be above 0 and not above 1, got {discount:g}")
        reward = np.asarray(self.reward)
        raise_first("reward", reward, ~(reward < np.inf), "must be below +inf")
        lost = ~(reward > -np.inf).any(-1)
        raise_first("reward", None, lost, "is -inf for every action of a state: give it one")
        present = np.broadcast_to(reward > -np.inf, np.broadcast_shapes(reward.shape, self._rows))
        transition = np.broadcast_to(
            np.asarray(self.transition), (*present.shape, self.transition.shape[-1])
        )
        raise_first("transition", transition, ~np.isfinite(transition), "must be finite")
        negative = (transition < 0) & present[..., None]
        raise_first("transition", transition, negative, "must not be below 0")
        for name, rows, counted in (
            ("transition", transition, present),
            ("start", np.asarray(self.start), True),
        ):
            total = rows.sum(-1)
            far = ~(np.abs(total - 1) <= tolerance) & counted
            if far.any():
                at = first_index(far)
                raise ValueError(
                    f"{name} sums to {total[at]:.7g}{at_index(at)}, not 1: divide it by its sum "
                    "over the last axis"
                )
        raise_first("start", self.start, ~(np.asarray(self.start) >= 0), "must not be below 0")
        if discount == 1 and self.horizon is None:
            self._check_absorption()

    def _check_absorption(self) -> None:
        """That sums of rewards end without discounting, under every policy worth taking."""
        for row, reward, moves, after in self._processes(self._process_batch):
            absorbing = _absorbing(moves, after)
            present = reward > -np.inf
            rewarded = absorbing[:, None] & present & (reward != 0)
            if rewarded.any():
                state, action = first_index(rewarded)
                raise ValueError(
                    f"reward is {reward[state, action]:g}{at_index((*row, state, action))}, in an "
                    "absorbing state: without discounting it must be 0 there"
                )
            lost = ~_led_to(absorbing, moves, after)
            if lost.any():
                at = at_index((*row, *first_index(lost)))
                raise ValueError(
                    f"transition leads to no absorbing state from the state{at}, and the discount "
                    "is 1: add a way to one, or give a discount below 1 or a horizon"
                )
            # The largest set of states in which some policy can stay.
            kept: np.ndarray = ~absorbing
            while True:
                stays = present & (kept[after] | ~moves).all(-1)
                fewer = kept & stays.any(-1)
                if (fewer == kept).all():
                    break
                kept = fewer
            endless = kept[:, None] & stays & (reward > 0)
            if endless.any():
                state, action = first_index(endless)
                where = at_index((*row, state, action))
                raise ValueError(
                    f"reward is {reward[state, action]:g}{where}, where a policy can stay for "
                    "ever, and the discount is 1: make it 0 or less, or give a discount below 1 or "
                    "a horizon"
                )

    @property
    def _process_batch(self) -> tuple[int, ...]:
        return np.broadcast_shapes(self.transition.shape[:-3], self.reward.shape[:-2])

    def _processes(
        self, batch: tuple[int, ...]
    ) -> Iterator[tuple[tuple[int, ...], np.ndarray, np.ndarray, np.ndarray]]:
        """Row, rewards, which moves are possible and where to, of each process of a batch."""
        reward = np.broadcast_to(np.asarray(self.reward), (*batch, *self.reward.shape[-2:]))
        chances = np.asarray(self.transition)
        chances = np.broadcast_to(chances, (*batch, *chances.shape[-3:]))
        after = self.successors
        if after is None:
            after = np.broadcast_to(np.arange(self.num_states), chances.shape[-3:])
        for row in np.ndindex(batch):
            moves = (chances[row] > 0) & (reward[row] > -np.inf)[..., None]
            yield row, reward[row], moves, np.asarray(after)

    def require_absorbed(self, log_ref: ArrayLike) -> None:
        """Raises unless the reference leads from every state to an absorbing one.

        Args:
            log_ref: log-probabilities of the actions, ``[*batch, S, A]``.

        Raises:
            ValueError: at a discount of 1 without a horizon, outside a trace: a state from which
                it does not.
        """
        if traced(self.transition, self.reward, self.discount, log_ref):
            return
        if self.horizon is not None or float(self.discount) < 1:
            return
        taken = np.asarray(log_ref) > -np.inf
        rows = np.broadcast_shapes(self._process_batch, taken.shape[:-2])
        taken = np.broadcast_to(taken, (*rows, *taken.shape[-2:]))
        for row, _, moves, after in self._processes(rows):
            absorbing = _absorbing(moves, after)
            lost = ~_led_to(absorbing, moves & taken[row][..., None], after)
            if lost.any():
                raise ValueError(
                    "log_ref leads to no absorbing state from the state"
                    f"{at_index((*row, *first_index(lost)))}, and the discount is 1: give a way "
                    "out a chance, or a discount below 1 or a horizon"
                )

    def require_discounted(self, name: str) -> None:
        """Raises unless the discount is below 1 and there is no horizon.

        Args:
            name: of the function that asks for it.

        Raises:
            ValueError: there is a horizon; and outside a trace, the discount is 1.
        """
        if self.horizon is not None or not (traced(self.discount) or float(self.discount) < 1):
            raise ValueError(
                f"mdp has a horizon or a discount of 1, and {name} is of discounted processes: "
                "give a discount below 1 and no horizon"
            )

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

    @property
    def absorbing(self) -> Bool[Array, "*batch S"]:
        """Which states lead to themselves under every action that they have."""
        size = self.num_states
        after = self.successors
        if after is None:
            after = np.broadcast_to(np.arange(size), (size, self.num_actions, size))
        elsewhere = (
            jnp.asarray(after, jnp.int32) != jnp.arange(size, dtype=jnp.int32)[:, None, None]
        )
        shape = np.broadcast_shapes(self.transition.shape[:-1], self.reward.shape)
        moves = ((self.transition > 0) & jnp.broadcast_to(elsewhere, self.transition.shape)).any(-1)
        present = jnp.broadcast_to(self.reward > -jnp.inf, shape)
        return ~(jnp.broadcast_to(moves, shape) & present).any(-1)

    @property
    def dense_transition(self) -> Float[Array, "*batch S A S"]:
        """The transition with the probabilities of all next states, sparse or not."""
        if self.successors is None:
            return self.transition
        states, actions, _ = self.successors.shape
        at = np.ogrid[:states, :actions, :1][:2]
        nowhere = jnp.zeros((*self.transition.shape[:-1], states), self.transition.dtype)
        return nowhere.at[..., *at, self.successors].add(self.transition)

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


def _summed_to_one(probs: Array, tolerance: float) -> Array:
    total = probs.sum(-1, keepdims=True)
    return probs / jnp.where(jnp.abs(total - 1) <= tolerance, total, jnp.ones_like(total))


def _absorbing(moves: np.ndarray, after: np.ndarray) -> np.ndarray:
    held = np.asarray(after == np.arange(len(moves))[:, None, None])
    leaves: np.ndarray = np.any(moves & ~held, axis=(1, 2))
    return ~leaves


def _led_to(goal: np.ndarray, moves: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The states from which some moves lead to a goal."""
    led = goal
    while True:
        more = led | (moves & led[after]).any((1, 2))
        if (more == led).all():
            return led
        led = more


register(MDP, ("transition", "reward", "discount", "start", "successors"), ("horizon",))
