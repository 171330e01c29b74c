"""``preference_target``: from pairs of outcomes to the policy that preference training asks for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kltarget._core.checks import ArgumentError, float_arguments, traced
from kltarget._core.pytrees import pytree
from kltarget._core.status import Status
from kltarget._core.words import quoted
from kltarget.divergences import Divergence, ReverseKL
from kltarget.divergences._base import slope_at_zero
from kltarget.implied._kto import kto_rewards
from kltarget.implied._pair_rewards import Fitted, bradley_terry, least_squares
from kltarget.objectives import Objective
from kltarget.targets import solve
from kltarget.targets._protocol import StationaryPolicy
from kltarget.tasks import Preferences, read_preferences
from kltarget.tasks._as_task import Frame
from kltarget.tasks._preferences import smoothing_of

Loss = Literal["dpo", "ipo", "kto"]
_NAMED = 3


@pytree
class PreferenceTarget(StationaryPolicy):
    """The policy that a loss over pairs has its minimum at.

    Attributes:
        objective: what reinforcement learning would have to maximise to end at the same policy: its
            reward is the one that explains the pairs, at the same beta, reference and divergence.
            Outcomes that are driven to nothing have the reward ``-inf``.
        log_probs: log π, shape ``[*batch, A]``.
        multiplier: λ of the objective.
        status: :class:`Status` bits, shape ``[*batch]``. ``NO_TARGET`` where a log ratio grows
            without bound; ``NOT_UNIQUE`` where the pairs do not determine how mass is shared
            between groups of outcomes; ``SEVERAL`` where KTO has further stationary policies.
        group: ``[A]``, which outcomes the pairs compare with each other, directly or by way of
            others; negative where the reward is ``-inf``.
        pairs: the pairs.
        unanimous: the pairs ``(winner, loser)`` whose log ratio grows without bound.
        loss: ``"dpo"``, ``"ipo"`` or ``"kto"``.
        label_smoothing: the share of labels that the loss takes for wrong.
    """

    made_by = "preference_target"

    group: Int[Array, "A"]
    pairs: Preferences = dataclasses.field(metadata={"static": True})
    unanimous: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})
    loss: Loss = dataclasses.field(metadata={"static": True})
    label_smoothing: float = dataclasses.field(default=0.0, metadata={"static": True})

    @property
    def reward(self) -> Float[Array, "*batch A"]:
        """The objective's reward, of mean 0 over each group that pairs join (of KTO another)."""
        return self.objective.reward

    @property
    def verdict(self) -> str:
        """What there is to say, in a sentence."""
        name, group = self.pairs.label, np.asarray(self.group)
        bits = int(np.bitwise_or.reduce(np.asarray(self.status), axis=None))
        if self.unanimous:
            listed = ", ".join(
                f"{quoted(name(i))} over {quoted(name(j))}" for i, j in self.unanimous[:_NAMED]
            )
            more = len(self.unanimous) - _NAMED
            also = f" and {more} more" if more > 0 else ""
            return (
                f"no target: these pairs are unanimous, the log ratio grows without bound at any β:"
                f" {listed}{also}"
            )
        if bits & Status.NO_TARGET:
            gone = [quoted(name(int(k))) for k in np.flatnonzero(group == _GONE)]
            listed = ", ".join(gone[:_NAMED]) + (", …" if len(gone) > _NAMED else "")
            return (
                "no target: KTO drives what is not desirable on balance to 0, the log ratio grows "
                f"without bound at any β: {listed}"
            )
        if bits & Status.NOT_UNIQUE:
            return (
                "a target, but for the mass of groups that no pair joins, of which there are "
                f"{len(set(group[group >= 0].tolist()))}: the path of training decides it"
            )
        several = ", and KTO has further stationary policies" if bits & Status.SEVERAL else ""
        return f"a target: that of the reward which explains the pairs, at the same β{several}"


_GONE, _IMPOSSIBLE = -1, -2


