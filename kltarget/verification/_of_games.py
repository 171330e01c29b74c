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

from kltarget._core.checks import positive
from kltarget._core.progress import progress_bar
from kltarget.spaces import MarkovGame, MatrixGame
from kltarget.targets.games import Equilibrium, solve_game
from kltarget.tasks import GameTask, load_game
from kltarget.training import mirror_prox, self_play
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
    num_steps: int = 8000,
    learning_rate: float = 0.5,
    progress: bool = False,
) -> SpaceReport:
    """Trains pairs of softmax policies against each other and compares them with the equilibrium.

    Each trains by exact gradients, by sampled ones, and is followed by Mirror Prox from the
    references: three ways that know payoffs alone.

    Args:
        task: a game of one stage or its name.
        key: a random key.
        beta: coefficients, in reward units per nat, a few numbers.
        num_seeds: pairs of policies per β; the first starts at the references.
        num_steps: gradient steps of each player, and half as many with samples.
        learning_rate: of plain gradient steps.
        progress: show a bar.

    Returns:
        A row per run. The checks: gaps and distances of exact training, what remains of sampled
        training, actions of equal payoffs in their reference ratio, and the rate of Mirror Prox.

    Raises:
        ValueError: no such game, a game of many stages.

    Example:
        >>> import jax
        >>> from kltarget.verification import verify_game
        >>> report = verify_game("cycle", key=jax.random.key(0), beta=[0.5], num_seeds=2)
        >>> report.passed, len(report.runs)
        (True, 5)
    """
    task = load_game(task) if isinstance(task, str) else task
    game = task.game
    if isinstance(game, MarkovGame):
        raise ValueError(
            f"task {task.name!r} is a Markov game: self-play trains games of one stage, such as "
            "'cycle' and 'penalty'"
        )
    positive("num_seeds", num_seeds)
    positive("num_steps", num_steps, 2)
    betas = np.atleast_1d(np.asarray(beta, float))
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
    start = np.asarray(found.gap(found.row.objective.log_ref, found.column.objective.log_ref))
    checks = (
        _certified(found),
        *_reached(runs, "exact gradients", _NEAR),
        *_reached(runs, "Mirror Prox", _NEAR),
        _remaining(runs, dict(zip(betas.tolist(), start.tolist(), strict=True))),
        *_ratios(task, exact.log_row),
        _rate(game, found, path, betas),
    )
    described = (
        f"{task.name}: {task.description}",
        f"{game.num_actions[0]} × {game.num_actions[1]} actions, "
        f"β = {', '.join(f'{x:g}' for x in betas)}",
    )
    settings = {
        "beta": betas.tolist(),
        "num_seeds": num_seeds,
        "num_steps": num_steps,
        "learning_rate": learning_rate,
        "batch_size": _SAMPLES,
    }
    legend = (
        "TV: total variation of both policies from the equilibrium's, the larger of the two. gap: "
        "what both players could still gain by best answers."
    )
    return SpaceReport(task.name, described, settings, tuple(runs), checks, None, legend)


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
    return [
        {
            "trained by": way,
            "beta": float(betas[b]),
            "seed": seed,
            "TV": float(apart[seed, b]),
            "gap": float(gaps[seed, b]),
        }
        for b in range(len(betas))
        for seed in range(len(apart))
    ]


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


def _remaining(runs: list[dict[str, Any]], start: dict[float, float]) -> Check:
    """Noise leaves policies scattered; on average most of what could be gained is gone."""
    own = [run for run in runs if run["trained by"] == "sampled gradients"]
    share = max(
        float(np.mean([run["gap"] for run in own if run["beta"] == b])) / gap
        for b, gap in start.items()
    )
    name = "sampled gradients: a tenth of the references' gap is left at most"
    return Check(name, share < 0.1, f"{share:.1%} of it")


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
    bound = kl[0] * (1 + betas / half) ** -steps
    worst = float((kl - bound * (1 + 1e-5)).max())
    passed = worst <= 1e-6
    return Check("Mirror Prox is as fast as its bound", passed, f"above it by {max(worst, 0):.1e}")


def _kl(log_p: Any, log_q: Any) -> np.ndarray:
    log_p, log_q = np.asarray(log_p, float), np.asarray(log_q, float)
    on = log_p > -np.inf
    ratio = np.where(on, log_p, 0.0) - np.where(on, log_q, 0.0)
    return (np.exp(log_p) * ratio).sum(-1)
