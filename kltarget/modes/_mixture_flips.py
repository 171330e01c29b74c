"""Where the modes of a continuous target swap."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kltarget._core.numerics import double_precision
from kltarget.divergences import Divergence, ReverseKL
from kltarget.divergences._base import PowerDivergence
from kltarget.spaces import GaussianMixture
from kltarget.targets.grids._solve_on_grid import solve_on_grid
from kltarget.targets.mixtures._expansion import quadratic_of
from kltarget.targets.mixtures._power_tilt import power_tilt
from kltarget.targets.mixtures._tilt import existence_beta, tilt

_PER_DECADE = 8


def mode_flip_beta(
    mixture: GaussianMixture,
    reward: Any,
    i: int,
    j: int,
    divergence: Divergence | None = None,
    *,
    between: tuple[float, float],
    **grid: Any,
) -> float:
    """The β at which two components of the reference hold equal mass in the target.

    The target is that of ``max_π E_π[reward] − β·D(π‖p)``; a component's mass is what the target
    has of it, ``E_π[r_k(x)]`` with the responsibilities ``r_k`` of the reference. For reverse KL
    and ``t = 1/β`` its log-odds are ``log w_i/w_j + log Z_i(t) − log Z_j(t)``: for a linear reward
    ``aᵀx`` a parabola, ``log w_i/w_j + t aᵀ(μ_i − μ_j) + ½t² aᵀ(Σ_i − Σ_j)a``, so that modes of
    unequal width may swap twice.

    Quadratic rewards under reverse KL, and those with a peak under forward KL and its kind, are
    done in closed form in any dimension; anything else by :func:`solve_on_grid` in up to three.

    Args:
        mixture: the reference, without batch axes.
        reward: without batch axes; any reward of :func:`solve_on_grid`, such as a bump on a mode.
        i: index of a component.
        j: that of the other one.
        divergence: :class:`kltarget.ReverseKL` by default.
        between: the range of β in reward units per nat that is searched, eight points per decade.
        **grid: options of :func:`solve_on_grid`, such as ``bounds``.

    Returns:
        The largest such β, to rounding in closed form and to ``tol`` of the grid's masses
        otherwise; NaN where the log-odds do not change their sign on the range.

    Raises:
        ValueError: an index that is out of range, a range that is not one, batch axes; or the modes
            swap only where the target is too concentrated for double precision.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget import mixtures
        >>> p = kt.GaussianMixture(
        ...     jnp.log(jnp.array([0.7, 0.3])),
        ...     [[-2.0], [2.0]],
        ...     [0.5, 0.5],
        ...     covariance_type="spherical",
        ... )
        >>> up = kt.mixtures.QuadraticReward(vector=[0.3])
        >>> flip = mixtures.mode_flip_beta(p, up, 0, 1, between=(0.01, 100.0))
        >>> print(f"{flip:.6f} {0.3 * 4 / jnp.log(0.7 / 0.3):.6f}")
        1.416267 1.416267
    """
    from scipy.optimize import brentq

    kind: Any = ReverseKL() if divergence is None else divergence
    for name, given in (("mixture", mixture), ("reward", reward)):
        if batch := getattr(given, "batch_shape", ()):
            raise ValueError(f"{name} must have no batch axes, got {batch}")
    for name, k in (("i", i), ("j", j)):
        if not 0 <= k < mixture.num_components:
            raise ValueError(f"{name} must be from 0 to {mixture.num_components - 1}, got {k}")
    low, high = between
    if not 0 < low < high < math.inf:
        raise ValueError(f"between must be two numbers above 0, the smaller first, got {between}")
    with double_precision():
        mixture, reward, kind = jax.tree.map(_doubled, (mixture, reward, kind))
        log_masses, low, limit = _masses(mixture, reward, kind, between, grid)
        if low >= high:
            raise ValueError(f"there is no target up to beta = {low:.6g}: between must go beyond")
        count = max(2, math.ceil(_PER_DECADE * math.log10(high / low)) + 1)
        scan = np.linspace(math.log(low), math.log(high), count)

        def log_odds(log_beta: Any) -> np.ndarray:
            masses = np.asarray(log_masses(np.exp(log_beta)))
            with np.errstate(invalid="ignore"):
                return masses[..., i] - masses[..., j]

        signs = np.sign(log_odds(scan))
        lost = np.isnan(signs)
        if limit is not None and lost.any() and not lost.all():
            # Below some beta a target is too concentrated for double precision; its limit is known.
            first = int(np.argmin(lost))
            signs[:first] = np.sign(limit[i] - limit[j])
            if signs[first] == -signs[0] and (signs[first:] == signs[first]).all():
                raise ValueError(
                    f"the modes swap below beta = {math.exp(scan[first]):.3g}, where the target is "
                    "too concentrated on the peak of the reward to be told from a point"
                )
        # NaN, where there is no target, compares false.
        swaps = np.flatnonzero((signs[1:] * signs[:-1] <= 0) & (signs[1:] != signs[:-1]))
        if not swaps.size:
            return math.nan
        at = swaps[-1]
        root: Any = brentq(
            lambda x: float(log_odds(np.asarray(x))), scan[at], scan[at + 1], xtol=1e-13
        )
        return math.exp(root)


def _doubled(x: Any) -> Any:
    """Numbers in double precision; a reward may be a function."""
    return jnp.asarray(np.asarray(x), jnp.float64) if hasattr(x, "dtype") else x


def _masses(
    mixture: GaussianMixture, reward: Any, divergence: Divergence, between: Any, grid: Any
) -> tuple[Callable[[np.ndarray], Any], float, np.ndarray | None]:
    """The components' log-masses as a function of β, and from where on they exist.

    Third come those of the limit of small β, where the function does not reach that far.
    """
    low, high = between
    quadratic = quadratic_of(reward)
    if quadratic is not None and isinstance(divergence, ReverseKL):
        # There is no target at the bound itself, which is an eigenvalue with its rounding.
        low = max(low, float(existence_beta(mixture, quadratic)) * (1 + 1e-9))
        return jax.jit(lambda beta: tilt(mixture, quadratic, beta).component_log_mass), low, None
    power = isinstance(divergence, PowerDivergence) and np.all(np.asarray(divergence._alpha) < 1)
    bowl = quadratic is not None and np.linalg.eigvalsh(np.asarray(quadratic.matrix)).max() < 0
    if bowl and power:

        def in_closed_form(beta: np.ndarray) -> Any:
            return power_tilt(mixture, quadratic, beta, divergence).component_log_mass

        assert quadratic is not None
        peak = np.linalg.solve(np.asarray(quadratic.matrix), -np.asarray(quadratic.vector))
        return in_closed_form, low, np.asarray(mixture.log_responsibilities(peak))
    betas = np.geomspace(low, high, 2 + math.ceil(math.log10(high / low)))
    found = solve_on_grid(mixture, reward, betas, divergence, **grid)

    def on_grid(beta: np.ndarray) -> Any:
        return solve_on_grid(mixture, reward, beta, divergence, grid=found).component_log_mass

    return jax.jit(on_grid), low, None
