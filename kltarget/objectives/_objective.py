"""The regularised objective: its value and its gradient at any policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core import checks
from kltarget._core.numerics import working_dtype
from kltarget._core.pytrees import made, register
from kltarget._core.short_repr import short_repr
from kltarget._core.words import short
from kltarget.divergences import Divergence, ReverseKL, Scaled


def normalize(log_weights: ArrayLike) -> Float[Array, "*batch A"]:
    """Log-probabilities proportional to unnormalised weights: ``log w − logsumexp(log w)``.

    Args:
        log_weights: natural logarithms of non-negative weights, shape ``[*batch, A]``; ``-inf``
            means impossible.

    Returns:
        Log-probabilities of the same shape and float dtype; NaN in a row without any weight.

    Raises:
        ValueError: there is no axis of outcomes, or, outside a trace, a NaN or +inf weight or a row
            without any weight.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> print(jnp.exp(kt.normalize(jnp.log(jnp.array([3.0, 1.0])))))
        [0.75 0.25]
    """
    w = checks.float_argument(log_weights, "log_weights")
    checks.require_outcomes(w, "log_weights")
    checks.raise_first("log_weights", w, jnp.isnan(w) | jnp.isposinf(w), "must be below +inf")
    empty = ~jnp.any(w > -jnp.inf, axis=-1)
    checks.raise_first("log_weights", None, empty, "has no outcome with any weight")
    return _normalize(w)


@jax.jit
def _normalize(w: Array) -> Array:
    wide = w.astype(working_dtype(w.dtype))
    return jax.nn.log_softmax(wide, axis=-1).astype(w.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """What is maximised over policies π: ``J(π) = E_π[reward] − beta · D(π, π_ref)``.

    The fields keep their own shapes and are broadcast against each other, so a sweep is one array:
    ``Objective(scale[:, None, None] * r, log_ref, beta)`` with ``scale`` of shape ``[S]``, ``r``
    and ``log_ref`` of shape ``[A]`` and ``beta`` of shape ``[B]`` has batch shape ``[S, B]``.

    Args:
        reward: larger is better, shape ``[*batch, A]``, any real unit; ``-inf`` forbids an outcome.
        log_ref: natural-log reference probabilities, shape ``[*batch, A]``; ``-inf`` means
            impossible. Each row's masses sum to one; :func:`normalize` makes them.
        beta: coefficient of the divergence, in reward units per nat, above 0; its shape broadcasts
            against ``*batch``.
        divergence: the regulariser, :class:`ReverseKL` by default; its array parameters, if any,
            broadcast against ``*batch`` as well.
        measure: accept a reference whose mass is not one. :func:`mara` builds such objectives; a
            reference that merely lost its normalisation belongs in :func:`normalize`.

    Raises:
        TypeError: complex numbers, or a ``divergence`` that is not one.
        ValueError: shapes that do not fit, naming both; and outside a trace: ``beta`` not above 0,
            a NaN or +inf reward, a reference that is NaN or unnormalised, a row without any outcome
            of finite reward and positive reference mass. The message names the argument and the
            first bad index. Under a trace nothing is raised: :func:`solve` sets the row's
            ``status`` and returns NaN there.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> objective = kt.Objective(jnp.array([1.0, 1.0, 0.0]), log_ref, jnp.array([0.1, 1.0]))
        >>> objective.batch_shape
        (2,)
        >>> [f"{value:.4f}" for value in objective.value(log_ref)]  # only the reward counts there
        ['0.3200', '0.3200']
    """

    if TYPE_CHECKING:  # anything that becomes an array may be given; arrays are what is kept

        def __init__(
            self,
            reward: ArrayLike | Sequence[Any],
            log_ref: ArrayLike | Sequence[Any],
            beta: ArrayLike | Sequence[Any],
            divergence: Divergence = ...,
            *,
            measure: bool = False,
        ) -> None: ...

    __repr__ = short_repr

    reward: Float[Array, "*#batch A"]
    log_ref: Float[Array, "*#batch A"]
    beta: Float[Array, "*#batch"]
    divergence: Divergence = dataclasses.field(default_factory=ReverseKL)
    measure: bool = dataclasses.field(default=False, kw_only=True)
    checked: bool = dataclasses.field(default=False, init=False, repr=False)
    """Whether the values were seen and found good; an objective rebuilt from leaves starts over."""

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("reward", "log_ref", "beta")}
        for name, x in checks.float_arguments(**given).items():
            object.__setattr__(self, name, x)
        if not isinstance(self.divergence, Divergence):
            raise TypeError(
                "divergence must be a kltarget.Divergence such as kltarget.ForwardKL(), "
                f"got {self.divergence!r}"
            )
        checks.require_outcomes(self.reward, "reward")
        checks.require_outcomes(self.log_ref, "log_ref")
        if self.reward.shape[-1] != self.log_ref.shape[-1]:
            raise ValueError(
                f"reward has {self.reward.shape[-1]} outcomes and log_ref has "
                f"{self.log_ref.shape[-1]} (shapes {self.reward.shape} and {self.log_ref.shape}); "
                "both need the same last axis"
            )
        with checks.worded(
            f"the batch axes of reward {self.reward.shape[:-1]}, log_ref {self.log_ref.shape[:-1]} "
            f"and beta {self.beta.shape} do not broadcast; outcomes are the last axis of reward "
            "and log_ref, and beta has none"
        ):
            _ = self.batch_shape
        if not checks.traced(self.reward, self.log_ref, self.beta):
            self._check_values()
            object.__setattr__(self, "checked", True)

    @classmethod
    def unchecked(
        cls, reward: Any, log_ref: Any, beta: Any, divergence: Any, *, measure: bool = False
    ) -> Objective:
        """An objective of what is given, neither looked at nor converted.

        For arrays whose shapes and dtype fit and whose values are known to be good, as within a
        search that solves thousands of problems, and for what transformations of JAX put in the
        place of arrays.

        Args:
            reward: an array, shape ``[*batch, A]``.
            log_ref: an array of the same dtype, shape ``[*batch, A]``.
            beta: an array of the same dtype, shape ``[*batch]``.
            divergence: the regulariser.
            measure: whether the reference's mass may be other than one.

        Returns:
            The objective; :func:`solve` checks its values as it does under a trace.

        Example:
            >>> import jax.numpy as jnp, kltarget as kt
            >>> reward, log_ref = jnp.array([1.0, 0.0]), jnp.log(jnp.array([0.5, 0.5]))
            >>> objective = kt.Objective.unchecked(reward, log_ref, jnp.array(-1.0), kt.ReverseKL())
            >>> kt.Status(int(kt.solve(objective).status))
            <Status.INVALID_BETA: 32>
        """
        fields = {"reward": reward, "log_ref": log_ref, "beta": beta, "divergence": divergence}
        return made(cls, **fields, measure=measure)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape ``*batch`` that the fields broadcast to, without the axis of outcomes."""
        return jnp.broadcast_shapes(
            self.reward.shape[:-1],
            self.log_ref.shape[:-1],
            self.beta.shape,
            *(jnp.shape(x) for x in jax.tree.leaves(self.divergence)),
        )

    @property
    def num_outcomes(self) -> int:
        """The number A of outcomes."""
        return self.reward.shape[-1]

    def value(self, log_policy: ArrayLike) -> Float[Array, "*batch"]:
        """The objective ``J(π) = E_π[reward] − beta · D(π, π_ref)`` at a policy.

        Args:
            log_policy: log-probabilities, shape ``[*batch, A]``.

        Returns:
            J in reward units, shape ``[*batch]``; ``-inf`` where the policy may do what has reward
            ``-inf`` or has an infinite divergence. Differentiable in every argument where finite.
        """
        return _value(self, policy_argument(self, log_policy)).astype(self.reward.dtype)

    def gradient(self, log_policy: ArrayLike) -> Float[Array, "*batch A"]:
        """The gradient of J with respect to the probabilities, ``reward − beta·f′(π/π_ref)``.

        A target is where it is constant on the policy's support and nowhere larger. By concavity
        ``max(gradient) − E_π[gradient]`` bounds the gap from above (Frank–Wolfe).

        Args:
            log_policy: log-probabilities, shape ``[*batch, A]``.

        Returns:
            One derivative per outcome, shape ``[*batch, A]``, in reward units. Where the reference
            is 0 the slope is ``f′(∞)``; where only the policy is 0 it is ``f′(0)``, which may be
            infinite. Where the reward is ``-inf``, so is the derivative.
        """
        return _gradient(self, policy_argument(self, log_policy)).astype(self.reward.dtype)

    def _check_values(self) -> None:
        reward, log_ref, beta = self.reward, self.log_ref, self.beta
        if not _any_fault(reward, log_ref, beta, self.measure):
            return
        faults = jax.device_get(value_faults(reward, log_ref, beta, self.measure))
        if faults["zero_beta"].any():
            at = checks.at_index(checks.first_index(faults["zero_beta"]))
            raise ValueError(
                f"beta must be above 0, got 0{at}; without a regulariser there is no unique "
                "target: kltarget.targets.greedy_limit(objective) gives the limit for beta to 0 of "
                "an objective with any positive beta"
            )
        checks.raise_first("beta", beta, faults["beta"], "must be above 0 and finite")
        rule = "must be finite or -inf (an outcome to forbid)"
        checks.raise_first("reward", reward, faults["reward"], rule)
        checks.raise_first("log_ref", log_ref, faults["nan_ref"], "must not be NaN or +inf")
        if faults["mass"].any():
            at = checks.first_index(faults["mass"])
            row = np.asarray(log_ref, working_dtype(log_ref.dtype))[at]
            raise ValueError(checks.not_normalized("log_ref", row, faults["total"][at], at))
        if faults["empty"].any():
            at = checks.at_index(checks.first_index(faults["empty"]))
            raise ValueError(
                f"reward is -inf wherever log_ref has mass{at}; at least one outcome needs both a "
                "finite reward and reference mass"
            )


