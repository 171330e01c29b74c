"""Fits of policies to a target under any loss, from many starts at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import float_argument
from kltarget.divergences import ReverseKL
from kltarget.policies import Policy
from kltarget.training import _methods, _run_setup
from kltarget.training._outcomes import sequences_of
from kltarget.training._runs import Run


def imitate(
    policy: Policy,
    starts: Any,
    log_target: Float[Array, "*batch A"],
    loss: Callable[[Array, Array, Array], Array],
    *,
    parameter: ArrayLike | Any = 1.0,
    learning_rate: ArrayLike,
    num_steps: int,
    **options: Any,
) -> Run:
    """Fits a policy to a target under any loss of the two distributions, ``min loss(π, p)``.

    A policy that can hold the target ends there under every divergence; what one that cannot keeps
    of it is up to the loss. All starts are trained in one program, and so are all parameters of the
    loss: which of the target's modes survive is then a matter of the loss and not of luck.

    Args:
        policy: any :class:`Policy`; :class:`kltarget.policies.MarkovPolicy` has a capacity that one
            number sets.
        starts: parameters of S starts, each leaf with a first axis of S, such as
            ``jax.vmap(lambda key: policy.init(key=key))(jax.random.split(key, S))``.
        log_target: log-probabilities p of the sequences, ``[*batch, V**L]``.
        loss: turns log-probabilities π and p, ``[V**L]`` each, and the parameter into a number that
            is differentiable in the first: those of :mod:`kltarget.training.losses`, or your own. A
            new function object is compiled anew.
        parameter: what the loss has to be told, such as the share of reverse KL; of any shape that
            broadcasts against ``[S]``, so that ``[P, 1]`` is a sweep over P from every start.
        learning_rate: what the optimiser is called with.
        num_steps: number of gradient steps.
        **options: ``optimizer``, ``history_every``, ``gradient_tol``, ``chunk_runs``, ``devices``,
            ``progress`` and ``measure`` as in :func:`fine_tune`.

    Returns:
        The runs, of the batch shape of starts, targets and parameters together. In their history
        the reference of both KLs is the target, there is no reward, and the gap is ``KL(π‖p)``.

    Raises:
        TypeError: a loss that is not callable.
        ValueError: shapes that do not fit, values out of range, a loss that is not one number.

    Example:
        Two modes and a policy of independent tokens, under forward and under reverse KL:

        >>> import jax, jax.numpy as jnp
        >>> from kltarget.policies import MarkovPolicy
        >>> from kltarget.training import imitate, losses
        >>> policy = MarkovPolicy(vocab_size=2, length=2, order=0)
        >>> starts = jax.vmap(lambda key: policy.init(key=key))(
        ...     jax.random.split(jax.random.key(0), 4)
        ... )
        >>> target = jnp.log(jnp.array([0.48, 0.02, 0.02, 0.48]))
        >>> run = imitate(
        ...     policy,
        ...     starts,
        ...     target,
        ...     losses.kl_mixture,
        ...     parameter=jnp.array([[0.0], [1.0]]),
        ...     learning_rate=0.1,
        ...     num_steps=300,
        ... )
        >>> print(jnp.exp(run.log_probs).max(-1).round(2))
        [[0.25 0.25 0.25 0.25]
         [0.89 0.89 0.89 0.89]]

    References:
        Amara et al., "BD-KD: Balancing the Divergences for Online Knowledge Distillation", 2022,
        arXiv 2212.12965. Bassam, Zhu and Bian, "PLD: A Choice-Theoretic List-Wise Knowledge
        Distillation", 2025, arXiv 2506.12542. Cui et al., "Sinkhorn Distance Minimization for
        Knowledge Distillation", 2024, arXiv 2402.17110.
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function of π, p and a parameter, got {loss!r}")
    outcomes = sequences_of(policy)
    leaves = jax.tree.leaves(starts)
    if not leaves or any(jnp.ndim(x) == 0 for x in leaves):
        raise ValueError("starts must be parameters with a first axis of starts, got a number")
    sizes = sorted({x.shape[0] for x in leaves})
    wanted = jax.eval_shape(lambda: policy.init(key=jax.random.key(0)))
    shapes = [x.shape[1:] for x in leaves]
    own = [x.shape for x in jax.tree.leaves(wanted)]
    if len(sizes) > 1 or shapes != own:
        raise ValueError(
            f"starts has leaves of shapes {[x.shape for x in leaves]}: each needs a first axis of "
            f"starts before the parameters' own {own}; add it by x[None] for a single start"
        )
    one = jax.tree.map(lambda x: x[0], starts)
    number = float_argument(parameter, "parameter")
    table = jax.eval_shape(outcomes.log_probs, one)
    result = jax.eval_shape(loss, table, table, jax.ShapeDtypeStruct((), table.dtype))
    if getattr(result, "shape", None) != ():
        raise ValueError(
            f"loss must give one number, but of two distributions {table.shape} it gives "
            f"{getattr(result, 'shape', result)}"
        )
    given = {"start": starts, "parameter": number.astype(table.dtype)}
    problem = (policy, one, log_target, ReverseKL(), _methods.Losses(loss))
    return _run_setup.to_target(*problem, learning_rate, num_steps, None, options, given)
