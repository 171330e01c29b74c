"""The mixture of a few Gaussians that is closest to a target, in either direction of the KL."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kltarget._core.newton import Minimum
from kltarget._core.numerics import double_precision
from kltarget._core.pytrees import pytree
from kltarget._core.quadrature import LEVELS, NormalLattice, Rule, Table
from kltarget.projections import _descent
from kltarget.projections._em import em_runs
from kltarget.projections._population import Population, population
from kltarget.spaces import GaussianMixture
from kltarget.spaces._gaussian_mixture import unchecked

Direction = Literal["forward", "reverse", "cauchy-schwarz"]
Found = tuple[Array, float]
"""An optimum as a vector, and its value."""

_ROUGH, _FINE = (1e-8, 200), (1e-13, 12)
"""Gradients at which descents end, and most steps, on the coarsest rule and on the others."""


@pytree
class Projection:
    """The local optima of a projection onto mixtures of K Gaussians, the best one first.

    Those that did not converge come last, and no start counts as having led to them.

    Attributes:
        optima: one mixture per local optimum, batch shape ``[M]``, its components in the order of
            their means' first coordinates.
        optima_values: their divergences from the target, in nats, ``[M]``.
        optima_errors: estimated errors of those: of the quadrature, or one standard error where
            expectations are over draws; NaN for given points.
        gradient_norms: largest derivative of the divergence by any parameter (logits of the
            weights; means and factors in units of the target's standard deviation), ``[M]``.
        converged: whether that vanishes and the error is below the tolerance, ``[M]``.
        reached: which converged optimum each start led to, ``[num_starts]``; −1 for none.
    """

    optima: GaussianMixture
    optima_values: Float[Array, "M"]
    optima_errors: Float[Array, "M"]
    gradient_norms: Float[Array, "M"]
    converged: Bool[Array, "M"]
    reached: Int[Array, "num_starts"]

    @property
    def mixture(self) -> GaussianMixture:
        """The best optimum."""
        return jax.tree.map(lambda x: x[0], self.optima)

    @property
    def divergence_value(self) -> Float[Array, ""]:
        """The best optimum's divergence from the target, in nats."""
        # Rounding makes a divergence of 0 negative.
        return jnp.maximum(self.optima_values[0], 0)

    @property
    def error(self) -> Float[Array, ""]:
        """The estimated error of ``divergence_value``."""
        return self.optima_errors[0]

    @property
    def starts_per_optimum(self) -> Int[Array, "M"]:
        """How many starts led to each optimum; 0 for those that did not converge."""
        number = jnp.arange(len(self.optima_values), dtype=self.reached.dtype)
        return (self.reached[None] == number[:, None]).sum(1)


def project(
    target: Any,
    num_components: int,
    direction: Direction,
    *,
    key: PRNGKeyArray,
    points: ArrayLike | None = None,
    log_masses: ArrayLike | None = None,
    bounds: ArrayLike | None = None,
    num_starts: int = 16,
    num_points: int = 8192,
    tol: float = 1e-9,
) -> Projection:
    """The mixtures q of K Gaussians that are closest to a target by a KL, or without logarithms.

    ``"forward"``, ``KL(target‖q) = E_target[log target − log q]``, is what supervised training on
    the target's samples minimises. A single Gaussian takes the target's mean and covariance,
    exactly; K of them are found by expectation maximisation, whose every start Newton's method
    finishes. The optimum covers all that the target may do.

    ``"reverse"``, ``KL(q‖target) = E_q[log q − log target]``, is what reinforcement learning does:
    with ``target ∝ ref·e^{r/β}``, ``E_q[r] − β·KL(q‖ref) = β log Z − β·KL(q‖target)`` for every q,
    so the best q of any family for the regularised reward is its reverse projection. Where the
    family cannot hold the target there is typically one local optimum per choice of modes, and the
    start decides. With ``x = m + sz`` and ``ψ = (log target)′``, a Gaussian ``N(m, s²)`` is
    stationary iff ``E[ψ(x)] = 0`` and ``1/s + E[zψ(x)] = 0``. Where the family holds the target
    both directions give it, and neither seeks modes nor covers mass.

    ``"cauchy-schwarz"`` minimises :func:`kltarget.spaces.cauchy_schwarz`, ``−log`` of the squared
    overlap ``(∫pq)² / (∫p² ∫q²)``, which mixtures have in closed form. It is symmetric and
    weighs narrow components by their height; of modes that are apart there is one local optimum per
    choice, as of the reverse projection, and one that covers them, as of the forward one.

    All local optima found are reported. Two are the same if they are the same distribution,
    whatever the order of components and however a superfluous one is placed. Saddle points are
    left behind.

    Expectations under mixtures in up to 3 dimensions are over a lattice in every component's own
    coordinates, refined until the divergence changes by less than ``tol``; in more dimensions over
    draws, the same for all mixtures compared, and the divergence is then estimated with others: it
    is that of the mixture found, which P parameters fitted to N draws leave about P/(2N) nats above
    the optimum.

    Args:
        target: a :class:`GaussianMixture` or :class:`MixtureTarget`; a log-density of points
            ``[N, d]`` (any constant may be missing where ``bounds`` are given) or anything with
            such a method ``log_prob``; or a pair ``(points, log_masses)``. What has ``points`` and
            a discrete ``target`` on them, as targets on grids and samples do, brings both.
        num_components: K.
        direction: ``"forward"``, ``"reverse"`` or ``"cauchy-schwarz"``.
        key: random key of starts and draws.
        points: for a log-density, points that stand for it, shape ``[N, d]``: its own draws or the
            nodes of a rule. Forward expectations are over them.
        log_masses: their masses up to a constant, shape ``[N]``; equal by default.
        bounds: for a log-density in up to 3 dimensions, ends of a box that holds all of its mass,
            shape ``[d, 2]``.
        num_starts: how many descents.
        num_points: draws in more than 3 dimensions.
        tol: accuracy that is asked of the divergence, in nats.

    Returns:
        The optima, computed in double precision, in the float type of the target.

    Raises:
        TypeError: a target that is none of these.
        ValueError: options out of range, shapes that do not fit, a batch of targets; bounds that
            cut the target off; a target with an atom; the reverse projection of a target without a
            density, or of one that is 0 somewhere; that by Cauchy–Schwarz of what is no mixture;
            no start that converged.

    ``(points, log_masses)`` alone have no density, and the values are then cross-entropies
    ``−E_target[log q]``: divergences up to the unknown entropy of the target. Components of weight
    0 in the target are left out. Not differentiable, and not for use under ``jit``: it chooses
    starts, rules and optima.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.spaces import GaussianMixture
        >>> from kltarget.mixtures import project
        >>> target = GaussianMixture(
        ...     jnp.log(jnp.array([0.75, 0.25])),
        ...     [[-3.0], [3.5]],
        ...     [[1.0], [0.49]],
        ...     covariance_type="diag",
        ... )
        >>> cover = project(target, 1, "forward", key=jax.random.key(0))
        >>> print(f"{cover.mixture.mean[0]:.4f}, KL {cover.divergence_value:.4f}")
        -1.3750, KL 0.6141
        >>> seek = project(target, 1, "reverse", key=jax.random.key(0))
        >>> print([f"{x:.3f}" for x in seek.optima.means[:, 0, 0]])
        ['-2.999', '3.499']
        >>> print([f"{x:.3f}" for x in seek.optima_values])
        ['0.288', '1.386']

    References:
        Bishop, "Pattern Recognition and Machine Learning", 2006, section 10.1.2. Korbak, Perez and
        Buckley, "RL with KL penalties is better viewed as Bayesian inference", 2022, arXiv
        2205.11275. Chen et al., "Retaining by Doing", 2025, arXiv 2510.18874, whose target is the
        example's. Trefethen and Weideman, "The Exponentially Convergent Trapezoidal Rule", 2014.
    """
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {get_args(Direction)}, got {direction!r}")
    for name, count in (("num_components", num_components), ("num_starts", num_starts)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    seed = np.asarray(jax.random.bits(key, (4,), jnp.uint32))
    rng = np.random.default_rng(seed.tolist())
    with double_precision():
        given = population(target, points, log_masses, bounds, num_points, rng)
        if direction == "reverse" and not given.has_density:
            raise ValueError(
                "the reverse projection needs the target's log-density, and points alone have none"
            )
        if direction == "cauchy-schwarz" and given.density.mixture is None:
            raise ValueError(
                "the projection by Cauchy–Schwarz has its closed form for mixtures alone: fit one "
                "to the target first, kltarget.mixtures.fit_mixture"
            )
        search = _Search(given, direction, num_components, num_points, tol, rng)
        found = search.run(key, num_starts)
    *numbers, converged, reached = found
    rounded = jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(given.dtype)), numbers)
    kind, which = jnp.asarray(converged), jnp.asarray(reached, jnp.int32)
    return Projection(*rounded, converged=kind, reached=which)


