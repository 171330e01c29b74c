"""Information projections: the distribution closest to a reference that has given moments."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from scipy.optimize import linprog

from kltarget._core import checks
from kltarget._core.newton import minimise
from kltarget._core.numerics import log_sum_exp, working_dtype
from kltarget._core.pytrees import pytree
from kltarget._core.status import Status, flag, unless_failed


@pytree
class MomentProjection:
    """The distribution closest to a reference among those with given moments.

    Attributes:
        log_ref: the reference it is closest to, shape ``[*batch, A]``.
        log_probs: its log-probabilities, shape ``[*batch, A]``; ``-inf`` where it is exactly 0.
        multipliers: η in nats per unit of each feature, shape ``[*batch, F]``.
        log_normalizer: ``log Σ_i π_ref,i e^{η·φ_i}``, over the outcomes that are left, shape
            ``[*batch]``.
        divergence_value: ``KL(p‖π_ref) = η·μ − log Z`` in nats, shape ``[*batch]``.
        status: :class:`Status` bits, shape ``[*batch]``.
    """

    log_ref: Float[Array, "*batch A"]
    log_probs: Float[Array, "*batch A"]
    multipliers: Float[Array, "*batch F"]
    log_normalizer: Float[Array, "*batch"]
    divergence_value: Float[Array, "*batch"]
    status: Int[Array, "*batch"]

    @property
    def probs(self) -> Float[Array, "*batch A"]:
        """The probabilities, shape ``[*batch, A]``."""
        return jnp.exp(self.log_probs)

    def pythagorean_gap(self, log_q: ArrayLike) -> Float[Array, "*batch"]:
        """``KL(q‖π_ref) − KL(q‖p) − KL(p‖π_ref)`` for a distribution q, in nats.

        It is 0 for every q that has the projection's moments, and equals ``η·(E_q φ − μ)`` for any
        other, so it says how far q misses them in the direction that the reference had to be moved.

        Args:
            log_q: log-probabilities, shape ``[*batch, A]``.

        Returns:
            The gap, shape ``[*batch]``: ``-inf`` where q goes where p has no mass but the reference
            has, NaN where the reference has none either.

        Raises:
            ValueError: q is not on the same outcomes.

        Example:
            >>> import jax.numpy as jnp, kltarget as kt
            >>> from kltarget.projections._moments import moment_projection
            >>> log_ref = jnp.log(jnp.array([0.5, 0.3, 0.2]))
            >>> p = moment_projection(log_ref, [[0.0], [1.0], [2.0]], [1.0])
            >>> gap = p.pythagorean_gap(jnp.log(jnp.array([0.4, 0.2, 0.4])))
            >>> print(abs(gap) < 1e-6)
            True
        """
        log_q = checks.float_argument(log_q, "log_q")
        if log_q.ndim == 0 or log_q.shape[-1] != self.log_probs.shape[-1]:
            raise ValueError(
                f"log_q has shape {log_q.shape}, but the projection {self.log_probs.shape}: both "
                "need the same last axis of outcomes"
            )
        return _pythagorean_gap(self.log_ref, self.log_probs, log_q)


def moment_projection(
    log_ref: ArrayLike, features: ArrayLike | Any, moments: ArrayLike | Any
) -> MomentProjection:
    """The distribution p that minimises ``KL(p‖π_ref)`` subject to ``E_p[φ] = moments``.

    Stationarity of the Lagrangian, ``log(p/π_ref) + 1 = η·φ + const``, gives the exponential tilt
    ``p = π_ref e^{η·φ}/Z(η)``. Its multipliers maximise the concave dual ``η·μ − log Z(η)``, whose
    gradient is ``μ − E_p[φ]``, whose Hessian is ``−Cov_p(φ)`` and whose maximum is the divergence;
    it is found by damped Newton steps. "Generation with distributional control" (GDC) aims at these
    distributions: pointwise constraints are moments of 1 of an indicator, distributional ones
    moments in between.

    With ``r = β η·φ`` for a reward, p is also the target of ``E_π[r] − β·KL(π‖π_ref)``.

    Args:
        log_ref: natural-log reference probabilities, shape ``[*batch, A]``; ``-inf`` means
            impossible. Masses at the nodes of a quadrature rule or of samples will do.
        features: φ, one row per outcome, shape ``[A, F]``.
        moments: μ, the wished means of the features, shape ``[*batch, F]``; its batch axes
            broadcast against those of ``log_ref``.

    Returns:
        The projection. Of multipliers that give the same distribution (features that are constant
        or depend on each other linearly) those of least norm, each feature measured in units of its
        range over the outcomes.

    Raises:
        TypeError: complex numbers.
        ValueError: shapes that do not fit; and outside a trace, numbers that are not finite, a
            reference that is not normalised, and moments that no distribution on the reference's
            support has, with the nearest that one has. A linear programme decides.

    Status:
        ``TRUNCATED``: the moments are on the boundary of what distributions on the support can
        have. Only the outcomes on one face of the convex hull of the features can then be used,
        and the projection is that of the reference restricted to them; the multipliers are those
        within the face, and the part of them that grows beyond all bounds is left out. Moments as
        close to the boundary as rounding may count as on it: within 64 units of the largest feature
        among the likely outcomes, which next to a feature of 0 is far closer than next to one of 1.
        Under a trace faces are not looked for: such rows have large multipliers and leave outcomes
        off the face with masses of the order of rounding. Failures, under a trace: ``INFEASIBLE``
        (the dual exceeds the largest divergence from the reference that there is),
        ``INVALID_REFERENCE``, ``NOT_CONVERGED``; every number of the row is NaN.

    Outcomes at ``-inf`` stay at ``-inf``. Differentiable, forward and in reverse, in moments,
    log_ref and features at moments in the interior, by the implicit function theorem:
    ``∂η/∂μ = Cov_p(φ)⁻¹``. Works under ``jit`` and ``vmap``.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.projections._moments import moment_projection
        >>> log_ref = jnp.log(jnp.array([0.4, 0.3, 0.15, 0.1, 0.05]))
        >>> features = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
        >>> p = moment_projection(log_ref, features, jnp.array([0.5, 0.6]))
        >>> print([f"{x:.2f}" for x in p.probs])
        ['0.32', '0.36', '0.18', '0.08', '0.06']
        >>> print(f"{p.multipliers[1]:.4f} {p.divergence_value:.4f}")
        0.4055 0.0201

    References:
        Csiszár, "I-divergence geometry of probability distributions and minimization problems",
        1975. Khalifa, Elsahar and Dymetman, "A Distributional Approach to Controlled Text
        Generation", 2021, arXiv 2012.11635, equation 1. Go et al., "Aligning Language Models with
        Preferences through f-divergence Minimization", 2023, arXiv 2302.08215.
    """
    given = checks.float_arguments(log_ref=log_ref, features=features, moments=moments)
    log_ref, features, moments = given.values()
    _require_shapes(log_ref, features, moments)
    concrete = not checks.traced(log_ref, features, moments)
    if not concrete:
        return _project(log_ref, log_ref, features, moments)
    _check_values(log_ref, features, moments)
    held, faces = _at_ends(log_ref, features, moments)
    restricted = jnp.where(jnp.asarray(held), log_ref, -jnp.inf) if faces.any() else log_ref
    found = _project(restricted, log_ref, features, moments)
    support, moved, further = _faces(found, restricted, features, moments)
    faces = faces | further
    if not faces.any():
        return found
    if further.any():
        restricted = jnp.where(jnp.asarray(support), found.log_ref, -jnp.inf)
        found = _project(restricted, log_ref, features, jnp.asarray(moved, moments.dtype))
    truncated = flag(jnp.asarray(faces), Status.TRUNCATED)
    return dataclasses.replace(found, status=found.status | truncated)


@jax.jit
def _project(
    restricted: Array, log_ref: Array, features: Array, moments: Array
) -> MomentProjection:
    """The projection of a restriction of a reference, with what there is to say about it."""
    dtype = log_ref.dtype
    wide = working_dtype(dtype)
    batch = jnp.broadcast_shapes(restricted.shape[:-1], moments.shape[:-1])
    by_row = jnp.vectorize(_row, signature="(a),(a,f),(f)->(a),(f),(),(),()")
    # Axes of size 1 are mapped over by none of the arrays that are alike for all rows.
    problem = (
        jnp.reshape(x.astype(wide), (*[1] * (len(batch) + core - x.ndim), *x.shape))
        for x, core in ((restricted, 1), (features, 2), (moments, 1))
    )
    *numbers, status = by_row(*problem)
    mass = jnp.exp(log_ref.astype(wide)).sum(-1)
    unnormalised = ~(jnp.abs(mass - 1) <= checks.mass_tolerance(dtype))
    status = status | jnp.broadcast_to(flag(unnormalised, Status.INVALID_REFERENCE), batch)
    numbers = (unless_failed(status, x).astype(dtype) for x in numbers)
    log_ref = jnp.broadcast_to(log_ref, (*batch, log_ref.shape[-1]))
    return MomentProjection(log_ref, *numbers, status=status)


def _row(log_ref: Array, features: Array, moments: Array) -> tuple[Array, ...]:
    on = log_ref > -jnp.inf
    features = jnp.where(on[:, None], features, moments[None])
    multipliers, status = _multipliers(log_ref, features, moments)
    # Relative to the moments the dual is a sum of terms of one sign and keeps its digits.
    tilted = jnp.where(on, log_ref + _dot(features - moments[None], multipliers), -jnp.inf)
    log_total = log_sum_exp(tilted)[0]
    log_normalizer = log_total + _dot(moments, multipliers)
    return tilted - log_total, multipliers, log_normalizer, -log_total, status


@jax.custom_jvp
def _multipliers(log_ref: Array, features: Array, moments: Array) -> tuple[Array, Array]:
    basis, off_hull = _coordinates(log_ref, features, moments)
    rows = _dot(features - moments[None], basis)

    def derivatives(x: Array) -> tuple[Array, Array, Array, Array]:
        tilted = log_ref + _dot(rows, x)
        log_total = log_sum_exp(tilted)[0]
        probs = jnp.exp(tilted - log_total)
        noise = 4 * jnp.finfo(x.dtype).eps * _dot(probs, jnp.abs(rows)).max()
        return log_total, _dot(probs, rows), _covariance(probs, rows), noise

    found = minimise(derivatives, jnp.zeros_like(moments), max_steps=500)
    # No distribution on the support is further from the reference than its least likely outcome.
    furthest = -jnp.where(log_ref > -jnp.inf, log_ref, 0.0).min()
    rounding = 64 * jnp.finfo(log_ref.dtype).eps * (1 + furthest)
    infeasible = off_hull | (-found.value > furthest + rounding)
    status = flag(infeasible, Status.INFEASIBLE)
    status = status | flag(~infeasible & ~found.converged, Status.NOT_CONVERGED)
    return _dot(basis, found.x), status


@_multipliers.defjvp
def _multipliers_jvp(primals: Any, tangents: Any) -> Any:
    # E_p[φ] − μ stays 0: its change at fixed multipliers is what they have to undo.
    multipliers, status = _multipliers(*primals)
    log_ref, features, moments = primals

    def excess(log_ref: Array, features: Array, moments: Array) -> Array:
        rows = features - moments[None]
        tilted = log_ref + _dot(rows, multipliers)
        return _dot(jnp.exp(tilted - log_sum_exp(tilted)), rows)

    on = log_ref > -jnp.inf
    ref_dot = jnp.where(on, tangents[0], 0.0)
    _, excess_dot = jax.jvp(excess, primals, (ref_dot, *tangents[1:]))
    basis, _ = _coordinates(log_ref, features, moments)
    rows = _dot(features - moments[None], basis)
    tilted = log_ref + _dot(features - moments[None], multipliers)
    hessian = _covariance(jnp.exp(tilted - log_sum_exp(tilted)), rows)
    left_out = jnp.diag((basis == 0).all(0).astype(hessian.dtype))
    undone = jnp.linalg.solve(hessian + left_out, _dot(excess_dot, basis))
    status_dot = np.zeros(status.shape, jax.dtypes.float0)
    return (multipliers, status), (-_dot(basis, undone), status_dot)


def _coordinates(log_ref: Array, features: Array, moments: Array) -> tuple[Array, Array]:
    """Directions in which the features vary, and whether the moments are off their affine hull.

    The columns take coordinates, in which features are uncorrelated and of unit variance over the
    support, to multipliers; those of directions without variation are 0.
    """
    count, size = features.shape
    on = (log_ref > -jnp.inf)[:, None]
    low = jnp.where(on, features, jnp.inf).min(0)
    high = jnp.where(on, features, -jnp.inf).max(0)
    width = jnp.where(high > low, high - low, jnp.maximum(jnp.abs(high), 1.0))
    middle = low + (high - low) / 2
    held = on.astype(features.dtype)
    scaled = held * (features - middle[None]) / width[None]
    center = scaled.sum(0) / held.sum()
    scaled = held * (scaled - center[None])
    # A square matrix of the same singular values and directions.
    corner = jnp.linalg.qr(scaled, mode="r") if count > size else scaled
    corner = jnp.pad(corner, ((0, max(size - count, 0)), (0, 0)))
    _, spreads, directions = jnp.linalg.svd(corner)
    eps = jnp.finfo(features.dtype).eps
    varied = spreads > 8 * eps * max(size, count**0.5) * spreads[0]
    inner = jnp.where(varied[:, None], directions, 0.0)
    lengths = jnp.where(varied, jnp.sqrt(held.sum()) / jnp.where(varied, spreads, 1.0), 0.0)
    apart = (moments - middle) / width - center
    rest = apart - _dot(_dot(inner, apart), inner)
    tolerance = 64 * eps * (1 + (jnp.abs(moments) / width).max())
    off_hull = jnp.abs(rest).max() > tolerance
    return inner.T * lengths[None] / width[:, None], off_hull


def _covariance(probs: Array, rows: Array) -> Array:
    apart = rows - _dot(probs, rows)[None]
    return _dot((probs[:, None] * apart).T, apart)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


@jax.jit
def _pythagorean_gap(log_ref: Array, log_probs: Array, log_q: Array) -> Array:
    shape = jnp.broadcast_shapes(log_probs.shape, log_q.shape)
    wide = working_dtype(log_probs.dtype)
    given = (log_ref, log_probs, log_q)
    log_ref, log_p, log_q = (jnp.broadcast_to(x.astype(wide), shape) for x in given)
    held = log_p > -jnp.inf
    tilt = jnp.where(held, log_p - jnp.where(held, log_ref, 0.0), 0.0)
    gap = ((jnp.exp(log_q) - jnp.exp(log_p)) * tilt).sum(-1)
    beyond = (log_q > -jnp.inf) & ~held
    lost = jnp.where(beyond & jnp.isneginf(log_ref), jnp.nan, jnp.where(beyond, -jnp.inf, 0.0))
    return (gap + lost.sum(-1)).astype(log_probs.dtype)


def _at_ends(log_ref: Array, features: Array, moments: Array) -> tuple[np.ndarray, np.ndarray]:
    """Per row, which outcomes are left where means are a feature's least or greatest value.

    Such a mean needs every outcome to have that value, as pointwise constraints do, and no
    programme is needed to see it. Others become ends among the outcomes that are left.
    """
    batch = jnp.broadcast_shapes(log_ref.shape[:-1], moments.shape[:-1])
    phi = np.asarray(features)
    asked = np.broadcast_to(np.asarray(moments), (*batch, phi.shape[1]))
    on = np.asarray(log_ref) > -np.inf
    low, high = (f(phi, axis=0) for f in (np.min, np.max))
    faces = np.zeros(batch, bool)
    if on.all() and not ((asked == low) | (asked == high)).any():
        return on, faces
    held = np.broadcast_to(on, (*batch, len(phi))).copy()
    for row in np.ndindex(*batch):
        left = np.flatnonzero(held[row])
        while len(left):
            inside = phi[left]
            end = (inside.min(0) == asked[row]) | (inside.max(0) == asked[row])
            kept = (inside[:, end] == asked[row][end]).all(1)
            if kept.all() or not kept.any():
                break
            left = left[kept]
            faces[row] = True
        held[row] = False
        held[(*row, left)] = True
    return held, faces


def _faces(
    found: MomentProjection, log_ref: Array, features: Array, moments: Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per row, which outcomes can be used, the moments moved to their hull, and if that is a face.

    A settled dual proves that the moments are in the interior, if it is not of their rounding that
    what is left of the least likely outcomes makes up. Only other rows are looked at.
    """
    batch = found.status.shape
    eps = float(jnp.finfo(moments.dtype).eps)
    refs = np.broadcast_to(np.asarray(log_ref, np.float64), found.log_probs.shape)
    phi = np.asarray(features, np.float64)
    moved = np.broadcast_to(np.asarray(moments, np.float64), (*batch, phi.shape[1])).copy()
    support = refs > -np.inf
    log_probs = np.asarray(found.log_probs, np.float64)
    tilt = np.subtract(log_probs, refs, out=np.zeros(refs.shape), where=support)
    probs = np.exp(log_probs)
    width = np.where(np.ptp(phi, axis=0) > 0, np.ptp(phi, axis=0), 1)
    sizes = np.maximum(np.abs(phi), np.abs(moved)[..., None, :]) / width
    rounding = 64 * eps * (probs[..., None] * sizes).sum(-2).max(-1)
    # The search also ends where all that is off a face underflows.
    rounding = rounding + float(jnp.finfo(working_dtype(moments.dtype)).tiny) / eps
    rare = (probs * (tilt < np.log(eps) / 2)).sum(-1)
    settled = (tilt.min(-1) > np.log(eps) / 2) | ((found.status == 0) & (rare > rounding))
    faces = np.zeros(batch, bool)
    for at in np.argwhere(~settled):
        row = tuple(int(i) for i in at)
        on = np.flatnonzero(support[row])
        # Outcomes of the same features are all usable or none is.
        kinds, kind = np.unique(phi[on], axis=0, return_inverse=True)
        usable, moved[row] = _face(kinds, moved[row], eps, row)
        usable = usable[kind.ravel()]
        faces[row] = not usable.all()
        support[(*row, on)] = usable
    return support, moved, faces


