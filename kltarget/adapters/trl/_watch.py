"""Reward functions that show a run's regulariser and its answers while it trains."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import math
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kltarget.adapters.trl import _batch_metrics as numbers
from kltarget.recipes import Recipe
from kltarget.rollouts import answer_rule
from kltarget.rollouts._entries import assistant_text, is_chat

RewardFunction = Callable[..., Any]


def watch(
    reward_funcs: Any,
    recipe: Recipe,
    *,
    beta: float | None = None,
    group_size: int | None = None,
    answer: str | re.Pattern[str] | Callable[[str], str | None] = "text",
    threshold: float | None = None,
    reward_weights: Sequence[float] | None = None,
    alarm_share: float = 0.5,
    alarm_window: int = 10,
) -> Any:
    """Reward functions that return what the given ones do and log numbers of the run beside them.

    They read what TRL's GRPO and RLOO trainers hand to every reward function, and log by its
    ``log_metric``, so that W&B, trackio, TensorBoard and the console show for every step:

    ================================  ==============================================================
    ``kltarget/…``
    ================================  ==============================================================
    ``zero_std_groups``               the share of groups whose functions gave equal rewards (σ = 0)
    ``effective_beta_p10``, ``p50``,  β in units of the reward per nat, at the temperature of the
    ``p90``                           rollouts: quantiles over the groups with σ > 0, by the recipe
    ``distinct_right``                right answers that differ, per group with a right answer
    ``right_pairs_differ``            the chance that two right rollouts of a group differ in their
                                      answer; other than ``distinct_right`` it does not grow with
                                      the success rate
    ``pass@k``                        unbiased, for k from 1 to the group size
    ``entropy``, ``kl``               of whole completions, in nats, where log-probabilities are at
                                      hand
    ``distance``                      from what is asked for, in nats, where they are: the standard
                                      deviation within a group of ``log π/π_ref − log π*/π_ref``,
                                      which for the reverse KL is ``log π/π_ref − r/β``; 0 at the
                                      target. It sees what is sampled: groups that say one thing do
                                      not count, and what is no longer said is not missed. Left out
                                      where the target's log-ratio is no function of the reward, as
                                      for per-token terms of several tokens
    ``collapse_alarm``                1 if ``right_pairs_differ`` or ``entropy`` has fallen below
                                      ``alarm_share`` of its early level, else 0
    ``missing_rewards``               completions that no function gave a reward
    ================================  ==============================================================

    Args:
        reward_funcs: a function as TRL calls it, or a list of them, ``async`` ones too. What is no
            function, a reward model or the name of one, is given back as it is, with a warning:
            the numbers are then of the functions alone.
        recipe: what the trainer does.
        beta: the trainer's coefficient, in units of the (normalised) reward per nat; the recipe's
            by default.
        group_size: completions per prompt, G, which the effective β depends on; the recipe's by
            default.
        answer: what tells answers apart, as :func:`kltarget.rollouts.read_rollouts` takes it.
        threshold: a completion is right if its total reward is this or more; by default the best
            total so far.
        reward_weights: of the functions, in their order; the recipe's, or 1, by default. The total
            is the weighted sum of the rewards that were given, as in TRL.
        alarm_share: the collapse alarm is on below this share of the early level.
        alarm_window: how many batches the early and the present level are means of.

    Returns:
        What was given, watched: a function for a function, a list for a list, with the same names.
        Rewards are passed on untouched, exceptions of the functions too. An error of kltarget's own
        is a warning, once, and never ends the training. Log-probabilities are at hand where the
        keyword arguments ``logp`` and ``ref_logp`` are, a number per completion. With several
        processes each watches the groups in its own part of the batch, and TRL averages.

    Raises:
        TypeError: a recipe that is none.
        ValueError: no coefficient or group size, a wrong number of weights, or numbers out of
            range.

    Example:
        >>> from kltarget.adapters.trl import watch
        >>> from kltarget.recipes import recipe
        >>> def right(completions, **kwargs):
        ...     return [float(x == "4") for x in completions]
        >>> watched = watch(right, recipe("trl-rloo"), group_size=4)
        >>> seen = {}
        >>> watched(
        ...     prompts=["2 + 2 ="] * 4,
        ...     completions=["4", "4", "5", "4"],
        ...     log_metric=seen.__setitem__,
        ... )
        [1.0, 1.0, 0.0, 1.0]
        >>> seen["kltarget/pass@1"], seen["kltarget/zero_std_groups"]
        (0.75, 0.0)

    References:
        Chen et al., "Evaluating Large Language Models Trained on Code", 2021, arXiv 2107.03374,
        equation 1 (pass@k).
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"recipe must be a kltarget.Recipe, such as kltarget.recipe('trl-grpo'), got {recipe!r}"
        )
    single = not isinstance(reward_funcs, list | tuple)
    given = [reward_funcs] if single else list(reward_funcs)
    functions = [i for i, x in enumerate(given) if is_function(x)]
    for i, x in enumerate(given):
        if i not in functions:
            warnings.warn(
                f"reward_funcs[{i}], {_name(x)}, is a model, which cannot be watched: it is passed "
                "on, and kltarget's numbers are of the reward functions alone",
                stacklevel=2,
            )
    weights = _weights(reward_weights or recipe.reward_weights, len(given))
    size = group_size or recipe.group_size
    coefficient = recipe.beta if beta is None else beta
    if coefficient is None or not (math.isfinite(coefficient) and coefficient >= 0):
        raise ValueError(f"beta must be a finite number of 0 or more, got {coefficient}")
    if not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"group_size must be a whole number of 1 or more, got {size}")
    if threshold is not None and (isinstance(threshold, str) or math.isnan(threshold)):
        raise ValueError(
            f"threshold must be a reward, or None for the best total so far, got {threshold!r}"
        )
    if not 0 < alarm_share < 1:
        raise ValueError(f"alarm_share must be between 0 and 1, got {alarm_share}")
    if alarm_window < 1:
        raise ValueError(f"alarm_window must be 1 or more, got {alarm_window}")
    run = _Run(
        _as_seen(recipe, int(size)),
        float(coefficient),
        int(size),
        answer_rule(answer)[1],
        threshold,
        [weights[i] for i in functions],
        numbers.Alarm(alarm_share, alarm_window),
    )
    for place, i in enumerate(functions):
        given[i] = _watched(given[i], place, run)
    return given[0] if single else given


