"""``explore``: the widget, or a figure where there is none."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from kltarget._core.numerics import double_precision
from kltarget.divergences import Divergence
from kltarget.pages._explorer_setup import Setup, setup_of
from kltarget.targets import solve


def explore(
    problem: Any,
    *,
    labels: Sequence[str] | None = None,
    modes: ArrayLike | None = None,
    pair: tuple[int, int] | None = None,
    beta: float | None = None,
    divergences: Sequence[str | Divergence] | None = None,
) -> Any:
    """The target of a problem in a notebook, redrawn while sliders move.

    What is drawn maximises ``E_π[scale · reward] − beta · D(π, π_ref)`` over π, solved exactly at
    every move. The sliders are:

    - β, logarithmic, and the scale by which the rewards are multiplied;
    - the *odds* of two modes in the reference, ``π_ref(first)/π_ref(second)``: both keep their
      total mass and each the proportions inside, everything else is untouched;
    - the threshold from which on :func:`mara` makes outcomes equally probable, from off to the best
      reward: by changing the reward for reverse KL, reward and reference for the others;
    - the divergence D.

    Beside the picture stand the expected reward (of the unscaled rewards), effective modes, both
    KLs to the reference and the β within the slider's range at which the two modes trade places.

    Args:
        problem: What is explored, in any form that :func:`kltarget.tasks.as_task` takes: a task or
            its name, the path of a table, an objective without batch axes, or ``(reward,
            log_ref)``, over at most 20,000 outcomes.
        labels: What the outcomes are called, ``A`` strings. Default: those of the task, else their
            indices.
        modes: Integer labels ``[A]`` of the outcomes' modes, below 0 for none. Default: those of
            the task; for an objective each outcome of positive reward is one.
        pair: Labels of the two modes whose odds can be changed. Default: the mode that the
            reference likes most, and of the best rewarded others the one it likes least.
        beta: Where β starts, reward units per nat. Default: that of the objective; for a task a
            tenth of the range of its rewards.
        divergences: What can be chosen, by name (``"reverse-kl"``, ``"alpha:0.5"``, …) or as
            divergences, your own among them; the first is where it starts. Default: the common
            ones, starting with that of the objective, or with reverse KL.

    Returns:
        A :class:`kltarget.pages.Explorer`, a widget for JupyterLab, VS Code, Colab and marimo that
        needs no network; its ``beta`` and the like can be read and set from code, and its
        ``scene`` is the same solved in Python. Without anywidget a warning says what to install,
        and a ``matplotlib.figure.Figure`` shows the targets of several β.

    Raises:
        TypeError: ``problem`` is nothing of these, or is traced.
        ValueError: it has batch axes, too many outcomes or none that is possible, or labels, modes,
            pair or divergences do not fit.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> explorer = kt.explore("one-two", beta=0.1)
        >>> explorer.beta = 1.0
        >>> [f"{p:.4f}" for p in jnp.exp(explorer.scene.log_probs)]
        ['0.5262', '0.0351', '0.4388']
    """
    setup = setup_of(
        problem, labels=labels, modes=modes, pair=pair, beta=beta, divergences=divergences
    )
    try:
        from kltarget.pages._widget import Explorer
    except ModuleNotFoundError as error:
        if error.name != "anywidget":
            raise
        warnings.warn(
            'sliders need anywidget: pip install "kltarget[notebooks]"; '
            "this figure shows the targets of several β instead",
            stacklevel=2,
        )
        return _panel(setup)
    return Explorer(setup)


def _panel(setup: Setup) -> Any:
    from kltarget import plot

    # Four decades around the start, without its ends, where nothing changes any more.
    betas = setup.beta * np.array([0.01, 0.1, 1.0, 10.0])
    task, divergence = setup.task, setup.divergences[setup.start["divergence"]]
    with double_precision():
        ax = plot.target(solve(task.objective(betas, divergence=divergence)), problem=task)
    ax.set_title(task.name)
    return ax.figure
