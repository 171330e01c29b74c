"""``diagnose``: from a trainer's log and its recipe to what the two say together."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from kltarget import evidence
from kltarget._core import processes
from kltarget._core.checks import ArgumentError
from kltarget._core.numerics import double_precision
from kltarget._core.words import counted
from kltarget.diagnosis._actions import Advice, actions_of
from kltarget.diagnosis._aims import Aim, affordable, aims_of, flips_of, statable
from kltarget.diagnosis._asymptotes import asymptotes
from kltarget.diagnosis._contradictions import advantage_statement
from kltarget.diagnosis._diagnosis import Diagnosis
from kltarget.diagnosis._featured import featured_of, verdict_of
from kltarget.diagnosis._grade import grading_of, kept_statement
from kltarget.diagnosis._log_in_a_line import counting, title_of
from kltarget.diagnosis._of_curves import diagnosis_of_curves, is_of_curves
from kltarget.diagnosis._own_answers import own_answers
from kltarget.diagnosis._prompt_columns import columns_of
from kltarget.diagnosis._recipe_as_logged import completed, unshaped
from kltarget.diagnosis._say_gradient import gradient_statements
from kltarget.diagnosis._say_rewards import (
    SEVERAL_TOKENS,
    Case,
    impossible_tokens,
    little_seen,
    refusal,
    reward_statements,
    right_answers,
    several_tokens,
)
from kltarget.diagnosis._say_run import run_statements
from kltarget.diagnosis._say_targets import target_statements
from kltarget.diagnosis._statement import Statement
from kltarget.recipes import Preset, Recipe, preset, recipe as recipe_of
from kltarget.recipes._followed import in_words
from kltarget.rollouts import RolloutError, are_scalars, read_rollouts, read_scalars

if TYPE_CHECKING:
    import pandas as pd

_VARYING = "some answers were rewarded differently at times: their mean reward is used"
# Of so many prompts, what cannot be is a defect of their own, not of the log.
_FEW_ODD = 0.05

Path = str | os.PathLike[str]


def diagnose(
    rollouts: pd.DataFrame | Path | Iterable[Path],
    recipe: Recipe | str | None = None,
    *,
    beta: float | None = None,
    reference: str | None = None,
    threshold: float | None = None,
    max_prompts: int = 200,
    num_bootstrap: int = 200,
    key: PRNGKeyArray | None = None,
    name: str | None = None,
) -> Diagnosis:
    """What a run's log says of its regulariser: what it aims at, and how far it got.

    A trainer that ascends ``E_π[r] − β·D(π, π_ref)`` by a recipe of its own (the estimator of the
    KL, where it stands, how advantages are normalised) has a target in closed form, see
    :func:`kltarget.implied.implied_target`. This compares a log with it, and says no more than the
    log supports:

    1. *Rewards alone*: groups of equal rewards, the effective β, pass@k, diversity, and which KL
       the recipe follows. No flip β, no target.
    2. *With the reference's log-probabilities*: the target over the seen answers and one outcome
       for all unseen ones, rewarded as the worst seen; where answers change places (flip β); the
       ratio of right answers; the rewards that MARA would pay.
    3. *With the policy's too*: which family the run's own log-probabilities follow. Within a prompt
       ``log π/π_ref = r/β − const`` at the target of the reverse KL and ``π_ref/π = (Λ − r)/β`` at
       that of the forward KL; which line fits, its β, and how much diversity the target costs and
       how much the path to it.

    Where no rollouts were kept, the run's curves are the weakest evidence: whether a KL is logged,
    what it bought, and whether that fits the recipe's β.

    Args:
        rollouts: what :func:`kltarget.rollouts.read_rollouts` returned, or
            :func:`kltarget.rollouts.read_scalars`, or paths for either.
        recipe: what the trainer does, or the name of a preset such as ``"trl-grpo==1.9.2"``;
            without one there is no target, and no cause of what was lost. Its ``group_size`` is
            replaced by that of the log where all groups are of one size; where they differ, the
            recipe's is kept or, if it has none, their median is taken. Its scale and clip of
            rewards are left out where the log's rewards have them already (``attrs["shaped"]`` of
            the rollouts).
        beta: coefficient of the regulariser as the trainer is given it, in units of its normalised
            reward per nat; by default the recipe's. 0 is a run without regulariser.
        reference: ``"first-step"`` takes the rollouts of the first logged step as samples of the
            reference, which they are if nothing was learned before; the numbers that depend on it
            get intervals. By default the logged ``ref_logp`` is used.
        threshold: reward from which on an answer is right; by default the log's highest, where
            rewards have two or three values, or more of which it stands out and most prompts share
            it. Of several rewards that are added, one that is called accuracy or correct tells it,
            if totals part right from wrong by it. Elsewhere what is right is not known: without a
            threshold there is no pass@k.
        max_prompts: for how many prompts, the most informative ones, targets are computed. Where
            rewards of several sizes are normalised in finite groups one counts for ten.
        num_bootstrap: resamples behind each interval.
        key: of the resampling behind intervals, the only randomness; by default
            ``jax.random.key(0)``, so that a log and a recipe alone give the same numbers each time.
        name: what to call the recipe; by default the preset's name, or the recipe in words.

    Returns:
        A grade, a cause and what to do; statements, each with its value, interval, assumption and
        sample size; the numbers of every prompt. The last third of the logged steps is "now".

    Raises:
        RolloutError: a log without rows, rewards or, where it is needed, steps.
        ValueError: no beta, a negative one, or one without a recipe; an unknown ``reference``.
        TypeError: a recipe that is none.

    A run is graded by the chance that two right completions of a prompt differ, now against the
    reference (where its log-probabilities are logged) or the first tenth of the steps: what keeps
    at most 25 % of it is collapsed, at most 75 % narrowing, if so small a share has a chance below
    1 % had nothing been lost; what keeps more, and by its interval surely more than 25 %, has held;
    the rest is unknown. The cause is the target if that keeps as little by the same bounds, the
    path if the run keeps less than its target does with a chance below 1 %, or that nothing in the
    recipe regularises. Where no prompt recurs, groups of the first and of the last steps are
    compared. Where right answers are too few, but such a loss of them has a chance below 15 %,
    where prompts have several and nothing regularises, all answers are compared, for a collapse
    alone.

    Where the KL acts on every token (``recipe.per_token``) and completions part after their first
    token, each prefix has a target of its own: it is computed along the tree of the seen tokens if
    the log has these (``token_ids``) with the reference's log-probability of each
    (``ref_token_logps``), what else may follow a prefix being one further choice there. Without
    them nothing is said of targets, distances, ratios and flips.

    Where completions seldom repeat, the seen ones hold next to none of the reference's mass. If
    both log-probabilities are there, answers are then weighed by ``π_ref/π``; otherwise there are
    no targets over answers.

    Example:
        >>> import pandas as pd
        >>> from kltarget.diagnosis import diagnose
        >>> from kltarget.recipes import Recipe
        >>> answers, rewards = ["1", "2", "1", "7"], [1.0, 1.0, 1.0, 0.0]
        >>> frame = pd.DataFrame({"answer": answers, "completion": answers, "reward": rewards})
        >>> frame = frame.assign(prompt="a digit?", step=1, group_id=0, logp=None, ref_logp=None)
        >>> found = diagnose(frame, Recipe("loss", "k3", baseline="mean"), beta=0.3)
        >>> found.tier, f"{found['effective_beta'].value:.2f}", found["flip_beta"].refused
        (1, '0.40', True)

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817 (targets, ratios, MARA). Chen et al., "Evaluating Large Language Models
        Trained on Code", 2021, arXiv 2107.03374 (pass@k).
    """
    told = recipe is not None
    if recipe is None:
        if beta is not None:
            why = "beta says nothing without what the trainer does: give {}"
            raise ArgumentError(why, "recipe", "place=loss,estimator=k3", "recipe='trl-grpo'")
        # The plainest there is, of which nothing is said.
        recipe, beta, name = Recipe("none"), 0.0, ""
    unsaid = beta is None and (isinstance(recipe, str) or name is not None)
    known = _preset_of(recipe if isinstance(recipe, str) else name or "")
    keys, caveat = (known.keys, known.caveat) if known is not None else ({}, "")
    recipe, words = _recipe(recipe, beta)
    name = words if name is None else name
    beta = recipe.beta if beta is None else beta
    if beta is None:
        python = "pass beta=0.04, for instance, or give it to the recipe"
        raise ArgumentError("beta is needed: {}", "beta", "0.04, for instance", python)
    if not (isinstance(beta, (int, float)) and math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be a finite number of 0 or more, got {beta!r}")
    if max_prompts < 1:
        raise ValueError(f"max_prompts must be 1 or more, got {max_prompts}")
    if num_bootstrap < 2:
        raise ValueError(f"num_bootstrap must be 2 or more, got {num_bootstrap}")
    frame: Any = rollouts
    if isinstance(rollouts, (str, os.PathLike)) or not hasattr(rollouts, "columns"):
        paths: Any = rollouts
        frame = read_scalars(paths) if are_scalars(paths) else read_rollouts(paths, full_text=False)
    default = []
    if unsaid:
        default = [
            f"β = {beta:g} is the default of {name}: give beta (--beta) if the run set another"
        ]
    if is_of_curves(frame):
        used = dataclasses.replace(recipe, beta=float(beta)) if told else None
        return diagnosis_of_curves(frame, used, name, [*default, *([caveat] if caveat else [])])
    log = evidence.log_of(frame)
    steered = recipe.kl_target is not None
    evidence.reference_kind(log, reference)
    recipe, notes = completed(recipe, log, beta)
    recipe, shaping = unshaped(recipe, frame)
    log, dubious = _possible(log)
    if threshold is None:
        threshold = evidence.evident_threshold(log)
    # Without a threshold nothing is known to be right.
    threshold = math.inf if threshold is None else float(threshold)
    columns = (log.prompt, log.answer, log.reward, log.logp, log.ref_logp)
    given = [len(log), *(float(np.nansum(x)) for x in columns)]
    given += [repr(recipe), beta, threshold, max_prompts, num_bootstrap]
    processes.require_same(str(given), "rollouts or options")
    groups = evidence.groups_of(log, threshold, recipe.ddof)
    bits = jax.random.key_data(jax.random.key(0) if key is None else key)
    # NumPy's generator takes the low word first.
    rng = np.random.default_rng(np.asarray(bits).ravel()[::-1])
    case = Case(log, groups, recipe, float(beta), threshold, rng, num_bootstrap, told)
    # Of their own, so that no interval depends on how a run is graded.
    draws = np.random.default_rng([*np.asarray(bits).ravel()[::-1].tolist(), 1])
    notes = [*frame.attrs.get("notes", ()), *log.notes, *dubious, *notes, *shaping]
    notes = [*default, *([caveat] if caveat else []), *notes]
    with double_precision():
        aims, unknown, refused = _aims(case, reference, max_prompts) if told else ([], [], None)
        notes += unknown
        if evidence.rewards_vary(log):
            notes.append(_VARYING)
        right = evidence.num_right(log, threshold)
        late = evidence.num_right(log, threshold, late=True)
        alone, rule = own_answers(case, frame)
        statements = reward_statements(case, answers_recur=not alone)
        statements += gradient_statements(case)
        statements += alone or [right_answers(case, right, late)]
        checked, fitting, shown = advantage_statement(case, keys) if told else (None, (), {})
        notes += fitting
        if checked is not None:
            statements.insert(0 if checked.warning else len(statements), checked)
        featured, tier = None, 1
        if aims:
            flips = flips_of(recipe, case.beta, aims[0], rng, num_bootstrap)
            statements += target_statements(case, aims, flips)
            run = run_statements(case, aims)
            tier = 2 if all(statement.refused for statement in run) else 3
            statements += run
            featured = featured_of(case, aims[0].prompt, aims[0], flips)
        else:
            statements.append(refused or refusal(case))
            first = evidence.informative_order(log, threshold)[:1]
            featured = featured_of(case, evidence.prompts_of(log, first, "none")[0], None)
        grading = grading_of(case, aims, _with_reference(case, max_prompts), draws, bool(alone))
        statements += kept_statement(grading)
        named = {statement.name: statement for statement in reversed(statements)}
        written = frame.attrs.get("format")
        advice = Advice(case, grading, aims, named, known, written, rule, shown, steered)
        actions = actions_of(advice)
    group_size, of_groups = counting(groups.size, recipe)
    size = {
        "rollouts": len(log),
        "prompts": len(log.prompts),
        "groups": len(groups.size),
        "steps": len(log.steps),
        "group_size": group_size,
        "analysed": len(aims),
    }
    return Diagnosis(
        title=title_of(log, size, written, of_groups),
        recipe=recipe if told else None,
        recipe_name=name,
        beta=float(beta) if told else None,
        tier=tier,
        size=size,
        notes=tuple(notes),
        verdict=(*(default if beta == 0 else ()), *verdict_of(case, statements, aims)),
        statements=tuple(statements),
        history=_without_answers(evidence.history(log, groups), alone),
        featured=featured,
        prompts=columns_of(case, aims, right, late),
        grade=grading.grade,
        cause=grading.cause,
        headline=grading.headline,
        actions=actions,
        grading=grading.told,
        asymptotes=asymptotes(aims, group_size),
    )


def _recipe(recipe: Recipe | str, beta: float | None) -> tuple[Recipe, str]:
    if isinstance(recipe, str):
        return recipe_of(recipe, beta=beta), recipe
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a kltarget.recipes.Recipe or a name, got {recipe!r}")
    return recipe, in_words(recipe)


def _preset_of(name: str) -> Preset | None:
    """The preset whose name begins the name of a recipe."""
    try:
        return preset(name.split(" with ")[0].split(" of ")[0])
    except ValueError:
        return None


def _with_reference(case: Case, most: int) -> list[evidence.Prompt]:
    """Prompts whose reference is logged, where there is no recipe and hence no target."""
    if case.told or not np.isfinite(case.log.ref_logp).any() or _excess(case.log) is not None:
        return []
    order = evidence.informative_order(case.log, case.threshold)[:most]
    return evidence.prompts_of(case.log, order, "logged")


def _excess(log: evidence.Log) -> tuple[float, str] | None:
    """The largest sum of a prompt's reference probabilities if it is impossible, and the prompt."""
    sums = evidence.reference_sums(log)
    worst = int(sums.argmax())
    over = (sums > evidence.IMPOSSIBLE).sum()
    # One odd prompt of many is left out alone.
    if not over or over <= _FEW_ODD * (sums > 0).sum():
        return None
    return float(sums[worst]), log.prompts[worst]


