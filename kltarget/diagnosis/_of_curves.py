"""A diagnosis from curves alone, where no rollouts were kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from kltarget._core.words import counted
from kltarget.diagnosis._action import Action
from kltarget.diagnosis._diagnosis import Diagnosis
from kltarget.diagnosis._grade import headline_of
from kltarget.diagnosis._say_curves import Curves, curve_statements
from kltarget.diagnosis._statement import Statement
from kltarget.recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd

_BINS = 12
_SHOWN = {"reward": "reward", "kl": "kl", "entropy": "token_entropy", "zero_std": "zero_std"}
_TARGETS = {"asked_for": "reward"}
_ROLLOUTS = {
    "trainer-state": ("log_completions", "true"),
    "verl": ("trainer.rollout_data_dir", "FOLDER"),
}
"""The setting that keeps rollouts, by what wrote the curves."""
_SHORT = {"kl_term", "kl_budget", "price", "asked_for", "token_entropy"}
WEAKEST = (
    "curves are means over prompts, the weakest evidence: they say neither which answers were kept "
    "nor where the target is"
)


def diagnosis_of_curves(
    frame: pd.DataFrame, recipe: Recipe | None, name: str, remarks: list[str]
) -> Diagnosis:
    """What curves say of a run, and of its recipe, whose β is known, if it was given."""
    curves = curves_of(frame)
    statements = curve_statements(curves, recipe)
    found = {
        _TARGETS[x.name]: x.value for x in statements if x.name in _TARGETS and x.value is not None
    }
    sizes = ("rollouts", "prompts", "groups", "group_size", "analysed")
    return Diagnosis(
        title=_title(curves, frame.attrs.get("format", "table")),
        recipe=recipe,
        recipe_name=name,
        beta=None if recipe is None else float(recipe.beta or 0.0),
        tier=0,
        size={**dict.fromkeys(sizes, 0), "steps": int(curves.step.size)},
        notes=(*remarks, *frame.attrs.get("notes", ())),
        verdict=_verdict(statements, recipe),
        statements=tuple(statements),
        history=_history(curves),
        featured=None,
        prompts={"prompt": []},
        cause="unknown",
        headline=headline_of("unknown", "unknown", "curves show no answers"),
        actions=_actions(frame.attrs.get("format", ""), recipe, statements),
        asymptotes=found,
    )


def _actions(format: str, recipe: Recipe | None, statements: list[Statement]) -> tuple[Action, ...]:
    """What would tell more, and what the curves ask for."""
    found = []
    if recipe is None:
        text = "say what the trainer does: --trainer, --config or --recipe (see kltarget recipe)"
        why = "without it there is no β that the curves could fit"
        found.append(Action(text, "--trainer", None, why))
    elif not recipe.beta or recipe.divergence is None:
        why = "nothing in the recipe holds the policy to a reference"
        text = "set a KL term and its β above 0; kltarget forecast, on samples of the base model, "
        found.append(Action(f"{text}says how far", "beta", None, why))
    elif any(x.name == "kl_term" and x.warning for x in statements):
        why = "no KL is logged although the recipe charges one"
        found.append(Action("see that the run loaded a reference", "", None, why))
    key, value = _ROLLOUTS.get(format, ("", None))
    how = f"set {key}: {value}" if key else "prompt, completion, reward and step of each"
    text = f"log rollouts: {how}"
    why = "they show which answers were kept, which curves cannot"
    return (*found, Action(text, key, value, why))


def is_of_curves(frame: pd.DataFrame) -> bool:
    """Whether a frame is what ``read_scalars`` returns."""
    return "kl_per" in frame.attrs and "completion" not in frame.columns


def curves_of(frame: pd.DataFrame) -> Curves:
    """The columns of ``read_scalars``, with the KL of whole answers."""
    columns = {name: frame[name].to_numpy(float) for name in frame.columns if name != "step"}
    of_tokens = frame.attrs.get("kl_per") != "answer"
    whole = not of_tokens or bool(np.isfinite(columns["length"]).any())
    if of_tokens and whole:
        columns["kl"] = columns["kl"] * columns["length"]
    return Curves(frame["step"].to_numpy(float), of_tokens=of_tokens, whole=whole, **columns)


def _history(curves: Curves) -> dict[str, list[float]]:
    """The curves in at most a dozen bins of steps."""
    parts = np.array_split(np.arange(curves.step.size), min(_BINS, curves.step.size))

    def means(name: str) -> list[float]:
        values = [getattr(curves, name)[part] for part in parts]
        known = [x[np.isfinite(x)] for x in values]
        return [float(x.mean()) if x.size else math.nan for x in known]

    history = {"step": [float(curves.step[part[0]]) for part in parts]}
    history["until"] = [float(curves.step[part[-1]]) for part in parts]
    return history | {shown: means(name) for name, shown in _SHOWN.items()}


def _title(curves: Curves, format: str) -> str:
    """The curves in a line."""
    first, last = int(curves.step[0]), int(curves.step[-1])
    steps = counted(curves.step.size, "logged step")
    which = f"{first:,} to {last:,}" if first < last else f"step {last:,}"
    return f"{format}: curves of {steps}, {which}, and no rollouts"


def _verdict(statements: list[Statement], recipe: Recipe | None) -> tuple[str, ...]:
    """The page in a few sentences; warnings first."""
    unheld = recipe is not None and (not recipe.beta or recipe.divergence is None)
    told = [x for x in statements if x.name in _SHORT or x.warning]
    told += [x for x in statements if x.name == "direction" and unheld]
    told = sorted(told, key=lambda x: not x.warning)
    return (*(x.text if x.warning else x.headline for x in told), WEAKEST)
