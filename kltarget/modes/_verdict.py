"""The verdict: what one target does to the modes, measured on the host and said in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kltarget._core.status import Status
from kltarget._core.words import number, percent, quoted, ratio
from kltarget.divergences import kl
from kltarget.modes._flips import collapse_beta, flip_beta
from kltarget.modes._measures import effective_modes, mode_log_mass
from kltarget.targets import DiscreteTarget, greedy_limit
from kltarget.tasks._task import likeliest_outcomes

_COLLAPSED = 0.9
_KEPT = 0.9
_REACHED = 0.5
_UNMOVED = 0.01
_RATIOS_DIFFER = 1e-3

FOOTNOTE = (
    f"Collapses: at least {_COLLAPSED:.0%} of the best modes' mass is on one of them. "
    f"Keeps diversity: at least {_KEPT:.0%} of the reference's effective modes among them. "
    f"Misses: less than {_REACHED:.0%} of all mass is on them. "
    f"Stays: KL(π*‖π_ref) below {_UNMOVED:g} nats."
).replace("%", " %")


@runtime_checkable
class OfRecipe(Protocol):
    """A target of a trainer's recipe: its objective may have another reward than the trainer's."""

    @property
    def reward(self) -> Any: ...

    @property
    def beta(self) -> Any: ...

    @property
    def effective_beta(self) -> Any: ...


class Facts:
    """Host copies of one problem, and what is read off them."""

    def __init__(
        self, target: DiscreteTarget, modes: np.ndarray, names: Sequence[str], top: int
    ) -> None:
        def host(x: Any) -> np.ndarray:
            return np.asarray(x, dtype=np.float64)

        self.objective = objective = target.objective
        self.target, self.modes, self.names = target, modes, names
        self.top = top
        self.of_recipe = isinstance(target, OfRecipe)
        own = target if isinstance(target, OfRecipe) else objective
        self.beta = self.effective_beta = float(own.beta)
        if isinstance(own, OfRecipe):
            self.effective_beta = float(own.effective_beta)
        self.reward, self.log_ref = host(own.reward), host(objective.log_ref)
        self.log_probs = host(target.log_probs)
        self.rounding = float(np.finfo(target.log_probs.dtype).eps)
        self.status = Status(int(target.status))
        self.unheld = bool(self.status & Status.NO_TARGET)
        self.failed = bool(np.isnan(self.log_probs).any())
        self.likeliest = likeliest_outcomes(modes, self.log_ref)
        self.mode_labels, sizes = np.unique(modes[modes >= 0], return_counts=True)
        self.mode_ref = host(mode_log_mass(objective.log_ref, modes))
        self.mode_log = host(mode_log_mass(target.log_probs, modes))
        self.mode_reward = self.by_mode(np.maximum, self.reward, modes >= 0, -math.inf)
        self.grouped = bool((sizes > 1).any())

        usable = (self.log_ref > -np.inf) & (self.reward > -np.inf)
        self.possible = usable
        # At a finite slope at infinity a better outcome that the reference lacks can have mass.
        if usable.any() and float(objective.divergence.slope_at_infinity) < math.inf:
            beyond = self.reward > self.reward[usable].max()
            self.possible = usable | (np.isneginf(self.log_ref) & beyond)
        counted = self.possible & (modes >= 0)
        self.highest = float(self.reward[counted].max()) if counted.any() else math.nan
        on_top = counted & (self.reward == self.highest)
        self.is_best = np.isin(self.mode_labels, modes[on_top])

    def by_mode(self, ufunc: np.ufunc, x: np.ndarray, members: np.ndarray, start: Any) -> Any:
        """``ufunc`` over the members of each mode, in time that does not grow with their number."""
        result = np.full(len(self.mode_labels), start)
        ufunc.at(result, np.searchsorted(self.mode_labels, self.modes[members]), x[members])
        return result

    def name_of(self, mode: int) -> str:
        """A mode goes by its likeliest outcome."""
        return self.names[self.likeliest[int(self.mode_labels[mode])]]

    def quoted(self, mode: int) -> str:
        return ("the mode of " if self.grouped else "") + quoted(self.name_of(mode))

    def numbers(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The fields of a summary that are measured, and the modes whose flip is among them."""
        target, modes = self.target, self.modes
        among = np.where(np.isin(modes, self.mode_labels[self.is_best]), modes, -1)

        def hill(log_probs: Any, labels: np.ndarray) -> float:
            if not (labels >= 0).any():
                return math.nan
            return float(effective_modes(log_probs, labels))

        forbidden = (self.log_ref > -np.inf) & np.isneginf(self.reward)
        reached = self.mean_reward(self.log_probs) if self.of_recipe else target.expected_reward
        reference_reward = self.tidy(self.mean_reward(self.log_ref), self.log_ref)
        flip, rivals = self.flip()
        mass, mass_ref = (_total(x[self.is_best]) for x in (self.mode_log, self.mode_ref))
        numbers: dict[str, Any] = {
            "divergence": self.divergence(),
            "beta": self.beta,
            "effective_beta": self.effective_beta,
            "num_outcomes": len(modes),
            "num_modes": len(self.mode_labels),
            "num_best_modes": int(self.is_best.sum()),
            "expected_reward": self.tidy(float(reached), self.log_probs),
            "expected_reward_reference": -math.inf if forbidden.any() else reference_reward,
            # Rounding makes a divergence of 0 negative.
            "reverse_kl": max(float(kl(target.log_probs, self.objective.log_ref)), 0.0),
            "forward_kl": max(float(kl(self.objective.log_ref, target.log_probs)), 0.0),
            "best_mass": math.exp(mass),
            "best_mass_reference": math.exp(mass_ref),
            "effective_modes": hill(target.log_probs, modes),
            "effective_modes_reference": hill(self.objective.log_ref, modes),
            "effective_best_modes": hill(target.log_probs, among),
            "effective_best_modes_reference": hill(self.objective.log_ref, among),
            "flip_beta": flip,
            "flip_modes": tuple(self.name_of(k) for k in rivals),
            "collapse_beta": math.nan if self.of_recipe else float(collapse_beta(self.objective)),
        }
        if self.failed:
            for name in ("expected_reward", "reverse_kl", "forward_kl", "best_mass"):
                numbers[name] = math.nan
        return numbers, rivals

    def divergence(self) -> str:
        if self.unheld:
            return "none"
        # Saturation, too, leaves an effective β of 0.
        if self.of_recipe and self.effective_beta == 0 and not self.status & Status.SATURATED:
            return "an entropy bonus alone"
        return self.objective.divergence.name

    def mean_reward(self, log_probs: np.ndarray) -> float:
        safe = np.where(np.isfinite(self.reward), self.reward, 0)
        return float((np.exp(log_probs) * safe).sum())

    def tidy(self, mean: float, log_probs: np.ndarray) -> float:
        """A mean reward; 0 where it is no more than what rounding leaves of terms that cancel."""
        safe = np.where(np.isfinite(self.reward), np.abs(self.reward), 0)
        size = float((np.exp(log_probs) * safe).sum())
        return 0.0 if abs(mean) < 16 * self.rounding * size else mean

    def order(self, log_probs: np.ndarray, log_ref: np.ndarray) -> np.ndarray:
        known = np.where(np.isnan(log_probs), -np.inf, log_probs)
        return np.lexsort((-log_ref, -known))[: self.top]

    def greedy(self) -> tuple[tuple[str, float], ...]:
        # What a recipe's target does as its β changes, its objective at this β does not tell.
        if self.failed or self.of_recipe or self.possible.sum() == 1:
            return ()
        log_probs = greedy_limit(self.objective).log_probs
        masses = np.exp(np.asarray(mode_log_mass(log_probs, self.modes), dtype=np.float64))
        order = np.argsort(-masses, kind="stable")[: self.top]
        return tuple((self.name_of(k), float(masses[k])) for k in order if masses[k] > 0)

    def flip(self) -> tuple[float, tuple[int, ...]]:
        """Where the only best mode overtakes its likeliest rival."""
        known = not (self.failed or self.of_recipe)
        if not known or self.is_best.sum() != 1 or len(self.mode_labels) < 2:
            return math.nan, ()
        best = int(self.is_best.argmax())
        ranked = np.lexsort((-self.mode_ref, -self.mode_log))
        rival = int(next(k for k in ranked if k != best))
        # What has neither mass in the reference nor in the target is no rival.
        if max(self.mode_log[rival], self.mode_ref[rival]) == -math.inf:
            return math.nan, ()
        i, j = (int(self.mode_labels[k]) for k in (best, rival))
        return float(flip_beta(self.objective, i, j, modes=self.modes)), (best, rival)

    def notes(self, numbers: dict[str, Any]) -> tuple[str, ...]:
        notes = []
        out_of_reach = np.isneginf(self.log_ref) & (self.reward > self.highest)
        if out_of_reach.any():
            i = int(np.where(out_of_reach, self.reward, -np.inf).argmax())
            notes.append(
                f"{quoted(self.names[i])} has a higher reward ({number(self.reward[i])}), but no "
                f"reference mass, and {self.objective.divergence.name} never leaves the "
                "reference's support"
            )
        threshold = numbers["collapse_beta"]
        if 0 < threshold < math.inf:
            side = "within" if self.beta <= threshold else "above"
            collapsed = f"all mass is on the best outcomes for β up to {threshold:.4g}"
            notes.append(f"{collapsed}; this β is {side}")
        return tuple(notes)

    def verdict(self, numbers: dict[str, Any], rivals: tuple[int, ...]) -> tuple[str, str]:
        """What happens at this β, and what no β changes."""
        if self.unheld:
            shown = "" if self.failed else "; what is shown is one end that training may come to"
            return f"there is no target{shown}", ""
        if self.failed:
            return "no target: the problem is invalid or was not solved", ""
        if self.possible.sum() == 1:
            only = self.names[int(self.possible.argmax())]
            return f"there is no choice: only {quoted(only)} is possible", ""
        best = np.flatnonzero(self.is_best)
        if not len(best):
            return "no mode is possible: all mass is on outcomes of no mode", ""
        kept = self.kept_ratios(best)
        moved = self.of_recipe and numbers["reverse_kl"] >= _UNMOVED
        if len(np.unique(self.reward[self.possible])) == 1 and not moved:
            same = "keeps the reference at every β: all possible outcomes have the same reward"
            return same, ""
        if numbers["reverse_kl"] < _UNMOVED:
            stays = f"stays at the reference: KL(π*‖π_ref) is {numbers['reverse_kl']:.2g} nats"
            return joined(stays, self.flip_sentence(numbers, rivals)), kept
        if len(best) > 1:
            return self.several(best, numbers), kept
        single = self.single(best[0], numbers["best_mass"])
        return joined(single, self.flip_sentence(numbers, rivals)), ""

    def several(self, best: np.ndarray, numbers: dict[str, Any]) -> str:
        several, mass = f"{len(best):,} equally rewarded modes", numbers["best_mass"]
        if mass < _REACHED:
            lost = percent(math.log1p(-mass))
            lower = f"of the mass is on outcomes of lower reward than the {several}"
            return f"misses the best reward: {lost} {lower}"
        largest = best[self.mode_log[best].argmax()]
        mode, log_mass = self.quoted(largest), float(self.mode_log[largest])
        now, before = numbers["effective_best_modes"], numbers["effective_best_modes_reference"]
        if math.exp(log_mass - _total(self.mode_log[best])) >= _COLLAPSED:
            return f"collapses: {percent(log_mass)} of the mass is on {mode}, one of {several}"
        amount = f"{now:.3g} effective modes among {several}"
        if now >= _KEPT * before or math.isnan(before):
            return f"keeps the reference's diversity: {amount}"
        return f"leans to {mode}: {amount}, where the reference has {before:.3g}"

    def single(self, best: int, mass: float) -> str:
        only = f"{self.quoted(best)}, which alone has the best reward ({number(self.highest)})"
        share = percent(float(self.mode_log[best]))
        if mass >= _COLLAPSED:
            return f"collapses: {share} of the mass is on {only}"
        if mass >= _REACHED:
            return f"leans: {share} of the mass is on {only}"
        return f"misses the best reward: only {share} of the mass is on {only}"

    def kept_ratios(self, best: np.ndarray) -> str:
        """Which ratios no β can change: those of equally rewarded modes that the reference has."""
        members = self.possible & (self.modes >= 0)
        in_ref = self.by_mode(np.logical_and, self.log_ref > -np.inf, members, True)
        least = self.by_mode(np.minimum, self.reward, members, math.inf)
        most = self.by_mode(np.maximum, self.reward, members, -math.inf)
        alike = (in_ref & (least == most))[best]
        uniform = self.mode_ref[best][alike]
        if len(uniform) < 2:
            return ""
        # An entropy bonus, or the tokens before, may weigh equal rewards apart.
        if self.of_recipe and not np.ptp(self.mode_log[best][alike] - uniform) < _RATIOS_DIFFER:
            return ""
        log_ratio = uniform.max() - uniform.min()
        if len(uniform) == 2:
            return f"equal rewards keep the reference's ratio ({ratio(log_ratio)}) at every β"
        return f"equal rewards keep the reference's ratios (up to {ratio(log_ratio)}) at every β"

    def flip_sentence(self, numbers: dict[str, Any], rivals: tuple[int, ...]) -> str:
        if not rivals:
            return ""
        best, rival = rivals
        flip = numbers["flip_beta"]
        if math.isfinite(flip):
            here = f"this β is {'below' if self.beta < flip else 'above'} that"
            return f"it overtakes {self.quoted(rival)} below β = {flip:.4g}, and {here}"
        before = self.mode_ref[best] - self.mode_ref[rival]
        if abs(before) < 1e-6:
            return f"the reference makes {self.quoted(rival)} as likely"
        if before > 0 and self.mode_ref[rival] > -math.inf:
            return f"the reference prefers it to {self.quoted(rival)} already"
        return ""


def joined(*sentences: str) -> str:
    return "; ".join(filter(None, sentences))


def _total(log_masses: np.ndarray) -> float:
    if np.isnan(log_masses).any():
        return math.nan
    return float(np.logaddexp.reduce(log_masses)) if len(log_masses) else -math.inf
