"""Targets on token trees: soft values, token advantages, and the targets of per-token losses.

The target of a sequence-level objective is ``solve`` on the enumerated space, and its next-token
probabilities are ``space.conditionals(target.log_probs)``. What is here is what the tree adds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._numerics import log_sum_exp, working_dtype
from kltarget.divergences import Divergence
from kltarget.objectives import (
    Objective,
    _common_dtype,
    _raise_first,
    _traced,
    broadcast_fields,
    mass_tolerance,
)
from kltarget.spaces._tree import (
    SequenceSpace,
    after_eos,
    children,
    conditionals,
    counted,
    ended,
    floats,
    joint,
    only_possible,
)
from kltarget.status import FAILURES, Status, flag
from kltarget.targets import Target, solve

__all__ = [
    "SequenceSpace",
    "TokenLocalTarget",
    "soft_values",
    "token_advantages",
    "token_local_target",
]


def soft_values(
    space: SequenceSpace,
    reward: ArrayLike | tuple[ArrayLike, ...],
    log_ref: ArrayLike | tuple[ArrayLike, ...],
    beta: ArrayLike,
) -> tuple[Float[Array, "..."], ...]:
    """Soft values of prefixes, the best ``E_π[reward] − beta · KL(π‖π_ref)`` from there on.

    For whole sequences ``V(y) = r(y)`` at the leaves and backwards ``V(s) = β log Σ_a π_ref(a|s)
    e^{V(sa)/β}``. At the root it is ``β log Z``, the value of reverse KL, and the target
    ``π_ref(y) e^{r(y)/β}/Z`` has the conditionals ``π(a|s) = π_ref(a|s) e^{(V(sa) − V(s))/β}``: the
    sum of the sequences under s is ``π_ref(s) e^{V(s)/β}/Z``, so the ratio of two such sums is the
    conditional.

    Rewards per prefix, a tuple, are earned on reaching the prefix and add up along the sequence:
    ``V(s) = ρ(s) + β log Σ_a π_ref(a|s) e^{V(sa)/β}``. After the last array of the tuple nothing is
    earned, and values end there: prefixes beyond are not visited, however long the sequences. An
    array of ``V**k`` entries for prefixes of t > k tokens says that only their last k tokens count;
    where this is so of rewards and reference, values have few entries too, and the cost grows
    with the length, not with the number of sequences.

    Args:
        space: the sequences.
        reward: of the sequences, shape ``[*batch, V**L]``; or a tuple of at most L + 1 arrays
            ``[*batch, V**t]``, of the prefixes of t = 0, 1, … tokens. Any real unit.
        log_ref: log-probabilities of the sequences, shape ``[*batch, V**L]``; or a tuple of
            conditionals ``[*batch, V**t, V]`` as :meth:`SequenceSpace.conditionals` gives them, as
            many as the rewards need. Both may be of ``V**k < V**t`` prefixes, told apart by their
            last k tokens.
        beta: coefficient of the divergence, in reward units per nat, above 0, shape ``[*batch]``.

    Returns:
        Values in reward units: arrays of shape ``[*batch, V**t]`` for prefixes of t = 0, 1, …, L
        tokens, or up to the last ones with rewards.

    Raises:
        TypeError: not numbers.
        ValueError: shapes that do not fit, naming both; too many sequences for arrays of whole
            ones; outside a trace, a beta not above 0, a NaN or +inf reward, an unnormalised or NaN
            reference. Under a trace such rows are NaN.

    ``-inf`` where every continuation is forbidden by a reward of ``-inf``. Prefixes without
    reference mass have the value that a uniform reference gives them. After ``eos`` nothing more is
    earned: of rewards per prefix, those of prefixes that continue after it do not count; rewards of
    impossible whole sequences are taken for ``-inf``. Differentiable in reward, log_ref and beta:
    ``∂V(s)/∂V(sa) = π(a|s)``.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> space = kt.SequenceSpace(2, 2)
        >>> log_ref = jnp.log(jnp.array([0.42, 0.28, 0.06, 0.24]))
        >>> values = kt.soft_values(space, jnp.array([0.0, 0.5, 1.0, 0.2]), log_ref, 0.3)
        >>> [[f"{v:.4f}" for v in depth] for depth in values[:2]]
        [['0.4197'], ['0.2999', '0.5907']]

        Forty tokens, of which every "1" after a "0" earns 1:

        >>> long = kt.SequenceSpace(2, 40)
        >>> even = jnp.log(jnp.array([[0.5, 0.5]]))
        >>> pairs = (jnp.zeros(1), jnp.zeros(1)) + (jnp.array([0.0, 1.0, 0.0, 0.0]),) * 39
        >>> print(f"{kt.soft_values(long, pairs, (even,) * 40, 1.0)[0][0]:.3f}")
        11.018

    References:
        Levine, "Reinforcement Learning and Control as Probabilistic Inference: Tutorial and
        Review", 2018, arXiv 1805.00909, for a uniform reference. Rafailov et al., "From r to Q*:
        Your Language Model is Secretly a Q-Function", 2024, arXiv 2404.12358, for language models.
    """
    problem = _problem(space, reward, log_ref, beta)
    found = _soft_values(space, problem.whole, *problem.arrays, problem.tolerance)
    return tuple(
        jnp.broadcast_to(v, (*problem.batch, v.shape[-1])).astype(problem.dtype)
        for v in found.values
    )


def token_advantages(
    space: SequenceSpace,
    reward: ArrayLike | tuple[ArrayLike, ...],
    log_ref: ArrayLike | tuple[ArrayLike, ...],
    beta: ArrayLike,
) -> tuple[Float[Array, "..."], ...]:
    """What each token adds to the soft value, ``A(s, a) = V(sa) − V(s)``.

    They are ``β log(π(a|s)/π_ref(a|s))`` where π is the maximiser of ``E_π[reward] − beta ·
    KL(π‖π_ref)`` over policies on sequences and V its :func:`soft_values`. Along a sequence they
    telescope to ``r(y) − V_0``: the one per-token reward that has the same target as the sequence's
    reward and expects nothing more after each token. With rewards per prefix, ``A(s, a) = V(sa) −
    (V(s) − ρ(s))``, and r is their sum.

    Args:
        space: the sequences.
        reward: as for :func:`soft_values`, of sequences or, as a tuple, of prefixes.
        log_ref: as there, of sequences or, as a tuple, conditionals.
        beta: coefficient of the divergence, in reward units per nat, above 0, shape ``[*batch]``.

    Returns:
        Advantages in reward units: arrays of shape ``[*batch, V**t, V]`` for the tokens after
        t = 0, 1, … tokens; L arrays, or as many as rewards reach. Later ones would be 0.

    Raises:
        TypeError: as for :func:`soft_values`.
        ValueError: as for :func:`soft_values`.

    ``-inf`` for tokens that lead only to forbidden sequences; 0 at prefixes that do. After ``eos``
    they are 0 at ``eos`` and ``-inf`` elsewhere. Differentiable in reward, log_ref and beta.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> space = kt.SequenceSpace(2, 2)
        >>> log_ref = jnp.log(jnp.array([0.42, 0.28, 0.06, 0.24]))
        >>> first, second = kt.token_advantages(
        ...     space, jnp.array([0.0, 0.5, 1.0, 0.2]), log_ref, 0.3
        ... )
        >>> [f"{x:.4f}" for x in first[0]]
        ['-0.1198', '0.1710']
        >>> [f"{x:.4f}" for x in (first[0][:, None] + second).ravel()]  # reward − 0.4197
        ['-0.4197', '0.0803', '0.5803', '-0.2197']

    References:
        Rafailov et al., "From r to Q*: Your Language Model is Secretly a Q-Function", 2024,
        arXiv 2404.12358.
    """
    problem = _problem(space, reward, log_ref, beta)
    found = _soft_values(space, problem.whole, *problem.arrays, problem.tolerance)
    return tuple(
        jnp.broadcast_to(x, (*problem.batch, *x.shape[-2:])).astype(problem.dtype)
        for x in found.advantages
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TokenLocalTarget(Target):
    """The fixed point of a per-token loss, as a :class:`Target` over whole sequences.

    Attributes:
        objective: the sequence-level objective of the same reward, reference, beta and divergence.
            For more than one token this policy does *not* maximise it; ``objective.gap`` says by
            how much it falls short. Impossible sequences of a space with ``eos`` have reward
            ``-inf`` in it.
        log_probs: log π over whole sequences, shape ``[*batch, V**L]``; ``-inf`` where exactly 0.
        multiplier: λ of the first token's problem, in reward units, shape ``[*batch]``.
        status: :class:`Status` bits, shape ``[*batch]``. A remark holds at some prefix that the
            policy reaches, a failure at any.
    """

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The sequence-level objective at this policy, in reward units, shape ``[*batch]``.

        ``E_π[reward] − beta · D(π, π_ref)``, below the maximum for more than one token, ``-inf``
        where the divergence is infinite. The expected reward alone, which is the root's mean value
        V in the recursion, is ``expected_reward``. Both have the derivatives of what they are.
        """
        reward, log_ref, beta, divergence = broadcast_fields(self.objective)
        log_probs = self.log_probs.astype(reward.dtype)
        failed = jnp.any(jnp.isnan(log_probs), axis=-1, keepdims=True)
        endless = ~jnp.isfinite(divergence._integrand(log_probs, log_ref))
        # Where the divergence is not finite, neither must its derivatives be formed.
        apart = ~jnp.any(endless, axis=-1, keepdims=True) & ~failed
        near = jnp.where(apart, log_probs, log_ref)
        cost = divergence._integrand(near, log_ref).sum(-1)
        value = self.expected_reward.astype(reward.dtype) - beta[..., 0] * cost
        value = jnp.where(apart[..., 0], value, jnp.where(failed[..., 0], jnp.nan, -jnp.inf))
        return value.astype(self.log_probs.dtype)