def preference_target(
    pairs: Preferences | str | os.PathLike[str] | Mapping[str, Any] | Frame,
    log_ref: ArrayLike,
    beta: ArrayLike,
    *,
    loss: Loss = "dpo",
    divergence: Divergence | None = None,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    label_smoothing: float = 0.0,
) -> PreferenceTarget:
    """The policy at which DPO, f-DPO, χPO, IPO or KTO has its minimum, from pairs with win rates.

    With ``h = f′(π/π_ref)``, of reverse KL the log ratio, and the number of times ``n_ij`` that i
    was preferred to j, the losses that are minimised over all policies are

    - ``"dpo"``: ``−Σ n_ij log σ(β(h_i − h_j))``. The reward ``r = βh`` is then the maximum
      likelihood of Bradley and Terry's model, ``σ(r_i − r_j)`` the win rate where pairs form no
      circle. :class:`kltarget.ChiSquaredKL` makes it χPO, any other divergence f-DPO. With
      ``label_smoothing`` ε (conservative DPO) each comparison counts as won the other way round
      with weight ε: as if ``(1 − ε) n_ij + ε n_ji`` had been counted, so that no pair is unanimous.
    - ``"ipo"``: ``Σ n_ij (h_i − h_j − 1/(2β))²``. The reward is that of least squares, with
      ``r_i − r_j`` the win rate less ½ where pairs form no circle; there always is one.
    - ``"kto"``: ``−Σ n_ij (λ_D σ(x_i) + λ_U σ(−x_j))`` up to a constant, with
      ``x = β(log π/π_ref − z₀)`` and ``z₀ = KL(π‖π_ref)``, which has no gradient: both sides of
      each pair are judged by themselves. The reward is x, at a fixed point of ``z₀``.

    The target maximises ``E_π[reward] − β D(π, π_ref)``, as reinforcement learning does: rewards,
    β and policies of both can be compared. Where some pairs are unanimous and no chain of wins
    leads back, no reward is finite and no β helps.

    Args:
        pairs: of one prompt, as :class:`kltarget.tasks.Preferences` or as a table that
            :func:`kltarget.tasks.read_preferences` reads.
        log_ref: log-probabilities of the reference, ``[A]``, in the order of the pairs' labels.
        beta: the coefficient of the loss, in reward units per nat, above 0, shape ``[*batch]``.
        loss: which of the three.
        divergence: by default reverse KL; with ``f′(0) = −∞``, since other divergences have no h
            for outcomes without mass. KTO has reverse KL alone.
        desirable_weight: KTO's λ_D, of the preferred outcomes, above 0.
        undesirable_weight: KTO's λ_U, of the others, above 0.
        label_smoothing: DPO's ε, as TRL's ``label_smoothing`` is with its ``"sigmoid"`` loss: how
            likely a label is wrong, from 0 to less than ½.

    Returns:
        The target. Pairs say nothing about outcomes that no chain of them joins: there the status
        is ``NOT_UNIQUE``, and each group's reward has mean 0. With reverse KL that is where
        gradient descent of a softmax over the outcomes ends that starts at the reference, since it
        keeps the sum of each group's logits; other optimisers end elsewhere. With ``NO_TARGET`` it
        is what the loss is least at in the limit: those that lose without bound have probability 0
        and the reward ``-inf``, the others are as their own pairs ask.

    Raises:
        TypeError: pairs, a divergence or numbers that are none; ``log_ref`` is traced.
        ValueError: shapes do not fit, beta is not above 0, the loss is unknown or has not this
            divergence, an outcome is compared that the reference cannot produce, KTO has a β of 1
            or more, for which its stationary policies are not known, or no outcome is desirable on
            balance; the message names the argument.
        kltarget.tasks.TableError: a table holds no pairs of one prompt.

    An outcome of ``log_ref = -inf`` that is never compared keeps its mass of 0. The fit is made on
    the host, in float64; it has no derivatives.

    Assumptions: the policy can represent the target and training goes on to the minimum; labels
    are as frequent as the table says; log ratios are of whole outcomes, not means over their
    tokens; no clip of margins, as χPO may have one, is active. The reference point of KTO is that
    of this prompt alone, where trainers take one number for a batch of prompts.

    Example:
        Tea wins three of four comparisons with milk:

        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.implied import preference_target
        >>> pairs = {"a": ["tea"], "b": ["milk"], "wins": [3], "losses": [1]}
        >>> target = preference_target(pairs, jnp.log(jnp.array([0.5, 0.5])), beta=0.5)
        >>> print([f"{p:.3f}" for p in target.probs], [f"{r:.3f}" for r in target.reward])
        ['0.900', '0.100'] ['0.549', '-0.549']
        >>> always = {"chosen": ["tea", "tea"], "rejected": ["milk", "milk"]}
        >>> said = preference_target(always, jnp.log(jnp.array([0.5, 0.5])), beta=0.5).verdict
        >>> print(said.partition(": ")[2])
        these pairs are unanimous, the log ratio grows without bound at any β: “tea” over “milk”

    References:
        Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward
        Model", 2023, arXiv 2305.18290. Wang, Jiang, Yang, Liu, Chen, "Beyond Reverse KL:
        Generalizing Direct Preference Optimization with Diverse Divergence Constraints", 2023,
        arXiv 2309.16240 (f-DPO). Huang et al., "Correcting the Mythos of KL-Regularization: Direct
        Alignment without Overoptimization via Chi-Squared Preference Optimization", 2024, arXiv
        2407.13399 (χPO). Mitchell, "A note on DPO with noisy preferences & relationship to IPO",
        2023 (label smoothing). Azar et al., "A General Theoretical Paradigm to Understand Learning
        from Human Preferences", 2023, arXiv 2310.12036 (IPO). Ethayarajh et al., "KTO: Model
        Alignment as Prospect Theoretic Optimization", 2024, arXiv 2402.01306. Bradley and Terry,
        "Rank Analysis of Incomplete Block Designs", 1952; Ford, "Solution of a Ranking Problem from
        Binary Comparisons", 1957 (when there is a maximum). Sun and Tran-Dinh, "Generalized
        self-concordant functions: a recipe for Newton-type methods", 2019 (the steps). KTO's fixed
        point is derived here: stationary is ``π_i ∝ net_i σ(x_i)σ(−x_i)`` with ``Σ π_i x_i = 0``.
    """
    divergence = ReverseKL() if divergence is None else divergence
    if not isinstance(pairs, Preferences):
        pairs = read_preferences(pairs)
    if traced(log_ref, beta):
        raise TypeError("log_ref and beta must have values: call this outside of jit and vmap")
    _check_options(loss, divergence, desirable_weight, undesirable_weight)
    smoothing_of(label_smoothing, loss)
    arrays = float_arguments(log_ref=log_ref, beta=beta)
    log_ref, beta = arrays["log_ref"], arrays["beta"]
    # An objective checks the reference and beta before anything is fitted.
    plain = Objective(jnp.zeros_like(log_ref), log_ref, beta, divergence)
    possible = _possible(pairs, log_ref)
    if loss == "kto":
        weights = desirable_weight, undesirable_weight
        reward, group, status = _of_kto(pairs, plain, *weights)
        unanimous: list[tuple[int, int]] = []
    else:
        reward, group, unanimous = _of_pairs(pairs, possible, loss, label_smoothing)
        several = np.unique(group[group >= 0]).size > 1
        status = several * int(Status.NOT_UNIQUE) | bool(unanimous) * int(Status.NO_TARGET)
    objective = Objective(jnp.asarray(reward, log_ref.dtype), log_ref, beta, divergence)
    target = solve(objective)
    return PreferenceTarget(
        objective=objective,
        log_probs=target.log_probs,
        multiplier=target.multiplier,
        status=target.status | jnp.asarray(status, jnp.int32),
        group=jnp.asarray(group, jnp.int32),
        pairs=pairs,
        unanimous=tuple(unanimous),
        loss=loss,
        label_smoothing=label_smoothing,
    )


