"""Soft values and token advantages: reverse KL, or any divergence, backwards through the tree."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core import checks
from kltarget._core.numerics import log1p, log_sum_exp, working_dtype
from kltarget.spaces import SequenceSpace, _sequences, _token_layers, backward


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
    return _values_and_advantages(space, reward, log_ref, beta)[0]


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
    return _values_and_advantages(space, reward, log_ref, beta)[1]


def _values_and_advantages(
    space: SequenceSpace, reward: Any, log_ref: Any, beta: Any
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Both at all prefixes, from arguments that are checked and brought to one rank and dtype."""
    stepwise = isinstance(log_ref, tuple)
    if isinstance(reward, tuple):
        given = {f"reward[{t}]": x for t, x in enumerate(reward)}
        depth = len(reward) - 1
        rewards = {name: checks.float_argument(x, name) for name, x in given.items()}
        if not 0 <= depth <= space.length:
            raise ValueError(
                f"reward has {len(reward)} arrays; prefixes of 0 to {space.length} tokens can "
                f"have one each, so give 1 to {space.length + 1}"
            )
        for t, (name, x) in enumerate(rewards.items()):
            _require_prefixes(space, x, t, name, 1)
    else:
        given, depth = {"reward": reward}, space.length
        rewards = {"reward": _sequences.over_sequences(space, reward, "reward")}
    if stepwise:
        if not depth <= len(log_ref) <= space.length:
            raise ValueError(
                f"log_ref has {len(log_ref)} arrays of conditionals; reward needs those after 0 to "
                f"{depth - 1} tokens, so give at least {depth} and at most {space.length}"
            )
        kernels = {f"log_ref[{t}]": x for t, x in enumerate(log_ref[:depth])}
        refs = {name: checks.float_argument(x, name) for name, x in kernels.items()}
        for t, (name, x) in enumerate(refs.items()):
            _require_prefixes(space, x, t, name, 2)
    else:
        kernels = {"log_ref": log_ref}
        refs = {"log_ref": space.require_log_probs(log_ref, "log_ref")}
    given |= kernels | {"beta": beta}
    own = dict.fromkeys(rewards, 1) | dict.fromkeys(refs, 2 if stepwise else 1) | {"beta": 0}
    arrays = rewards | refs | {"beta": checks.float_argument(beta, "beta")}
    shapes = {name: x.shape[: x.ndim - own[name]] for name, x in arrays.items()}
    first, second = next(iter(rewards)), next(iter(refs), "beta")
    with checks.worded(
        f"the batch axes of reward {shapes[first]}, log_ref {shapes[second]} and beta "
        f"{shapes['beta']} do not broadcast; beta has no axis of sequences"
    ):
        batch = jnp.broadcast_shapes(*shapes.values())
    dtype = checks.common_dtype(given.values(), arrays.values())
    if not checks.traced(*arrays.values()):
        _check_values(space, rewards, refs, arrays["beta"], dtype)

    def led(name: str) -> Array:
        missing = len(batch) - len(shapes[name])
        x = arrays[name]
        return x.reshape((1,) * missing + x.shape).astype(working_dtype(dtype))

    def shaped(x: Array, own: int) -> Array:
        return jnp.broadcast_to(x, (*batch, *x.shape[x.ndim - own :])).astype(dtype)

    problem = (
        tuple(map(led, rewards)) if isinstance(reward, tuple) else led("reward"),
        tuple(map(led, refs)) if stepwise else led("log_ref"),
        led("beta"),
    )
    values, advantages = _soft_values(space, *problem, checks.mass_tolerance(dtype))
    return tuple(shaped(x, 1) for x in values), tuple(shaped(x, 2) for x in advantages)


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
    space: SequenceSpace, rewards: dict[str, Array], refs: dict[str, Array], beta: Array, dtype: Any
) -> None:
    checks.raise_first("beta", beta, ~((beta > 0) & (beta < jnp.inf)), "must be above 0 and finite")
    for name, x in rewards.items():
        checks.raise_first(name, x, jnp.isnan(x) | jnp.isposinf(x), "must be finite or -inf")
    for name, x in refs.items():
        known = x if name == "log_ref" else _sequences.after_eos(space, x)
        bad = jnp.isnan(known) | jnp.isposinf(known)
        checks.raise_first(name, known, bad, "must not be NaN or +inf")
        mass = jnp.exp(known.astype(working_dtype(x.dtype))).sum(-1)
        rule = "is not normalised: pass kltarget.normalize of it"
        checks.raise_first(name, None, ~(jnp.abs(mass - 1) <= checks.mass_tolerance(dtype)), rule)