def _as_seen(recipe: Recipe, size: int) -> Recipe:
    """The recipe of groups of that size, in terms of the policy that draws the rollouts.

    That is at the temperature of training, and so is the β that a diagnosis of the log names.
    """
    recipe = dataclasses.replace(recipe, temperature=1.0)
    try:
        return dataclasses.replace(recipe, group_size=size)
    except ValueError:
        # Groups of one have neither a deviation nor a baseline.
        return recipe


def is_function(reward_func: Any) -> bool:
    """Whether this is called with texts: a reward model is called with tokens, or named."""
    model = any(
        base.__module__.split(".")[0] == "torch" and base.__name__ == "Module"
        for base in type(reward_func).__mro__
    )
    return callable(reward_func) and not model


def _name(reward_func: Any) -> str:
    """As TRL calls the column of a reward function."""
    while isinstance(reward_func, functools.partial):
        reward_func = reward_func.func
    if isinstance(reward_func, str):
        return repr(reward_func)
    return getattr(reward_func, "__name__", type(reward_func).__name__)


def _is_async(reward_func: Any) -> bool:
    while isinstance(reward_func, functools.partial):
        reward_func = reward_func.func
    called = getattr(reward_func, "__call__", None)  # noqa: B004, an object's own method is meant
    return inspect.iscoroutinefunction(reward_func) or inspect.iscoroutinefunction(called)


def _weights(weights: Sequence[float] | None, number: int) -> list[float]:
    if weights is None:
        return [1.0] * number
    if len(weights) != number:
        raise ValueError(
            f"reward_weights must be one for each of the {number} reward functions, got "
            f"{len(weights)}"
        )
    return [float(x) for x in weights]


def _watched(reward_func: RewardFunction, place: int, run: _Run) -> RewardFunction:
    """A reward function that tells the run of its rewards."""

    def calling(args: Any, kwargs: Any) -> dict[str, Any]:
        names = "prompts", "completions", "completion_ids"
        return {**dict(zip(names, args, strict=False)), **kwargs}

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        try:
            rewards = await reward_func(*args, **kwargs)
        except BaseException:
            run.forget()
            raise
        run.report(place, rewards, calling(args, kwargs))
        return rewards

    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            rewards = reward_func(*args, **kwargs)
        except BaseException:
            run.forget()
            raise
        run.report(place, rewards, calling(args, kwargs))
        return rewards

    watched = awaited if _is_async(reward_func) else called
    functools.update_wrapper(watched, reward_func)
    watched.__name__ = _name(reward_func)
    return watched


