"""Targets of any space from samples of the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import common_dtype, float_argument, require_outcomes, traced
from kltarget._core.matrices import times
from kltarget._core.numerics import log_sum_exp, working_dtype
from kltarget._core.pytrees import pytree
from kltarget.divergences import Divergence, ReverseKL, TotalVariation
from kltarget.objectives import Objective
from kltarget.objectives._objective import broadcast_fields
from kltarget.objectives._point_rewards import QuadraticReward
from kltarget.targets._protocol import Optimum, mix
from kltarget.targets.discrete._solve import Target, solve
from kltarget.targets.mixtures._expansion import quadratic_of


@pytree
class SampleTarget(Optimum):
    """Weights that turn N samples of the reference into an estimate of the target.

    Attributes:
        target: the discrete target on the samples and, as its last outcome, at ``atom``,
            where the reference has no mass. Its log-probabilities are the weights'.
        points: the samples, shape ``[N, d]``.
        atom: the maximiser of the reward, shape ``[d]``; the best sample where none is known.
    """

    made_by = "solve"

    target: Target
    points: Float[Array, "N d"]
    atom: Float[Array, " d"]

    @property
    def weights(self) -> Float[Array, "*batch N"]:
        """The samples' shares of the target; they sum to ``1 − atom_mass``."""
        return self.target.probs[..., :-1]

    @property
    def atom_mass(self) -> Float[Array, "*batch"]:
        """The point mass at ``atom``."""
        return self.target.probs[..., -1]

    @property  # pyright: ignore[reportIncompatibleVariableOverride]
    def status(self) -> Int[Array, "*batch"]:
        """:class:`~kltarget.Status` bits; ``CONDENSED`` says that there is an atom."""
        return self.target.status

    @property
    def effective_sample_size(self) -> Float[Array, "*batch"]:
        """``(Σw)²/Σw²`` of the samples' weights, the number of equal ones that are worth as much.

        A size of a few says that standard errors cannot be trusted either: the samples do not
        reach the target.
        """
        log_weights = self.target.log_probs[..., :-1]
        return jnp.exp(2 * log_sum_exp(log_weights) - log_sum_exp(2 * log_weights))[..., 0]

    @property
    def value(self) -> Float[Array, "*batch"]:
        """An estimate of the maximum J* in reward units; for reverse KL of ``β log Z``."""
        return self.target.value

    @property
    def value_error(self) -> Float[Array, "*batch"]:
        """The standard error of ``value``.

        By duality ``J* = min_λ λ + β E_p[f*((r − λ)/β)]``, an average at fixed λ, and to the first
        order λ may be taken for fixed at its optimum: the error is that of the average.
        """
        return _value_error(self.target)

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """An estimate of ``E_π[r]`` in reward units."""
        return self.target.expected_reward

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """An estimate of ``D(π, p)`` in nats."""
        return self.target.divergence_value

    def log_prob(self, x: ArrayLike) -> Float[Array, "..."]:
        """Logarithms of the weights of samples, given by their indices; of the atom at N."""
        return self.target.log_prob(x)

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Int[Array, "num_samples *batch"]:
        """Indices of samples, drawn by their weights, shape ``[num_samples, *batch]``; N: atom."""
        return self.target.sample(key=key, num_samples=num_samples)

    def expectation(self, fn: Callable[[Array], ArrayLike]) -> Float[Array, "..."]:
        """An estimate of ``E_π[fn]``, the weighted mean over the samples and the atom.

        Args:
            fn: a function of points ``[M, d]`` with values ``[M, ...]``.

        Returns:
            Shape ``[*batch, ...]``.
        """
        return self._estimated(fn)[0]

    def expectation_error(self, fn: Callable[[Array], ArrayLike]) -> Float[Array, "..."]:
        """The standard error of ``expectation(fn)``.

        With ``u_i`` the density ratio ``(f′)⁻¹((r_i − λ)/β)`` of a sample, ``h_i`` the value there
        and λ such that the ``u_i`` have mean 1, the estimate is ``mean(u_i h_i)``. λ is estimated
        too: an excess of ``mean(u_i)`` at the true λ lowers ``mean(u_i h_i)`` by c
        times as much, where

            ``c = E_p[u′h]/E_p[u′]``,

        so that to the first order the error is ``mean(u_i (h_i − c)) − (E_π[h] − c)``, an average
        of independent terms, and its variance is theirs over N. For reverse KL ``u′ = u`` and c is
        ``E_π[h]`` itself: the classical ``Σ w_i² (h_i − ĥ)²`` of self-normalised importance
        weights. Where the target has an atom λ is known, the atom takes up what is missing, and c
        is h on the atom.

        Args:
            fn: a function of points ``[M, d]`` with values ``[M, ...]``.

        Returns:
            Shape ``[*batch, ...]``. It is the error of a normal limit, which needs ``u²(h − c)²``
            to have a mean under the reference and is not to be trusted without: next to an atom on
            a quadratic maximum, where forward KL has ``u ∝ 1/|x|²``, in four dimensions and fewer.
        """
        return self._estimated(fn)[1]

    def _estimated(self, fn: Callable[[Array], ArrayLike]) -> tuple[Array, Array]:
        places = jnp.concatenate([self.points, self.atom[None]])
        values = jnp.asarray(fn(places))
        shape = (*self.target.status.shape, *values.shape[1:])
        estimate, error = _expectation(self.target, values.reshape(len(places), -1))
        return estimate.reshape(shape), error.reshape(shape)


