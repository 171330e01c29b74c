"""``solve_mdp``: the optimal policy of a regularised decision process, with its certificate."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.checks import (
    float_argument,
    log_probs_in,
    mass_tolerance,
    positive_if_given,
    raise_first,
    traced,
    worded,
)
from kltarget._core.status import FAILURES, Status, flag
from kltarget.divergences import Divergence, ReverseKL
from kltarget.objectives import Objective
from kltarget.spaces import MDP, backward
from kltarget.targets.discrete import Target, solve
from kltarget.targets.mdps._mdp_target import (
    MDPTarget,
    going,
    mean,
    solve_values,
    values_of,
)


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
    every divergence. It is found by policy iteration, which is Newton's method; with a horizon H by
    a pass from its last step to its first.

    Without discounting, γ = 1, sums end in absorbing states, whose value is 0: the process must
    be such that no policy can stay elsewhere for ever with rewards above 0, and the reference must
    be absorbed from every state. Then staying costs without end, and the optimum is absorbed too.

    Args:
        mdp: the decision process.
        log_ref: log-probabilities of the actions, ``[*batch, S, A]``; ``-inf`` where there is none.
        beta: coefficient of the divergence, in reward units per nat, shape ``[*batch]``.
        divergence: reverse KL by default.
        num_steps: the most iterations, without a horizon; 100 by default.

    Returns:
        The target; its ``value_error`` bounds what is left to the fixed point. With a horizon its
        values and policies are ``[*batch, H, S]`` and ``[*batch, H, S, A]``.

    Raises:
        TypeError: no :class:`kltarget.spaces.MDP`, a divergence that is not one.
        ValueError: shapes that do not fit, what :class:`kltarget.Objective` refuses, at γ = 1
            a reference that is not absorbed from every state, and an action of reward ``-inf`` that
            the reference takes where the divergence is infinite without it, as forward KL is.

    Status:
        Those of :func:`kltarget.solve` in any state; ``NOT_CONVERGED`` where values still changed
        by more than rounding; under a trace ``INVALID_PROCESS`` where the discount or a transition
        is out of range, or the reference leads to no end at γ = 1.

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
        >>> last_two = MDP(transition, mdp.reward, horizon=2)
        >>> target = solve_mdp(last_two, jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]])), 0.2)
        >>> print([[f"{v:.4f}" for v in step] for step in target.state_values])
        [['0.5853', '1.3552'], ['0.1240', '0.7668']]

    References:
        Geist, Scherrer, Pietquin, "A Theory of Regularized Markov Decision Processes", 2019, arXiv
        1901.11275. Newton's step at the fixed point has the derivatives of the implicit function
        theorem: ``dV = (I − γP_π)⁻¹ ∂T``.
    """
    if not isinstance(mdp, MDP):
        raise TypeError(f"mdp must be an MDP, got {type(mdp).__name__}")
    positive_if_given("num_steps", num_steps)
    dtype = mdp.reward.dtype
    log_ref = log_probs_in(dtype, log_ref=log_ref)
    beta = float_argument(beta, "beta").astype(dtype)
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
    mdp.require_absorbed(log_ref)
    _require_finite_cost(mdp, log_ref, divergence, batch)
    return _solve_mdp(mdp, log_ref, beta, divergence, batch, num_steps)


def _require_finite_cost(
    mdp: MDP, log_ref: Array, divergence: Divergence, batch: tuple[int, ...]
) -> None:
    """Raises where a state lacks an action that costs infinitely much not to take."""
    if traced(mdp.transition, mdp.discount, mdp.reward, log_ref, *jax.tree.leaves(divergence)):
        return
    if bool(jnp.isfinite(divergence.f(0.0)).all()):
        return
    shape = (*batch, mdp.num_states, mdp.num_actions)
    reward, log_ref = (jnp.broadcast_to(x, shape) for x in (mdp.reward, log_ref))
    lacked = (reward == -jnp.inf) & (log_ref > -jnp.inf)
    if mdp.horizon is None:
        goes_on = going(mdp, jnp.zeros((*batch, mdp.num_states))) > 0
        lacked = lacked & goes_on[..., None]
    wanted = f"is -inf where log_ref is not, which is infinitely far in {divergence.title}"
    raise_first("reward", None, lacked, wanted)


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
    reward = jnp.broadcast_to(mdp.reward, shape)
    log_ref = jnp.broadcast_to(log_ref, shape)
    beta = jnp.broadcast_to(beta[..., None], shape[:-1])
    # Under a trace nothing was checked yet: such rows are to be NaN, not numbers of no process.
    invalid = _invalid(*jax.tree.map(lax.stop_gradient, (mdp, reward, log_ref)))
    reward = jnp.where(invalid[..., None, None], jnp.nan, reward)
    if mdp.horizon is not None:
        return _walked(mdp, reward, log_ref, beta, divergence, invalid)
    eps = jnp.finfo(reward.dtype).eps
    zero = jnp.zeros(shape[:-1], reward.dtype)
    on = jnp.broadcast_to(going(mdp, zero)[..., None], shape)

    def solved(q: Array) -> Target:
        return solve(Objective.unchecked(q, log_ref, beta, divergence))

    def action_values(values: Array) -> Array:
        after = jnp.broadcast_to(mdp.expected_next(values), shape)
        return reward + mdp.discount * on * after

    def newton(values: Array, here: Target, gain: Array) -> Array:
        rest = values_of(mdp, here) + gain - values
        return values + solve_values(mdp, jnp.exp(here.log_probs), rest)

    most = 100 if num_steps is None else num_steps

    def goes_on(carry: Any) -> Array:
        _, change, scale, step = carry
        return (step < most) & jnp.any(change > 8 * eps * scale)

    def step(carry: Any) -> Any:
        values, _, _, k = carry
        q = action_values(values)
        # Policies are improved from the one of no rewards on, which ends where the reference does.
        first = k == 0
        here = solved(jnp.where(first & (reward > -jnp.inf), 0.0, q))
        after = values_of(mdp, here)
        change = jnp.where(first, jnp.inf, jnp.abs(after - values).max(-1))
        scale = jnp.abs(after).max(-1) + jnp.abs(values).max(-1)
        gain = jnp.where(first, mean(jnp.exp(here.log_probs), reward), 0.0)
        return newton(values, here, gain), change, scale, k + 1

    far = jnp.full(batch, jnp.inf, reward.dtype)
    carry = (zero, far, jnp.zeros(batch, reward.dtype), 0)
    values, *_ = lax.stop_gradient(lax.while_loop(goes_on, step, carry))

    def last(values: Array, _: None) -> tuple[Array, Any]:
        q = action_values(values)
        here = solved(q)
        return newton(values, here, zero), (values, q, *_parts(here))

    # A Newton step more has the derivatives of the fixed point; then the target there. As one loop
    # they are compiled once.
    values, q, *parts = (x[1] for x in lax.scan(last, values, length=2)[1])
    states = Target(Objective.unchecked(q, log_ref, beta, divergence), *parts)
    after = values_of(mdp, states)
    change = jnp.abs(after - values).max(-1)
    scale = jnp.abs(after).max(-1)
    bits = _any_bits(states.status, batch)
    bits = bits | flag(~(change <= 64 * eps * scale), Status.NOT_CONVERGED)
    status = jnp.where(invalid, jnp.int32(int(Status.INVALID_PROCESS)), bits)
    probs = lax.stop_gradient(jnp.exp(states.log_probs))
    times = lax.cond(
        mdp.discount == 1,
        lambda: solve_values(mdp, probs, jnp.ones_like(zero)).max(-1),
        lambda: jnp.full(batch, mdp.discount / (1 - mdp.discount)),
    )
    error = jnp.where((status & FAILURES) != 0, jnp.nan, change * times)
    return MDPTarget(mdp, states, error, status)