def _check_options(loss: str, divergence: Any, *weights: float) -> None:
    if loss not in ("dpo", "ipo", "kto"):
        raise ArgumentError("{}: it must be 'dpo', 'ipo' or 'kto'", "loss", loss)
    if not isinstance(divergence, Divergence):
        raise TypeError(f"divergence must be a kltarget.Divergence, got {divergence!r}")
    if any(np.ndim(x) for x in jax.tree.leaves(divergence)):
        raise ValueError("divergence must have numbers for parameters, not arrays")
    if loss == "kto" and not isinstance(divergence, ReverseKL):
        raise ValueError(f"divergence must be ReverseKL for loss='kto', got {divergence.title}")
    if not np.isneginf(float(slope_at_zero(divergence, jnp.float32))):
        raise ValueError(
            f"divergence must have f′(0) = −∞ to be put into a loss over pairs: {divergence.title} "
            "gives outcomes without mass a finite slope"
        )
    for name, weight in zip(("desirable_weight", "undesirable_weight"), weights, strict=True):
        if not (np.isfinite(weight) and weight > 0):
            raise ValueError(f"{name} must be above 0 and finite, got {weight}")
        if weight != 1 and loss != "kto":
            raise ValueError(f"{name} is for loss='kto' alone, not for {loss!r}: leave it out")