def token_local_target(
    space: SequenceSpace,
    reward: ArrayLike,
    log_ref: ArrayLike,
    beta: ArrayLike,
    divergence: Divergence,
) -> Target:
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

    Args:
        space: the sequences.
        reward: of whole sequences, any real unit, shape ``[*batch, V**L]``; ``-inf`` forbids one.
        log_ref: log-probabilities of whole sequences, shape ``[*batch, V**L]``.
        beta: coefficient of the per-token divergence, in reward units per nat, above 0, shape
            ``[*batch]``.
        divergence: the per-token divergence; array parameters broadcast against ``*batch``.

    Returns:
        A :class:`Target` over whole sequences. ``log_probs`` are the joint ones, their conditionals
        ``space.conditionals(target.log_probs)``. ``expected_reward`` is the root's V. ``value`` is
        the sequence-level objective at this policy, not a maximum, and ``divergence_value`` the
        sequence-level divergence, not the sum over tokens. ``multiplier`` is the λ of the first
        token.

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
    reward = only_possible(space, _whole_reward(space, reward))
    objective = Objective(reward, log_ref, beta, divergence)
    return TokenLocalTarget(objective, *_token_local(space, objective))


SHALLOW = 256
"""Depths of at most this many prefixes share one compiled program, each padded to the largest."""


