"""``solve_chain``: the best law of a chain's paths, with a reward of the last state."""

from __future__ import annotations

from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.checks import (
    at_index,
    first_index,
    float_arguments,
    mass_tolerance,
    traced,
    worded,
)
from kltarget._core.numerics import log_sum_exp
from kltarget.divergences import Divergence, ReverseKL
from kltarget.objectives import Objective
from kltarget.objectives._point_rewards import QuadraticReward
from kltarget.spaces import Chain, GaussianChain, backward
from kltarget.spaces._chains import Step
from kltarget.targets.chains._chain_target import ChainTarget
from kltarget.targets.chains._gaussian_chain_target import (
    GaussianChainTarget,
    solve_gaussian_chain,
)
from kltarget.targets.discrete import solve


@overload
def solve_chain(
    chain: Chain,
    reward: ArrayLike,
    beta: ArrayLike,
    divergence: Divergence | None = None,
    *,
    tilt_first: bool = True,
) -> ChainTarget: ...


@overload
def solve_chain(
    chain: GaussianChain,
    reward: QuadraticReward,
    beta: ArrayLike,
    divergence: ReverseKL | None = None,
    *,
    tilt_first: bool = True,
) -> GaussianChainTarget: ...


def solve_chain(
    chain: Chain | GaussianChain,
    reward: ArrayLike | QuadraticReward,
    beta: ArrayLike,
    divergence: Divergence | None = None,
    *,
    tilt_first: bool = True,
) -> ChainTarget | GaussianChainTarget:
    """The law of a chain's paths that maximises ``E_π[r(x_0)] − β·D(π, p)``.

    The divergence is that of whole paths; for reverse KL it is the sum of the steps' expected KL.

    Where the first law may be tilted, paths that end in one state have one reward, so under every
    divergence they keep their proportions: π(path) = p(path) u(x_0). What is left is
    :func:`kltarget.solve` on the last states, and the last marginal is the target of p's own,
    ``p(x_0) e^{r/β}/Z`` for reverse KL. Steps follow from one pass backwards,
    ``π(x_{t−1}|x_t) = p(x_{t−1}|x_t) h(x_{t−1})/h(x_t)`` with ``h(x_t) = E_p[u(x_0)|x_t]``.

    Where it is fixed, as noise is that a sampler starts from, every first state is a problem of its
    own, ``max_π E_π[r(x_0)|x_T] − β·D(π(·|x_T), p(·|x_T))``, because
    ``D(π, p) = Σ p(x_T) D(π(·|x_T), p(·|x_T))`` for all f-divergences of laws with one first
    marginal. Then the last marginal is not ``p(x_0) e^{r/β}/Z`` unless all first states have one
    value ``v(x_T)``, and the divergence of paths is more than that of the last marginals. With
    reverse KL the steps are those of the tilted chain; with others they remember the first state.

    Args:
        chain: p, over S states, with T steps; or a Gaussian chain.
        reward: of the last state, in reward units, shape ``[*batch, S]``. ``-inf`` forbids it. Of a
            Gaussian chain a :class:`kltarget.mixtures.QuadraticReward`.
        beta: coefficient of the divergence, in reward units per nat, shape ``[*batch]``.
        divergence: reverse KL by default, and of Gaussian chains alone.
        tilt_first: whether the law of the first state may move too.

    Returns:
        The target; of a Gaussian chain with a quadratic reward its law is a Gaussian chain too, in
        closed form step by step. Differentiable in reward, beta, the chain and the divergence's
        parameters.

    Raises:
        TypeError: no chain.
        ValueError: shapes that do not fit; outside a trace, a reward that forbids every last state
            that the chain reaches, a quadratic reward that outgrows the divergence; and what
            :func:`kltarget.solve` refuses.

    A target is a chain again, ``Chain(target.log_first, target.log_kernels)``, which may be tilted
    a second time, as by ``log p(y|x_0)`` of a condition y with β = 1: of reverse KL, tilts in turn
    are one tilt by the sum of ``r/β``.

    Regularised to data instead of a model, by their forward KL, p is the chain that data and their
    noising make when it is turned round: the target of ``ForwardKL()`` has the last marginal
    ``β p(x_0)/(Λ − r)``, whatever model training starts from. With the reward
    :func:`kltarget.objectives.ddrl_reward` and a coefficient of 1 it is ``p(x_0) e^{r/β}/Z`` and
    the steps are those of reverse KL, if the first law may be tilted.

    Last states that the chain does not reach are no outcomes and keep probability 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import Chain
        >>> from kltarget.targets.chains import solve_chain
        >>> first = jnp.log(jnp.array([0.5, 0.5]))
        >>> steps = jnp.log(jnp.array([[[0.8, 0.2], [0.3, 0.7]], [[0.9, 0.1], [0.2, 0.8]]]))
        >>> chain, reward = Chain(first, steps), jnp.array([1.0, 0.0])
        >>> for tilt_first in (True, False):
        ...     target = solve_chain(chain, reward, 0.5, tilt_first=tilt_first)
        ...     print(f"{jnp.exp(target.log_last[0]):.4f} for {target.divergence_value:.3f} nats")
        0.9124 for 0.269 nats
        0.8980 for 0.269 nats

    References:
        Zhao et al., "Adding Conditional Control to Diffusion Models with Reinforcement Learning",
        2024, arXiv 2406.12120 (a condition as a second tilt).
        Fan et al., "DPOK: Reinforcement Learning for Fine-tuning Text-to-Image Diffusion Models",
        2023, arXiv 2305.16381 (reverse KL summed over steps, with the first law fixed).
        Ye et al., "Data-regularized Reinforcement Learning for Diffusion Models at Scale", 2025,
        arXiv 2512.04332 (forward KL to data).
    """
    divergence = ReverseKL() if divergence is None else divergence
    if isinstance(chain, GaussianChain):
        if not isinstance(divergence, ReverseKL):
            raise ValueError(
                f"divergence {divergence.name} leads out of the Gaussian chains: use "
                "kltarget.ReverseKL(), or a Chain on a grid"
            )
        return solve_gaussian_chain(chain, reward, beta, tilt_first=tilt_first)
    if not isinstance(chain, Chain):
        raise TypeError(f"chain must be a Chain or a GaussianChain of kltarget.spaces: {chain!r}")
    if isinstance(reward, QuadraticReward):
        raise TypeError("reward of a Chain must be an array of a number per state")
    arrays = float_arguments(reward=reward, beta=beta, log_initial=chain.log_initial)
    reward, beta = arrays["reward"], arrays["beta"]
    states = chain.num_states
    if reward.ndim == 0 or reward.shape[-1] != states:
        raise ValueError(
            f"reward has shape {reward.shape}, but the chain has {states} states: the last axis "
            f"must be {states}"
        )
    batches = chain.batch_shape, reward.shape[:-1], beta.shape
    with worded(
        f"the batch axes of the chain {batches[0]}, reward {batches[1]} and beta {batches[2]} do "
        "not broadcast"
    ):
        batch = jnp.broadcast_shapes(*batches)
    log_ref = chain.log_marginals()[..., -1, :] if tilt_first else _ends_from(chain)
    shape = (*batch, states) if tilt_first else (*batch, states, states)
    rows = reward if tilt_first else reward[..., None, :]
    log_ref, rows = jnp.broadcast_to(log_ref, shape), jnp.broadcast_to(rows, shape)
    if not traced(log_ref, rows):
        _require_ends(chain, log_ref, rows, tilt_first)
    rows = jnp.where(log_ref > -jnp.inf, rows, -jnp.inf)
    reward = rows if tilt_first else rows.max(-2)
    if not tilt_first:
        beta = jnp.broadcast_to(beta, batch)[..., None]
        # Sums over first states do not see what their law lacks, as under a trace.
        off = jnp.abs(jnp.exp(chain.log_initial).sum(-1) - 1)
        known = jnp.broadcast_to(off <= mass_tolerance(off.dtype), batch)
        log_ref = jnp.where(known[..., None, None], log_ref, jnp.nan)
        # A first state that never occurs asks for nothing, whatever is forbidden from there.
        never = jnp.broadcast_to(chain.log_initial, shape[:-1])[..., None] == -jnp.inf
        rows = jnp.where(never & (log_ref > -jnp.inf), 0.0, rows)
    ends = solve(Objective(rows, log_ref, beta, divergence))
    return ChainTarget(chain, reward, ends, tilt_first)


