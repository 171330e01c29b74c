"""From what a caller gives a trainer to runs that can be compiled, and back."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kltarget._core.checks import mass_tolerance, positive, positive_if_given, typed_key, worded
from kltarget._core.numerics import as_float, working_dtype
from kltarget._core.pytrees import as_function
from kltarget.divergences import Divergence, ReverseKL
from kltarget.recipes import Recipe
from kltarget.spaces import Box
from kltarget.spaces._token_weights import token_weights
from kltarget.tasks import Preferences
from kltarget.training._advantages import all_groups
from kltarget.training._engine import Method, Options, Plan, Program, train
from kltarget.training._outcomes import Outcomes, Points, Sequences, outcomes_of
from kltarget.training._runs import History, Run, TextHistory, TextRun
from kltarget.training._texts import Texts

_CUT_OFF = 1e-4
"""Mass that a density may have outside its box."""
_OF_SEQUENCES = {"temperature": 1.0, "teacher": 0.0, "reference": "fixed", "reward_weights": None}
_OF_SEQUENCES |= {"kl_target": None, "entropy_target": None}
_LEAST_TAUGHT = -80.0
"""Log-probability below which a teacher's exclusion is no different."""


def to_target(
    policy: Any,
    params: Any,
    log_target: Any,
    divergence: Divergence,
    method: Method,
    learning_rate: Any,
    num_steps: int,
    key: Any,
    options: dict[str, Any],
    own: dict[str, Any] | None = None,
) -> Run:
    """Runs towards given distributions, which take the place of the reference.

    What each run has of its ``own`` besides, as arrays that lead with the batch axes.
    """
    chosen, outcomes = Options(**options), outcomes_of(policy)
    off_grid = functions(method, outcomes, params, log_target=log_target)
    log_target = distribution(outcomes, log_target, "log_target")
    reward = np.zeros(outcomes.num_outcomes, log_target.dtype)
    # The reference of what is shared is not looked at: every run has its target.
    shared, _ = shared_arrays(outcomes, params, reward, None, divergence, None)
    shared |= off_grid
    numbers = {"beta": 1.0, "reward_scale": 1.0, "learning_rate": learning_rate}
    problem = (outcomes, params, method, shared, numbers)
    return train_runs(*problem, num_steps, key, chosen, log_target=log_target, own=own)


def shared_arrays(
    outcomes: Outcomes,
    params: Any,
    reward: Any,
    log_ref: Any,
    divergence: Divergence | None,
    modes: Any,
) -> tuple[dict[str, Any], int]:
    """What all runs have in common, as arrays of the policy's dtype, and the number of modes."""
    table = outcomes.table(params)
    dtype = table.dtype
    possible = outcomes.possible()
    reward = over_outcomes(outcomes, reward, "reward", batched=False)
    bad = np.asarray(possible) & ~np.isfinite(np.asarray(reward, np.float64))
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(
            f"reward must be finite to be followed by gradients, got {np.asarray(reward)[at]} at "
            f"index {at}; forbid an outcome by a log_ref and a policy that cannot produce it"
        )
    if log_ref is not None:
        table = outcomes.split(distribution(outcomes, log_ref, "log_ref", batched=False), dtype)
    num_modes = 0
    if modes is not None:
        modes = jnp.asarray(modes)
        if modes.shape != reward.shape or not jnp.issubdtype(modes.dtype, jnp.integer):
            raise ValueError(
                f"modes must be integer labels of shape {reward.shape}, got {modes.dtype} of shape "
                f"{modes.shape}"
            )
        if not bool((modes >= 0).any()):
            raise ValueError("modes has no label of 0 or more: every sequence is in no mode")
        num_modes = int(modes.max()) + 1
        # A negative index would count from the end.
        modes = jnp.where(modes >= 0, modes, num_modes)
    measure = None
    if isinstance(outcomes.space, Box):
        measure = outcomes.space.log_weights().astype(dtype)
    shared = {
        "log_measure": measure,
        "reward": jnp.where(possible, reward, jnp.zeros_like(reward)).astype(dtype),
        "possible": possible,
        "token_log_ref": table,
        "log_ref": table.sum(-1),
        "divergence": divergence,
        "modes": modes,
    }
    return shared, num_modes


