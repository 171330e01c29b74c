"""What every target answers: bases whose subclasses write a few methods and inherit the rest."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import traced, typed_key
from kltarget._core.numerics import as_float
from kltarget._core.status import raise_if_failed
from kltarget.divergences import Scaled
from kltarget.objectives import Objective
from kltarget.objectives._objective import broadcast_fields
from kltarget.targets._target_tables import frame_of, page_of

if TYPE_CHECKING:
    import pandas as pd


class Distribution(abc.ABC):
    """A distribution that belongs to a problem, whether or not it is the best.

    Outcomes are what :meth:`sample` draws, and :meth:`log_prob` takes them: indices of a list,
    points of a space. What is estimated has its error beside it: ``x`` and ``x_error``.
    """

    made_by: ClassVar[str]
    """The function whose result it is."""

    status: Any
    """:class:`~kltarget.Status` bits, shape ``[*batch]``; 0 where there is nothing to say."""

    @abc.abstractmethod
    def log_prob(self, x: Any) -> Float[Array, "..."]:
        """The log-probability, or log-density, of outcomes."""

    @abc.abstractmethod
    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Shaped[Array, "num_samples ..."]:
        """Independent draws of outcomes, shape ``[num_samples, *batch, ...]``."""

    @abc.abstractmethod
    def expectation(self, fn: Any) -> Float[Array, "..."]:
        """``E_π[fn]``."""

    @property
    @abc.abstractmethod
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_π[reward]`` in reward units, shape ``[*batch]``."""

    @property
    @abc.abstractmethod
    def divergence_value(self) -> Float[Array, "*batch"]:
        """The divergence from the reference in nats, shape ``[*batch]``."""

    def raise_if_failed(self) -> Self:
        """This target, or an error naming the first failed row.

        Raises:
            ValueError: a row's status has a failure bit.
        """
        raise_if_failed(self.status, self.made_by)
        return self


class Optimum(Distribution):
    """The distribution that maximises an objective."""

    @property
    @abc.abstractmethod
    def value(self) -> Float[Array, "*batch"]:
        """The maximum J* in reward units, shape ``[*batch]``."""