@jax.jit
def _ends_from(chain: Chain) -> Array:
    """Log-probabilities of last states from each first one, ``[*batch, S, S]``."""
    states = chain.num_states
    one = jnp.where(jnp.eye(states, dtype=bool), 0.0, -jnp.inf).astype(chain.log_kernels.dtype)
    one = jnp.broadcast_to(one, (*chain.log_kernels.shape[:-3], states, states))

    def backup(values: Array, layer: Step) -> tuple[Array, None]:
        kernel = layer.log_ref[..., None, :, :]
        return log_sum_exp(jnp.broadcast_to(kernel, values.shape) + values)[..., 0], None

    # A column per last state, whose indicator is walked backwards.
    values, _ = backward(chain.layers(), one, backup)
    return jnp.swapaxes(values[0], -1, -2)


def _require_ends(chain: Chain, log_ref: Array, rows: Array, tilt_first: bool) -> None:
    """An error where every end that is reached is forbidden."""
    none = ~np.asarray((log_ref > -jnp.inf) & (rows != -jnp.inf)).any(-1)
    if not tilt_first:
        none &= np.asarray(jnp.broadcast_to(chain.log_initial, none.shape)) > -np.inf
    if none.any():
        at, whence = first_index(none), "" if tilt_first else " from a first state"
        raise ValueError(
            f"reward forbids every last state that the chain reaches{whence}{at_index(at)}: give "
            "one of them a finite reward"
        )
