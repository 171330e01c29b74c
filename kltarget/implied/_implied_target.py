"""``implied_target``: from a trainer's recipe to the policy its expected gradient vanishes at."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.pytrees import pytree
from kltarget._core.status import Status
from kltarget.divergences import ReverseKL, TotalVariation
from kltarget.implied._fixed_point_problem import FixedPoint, Problem
from kltarget.implied._fixed_points import find, of_deviation, smallest_coefficient
from kltarget.implied._known import several_tokens
from kltarget.implied._motion import in_motion
from kltarget.implied._nodes import next_tokens, one_level
from kltarget.implied._rows import Rows, make_rows
from kltarget.objectives import Objective, reward_for
from kltarget.recipes import Recipe
from kltarget.recipes._terms import in_jax
from kltarget.spaces import Branches, PrefixTree, SequenceSpace
from kltarget.targets import solve, token_local_target
from kltarget.targets._protocol import StationaryPolicy
from kltarget.tasks import ProblemLike


@pytree
class ImpliedTarget(StationaryPolicy):
    """The policy at which a recipe's expected gradient vanishes.

    Attributes:
        objective: the plain objective of which it is the target: at sequence level its maximiser,
            for a token-local recipe its token-local target. Where advantages are divided by an
            expected deviation this has the trainer's own reward and the ``effective_beta``; in
            finite groups its reward is the expected advantage. Outcomes that training gives up
            although the reference has them have the reward ``-inf``.
        log_probs: log π, shape ``[*batch, A]``.
        multiplier: λ of the objective, or of the first token's problem.
        status: :class:`Status` bits, shape ``[*batch]``. ``NO_TARGET``, ``SATURATED`` and
            ``SEVERAL`` say where there is no policy that the regulariser holds, or more than one;
            ``CLIPPED``, that the trainer's clip of the estimate would be active there, so that the
            regulariser pulls less than is reckoned with here.
        reward: the trainer's own, after the recipe's scaling and bounds, shape ``[*batch, A]``;
            ``-inf`` where the reference has no mass. ``expected_reward`` and ``objective_value``
            are those of the objective, which in finite groups has another.
        beta: the recipe's coefficient as given, shape ``[*batch]``; where a controller moves it,
            as it settles.
        effective_beta: coefficient in units of the recipe's reward, shape ``[*batch]``: with the
            objective's divergence and that reward it would give this target or, in finite groups,
            one as close as the deviation of the rewards or the lengths of sequences allow. With
            renewals of the reference it is relative to the first one for a reverse KL of whole
            outcomes, whose tilts add up, and to the last one otherwise; beside a teacher it is that
            of the KL to the reference alone.
        other_rewards: expected rewards (after the recipe's scaling) at the further fixed points
            that were found, ``[*batch, R]``, padded with NaN.
        error: standard error of the total variation, 0 unless groups had to be sampled.
    """

    made_by = "implied_target"

    reward: Float[Array, "*batch A"]
    beta: Float[Array, "*batch"]
    effective_beta: Float[Array, "*batch"]
    other_rewards: Float[Array, "*batch R"]
    error: Float[Array, "*batch"]


def implied_target(
    recipe: Recipe,
    reward: ArrayLike | ProblemLike,
    log_ref: ArrayLike | None = None,
    *,
    space: SequenceSpace | PrefixTree | None = None,
    beta: ArrayLike | None = None,
    log_teacher: ArrayLike | None = None,
    num_syncs: int | None = None,
) -> ImpliedTarget:
    """The policy at which the expected gradient of a trainer's recipe vanishes.

    What a recipe ascends is ``E_π[A(y)] − beta · K(π, π_ref)`` with advantages A that may depend on
    the policy and a regulariser whose *gradient* decides which divergence K is:

    - k1 in the reward, k2, weighted k1 or k3 in the loss: reverse KL, ``π = π_ref e^{A/β}/Z``;
    - k3 in the loss: forward KL, ``π = β π_ref/(Λ − A)``;
    - the same per token in the loss: the token-local versions, see
      :func:`kltarget.token_local_target`;
    - k1 in the loss, or ``beta = 0``: nothing holds the policy, ``NO_TARGET``.

    Advantages divided by the standard deviation σ of the rewards under the policy itself give a
    fixed point with ``effective_beta = β (σ + ε)``, ε the recipe's ``epsilon``; in groups of G
    samples it is that of ``u_a = E[A | a]``, expected over the multinomial of the other G − 1
    rewards. A mean over the group that includes the sample shortens the reward's gradient by
    ``(G − 1)/G`` and so multiplies the coefficient of a KL outside of it by ``G/(G − 1)``. A KL in
    the reward that is normalised along with it keeps the target of β itself, for there all
    regularised rewards are equal.

    A ``"batch-std"`` is one number for all prompts of a batch, and how far their mean rewards are
    apart counts in it. Rows that share one ``beta`` are such a batch, all prompts equally frequent;
    along axes that ``beta`` has itself, each row is another run.

    Args:
        recipe: what the trainer does; its ``beta`` is the coefficient unless one is given here.
        reward: of every outcome, in the units that the trainer's reward function returns, shape
            ``[*batch, A]``; finite where the reference has mass; of several rewards
            ``[*batch, J, A]``. Or, without a ``log_ref``, one
            problem in any form that :func:`kltarget.tasks.as_task` takes.
        log_ref: log-probabilities of the reference, ``[*batch, A]``.
        space: the sequences that the outcomes are; by default the task's. Without it an outcome is
            one token, and token and sequence level are the same. Sequences that were observed, and
            what else may follow their prefixes, are a :class:`kltarget.spaces.PrefixTree`.
        beta: coefficient of the regulariser, in units of the (normalised) reward per nat, 0 or
            more, of a shape that broadcasts to ``[*batch]``.
        log_teacher: log-probabilities of the teacher, ``[*batch, A]``, for recipes that have one.
        num_syncs: how often a reference that is copied or averaged has been renewed, each time
            after the policy has come to rest: a run of N steps has ``(N − 1) // reference_every``.
            None for without end, where in the end nothing holds the policy.

    Returns:
        The target that training from the reference is drawn to. Where there is none, what training
        ends in: for ``SATURATED`` the best outcomes in the reference's proportions, if the steps
        are small (large ones collapse onto one of the best instead: of two runs of TRL with the
        same settings, one with a learning rate of 1e-3 ended 0.0085 of total variation from here
        and one with 4e-3 0.67); for
        ``NO_TARGET`` the likeliest of the best outcomes, onto which exact policy gradients of a
        softmax over outcomes collapse (:func:`kltarget.implied.unregularized_path`), and with a
        ``space`` of several tokens the best in the reference's proportions, since there no
        conserved quantity is known. Where all rewards are equal nothing moves, and it is the
        reference. k2, k3 or the absolute log-ratio in the reward have no target either, but their
        cost still acts, and which of its many stationary policies is reached the path decides:
        NaN. So it is where a controller finds no coefficient at which it would rest.

    Raises:
        TypeError: a recipe or a space that is none.
        ValueError: shapes that do not fit, a missing beta, values out of range, or a recipe whose
            fixed points no formula is known for; the message names the argument.

    Where ends are cut off (``eos="cut"``) the other tokens are stationary one by one, and the end
    has the mass that they leave; one that the reference all but excludes takes longer to get it
    than any run lasts.

    Assumptions: on-policy (no clip of the ratio is active), no clip of the estimate is active
    (``CLIPPED`` says where one is), averages over many prompts and groups, a policy that can
    represent the target. Not to be called under a trace: fixed points are searched for on the host,
    in float64.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.implied import implied_target
        >>> from kltarget.recipes import Recipe
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> reward = jnp.array([1.0, 1.0, 0.0])
        >>> grpo = Recipe("loss", "k3", "token", "mean", normalize="group-std", group_size=8)
        >>> target = implied_target(grpo, reward, log_ref, beta=0.2)
        >>> print([f"{p:.4f}" for p in target.probs])
        ['0.8871', '0.0591', '0.0538']

    References:
        Vojnovic and Yun, "What is the Alignment Objective of GRPO?", 2025, arXiv 2502.18548 (k3 in
        the loss with large groups and groups of two). Mroueh, "Reinforcement Learning with
        Verifiable Rewards: GRPO's Effective Loss", 2025, arXiv 2503.06639 (fixed points of the
        success probability). The rest is derived from the conditions above.
    """
    rows = make_rows(recipe, reward, log_ref, space, beta, log_teacher)
    if num_syncs is not None:
        _check_syncs(recipe, num_syncs)
    return _assemble(*in_motion(rows, _find_all, num_syncs))


def _check_syncs(recipe: Recipe, num_syncs: int) -> None:
    whole = isinstance(num_syncs, (int, np.integer)) and not isinstance(num_syncs, bool)
    if not whole or num_syncs < 0:
        raise ValueError(f"num_syncs must be an integer of 0 or more, got {num_syncs!r}")
    if recipe.reference not in ("copied", "averaged"):
        raise ValueError(
            f"num_syncs is of a reference that is renewed, not of reference={recipe.reference!r}: "
            "leave it out"
        )


def effective_beta(
    recipe: Recipe,
    reward: ArrayLike | ProblemLike,
    log_ref: ArrayLike | None = None,
    *,
    space: SequenceSpace | PrefixTree | None = None,
    beta: ArrayLike | None = None,
    log_teacher: ArrayLike | None = None,
    num_syncs: int | None = None,
) -> Float[Array, "*batch"]:
    """The coefficient that a recipe amounts to, per prompt, in units of its reward.

    ``E_π[reward] − effective_beta · D(π, π_ref)`` has the recipe's target, where D is the
    divergence whose gradient the recipe follows; 0 where nothing holds the policy, NaN where a cost
    acts that no divergence has. In finite groups with a standard deviation, and where sequences
    count by their lengths, no such number exists exactly unless there are two rewards or one
    length: it is then the one that matches the spread of the advantages and the mean weights.

    Args:
        recipe: what the trainer does; its ``beta`` is the coefficient unless one is given here.
        reward: of every outcome, ``[*batch, A]``, in any real unit; finite where the reference has
            mass.
        log_ref: log-probabilities of the reference, ``[*batch, A]``; ``-inf`` where it has no mass.
        space: the sequences that the outcomes are. Without it an outcome is one token.
        beta: coefficient of the regulariser, in units of the (normalised) reward per nat, 0 or
            more, shape ``[*batch]``.
        log_teacher: log-probabilities of the teacher, ``[*batch, A]``, for recipes that have one.
        num_syncs: how often a reference that moves has been renewed, as for
            :func:`implied_target`.

    Returns:
        Coefficients in units of the reward per nat, shape ``[*batch]``: the ``effective_beta`` of
        :func:`implied_target`, which is searched for on the host, in float64. It has no
        derivatives.

    Raises:
        TypeError: a recipe or a space that is none.
        ValueError: shapes that do not fit, a missing beta, values out of range, or a recipe whose
            fixed points no formula is known for; the message names the argument.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.implied import effective_beta
        >>> from kltarget.recipes import Recipe
        >>> log_ref = jnp.log(jnp.array([0.3, 0.7]))
        >>> recipe = Recipe("loss", "k3", baseline="mean", group_size=8, beta=0.35)
        >>> print(f"{effective_beta(recipe, jnp.array([1.0, 0.0]), log_ref):.3f}")
        0.400
    """
    return implied_target(
        recipe,
        reward,
        log_ref,
        space=space,
        beta=beta,
        log_teacher=log_teacher,
        num_syncs=num_syncs,
    ).effective_beta


def saturation_beta(
    recipe: Recipe,
    reward: ArrayLike | ProblemLike,
    log_ref: ArrayLike | None = None,
    *,
    space: SequenceSpace | PrefixTree | None = None,
) -> Float[Array, "*batch"]:
    """The coefficient below which rewards normalised in large groups saturate.

    With advantages ``(r − E r)/(σ + ε)`` a fixed point needs ``s = β (σ(s) + ε)``, where σ(s) is
    the deviation under the target of coefficient s. Below ``min_s s/(σ(s) + ε)`` there is none
    short of saturation. For two rewards, reverse KL and ε = 0 it is
    :func:`kltarget.recipes.critical_beta`; for the forward KL it is 0.

    Args:
        recipe: with a standard deviation in its advantages; its ``group_size`` is taken as infinite
            and its ``beta`` is not used. With ``"batch-std"`` all rows are prompts of one batch.
        reward: of every outcome, ``[*batch, A]``, or a problem, as for :func:`implied_target`.
        log_ref: log-probabilities of the reference, ``[*batch, A]``.
        space: the sequences that the outcomes are; by default the task's.

    Returns:
        Coefficients of shape ``[*batch]``, of normalised reward per nat.

    Raises:
        ValueError: a recipe whose normalisation has no such coefficient, shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.implied import saturation_beta
        >>> from kltarget.recipes import Recipe
        >>> log_ref = jnp.log(jnp.array([0.3, 0.7]))
        >>> recipe = Recipe("loss", "k2", baseline="mean", normalize="group-std")
        >>> print(f"{saturation_beta(recipe, jnp.array([1.0, 0.0]), log_ref):.4f}")
        1.0819
    """
    large = dataclasses.replace(recipe, group_size=None)
    rows = make_rows(large, reward, log_ref, space, 1.0)
    divided = recipe.normalize not in ("none", "group-mean") and not recipe.charged_before
    if recipe.by_masses or not (divided and recipe.divergence):
        raise ValueError(
            "saturation needs advantages that are divided by a standard deviation with the "
            f"regulariser outside: this recipe has normalize={recipe.normalize!r}, "
            f"place={recipe.place!r} and normalize_when={recipe.normalize_when!r}, or cuts or "
            "divides advantages once more"
        )
    if any(x.lengths is not None for x in rows.problems):
        raise ValueError("saturation_beta knows no sequences that count by their lengths")
    if recipe.normalize == "batch-std" and len(rows.problems) > 1:
        forward = recipe.aim == "forward" and not recipe.entropy_bonus
        least = 0.0 if forward else smallest_coefficient(rows.problems)
        return jnp.asarray(np.full(rows.batch, least, rows.dtype))
    values = [
        0.0 if recipe.aim == "forward" and not recipe.entropy_bonus else smallest_coefficient([x])
        for x in rows.problems
    ]
    return jnp.asarray(np.array(values).reshape(rows.batch).astype(rows.dtype))


def _find_all(rows: Rows) -> list[FixedPoint]:
    found: dict[int, FixedPoint] = {}
    for together in rows.together:
        problems = [rows.problems[i] for i in together]
        if _share_a_deviation(problems):
            points = of_deviation(problems)
            found |= dict(zip(together, points, strict=True))
        else:
            found |= {i: _find(rows.problems[i], rows.space) for i in together}
    return [_remarked(x, found[i], rows.space) for i, x in enumerate(rows.problems)]


def _share_a_deviation(problems: list[Problem]) -> bool:
    """Whether prompts are to be solved together: there is one deviation, and it acts."""
    if len(problems) < 2 or not any(x.levels.size > 1 for x in problems):
        return False
    recipe = problems[0].recipe
    shared = recipe.normalize == "batch-std" and recipe.normalized
    return shared and problems[0].held and not recipe.charged_without_divergence


def _find(problem: Problem, space: SequenceSpace | PrefixTree | None) -> FixedPoint:
    recipe, several = problem.recipe, problem.levels.size > 1
    if recipe.charged_without_divergence and problem.beta > 0:
        # A cost in the reward that no divergence has: it acts, and has many stationary policies.
        return _undecided(problem) if several else problem.only(problem.best, Status.NO_TARGET)
    if recipe.aim == "total variation" and problem.beta > 0:
        # Both have the target of total variation, computed when all rows are put together.
        beta = recipe.variation_factor * problem.beta / recipe.baseline_factor
        return FixedPoint(problem.log_ref, problem.reward, beta, beta)
    if problem.held:
        return find(problem)
    acts = recipe.baseline == "none" or (recipe.place == "loss" and problem.beta > 0)
    if several and acts and recipe.zero_std == "drop" and recipe.group_size:
        # What is inert on average acts where some groups are left out: by how often they are.
        return _undecided(problem)
    # What exact policy gradients end in where nothing regularises them.
    best = problem.best
    # Where all rewards are equal there is no gradient.
    if several and not several_tokens(space):
        best = best & (problem.log_ref == problem.log_ref[best].max())
    return problem.only(best, Status.NO_TARGET)


def _undecided(problem: Problem) -> FixedPoint:
    nowhere = np.full_like(problem.log_ref, np.nan)
    return FixedPoint(nowhere, problem.reward, problem.beta, np.nan, Status.NO_TARGET)


def _remarked(
    problem: Problem, found: FixedPoint, space: SequenceSpace | PrefixTree | None
) -> FixedPoint:
    """A fixed point, and whether the trainer's clip of the estimate would be active there."""
    tree = None
    if space is not None and problem.recipe.level == "token":
        tree = space.branches
    if not problem.held or problem.recipe.aim not in ("reverse", "forward", "other"):
        return found
    if not _clipped(problem, found.log_probs, tree):
        return found
    return dataclasses.replace(found, status=found.status | Status.CLIPPED)


