"""``verify_chain``: steps of a chain trained by gradients beside the exact law of paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from kltarget._core.progress import progress_bar
from kltarget.spaces import Chain, GaussianChain
from kltarget.targets.chains import solve_chain
from kltarget.targets.chains._gaussian_chain_target import step_kl
from kltarget.tasks import ChainTask, load_chain
from kltarget.training import fine_tune_chain
from kltarget.verification._annealed_adam import annealed_adam
from kltarget.verification._asked_runs import asked_runs, described, runs_of
from kltarget.verification._report import Check
from kltarget.verification._space_report import SpaceReport


def verify_chain(
    task: str | ChainTask,
    *,
    key: Shaped[Array, ""],
    beta: ArrayLike | Sequence[float] = (0.3, 1.0),
    num_seeds: int = 3,
    num_steps: int = 1500,
    learning_rate: float = 0.05,
    progress: bool = False,
) -> SpaceReport:
    """Trains the steps of a chain and compares them with the best law of paths.

    Once with the law of the first state free, once with it fixed, as a sampler's noise is.

    Args:
        task: a chain or its name.
        key: a random key.
        beta: coefficients, in reward units per nat, a few numbers.
        num_seeds: chains per β; the first starts at the reference.
        num_steps: gradient steps.
        learning_rate: of Adam, which fades to nothing.
        progress: show a bar.

    Returns:
        A row per run. The checks: what is left of the objective and the distance of what is
        generated from the target's; that no run is better than the maximum; that steps cost what
        the last marginal does, or more where the first law is fixed.

    Raises:
        ValueError: no such chain, values out of range.

    Example:
        >>> import jax
        >>> from kltarget.verification import verify_chain
        >>> options = {"beta": [1.0], "num_seeds": 1, "num_steps": 300}
        >>> report = verify_chain("denoise", key=jax.random.key(0), **options)
        >>> report.passed, len(report.runs)
        (True, 2)
    """
    task = load_chain(task) if isinstance(task, str) else task
    betas, settings = asked_runs(beta, num_seeds, num_steps, learning_rate)
    rows: list[dict[str, Any]] = []
    costs: list[Check] = []
    with progress_bar(progress, total=2, unit="way") as bar:
        for tilt_first, own in zip((True, False), jax.random.split(key), strict=True):
            target = solve_chain(task.chain, task.reward, jnp.asarray(betas), tilt_first=tilt_first)
            target.raise_if_failed()
            trained = fine_tune_chain(
                task.chain,
                task.reward,
                jnp.asarray(betas),
                learning_rate=learning_rate,
                num_steps=num_steps,
                tilt_first=tilt_first,
                key=own,
                num_seeds=num_seeds,
                optimizer=annealed_adam(num_steps),
            ).chain
            rows += _rows(task, target, betas, trained, "tilted" if tilt_first else "fixed")
            costs.append(_costs(target, tilt_first))
            bar.update(1)
    exact = isinstance(task.chain, Chain)
    near, left = (1e-3, 1e-4) if exact else (0.02, 1e-3)
    apart, gap = max(row["distance"] for row in rows), max(row["gap"] for row in rows)
    least = min(row["gap"] for row in rows)
    checks = (
        Check(f"gap below {left:g}", gap < left, f"at most {gap:.1e}"),
        Check("no run is above the maximum", least > -1e-4, f"gaps from {least:.1e}"),
        Check(f"distance below {near:g}", apart < near, f"at most {apart:.1e}"),
        *costs,
    )
    legend = (
        "gap: the maximum less the objective of the trained chain, in reward units. distance: of "
        "what is generated, "
        + (
            "in total variation."
            if exact
            else "between the means, in standard deviations of the target."
        )
    )
    return SpaceReport(
        task.name, described(task, betas), settings, tuple(rows), checks, None, legend
    )


def _rows(
    task: ChainTask, target: Any, betas: np.ndarray, trained: Any, first: str
) -> list[dict[str, Any]]:
    if isinstance(task.chain, GaussianChain):
        means, spreads = (np.asarray(x, float) for x in trained.marginals())
        means, spreads = means[..., -1, :], spreads[..., -1, :, :]
        cost = np.asarray(step_kl(trained, task.chain).sum(-1), float)
        matrix, vector = (np.asarray(x, float) for x in (task.reward.matrix, task.reward.vector))
        earned = np.einsum("...i,ij,...j->...", means, matrix, means) / 2 + means @ vector
        earned = earned + np.einsum("...ij,ij->...", spreads, matrix) / 2
        earned = earned + float(task.reward.constant)
        best, wide = target.last.mean, target.last.covariance
        sigma = np.sqrt(np.einsum("...ii->...i", np.asarray(wide, float)))
        apart = np.abs((means - np.asarray(best)) / sigma).max(-1)
    else:
        last = np.exp(np.asarray(trained.log_marginals()[..., -1, :], float))
        cost, earned = _paid(trained, task.chain), last @ np.asarray(task.reward, float)
        apart = np.abs(last - np.exp(np.asarray(target.log_last, float))).sum(-1) / 2
    gap = np.asarray(target.value, float) - (earned - betas * cost)
    numbers = {"reward": earned, "step KL": cost, "distance": apart, "gap": gap}
    return runs_of(betas, {"first law": first}, numbers)


def _paid(trained: Chain, chain: Chain) -> np.ndarray:
    """KL of the laws of paths, in NumPy."""
    law = np.exp(np.asarray(trained.log_marginals(), float))
    own = np.asarray(trained.log_kernels, float)
    ratio = np.where(own > -np.inf, own - np.asarray(chain.log_kernels, float), 0.0)
    steps = (np.exp(own) * ratio).sum(-1)
    first = np.asarray(trained.log_initial, float)
    begin = np.where(first > -np.inf, first - np.asarray(chain.log_initial, float), 0.0)
    return (law[..., 0, :] * begin).sum(-1) + (law[..., :-1, :] * steps).sum((-1, -2))


def _costs(target: Any, tilt_first: bool) -> Check:
    paid = np.asarray(target.step_kl.sum(-1), float)
    seen = np.asarray(target.marginal_kl[..., -1], float)
    if tilt_first:
        off = float(np.abs(paid - seen).max())
        name = "tilted first, steps cost what the last marginal does"
        return Check(name, off < 1e-4 * (1 + float(paid.max())), f"off by at most {off:.1e}")
    least = float((paid - seen).min())
    name = "with the first law fixed, steps cost at least the last marginal"
    return Check(name, least > -1e-6, f"by {least:.1e} at least")
