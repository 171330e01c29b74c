"""Mixtures of Gaussians from samples: maximum likelihood by expectation maximisation."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kltarget._core.checks import float_arguments, raise_first, traced
from kltarget._core.matrices import cholesky, diagonal
from kltarget._core.numerics import log_sum_exp, working_dtype
from kltarget._core.pytrees import pytree
from kltarget.spaces import GaussianMixture
from kltarget.spaces._gaussian_mixture import COVARIANCE_TYPES, log_joint, unchecked


@pytree
class MixtureFit:
    """A mixture of Gaussians fitted to samples.

    Attributes:
        mixture: the best of all starts.
        log_likelihood: its weighted mean over the samples, in nats per sample.
        num_steps: steps that its start took.
        converged: whether the last of them gained no more than the tolerance.
        num_collapsed: starts that were discarded because a component collapsed.
    """

    mixture: GaussianMixture
    log_likelihood: Float[Array, ""]
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]
    num_collapsed: Int[Array, ""]


def fit_mixture(
    samples: ArrayLike,
    num_components: int,
    *,
    key: PRNGKeyArray,
    log_weights: ArrayLike | None = None,
    covariance_type: Literal["full", "diag", "spherical"] = "full",
    num_starts: int = 8,
    min_variance: float = 0.0,
    gain_tol: float = 1e-6,
    max_steps: int = 1000,
) -> MixtureFit:
    """The mixture of K Gaussians that maximises ``Σ_i ω_i log q(x_i)``, by EM from many starts.

    One step gives every component the samples in proportion to its responsibilities and then the
    mean and covariance of what it was given, which never lowers the likelihood. Its fixed points
    have the samples' own mean, and with full covariances their covariance. Starts are drawn as for
    k-means++: centers far apart, and the pooled covariance around them.

    The likelihood has no maximum: it grows beyond all bounds where a component shrinks onto few
    samples. A start that ends with a component on no more than d + 1 of them (2, unless covariances
    are full; counted as ``(Σr)²/Σr²`` over the samples' weighted responsibilities) is discarded and
    counted in ``num_collapsed``, and so is one with a component whose standard deviation along some
    axis is below the rounding of the samples there, 64 units of the largest. Nothing is added to
    covariances.

    Args:
        samples: shape ``[N, d]``.
        num_components: K.
        key: random key of the starts.
        log_weights: natural logarithms of the samples' weights ω, up to a constant, shape ``[N]``;
            ``-inf`` leaves one out. Equal by default.
        covariance_type: ``"full"``, ``"diag"`` or ``"spherical"``.
        num_starts: how many starts, all at once.
        min_variance: smallest variance of a component in any direction, in the samples' unit
            squared. Above 0 the likelihood is bounded, this is its maximisation under that
            constraint, and no start is discarded. A component that no sample is left for, since
            there are fewer distinct ones than K, has no weight and stays where it started.
        gain_tol: a start ends where a step gains no more nats per sample than this, or than
            rounding.
        max_steps: most steps per start.

    Returns:
        The best start's mixture and what became of the starts; of the samples' dtype.

    Raises:
        TypeError: complex numbers.
        ValueError: shapes that do not fit, options out of range; outside a trace, samples that are
            not finite, weights without any mass, and a component that collapsed in every start.
            Under a trace the mixture is NaN then.

    Works under ``jit`` and ``vmap`` (over samples and keys).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.spaces import GaussianMixture
        >>> from kltarget.mixtures import fit_mixture
        >>> truth = GaussianMixture(
        ...     jnp.log(jnp.array([0.3, 0.7])),
        ...     [[-2.0], [2.0]],
        ...     [[1.0], [1.0]],
        ...     covariance_type="diag",
        ... )
        >>> samples = truth.sample(key=jax.random.key(0), num_samples=2000)
        >>> fitted = fit_mixture(samples, 2, key=jax.random.key(1))
        >>> print(jnp.sort(fitted.mixture.means[:, 0]).round(1))
        [-2.  2.]

    References:
        Dempster, Laird and Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm",
        1977. Arthur and Vassilvitskii, "k-means++", 2007. Hathaway, "A Constrained Formulation of
        Maximum-Likelihood Estimation for Normal Mixture Distributions", 1985 (bounded variances).
    """
    given = {"samples": samples} | ({} if log_weights is None else {"log_weights": log_weights})
    arrays = float_arguments(**given)
    dtype = arrays["samples"].dtype
    wide = working_dtype(dtype)
    x = arrays["samples"].astype(wide)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"samples has shape {x.shape}: it needs shape [N, d]")
    weights = arrays.get("log_weights", jnp.zeros(len(x))).astype(wide)
    if weights.shape != x.shape[:1]:
        raise ValueError(
            f"log_weights has shape {weights.shape}, but samples {x.shape}: it needs one weight "
            f"per sample, shape ({len(x)},)"
        )
    if covariance_type not in COVARIANCE_TYPES:
        listed = ", ".join(map(repr, COVARIANCE_TYPES))
        raise ValueError(f"covariance_type must be one of {listed}, got {covariance_type!r}")
    counts = {"num_components": num_components, "num_starts": num_starts, "max_steps": max_steps}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= min_variance < np.inf:
        raise ValueError(f"min_variance must be 0 or more and finite, got {min_variance}")
    if not traced(x, weights):
        raise_first("samples", x, ~jnp.isfinite(x), "must be finite")
        raise_first(
            "log_weights", weights, jnp.isnan(weights) | jnp.isposinf(weights), "must be below +inf"
        )
        if not np.isfinite(np.asarray(weights)).any():
            raise ValueError("log_weights has no sample with any weight")
    bound = float(min_variance) if min_variance else None
    options = (num_components, covariance_type, num_starts, bound, gain_tol, max_steps)
    fitted = _best(x, weights, key, *options)
    if not traced(fitted.num_collapsed) and int(fitted.num_collapsed) == num_starts:
        raise ValueError(
            f"a component collapsed onto few samples in every one of {num_starts} starts; fit "
            f"fewer components than {num_components}, or bound them by min_variance"
        )
    return jax.tree.map(lambda y: y.astype(dtype) if y.dtype == wide else y, fitted)


def from_sklearn(model: Any) -> GaussianMixture:
    """The mixture that a fitted scikit-learn model has learnt.

    Args:
        model: a fitted ``GaussianMixture`` or ``BayesianGaussianMixture``, or anything with their
            ``weights_``, ``means_``, ``covariances_`` and ``covariance_type`` (``"full"``,
            ``"tied"``, ``"diag"`` or ``"spherical"``).

    Returns:
        The mixture, in the default float type.

    Raises:
        TypeError: the model is not fitted, or not a mixture.

    Example:
        >>> import numpy as np, types
        >>> from kltarget.mixtures import from_sklearn
        >>> model = types.SimpleNamespace(
        ...     weights_=np.array([0.5, 0.5]),
        ...     means_=np.array([[0.0, 0.0], [1.0, 1.0]]),
        ...     covariances_=np.eye(2),
        ...     covariance_type="tied",
        ... )
        >>> print(from_sklearn(model).covariances.shape)
        (2, 2, 2)
    """
    names = ("weights_", "means_", "covariances_", "covariance_type")
    missing = [name for name in names if not hasattr(model, name)]
    if missing:
        raise TypeError(
            f"model has no {', '.join(missing)}: give a fitted scikit-learn mixture, got "
            f"{type(model).__name__}"
        )
    weights, means, spread = (np.asarray(getattr(model, name), np.float64) for name in names[:3])
    kind = model.covariance_type
    if kind == "tied":
        kind, spread = "full", np.broadcast_to(spread, (len(weights), *spread.shape))
    default = jnp.result_type(float)
    with np.errstate(divide="ignore"):
        logs = np.log(weights / weights.sum())
    logs, means, spread = (jnp.asarray(x, default) for x in (logs, means, spread))
    return GaussianMixture(logs, means, spread, covariance_type=kind)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _best(*problem: Any) -> MixtureFit:
    """The best one of :func:`em_runs`."""
    mixtures, scores, steps, settled, collapsed = em_runs(*problem)
    at = jnp.argmax(jnp.where(collapsed, -jnp.inf, scores))
    failed = collapsed.all()
    best = jax.tree.map(lambda y: jnp.where(failed, jnp.nan, y[at]), mixtures)
    score, converged = jnp.where(failed, jnp.nan, scores[at]), settled[at] & ~failed
    return MixtureFit(best, score, steps[at], converged, collapsed.sum(dtype=jnp.int32))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def em_runs(
    x: Array,
    log_weights: Array,
    key: PRNGKeyArray,
    num_components: int,
    kind: str,
    num_starts: int,
    bound: ArrayLike | None,
    gain_tol: ArrayLike,
    max_steps: ArrayLike,
) -> tuple[GaussianMixture, Array, Array, Array, Array]:
    """All starts: mixtures, log-likelihoods, steps, and which of them converged or collapsed."""
    shares = jnp.exp(log_weights - log_sum_exp(log_weights))
    middle = jnp.einsum("n,ni->i", shares, x, precision="highest")
    variances = jnp.einsum("n,ni->i", shares, jnp.square(x - middle[None]), precision="highest")
    largest = jnp.where(shares[:, None] > 0, jnp.abs(x), 0.0).max(0)
    grain = 64 * jnp.finfo(x.dtype).eps * largest
    variances = jnp.where(jnp.sqrt(variances) > grain, variances, 0.0)
    unit = jnp.sqrt(variances.mean())
    unit = jnp.where(unit > 0, unit, 1.0)
    scaled = (x - middle[None]) / unit
    scales = jnp.sqrt(jnp.where(variances > 0, variances, 1.0)) / unit
    low = None if bound is None else jnp.asarray(bound, x.dtype) / jnp.square(unit)

    def run(key: PRNGKeyArray) -> tuple[GaussianMixture, Array, Array, Array, Array]:
        start = _start(scaled, shares, scales, key, num_components, kind, low)

        def going(state: tuple[Any, ...]) -> Array:
            _, score, gain, steps, _ = state
            # A collapsed component makes the gain NaN, which ends its start.
            return (gain > _least_gain(score, gain_tol)) & (steps < max_steps)

        def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
            mixture, score, _, steps, given = state
            mixture = _maximised(mixture, scaled, given, kind, low)
            now, given = _expected(mixture, scaled, shares)
            return mixture, now, now - score, steps + 1, given

        score, given = _expected(start, scaled, shares)
        first = (start, score, jnp.full_like(score, jnp.inf), jnp.int32(0), given)
        mixture, score, gain, steps, given = lax.while_loop(going, step, first)
        held = jnp.square(given.sum(0)) / jnp.square(given).sum(0)
        needed = x.shape[1] + 1 if kind == "full" else 2
        collapsed = ~jnp.isfinite(score)
        if low is None:
            wide = diagonal(mixture.cholesky) * unit > grain[None]
            collapsed = collapsed | ~(held > needed + 0.01).all() | ~wide.all()
        means, factors = mixture.means * unit + middle[None], mixture.cholesky * unit
        mixture = unchecked(mixture.log_weights, means, factors)
        score = score - x.shape[1] * jnp.log(unit)
        return mixture, score, steps, gain <= _least_gain(score, gain_tol), collapsed

    return jax.vmap(run)(jax.random.split(key, num_starts))


def _least_gain(score: Array, gain_tol: ArrayLike) -> Array:
    rounding = 4 * jnp.finfo(score.dtype).eps * (1 + jnp.abs(score))
    return jnp.maximum(jnp.asarray(gain_tol, score.dtype), rounding)


def _expected(mixture: GaussianMixture, x: Array, shares: Array) -> tuple[Array, Array]:
    """The mean log-likelihood, and the samples' weights divided among the components."""
    joint = log_joint(mixture, x)
    total = log_sum_exp(joint)
    return (shares * total[:, 0]).sum(), shares[:, None] * jnp.exp(joint - total)


def _maximised(
    mixture: GaussianMixture, x: Array, given: Array, kind: str, low: Array | None
) -> GaussianMixture:
    masses = given.sum(0)
    # Of a component without samples the likelihood does not depend on the place.
    held = masses > 0
    total = jnp.where(held, masses, 1.0)[:, None]
    means = jnp.einsum("nk,ni->ki", given, x, precision="highest") / total
    apart = x[:, None] - means[None]
    spread = jnp.einsum("nk,nki,nkj->kij", given, apart, apart, precision="highest")
    factors = cholesky(_of_kind(spread / total[..., None], kind, low))
    return unchecked(
        jnp.log(masses / masses.sum()),
        jnp.where(held[:, None], means, mixture.means),
        jnp.where(held[:, None, None], factors, mixture.cholesky),
    )


def _of_kind(spread: Array, kind: str, low: Array | None) -> Array:
    """The covariances of largest likelihood of their kind, with no variance below the bound."""
    if kind != "full":
        variances = diagonal(spread)
        if kind == "spherical":
            variances = jnp.broadcast_to(variances.mean(-1, keepdims=True), variances.shape)
        variances = variances if low is None else jnp.maximum(variances, low)
        return variances[..., None] * jnp.eye(spread.shape[-1], dtype=spread.dtype)[None]
    if low is None:
        return spread
    variances, axes = jnp.linalg.eigh(spread)
    variances = jnp.maximum(variances, low)
    return jnp.einsum("kij,kj,klj->kil", axes, variances, axes, precision="highest")


def _start(
    x: Array,
    shares: Array,
    scales: Array,
    key: PRNGKeyArray,
    num_components: int,
    kind: str,
    low: Array | None,
) -> GaussianMixture:
    """Centers far apart, the mass that is closest to each, and the pooled covariance."""
    logs = jnp.log(shares)
    nearest = jnp.full_like(logs, jnp.inf)
    centers, squares = [], []
    for number, one in enumerate(jax.random.split(key, num_components)):
        left = number > 0 and ((nearest > 0) & (shares > 0)).any()
        far = jnp.where(left, jnp.log(nearest), 0.0)
        centers.append(x[jax.random.categorical(one, logs + far)])
        apart = (x - centers[-1][None]) / scales[None]
        squares.append(jnp.square(apart).sum(-1))
        nearest = jnp.minimum(nearest, squares[-1])
    closest = jnp.argmin(jnp.stack(squares, axis=-1), axis=-1)
    given = shares[:, None] * jax.nn.one_hot(closest, num_components, dtype=x.dtype)
    masses = given.sum(0)
    held = (masses > 0)[:, None]
    total = jnp.where(held, masses[:, None], 1.0)
    means = jnp.einsum("nk,ni->ki", given, x, precision="highest") / total
    means = jnp.where(held, means, jnp.stack(centers))
    apart = x - jnp.where(given[..., None] > 0, means[None], 0.0).sum(1)
    pooled = jnp.einsum("n,ni,nj->ij", shares, apart, apart, precision="highest")
    pooled = jnp.broadcast_to(pooled, (num_components, *pooled.shape))
    factors = cholesky(_of_kind(pooled, kind, low))
    return unchecked(jnp.log(masses), means, factors)
