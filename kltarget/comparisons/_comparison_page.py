"""A comparison as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kltarget._core.page import Block, Bullets, Figure, Heading, Item, Page, Paragraph, Table
from kltarget._core.words import compact, counted, short

Comparison = Any
"""What has a page is made with this module, and not known to it."""

_MOST_PROMPTS = 12
_FEW = 0.005


def comparison_page(data: Comparison, figure: Figure | None = None) -> Page:
    """What to know first, pass@k, shifts and laws, and which prompts moved."""
    page = Page([Heading(f"kltarget compare · {data.title}", 1)])
    if data.recipe_name:
        page.add(Paragraph(f"recipe: {data.recipe_name}"))
    for part in comparison_parts(data, figure):
        page.add(*part)
    return page


def comparison_parts(data: Comparison, figure: Figure | None = None) -> list[Sequence[Block]]:
    """What a page of its own and one of two runs both say."""
    page = Page()
    page.add(Heading("In short"), Bullets([Item("• ", x) for x in _in_short(data)], "short"))
    if figure is not None:
        page.add(figure)
    page.add(Heading("pass@k, with bands that hold at all k at once (95 %)"), _passes(data))
    if data.shifts is not None:
        for part in (*_of_shifts(data), *_of_prompts(data)):
            page.add(*part)
    if data.notes:
        page.add(Heading("Mind"), Bullets([Item("• ", x) for x in data.notes]))
    return page.parts


def _in_short(data: Comparison) -> list[str]:
    before, after, change = (data.pass_at_k[x][0] for x in ("before", "after", "difference"))
    first, second = data.labels
    texts = [
        f"Success: {100 * before[1]:.1f} % {first}, {100 * after[1]:.1f} % {second}, "
        f"{_points(change)} points."
    ]
    texts += [_where_known(data)]
    if data.shifts is None:
        return texts
    where = "" if data.from_base else f" from {first} to {second}"
    texts.append(
        f"{counted(data.num_rose, 'prompt')} rose and {data.num_fell:,} fell{where}, at a "
        f"false-discovery rate of {100 * data.false_discovery_rate:g} %."
    )
    if not data.from_base:
        return texts + ([_of_answers(data)] if data.answers is not None else [])
    if data.num_fell:
        texts[-1] += (
            f" Tested by themselves, {data.fell_alone:,} fell. No KL target lowers any prompt's "
            "success: the path of training did that."
        )
    texts.append(_of_verdict(data))
    if data.verdict != "unchanged":
        texts += _of_tilt(data)
    if data.answers is not None:
        texts.append(_of_answers(data))
    if data.asked is not None:
        texts.append(_of_asked(data))
    return texts


def _where_known(data: Comparison) -> str:
    parts = []
    for sign, word in ((1, "higher"), (-1, "lower")):
        known = [k for k, x in zip(data.k, data.known, strict=True) if x == sign]
        if known:
            parts.append(f"{word} at k = {_list(known)}")
    unknown = [k for k, x in zip(data.k, data.known, strict=True) if not x]
    if not parts:
        return "At no k is it known whether pass@k rose or fell."
    text = "pass@k is known to be " + " and ".join(parts)
    return text + (f"; at k = {_list(unknown)} it is not known." if unknown else ".")


def _of_verdict(data: Comparison) -> str:
    laws = [law for law in data.laws if law.kind != "free"]
    best, fits = laws[0], [law for law in laws if not law.ruled_out]
    if data.verdict == "unchanged":
        return "No change is known: that nothing changed fits the counts as well as any law does."
    if data.verdict == "neither":
        return (
            "Neither a KL target nor a path of policy gradients shifts prompts like this: the best "
            f"of these laws, {_named(best)}, is {_behind(best)} nats behind a free curve, held out."
        )
    if data.verdict == "target":
        return f"The shifts are those of a target: {_several(fits)} fit best."
    if data.verdict == "path":
        return f"The shifts are those of a path, not of a KL target: {_several(fits)} fit best."
    if not fits:
        return (
            "Success rates lie in clumps, so which law it was is left open: compare kinds of "
            "prompts apart."
        )
    if any(law.kind == "none" for law in fits):
        return "These prompts are too few, or their samples, to tell one law from another."
    return f"The counts leave open which law it was: {_several(fits)} fit best."


def _several(laws: list[Any]) -> str:
    """The three best."""
    names = [_named(law) for law in laws]
    return "; ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _named(law: Any) -> str:
    if not law.symbol:
        return law.title
    low, middle, high = (compact(float(f"{x:.2g}")) for x in law.parameter)
    return f"{law.title} with {law.symbol} = {middle} ({low} to {high})"


def _of_tilt(data: Comparison) -> list[str]:
    shifts, texts = data.shifts, []
    low, high = shifts.tilt[1:]
    if low > 0:
        texts.append(
            "Prompts of low success moved least: those below one half shifted by "
            f"{_plain(shifts.tilt)} less in log-odds than those above."
        )
    elif high < 0:
        texts.append(
            "Prompts of low success moved most: those below one half shifted by "
            f"{_plain([-x for x in (shifts.tilt[0], high, low)])} more in log-odds."
        )
    texts.append(
        f"The mean shift is {_interval(shifts.overall)} in log-odds; {100 * shifts.common:.0f} % "
        "of the shifts' mean square is the same for all prompts, as all of it is at the target of "
        "a reverse KL."
    )
    return texts


def _of_answers(data: Comparison) -> str:
    answers, (first, second) = data.answers, data.labels
    low, middle, high = (100 * x for x in answers.kept)
    text = (
        f"Among {answers.samples:.3g} right samples of a prompt there were {answers.before:.3g} "
        f"different answers {first} and {answers.after:.3g} {second}: {middle:.0f} % "
        f"({low:.0f}–{high:.0f})"
    )
    if not data.from_base:
        return text + "."
    if high < 100:
        return text + ". A KL target keeps all of them, so the path lost the rest."
    return text + ", as a KL target keeps them." if low <= 100 else text + "."


def _of_asked(data: Comparison) -> str:
    asked = data.asked
    low, middle, high = (100 * x for x in asked.success)
    text = (
        f"At β = {compact(asked.beta)} the recipe asks for {middle:.0f} % ({low:.0f}–{high:.0f}) "
        "right"
    )
    low, middle, high = (100 * x for x in asked.covered)
    if abs(asked.success[1] - data.pass_at_k["before"][0][1]) < _FEW or not np.isfinite(middle):
        return text + ", as before."
    return text + f"; {middle:.0f} % ({low:.0f}–{high:.0f}) of that way was gone."


def _passes(data: Comparison) -> Table:
    first, second = data.labels
    names = ["k", f"{first}, %", f"{second}, %", f"{second} − {first}", "known"]
    rows = []
    for i, k in enumerate(data.k):
        before, after, change = (data.pass_at_k[x][i] for x in ("before", "after", "difference"))
        word = {1: "higher", -1: "lower", 0: ""}[data.known[i]]
        row = [f"{k:,}", _percent(before), _percent(after), _points(change), word]
        rows.append(row + ([_percent(data.asked.pass_at_k[i])] if data.asked else []))
    names += ["asked for, %"] if data.asked else []
    return Table([names, *rows], "rrrrl" + "r" * bool(data.asked))


def _of_shifts(data: Comparison) -> list[list[Block]]:
    shifts, (first, _) = data.shifts, data.labels
    rows = [[f"success {first}, %", "prompts, %", "shift of log-odds"]]
    edges = zip(shifts.edges[:-1], shifts.edges[1:], shifts.share, shifts.mean, strict=True)
    rows += [
        [f"{100 * low:g}–{100 * high:g}", f"{100 * share:.0f}", _interval(mean)]
        for low, high, share, mean in edges
        if share > _FEW
    ]
    never = 1 - sum(shifts.share)
    rows += [["never", f"{100 * never:.0f}", ""]] if never > _FEW else []
    table = [Heading("By how much the log-odds of success shifted"), Table(rows, "lrr")]
    if not data.from_base:
        return [table]
    laws = [["law", "parameter", "behind the best, nats", ""]]
    for law in data.laws:
        low, middle, high = (compact(float(f"{x:.2g}")) for x in law.parameter)
        value = f"{law.symbol} = {middle} ({low}–{high})" if law.symbol else ""
        laws.append([law.title, value, _behind(law), "ruled out" if law.ruled_out else "fits"])
    legend = (
        "β in units of the reward; τ: time of the flow along the exact gradient of a prompt's "
        "success. Log-likelihood of prompts that were held out; ruled out: behind by more than two "
        "standard errors."
    )
    return [
        table,
        [Heading("Which law that is"), Table(laws, "lrrl"), Paragraph(legend, faint=True)],
    ]


def _of_prompts(data: Comparison) -> list[list[Block]]:
    fell = [i for i, x in enumerate(data.moved) if x < 0]
    if fell:
        fell.sort(key=lambda i: data.p_value[i])
        rows = [["prompt", *data.labels, "p"]]
        rows += [_prompt(data, i) for i in fell[:_MOST_PROMPTS]]
        more = f", the first {_MOST_PROMPTS} of {len(fell)}" if len(fell) > _MOST_PROMPTS else ""
        return [[Heading(f"Prompts that fell{more}"), Table(rows, "lrrr")]]
    return []


def _prompt(data: Comparison, i: int) -> list[str]:
    counts = [f"{data.correct[x][i]}/{data.samples[x][i]}" for x in (0, 1)]
    return [short(data.prompts[i]), *counts, f"{data.p_value[i]:.1g}"]


def _behind(law: Any) -> str:
    if not np.isfinite(law.behind_error):
        return f"{law.behind:.1f}"
    return f"{law.behind:.1f} ± {law.behind_error:.1f}"


def _interval(values: list[float]) -> str:
    middle, low, high = (_rounded(x, 2) for x in values)
    return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"


def _rounded(x: float, digits: int) -> float:
    """Without a minus before 0."""
    return round(x, digits) + 0.0


def _plain(values: list[float]) -> str:
    middle, low, high = values
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _percent(band: list[float]) -> str:
    low, middle, high = (100 * x for x in band)
    return f"{middle:.1f} ({low:.1f}–{high:.1f})"


def _points(band: list[float]) -> str:
    low, middle, high = (_rounded(100 * x, 1) for x in band)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def _list(values: list[int]) -> str:
    return f"{values[0]}" if len(values) == 1 else ", ".join(f"{x:,}" for x in values)
