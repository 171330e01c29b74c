"""What maximises an objective over the paths of a chain: its kernels, marginals and step costs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import positive, typed_key
from kltarget._core.numerics import log_sum_exp
from kltarget._core.pytrees import register
from kltarget._core.short_repr import short_repr
from kltarget.divergences import ReverseKL
from kltarget.objectives._objective import broadcast_fields
from kltarget.spaces import Chain, backward
from kltarget.spaces._chains import Step, draw_paths
from kltarget.targets._protocol import Optimum, mean_of
from kltarget.targets.discrete import Target


@dataclasses.dataclass(frozen=True, eq=False)
class ChainTarget(Optimum):
    """The law of paths that maximises ``E_π[r(x_0)] − β·D(π, p)`` over a chain's paths.

    Attributes:
        chain: p, what the law is regularised to.
        reward: of the last state, ``[*batch, S]``; ``-inf`` where no path ends.
        ends: the target over last states, as of outcomes. Where the first law is fixed it has a
            row for each first state, ``[*batch, S]``, with the last states it leads to.
        tilt_first: whether the law of the first state moves too.

    Where the first law is fixed and the divergence is not reverse KL, the best law of paths is not
    Markov: a step depends on the first state as well, and :attr:`log_kernels` has an axis for it.
    """

    __repr__ = short_repr

    made_by = "solve_chain"

    chain: Chain
    reward: Float[Array, "*#batch S"]
    ends: Target
    tilt_first: bool

    @property
    def remembers(self) -> bool:
        """Whether steps depend on the first state too."""
        return not (self.tilt_first or self._is_reverse_kl)

    @property
    def status(self) -> Int[Array, "*batch"]:
        """:class:`~kltarget.Status` bits of all first states that occur, shape ``[*batch]``."""
        own = self.ends.status
        if self.tilt_first:
            return own
        seen = ~jnp.isneginf(jnp.broadcast_to(self._log_initial, own.shape))
        zero = jnp.zeros((), own.dtype)
        return jax.lax.reduce(jnp.where(seen, own, zero), zero, jax.lax.bitwise_or, (own.ndim - 1,))

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The maximum J* in reward units, shape ``[*batch]``."""
        return self._over_first(self.ends.value)

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_π[r(x_0)]`` in reward units, shape ``[*batch]``."""
        return self._over_first(self.ends.expected_reward)

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """The divergence of the laws of paths in nats, shape ``[*batch]``."""
        return self._over_first(self.ends.divergence_value)

    @property
    def values(self) -> Float[Array, "*batch times S"]:
        """``v(x_t) = β log E_p[e^{r(x_0)/β} | x_t]``, what is still to be had from each state.

        Shape ``[*batch, T + 1, S]`` in reward units, the first time first. Of reverse KL alone;
        with other divergences no value of a state by itself makes the steps.
        """
        if not self._is_reverse_kl:
            raise ValueError(
                "values of states are those of reverse KL; with another divergence read "
                "log_kernels, which every divergence has"
            )
        twists = _log_twists(self.chain, self._log_tilt)
        some = twists > -jnp.inf
        beta = jnp.broadcast_to(self._beta[..., None, None], twists.shape)
        return jnp.where(some, beta * jnp.where(some, twists, 0.0), -jnp.inf)

    @property
    def log_first(self) -> Float[Array, "*batch S"]:
        """The log-law of the first state, ``[*batch, S]``."""
        if not self.tilt_first:
            return self._log_initial
        return self._log_initial + self._twists[..., 0, :]

    @property
    def log_kernels(self) -> Float[Array, "... T S S"]:
        """The twisted steps, ``[*batch, T, S, S]``; ``[*batch, S, T, S, S]`` if it remembers.

        Rows of states from which only forbidden ends can be reached are those of the reference.
        """
        return _twisted(self.chain, self._twists, self.remembers)

    def log_marginals(self) -> Float[Array, "*batch times S"]:
        """Log-probabilities of the states at each time, ``[*batch, T + 1, S]``."""
        joint = self._joint()
        return log_sum_exp(jnp.moveaxis(joint, -3, -1))[..., 0] if self.remembers else joint

    @property
    def log_last(self) -> Float[Array, "*batch S"]:
        """The log-law of the last state ``x_0``, which is what is generated, ``[*batch, S]``."""
        if self.tilt_first:
            return self.ends.log_probs
        joint = self._log_initial[..., None] + self.ends.log_probs
        return log_sum_exp(jnp.swapaxes(joint, -1, -2))[..., 0]

    @property
    def step_kl(self) -> Float[Array, "*batch times"]:
        """``KL(π‖p)`` of the first state and of each step, expected under π, ``[*batch, T + 1]``.

        Their sum is that of the whole paths, and at least that of the marginals of any time.
        """
        kernels, joint = self.log_kernels, self._joint()
        reference = self.chain.log_kernels
        if self.remembers:
            reference = reference[..., None, :, :, :]
        each = _kl(kernels, jnp.broadcast_to(reference, kernels.shape))
        steps = jnp.where(joint[..., :-1, :] > -jnp.inf, each, 0.0)
        steps = (jnp.exp(joint[..., :-1, :]) * steps).sum(-1)
        steps = steps.sum(-2) if self.remembers else steps
        return jnp.concatenate([_kl(self.log_first, self._log_initial)[..., None], steps], -1)

    @property
    def marginal_kl(self) -> Float[Array, "*batch times"]:
        """``KL(π‖p)`` of the states at each time, ``[*batch, T + 1]``, in nats."""
        own = self.log_marginals()
        return _kl(own, jnp.broadcast_to(self.chain.log_marginals(), own.shape))

    def log_prob(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of paths.

        Args:
            x: states, integers ``[..., T + 1]``, the first state first.

        Returns:
            Shape ``[*batch, ...]``, of the paths' own axes last.
        """
        paths = self.chain.paths(x)
        first, last = paths[..., 0], paths[..., -1]
        ratio = self._log_ratio
        own = ratio[..., last] if self.tilt_first else ratio[..., first, last]
        log_ref = self.chain.log_prob(paths)
        missing = own.ndim - log_ref.ndim
        return jnp.broadcast_to(log_ref.reshape(*(1,) * missing, *log_ref.shape), own.shape) + own

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Int[Array, "num_samples *batch times"]:
        """Independent paths, states of shape ``[num_samples, *batch, T + 1]``."""
        positive("num_samples", num_samples)
        kernels, first = self.log_kernels, self.log_first
        begin, later = jax.random.split(typed_key(key))
        shape = (num_samples, *first.shape[:-1])
        if not self.remembers:
            return draw_paths(first, jnp.moveaxis(kernels, -3, 0), begin, shape)
        starts = jax.random.categorical(begin, first, axis=-1, shape=shape)
        # A path from every first state, of which that of the drawn one is kept.
        one = jnp.where(jnp.eye(first.shape[-1], dtype=bool), 0.0, -jnp.inf).astype(first.dtype)
        each = jnp.broadcast_to(one, (*first.shape, first.shape[-1]))
        kernels = jnp.moveaxis(kernels, -3, 0)
        paths = draw_paths(each, kernels, later, (*shape, first.shape[-1]))
        return jnp.take_along_axis(paths, starts[..., None, None], -2)[..., 0, :]

    def expectation(self, fn: Any) -> Float[Array, "..."]:
        """``E_π[fn(x_0)]`` of values ``[S, ...]`` of the last state, shape ``[*batch, ...]``."""
        return mean_of(fn, jnp.exp(self.log_last))

    @property
    def _batch(self) -> tuple[int, ...]:
        rows = self.ends.log_probs.shape[:-1]
        return rows if self.tilt_first else rows[:-1]

    @property
    def _log_initial(self) -> Array:
        return jnp.broadcast_to(self.chain.log_initial, (*self._batch, self.chain.num_states))

    @property
    def _is_reverse_kl(self) -> bool:
        """Up to a factor, which is the coefficient's."""
        return isinstance(broadcast_fields(self.ends.objective)[3], ReverseKL)

    @property
    def _beta(self) -> Array:
        beta = broadcast_fields(self.ends.objective)[2][..., 0]
        beta = beta if self.tilt_first else beta[..., 0]
        return jnp.broadcast_to(beta, self._batch).astype(self.ends.log_probs.dtype)

    @property
    def _log_tilt(self) -> Array:
        """``r/β`` of last states; what is forbidden is so at every β."""
        allowed = self.reward > -jnp.inf
        beta = jnp.broadcast_to(self._beta[..., None], self.reward.shape)
        return jnp.where(allowed, jnp.where(allowed, self.reward, 0.0) / beta, -jnp.inf)

    @property
    def _log_ratio(self) -> Array:
        """``log π/p`` of last states; 0 where neither has any mass."""
        log_probs = self.ends.log_probs
        log_ref = jnp.broadcast_to(self.ends.objective.log_ref, log_probs.shape)
        seen = log_ref > -jnp.inf
        return jnp.where(seen, log_probs, 0.0) - jnp.where(seen, log_ref, 0.0)

    @property
    def _twists(self) -> Array:
        """``log E_p[π/p | x_t]``, of reverse KL with a fixed first law up to a constant."""
        if self.tilt_first or self.remembers:
            return _log_twists(self.chain, self._log_ratio, self.remembers)
        return _log_twists(self.chain, self._log_tilt)

    def _joint(self) -> Array:
        """Marginals ``[*batch, T + 1, S]``; with the first state ``[*batch, S, T + 1, S]``."""
        first, kernels = self.log_first, self.log_kernels
        if not self.remembers:
            return Chain(first, kernels).log_marginals()
        one = jnp.where(jnp.eye(first.shape[-1], dtype=bool), 0.0, -jnp.inf).astype(first.dtype)
        later = Chain(jnp.broadcast_to(one, (*first.shape, first.shape[-1])), kernels)
        return later.log_marginals() + first[..., None, None]

    def _over_first(self, x: Array) -> Array:
        if self.tilt_first:
            return x
        mass = jnp.exp(jnp.broadcast_to(self._log_initial, x.shape))
        return (mass * jnp.where(mass > 0, x, 0.0)).sum(-1)


