"""What a comparison of two checkpoints holds."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kltarget._core.records import Record
from kltarget.comparisons._comparison_page import comparison_page, comparison_parts
from kltarget.comparisons._kept_answers import KeptAnswers
from kltarget.recipes import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import xarray as xr

    from kltarget._core.page import Block, Figure, Page

Verdict = Literal["unchanged", "target", "path", "open", "neither", "unpaired"]
SIDES = ("before", "after", "difference")


@dataclasses.dataclass(frozen=True)
class Law:
    """A law of how prompts shift, held against the counts.

    Attributes:
        name: ``"none"``, ``"reverse"``, ``"forward"``, ``"reverse-std"``, ``"forward-std"``,
            ``"recipe"``, ``"gradient"``, ``"gradient-std"``, ``"maxrl"`` or ``"free"``.
        title: in words.
        kind: ``"none"``, ``"target"``, ``"recipe"`` (the target of the recipe that was given),
            ``"path"`` or ``"free"``: the curve of :class:`Shifts`, which follows no law.
        symbol: of its parameter: β of a target, the time τ of a path; nothing without one.
        parameter: quantiles 0.025, 0.5 and 0.975.
        scatter: standard deviation of the prompts' log-odds about the law.
        behind: nats of log-likelihood by which prompts that were held out fit it worse than the
            best one, the free curve among them.
        behind_error: standard error of that.
        curve: shifts at the base success rates of ``Shifts.success``.
    """

    name: str
    title: str
    kind: str
    symbol: str
    parameter: list[float]
    scatter: float
    behind: float
    behind_error: float
    curve: list[float]

    @property
    def ruled_out(self) -> bool:
        """Whether the best one is better by more than two nats and two standard errors."""
        return self.behind > max(2.0, 2 * self.behind_error)


@dataclasses.dataclass(frozen=True)
class Shifts:
    """By how much the log-odds of prompts shifted, over their success before.

    Attributes:
        success: rates of success before, at which curves are given, ``[N]``.
        curve: the free curve there, low, middle and high of 95 %, ``[N, 3]``.
        edges: of bins of success before, ``[B + 1]``.
        share: of the prompts in each bin, ``[B]``.
        mean: mean shift in each bin, ``[B, 3]``.
        overall: mean shift of all prompts that can be solved.
        tilt: mean shift of prompts above one half before, less that of those below.
        common: the share of the mean square of the shifts that is the same for all prompts.
        scatter: standard deviation about the curve.
    """

    success: list[float]
    curve: list[list[float]]
    edges: list[float]
    share: list[float]
    mean: list[list[float]]
    overall: list[float]
    tilt: list[float]
    common: float
    scatter: float


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the recipe's target at the recipe's own β asks for.

    Attributes:
        beta: that β.
        success: mean over the prompts, quantiles.
        pass_at_k: ``[K, 3]``.
        covered: the share of the way from the base model to the target, in mean success.
    """

    beta: float
    success: list[float]
    pass_at_k: list[list[float]]
    covered: list[float]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison(Record):
    """What changed between two checkpoints, prompt by prompt; see :func:`compare`.

    Attributes:
        title: how many prompts and samples there were.
        labels: of the two sides.
        from_base: whether the first is the base model of the second.
        paired: whether both have the same prompts.
        recipe: what the trainer did, or None.
        recipe_name: its preset, or nothing.
        false_discovery_rate: of ``moved``.
        notes: what was left out or taken for granted.
        verdict: ``"target"`` or ``"path"``: such laws alone fit;
            ``"open"``: of both kinds some do, or the prompts are too few or too clumped to tell;
            ``"neither"``: none does; ``"unchanged"``: no change does, and none is known;
            ``"unpaired"``: nothing is known of single prompts.
        k: of pass@k, ``[K]``.
        pass_at_k: bands of ``"before"``, ``"after"`` and ``"difference"``, ``[K, 3]`` each, which
            hold at all k at once with 95 %.
        known: 1 where pass@k is known to have risen, -1 fallen, 0 elsewhere, ``[K]``.
        never_solved: the share of prompts without a right sample, before and after.
        prompts: names of the pairs, ``[P]``.
        correct: right samples before and after, ``[2, P]``.
        samples: all samples before and after, ``[2, P]``.
        p_value: of no change, ``[P]``.
        moved: 1 where a prompt rose, -1 where it fell, 0 where neither is known, ``[P]``.
        fell_alone: how many fell where falls alone are tested at this rate: few falls among many
            rises may all be the false ones of both.
        shifts: of the log-odds, None without pairs.
        laws: how well each and a free curve fit, the best first; empty without pairs.
        answers: different right answers before and after, None where counts alone are known.
        asked: what the recipe asks for, None without a recipe or without its β.
    """

    title: str
    labels: tuple[str, str]
    from_base: bool
    paired: bool
    recipe: Recipe | None
    recipe_name: str
    false_discovery_rate: float
    notes: tuple[str, ...]
    verdict: Verdict
    k: list[int]
    pass_at_k: dict[str, list[list[float]]]
    known: list[int]
    never_solved: list[float]
    prompts: list[str]
    correct: list[list[int]]
    samples: list[list[int]]
    p_value: list[float]
    moved: list[int]
    fell_alone: int
    shifts: Shifts | None
    laws: list[Law]
    answers: KeptAnswers | None
    asked: Asked | None

    @property
    def num_rose(self) -> int:
        """How many prompts are known to have risen."""
        return self.moved.count(1)

    @property
    def num_fell(self) -> int:
        """How many prompts are known to have fallen."""
        return self.moved.count(-1)

    @functools.cached_property
    def dataset(self) -> xr.Dataset:
        """pass@k, shifts, laws and prompts, labelled."""
        import xarray as xr

        bound = ["low", "middle", "high"]
        bands = np.array([self.pass_at_k[side] for side in SIDES])
        variables: dict[str, Any] = {
            "pass_at_k": (("side", "k", "bound"), bands),
            "known": (("k",), np.array(self.known, int)),
        }
        names: dict[str, Any] = {"side": list(SIDES), "k": self.k, "bound": bound}
        if self.shifts is not None:
            over = ("base_success", "bound")
            variables["shift"] = (over, np.array(self.shifts.curve))
            variables["law_shift"] = (("law", over[0]), np.array([x.curve for x in self.laws]))
            variables["law_behind"] = (("law",), np.array([x.behind for x in self.laws]))
            names |= {"base_success": self.shifts.success, "law": [x.name for x in self.laws]}
        if self.paired:
            times = ("checkpoint", "prompt")
            variables |= {
                "correct": (times, np.array(self.correct, int)),
                "samples": (times, np.array(self.samples, int)),
                "p_value": (("prompt",), np.array(self.p_value)),
                "moved": (("prompt",), np.array(self.moved, int)),
            }
            names |= {"checkpoint": ["before", "after"], "prompt": self.prompts}
        return xr.Dataset(variables, names, {"title": self.title})

    def to_dataframe(self) -> pd.DataFrame:
        """The prompts, a row each, those that are likeliest to have moved first."""
        import pandas as pd

        (c, d), (m, n) = self.correct or ([], []), self.samples or ([], [])
        columns = {"prompt": self.prompts, "correct_before": c, "samples_before": m}
        columns |= {"correct_after": d, "samples_after": n}
        columns |= {"p_value": self.p_value, "moved": self.moved}
        return pd.DataFrame(columns).sort_values("p_value", kind="stable", ignore_index=True)

    def page(self, figure: Figure | None = None) -> Page:
        """Everything in words and tables, around a figure perhaps."""
        return comparison_page(self, figure)

    def parts(self, figure: Figure | None = None) -> list[Sequence[Block]]:
        """The page without its title, as parts of another."""
        return comparison_parts(self, figure)

    def __str__(self) -> str:
        return self.page().to_text()
