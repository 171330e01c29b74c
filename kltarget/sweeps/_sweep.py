"""``sweep``: targets, and policies trained towards them, over a grid of settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kltarget._core.numerics import double_precision
from kltarget._core.progress import progress_bar
from kltarget.divergences import Divergence
from kltarget.modes._labels import mode_blocks
from kltarget.sweeps._dataset import dataset, frame
from kltarget.sweeps._parts import Arrays, Parts, joined
from kltarget.sweeps._program import measure
from kltarget.sweeps._settings import Grid, grid_of
from kltarget.tasks import ProblemLike

if TYPE_CHECKING:
    import xarray

Numbers = float | Sequence[float] | np.ndarray


def sweep(
    problem: ProblemLike,
    *,
    beta: Numbers,
    reward_scale: Numbers = 1.0,
    divergence: str | Divergence | Sequence[str | Divergence] | None = None,
    threshold: float | Sequence[float | None] | np.ndarray | None = None,
    entropy_weight: Numbers = 0.0,
    ref_temperature: Numbers = 1.0,
    modes: ArrayLike | None = None,
    k: int | Sequence[int] = (1, 4, 16, 64),
    log_probs: bool = False,
    fine_tune: bool = False,
    chunk_rows: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **training: Any,
) -> xarray.Dataset:
    r"""Solves a problem at every combination of settings; the results are labelled by them.

    Each point is the policy that maximises ``E_π[reward_scale · reward] + entropy_weight · H(π) −
    beta · D(π, π_ref^{1/ref_temperature}/Z)``, in double precision whatever the setting of JAX. A
    setting given as a sequence becomes a dimension, one given as a number a coordinate. There is
    one compiled program per divergence, and its memory does not grow with the grid.

    Args:
        problem: in any form that :func:`kltarget.tasks.as_task` takes: a task, the name of one, the
            path of a table, an objective, whose beta is not used, or a pair of arrays.
        beta: coefficient of the regulariser, in reward units per nat.
        reward_scale: factor of the reward, above 0.
        divergence: the regulariser, or several of them: names such as ``"forward-kl"`` or
            ``"alpha:0.5"``, or divergences. By default the objective's, or reverse KL.
        threshold: applies :func:`kltarget.mara`: outcomes whose reward, before its factor, is this
            or more become equally probable; by changing the reward for reverse KL, and reward and
            reference otherwise. None, or infinity, leaves them as they are.
        entropy_weight: weight η of an entropy bonus, in reward units per nat, for reverse KL only.
            The target is ``∝ π_ref^{β/(β+η)} e^{r/(β+η)}``.
        ref_temperature: temperature of the reference; above 1 it is flatter. Divergences are to the
            reference at that temperature.
        modes: integer labels of the outcomes' modes, ``[A]``, below 0 for no mode. By default the
            task's; of an objective every outcome of positive reward is one.
        k: numbers of samples for pass@k, the probability that one of them is in some mode.
        log_probs: keep the targets themselves.
        fine_tune: also train policies at every point, and say how far from the target they end.
        chunk_rows: points solved at a time. By default as many as have 2^18 outcomes.
        folder: keep finished parts here. The same sweep with the same folder goes on where it was
            killed, with the same result to the last bit. One process at a time, or those of one
            job that ``jax.distributed`` has joined: each solves its share of the parts, and all
            return the whole. Without a folder each solves everything.
        progress: show a tqdm bar.
        **training: with ``fine_tune``, the options of :func:`kltarget.fine_tune`, of which
            ``learning_rate`` and ``num_steps`` are needed; a ``key`` of shape ``[S]`` trains S
            seeds. ``policy`` and ``params`` are the task's by default, or a
            :class:`kltarget.TabularPolicy` at the reference; ``recipe`` is k1 in the reward for
            reverse KL and k3 in the loss for forward KL, of whole sequences.

    Returns:
        A dataset with those of the dimensions ``divergence``, ``threshold``, ``entropy_weight``,
        ``ref_temperature``, ``reward_scale`` and ``beta`` that are swept over, in this order, and
        the variables ``expected_reward`` (of the reward as it is, before factor and threshold),
        ``reverse_kl``, ``forward_kl``, ``entropy``, ``effective_modes``, ``mode_mass`` (…, mode),
        ``pass_at_k`` (…, k), ``value`` (of the objective that was solved), ``status`` (bits of
        :class:`kltarget.Status`) and ``log_probs`` (…, outcome). With ``fine_tune``, and (…, seed)
        if there is a batch of keys: ``total_variation``, ``reverse_kl_to_target`` ``KL(π‖π*)``,
        ``forward_kl_to_target``, ``tuned_expected_reward``, ``tuned_effective_modes`` and
        ``training_status``. Attributes hold units and long names.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a setting out of range, a setting for which there is no closed form, or a folder
            that holds parts of another sweep; the message names the argument and the difference.

    A point that fails has its bits in ``status`` and NaN elsewhere. Infinite divergences are
    ``inf``. Not differentiable, and not to be called under a trace: :func:`kltarget.solve` is.

    Example:
        >>> from kltarget import sweeps
        >>> data = sweeps.sweep("one-two", beta=[0.1, 1.0])
        >>> print(data.expected_reward.values.round(4), data.expected_reward.units)
        [0.9999 0.5612] reward
        >>> print(data.mode_mass.sel(beta=0.1).values.round(4))
        [0.9374 0.0625]

    References:
        Korbak et al., 2022, arXiv 2205.11275 (reverse KL). GX-Chen et al., 2025, arXiv 2510.20817
        (both KLs and MARA). Slocum et al., 2025, arXiv 2511.08594 (entropy weighed apart).
    """
    numbers = {"beta": beta, "reward_scale": reward_scale, "ref_temperature": ref_temperature}
    numbers["entropy_weight"] = entropy_weight
    grid = grid_of(problem, modes, divergence, threshold, numbers, k, log_probs, chunk_rows)
    settings, tuning = grid.description(), None
    if fine_tune:
        from kltarget.sweeps._tuning import Tuning

        tuning = Tuning.of(grid, training)
        settings |= {"fine_tune": tuning.description()}
    elif training:
        raise TypeError(
            f"{', '.join(training)}: not an option of sweep, or one of training, which needs "
            "fine_tune=True"
        )
    named = frame(grid)
    manifest = {"frame": named, "settings": settings, "num_parts": len(grid.parts)}
    parts = None if folder is None else Parts(folder, manifest)

    with double_precision():
        solve_rows = _solver(grid)
    found: dict[int, Arrays] = {}
    total = grid.num_rows * len(grid.divergences)
    # What other processes solve is waited for when nothing is left to do here.
    order = range(len(grid.parts)) if parts is None else parts.own_first()
    with progress_bar(progress, total=total, unit="point") as bar:
        for number in order:
            d, rows = grid.parts[number]
            part = None if parts is None else parts.get(number)
            if part is None:
                part = solve_rows(d, rows)
                if tuning is not None:
                    part |= tuning.train(d, grid.rows(rows))
                if parts is not None:
                    parts.put(number, part)
            found[number] = part
            bar.update(rows.stop - rows.start)
    every = [found[number] for number in range(len(grid.parts))]
    return dataset(named, settings, joined(every, len(grid.divergences)))


def _solver(grid: Grid) -> Callable[[int, slice], Arrays]:
    """A function from the number of a divergence and some rows to what is measured of them."""
    constants = tuple(map(jnp.asarray, (grid.problem.reward, grid.problem.log_ref)))
    blocks = tuple(map(jnp.asarray, mode_blocks(grid.problem.modes)))
    k = jnp.asarray(grid.k, jnp.float64)

    def solve_rows(d: int, rows: slice) -> Arrays:
        size = rows.stop - rows.start
        # One shape, one program: the last rows are repeated.
        columns = {
            name: np.concatenate([x, np.repeat(x[-1:], grid.chunk_rows - size)])
            for name, x in grid.rows(rows).items()
        }
        with double_precision():
            found = measure(grid.divergences[d], *constants, blocks, k, columns, used=grid.used)
            return {name: np.asarray(x)[:size] for name, x in found.items()}

    return solve_rows