class _Node(NamedTuple):
    """The problems of one depth; prefixes are the last axis of all."""

    log_probs: Array
    multiplier: Array
    status: Array
    empty: Array


def _node(q: Array, log_ref: Array, beta: Array, divergence: Divergence) -> tuple[Array, _Node]:
    """Mean values ``[*batch, nodes]`` of the targets for rewards ``[*batch, nodes, V]``."""
    supported = ~jnp.isneginf(q) & ~jnp.isneginf(log_ref)
    empty = ~jnp.any(supported, axis=-1)
    # Where nothing is allowed any policy will do: the prefix's value keeps it from being used.
    q = jnp.where(jnp.broadcast_to(empty[..., None], q.shape), jnp.zeros_like(q), q)
    here = solve(Objective(q, log_ref, beta, divergence))
    taken = jnp.where(jnp.isneginf(here.log_probs), jnp.zeros_like(q), q)
    mean = (jnp.exp(here.log_probs) * taken).sum(-1)
    value = jnp.where(empty, jnp.full_like(mean, -jnp.inf), mean)
    tokens_first = jnp.moveaxis(here.log_probs, -1, -2)
    return value, _Node(tokens_first, here.multiplier, here.status, empty)


@functools.partial(jax.jit, static_argnums=0)
def _token_local(space: SequenceSpace, objective: Objective) -> tuple[Array, Array, Array]:
    reward, log_ref, beta, divergence = broadcast_fields(objective)
    given = conditionals(space, log_ref)
    batch, size = reward.shape[:-1], space.sizes[0]
    # Every shape is a program to compile: near the root they are padded to one, which takes nodes
    # of one size.
    shallow = sum(
        space.num_prefixes(t) <= SHALLOW and set(space.sizes) == {size} for t in range(space.length)
    )
    value, nodes = reward, []
    for t in reversed(range(shallow, space.length)):
        value, found = _node(children(space, value, t), given[t], beta, divergence)
        nodes.append(found)
    if shallow:
        nodes += _shallow_nodes(space, value, given[:shallow], beta, divergence)
    nodes = nodes[::-1]
    solved = tuple(jnp.moveaxis(x.log_probs, -2, -1) for x in nodes)

    off = jnp.abs(_possible_mass(space, log_ref) - 1)
    normalised = off <= mass_tolerance(objective.log_ref.dtype)
    status = flag(nodes[0].empty[..., 0], Status.EMPTY_SUPPORT)
    status = status | flag(~normalised, Status.INVALID_REFERENCE)
    reached = jnp.ones((*batch, 1), bool)
    for log_probs, found in zip(solved, nodes, strict=True):
        bits = jnp.where(reached, found.status, found.status & FAILURES)
        status = status | lax.reduce(bits, jnp.int32(0), lax.bitwise_or, (bits.ndim - 1,))
        reached = (reached[..., None] & ~jnp.isneginf(log_probs)).reshape(*batch, -1)
    failed = (status & FAILURES) != 0
    dtype = objective.reward.dtype
    log_probs = joint(space, solved)
    gone = jnp.broadcast_to(failed[..., None], log_probs.shape)
    log_probs = jnp.where(gone, jnp.nan, log_probs)
    multiplier = jnp.where(failed, jnp.nan, nodes[0].multiplier[..., 0])
    return log_probs.astype(dtype), multiplier.astype(dtype), status