def functions(method: Method, outcomes: Outcomes, params: Any, **given: Any) -> dict[str, Any]:
    """What is asked about samples that are not among the outcomes, as functions of them."""
    if isinstance(outcomes, Sequences) or not method.looks_up:
        return {}
    known = {}
    for name, x in given.items():
        if name == "log_ref" and x is None:
            x = jax.tree_util.Partial(outcomes.policy.log_probs, params)
        elif not callable(x):
            raise ValueError(
                f"{name} must be a function of vectors [..., {outcomes.space.dim}], got an array "
                f"of shape {jnp.shape(x)}: samples are not points of the grid, and between them an "
                "array has neither values nor derivatives"
            )
        known["reward" if name == "reward" else "log_ref"] = as_function(x)
    return {"functions": known}


def train_runs(
    outcomes: Outcomes,
    params: Any,
    method: Method,
    shared: dict[str, Any],
    numbers: dict[str, Any],
    num_steps: int,
    key: Any,
    options: Options,
    *,
    num_modes: int = 0,
    log_target: Any = None,
    own: dict[str, Any] | None = None,
    recipe: Recipe | None = None,
    positive_beta: bool = False,
) -> Any:
    """Broadcasts the settings, trains one run per entry and shapes the results back."""
    positive("num_steps", num_steps)
    if key is None and method.batch_size is not None:
        raise ValueError("key is needed with batch_size: pass key=jax.random.key(0), for instance")
    dtype = shared["reward"].dtype
    runs = {name: as_float(x).astype(dtype) for name, x in numbers.items()}
    beta = np.asarray(runs["beta"])
    if not np.all(np.isfinite(beta) & ((beta > 0) if positive_beta else (beta >= 0))):
        raise ValueError(f"beta must be {'above 0' if positive_beta else '0 or more'} and finite")
    shapes = {name: x.shape for name, x in runs.items()}
    if key is not None:
        runs["key"] = typed_key(key)
        shapes["key"] = runs["key"].shape
    if log_target is not None:
        shapes["log_target"] = log_target.shape[:-1]
    for name, x in (own or {}).items():
        shapes[name] = x.shape if hasattr(x, "shape") else jax.tree.leaves(x)[0].shape[:1]
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    with worded(f"the batch axes of {listed} do not broadcast"):
        batch = jnp.broadcast_shapes(*shapes.values())
    given = runs | (own or {})
    leading = {name: len(shapes[name]) for name in given}
    if log_target is not None:
        given["log_ref"], leading["log_ref"] = log_target.astype(dtype), log_target.ndim - 1
    regularised = recipe is None or recipe.place != "none"
    runs = _of_each_run(given, tuple(leading.items()), batch, regularised)
    every = min(options.history_every or 100, num_steps)
    devices = tuple(jax.devices() if options.devices is None else options.devices)
    program = Program(outcomes, method, options.optimizer, num_modes, devices)
    final, history, step = train(Plan(program, params, shared, runs, num_steps, every, options))
    settings = {name: runs[name] for name in numbers}
    back, settings = (final, settings) if len(batch) == 1 else _shaped((final, settings), batch)
    kind = TextHistory if isinstance(outcomes, Texts) else History
    if not options.measure:
        names = [f.name for f in dataclasses.fields(kind) if f.name != "step"]
        history = dict.fromkeys(names, np.zeros((*batch, 0), dtype))
    series = {name: x.reshape(*batch, len(step)) for name, x in history.items()}
    given = {
        **settings,
        "policy": outcomes.policy,
        "recipe": recipe,
        "history": kind(step=step, **series),
    }
    if isinstance(outcomes, Texts):
        del back["log_probs"]
        return TextRun(**back, **given)
    return Run(**back, **given)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _of_each_run(
    given: dict[str, Any], leading: Any, batch: tuple[int, ...], regularised: bool
) -> dict[str, Any]:
    """What each run has of its own, ``[R, ...]``, and the scale of its gradients.

    Of what is given ``leading`` says how many axes of each are those of the batch.
    """
    runs = {}
    for name, axes in leading:

        def each(x: Array, axes: int = axes) -> Array:
            own = x.shape[axes:]
            return jnp.broadcast_to(x, (*batch, *own)).reshape(-1, *own)

        runs[name] = jax.tree.map(each, given[name])
    held = (runs["beta"] > 0) & regularised
    return {**runs, "scale": jnp.where(held, runs["beta"], jnp.ones_like(runs["beta"]))}


