"""``verify_game``: two policies trained against each other beside the equilibrium."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from kltarget._core.progress import progress_bar
from kltarget.spaces import MarkovGame, MatrixGame, PreferenceGame
from kltarget.targets.games import Equilibrium, solve_game
from kltarget.tasks import GameTask, load_game
from kltarget.training import mirror_prox, self_play
from kltarget.verification._asked_runs import asked_runs, described, runs_of
from kltarget.verification._of_markov_games import verify_markov_game
from kltarget.verification._report import Check
from kltarget.verification._space_report import SpaceReport

_NEAR = 1e-3
_SAMPLES = 64


def verify_game(
    task: str | GameTask,
    *,
    key: Shaped[Array, ""],
    beta: ArrayLike | Sequence[float] = (0.2, 1.0),
    num_seeds: int = 4,
    num_steps: int | None = None,
    learning_rate: float | None = None,
    progress: bool = False,
) -> SpaceReport:
    """Trains pairs of softmax policies against each other and compares them with the equilibrium.

    A game of one stage is played by exact gradients, by sampled ones, and by Mirror Prox from the
    references: three ways that know payoffs alone. A Markov game is played by exact gradients of
    the pair's values, at every state and step.

    Args:
        task: a game or its name (:func:`kltarget.tasks.game_names`).
        key: a random key.
        beta: coefficients, in reward units per nat, a few numbers.
        num_seeds: pairs of policies per β; the first starts at the references.
        num_steps: gradient steps of each player, and half as many with samples. Default: 8000, and
            2000 in a Markov game.
        learning_rate: of plain gradient steps, 0.5 by default; in a Markov game that of Adam, which
            fades to nothing, 0.05 by default.
        progress: show a bar.

    Returns:
        A row per run. The checks: gaps and distances of exact training, what remains of sampled
        training, actions of equal payoffs in their reference ratio, and the rate of Mirror Prox. Of
        a Markov game: distances, values and gaps; that the gap measured by the equilibrium is that
        measured by training; actions that change nothing in their ratio.

    Raises:
        ValueError: no such game, values out of range.

    Example:
        >>> import jax
        >>> from kltarget.verification import verify_game
        >>> report = verify_game("cycle", key=jax.random.key(0), beta=[0.5], num_seeds=2)
        >>> report.passed, len(report.runs)
        (True, 5)
    """
    task = load_game(task) if isinstance(task, str) else task
    game = task.game
    usual = (2000, 0.05) if isinstance(game, MarkovGame) else (8000, 0.5)
    options: dict[str, Any] = {
        "key": key,
        "beta": beta,
        "num_seeds": num_seeds,
        "num_steps": usual[0] if num_steps is None else num_steps,
        "learning_rate": usual[1] if learning_rate is None else learning_rate,
        "progress": progress,
    }
    if isinstance(game, MarkovGame):
        return verify_markov_game(task, game, **options)
    return _verify_matrix_game(task, game, **options)


def _verify_matrix_game(
    task: GameTask,
    game: PreferenceGame | MatrixGame,
    *,
    key: Shaped[Array, ""],
    beta: Any,
    num_seeds: int,
    num_steps: int,
    learning_rate: float,
    progress: bool,
) -> SpaceReport:
    betas, settings = asked_runs(beta, num_seeds, num_steps, learning_rate, least_steps=2)
    at = jnp.asarray(betas)
    found = solve_game(game, task.log_ref, at).raise_if_failed()
    first, second = jax.random.split(key)
    shared: dict[str, Any] = {"num_seeds": num_seeds}
    runs: list[dict[str, Any]] = []
    with progress_bar(progress, total=3, unit="way") as bar:
        exact = self_play(
            game,
            task.log_ref,
            at,
            learning_rate=learning_rate,
            num_steps=num_steps,
            key=first,
            **shared,
        )
        runs += _rows("exact gradients", found, betas, exact.log_row, exact.log_column)
        bar.update(1)
        drawn = self_play(
            game,
            task.log_ref,
            at,
            learning_rate=0.01,
            num_steps=num_steps // 2,
            key=second,
            batch_size=_SAMPLES,
            optimizer=_fading(num_steps // 2),
            **shared,
        )
        runs += _rows("sampled gradients", found, betas, drawn.log_row, drawn.log_column)
        bar.update(1)
        steps = 400
        path = mirror_prox(game, task.log_ref, at, num_steps=steps)
        runs += _rows("Mirror Prox", found, betas, path.log_row[-1:], path.log_column[-1:])
        bar.update(1)
    start: Any = np.asarray(found.gap(found.row.objective.log_ref, found.column.objective.log_ref))
    checks = (
        _certified(found),
        *_reached(runs, "exact gradients", _NEAR),
        *_reached(runs, "Mirror Prox", _NEAR),
        _remaining(game, runs, betas, start),
        *_ratios(task, exact.log_row),
        _rate(game, found, path, betas),
    )
    head = described(task, betas, f"{' × '.join(map(str, game.num_actions))} actions")
    settings |= {"batch_size": _SAMPLES}
    legend = (
        "TV: total variation of both policies from the equilibrium's, the larger of the two. gap: "
        "what both players could still gain by best answers."
    )
    return SpaceReport(task.name, head, settings, tuple(runs), checks, None, legend)


@functools.cache
def _fading(num_steps: int) -> Any:
    """Adam with steps that fade to nothing, so that the samples' noise is averaged in the end."""
    return lambda rate: optax.adam(optax.linear_schedule(rate, 0.0, num_steps))