def _shallow_nodes(
    space: SequenceSpace,
    value: Array,
    given: tuple[Array, ...],
    beta: Array,
    divergence: Divergence,
) -> list[_Node]:
    """The problems of the depths of ``given``, the last first, in one compiled step."""
    shallow, size = len(given), space.sizes[0]
    width = space.num_prefixes(shallow - 1)

    def widened(x: Array, axis: int) -> Array:
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, width - x.shape[axis])
        return jnp.pad(x, padding, constant_values=-math.log(size))

    def step(value: Array, ref: Array) -> tuple[Array, _Node]:
        value, found = _node(children(space, value, 0), ref, beta, divergence)
        return jnp.concatenate([value, *[jnp.zeros_like(value)] * (size - 1)], axis=-1), found

    refs = jnp.stack([widened(given[t], -2) for t in reversed(range(shallow))])
    _, stacked = lax.scan(step, value, refs)
    return [
        jax.tree.map(lambda x, k=k, t=t: x[k][..., : size**t], stacked)
        for k, t in enumerate(reversed(range(shallow)))
    ]


def _possible_mass(space: SequenceSpace, log_ref: Array) -> Array:
    return jnp.exp(only_possible(space, log_ref)).sum(-1)


class _Values(NamedTuple):
    values: tuple[Array, ...]
    advantages: tuple[Array, ...]


