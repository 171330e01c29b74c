"""Two policies of a Markov game trained against each other beside the equilibrium."""

from __future__ import annotations

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from kltarget._core.progress import progress_bar
from kltarget.spaces import MarkovGame
from kltarget.targets.games import MarkovEquilibrium, solve_game
from kltarget.tasks import GameTask
from kltarget.training import SelfPlay, self_play
from kltarget.verification._annealed_adam import annealed_adam
from kltarget.verification._asked_runs import asked_runs, described, runs_of
from kltarget.verification._report import Check
from kltarget.verification._space_report import SpaceReport

_NEAR = 1e-3
_LEGEND = (
    "TV: total variation of the policies from the equilibrium's, the largest of any state, step "
    "and player. value: how far what the pair gets is from the equilibrium's value, and gap: what "
    "both players could still gain by best answers, each from the state where that is most."
)


def verify_markov_game(
    task: GameTask,
    game: MarkovGame,
    *,
    key: Shaped[Array, ""],
    beta: Any,
    num_seeds: int,
    num_steps: int,
    learning_rate: float,
    progress: bool,
) -> SpaceReport:
    """:func:`kltarget.verification.verify_game` of a Markov game."""
    betas, settings = asked_runs(beta, num_seeds, num_steps, learning_rate)
    at = jnp.asarray(betas, game.reward.dtype)
    with progress_bar(progress, total=2, unit="way") as bar:
        found: Any = solve_game(game, task.log_ref, at)
        found.raise_if_failed()
        bar.update(1)
        trained = self_play(
            game,
            task.log_ref,
            at,
            learning_rate=learning_rate,
            num_steps=num_steps,
            key=key,
            num_seeds=num_seeds,
            optimizer=annealed_adam(num_steps),
        )
        bar.update(1)
    pair = tuple(np.asarray(x, float) for x in (trained.log_row, trained.log_column))
    best = tuple(np.asarray(x.log_probs, float) for x in (found.stages.row, found.stages.column))
    gaps = np.stack(
        [_gaps(found, trained.log_row[k], trained.log_column[k]) for k in range(num_seeds)]
    )
    worth = _worth(task, game, betas, *pair)
    numbers = {
        "TV": np.maximum(*(_apart(x, y) for x, y in zip(pair, best, strict=True))),
        "value": np.abs(worth - np.asarray(found.value, float)).max(-1),
        "gap": gaps.max(-1),
    }
    scale = max(1.0, float(np.abs(np.asarray(found.value)).max()))
    checks = (
        _certified(found, scale),
        Check(f"TV below {_NEAR:g}", *_below(numbers["TV"], _NEAR)),
        Check(
            "values off by less than 1e-5 of their size", *_below(numbers["value"] / scale, 1e-5)
        ),
        Check("gap below 1e-5 of the values", *_below(numbers["gap"] / scale, 1e-5)),
        _measured_alike(task, found, trained, gaps, scale),
        *_ratios(task, game, pair[0]),
    )
    steps = "without end" if game.horizon is None else f"{game.horizon} steps"
    size = f"{game.num_states} states, {' × '.join(map(str, game.num_actions))} actions, {steps}"
    rows = runs_of(betas, {"trained by": "exact gradients"}, numbers)
    head = described(task, betas, f"{size}, γ = {float(game.discount):g}")
    return SpaceReport(task.name, head, settings, tuple(rows), checks, None, _LEGEND)


def _below(x: np.ndarray, bar: float) -> tuple[bool, str]:
    return bool(x.max() < bar), f"at most {max(x.max(), 0.0):.1e}"


