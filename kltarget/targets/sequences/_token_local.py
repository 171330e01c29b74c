"""The targets of per-token losses, whose gradient does not see which prefixes are drawn."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.checks import mass_tolerance
from kltarget._core.pytrees import pytree
from kltarget._core.status import FAILURES, Status, flag, unless_failed
from kltarget.divergences import Divergence
from kltarget.objectives import Objective
from kltarget.objectives._objective import broadcast_fields
from kltarget.spaces import SequenceSpace, _sequences, _token_layers, backward
from kltarget.targets._protocol import StationaryPolicy
from kltarget.targets.discrete._solve import Target, solve
from kltarget.targets.sequences._soft_values import possible_mass


@pytree
class TokenLocalTarget(StationaryPolicy):
    """The fixed point of a per-token loss, as a policy over whole sequences.

    Attributes:
        objective: the sequence-level objective of the same reward, reference, beta and divergence.
            For more than one token this policy does *not* maximise it; ``solve(objective).gap``
            says by how much it falls short. Impossible sequences of a space with ``eos`` have
            reward ``-inf`` in it.
        log_probs: log π over whole sequences, shape ``[*batch, V**L]``; ``-inf`` where exactly 0.
        multiplier: λ of the first token's problem, in reward units, shape ``[*batch]``.
        status: :class:`Status` bits, shape ``[*batch]``. A remark holds at some prefix that the
            policy reaches, a failure at any.
    """

    made_by = "token_local_target"


def token_local_target(
    space: SequenceSpace,
    reward: ArrayLike,
    log_ref: ArrayLike,
    beta: ArrayLike,
    divergence: Divergence,
    *,
    full_gradient: bool = False,
) -> TokenLocalTarget:
    """The fixed point of "policy gradient of the reward plus a per-token divergence in the loss".

    Trainers of the GRPO kind add ``beta · Σ_t D(π(·|s_t), π_ref(·|s_t))`` to the loss with prefixes
    s_t drawn from π, but let no gradient through which prefixes are drawn. This ascends no
    objective. Its fixed point is where at every prefix s, with the rest of the policy held
    constant, ``Σ_a π(a|s) Q(s, a) − beta · D(π(·|s), π_ref(·|s))`` is largest:

    - ``V(y) = reward(y)`` at whole sequences, ``Q(s, a) = V(sa)``,
    - ``π(a|s) = π_ref(a|s) (f′)⁻¹((Q(s, a) − λ_s)/β)``, as ``solve`` gives it for rewards Q,
    - ``V(s) = Σ_a π(a|s) Q(s, a)``, the *mean* value: what later tokens pay to the divergence is
      not seen from here.

    Derivation: the gradient of the reward with respect to the logits of s is ``π(s) π(a|s) (Q(s, a)
    − V(s))``, that of the term in the loss ``β π(s) π(a|s) (f′(u_a) − E_π f′(u))`` with ``u =
    π(a|s)/π_ref(a|s)``. Both carry the probability π(s) of the prefix, which cancels; the sum
    vanishes where ``Q − β f′(u)`` is constant on the support. From the last token back to the first
    this determines one policy.

    Which divergence: :class:`ReverseKL` for the k2 estimator in the loss (or k3 with a
    differentiable weight π/π_old, or k1 as a reward credited to its own token only),
    :class:`ForwardKL` for k3 in the loss. For one token it is ``solve``; for more neither the
    target of the sequence-level divergence, which for reverse KL has soft instead of mean values,
    nor of any other objective. Sequences of equal reward that differ in their last token keep their
    reference ratio; others in general do not.

    With ``full_gradient`` the gradient flows through the choice of prefixes too, and training does
    ascend an objective, the divergence summed over tokens: ``max E_π[reward − beta · Σ_t
    D(π(·|s_t), π_ref(·|s_t))]``. The recursion is the same with the value of every prefix's problem
    in place of the mean: ``V(s) = Σ_a π(a|s) Q(s, a) − beta · D(π(·|s), π_ref(·|s))``, for each
    prefix pays for what follows it. For reverse KL this is the target of the sequence-level
    divergence, which is the same sum; for no other.

    Args:
        space: the sequences.
        reward: of whole sequences, any real unit, shape ``[*batch, V**L]``; ``-inf`` forbids one.
        log_ref: log-probabilities of whole sequences, shape ``[*batch, V**L]``.
        beta: coefficient of the per-token divergence, in reward units per nat, above 0, shape
            ``[*batch]``.
        divergence: the per-token divergence; array parameters broadcast against ``*batch``.
        full_gradient: whether the gradient of the divergence flows through the prefixes, as it does
            where each token is also charged with the divergences after it.

    Returns:
        A :class:`TokenLocalTarget`. ``log_probs`` are the joint ones of whole sequences, their
        conditionals ``space.conditionals(target.log_probs)``. ``expected_reward`` is the root's
        mean value. ``objective_value`` is the sequence-level objective at this policy, not a
        maximum, and ``divergence_value`` the sequence-level divergence, not the sum over tokens.
        ``multiplier``
        is the λ of the first token.

    Raises:
        TypeError: not numbers, or not a divergence.
        ValueError: shapes that do not fit, too many sequences; outside a trace, bad values, as for
            :class:`Objective`, or reference mass on an impossible sequence.

    Status:
        Remarks where they hold at a prefix that the policy reaches. Failures, as for :func:`solve`,
        come with NaN in every number of the row. A prefix whose continuations are all forbidden is
        no failure but has value ``-inf``; only at the root it is ``EMPTY_SUPPORT``.

    At prefixes without reference mass, which matter only to divergences of finite slope at infinity
    that put mass there, the reference's conditionals are taken to be uniform. Differentiable in
    reward, log_ref, beta and the divergence's parameters: every prefix by the implicit function
    theorem, the recursion by the chain rule; derivatives at outcomes of probability 0 are 0. Works
    under ``jit`` and ``vmap``.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> space = kt.SequenceSpace(2, 2)
        >>> log_ref = jnp.log(jnp.array([0.42, 0.28, 0.06, 0.24]))
        >>> reward = jnp.array([0.0, 0.5, 1.0, 0.2])
        >>> target = kt.token_local_target(space, reward, log_ref, 0.3, kt.ReverseKL())
        >>> print([f"{p:.4f}" for p in target.probs])
        ['0.0779', '0.2748', '0.5065', '0.1408']
        >>> whole = kt.solve(kt.Objective(reward, log_ref, 0.3))
        >>> print([f"{p:.4f}" for p in whole.probs])  # the target of the sequence-level KL
        ['0.1037', '0.3659', '0.4151', '0.1154']

    References:
        Derived here. Tang, Munos, "On a few pitfalls in KL divergence gradient estimation for RL",
        2025, arXiv 2506.09477, and Liu et al., "Rethinking KL Regularization in RLHF", 2025, arXiv
        2510.01555, on what estimators of the KL do in the loss.
    """
    log_ref = space.require_log_probs(log_ref, "log_ref")
    reward = _sequences.only_possible(space, _sequences.over_sequences(space, reward, "reward"))
    objective = Objective(reward, log_ref, beta, divergence)
    return TokenLocalTarget(objective, *_token_local(space, full_gradient, objective))


class Local(NamedTuple):
    """The problems of one depth, each over a node's choices; nodes are the last axis of all."""

    log_probs: Array
    multiplier: Array
    status: Array
    empty: Array


