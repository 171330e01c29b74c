"""From what a caller gives a trainer to runs that can be compiled, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from kltarget._numerics import as_float, working_dtype
from kltarget.divergences import Divergence
from kltarget.objectives import mass_tolerance
from kltarget.spaces._tree import SequenceSpace, counted
from kltarget.training._advantages import all_groups, needs_groups
from kltarget.training._engine import (
    Method,
    Optimizer,
    Plan,
    Program,
    sequence_space,
    token_table,
    train,
)
from kltarget.training.policies import Policy
from kltarget.training.recipes import Recipe
from kltarget.training.runs import History, Run


@dataclasses.dataclass(frozen=True)
class Options:
    """What every trainer takes, as documented in :func:`kltarget.training.fine_tune`."""

    optimizer: Optimizer = optax.adam
    history_every: int | None = 100
    tol: float = 1e-5
    chunk_runs: int | None = None
    devices: Any = None
    progress: bool = False

    def __post_init__(self) -> None:
        if not callable(self.optimizer):
            raise TypeError(
                "optimizer must be a function of a learning rate, such as optax.adam, got "
                f"{type(self.optimizer).__name__}"
            )
        positive("history_every", self.history_every)
        positive("chunk_runs", self.chunk_runs)
        if not self.tol >= 0:
            raise ValueError(f"tol must be 0 or more, got {self.tol}")
        if self.devices is not None and not len(self.devices):
            raise ValueError("devices must name at least one device, or be None for all")


def to_target(
    policy: Policy,
    params: Any,
    log_target: Any,
    divergence: Divergence,
    method: Method,
    learning_rate: Any,
    num_steps: int,
    key: Any,
    options: Options,
) -> Run:
    """Runs towards given distributions, which take the place of the reference."""
    space = sequence_space(policy)
    log_target = distribution(space, log_target, "log_target")
    reward = jnp.zeros(space.num_sequences, log_target.dtype)
    # The reference of what is shared is not looked at: every run has its target.
    shared, _ = shared_arrays(policy, params, space, reward, None, divergence, None)
    return train_runs(
        policy,
        params,
        method,
        shared,
        {"beta": 1.0, "reward_scale": 1.0, "learning_rate": learning_rate},
        space=space,
        key=key,
        num_steps=num_steps,
        log_target=log_target,
        options=options,
    )


def shared_arrays(
    policy: Policy,
    params: Any,
    space: SequenceSpace,
    reward: Any,
    log_ref: Any,
    divergence: Divergence | None,
    modes: Any,
) -> tuple[dict[str, Any], int]:
    """What all runs have in common, as arrays of the policy's dtype, and the number of modes."""
    conditionals = policy.conditionals(params, space)
    dtype = conditionals[0].dtype
    possible = space.possible()
    reward = over_sequences(space, reward, "reward", batched=False)
    bad = np.asarray(possible & ~jnp.isfinite(reward))
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(
            f"reward must be finite to be followed by gradients, got {np.asarray(reward)[at]} at "
            f"index {at}; forbid a sequence by a log_ref and a policy that cannot produce it"
        )
    if log_ref is not None:
        log_ref = distribution(space, log_ref, "log_ref", batched=False)
        conditionals = tuple(x.astype(dtype) for x in space.conditionals(log_ref))
    table = token_table(space, conditionals)
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
    shared = {
        "reward": jnp.where(possible, reward, jnp.zeros_like(reward)).astype(dtype),
        "possible": possible,
        "token_log_ref": table,
        "log_ref": table.sum(-1),
        "divergence": divergence,
        "modes": modes,
    }
    return shared, num_modes