def _rows(
    way: str, found: Equilibrium, betas: np.ndarray, log_row: Any, log_column: Any
) -> list[dict[str, Any]]:
    gaps = np.asarray(found.gap(log_row, log_column))
    apart = np.maximum(
        _distance(log_row, found.row.log_probs), _distance(log_column, found.column.log_probs)
    )
    return runs_of(betas, {"trained by": way}, {"TV": apart, "gap": gaps})


def _distance(log_p: Any, log_q: Any) -> np.ndarray:
    return np.abs(np.exp(np.asarray(log_p, float)) - np.exp(np.asarray(log_q, float))).sum(-1) / 2


def _certified(found: Equilibrium) -> Check:
    gap = float(np.max(np.asarray(found.duality_gap)))
    return Check("the equilibrium's own gap is rounding", gap < 1e-6, f"at most {gap:.1e}")


def _reached(runs: list[dict[str, Any]], way: str, bar: float) -> tuple[Check, Check]:
    own = [run for run in runs if run["trained by"] == way]
    apart, gap = max(run["TV"] for run in own), max(run["gap"] for run in own)
    return (
        Check(f"{way}: TV below {bar:g}", apart < bar, f"at most {apart:.1e}"),
        Check(f"{way}: gap below 1e-5", gap < 1e-5, f"at most {gap:.1e}"),
    )


def _remaining(
    game: PreferenceGame | MatrixGame, runs: list[dict[str, Any]], betas: np.ndarray, start: Any
) -> Check:
    """Noise leaves policies scattered; on average most of what could be gained is gone."""
    own = [run for run in runs if run["trained by"] == "sampled gradients"]
    left = np.array([np.mean([run["gap"] for run in own if run["beta"] == b]) for b in betas])
    # Noise stays also where the references leave nothing to be gained. Policies that are apart by
    # δ could gain about δ² times the square of the payoffs' range over β.
    noise = 1e-3 * float(np.ptp(np.asarray(game.payoff))) ** 2 / betas + 1e-6 * betas
    allowed = np.maximum(0.1 * start, noise)
    worst = int((left / allowed).argmax())
    name = "sampled gradients: a tenth of the references' gap is left at most"
    detail = f"{left[worst]:.1e} of {start[worst]:.1e} at β = {betas[worst]:g}"
    return Check(name, bool((left < allowed).all()), detail)


def _ratios(task: GameTask, log_row: Any) -> list[Check]:
    """Actions with equal payoffs change places with nobody."""
    payoff = np.asarray(task.game.payoff if not isinstance(task.game, MarkovGame) else 0.0)
    log_ref = task.log_ref[0] if isinstance(task.log_ref, tuple) else task.log_ref
    pairs = [
        (i, j)
        for i in range(len(payoff))
        for j in range(i)
        if np.array_equal(payoff[i], payoff[j]) and np.isfinite(log_ref[[i, j]]).all()
    ]
    checks = []
    for i, j in pairs:
        # The first seed starts at the reference.
        odds = np.asarray(log_row[0, ..., i] - log_row[0, ..., j], float)
        off = float(np.abs(odds - (log_ref[i] - log_ref[j])).max())
        names = f"{task.labels[0][j]} and {task.labels[0][i]}"
        checks.append(
            Check(f"{names} keep their ratio", off < 0.02, f"log odds off by at most {off:.1e}")
        )
    return checks


def _rate(game: Any, found: Equilibrium, path: Any, betas: np.ndarray) -> Check:
    """``KL ≤ KL₀ (1 + η)^{−k}`` at every step, with half the payoffs' range in η."""
    half = np.ptp(np.asarray(game.payoff)) / 2 if isinstance(game, MatrixGame) else 0.5
    kl = _kl(found.row.log_probs, path.log_row) + _kl(found.column.log_probs, path.log_column)
    steps = np.arange(len(kl), dtype=float)[:, None]
    bound = kl[0] * (half / (half + betas)) ** steps
    worst = float((kl - bound * (1 + 1e-5)).max())
    passed = worst <= 1e-6
    return Check("Mirror Prox is as fast as its bound", passed, f"above it by {max(worst, 0):.1e}")


def _kl(log_p: Any, log_q: Any) -> np.ndarray:
    log_p, log_q = np.asarray(log_p, float), np.asarray(log_q, float)
    on = log_p > -np.inf
    ratio = np.where(on, log_p, 0.0) - np.where(on, log_q, 0.0)
    return (np.exp(log_p) * ratio).sum(-1)
