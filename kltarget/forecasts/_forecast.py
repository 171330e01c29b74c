"""What a forecast holds: curves over β with intervals, and how a β is chosen."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.records import Record
from kltarget.forecasts._forecast_page import forecast_page
from kltarget.recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from kltarget._core.page import Figure, Page

QUANTILES = (0.025, 0.5, 0.975)
_GAIN = 0.9


@dataclasses.dataclass(frozen=True)
class Choice:
    """A β, and the interval that what is not known of the prompts leaves.

    Attributes:
        beta: the median, NaN where fewer than half of the draws have such a β.
        low: its 2.5 % quantile.
        high: its 97.5 % quantile.
        reached: the share of the draws in which a β of the grid does it.
    """

    beta: float
    low: float
    high: float
    reached: float


@dataclasses.dataclass(frozen=True, eq=False)
class Forecast(Record):
    """What the target of a recipe does to a base model, at each β; see :func:`forecast`.

    Attributes:
        title: how many prompts and samples there were.
        recipe: what the trainer does, on the base model.
        recipe_name: its preset, or nothing.
        notes: what was left out or taken for granted.
        beta: coefficients, ascending, ``[B]``.
        k: of pass@k, ``[K]``.
        rollouts_per_prompt: that a run draws, or None.
        rewards: of a wrong and a right sample.
        reward_span: their distance.
        share_unsolved: of the prompts, those without a right sample.
        curves: means over the prompts, quantiles ``[B, 3]`` each: ``success``; ``kl``, nats of
            ``KL(π‖π_ref)`` a prompt; ``saturated``, the share of prompts with less than one wrong
            answer in a million; ``success_without_unsolved``, where prompts without a right sample
            are never solved; ``zero_std``, the share of groups with equal rewards; ``met``;
            ``best_of_n``, the n whose best of n has the same KL, and ``best_of_n_success``.
        pass_at_k: quantiles, ``[K, B, 3]``.
        start: the same of the base model, ``[3]`` each.
        start_pass_at_k: ``[K, 3]``.
        draws: of ``success`` and ``kl``, ``[D, B]``.
        prompts: names, ``[P]``.
        correct: right samples, ``[P]``.
        samples: all samples, ``[P]``.
        pair: which pair of counts each prompt has, ``[P]``.
        pair_start: quantiles of the base model's success by pair, ``[U, 3]``.
        pair_success: of the target's, ``[U, B, 3]``.
    """

    title: str
    recipe: Recipe
    recipe_name: str
    notes: tuple[str, ...]
    beta: list[float]
    k: list[int]
    rollouts_per_prompt: int | None
    rewards: list[float]
    reward_span: float
    share_unsolved: float
    curves: dict[str, list[list[float]]]
    pass_at_k: list[list[list[float]]]
    start: dict[str, list[float]]
    start_pass_at_k: list[list[float]]
    draws: dict[str, list[list[float]]]
    prompts: list[str]
    correct: list[int]
    samples: list[int]
    pair: list[int]
    pair_start: list[list[float]]
    pair_success: list[list[list[float]]]

    @functools.cached_property
    def dataset(self) -> xr.Dataset:
        """All curves and prompts, labelled, over ``beta``, ``k``, ``prompt`` and ``quantile``."""
        import xarray as xr

        over = ("beta", "quantile")
        variables: dict[str, Any] = {x: (over, np.array(y)) for x, y in self.curves.items()}
        low, span = self.rewards[0], self.reward_span
        variables["expected_reward"] = (over, low + span * np.array(self.curves["success"]))
        variables["pass_at_k"] = (("k", *over), np.array(self.pass_at_k))
        variables |= {f"start_{x}": (("quantile",), np.array(y)) for x, y in self.start.items()}
        variables["start_pass_at_k"] = (("k", "quantile"), np.array(self.start_pass_at_k))
        pair = np.array(self.pair)
        variables["prompt_start"] = (("prompt", "quantile"), np.array(self.pair_start)[pair])
        variables["prompt_success"] = (("prompt", *over), np.array(self.pair_success)[pair])
        variables["correct"] = (("prompt",), np.array(self.correct))
        variables["samples"] = (("prompt",), np.array(self.samples))
        names = {"beta": self.beta, "k": self.k, "quantile": list(QUANTILES)}
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

    def choose(self, *, kl: float | None = None, expected_reward: float | None = None) -> Choice:
        """The β with a mean KL, or a mean reward, over the prompts.

        Args:
            kl: nats of ``KL(π‖π_ref)`` a prompt.
            expected_reward: in the units of the reward.

        Returns:
            The β, between those of the grid by its logarithm, with its interval.

        Raises:
            ValueError: not one of the two, or a value out of range.
        """
        if (kl is None) == (expected_reward is None):
            raise ValueError("choose by one of kl=… and expected_reward=…")
        if kl is not None:
            name, wanted = "kl", kl
            if not kl > 0:
                raise ValueError(f"kl must be above 0, got {kl}")
        else:
            assert expected_reward is not None
            name, wanted = "success", (expected_reward - self.rewards[0]) / self.reward_span
            if not 0 < wanted < 1:
                raise ValueError(
                    f"expected_reward must be between {self.rewards[0]:g} and {self.rewards[1]:g}, "
                    f"got {expected_reward}"
                )
        return self._where(np.array(self.draws[name]), np.full(len(self.draws[name]), wanted))

    @functools.cached_property
    def recommended(self) -> Choice:
        """The largest β that buys nine tenths of the success that the smallest of the grid buys."""
        success = np.array(self.draws["success"])
        start = self.start["success"][1]
        return self._where(success, start + _GAIN * (success[:, 0] - start))

    def _where(self, curves: np.ndarray, wanted: np.ndarray) -> Choice:
        """Where curves that fall as β grows, ``[D, B]``, have the values ``[D]``."""
        log_beta = np.log(self.beta)
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
