"""Figures of training and of verifications."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from kltarget._core.distances import normalised
from kltarget._core.numerics import double_precision
from kltarget.divergences import kl
from kltarget.modes import entropy
from kltarget.plot import _style as look
from kltarget.verification._exact_targets import TARGETS, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kltarget.targets import Target
    from kltarget.training import Run
    from kltarget.verification import Report

_MARKERS = ("o", "^", "s", "D", "v", "P")
_LEAST_MASS = 1e-4
_METRICS = {
    "expected_reward": "expected reward",
    "reverse_kl": "KL(π‖π_ref), nats",
    "forward_kl": "KL(π_ref‖π), nats",
    "entropy": "entropy, nats",
    "gap": "bound on J* − J",
    "gradient_norm": "norm of the gradient",
}
_VANISHING = ("gap", "gradient_norm")


def predicted_vs_reached(report: Report, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Draws the probability of every mode under the target against what training reached.

    A point is a mode in a run: colours are recipes, shapes are policies. On the diagonal the
    prediction is exact. Modes that the target gives less than 1e-4 are left out; those of which
    training left less than 1e-5 lie at the lower edge.

    Args:
        report: what :func:`kltarget.verification.verify` found.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the points, such as ``s`` or ``alpha``.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Example:
        >>> import jax
        >>> from kltarget import plot
        >>> from kltarget.verification import RECIPES, verify
        >>> options = {"policies": ["tabular"], "recipes": RECIPES[:1], "num_seeds": 1}
        >>> report = verify("one-two", key=jax.random.key(0), **options)
        >>> plot.predicted_vs_reached(report).get_xlabel()
        'mode probability in the target'
    """
    with look.drawing(ax, figsize=(5.4, 3.8)) as ax:
        groups = list(report.groups())
        policies = list(dict.fromkeys(policy for policy, *_ in groups))
        markers = dict(zip(policies, itertools.cycle(_MARKERS), strict=False))
        recipes = list(dict.fromkeys(recipe for _, recipe, _ in groups))
        pairs = [(x, y) for *_, runs in groups for run in runs for x, y in _masses(run)]
        least = min((x for pair in pairs if pair[0] >= _LEAST_MASS for x in pair), default=1.0)
        low = max(10.0 ** np.floor(np.log10(max(least, 1e-300))), _LEAST_MASS / 10)
        points = {"s": 15, "linewidths": 0.8, "alpha": 0.75, "rasterized": True, **style}
        # Small and hollow, those that spread most first: the others stay visible.
        for policy, recipe, runs in sorted(groups, key=lambda group: -policies.index(group[0])):
            x, y = np.array([pair for run in runs for pair in _masses(run)]).T
            shown = x >= _LEAST_MASS
            y = np.maximum(y, low)
            ring = {"facecolors": "none", "edgecolors": look.color(recipes.index(recipe))}
            depth = 4 if policy == policies[0] else 3
            ax.scatter(x[shown], y[shown], marker=markers[policy], zorder=depth, **ring, **points)
        ax.plot([low, 1], [low, 1], color=look.GREY, lw=1.2, zorder=2)
        ax.set(xscale="log", yscale="log", xlim=(low, 1.4), ylim=(0.8 * low, 1.4))
        ax.set(xlabel="mode probability in the target", ylabel="reached by training")
        for r, recipe in enumerate(recipes):
            ax.plot([], [], ls="", marker="o", ms=5, color=look.color(r), label=recipe)
        for policy, marker in markers.items():
            hollow = {"marker": marker, "mfc": "none", "mec": look.ink()}
            ax.plot([], [], ls="", ms=5, label=policy, **hollow)
        unshown = sum(x < _LEAST_MASS for x, _ in pairs)
        if unshown:
            look.unseen(ax, f"{unshown:,} below {_LEAST_MASS:g} not shown")
        lost = sum(x >= _LEAST_MASS and y < low for x, y in pairs)
        if lost:
            look.unseen(ax, f"{lost:,} at the lower edge: reached less")
        look.legend_beside(ax)
    return ax


def _masses(run: Any) -> list[tuple[float, float]]:
    """Of each mode the mass in the target and the mass that was reached."""
    return list(zip(map(float, run.target_mode_mass), map(float, run.mode_mass), strict=True))


