"""A divergence times a number, as a trainer's own term often is."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget.divergences._base import Divergence


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Scaled(Divergence):
    """``factor · D``: the target at β is that of D at ``factor · β``.

    Args:
        base: a divergence without parameters that are arrays.
        factor: above 0.

    Raises:
        TypeError: ``base`` is no divergence.
        ValueError: ``factor`` is not a number above 0.

    Example:
        >>> import kltarget as kt
        >>> from kltarget.divergences import Scaled
        >>> half = Scaled(kt.ChiSquared(), 0.5)
        >>> print(half.name, half.f_prime(3.0))
        0.5 × χ² 2.0
    """

    base: Divergence
    factor: float

    def __post_init__(self) -> None:
        if not isinstance(self.base, Divergence):
            raise TypeError(f"base must be a Divergence, got {type(self.base).__name__}")
        if not 0 < float(self.factor) < float("inf"):
            raise ValueError(f"factor must be a number above 0, got {self.factor!r}")

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The factor and the name of what it multiplies."""
        return f"{self.factor:.4g} × {self.base.title}"

    @property
    def _linear(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.factor * self.base._linear

    @property
    def _flats(self) -> tuple[tuple[float, float], ...]:  # type: ignore[override]
        return self.base._flats

    def f(self, u: ArrayLike) -> Array:
        return self.factor * self.base.f(u)

    def f_prime(self, u: ArrayLike) -> Array:
        return self.factor * self.base.f_prime(u)

    def f_second(self, u: ArrayLike) -> Array:
        return self.factor * self.base.f_second(u)

    def f_prime_inverse(self, s: ArrayLike) -> Array:
        return self.base.f_prime_inverse(jnp.asarray(s) / self.factor)

    @property
    def slope_at_infinity(self) -> Array:
        return self.factor * self.base.slope_at_infinity

    def _curved(self, log_p: Array, log_q: Array) -> Array:
        return self.factor * self.base._curved(log_p, log_q)

    def _bregman(self, log_p: Array, log_p_star: Array, log_q: Array) -> Array:
        return self.factor * self.base._bregman(log_p, log_p_star, log_q)

    def _f_prime_at(self, log_u: Array) -> Array:
        return self.factor * self.base._f_prime_at(log_u)

    def _slope(self, log_p: Array, log_q: Array) -> Array:
        return self.factor * self.base._slope(log_p, log_q)

    def _log_inverse(self, s: Array) -> Array:
        return self.base._log_inverse(s / self.factor)

    def _log_elasticity(self, log_u: Array) -> Array:
        return self.base._log_elasticity(log_u) - jnp.log(jnp.asarray(self.factor, log_u.dtype))
