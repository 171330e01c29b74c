"""What targets of long texts earn and pay per token, as their length grows without bound."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import ArgumentError, float_argument, raise_first
from kltarget._core.pytrees import pytree
from kltarget.spaces import MarkovReference

_LEAST, _MOST = 1e-9, 500.0
"""Least and largest 1/β that are looked at, in units of one over the range of the rewards."""
_HALVINGS, _IMPROVEMENTS = 64, 100


@pytree
class PerToken:
    """What :func:`per_token` returns; in reward units per token if not said.

    Attributes:
        beta: coefficient of the KL, shape ``[*batch]``.
        value: the limit of ``J*/T``, β times the scaled cumulant of the reward at 1/β.
        expected_reward: what the target earns per token.
        kl: ``KL(π‖π_ref)`` in nats per token. As a function of ``expected_reward`` it is the rate
            function of the reference: that texts of T tokens earn so much on average or more has a
            probability of about ``e^{−T kl}``.
        log_transition: log-probabilities of the next token far from both ends of the text, shape
            ``[*batch, *axes]``, the axes of the reference's.
    """

    beta: Float[Array, "*batch"]
    value: Float[Array, "*batch"]
    expected_reward: Float[Array, "*batch"]
    kl: Float[Array, "*batch"]
    log_transition: Float[Array, "..."]


def per_token(
    reference: MarkovReference,
    reward: ArrayLike,
    *,
    beta: ArrayLike | None = None,
    kl: ArrayLike | None = None,
    expected_reward: ArrayLike | None = None,
) -> PerToken:
    """What targets of long texts earn and pay per token: large deviations of additive rewards.

    Of ``max_π E_π[Σ_t reward] − beta·KL(π‖π_ref)`` over texts of T tokens, per token, as T grows: a
    tilt of the chain by its largest eigenvalue. Exactly one of the three is asked for. With
    ``kl=Δ`` it is also what best-of-n earns per token with ``n = e^{TΔ}`` draws; with
    ``expected_reward=x`` its ``kl`` is the rate function at x. For rewards of a given T there is
    :func:`kltarget.solve_on_automaton`, which differs by terms of the order of 1/T.

    Args:
        reference: over V tokens, of any order k, without an ``end``.
        reward: of each token, ``[V]``, or of each after the last k, in the shape of
            ``reference.log_transition``; finite, in reward units.
        beta: coefficient of the KL, in reward units per nat.
        kl: nats per token, above 0.
        expected_reward: reward per token, above that of the reference.

    Returns:
        Coefficient, value, reward, KL and the tilted chain. Shapes are those of what is asked for.

    Raises:
        TypeError: not one of the three, but none or several.
        ValueError: a reference with an ``end``, or whose contexts do not all lead to each other;
            rewards of another shape, not finite or all equal; what no beta gives; a beta below
            1/500 of the range of the rewards, or at which the tilted chain falls apart into cycles.

    Computed on the host in double precision. Not differentiable, and not to be called under a
    trace; ``expected_reward`` is the derivative of ``value/beta`` by ``1/beta``. For what is earned
    less often than usual, give the negative of the reward.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.spaces import MarkovReference
        >>> sticky = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]]))
        >>> reference = MarkovReference(jnp.log(jnp.full(2, 0.5)), sticky)
        >>> found = kt.frontier.per_token(reference, [0.0, 1.0], kl=jnp.array([0.01, 0.1]))
        >>> print([f"{x:.3f}" for x in found.expected_reward])
        ['0.499', '0.853']
        >>> rare = kt.frontier.per_token(reference, [0.0, 1.0], expected_reward=0.5)
        >>> print(f"half of 1000 tokens: e^-{1000 * float(rare.kl):.1f}")
        half of 1000 tokens: e^-10.1

    References:
        Yang, Salamatian, Sun, Suresh, Beirami, "Asymptotics of Language Model Alignment", 2024,
        arXiv 2404.01730, for independent tokens. Dembo, Zeitouni, "Large Deviations Techniques and
        Applications", 1998, Theorem 3.1.2, for Markov chains: the scaled cumulant is the logarithm
        of the largest eigenvalue of ``P e^{reward/beta}``. It is found as the average reward of a
        regularised decision process, by policy iteration.
    """
    asked = {"beta": beta, "kl": kl, "expected_reward": expected_reward}
    given = {name: x for name, x in asked.items() if x is not None}
    if len(given) != 1:
        got = ", ".join(given) or "none"
        raise TypeError(f"per_token takes exactly one of {', '.join(asked)}, got {got}")
    ((name, wanted),) = given.items()
    chain = _Chain.of(reference, reward)
    goal = np.asarray(float_argument(wanted, name), np.float64)
    rows = goal.reshape(-1)
    if name == "beta":
        raise_first(name, goal, ~((goal > 0) & (goal < np.inf)), "must be above 0 and finite")
        if (small := rows * _MOST < chain.span).any():
            least = f"{chain.span / _MOST:.3g}, the rewards' range over {_MOST:g}"
            raise ArgumentError(f"{{}} must be at least {least}", name, _plain(rows[small][0]))
        shift = 1 / rows
    else:
        shift = _shift_for(chain, name, rows)
    try:
        found = chain.tilted(shift)
    except np.linalg.LinAlgError:
        raise ValueError(
            "beta is so small that the tilted chain falls apart in double precision: take a larger "
            "one"
        ) from None
    batch, dtype = goal.shape, reference.log_transition.dtype
    shapes = {"log_transition": (*batch, *reference.log_transition.shape)}
    numbers = {
        "beta": 1 / shift,
        "value": found["cumulant"] / shift,
        **{x: found[x] for x in ("expected_reward", "kl", "log_transition")},
    }
    return PerToken(
        **{x: jnp.asarray(y.reshape(shapes.get(x, batch)), dtype) for x, y in numbers.items()}
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Chain:
    """A chain over the S contexts of k tokens, by the V tokens that follow each.

    Attributes:
        log_next: log-probabilities of the next token, ``[S, V]``.
        reward: of it, ``[S, V]``.
        following: the context that it leads to, ``[S, V]``.
        span: the range of the rewards of possible tokens.
    """

    log_next: np.ndarray
    reward: np.ndarray
    following: np.ndarray
    span: float

    @classmethod
    def of(cls, reference: MarkovReference, reward: ArrayLike) -> _Chain:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if reference.end is not None:
            raise ValueError("reference has an end, so that its texts do not grow without bound")
        shape, size = reference.log_transition.shape, reference.vocab_size
        given = np.asarray(float_argument(reward, "reward"), np.float64)
        if given.shape not in ((size,), shape):
            raise ValueError(f"reward has shape {given.shape}: give one of {(size,)} or {shape}")
        raise_first("reward", given, ~np.isfinite(given), "must be finite")
        log_next = np.asarray(reference.log_transition, np.float64).reshape(-1, size)
        contexts = len(log_next)
        log_next = log_next - np.logaddexp.reduce(log_next, axis=-1, keepdims=True)
        following = np.arange(contexts)[:, None] * size % contexts + np.arange(size)
        possible = log_next > -np.inf
        start = np.repeat(np.arange(contexts), possible.sum(1))
        edges = coo_array((np.ones(start.size), (start, following[possible])), (contexts, contexts))
        number, _ = connected_components(edges, connection="strong")
        if number > 1:
            raise ValueError(
                "reference has contexts that do not all lead to each other, and so no one rate: "
                "leave out what it does not come back to, or fit it with smoothing"
            )
        rows = np.broadcast_to(given, shape).reshape(-1, size)
        span = float(np.ptp(rows[possible]))
        if span == 0:
            raise ValueError("reward is the same for all tokens: there is nothing to tilt by")
        return cls(log_next, rows, following, span)

    def tilted(self, shift: np.ndarray) -> dict[str, np.ndarray]:
        """Numbers of the chain tilted by each of several shifts, ``[N]``."""
        earned = shift[:, None, None] * self.reward
        _, policy, cost = self._improved(earned, np.zeros((len(shift), len(self.log_next))))
        cumulant, bias = self._evaluated(policy, (policy * earned).sum(-1) - cost)
        log_policy, policy, cost = self._improved(earned, bias)
        for _ in range(_IMPROVEMENTS):
            gained = (policy * earned).sum(-1) - cost
            before, (cumulant, bias) = cumulant, self._evaluated(policy, gained)
            log_policy, policy, cost = self._improved(earned, bias)
            if (np.abs(cumulant - before) <= 1e-15 * (1 + np.abs(cumulant))).all():
                break
        stay = self._stationary(policy)
        if not (np.isfinite(cumulant) & (stay > -1e-6).all(-1)).all():
            raise np.linalg.LinAlgError
        return {
            "cumulant": cumulant,
            "expected_reward": (stay * (policy * self.reward).sum(-1)).sum(-1),
            "kl": (stay * cost).sum(-1),
            "log_transition": log_policy,
        }

    def _improved(
        self, earned: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best policy for a bias: logarithms, probabilities, and its KL in each context."""
        score = self.log_next + earned + bias[:, self.following]
        log_policy = score - np.logaddexp.reduce(score, axis=-1, keepdims=True)
        policy = np.exp(log_policy)
        ratio = np.where(policy > 0, log_policy - np.where(policy > 0, self.log_next, 0.0), 0.0)
        # Of x + e^{−x} − 1, which is 0 or more, little is left of a small x but its series.
        small = np.abs(ratio) < 0.01
        x = np.where(small, ratio, 0.0)
        series = x**2 / 2 * (1 - x / 3 * (1 - x / 4 * (1 - x / 5 * (1 - x / 6 * (1 - x / 7)))))
        direct = policy * ratio - policy + np.exp(self.log_next)
        return log_policy, policy, np.where(small, policy * series, direct).sum(-1)

    def _moves(self, policy: np.ndarray) -> np.ndarray:
        """Probabilities of the next context, ``[N, S, S]``."""
        to = self.following[..., None] == np.arange(len(self.log_next))
        return np.einsum("nsv,svt->nst", policy, to)

    def _evaluated(self, policy: np.ndarray, gained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average gain of a policy and its bias, which is 0 in the first context."""
        contexts = policy.shape[1]
        system = np.eye(contexts) - self._moves(policy)
        system[..., 0] = 1.0
        solved = _solved(system, gained)
        return solved[:, 0], np.concatenate([np.zeros_like(solved[:, :1]), solved[:, 1:]], 1)

    def _stationary(self, policy: np.ndarray) -> np.ndarray:
        contexts = policy.shape[1]
        system = np.swapaxes(np.eye(contexts) - self._moves(policy), -1, -2).copy()
        system[:, 0] = 1.0
        right = np.zeros(policy.shape[:2])
        right[:, 0] = 1.0
        return _solved(system, right)


def _solved(system: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.linalg.solve(system, right[..., None])[..., 0]


def _shift_for(chain: _Chain, name: str, goal: np.ndarray) -> np.ndarray:
    """The 1/β at which what is asked for is met: both grow with it."""
    low, high = (np.full(goal.shape, np.log(x / chain.span)) for x in (_LEAST, _MOST))
    least = chain.tilted(np.exp(low[:1]))[name][0]
    while True:
        try:
            most = chain.tilted(np.exp(high[:1]))[name][0]
            break
        except np.linalg.LinAlgError:
            # Two cycles of equal rewards, between which the tilted chain no longer moves.
            high -= np.log(2)
    if name == "kl":
        least = 0.0
    outside = ~((goal > least) & (goal < most))
    if outside.any():
        unit = "nats" if name == "kl" else "reward units"
        span = f"it lies between {least:.4g} and {most:.4g} {unit} per token"
        raise ArgumentError(f"{{}} is not reached: {span}", name, _plain(goal[outside][0]))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = chain.tilted(np.exp(middle))[name] < goal
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.exp((low + high) / 2)


def _plain(x: Any) -> float:
    return float(f"{float(x):.7g}")
