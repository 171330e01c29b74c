"""`explore`: the widget, or a figure where there is none."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from kltarget._core.numerics import double_precision
from kltarget.divergences import Divergence
from kltarget.objectives import Objective
from kltarget.pages._explorer_setup import Setup, setup_of
from kltarget.targets import solve
from kltarget.tasks import Task


def explore(
    problem: Task | Objective,
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
        problem: What is explored, a task or an objective without batch axes, over at most 20,000
            outcomes.
        labels: What the outcomes are called, `A` strings. Default: those of the task, else their
            indices.
        modes: Integer labels `[A]` of the outcomes' modes, below 0 for none. Default: those of the
            task; for an objective each outcome of positive reward is one.
        pair: Labels of the two modes whose odds can be changed. Default: the mode that the
            reference likes most, and of the best rewarded others the one it likes least.
        beta: Where β starts, reward units per nat. Default: that of the objective; for a task a
            tenth of the range of its rewards.
        divergences: What can be chosen, by name (`"reverse-kl"`, `"alpha:0.5"`, …) or as
            divergences; the first is where it starts. Default: the common ones, starting with that
            of the objective, or with reverse KL.

    Returns:
        A `kltarget.pages.Explorer`, an `ipywidgets.VBox` for JupyterLab, VS Code and Colab; its
        `controls` can be set and its `scene` read from code. Without ipywidgets a warning says what
        to install, and a `matplotlib.figure.Figure` shows the targets of several β.

    Raises:
        TypeError: If `problem` is neither a task nor an objective, or is traced.
        ValueError: If it has batch axes, too many outcomes or none that is possible, or labels,
            modes, pair or divergences do not fit.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget import tasks
        >>> explorer = kt.explore(tasks.load("one-two"), beta=0.1)
        >>> explorer.controls["beta"].value = 1.0
        >>> [f"{p:.4f}" for p in jnp.exp(explorer.scene.log_probs)]
        ['0.5262', '0.0351', '0.4388']
    """
    setup = setup_of(
        problem, labels=labels, modes=modes, pair=pair, beta=beta, divergences=divergences
    )
    try:
        from kltarget.pages._widget import Explorer
    except ModuleNotFoundError as error:
        if error.name != "ipywidgets":
            raise
        warnings.warn(
            'sliders need ipywidgets: pip install "kltarget[notebooks]"; '
            "this figure shows the targets of several β instead",
            stacklevel=2,
        )
        return _panel(setup)
    return Explorer(setup)


def _panel(setup: Setup) -> Any:
    from kltarget import plot

    # Four decades around the start, without its ends, where nothing changes any more.
    betas = setup.beta * np.array([0.01, 0.1, 1.0, 10.0])
    task = Task(
        setup.name, setup.description, setup.log_ref, setup.reward, setup.labels, setup.modes
    )
    with double_precision():
        target = solve(task.objective(betas, divergence=next(iter(setup.divergences.values()))))
    ax = plot.target(target, problem=task)
    ax.set_title(setup.name)
    return ax.figure