register(Objective, ("reward", "log_ref", "beta", "divergence"), static=("measure",))


def require_objective(given: object, by: str, takes: str = "a kltarget.Objective") -> None:
    """Raises, with what to pass instead, for anything but an objective.

    Args:
        given: the argument.
        by: the function whose argument it is.
        takes: what that accepts, in words.
    """
    if isinstance(given, Objective):
        return
    kind, name = type(given).__name__, "problem"
    if isinstance(given, str):
        name = repr(short(given))
        kind += f" {name}"
    own = getattr(given, "objective", None)
    if over_states := objective_over_states(given):
        mend = over_states
    elif isinstance(own, Objective):
        mend = f"pass the objective of this {kind}, its attribute objective"
    elif callable(own):
        mend = f"a {kind} has no β, and none is guessed: pass task.objective(beta)"
    else:
        # Names, paths, tables, dictionaries and pairs of arrays.
        mend = f"pass kltarget.tasks.as_task({name}).objective(beta)"
    raise TypeError(f"{by} takes {takes}, got {kind}: {mend}")


def objective_over_states(given: object) -> str | None:
    """What to pass in place of a target over texts, which has a list of outcomes in its states."""
    if not isinstance(getattr(getattr(given, "states", None), "objective", None), Objective):
        return None
    return (
        "the list of outcomes in it is its final states, so pass their objective, its attribute "
        "states.objective; its attribute states is their target"
    )


