"""A diagnosis as an HTML page of its own."""

from __future__ import annotations

import datetime
import os
from importlib.metadata import version
from typing import TYPE_CHECKING, cast

from kltarget import plot
from kltarget._core.page import Page, Paragraph
from kltarget.pages._figure_page import drawn_twice, html_of
from kltarget.pages._prompts_table import STYLE, PromptsTable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from kltarget.diagnosis import Diagnosis

_CURVES = "what changed along the steps: reward, entropy, difference of answers, equal rewards"
_SHARES = "shares of the answers beside the target, and the target over β"


def diagnosis(
    diagnosis: Diagnosis,
    rollouts: pd.DataFrame | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    command: str | None = None,
) -> str:
    """A diagnosis as one HTML page with its figures, which needs no file beside it.

    The page is light or dark as its reader's screen is, and loads nothing. It ends with a table of
    all prompts, which its headings sort; what models wrote is shown as text.

    Args:
        diagnosis: what :func:`kltarget.diagnose` returned.
        rollouts: the frame that it is of, as :func:`kltarget.rollouts.read_rollouts` made it: then
            six completions, of 400 characters at most, stand behind the numbers of each prompt.
        path: where the log is, to be shown.
        command: the command line that made the page, to be shown.

    Returns:
        The page; write it to a file of encoding UTF-8. Of more than 1,000 prompts those of most
        rollouts are in the table, and completions end after a million characters; it says so.
    """
    figures = []
    if diagnosis.tier > 0:
        figures = [drawn_twice(lambda: plot.diagnosis(diagnosis), _SHARES)]
    # Of several steps no curve may have two points.
    if plot.history(diagnosis) is not None:
        figures.insert(0, drawn_twice(lambda: cast("Figure", plot.history(diagnosis)), _CURVES))
    page: Page = diagnosis.page(*figures)
    if diagnosis.tier > 0:
        page.add(PromptsTable(diagnosis, rollouts))
    date = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")
    made = [f"{date}, kltarget {version('kltarget')}"]
    made += [] if path is None else [f"log: {os.fspath(path)}"]
    made += [] if command is None else [f"command: {command}"]
    page.add(*(Paragraph(text, faint=True) for text in made))
    return html_of("kltarget diagnose", page, STYLE)
