"""Value iteration with a divergence from the last policy: mirror descent, Munchausen, MVI(q)."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import (
    float_argument,
    log_probs_in,
    positive,
    raise_first,
    require_normalized,
    traced,
    worded,
)
from kltarget._core.pytrees import pytree
from kltarget.spaces import MDP


@pytree
class ValueIterates:
    """What value iteration went through, from the start on.

    Attributes:
        mdp: the decision process.
        log_policy: log-probabilities of the actions, ``[num_steps + 1, *batch, S, A]``.
        action_values: what the next policy is made from, in reward units, of the same shape; the
            first are 0, or ``τ α ln_q π`` in :func:`munchausen_vi`.
    """

    mdp: MDP
    log_policy: Float[Array, "steps *batch S A"]
    action_values: Float[Array, "steps *batch S A"]

    @property
    def returns(self) -> Float[Array, "steps *batch S"]:
        """What each policy earns from each state on, without any regulariser, solved exactly."""
        return _returns(self.mdp, self.log_policy)


def mirror_descent_vi(
    mdp: MDP,
    log_start: ArrayLike,
    *,
    kl_weight: ArrayLike,
    entropy_weight: ArrayLike = 0.0,
    q: float = 1.0,
    num_steps: int,
    errors: ArrayLike | None = None,
) -> ValueIterates:
    """Value iteration whose regulariser is the divergence from the last policy.

    ``π_{k+1} = argmax_π ⟨π, q_k⟩ − λ·KL(π‖π_k) + τ·H(π)`` in every state, and
    ``q_{k+1} = r + γP(⟨π_{k+1}, q_k⟩ − λ·KL(π_{k+1}‖π_k) + τ·H(π_{k+1})) + ε_{k+1}``, from
    ``q_0 = 0``. Policies then average: with ``a = λ/(λ + τ)``,
    ``π_{k+1} ∝ π_0^{a^{k+1}} exp(Σ_j a^{k−j} q_j/(λ + τ))``, so that at τ = 0 errors of mean zero
    average out. With a Tsallis index ``q ≠ 1`` the divergence is ``E_π ln_q(π/π_k)``, the entropy
    ``−E_π ln_q π``, and policies do not average.

    Args:
        mdp: the decision process.
        log_start: the first policy π_0, ``[*batch, S, A]``. What it never does no later one does.
        kl_weight: λ, 0 or more, in reward units per nat, shape ``[*batch]``.
        entropy_weight: τ, 0 or more, likewise. Where both are 0 policies are greedy, with ties
            shared evenly: plain value iteration.
        q: the index of ``ln_q x = (x^{q−1} − 1)/(q − 1)``, above 0.
        num_steps: how many steps to take.
        errors: ε, of each step's action values, ``[num_steps, *batch, S, A]``; none by default.

    Returns:
        All policies and action values.

    Raises:
        ValueError: shapes that do not fit; and outside a trace, weights that are negative, or both
            0 with ``q ≠ 1``, a start that is no policy, a state in which no action is left.

    Differentiable in reward, transition, weights, start and errors where policies are not greedy
    and ``q = 1``.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import MDP
        >>> from kltarget.training import mirror_descent_vi
        >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> mdp = MDP(stay_or_go, jnp.array([[0.1, 0.0], [1.0, 1.0]]), 0.9)
        >>> even = jnp.log(jnp.full((2, 2), 0.5))
        >>> path = mirror_descent_vi(mdp, even, kl_weight=1.0, num_steps=20)
        >>> print([f"{x:.2f}" for x in path.returns[::10, 0]])
        ['8.27', '9.00', '9.00']

    References:
        Vieillard, Kozuno, Scherrer, Pietquin, Munos, Geist, "Leverage the Average: an Analysis of
        KL Regularization in Reinforcement Learning", 2020, arXiv 2003.14089. Zhu, Chen, Schlegel,
        White, "General Munchausen Reinforcement Learning with Tsallis Kullback-Leibler
        Divergence", 2023, arXiv 2301.11476.
    """
    setting = _setting(
        mdp, log_start, num_steps, errors, q, kl_weight=kl_weight, entropy_weight=entropy_weight
    )
    if q != 1:
        both = setting.kl + setting.entropy
        raise_first("kl_weight", None, both == 0, "and entropy_weight are both 0, which needs q=1")
    return ValueIterates(mdp, *_mirror_descent(mdp, setting, float(q), num_steps))


def munchausen_vi(
    mdp: MDP,
    log_start: ArrayLike,
    *,
    temperature: ArrayLike,
    munchausen: ArrayLike,
    q: float = 1.0,
    num_steps: int,
    errors: ArrayLike | None = None,
) -> ValueIterates:
    """Munchausen value iteration: the log-policy, scaled, is added to the reward.

    ``π_{k+1} = argmax_π ⟨π, Q_k − τ ln_q π⟩`` in every state, and
    ``Q_{k+1} = r + ατ ln_q π_{k+1} + γP⟨π_{k+1}, Q_k − τ ln_q π_{k+1}⟩ + ε_{k+1}``, from
    ``Q_0 = ατ ln_q π_0``. With ``q = 1`` the policies are those of :func:`mirror_descent_vi` with
    ``λ = ατ`` and entropy weight ``(1 − α)τ``, and ``Q = q + ατ log π``. With
    ``q ≠ 1`` they are those of no mirror descent. As ``τ ln_q π_{k+1} = Q_k/q`` up to a number per
    state where no action is cut off, action values are still summed there, forgotten at ``α/q`` a
    step. Where an action is cut off, they are not.

    Args:
        mdp: the decision process.
        log_start: the first policy π_0, ``[*batch, S, A]``. What it never does no later one does.
        temperature: τ, above 0, in reward units per nat, shape ``[*batch]``.
        munchausen: α, from 0 to 1, likewise; 0 is value iteration with entropy.
        q: the index of ``ln_q x = (x^{q−1} − 1)/(q − 1)``, above 0; where it is above 1, actions
            that are bad enough are cut off.
        num_steps: how many steps to take.
        errors: ε, of each step's action values, ``[num_steps, *batch, S, A]``; none by default.

    Returns:
        All policies and action values.

    Raises:
        ValueError: shapes that do not fit; and outside a trace, a temperature or a factor out of
            range, a start that is no policy, a state in which no action is left.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import MDP
        >>> from kltarget.training import munchausen_vi
        >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> mdp = MDP(stay_or_go, jnp.array([[0.1, 0.0], [1.0, 1.0]]), 0.9)
        >>> even = jnp.log(jnp.full((2, 2), 0.5))
        >>> options = {"temperature": 1.0, "munchausen": 0.9, "num_steps": 20}
        >>> for q in (1.0, 2.0):
        ...     path = munchausen_vi(mdp, even, q=q, **options)
        ...     print([f"{p:.4f}" for p in jnp.exp(path.log_policy[-1, 0])])
        ['0.0006', '0.9994']
        ['0.0895', '0.9105']

    References:
        Vieillard, Pietquin, Geist, "Munchausen Reinforcement Learning", 2020, arXiv 2007.14430.
        Zhu, Chen, Schlegel, White, "General Munchausen Reinforcement Learning with Tsallis
        Kullback-Leibler Divergence", 2023, arXiv 2301.11476: MVI(q).
    """
    setting = _setting(
        mdp, log_start, num_steps, errors, q, temperature=temperature, munchausen=munchausen
    )
    raise_first("temperature", setting.entropy, ~(setting.entropy > 0), "must be above 0")
    share = setting.kl
    raise_first("munchausen", share, share > 1, "must be at most 1")
    return ValueIterates(mdp, *_munchausen(mdp, setting, float(q), num_steps))


class _Setting(NamedTuple):
    """Arguments of one batch shape; weights are ``[*batch, 1, 1]``."""

    log_start: Array
    kl: Array
    entropy: Array
    errors: Array | None


def _setting(
    mdp: MDP,
    log_start: ArrayLike,
    num_steps: int,
    errors: ArrayLike | None,
    q: float,
    **weights: ArrayLike,
) -> _Setting:
    if not isinstance(mdp, MDP):
        raise TypeError(f"mdp must be an MDP, got {type(mdp).__name__}")
    mdp.require_discounted("this value iteration")
    positive("num_steps", num_steps, 0)
    if not 0 < q < float("inf"):
        raise ValueError(f"q must be above 0 and finite, got {q}")
    dtype, cells = mdp.reward.dtype, mdp.reward.shape[-2:]
    start = log_probs_in(dtype, log_start=log_start)
    if start.ndim < 2 or start.shape[-2:] != cells:
        raise ValueError(f"log_start has shape {start.shape}: its last axes must be {cells}")
    require_normalized(log_start=start)
    given = {name: float_argument(x, name).astype(dtype) for name, x in weights.items()}
    for name, x in given.items():
        raise_first(name, x, ~((x >= 0) & (x < jnp.inf)), "must be 0 or more and finite")
    shapes = [mdp.batch_shape, start.shape[:-2], *(x.shape for x in given.values())]
    noise = None if errors is None else float_argument(errors, "errors").astype(dtype)
    if noise is not None:
        if noise.ndim < 3 or noise.shape[0] != num_steps or noise.shape[-2:] != cells:
            raise ValueError(
                f"errors has shape {noise.shape}: it must be [{num_steps}, *batch, {cells[0]}, "
                f"{cells[1]}], those of one step after those of the other"
            )
        shapes.append(noise.shape[1:-2])
    with worded(
        f"batch shapes {', '.join(map(str, shapes))} do not broadcast: of mdp, log_start, "
        f"{', '.join(given)}, errors"
    ):
        batch = jnp.broadcast_shapes(*shapes)
    start = jnp.broadcast_to(start, (*batch, *cells))
    absent = jnp.broadcast_to(mdp.reward, start.shape) == -jnp.inf
    if not traced(start, absent):
        lost = (absent | (start == -jnp.inf)).all(-1)
        raise_first("log_start", None, lost, "has no action that the state has")
    start = jax.nn.log_softmax(jnp.where(absent, -jnp.inf, start))
    if noise is not None:
        middle = (1,) * (len(batch) - noise.ndim + 3)
        noise = noise.reshape(num_steps, *middle, *noise.shape[1:])
        noise = jnp.broadcast_to(noise, (num_steps, *start.shape))
    first, second = (jnp.broadcast_to(x, batch)[..., None, None] for x in given.values())
    if "munchausen" in given:
        first, second = second, first
    return _Setting(start, first, second, noise)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _mirror_descent(mdp: MDP, setting: _Setting, q: float, num_steps: int) -> tuple[Array, Array]:
    start, kl, entropy, errors = setting

    def step(carry: tuple[Array, Array], error: Array | None) -> tuple[tuple, tuple]:
        log_policy, values = carry
        after = _best(values, log_policy, start, kl, entropy, q)
        ratio = jnp.where(after > -jnp.inf, after - log_policy, 0.0)
        # Greedy policies have zeros in the last policy, which a weight of 0 does not look at.
        cost = jnp.where(kl > 0, kl * _ln(ratio, q), 0.0) + entropy * _ln(after, q)
        gain = _mean(after, values - jnp.broadcast_to(cost, values.shape))
        values = _reward(mdp, start) + mdp.discount * mdp.expected_next(gain)
        carry = (after, values if error is None else values + error)
        return carry, carry

    first = (start, jnp.zeros_like(start))
    return _with_first(first, lax.scan(step, first, errors, length=num_steps)[1])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _munchausen(mdp: MDP, setting: _Setting, q: float, num_steps: int) -> tuple[Array, Array]:
    start, share, temperature, errors = setting
    present = start > -jnp.inf

    def added(log_policy: Array) -> Array:
        bonus = jnp.where(share > 0, share * temperature * _ln(log_policy, q), 0.0)
        return jnp.where(present, bonus, 0.0)

    def step(carry: tuple[Array, Array], error: Array | None) -> tuple[tuple, tuple]:
        log_policy, values = carry
        nothing = jnp.zeros_like(share)
        after = _best(values, log_policy, start, nothing, temperature, q)
        gain = _mean(after, values - temperature * _ln(after, q))
        values = _reward(mdp, start) + added(after) + mdp.discount * mdp.expected_next(gain)
        carry = (after, values if error is None else values + error)
        return carry, carry

    first = (start, added(start))
    return _with_first(first, lax.scan(step, first, errors, length=num_steps)[1])


def _with_first(first: tuple, then: tuple) -> tuple[Array, Array]:
    log_policy, values = (jnp.concatenate([x[None], y]) for x, y in zip(first, then, strict=True))
    return log_policy, values


def _reward(mdp: MDP, start: Array) -> Array:
    return jnp.broadcast_to(mdp.reward, start.shape)


def _mean(log_policy: Array, values: Array) -> Array:
    on = log_policy > -jnp.inf
    return jnp.where(on, jnp.exp(log_policy) * jnp.where(on, values, 0.0), 0.0).sum(-1)


def _ln(log_x: Array, q: float) -> Array:
    """``ln_q x`` of a logarithm."""
    return log_x if q == 1 else jnp.expm1((q - 1) * log_x) / (q - 1)


def _best(
    values: Array, log_policy: Array, start: Array, kl: Array, entropy: Array, q: float
) -> Array:
    """Log of ``argmax_π ⟨π, values⟩ − kl·E ln_q(π/π_k) − entropy·E ln_q π``."""
    present = start > -jnp.inf
    values = jnp.where(present, values, -jnp.inf)
    total = kl + entropy
    if q != 1:
        return _best_tsallis(values, log_policy, present, kl, entropy, q)
    soft = total > 0
    # Where nothing weighs on the last policy, its zeros are not to be multiplied.
    own = jnp.where((kl > 0) & present, log_policy, 0.0)
    scaled = (values + kl * own) / jnp.where(soft, total, 1.0)
    best = values == values.max(-1, keepdims=True)
    greedy = jnp.where(best, -jnp.log(best.sum(-1, keepdims=True).astype(values.dtype)), -jnp.inf)
    return jnp.where(soft, jax.nn.log_softmax(scaled), greedy)


_HALVINGS = 64


def _best_tsallis(
    values: Array, log_policy: Array, present: Array, kl: Array, entropy: Array, q: float
) -> Array:
    # π^{q−1}·q(λ π_k^{1−q} + τ) = (q − 1)(values − ν) + λ + τ, with ν by halving.
    on = present & ((log_policy > -jnp.inf) | (kl == 0))
    own = jnp.where(on & (kl > 0), log_policy, 0.0)
    scale = jnp.log(q * (kl * jnp.exp((1 - q) * own) + entropy))
    total = kl + entropy
    seen = jnp.where(on, values, 0.0)

    def log_policy_at(dual: Array) -> Array:
        base = (q - 1) * (seen - dual) + total
        inside = on & (base > 0)
        log_p = (jnp.log(jnp.where(inside, base, 1.0)) - scale) / (q - 1)
        return jnp.where(inside, log_p, -jnp.inf)

    def dual_at(log_p: float) -> Array:
        """The largest ν at which some action's probability is this."""
        at = seen + (jnp.exp(scale + (q - 1) * log_p) - total) / (1 - q)
        return jnp.where(on, at, -jnp.inf).max(-1, keepdims=True)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        over = jnp.exp(log_policy_at(middle)).sum(-1, keepdims=True) > 1
        return jnp.where(over, middle, low), jnp.where(over, high, middle)

    ends = (dual_at(0.0), dual_at(-math.log(values.shape[-1])))
    low, _ = lax.fori_loop(0, _HALVINGS, halve, ends)
    return jax.nn.log_softmax(log_policy_at(low))


@jax.jit
def _returns(mdp: MDP, log_policy: Array) -> Array:
    probs = jnp.exp(log_policy)
    gain = _mean(log_policy, jnp.broadcast_to(mdp.reward, probs.shape))
    if mdp.successors is None:
        chain = jnp.einsum("...sa,...sat->...st", probs, mdp.transition, precision="highest")
    else:
        moves = jnp.broadcast_to(mdp.transition, (*probs.shape, mdp.transition.shape[-1]))
        flow = jnp.broadcast_to(probs[..., None], moves.shape) * moves
        rows = jnp.broadcast_to(jnp.arange(mdp.num_states)[:, None, None], mdp.successors.shape)
        chain = jnp.zeros((*gain.shape, mdp.num_states), gain.dtype)
        chain = chain.at[..., rows, mdp.successors].add(flow)
    identity = jnp.broadcast_to(jnp.eye(chain.shape[-1], dtype=chain.dtype), chain.shape)
    return jnp.linalg.solve(identity - mdp.discount * chain, gain[..., None])[..., 0]