def broadcast_fields(objective: Objective) -> tuple[Array, Array, Array, Divergence]:
    """Reward and reference as ``[*batch, A]``, beta as ``[*batch, 1]``, in the working dtype."""
    batch = objective.batch_shape
    dtype = working_dtype(objective.reward.dtype)
    outcomes = (*batch, objective.num_outcomes)
    reward = jnp.broadcast_to(objective.reward.astype(dtype), outcomes)
    log_ref = jnp.broadcast_to(objective.log_ref.astype(dtype), outcomes)
    beta = jnp.broadcast_to(objective.beta.astype(dtype), batch)[..., None]

    def aligned(x: Any) -> Array:
        own = jnp.broadcast_to(x, batch)[..., None].astype(dtype) if jnp.ndim(x) else x
        return jnp.asarray(own, dtype)

    divergence = objective.divergence
    if isinstance(divergence, Scaled):
        # β times a multiple of a divergence is a multiple of β times the divergence.
        beta, divergence = beta * divergence.factor, divergence.base
    return reward, log_ref, beta, jax.tree.map(aligned, divergence)


@jax.jit
def _value(objective: Objective, log_policy: Array) -> Array:
    reward, log_ref, beta, divergence = broadcast_fields(objective)
    log_policy = jnp.broadcast_to(log_policy, reward.shape)
    possible = log_policy > -jnp.inf
    gain = jnp.exp(log_policy) * jnp.where(possible, reward, jnp.zeros_like(reward))
    cost = divergence._total(log_policy, log_ref)
    return gain.sum(-1) - charged(beta[..., 0], cost)


