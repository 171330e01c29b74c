"""Trained runs held against the targets of their β and reward scale, and what must be true."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kltarget._core.distances import effective_number, kl, mode_masses, normalised, total_variation
from kltarget._core.numerics import double_precision
from kltarget._core.words import counted
from kltarget.policies import TabularPolicy
from kltarget.recipes import Recipe
from kltarget.spaces import SequenceSpace
from kltarget.tasks import Task
from kltarget.tasks._task import likeliest_outcomes
from kltarget.training import Run, RunStatus
from kltarget.verification._exact_targets import followable, own_target, sequence_target
from kltarget.verification._report import Check, VerifiedRun

_MOST_MODES = 20
_ALLOWED_ERRORS = 3.0
_IDENTITY_BAR = 1e-9


def described(recipe: Recipe) -> str:
    """A recipe in words."""
    if recipe.place == "none":
        return "no regulariser"
    return f"{recipe.estimator_name} in {recipe.place}, {recipe.level}"


@dataclasses.dataclass(eq=False)
class _Cloud:
    """Policies of the same settings and other random numbers, as running sums."""

    tabular: bool
    log_target: np.ndarray
    count: int = 0
    total: Any = 0.0
    squares: Any = 0.0

    def add(self, probs: np.ndarray) -> None:
        self.count += 1
        self.total = self.total + probs
        self.squares = self.squares + probs**2

    def distance(self) -> float:
        """Total variation of the mean policy from the target."""
        return float(np.abs(self.total / self.count - np.exp(self.log_target)).sum() / 2)

    def error(self) -> float:
        """Half the summed standard errors of the mean: the size of a total variation by chance."""
        mean = self.total / self.count
        variance = np.maximum(self.squares / self.count - mean**2, 0) / (self.count - 1)
        return float(np.sqrt(variance).sum() / 2)


@dataclasses.dataclass(eq=False)
class Judge:
    """Collects runs of one task over sequences."""

    task: Task
    space: SequenceSpace
    targets: Mapping[str, tuple[np.ndarray, np.ndarray]]
    beta: np.ndarray
    scale: np.ndarray
    bar: float
    sampled: bool
    clouds: dict[tuple[Any, ...], _Cloud] = dataclasses.field(default_factory=dict)

    def verified(self, policy: str, recipe: Recipe, seed: int, run: Run) -> list[VerifiedRun]:
        """A row for every β and reward scale of a run."""
        log_probs = normalised(run.log_probs)
        grid = np.ndindex(log_probs.shape[:-1])
        return [self._row(policy, recipe, seed, run, at, log_probs[at]) for at in grid]

    def _row(
        self, policy: str, recipe: Recipe, seed: int, run: Run, at: Any, log_probs: np.ndarray
    ) -> VerifiedRun:
        task, own, name = self.task, own_target(recipe), described(recipe)
        tabular = isinstance(run.policy, TabularPolicy)
        beta, scale = float(self.beta[at[0]]), float(self.scale[at[1]])
        targets = {name: x[at] for name, (x, _) in self.targets.items()}
        values = {name: float(value[at]) for name, (_, value) in self.targets.items()}
        # Recipes without a target are shown beside that of reverse KL, which all estimators mean.
        goal = targets[own or "sequence_reverse"]
        tv = {name: total_variation(log_probs, x) for name, x in targets.items()}
        closest = min(tv, key=lambda name: tv[name])
        # Targets may coincide, as they all do for a single token.
        if own is not None and tv[own] <= tv[closest] * (1 + 1e-9) + 1e-12:
            closest = own

        reward = float(np.exp(log_probs) @ task.reward)
        backward = kl(log_probs, task.log_ref)
        cost = kl(task.log_ref, log_probs) if recipe.aim == "forward" else backward
        if recipe.aim == "other" and recipe.divergence is not None:
            with double_precision():
                cost = float(recipe.divergence(log_probs, task.log_ref))
        best = values[sequence_target(recipe)]
        if recipe.place == "none":
            best, cost = scale * float(task.reward[np.isfinite(task.log_ref)].max()), 0.0
        gap = best - (scale * reward - beta * cost)
        short = values["sequence_reverse"] - (scale * reward - beta * backward)
        product = beta * kl(log_probs, targets["sequence_reverse"])
        size = abs(values["sequence_reverse"]) + scale * abs(reward) + beta * backward
        bound = float(np.asarray(run.gap)[at])
        largest = scale * float(np.abs(task.reward).max())
        spread = float(np.abs(log_probs - task.log_ref)[np.exp(log_probs) > 0].max(initial=0.0))
        rounding = 64 * float(np.finfo(run.gap.dtype).eps) * (largest + beta * (1 + spread))

        masses = mode_masses(log_probs, task.modes)
        expected = mode_masses(goal, task.modes)
        shown = np.argsort(-expected, kind="stable")[:_MOST_MODES]
        shown = shown[expected[shown] > 0]
        likeliest = likeliest_outcomes(task.modes, goal)
        status = RunStatus(int(np.asarray(run.status)[at])).name
        share = float("nan")
        if status == "NON_FINITE" or not np.isfinite(log_probs).any():
            remains = "diverged"
        elif own is None:
            remains = "no target"
        elif tv[own] <= self.bar:
            remains = "nothing"
        elif self.sampled:
            remains = "sampling"
        else:
            own_params = jax.tree.map(lambda x: x[at], run.params)
            numbers = (log_probs, task.log_ref, scale * task.reward)
            share = followable(run.policy, self.space, recipe, own_params, *numbers, beta)
            remains = "optimisation" if share >= 0.5 else "family"
        if self.sampled and own is not None:
            cell = (policy, name, beta, scale)
            self.clouds.setdefault(cell, _Cloud(tabular, goal)).add(np.exp(log_probs))
        return VerifiedRun(
            policy=policy,
            recipe=name,
            tabular=tabular,
            beta=beta,
            reward_scale=scale,
            seed=seed,
            target=own,
            status=status,
            num_steps=int(np.asarray(run.num_steps)[at]),
            gradient_norm=float(np.asarray(run.gradient_norm)[at]),
            tv=tv,
            reverse_kl={name: kl(log_probs, x) for name, x in targets.items()},
            forward_kl={name: kl(x, log_probs) for name, x in targets.items()},
            target_tv={name: total_variation(goal, x) for name, x in targets.items()},
            start_tv=total_variation(task.log_ref, goal),
            nearest=closest,
            value=best,
            gap=gap,
            bound=bound,
            bound_holds=bool(bound >= gap - rounding),
            identity_error=abs(short - product) / max(size, np.finfo(float).tiny),
            expected_reward=reward,
            target_expected_reward=float(np.exp(goal) @ task.reward),
            effective_modes=_effective(masses),
            target_effective_modes=_effective(expected),
            mode_labels=tuple(task.labels[likeliest[int(mode)]] for mode in shown),
            mode_mass=masses[shown],
            target_mode_mass=expected[shown],
            followable=share,
            remains=remains,
            step=run.history.step,
            history=np.asarray(run.history.expected_reward)[at].astype(float),
        )

    def checks(self, runs: Sequence[VerifiedRun]) -> tuple[Check, ...]:
        """What must be true of any policy, and of those that can represent everything."""
        diverged = sum(run.remains == "diverged" for run in runs)
        kept = [run for run in runs if run.remains != "diverged"]
        checks = [Check("no run diverged", not diverged, f"{diverged} of {len(runs)} did")]
        aimed = [run for run in kept if run.target is not None]
        exact = [] if self.sampled else [run for run in aimed if run.tabular]
        if exact:
            worst = max(run.distance for run in exact)
            name = f"tabular policies end within TV {self.bar:g} of the target of their recipe"
            detail = f"at most {worst:.1e} in {counted(len(exact), 'run')}"
            checks.append(Check(name, worst <= self.bar, detail))
        clouds = [cloud for cloud in self.clouds.values() if cloud.tabular]
        if clouds:
            allowed = [self.bar + _ALLOWED_ERRORS * cloud.error() for cloud in clouds]
            used = max(c.distance() / a for c, a in zip(clouds, allowed, strict=True))
            name = (
                "the mean sampled tabular policy is within "
                f"{_ALLOWED_ERRORS:g} standard errors of its target"
            )
            spread = f"{min(allowed):.1e} to {max(allowed):.1e}"
            detail = f"at most {used:.0%} of the allowed TV, {spread}"
            checks.append(Check(name, used <= 1, detail))
        if kept:
            worst = max(run.identity_error for run in kept)
            name = "J* − J(π) = β·KL(π‖π*) for reverse KL, the arithmetic"
            detail = f"relative error at most {worst:.1e}"
            checks.append(Check(name, worst <= _IDENTITY_BAR, detail))
            broken = sum(not run.bound_holds for run in kept)
            name = "training's own bound on J* − J(π) is no less than the truth"
            detail = f"in {len(kept) - broken} of {counted(len(kept), 'run')}"
            checks.append(Check(name, broken == 0, detail))
        return tuple(checks)


def _effective(masses: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        return effective_number(np.log(masses))