class _Problem(NamedTuple):
    """Checked arguments, with batch axes of one rank, in the working dtype."""

    whole: bool
    """Whether rewards are of whole sequences."""
    arrays: tuple[tuple[Array, ...], tuple[Array, ...] | Array, Array]
    batch: tuple[int, ...]
    dtype: Any
    """Of the results."""
    tolerance: float


def _problem(space: SequenceSpace, reward: Any, log_ref: Any, beta: Any) -> _Problem:
    whole = not isinstance(reward, tuple)
    if whole:
        rewards = (_whole_reward(space, reward),)
        depth = space.length
    else:
        rewards = tuple(floats(x, f"reward[{t}]") for t, x in enumerate(reward))
        depth = len(rewards) - 1
        if not 0 <= depth <= space.length:
            raise ValueError(
                f"reward has {len(rewards)} arrays; prefixes of 0 to {space.length} tokens can "
                f"have one each, so give 1 to {space.length + 1}"
            )
        for t, x in enumerate(rewards):
            _require_prefixes(space, x, t, f"reward[{t}]", 1)
    given = log_ref
    if isinstance(log_ref, tuple):
        if not depth <= len(log_ref) <= space.length:
            raise ValueError(
                f"log_ref has {len(log_ref)} arrays of conditionals; reward needs those after 0 to "
                f"{depth - 1} tokens, so give at least {depth} and at most {space.length}"
            )
        refs = tuple(floats(x, f"log_ref[{t}]") for t, x in enumerate(log_ref[:depth]))
        for t, x in enumerate(refs):
            _require_prefixes(space, x, t, f"log_ref[{t}]", 2)
    else:
        refs = (space.require_log_probs(log_ref, "log_ref"),)
    beta, given_beta = floats(beta, "beta"), beta
    tail = 2 if isinstance(log_ref, tuple) else 1
    shapes = (
        *(x.shape[:-1] for x in rewards),
        *(x.shape[: x.ndim - tail] for x in refs),
        beta.shape,
    )
    try:
        batch = jnp.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(
            f"the batch axes of reward {shapes[0]}, log_ref {shapes[len(rewards)]} and beta "
            f"{beta.shape} do not broadcast; beta has no axis of sequences"
        ) from None
    raw = (
        *(reward if not whole else (reward,)),
        *(given[:depth] if isinstance(given, tuple) else (given,)),
        given_beta,
    )
    dtype = _common_dtype(raw, (*rewards, *refs, beta))
    tolerance = mass_tolerance(dtype)
    if not _traced(*rewards, *refs, beta):
        _check_values(space, rewards, refs, beta, whole, isinstance(log_ref, tuple), tolerance)

    def led(x: Array, own: int) -> Array:
        missing = len(batch) - (x.ndim - own)
        return x.reshape((1,) * missing + x.shape).astype(working_dtype(dtype))

    rewards = tuple(led(x, 1) for x in rewards)
    refs = tuple(led(x, tail) for x in refs)
    arrays = (rewards, refs if isinstance(log_ref, tuple) else refs[0], led(beta, 0))
    return _Problem(whole, arrays, batch, dtype, tolerance)


def _whole_reward(space: SequenceSpace, reward: Any) -> Array:
    space.require_enumerable()
    x = floats(reward, "reward")
    if x.ndim == 0 or x.shape[-1] != space.num_sequences:
        raise ValueError(
            f"reward has shape {x.shape}, but there are {counted(space)} = "
            f"{space.num_sequences} sequences: the last axis must be {space.num_sequences}"
        )
    return x


