"""What is to be said about a row of a target."""

from __future__ import annotations

import enum

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.checks import at_index
from kltarget._core.words import counted


class Status(enum.IntFlag):
    """What is to be said about a row of a target: remarks, then the failures.

    Example:
        >>> import kltarget as kt
        >>> kt.Status(5)
        <Status.CONDENSED|NOT_UNIQUE: 5>
    """

    OK = 0
    CONDENSED = 1
    """Part of the target stands on outcomes without reference mass."""
    TRUNCATED = 2
    """The target is exactly 0 on outcomes that have reference mass and a finite reward."""
    NOT_UNIQUE = 4
    """Tied outcomes share a mass of which only the total is determined."""
    NO_TARGET = 8
    """Nothing regularises; every policy on the best outcomes is optimal, the path decides."""
    NOT_CONVERGED = 16
    """The root of the multiplier was not found to the accuracy of the dtype."""
    INVALID_BETA = 32
    """beta is not above 0 and finite."""
    INVALID_REWARD = 64
    """A reward is NaN or +inf."""
    INVALID_REFERENCE = 128
    """The reference is NaN or its masses do not sum to one."""
    EMPTY_SUPPORT = 256
    """No outcome has both a finite reward and reference mass."""
    SATURATED = 512
    """Normalised rewards drive all but one in a million onto the best outcomes.

    Small steps share them out as the reference does; large ones collapse onto one of them.
    """
    SEVERAL = 1024
    """There are further fixed points; this is the one that training from the reference reaches."""
    CLIPPED = 2048
    """The trainer's clip of the divergence's estimate is active at this policy."""
    UNBOUNDED = 4096
    """The reward outgrows what the regulariser charges, and the objective has no maximum."""
    INFEASIBLE = 8192
    """No distribution on the reference's support has the moments that are asked for."""
    INVALID_N = 16384
    """A number of draws is not 1 or more and finite."""
    INVALID_PROCESS = 32768
    """A discount is out of range, a transition no distribution, or no end is led to."""


FAILURES = int(
    Status.NOT_CONVERGED
    | Status.INVALID_BETA
    | Status.INVALID_REWARD
    | Status.INVALID_REFERENCE
    | Status.EMPTY_SUPPORT
    | Status.UNBOUNDED
    | Status.INFEASIBLE
    | Status.INVALID_N
    | Status.INVALID_PROCESS
)

IN_WORDS = {
    Status.CONDENSED: "part of the target stands on outcomes without reference mass",
    Status.TRUNCATED: "the target is exactly 0 on outcomes that the reference can produce",
    Status.NOT_UNIQUE: "tied outcomes share a mass of which only the total is determined",
    Status.NO_TARGET: "nothing regularises, so the path of training decides",
    Status.SATURATED: "normalised rewards drive it onto the best outcomes",
    Status.SEVERAL: "there are further fixed points",
    Status.CLIPPED: "the trainer's clip of the divergence's estimate is active there",
    Status.NOT_CONVERGED: "the root of the multiplier was not found",
    Status.INVALID_BETA: "beta is not above 0 and finite",
    Status.INVALID_REWARD: "a reward is NaN or +inf",
    Status.INVALID_REFERENCE: "the reference is NaN or its masses do not sum to one",
    Status.UNBOUNDED: "the reward outgrows what the regulariser charges",
    Status.EMPTY_SUPPORT: "no outcome has both a finite reward and reference mass",
    Status.INFEASIBLE: "no distribution on the reference's support has these moments",
    Status.INVALID_N: "a number of draws is not 1 or more and finite",
    Status.INVALID_PROCESS: "a discount, a transition or the way to an end is not as it must be",
}


def flag(condition: Array, status: Status) -> Array:
    """``status`` as an integer where the condition holds, else 0."""
    return jnp.where(condition, jnp.int32(int(status)), jnp.int32(0))


def unless_failed(status: Array, x: Array) -> Array:
    """``x``, of more axes than ``status``, with NaN in the rows that failed."""
    failed = (status & FAILURES) != 0
    return jnp.where(failed.reshape(*failed.shape, *[1] * (x.ndim - failed.ndim)), jnp.nan, x)


def raise_if_failed(status: ArrayLike, what: str) -> None:
    """Raises a ``ValueError`` that names the first row with a failure bit."""
    rows = np.asarray(status)
    failed = np.argwhere(rows & FAILURES)
    if len(failed):
        at = tuple(int(i) for i in failed[0])
        bits = Status(int(rows[at])) & FAILURES
        names = ", ".join(str(bit.name) for bit in Status if bit & bits)
        where = f"{at_index(at)}: {names} ({len(failed)} of {counted(rows.size, 'row')})"
        raise ValueError(f"{what} failed{where}")
