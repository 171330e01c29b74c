"""What a recipe makes of a success rate: the target of right and wrong answers, by a table.

With two rewards the success s that training from p is drawn to has ``f′(s/p) − f′((1−s)/(1−p)) =
u(s)/β``, where ``u(s)`` is by how much the advantage of a right answer exceeds that of a wrong one.
For each s one p meets that; where several s belong to one p, the first on the way up is reached.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy.special import expit, log_expit

from kltarget.implied._nodes import Rule
from kltarget.implied._rows import rule_of
from kltarget.implied._slopes import Slope
from kltarget.recipes import Recipe
from kltarget.recipes.groups import make_groups

NODES = np.linspace(-60.0, 60.0, 2401)
"""Log-odds of references at which targets are tabulated."""
_FINE = np.linspace(-60.0, 60.0, 12_001)
_FAR = 1e6
_HALVINGS, _STEPS = 60, 45


def require_forecast(recipe: Recipe) -> None:
    """Raises for recipes whose targets on right and wrong answers no table holds."""
    unknown = None
    if recipe.aim not in ("reverse", "forward", "other"):
        unknown = f"{recipe.estimator_name} in place={recipe.place!r}, which holds no policy"
    elif recipe.entropy_bonus or recipe.entropy_target is not None:
        unknown = "an entropy bonus, which asks for how many answers there are"
    elif recipe.teacher:
        unknown = "a teacher, whose success rates are not known"
    elif recipe.combine != "sum":
        unknown = "rewards that are normalised one by one"
    elif recipe.reference == "none":
        unknown = "reference='none', which asks for how many answers there are"
    elif recipe.normalized and (recipe.normalize == "batch-std" or recipe.renormalize != "none"):
        unknown = "one standard deviation over all prompts"
    elif recipe.zero_std == "drop" and recipe.charged_before:
        unknown = "dropped groups with a KL that is normalised with the reward"
    if unknown:
        raise ValueError(f"no forecast is known for {unknown}")


def of_base_model(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe on a model whose reference is itself, at the temperature that it is sampled at."""
    notes = []
    if recipe.per_token:
        notes.append(
            "the KL acts on every token, but the numbers take each answer as one choice: they are "
            "exact where answers differ in one token alone, and approximate elsewhere"
        )
    if recipe.moves_reference:
        notes.append("the reference moves: the numbers are those of a run that ends before it does")
    if recipe.temperature != 1:
        notes.append(
            f"samples and the trained policy are taken to be at the recipe's temperature, "
            f"{recipe.temperature:g}"
        )
    if recipe.kl_target is not None:
        notes.append(
            f"a controller moves β to keep {recipe.kl_target:g} nats: choose(kl=…), --kl-budget, "
            "says which β that is"
        )
    if recipe.log_ratio_clip is not None or recipe.kl_clip is not None:
        notes.append("no clip of the KL's estimate is taken to be active")
    return dataclasses.replace(recipe.without_motion, reward_weights=None), notes


def shaped(rewards: np.ndarray, scale: float, bounds: tuple[float, float] | None) -> np.ndarray:
    """Rewards as a recipe uses them."""
    scaled = scale * rewards
    return np.clip(scaled, *bounds) if bounds else scaled


