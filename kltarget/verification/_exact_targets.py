"""How far a trained policy is from each target, and what the rest of the way is made of.

Everything is summed in double precision, whatever the runs were trained in.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kltarget import targets
from kltarget._core.numerics import double_precision
from kltarget.divergences import Divergence, ForwardKL, ReverseKL
from kltarget.objectives import Objective
from kltarget.recipes import Recipe
from kltarget.spaces import SequenceSpace
from kltarget.training import estimators
from kltarget.training._outcomes import token_table

TARGETS = {
    "sequence_reverse": "sequence reverse KL",
    "sequence_forward": "sequence forward KL",
    "token_reverse": "token-local reverse KL",
    "token_forward": "token-local forward KL",
}
"""The four targets, by the names that files have for them."""

_NATURAL_STEPS = 100


def own_target(recipe: Recipe) -> str | None:
    """At which target a recipe's expected gradient vanishes: of ``TARGETS``, or its term's own."""
    if recipe.divergence is None:
        return None
    return f"{'token' if recipe.per_token else 'sequence'}_{_family(recipe)}"


def sequence_target(recipe: Recipe) -> str:
    """The target of a recipe's divergence over whole sequences; of none, the reverse KL's."""
    return "sequence_reverse" if recipe.divergence is None else f"sequence_{_family(recipe)}"


def title_of(target: str) -> str:
    """A target in words."""
    level, _, family = target.partition("_")
    own = f"{'token-local' if level == 'token' else level} {family}"
    return TARGETS.get(target, own)


def _family(recipe: Recipe) -> str:
    return recipe.estimator_name if recipe.aim == "other" else recipe.aim


def exact_targets(
    space: SequenceSpace,
    reward: np.ndarray,
    log_ref: Any,
    beta: Any,
    scale: Any,
    recipes: Sequence[Recipe] = (),
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Log-probabilities ``[B, S, V**L]`` and values ``[B, S]`` of all targets, in float64.

    The four of ``TARGETS``, and the two of each term among the recipes that has one of its own.
    """
    families: dict[str, Divergence] = {"reverse": ReverseKL(), "forward": ForwardKL()}
    for recipe in recipes:
        if recipe.aim == "other" and recipe.divergence is not None:
            families[_family(recipe)] = recipe.divergence
    with double_precision():
        beta = jnp.asarray(beta, jnp.float64)[:, None]
        log_ref = jnp.asarray(log_ref)
        scaled = jnp.asarray(np.asarray(scale, np.float64)[:, None] * reward)
        solved = {}
        for name, divergence in families.items():
            solved[f"sequence_{name}"] = targets.solve(Objective(scaled, log_ref, beta, divergence))
            solved[f"token_{name}"] = targets.token_local_target(
                space, scaled, log_ref, beta, divergence
            )
        order = [*TARGETS, *(name for name in solved if name not in TARGETS)]
        found = {name: solved[name].raise_if_failed() for name in order}
        return {
            name: (np.asarray(x.log_probs), np.asarray(x.objective.value(x.log_probs)))
            for name, x in found.items()
        }


def followable(
    policy: Any,
    space: SequenceSpace,
    recipe: Recipe,
    params: Any,
    log_probs: np.ndarray,
    log_ref: np.ndarray,
    reward: np.ndarray,
    beta: float,
) -> float:
    """The share of the remaining pull that a run's parameters could still follow.

    The recipe pulls at the logits of every prefix, with a strength ``δ(s, a)`` that vanishes
    everywhere at its target alone. In the norm ``Σ π(s) π(a|s) δ²``, which to leading order is
    ``2β²`` times the divergence that is left, δ splits by Pythagoras into what some change of the
    parameters produces and a rest that none does. A natural-gradient step is that projection; here
    conjugate gradients take it, and the few steps they are given bound the share from below. Near
    1 training was not finished, at 0 the policy's family ends here.
    """
    with double_precision():
        numbers = (jnp.asarray(x, jnp.float64) for x in (log_probs, log_ref, reward, beta))
        pull, masses = map(np.asarray, _pull(space, recipe, *numbers))
    there = masses > 0
    size = np.sqrt((pull[there] ** 2 / masses[there]).sum())
    if not size > 0 or not np.isfinite(size):
        return float("nan")
    dtype = jax.tree.leaves(params)[0].dtype
    flat = (jnp.asarray(x, dtype) for x in (pull / size, masses))
    return float(np.clip(_projected(policy, space, params, *flat), 0.0, 1.0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pull(
    space: SequenceSpace,
    recipe: Recipe,
    log_probs: Array,
    log_ref: Array,
    reward: Array,
    beta: Array,
) -> tuple[Array, Array]:
    """The followed gradient in a logit per prefix and token, and the mass of each, flat."""
    table_ref = token_table(space, space.conditionals(log_ref))

    def ascent(logits: tuple[Array, ...]) -> Array:
        table = token_table(space, tuple(jax.nn.log_softmax(x, axis=-1) for x in logits))
        weights = lax.stop_gradient(jnp.exp(table.sum(-1)))
        return estimators.surrogate(recipe, table, table_ref, reward, beta, weights).sum()

    gradient = jax.grad(ascent)(space.conditionals(log_probs))
    masses = space.prefix_log_masses(log_probs)[1:]
    flat = [jnp.concatenate([x.ravel() for x in levels]) for levels in (gradient, masses)]
    return flat[0], jnp.exp(flat[1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _projected(policy: Any, space: SequenceSpace, params: Any, pull: Array, masses: Array) -> Array:
    """``gᵀ F⁺ g`` with the gradient g in the parameters and their Fisher matrix F."""

    def conditionals(params: Any) -> Array:
        flat = jnp.concatenate([x.ravel() for x in policy.conditionals(params, space)])
        return jnp.where(jnp.isneginf(flat), jnp.zeros_like(flat), flat)

    # What the policy computes at its parameters, every step finds ready.
    _, forth = jax.linearize(conditionals, params)
    back = jax.linear_transpose(forth, params)
    (gradient,) = back(pull)

    def fisher(direction: Any) -> Any:
        return back(masses * forth(direction))[0]

    with jax.numpy_dtype_promotion("standard"):
        step, _ = jax.scipy.sparse.linalg.cg(fisher, gradient, maxiter=_NATURAL_STEPS, tol=1e-4)
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, gradient, step))