register(ChainTarget, ("chain", "reward", "ends"), ("tilt_first",))


@functools.partial(jax.jit, static_argnums=2)
def _log_twists(chain: Chain, log_end: Array, remembers: bool = False) -> Array:
    """``log E_p[e^{log_end(x_0)} | x_t]``, ``[..., T + 1, S]``."""

    def backup(values: Array, layer: Step) -> tuple[Array, None]:
        kernel = layer.log_ref[..., None, :, :] if remembers else layer.log_ref
        return log_sum_exp(jnp.broadcast_to(kernel, values.shape) + values)[..., 0], None

    values, _ = backward(chain.layers(), log_end, backup)
    return jnp.stack(values, -2)


@functools.partial(jax.jit, static_argnums=2)
def _twisted(chain: Chain, twists: Array, remembers: bool) -> Array:
    states = chain.num_states
    reference = chain.log_kernels[..., None, :, :, :] if remembers else chain.log_kernels
    shape = (*twists.shape[:-2], chain.num_steps, states, states)
    reference = jnp.broadcast_to(reference, shape)
    joint = reference + jnp.broadcast_to(twists[..., 1:, None, :], shape)
    total = log_sum_exp(joint)
    some = total > -jnp.inf
    return jnp.where(some, joint - jnp.where(some, total, 0.0), reference)


@jax.jit
def _kl(log_p: Array, log_q: Array) -> Array:
    here = log_p > -jnp.inf
    ratio = jnp.where(here, log_p, 0.0) - jnp.where(here, log_q, 0.0)
    return (jnp.exp(log_p) * ratio).sum(-1)
