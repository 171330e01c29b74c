"""A diagnosis from curves alone, where no rollouts were kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from kltarget._core.words import counted
from kltarget.diagnosis._diagnosis import Diagnosis
from kltarget.diagnosis._say_curves import Curves, curve_statements
from kltarget.recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd

_BINS = 12
_SHOWN = ("reward", "kl", "entropy", "zero_std")
_WEAKEST = (
    "curves are means over prompts: the weakest evidence. They say neither which answers were kept "
    "nor where the target is; log rollouts for that"
)


def curves_of(frame: pd.DataFrame) -> Curves:
    """The columns of ``read_scalars``, with the KL of whole answers."""
    columns = {name: frame[name].to_numpy(float) for name in frame.columns if name != "step"}
    of_tokens = frame.attrs.get("kl_per") != "answer"
    if of_tokens:
        # Without a length the KL of a token stands for that of an answer of one.
        length = columns["length"]
        columns["kl"] = columns["kl"] * np.where(np.isfinite(length), length, 1.0)
    return Curves(step=frame["step"].to_numpy(float), of_tokens=of_tokens, **columns)


def history_of(curves: Curves) -> dict[str, list[float]]:
    """The curves in at most a dozen bins of steps."""
    parts = np.array_split(np.arange(curves.step.size), min(_BINS, curves.step.size))

    def means(name: str) -> list[float]:
        values = [getattr(curves, name)[part] for part in parts]
        return [
            float(x[np.isfinite(x)].mean()) if np.isfinite(x).any() else math.nan for x in values
        ]

    history = {"step": [float(curves.step[part[0]]) for part in parts]}
    history["until"] = [float(curves.step[part[-1]]) for part in parts]
    return history | {("token_entropy" if x == "entropy" else x): means(x) for x in _SHOWN}
