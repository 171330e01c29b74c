"""What a sweep runs over: one problem in double precision, and divergences with their names."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from kltarget.divergences import Divergence
from kltarget.divergences._names import CLASSES, named
from kltarget.modes._labels import concrete_labels
from kltarget.objectives import Objective
from kltarget.spaces import SequenceSpace
from kltarget.tasks import Task, load, one_mode_each, right_outcomes


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A reward and a reference over `A` outcomes in modes; arrays are float64 `[A]`."""

    name: str
    reward: np.ndarray
    log_ref: np.ndarray
    modes: np.ndarray
    labels: Sequence[str] | None
    divergence: str | Divergence
    """What regularises it, unless something else is asked for."""
    space: SequenceSpace
    """The sequences that the outcomes are; of one token each, if nothing else is said."""
    policy: Any = None
    params: Any = None

    @property
    def mode_ids(self) -> np.ndarray:
        """The labels of the modes, in increasing order."""
        return np.unique(self.modes[self.modes >= 0])

    @property
    def mode_labels(self) -> list[str]:
        """Each mode by the name of its outcome that the reference likes best."""
        order = np.argsort(-self.log_ref, kind="stable")
        found, first = np.unique(self.modes[order], return_index=True)
        return [self.label(int(order[i])) for i in first[found >= 0]]

    def label(self, outcome: int) -> str:
        """The name of an outcome."""
        return str(outcome) if self.labels is None else self.labels[outcome]

    def digest(self) -> str:
        """Equal for equal numbers and modes alone."""
        parts = (self.reward, self.log_ref, self.modes)
        return hashlib.sha256(b"".join(x.tobytes() for x in parts)).hexdigest()


def problem_of(given: Any, modes: ArrayLike | None) -> Problem:
    """The problem in a task, a task's name or an objective without batch axes."""
    if isinstance(given, str):
        given = load(given)
    if isinstance(given, Task):
        found = Problem(
            given.name,
            given.reward,
            given.log_ref,
            given.modes,
            given.labels,
            "reverse-kl",
            given.space or SequenceSpace(given.num_outcomes, 1),
            given.policy,
            given.params,
        )
    elif isinstance(given, Objective):
        found = _of_objective(given)
    else:
        raise TypeError(
            "problem must be a kltarget.tasks.Task, the name of one or a kltarget.Objective, "
            f"got {type(given).__name__}"
        )
    labels = found.modes if modes is None else modes
    return dataclasses.replace(
        found, modes=concrete_labels(labels, found.reward.size).astype(np.int32)
    )


def _of_objective(objective: Objective) -> Problem:
    if objective.measure:
        raise ValueError(
            "problem has a reference that is no distribution, as kltarget.mara makes them: give "
            "the objective from before and threshold="
        )
    reward, log_ref = (np.asarray(x, np.float64) for x in (objective.reward, objective.log_ref))
    if reward.ndim > 1 or log_ref.ndim > 1:
        raise ValueError(
            f"problem has batch shape {objective.batch_shape}: give one reward [A] and one "
            "reference [A], and the settings to sweep over as beta=, reward_scale= and so on"
        )
    # The masses of a narrower type sum to 1 in that type only.
    log_ref = log_ref - np.logaddexp.reduce(log_ref)
    modes = one_mode_each(right_outcomes(reward))
    space = SequenceSpace(reward.size, 1)
    return Problem("objective", reward, log_ref, modes, None, objective.divergence, space)


def named_divergences(given: Any) -> list[tuple[str, Divergence]]:
    """Divergences, one or a sequence of names or instances, with the names of their coordinate."""
    several = given if isinstance(given, (list, tuple)) else [given]
    if not several:
        raise ValueError("divergence has no entries")
    found = []
    for one in several:
        if isinstance(one, str):
            try:
                found.append((one, named(one)))
            except ValueError as error:
                raise ValueError(f"divergence: {error}") from None
        elif isinstance(one, Divergence):
            found.append((_name_of(one), one))
        else:
            raise TypeError(
                "divergence must be a kltarget.Divergence or a name such as 'forward-kl', "
                f"got {one!r}"
            )
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise ValueError(f"divergence names one twice: {', '.join(names)}")
    return found


def _name_of(divergence: Divergence) -> str:
    parameters = jax.tree.leaves(divergence)
    if any(np.ndim(x) for x in parameters) or len(parameters) > 1:
        raise ValueError(f"divergence has several parameters, {divergence}: give one for each")
    names = {cls: name for name, cls in CLASSES.items()}
    name = names.get(type(divergence).__name__, divergence.name)
    return ":".join([name, *map(_shortest, map(float, parameters))])


def _shortest(x: float) -> str:
    short = f"{x:g}"
    return short if float(short) == x else repr(x)