def training(
    run: Run,
    *,
    target: Target | None = None,
    metric: str = "expected_reward",
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws what runs measured on their way, with the target as a horizontal asymptote.

    Args:
        run: what a trainer such as :func:`kltarget.training.fine_tune` returned; a line per run.
        target: targets of the runs; their batch axes broadcast against those of the runs.
        metric: one of "expected_reward" (before its scale), "reverse_kl", "forward_kl", "entropy",
            "gap" (reward units) and "gradient_norm"; the last two have 0 as their asymptote and are
            drawn on a logarithmic scale.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the lines.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Raises:
        ValueError: there is no such metric, nothing was measured or the targets do not fit the
            runs.

    Example:
        >>> import jax, jax.numpy as jnp, kltarget as kt
        >>> from kltarget import plot
        >>> from kltarget.recipes import Recipe
        >>> from kltarget.policies import TabularPolicy
        >>> from kltarget.training import fine_tune
        >>> policy = TabularPolicy(vocab_size=3, length=1)
        >>> params, reward = policy.init(key=jax.random.key(0)), jnp.array([1.0, 0.0, 0.5])
        >>> run = fine_tune(
        ...     policy, params, reward, Recipe(), beta=0.5, learning_rate=0.1, num_steps=100
        ... )
        >>> log_ref = policy.conditionals(params, kt.SequenceSpace(3, 1))[0][0]
        >>> target = kt.solve(kt.Objective(reward, log_ref, 0.5))
        >>> plot.training(run, target=target).get_xlabel()
        'gradient step'
    """
    if metric not in _METRICS:
        listed = ", ".join(map(repr, _METRICS))
        raise ValueError(f"metric must be one of {listed}, got {metric!r}")
    if not len(run.history.step):
        raise ValueError("run measured nothing: train with measure=True to see how it went")
    values = np.asarray(getattr(run.history, metric), float).reshape(-1, len(run.history.step))
    beta = np.asarray(run.beta, float).reshape(-1)
    ends = _asymptotes(run, target, metric)
    return _lines(run.history.step, values, ends, beta, metric, ax, style)


def _asymptotes(run: Run, target: Target | None, metric: str) -> np.ndarray | None:
    if target is None or metric in _VANISHING:
        return None
    batch = np.shape(run.status)
    log_probs = normalised(target.log_probs)
    try:
        np.broadcast_to(np.empty(log_probs.shape[:-1]), batch)
    except ValueError:
        raise ValueError(
            f"target has batch shape {log_probs.shape[:-1]}, which does not broadcast to the "
            f"runs' {batch}"
        ) from None
    if metric == "expected_reward":
        gain = np.where(np.isneginf(log_probs), 0, np.asarray(target.objective.reward, float))
        ends = (np.exp(log_probs) * gain).sum(-1) / np.asarray(run.reward_scale, float)
    else:
        with double_precision():
            p = jnp.asarray(log_probs)
            q = jnp.broadcast_to(jnp.asarray(target.objective.log_ref, float), p.shape)
            ends = {"reverse_kl": kl(p, q), "forward_kl": kl(q, p), "entropy": entropy(p)}[metric]
    return np.broadcast_to(ends, batch).reshape(-1)


def _lines(
    step: np.ndarray,
    values: np.ndarray,
    ends: np.ndarray | None,
    beta: np.ndarray,
    metric: str,
    ax: Axes | None,
    style: dict[str, Any],
) -> Axes:
    with look.drawing(ax) as ax:
        levels, place = np.unique(beta, return_inverse=True)
        colors = look.shades(levels.size)
        names, left_out = look.named([f"β = {b:.4g}" for b in levels])
        for name, shade in zip(names, colors, strict=False):
            ax.plot([], [], color=shade, label=name)
        for row, shade in zip(values, colors[place], strict=True):
            ax.plot(step, row, **{"color": shade, "lw": 1.2, "zorder": 3, **style})
        if ends is not None:
            ax.plot([], [], color=look.ink(), lw=0.9, ls=look.DASHED, label="target")
            for end, shade in zip(ends, colors[place], strict=True):
                ax.axhline(end, color=shade, lw=0.9, ls=look.DASHED, zorder=2)
        ax.set(xlabel="gradient step", ylabel=_METRICS[metric])
        if metric in _VANISHING:
            ax.set_yscale("log")
        ax.margins(x=0)
        look.legend_beside(ax, title=left_out or None)
    return ax


def distances(report: Report, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Draws the median total variation of each policy and recipe from each target.

    These are the four of ``verification.TARGETS``, and those of terms of one's own that were run.

    Args:
        report: what :func:`kltarget.verification.verify` found.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the image.

    Returns:
        The axes. The target of each recipe is framed: dark means near.

    Example:
        >>> import jax
        >>> from kltarget import plot
        >>> from kltarget.verification import RECIPES, verify
        >>> options = {"policies": ["tabular"], "recipes": RECIPES[:1], "num_seeds": 1}
        >>> report = verify("one-two", key=jax.random.key(0), **options)
        >>> plot.distances(report).get_title(loc="left")
        'total variation from each target'
    """
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    with look.drawing(ax) as ax:
        groups = list(report.groups())
        own = {run.target for *_, runs in groups for run in runs}
        shown = [name for name in groups[0][2][0].tv if name in TARGETS or name in own]
        tvs = [[np.median([x.tv[name] for x in runs]) for name in shown] for *_, runs in groups]
        table = np.array(tvs)
        norm = LogNorm(1e-5, 1.0, clip=True)
        options = {"cmap": "viridis", "norm": norm, "aspect": "auto", **style}
        ax.imshow(np.maximum(table, 1e-9), **options)
        room = len(shown) <= len(TARGETS) and not look.is_narrow(ax)
        size = "small" if room else "x-small"
        centred: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size}
        frame = {"fill": False, "ec": "#d55e00", "lw": 2.2, "zorder": 4}
        for i, (_, _, runs) in enumerate(groups):
            for j, name in enumerate(shown):
                look_of_own: dict[str, Any] = (
                    {"fontweight": "bold"} if name == runs[0].target else {}
                )
                shade = "white" if table[i, j] < 5e-3 else "black"
                ax.text(j, i, _brief(table[i, j]), color=shade, **centred, **look_of_own)
                if name == runs[0].target:
                    ax.add_patch(Rectangle((j - 0.47, i - 0.46), 0.94, 0.92, **frame))
        names = [title_of(name) for name in shown]
        narrow = look.is_narrow(ax)
        if len(shown) <= len(TARGETS) and not narrow:
            ax.set_xticks(range(len(shown)), [name.replace(" ", "\n", 1) for name in names])
        else:  # or terms of one's own bring columns of their own
            ax.set_xticks(range(len(shown)), names, rotation=35, ha="right", rotation_mode="anchor")
        rows = [f"{policy}: {recipe}" for policy, recipe, _ in groups]
        ax.set_yticks(range(len(groups)), rows)
        ax.tick_params(length=0)
        if narrow:
            ax.tick_params(labelsize="x-small")
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.set_title(f"{'TV' if narrow else 'total variation'} from each target", color=look.ink())
    return ax