@functools.partial(jax.jit, static_argnums=1)
def _shaped(results: Any, batch: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), results)


def check_batch(recipe: Recipe, batch_size: int | None) -> None:
    """Raises unless samples can be dealt to groups of the size the recipe needs."""
    positive_if_given("batch_size", batch_size)
    if batch_size is None:
        return
    group = recipe.group_size or batch_size
    if batch_size % group:
        raise ValueError(f"the recipe's group_size={group} must divide batch_size={batch_size}")
    others = recipe.baseline == "leave-one-out" or recipe.normalize == "others-std"
    least = 1 + others + (recipe.ddof if recipe.normalize != "none" else 0)
    if group < least:
        raise ValueError(
            f"baseline={recipe.baseline!r} with normalize={recipe.normalize!r} needs groups of at "
            f"least {least} samples, got {group}"
        )


def check_vectors(outcomes: Outcomes, recipe: Recipe, gradient: str) -> None:
    """Raises unless the gradient and, of vectors, the recipe are ones that there are."""
    if gradient not in ("score", "pathwise"):
        raise ValueError(f"gradient must be one of 'score', 'pathwise', got {gradient!r}")
    if isinstance(outcomes, Points):
        if recipe.level == "token":
            raise ValueError(
                "level='token' of the recipe needs tokens, which vectors have not: 'sequence'"
            )
        for name, plain in _OF_SEQUENCES.items():
            if getattr(recipe, name) != plain:
                raise ValueError(
                    f"{name}={getattr(recipe, name)!r} of the recipe is for policies over "
                    f"sequences: vectors need {plain!r}"
                )
    if gradient == "score":
        return
    if isinstance(outcomes, Sequences) or not hasattr(outcomes.policy, "components"):
        raise ValueError(
            "gradient='pathwise' differentiates through samples: it needs a GaussianMixturePolicy, "
            f"got a {type(outcomes.policy).__name__}"
        )
    for name, plain in (("baseline", "none"), ("normalize", "none"), ("updates_per_batch", 1)):
        if getattr(recipe, name) != plain:
            raise ValueError(
                f"{name}={getattr(recipe, name)!r} of the recipe is for score functions: "
                f"gradient='pathwise' needs {plain!r}"
            )
    if recipe.weighted or (recipe.place != "none" and recipe.estimator == "sampler"):
        raise ValueError(
            f"estimator={recipe.estimator!r} of the recipe is made for its own derivative: "
            "gradient='pathwise' needs 'k1', 'k2', 'k3' or 'absolute'"
        )


def one_reward(recipe: Recipe, outcomes: Outcomes, reward: Any) -> tuple[Any, Array | None]:
    """The reward that is measured and, where each of several is normalised by itself, all."""
    if recipe.reward_weights is None:
        return reward, None
    number, size = len(recipe.reward_weights), outcomes.num_outcomes
    if callable(reward) or jnp.shape(reward) != (number, size):
        raise ValueError(
            f"reward must be of shape [{number}, {size}], a row for each of reward_weights="
            f"{recipe.reward_weights}, got "
            f"{'a function' if callable(reward) else jnp.shape(reward)}"
        )
    rewards = as_float(reward)
    total = jnp.asarray(recipe.reward_weights, rewards.dtype) @ rewards
    return total, None if recipe.combine == "sum" else rewards


