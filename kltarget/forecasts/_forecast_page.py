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
_FEW = 10
_KEPT = 0.9


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
    texts = [_of_start(forecast), *_of_choice(forecast), *_of_unseen(forecast)]
    texts += [*_of_weights(forecast), *_of_deviations(forecast), *_of_answers(forecast)]
    if forecast.graded:
        texts.append(
            "Answers of equal reward keep the reference's proportions at every β, and better ones "
            "gain on worse ones; MARA (kltarget.mara) is what changes the former."
        )
    else:
        texts.append(
            "No KL target lowers any prompt's success, so none lowers pass@k: a drop would be the "
            "path's doing. Right answers of equal reward keep the reference's proportions at every "
            "β; MARA (kltarget.mara) is what changes that."
        )
    return texts


def _of_start(forecast: Forecast) -> str:
    text = ""
    if forecast.graded:
        levels = f"{len(forecast.rewards)} levels from {_plain(forecast.rewards[0])} to "
        levels += _plain(forecast.rewards[-1])
        reward = _numbers(forecast.start["expected_reward"], _digits(forecast))
        text = f"The base model's samples earn {reward} on average, of rewards in {levels}."
    if "success" in forecast.start:
        text = f"{text} The" if text else "The"
        text += (
            f" base model answers {_share(forecast.start['success'])} of the samples right; "
            f"{100 * forecast.share_unsolved:.0f} % of the prompts have no right sample."
        )
    return text


def _of_choice(forecast: Forecast) -> list[str]:
    start, choice = forecast.start["expected_reward"], forecast.recommended
    low, span = forecast.rewards[0], forecast.rewards[-1] - forecast.rewards[0]
    most = forecast.at(forecast.smallest_beta)["expected_reward"]
    smallest = f"β = {compact(_rounded(forecast.smallest_beta))}"
    if choice.reason:
        return [f"No β is recommended: {choice.reason}."]
    if most[1] - start[1] < 0.005 * span:
        return [f"Not even {smallest} asks for more than the base model does."]
    if math.isnan(choice.beta):
        return []
    at = forecast.at(choice.beta)
    if forecast.graded:
        what = f"a mean reward of {_numbers(at['expected_reward'], _digits(forecast))}"
    else:
        what = f"{_share([(x - low) / span for x in at['expected_reward']])} right"
    return [
        f"β = {compact(_rounded(choice.beta))} ({compact(_rounded(choice.low))} to "
        f"{compact(_rounded(choice.high))}) asks for nine tenths of the gain of {smallest}: "
        f"{what}, at {at['kl'][1]:.2g} nats of KL a prompt. A larger β asks "
        "for less, a smaller one pays more KL for little."
    ]


def _of_unseen(forecast: Forecast) -> list[str]:
    smallest = f"At β = {compact(forecast.beta[0])}"
    if forecast.graded:
        share = forecast.curves["above_seen"][0]
        if share[2] < 0.005:
            return []
        return [
            f"{smallest}, {_share(share)} of the answers have a reward above those of all "
            "samples of their prompt; of these the samples say next to nothing."
        ]
    share = forecast.curves["success_of_unsolved"][0]
    if share[2] < 0.005:
        return []
    return [
        f"{smallest}, {_share(share)} of all prompts are solved of "
        "which no sample is right; of these the samples say next to nothing."
    ]


def _of_weights(forecast: Forecast) -> list[str]:
    """Where the target rests on few of the samples."""
    sizes = np.array(forecast.effective_samples)
    few = np.flatnonzero(sizes < _FEW)
    if not few.size:
        return []
    samples = float(np.mean(forecast.samples))
    where = f"At β = {compact(_rounded(forecast.beta[few[0]]))}"
    text = (
        f"{where} the target rests on {sizes[few[0]]:.1f} of the {samples:.0f} samples a prompt on "
        "average (the effective sample size of its weights), which is few"
    )
    enough = np.flatnonzero(sizes >= _FEW)
    if not enough.size:
        return [f"{text}; more samples a prompt would say more."]
    least = compact(_rounded(forecast.beta[enough[0]]))
    return [f"{text}; from β = {least} on it rests on {_FEW} or more."]


def _of_answers(forecast: Forecast) -> list[str]:
    """How many answers there are, and what becomes of them."""
    texts = []
    if forecast.right_answers:
        number, effective = (forecast.right_answers[x] for x in ("number", "effective"))
        text = (
            f"A prompt has {_numbers(effective, 1)} right answers in effect, and "
            f"{_numbers(number, 1)} different ones, seen and unseen"
        )
        if forecast.graded:
            texts.append(f"{text}, by the base model's samples.")
        else:
            texts.append(
                f"{text}: no β makes them more even, for right answers of equal reward keep the "
                "reference's proportions, and MARA does."
            )
    if forecast.start_answers:
        start, least = (x["effective_answers"] for x in (forecast.start, _at_first(forecast)))
        kept = forecast.choose(keep_answers=_KEPT)
        texts.append(
            f"The base model gives {_numbers(start, 1)} different answers in effect, the target at "
            f"β = {compact(forecast.beta[0])} {_numbers(least, 1)}. {_of_kept(forecast, kept)}"
        )
    return texts


