"""A diagnosis from curves alone, where no rollouts were kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from kltarget._core.words import counted
from kltarget.diagnosis._diagnosis import Diagnosis
from kltarget.diagnosis._say_curves import Curves, curve_statements
from kltarget.diagnosis._statement import Statement
from kltarget.recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd

_BINS = 12
_SHOWN = {"reward": "reward", "kl": "kl", "entropy": "token_entropy", "zero_std": "zero_std"}
_SHORT = {"kl_term", "kl_budget", "price", "asked_for", "token_entropy"}
WEAKEST = (
    "curves are means over prompts, the weakest evidence: they say neither which answers were kept "
    "nor where the target is"
)


def diagnosis_of_curves(
    frame: pd.DataFrame, recipe: Recipe, name: str, remarks: list[str]
) -> Diagnosis:
    """What curves say of a run and its recipe, whose β is known."""
    curves = curves_of(frame)
    statements = curve_statements(curves, recipe)
    sizes = ("rollouts", "prompts", "groups", "group_size", "analysed")
    return Diagnosis(
        title=_title(curves, frame.attrs.get("format", "table")),
        recipe=recipe,
        recipe_name=name,
        beta=float(recipe.beta or 0.0),
        tier=0,
        size={**dict.fromkeys(sizes, 0), "steps": int(curves.step.size)},
        notes=(*remarks, *frame.attrs.get("notes", ())),
        verdict=_verdict(statements, recipe),
        statements=tuple(statements),
        history=_history(curves),
        featured=None,
        prompts={"prompt": []},
    )


def is_of_curves(frame: pd.DataFrame) -> bool:
    """Whether a frame is what ``read_scalars`` returns."""
    return "kl_per" in frame.attrs and "completion" not in frame.columns


def curves_of(frame: pd.DataFrame) -> Curves:
    """The columns of ``read_scalars``, with the KL of whole answers."""
    columns = {name: frame[name].to_numpy(float) for name in frame.columns if name != "step"}
    of_tokens = frame.attrs.get("kl_per") != "answer"
    if of_tokens:
        # Without a length the KL of a token stands for that of an answer of one.
        length = columns["length"]
        columns["kl"] = columns["kl"] * np.where(np.isfinite(length), length, 1.0)
    return Curves(step=frame["step"].to_numpy(float), of_tokens=of_tokens, **columns)


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
    return f"{format}: curves of {steps}, {first:,} to {last:,}, and no rollouts"


def _verdict(statements: list[Statement], recipe: Recipe) -> tuple[str, ...]:
    """The page in a few sentences; warnings first."""
    unheld = not recipe.beta or recipe.divergence is None
    told = [x for x in statements if x.name in _SHORT or x.warning]
    told += [x for x in statements if x.name == "direction" and unheld]
    told = sorted(told, key=lambda x: not x.warning)
    return (*(x.text if x.warning else x.headline for x in told), WEAKEST)
