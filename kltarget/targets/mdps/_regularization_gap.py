"""What a regulariser takes from the values of a decision process, and the bound on it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kltarget.spaces import MDP
from kltarget.targets.mdps._mdp_target import MDPTarget, each_step, going, mean, solve_values


class RegularizationGap(NamedTuple):
    """What a regulariser takes, in reward units.

    Attributes:
        greedy_values: the best sums of rewards V* from each state on, ``[*batch, S]``.
        value_gap: ``V* − V`` of the regularised values, ``[*batch, S]``.
        return_gap: ``V*`` less the rewards that the regularised optimum earns, ``[*batch, S]``.
        bound: of both gaps, ``[*batch]``; ``inf`` where a divergence can be.
    """

    greedy_values: Float[Array, "*batch S"]
    value_gap: Float[Array, "*batch S"]
    return_gap: Float[Array, "*batch S"]
    bound: Float[Array, "*batch"]


def regularization_gap(target: MDPTarget) -> RegularizationGap:
    """How far a regularised decision process stays below ``max_π E_π[Σ_t γ^t r(s_t, a_t)]``.

    Args:
        target: of :func:`solve_mdp`.

    Returns:
        The gaps, and the bound ``β max D/(1 − γ)``: no policy is charged more than the most that
        one action can cost in any state. With a horizon ``Σ_t γ^t`` stands for ``1/(1 − γ)``, at
        γ = 1 the longest mean time to absorption under the greedy policy. With a horizon the axis
        of steps precedes that of states.

    Raises:
        TypeError: not a target of :func:`solve_mdp`.

    NaN in rows that failed. Actions of reward ``-inf`` count for nothing; one that the reference
    lacks makes the bound of reverse KL infinite, and so does every action under forward KL.
    Derivatives are those of the greedy policy that is found.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import MDP
        >>> from kltarget.targets.mdps import regularization_gap, solve_mdp
        >>> transition = jnp.array([[[0.9, 0.1], [0.4, 0.6]], [[0.3, 0.7], [0.2, 0.8]]])
        >>> mdp = MDP(transition, jnp.array([[0.0, 0.2], [1.0, 0.5]]), 0.9)
        >>> target = solve_mdp(mdp, jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]])), 0.2)
        >>> gap = regularization_gap(target)
        >>> print(f"{gap.return_gap.max():.3f} {gap.value_gap.max():.3f} {gap.bound:.3f}")
        0.880 1.903 2.773

    References:
        Geist, Scherrer, Pietquin, "A Theory of Regularized Markov Decision Processes", 2019, arXiv
        1901.11275.
    """
    if not isinstance(target, MDPTarget):
        raise TypeError(f"target must be one of solve_mdp, got {type(target).__name__}")
    return _gap(target)


@jax.jit
def _gap(target: MDPTarget) -> RegularizationGap:
    mdp, probs = target.mdp, jnp.exp(target.log_policy)
    if mdp.horizon is None:
        greedy, longest = _improved(mdp, probs)
    else:
        greedy, longest = _greedy_backwards(mdp, probs)
    bound = longest * _dearest(target)
    return RegularizationGap(greedy, greedy - target.state_values, greedy - target.returns, bound)


def _improved(mdp: MDP, probs: Array) -> tuple[Array, Array]:
    """Values of the greedy policy by policy iteration, and how long it may last."""
    reward = jnp.broadcast_to(mdp.reward, probs.shape)
    on = jnp.broadcast_to(going(mdp, reward[..., 0])[..., None], probs.shape)
    eps = jnp.finfo(probs.dtype).eps

    def valued(probs: Array) -> Array:
        return solve_values(mdp, probs, mean(probs, reward))

    def step(carry: Any) -> Any:
        probs, _, k = carry
        values = valued(probs)
        after = jnp.broadcast_to(mdp.expected_next(values), probs.shape)
        q = reward + mdp.discount * on * after
        scale = jnp.abs(values).max(-1, keepdims=True)
        # Only what is better is taken up: of equal actions one could stay for ever.
        better = q.max(-1) - values > 32 * eps * jnp.broadcast_to(scale, values.shape)
        best = jax.nn.one_hot(q.argmax(-1), q.shape[-1], dtype=q.dtype)
        taken = jnp.broadcast_to(better[..., None], probs.shape)
        return jnp.where(taken, best, probs), better.any(), k + 1

    def goes_on(carry: Any) -> Array:
        return carry[1] & (carry[2] < 100)

    probs, *_ = lax.stop_gradient(lax.while_loop(goes_on, step, (probs, jnp.array(True), 0)))
    values = valued(probs)
    longest = lax.cond(
        mdp.discount == 1,
        lambda: solve_values(mdp, probs, jnp.ones_like(values)).max(-1),
        lambda: jnp.full(values.shape[:-1], 1 / (1 - mdp.discount)),
    )
    return values, longest


def _greedy_backwards(mdp: MDP, probs: Array) -> tuple[Array, Array]:
    """Values of the greedy policy from the last step to the first, and the sum of discounts."""
    shape = (*probs.shape[:-3], *probs.shape[-2:])
    reward = jnp.broadcast_to(mdp.reward, shape)

    def step(values: Array, _: None) -> tuple[Array, Array]:
        after = jnp.broadcast_to(mdp.expected_next(values), shape)
        values = (reward + mdp.discount * after).max(-1)
        return values, values

    last = jnp.zeros(shape[:-1], probs.dtype)
    values = lax.scan(step, last, length=mdp.horizon, reverse=True)[1]
    steps = jnp.arange(mdp.horizon).astype(probs.dtype)
    return jnp.moveaxis(values, 0, -2), (mdp.discount**steps).sum()


def _dearest(target: MDPTarget) -> Array:
    """``β D`` of the dearest action in any state: a divergence is convex and greatest at one."""
    states, mdp = target.states, target.mdp
    log_probs = states.log_probs

    def cost(action: Array) -> Array:
        here = jnp.broadcast_to(jnp.arange(mdp.num_actions) == action, log_probs.shape)
        sure = jnp.where(here, 0.0, -jnp.inf).astype(log_probs.dtype)
        return dataclasses.replace(states, log_probs=sure).divergence_value

    costs = jax.vmap(cost, out_axes=-1)(jnp.arange(mdp.num_actions))
    counted = each_step(mdp, mdp.reward > -jnp.inf, costs)
    if mdp.horizon is None:
        charged = going(mdp, costs[..., 0]) > 0
        counted = counted & jnp.broadcast_to(charged[..., None], costs.shape)
    most = jnp.where(counted, costs, 0.0).max(-1)
    dearest = jnp.broadcast_to(states.objective.beta, most.shape) * most
    return dearest.max(-1) if mdp.horizon is None else dearest.max((-2, -1))
