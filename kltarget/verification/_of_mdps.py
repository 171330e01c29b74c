"""``verify_mdp``: policies of a decision process trained by gradients beside the optimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from kltarget._core.progress import progress_bar
from kltarget.spaces import MDP
from kltarget.targets.mdps import MDPTarget, solve_mdp
from kltarget.tasks import MDPTask, load_mdp
from kltarget.training import fine_tune_mdp
from kltarget.verification._annealed_adam import annealed_adam
from kltarget.verification._asked_runs import asked_runs, described
from kltarget.verification._report import Check
from kltarget.verification._space_report import SpaceReport

_ITERATIONS = 16
_WIDTH = 16
_NEAR = 1e-3
_LEGEND = (
    "TV: total variation of the actions from the optimum's, over the states that it meets. "
    "states: of how long each state is met. gap: J* − J. residual: how far "
    "Q − β log π/π_ref is from V, in reward units, over what the policy does."
)


def verify_mdp(
    task: str | MDPTask,
    *,
    key: Shaped[Array, ""],
    beta: ArrayLike | Sequence[float] = (0.1, 0.5),
    num_seeds: int = 3,
    num_steps: int = 1000,
    learning_rate: float = 0.1,
    progress: bool = False,
) -> SpaceReport:
    """Trains policies of a decision process and compares them with the best one.

    Tables and small networks by exact gradients, and a table by natural gradient steps of 1/β.

    Args:
        task: a decision process or its name (:func:`kltarget.tasks.mdp_names`).
        key: a random key.
        beta: coefficients, in reward units per nat, a few numbers.
        num_seeds: policies per β and way; the first starts at the reference.
        num_steps: gradient steps; natural gradients take 16.
        learning_rate: of Adam, which fades to nothing; networks take a third of it.
        progress: show a bar.

    Returns:
        A row per run. The checks: what is left of the objective, of policies and of how long states
        are met; that no run is above the maximum; that trained policies are path consistent,
        ``Q − β log π/π_ref = V``; that ``J* − J = β Σ γ^t E KL(π‖π*)``; that goals of equal reward
        keep the reference's ratio.

    Raises:
        ValueError: no such process, values out of range.

    Example:
        >>> import jax
        >>> from kltarget.verification import verify_mdp
        >>> options = {"beta": [0.5], "num_seeds": 1, "num_steps": 200}
        >>> report = verify_mdp("five-arms", key=jax.random.key(0), **options)
        >>> report.passed, len(report.runs)
        (True, 3)
    """
    task = load_mdp(task) if isinstance(task, str) else task
    betas, settings = asked_runs(beta, num_seeds, num_steps, learning_rate)
    at = jnp.asarray(betas, task.mdp.reward.dtype)
    target = solve_mdp(task.mdp, task.log_ref, at).raise_if_failed()
    adam = {"num_steps": num_steps, "optimizer": annealed_adam(num_steps), "num_seeds": num_seeds}
    first, second = jax.random.split(key)
    natural = {"learning_rate": 1 / at, "num_steps": _ITERATIONS, "natural": True}
    network = {"learning_rate": learning_rate / 3, "width": _WIDTH, "key": second}
    ways: dict[str, dict[str, Any]] = {
        "gradient": {"learning_rate": learning_rate, "key": first, **adam},
        "natural gradient": natural,
        "network": {**network, **adam},
    }
    rows: list[dict[str, Any]] = []
    with progress_bar(progress, total=len(ways), unit="way") as bar:
        for name, options in ways.items():
            trained = fine_tune_mdp(task.mdp, task.log_ref, at, **options).log_policy
            rows += _rows(name, task, target, betas, np.asarray(trained, float))
            bar.update(1)
    size = (
        f"{task.mdp.num_states} × {task.mdp.num_actions} states and actions, "
        f"γ = {float(task.mdp.discount):g}"
    )
    head = described(task, betas, size)
    shown = ("trained by", "beta", "seed", "reward", "TV", "states", "gap", "residual")
    checks = _checks(task, target, rows, betas)
    return SpaceReport(task.name, head, settings, tuple(rows), checks, shown, _LEGEND)


def _rows(
    way: str, task: MDPTask, target: MDPTarget, betas: np.ndarray, trained: np.ndarray
) -> list[dict[str, Any]]:
    rows = []
    for seed, b in np.ndindex(trained.shape[:2]):
        log_policy, best = trained[seed, b], np.asarray(target.log_policy[b], float)
        coefficient = float(betas[b])
        own = _met_and_earned(task.mdp, task.log_ref, log_policy, coefficient)
        its = _met_and_earned(task.mdp, task.log_ref, best, coefficient)
        policy, apart = np.exp(log_policy), np.abs(np.exp(log_policy) - np.exp(best)).sum(-1) / 2
        on = policy > 0
        ratio = np.where(on, log_policy, 0.0) - np.where(on, best, 0.0)
        total = own["met"].sum()
        row = {
            "trained by": way,
            "beta": coefficient,
            "seed": seed,
            "reward": own["reward"],
            "TV": float(its["met"] @ apart / its["met"].sum()),
            "states": float(np.abs(own["met"] - its["met"]).sum() / 2 / total),
            "gap": float(target.value[b]) - own["objective"],
            "residual": float(own["met"] @ (policy * np.abs(own["residual"])).sum(-1) / total),
            "beta KL": float(coefficient * own["met"] @ (policy * ratio).sum(-1)),
            "steps": float(total),
        }
        for goal, mass in zip(task.goals, _masses(task, log_policy), strict=True):
            row[f"mass of {task.states[goal]}"] = float(mass)
        rows.append(row)
    return rows


def _masses(task: MDPTask, log_policy: np.ndarray) -> np.ndarray:
    return task.goal_masses(log_policy) if task.goals else np.zeros(0)


def _met_and_earned(
    mdp: MDP, log_ref: np.ndarray, log_policy: np.ndarray, beta: float
) -> dict[str, Any]:
    """What a policy meets and earns, by linear equations in NumPy alone."""
    transition, reward = (np.asarray(x, float) for x in (mdp.dense_transition, mdp.reward))
    discount, start, policy = float(mdp.discount), np.asarray(mdp.start, float), np.exp(log_policy)
    on = policy > 0
    reward = np.where(on, reward, 0.0)
    cost = beta * (np.where(on, log_policy, 0.0) - np.where(on, log_ref, 0.0))
    matrix = np.eye(len(start)) - discount * np.einsum("sa,sat->st", policy, transition)
    met = np.linalg.solve(matrix.T, start)
    values = np.linalg.solve(matrix, (policy * (reward - cost)).sum(-1))
    residual = reward + discount * transition @ values - cost - values[:, None]
    return {
        "met": met,
        "reward": float(met @ (policy * reward).sum(-1)),
        "objective": float(start @ values),
        "residual": np.where(on, residual, 0.0),
    }


def _checks(
    task: MDPTask, target: MDPTarget, rows: list[dict[str, Any]], betas: np.ndarray
) -> tuple[Check, ...]:
    most = {name: max(row[name] for row in rows) for name in ("TV", "states")}
    # What is left is small beside what the reference leaves, of the actions that there are.
    present = np.where(np.asarray(task.mdp.reward) > -np.inf, task.log_ref, -np.inf)
    first = present - np.logaddexp.reduce(present, axis=-1, keepdims=True)
    at_start = {
        float(beta): float(target.value[b])
        - _met_and_earned(task.mdp, task.log_ref, first, float(beta))["objective"]
        for b, beta in enumerate(betas)
    }
    # Where nothing is to be earned, the regulariser's own size is that of everything.
    scale = max(float(np.abs(np.asarray(target.value)).max()), 0.1 * float(betas.max()))
    rounding = 300 * float(jnp.finfo(target.value.dtype).eps) * scale
    residual = max(row["residual"] for row in rows) / scale
    off = max(abs(row["gap"] - row["beta KL"]) for row in rows)
    # Beside a reference that is the optimum: what rounds, and what says by Pinsker's inequality,
    # gap = β Σ γ^t E KL >= 2 β Σ γ^t E TV², that the actions are as near as they are asked to be.
    left = []
    for row in rows:
        near = 2 * row["beta"] * row["steps"] * _NEAR**2
        left.append(row["gap"] / max(at_start[row["beta"]], 1e3 * max(rounding, near)))
    lowest = min(row["gap"] for row in rows)
    quick = max(row["TV"] for row in rows if row["trained by"] == "natural gradient")
    checks = (
        Check("a thousandth of the reference's gap is left at most", max(left) < 1e-3, _at(left)),
        Check("no run is above the maximum", lowest > -rounding, f"gaps from {lowest:.1e}"),
        *(
            Check(f"{name} apart by less than {_NEAR:g}", far < _NEAR, f"at most {far:.1e}")
            for name, far in (("actions", most["TV"]), ("states", most["states"]))
        ),
        Check(
            f"{_ITERATIONS} natural steps of 1/β are there",
            quick < 1e-4,
            f"actions apart by {quick:.1e}",
        ),
        Check(
            "trained policies are path consistent",
            residual < _NEAR,
            f"off by {residual:.1e} of the values at most",
        ),
        Check(
            "J* − J is β times the KL from the optimum",
            off < rounding,
            f"off by {off:.1e} at most",
        ),
    )
    return checks + _ratios(task, rows)


def _at(shares: list[float]) -> str:
    return f"{max(*shares, 0.0):.1e} of it"


def _ratios(task: MDPTask, rows: list[dict[str, Any]]) -> tuple[Check, ...]:
    """Goals that pay the same, between which no β moves mass."""
    paid = [_paid(task, goal) for goal in task.goals]
    if len(paid) < 2 or not np.allclose(paid, paid[0]):
        return ()
    wanted = task.goal_masses(task.log_ref)
    names = [f"mass of {task.states[goal]}" for goal in task.goals]
    found = [[row[name] for name in names] for row in rows]
    off = float(np.abs(np.array(found) - wanted).max())
    share = ":".join(f"{x:.3g}" for x in wanted)
    return (Check(f"goals keep the ratio {share}", off < _NEAR, f"off by at most {off:.1e}"),)


def _paid(task: MDPTask, goal: int) -> float:
    """The largest reward of a move into a goal."""
    into = np.asarray(task.mdp.dense_transition, float)[..., goal] > 0
    into[goal] = False
    return float(np.asarray(task.mdp.reward, float)[into].max())
