"""Exact policy gradients and natural gradients in decision processes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from kltarget._core.checks import (
    float_argument,
    log_probs_in,
    positive,
    positive_if_given,
    raise_first,
    require_normalized,
    typed_key,
    worded,
)
from kltarget._core.pytrees import pytree
from kltarget.divergences import Divergence, ReverseKL
from kltarget.spaces import MDP

_DAMPING = 1e-5
"""Of a network's Fisher matrix, as a part of its mean eigenvalue among those that may not be 0."""


@pytree
class MDPRun:
    """Trained policies of a decision process and how their training went.

    Attributes:
        log_policy: log-probabilities of the actions, ``[num_seeds, *batch, S, A]``.
        objective: before each step and after the last, in reward units,
            ``[num_steps + 1, num_seeds, *batch]``.
    """

    log_policy: Float[Array, "seeds *batch S A"]
    objective: Float[Array, "steps seeds *batch"]


def fine_tune_mdp(
    mdp: MDP,
    log_ref: ArrayLike,
    beta: ArrayLike,
    divergence: Divergence | None = None,
    *,
    learning_rate: ArrayLike,
    num_steps: int,
    natural: bool = False,
    features: ArrayLike | None = None,
    width: int | None = None,
    key: PRNGKeyArray | None = None,
    num_seeds: int = 1,
    optimizer: Callable[[Any], optax.GradientTransformation] | None = None,
) -> MDPRun:
    """Trains policies of a decision process by exact gradients, all in one program.

    Ascends ``J(π) = E_π[Σ_t γ^t (r(s_t, a_t) − β·D(π(·|s_t), π_ref(·|s_t)))]`` from the start, by
    differentiation through the linear equation of a policy's values. The policy is a softmax of
    ``log π_ref + g(s, a)``: g is a table, linear in features of the state, or a network with one
    hidden layer of them, and 0 at first, so that training starts at the reference. The natural
    gradient of a table is the advantage ``G − E_π G`` with ``G = Q − β f′(π/π_ref)``; for reverse
    KL a plain step of η turns π into ``π^{1 − ηβ} (π_ref e^{Q/β})^{ηβ}``, so that ``η = 1/β`` is
    soft policy iteration. That of a network is a least-squares fit of the same advantage.

    Natural steps of a table that are too long do not settle: they end at a bad policy, or at NaN,
    which ``objective`` shows. Near the optimum it is enough that ``ηβ u f″(u)`` is below 2 at every
    action, with ``u = π/π_ref``: ``η < 2/β`` for reverse KL, but ``η < 2u/β`` for forward KL, whose
    steps must be the shorter the less an action is to be taken.

    Args:
        mdp: the decision process; a sparse one is made dense.
        log_ref: log-probabilities of the reference's actions, ``[*batch, S, A]``.
        beta: coefficient of the divergence, in reward units per nat, shape ``[*batch]``.
        divergence: reverse KL by default.
        learning_rate: what ``optimizer`` is called with, shape ``[*batch]``.
        num_steps: number of gradient steps.
        natural: whether gradients are divided by the Fisher matrix of the policy, whose states are
            weighed by how often they are met.
        features: of each state, ``[S, F]``; one-hot by default, which makes a table.
        width: of the hidden layer of a network on the features; without it, g is linear.
        key: a random key; needed for networks and for several seeds.
        num_seeds: how many policies per problem; the first starts at the reference, the others next
            to it.
        optimizer: makes an optax transformation from a learning rate; by default ``optax.adam``,
            and for natural gradients ``optax.sgd``, plain steps.

    Returns:
        The policies and their objective along the way.

    Raises:
        ValueError: shapes that do not fit, values out of range, a missing key, a state without any
            action that the reference takes and the process has.

    Not to be called under a trace. What the reference never does is not done.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import MDP
        >>> from kltarget.training import fine_tune_mdp
        >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> mdp = MDP(stay_or_go, jnp.array([[0.1, 0.0], [1.0, 1.0]]), 0.9)
        >>> even = jnp.log(jnp.full((2, 2), 0.5))
        >>> options = {"learning_rate": 1.0, "num_steps": 8, "natural": True}
        >>> run = fine_tune_mdp(mdp, even, 1.0, **options)
        >>> print([f"{j:.4f}" for j in run.objective[::4, 0]])
        ['9.1364', '9.2870', '9.2870']

    References:
        Kakade, "A Natural Policy Gradient", 2001. Cen, Cheng, Chen, Wei, Chi, "Fast Global
        Convergence of Natural Policy Gradient Methods with Entropy Regularization", 2020, arXiv
        2007.06558: with their step ``(1 − γ)η``, errors of Q shrink at least like
        ``(1 − (1 − γ)ηβ)^k`` if ``ηβ ≤ 1``. Near the optimum Q errs in second order alone, and
        those of ``log π`` shrink by ``1 − ηβ`` a step.
    """
    if not isinstance(mdp, MDP):
        raise TypeError(f"mdp must be an MDP, got {type(mdp).__name__}")
    mdp.require_discounted("fine_tune_mdp")
    positive("num_steps", num_steps)
    positive("num_seeds", num_seeds)
    positive_if_given("width", width)
    if key is None and (width is not None or num_seeds > 1):
        raise ValueError("key is needed for networks and several seeds: key=jax.random.key(0)")
    divergence = ReverseKL() if divergence is None else divergence
    dtype, cells = mdp.reward.dtype, mdp.reward.shape[-2:]
    reference = log_probs_in(dtype, log_ref=log_ref)
    coefficient = float_argument(beta, "beta").astype(dtype)
    rate = float_argument(learning_rate, "learning_rate").astype(dtype)
    if reference.ndim < 2 or reference.shape[-2:] != cells:
        raise ValueError(f"log_ref has shape {reference.shape}: its last axes must be {cells}")
    require_normalized(log_ref=reference)
    for name, x in (("beta", coefficient), ("learning_rate", rate)):
        raise_first(name, x, ~((x > 0) & (x < jnp.inf)), "must be above 0 and finite")
    shown = None if features is None else float_argument(features, "features").astype(dtype)
    if shown is not None and (shown.ndim != 2 or shown.shape[0] != cells[0]):
        raise ValueError(f"features has shape {shown.shape}: give [{cells[0]}, F], a row per state")
    shapes = mdp.batch_shape, reference.shape[:-2], coefficient.shape, rate.shape
    with worded(
        f"batch shapes {', '.join(map(str, shapes))} do not broadcast: of mdp, log_ref, beta and "
        "learning_rate"
    ):
        batch = jnp.broadcast_shapes(*shapes)
    absent = jnp.broadcast_to(mdp.reward, (*batch, *cells)) == -jnp.inf
    cut = absent & jnp.broadcast_to(reference > -jnp.inf, absent.shape)
    if not bool(jnp.isfinite(divergence.f(0.0)).all()):
        wanted = f"is -inf where log_ref is not, which is infinitely far in {divergence.title}"
        raise_first("reward", None, cut, wanted)
    lost = (absent | jnp.broadcast_to(reference == -jnp.inf, absent.shape)).all(-1)
    raise_first("log_ref", None, lost, "has no action that the state has")
    made_by = optimizer or (optax.sgd if natural else optax.adam)
    problems = _flattened(mdp, reference, coefficient, rate, batch)
    keys = jax.random.split(jax.random.key(0) if key is None else typed_key(key), num_seeds)
    program = (num_steps, natural, width, made_by)
    log_policy, objective = _train(problems, divergence, shown, keys, *program)
    steps = (num_steps + 1, num_seeds, *batch)
    return MDPRun(
        log_policy.reshape(num_seeds, *batch, *cells),
        jnp.moveaxis(objective, -1, 0).reshape(steps),
    )


