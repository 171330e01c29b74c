"""The reward with which forward KL to data has the target that reverse KL to them has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import float_arguments, worded
from kltarget._core.numerics import log_sum_exp
from kltarget.objectives._objective import Objective, broadcast_fields


def ddrl_reward(
    reward: ArrayLike, log_ref: ArrayLike, beta: ArrayLike, *, center: ArrayLike | None = None
) -> Float[Array, "*batch A"]:
    """The reward of data-regularised learning, ``−e^{−(r − Z)/β}``.

    ``Z = β log E_data[e^{r/β}]``.

    Forward KL to data, ``max_π E_π[r̄] − c·KL(p_data‖π)``, has the target ``c p_data/(Λ − r̄)``. Of
    the reward itself that is ``c p_data/(Λ − r)``. Of this one with c = 1 it is
    ``p_data e^{r/β}/Z'``, that of reverse KL at β: then Λ = 0. No other reward does so but for
    constants that are added to it, :func:`reward_for` of that target among them.

    The center must be Z. With another number b the target is ``c p_data/(Λ + e^{−(r − b)/β})``,
    where Λ = 0 only if ``b = Z + β log c``. Below, as is the mean reward of a group, Λ is above 0:
    ratios to the data level off at c/Λ, and large rewards count less than ``e^{r/β}``. Above, they
    count more.

    Args:
        reward: r, in reward units, ``[*batch, A]``. ``-inf`` forbids an outcome.
        log_ref: log-probabilities of the data, which are what is kept to, ``[*batch, A]``.
        beta: in reward units per nat, ``[*batch]``.
        center: b, in reward units, ``[*batch]``. Default: Z.

    Returns:
        Rewards without units, ``[*batch, A]``, for forward KL at a coefficient of 1. Differentiable
        in every argument.

    Raises:
        ValueError: shapes that do not fit; outside a trace, values that :class:`Objective` refuses.
            Under a trace rows with an invalid beta are NaN.

    ``-inf`` where the reward is so far below the center that the exponential overflows, from 88 β
    in float32 on: such an outcome has probability 0.

    Of a chain of steps the data are the chain's last marginal, and paths their noising: then
    :func:`kltarget.targets.chains.solve_chain` with this reward, β = 1 and forward KL has the steps
    of reverse KL at β, if the law of the first state may be tilted. If it is fixed, each first
    state x_T would need the center ``v(x_T)`` of its own, which no reward of x_0 can have.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.objectives import ddrl_reward
        >>> log_ref, reward = jnp.log(jnp.array([0.7, 0.2, 0.1])), jnp.array([0.0, 1.0, 2.0])
        >>> reverse = kt.solve(kt.Objective(reward, log_ref, 0.5))
        >>> print([f"{p:.3f}" for p in reverse.probs])
        ['0.092', '0.193', '0.715']
        >>> for center in (None, 0.4):  # Z, and the mean reward
        ...     made = ddrl_reward(reward, log_ref, 0.5, center=center)
        ...     forward = kt.solve(kt.Objective(made, log_ref, 1.0, kt.ForwardKL()))
        ...     print([f"{p:.3f}" for p in forward.probs])
        ['0.092', '0.193', '0.715']
        ['0.283', '0.366', '0.350']

    References:
        Ye et al., "Data-regularized Reinforcement Learning for Diffusion Models at Scale", 2025,
        arXiv 2512.04332.
    """
    given = float_arguments(reward=reward, log_ref=log_ref, beta=beta)
    problem = Objective(given["reward"], given["log_ref"], given["beta"])
    own = None if center is None else float_arguments(center=center, reward=given["reward"])
    with worded(f"center and the batch axes {problem.batch_shape} do not broadcast"):
        return _centred(problem, None if own is None else own["center"])


@jax.jit
def _centred(problem: Objective, center: Array | None) -> Array:
    reward, log_ref, beta, _ = broadcast_fields(problem)
    possible = reward > -jnp.inf
    scaled = jnp.where(possible, reward, 0.0) / beta
    if center is None:
        middle = log_sum_exp(jnp.where(possible, log_ref + scaled, -jnp.inf))
    else:
        own = jnp.broadcast_to(center.astype(reward.dtype), problem.batch_shape)
        middle = own[..., None] / beta
    made = jnp.where(possible, -jnp.exp(middle - scaled), -jnp.inf)
    valid = jnp.broadcast_to((beta > 0) & (beta < jnp.inf), made.shape)
    return jnp.where(valid, made, jnp.nan).astype(problem.reward.dtype)
