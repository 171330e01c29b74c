"""Mixtures of Gaussians as distributions on real vectors."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from kltarget._core import checks
from kltarget._core.matrices import cholesky, diagonal, inverse_lower, product, times, transposed
from kltarget._core.numerics import as_float, log_sum_exp, widest, working_dtype
from kltarget._core.page import Page, Paragraph, Table
from kltarget._core.pytrees import made, register
from kltarget._core.short_repr import short_repr
from kltarget._core.words import counted, number

if TYPE_CHECKING:
    import pandas as pd

COVARIANCE_TYPES = ("full", "diag", "spherical")
_SHOWN, _SHOWN_AXES = 10, 4
"""Rows and dimensions of a page."""


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class GaussianMixture:
    """A mixture of K Gaussians in d dimensions, ``p(x) = Σ_k w_k N(x; μ_k, Σ_k)``.

    The fields keep their own batch axes and are broadcast against each other.

    Args:
        log_weights: natural logarithms of the weights, which sum to one, shape ``[*batch, K]``;
            ``-inf`` leaves a component out.
        means: shape ``[*batch, K, d]``.
        covariances: shape ``[*batch, K, d, d]``, symmetric and positive definite; variances
            ``[*batch, K, d]`` with ``covariance_type="diag"``, ``[*batch, K]`` with
            ``"spherical"``.
        cholesky: lower triangular factors ``[*batch, K, d, d]`` with positive diagonals, instead
            of ``covariances``.
        covariance_type: ``"full"``, ``"diag"`` or ``"spherical"``, as scikit-learn calls them.
            Factors are kept in full whatever the type.

    Attributes:
        log_weights: shape ``[*batch, K]``.
        means: shape ``[*batch, K, d]``.
        cholesky: lower triangular factors of the covariances, shape ``[*batch, K, d, d]``.

    Raises:
        TypeError: complex numbers, or neither or both of ``covariances`` and ``cholesky``.
        ValueError: shapes that do not fit; and outside a trace: weights that do not sum to one, a
            mean that is not finite, a covariance that is not positive definite. The message names
            the argument and the first bad index. Under a trace nothing is raised: densities of
            singular components are NaN.

    Example:
        >>> import jax, jax.numpy as jnp, kltarget as kt
        >>> p = kt.GaussianMixture(
        ...     jnp.log(jnp.array([0.7, 0.3])),
        ...     [[-2.0], [2.0]],
        ...     [0.64, 0.36],
        ...     covariance_type="spherical",
        ... )
        >>> p.num_components, p.dim
        (2, 1)
        >>> print(f"{p.mean[0]:.4f} {p.covariance[0, 0]:.4f}")
        -0.8000 3.9160
        >>> print(jnp.exp(p.log_prob(jnp.array([[-2.0], [2.0]]))).round(4))
        [0.3491 0.1995]
        >>> p.sample(key=jax.random.key(0), num_samples=5).shape
        (5, 1)
    """

    log_weights: Float[Array, "*#batch K"]
    means: Float[Array, "*#batch K d"]
    cholesky: Float[Array, "*#batch K d d"]

    def __init__(
        self,
        log_weights: ArrayLike | Any,
        means: ArrayLike | Any,
        covariances: ArrayLike | Any = None,
        *,
        cholesky: ArrayLike | Any = None,
        covariance_type: str = "full",
    ) -> None:
        if (covariances is None) == (cholesky is None):
            raise TypeError("give one of covariances and cholesky")
        if covariance_type not in COVARIANCE_TYPES:
            listed = ", ".join(map(repr, COVARIANCE_TYPES))
            raise ValueError(f"covariance_type must be one of {listed}, got {covariance_type!r}")
        spread_name = "covariances" if cholesky is None else "cholesky"
        spread = covariances if cholesky is None else cholesky
        given = {"log_weights": log_weights, "means": means, spread_name: spread}
        weights, centers, spread = checks.float_arguments(**given).values()
        kind = "full" if cholesky is not None else covariance_type
        _require_shapes(weights, centers, spread, spread_name, kind)
        factors = spread if cholesky is not None else _factors(spread, kind, centers.shape[-1])
        for name, x in (("log_weights", weights), ("means", centers), ("cholesky", factors)):
            object.__setattr__(self, name, x)
        with checks.worded(
            f"the batch axes of log_weights {weights.shape[:-1]}, means {centers.shape[:-2]} and "
            f"{spread_name} {factors.shape[:-3]} do not broadcast"
        ):
            _ = self.batch_shape
        if not checks.traced(weights, centers, factors):
            self._check_values(spread_name)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape ``*batch`` that the fields broadcast to."""
        return jnp.broadcast_shapes(
            self.log_weights.shape[:-1], self.means.shape[:-2], self.cholesky.shape[:-3]
        )

    @property
    def num_components(self) -> int:
        """The number K of Gaussians."""
        return self.log_weights.shape[-1]

    @property
    def dim(self) -> int:
        """The number d of dimensions."""
        return self.means.shape[-1]

    @property
    def covariances(self) -> Float[Array, "*batch K d d"]:
        """The components' covariances."""
        wide = self.cholesky.astype(working_dtype(self.cholesky.dtype))
        return product(wide, transposed(wide)).astype(self.cholesky.dtype)

    @property
    def mean(self) -> Float[Array, "*batch d"]:
        """The mean of the whole mixture."""
        weights, means, _ = self._broadcast()
        return _moments(weights, means)[0].astype(self.means.dtype)

    @property
    def covariance(self) -> Float[Array, "*batch d d"]:
        """The covariance of the whole mixture."""
        weights, means, factors = self._broadcast()
        _, between = _moments(weights, means)
        share = jnp.exp(weights)[..., None, None]
        within = (share * product(factors, transposed(factors))).sum(-3)
        return (within + between).astype(self.means.dtype)

    def log_prob(self, x: ArrayLike) -> Float[Array, "*batch"]:
        """The log-density.

        Args:
            x: points, shape ``[..., d]``, whose leading axes broadcast against ``*batch``: N points
                for each of B mixtures are ``[N, 1, d]``.

        Returns:
            ``log p(x)``, of the shape of the leading axes. Differentiable in ``x`` and all fields.

        Raises:
            ValueError: the last axis is not that of the dimensions.
        """
        return log_sum_exp(self._log_joint(x))[..., 0].astype(self._dtype(x))

    def log_responsibilities(self, x: ArrayLike) -> Float[Array, "*batch K"]:
        """Log-probabilities of the components given points ``[..., d]``, shape ``[..., K]``."""
        joint = self._log_joint(x)
        total = log_sum_exp(joint)
        held = jnp.isfinite(total)
        share = joint - jnp.where(held, total, jnp.zeros_like(total))
        return jnp.where(held, share, jnp.nan).astype(self._dtype(x))

    def sample(
        self, *, key: PRNGKeyArray, num_samples: int
    ) -> Float[Array, "num_samples *batch d"]:
        """Independent draws.

        Args:
            key: a JAX random key.
            num_samples: how many, per mixture.

        Returns:
            Points, shape ``[num_samples, *batch, d]``.
        """
        which_key, noise_key = jax.random.split(checks.typed_key(key))
        weights, means, factors = self._broadcast()
        shape = (num_samples, *self.batch_shape)
        which = jax.random.categorical(which_key, weights, axis=-1, shape=shape)
        noise = jax.random.normal(noise_key, (*shape, self.dim), means.dtype)
        chosen = jax.nn.one_hot(which, self.num_components, dtype=bool)
        center = jnp.where(chosen[..., None], means[None], 0.0).sum(-2)
        factor = jnp.where(chosen[..., None, None], factors[None], 0.0).sum(-3)
        return (center + times(factor, noise)).astype(self.means.dtype)

    __repr__ = short_repr

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each component of each mixture.

        Returns:
            Columns ``row`` if there is a batch axis (``row 0``, ``row 1``, … if there are several),
            ``component``, ``weight``, ``mean 0``, …, and ``std 0``, …, one per dimension.

        Raises:
            TypeError: under a trace, where there are no numbers.

        Example:
            >>> import jax.numpy as jnp, kltarget as kt
            >>> even = jnp.log(jnp.full(2, 0.5))
            >>> p = kt.GaussianMixture(
            ...     even, [[-2.0], [2.0]], [0.64, 0.36], covariance_type="spherical"
            ... )
            >>> print(p.to_dataframe().round(2).to_string(index=False))
             component  weight  mean 0  std 0
                     0     0.5    -2.0    0.8
                     1     0.5     2.0    0.6
        """
        import pandas as pd

        if checks.traced(self.log_weights, self.means, self.cholesky):
            raise TypeError("to_dataframe needs numbers: call it outside of jit, vmap and grad")
        weights, means, factors = (np.asarray(x, np.float64) for x in self._broadcast())
        spread = np.sqrt(np.square(factors).sum(-1))
        shape = weights.shape
        rows = ["row"] if len(shape) == 2 else [f"row {axis}" for axis in range(len(shape) - 1)]
        columns = dict(zip([*rows, "component"], np.indices(shape), strict=True))
        columns["weight"] = np.exp(weights)
        columns |= {f"mean {i}": means[..., i] for i in range(self.dim)}
        columns |= {f"std {i}": spread[..., i] for i in range(self.dim)}
        return pd.DataFrame({name: x.ravel() for name, x in columns.items()})

    def _repr_html_(self) -> str | None:
        # Under a trace there are no numbers to show, and the line of text is shown instead.
        if checks.traced(self.log_weights, self.means, self.cholesky):
            return None
        frame = self.to_dataframe()
        told = [name for name in frame if not name.startswith(("mean", "std"))]
        told += [f"{x} {i}" for x in ("mean", "std") for i in range(min(self.dim, _SHOWN_AXES))]
        rows = [tuple(told)]
        for row in frame[told].head(_SHOWN).itertuples(index=False):
            cells = zip(told, row, strict=True)
            rows.append(tuple(f"{x:.4f}" if name == "weight" else number(x) for name, x in cells))
        size = counted(self.num_components, "component")
        title = f"GaussianMixture, {size} in {counted(self.dim, 'dimension')}"
        left = [
            f"{counted(more, f'more {what}')}"
            for more, what in (
                (len(frame) - _SHOWN, "component"),
                (self.dim - _SHOWN_AXES, "dimension"),
            )
            if more > 0
        ]
        more = [Paragraph(f"and {' and '.join(left)}", faint=True)] if left else []
        return Page([Paragraph("", label=title), Table(rows, "r" * len(told)), *more]).to_html()

    def _log_joint(self, x: ArrayLike) -> Array:
        """``log w_k N(x; μ_k, Σ_k)``, shape ``[..., K]``, in the working dtype."""
        points = checks.float_argument(x, "x")
        if points.ndim == 0 or points.shape[-1] != self.dim:
            raise ValueError(
                f"x has shape {points.shape}, but the mixture has {self.dim} dimensions: its last "
                "axis must have that size"
            )
        return log_joint(self, points.astype(working_dtype(self._dtype(points))))

    def _dtype(self, x: ArrayLike) -> Any:
        return widest(as_float(x).dtype, self.means.dtype)

    def _broadcast(self) -> tuple[Array, Array, Array]:
        """The fields with all batch axes, in the working dtype."""
        dtype, batch, size = working_dtype(self.means.dtype), self.batch_shape, self.dim
        shape = (*batch, self.num_components)
        return (
            jnp.broadcast_to(self.log_weights.astype(dtype), shape),
            jnp.broadcast_to(self.means.astype(dtype), (*shape, size)),
            jnp.broadcast_to(self.cholesky.astype(dtype), (*shape, size, size)),
        )

    def _check_values(self, spread_name: str) -> None:
        total = np.exp(np.asarray(self.log_weights, np.float64)).sum(-1)
        off = ~(np.abs(total - 1) <= checks.mass_tolerance(self.log_weights.dtype))
        if off.any():
            at = checks.first_index(off)
            raise ValueError(
                f"log_weights is not normalised: the weights sum to {total[at]:.10g}"
                f"{checks.at_index(at)}, not 1; pass kltarget.normalize(log_weights)"
            )
        checks.raise_first(
            "means", self.means, ~np.isfinite(np.asarray(self.means, np.float64)), "must be finite"
        )
        factors = np.asarray(self.cholesky, np.float64)
        scales = np.diagonal(factors, axis1=-2, axis2=-1)
        bad = ~((scales > 0).all(-1) & np.isfinite(factors).all((-1, -2)))
        if bad.any():
            given = spread_name == "cholesky"
            what = "have positive diagonals" if given else "be positive definite"
            at = checks.at_index(checks.first_index(bad))
            raise ValueError(
                f"{spread_name} must {what}, but that{at} is not so; a component without extent in "
                "some direction has no density: add a small variance"
            )
        if np.triu(factors, 1).any():
            at = checks.at_index(checks.first_index(np.triu(factors, 1).any((-1, -2))))
            raise ValueError(f"cholesky must be lower triangular, but that{at} is not")


register(GaussianMixture, ("log_weights", "means", "cholesky"))


def unchecked(log_weights: Any, means: Any, factors: Any) -> GaussianMixture:
    """A mixture from arrays that are known to be one."""
    return made(GaussianMixture, log_weights=log_weights, means=means, cholesky=factors)


@jax.jit
def log_joint(mixture: GaussianMixture, x: Array) -> Array:
    weights, means, factors = (y.astype(x.dtype) for y in mixture._broadcast())
    size, count = mixture.dim, mixture.num_components
    lead = jnp.broadcast_shapes(x.shape[:-1], mixture.batch_shape)
    centers = jnp.broadcast_to(means, (*lead, count, size))
    apart = jnp.broadcast_to(x, (*lead, size))[..., None, :] - centers
    whitening = jnp.broadcast_to(inverse_lower(factors), (*lead, count, size, size))
    squared = jnp.square(times(whitening, apart)).sum(-1)
    scale = jnp.log(diagonal(factors)).sum(-1) + size / 2 * math.log(2 * math.pi)
    return jnp.broadcast_to(weights - scale, squared.shape) - squared / 2


def _moments(weights: Array, means: Array) -> tuple[Array, Array]:
    """The mean of the components' means and their covariance."""
    share = jnp.exp(weights)[..., None]
    mean = (share * means).sum(-2)
    apart = means - mean[..., None, :]
    return mean, product(transposed(share * apart), apart)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _factors(spread: Array, kind: str, size: int) -> Array:
    wide = spread.astype(working_dtype(spread.dtype))
    if kind == "full":
        return cholesky((wide + transposed(wide)) / 2).astype(spread.dtype)
    scales = jnp.sqrt(wide)[..., None] if kind == "spherical" else jnp.sqrt(wide)
    scales = jnp.broadcast_to(scales, (*scales.shape[:-1], size))
    eye = jnp.broadcast_to(jnp.eye(size, dtype=bool), (*scales.shape, size))
    return jnp.where(eye, scales[..., None], 0.0).astype(spread.dtype)


def _require_shapes(weights: Array, means: Array, spread: Array, name: str, kind: str) -> None:
    if weights.ndim == 0 or weights.shape[-1] == 0:
        raise ValueError(f"log_weights needs an axis of components, got shape {weights.shape}")
    count = weights.shape[-1]
    if means.ndim < 2 or means.shape[-2] != count or means.shape[-1] == 0:
        raise ValueError(
            f"means has shape {means.shape}, but log_weights has {count} components: it needs "
            f"shape [..., {count}, d]"
        )
    size = means.shape[-1]
    own = {"full": (count, size, size), "diag": (count, size), "spherical": (count,)}[kind]
    if spread.shape[-len(own) :] != own:
        listed = ", ".join(map(str, own))
        hint = "" if name == "cholesky" else f" with covariance_type={kind!r}"
        raise ValueError(
            f"{name} has shape {spread.shape}, but means {means.shape}: it needs shape "
            f"[..., {listed}]{hint}"
        )