def _face(
    phi: np.ndarray, moments: np.ndarray, eps: float, row: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The outcomes that distributions with these moments can use, by linear programmes."""
    count, size = phi.shape
    width = np.ptp(phi, axis=0)
    width = np.where(width > 0, width, np.maximum(np.abs(phi).max(0), 1))
    apart = (phi - moments) / width
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    # The largest difference that some distribution leaves: minimise t where −t ≤ Σ p·apart ≤ t.
    sides = np.concatenate([apart.T, -apart.T])
    nearest = linprog(
        np.append(np.zeros(count), 1.0),
        A_ub=np.column_stack([sides, -np.ones(2 * size)]),
        b_ub=np.zeros(2 * size),
        A_eq=np.append(np.ones(count), 0.0)[None],
        b_eq=[1.0],
        options=options,
    )
    tolerance = max(1e-9, 64 * eps * float(1 + (np.abs(moments) / width).max()))
    attained = moments + (apart.T @ nearest.x[:-1]) * width
    if nearest.x[-1] > tolerance:
        digits = min(int(-np.log10(eps)), 12)
        shown = functools.partial(np.array2string, precision=digits, separator=", ")
        asked, best = shown(moments), shown(attained)
        raise ValueError(
            f"moments {asked}{checks.at_index(row)} cannot be had: no distribution on the outcomes "
            f"with reference mass has them; the nearest that one has are {best}, off by up to "
            f"{np.abs(attained - moments).max():.3g}"
        )
    # Weights of any size with these moments: as many as possible of at least one.
    apart = (phi - attained) / width
    widest = linprog(
        np.append(-np.ones(count), np.zeros(count)),
        A_eq=np.concatenate([apart.T, apart.T], axis=1),
        b_eq=np.zeros(size),
        bounds=[(0, 1)] * count + [(0, None)] * count,
        options=options,
    )
    usable = widest.x[:count] > 0.5
    center = phi[usable].mean(0)
    # What the programmes leave undecided is taken out: the moments are put on the face's plane.
    _, spreads, directions = np.linalg.svd((phi[usable] - center) / width, full_matrices=False)
    plane = directions[spreads > 8 * eps * max(spreads[0], 1) * max(size, count**0.5)]
    offset = (moments - center) / width
    return usable, center + (plane.T @ (plane @ offset)) * width


def _require_shapes(log_ref: Array, features: Array, moments: Array) -> None:
    checks.require_outcomes(log_ref, "log_ref")
    if features.ndim != 2 or features.shape[0] != log_ref.shape[-1] or features.shape[1] == 0:
        raise ValueError(
            f"features has shape {features.shape}, but log_ref {log_ref.shape}: it needs shape "
            f"[{log_ref.shape[-1]}, F], one row per outcome"
        )
    if moments.ndim == 0 or moments.shape[-1] != features.shape[1]:
        raise ValueError(
            f"moments has shape {moments.shape}, but features {features.shape}: it needs shape "
            f"[..., {features.shape[1]}], one mean per feature"
        )
    with checks.worded(
        f"the batch axes of log_ref {log_ref.shape[:-1]} and moments {moments.shape[:-1]} do not "
        "broadcast"
    ):
        jnp.broadcast_shapes(log_ref.shape[:-1], moments.shape[:-1])


def _check_values(log_ref: Array, features: Array, moments: Array) -> None:
    checks.raise_first("features", features, ~jnp.isfinite(features), "must be finite")
    checks.raise_first("moments", moments, ~jnp.isfinite(moments), "must be finite")
    mass = np.exp(np.asarray(log_ref, np.float64)).sum(-1)
    bad = ~(np.abs(mass - 1) <= checks.mass_tolerance(log_ref.dtype))
    rule = "is not normalised (pass kltarget.normalize(log_ref)): its mass"
    checks.raise_first("log_ref", mass, bad, rule)
