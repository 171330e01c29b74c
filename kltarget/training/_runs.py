"""What training gives back."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from kltarget._core.pytrees import pytree
from kltarget.recipes import Recipe


class RunStatus(enum.IntEnum):
    """How a run ended.

    Example:
        >>> from kltarget.training import RunStatus
        >>> RunStatus(1).name
        'OUT_OF_STEPS'
    """

    CONVERGED = 0
    """The gradient's norm fell below the tolerance. The gap says whether at an optimum; a policy
    thrown onto a single sequence by too long a step is at rest there, with a large gap."""
    OUT_OF_STEPS = 1
    """All steps were taken and the gradient had not vanished."""
    NON_FINITE = 2
    """The gradient or the policy became infinite or NaN; the run stopped there. Its parameters are
    those that made it so."""


@pytree
class History:
    """What was measured of each run on its way, by exact sums over all sequences or grid points.

    Attributes:
        step: number of steps taken before each measurement, int ``[H]``. Runs that ended earlier
            stand still.
        expected_reward: ``E_π[reward]``, before ``reward_scale``, ``[*batch, H]``.
        reverse_kl: ``KL(π‖π_ref)`` of whole sequences, in nats.
        forward_kl: ``KL(π_ref‖π)``.
        entropy: of the policy over sequences, in nats; of densities the differential entropy.
        effective_modes: ``exp`` of the entropy of the distribution over modes, given that a
            sequence is in one.
        gradient_norm: Euclidean norm of the gradient in the parameters.
        gap: the Frank–Wolfe gap, see :class:`Run`.
    """

    step: np.ndarray
    expected_reward: np.ndarray
    reverse_kl: np.ndarray
    forward_kl: np.ndarray
    entropy: np.ndarray
    effective_modes: np.ndarray
    gradient_norm: np.ndarray
    gap: np.ndarray


@pytree
class Run:
    """Trained policies and how their training went; leading axes ``*batch`` run over the runs.

    Attributes:
        params: the final parameters, every leaf ``[*batch, …]``.
        log_probs: final log-probabilities of all sequences, ``[*batch, V**L]``; of vectors the
            log-masses of the grid's points, ``[*batch, N]``.
        status: a :class:`RunStatus` per run, int32 ``[*batch]``.
        num_steps: steps taken, int32 ``[*batch]``.
        gradient_norm: Euclidean norm of the final gradient, ``[*batch]``.
        gap: Frank–Wolfe gap ``max ∇J − ⟨∇J, π⟩`` over distributions on sequences, ``[*batch]``. It
            bounds ``J* − J(π)`` from above for the concave objective J named by the trainer,
            without knowing the optimum. ``inf`` where a sequence that J wants has probability 0.
        beta: the coefficient of each run, ``[*batch]``.
        reward_scale: the factor of the reward of each run, ``[*batch]``.
        learning_rate: of each run, ``[*batch]``.
        history: what was measured on the way.
        policy: the policy, without parameters.
        recipe: how the regulariser was applied, None where the trainer has no such choice.
    """

    params: Any
    log_probs: Float[Array, "*batch A"]
    status: Int[Array, "*batch"]
    num_steps: Int[Array, "*batch"]
    gradient_norm: Float[Array, "*batch"]
    gap: Float[Array, "*batch"]
    beta: Float[Array, "*batch"]
    reward_scale: Float[Array, "*batch"]
    learning_rate: Float[Array, "*batch"]
    history: History
    policy: Any = dataclasses.field(metadata={"static": True})
    recipe: Recipe | None = dataclasses.field(metadata={"static": True})

    @property
    def converged(self) -> Array:
        """Which runs converged, booleans ``[*batch]``."""
        return self.status == int(RunStatus.CONVERGED)


@pytree
class TextHistory:
    """What was measured of each run on texts, by samples of its policy.

    Attributes:
        step: number of steps taken before each measurement, int ``[H]``.
        expected_reward: mean reward, before ``reward_scale``, ``[*batch, H]``.
        expected_reward_error: its standard error.
        reverse_kl: mean ``log π/π_ref`` of whole texts, in nats.
        reverse_kl_error: its standard error.
        entropy: mean ``−log π``, in nats.
        entropy_error: its standard error.
        gradient_norm: Euclidean norm of a gradient of as many samples as a step has.
    """

    step: np.ndarray
    expected_reward: np.ndarray
    expected_reward_error: np.ndarray
    reverse_kl: np.ndarray
    reverse_kl_error: np.ndarray
    entropy: np.ndarray
    entropy_error: np.ndarray
    gradient_norm: np.ndarray


@pytree
class TextRun:
    """Policies trained on texts too many to list; leading axes ``*batch`` run over the runs.

    Attributes:
        params: the final parameters, every leaf ``[*batch, …]``.
        status: a :class:`RunStatus` per run, int32 ``[*batch]``; sampled gradients never vanish, so
            that none is ``CONVERGED``.
        num_steps: steps taken, int32 ``[*batch]``.
        gradient_norm: Euclidean norm of the last sampled gradient, ``[*batch]``.
        beta: the coefficient of each run, ``[*batch]``.
        reward_scale: the factor of the reward of each run, ``[*batch]``.
        learning_rate: of each run, ``[*batch]``.
        history: what was measured on the way.
        policy: the policy, without parameters.
        recipe: how the regulariser was applied, None of imitation.
    """

    params: Any
    status: Int[Array, "*batch"]
    num_steps: Int[Array, "*batch"]
    gradient_norm: Float[Array, "*batch"]
    beta: Float[Array, "*batch"]
    reward_scale: Float[Array, "*batch"]
    learning_rate: Float[Array, "*batch"]
    history: TextHistory
    policy: Any = dataclasses.field(metadata={"static": True})
    recipe: Recipe | None = dataclasses.field(metadata={"static": True})

    def of(self, index: Any) -> Any:
        """The parameters of one run, by its place in ``*batch``."""
        return jax.tree.map(lambda x: x[index], self.params)
