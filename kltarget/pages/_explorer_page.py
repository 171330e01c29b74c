"""The explorer as one page that needs nothing beside it."""

from __future__ import annotations

import html
import importlib.resources
import json
import math
from typing import Any

from kltarget.divergences._names import EXAMPLES
from kltarget.objectives import Objective
from kltarget.pages._explorer_setup import MOST_BARS, Setup, setup_of, title
from kltarget.tasks import Task


def page(problem: Task | Objective, **options: Any) -> str:
    """A page with the live target of a problem, for any browser: no server, network or framework.

    The page solves ``max_π E_π[reward] − β·D(π, π_ref)`` itself, by the closed forms in plain
    JavaScript; its sliders are those of :func:`explore`. Its address holds the settings
    (``#beta=0.05&divergence=forward-kl``), so that a link can show one of them.

    Args:
        problem: What is explored, a task or an objective without batch axes, over at most 20,000
            outcomes.
        **options: `labels`, `modes`, `pair`, `beta` and `divergences` as in :func:`explore`;
            divergences by name only.

    Returns:
        The text of an HTML file.

    Raises:
        TypeError: If `problem` is neither a task nor an objective, or a divergence is not a name.
        ValueError: As :func:`explore`.

    Example:
        >>> from kltarget import pages, tasks
        >>> text = pages.page(tasks.load("one-two"), beta=0.1)
        >>> text.startswith("<!DOCTYPE html>"), "http" in text
        (True, False)
    """
    setup = setup_of(problem, **options)
    unknown = [name for name in setup.divergences if name.partition(":")[0] not in _KNOWN]
    if unknown:
        raise TypeError(
            f"the page knows no divergence {unknown[0]!r}: "
            f"choose by name among {', '.join(EXAMPLES)}"
        )
    fields = {
        "title": f"{setup.name} · kltarget",
        "heading": setup.name,
        "description": setup.description,
    }
    fields = {name: html.escape(text) for name, text in fields.items()}
    fields |= {
        "style": _file("page.css"),
        "solve": _file("solve.js"),
        "page": _file("page.js"),
        "data": _json(setup),
    }
    text = _file("page.html")
    for name, value in fields.items():
        before, after = text.split("{{" + name + "}}")
        text = before + value + after
    return text


_KNOWN = {name.partition(":")[0] for name in EXAMPLES}


def _file(name: str) -> str:
    return importlib.resources.files("kltarget.pages").joinpath(name).read_text("utf-8").strip()


def _json(setup: Setup) -> str:
    data = {
        "labels": setup.labels,
        "log_ref": _numbers(setup.log_ref),
        "reward": _numbers(setup.reward),
        "modes": setup.modes.tolist(),
        "pair": setup.pair,
        "pair_names": setup.pair_names,
        "positions": setup.positions,
        "beta_decades": setup.beta_decades,
        "thresholds": setup.thresholds,
        "beta": setup.beta,
        "divergences": [(name, title(x)) for name, x in setup.divergences.items()],
        "divergence": next(iter(setup.divergences)),
        "most_bars": MOST_BARS,
    }
    # Inside a script element nothing but "</" and "<!--" could end it.
    return json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _numbers(values: Any) -> list[float | None]:
    """Minus infinity, the only number that JSON lacks here, as null."""
    return [x if math.isfinite(x) else None for x in values.tolist()]
