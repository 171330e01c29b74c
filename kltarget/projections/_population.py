"""What is projected: a density, a way to take expectations under it, or both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import worded
from kltarget._core.matrices import times
from kltarget._core.numerics import as_float, log_sum_exp
from kltarget._core.pytrees import pytree
from kltarget._core.quadrature import LEVELS, NormalLattice, Rule, Table, box
from kltarget.spaces import GaussianMixture
from kltarget.spaces._gaussian_mixture import log_joint, unchecked
from kltarget.targets.mixtures._tilt import MixtureTarget


@pytree
class Density:
    """A log-density in coordinates ``y`` with ``x = center + factor·y``.

    Args:
        mixture: a mixture of the coordinates y, if that is what it is.
        center: shape ``[d]``.
        factor: lower triangular, shape ``[d, d]``.
        log_total: what is to be taken from the function's values.
        function: of points ``x [N, d]`` otherwise; None where only masses are known.
    """

    mixture: GaussianMixture | None
    center: Float[Array | np.ndarray, "d"]
    factor: Float[Array | np.ndarray, "d d"]
    log_total: Float[Array, ""] | float
    function: Callable[[Array], Array] | None = dataclasses.field(metadata={"static": True})

    def __call__(self, y: Float[Array, "N d"]) -> Float[Array, "N"]:
        """Log-densities; as if all were 1 in the user's coordinates where none is known."""
        if self.mixture is not None:
            return log_sum_exp(log_joint(self.mixture, y))[..., 0]
        factor = jnp.asarray(self.factor)
        volume = jnp.log(jnp.diagonal(factor)).sum()
        if self.function is None:
            return jnp.full(len(y), volume)
        x = jnp.asarray(self.center)[None] + times(factor[None], y)
        with jax.numpy_dtype_promotion("standard"):
            values = self.function(x)
        return values.astype(y.dtype) + (volume - self.log_total)


@dataclasses.dataclass(frozen=True)
class Population:
    """A target in coordinates in which its mean is 0 and its covariance 1.

    Args:
        density: its log-density.
        rules: rules for expectations under it, from the coarsest to the finest: in the components'
            own coordinates for a mixture in few dimensions, of points and masses otherwise.
        cloud: some of its points ``[N, d]``.
        masses: their masses ``[N]``.
        normalizer_error: estimated error of ``log_total``.
        dtype: of what the user gave; that of the default float is any wider.
    """

    density: Density
    rules: tuple[Rule, ...]
    cloud: np.ndarray
    masses: np.ndarray
    normalizer_error: float
    dtype: Any

    @property
    def dim(self) -> int:
        """The number d of dimensions."""
        return self.cloud.shape[1]

    @property
    def has_density(self) -> bool:
        """Whether a log-density is known."""
        return self.density.mixture is not None or self.density.function is not None

    def restore(self, mixture: GaussianMixture) -> GaussianMixture:
        """A mixture of these coordinates as one of the user's."""
        factor = np.asarray(self.density.factor)
        means = np.asarray(mixture.means) @ factor.T + np.asarray(self.density.center)
        factors = factor @ np.asarray(mixture.cholesky)
        return unchecked(np.asarray(mixture.log_weights), means, factors)


def population(
    target: Any,
    points: ArrayLike | None,
    log_masses: ArrayLike | None,
    bounds: Any,
    num_points: int,
    rng: np.random.Generator,
) -> Population:
    """Reads what the user gave, in double precision."""
    if isinstance(target, MixtureTarget):
        target = target.mixture
    _require_no_atom(getattr(target, "atom_mass", 0.0))
    if isinstance(target, GaussianMixture):
        return _of_mixture(target, num_points, rng)
    if isinstance(target, (tuple, list)):
        if len(target) != 2 or points is not None:
            raise ValueError("a target of points is a pair (points, log_masses)")
        target, (points, log_masses) = None, target
    elif points is None and hasattr(target, "points"):
        points, log_masses = _table_of(target)
    function: Any = getattr(target, "log_prob", target)
    if not (function is None or callable(function)):
        raise TypeError(
            "target must be a GaussianMixture, a pair (points, log_masses), a log-density or have "
            f"a method log_prob, got {type(target).__name__}"
        )
    if points is not None:
        return _of_points(function, points, log_masses)
    if bounds is None:
        raise ValueError("a log-density needs bounds, or points that are distributed as it says")
    if function is None:
        raise TypeError("give a target, or a pair (points, log_masses)")
    return _of_function(function, np.asarray(bounds, np.float64))


def _table_of(target: Any) -> tuple[Any, Any]:
    """Points and masses of a discretised or sampled target, whose last outcome may be an atom."""
    masses = np.asarray(target.target.log_probs, np.float64)
    count = np.shape(target.points)[0]
    if masses.ndim != 1:
        raise ValueError(f"the target has batch shape {masses.shape[:-1]}: project one at a time")
    _require_no_atom(np.exp(masses[count:]).sum())
    return target.points, masses[:count]


def _require_no_atom(mass: Any) -> None:
    mass = np.max(np.asarray(mass, np.float64))
    if mass > 0:
        raise ValueError(
            f"the target has an atom of mass {mass:.4g}, to which no mixture of Gaussians has a "
            "finite divergence"
        )


