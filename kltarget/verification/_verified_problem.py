"""What is verified: a space of sequences, a reward, a reference, and the policies that start there.

Nothing here knows a target.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kltarget.policies import GRUPolicy, TabularPolicy, TransformerPolicy
from kltarget.spaces import SequenceSpace
from kltarget.tasks import Task, load, one_mode_each, right_outcomes
from kltarget.training import fit, sft

NETWORKS: dict[str, Callable[[SequenceSpace], Any]] = {
    "gru": lambda space: GRUPolicy(space.vocab_size, space.length, width=16, eos=space.eos),
    "transformer": lambda space: TransformerPolicy(
        space.vocab_size, space.length, width=16, num_layers=1, num_heads=2, eos=space.eos
    ),
}
_IMITATION_STEPS = 300


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One reference and one reward over all sequences of a space; arrays are float64 `[V**L]`."""

    name: str
    description: str
    space: SequenceSpace
    reward: np.ndarray
    log_ref: np.ndarray
    modes: np.ndarray
    label: Callable[[int], str]
    policies: dict[str, tuple[Any, Any]]
    notes: tuple[str, ...]


def trained_words(key: Any) -> tuple[Task, SequenceSpace, Any, Any, str]:
    """The words of three letters in the shipped list, and a GRU that has read some of them.

    Training is cut short on purpose: fine-tuning has something left to do only where the reference
    still spells words wrong.
    """
    data = importlib.resources.files("kltarget") / "data" / "words.csv"
    rows = list(csv.DictReader(data.read_text(encoding="utf-8").splitlines()))
    counts = {row["word"]: int(row["count"]) for row in rows if len(row["word"]) == 3}
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = np.array([[letters.index(c) for c in word] for word in counts])
    text = np.repeat(tokens, list(counts.values()), axis=0)

    space = SequenceSpace(len(letters), 3)
    policy = NETWORKS["gru"](space)
    trained = fit(policy, text, key=key, num_steps=100, holdout=0.1)
    reward = np.zeros(space.num_sequences)
    reward[np.asarray(space.index(tokens))] = 1.0
    note = (
        f"reference: a GRU of width {policy.width} trained on {len(text):,} occurrences; "
        f"held-out log-likelihood {trained.held_out_log_likelihood:.2f} nats a word "
        f"(untrained {trained.held_out_history[0]:.2f})"
    )
    task = Task(
        name="three-letter words",
        description=f"strings over a–z, right are the {len(counts)} of the shipped word list",
        log_ref=_log_probs(policy, trained.params, space),
        reward=reward,
        labels=tuple(a + b + c for a in letters for b in letters for c in letters),
        modes=one_mode_each(reward > 0),
    )
    return task, space, policy, trained.params, note


def problem_of(
    task: Any,
    *,
    space: SequenceSpace | None,
    reward: Any,
    log_ref: Any,
    modes: Any,
    policies: Sequence[str] | Mapping[str, tuple[Any, Any]],
    key: Any,
) -> Problem:
    """Gathers a task's fields, or the explicit ones, and makes the policies that are asked for."""
    given = {"space": space, "reward": reward, "log_ref": log_ref, "modes": modes}
    explicit = [name for name, value in given.items() if value is not None]
    words_key, policy_key = jax.random.split(key)
    notes: list[str] = []
    own, own_params = None, None
    if task is None and explicit:
        missing = [name for name in ("space", "reward", "log_ref") if given[name] is None]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} is missing: give space, reward and log_ref together, "
                "or a task"
            )
        name, description, labels = "problem", "given by its arrays", None
    elif explicit:
        raise ValueError(f"give a task or {', '.join(explicit)}, not both")
    else:
        if task is None:
            task, space, own, own_params, note = trained_words(words_key)
            notes.append(note)
        else:
            task = load(task) if isinstance(task, str) else task
            space = getattr(task, "space", None)
            own, own_params = getattr(task, "policy", None), getattr(task, "params", None)
            if space is None:
                space = SequenceSpace(task.num_outcomes, 1)
                notes.append("each outcome is taken as a sequence of one token")
        name, description, labels = task.name, task.description, task.labels
        reward, log_ref, modes = task.reward, task.log_ref, task.modes
    assert space is not None
    reward, log_ref = (np.asarray(x, np.float64) for x in (reward, log_ref))
    for label, x in (("reward", reward), ("log_ref", log_ref)):
        if x.shape != (space.num_sequences,):
            raise ValueError(
                f"{label} has shape {x.shape}, but the space has {space.num_sequences} sequences"
            )
    if modes is None:
        modes = one_mode_each(right_outcomes(reward))
    # Other sequences than these are never sampled, and trainers want finite numbers.
    possible = np.asarray(space.possible()) & np.isfinite(log_ref)
    if not np.isfinite(reward[possible]).all():
        raise ValueError(
            "reward must be finite wherever log_ref is: forbid a sequence by a log_ref of -inf"
        )
    log_ref = np.where(possible, log_ref, -np.inf)
    mass = np.logaddexp.reduce(log_ref)
    if abs(mass) > 1e-3:
        raise ValueError(f"log_ref has mass {np.exp(mass):.4g}: pass kltarget.normalize of it")
    log_ref = log_ref - mass

    if isinstance(policies, Mapping):
        chosen = dict(policies)
    else:
        chosen = {}
        for kind, one_key in zip(
            policies, jax.random.split(policy_key, len(policies)), strict=True
        ):
            chosen[kind] = _policy(kind, space, log_ref, own, own_params, one_key, notes)
    return Problem(
        name=name,
        description=description,
        space=space,
        reward=np.where(possible, reward, 0.0),
        log_ref=log_ref,
        modes=np.asarray(modes),
        label=_labels(space, labels),
        policies=chosen,
        notes=tuple(notes),
    )


def _policy(
    kind: str,
    space: SequenceSpace,
    log_ref: np.ndarray,
    own: Any,
    own_params: Any,
    key: Any,
    notes: list[str],
) -> tuple[Any, Any]:
    """A policy of a kind at the reference: exactly, where it can be, or after imitating it."""
    if kind == "tabular":
        tabular = TabularPolicy(space.vocab_size, space.length, eos=space.eos)
        return tabular, tabular.from_conditionals(space.conditionals(jnp.asarray(log_ref)))
    if kind not in NETWORKS:
        raise ValueError(
            f"policies has {kind!r}, which is none of 'tabular', "
            f"{', '.join(map(repr, NETWORKS))}: give policies of your own as a mapping from names "
            "to (policy, params)"
        )
    network = NETWORKS[kind](space)
    if own is not None and own_params is not None and isinstance(own, type(network)):
        return own, own_params
    params = network.init(key=key)
    imitated = sft(
        network,
        params,
        jnp.asarray(log_ref),
        learning_rate=0.02,
        num_steps=_IMITATION_STEPS,
        history_every=None,
    )
    far = np.abs(np.exp(np.asarray(imitated.log_probs, np.float64)) - np.exp(log_ref)).sum() / 2
    notes.append(f"the {kind} first learnt the reference, to a total variation of {far:.2g}")
    return network, imitated.params


def _log_probs(policy: Any, params: Any, space: SequenceSpace) -> np.ndarray:
    x = np.asarray(space.joint(policy.conditionals(params, space)), np.float64)
    return x - np.logaddexp.reduce(x)


def _labels(space: SequenceSpace, labels: Sequence[str] | None) -> Callable[[int], str]:
    if labels is not None:
        return lambda i: labels[i]

    def digits(i: int) -> str:
        return " ".join(map(str, np.unravel_index(i, space.sizes)))

    return digits
