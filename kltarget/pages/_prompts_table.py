"""All prompts of a diagnosis as a table that can be sorted, with completions behind the numbers."""

from __future__ import annotations

import dataclasses
import html
import importlib.resources
import math
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.words import counted, number, short

if TYPE_CHECKING:
    import pandas as pd

    from kltarget.diagnosis import Diagnosis

STYLE = """
.kltarget table.sortable button { all: unset; cursor: pointer; font-weight: 600; }
.kltarget table.sortable button:focus-visible { outline: 2px solid light-dark(#0072b2, #4da3db); }
.kltarget th[aria-sort=ascending] button::after { content: " ▲"; }
.kltarget th[aria-sort=descending] button::after { content: " ▼"; }
.kltarget table.sortable td { vertical-align: top; }
.kltarget table.sortable td:first-child { min-width: 12rem; max-width: 26rem; }
.kltarget table.sortable th { vertical-align: bottom; }
.kltarget table.sortable a { color: inherit; text-decoration-color: light-dark(#999, #777); }
.kltarget pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .15rem 0; font-size: .87em;
  background: light-dark(#f6f6f6, #1f242d); padding: .2rem .4rem; }
"""
MOST_ROWS = 1000
MOST_COMPLETIONS = 6
MOST_CHARACTERS = 400
MOST_TEXT = 1_000_000
"""Rows of the table, completions of a prompt, characters of each, and of all together."""
_LONGEST_PROMPT, _UNFOLDED = 2000, 60

_COLUMNS = {
    "rollouts": "rollouts",
    "mean_reward": "reward",
    "pass@1": "pass@1",
    "zero_std_share": "σ = 0",
    "gradient_share": "share of the gradient",
    "right_answers": "right answers",
    "late_right_answers": "right, late",
    "reference_modes": "modes, reference",
    "target_modes": "modes, target",
    "modes_now": "modes now",
    "effective_beta": "effective β",
    "collapse_step": "collapse step",
}


@dataclasses.dataclass(frozen=True, eq=False)
class PromptsTable:
    """A row per prompt; with the rollouts that were read also a few completions of each."""

    diagnosis: Diagnosis
    rollouts: pd.DataFrame | None = None

    def lines(self, width: int) -> list[str]:
        """Nothing: texts have the statements."""
        return []

    def html(self) -> str:
        columns = self.diagnosis.prompts
        shown = [name for name in _COLUMNS if _told(columns[name])]
        order = np.argsort(-np.array(columns["rollouts"]), kind="stable")[:MOST_ROWS].tolist()
        behind = self._completions(order)
        heads = [("prompt", "text"), *((_COLUMNS[name], "number") for name in shown)]
        head = "".join(
            f'<th scope="col" aria-sort="none" data-kind="{kind}" '
            f'style="text-align: {"left" if kind == "text" else "right"}">'
            f'<button type="button" tabindex="0">{html.escape(title)}</button></th>'
            for title, kind in heads
        )
        rows = "".join(self._row(i, shown, behind.get(i)) for i in order)
        said = counted(len(columns["prompt"]), "prompt")
        if len(order) < len(columns["prompt"]):
            said = f"The {len(order):,} of {said} with most rollouts"
        said += "; a heading sorts by it. Collapse step: from there on one right answer alone was "
        said += "seen, too often for chance."
        if behind:
            said += f" A number leads to at most {MOST_COMPLETIONS} completions of its prompt, the "
            said += f"first and the last, cut to {MOST_CHARACTERS} characters"
            said += "." if len(behind) == len(order) else f", for {counted(len(behind), 'prompt')}."
        script = importlib.resources.files("kltarget.pages").joinpath("sort.js").read_text("utf-8")
        return (
            f'<h2>All prompts</h2><p class="faint">{html.escape(said)}</p>'
            f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div><script>{script}</script>"
        )

    def _row(self, i: int, shown: list[str], completions: list[str] | None) -> str:
        prompt = self.diagnosis.prompts["prompt"][i]
        begin = html.escape(short(prompt, _UNFOLDED))
        inside = ""
        if len(prompt) > _UNFOLDED:
            inside = f"<pre>{html.escape(prompt[:_LONGEST_PROMPT])}</pre>"
        inside += "".join(completions or ())
        if inside:
            begin = f'<details id="prompt-{i}"><summary>{begin}</summary>{inside}</details>'
        sorted_by = html.escape(short(prompt, _UNFOLDED))
        cells = [f'<td data-value="{sorted_by}">{begin}</td>']
        for name in shown:
            value = float(self.diagnosis.prompts[name][i])
            if not math.isfinite(value):
                cells.append('<td data-value=""></td>')
                continue
            text = f"{value:,.0f}" if value == round(value) else number(value, 3)
            link = f'<a href="#prompt-{i}">{text}</a>' if completions else text
            cells.append(f'<td style="text-align: right" data-value="{value:.9g}">{link}</td>')
        return f"<tr>{''.join(cells)}</tr>"

    def _completions(self, order: list[int]) -> dict[int, list[str]]:
        """For as many prompts as there is room, the first and the last completions of each."""
        frame: Any = self.rollouts
        if frame is None:
            return {}
        frame = frame[np.isfinite(frame["reward"].to_numpy(float))]
        code = {str(name): i for i, name in enumerate(self.diagnosis.prompts["prompt"])}
        own = np.array([code.get(str(name), -1) for name in frame["prompt"]])
        step = frame["step"].to_numpy(float, na_value=0.0)
        rows = np.lexsort((step, own))
        starts = np.searchsorted(own[rows], np.arange(len(code) + 1))
        found, room = {}, MOST_TEXT
        for i in order:
            of_prompt = rows[starts[i] : starts[i + 1]]
            half = MOST_COMPLETIONS // 2
            chosen = of_prompt
            if len(of_prompt) > MOST_COMPLETIONS:
                chosen = np.concatenate([of_prompt[:half], of_prompt[-half:]])
            texts = [self._completion(frame.iloc[int(row)]) for row in chosen]
            room -= sum(map(len, texts))
            if room < 0:
                break
            found[i] = texts
        return found

    def _completion(self, row: Any) -> str:
        import pandas as pd

        said = str(row["completion"]) if isinstance(row["completion"], str) else ""
        cut = said if len(said) <= MOST_CHARACTERS else said[:MOST_CHARACTERS] + "…"
        # A step that the log does not have is pandas' NA, which is neither true nor false.
        parts = [] if pd.isna(row["step"]) else [f"step {row['step']}"]
        parts.append(f"reward {number(float(row['reward']))}")
        if "source" in row:
            parts.append(pathlib.PurePath(str(row["source"])).name)
        parts.append(f"group {row['group_id']}")
        if "sample_id" in row:
            parts.append(f"sample {row['sample_id']}")
        return f'<p class="faint">{html.escape(", ".join(parts))}</p><pre>{html.escape(cut)}</pre>'


def _told(values: list[Any]) -> bool:
    """Whether a column has a number."""
    return any(math.isfinite(float(x)) for x in values)