class _Problem(NamedTuple):
    """Decision processes of one batch axis, which a transition that all share is without."""

    transition: Array
    reward: Array
    discount: Array
    start: Array
    log_ref: Array
    beta: Array
    rate: Array


def _flattened(
    mdp: MDP, log_ref: Array, beta: Array, rate: Array, batch: tuple[int, ...]
) -> _Problem:
    def flat(x: Array, own: int) -> Array:
        last = x.shape[x.ndim - own :]
        return jnp.broadcast_to(x, (*batch, *last)).reshape(math.prod(batch), *last)

    transition = mdp.dense_transition
    return _Problem(
        transition if transition.ndim == 3 else flat(transition, 3),
        flat(mdp.reward, 2),
        mdp.discount,
        flat(jnp.asarray(mdp.start), 1),
        flat(log_ref, 2),
        flat(beta, 0),
        flat(rate, 0),
    )


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _train(
    problems: _Problem,
    divergence: Divergence,
    features: Array | None,
    keys: Array,
    num_steps: int,
    natural: bool,
    width: int | None,
    optimizer: Any,
) -> tuple[Array, Array]:
    axes = jax.tree.map(lambda _: 0, problems)
    axes = axes._replace(discount=None, transition=0 if problems.transition.ndim == 4 else None)
    table = features is None and width is None

    def one(problem: _Problem, key: Array, first: Array) -> tuple[Array, Array]:
        shown = jnp.eye(len(problem.reward)) if features is None else features
        shown = shown.astype(problem.reward.dtype)
        start_key, key = jax.random.split(key)
        params = _start(start_key, shown.shape[-1], problem, width, first)
        policy = functools.partial(_policy, problem=problem, features=shown)
        method = optimizer(problem.rate)

        def loss(params: Any) -> tuple[Array, Array]:
            value = _objective(policy(params), problem, divergence)
            return -value, value

        def step(state: Any, _: None) -> tuple[Any, Array]:
            params, memory = state
            if natural:
                log_policy = policy(params)
                gain, met, value = _gain(log_policy, problem, divergence)
                if table:
                    slopes = {"out": -gain}
                else:
                    slopes = _fitted(policy, params, -gain, met, log_policy)
            else:
                slopes, value = jax.grad(loss, has_aux=True)(params)
            with jax.numpy_dtype_promotion("standard"):
                updates, memory = method.update(slopes, memory, params)
                return (optax.apply_updates(params, updates), memory), value

        with jax.numpy_dtype_promotion("standard"):
            memory = method.init(params)
        (params, _), values = lax.scan(step, (params, memory), length=num_steps)
        last = policy(params)
        end = _objective(last, problem, divergence)
        return last, jnp.concatenate([values, end[None]])

    rows = jax.vmap(one, in_axes=(axes, None, None))
    return jax.vmap(rows, in_axes=(None, 0, 0))(problems, keys, jnp.arange(len(keys)) == 0)


