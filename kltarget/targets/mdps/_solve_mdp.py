"""``solve_mdp``: the optimal policy of a regularised decision process, with its certificate."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import float_arguments, positive, typed_key, worded
from kltarget._core.pytrees import register
from kltarget._core.status import FAILURES, Status, flag
from kltarget.divergences import Divergence, ReverseKL
from kltarget.objectives import Objective
from kltarget.spaces import MDP
from kltarget.targets._protocol import Optimum
from kltarget.targets.discrete import Target, solve


@dataclasses.dataclass(frozen=True, eq=False)
class MDPTarget(Optimum):
    """The policy of a decision process that maximises an objective, with its certificate.

    Sums over time are discounted: the first step counts 1, the next γ.

    Attributes:
        mdp: the decision process.
        states: the target of each state, over its actions: :class:`kltarget.Target` of batch shape
            ``[*batch, S]`` whose rewards are Q.
        value_error: at most this far are the state values from the optimum, in reward units,
            ``[*batch]``: ``γ/(1 − γ)`` times the last change of a value; rounding is not in it.
        status: :class:`~kltarget.Status` bits, shape ``[*batch]``.
    """

    made_by = "solve_mdp"

    mdp: MDP
    states: Target
    value_error: Float[Array, "*batch"]
    status: Int[Array, "*batch"]

    @property
    def state_values(self) -> Float[Array, "*batch S"]:
        """The maximum V from each state on, in reward units."""
        return self.states.value

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
        return _dot(self.mdp.start, self.state_values)

    @property
    def occupancy(self) -> Float[Array, "*batch S"]:
        """How much of the discounted time is spent in each state; sums to one."""
        probs = jnp.exp(self.log_policy)
        start = jnp.broadcast_to(self.mdp.start, probs.shape[:-1])
        return (1 - self.mdp.discount) * _solve_values(self.mdp, probs, start, transposed=True)

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """The expected discounted sum of rewards, without the regulariser."""
        return self.expectation(self.mdp.reward)

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """The expected discounted sum of the states' divergences, in nats."""
        return _dot(self.occupancy, self.states.divergence_value) / (1 - self.mdp.discount)

    @property
    def returns(self) -> Float[Array, "*batch S"]:
        """The expected discounted sum of rewards from each state on, without the regulariser."""
        probs = jnp.exp(self.log_policy)
        gain = _mean(probs, jnp.broadcast_to(self.mdp.reward, probs.shape))
        return _solve_values(self.mdp, probs, gain)

    def expectation(self, fn: ArrayLike) -> Float[Array, "*batch"]:
        """``E_π[Σ_t γ^t fn(s_t, a_t)]`` of values ``[S, A]`` or ``[*batch, S, A]``."""
        probs = jnp.exp(self.log_policy)
        values = jnp.broadcast_to(jnp.asarray(fn, probs.dtype), probs.shape)
        return _dot(self.occupancy, _mean(probs, values)) / (1 - self.mdp.discount)

    def log_prob(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of trajectories.

        Args:
            x: states and actions in turn, integers ``[..., T, 2]``.

        Returns:
            Shape ``[*batch, ...]``: of the start, the actions and the moves between the states.
        """
        path = jnp.asarray(x)
        state, action = path[..., 0], path[..., 1]
        total = jnp.log(self.mdp.start)[..., state[..., 0]]
        acted = self.log_policy[..., state, action].sum(-1)
        before, done, after = state[..., :-1], action[..., :-1], state[..., 1:]
        if self.mdp.successors is None:
            moved = self.mdp.transition[..., before, done, after]
        else:
            chances = self.mdp.transition[..., before, done, :]
            hit = self.mdp.successors[before, done] == after[..., None]
            moved = jnp.where(jnp.broadcast_to(hit, chances.shape), chances, 0.0).sum(-1)
        moved = jnp.log(moved).sum(-1)
        total, moved = (jnp.broadcast_to(part, acted.shape) for part in (total, moved))
        return total + acted + moved

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int, num_steps: int = 100
    ) -> Int[Array, "num_samples *batch T 2"]:
        """Independent trajectories of ``num_steps`` states and actions in turn."""
        positive("num_samples", num_samples)
        positive("num_steps", num_steps)
        return _sample(self.mdp, self.log_policy, typed_key(key), num_samples, num_steps)


register(MDPTarget, ("mdp", "states", "value_error", "status"))


def solve_mdp(
    mdp: MDP,
    log_ref: ArrayLike,
    beta: ArrayLike,
    divergence: Divergence | None = None,
    *,
    num_steps: int | None = None,
) -> MDPTarget:
    """The policy that maximises ``E_π[Σ_t γ^t (r(s_t, a_t) − β·D(π(·|s_t), π_ref(·|s_t)))]``.

    ``V(s) = max_p {p·Q(s, ·) − β·D(p, π_ref(·|s))}`` with ``Q = r + γ P V`` has one solution, for
    every divergence. A dense process is solved by policy iteration, which is Newton's method, a
    sparse one by value iteration.

    Args:
        mdp: the decision process.
        log_ref: log-probabilities of the actions, ``[*batch, S, A]``; ``-inf`` where there is none.
        beta: coefficient of the divergence, in reward units per nat, shape ``[*batch]``.
        divergence: reverse KL by default.
        num_steps: the most iterations; by default 100 of policies, and as many of values as
            discounting needs to reach rounding.

    Returns:
        The target; its ``value_error`` bounds what is left to the fixed point.

    Raises:
        ValueError: shapes that do not fit, and what :class:`kltarget.Objective` refuses.

    Status:
        Those of :func:`kltarget.solve` in any state; ``NOT_CONVERGED`` where values still changed
        by more than rounding.

    An action of reward ``-inf`` is not taken. First derivatives in reward, transition, log_ref,
    beta and discount go through the fixed point by one linear equation.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import MDP
        >>> from kltarget.targets.mdps import solve_mdp
        >>> transition = jnp.array([[[0.9, 0.1], [0.4, 0.6]], [[0.3, 0.7], [0.2, 0.8]]])
        >>> mdp = MDP(transition, jnp.array([[0.0, 0.2], [1.0, 0.5]]), 0.9)
        >>> target = solve_mdp(mdp, jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]])), 0.2)
        >>> print([f"{v:.4f}" for v in target.state_values])
        ['4.9444', '5.7235']

    References:
        Geist, Scherrer, Pietquin, "A Theory of Regularized Markov Decision Processes", 2019, arXiv
        1901.11275. Newton's step at the fixed point has the derivatives of the implicit function
        theorem: ``dV = (I − γP_π)⁻¹ ∂T``.
    """
    positive("num_steps", num_steps)
    arrays = float_arguments(log_ref=log_ref, beta=beta)
    dtype = mdp.reward.dtype
    log_ref, beta = arrays["log_ref"].astype(dtype), arrays["beta"].astype(dtype)
    if log_ref.ndim < 2 or log_ref.shape[-2:] != mdp.reward.shape[-2:]:
        raise ValueError(
            f"log_ref has shape {log_ref.shape}, but the process has {mdp.num_states} states and "
            f"{mdp.num_actions} actions: its last axes must be those"
        )
    with worded(
        f"the batch axes of mdp {mdp.batch_shape}, log_ref {log_ref.shape[:-2]} and beta "
        f"{beta.shape} do not broadcast"
    ):
        batch = jnp.broadcast_shapes(mdp.batch_shape, log_ref.shape[:-2], beta.shape)
    divergence = ReverseKL() if divergence is None else divergence
    # What is wrong with values is said once, before the walk.
    Objective(mdp.reward, log_ref, beta[..., None], divergence)
    return _solve_mdp(mdp, log_ref, beta, divergence, batch, num_steps)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _solve_mdp(
    mdp: MDP,
    log_ref: Array,
    beta: Array,
    divergence: Divergence,
    batch: tuple[int, ...],
    num_steps: int | None,
) -> MDPTarget:
    shape = (*batch, *mdp.reward.shape[-2:])
    dense = mdp.successors is None
    reward = jnp.broadcast_to(mdp.reward, shape)
    log_ref = jnp.broadcast_to(log_ref, shape)
    beta = jnp.broadcast_to(beta[..., None], shape[:-1])
    eps = jnp.finfo(reward.dtype).eps

    def backup(values: Array) -> Target:
        after = jnp.broadcast_to(mdp.expected_next(values), shape)
        return solve(Objective.unchecked(reward + mdp.discount * after, log_ref, beta, divergence))

    def newton(values: Array, here: Target) -> Array:
        rest = here.value - values
        return values + _solve_values(mdp, jnp.exp(here.log_probs), rest)

    # Values contract by γ a step: twice as many as bring a first change down to rounding.
    needed = 10 + (2 * jnp.log(eps) / jnp.log(mdp.discount)).astype(jnp.int32)
    most = (100 if dense else needed) if num_steps is None else num_steps

    def goes_on(carry: Any) -> Array:
        _, change, scale, step = carry
        return (step < most) & jnp.any(change > 8 * eps * scale)

    def step(carry: Any) -> Any:
        values, _, _, k = carry
        here = backup(values)
        change = jnp.abs(here.value - values).max(-1)
        scale = jnp.abs(here.value).max(-1) + jnp.abs(values).max(-1)
        after = newton(values, here) if dense else here.value
        return after, change, scale, k + 1

    far = jnp.full(batch, jnp.inf, reward.dtype)
    first = (jnp.zeros(shape[:-1], reward.dtype), far, jnp.zeros(batch, reward.dtype), 0)
    values, *_ = lax.stop_gradient(lax.while_loop(goes_on, step, first))
    # A Newton step more has the derivatives of the fixed point.
    values = newton(values, backup(values))
    states = backup(values)
    change = jnp.abs(states.value - values).max(-1)
    scale = jnp.abs(states.value).max(-1)
    bits = lax.reduce(states.status, jnp.int32(0), lax.bitwise_or, (len(batch),))
    status = bits | flag(~(change <= 64 * eps * scale), Status.NOT_CONVERGED)
    failed = (status & FAILURES) != 0
    error = jnp.where(failed, jnp.nan, change * mdp.discount / (1 - mdp.discount))
    return MDPTarget(mdp, states, error, status)


def _mean(probs: Array, values: Array) -> Array:
    return jnp.where(probs > 0, probs * jnp.where(probs > 0, values, 0.0), 0.0).sum(-1)


def _dot(weights: Array, values: Array) -> Array:
    return (jnp.broadcast_to(weights, values.shape) * values).sum(-1)


def _solve_values(mdp: MDP, probs: Array, right: Array, *, transposed: bool = False) -> Array:
    """``(I − γP_π)⁻¹ right``, or with the transposed matrix, ``[*batch, S]``."""
    if mdp.successors is None:
        chain = jnp.einsum("...sa,...sat->...st", probs, mdp.transition, precision="highest")
        chain = jnp.swapaxes(chain, -1, -2) if transposed else chain
        identity = jnp.broadcast_to(jnp.eye(chain.shape[-1], dtype=chain.dtype), chain.shape)
        return jnp.linalg.solve(identity - mdp.discount * chain, right[..., None])[..., 0]

    def forwards(v: Array) -> Array:
        return _mean(probs, jnp.broadcast_to(mdp.expected_next(v), probs.shape))

    def apply(v: Array) -> Array:
        moved = jax.linear_transpose(forwards, v)(v)[0] if transposed else forwards(v)
        return v - mdp.discount * moved

    def iterated(apply: Any, b: Array) -> Array:
        # x ← x + b − Ax contracts by γ in either direction, which Krylov methods do not promise.
        eps = jnp.finfo(b.dtype).eps
        most = 10 + (2 * jnp.log(eps) / jnp.log(mdp.discount)).astype(jnp.int32)

        def goes_on(carry: Any) -> Array:
            x, change, k = carry
            return (k < most) & (change > eps * jnp.abs(x).max())

        def step(carry: Any) -> Any:
            x, _, k = carry
            rest = b - apply(x)
            return x + rest, jnp.abs(rest).max(), k + 1

        far = jnp.asarray(jnp.inf, b.dtype)
        return lax.while_loop(goes_on, step, (b, far, 0))[0]

    return lax.custom_linear_solve(apply, right, iterated, transpose_solve=iterated)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _sample(mdp: MDP, log_policy: Array, key: Array, num_samples: int, num_steps: int) -> Array:
    batch, size = log_policy.shape[:-2], mdp.transition.shape[-3:]
    log_moves = jnp.broadcast_to(jnp.log(mdp.transition), (*batch, *size))
    shape = (num_samples, *batch)
    rows = tuple(jnp.meshgrid(*map(jnp.arange, shape), indexing="ij", sparse=True)[1:])

    def step(state: Array, key: Array) -> tuple[Array, Array]:
        first, second = jax.random.split(key)
        action = jax.random.categorical(first, log_policy[(*rows, state)], axis=-1)
        after = jax.random.categorical(second, log_moves[(*rows, state, action)], axis=-1)
        if mdp.successors is not None:
            after = jnp.asarray(mdp.successors)[state, action, after]
        return after.astype(jnp.int32), jnp.stack([state, action.astype(jnp.int32)], -1)

    first, then = jax.random.split(key)
    start = jnp.broadcast_to(jnp.log(mdp.start), (*batch, size[0]))
    state = jax.random.categorical(first, start, axis=-1, shape=shape).astype(jnp.int32)
    _, path = lax.scan(step, state, jax.random.split(then, num_steps))
    return jnp.moveaxis(path, 0, -2)