class _Run:
    """What is kept from batch to batch, and of a batch until its last function has reported."""

    def __init__(
        self,
        recipe: Recipe,
        beta: float,
        size: int,
        rule: Callable[[str], str | None],
        threshold: float | None,
        weights: list[float],
        alarm: numbers.Alarm,
    ) -> None:
        self.recipe, self.beta, self.size, self.rule = recipe, beta, size, rule
        self.threshold, self.weights, self.alarm = threshold, weights, alarm
        self.best = -math.inf
        self.warned: set[str] = set()
        self.completions: Any = None
        self.rewards: dict[int, np.ndarray] = {}
        # Functions that are awaited run in another thread.
        self.lock = threading.Lock()

    def forget(self) -> None:
        """Drops a batch of which a function failed."""
        with self.lock:
            self.completions, self.rewards = None, {}

    def report(self, place: int, rewards: Any, called: dict[str, Any]) -> None:
        """Takes one function's rewards, and logs if they were the last."""
        try:
            with self.lock:
                total = self._total(place, rewards, called["completions"])
            if total is not None:
                self._log(total, called)
        except Exception as error:
            # Whatever goes wrong here must not end a training that would have gone on.
            self.forget()
            self._warn(f"kltarget.adapters.trl.watch: {type(error).__name__}: {error}")

    def _total(self, place: int, rewards: Any, completions: Any) -> np.ndarray | None:
        """The weighted sum of all functions' rewards, once there are all."""
        if self.completions is not completions:
            self.completions, self.rewards = completions, {}
        self.rewards[place] = _as_floats(rewards, len(completions))
        if len(self.rewards) < len(self.weights):
            return None
        each = np.array([self.rewards[i] for i in range(len(self.weights))])
        self.completions, self.rewards = None, {}
        total = np.nansum(np.array(self.weights)[:, None] * each, 0)
        return np.where(np.isnan(each).all(0), np.nan, total)

    def _log(self, total: np.ndarray, called: dict[str, Any]) -> None:
        metrics: dict[str, float] = {"missing_rewards": float(np.isnan(total).sum())}
        if not np.isnan(total).all():
            self.best = max(self.best, float(np.nanmax(total)))
        if self._in_blocks(called["prompts"]):
            metrics |= self._of_groups(total, called)
        else:
            self._warn(
                f"kltarget.adapters.trl.watch: the batch is not made of blocks of {self.size} "
                "equal prompts, so that numbers of groups are left out: group_size says how many "
                "completions a prompt has, and a process needs whole groups"
            )
        log_metric = called.get("log_metric")
        if log_metric is not None:
            for name, value in metrics.items():
                log_metric(f"kltarget/{name}", value)

    def _of_groups(self, total: np.ndarray, called: dict[str, Any]) -> dict[str, float]:
        texts = [text_of(x) for x in called["completions"]]
        answers = np.array([self.rule(x) for x in texts], object)
        ids = called.get("completion_ids")
        batch = numbers.Batch(
            *(numbers.in_groups(x, self.size) for x in (total, np.array(texts, object), answers)),
            *(self._log_probs(called.get(name)) for name in ("logp", "ref_logp")),
            single=ids is not None and all(len(x) == 1 for x in ids),
        )
        threshold = self.best if self.threshold is None else self.threshold
        metrics = numbers.reward_metrics(batch, self.recipe, self.beta)
        metrics |= numbers.answer_metrics(batch, threshold)
        metrics |= numbers.policy_metrics(batch, self.recipe, self.beta)
        alarm = self.alarm.after(metrics)
        return metrics if alarm is None else {**metrics, "collapse_alarm": alarm}

    def _log_probs(self, values: Any) -> np.ndarray | None:
        if values is None:
            return None
        each = np.array([math.nan if x is None else float(x) for x in values])
        return numbers.in_groups(each, self.size)

    def _in_blocks(self, prompts: Sequence[Any]) -> bool:
        blocks = range(0, len(prompts), self.size)
        equal = all(x == prompts[i] for i in blocks for x in prompts[i : i + self.size])
        return len(prompts) % self.size == 0 and equal

    def _warn(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            try:
                warnings.warn(message, stacklevel=2)
            except Warning:  # where warnings are errors, this is still no reason to stop
                logging.getLogger(__name__).warning(message)


def _as_floats(rewards: Any, number: int) -> np.ndarray:
    """Rewards as numbers, NaN for None."""
    if not hasattr(rewards, "__len__"):
        raise TypeError(f"rewards must be a list, got {type(rewards).__name__}")
    listed = rewards.tolist() if hasattr(rewards, "tolist") else list(rewards)
    if len(listed) != number:
        raise ValueError(f"{len(listed)} rewards for {number} completions")
    return np.array([math.nan if x is None else float(x) for x in listed])


def text_of(completion: Any) -> str:
    """The text of a completion; of a chat what the assistant says."""
    return assistant_text(completion) if is_chat(completion) else str(completion)
