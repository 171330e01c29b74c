"""``MDPTarget``: the optimal policy of a regularised decision process, and what it leads to."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse.linalg import bicgstab
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import integer_rows, positive, positive_if_given, typed_key
from kltarget._core.pytrees import register
from kltarget.spaces import MDP
from kltarget.targets._protocol import Optimum
from kltarget.targets.discrete import Target


@dataclasses.dataclass(frozen=True, eq=False)
class MDPTarget(Optimum):
    """The policy of a decision process that maximises an objective, with its certificate.

    Sums over time are discounted: the first step counts 1, the next γ. A process with a horizon H
    has a policy for each step: below, ``S`` is then ``H S``.

    Attributes:
        mdp: the decision process.
        states: the target of each state, over its actions: :class:`kltarget.Target` of batch shape
            ``[*batch, S]`` whose rewards are Q.
        value_error: at most this far are the state values from the optimum, in reward units,
            ``[*batch]``: ``γ/(1 − γ)`` times the last change of a value, and at γ = 1 the longest
            mean time to absorption under this policy times that change; rounding is not in it.
            0 with a horizon, where nothing is iterated.
        status: :class:`~kltarget.Status` bits, shape ``[*batch]``.
    """

    made_by = "solve_mdp"

    mdp: MDP
    states: Target
    value_error: Float[Array, "*batch"]
    status: Int[Array, "*batch"]

    @property
    def state_values(self) -> Float[Array, "*batch S"]:
        """The maximum V from each state on, in reward units; at γ = 1 it is 0 once absorbed."""
        return values_of(self.mdp, self.states)

    @property
    def action_values(self) -> Float[Array, "*batch S A"]:
        """``Q = r + γ P V``, in reward units."""
        return self.states.objective.reward

    @property
    def advantages(self) -> Float[Array, "*batch S A"]:
        """``Q − V``, in reward units."""
        v = self.state_values[..., None]
        return self.action_values - jnp.broadcast_to(v, self.action_values.shape)

    @property
    def log_policy(self) -> Float[Array, "*batch S A"]:
        """Log π of the actions of each state."""
        return self.states.log_probs

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The maximum J* from the start on, in reward units, shape ``[*batch]``."""
        first = self.state_values
        return dot(self.mdp.start, first if self.mdp.horizon is None else first[..., 0, :])

    @property
    def visits(self) -> Float[Array, "*batch S"]:
        """How often each state is visited, discounted; at γ = 1 before absorption."""
        return visits(self.mdp, jnp.exp(self.log_policy))

    @property
    def occupancy(self) -> Float[Array, "*batch S"]:
        """How much of the discounted time is spent in each state; sums to one.

        At γ = 1 of the time before absorption; 0 everywhere if there is none.
        """
        often = self.visits
        axes = (-1,) if self.mdp.horizon is None else (-2, -1)
        total = jnp.broadcast_to(often.sum(axes, keepdims=True), often.shape)
        return often / jnp.where(total > 0, total, jnp.ones_like(total))

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """The expected discounted sum of rewards, without the regulariser."""
        return self.expectation(self.mdp.reward)

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """The expected discounted sum of the states' divergences, in nats."""
        return self._summed(self.states.divergence_value)

    @property
    def returns(self) -> Float[Array, "*batch S"]:
        """The expected discounted sum of rewards from each state on, without the regulariser."""
        return returns(self.mdp, jnp.exp(self.log_policy))

    def expectation(self, fn: ArrayLike) -> Float[Array, "*batch"]:
        """``E_π[Σ_t γ^t fn(s_t, a_t)]`` of values ``[S, A]`` or ``[*batch, S, A]``.

        At γ = 1 the sum ends with absorption.

        Raises:
            ValueError: other shapes.
        """
        probs = jnp.exp(self.log_policy)
        values = jnp.asarray(fn, probs.dtype)
        if values.shape[-2:] != probs.shape[-2:]:
            raise ValueError(
                f"fn has shape {values.shape}: its last axes must be states and actions, "
                f"{probs.shape[-2:]}"
            )
        return self._summed(mean(probs, each_step(self.mdp, values, probs)))

    def _summed(self, values: Array) -> Array:
        total = dot(self.visits, values)
        return total if self.mdp.horizon is None else total.sum(-1)

    def log_prob(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of trajectories.

        Args:
            x: states and actions in turn, integers ``[..., T, 2]``.

        Returns:
            Shape ``[*batch, ...]``: of the start, the actions and the moves between the states.

        Raises:
            TypeError: what is no integer.
            ValueError: other shapes, more steps than the process has; outside a trace, states or
                actions that there are not.
        """
        sizes = {"state": self.mdp.num_states, "action": self.mdp.num_actions}
        path = integer_rows(x, "x", sizes, 2)
        self._require_steps("x", path.shape[-2])
        state, action = path[..., 0], path[..., 1]
        total = jnp.log(self.mdp.start)[..., state[..., 0]]
        if self.mdp.horizon is None:
            acted = self.log_policy[..., state, action].sum(-1)
        else:
            time = jnp.broadcast_to(jnp.arange(path.shape[-2]), state.shape)
            acted = self.log_policy[..., time, state, action].sum(-1)
        before, done, after = state[..., :-1], action[..., :-1], state[..., 1:]
        if self.mdp.successors is None:
            moved = self.mdp.transition[..., before, done, after]
        else:
            chances = self.mdp.transition[..., before, done, :]
            hit = jnp.asarray(self.mdp.successors)[before, done] == after[..., None]
            moved = jnp.where(jnp.broadcast_to(hit, chances.shape), chances, 0.0).sum(-1)
        moved = jnp.log(moved).sum(-1)
        total, moved = (jnp.broadcast_to(part, acted.shape) for part in (total, moved))
        return total + acted + moved

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int, num_steps: int | None = None
    ) -> Int[Array, "num_samples *batch T 2"]:
        """Independent trajectories of ``num_steps`` states and actions in turn.

        By default as many as the horizon has, or 100.
        """
        positive("num_samples", num_samples)
        positive_if_given("num_steps", num_steps)
        if num_steps is None:
            num_steps = self.mdp.horizon or 100
        self._require_steps("num_steps", num_steps)
        return _sample(self.mdp, self.log_policy, typed_key(key), num_samples, num_steps)

    def _require_steps(self, name: str, steps: int) -> None:
        if self.mdp.horizon is not None and steps > self.mdp.horizon:
            raise ValueError(
                f"{name} has {steps} steps, but the process ends after {self.mdp.horizon}: give no "
                "more than those"
            )


register(MDPTarget, ("mdp", "states", "value_error", "status"))


def each_step(mdp: MDP, values: Array, like: Array) -> Array:
    """Values of states and actions, the same at each step of a horizon, in the shape of others."""
    if mdp.horizon is not None:
        values = values[..., None, :, :]
    return jnp.broadcast_to(values, like.shape)


def mean(probs: Array, values: Array) -> Array:
    return jnp.where(probs > 0, probs * jnp.where(probs > 0, values, 0.0), 0.0).sum(-1)


def dot(weights: Array, values: Array) -> Array:
    """A weighted sum in which infinite values without weight count for nothing."""
    full = jnp.broadcast_to(weights, values.shape)
    return (full * jnp.where(full != 0, values, jnp.zeros_like(values))).sum(-1)


def going(mdp: MDP, like: Array) -> Array:
    """1 where a process goes on and 0 where it has ended, ``[*batch, S]`` like other values."""
    # What a vmapped function returned has a discount for each row.
    undiscounted = jnp.broadcast_to(jnp.expand_dims(mdp.discount == 1, -1), like.shape)
    ended = undiscounted & jnp.broadcast_to(mdp.absorbing, like.shape)
    return jnp.where(ended, jnp.zeros_like(like), jnp.ones_like(like))


@jax.jit
def values_of(mdp: MDP, states: Target) -> Array:
    """V of every state: nothing is charged for an end at γ = 1, whichever actions it lacks."""
    values = states.value
    if mdp.horizon is not None:
        return values
    return jnp.where(going(mdp, values) > 0, values, jnp.zeros_like(values))


@jax.jit
def visits(mdp: MDP, probs: Array) -> Array:
    """How often a policy is in each state, discounted, before it is absorbed where γ = 1."""
    if mdp.horizon is None:
        start = jnp.broadcast_to(mdp.start, probs.shape[:-1])
        return going(mdp, start) * solve_values(mdp, probs, start, transposed=True)

    def step(law: Array, policy: Array) -> tuple[Array, Array]:
        def forwards(values: Array) -> Array:
            return mean(policy, jnp.broadcast_to(mdp.expected_next(values), policy.shape))

        return mdp.discount * jax.linear_transpose(forwards, law)(law)[0], law

    steps = jnp.moveaxis(probs, -3, 0)
    start = jnp.broadcast_to(mdp.start, steps.shape[1:-1])
    return jnp.moveaxis(lax.scan(step, start, steps)[1], 0, -2)


@jax.jit
def returns(mdp: MDP, probs: Array) -> Array:
    """Sums of rewards from each state on under a policy."""
    gain = mean(probs, each_step(mdp, mdp.reward, probs))
    if mdp.horizon is None:
        return solve_values(mdp, probs, gain)

    def step(values: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        policy, gain = now
        after = jnp.broadcast_to(mdp.expected_next(values), policy.shape)
        values = gain + mdp.discount * mean(policy, after)
        return values, values

    now = jnp.moveaxis(probs, -3, 0), jnp.moveaxis(gain, -2, 0)
    last = jnp.zeros_like(now[1][0])
    return jnp.moveaxis(lax.scan(step, last, now, reverse=True)[1], 0, -2)


def most_iterations(mdp: MDP, dtype: Any) -> Array:
    """Twice as many contractions by γ as bring a first change down to rounding."""
    eps = jnp.finfo(dtype).eps
    log_discount = jnp.where(mdp.discount < 1, jnp.log(mdp.discount), -1e-5)
    return 10 + (2 * jnp.log(eps) / log_discount).astype(jnp.int32)


_KRYLOV_STEPS = 30


def solve_values(mdp: MDP, probs: Array, right: Array, *, transposed: bool = False) -> Array:
    """``(I − γP_π)⁻¹ right``, or with the transposed matrix, ``[*batch, S]``."""
    on = going(mdp, right)
    if mdp.successors is None:
        moves = probs * jnp.broadcast_to(on[..., None], probs.shape)
        chain = jnp.einsum("...sa,...sat->...st", moves, mdp.transition, precision="highest")
        chain = jnp.swapaxes(chain, -1, -2) if transposed else chain
        identity = jnp.broadcast_to(jnp.eye(chain.shape[-1], dtype=chain.dtype), chain.shape)
        return jnp.linalg.solve(identity - mdp.discount * chain, right[..., None])[..., 0]

    def forwards(v: Array) -> Array:
        return on * mean(probs, jnp.broadcast_to(mdp.expected_next(v), probs.shape))

    def apply(v: Array) -> Array:
        moved = jax.linear_transpose(forwards, v)(v)[0] if transposed else forwards(v)
        return v - mdp.discount * moved

    def iterated(apply: Any, b: Array) -> Array:
        # x ← x + b − Ax contracts by γ in either direction, from wherever it begins. Krylov methods
        # promise nothing, but mostly leave little to do.
        eps = float(jnp.finfo(b.dtype).eps)
        most = most_iterations(mdp, b.dtype)

        def goes_on(carry: Any) -> Array:
            x, change, k = carry
            return (k < most) & jnp.any(change > eps * jnp.abs(x).max(-1))

        def step(carry: Any) -> Any:
            x, _, k = carry
            rest = b - apply(x)
            return x + rest, jnp.abs(rest).max(-1), k + 1

        near = bicgstab(apply, b, tol=eps, maxiter=_KRYLOV_STEPS)[0]
        rest = jnp.abs(b - apply(near)).max()
        first = jnp.where(rest < jnp.abs(b - apply(b)).max(), near, b)
        far = jnp.full(b.shape[:-1], jnp.inf, b.dtype)
        return lax.while_loop(goes_on, step, (first, far, 0))[0]

    return lax.custom_linear_solve(apply, right, iterated, transpose_solve=iterated)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _sample(mdp: MDP, log_policy: Array, key: Array, num_samples: int, num_steps: int) -> Array:
    batch = log_policy.shape[: -2 if mdp.horizon is None else -3]
    size = mdp.transition.shape[-3:]
    log_moves = jnp.broadcast_to(jnp.log(mdp.transition), (*batch, *size))
    shape = (num_samples, *batch)
    rows = tuple(jnp.meshgrid(*map(jnp.arange, shape), indexing="ij", sparse=True)[1:])

    def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        key, time = now
        first, second = jax.random.split(key)
        place = (*rows, state) if mdp.horizon is None else (*rows, time, state)
        action = jax.random.categorical(first, log_policy[place], axis=-1)
        after = jax.random.categorical(second, log_moves[(*rows, state, action)], axis=-1)
        if mdp.successors is not None:
            after = jnp.asarray(mdp.successors)[state, action, after]
        return after.astype(jnp.int32), jnp.stack([state, action.astype(jnp.int32)], -1)

    first, then = jax.random.split(key)
    start = jnp.broadcast_to(jnp.log(mdp.start), (*batch, size[0]))
    state = jax.random.categorical(first, start, axis=-1, shape=shape).astype(jnp.int32)
    _, path = lax.scan(step, state, (jax.random.split(then, num_steps), jnp.arange(num_steps)))
    return jnp.moveaxis(path, 0, -2)