def charged(beta: Array, cost: Array) -> Array:
    """``beta·cost``; where the cost is infinite, so is this, with derivatives of 0 and not NaN."""
    finite = jnp.isfinite(cost)
    return jnp.where(finite, beta * jnp.where(finite, cost, jnp.zeros_like(cost)), cost)


@jax.jit
def _gradient(objective: Objective, log_policy: Array) -> Array:
    reward, log_ref, beta, divergence = broadcast_fields(objective)
    log_policy = jnp.broadcast_to(log_policy, reward.shape)
    slope = divergence._slope(log_policy, log_ref)
    forbidden = jnp.isneginf(reward)  # whatever the regulariser pays for it
    return jnp.where(forbidden, reward, reward - charged(beta, jnp.where(forbidden, 0.0, slope)))


@jax.jit
def value_faults(reward: Array, log_ref: Array, beta: Array, measure: bool) -> dict[str, Array]:
    wide = log_ref.astype(working_dtype(log_ref.dtype))
    total = jnp.exp(wide).sum(-1)
    shape = jnp.broadcast_shapes(reward.shape, log_ref.shape)
    finite = (reward > -jnp.inf, log_ref > -jnp.inf)
    usable = jnp.broadcast_to(finite[0], shape) & jnp.broadcast_to(finite[1], shape)
    return {
        "beta": ~((beta > 0) & (beta < jnp.inf)),
        "zero_beta": beta == 0,
        "reward": jnp.isnan(reward) | jnp.isposinf(reward),
        "nan_ref": jnp.isnan(log_ref) | jnp.isposinf(log_ref),
        "total": total,
        "mass": ~measure & ~(jnp.abs(total - 1) <= checks.mass_tolerance(log_ref.dtype)),
        "empty": ~jnp.any(usable, axis=-1),
    }


@jax.jit
def _any_fault(reward: Array, log_ref: Array, beta: Array, measure: bool) -> Array:
    # One flag crosses to the host; the arrays that locate a fault follow only if there is one.
    faults = value_faults(reward, log_ref, beta, measure)
    return jnp.any(jnp.stack([jnp.any(v) for k, v in faults.items() if k != "total"]))


def policy_argument(objective: Objective, log_policy: ArrayLike) -> Array:
    """A policy that fits an objective, in the dtype it is computed in, or an error that says so."""
    log_policy = checks.float_argument(log_policy, "log_policy")
    checks.require_outcomes(log_policy, "log_policy")
    full = (*objective.batch_shape, objective.num_outcomes)
    if not checks.broadcasts_to(log_policy.shape, full) or log_policy.shape[-1] != full[-1]:
        raise ValueError(
            f"log_policy has shape {log_policy.shape}, the objective {full}; "
            "log_policy must broadcast to it, with the same last axis"
        )
    return log_policy.astype(working_dtype(objective.reward.dtype))