def verification(report: Report) -> Figure:
    """Three panels: modes predicted and reached, targets told apart, rewards on their way.

    Args:
        report: what :func:`kltarget.verify` returned.
    """
    with look.in_style():
        groups = list(report.groups())
        # No wider than what a telephone shows legibly.
        below = 1.1 + 0.36 * len(groups)
        figure = look.new_figure(figsize=(6.4, 7.0 + below))
        # Each is laid out by itself: the legend of one takes no room from the others.
        parts: Any = figure.subfigures(3, 1, height_ratios=(3.9, below, 3.1))
        first, middle, last = (part.subplots() for part in parts)
        predicted_vs_reached(report, ax=first)
        first.set_title("modes: predicted and reached")
        distances(report, ax=middle)
        policy, recipe, runs = groups[-1]
        scale = runs[0].reward_scale
        runs = [run for run in runs if run.reward_scale == scale]
        longest = max((run.step for run in runs), key=len)
        values = [np.pad(x.history, (0, len(longest) - len(x.history)), "edge") for x in runs]
        ends = np.array([run.target_expected_reward for run in runs])
        beta = np.array([run.beta for run in runs])
        _lines(longest, np.array(values), ends, beta, "expected_reward", last, {})
        last.set_title(f"{policy}: {recipe}, reward scale {scale:g}")
        parts[0].suptitle(report.problem, x=0.01, ha="left", fontsize=12.5)
    return figure


def _brief(x: float) -> str:
    return f"{x:.2f}" if x >= 0.1 else f"{x:.3f}" if x >= 1e-3 else f"{x:.0e}"
