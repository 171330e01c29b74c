"""Boxes that hold a reference and its target, and where in them the mass is."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import scipy.stats

from kltarget.divergences import Divergence
from kltarget.divergences._base import PowerDivergence
from kltarget.objectives._point_rewards import LogDensityReward, QuadraticReward
from kltarget.spaces import GaussianMixture
from kltarget.targets.mixtures._expansion import quadratic_of

Peaks = list[tuple[np.ndarray, np.ndarray]]
"""Places and scales, each ``[d]``, of what a grid must not overlook."""


def is_exponential(divergence: Divergence) -> bool:
    """Whether density ratios grow exponentially with the reward: reverse KL."""
    gamma = getattr(divergence, "_gamma", None) if isinstance(divergence, PowerDivergence) else None
    return gamma is not None and bool((np.asarray(gamma) == 0).any())


def components(mixture: GaussianMixture, least: float) -> Peaks:
    """Means and standard deviations of the components that count."""
    weights, means, factors = (np.asarray(x, np.float64) for x in jax.tree.leaves(mixture))
    scales = np.sqrt(np.square(factors).sum(-1))
    return [(means[k], scales[k]) for k in np.flatnonzero(weights > np.log(least))]


def tilted(
    mixture: GaussianMixture, reward: QuadraticReward, beta: np.ndarray, least: float, strict: bool
) -> Peaks:
    """Means and standard deviations of the components of the reverse-KL targets that count.

    ``w_k N(μ, Σ) e^{r/β}`` with ``r = ½xᵀMx + vᵀx`` is a Gaussian of precision ``P = Σ⁻¹ − M/β``,
    mean ``P⁻¹b`` and mass ``∝ w_k |ΣP|^{−½} exp(½bᵀP⁻¹b − ½μᵀΣ⁻¹μ)``, ``b = Σ⁻¹μ + v/β``.

    Raises:
        ValueError: with ``strict``, where P is not positive definite and there is no target.
    """
    weights, means, factors = (np.asarray(x, np.float64) for x in jax.tree.leaves(mixture))
    matrix, vector = (np.asarray(x, np.float64) for x in (reward.matrix, reward.vector))
    kept = np.flatnonzero(weights > -np.inf)
    weights, means, factors = weights[kept], means[kept], factors[kept]
    bent = np.swapaxes(factors, -1, -2) @ matrix @ factors
    critical = np.linalg.eigvalsh(bent).max()
    if strict and not (beta > critical).all():
        raise ValueError(
            f"beta must be above {critical:.10g}, got {beta.min():.10g}: below it the reward grows "
            "faster than the reference falls off and no target can be normalised; raise beta, or "
            "give bounds with truncate=True, which makes them the space"
        )
    found: Peaks = []
    for b in np.unique(beta[beta > critical]):
        inverse = np.linalg.inv(factors)
        precision = np.swapaxes(inverse, -1, -2) @ inverse
        pulled = np.einsum("kij,kj->ki", precision, means)
        lean = pulled + vector / b
        covariance = np.linalg.inv(precision - matrix / b)
        center = np.einsum("kij,kj->ki", covariance, lean)
        log_mass = (
            weights
            + np.linalg.slogdet(covariance @ precision)[1] / 2
            + (lean * center).sum(-1) / 2
            - (means * pulled).sum(-1) / 2
        )
        heavy = log_mass > log_mass.max() + np.log(least)
        scale = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
        found += [(center[k], scale[k]) for k in np.flatnonzero(heavy)]
    return found


def default_peaks(
    density: Any, reward: Any, beta: np.ndarray, divergence: Divergence, tol: float, truncate: bool
) -> Peaks:
    """What is known of where reference and target have their mass."""
    if not isinstance(density, GaussianMixture):
        return []
    least, quadratic = tol * 1e-3, quadratic_of(reward)
    peaks = components(density, least)
    bounded = bool((np.asarray(divergence.slope_at_infinity) < np.inf).all())
    if quadratic is not None and not bounded:
        strict = is_exponential(divergence) and not truncate
        peaks += tilted(density, quadratic, beta, least, strict)
    if isinstance(reward, LogDensityReward):
        peaks += components(reward.mixture, least)
    return peaks


def box_around(peaks: Peaks, tol: float) -> np.ndarray:
    """A box ``[d, 2]`` outside of which Gaussians have less than a hundredth of ``tol``."""
    size = len(peaks[0][0])
    reach = scipy.stats.norm.isf(tol / (200 * size)) + 0.5
    low = np.min([place - reach * scale for place, scale in peaks], axis=0)
    high = np.max([place + reach * scale for place, scale in peaks], axis=0)
    return np.stack([low, high], -1)
