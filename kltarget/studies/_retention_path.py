"""New prompts learned and old answers forgotten, step by step, by exact gradients."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import positive, require_normalized, traced, worded
from kltarget._core.numerics import as_float
from kltarget._core.pytrees import pytree
from kltarget.studies._at_equal_gain import AtEqualGain
from kltarget.studies._retention import Retention

_DATA = ("own", "uniform")


@pytree
class RetentionPath(AtEqualGain):
    """A network on its way to new answers; axes ``*batch`` run over runs, T over steps.

    Attributes:
        accuracy_old: mass of right answers to old prompts, before the first and after every step,
            ``[*batch, T + 1]``.
        accuracy_new: mass of right answers to new prompts.
        drift: ``KL(π_start‖π)`` of the answers to old prompts, in nats.
        params: the parameters after the last step, every leaf ``[*batch, …]``.
    """

    accuracy_old: Float[Array, "*batch T"]
    accuracy_new: Float[Array, "*batch T"]
    drift: Float[Array, "*batch T"]
    params: Any

    def drift_at(self, gain: float = 0.9) -> Float[Array, "*batch"]:
        """How far the old answers have moved when as much has been learned; NaN if never."""
        return self._then(self.drift, gain)

    def _mastered(self) -> tuple[Array, Array]:
        return self.accuracy_old, self.accuracy_new


def retention_path(
    task: Retention,
    method: str,
    *,
    learning_rate: ArrayLike,
    beta: ArrayLike = 0.0,
    data: str | Float[Array, "P N"] = "own",
    num_steps: int = 200,
    optimizer: Any = optax.adam,
) -> RetentionPath:
    """Trains a network on new prompts alone and measures what that does to old ones.

    With x the new prompts, y their answers, r whether they are right, and all sums exact:

    - ``"rl"``: ascends ``E_x[E_π[r] − beta · KL(π‖π_start)]``;
    - ``"sft"``: ascends ``E_x[E_p[log π]]``, maximum likelihood of the ``data`` p.

    Args:
        task: a :class:`kltarget.studies.Retention`.
        method: ``"sft"`` or ``"rl"``.
        learning_rate: what ``optimizer`` is called with; any shape, broadcasts with ``beta`` to
            ``*batch``, one run per entry.
        beta: coefficient of the KL, in rewards per nat; of ``"rl"`` alone.
        data: of ``"sft"`` alone: ``"own"``, the right answers as often as the policy itself gave
            them at the start, which is what rejection sampling keeps and the target of ``"rl"`` as
            β → 0; ``"uniform"``, all right answers alike; or log-probabilities ``[P, N]``.
        num_steps: number of steps T.
        optimizer: makes an optax transformation from a learning rate.

    Returns:
        What was mastered of old and new on the way.

    Raises:
        ValueError: unknown names, values out of range, axes that do not broadcast, data of another
            shape or that are no probabilities, new prompts without a right answer.

    Composes with ``jit`` and ``vmap``.

    Example:
        At equal gain fine-tuning on the right answers of a stranger forgets more than reinforcement
        learning, and on one's own right answers it does not:

        >>> from kltarget import studies
        >>> from kltarget.studies import retention_path
        >>> task = studies.retention()
        >>> options = {"learning_rate": 0.01, "num_steps": 30}
        >>> stranger = retention_path(task, "sft", data="uniform", **options)
        >>> own = retention_path(task, "sft", data="own", **options)
        >>> rl = retention_path(task, "rl", **options)
        >>> for path in (stranger, own, rl):
        ...     print(f"{path.loss_at(0.3):.2f} forgotten, {path.drift_at(0.3):.1f} nats")
        0.29 forgotten, 1.1 nats
        0.09 forgotten, 0.3 nats
        0.09 forgotten, 0.4 nats

    References:
        Chen, Razin, Narasimhan, Chen, "Retaining by Doing: The Role of On-Policy Data in Mitigating
        Forgetting", 2025, arXiv 2510.18874.
    """
    if method not in ("sft", "rl"):
        raise ValueError(f"method must be one of 'sft', 'rl', got {method!r}")
    positive("num_steps", num_steps)
    rate, beta = as_float(learning_rate), as_float(beta)
    rate, beta = (x.astype(task.new.dtype) for x in (rate, beta))
    axes = f"learning_rate {rate.shape} and beta {beta.shape}"
    with worded(f"the batch axes of {axes} do not broadcast"):
        rate, beta = jnp.broadcast_arrays(rate, beta)
    if not traced(beta) and (np.asarray(beta) < 0).any():
        raise ValueError(f"beta must be 0 or more, got {float(beta.min()):g}")
    log_data = _log_probs(task, data) if method == "sft" else None
    static = (num_steps, optimizer)
    path = _paths(static, task, log_data, rate.reshape(-1), beta.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(*rate.shape, *x.shape[1:]), path)


def _log_probs(task: Retention, data: Any) -> Array:
    """What is learned by heart, ``[P, N]``."""
    if isinstance(data, str):
        if data not in _DATA:
            raise ValueError(
                f"data must be one of {', '.join(map(repr, _DATA))} or log-probabilities of the "
                f"answers, got {data!r}"
            )
        none = (task.new > 0) & ~task.right_new.any(-1)
        if not traced(none) and none.any():
            raise ValueError(
                f"right_new has no right answer to prompt {int(none.argmax())}, which is new"
            )
        given = task.answers(task.params)
        given = given if data == "own" else jnp.zeros_like(given)
        return jax.nn.log_softmax(jnp.where(task.right_new, given, -jnp.inf), axis=-1)
    log_probs = as_float(data)
    if log_probs.shape != task.right_new.shape:
        raise ValueError(
            f"data has shape {log_probs.shape}: it must be that of the answers, "
            f"{task.right_new.shape}"
        )
    require_normalized(data=log_probs)
    return log_probs.astype(task.new.dtype)


@functools.partial(jax.jit, static_argnums=0)
def _paths(
    static: Any, task: Retention, log_data: Array | None, rate: Array, beta: Array
) -> RetentionPath:
    num_steps, optimizer = static
    start = task.answers(task.params)
    # After its end an answer has one way to go on.
    possible = start > -jnp.inf

    def objective(params: Any, beta: Array) -> Array:
        answers = task.answers(params)
        if log_data is not None:
            each = jnp.where(log_data > -jnp.inf, jnp.exp(log_data) * answers, 0.0)
        else:
            reward = task.right_new.astype(answers.dtype)
            ratio = jnp.where(possible, answers - start, 0.0)
            each = jnp.exp(answers) * (reward - beta * ratio)
        return task.new @ each.sum(-1)

    def one(rate: Array, beta: Array) -> RetentionPath:
        ascent = optimizer(rate)

        def step(carry: Any, _: Any) -> Any:
            params, memory, _ = carry
            answers = task.answers(params)
            apart = jnp.where(possible, start - answers, 0.0)
            drift = task.old @ (jnp.exp(start) * apart).sum(-1)
            gradient = jax.grad(objective)(params, beta)
            down = jax.tree.map(jnp.negative, gradient)
            # Optimisers count steps in integers and mix them with floats.
            with jax.numpy_dtype_promotion("standard"):
                change, memory = ascent.update(down, memory, params)
                moved = optax.apply_updates(params, change)
            return (moved, memory, params), (*task.accuracy(answers), drift)

        begin = (task.params, ascent.init(task.params), task.params)
        # One step more, of which nothing but its beginning is kept.
        (*_, params), measured = lax.scan(step, begin, length=num_steps + 1)
        old, new, drift = measured
        return RetentionPath(old, new, drift, params)

    return jax.vmap(one)(rate, beta)
