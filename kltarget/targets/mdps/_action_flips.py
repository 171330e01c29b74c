"""Where the likeliest action of a state changes as β does."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kltarget.divergences import Divergence
from kltarget.spaces import MDP
from kltarget.targets._leader_changes import leader_changes
from kltarget.targets.mdps._solve_mdp import solve_mdp

_LEVEL = 32


class ActionFlip(NamedTuple):
    """A β at which two actions of a state are level and lead.

    Attributes:
        beta: where, in reward units per nat.
        state: whose actions they are.
        below: the action that leads below it.
        above: the action that leads above it.
        step: of a process with a horizon, from 0; None without one.
    """

    beta: float
    state: int
    below: int
    above: int
    step: int | None = None


def action_flips(
    mdp: MDP,
    log_ref: ArrayLike,
    beta: ArrayLike,
    divergence: Divergence | None = None,
    *,
    num_halvings: int = 50,
) -> tuple[ActionFlip, ...]:
    """Every β between given ones at which the likeliest action of a state changes.

    The optima of ``E_π[Σ_t γ^t (r − β·D(π, π_ref))]`` at all given β are found at once, and each
    interval in which the likeliest action of a state changes is halved until it is a point, all
    intervals in one program. Unlike in a problem of one state, two actions may change places more
    than once: what an action leads to depends on β too.

    Args:
        mdp: without batch axes.
        log_ref: log-probabilities of the actions, ``[S, A]``.
        beta: increasing, in reward units per nat, at least two; of several flips between neighbours
            the lowest is found, or none if they undo each other. Of actions that are level but for
            rounding the first counts as the likeliest.
        divergence: reverse KL by default.
        num_halvings: how often an interval is halved, in the logarithm of β.

    Returns:
        The flips, from the smallest β on.

    Raises:
        TypeError: no decision process.
        ValueError: β that do not increase, batch axes, and what :func:`solve_mdp` refuses.

    Where an action has reward ``-inf`` it never leads. Not differentiable.

    Example:
        The left action earns 1 at once, the right one leads to 2 but is three times rarer:

        >>> import jax.numpy as jnp, numpy as np
        >>> from kltarget.spaces import MDP
        >>> from kltarget.targets.mdps import action_flips
        >>> transition = jnp.array([[[0.0, 1.0]] * 2, [[0.0, 1.0]] * 2])
        >>> mdp = MDP(transition, jnp.array([[1.0, 2.0], [0.0, 0.0]]), 1.0)
        >>> log_ref = jnp.log(jnp.array([[0.75, 0.25], [0.75, 0.25]]))
        >>> for flip in action_flips(mdp, log_ref, np.geomspace(0.1, 10, 5)):
        ...     print(f"{flip.beta:.3f}", flip.state, flip.below, flip.above)  # 1/log 3
        0.910 0 1 0
    """
    if not isinstance(mdp, MDP):
        raise TypeError(f"mdp must be an MDP, got {type(mdp).__name__}")
    if mdp.batch_shape or np.ndim(log_ref) != 2:
        raise ValueError(
            f"mdp has the batch axes {mdp.batch_shape} and log_ref the shape {np.shape(log_ref)}: "
            "give one process and [S, A]"
        )

    def leaders(at: np.ndarray) -> np.ndarray:
        betas = jnp.asarray(at, mdp.reward.dtype)
        found = solve_mdp(mdp, log_ref, betas, divergence).raise_if_failed()
        log_policy = np.asarray(found.log_policy, float)
        # Of actions that are level at many β rounding would choose another one at each.
        finite = jnp.where(mdp.reward > -jnp.inf, found.action_values, 0.0)
        largest = np.abs(np.asarray(finite, float)).max((-1, -2))
        slack = _LEVEL * float(jnp.finfo(mdp.reward.dtype).eps)
        slack = slack * (1 + largest / (at if mdp.horizon is None else at[:, None]))[..., None]
        best = log_policy.max(-1)
        return (log_policy >= (best - slack)[..., None]).argmax(-1)

    flips = [
        ActionFlip(
            change.beta,
            change.place[-1],
            change.below,
            change.above,
            None if mdp.horizon is None else change.place[0],
        )
        for change in leader_changes(leaders, beta, num_halvings)
    ]
    return tuple(sorted(flips, key=lambda flip: flip[:4]))