def solve_on_samples(
    samples: ArrayLike | Any,
    reward: Callable[[Array], Array] | ArrayLike | Any,
    beta: ArrayLike | Any,
    divergence: Divergence | None = None,
    *,
    maximum: tuple[ArrayLike | Any, ArrayLike | Any] | None = None,
) -> SampleTarget:
    """The policy that maximises ``E_π[r] − beta · D(π, p)``, from samples of p in any dimension.

    p is replaced by the N samples with mass 1/N each, on which :func:`~kltarget.solve` finds the
    target: self-normalised importance weights ``w_i = (f′)⁻¹((r_i − λ)/β)/N``, for reverse KL
    ``∝ e^{r_i/β}``. Estimates are consistent, with a bias of order 1/N. With a finite slope of f
    at infinity (forward KL, α < 1) the optimum may have an atom on the maximiser of r, which is
    an outcome without reference mass and known only if it is given.

    Args:
        samples: independent draws from the reference, shape ``[N, d]``.
        reward: a function of points ``[N, d]`` with values ``[N]``, such as
            :class:`QuadraticReward`, or the samples' rewards, shape ``[N]``; any real unit.
        beta: coefficient of the divergence in reward units per nat, shape ``[*batch]``.
        divergence: any f-divergence, :class:`ReverseKL` by default.
        maximum: the maximiser of the reward ``[d]`` and the reward there. By default that of a
            negative definite quadratic reward. Without it an optimum with an atom puts the atom's
            mass on the best samples, and ``effective_sample_size`` stays small as N grows.

    Returns:
        A :class:`SampleTarget`. Pure: works under ``jit``, ``vmap`` and ``grad``, the derivatives
        being those of the estimates at fixed samples, in reward, β and the divergence.

    Raises:
        ValueError: shapes that do not fit; a sample with a reward above that of ``maximum``; what
            :class:`~kltarget.Objective` refuses.

    Rewards of ``-inf`` forbid samples.

    Example:
        >>> import jax, jax.numpy as jnp, kltarget as kt
        >>> from kltarget import mixtures
        >>> x = jax.random.normal(jax.random.key(0), (4000, 5))
        >>> slope = mixtures.QuadraticReward(vector=[1.0, 0.0, 0.0, 0.0, 0.0])
        >>> target = mixtures.solve_on_samples(x, slope, 2.0)  # the target's mean is 1/2, 0, …
        >>> mean = target.expectation(lambda x: x[:, 0])
        >>> error = target.expectation_error(lambda x: x[:, 0])
        >>> print(abs(mean - 0.5) < 3 * error, 0.01 < error < 0.03)
        True True

    References:
        Owen, "Monte Carlo theory, methods and examples", 2013, ch. 9 (self-normalised weights).
        Van der Vaart, "Asymptotic Statistics", 1998, §5.3 (estimated multipliers).
    """
    points = float_argument(samples, "samples")
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"samples has shape {points.shape}: it needs shape [N, d]")
    divergence = ReverseKL() if divergence is None else divergence
    coefficient = float_argument(beta, "beta")
    dtype = working_dtype(common_dtype([samples, beta], [points, coefficient]))
    points, coefficient = points.astype(dtype), coefficient.astype(dtype)
    rewards = float_argument(reward(points) if callable(reward) else reward, "reward").astype(dtype)
    require_outcomes(rewards, "reward")
    if rewards.shape != points.shape[:1]:
        raise ValueError(
            f"reward has shape {rewards.shape} for samples {points.shape}: it needs one number "
            f"per sample, shape {points.shape[:1]}"
        )
    place, top = points[jnp.argmax(rewards)], jnp.full((), -jnp.inf, dtype)
    if maximum is not None:
        place, top = (jnp.asarray(x, dtype) for x in maximum)
        if place.shape != points.shape[1:] or top.shape != ():
            raise ValueError(
                f"maximum has shapes {place.shape} and {top.shape}: it needs a point of shape "
                f"{points.shape[1:]} and its reward"
            )
    elif (quadratic := quadratic_of(reward)) is not None:
        place, top = _peak(quadratic, place)
    if not traced(rewards, top) and top > -jnp.inf:
        found, most, at = np.asarray(rewards, np.float64), float(top), int(rewards.argmax())
        slack = 64 * float(jnp.finfo(dtype).eps) * (abs(most) + np.abs(found).max())
        if found[at] > most + slack:
            raise ValueError(
                f"maximum has the reward {most:.10g}, but sample {at} has {found[at]:.10g}"
            )
    log_ref = jnp.append(jnp.full(rewards.shape, -np.log(len(points)), dtype), -jnp.inf)
    objective = Objective(jnp.append(rewards, top), log_ref, coefficient, divergence)
    return SampleTarget(solve(objective), points, place)


