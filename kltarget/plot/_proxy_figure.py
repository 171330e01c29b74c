"""Figure of a proxy that is optimised: what the true reward gains, and what a bound promises."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kltarget._core.status import FAILURES
from kltarget.plot import _style as look
from kltarget.spaces import MDP
from kltarget.targets.mdps import solve_mdp, solve_occupancy
from kltarget.tasks import MDPTask, load_mdp

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NEAR = 0.01
_UNRELATED = 1e-6
_FAR = {"chi-squared": "χ² between occupancies", "KL": "KL between occupancies, nats"}
_DOTTED = (0, (1.2, 1.6))


def proxy_gains(
    task: str | MDPTask,
    proxy: ArrayLike,
    *,
    beta: ArrayLike | None = None,
    against: Literal["chi-squared", "KL"] = "chi-squared",
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws what policies that optimise a proxy gain, in the proxy and in the true reward.

    A color is a regulariser, β times χ² between occupancy measures of states and actions or β
    times KL between actions, and its lines go through the optima of the proxy at many β. Dashed is
    the proxy, full the true reward, dotted what the bound for correlated proxies promises of it.
    All are gains over the reference, in standard deviations under its occupancy.

    Args:
        task: a discounted decision process whose reward is the true one, or its name.
        proxy: the reward that is optimised, ``[S, A]``.
        beta: coefficients to solve it for, in reward units. Default: 61 from 0.01 to 100 times the
            proxy's standard deviation.
        against: which divergence of the policies' occupancies to draw it against.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the lines of the true reward.

    Returns:
        The axes. What is nearer to the reference than 0.01 is left out, and so is a β at which no
        optimum was found: the legend says how many are drawn. The bound leaves the axes where it
        promises less than anything loses.

    Raises:
        ValueError: a horizon, a proxy of another shape or not positively correlated with the
            reward, another divergence.

    Example:
        >>> import numpy as np
        >>> from kltarget import plot, tasks
        >>> task = tasks.load_mdp("river-swim")
        >>> bonus = np.zeros((6, 2))
        >>> bonus[3, 1] = 0.1
        >>> ax = plot.proxy_gains(task, task.mdp.reward + bonus, beta=[0.01, 0.1])
        >>> ax.get_legend().get_texts()[0].get_text()  # the other is too near to the reference
        'χ² of occupancies, 1 of 2 β'

    References:
        Laidlaw, Singhal, Dragan, "Correlated Proxies: A New Definition and Improved Mitigation for
        Reward Hacking", 2024, arXiv 2403.03185: with correlation r under the reference the true
        reward gains at least ``[gain of the proxy − √((1 − r²) χ²)]/r``.
    """
    task = load_mdp(task) if isinstance(task, str) else task
    if against not in _FAR:
        raise ValueError(f"against must be 'chi-squared' or 'KL', got {against!r}")
    task.mdp.require_discounted("proxy_gains")
    true, wrong = np.asarray(task.mdp.reward, float), np.asarray(proxy, float)
    if wrong.shape != true.shape:
        raise ValueError(f"proxy has shape {wrong.shape}, but the reward {true.shape}")
    hacked = dataclasses.replace(task.mdp, reward=jnp.asarray(wrong, task.mdp.reward.dtype))
    ref = _occupancy(task.mdp, np.exp(task.log_ref))
    spread = np.sqrt(_covariance(ref, wrong, wrong)), np.sqrt(_covariance(ref, true, true))
    correlation = _covariance(ref, wrong, true) / (spread[0] * spread[1] or np.inf)
    if not correlation > _UNRELATED:
        raise ValueError(
            f"proxy has correlation {correlation:.2f} with the reward under the reference: the "
            "bound is of those above 0"
        )
    if beta is None:
        beta = np.geomspace(0.01, 100, 61) * spread[0]
    grid = np.asarray(beta, float).ravel()
    ways = {
        "χ² of occupancies": solve_occupancy(hacked, task.log_ref, grid),
        "KL of actions": solve_mdp(hacked, task.log_ref, grid),
    }
    slack = np.sqrt(1 - min(correlation, 1.0) ** 2)
    lowest, highest, farthest = 0.0, 0.0, 10 * _NEAR
    with look.drawing(ax, figsize=(6.4, 3.5)) as ax:
        for k, (name, target) in enumerate(ways.items()):
            found = (np.asarray(target.status) & int(FAILURES)) == 0
            policies = np.exp(np.asarray(target.log_policy, float))[found]
            laws = np.array([_occupancy(task.mdp, policy) for policy in policies])
            chi = _chi_squared(laws, ref)
            far = chi if against == "chi-squared" else _kl(laws, ref)
            shown = np.argsort(far)[(far < _NEAR).sum() :]
            proxied, earned = (
                ((laws - ref) * x).sum((1, 2)) / s
                for x, s in zip((wrong, true), spread, strict=True)
            )
            promised = (proxied - slack * np.sqrt(chi)) / correlation
            color = {"color": look.color(k)}
            if shown.size == 1:  # a line of one point is seen by its mark
                color |= {"marker": "o", "ms": 4}
            ax.plot(far[shown], proxied[shown], ls=look.DASHED, lw=1.2, zorder=3, **color)
            left_out = grid.size - shown.size
            label = f"{name}, {shown.size} of {grid.size} β" if left_out else name
            full = {**look.series(k), **color, "label": label, "zorder": 4}
            ax.plot(far[shown], earned[shown], **{**full, **style})
            ax.plot(far[shown], promised[shown], ls=_DOTTED, lw=1.4, zorder=2, **color)
            for line in (proxied[shown], earned[shown]):
                lowest, highest = line.min(initial=lowest), line.max(initial=highest)
            farthest = far.max(initial=farthest)
        ax.axhline(0, color=look.faint(), lw=0.9, zorder=1)
        kinds: dict[str, dict[str, Any]] = {
            "true reward": {"lw": 1.6},
            "proxy": {"ls": look.DASHED, "lw": 1.2},
            "promised by the bound": {"ls": _DOTTED, "lw": 1.4},
        }
        for name, line in kinds.items():
            ax.plot([], [], color=look.GREY, label=name, **line)
        room = 0.06 * (highest - lowest)
        ax.set(xscale="log", xlim=(_NEAR, _NEAR * (farthest / _NEAR) ** 1.02))
        ax.set_ylim(lowest - 4 * room, highest + room)
        ax.set(xlabel=_FAR[against], ylabel="gain over the reference, its std")
        look.legend_beside(ax, title=f"correlation {look.short_number(correlation)}")
    return ax


def _occupancy(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """Shares ``[S, A]`` of discounted time, ``(1 − γ) Σ γ^t`` of what is met at t."""
    gamma, start = float(mdp.discount), np.asarray(mdp.start, float)
    chain = np.einsum("sa,sat->st", policy, np.asarray(mdp.dense_transition, float))
    states = np.linalg.solve(np.eye(len(start)) - gamma * chain.T, (1 - gamma) * start)
    return states[:, None] * policy


def _covariance(law: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    return float((law * (x - (law * x).sum()) * (y - (law * y).sum())).sum())


def _chi_squared(laws: np.ndarray, ref: np.ndarray) -> np.ndarray:
    on = ref > 0
    return ((laws - ref)[:, on] ** 2 / ref[on]).sum(-1)


def _kl(laws: np.ndarray, ref: np.ndarray) -> np.ndarray:
    on = ref > 0
    ratio = np.maximum(laws[:, on], 0.0) / ref[on]
    return (ref[on] * ratio * np.log(np.where(ratio > 0, ratio, 1.0))).sum(-1)