def _require_prefixes(space: SequenceSpace, x: Array, t: int, name: str, own: int) -> None:
    sizes = space.sizes
    counts = {math.prod(sizes[t - k : t]) for k in range(t + 1)}
    vocabulary = own == 1 or x.shape[-1:] == (sizes[t],)
    if x.ndim < own or not vocabulary or x.shape[-own] not in counts:
        if isinstance(space.vocab_size, tuple):
            nodes, fewer = str(space.num_prefixes(t)), f"one of {sorted(counts)}"
        else:
            nodes = f"{space.vocab_size}**{t}"
            fewer = f"a smaller power of {space.vocab_size}"
        wanted = nodes + (f", {sizes[t]}" if own == 2 else "")
        raise ValueError(
            f"{name} has shape {x.shape}, but must end in [{wanted}] for the prefixes of {t} "
            f"tokens, or in {fewer} if only the last tokens count"
        )


def _check_values(
    space: SequenceSpace,
    rewards: tuple[Array, ...],
    refs: tuple[Array, ...],
    beta: Array,
    whole: bool,
    stepwise: bool,
    tolerance: float,
) -> None:
    _raise_first("beta", beta, ~((beta > 0) & (beta < jnp.inf)), "must be above 0 and finite")
    for t, x in enumerate(rewards):
        name = "reward" if whole else f"reward[{t}]"
        _raise_first(name, x, jnp.isnan(x) | jnp.isposinf(x), "must be finite or -inf")
    for t, x in enumerate(refs):
        name = f"log_ref[{t}]" if stepwise else "log_ref"
        x = after_eos(space, x) if stepwise else x
        _raise_first(name, x, jnp.isnan(x) | jnp.isposinf(x), "must not be NaN or +inf")
        mass = jnp.exp(x.astype(working_dtype(x.dtype))).sum(-1)
        rule = "is not normalised: pass kltarget.normalize of it"
        _raise_first(name, None, ~(jnp.abs(mass - 1) <= tolerance), rule)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _soft_values(
    space: SequenceSpace,
    whole: bool,
    rewards: tuple[Array, ...],
    log_ref: tuple[Array, ...] | Array,
    beta: Array,
    tolerance: float,
) -> _Values:
    valid = (beta > 0) & (beta < jnp.inf)
    if isinstance(log_ref, tuple):
        given = tuple(after_eos(space, _by_last_token(space, x, t)) for t, x in enumerate(log_ref))
        for x in given:
            valid = valid & jnp.all(jnp.abs(jnp.exp(x).sum(-1) - 1) <= tolerance, axis=-1)
    else:
        given = conditionals(space, log_ref)
        valid = valid & (jnp.abs(_possible_mass(space, log_ref) - 1) <= tolerance)
    if whole:
        value = only_possible(space, rewards[0])
        earned = (None,) * space.length
    else:
        *earned, value = rewards
    leads = (value.shape[:-1], beta.shape, *(x.shape[:-2] for x in given))
    leads += tuple(x.shape[:-1] for x in earned if x is not None)
    batch = jnp.broadcast_shapes(*leads)

    def led(x: Array) -> Array:
        return jnp.broadcast_to(x, (*batch, *x.shape[len(batch) :]))

    def completed(x: Array) -> Array:
        return jnp.where(
            led(valid.reshape(*valid.shape, *(1,) * (x.ndim - len(batch)))), x, jnp.nan
        )

    def step(value: Array, steps: tuple[Array, Array | None], t: int) -> tuple[Array, Any]:
        before, advantage = _step(space, value, *steps, beta, t)
        before = led(before)
        return before, (completed(before), completed(led(advantage)))

    value = led(value)
    values, advantages = [completed(value)], []
    t = len(earned) - 1
    while t >= 0:
        run = 1
        if t > 0 and _num_nodes(space, value, given[t], earned[t], t) == value.shape[-1]:
            while t - run > 0 and _alike(given, earned, t, t - run):
                run += 1
        if run == 1:
            value, (before, advantage) = step(value, (given[t], earned[t]), t)
            values.append(before)
            advantages.append(advantage)
        else:
            # Equal steps are compiled once: XLA takes minutes for a few hundred of them.
            stacked = jax.tree.map(
                lambda *x: jnp.stack(x), *((given[u], earned[u]) for u in range(t, t - run, -1))
            )
            value, found = lax.scan(functools.partial(step, t=t), value, stacked)
            values += jnp.unstack(found[0])
            advantages += jnp.unstack(found[1])
        t -= run
    return _Values(tuple(values[::-1]), tuple(advantages[::-1]))


