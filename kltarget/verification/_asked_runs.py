"""What verifications on spaces of their own are asked for, checked and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from kltarget._core.checks import positive


def asked_runs(
    beta: ArrayLike | Sequence[float],
    num_seeds: int,
    num_steps: int,
    learning_rate: float,
    *,
    least_steps: int = 1,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The coefficients ``[B]``, and all that a report keeps of what was asked for."""
    positive("num_seeds", num_seeds)
    positive("num_steps", num_steps, least_steps)
    betas = np.atleast_1d(np.asarray(beta, float))
    if betas.ndim != 1 or not betas.size or not (np.isfinite(betas) & (betas > 0)).all():
        raise ValueError(f"beta must be finite numbers above 0, got {betas.tolist()}")
    settings = {
        "beta": betas.tolist(),
        "num_seeds": num_seeds,
        "num_steps": num_steps,
        "learning_rate": learning_rate,
    }
    return betas, settings


def described(task: Any, betas: np.ndarray, size: str = "") -> tuple[str, ...]:
    """The head of a report: the problem, its size and the coefficients."""
    shown = f"β = {', '.join(f'{x:g}' for x in betas)}"
    return f"{task.name}: {task.description}", f"{size}, {shown}" if size else shown


def runs_of(betas: np.ndarray, names: dict[str, str], numbers: dict[str, Any]) -> list[dict]:
    """A row per coefficient and seed of numbers ``[num_seeds, B]``."""
    num_seeds = len(next(iter(numbers.values())))
    return [
        {
            **names,
            "beta": float(beta),
            "seed": seed,
            **{name: float(x[seed, b]) for name, x in numbers.items()},
        }
        for b, beta in enumerate(betas)
        for seed in range(num_seeds)
    ]
