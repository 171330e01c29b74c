"""``forecast``: what training with a recipe asks for, before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from kltarget._core import processes
from kltarget._core.checks import worded
from kltarget.evidence import counts_of
from kltarget.forecasts._binary import binary
from kltarget.forecasts._draws import QUANTILES, quantiles
from kltarget.forecasts._effective_answers import right_answers
from kltarget.forecasts._effective_samples import effective_samples
from kltarget.forecasts._forecast import Forecast
from kltarget.forecasts._graded import graded, most_levels
from kltarget.implied.success import of_base_model, require_forecast, shaped
from kltarget.recipes import Recipe, recipe as recipe_of
from kltarget.recipes._followed import in_words

_GRID = np.geomspace(0.01, 10.0, 41)
_RATIO, _MOST_BEYOND = _GRID[1] / _GRID[0], 60
_CHOSEN = ("expected_reward", "kl", "effective_answers")


def forecast(
    samples: Any,
    recipe: Recipe | str,
    *,
    beta: ArrayLike | None = None,
    k: Sequence[int] = (1, 4, 16, 64, 256),
    rollouts_per_prompt: int | None = None,
    threshold: float | None = None,
    columns: Mapping[str, str] | None = None,
    num_draws: int = 1000,
    key: Any = None,
    name: str | None = None,
) -> Forecast:
    """What the target of a recipe does to a base model, from samples of it, at each β.

    A prompt that the base model solves with probability p has, at the target of
    ``max E_π[r] − beta · D(π, π_ref)`` with rewards for right answers alone, a success that follows
    from p and the recipe: with a reverse KL ``logit p + Δr/beta``, otherwise where the recipe's
    expected gradient vanishes, as :func:`kltarget.implied_target` has it. What p is, n samples
    leave open; success rates are taken to be 0 for a share of the prompts, Beta distributed or with
    normal log-odds among the others, and intervals hold all that is not known of these. Of more
    than two rewards the target is that of the levels' masses, each of which is a success rate among
    the levels up to it.

    Args:
        samples: rows of samples with rewards, as :func:`kltarget.rollouts.read_rollouts` gives or
            reads; of a log with steps the first counts. Or a table with the columns ``prompt``,
            ``correct`` and ``samples``.
        recipe: what the trainer does, or the name of a preset such as ``"trl-grpo==1.9.2"``.
        beta: coefficients to show, above 0, in the trainer's units; by default 41 from 0.01 to 10
            times the distance of the two rewards. Whatever they are, a β is chosen among those of
            the default and as far beyond as these reach.
        k: for which k pass@k is given; beyond the number of samples too, with what is not known.
        rollouts_per_prompt: how many rollouts of a prompt a run draws in all. One that meets no
            right answer learns nothing: ``met`` is the success that such a run can come to.
        threshold: the least reward of a right sample, where the rewards do not show it. Of more
            than two rewards it says what success and pass@k are; the recipe maximises the rewards
            as they are.
        columns: other names of columns, ``{"correct": "base_correct"}``.
        num_draws: draws of the posterior behind each interval, 20 or more, at most.
        key: of these draws; by default ``jax.random.key(0)``.
        name: what to call the recipe; by default the preset's name, or the recipe in words.

    Returns:
        For every β the mean over the prompts of the expected reward, success, pass@k, KL and more,
        as medians and 95 % intervals, and per prompt.

    Raises:
        TypeError: a recipe that is none.
        ValueError: samples that say nothing, values out of range, or a recipe that no forecast is
            known for; the message names the argument.

    Answers count as wholes: of a recipe whose KL acts on every token the target of each answer also
    depends on which tokens lead to it. One prompt does not teach another. More than 12 different
    rewards are gathered in 12 levels, in groups of finite size that are normalised in 3 to 6; where
    targets take long, there are fewer draws, and some prompts stand for all in each.

    Example:
        >>> import pandas as pd
        >>> from kltarget.forecasts import forecast
        >>> from kltarget.recipes import Recipe
        >>> counts = pd.DataFrame({"prompt": ["a", "b"], "correct": [40, 60], "samples": 100})
        >>> found = forecast(counts, Recipe(), beta=1.0)
        >>> print(found.dataset["success"].sel(quantile=0.5).values.round(1))
        [0.7]

    References:
        Agresti and Hitchcock, "Bayesian inference for categorical data analysis", 2005 (Beta–
        binomial models). Chen et al., "Evaluating Large Language Models Trained on Code", 2021,
        arXiv 2107.03374 (pass@k).
    """
    if isinstance(recipe, str):
        name = recipe if name is None else name
        recipe = recipe_of(recipe)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a kltarget.recipes.Recipe or a name, got {recipe!r}")
    require_forecast(recipe)
    recipe, notes = of_base_model(recipe)
    if not isinstance(k, Sequence) or not k:
        raise ValueError(f"k must be a sequence of integers, such as (1, 16), got {k!r}")
    for each in k:
        if not isinstance(each, (int, np.integer)) or each < 1:
            raise ValueError(f"k must be integers of 1 or more, got {each!r}")
    if rollouts_per_prompt is not None and rollouts_per_prompt < 1:
        raise ValueError(f"rollouts_per_prompt must be 1 or more, got {rollouts_per_prompt}")
    if num_draws < 20:
        raise ValueError(f"num_draws must be 20 or more, got {num_draws}")
    if threshold is not None and not np.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, got {threshold}")
    counts = counts_of(samples, threshold, columns, most_levels=most_levels(recipe))
    rewards = shaped(counts.rewards, recipe.reward_scale, recipe.reward_bounds)
    if not rewards[-1] > rewards[0]:
        raise ValueError("reward_clip of the recipe leaves all samples the same reward")
    if counts.right is not None:
        notes.append("the recipe is taken to maximise the rewards themselves, right or wrong")
    usual = _GRID * (1.0 if recipe.normalized else float(rewards[-1] - rewards[0]))
    betas = usual if beta is None else _coefficients(beta)
    # What is chosen must not hang on which β are shown.
    inner = _around(usual, betas[0], betas[-1])
    every = np.union1d(inner, betas)
    processes.require_same(
        (counts.by_level.tobytes(), rewards.tobytes(), every.tobytes(), repr(recipe), num_draws),
        "samples or options",
    )
    bits = np.asarray(jax.random.key_data(jax.random.key(0) if key is None else key)).ravel()
    rng = np.random.default_rng(bits[::-1])
    ks = tuple(int(x) for x in k)
    if counts.levels is None:
        found = binary(counts, recipe, rewards, every, ks, rollouts_per_prompt, num_draws, rng)
    elif rollouts_per_prompt is not None:
        raise ValueError(
            "rollouts_per_prompt is of right and wrong samples, but the rewards have "
            f"{rewards.size} levels: leave it out"
        )
    else:
        found = graded(counts, recipe, rewards, every, ks, num_draws, rng)
    draws = found.at(np.searchsorted(every, inner)).curves
    found = found.at(np.searchsorted(every, betas))
    correct = counts.correct
    return Forecast(
        title=str(counts),
        recipe=recipe,
        recipe_name=name or in_words(recipe),
        notes=(*notes, *counts.notes, *found.notes),
        beta=betas.tolist(),
        k=list(ks) if len(found.passes) else [],
        rollouts_per_prompt=rollouts_per_prompt,
        rewards=counts.rewards.tolist(),
        share_unsolved=np.nan if correct is None else float((correct == 0).mean()),
        curves={x: quantiles(y) for x, y in found.curves.items()},
        pass_at_k=[quantiles(x) for x in found.passes],
        start={x: np.quantile(y, QUANTILES, axis=0).tolist() for x, y in found.start.items()},
        start_pass_at_k=[np.quantile(x, QUANTILES).tolist() for x in found.start_passes],
        draws={x: y.astype(np.float32).tolist() for x, y in draws.items() if x in _CHOSEN},
        draws_beta=inner.tolist(),
        smallest_beta=float(usual[0]),
        start_answers=found.start.get("effective_answers", np.empty(0)).tolist(),
        right_answers=right_answers(counts, rng),
        prompts=list(counts.prompts),
        correct=[] if correct is None else correct.tolist(),
        samples=counts.samples.tolist(),
        levels=[] if counts.levels is None else counts.levels.tolist(),
        effective_samples=effective_samples(counts, recipe, rewards, betas),
        tokens=counts.tokens,
        pattern=found.patterns.tolist(),
        of_patterns={name: values.tolist() for name, values in found.of_patterns.items()},
    )


def _coefficients(beta: ArrayLike) -> np.ndarray:
    with worded(f"beta must be numbers above 0, got {beta!r}"):
        found = np.unique(np.asarray(beta, np.float64))
    if found.ndim != 1 or not found.size or not (np.isfinite(found) & (found > 0)).all():
        raise ValueError(f"beta must be numbers above 0, got {beta!r}")
    return found


def _around(usual: np.ndarray, low: float, high: float) -> np.ndarray:
    """The usual coefficients and, where these ends lie beyond, on to them in steps like theirs."""
    below = [_steps(low, usual[0])[:-1]] if low < usual[0] else []
    above = [_steps(usual[-1], high)[1:]] if high > usual[-1] else []
    return np.concatenate([*below, usual, *above])


def _steps(low: float, high: float) -> np.ndarray:
    number = int(np.ceil(np.log(high / low) / np.log(_RATIO))) + 1
    return np.geomspace(low, high, min(number, _MOST_BEYOND))
