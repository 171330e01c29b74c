"""How likely each level of the reward is per prompt, from how often it was seen.

From the best level down, each is reached or missed by what is left: a chain of success rates, whose
laws over the prompts are those of ``success_rates``, one per step. So every step has its own spread
over the prompts and its own share of prompts that never get there. That some prompts are easy at
all steps is one normal number per prompt; how much it counts is integrated out as well.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kltarget.evidence._success_rates import SuccessRates, success_rates

_EDGES = np.concatenate(
    [
        np.linspace(-300, -24, 24)[:-1],
        np.linspace(-24, -8, 33)[:-1],
        np.linspace(-8, 8, 129)[:-1],
        np.linspace(8, 20, 25),
    ]
)
_NODES, _WIDTHS = (_EDGES[1:] + _EDGES[:-1]) / 2, np.diff(_EDGES)
_EASE = np.linspace(-3.0, 3.0, 17)
_COMMON = np.array([0.0, 0.3, 0.6, 0.85, 0.96])
"""What share of a step's variance is common to all steps."""
_MANY = 25
"""Of so many right and wrong samples the law over the prompts no longer matters."""
_LEAST = 1e-30


@dataclasses.dataclass(frozen=True, eq=False)
class LevelMasses:
    """The posterior of the levels' masses.

    Attributes:
        counts: samples of each level by prompt, the least reward first, ``[P, K]``.
        rates: of each level but the least among it and all below, the best first.
    """

    counts: np.ndarray
    rates: tuple[SuccessRates, ...]

    def log_masses(self, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws of the log-masses of prompts ``[D, S]``: ``[D, S, K]``; ``-inf`` for none.

        Args:
            which: prompts of each draw.
            rng: the randomness.
        """
        from scipy.special import log_expit

        patterns, times, pattern = self._patterns
        steps = [_Step.of(rates, patterns, i) for i, rates in enumerate(self.rates)]
        log_odds = np.empty((len(self.rates), *which.shape))
        for draw, prompts in enumerate(which):
            laws = [step.law(draw) for step in steps]
            common, ease = self._ease(steps, laws, times, pattern[prompts], draw, rng)
            for i, (step, law) in enumerate(zip(steps, laws, strict=True)):
                given = _given(law, _COMMON[common])[:, ease]
                log_odds[i, draw] = step.draw(draw, given, pattern[prompts], rng)
        found, left = [], np.zeros(())
        for row in log_odds:
            found.append(left + log_expit(row))
            left = left + log_expit(-row)
        found.append(left)
        return np.stack(found[::-1], axis=-1)

    @property
    def _patterns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Different rows of counts, how many prompts have each, and which each prompt has."""
        rows, which, times = np.unique(self.counts, axis=0, return_inverse=True, return_counts=True)
        return rows, times, which.ravel()

    def _ease(
        self,
        steps: list[_Step],
        laws: list[np.ndarray],
        times: np.ndarray,
        chosen: np.ndarray,
        draw: int,
        rng: np.random.Generator,
    ) -> tuple[int, np.ndarray]:
        """How much is common to the steps, and which ease each chosen prompt has."""
        log_joint = np.zeros((len(_COMMON), len(times), len(_EASE)), np.float32)
        for step, law in zip(steps, laws, strict=True):
            given = np.concatenate([_given(law, common) for common in _COMMON], axis=1)
            chance = step.chance(draw, given).reshape(-1, len(_COMMON), len(_EASE))
            log_joint += np.log(np.maximum(chance, _LEAST))[step.pair].swapaxes(0, 1)
        log_joint -= (_EASE**2 / 2).astype(np.float32)
        top = log_joint.max(-1, keepdims=True)
        weights = np.exp(log_joint - top).cumsum(-1)
        log_evidence = (np.log(weights[..., -1]) + top[..., 0]).astype(float) @ times
        evidence = np.exp(log_evidence - log_evidence.max()).cumsum()
        common = int(np.searchsorted(evidence, rng.uniform() * evidence[-1]))
        upto = weights[common][chosen]
        wanted = rng.uniform(size=(len(chosen), 1)) * upto[:, -1:]
        return common, np.minimum((upto < wanted).sum(1), len(_EASE) - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """One step of the chain: its law over the prompts in each draw, and what counts say of it.

    Attributes:
        rates: draws of the law.
        shares: of the nodes' cells, by different laws, ``[H, N]``.
        of_draw: which law each draw has, ``[D]``.
        pair: which pair of counts each pattern has, ``[U]``.
        likelihood: of the pairs at the nodes, relative to the greatest, ``[V, N]``.
        pairs: of right and all samples, ``[2, V]``.
    """

    rates: SuccessRates
    shares: np.ndarray
    of_draw: np.ndarray
    pair: np.ndarray
    likelihood: np.ndarray
    pairs: np.ndarray

    @property
    def missed(self) -> np.ndarray:
        """Of which pairs nothing is right, ``[V]``; their greatest likelihood is 1."""
        return self.pairs[0] == 0

    @classmethod
    def of(cls, rates: SuccessRates, patterns: np.ndarray, step: int) -> _Step:
        from scipy.special import betainc, expit, log_expit, ndtr

        level = patterns.shape[1] - 1 - step
        both = np.stack([patterns[:, level], patterns[:, : level + 1].sum(1)])
        pairs, pair = np.unique(both, axis=1, return_inverse=True)
        right, wrong = pairs[0][:, None], (pairs[1] - pairs[0])[:, None]
        log_likelihood = right * log_expit(_NODES) + wrong * log_expit(-_NODES)
        top = log_likelihood.max(1)
        laws = np.concatenate([rates.shapes, rates.normals], axis=1)
        different, of_draw = np.unique(laws, axis=0, return_inverse=True)
        inner = _EDGES[1:-1]
        a, b, mean, deviation = different.T[..., None]
        upto = np.where(np.isnan(a), ndtr((inner - mean) / deviation), betainc(a, b, expit(inner)))
        return cls(
            rates=rates,
            shares=np.maximum(np.diff(upto, axis=1, prepend=0.0, append=1.0), 0.0),
            of_draw=of_draw.ravel(),
            pair=pair.ravel(),
            likelihood=np.exp(log_likelihood - top[:, None]).astype(np.float32),
            pairs=pairs,
        )

    def law(self, draw: int) -> np.ndarray:
        """Shares of the nodes' cells in a draw, ``[N]``."""
        return self.shares[self.of_draw[draw]]

    def chance(self, draw: int, given: np.ndarray) -> np.ndarray:
        """Of each pair of counts, relative to its greatest, by laws ``[N, M]``: ``[V, M]``."""
        share = self.rates.impossible[draw]
        found = (1 - share) * (self.likelihood @ given)
        return found + np.where(self.missed, share, 0.0)[:, None]

    def draw(
        self, draw: int, given: np.ndarray, chosen: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Log-odds of chosen patterns ``[S]`` by a law of each, ``[N, S]``; ``-inf`` for never."""
        pair = self.pair[chosen]
        upto = (self.likelihood[pair] * given.T).cumsum(1)
        total = upto[:, -1]
        wanted = rng.uniform(size=(len(pair), 1)) * upto[:, -1:]
        node = np.minimum((upto < wanted).sum(1), len(_NODES) - 1)
        found = _NODES[node] + _WIDTHS[node] * (rng.uniform(size=len(pair)) - 0.5)
        right, samples = self.pairs[:, pair]
        many = np.minimum(right, samples - right) >= _MANY
        right, wrong = (rng.gamma(np.maximum(x, 1)) for x in (right, samples - right))
        found = np.where(many, np.log(right) - np.log(wrong), found)
        share = self.rates.impossible[draw]
        never = np.where(self.missed[pair], share, 0.0)
        chance = never / np.maximum(never + (1 - share) * total, _LEAST)
        return np.where(rng.uniform(size=len(pair)) < chance, -np.inf, found)


def _given(law: np.ndarray, common: float) -> np.ndarray:
    """A law ``[N]`` at each ease, ``[N, M]``, both normal in their quantiles (Gaussian copula)."""
    from scipy.special import ndtri

    middle = np.clip(law.cumsum() - law / 2, 1e-12, 1 - 1e-12)
    place = ndtri(middle)[:, None]
    apart = (place - np.sqrt(common) * _EASE) ** 2 / (2 * (1 - common))
    log_weight = place**2 / 2 - apart
    weight = law[:, None] * np.exp(log_weight - log_weight.max(0))
    return (weight / weight.sum(0)).astype(np.float32)


def level_masses(counts: np.ndarray, *, num_draws: int, rng: np.random.Generator) -> LevelMasses:
    """The posterior of the levels' masses given counts.

    Args:
        counts: samples of each level by prompt, the least reward first, ``[P, K]``.
        num_draws: draws of the hyper-parameters.
        rng: the randomness.
    """
    below = counts.cumsum(1)
    rates = [
        success_rates(counts[:, level], below[:, level], num_draws=num_draws, rng=rng)
        for level in range(counts.shape[1] - 1, 0, -1)
    ]
    return LevelMasses(counts, tuple(rates))