def _possible(pairs: Preferences, log_ref: Array) -> np.ndarray:
    """Which outcomes the reference has, ``[A]``; an error if the pairs do not fit."""
    if log_ref.ndim != 1:
        raise ValueError(f"log_ref has shape {log_ref.shape}: pairs are of one prompt, give [A]")
    size = log_ref.shape[0]
    if pairs.labels is not None and len(pairs.labels) != size:
        raise ValueError(
            f"log_ref has {size} outcomes, but the pairs have {len(pairs.labels)} labels: name all "
            "outcomes, read_preferences(table, labels=…)"
        )
    if pairs.num_outcomes > size:
        raise ValueError(
            f"log_ref has {size} outcomes, but the pairs compare outcome {pairs.num_outcomes - 1}"
        )
    possible = np.asarray(log_ref) > -np.inf
    for k in sorted({*pairs.first.tolist(), *pairs.second.tolist()}):
        if not possible[k]:
            raise ValueError(
                f"log_ref is -inf for {quoted(pairs.label(k))}, which is compared: its log ratio "
                "is nowhere defined; leave its pairs out"
            )
    return possible


def _of_pairs(
    pairs: Preferences, possible: np.ndarray, loss: Loss, label_smoothing: float
) -> Fitted:
    """Rewards of all outcomes; those that are compared are perhaps few among many."""
    compared, which = np.unique([pairs.first, pairs.second], return_inverse=True)
    first, second = which.reshape(2, -1)
    wins = Preferences(first, second, pairs.wins, pairs.losses).win_matrix()
    wins = (1 - label_smoothing) * wins + label_smoothing * wins.T
    fitted = bradley_terry(wins) if loss == "dpo" else least_squares(wins)
    reward = np.where(possible, 0.0, -np.inf)
    reward[compared] = fitted.reward
    # What is never compared is a group of its own.
    group = np.where(possible, len(compared) + np.arange(len(possible)), _IMPOSSIBLE)
    group[compared] = fitted.group
    unanimous = [(int(compared[i]), int(compared[j])) for i, j in fitted.unanimous]
    return Fitted(reward, group, unanimous)


def _of_kto(
    pairs: Preferences, plain: Objective, desirable: float, undesirable: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards ``[*batch, A]``, groups ``[A]`` and status ``[*batch]``."""
    log_ref, betas = (np.asarray(x, np.float64) for x in (plain.log_ref, plain.beta))
    high = betas >= 1
    if high.any():
        raise ValueError(
            f"beta must be below 1 for loss='kto', got {betas[high].flat[0]:g}: from 1 on its "
            "stationary policies are not known"
        )
    sides = np.concatenate([pairs.first, pairs.second])
    won, lost = (
        np.bincount(sides, np.concatenate(weights), log_ref.size)
        for weights in ((pairs.wins, pairs.losses), (pairs.losses, pairs.wins))
    )
    net = desirable * won - undesirable * lost
    # What balances but for rounding has no gradient.
    net[np.abs(net) <= 64 * np.finfo(float).eps * (desirable * won + undesirable * lost)] = 0.0
    possible = log_ref > -np.inf
    group = np.where(possible, 0, _IMPOSSIBLE)
    if not net.any():
        even = np.where(possible, np.arange(len(net)), _IMPOSSIBLE)
        remark = int(Status.NOT_UNIQUE) if possible.sum() > 1 else 0
        return np.where(possible, 0.0, -np.inf), even, np.full(betas.shape, remark)
    if not (net > 0).any():
        raise ValueError(
            "pairs have no outcome that is desirable on balance, which KTO needs to have anything "
            "to move to: raise desirable_weight or add outcomes that win"
        )
    drawn = [kto_rewards(net, log_ref, float(b)) for b in betas.ravel()]
    reward = np.array([x.reward for x in drawn]).reshape(*betas.shape, -1)
    several = np.array([x.several for x in drawn]).reshape(betas.shape)
    gone = possible & (net <= 0)
    group[gone] = _GONE
    remark = int(Status.NO_TARGET) if gone.any() else 0
    return reward, group, remark | several * int(Status.SEVERAL)