def _possible(log: evidence.Log) -> tuple[evidence.Log, list[str]]:
    """The log without log-probabilities of the policy that cannot be any, and a note."""
    if not np.isfinite(log.logp).any() or not len(log.steps):
        return log, []
    sums = evidence.policy_sums(log)
    over = (sums > evidence.IMPOSSIBLE).sum()
    if over <= _FEW_ODD * (sums > 0).sum():
        return log, []
    note = (
        f"logp is not used: at one step exp(logp) of a prompt's different completions adds up to "
        f"{sums.max():.3g}, more than 1; are these means over tokens, not sums?"
    )
    return dataclasses.replace(log, logp=np.full_like(log.logp, np.nan)), [note]


def _not_logged(recipe: Recipe) -> str | None:
    """What a target needs that no log has."""
    if recipe.teacher:
        return (
            "no target: the recipe has a teacher, and logs do not say how likely it finds answers"
        )
    if recipe.combine != "sum":
        return "no target: rewards are normalised one by one, and logs have their sum"
    return None


def _aims(
    case: Case, reference: str | None, most: int
) -> tuple[list[Aim], list[str], Statement | None]:
    """Targets of the most informative prompts, what there is to note, and why there are none."""
    log, notes = case.log, []
    kind = evidence.reference_kind(log, reference)
    if kind is None:
        return [], notes, None
    if kind == "first-step" and log.steps[0] > 1:
        notes.append(
            f"the first logged step is {log.steps[0]:,}: whether the policy was still the "
            "reference then, the log does not say"
        )
    impossible = np.zeros(len(log.prompts), bool)
    if kind == "logged":
        excess = _excess(log)
        if excess is not None:
            return [], notes, refusal(case, excess)
        impossible = evidence.reference_sums(log) > evidence.IMPOSSIBLE
        if impossible.any():
            what = (
                f"{counted(int(impossible.sum()), 'prompt')} left out of the targets: exp(ref_logp)"
            )
            notes.append(f"{what} of the different completions adds up to more than 1")
    odd = evidence.disagreements(log) if kind == "logged" else 0
    if odd:
        notes.append(
            f"{odd:,} completions have reference log-probabilities that differ by more than 0.01: "
            "other tokens of the same text, or another reference; the first is used"
        )
    excluded = int(np.isneginf(log.ref_logp).sum()) if kind == "logged" else 0
    if excluded:
        notes.append(
            f"{counted(excluded, 'rollout')} with ref_logp = −inf: the reference cannot give what "
            "was sampled from a policy that began as it; is this another reference?"
        )
    order = evidence.informative_order(log, case.threshold)
    prompts = evidence.prompts_of(log, order[~impossible[order]][:most], kind)
    if not prompts and kind == "logged":
        return [], notes, little_seen()
    if not prompts:
        notes.append("no prompt of the first step is among the most informative ones")
        return [], notes, None
    if case.recipe.per_token and not all(prompt.tokens_possible for prompt in prompts):
        some = [prompt for prompt in prompts if prompt.tokens_possible]
        notes.append(
            f"{counted(len(prompts) - len(some), 'prompt')} left out of the targets: "
            "exp(ref_token_logps) of the different tokens after a prefix adds up to more than 1"
        )
        if not some:
            return [], notes, impossible_tokens()
        prompts = some
    if not all(statable(case.recipe, prompt) for prompt in prompts):
        some = [prompt for prompt in prompts if statable(case.recipe, prompt)]
        if not some:
            return [], notes, several_tokens()
        missing = f"{len(prompts) - len(some):,} of {counted(len(prompts), 'prompt')}"
        notes.append(f"{missing} left out of the targets: {SEVERAL_TOKENS}")
        prompts = some
    unknown = [int(prompt.unknown.sum()) for prompt in prompts if prompt.unknown.any()]
    if unknown:
        notes.append(
            f"{counted(sum(unknown), 'answer')} of {counted(len(unknown), 'prompt')} without "
            "reference log-probabilities: how likely the target makes them is not known, and they "
            "are counted as unseen"
        )
    weighed = sum(prompt.known == "weighted" for prompt in prompts)
    if weighed:
        notes.append(
            f"in {weighed:,} prompts completions seldom repeat: answers are weighed by π_ref/π"
        )
    missing = _not_logged(case.recipe)
    if missing is not None:
        notes.append(missing)
        return [], notes, None
    prompts = affordable(case.recipe, prompts, most)
    try:
        return aims_of(case.recipe, prompts, case.beta), notes, None
    except ValueError as error:
        notes.append(f"no target: {error}")
        return [], notes, None


def _without_answers(
    history: dict[str, list[float]], alone: list[Statement]
) -> dict[str, list[float]]:
    """The history without numbers of answers, where each completion is its own."""
    unknown = {name: [math.nan] * len(history[name]) for name in ("entropy", "differ") if alone}
    return history | unknown


__all__ = ["RolloutError", "Statement", "diagnose"]
