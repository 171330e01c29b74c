"""``compare``: what changed between two checkpoints, and whether a target could have done it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from scipy.special import expit

from kltarget.comparisons._comparison import SIDES, Asked, Comparison, Law, Shifts, Verdict
from kltarget.comparisons._joint_draws import joint_draws
from kltarget.comparisons._kept_answers import kept_answers
from kltarget.comparisons._moved import moved
from kltarget.comparisons._pass_bands import draws_of, pass_bands, pass_draws
from kltarget.comparisons._shift_fit import CurveFit, fit_curve, fit_family, folds
from kltarget.comparisons._shift_laws import families, shifts
from kltarget.comparisons._shift_likelihood import PairCounts
from kltarget.comparisons._sides import Side, paired, title
from kltarget.evidence import counts_of, simultaneous_band, success_rates
from kltarget.implied.success import NODES, of_base_model, require_forecast, shaped
from kltarget.recipes import Recipe, recipe as recipe_of
from kltarget.recipes._followed import in_words

Steps = Literal["first", "last"]

QUANTILES = (0.025, 0.5, 0.975)
_ENOUGH, _SHOWN = 10, 6.91
_EDGES = (0.0, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 1.0)


def compare(
    before: Any,
    after: Any,
    recipe: Recipe | str | None = None,
    *,
    beta: float | None = None,
    k: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256),
    threshold: float | None = None,
    columns: Mapping[str, str] | None = None,
    columns_after: Mapping[str, str] | None = None,
    steps: tuple[Steps, Steps] = ("first", "last"),
    labels: tuple[str, str] = ("before", "after"),
    false_discovery_rate: float = 0.05,
    num_draws: int = 1000,
    key: Any = None,
    name: str | None = None,
) -> Comparison:
    """What changed between two checkpoints, prompt by prompt, and which law of RL it follows.

    The target of ``max E_π[r] − beta · D(π, π_ref)`` shifts the log-odds of every prompt's success
    by a law of its own: a reverse KL all by ``Δr/beta``, a forward KL those of rare success most;
    normalised by the group's σ, both extremes. A path of policy gradients that has not arrived
    shifts rare and frequent success least. Counts before and after say which of these fits, by
    prompts that were held out, beside a free curve.

    Args:
        before: of the model before, what :func:`kltarget.forecasts.forecast` takes: rows of samples
            with rewards or a table with the columns ``prompt``, ``correct`` and ``samples``.
        after: of the model after.
        recipe: what the trainer did, or the name of a preset such as ``"trl-grpo==1.9.2"``.
        beta: its coefficient; by default the recipe's. With it the comparison says how much of what
            the target asks for was reached.
        k: for which k pass@k is given; beyond the number of samples too, with what is not known.
        threshold: the least reward of a right sample, where the rewards do not show it.
        columns: other names of columns, ``{"correct": "base_correct"}``.
        columns_after: of ``after``, where they differ from those of ``before``.
        steps: which of a log's steps count, of ``before`` and of ``after``: the first, or the last
            third. With ``("last", "last")``, what two runs came to, nothing is said of laws and
            targets: neither is the base model of the other.
        labels: what to call the two sides.
        false_discovery_rate: the share of the prompts said to have moved that may not have.
        num_draws: draws of the posterior behind each interval, 100 or more.
        key: of these draws and of what is held out; by default ``jax.random.key(0)``.
        name: what to call the recipe; by default the preset's name, or the recipe in words.

    Returns:
        pass@k of both, prompts that rose and fell, the shift over the success before, and how well
        each law fits, with 95 % intervals.

    Raises:
        TypeError: a recipe that is none.
        ValueError: samples that say nothing, values out of range, or a recipe that no target of
            right and wrong is known for; the message names the argument.

    Prompts are paired by name; those of one side alone are left out and reported. Without a pair
    both are taken for samples of the same kind of prompts, and only pass@k is compared.

    Example:
        >>> from kltarget import tasks
        >>> from kltarget.comparisons import compare
        >>> counts = tasks.deepscaler()
        >>> base, trained = {"correct": "base_correct"}, {"correct": "rl_correct"}
        >>> found = compare(counts, counts, columns=base, columns_after=trained, num_draws=100)
        >>> found.num_rose, found.num_fell, found.verdict
        (304, 16, 'neither')

    References:
        Agresti and Hitchcock, "Bayesian inference for categorical data analysis", 2005 (Beta–
        binomial models). Chen et al., "Evaluating Large Language Models Trained on Code", 2021,
        arXiv 2107.03374 (pass@k). Vojnovic and Yun, "What is the Alignment Objective of GRPO?",
        2025, arXiv 2502.18548 (the shift of a σ-normalised target).
    """
    used, recipe_name, notes = _recipe(recipe, name, beta)
    ks = _whole(k)
    if not 0 < false_discovery_rate < 1:
        raise ValueError(
            f"false_discovery_rate must be between 0 and 1, got {false_discovery_rate}"
        )
    if len(steps) != 2 or not {*steps} <= {"first", "last"}:
        raise ValueError(f"steps must be two of 'first' and 'last', got {steps!r}")
    if num_draws < 100:
        raise ValueError(f"num_draws must be 100 or more, got {num_draws}")
    second_columns = columns if columns_after is None else columns_after
    late = steps[0] == "last", steps[1] == "last"
    first = Side.of(counts_of(before, threshold, columns, late=late[0]))
    second = Side.of(counts_of(after, threshold, second_columns, late=late[1]))
    for side, label in ((first, labels[0]), (second, labels[1])):
        notes += [f"{label}: {x}" for x in side.notes]
    first, second, has_pairs, pairing = paired(first, second, labels)
    bits = np.asarray(jax.random.key_data(jax.random.key(0) if key is None else key)).ravel()
    rng = np.random.default_rng(bits[::-1])
    if not has_pairs:
        before_draws, after_draws = (draws_of(x, num_draws, rng) for x in (first, second))
        fit = None
    else:
        fit = _fitted(first, second, num_draws, rng)
        notes += fit.notes
        before_draws, after_draws = joint_draws(fit.pairs, fit.free, rng)
    passes = [pass_draws(x, np.array(ks)) for x in (before_draws, after_draws)]
    bands = pass_bands(*passes)
    found = Comparison(
        title=title(first, second, has_pairs, labels),
        labels=(str(labels[0]), str(labels[1])),
        from_base=not late[0],
        paired=has_pairs,
        recipe=used,
        recipe_name=recipe_name,
        false_discovery_rate=float(false_discovery_rate),
        notes=(*pairing, *notes),
        verdict="unpaired",
        k=ks,
        pass_at_k={side: getattr(bands, side).tolist() for side in SIDES},
        known=bands.known.tolist(),
        never_solved=[float((x.correct == 0).mean()) for x in (first, second)],
        prompts=[],
        correct=[],
        samples=[],
        p_value=[],
        moved=[],
        fell_alone=0,
        shifts=None,
        laws=[],
        answers=None,
        asked=None if late[0] else _asked(used, first, before_draws, passes, ks),
    )
    if fit is None:
        return found
    p_values, which, fell_alone = moved(first, second, false_discovery_rate)
    laws, over = _laws(fit, first.rewards, used, recipe_name)
    return dataclasses.replace(
        found,
        verdict=_verdict(laws, bool(which.any() or bands.known.any()), clumped=bool(fit.notes)),
        prompts=list(first.prompts),
        correct=[first.correct.tolist(), second.correct.tolist()],
        samples=[first.samples.tolist(), second.samples.tolist()],
        p_value=p_values.tolist(),
        moved=which.tolist(),
        fell_alone=fell_alone,
        shifts=over,
        laws=laws,
        answers=kept_answers(first, second),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Fit:
    """The pairs, the part that each prompt is held out in, the free curve, and what to mind."""

    pairs: PairCounts
    fold: np.ndarray
    free: CurveFit
    notes: list[str]


def _fitted(before: Side, after: Side, num_draws: int, rng: np.random.Generator) -> _Fit:
    rates = success_rates(before.correct, before.samples, num_draws=num_draws, rng=rng)
    notes = rates.notes(rng)
    pairs = PairCounts.of(rates, before, after, bool(notes), rng)
    fold = folds(len(before.prompts), rng)
    return _Fit(pairs, fold, fit_curve(pairs, fold), notes)


def _recipe(
    recipe: Recipe | str | None, name: str | None, beta: float | None
) -> tuple[Recipe | None, str, list[str]]:
    """The recipe on a base model, with its β."""
    if recipe is None:
        if beta is not None:
            raise ValueError("beta is that of a recipe: give recipe=… too")
        return None, "", []
    if isinstance(recipe, str):
        name = recipe if name is None else name
        recipe = recipe_of(recipe)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a kltarget.recipes.Recipe or a name, got {recipe!r}")
    if beta is not None and not (np.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be a finite number of 0 or more, got {beta}")
    name = in_words(recipe) if name is None else name
    beta = recipe.beta if beta is None else float(beta)
    require_forecast(recipe)
    used, notes = of_base_model(recipe)
    return dataclasses.replace(used, beta=beta), name, notes


def _whole(k: Sequence[int]) -> list[int]:
    if not isinstance(k, Sequence) or not k:
        raise ValueError(f"k must be a sequence of integers, such as (1, 16), got {k!r}")
    for each in k:
        if not isinstance(each, (int, np.integer)) or each < 1:
            raise ValueError(f"k must be integers of 1 or more, got {each!r}")
    return sorted({1, *map(int, k)})


def _laws(
    fit: _Fit, rewards: np.ndarray, recipe: Recipe | None, name: str
) -> tuple[list[Law], Shifts]:
    pairs, fold, free = fit.pairs, fit.fold, fit.free
    # Success from 0.1 to 99.9 %, at steps that a curve looks smooth with.
    inside = np.flatnonzero(np.abs(pairs.nodes) < _SHOWN)
    shown = inside[:: max(1, inside.size // 50)]
    known = families(rewards, recipe, name)
    fits = [fit_family(family, pairs, fold) for family in known]
    best = max([free.held_out, *(fit.held_out for fit in fits)], key=np.sum)
    laws = [
        Law(
            *("free", "a free curve", "free", "", [np.nan] * 3),
            scatter=free.scatter,
            **_behind(best, free.held_out),
            curve=free.shift[shown].tolist(),
        )
    ]
    laws += [
        Law(
            *(family.name, family.title, family.kind, family.symbol, fit.parameter.tolist()),
            scatter=fit.scatter,
            **_behind(best, fit.held_out),
            curve=fit.shift[shown].tolist(),
        )
        for family, fit in zip(known, fits, strict=True)
    ]
    return sorted(laws, key=lambda law: law.behind), _shifts(pairs, free, shown)


def _behind(best: np.ndarray, other: np.ndarray) -> dict[str, float]:
    apart = best - other
    # Of a few prompts the scatter says nothing.
    error = float(apart.std() * np.sqrt(apart.size)) if apart.size >= _ENOUGH else np.inf
    return {"behind": float(apart.sum()), "behind_error": error}


def _shifts(pairs: PairCounts, free: CurveFit, shown: np.ndarray) -> Shifts:
    success = expit(pairs.nodes)
    shares, means = [], []
    for low, high in itertools.pairwise(_EDGES):
        weights = pairs.prior * ((success >= low) & (success < high))
        shares.append(float(weights.sum()))
        means.append(list(free.mean(weights / max(weights.sum(), 1e-300))))
    weights = pairs.prior / pairs.prior.sum()
    above, below = weights * (success >= 0.5), weights * (success < 0.5)
    tilt = above / max(above.sum(), 1e-300) - below / max(below.sum(), 1e-300)
    overall = free.mean(weights)
    square = float(weights @ free.shift**2) + free.scatter**2
    return Shifts(
        success=success[shown].tolist(),
        curve=[list(free.mean(row)) for row in np.eye(pairs.nodes.size)[shown]],
        edges=list(_EDGES),
        share=shares,
        mean=means,
        overall=list(overall),
        tilt=list(free.mean(tilt)),
        common=overall[0] ** 2 / square if square else 1.0,
        scatter=free.scatter,
    )


def _verdict(laws: list[Law], changed: bool, *, clumped: bool) -> Verdict:
    fitting = {law.kind for law in laws if not law.ruled_out} - {"free"}
    if "none" in fitting:
        return "open" if changed else "unchanged"
    if not fitting:
        # What is far from a law may be far from the histogram that stands for the clumps alone.
        return "open" if clumped else "neither"
    if "path" not in fitting:
        return "target"
    return "open" if len(fitting) > 1 else "path"


def _asked(
    recipe: Recipe | None,
    before: Side,
    log_odds: np.ndarray,
    passes: list[np.ndarray],
    k: list[int],
) -> Asked | None:
    """What the target at the recipe's own β would have, from the draws of what was before."""
    if recipe is None or not recipe.beta:
        return None
    rewards = shaped(before.rewards, recipe.reward_scale, recipe.reward_bounds)
    shift = shifts(recipe, rewards, np.array([recipe.beta]))[0]
    possible = np.isfinite(log_odds)
    moved_by = np.interp(np.where(possible, log_odds, 0.0), NODES, shift)
    drawn = pass_draws(np.where(possible, log_odds + moved_by, -np.inf), np.array(k))
    start, end, goal = passes[0][:, 0], passes[1][:, 0], drawn[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        covered = (end - start) / (goal - start)
    return Asked(
        beta=float(recipe.beta),
        success=np.quantile(goal, QUANTILES).tolist(),
        pass_at_k=simultaneous_band(drawn).tolist(),
        covered=np.quantile(covered, QUANTILES).tolist(),
    )
