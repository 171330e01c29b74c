"""``token_preference_target``: where TDPO and SparsePO end on comparisons of sequences."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core import checks
from kltarget._core.numerics import log_sum_exp
from kltarget._core.pytrees import pytree
from kltarget._core.status import Status, flag, unless_failed
from kltarget.divergences import ReverseKL
from kltarget.objectives import Objective
from kltarget.objectives._objective import broadcast_fields
from kltarget.spaces import SequenceSpace, backward
from kltarget.spaces._token_weights import prefix_weights
from kltarget.targets import solve
from kltarget.targets._protocol import StationaryPolicy


@pytree
class TokenPreferenceTarget(StationaryPolicy):
    """The policy that a token-level loss over pairs of sequences has its minimum at.

    Attributes:
        objective: of the reward that labels the pairs, with reverse KL: DPO's. Unless all KL
            weights are 0 and all others 1, this policy does not maximise it.
        log_probs: log π over whole sequences, shape ``[*batch, V**L]``.
        multiplier: the root's value W in reward units, shape ``[*batch]``: what the compared sums
            of tokens, times beta, fall short of the reward by.
        status: :class:`Status` bits, shape ``[*batch]``.
    """

    made_by = "token_preference_target"


def token_preference_target(
    space: SequenceSpace,
    reward: ArrayLike,
    log_ref: ArrayLike,
    beta: ArrayLike,
    *,
    ratio_weight: ArrayLike = 1.0,
    kl_weight: ArrayLike = 0.0,
) -> TokenPreferenceTarget:
    """The policy at which DPO, TDPO or SparsePO has its minimum, from what labels the pairs.

    All pairs of sequences are compared, and i wins over j with probability ``σ(r_i − r_j)``. The
    loss that is minimised over all policies is the mean of ``−log σ(β(x_winner − x_loser))`` with

        ``x = Σ_t m_t log π/π_ref(a_t|s_t) + Σ_t d_t KL(π_ref(·|s_t) ‖ π(·|s_t))``,

    m the ``ratio_weight`` and d the ``kl_weight`` of the prefix ``s_t``. At its minimum ``βx = r −
    W_0``, which one backward pass solves: ``W(y) = r(y)`` at whole sequences, and before a token

    - ``π(a|s) ∝ π_ref(a|s) exp(W(sa) / (β m))``,
    - ``W(s) = (1 − d/m) β m log Σ_a π_ref(a|s) exp(W(sa) / (β m)) + (d/m) E_ref[W(sa)]``.

    So with ``d = 0``, ``m = 1``, DPO, W is the soft value and π the target of reverse KL. With ``d
    = m = 1``, TDPO's first loss, W is the *mean reward under the reference*: every token is tilted
    by what the reference would earn after it, as if only that token could be changed. Masks ``d =
    m``, SparsePO with one mask for both, make β m the β of each prefix, so that less weight tilts a
    token more.

    Args:
        space: the sequences.
        reward: what labels are drawn by, in nats of preference, shape ``[*batch, V**L]``; finite.
            Of pairs with win rates it is ``preference_target(pairs, log_ref, 1.0).reward``.
        log_ref: log-probabilities of whole sequences, shape ``[*batch, V**L]``.
        beta: coefficient of the loss, in reward units per nat, above 0, shape ``[*batch]``.
        ratio_weight: m, above 0, of all tokens, of positions ``[L]`` or of the tokens of every
            sequence ``[V**L, L]``, where sequences that begin alike have the same.
        kl_weight: d, 0 or more, likewise.

    Returns:
        A :class:`TokenPreferenceTarget`.

    Raises:
        TypeError: not numbers.
        ValueError: shapes that do not fit; outside a trace, weights out of range or of more than
            prefixes, a reward that is not finite, beta not above 0, a bad reference.

    Status:
        As of ``solve`` for reverse KL, and NaN with it.

    Sequences of ``log_ref = -inf`` keep no mass. A weight of 0 is refused: continuations of a
    prefix whose tokens do not count are told apart by nothing, so that no such policy fits every
    reward; training then leaves that prefix as it is, unless its KL has a weight. TDPO's second
    loss lets no gradient through the winner's KL and is the gradient of nothing: its policy, which
    :func:`kltarget.training.dpo` finds, lies nearer to the reference. Differentiable in all arrays.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.implied import token_preference_target
        >>> space = kt.SequenceSpace(2, 2)
        >>> log_ref = jnp.log(jnp.array([0.42, 0.28, 0.06, 0.24]))
        >>> reward = jnp.array([0.0, 0.5, 1.0, 0.2])
        >>> for kl_weight in (0.0, 1.0):  # DPO and TDPO
        ...     target = token_preference_target(space, reward, log_ref, 0.3, kl_weight=kl_weight)
        ...     print([f"{p:.4f}" for p in target.probs])
        ['0.1037', '0.3659', '0.4151', '0.1154']
        ['0.1276', '0.4503', '0.3303', '0.0918']

    References:
        Zeng et al., "Token-level Direct Preference Optimization", 2024, arXiv 2404.11999 (the
        losses). Christopoulou et al., "SparsePO: Controlling Preference Alignment of LLMs via
        Sparse Token Masks", 2024, arXiv 2410.05102. The recursion is derived here: with ``K(s) =
        log Z − E_ref[W]/(βm)`` the KL of the tilt at s, ``β(m log u + d K) = W(sa) − W(s)``
        telescopes to ``r − W_0``. Mudgal et al., "Controlled Decoding from Language Models", 2023,
        arXiv 2310.17022, tilt tokens by the reference's values as well.
    """
    log_ref = space.require_log_probs(log_ref, "log_ref")
    objective = Objective(reward, log_ref, beta, ReverseKL())
    weights = tuple(
        prefix_weights(space, x, name)
        for name, x in (("ratio_weight", ratio_weight), ("kl_weight", kl_weight))
    )
    for t, weight in enumerate(weights[0]):
        if not checks.traced(weight) and not bool((weight > 0).all()):
            raise ValueError(
                f"ratio_weight must be above 0, got 0 for token {t} after prefix "
                f"{int(np.asarray(weight > 0).argmin())}: what follows it is told apart by nothing"
            )
    given = objective.reward
    bad = ~jnp.isfinite(given) & (log_ref > -jnp.inf)
    if not checks.traced(given, log_ref):
        checks.raise_first("reward", given, bad, "must be finite: no pair may be unanimous")
    log_probs, multiplier, status = _by_prefix(space, objective, *weights)
    return TokenPreferenceTarget(objective, log_probs, multiplier, status)


class _Weighted(NamedTuple):
    """The prefixes of a depth, as a :class:`~kltarget.spaces.Layer`."""

    log_ref: Array
    strength: Array
    """β m, ``[*batch, nodes]``."""
    share: Array
    """d/m, as many."""

    def children(self, values: Array) -> Array:
        return values.reshape(*values.shape[:-1], *self.log_ref.shape[-2:])


def _backed_up(values: Array, layer: _Weighted) -> tuple[Array, Array]:
    some = layer.log_ref > -jnp.inf
    values = jnp.where(some, values, 0.0)
    best = lax.stop_gradient(jnp.where(some, values, -jnp.inf).max(-1, keepdims=True))
    best = jnp.where(jnp.isfinite(best), best, 0.0)
    above, strength = values - best, layer.strength[..., None]
    scores = jnp.where(some, jnp.where(some, layer.log_ref, 0.0) + above / strength, -jnp.inf)
    log_total = log_sum_exp(scores)
    mean = jnp.where(some, jnp.exp(layer.log_ref) * above, 0.0).sum(-1)
    soft = layer.strength * log_total[..., 0]
    value = best[..., 0] + (1 - layer.share) * soft + layer.share * mean
    return value, jnp.moveaxis(scores - log_total, -1, -2)


@functools.partial(jax.jit, static_argnums=0)
def _by_prefix(
    space: SequenceSpace,
    objective: Objective,
    ratio_weight: tuple[Array, ...],
    kl_weight: tuple[Array, ...],
) -> tuple[Array, Array, Array]:
    reward, log_ref, beta, _ = broadcast_fields(objective)
    possible = log_ref > -jnp.inf
    status = solve(objective).status
    status = status | flag((possible & ~jnp.isfinite(reward)).any(-1), Status.INVALID_REWARD)
    reward = jnp.where(possible & jnp.isfinite(reward), reward, 0.0)
    one = (1,) * (beta.ndim - 1)

    def led(x: Array) -> Array:
        return x.astype(beta.dtype).reshape(*one, -1)

    layers = [
        _Weighted(given, beta * led(m), led(d / m))
        for given, m, d in zip(space.conditionals(log_ref), ratio_weight, kl_weight, strict=True)
    ]
    values, kept = backward(layers, reward, _backed_up)
    log_probs = space.joint(tuple(jnp.moveaxis(x, -2, -1) for x in kept))
    dtype = objective.reward.dtype
    found = (unless_failed(status, x) for x in (log_probs, values[0][..., 0]))
    return *(x.astype(dtype) for x in found), status  # pyright: ignore[reportReturnType]
