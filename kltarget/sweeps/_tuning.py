"""Policies fine-tuned at the points of a sweep, and how far from the targets they end."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kltarget._core.distances import normalised
from kltarget._core.numerics import double_precision
from kltarget.divergences import Divergence, ForwardKL, ReverseKL
from kltarget.modes._labels import mode_blocks
from kltarget.policies import TabularPolicy
from kltarget.recipes import Recipe
from kltarget.spaces import SequenceSpace
from kltarget.sweeps._program import distances, targets
from kltarget.sweeps._settings import Grid
from kltarget.tasks import Task
from kltarget.training import fine_tune

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Tuning:
    """How the policies of a sweep are trained.

    Attributes:
        grid: the sweep.
        policy: a policy over the problem's sequences.
        params: where each run starts.
        recipes: what trains towards each of the grid's divergences.
        options: what else ``kltarget.fine_tune`` is given.
    """

    grid: Grid
    policy: Any
    params: Any
    recipes: tuple[Recipe, ...]
    options: Mapping[str, Any]

    @staticmethod
    def of(grid: Grid, training: Mapping[str, Any]) -> Tuning:
        """Checks the options of training and fills in what they leave out."""
        options = {"history_every": None, **training}
        for name in ("learning_rate", "num_steps"):
            if name not in options:
                raise TypeError(f"{name} is needed to fine-tune")
        policy, params = options.pop("policy", None), options.pop("params", None)
        if (policy is None) != (params is None):
            raise TypeError("policy and params are needed both, or none of them")
        if policy is None:
            policy, params = _reference_policy(grid.problem)
        recipe = options.pop("recipe", None)
        recipes = tuple(_recipe(one) for one in grid.divergences)
        if recipe is not None:
            recipes = (recipe,) * len(grid.divergences)
        others = [one.slug for one in grid.divergences if not isinstance(one, ReverseKL)]
        if others and np.isfinite(grid.settings.get("threshold", np.inf)).any():
            raise ValueError(
                "threshold needs the reverse KL with fine_tune: what it does to the reference of "
                f"{others[0]} no policy can be trained with"
            )
        shape = _key_data(options.get("key")).shape[:-1]
        if len(shape) > 1:
            raise ValueError(f"key has batch shape {shape}: give one key or a batch [S] of seeds")
        return Tuning(grid, policy, params, recipes, options)

    def description(self) -> dict[str, Any]:
        """All that the numbers depend on, as JSON has it."""
        leaves = [np.asarray(x) for x in jax.tree.leaves(self.params)]
        return {
            "policy": repr(self.policy),
            "params": hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest(),
            "recipe": [repr(recipe) for recipe in self.recipes],
            **{
                name: _key_data(x).tolist() if name == "key" else getattr(x, "__name__", repr(x))
                for name, x in self.options.items()
            },
        }

    def train(self, d: int, columns: Mapping[str, np.ndarray]) -> Arrays:
        """What is measured of the policies trained at some rows, each ``[N]`` or ``[N, S]``."""
        problem, used = self.grid.problem, self.grid.used
        # Other processes have parts of their own to train.
        options = {"devices": jax.local_devices(), **self.options}
        # A program of its own would be made for a reward or a reference of each row.
        alike = used.isdisjoint({"threshold", "entropy_weight"})
        with double_precision():
            constants = tuple(map(jnp.asarray, (problem.reward, problem.log_ref)))
            found = targets(self.grid.divergences[d], *constants, dict(columns), used=used)
            reward, log_ref, beta, log_target = map(np.asarray, found)
        scale = columns["reward_scale"] if alike else np.ones_like(beta)
        settings = {"beta": beta, "reward_scale": scale}
        if _key_data(options.get("key")).ndim > 1:  # to be broadcast over the seeds
            settings = {name: x[:, None] for name, x in settings.items()}
        runs = []
        groups = columns["ref_temperature"] if alike else np.arange(beta.size)
        # Rows of equal temperature stand together: it varies less fast than β and scale.
        starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
        for rows in np.split(np.arange(beta.size), starts[1:]):
            own_ref = log_ref[rows[0]]
            own_reward = problem.reward if alike else reward[rows[0]]
            # Trainers want rewards that are finite where nothing can be sampled.
            run = fine_tune(
                self.policy,
                self.params,
                jnp.asarray(np.where(np.isneginf(own_ref), 0.0, own_reward)),
                self.recipes[d],
                log_ref=jnp.asarray(own_ref),
                **{name: jnp.asarray(x[rows]) for name, x in settings.items()},
                **options,
            )
            runs.append((np.asarray(run.log_probs), np.asarray(run.status)))
        log_probs, status = map(np.concatenate, zip(*runs, strict=True))
        with double_precision():
            reached = normalised(log_probs)
            aimed = log_target.reshape(beta.size, *(1,) * (reached.ndim - 2), -1)
            measured = distances(
                jnp.asarray(reached),
                jnp.asarray(np.broadcast_to(aimed, reached.shape)),
                constants[0],
                tuple(map(jnp.asarray, mode_blocks(problem.modes))),
            )
            arrays = {name: np.asarray(x) for name, x in measured.items()}
        return arrays | {"training_status": status}


def _reference_policy(problem: Task) -> tuple[Any, Any]:
    if problem.policy is not None and problem.params is not None:
        return problem.policy, problem.params
    space = problem.space or SequenceSpace(problem.num_outcomes, 1)
    policy = TabularPolicy(space.vocab_size, space.length, eos=space.eos)
    return policy, policy.from_conditionals(space.conditionals(jnp.asarray(problem.log_ref)))


def _recipe(divergence: Divergence) -> Recipe:
    if isinstance(divergence, ReverseKL):
        return Recipe(place="reward", estimator="k1")
    if isinstance(divergence, ForwardKL):
        return Recipe(place="loss", estimator="k3")
    raise ValueError(
        f"divergence {divergence.slug} is what no recipe trains towards: leave out fine_tune"
    )


def _key_data(key: Any) -> np.ndarray:
    if key is None:
        return np.zeros(0, np.uint32)
    key = jnp.asarray(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return np.asarray(key)