def reference_of(
    recipe: Recipe, outcomes: Outcomes, params: Any, log_ref: Any, dtype: Any
) -> dict[str, Any]:
    """The reference as the recipe compares tokens with it, where that is not as it is given."""
    if recipe.reference in ("copied", "averaged", "lagged") and log_ref is not None:
        raise ValueError(
            f"log_ref cannot be given: with reference={recipe.reference!r} the reference is the "
            "policy itself as it was; let params start from it"
        )
    if isinstance(outcomes, Points):
        return {}
    if recipe.reference == "none":
        return {"token_log_ref": jnp.zeros_like(outcomes.table(params))}
    if recipe.temperature == 1:
        return {}
    if log_ref is None:
        return {"token_log_ref": outcomes.at(recipe.temperature).table(params)}
    given = distribution(outcomes, log_ref, "log_ref", batched=False)
    return {"token_log_ref": outcomes.split_at(given, recipe.temperature, dtype)}


def teacher_of(recipe: Recipe, outcomes: Outcomes, log_teacher: Any, dtype: Any) -> dict[str, Any]:
    """The teacher's log-probabilities of the tokens of every sequence."""
    if (log_teacher is None) == (recipe.teacher > 0):
        raise ValueError(
            "log_teacher is needed, the teacher's log-probabilities of every sequence: the recipe "
            f"has teacher={recipe.teacher:g}"
            if log_teacher is None
            else "log_teacher is given, but the recipe has no coefficient for it: set teacher=1.0"
        )
    if log_teacher is None or isinstance(outcomes, Points):
        return {}
    given = distribution(outcomes, log_teacher, "log_teacher", batched=False)
    table = outcomes.split_at(given, recipe.temperature, dtype)
    if recipe.teacher_direction == "reverse" and not bool(
        jnp.isfinite(jnp.where(outcomes.possible()[:, None], table, 0.0)).all()
    ):
        raise ValueError(
            "log_teacher must be finite wherever the policy can go: the reverse KL to a teacher "
            "that excludes what the policy samples is infinite"
        )
    known = {"token_log_teacher": jnp.maximum(table, _LEAST_TAUGHT)}
    if recipe.teacher_top_k is not None:
        known["asked"] = outcomes.likeliest(given, recipe.teacher_top_k).astype(dtype)
    return known


def of_tokens(recipe: Recipe, outcomes: Outcomes) -> tuple[str, ...]:
    """What a recipe asks about the tokens of an outcome, by name."""
    asked = []
    if recipe.eos == "cut" and isinstance(outcomes, Sequences) and outcomes.space.eos is not None:
        asked.append("trained")
    centred = recipe.kl_centre != "none" or recipe.ratio_level == "sequence"
    if recipe.length != "sum" or recipe.kl_length not in (None, "sum") or centred:
        asked.append("lengths")
    if recipe.kl_target is not None or recipe.entropy_target is not None:
        asked.append("num_tokens")
    return tuple(asked)


def of_recipe(
    recipe: Recipe, outcomes: Outcomes, reward: Array, rewards: Array | None, exactly: bool
) -> dict[str, Any]:
    """What a recipe's gradient looks up beside rewards and references."""
    extra: dict[str, Any] = {}
    lengths, asked = outcomes.lengths().astype(reward.dtype), of_tokens(recipe, outcomes)
    if "trained" in asked:
        # Of a policy over sequences, which points of a box are not.
        eos = getattr(outcomes.space, "eos", None)
        extra["trained"] = (outcomes.all() != eos).astype(reward.dtype)
        lengths = jnp.maximum(extra["trained"].sum(-1), 1)
    extra |= {name: lengths for name in ("lengths", "num_tokens") if name in asked}
    if rewards is not None:
        extra["rewards"] = rewards.T.astype(reward.dtype)
    if exactly and recipe.depends_on_groups:
        whole = recipe.reward_scale * np.asarray(reward, np.float64)
        if recipe.combine != "sum" and rewards is not None:
            whole = np.asarray(rewards, np.float64).T
        if recipe.reward_bounds:
            whole = np.clip(whole, *recipe.reward_bounds)
        groups = all_groups(recipe, whole, np.asarray(outcomes.possible()))
        extra["groups"] = jax.tree.map(jnp.asarray, groups)
    return extra