class OverOutcomes:
    """What log-probabilities of a list of outcomes answer, whatever they are those of."""

    log_probs: Float[Array, "*batch A"]

    @property
    def probs(self) -> Float[Array, "*batch A"]:
        """The probabilities π, shape ``[*batch, A]``."""
        return jnp.exp(self.log_probs)

    def log_prob(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of outcomes.

        Args:
            x: indices of outcomes, integers whose shape broadcasts against ``*batch``.

        Returns:
            Log-probabilities, of the broadcast shape; NaN where there is no such outcome.

        Example:
            >>> import jax, jax.numpy as jnp, kltarget as kt
            >>> even = jnp.log(jnp.full(2, 0.5))
            >>> target = kt.solve(kt.Objective(jnp.array([0.0, 1.0]), even, 1.0))
            >>> print([f"{jnp.exp(p):.4f}" for p in target.log_prob(jnp.array([0, 1, 1]))])
            ['0.2689', '0.7311', '0.7311']
        """
        return log_prob_of(self.log_probs, x)

    def expectation(self, fn: Callable[[Array], ArrayLike] | ArrayLike) -> Float[Array, "..."]:
        """``E_π[fn]``.

        Args:
            fn: values of the outcomes, shape ``[A, ...]``, or a function of their indices ``[A]``
                that gives them. Values of impossible outcomes do not count.

        Returns:
            Shape ``[*batch, ...]``.

        Example:
            >>> import jax.numpy as jnp, kltarget as kt
            >>> even = jnp.log(jnp.full(2, 0.5))
            >>> target = kt.solve(kt.Objective(jnp.array([0.0, 1.0]), even, 1.0))
            >>> print(f"{target.expectation([0.0, 4.0]):.4f}")
            2.9242
        """
        return mean_of(fn, self.probs)

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Int[Array, "num_samples *batch"]:
        """Independent draws of outcomes.

        Args:
            key: a JAX random key.
            num_samples: how many, per row.

        Returns:
            Outcome indices, shape ``[num_samples, *batch]``.

        Example:
            >>> import jax, jax.numpy as jnp, kltarget as kt
            >>> even = jnp.log(jnp.full(2, 0.5))
            >>> target = kt.solve(kt.Objective(jnp.array([0.0, 99.0]), even, 1.0))
            >>> print(target.sample(key=jax.random.key(0), num_samples=4))
            [1 1 1 1]
        """
        shape = (num_samples, *self.log_probs.shape[:-1])
        return jax.random.categorical(typed_key(key), self.log_probs, axis=-1, shape=shape)


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteTarget(OverOutcomes, Distribution):
    """A policy over a list of outcomes, with the objective it belongs to.

    Attributes:
        objective: reward, reference, beta and divergence.
        log_probs: log π, shape ``[*batch, A]``; ``-inf`` where exactly 0.
        multiplier: λ in reward units, shape ``[*batch]``.
        status: :class:`Status` bits, shape ``[*batch]``.
    """

    objective: Objective
    log_probs: Float[Array, "*batch A"]
    multiplier: Float[Array, "*batch"]
    status: Int[Array, "*batch"]

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_π[reward]`` in reward units, shape ``[*batch]``."""
        return _expected_reward(self.objective, self.log_probs)

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """``D(π, π_ref)`` in nats, the objective's own divergence, shape ``[*batch]``."""
        return _divergence_value(self.objective, self.log_probs)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each outcome of each problem.

        Returns:
            Columns ``row`` if there is a batch axis (``row 0``, ``row 1``, … if there are several),
            ``outcome``, ``beta``, ``reward``, ``log_ref`` and ``log_prob``, natural logarithms.

        Raises:
            TypeError: under a trace, where there are no numbers.

        Example:
            >>> import jax.numpy as jnp, kltarget as kt
            >>> even = jnp.log(jnp.full(2, 0.5))
            >>> frame = kt.solve(kt.Objective(jnp.array([0.0, 1.0]), even, 1.0)).to_dataframe()
            >>> print(frame.round(3).to_string(index=False))
             outcome  beta  reward  log_ref  log_prob
                   0   1.0     0.0   -0.693    -1.313
                   1   1.0     1.0   -0.693    -0.313
        """
        return frame_of(self)

    def _repr_html_(self) -> str | None:
        # Under a trace there are no numbers to show, and the line of text is shown instead.
        return None if traced(self.log_probs) else page_of(self).to_html()


@dataclasses.dataclass(frozen=True, eq=False)
class StationaryPolicy(DiscreteTarget):
    """A policy at which a trainer's gradient vanishes; what maximum that is, if any, is not said.

    Attributes:
        objective: of the same reward, reference, beta and divergence. This policy need not be its
            maximiser: ``kt.solve(objective).gap(log_probs)`` says by how much it falls short.
        log_probs: log π, shape ``[*batch, A]``.
        multiplier: λ in reward units, shape ``[*batch]``.
        status: :class:`Status` bits, shape ``[*batch]``.
    """

    @property
    def objective_value(self) -> Float[Array, "*batch"]:
        """The objective at this policy, in reward units, shape ``[*batch]``.

        ``E_π[reward] − beta · D(π, π_ref)``, at most the maximum, ``-inf`` where the divergence is
        infinite. It has the derivatives of what it is.
        """
        return _objective_value(self.objective, self.log_probs)


def log_prob_of(log_probs: Array, x: ArrayLike) -> Array:
    """Entries of ``log_probs [*batch, A]`` at indices that broadcast against ``*batch``."""
    at, batch = jnp.asarray(x), log_probs.shape[:-1]
    shape = jnp.broadcast_shapes(at.shape, batch)
    rows = jnp.meshgrid(*map(jnp.arange, batch), indexing="ij", sparse=True) if batch else []
    places = tuple(jnp.broadcast_to(i, shape) for i in (*rows, at))
    return log_probs.at[places].get(mode="fill", fill_value=jnp.nan)


def mean_of(fn: Callable[[Array], ArrayLike] | ArrayLike, probs: Array) -> Array:
    """``E[fn]`` of values by outcome ``[A, ...]``, or of a function that gives them."""
    size = probs.shape[-1]
    values = as_float(fn(jnp.arange(size)) if callable(fn) else fn).astype(probs.dtype)
    if not values.ndim or len(values) != size:
        raise ValueError(
            f"fn gives values of shape {values.shape}, but there are {size} outcomes: the first "
            f"axis must be {size}"
        )
    return mix(probs, values.reshape(size, -1)).reshape(*probs.shape[:-1], *values.shape[1:])


def mix(probs: Array, values: Array) -> Array:
    """Sums over outcomes of ``probs [*batch, A]`` times ``values [A, E]``."""
    counted = jnp.where((probs > 0)[..., None], values, 0.0)
    return jnp.einsum("...n,...ne->...e", probs, counted, precision="highest")


# One program each, where outside of a trace every operation would be compiled by itself.
@functools.partial(jax.jit, inline=True)
def _expected_reward(objective: Objective, log_probs: Array) -> Array:
    reward, *_ = broadcast_fields(objective)
    exact = log_probs.astype(reward.dtype)
    gain = jnp.exp(exact) * jnp.where(exact > -jnp.inf, reward, jnp.zeros_like(reward))
    return gain.sum(-1).astype(log_probs.dtype)


@functools.partial(jax.jit, inline=True)
def _divergence_value(objective: Objective, log_probs: Array) -> Array:
    reward, log_ref, _, divergence = broadcast_fields(objective)
    total = divergence._total(log_probs.astype(reward.dtype), log_ref).astype(log_probs.dtype)
    own = objective.divergence
    return own.factor * total if isinstance(own, Scaled) else total


@functools.partial(jax.jit, inline=True)
def _objective_value(objective: Objective, log_probs: Array) -> Array:
    reward, log_ref, beta, divergence = broadcast_fields(objective)
    exact = log_probs.astype(reward.dtype)
    failed = jnp.any(jnp.isnan(exact), axis=-1, keepdims=True)
    endless = ~jnp.isfinite(divergence._integrand(exact, log_ref))
    # Where the divergence is not finite, neither must its derivatives be formed.
    finite = ~jnp.any(endless, axis=-1, keepdims=True) & ~failed
    cost = divergence._total(jnp.where(finite, exact, log_ref), log_ref)
    value = _expected_reward(objective, log_probs).astype(reward.dtype) - beta[..., 0] * cost
    value = jnp.where(finite[..., 0], value, jnp.where(failed[..., 0], jnp.nan, -jnp.inf))
    return value.astype(log_probs.dtype)