@dataclasses.dataclass(frozen=True)
class _Search:
    given: Population
    direction: Direction
    num_components: int
    num_points: int
    tol: float
    rng: np.random.Generator

    def run(self, key: PRNGKeyArray, num_starts: int) -> tuple[Any, ...]:
        """Optima, values, errors, gradients, convergence, and the optimum of every start."""
        rules, check = self._rules()
        rough: list[Found] = []
        reached = np.full(num_starts, -1)
        for number, start in enumerate(self._starts(key, num_starts)):
            found = self._descend(rules[0], start, _ROUGH)
            if found is not None:
                reached[number] = self._place(rough, found, rules[0])
        if not rough:
            raise ValueError(
                f"none of {num_starts} starts converged: the target may be 0 somewhere, so that "
                "no Gaussian has a finite divergence to it"
                if self.direction == "reverse"
                else f"none of {num_starts} starts converged: too many components"
            )
        polished = [self._polish(rules, x) for x, _ in rough]
        same: list[Found] = []
        merged = np.array([self._place(same, (x[0], x[1]), rules[0]) for x in polished])
        best = [polished[int(np.flatnonzero(merged == k)[0])] for k in range(len(same))]
        rows = [self._measured(x, value, error, slope, check) for x, value, error, slope in best]
        values, errors, gradients = (np.array(x) for x in zip(*rows, strict=True))
        exact = isinstance(rules[0], NormalLattice)
        converged = (gradients <= 1e-7) & ((errors <= self.tol) | ~np.bool_(exact))
        order = np.lexsort((np.array([value for _, value in same]), ~converged))
        rank = np.where(converged, np.argsort(order), -1)
        reached = np.where(reached >= 0, rank[merged[reached]], -1)
        found = [_descent.mixture_of(x, self.num_components, self.given.dim) for x, *_ in best]
        optima = [self.given.restore(_in_order(found[k])) for k in order]
        stacked = jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *optima)
        ordered = (x[order] for x in (values, errors, gradients, converged))
        return stacked, *ordered, reached

    def _rules(self) -> tuple[tuple[Rule, ...], Table | None]:
        """From coarse to fine, and other draws to tell the value where these are draws."""
        size, given = self.given.dim, self.given
        if self.direction == "cauchy-schwarz":
            at_once = Table.of(np.zeros((1, size)), np.ones(1))
            return (at_once, at_once), None
        if self.direction == "forward":
            mixture, count = given.density.mixture, self.num_points
            if size in LEVELS or mixture is None:
                return given.rules, None
            key = jax.random.key(int(self.rng.integers(2**31)))
            other = mixture.sample(key=key, num_samples=count)
            return given.rules, Table.of(np.asarray(other), np.full(count, 1 / count))
        if size in LEVELS:
            levels = LEVELS[size]
            return tuple(NormalLattice.of(step, radius, size) for step, radius in levels), None
        draws = self.rng.normal(size=(2 * self.num_points, size))
        few, used, other = (
            Table.of(x, np.full(len(x), 1 / len(x)))
            for x in (draws[: min(1024, self.num_points)], *np.split(draws, 2))
        )
        return (few, used), other

    def _descend(self, rule: Rule, start: ArrayLike, limits: _descent.Limits) -> Found | None:
        """A local minimum, None where the descent leads to none."""
        for _ in range(4):
            found = self._minimum(rule, start, limits)
            hessian = np.asarray(found.hessian)
            sound = np.isfinite(float(found.value)) and np.isfinite(hessian).all()
            if not (sound and bool(found.converged)):
                return None
            bends, axes = np.linalg.eigh(hessian)
            if bends[0] > -1e-6:
                return found.x, float(found.value)
            start = np.asarray(found.x) + 0.1 * axes[:, 0]
        return None

    def _minimum(self, rule: Rule, start: ArrayLike, limits: _descent.Limits) -> Minimum:
        density = self.given.density
        return _descent.minimum(self.direction, self.num_components, rule, density, start, limits)

    def _polish(self, rules: tuple[Rule, ...], x: Array) -> tuple[Array, float, float, float]:
        """The optimum on the first rule that the next coarser one agrees with."""
        direction, count, density = self.direction, self.num_components, self.given.density
        error, last = np.nan, rules[0]
        for coarse, fine in itertools.pairwise(rules):
            found = self._minimum(coarse, x, _FINE)
            x, last = found.x, fine
            value, slopes = _descent.value_and_gradient(direction, count, fine, density, x)
            error = abs(float(value) - float(found.value))
            if error <= self.tol / 4 and float(jnp.abs(slopes).max()) <= 1e-8:
                break
        found = self._minimum(last, x, _FINE)
        return found.x, float(found.value), error, float(jnp.abs(found.gradient).max())

    def _measured(
        self, x: Array, value: float, error: float, gradient: float, check: Table | None
    ) -> tuple[float, float, float]:
        """Value, error and gradient, the first two by other draws where expectations are drawn."""
        if check is not None:
            direction, count, density = self.direction, self.num_components, self.given.density
            mean, square = _descent.moments(direction, count, check, density, x)
            variance = max(float(square) - float(mean) ** 2, 0.0)
            return float(mean), (variance / self.num_points) ** 0.5, gradient
        return value, error + self.given.normalizer_error, gradient

    def _place(self, known: list[Found], found: Found, rule: Rule) -> int:
        """The number of an optimum among those known, to which it is added if it is new."""
        x, value = found
        size = self.given.dim
        if self.direction == "reverse":
            z = rule
        elif size in LEVELS:
            step, radius = LEVELS[size][0]
            z = NormalLattice.of(step, radius, size)
        else:
            z = Table.of(self.rng.normal(size=(1024, size)), np.full(1024, 1 / 1024))
        for number, (other, its_value) in enumerate(known):
            if abs(value - its_value) > 1e-5 * (1 + abs(value)):
                continue
            apart = _descent.jeffreys(self.num_components, z, x, other, self.given.density)
            if float(apart) < 1e-6:
                if value < its_value:
                    known[number] = found
                return number
        known.append(found)
        return len(known) - 1

    def _starts(self, key: PRNGKeyArray, num_starts: int) -> list[np.ndarray]:
        """Starts as vectors: choices of the target's own components, and random ones."""
        count, size = self.num_components, self.given.dim
        if count == 1:
            whole = unchecked(np.zeros(1), np.zeros((1, size)), np.eye(size)[None])
            if self.direction == "forward":
                return [_descent.vector_of(whole)] * num_starts
            starts = [whole, *self._choices((num_starts + 1) // 2)]
        else:
            starts = self._choices((num_starts + 1) // 2)
        missing = max(num_starts - len(starts), 0)
        if self.direction == "forward" and missing:
            samples = (self.given.cloud, np.log(self.given.masses))
            fitted, *_, collapsed = em_runs(*samples, key, count, "full", missing, None, 1e-9, 300)
            held = np.flatnonzero(~np.asarray(collapsed))
            fitted = jax.tree.map(np.asarray, fitted)
            starts += [jax.tree.map(lambda y, k=k: y[k], fitted) for k in held]
        else:
            starts += [self._random() for _ in range(missing)]
        return [_descent.vector_of(x) for x in starts[:num_starts]]

    def _choices(self, most: int) -> list[GaussianMixture]:
        mixture, count, size = self.given.density.mixture, self.num_components, self.given.dim
        if mixture is None:
            return []
        log_weights, means, factors = map(np.asarray, jax.tree.leaves(mixture))
        own = len(log_weights)
        if count > own:
            chosen = [np.arange(count) % own] * min(most, 2)
        else:
            every = itertools.islice(itertools.combinations(range(own), count), 10_000)
            chosen = list(map(np.array, every))
            chosen = [chosen[i] for i in self.rng.permutation(len(chosen))[:most]]
        starts = []
        for which in chosen:
            moved = means[which]
            if count > own:  # copies at one place would stay together
                noise = self.rng.normal(size=(count, size))
                moved = moved + 0.3 * np.einsum("kij,kj->ki", factors[which], noise)
            logs = log_weights[which] - np.logaddexp.reduce(log_weights[which])
            starts.append(unchecked(logs, moved, factors[which]))
        return starts

    def _random(self) -> GaussianMixture:
        """Centers where the target is, wide or narrow."""
        count, size = self.num_components, self.given.dim
        at = self.rng.choice(len(self.given.masses), size=count, p=self.given.masses)
        scale = 10 ** self.rng.uniform(-1, 0)
        factors = np.broadcast_to(scale * np.eye(size), (count, size, size))
        logs = np.full(count, -np.log(count))
        means = self.given.cloud[at] + 0.1 * scale * self.rng.normal(size=(count, size))
        return unchecked(logs, means, factors)


def _in_order(mixture: GaussianMixture) -> GaussianMixture:
    order = np.argsort(np.asarray(mixture.means)[:, 0], kind="stable")
    return jax.tree.map(lambda x: np.asarray(x)[order], mixture)