def _clipped(problem: Problem, log_probs: np.ndarray, tree: Branches | None) -> bool:
    """Whether the estimate of the divergence, per token of these, is cut anywhere at a policy."""
    recipe = problem.recipe
    low, high = recipe.held
    limits = recipe.log_ratio_clip or recipe.kl_clip or min(-low, high) < np.inf
    if not problem.regularised or not limits:
        return False
    tree = one_level(log_probs.size) if tree is None else tree
    policies = (next_tokens(tree, x) for x in (log_probs, problem.log_ref))
    now, then = (np.concatenate([x.ravel() for x in levels]) for levels in policies)
    log_ratio = np.where(now > -np.inf, now, 0) - np.where(now > -np.inf, then, 0)
    estimates = dict.fromkeys(("k1", "weighted-k1"), log_ratio) | {"k2": log_ratio**2 / 2}
    if ((log_ratio < low) | (log_ratio > high)).any():
        return True
    estimates["swapped-k3"] = np.expm1(log_ratio) - log_ratio
    if recipe.kl_clip is not None and callable(recipe.estimator):
        estimates[recipe.estimator_name] = np.asarray(
            in_jax(recipe.estimator)(jnp.asarray(log_ratio))
        )
    with np.errstate(over="ignore"):
        # What is too large for a number is beyond any limit.
        cost = estimates.get(recipe.estimator_name, np.expm1(-log_ratio) + log_ratio)
    cuts = (log_ratio, recipe.log_ratio_clip), (cost, recipe.kl_clip)
    return any(np.abs(x).max() > (cut or np.inf) for x, cut in cuts)


