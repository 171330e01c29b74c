"""What is verified: a task over sequences, and the policies that start at its reference.

Nothing here knows a target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kltarget._core.distances import total_variation
from kltarget.policies import GRUPolicy, TabularPolicy, TransformerPolicy
from kltarget.spaces import SequenceSpace
from kltarget.tasks import ProblemLike, Task, as_task
from kltarget.training import sft

NETWORKS: dict[str, Callable[[SequenceSpace], Any]] = {
    "gru": lambda space: GRUPolicy(space.vocab_size, space.length, width=16, eos=space.eos),
    "transformer": lambda space: TransformerPolicy(
        space.vocab_size, space.length, width=16, num_layers=1, num_heads=2, eos=space.eos
    ),
}
_IMITATION_STEPS = 300


def verified_task(
    problem: ProblemLike, space: SequenceSpace | None, modes: Any
) -> tuple[Task, SequenceSpace]:
    """The problem over sequences of tokens, with finite rewards, as trainers want them."""
    task = as_task(problem, space=space, modes=modes)
    space = task.space or SequenceSpace(task.num_outcomes, 1)
    # Other sequences than these are never sampled.
    possible = np.asarray(space.possible()) & np.isfinite(task.log_ref)
    if not np.isfinite(task.reward[possible]).all():
        raise ValueError(
            "reward must be finite wherever log_ref is: forbid a sequence by a log_ref of -inf"
        )
    log_ref = np.where(possible, task.log_ref, -np.inf)
    mass = np.logaddexp.reduce(log_ref)
    if abs(mass) > 1e-3:
        raise ValueError(
            f"log_ref has mass {np.exp(mass):.4g} on the sequences that are possible in the space: "
            "pass kltarget.normalize of it"
        )
    reward = np.where(possible, task.reward, 0.0)
    return dataclasses.replace(task, reward=reward, log_ref=log_ref - mass), space


def starting_policies(
    task: Task,
    space: SequenceSpace,
    policies: Sequence[str] | Mapping[str, tuple[Any, Any]],
    key: Any,
) -> tuple[dict[str, tuple[Any, Any]], tuple[str, ...]]:
    """The policies that are asked for, at the task's reference, and notes about them."""
    if isinstance(policies, Mapping):
        return dict(policies), ()
    chosen, notes = {}, []
    for kind, one_key in zip(policies, jax.random.split(key, len(policies)), strict=True):
        policy, params, said = _starting(kind, task, space, one_key)
        chosen[kind] = policy, params
        notes += said
    return chosen, tuple(notes)


def _starting(kind: str, task: Task, space: SequenceSpace, key: Any) -> tuple[Any, Any, list[str]]:
    """A policy of a kind at the reference, and a note if it has only imitated it."""
    log_ref = jnp.asarray(task.log_ref)
    if kind == "tabular":
        tabular = TabularPolicy(space.vocab_size, space.length, eos=space.eos)
        return tabular, tabular.from_conditionals(space.conditionals(log_ref)), []
    if kind not in NETWORKS:
        raise ValueError(
            f"policies has {kind!r}, which is none of 'tabular', "
            f"{', '.join(map(repr, NETWORKS))}: give policies of your own as a mapping from names "
            "to (policy, params)"
        )
    network = NETWORKS[kind](space)
    if task.params is not None and isinstance(task.policy, type(network)):
        return task.policy, task.params, []
    options: dict[str, Any] = {"num_steps": _IMITATION_STEPS, "history_every": None}
    imitated = sft(network, network.init(key=key), log_ref, learning_rate=0.02, **options)
    distance = total_variation(np.asarray(imitated.log_probs, np.float64), task.log_ref)
    note = f"the {kind} first learnt the reference, to a total variation of {distance:.2g}"
    return network, imitated.params, [note]
