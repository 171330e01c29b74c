"""Figures of games: equilibria against β, iterations against their rates, regret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from kltarget.plot import _style as look
from kltarget.spaces import MarkovGame, PreferenceGame
from kltarget.targets.games import Equilibrium, equilibrium_flips, solve_game
from kltarget.tasks import GameTask, load_game

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kltarget.training import BanditPlay, GamePath, OptimisticPlay

_ROUNDING = 1e-13


def equilibrium_path(
    task: str | GameTask,
    *,
    beta: ArrayLike | None = None,
    player: str = "row",
    state: int = 0,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws the probability of each action at the equilibrium against β, with its flips.

    Dashed are the reference's probabilities, to which a large β leads; circles are where the
    likeliest action changes.

    Args:
        task: a game or its name.
        beta: coefficients to solve it for, increasing, in reward units per nat. Default: 81 from
            0.01 to 10 times the range of payoffs.
        player: ``"row"`` or ``"column"``.
        state: of a Markov game in which state, at the first step.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the lines.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Raises:
        ValueError: a player or a state that there is not.

    Example:
        >>> from kltarget import plot
        >>> ax = plot.equilibrium_path("cycle")
        >>> [text.get_text() for text in ax.texts]
        ['0.0221', '0.0732']
    """
    task = load_game(task) if isinstance(task, str) else task
    game = task.game
    several = isinstance(game, MarkovGame)
    if player not in ("row", "column"):
        raise ValueError(f"player must be 'row' or 'column', got {player!r}")
    if beta is None:
        payoff = game.reward if several else game.payoff
        spread = float(np.ptp(np.asarray(payoff))) or 1.0
        beta = np.geomspace(0.01, 10, 81) * spread
    grid = np.asarray(beta, float)
    flips = equilibrium_flips(game, task.log_ref, grid, state=state)
    own = "row" if isinstance(game, PreferenceGame) else player
    flips = [x for x in flips if x.player == own]
    found: Any = solve_game(game, task.log_ref, grid)
    target, at = getattr(found.stages if several else found, player), 0 if player == "row" else 1
    probs = np.asarray(target.probs, float)
    probs = probs.reshape(len(grid), -1, probs.shape[-1])[:, state]
    pair = task.log_ref if isinstance(task.log_ref, tuple) else (task.log_ref,) * 2
    pair = [x if x.ndim == 1 else x[state] for x in pair]
    with look.drawing(ax) as ax:
        for k, name in enumerate(task.labels[at]):
            line = {**look.series(k), "label": look.short_label(name, 16), "zorder": 3}
            ax.plot(grid, probs[:, k], **{**line, **style})
            level = float(np.exp(pair[at][k]))
            ax.axhline(level, color=look.color(k), lw=0.9, ls=look.DASHED, zorder=2)
        ax.plot([], [], color=look.GREY, lw=0.9, ls=look.DASHED, label="reference")
        circle = {"ls": "", "marker": "o", "ms": 6.5, "mfc": look.paper(), "mec": look.ink()}
        for k, flip in enumerate(flips):
            level = float(np.interp(np.log(flip.beta), np.log(grid), probs[:, flip.below]))
            label = "_nolegend_" if k else "flip: both level"
            ax.plot([flip.beta], [level], label=label, zorder=5, **circle)
            # Flips are often close to each other: what is said of them goes apart.
            offset = (-5, 9) if k % 2 else (2, 20)
            number = look.short_number(flip.beta)
            look.note(ax, number, (flip.beta, level), offset, ha="right", zorder=6)
        top = 1.08 * max(float(probs.max()), *np.exp(pair[at]))
        ax.set(xscale="log", xlim=(grid[0], grid[-1]), ylim=(0, min(top, 1.03)))
        ax.set(xlabel="β, reward units per nat", ylabel="probability at the equilibrium")
        title = task.name if isinstance(game, PreferenceGame) else f"{task.name}, {player}"
        if several:
            ax.set_title(task.states[state] if task.states else f"state {state}", color=look.ink())
        look.legend_beside(ax, title=title)
    return ax