def target_log_odds(recipe: Recipe, rewards: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Log-odds of success at the target, of references of log-odds ``NODES``: ``[B, N]``.

    Args:
        recipe: what the trainer does.
        rewards: of a wrong and a right answer as the recipe uses them, ``[2]``.
        beta: coefficients above 0, ``[B]``.
    """
    return _tabulated(recipe, tuple(rewards.tolist()), tuple(beta.tolist()))


def effective_betas(recipe: Recipe, rewards: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The coefficients in units of the rewards that have these targets, ``[B, N]``.

    0 where nothing but certainty is left, NaN at references that are certain themselves.

    Args:
        recipe: what the trainer does.
        rewards: of a wrong and a right answer as the recipe uses them, ``[2]``.
        target: what ``target_log_odds`` returned, ``[B, N]``.
    """
    rule = rule_of(recipe)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        right = _pull(rule, log_expit(target) - log_expit(NODES))
        wrong = _pull(rule, log_expit(-target) - log_expit(-NODES))
        return (rewards[1] - rewards[0]) / (right - wrong)


@functools.lru_cache(maxsize=16)
def _tabulated(
    recipe: Recipe, wrong_and_right: tuple[float, ...], betas: tuple[float, ...]
) -> np.ndarray:
    rewards, beta = np.array(wrong_and_right), np.array(betas)
    rule = rule_of(recipe)
    lead, kept = lead_of_right(recipe, rewards, _FINE)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        start = _start_of(rule, lead / beta[:, None], kept)
    # On the way up from the reference the first success beyond which nothing is gained.
    reached = np.maximum.accumulate(np.maximum(start, -_FAR), axis=1)
    found = np.array([np.searchsorted(row, NODES) for row in reached])
    last = _FINE.size - 1
    low, high = _FINE[np.clip(found - 1, 0, last)], _FINE[np.minimum(found, last)]
    for _ in range(_STEPS):
        middle = (low + high) / 2
        beyond = _excess(rule, lead, kept, middle, beta) > 0
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return np.where(found > last, np.inf, np.maximum(high, NODES))


def _excess(
    rule: Rule, lead: np.ndarray, kept: np.ndarray, log_odds: np.ndarray, beta: np.ndarray
) -> np.ndarray:
    """By how much the regulariser pulls back more than the reward pulls on, ``[B, N]``."""
    right = _pull(rule, log_expit(log_odds) - log_expit(NODES))
    wrong = _pull(rule, log_expit(-log_odds) - log_expit(-NODES))
    # Most are the same at every success, which needs no search.
    gained, of_wrong, of_right = (
        np.interp(log_odds, _FINE, x) if np.ptp(x) else x[0] for x in (lead, *kept.T)
    )
    return of_right * right - of_wrong * wrong - gained / beta[:, None]


def lead_of_right(
    recipe: Recipe, rewards: np.ndarray, log_odds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``u(s)`` at success rates of these log-odds ``[N]``; how often the KL counts, ``[N, 2]``."""
    success, failure = expit(log_odds), expit(-log_odds)
    masses = np.stack([failure, success], axis=-1)
    if (recipe.depends_on_groups or recipe.by_masses) and not recipe.charged_before:
        advantage, kept = make_groups(recipe, rewards).expected(masses)
        return advantage[:, 1] - advantage[:, 0], kept
    lead = np.full(log_odds.shape, recipe.baseline_factor * (rewards[1] - rewards[0]))
    if recipe.normalized:
        lead = lead / ((rewards[1] - rewards[0]) * np.sqrt(success * failure) + recipe.epsilon)
    return lead, np.ones_like(masses)


def _start_of(rule: Rule, pulled: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The log-odds from which success of log-odds ``_FINE`` is just reached, ``[B, N]``."""
    always = bool((kept == 1).all())
    if rule == "reverse" and always:
        return _FINE - pulled
    if rule == "forward" and always:
        left = 1 - expit(-_FINE) * pulled
        odds = _FINE + np.log(np.maximum(left, 0)) - np.log1p(expit(_FINE) * pulled)
        return np.where(left > 0, odds, -np.inf)
    low, high = np.full_like(pulled, -2 * _FINE[-1]), np.broadcast_to(_FINE, pulled.shape)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        right = _pull(rule, log_expit(_FINE) - log_expit(middle))
        wrong = _pull(rule, log_expit(-_FINE) - log_expit(-middle))
        more = kept[:, 1] * right - kept[:, 0] * wrong > pulled
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    return (low + high) / 2


def _pull(rule: Rule, log_ratio: np.ndarray) -> np.ndarray:
    if isinstance(rule, Slope):
        return rule.height(log_ratio)
    return log_ratio if rule == "reverse" else -np.expm1(-log_ratio)