def comparisons(pairs: Preferences, shared: dict[str, Any]) -> dict[str, Array]:
    """Given pairs as winners, losers and the share of each such comparison in all of them."""
    possible = np.asarray(shared["possible"] & (shared["log_ref"] > -jnp.inf))
    wins = pairs.wins, pairs.losses
    ahead, behind = (pairs.first, pairs.second), (pairs.second, pairs.first)
    winner, loser = np.concatenate(ahead), np.concatenate(behind)
    weight = np.concatenate(wins)
    for k in (*winner, *loser):
        if not (k < possible.size and possible[k]):
            raise ValueError(
                f"pairs compare outcome {k}, which the policy or log_ref cannot produce"
            )
    counted = weight > 0
    share = weight[counted] / weight.sum()
    return {
        "winner": jnp.asarray(winner[counted], jnp.int32),
        "loser": jnp.asarray(loser[counted], jnp.int32),
        "weight": jnp.asarray(share, shared["reward"].dtype),
    }


def weights_of_tokens(
    outcomes: Sequences,
    weights: dict[str, Any],
    kl_gradient: str,
    divergence: Divergence | None,
    shared: dict[str, Any],
) -> bool:
    """Whether pairs are compared token by token; the weights are then among what is shared."""
    if kl_gradient not in ("both", "loser"):
        raise ValueError(f"kl_gradient must be one of 'both', 'loser', got {kl_gradient!r}")
    given = {name: x for name, x in weights.items() if x is not None}
    if not given:
        if kl_gradient != "both":
            raise ValueError("kl_gradient='loser' needs a kl_weight: give one")
        return False
    if not isinstance(divergence, (ReverseKL, type(None))):
        name = next(iter(given))
        raise ValueError(
            f"{name} is of the log ratios of tokens, which {divergence.title} does not add up: "
            "leave out divergence"
        )
    for name, by_default in (("ratio_weight", 1.0), ("kl_weight", 0.0)):
        weight = token_weights(outcomes.space, given.get(name, by_default), name)
        shared[name] = weight.astype(shared["reward"].dtype)
    return True


def over_outcomes(outcomes: Outcomes, x: Any, name: str, batched: bool = True) -> Array:
    """An array of floats over the policy's outcomes, or an error that names it."""
    array, size = outcomes.on_all(x, name), outcomes.num_outcomes
    if array.ndim == 0 or array.shape[-1] != size or (array.ndim > 1 > batched):
        raise ValueError(
            f"{name} has shape {array.shape}, but the policy has {outcomes.counted}: "
            f"it needs shape {'[..., ' if batched else '['}{size}]"
        )
    return array


def distribution(outcomes: Outcomes, x: Any, name: str, batched: bool = True) -> Array:
    """Log-probabilities of the policy's outcomes, or an error that names them."""
    x = outcomes.require_log_probs(over_outcomes(outcomes, x, name, batched), name)
    mass = np.asarray(jnp.exp(x.astype(working_dtype(x.dtype))).sum(-1))
    if isinstance(outcomes, Points):
        off = ~(np.abs(mass - 1) <= _CUT_OFF)
        if off.any():
            raise ValueError(
                f"{name} has a mass of {mass[off].flat[0]:.6g} on the policy's grid, not 1: widen "
                "the box or give it more points; of a density the log-weights of the points are "
                f"part of the log-masses, kltarget.normalize({name}) restricts it to the box"
            )
    elif not (np.abs(mass - 1) <= mass_tolerance(x.dtype)).all():
        raise ValueError(f"{name} is not normalised: pass kltarget.normalize({name})")
    return x
