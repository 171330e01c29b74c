"""What samples buy: the expected divergence of maximum likelihood from what it converges to."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kltarget._core import checks
from kltarget._core.numerics import widest, working_dtype
from kltarget._core.pytrees import pytree
from kltarget.projections._moments import moment_projection

Direction = Literal["reverse", "forward"]
_WEIGHTS = {"reverse": (-1 / 6, 1 / 12), "forward": (-1 / 3, 1 / 4)}
"""Of third and fourth moments over squares and cubes of masses, in either direction."""


@pytree
class SamplingRisk:
    """The expected divergence of a fit to samples from the fit to all there is, to order n⁻².

    Attributes:
        log_probs: what fits converge to, the projection of the target on the family,
            ``[*batch, A]``.
        num_parameters: p, the dimension of the family on the target's support, ``[*batch]``.
        effective_parameters: twice the limit of n times the risk, ``[*batch]``. It is p where the
            family holds the target and samples come from it.
        second_order: the limit of n² times what is left of the risk, in nats, ``[*batch]``.
        divergence_value: ``effective_parameters/2n + second_order/n²`` in nats, ``[*batch]``.
        effective_samples: of the target itself so many would have the same first-order risk,
            ``n p/effective_parameters``, ``[*batch]``.
        missing_mass: expected mass of outcomes that no sample shows, exact, ``[*batch]``; the
            expansion says little where it is not small beside the risk.
    """

    log_probs: Float[Array, "*batch A"]
    num_parameters: Int[Array, "*batch"]
    effective_parameters: Float[Array, "*batch"]
    second_order: Float[Array, "*batch"]
    divergence_value: Float[Array, "*batch"]
    effective_samples: Float[Array, "*batch"]
    missing_mass: Float[Array, "*batch"]

    @property
    def bayes_error(self) -> Float[Array, "*batch"]:
        """A lower bound on how often a judge errs who must tell the fit from its limit, ½ at most.

        The judge sees one sample of either, with even odds, and knows both laws. By Pinsker's and
        Jensen's inequalities the mean rate of errors ``½(1 − E TV)`` is at least
        ``½(1 − √(risk/2))``, to the order of the risk, and at least 0. NaN where the expansion is
        below 0 and says nothing.
        """
        return (1 - jnp.sqrt(jnp.minimum(self.divergence_value, 2) / 2)) / 2

    def num_samples_for(self, divergence: ArrayLike) -> Float[Array, "*batch"]:
        """The number n of samples whose risk is this, to second order: the p–n criterion.

        Args:
            divergence: the risk that is wanted, in nats, above 0; broadcasts to ``*batch``. For
                errors of ½ − ε, see :attr:`bayes_error`, it is ``8 ε²``.

        Returns:
            n, as a float; NaN where the expansion never has that risk.

        Raises:
            ValueError: outside a trace, what is not above 0.

        Example:
            >>> import jax.numpy as jnp
            >>> from kltarget.projections import sampling_risk
            >>> risk = sampling_risk(jnp.log(jnp.full(10, 0.1)), 100)
            >>> needed = risk.num_samples_for(8 * 0.05**2)
            >>> print(f"{needed:.0f} samples for a rate of errors of 0.45")
            227 samples for a rate of errors of 0.45

        References:
            Sheena, 2021, arXiv 2105.08947, who bounds the error's rate by an inequality of his own.
        """
        wanted = checks.float_argument(divergence, "divergence")
        if not checks.traced(wanted):
            checks.raise_first("divergence", wanted, ~(wanted > 0), "must be above 0")
        half, second = self.effective_parameters / 2, self.second_order
        half, second, wanted = jnp.broadcast_arrays(half, second, wanted.astype(half.dtype))
        inside = half**2 + 4 * wanted * second
        root = jnp.sqrt(jnp.where(inside >= 0, inside, jnp.nan))
        return (half + root) / (2 * wanted)


def sampling_risk(
    log_target: ArrayLike,
    num_samples: ArrayLike,
    *,
    log_proposal: ArrayLike | None = None,
    features: ArrayLike | None = None,
    log_ref: ArrayLike | None = None,
    direction: Direction = "reverse",
) -> SamplingRisk:
    """The expected KL of maximum likelihood on n samples from its limit, to second order.

    A policy is fitted to n independent samples of a target p, or to n samples of a proposal ρ with
    the self-normalised weights ``p/ρ``, as one-shot Boltzmann projection does with those of the
    reference and weights ``e^{r/β}``. Fits converge to the projection ``q = argmin KL(p‖q)``. For a
    target of reverse KL, β times the reverse risk ``E[KL(fit‖p)]`` is the expected
    :meth:`~kltarget.Target.gap` of the fitted policy.

    Args:
        log_target: log-probabilities of p, ``[*batch, A]``; ``-inf`` means impossible.
        num_samples: n, of any shape that broadcasts against ``*batch``.
        log_proposal: log-probabilities of ρ, by default of p; samples are then unweighted.
        features: φ of the exponential family ``log_ref e^{η·φ}/Z`` that is fitted, ``[A, F]``. By
            default every distribution can be fitted, as by a tabular policy.
        log_ref: the member of the family at η = 0, ``[*batch, A]``, by default p. Only with
            features.
        direction: ``"reverse"`` for ``KL(fit‖q)``, ``"forward"`` for ``KL(q‖fit)``. The latter is
            infinite for samples that miss an outcome altogether: it is then the expansion of the
            mean over all other samples.

    Returns:
        The risk with its parts. They do not know of the family's misfit ``KL(p‖q)``, which no
        samples mend.

    Raises:
        TypeError: complex numbers.
        ValueError: shapes that do not fit; outside a trace, laws that are not normalised, n below
            1, a proposal without mass where the target has some.

    Outcomes where p has no mass do not count. Differentiable in the target and the proposal. Works
    under ``jit`` and ``vmap``; under a trace a proposal that lacks outcomes gives ``inf`` or NaN.

    Example:
        A thousand samples of a reference, weighted to be of its target, are worth 862 of it:

        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.projections import sampling_risk
        >>> log_ref = jnp.log(jnp.array([0.4, 0.3, 0.15, 0.1, 0.05]))
        >>> reward = jnp.array([0.1, 0.5, 1.0, 0.9, 0.3])
        >>> target = kt.solve(kt.Objective(reward, log_ref, 0.5))
        >>> drawn = sampling_risk(target.log_probs, 1000)
        >>> weighted = sampling_risk(target.log_probs, 1000, log_proposal=log_ref)
        >>> print(f"{drawn.divergence_value:.5f} {weighted.divergence_value:.5f}")
        0.00200 0.00233
        >>> print(f"{weighted.effective_samples:.0f}")
        862

    References:
        Sheena, "MLE convergence speed to information projection of exponential family: Criterion
        for model dimension and sample size", 2021, arXiv 2105.08947. Shu et al., "Reference-Sampled
        Boltzmann Projection for KL-Regularized RLVR", 2026, arXiv 2605.02469. Both KLs are
        expanded to the fourth order of ``δ = E_n[w(φ − μ)]/E_n[w]``, the error of the fitted means:
        ``½ψ″δ² + ⅙ψ‴δ³ + ψ⁗δ⁴/24`` in reverse and ``½ψ″δ² + ⅓ψ‴δ³ + ψ⁗δ⁴/8`` forward, ψ the
        convex conjugate of log Z.
    """
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {get_args(Direction)}, got {direction!r}")
    given = {"log_target": log_target, "log_proposal": log_proposal, "log_ref": log_ref}
    if log_ref is not None and features is None:
        raise ValueError("log_ref is of an exponential family: give its features too")
    laws = checks.float_arguments(**{k: x for k, x in given.items() if x is not None})
    for name, law in laws.items():
        checks.require_outcomes(law, name)
        if law.shape[-1] != laws["log_target"].shape[-1]:
            raise ValueError(
                f"{name} has shape {law.shape}, but log_target {laws['log_target'].shape}: both "
                "need the same last axis of outcomes"
            )
    number = checks.float_argument(num_samples, "num_samples")
    shapes = [*(x.shape[:-1] for x in laws.values()), number.shape]
    with checks.worded(
        f"the batch axes of the laws and of num_samples, {shapes}, do not broadcast"
    ):
        batch = jnp.broadcast_shapes(*shapes)
    if not checks.traced(number, *laws.values()):
        checks.raise_first("num_samples", number, ~(number >= 1), "must be 1 or more")
        checks.require_normalized(**laws)
        p, rho = (laws.get(k, laws["log_target"]) for k in ("log_target", "log_proposal"))
        p, rho = jnp.broadcast_arrays(p, rho)
        lacking = np.asarray((p > -jnp.inf) & (rho == -jnp.inf))
        rule = "must have mass wherever log_target has"
        checks.raise_first("log_proposal", rho, lacking, rule)
    dtype = widest(*(x.dtype for x in laws.values()))
    target = jnp.broadcast_to(laws["log_target"], (*batch, laws["log_target"].shape[-1]))
    proposal = jnp.broadcast_to(laws.get("log_proposal", target), target.shape)
    target, proposal = (x.astype(working_dtype(dtype)) for x in (target, proposal))
    if features is None:
        limit, phi = target, None
    else:
        phi = checks.float_argument(features, "features").astype(target.dtype)
        if phi.ndim != 2 or phi.shape[0] != target.shape[-1]:
            raise ValueError(
                f"features has shape {phi.shape}, but log_target {target.shape}: it needs shape "
                f"[{target.shape[-1]}, F], one row per outcome"
            )
        limit = target
        if "log_ref" in laws:
            means = jnp.matmul(jnp.exp(target), phi, precision="highest")
            limit = moment_projection(laws["log_ref"].astype(target.dtype), phi, means).log_probs
    return _risk(target, proposal, limit, phi, number.astype(target.dtype), direction, dtype)


class _Parts(NamedTuple):
    """Dimension, ``E δ²`` to first and second order, and what higher orders add, by direction."""

    size: Array
    first: Array
    second: Array
    third: Array
    fourth: Array


@jax.jit(static_argnames=("direction", "dtype"))
def _risk(
    target: Array,
    proposal: Array,
    limit: Array,
    features: Array | None,
    number: Array,
    direction: Direction,
    dtype: np.dtype,
) -> SamplingRisk:
    on = target > -jnp.inf
    p = jnp.exp(target)
    log_weight = jnp.where(on, target, 0.0) - jnp.where(on, proposal, 0.0)
    weight = jnp.where(on, jnp.exp(log_weight), 0.0)
    if features is None:
        parts = _of_every_law(p, weight, on)
    else:
        parts = _of_family(p, weight, jnp.exp(limit), features)
    third, fourth = _WEIGHTS[direction]
    second = parts.second / 2 + third * parts.third + fourth * parts.fourth
    number = jnp.broadcast_to(number, p.shape[:-1])
    value = parts.first / (2 * number) + second / number**2
    unseen = jnp.where(on, number[..., None] * jnp.log1p(-jnp.exp(proposal)), -jnp.inf)
    # A single outcome leaves nothing to learn.
    some = parts.first > 0
    worth = jnp.where(some, parts.size.astype(p.dtype) / jnp.where(some, parts.first, 1.0), 1.0)
    missing = (p * jnp.exp(unseen)).sum(-1)
    floats = (limit, parts.first, second, value, number * worth, missing)
    limit, *floats = (x.astype(dtype) for x in floats)
    return SamplingRisk(limit, parts.size.astype(jnp.int32), *floats)


def _of_every_law(p: Array, weight: Array, on: Array) -> _Parts:
    """Fitted masses are ``Σw 1[x=i]/Σw``: a sum over outcomes, each by itself."""
    q = jnp.where(on, p, 1.0)
    square, cube = p * weight, p * weight**2
    total, total_cube = (x.sum(-1, keepdims=True) for x in (square, cube))
    spread = square * (1 - 2 * p) + p**2 * total
    skew = cube * ((1 - p) ** 3 + p**3) - p**3 * total_cube
    tied = square - p * total
    second = -2 * (cube * (1 - 2 * p) + p**2 * total_cube - spread)
    second = second + 3 * ((total - 1) * spread + 2 * tied**2)
    skew = skew - 9 * spread * tied
    terms = (spread / q, second / q, skew / q**2, 3 * spread**2 / q**3)
    return _Parts(on.sum(-1) - 1, *(jnp.where(on, x, 0.0).sum(-1) for x in terms))


def _of_family(p: Array, weight: Array, limit: Array, features: Array) -> _Parts:
    """In coordinates in which the features of the limit are uncorrelated and of unit variance."""

    def einsum(subscripts: str, *arrays: Array) -> Array:
        return jnp.einsum(subscripts, *arrays, precision="highest")

    center = einsum("...a,af->...f", p, features)
    features = jnp.broadcast_to(features, (*p.shape, features.shape[1]))
    apart = jnp.where((limit > 0)[..., None], features - center[..., None, :], 0.0)
    values, axes = jnp.linalg.eigh(einsum("...a,...ai,...aj->...ij", limit, apart, apart))
    varied = values > 64 * features.shape[-1] * jnp.finfo(p.dtype).eps * values[..., -1:]
    scale = jnp.where(varied, 1 / jnp.sqrt(jnp.where(varied, values, 1.0)), 0.0)
    z = einsum("...af,...fi->...ai", apart, axes * scale[..., None, :])
    square, cube = p * weight, p * weight**2
    spread = einsum("...a,...ai,...aj->...ij", square, z, z)
    tied = einsum("...a,...ai->...i", square, z)
    lengths = (z**2).sum(-1)
    excess = square.sum(-1) - 1
    first = (square * lengths).sum(-1)
    second = -2 * ((cube - square) * lengths).sum(-1)
    second = second + 3 * (excess * first + 2 * (tied**2).sum(-1))
    own = einsum("...a,...ai,...aj,...ak->...ijk", limit, z, z, z)
    skew = einsum("...a,...ai,...aj,...ak->...ijk", cube, z, z, z)
    third = (own * skew).sum((-3, -2, -1)) - 9 * einsum("...ijk,...ij,...k->...", own, spread, tied)
    turned = einsum("...ai,...ij,...aj->...a", z, spread, z)
    kurtosis = (limit * turned**2).sum(-1) - first**2 - 2 * (spread**2).sum((-2, -1))
    bent = einsum("...ijm,...ij->...m", own, spread)
    twisted = einsum("...ikm,...ij->...jkm", own, spread)
    crossed = einsum("...jkm,...jlm,...kl->...", twisted, own, spread)
    fourth = -kurtosis + (bent**2).sum(-1) + 2 * crossed
    # As those of all laws: over squares of masses with the sign of δ³, and threefold over cubes.
    return _Parts(varied.sum(-1), first, second, third, 3 * fourth / 2)