def local_problem(
    values: Array, log_ref: Array, beta: Array, divergence: Divergence, full_gradient: bool
) -> tuple[Array, Target, Array]:
    """Of nodes whose choices lead to these values: their worth, their targets, which are empty.

    Where nothing is allowed any policy will do: the node's value keeps it from being used.
    """
    supported = ~jnp.isneginf(values) & ~jnp.isneginf(log_ref)
    empty = ~jnp.any(supported, axis=-1)
    nothing = jnp.broadcast_to(empty[..., None], values.shape)
    values = jnp.where(nothing, jnp.zeros_like(values), values)
    here = solve(Objective(values, log_ref, beta, divergence))
    # A node is worth what its problem is, E_π[V] − β·D(π, π_ref), or E_π[V] alone.
    value = here.value if full_gradient else here.expected_reward
    return jnp.where(empty, jnp.full_like(value, -jnp.inf), value), here, empty


SHALLOW = 256
"""Depths of at most this many prefixes share one compiled program, each padded to the largest."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def _token_local(
    space: SequenceSpace, full_gradient: bool, objective: Objective
) -> tuple[Array, Array, Array]:
    reward, log_ref, beta, divergence = broadcast_fields(objective)
    given = _sequences.conditionals(space, log_ref)
    batch, size = reward.shape[:-1], space.sizes[0]
    # Every shape is a program to compile: near the root they are padded to one, which takes nodes
    # of one size.
    alike = set(space.sizes) == {size}
    shallow = sum(alike and space.num_prefixes(t) <= SHALLOW for t in range(space.length))

    def backed_up(values: Array, layer: _token_layers.TokenLayer) -> tuple[Array, Local]:
        value, here, empty = local_problem(values, layer.log_ref, beta, divergence, full_gradient)
        choices_first = jnp.moveaxis(here.log_probs, -1, -2)
        return value, Local(choices_first, here.multiplier, here.status, empty)

    values, nodes = backward(
        [_token_layers.TokenLayer(x) for x in given[shallow:]], reward, backed_up
    )
    if shallow:
        nodes = _shallow_nodes(given[:shallow], values[0], backed_up) + nodes
    solved = tuple(jnp.moveaxis(x.log_probs, -2, -1) for x in nodes)

    off = jnp.abs(possible_mass(space, log_ref) - 1)
    normalised = off <= mass_tolerance(objective.log_ref.dtype)
    status = flag(nodes[0].empty[..., 0], Status.EMPTY_SUPPORT)
    status = status | flag(~normalised, Status.INVALID_REFERENCE)
    reached = jnp.ones((*batch, 1), bool)
    for log_probs, found in zip(solved, nodes, strict=True):
        bits = jnp.where(reached, found.status, found.status & FAILURES)
        status = status | lax.reduce(bits, jnp.int32(0), lax.bitwise_or, (bits.ndim - 1,))
        reached = (reached[..., None] & ~jnp.isneginf(log_probs)).reshape(*batch, -1)
    found = (_sequences.joint(space, solved), nodes[0].multiplier[..., 0])
    log_probs, multiplier = (unless_failed(status, x) for x in found)
    dtype = objective.reward.dtype
    return log_probs.astype(dtype), multiplier.astype(dtype), status


def _shallow_nodes(
    given: tuple[Array, ...],
    values: Array,
    backed_up: Callable[[Array, _token_layers.TokenLayer], tuple[Array, Local]],
) -> tuple[Local, ...]:
    """The problems of the depths of ``given``, which are padded to be of one shape."""
    width, size = given[-1].shape[-2:]

    def widened(x: Array) -> _token_layers.TokenLayer:
        padding = [(0, 0)] * x.ndim
        padding[-2] = (0, width - x.shape[-2])
        return _token_layers.TokenLayer(jnp.pad(x, padding, constant_values=-math.log(size)))

    def padded(values: Array, layer: _token_layers.TokenLayer) -> tuple[Array, Local]:
        value, local = backed_up(values, layer)
        return jnp.concatenate([value, *[jnp.zeros_like(value)] * (size - 1)], axis=-1), local

    _, nodes = backward([widened(x) for x in given], values, padded)
    return tuple(
        jax.tree.map(lambda x, n=given[t].shape[-2]: x[..., :n], node)
        for t, node in enumerate(nodes)
    )
