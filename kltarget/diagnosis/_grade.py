"""The grade of a run, held, narrowing or collapsed, and its cause, by stated thresholds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import hypergeom

from kltarget._core.status import Status
from kltarget._core.words import counted, number
from kltarget.diagnosis._aims import Aim
from kltarget.diagnosis._kept import (
    EARLY,
    LEAST_ROLLOUTS,
    Kept,
    early_rows,
    kept_between_groups,
    kept_by_reference,
    kept_since_start,
    laws_of,
)
from kltarget.diagnosis._say_rewards import BY_RULE, INDEPENDENT, Case
from kltarget.diagnosis._statement import Statement
from kltarget.evidence import Prompt, num_right
from kltarget.recipes import Recipe

GRADES = {
    "held": "Held",
    "narrowing": "Narrowing",
    "collapsed": "Collapsed",
    "unknown": "Cannot tell whether right answers were kept",
}
"""The grades, each with what a page calls it."""

CAUSES = {
    "target": "asked for by the target",
    "path": "made by the path",
    "unregularised": "not regularised at all",
    "unknown": "cannot tell",
}
"""The causes of what was lost, each in words."""

COLLAPSED, HELD = 0.25, 0.75
"""A run that keeps no more than the first share is collapsed, above the second it has held."""
ALIKE = "prompts of the first and of the last steps are alike, as few recur"
LEVEL = 0.01
"""How unlikely a loss must be, had nothing been lost."""
HINT = 0.15
"""All answers may decide where right ones alone are so unlikely, though not below ``LEVEL``."""
LEAST = 0.02
"""Two right answers that differ less often than this before leave nothing to lose."""

_BECAUSE = {
    "target": "and the target asked for it",
    "path": "and the path made it: the target keeps more",
    "unregularised": "and nothing in the recipe held it",
    "unknown": "and the log does not say why",
}


@dataclasses.dataclass(frozen=True)
class Grading:
    """A grade with its cause, and what it was computed from.

    Attributes:
        grade: a key of ``GRADES``.
        cause: a key of ``CAUSES``; None where nothing was lost.
        why: why no grade can be given, or a remark.
        kept: how different right answers still are; None where that is not known.
        whole: whether ``kept`` is of all answers, right or not.
        single: whether there is next to one right answer of each prompt, so that none can be lost.
        failing: whether right completions became far fewer.
    """

    grade: str
    cause: str | None
    why: str
    kept: Kept | None
    whole: bool = False
    single: bool = False
    failing: bool = False

    @property
    def headline(self) -> str:
        """The grade with its cause, a sentence."""
        return headline_of(self.grade, self.cause, self.why)

    @property
    def told(self) -> tuple[str, ...]:
        """How it was graded, in sentences."""
        return told_of(self)


def headline_of(grade: str, cause: str | None, why: str) -> str:
    """The first line of a page."""
    if grade == "unknown":
        return f"{GRADES[grade]}: {why}."
    if grade == "held":
        return f"{GRADES[grade]}: right answers are about as different as they were."
    return f"{GRADES[grade]}, {_BECAUSE[cause or 'unknown']}."


def unregularised(recipe: Recipe, beta: float) -> bool:
    """Whether nothing that the recipe does depends on a reference, a teacher or the entropy."""
    acts = recipe.divergence is not None or recipe.aim == "total variation"
    acts |= recipe.charged_without_divergence
    held = beta > 0 and recipe.place != "none" and acts
    return not (held or recipe.teacher or recipe.entropy_bonus)


def grading_of(
    case: Case,
    aims: Sequence[Aim],
    prompts: Sequence[Prompt],
    rng: np.random.Generator,
    alone: bool,
) -> Grading:
    """Grades a run.

    Args:
        case: what statements are made from.
        aims: targets of prompts, if there are any.
        prompts: whose reference is known, where there are no targets.
        rng: of resamples of its own, so that other intervals do not depend on it.
        alone: whether each completion is its own answer.
    """
    if alone:
        return Grading("unknown", "unknown", "every completion is its own answer", None)
    if math.isinf(case.threshold):
        return Grading("unknown", "unknown", "which answers are right is not known", None)
    targets = [None if aim.status & Status.NO_TARGET else aim.log_target for aim in aims]
    known = [aim.prompt for aim in aims] or list(prompts)
    laws = laws_of(known, targets or [None] * len(known), case.threshold)
    kept = kept_by_reference(laws, rng)
    if kept is None or kept.before < LEAST:
        right = case.log.reward >= case.threshold
        since = kept_since_start(case.log, right, laws, rng)
        kept = since or kept_between_groups(case.log, right) or kept
    fell = _fell(case) if kept is None else ""
    grade, why = ("unknown", fell) if fell else _grade(case, kept)
    single = _seem_single(case) if kept is None else kept.before < LEAST
    found = Grading(grade, None, why, kept, single=single, failing=bool(fell))
    if grade == "unknown":
        found = _by_all_answers(case, kept, rng) or found
    return dataclasses.replace(found, cause=_cause(case, found))


def _grade(case: Case, kept: Kept | None) -> tuple[str, str]:
    if kept is None:
        if not (num_right(case.log, case.threshold) > 1).any():
            return "unknown", "no prompt shows two different right answers"
        if case.log.num_times < 2:
            return "unknown", "there is one logged step, and no reference to compare it with"
        return "unknown", "too few right completions of prompts that recur"
    if kept.before < LEAST:
        return "unknown", "hardly two right answers differed before, so there is little to lose"
    if kept.share <= HELD and kept.chance < LEVEL:
        return ("collapsed" if kept.share <= COLLAPSED else "narrowing"), ""
    if kept.share > HELD and kept.interval[0] > COLLAPSED:
        return "held", ""
    rollouts = counted(kept.rollouts, "late right rollout")
    return "unknown", f"{rollouts} of {counted(kept.prompts, 'prompt')} leave it open"


def _fell(case: Case) -> str:
    """That right completions became far fewer; empty where they did not."""
    log = case.log
    right = log.reward >= case.threshold
    early, late = ((int(right[x].sum()), int(x.sum())) for x in (early_rows(log), log.late))
    if log.num_times < 2 or not (early[1] and late[1]):
        return ""
    before, now = early[0] / early[1], late[0] / late[1]
    # The chance of so few right ones among the late rollouts were they shared out at random.
    chance = hypergeom.cdf(late[0], early[1] + late[1], early[0] + late[0], late[1])
    if now > COLLAPSED * before or chance >= LEVEL:
        return ""
    shares = (f"{number(100 * x, 3)} %" for x in (before, now))
    return f"right completions fell from {next(shares)} in the first steps to {next(shares)}"


def _seem_single(case: Case) -> bool:
    """Whether no prompt shows two right answers, over as many rollouts as could show them."""
    rows = case.log.reward >= case.threshold
    again = np.maximum(np.bincount(case.log.prompt[rows]) - 1, 0).sum() if rows.any() else 0
    return not (num_right(case.log, case.threshold) > 1).any() and again >= LEAST_ROLLOUTS


def _by_all_answers(case: Case, of_right: Kept | None, rng: np.random.Generator) -> Grading | None:
    """A collapse of all answers, right or not, where right ones are too few and nothing acts.

    Where a regulariser acts, or prompts have one right answer each, answers become fewer as they
    become right, which is no collapse. Nor is there one where right answers do not look lost.
    """
    if of_right is None or of_right.share > COLLAPSED or of_right.chance >= HINT:
        return None
    right = num_right(case.log, case.threshold)
    several = 2 * int((right > 1).sum()) > len(right)
    if not case.told or not unregularised(case.recipe, case.beta) or not several:
        return None
    kept = kept_since_start(case.log, np.ones(len(case.log), bool), (), rng)
    if kept is None or kept.share > COLLAPSED or kept.chance >= LEVEL:
        return None
    return Grading("collapsed", None, "", kept, whole=True)


def _cause(case: Case, found: Grading) -> str | None:
    if found.grade == "held":
        return None
    kept = found.kept
    if found.grade == "unknown" or kept is None or not case.told:
        return "unknown"
    if unregularised(case.recipe, case.beta):
        return "unregularised"
    if kept.of_target is None or kept.reference_share is None or kept.beyond is None:
        return "unknown"
    bound = COLLAPSED if found.grade == "collapsed" else HELD
    below = kept.beyond < LEVEL
    if kept.reference_share <= bound and not (below and kept.share < kept.reference_share / 2):
        return "target"
    return "path" if below else "unknown"


def told_of(found: Grading) -> tuple[str, ...]:
    """How a run was graded, in sentences."""
    rule = (
        f"Compared is the chance that two right completions of a prompt differ: of it a run that "
        f"keeps at most {100 * COLLAPSED:g} % is collapsed, at most {100 * HELD:g} % narrowing, if "
        f"so few would have a chance below {100 * LEVEL:g} % had nothing been lost; one that keeps "
        f"more, and surely more than {100 * COLLAPSED:g} %, has held. Before is the reference "
        f"where the log has it, else the first {100 * EARLY:g} % of the logged steps."
    )
    cause = (
        "The target asked for it if it keeps as little by the same bounds; the path made it if "
        f"the run keeps less than the target does, with a chance below {100 * LEVEL:g} %."
    )
    kept = found.kept
    if kept is None:
        return rule, cause
    what = "completions" if found.whole else "right completions"
    chance = f"at most {1 / 999:.1g}" if kept.chance < 0.002 else f"{kept.chance:.2g}"
    here = (
        f"Here two {what} differ with {number(kept.before, 3)} before, by the {kept.source}, and "
        f"{number(kept.now, 3)} now; had nothing been lost, the chance of so few is {chance}."
    )
    if found.whole:
        here += (
            f" All answers are compared: right ones alone are too few, though such a loss of them "
            f"would have a chance below {100 * HINT:g} %, and nothing regularises."
        )
    if not kept.recurring:
        here += " Prompts hardly recur: groups of the first and of the last steps are compared."
    return rule, cause, here


def kept_statement(found: Grading) -> list[Statement]:
    """What is left, as a statement."""
    kept = found.kept
    if kept is None:
        return []
    what = "two completions" if found.whole else "two right completions"
    text = (
        f"{number(100 * kept.share, 3)} % is kept of the chance that {what} of a prompt differ: "
        f"{number(kept.now, 3)} now, {number(kept.before, 3)} "
    )
    text += "of the reference" if kept.source == "reference" else "in the first steps"
    if kept.of_target is not None:
        text += f", {number(kept.of_target, 3)} of the target"
    by = (INDEPENDENT, BY_RULE) if kept.recurring else (INDEPENDENT, BY_RULE, ALIKE)
    numbers = kept.share, kept.interval, by, kept.rollouts
    tier = 2 if kept.source == "reference" else 1
    return [Statement("kept", text, "", *numbers, "late rollouts", tier=tier)]
