"""A forecast as a page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kltarget._core.page import Bullets, Figure, Heading, Item, Page, Paragraph, Table
from kltarget._core.words import compact, counted

Forecast = Any
"""What has a page is made with this module, and not known to it."""

_MOST_ROWS = 9


def forecast_page(forecast: Forecast, figure: Figure | None = None) -> Page:
    """What to know first, the numbers at some β, and what they rest on."""
    page, title = Page(), Heading(f"kltarget forecast · {forecast.title}", 1)
    page.add(title, Paragraph(f"recipe: {forecast.recipe_name}"))
    short = [Item("• ", x) for x in _in_short(forecast)]
    page.add(Heading("In short"), Bullets(short, "short"))
    if figure is not None:
        page.add(figure)
    over = "At the target, means over the prompts with 95 % intervals"
    page.add(Heading(over), _table(forecast))
    page.add(Bullets([Item("• ", x) for x in _legend(forecast)]))
    if forecast.notes:
        page.add(Heading("Mind"), Bullets([Item("• ", x) for x in forecast.notes]))
    return page


def _in_short(forecast: Forecast) -> list[str]:
    start, choice = forecast.start["success"], forecast.recommended
    texts = [
        f"The base model answers {_share(start)} of the samples right; "
        f"{100 * forecast.share_unsolved:.0f} % of the prompts have no right sample."
    ]
    gain = forecast.curves["success"][0][1] - start[1]
    if gain < 0.005:
        texts.append("No β here asks for more than the base model does.")
    elif len(forecast.beta) > 1 and not math.isnan(choice.beta):
        at = int(np.argmin(np.abs(np.log(forecast.beta) - math.log(choice.beta))))
        success, kl = forecast.curves["success"][at], forecast.curves["kl"][at]
        texts.append(
            f"β = {compact(_rounded(choice.beta))} ({compact(_rounded(choice.low))} to "
            f"{compact(_rounded(choice.high))}) asks for nine tenths of the gain of the smallest "
            f"β here: {_share(success)} right, at {kl[1]:.2g} nats of KL a prompt. A larger β asks "
            "for less, a smaller one pays more KL for little."
        )
    least = forecast.curves["success"][0][1] - forecast.curves["success_without_unsolved"][0][1]
    if least > 0.005:
        texts.append(
            f"At β = {compact(forecast.beta[0])}, {100 * least:.0f} % of all prompts are solved of "
            "which no sample is right; of these the samples say next to nothing."
        )
    texts.append(
        "No KL target lowers any prompt's success, so none lowers pass@k: a drop would be the "
        "path's doing. Right answers of equal reward keep the reference's proportions at every β; "
        "MARA (kltarget.mara) is what changes that."
    )
    return texts


def _table(forecast: Forecast) -> Table:
    ks = _shown_k(forecast)
    names = ["β", "success, %", *(f"pass@{forecast.k[i]}, %" for i in ks), "KL"]
    names += ["met, %"] if "met" in forecast.curves else []
    names += ["σ = 0, %"] if "zero_std" in forecast.curves else []
    names += ["best of n"]
    rows = [_row(forecast, None, ks)]
    rows += [_row(forecast, at, ks) for at in _shown(forecast)]
    return Table([names, *rows], "r" * len(names))


def _shown_k(forecast: Forecast) -> list[int]:
    """Two k are enough to see what becomes of pass@k."""
    several = [i for i, k in enumerate(forecast.k) if k > 1]
    return several if len(several) < 3 else [several[len(several) // 2 - 1], several[-1]]


def _row(forecast: Forecast, at: int | None, ks: list[int]) -> list[str]:
    """Of the base model without ``at``."""
    if at is None:
        row = ["base", _percent(forecast.start["success"])]
        row += [_percent(forecast.start_pass_at_k[i]) for i in ks] + ["0"]
        row += [""] if "met" in forecast.curves else []
        row += [_percent(forecast.start["zero_std"])] if "zero_std" in forecast.curves else []
        return [*row, "1"]
    curves = {name: values[at] for name, values in forecast.curves.items()}
    row = [compact(_rounded(forecast.beta[at])), _percent(curves["success"])]
    row += [_percent(forecast.pass_at_k[i][at]) for i in ks]
    row.append(f"{curves['kl'][1]:.2g} ({curves['kl'][0]:.2g}–{curves['kl'][2]:.2g})")
    row += [_percent(curves[x]) for x in ("met", "zero_std") if x in curves]
    n = curves["best_of_n"][1]
    return [*row, "—" if math.isnan(n) else f"{n:,.0f}" if n > 10 else f"{n:.1f}"]


def _shown(forecast: Forecast) -> list[int]:
    size = len(forecast.beta)
    return np.unique(np.linspace(0, size - 1, min(size, _MOST_ROWS)).round()).astype(int).tolist()


def _legend(forecast: Forecast) -> list[str]:
    texts = ["KL: nats of KL(π‖π_ref) a prompt; best of n: the n whose best of n has the same KL."]
    if "met" in forecast.curves:
        number = counted(forecast.rollouts_per_prompt or 0, "rollout")
        texts.append(
            f"met: success where a run meets a right answer in {number} of a prompt; where it does "
            "not, the prompt teaches nothing."
        )
    if "zero_std" in forecast.curves:
        texts.append(
            f"σ = 0: groups of {forecast.recipe.group_size} whose rewards are all equal, there."
        )
    return texts


def _percent(quantiles: list[float]) -> str:
    low, middle, high = (100 * x for x in quantiles)
    digits = 0 if high - low > 4 else 1
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _share(quantiles: list[float]) -> str:
    middle, _, interval = _percent(quantiles).partition(" ")
    return f"{middle} % {interval}"


def _rounded(x: float) -> float:
    return float(f"{x:.2g}")
