"""A task over texts as one over a list: its modes."""

from __future__ import annotations

import numpy as np

from kltarget._core.numerics import double_precision
from kltarget.targets.automata._solve_on_automaton import solve_on_automaton
from kltarget.tasks import Task, TextTask


def over_modes(task: TextTask) -> Task:
    """The task whose outcomes are the modes, and a last one that is all wrong texts.

    Texts of equal reward keep their proportions under every divergence, so that the target of the
    list is that of the texts, merged: its masses of modes, its value and its divergence are the
    same. What equalises outcomes, such as MARA, equalises modes here and not texts.

    Args:
        task: a task over texts, whose reward is the same throughout each mode and throughout
            what is in none.

    Returns:
        A task of as many outcomes as modes and one more, in double precision.

    Raises:
        TypeError: no task over texts.
        ValueError: a mode of several rewards.

    Example:
        >>> import kltarget as kt
        >>> from kltarget import tasks
        >>> from kltarget.targets.automata import over_modes
        >>> task = over_modes(tasks.load_texts("no-repeats"))
        >>> target = kt.solve(task.objective(0.1))
        >>> print(task.labels[:3], f"{target.expected_reward:.4f}")
        ('no e', 'no t', 'no a') 0.9965
    """
    if not isinstance(task, TextTask):
        raise TypeError(f"task must be a TextTask, as tasks.load_texts gives, got {task!r}")
    with double_precision():
        # The reference's masses do not depend on β, nor on rewards: those of a wider type would
        # have masses sum to 1 within its rounding.
        reward = task.reward.astype(task.reference.log_transition.dtype)
        target = solve_on_automaton(task.reference, task.automaton, reward, 1.0, length=task.length)
        masses = np.exp(np.asarray(target.states.objective.log_ref))
    modes = [*task.mode_names, -1]
    rewards = []
    for mode in modes:
        of_mode = np.unique(task.reward[task.modes == mode])
        if of_mode.size > 1:
            raise ValueError(
                f"task has rewards {of_mode.tolist()} in mode {mode}: outcomes of a list have one "
                "reward each, so make it as many modes"
            )
        rewards.append(of_mode[0] if of_mode.size else 0.0)
    each = np.array([masses[task.modes == mode].sum() for mode in modes])
    with np.errstate(divide="ignore"):
        log_ref = np.log(each / each.sum())
    return Task(
        name=task.name,
        description=task.description,
        log_ref=log_ref,
        reward=np.array(rewards),
        labels=(*task.mode_names.values(), "wrong"),
        modes=np.array(modes),
    )