def _at_first(forecast: Forecast) -> dict[str, list[float]]:
    return {name: values[0] for name, values in forecast.curves.items()}


def _of_kept(forecast: Forecast, kept: Any) -> str:
    if math.isnan(kept.beta):
        low, high = (
            compact(_rounded(x)) for x in (forecast.draws_beta[0], forecast.draws_beta[-1])
        )
        return (
            f"No β between {low} and {high} keeps nine tenths of these, wrong ones included: "
            f"{kept.reason}. MARA (kltarget.mara) evens out those with a reward of its threshold "
            "or more, and no others."
        )
    low, middle, high = (compact(_rounded(x)) for x in (kept.low, kept.beta, kept.high))
    return f"β = {middle} ({low} to {high}) keeps nine tenths of them."


def _of_deviations(forecast: Forecast) -> list[str]:
    """What division by a deviation makes of β, prompt by prompt."""
    least = forecast.of_patterns.get("saturation_beta")
    beta = forecast.recommended.beta
    if least is None or math.isnan(beta):
        return []
    at = int(np.argmin(np.abs(np.log(forecast.beta) - math.log(beta))))
    effective = np.array(forecast.of_patterns["effective_beta"])[forecast.pattern, at, 1]
    if not np.isfinite(effective).any():
        return []
    low, middle, high = (compact(_rounded(x)) for x in np.nanquantile(effective, (0.1, 0.5, 0.9)))
    text = (
        f"Rewards are divided by their deviation, which differs from prompt to prompt: at β = "
        f"{compact(_rounded(forecast.beta[at]))} the effective β of the median prompt is {middle}, "
        f"and {low} to {high} of the middle four fifths."
    )
    if middle == high == "0":
        text = (
            f"Rewards are divided by their deviation: at β = "
            f"{compact(_rounded(forecast.beta[at]))} certainty has left most prompts none, and "
            "nothing holds them."
        )
    critical = np.array(least)[forecast.pattern, 1]
    if forecast.recipe.group_size is None and np.nanmax(critical, initial=0.0) > 0:
        share = float(np.nanmean(forecast.beta[at] < critical))
        text += (
            f" For {100 * share:.0f} % of the prompts that β is below the saturation β, under "
            "which nothing short of certainty is held."
        )
    return [text]


def _table(forecast: Forecast) -> Table:
    ks = _shown_k(forecast)
    names = ["β", *(["reward"] if forecast.graded else [])]
    names += ["success, %"] if "success" in forecast.curves else []
    names += [*(f"pass@{forecast.k[i]}, %" for i in ks), "KL"]
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
    based = at is None
    curves = forecast.start if based else {x: y[at] for x, y in forecast.curves.items()}
    passes = forecast.start_pass_at_k if based else [x[at] for x in forecast.pass_at_k]
    row = ["base" if based else compact(_rounded(forecast.beta[at]))]
    row += [_numbers(curves["expected_reward"], _digits(forecast))] if forecast.graded else []
    row += [_percent(curves["success"])] if "success" in curves else []
    row += [_percent(passes[i]) for i in ks]
    row.append("0" if based else "{1:.2g} ({0:.2g}–{2:.2g})".format(*curves["kl"]))
    if "met" in forecast.curves:
        row.append("" if based else _percent(curves["met"]))
    row += [_percent(curves["zero_std"])] if "zero_std" in curves else []
    n = 1.0 if based else curves["best_of_n"][1]
    many = f"{n:,.0f}" if n > 10 else f"{n:.1f}"
    return [*row, "1" if based else "—" if math.isnan(n) else many]


def _shown(forecast: Forecast) -> list[int]:
    size = len(forecast.beta)
    return np.unique(np.linspace(0, size - 1, min(size, _MOST_ROWS)).round()).astype(int).tolist()


def _legend(forecast: Forecast) -> list[str]:
    texts = ["KL: nats of KL(π‖π_ref) a prompt; best of n: the n whose best of n has the same KL."]
    if not math.isnan(forecast.tokens):
        per_token = f"{forecast.tokens:.4g} tokens"
        texts.append(
            f"A sample has {per_token} on average: KL a token is the number here divided by that, "
            "as long as the target's answers are as long."
        )
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
    return _numbers([low, middle, high], 0 if high - low > 4 else 1)


def _numbers(quantiles: list[float], digits: int) -> str:
    low, middle, high = quantiles
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _digits(forecast: Forecast) -> int:
    """So many that rewards have three digits of their span."""
    span = forecast.rewards[-1] - forecast.rewards[0]
    return max(0, 2 - math.floor(math.log10(span)))


def _plain(x: float) -> str:
    return f"{x:.4g}"


def _share(quantiles: list[float]) -> str:
    middle, _, interval = _percent(quantiles).partition(" ")
    return f"{middle} % {interval}"


def _rounded(x: float) -> float:
    return float(f"{x:.2g}")
