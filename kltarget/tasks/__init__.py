"""Named problems shared by the tests, the notebooks, the benchmarks and the command line.

A task is a reference distribution and a reward over a finite, labelled set of outcomes, held as
plain NumPy float64 arrays; ``Task.objective`` hands it to the solver. Where outcomes are sequences,
the reference is a trained model, ``Task.policy`` with ``Task.params``, which training can start
from. ``deepscaler`` is no task but counts of a published run.

Example:
    >>> from kltarget import tasks
    >>> tasks.names()[:4]
    ('one-two', 'bimodal', 'words', 'words-3')
    >>> task = tasks.load("one-two")
    >>> task.labels, task.reward.tolist()
    (('1', '2', 'other'), [1.0, 1.0, 0.0])
"""

from typing import TYPE_CHECKING

from kltarget._core.rooms import loaded_on_use

if TYPE_CHECKING:
    from kltarget.tasks._as_task import ProblemLike, as_task
    from kltarget.tasks._chain_tasks import ChainTask, chain_names, load_chain
    from kltarget.tasks._deepscaler import deepscaler
    from kltarget.tasks._game_tasks import GameTask, game_names, load_game
    from kltarget.tasks._mdp_tasks import MDPTask, load_mdp, mdp_names
    from kltarget.tasks._preferences import Preferences
    from kltarget.tasks._read_preferences import read_preferences, read_preferences_by_prompt
    from kltarget.tasks._shipped import Listing, listing, load, names
    from kltarget.tasks._shipped_texts import load_texts, text_names
    from kltarget.tasks._tables import (
        Table,
        TableError,
        read_reference,
        read_references_by_prompt,
        read_table,
    )
    from kltarget.tasks._task import Labels, Task, one_mode_each, right_outcomes
    from kltarget.tasks._text_task import TextTask

__getattr__ = loaded_on_use(
    __name__,
    {
        "_as_task": ("ProblemLike", "as_task"),
        "_chain_tasks": ("ChainTask", "chain_names", "load_chain"),
        "_deepscaler": ("deepscaler",),
        "_game_tasks": ("GameTask", "game_names", "load_game"),
        "_mdp_tasks": ("MDPTask", "load_mdp", "mdp_names"),
        "_preferences": ("Preferences",),
        "_read_preferences": ("read_preferences", "read_preferences_by_prompt"),
        "_shipped": ("Listing", "listing", "load", "names"),
        "_shipped_texts": ("load_texts", "text_names"),
        "_tables": (
            "Table",
            "TableError",
            "read_reference",
            "read_references_by_prompt",
            "read_table",
        ),
        "_task": ("Labels", "Task", "one_mode_each", "right_outcomes"),
        "_text_task": ("TextTask",),
    },
)

__all__ = [
    "ChainTask",
    "GameTask",
    "Labels",
    "Listing",
    "MDPTask",
    "Preferences",
    "ProblemLike",
    "Table",
    "TableError",
    "Task",
    "TextTask",
    "as_task",
    "chain_names",
    "deepscaler",
    "game_names",
    "listing",
    "load",
    "load_chain",
    "load_game",
    "load_mdp",
    "load_texts",
    "mdp_names",
    "names",
    "one_mode_each",
    "read_preferences",
    "read_preferences_by_prompt",
    "read_reference",
    "read_references_by_prompt",
    "read_table",
    "right_outcomes",
    "text_names",
]


def __dir__() -> list[str]:
    return list(__all__)