def train_runs(
    policy: Policy,
    params: Any,
    method: Method,
    shared: dict[str, Any],
    numbers: dict[str, Any],
    *,
    space: SequenceSpace,
    key: Any,
    num_steps: int,
    options: Options,
    num_modes: int = 0,
    log_target: Any = None,
    recipe: Recipe | None = None,
    positive_beta: bool = False,
) -> Run:
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
        runs["key"] = _typed(key)
        shapes["key"] = runs["key"].shape
    if log_target is not None:
        shapes["log_target"] = log_target.shape[:-1]
    try:
        batch = jnp.broadcast_shapes(*shapes.values())
    except ValueError:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"the batch axes of {listed} do not broadcast") from None
    runs = {name: jnp.broadcast_to(x, batch).reshape(-1) for name, x in runs.items()}
    if log_target is not None:
        wide = jnp.broadcast_to(log_target.astype(dtype), (*batch, space.num_sequences))
        runs["log_ref"] = wide.reshape(-1, space.num_sequences)
    regularised = (runs["beta"] > 0) & (recipe is None or recipe.place != "none")
    runs["scale"] = jnp.where(regularised, runs["beta"], jnp.ones_like(runs["beta"]))
    program = Program(
        policy=policy,
        space=space,
        method=method,
        optimizer=options.optimizer,
        steps=min(options.history_every or 100, num_steps),
        num_modes=num_modes,
        devices=tuple(jax.devices() if options.devices is None else options.devices),
    )
    plan = Plan(
        program=program,
        params=params,
        shared=shared,
        runs=runs,
        num_steps=num_steps,
        tol=options.tol,
        chunk_runs=options.chunk_runs,
        progress=options.progress,
        only_last=options.history_every is None,
    )
    final, history, step = train(plan)
    back = jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), final)
    series = {name: x.reshape(*batch, -1) for name, x in history.items()}
    settings = ("beta", "reward_scale", "learning_rate")
    return Run(
        **back,
        **{name: runs[name].reshape(batch) for name in settings},
        history=History(step=step, **series),
        policy=policy,
        recipe=recipe,
    )


def check_batch(recipe: Recipe, batch_size: int | None) -> None:
    """Raises unless samples can be dealt to groups of the size the recipe needs."""
    positive("batch_size", batch_size)
    if batch_size is None:
        return
    group = recipe.group_size or batch_size
    if batch_size % group:
        raise ValueError(f"the recipe's group_size={group} must divide batch_size={batch_size}")
    others = recipe.baseline == "leave-one-out" or recipe.normalise == "others-std"
    least = 1 + others + (recipe.ddof if recipe.normalise != "none" else 0)
    if group < least:
        raise ValueError(
            f"baseline={recipe.baseline!r} with normalise={recipe.normalise!r} needs groups of at "
            f"least {least} samples, got {group}"
        )


def of_recipe(recipe: Recipe, space: SequenceSpace, reward: Array, exactly: bool) -> dict[str, Any]:
    """What a recipe's gradient looks up beside rewards and references."""
    extra: dict[str, Any] = {}
    if recipe.length != "sum" or recipe.kl_length not in (None, "sum"):
        extra["lengths"] = space.lengths().astype(reward.dtype)
    if exactly and needs_groups(recipe):
        whole = recipe.reward_scale * np.asarray(reward, np.float64)
        if recipe.reward_clip is not None:
            whole = np.clip(whole, -recipe.reward_clip, recipe.reward_clip)
        groups = all_groups(recipe, whole, np.asarray(space.possible()))
        extra["groups"] = jax.tree.map(jnp.asarray, groups)
    return extra


def positive(name: str, value: int | None, least: int = 1) -> int | None:
    """``value``, or an error that names it if it is neither None nor large enough."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if value is not None and (not whole or value < least):
        raise ValueError(f"{name} must be an integer of {least} or more, got {value!r}")
    return value


def over_sequences(space: SequenceSpace, x: Any, name: str, batched: bool = True) -> Array:
    """An array of floats over the policy's sequences, or an error that names it."""
    array = as_float(x)
    if array.ndim == 0 or array.shape[-1] != space.num_sequences or (array.ndim > 1 > batched):
        raise ValueError(
            f"{name} has shape {array.shape}, but the policy has {counted(space)} sequences: "
            f"it needs shape {'[..., ' if batched else '['}{space.num_sequences}]"
        )
    return array


def distribution(space: SequenceSpace, x: Any, name: str, batched: bool = True) -> Array:
    """Log-probabilities over the policy's sequences, or an error that names them."""
    x = space.require_log_probs(over_sequences(space, x, name, batched), name)
    off = np.asarray(jnp.abs(jnp.exp(x.astype(working_dtype(x.dtype))).sum(-1) - 1))
    if not (off <= mass_tolerance(x.dtype)).all():
        raise ValueError(f"{name} is not normalised: pass kltarget.normalize({name})")
    return x


def _typed(key: Any) -> Array:
    key = jnp.asarray(key)
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