def _of_mixture(target: GaussianMixture, num_points: int, rng: np.random.Generator) -> Population:
    if target.batch_shape:
        raise ValueError(f"target has batch shape {target.batch_shape}: project one at a time")
    log_weights, means, factors = (np.asarray(x, np.float64) for x in jax.tree.leaves(target))
    kept = log_weights > -np.inf
    log_weights, means, factors = log_weights[kept], means[kept], factors[kept]
    weights = np.exp(log_weights - np.logaddexp.reduce(log_weights))
    center = weights @ means
    spread = factors @ factors.swapaxes(-1, -2)
    apart = means - center
    covariance = np.einsum("k,kij->ij", weights, spread) + (weights * apart.T) @ apart
    factor = np.linalg.cholesky(covariance)
    places, spreads = np.linalg.solve(factor, apart.T).T, np.linalg.solve(factor, factors)
    # NumPy arrays keep double precision and start no programs.
    inner = unchecked(np.log(weights), places, spreads)
    density = Density(inner, center, factor, 0.0, None)
    size = means.shape[1]
    if size in LEVELS:
        rules = tuple(NormalLattice.of(step, radius, size) for step, radius in LEVELS[size])
        z, shares = rules[0].all()
        cloud = np.concatenate([m + z @ f.T for m, f in zip(places, spreads, strict=True)])
        masses = np.outer(weights, shares).ravel()
    else:
        which = rng.choice(len(weights), size=num_points, p=weights)
        noise = rng.normal(size=(num_points, size))
        cloud = places[which] + np.einsum("nij,nj->ni", spreads[which], noise)
        masses = np.full(num_points, 1 / num_points)
        rules = (Table.of(cloud, masses),)
    return Population(density, rules, cloud, masses / masses.sum(), 0.0, target.means.dtype)


def _of_points(function: Any, points: Any, log_masses: Any) -> Population:
    dtype = as_float(points).dtype
    x = np.asarray(points, np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"points has shape {x.shape}: it needs shape [N, d]")
    logs = np.zeros(len(x)) if log_masses is None else np.asarray(log_masses, np.float64)
    if logs.shape != (len(x),):
        raise ValueError(
            f"log_masses has shape {logs.shape}, but points {x.shape}: it needs one mass per "
            f"point, shape ({len(x)},)"
        )
    if not np.isfinite(x).all() or np.isnan(logs).any() or not np.isfinite(logs.max()):
        raise ValueError("points must be finite, and log_masses below +inf with some mass")
    masses = np.exp(logs - logs.max())
    x, masses = x[masses > 0], masses[masses > 0] / masses.sum()
    return _standardised(function, x, (masses,), 0.0, 0.0, dtype)


def _of_function(function: Callable[..., Any], bounds: np.ndarray) -> Population:
    if bounds.ndim != 2 or bounds.shape[1] != 2 or len(bounds) not in LEVELS:
        raise ValueError(
            f"bounds has shape {bounds.shape}: it needs shape [d, 2] with d up to {max(LEVELS)}; "
            "in more dimensions give points"
        )
    if not (np.isfinite(bounds).all() and (bounds[:, 0] < bounds[:, 1]).all()):
        raise ValueError("bounds must be finite, the lower below the upper")
    x, fine, coarse = box(bounds)
    with jax.numpy_dtype_promotion("standard"):
        values = np.asarray(function(jnp.asarray(x)), np.float64)
    if values.shape != (len(x),) or np.isnan(values).any() or np.isposinf(values).any():
        raise ValueError(
            f"the target must give one log-density below +inf per point: of points {x.shape} it "
            f"gave shape {values.shape}"
        )
    top = values.max()
    density, rules = np.exp(values - top), (coarse, fine)
    totals = [float((rule * density).sum()) for rule in rules]
    masses = [rule * density / t for rule, t in zip(rules, totals, strict=True)]
    edge = ((x == bounds[:, 0]) | (x == bounds[:, 1])).any(1)
    if density[edge].max() > 1e-6:
        raise ValueError(
            "bounds cut the target off: its density at their edge is "
            f"{density[edge].max():.2g} of the largest; give wider ones"
        )
    log_total = top + np.log(totals[1])
    error = abs(np.log(totals[0] / totals[1]))
    return _standardised(function, x, tuple(masses), log_total, error, np.dtype(np.float64))


def _standardised(
    function: Any,
    x: np.ndarray,
    rules: Sequence[np.ndarray],
    log_total: float,
    error: float,
    dtype: Any,
) -> Population:
    masses = rules[-1]
    center = masses @ x
    apart = x - center
    with worded("the target has no extent in some direction"):
        factor = np.linalg.cholesky((masses * apart.T) @ apart)
    y = np.linalg.solve(factor, apart.T).T
    density = Density(None, center, factor, log_total, function)
    tables = tuple(Table.of(y[rule > 0], rule[rule > 0]) for rule in rules)
    first = rules[0] > 0
    return Population(density, tables, y[first], rules[0][first], error, dtype)
