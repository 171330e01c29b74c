"""The explorer as one page that needs nothing beside it."""

from __future__ import annotations

import functools
import html
import importlib.resources
import json
import re
from typing import Any

from kltarget.pages._explorer_setup import setup_of


def page(problem: Any, **options: Any) -> str:
    """A page with the live target of a problem, for any browser: no server, network or framework.

    The page solves ``max_π E_π[reward] − β·D(π, π_ref)`` itself, by the closed forms in plain
    JavaScript; its sliders are those of :func:`explore`. Its address holds the settings
    (``#beta=0.05&divergence=forward-kl``), so that a link can show one of them. Its buttons copy
    the code that solves the same in Python, and save the pictures as SVG and the numbers as CSV.

    Args:
        problem: What is explored, in any form that ``kltarget.tasks.as_task`` takes, over at most
            20,000 outcomes.
        **options: ``labels``, ``modes``, ``pair``, ``beta`` and ``divergences`` as in
            :func:`explore`.

    Returns:
        The text of an HTML file.

    Raises:
        TypeError, ValueError: As :func:`explore`.

    Example:
        >>> from kltarget import pages
        >>> text = pages.page("one-two", beta=0.1)
        >>> text.startswith("<!DOCTYPE html>"), "http" in text
        (True, False)
    """
    problem = setup_of(problem, **options).to_json()
    # Inside a script element nothing but "</" and "<!--" could end it.
    data = json.dumps(problem, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    fields = {
        "title": f"{html.escape(problem['name'])} · kltarget",
        "data": data,
        "script": script(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda field: fields[field[1]], _file("page.html"))


@functools.cache
def script() -> str:
    """The JavaScript that solves and draws, its style included: defines ``render({model, el})``."""
    style = f"const style = {json.dumps(_file('page.css'))};"
    return "\n".join([_file("solve.js"), style, _file("saved.js"), _file("page.js")])


def _file(name: str) -> str:
    return importlib.resources.files("kltarget.pages").joinpath(name).read_text("utf-8").strip()
