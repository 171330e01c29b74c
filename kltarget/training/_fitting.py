"""Pre-training: maximum likelihood on a corpus."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kltarget._core.checks import positive, positive_if_given, raise_first
from kltarget._core.numerics import as_float
from kltarget._core.progress import progress_bar
from kltarget._core.pytrees import pytree
from kltarget.policies import Policy
from kltarget.spaces._sequences import require_tokens
from kltarget.training._engine import Optimizer
from kltarget.training._outcomes import sequences_of
from kltarget.training._run_metrics import show_progress


@pytree
class Fit:
    """A policy fitted to a corpus and how well it predicts what it has not seen.

    Attributes:
        params: the final parameters.
        log_likelihood: mean log-likelihood of a training sequence, in nats.
        held_out_log_likelihood: of a held-out sequence; NaN if none was held out.
        step: steps taken before each measurement, int ``[H]``.
        history: mean log-likelihood of training sequences then, ``[H]``.
        held_out_history: of held-out ones, ``[H]``.
    """

    params: Any
    log_likelihood: float
    held_out_log_likelihood: float
    step: np.ndarray
    history: np.ndarray
    held_out_history: np.ndarray


def fit(
    policy: Policy,
    tokens: Int[ArrayLike, "N L"],
    *,
    key: PRNGKeyArray,
    num_steps: int,
    learning_rate: ArrayLike = 1e-2,
    optimizer: Optimizer = optax.adam,
    params: Any = None,
    weights: Float[ArrayLike, "N"] | None = None,
    batch_size: int | None = 256,
    holdout: float | Int[ArrayLike, "M L"] = 0.1,
    history_every: int = 100,
    progress: bool = False,
) -> Fit:
    """Fits a policy to a corpus by maximum likelihood, ``max Σ_i w_i log π(y_i)``.

    Args:
        policy: any :class:`Policy`.
        tokens: sequences, integers ``[N, L]`` from 0 to V − 1.
        key: random key of the first parameters, of what is held out and of the batches.
        num_steps: number of gradient steps.
        learning_rate: what ``optimizer`` is called with.
        optimizer: makes an optax transformation from a learning rate.
        params: parameters to start from; by default ``policy.init``.
        weights: how much each sequence counts, for instance how often it occurs, ``[N]``; 0 or
            more. By default all count alike.
        batch_size: sequences per step, drawn in proportion to their weights; None for all.
        holdout: the share of the sequences that is not trained on, drawn by the key and without
            regard to weights, or the held-out sequences themselves, ``[M, L]``. 0 for none.
        history_every: steps between measurements.
        progress: show a tqdm bar with the time left and both log-likelihoods.

    Returns:
        Parameters and log-likelihoods, which are weighted means over all sequences of either part;
        NaN from where training diverged.

    Raises:
        TypeError: tokens that are not integers.
        ValueError: tokens that are not the policy's, or go on after its ``eos``; weights that are
            not weights; options out of range.

    Example:
        >>> import jax, numpy as np
        >>> from kltarget.policies import GRUPolicy
        >>> from kltarget.training import fit
        >>> corpus = np.array([[0, 1, 2], [0, 1, 2], [2, 1, 0]] * 20)
        >>> fitted = fit(GRUPolicy(3, 3, width=8), corpus, key=jax.random.key(0), num_steps=200)
        >>> fitted.held_out_log_likelihood > -1.0
        True
    """
    data = _sequences(policy, tokens, "tokens")
    counts = np.ones(len(data)) if weights is None else np.asarray(weights, np.float64)
    if counts.shape != (len(data),) or not (np.isfinite(counts) & (counts >= 0)).all():
        raise ValueError(
            f"weights must be {len(data)} finite numbers of 0 or more, one per sequence, "
            f"got shape {counts.shape}"
        )
    positive("num_steps", num_steps)
    positive("history_every", history_every)
    positive_if_given("batch_size", batch_size)
    init_key, split_key, batch_key = jax.random.split(key, 3)
    params = policy.init(key=init_key) if params is None else params
    if np.ndim(holdout) == 0:
        share = float(np.asarray(holdout))
        if not 0 <= share < 1:
            raise ValueError(f"holdout must be a share from 0 to below 1, got {share}")
        order = np.asarray(jax.random.permutation(split_key, len(data)))
        held, kept = np.split(order, [round(share * len(data))])
        unseen, unseen_counts = data[held], counts[held]
        data, counts = data[kept], counts[kept]
    else:
        unseen = _sequences(policy, holdout, "holdout")
        unseen_counts = np.ones(len(unseen))
    if not counts.sum() > 0:
        raise ValueError("weights leaves nothing to train on: every training sequence has weight 0")
    dtype = jax.eval_shape(policy.log_probs, params, jnp.asarray(data[:1])).dtype
    rate = as_float(learning_rate).astype(dtype)
    parts = [
        (jnp.asarray(x), jnp.asarray(c / max(c.sum(), np.finfo(float).tiny), dtype))
        for x, c in ((data, counts), (unseen, unseen_counts))
    ]
    with jax.numpy_dtype_promotion("standard"):
        opt_state = jax.jit(lambda p, rate: optimizer(rate).init(p))(params, rate)

    def measured(params: Any) -> tuple[float, float]:
        seen = _log_likelihood(policy, params, *parts[0])
        held_out = _log_likelihood(policy, params, *parts[1]) if len(unseen) else np.nan
        return float(seen), float(held_out)

    steps, history = [0], [measured(params)]
    with progress_bar(progress, total=num_steps, unit="step") as bar:
        while steps[-1] < num_steps:
            length = min(history_every, num_steps - steps[-1])
            static = (policy, optimizer, batch_size, length)
            draws = (rate, batch_key, jnp.int32(steps[-1]))
            params, opt_state = _fit_steps(static, params, opt_state, *parts[0], *draws)
            steps.append(steps[-1] + length)
            history.append(measured(params))
            seen, held_out = history[-1]
            show_progress(bar, length, {"log-likelihood": seen, "held out": held_out})
    seen, held_out = np.array(history).T
    last = (float(seen[-1]), float(held_out[-1]))
    return Fit(params, *last, step=np.array(steps), history=seen, held_out_history=held_out)


@functools.partial(jax.jit, static_argnums=0)
def _fit_steps(
    static: tuple[Any, Optimizer, int | None, int],
    params: Any,
    opt_state: Any,
    tokens: Array,
    shares: Array,
    rate: Array,
    key: Any,
    first: Array,
) -> tuple[Any, Any]:
    policy, optimizer, batch_size, length = static
    transformation = optimizer(rate)

    def loss(params: Any, batch: Array, shares: Array) -> Array:
        return -jnp.sum(shares * policy.log_probs(params, batch).sum(-1))

    def step(carry: Any, time: Array) -> tuple[Any, None]:
        params, opt_state = carry
        batch, weight = tokens, shares
        if batch_size is not None:
            drawn = jax.random.fold_in(key, time)
            which = jax.random.choice(drawn, len(tokens), (batch_size,), p=shares)
            batch, weight = tokens[which], jnp.full(batch_size, 1 / batch_size, shares.dtype)
        gradient = jax.grad(loss)(params, batch, weight)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = transformation.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

    return lax.scan(step, (params, opt_state), first + jnp.arange(length, dtype=jnp.int32))[0]


@functools.partial(jax.jit, static_argnums=0)
def _log_likelihood(policy: Any, params: Any, tokens: Array, shares: Array) -> Array:
    log_probs = policy.log_probs(params, tokens).sum(-1)
    return jnp.sum(jnp.where(shares > 0, shares * log_probs, jnp.zeros_like(shares)))


def _sequences(policy: Policy, tokens: Any, name: str) -> np.ndarray:
    array = np.asarray(tokens)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if array.ndim != 2 or array.shape[1] != policy.length:
        raise ValueError(
            f"{name} has shape {array.shape}, but the policy's sequences have {policy.length} "
            f"tokens: it needs shape (N, {policy.length})"
        )
    require_tokens(sequences_of(policy).space, array, name)
    eos = getattr(policy, "eos", None)
    if eos is not None:
        over = np.logical_or.accumulate(array[:, :-1] == eos, axis=1)
        bad = np.pad(over & (array[:, 1:] != eos), ((0, 0), (1, 0)))
        raise_first(name, array, bad, f"must have only eos={eos} after the first eos")
    return array.astype(np.int32)
