"""The f-divergence of a generator that is known as a function only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.numerics import as_float
from kltarget.divergences._base import Divergence


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FDivergence(Divergence):
    """The f-divergence of a generator the caller writes.

    ``D_f(π‖π_ref) = Σ π_ref f(π/π_ref)``. The derivatives come from automatic differentiation of
    ``f`` and ``(f′)⁻¹`` from a bracketed root in log u, unless they are given.

    Args:
        f: a convex function of the density ratio ``u ≥ 0`` with ``f(1) = 0``, written with
            ``jax.numpy``, elementwise; its value at 0 is what a lost outcome costs.
        f_prime_inverse: ``(f′)⁻¹`` elementwise, on arguments between ``f′(0)`` and ``f′(∞)``.
        slope_at_infinity: ``f′(∞)``. By default read off ``f′`` at large ``u``: its limit if ``f′``
            settles there or approaches it at least as fast as ``u^{−1/5}``, else ``inf``.
        name: how reports call it.

    Raises:
        ValueError: ``f(1)`` is not 0, or ``f″(1)`` is not positive.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> le_cam = kt.FDivergence(lambda u: (1 - u) ** 2 / (2 * (1 + u)), name="Le Cam")
        >>> print(f"{le_cam.f_prime(2.0):.4f} {le_cam.slope_at_infinity:.4f}")
        0.2778 0.5000

    References:
        Go et al., "Aligning Language Models with Preferences through f-divergence Minimization",
        2023, arXiv 2302.08215.
    """

    generator: Callable[[Array], Array]
    inverse: Callable[[Array], Array] | None
    slope: float | None
    name: str  # type: ignore[misc]

    def __init__(
        self,
        f: Callable[[Array], Array],
        *,
        f_prime_inverse: Callable[[Array], Array] | None = None,
        slope_at_infinity: float | None = None,
        name: str = "f-divergence",
    ) -> None:
        given = (f, f_prime_inverse, slope_at_infinity, name)
        for field, value in zip(dataclasses.fields(self), given, strict=True):
            object.__setattr__(self, field.name, value)
        with jax.ensure_compile_time_eval():
            one = jnp.ones(())
            at_one, curvature = float(f(one)), float(self.f_second(one))
        if not abs(at_one) <= 1e-6:
            raise ValueError(f"f must satisfy f(1) = 0, got f(1) = {at_one}; subtract it")
        if not curvature > 0:
            raise ValueError(
                f"f must be strictly convex at 1, got f''(1) = {curvature}; "
                "TotalVariation is available by name"
            )

    def f(self, u: ArrayLike) -> Array:
        return self.generator(as_float(u))

    def f_prime(self, u: ArrayLike) -> Array:
        return _elementwise_derivative(self.generator)(as_float(u))

    def _slope(self, log_p: Array, log_q: Array) -> Array:
        # f is known of ratios only: one that no float holds has the slope of its limit.
        u = jnp.exp(log_p - log_q)
        log_p = jnp.where(u == 0, -jnp.inf, log_p)
        return super()._slope(log_p, jnp.where(u == jnp.inf, -jnp.inf, log_q))

    def f_second(self, u: ArrayLike) -> Array:
        return _elementwise_derivative(_elementwise_derivative(self.generator))(as_float(u))

    def f_prime_inverse(self, s: ArrayLike) -> Array:
        s = as_float(s)
        if self.inverse is not None:
            inside = s < self.slope_at_infinity
            u = self.inverse(jnp.where(inside, s, jnp.zeros_like(s)))
            return jnp.where(inside, jnp.maximum(u, 0), jnp.full_like(u, jnp.inf))
        top = 0.9 * jnp.log(jnp.finfo(s.dtype).max)
        low, high = jnp.full_like(s, -top), jnp.full_like(s, top)

        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = 0.5 * (low + high)
            above = self.f_prime(jnp.exp(middle)) > lax.stop_gradient(s)
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        low, high = lax.fori_loop(0, jnp.finfo(s.dtype).nmant + 8, halve, (low, high))
        u = lax.stop_gradient(jnp.exp(0.5 * (low + high)))
        # One Newton step on the frozen root polishes it and carries the derivative 1/f″.
        stepped = u - (self.f_prime(u) - s) / self.f_second(u)
        u = jnp.where(stepped > 0, stepped, u)
        u = jnp.where(low <= -0.99 * top, jnp.zeros_like(u), u)
        return jnp.where(s < self.slope_at_infinity, u, jnp.full_like(u, jnp.inf))

    @property
    def slope_at_infinity(self) -> Array:
        if self.slope is not None:
            return jnp.asarray(float(self.slope))
        with jax.ensure_compile_time_eval():
            one = jnp.ones(())
            far = (2.0**16, 2.0**18, 2.0**20)
            first, before, last = (float(self.f_prime(jnp.asarray(x))) for x in far)
            noise = 8 * float(jnp.finfo(one.dtype).eps) * abs(last)
        if abs(last - before) <= noise:
            return jnp.asarray(last)
        # f′ of a power law approaches its limit by steps in a fixed ratio below 1; the logarithm,
        # which has none, by equal steps.
        ratio = (last - before) / (before - first)
        limit = last + (last - before) * ratio / (1 - ratio) if ratio < 0.8 else float("inf")
        return jnp.asarray(limit)


def _elementwise_derivative(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda u: jax.jvp(f, (u,), (jnp.ones_like(u),))[1]
