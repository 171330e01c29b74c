"""The chains of steps that come with the package, by name."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from kltarget.objectives._point_rewards import QuadraticReward
from kltarget.spaces import Chain, GaussianChain
from kltarget.tasks._found_by_name import found_by_name


@dataclasses.dataclass(frozen=True, eq=False)
class ChainTask:
    """A chain with a reward of its last state.

    Attributes:
        name: how :func:`load_chain` finds it.
        description: one line for a reader who has not seen the chain.
        chain: p.
        reward: of the last state: float64 ``[S]``, or a quadratic reward.
        points: where the states are, float64 ``[S]``; none of a Gaussian chain.
        modes: the mode of each state, ``[S]``, -1 for none; none of a Gaussian chain.
    """

    name: str
    description: str
    chain: Chain | GaussianChain
    reward: Any
    points: np.ndarray | None = None
    modes: np.ndarray | None = None


def chain_names() -> tuple[str, ...]:
    """Names that :func:`load_chain` accepts."""
    return tuple(_CHAINS)


def load_chain(name: str) -> ChainTask:
    """The chain called ``name``.

    Args:
        name: one of :func:`chain_names`.

    Returns:
        The chain with its reward, built once per process.

    Raises:
        ValueError: there is no such chain; the message lists the names.

    Example:
        >>> from kltarget import tasks
        >>> tasks.chain_names()
        ('denoise', 'drift')
        >>> task = tasks.load_chain("denoise")
        >>> task.chain.num_states, task.chain.num_steps
        (41, 3)
    """
    return found_by_name("chain", _CHAINS, name)


@functools.cache
def _denoise() -> ChainTask:
    """Exact reversal of noising steps on a grid, of data with two modes of 4:1 over a floor.

    The better mode is the rarer, and few steps leave in the noise which of them it came from: a
    law that must keep the noise reaches it less often.
    """
    points = np.linspace(-3, 3, 41)
    left, right = (np.exp(-((points - x) ** 2) / (2 * 0.4**2)) for x in (-1.5, 1.5))
    data = 0.8 * left / left.sum() + 0.2 * right / right.sum()
    data = 0.9 * data + 0.1 / len(points)
    # Each noising step shrinks a little and blurs; Bayes' rule turns it round.
    centers = 0.85 * points
    blur = np.exp(-((points[None] - centers[:, None]) ** 2) / (2 * 0.55**2))
    blur /= blur.sum(-1, keepdims=True)
    law, back = data, []
    for _ in range(3):
        joint = law[:, None] * blur
        law = joint.sum(0)
        back.append((joint / law).T)
    kernels = np.stack(back[::-1])
    modes = np.where(np.abs(points + 1.5) < 1.0, 0, np.where(np.abs(points - 1.5) < 1.0, 1, -1))
    return ChainTask(
        name="denoise",
        description="3 denoising steps on a grid; of two modes of 7:2 the rarer is better",
        chain=Chain(np.log(law), np.log(kernels)),
        reward=np.where(np.abs(np.abs(points) - 1.5) < 0.4, np.where(points > 0, 1.0, 0.5), 0.0),
        points=points,
        modes=modes,
    )


@functools.cache
def _drift() -> ChainTask:
    """Four contractions in the plane whose rewarded point is off their way."""
    turn = 0.8 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    return ChainTask(
        name="drift",
        description="4 linear Gaussian steps in the plane; a reward that peaks off their way",
        chain=GaussianChain(
            np.zeros(2),
            np.eye(2),
            np.broadcast_to(turn, (4, 2, 2)),
            np.broadcast_to(np.array([0.3, 0.0]), (4, 2)),
            np.broadcast_to(0.25 * np.eye(2), (4, 2, 2)),
        ),
        reward=QuadraticReward.peak(np.array([1.0, -1.0]), np.array([[1.0, 0.0], [0.0, 0.5]])),
    )


_CHAINS = {"denoise": _denoise, "drift": _drift}