def _num_nodes(
    space: SequenceSpace, value: Array, given: Array, earned: Array | None, t: int
) -> int:
    """For how many prefixes there are values after a step."""
    size = max(1, value.shape[-1] // space.sizes[t])
    return max(size, given.shape[-2], 1 if earned is None else earned.shape[-1])


def _alike(given: Any, earned: Any, t: int, u: int) -> bool:
    if earned[t] is None:
        return False
    return given[t].shape == given[u].shape and earned[t].shape == earned[u].shape


def _step(
    space: SequenceSpace, value: Array, given: Array, earned: Array | None, beta: Array, t: int
) -> tuple[Array, Array]:
    """Values of prefixes of t tokens from those of t + 1, and the advantages of the next token."""
    q, before = _backed_up(space, value, given, beta[..., None, None], t)
    nothing = jnp.isneginf(before)[..., None]
    advantage = jnp.where(nothing, 0.0, q - jnp.where(nothing, 0.0, before[..., None]))
    if earned is not None:
        if space.eos is not None and t:
            over = jnp.broadcast_to(ended(space, before.shape[-1]), before.shape)
            before = jnp.where(over, jnp.zeros_like(before), before)
        before, earned = _of_one_size(before, earned, -1)
        before = before + earned
    return before, after_eos(space, advantage)


def _backed_up(
    space: SequenceSpace, value: Array, given: Array, beta: Array, t: int
) -> tuple[Array, Array]:
    """The values after each token, ``[..., nodes, V]``, and what they are worth before it."""
    if value.shape[-1] < space.sizes[t]:
        q = jnp.broadcast_to(value[..., None], (*value.shape, space.sizes[t]))
    else:
        q = children(space, value, t)
    q, given = _of_one_size(q, given, -2)
    alive = ~jnp.isneginf(q) & ~jnp.isneginf(given)
    best = jnp.max(jnp.where(alive, q, -jnp.inf), axis=-1, keepdims=True)
    nothing = jnp.isneginf(best)
    best = jnp.where(nothing, 0.0, lax.stop_gradient(best))
    gap = jnp.where(alive, jnp.where(alive, q, 0.0) - best, 0.0) / beta
    gap = jnp.where(alive, gap, -jnp.inf)
    # V − best = β log Σ π_ref e^gap: as a logarithm near 1 where β is large, else as it stands.
    mass = jnp.exp(given)
    total = mass.sum(-1, keepdims=True)
    near = (mass * jnp.expm1(gap)).sum(-1, keepdims=True) + (total - lax.stop_gradient(total))
    is_near = near > -0.5
    near = jnp.log1p(jnp.where(is_near, near, 0.0))
    far = log_sum_exp(jnp.where(alive, jnp.where(alive, given, 0.0) + gap, -jnp.inf))
    value = best + beta * jnp.where(is_near, near, jnp.where(nothing, 0.0, far))
    return q, jnp.where(nothing, -jnp.inf, value)[..., 0]


def _by_last_token(space: SequenceSpace, given: Array, t: int) -> Array:
    """Conditionals that can tell whether a prefix of t tokens has ended."""
    vocab_size = given.shape[-1]
    if space.eos is None or t == 0 or given.shape[-2] >= vocab_size:
        return given
    return jnp.broadcast_to(given, (*given.shape[:-2], vocab_size, vocab_size))


def _of_one_size(x: Array, y: Array, axis: int) -> tuple[Array, Array]:
    """Both for as many prefixes as the larger; the smaller repeats, by the last tokens."""
    size = max(x.shape[axis], y.shape[axis])

    def repeated(z: Array) -> Array:
        times = [1] * z.ndim
        times[axis] = size // z.shape[axis]
        return z if times[axis] == 1 else jnp.tile(z, times)

    return repeated(x), repeated(y)