@functools.partial(jax.jit, static_argnums=0)
def _soft_values(
    space: SequenceSpace,
    rewards: tuple[Array, ...] | Array,
    log_ref: tuple[Array, ...] | Array,
    beta: Array,
    tolerance: float,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    valid = (beta > 0) & (beta < jnp.inf)
    if isinstance(log_ref, tuple):
        kernels = (_by_last_token(space, x, t) for t, x in enumerate(log_ref))
        given = tuple(_sequences.after_eos(space, x) for x in kernels)
        for x in given:
            valid = valid & jnp.all(jnp.abs(jnp.exp(x).sum(-1) - 1) <= tolerance, axis=-1)
    else:
        given = _sequences.conditionals(space, log_ref)
        valid = valid & (jnp.abs(possible_mass(space, log_ref) - 1) <= tolerance)
    if isinstance(rewards, tuple):
        *earned, value = rewards
    else:
        earned, value = (None,) * space.length, _sequences.only_possible(space, rewards)
    leads = (value.shape[:-1], beta.shape, *(x.shape[:-2] for x in given))
    leads += tuple(x.shape[:-1] for x in earned if x is not None)
    batch = jnp.broadcast_shapes(*leads)

    def led(x: Array) -> Array:
        return jnp.broadcast_to(x, (*batch, *x.shape[len(batch) :]))

    def completed(x: Array) -> Array:
        known = valid.reshape(*valid.shape, *(1,) * (x.ndim - len(batch)))
        return jnp.where(led(known), x, jnp.nan)

    def backed_up(q: Array, layer: _token_layers.TokenLayer) -> tuple[Array, tuple[Array, Array]]:
        before = _soft_value(q, layer.log_ref, beta[..., None, None])
        nothing = jnp.isneginf(before)[..., None]
        advantage = jnp.where(nothing, 0.0, q - jnp.where(nothing, 0.0, before[..., None]))
        if layer.ended is not None:
            over = jnp.broadcast_to(layer.ended, before.shape)
            before = jnp.where(over, jnp.zeros_like(before), before)
        if layer.earned is not None:
            size = max(before.shape[-1], layer.earned.shape[-1])
            both = (_token_layers.repeated(x, size, -1) for x in (before, layer.earned))
            before = jnp.add(*both)
        before = led(before)
        return before, (completed(before), completed(led(_sequences.after_eos(space, advantage))))

    value = led(value)
    layers = _token_layers.token_layers(space, given, earned, value.shape[-1])
    _, kept = backward(layers, value, backed_up)
    values = tuple(before for before, _ in kept)
    return (*values, completed(value)), tuple(advantage for _, advantage in kept)


def _soft_value(values: Array, log_ref: Array, beta: Array) -> Array:
    """``β log Σ π_ref e^{V/β}`` over the last axis, the best ``E_π[V] − β·KL(π‖π_ref)``."""
    alive = ~jnp.isneginf(values) & ~jnp.isneginf(log_ref)
    best = jnp.max(jnp.where(alive, values, -jnp.inf), axis=-1, keepdims=True)
    nothing = jnp.isneginf(best)
    best = jnp.where(nothing, 0.0, lax.stop_gradient(best))
    gap = jnp.where(alive, jnp.where(alive, values, 0.0) - best, 0.0) / beta
    gap = jnp.where(alive, gap, -jnp.inf)
    # V − best = β log Σ π_ref e^gap: as a logarithm near 1 where β is large, else as it stands.
    mass = jnp.exp(log_ref)
    total = mass.sum(-1, keepdims=True)
    near = (mass * jnp.expm1(gap)).sum(-1, keepdims=True) + (total - lax.stop_gradient(total))
    is_near = near > -0.5
    near = log1p(jnp.where(is_near, near, 0.0))
    far = log_sum_exp(jnp.where(alive, jnp.where(alive, log_ref, 0.0) + gap, -jnp.inf))
    value = best + beta * jnp.where(is_near, near, jnp.where(nothing, 0.0, far))
    return jnp.where(nothing, -jnp.inf, value)[..., 0]


def _by_last_token(space: SequenceSpace, given: Array, t: int) -> Array:
    """Conditionals that can tell whether a prefix of t tokens has ended."""
    vocab_size = given.shape[-1]
    if space.eos is None or t == 0 or given.shape[-2] >= vocab_size:
        return given
    return jnp.broadcast_to(given, (*given.shape[:-2], vocab_size, vocab_size))


def possible_mass(space: SequenceSpace, log_ref: Array) -> Array:
    """The total probability of the sequences that exist, shape ``[...]``."""
    return jnp.exp(_sequences.only_possible(space, log_ref)).sum(-1)