def _start(
    key: Array, size: int, problem: _Problem, width: int | None, first: Array
) -> dict[str, Array]:
    """Weights whose output is 0 in the first seed and small in the others."""
    into, out = jax.random.split(key)
    dtype, inner = problem.reward.dtype, size if width is None else width
    apart = 0.1 * jax.random.normal(out, (inner, problem.reward.shape[-1]), dtype)
    params = {"out": jnp.where(first, 0.0, apart)}
    if width is not None:
        params["in"] = jax.random.normal(into, (size, width), dtype)
        params["shift"] = jnp.zeros(width, dtype)
    return params


def _policy(params: dict[str, Array], problem: _Problem, features: Array) -> Array:
    hidden = features
    if "in" in params:
        shift = jnp.broadcast_to(params["shift"], (len(features), len(params["shift"])))
        hidden = jnp.tanh(jnp.matmul(features, params["in"], precision="highest") + shift)
    added = jnp.matmul(hidden, params["out"], precision="highest")
    present = (problem.log_ref > -jnp.inf) & (problem.reward > -jnp.inf)
    logits = jnp.where(present, problem.log_ref, 0.0) + added
    return jax.nn.log_softmax(jnp.where(present, logits, -jnp.inf))


def _values(log_policy: Array, problem: _Problem, divergence: Divergence) -> tuple[Array, Array]:
    """Regularised values of a policy, ``[S]``, and the matrix that they solve."""
    probs = jnp.exp(log_policy)
    on = log_policy > -jnp.inf
    paid = (probs * jnp.where(on, problem.reward, 0.0)).sum(-1)
    paid = paid - problem.beta * divergence(log_policy, problem.log_ref)
    moves = jnp.einsum("sa,sat->st", probs, problem.transition, precision="highest")
    matrix = jnp.eye(len(paid), dtype=paid.dtype) - problem.discount * moves
    return jnp.linalg.solve(matrix, paid), matrix


def _objective(log_policy: Array, problem: _Problem, divergence: Divergence) -> Array:
    return (problem.start * _values(log_policy, problem, divergence)[0]).sum()


def _gain(
    log_policy: Array, problem: _Problem, divergence: Divergence
) -> tuple[Array, Array, Array]:
    """Advantages of actions, how often states are met, and the objective."""
    values, matrix = _values(log_policy, problem, divergence)
    on = log_policy > -jnp.inf
    after = jnp.einsum("sat,t->sa", problem.transition, values, precision="highest")
    earned = jnp.where(on, problem.reward, 0.0) + problem.discount * after
    log_p, log_q = (jnp.where(on, x, 0.0) for x in (log_policy, problem.log_ref))
    gain = earned - problem.beta * divergence._slope(log_p, log_q)
    gain = jnp.where(on, gain, 0.0)
    gain = jnp.where(on, gain - (jnp.exp(log_policy) * gain).sum(-1, keepdims=True), 0.0)
    met = jnp.linalg.solve(matrix.T, problem.start)
    return gain, met, (problem.start * values).sum()


def _fitted(
    policy: Callable[[Any], Array], params: Any, wanted: Array, met: Array, log_policy: Array
) -> Any:
    """``F⁻¹∇`` as the least-squares fit of advantages by changes of the log-policy.

    Solved in the space of states and actions, which is smaller than that of most networks.
    """
    flat, unravel = ravel_pytree(params)
    on = log_policy > -jnp.inf

    def logs(x: Array) -> Array:
        return jnp.where(on, policy(unravel(x)), 0.0).reshape(-1)

    jacobian = jax.jacrev(logs)(flat)
    weight = jnp.sqrt(jnp.maximum(met, 0.0)[:, None] * jnp.exp(log_policy)).reshape(-1)
    scaled = weight[:, None] * jacobian
    gram = jnp.matmul(scaled, scaled.T, precision="highest")
    damping = _DAMPING * jnp.trace(gram) / min(scaled.shape)
    gram = gram + damping * jnp.eye(len(gram), dtype=gram.dtype)
    dual = jax.scipy.linalg.solve(gram, weight * wanted.reshape(-1), assume_a="pos")
    return unravel(jnp.matmul(scaled.T, dual, precision="highest"))