def _invalid(mdp: MDP, reward: Array, log_ref: Array) -> Array:
    """Rows whose discount or transition is out of range, or at γ = 1 do not end, ``[*batch]``."""
    present = reward > -jnp.inf
    total = mdp.transition.sum(-1)
    wrong = ~(jnp.abs(total - 1) <= mass_tolerance(total.dtype)) | (mdp.transition < 0).any(-1)
    wrong = (jnp.broadcast_to(wrong, present.shape) & present).any((-1, -2))
    wrong = wrong | ~((mdp.discount > 0) & (mdp.discount <= 1))
    if mdp.horizon is not None:
        return wrong
    taken = present & (log_ref > -jnp.inf)
    ended = 1 - going(mdp, reward[..., 0])

    def more(state: tuple[Array, Array]) -> tuple[Array, Array]:
        led, _ = state
        ahead = taken & (jnp.broadcast_to(mdp.expected_next(led), taken.shape) > 0)
        after = jnp.where(ahead.any(-1), jnp.ones_like(led), led)
        return after, jnp.any(after != led)

    led, _ = lax.while_loop(lambda state: state[1], more, (ended, mdp.discount == 1))
    return wrong | ((mdp.discount == 1) & ~(led > 0).all(-1))


class _Step(NamedTuple):
    """A step of a process with a horizon, as a layer."""

    mdp: MDP
    log_ref: Array

    def children(self, values: Array) -> Array:
        return jnp.broadcast_to(self.mdp.expected_next(values), self.log_ref.shape)


def _walked(
    mdp: MDP, reward: Array, log_ref: Array, beta: Array, divergence: Divergence, invalid: Array
) -> MDPTarget:
    """The target of a process with a horizon: one pass from its last step to its first."""

    def backup(after: Array, layer: _Step) -> tuple[Array, tuple[Array, ...]]:
        q = reward + mdp.discount * after
        here = solve(Objective.unchecked(q, layer.log_ref, beta, divergence))
        return here.value, (q, *_parts(here))

    assert mdp.horizon is not None
    layers = (_Step(mdp, log_ref),) * mdp.horizon
    _, steps = backward(layers, jnp.zeros_like(beta), backup)
    batch = beta.shape[:-1]
    q, *parts = (jnp.stack(x, len(batch)) for x in zip(*steps, strict=True))
    # What is the same at each step gets the axis of steps.
    log_ref = jnp.broadcast_to(log_ref[..., None, :, :], q.shape)
    beta = jnp.broadcast_to(beta[..., None, :], q.shape[:-1])
    divergence = jax.tree.map(lambda x: x[..., None, :] if jnp.ndim(x) else x, divergence)
    states = Target(Objective.unchecked(q, log_ref, beta, divergence), *parts)
    bits = _any_bits(states.status, batch)
    status = jnp.where(invalid, jnp.int32(int(Status.INVALID_PROCESS)), bits)
    failed = (status & FAILURES) != 0
    error = jnp.where(failed, jnp.nan, jnp.zeros(batch, reward.dtype))
    return MDPTarget(mdp, states, error, status)


def _parts(target: Target) -> tuple[Array, Array, Array]:
    return target.log_probs, target.multiplier, target.status


def _any_bits(status: Array, batch: tuple[int, ...]) -> Array:
    axes = tuple(range(len(batch), status.ndim))
    return lax.reduce(status, jnp.int32(0), lax.bitwise_or, axes)