def _apart(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """The largest total variation of any state and step, ``[num_seeds, B]``."""
    apart = np.abs(np.exp(log_p) - np.exp(log_q)).sum(-1) / 2
    return apart.reshape(*apart.shape[:2], -1).max(-1)


def _gaps(found: MarkovEquilibrium, log_row: Any, log_column: Any) -> np.ndarray:
    return np.asarray(found.gap(log_row, log_column), float)


def _pair(task: GameTask, game: MarkovGame) -> list[np.ndarray]:
    """Both references of every state."""
    pair = task.log_ref if isinstance(task.log_ref, tuple) else (task.log_ref,) * 2
    return [np.broadcast_to(x, (game.num_states, x.shape[-1])) for x in pair]


def _worth(
    task: GameTask, game: MarkovGame, betas: np.ndarray, log_row: np.ndarray, log_column: np.ndarray
) -> np.ndarray:
    """What pairs get from each state on, both regularisers included, in NumPy alone."""
    transition, reward = (np.asarray(x, float) for x in (game.transition, game.reward))
    discount = float(game.discount)
    chances = np.exp(log_row)[..., :, None] * np.exp(log_column)[..., None, :]
    costs = [_kl(x, y) for x, y in zip((log_row, log_column), _pair(task, game), strict=True)]
    wide = betas.reshape(-1, *(1,) * (costs[0].ndim - 2))
    paid = (chances * reward).sum((-1, -2)) - wide * (costs[0] - costs[1])
    moves = np.einsum("...sab,sabt->...st", chances, transition)
    if game.horizon is None:
        matrix = np.eye(game.num_states) - discount * moves
        return np.linalg.solve(matrix, paid[..., None])[..., 0]
    values = np.zeros_like(paid[..., 0, :])
    for step in reversed(range(game.horizon)):
        after = np.einsum("...st,...t->...s", moves[..., step, :, :], values)
        values = paid[..., step, :] + discount * after
    return values


def _kl(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    on = log_p > -np.inf
    ratio = np.where(on, log_p, 0.0) - np.where(on, log_q, 0.0)
    return (np.exp(log_p) * ratio).sum(-1)


def _certified(found: MarkovEquilibrium, scale: float) -> Check:
    gap = float(np.max(np.asarray(found.duality_gap))) / scale
    name = "the equilibrium's own gap is rounding"
    return Check(name, gap < 1e-6, f"at most {max(gap, 0.0):.1e} of the values")


def _measured_alike(
    task: GameTask, found: MarkovEquilibrium, trained: SelfPlay, gaps: np.ndarray, scale: float
) -> Check:
    """The gap by what training knows, iteration alone, and by the equilibrium's targets."""
    game, shapes = found.game, [x.shape[1:] for x in (trained.log_row, trained.log_column)]
    refs = [
        jnp.broadcast_to(jnp.asarray(x, trained.log_row.dtype), shape)
        for x, shape in zip(_pair(task, game), shapes, strict=True)
    ]
    begun = _gaps(found, *refs).mean(-1) - np.asarray(trained.gap[0, 0], float)
    ended = gaps.mean(-1) - np.asarray(trained.gap[-1], float)
    off = max(float(np.abs(x).max()) for x in (begun, ended)) / scale
    name = "two ways to measure the gap agree, before and after"
    return Check(name, off < 1e-5, f"off by {off:.1e} of the values at most")


def _ratios(task: GameTask, game: MarkovGame, log_row: np.ndarray) -> tuple[Check, ...]:
    """Actions of the row player that earn the same and lead to the same states."""
    transition, reward = (np.asarray(x, float) for x in (game.transition, game.reward))
    log_ref = _pair(task, game)[0]
    off, count = 0.0, 0
    for i, j in itertools.combinations(range(game.num_actions[0]), 2):
        same = (reward[:, i] == reward[:, j]).all(-1)
        same &= (transition[:, i] == transition[:, j]).all((-1, -2))
        same &= np.isfinite(log_ref[:, [i, j]]).all(-1)
        if same.any():
            odds = (log_row[..., i] - log_row[..., j])[..., same]
            off = max(off, float(np.abs(odds - (log_ref[:, i] - log_ref[:, j])[same]).max()))
            count += int(same.sum())
    if not count:
        return ()
    name = "actions that change nothing keep their ratio"
    return (Check(name, off < 0.02, f"{count} pairs, log odds off by at most {off:.1e}"),)