@jax.jit
def _value_error(target: Target) -> Array:
    """The standard error of ``mean(β f*((r − λ)/β))``."""
    reward, log_ref, beta, divergence = broadcast_fields(target.objective)
    log_probs = target.log_probs.astype(reward.dtype)[..., :-1]
    reward, log_ref = reward[..., :-1], log_ref[..., :-1]
    slope = (reward - target.multiplier.astype(reward.dtype)[..., None]) / beta
    probs = jnp.exp(log_probs)
    conjugate = jnp.where(probs > 0, probs * slope, 0.0)
    conjugate = conjugate - divergence._integrand(log_probs, log_ref)
    apart = conjugate - conjugate.mean(-1, keepdims=True)
    error = beta[..., 0] * jnp.sqrt(jnp.square(apart).sum(-1))
    return error.astype(target.log_probs.dtype)


@jax.jit
def _expectation(target: Target, values: Array) -> tuple[Array, Array]:
    """Means of ``values [N + 1, E]`` and their standard errors, ``[*batch, E]``."""
    _, log_ref, _, divergence = broadcast_fields(target.objective)
    values = values.astype(log_ref.dtype)
    log_probs = target.log_probs.astype(log_ref.dtype)
    probs = jnp.exp(log_probs)
    estimate = mix(probs, values)
    best = values[jnp.argmax(target.objective.reward)]
    pivot = at_best = jnp.broadcast_to(best, estimate.shape)
    if not isinstance(divergence, TotalVariation):  # of which λ follows the best outcome always
        on = (log_probs > -jnp.inf) & (log_ref > -jnp.inf)
        log_u = jnp.where(on, log_probs, 0.0) - jnp.where(on, log_ref, 0.0)
        log_rate = jnp.where(on, log_probs + divergence._log_elasticity(log_u), -jnp.inf)
        pivot = mix(jnp.exp(log_rate - log_sum_exp(log_rate)), values)
        condensed = (log_probs[..., -1:] > -jnp.inf) & jnp.isneginf(log_ref[..., -1:])
        pivot = jnp.where(condensed, at_best, pivot)
    weights = probs[..., :-1, None]
    apart = jnp.broadcast_to(values[:-1], (*weights.shape[:-1], values.shape[-1]))
    terms = weights * (apart - pivot[..., None, :])
    terms = terms - terms.mean(-2, keepdims=True)
    error = jnp.sqrt(jnp.square(terms).sum(-2))
    dtype = target.log_probs.dtype
    return estimate.astype(dtype), error.astype(dtype)


def _peak(reward: QuadraticReward, otherwise: Array) -> tuple[Array, Array]:
    """Maximiser and maximum of a quadratic reward, reward ``-inf`` where it has none."""
    dtype = otherwise.dtype
    matrix, vector = reward.matrix.astype(dtype), reward.vector.astype(dtype)
    if matrix.ndim > 2 or vector.ndim > 1 or reward.constant.ndim:
        raise ValueError(f"reward has batch shape {reward.batch_shape}: map over it")
    values = jnp.linalg.eigvalsh(jax.lax.stop_gradient(matrix))
    peaked = values.max() < -1e-6 * jnp.abs(values).max()
    eye = jnp.eye(matrix.shape[0], dtype=dtype)
    place = jnp.linalg.solve(jnp.where(peaked, -matrix, eye), vector)
    bent = times(matrix, place)
    top = reward.constant.astype(dtype) + (place * (vector + bent / 2)).sum()
    return jnp.where(peaked, place, otherwise), jnp.where(peaked, top, -jnp.inf)
