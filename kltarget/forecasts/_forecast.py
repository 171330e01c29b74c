"""What a forecast holds: curves over β with intervals, and how a β is chosen."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.records import Record
from kltarget.forecasts._draws import QUANTILES
from kltarget.forecasts._forecast_page import forecast_page
from kltarget.recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from kltarget._core.page import Figure, Page

_GAIN = 0.9
_NOTHING_KNOWN = "no sample is right, so that nothing says how likely right ones are"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A β, and the interval that what is not known of the prompts leaves.

    Attributes:
        beta: the median, NaN where fewer than half of the draws have such a β.
        low: its 2.5 % quantile.
        high: its 97.5 % quantile.
        reached: the share of the draws in which a β of ``draws_beta`` does it.
        reason: why there is no such β, or nothing.
    """

    beta: float
    low: float
    high: float
    reached: float
    reason: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Forecast(Record):
    """What the target of a recipe does to a base model, at each β; see :func:`forecast`.

    Attributes:
        title: how many prompts and samples there were.
        recipe: what the trainer does, on the base model.
        recipe_name: its preset, or nothing.
        notes: what was left out or taken for granted.
        beta: coefficients, ascending, ``[B]``.
        k: of pass@k, ``[K]``; empty where rewards do not show what is right.
        rollouts_per_prompt: that a run draws, or None.
        rewards: of a wrong and a right sample, or of all levels, ascending, ``[L]``.
        share_unsolved: of the prompts, those without a right sample; NaN where rewards do not show
            what is right.
        curves: means over the prompts, quantiles ``[B, 3]`` each: ``expected_reward``;
            ``success``, where it is known what is right; ``kl``, nats of ``KL(π‖π_ref)`` a prompt;
            ``saturated``, the share of prompts with less than one in a million of all but the best
            answers; ``zero_std``, the share of groups with equal rewards; ``best_of_n``, the n
            whose best of n has the same KL, and ``best_of_n_reward``. Of two rewards also
            ``success_without_unsolved``, where prompts without a right sample are never solved,
            ``success_of_unsolved``, what these add, ``best_of_n_success`` and ``met``; of several
            ``above_seen``, the mass of rewards above all that a prompt's samples have, and
            ``effective_answers``, ``e^H`` of the answers, where a log has them.
        pass_at_k: quantiles, ``[K, B, 3]``.
        start: the same of the base model, ``[3]`` each.
        start_pass_at_k: ``[K, 3]``.
        draws: of ``expected_reward``, ``kl`` and ``effective_answers``, ``[D, C]``.
        draws_beta: their coefficients, ascending, ``[C]``, among which a β is chosen whatever
            ``beta`` is: 41 usual ones, and more where ``beta`` goes beyond them.
        smallest_beta: of the usual ones; ``recommended`` compares with its gain.
        start_answers: draws of the base model's effective answers, ``[D]``, or empty.
        right_answers: how many right answers a prompt has, low, estimate and high, means over the
            prompts with two right samples or more: ``number``, seen and unseen, by Chao's
            estimator, and ``effective``, ``e^H``. Of one reward they are the same at every β.
            Empty where that is not known.
        prompts: names, ``[P]``.
        correct: right samples, ``[P]``; empty where rewards do not show what is right.
        samples: all samples, ``[P]``.
        levels: samples of each of several rewards, ``[P, L]``; empty if there are two.
        effective_samples: of each prompt's samples on average the effective number that the target
            rests on, ``(Σw)²/Σw²`` of the weights that it gives them, ``[B]``.
        tokens: of a sample on average, NaN where that is not logged.
        pattern: which of the different counts each prompt has, ``[P]``.
        of_patterns: quantiles of prompts by their counts: ``start_expected_reward`` and
            ``start_success`` of the base model and, where rewards are divided by their deviation,
            ``saturation_beta``, ``[U, 3]``; ``expected_reward``, ``success``, ``kl`` and
            ``effective_beta`` at the target, ``[U, B, 3]``; NaN where too few draws are of a
            prompt.
    """

    title: str
    recipe: Recipe
    recipe_name: str
    notes: tuple[str, ...]
    beta: list[float]
    k: list[int]
    rollouts_per_prompt: int | None
    rewards: list[float]
    share_unsolved: float
    curves: dict[str, list[list[float]]]
    pass_at_k: list[list[list[float]]]
    start: dict[str, list[float]]
    start_pass_at_k: list[list[float]]
    draws: dict[str, list[list[float]]]
    draws_beta: list[float]
    smallest_beta: float
    start_answers: list[float]
    right_answers: dict[str, list[float]]
    prompts: list[str]
    correct: list[int]
    samples: list[int]
    levels: list[list[int]]
    effective_samples: list[float]
    tokens: float
    pattern: list[int]
    of_patterns: dict[str, list[Any]]

    @property
    def graded(self) -> bool:
        """Whether there are more than two rewards."""
        return bool(self.levels)

    @functools.cached_property
    def dataset(self) -> xr.Dataset:
        """All curves and prompts, labelled, over ``beta``, ``k``, ``prompt`` and ``quantile``."""
        import xarray as xr

        over = ("beta", "quantile")
        variables: dict[str, Any] = {x: (over, np.array(y)) for x, y in self.curves.items()}
        variables |= {f"start_{x}": (("quantile",), np.array(y)) for x, y in self.start.items()}
        names: dict[str, Any] = {"beta": self.beta, "quantile": list(QUANTILES)}
        if self.k:
            names["k"] = self.k
            variables["pass_at_k"] = (("k", *over), np.array(self.pass_at_k))
            variables["start_pass_at_k"] = (("k", "quantile"), np.array(self.start_pass_at_k))
        pattern = np.array(self.pattern)
        for name, values in self.of_patterns.items():
            found = np.array(values)[pattern]
            axes = ("prompt", "quantile") if found.ndim == 2 else ("prompt", *over)
            variables[f"prompt_{name}"] = (axes, found)
        for name, values in self.right_answers.items():
            # Low, estimate and high: those of the quantiles.
            variables[f"right_answers_{name}"] = (("quantile",), np.array(values))
        variables["effective_samples"] = (("beta",), np.array(self.effective_samples))
        if not np.isnan(self.tokens):
            variables["kl_per_token"] = (over, np.array(self.curves["kl"]) / self.tokens)
        variables["samples"] = (("prompt",), np.array(self.samples))
        if self.correct:
            variables["correct"] = (("prompt",), np.array(self.correct))
        if self.levels:
            names["level"] = self.rewards
            variables["samples_of_level"] = (("prompt", "level"), np.array(self.levels))
        return xr.Dataset(variables, {**names, "prompt": self.prompts}, {"title": self.title})

    def to_dataframe(self) -> pd.DataFrame:
        """The curves, a row per β: medians, and the ends of intervals as ``…_low``, ``…_high``."""
        import pandas as pd

        columns: dict[str, Any] = {"beta": self.beta}
        curves = {**self.curves}
        curves |= {f"pass@{k}": x for k, x in zip(self.k, self.pass_at_k, strict=True)}
        for name, values in curves.items():
            low, middle, high = np.array(values).T
            columns |= {name: middle, f"{name}_low": low, f"{name}_high": high}
        return pd.DataFrame(columns)

    def choose(
        self,
        *,
        kl: float | None = None,
        expected_reward: float | None = None,
        keep_answers: float | None = None,
    ) -> Choice:
        """The β with a mean KL, a mean reward or a mean number of answers over the prompts.

        Args:
            kl: nats of ``KL(π‖π_ref)`` a prompt.
            expected_reward: in the units of the reward.
            keep_answers: which share of the base model's effective number of answers is kept; of
                two rewards, of its right answers.

        Returns:
            The β, between those of ``draws_beta`` by its logarithm, with its interval; NaN where
            none of their range does it, with the reason.

        Raises:
            ValueError: not one of the three, a value out of range, or samples without answers.
        """
        if sum(x is not None for x in (kl, expected_reward, keep_answers)) != 1:
            raise ValueError(
                "choose by one of kl=…, expected_reward=… and keep_answers=…, and by one alone"
            )
        if keep_answers is not None:
            return self._keeping(keep_answers)
        if kl is not None:
            name, wanted = "kl", kl
            if not kl > 0:
                raise ValueError(f"kl must be above 0, got {kl}")
        else:
            assert expected_reward is not None
            name, wanted = "expected_reward", expected_reward
            if not self.rewards[0] < wanted < self.rewards[-1]:
                raise ValueError(
                    f"expected_reward must be between {self.rewards[0]:g} and "
                    f"{self.rewards[-1]:g}, got {expected_reward}"
                )
        return self._where(np.array(self.draws[name]), np.full(len(self.draws[name]), wanted))

    @functools.cached_property
    def recommended(self) -> Choice:
        """The largest β that buys nine tenths of the reward that ``smallest_beta`` buys.

        NaN, with the reason, where no sample is right.
        """
        start = self.start["expected_reward"][1]
        most = self._draws_at("expected_reward", self.smallest_beta)
        wanted = start + _GAIN * (most - start)
        return self._where(np.array(self.draws["expected_reward"]), wanted)

    def at(self, beta: float) -> dict[str, list[float]]:
        """Quantiles of the curves in ``draws`` at any β of their range, ``[3]`` each.

        Args:
            beta: the coefficient.

        Raises:
            ValueError: a β beyond ``draws_beta``.
        """
        low, high = self.draws_beta[0], self.draws_beta[-1]
        if not low <= beta <= high:
            raise ValueError(f"beta must be between {low:g} and {high:g}, got {beta}")
        return {x: np.quantile(self._draws_at(x, beta), QUANTILES).tolist() for x in self.draws}

    def _draws_at(self, name: str, beta: float) -> np.ndarray:
        """Draws ``[D]`` of a curve, between its coefficients by their logarithms."""
        at = np.log(self.draws_beta)
        return np.array([np.interp(np.log(beta), at, row) for row in self.draws[name]])

    def _keeping(self, share: float) -> Choice:
        if not share > 0:
            raise ValueError(f"keep_answers must be above 0, got {share}")
        proportions = "answers of equal reward keep the reference's proportions"
        if not self.graded:
            if not self.right_answers:
                raise ValueError("keep_answers needs samples with answers, two right ones a prompt")
            reason = f"right {proportions} at every β"
            if share <= 1:
                reason = f"every β keeps them all: {reason}"
            return Choice(np.nan, np.nan, np.nan, 0.0, reason)
        if not self.start_answers:
            raise ValueError("keep_answers needs samples with answers, which these have not")
        # From the largest β down, the first at which so many are left.
        left = np.minimum.accumulate(np.array(self.draws["effective_answers"])[:, ::-1], axis=1)
        found = self._where(-left[:, ::-1], -share * np.array(self.start_answers))
        if not np.isnan(found.beta):
            return found
        reason = f"better answers gain on worse ones at every β, and {proportions}"
        return dataclasses.replace(found, reason=reason)

    def _where(self, curves: np.ndarray, wanted: np.ndarray) -> Choice:
        """Where curves that fall as β grows, ``[D, C]``, have the values ``[D]``."""
        if not self.graded and not any(self.correct):
            return Choice(np.nan, np.nan, np.nan, 0.0, _NOTHING_KNOWN)
        log_beta = np.log(self.draws_beta)
        found = np.array(
            [
                np.interp(x, row[::-1], log_beta[::-1], left=np.nan, right=np.nan)
                for x, row in zip(wanted, curves, strict=True)
            ]
        )
        known = found[np.isfinite(found)]
        reached = known.size / max(found.size, 1)
        if reached < 0.5:
            return Choice(np.nan, np.nan, np.nan, reached)
        low, middle, high = np.exp(np.quantile(known, QUANTILES))
        return Choice(float(middle), float(low), float(high), reached)

    def page(self, figure: Figure | None = None) -> Page:
        """Everything in words and tables, around a figure perhaps."""
        return forecast_page(self, figure)

    def __str__(self) -> str:
        return self.page().to_text()