def _assemble(rows: Rows, found: list[FixedPoint]) -> ImpliedTarget:
    """One batched target from the fixed points of its rows."""
    found, temperature = list(found), rows.recipe.temperature
    if temperature != 1:
        found = [
            dataclasses.replace(
                x,
                log_probs=rows.powered(x.log_probs, temperature),
                effective_beta=x.effective_beta / temperature,
            )
            for x in found
        ]
    size, batch, dtype = rows.log_ref.shape[-1], rows.batch, rows.dtype
    divergence = rows.recipe.divergence or ReverseKL()
    if rows.recipe.aim == "total variation":
        divergence = TotalVariation()

    def batched(values: Any, *own: int) -> np.ndarray:
        return np.reshape(np.array(values, np.float64), (*batch, *own)).astype(dtype)

    log_probs, log_ref = batched([x.log_probs for x in found], size), batched(rows.log_ref, size)
    remarks = np.array([int(x.status) for x in found], np.int32).reshape(batch)
    others = list(itertools.zip_longest(*(x.others for x in found), fillvalue=np.nan))
    # Of a recipe, not of a row: what else is in a batch changes nothing.
    local = rows.recipe.per_token and several_tokens(rows.space)
    if all(x.plain for x in rows.problems) and not (local and isinstance(rows.space, PrefixTree)):
        # What the reference cannot produce is never sampled, however well it were rewarded.
        reward = np.where(log_ref == -np.inf, log_ref, batched([x.reward for x in found], size))
        beta = batched([x.beta for x in found])
        if local:
            assert isinstance(rows.space, SequenceSpace)
            target = token_local_target(rows.space, reward, log_ref, beta, divergence)
        else:
            target = solve(Objective(reward, log_ref, beta, divergence))
        objective = target.objective
        log_probs = np.where(np.isnan(log_probs), log_probs, target.log_probs)
        unheld = remarks & int(Status.NO_TARGET) > 0
        multiplier, status = target.multiplier, np.where(unheld, 0, target.status) | remarks
    else:
        beta = batched(np.where(rows.beta > 0, rows.beta, 1.0))
        known = np.where(np.isnan(log_probs), log_ref, log_probs)
        wish = reward_for(known, log_ref, beta, ReverseKL())
        objective = Objective(wish, log_ref, beta, ReverseKL())
        multiplier, status = solve(objective).multiplier, remarks
    own = batched([x.reward for x in rows.problems], size)
    fields = {
        "log_probs": log_probs,
        "multiplier": multiplier,
        "status": status,
        "reward": np.where(log_ref == -np.inf, log_ref, own),
        "beta": batched(rows.beta),
        "effective_beta": batched([x.effective_beta for x in found]),
        "other_rewards": batched(np.transpose(others), len(others)),
        "error": batched([x.error for x in found]),
    }
    return ImpliedTarget(objective, **{name: jnp.asarray(x) for name, x in fields.items()})