def game_rates(
    paths: dict[str, GamePath],
    equilibrium: Equilibrium,
    *,
    step_size: float | None = None,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws how iterations come near the equilibrium, beside the rate that theory gives.

    Args:
        paths: what :func:`kltarget.training.mirror_prox` and :func:`kltarget.training.nash_md`
            found in one game, by their names in the legend.
        equilibrium: the game's, without batch axes.
        step_size: η of Mirror Prox, whose bound ``KL₀ (1 + η)^{−k}`` is drawn if it is given.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the lines.

    Returns:
        The axes. What rounding of the policies hides is left out, of the bound too: what is below
        1e-7 in single precision and below 1e-13 in double precision.

    Raises:
        ValueError: there is nothing to draw, or there are batch axes.

    Example:
        >>> from kltarget import plot, tasks
        >>> from kltarget.targets.games import solve_game
        >>> from kltarget.training import mirror_prox
        >>> task = tasks.load_game("cycle")
        >>> path = mirror_prox(task.game, task.log_ref, 0.5, num_steps=20)
        >>> found = solve_game(task.game, task.log_ref, 0.5)
        >>> plot.game_rates({"Mirror Prox": path}, found, step_size=1.0).get_xlabel()
        'step'
    """
    if not paths:
        raise ValueError("paths is empty: give at least one")
    if np.ndim(equilibrium.value):
        raise ValueError("equilibrium has batch axes: give that of one game and one β")
    with look.drawing(ax) as ax:
        first, longest, hidden = 0.0, 0, False
        for k, (name, path) in enumerate(paths.items()):
            kl = _kl(equilibrium.row.log_probs, path.log_row)
            kl = kl + _kl(equilibrium.column.log_probs, path.log_column)
            if kl.ndim != 1:
                raise ValueError(f"paths: {name!r} has batch axes: give that of one game and one β")
            # Once it is rounding, it stays so.
            lost = np.logical_or.accumulate(kl <= _floor(path))
            shown, hidden = np.where(lost, np.nan, kl), hidden or bool(lost.any())
            line = {**look.series(k), "label": name, "zorder": 3}
            ax.plot(np.arange(len(kl)), shown, **{**line, **style})
            first, longest = max(first, float(kl[0])), max(longest, len(kl))
        if step_size is not None:
            steps = np.arange(longest)
            bound = first * (1 + step_size) ** -steps.astype(float)
            kept = bound > max(map(_floor, paths.values()))
            dashes = {"color": look.GREY, "ls": look.DASHED, "lw": 1.4, "zorder": 2}
            ax.plot(steps[kept], bound[kept], label="bound of Mirror Prox", **dashes)
        if hidden:
            look.unseen(ax, f"not shown: rounding, below {max(map(_floor, paths.values())):.0e}")
        ax.set(yscale="log", xlabel="step", ylabel="KL(equilibrium‖policies), nats")
        ax.margins(x=0)
        look.legend_beside(ax)
    return ax


def _floor(path: GamePath) -> float:
    """Below it divergences of policies in this dtype are rounding."""
    return max(_ROUNDING, float(np.finfo(np.asarray(path.log_row).dtype).eps))


def _kl(log_p: Any, log_q: Any) -> np.ndarray:
    log_p, log_q = np.asarray(log_p, float), np.asarray(log_q, float)
    on = np.isfinite(log_p)
    ratio = np.where(on, log_p, 0.0) - np.where(on, log_q, 0.0)
    return (np.exp(log_p) * ratio).sum(-1)


def regret(learnt: OptimisticPlay | BanditPlay, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Draws cumulative regret against rounds, beside what log T and √T would make of it.

    Both comparisons go through the mean regret at a sixteenth and at a quarter of the rounds, the
    two circles, and say what would come after.

    Args:
        learnt: what :func:`kltarget.training.optimistic_play` or
            :func:`kltarget.training.bandit_play` found, of at least 64 rounds.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the line of the mean.

    Returns:
        The axes. The band is where the middle nine tenths of the seeds are.

    Raises:
        ValueError: fewer than 64 rounds.

    Example:
        >>> import jax
        >>> from kltarget import plot, tasks
        >>> from kltarget.training import optimistic_play
        >>> task = tasks.load_game("penalty")
        >>> options = {"key": jax.random.key(0), "num_rounds": 256, "num_seeds": 4}
        >>> learnt = optimistic_play(task.game, task.log_ref, 0.5, **options)
        >>> plot.regret(learnt).get_xlabel()
        'rounds T'
    """
    total = np.asarray(learnt.regret, float)
    rounds = total.shape[1]
    if rounds < 64:
        raise ValueError(f"learnt has {rounds} rounds: growth is seen from 64 on")
    mean, at = total.mean(0), np.arange(1, rounds + 1)
    low, high = np.quantile(total, [0.05, 0.95], axis=0)
    begin, middle = rounds // 16, rounds // 4
    rise = mean[middle - 1] - mean[begin - 1]
    later = at >= begin
    logarithm = mean[begin - 1] + rise * np.log(at / begin) / np.log(middle / begin)
    root = mean[begin - 1] + rise * (np.sqrt(at / begin) - 1) / (np.sqrt(middle / begin) - 1)
    with look.drawing(ax) as ax:
        if len(total) > 1:
            shade = {"color": look.color(0), "alpha": 0.2, "lw": 0, "zorder": 2}
            ax.fill_between(at, low, high, label="nine tenths of the seeds", **shade)
        line = {"color": look.color(0), "label": f"mean of {len(total)}", "zorder": 4}
        ax.plot(at, mean, **{**line, **style})
        for values, name, dashes in (
            (logarithm, "as log T from there on", look.DASHED),
            (root, "as √T from there on", (0, (1.2, 1.6))),
        ):
            ax.plot(at[later], values[later], color=look.ink(), lw=1.2, ls=dashes, label=name)
        circle = {"ls": "", "marker": "o", "ms": 5, "mfc": look.paper(), "mec": look.ink()}
        ax.plot([begin, middle], mean[[begin - 1, middle - 1]], zorder=5, **circle)
        top = 1.1 * max(float(high[-1]), float(root[-1]))
        ax.set(xscale="log", xlim=(1, rounds), ylim=(0, top))
        ax.set(xlabel="rounds T", ylabel="regret, reward units")
        look.legend_beside(ax)
    return ax
