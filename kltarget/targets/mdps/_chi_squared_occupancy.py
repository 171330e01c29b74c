"""χ² between occupancy measures, which holds a policy to states and actions that were seen."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import (
    float_arguments,
    integer_rows,
    log_probs_in,
    raise_first,
    require_normalized,
    traced,
    typed_key,
)
from kltarget._core.pytrees import register
from kltarget._core.status import Status
from kltarget.spaces import MDP
from kltarget.targets._protocol import Optimum, mix


@dataclasses.dataclass(frozen=True, eq=False)
class OccupancyTarget(Optimum):
    """An occupancy measure that maximises an objective of it, with its policy and certificate.

    Outcomes are pairs of state and action, as they are met at a time whose discounted chance is
    ``(1 − γ) γ^t``; sums are means over that time, ``1 − γ`` times discounted sums.

    Attributes:
        mdp: the decision process.
        beta: coefficient, ``[*batch]``.
        reference: occupancy of the reference policy, ``[S, A]``.
        occupancy: that of the optimum, ``[*batch, S, A]``.
        log_policy: log π of its policy, ``[*batch, S, A]``; the reference's in states that it does
            not visit.
        value_error: at most this far is the value from the maximum, by duality, ``[*batch]``.
        root: whether the square root of χ² is charged.
        status: :class:`~kltarget.Status` bits, ``[*batch]``.
    """

    made_by = "solve_occupancy"

    mdp: MDP
    beta: Float[Array, "*batch"]
    reference: Float[Array, "S A"]
    occupancy: Float[Array, "*batch S A"]
    log_policy: Float[Array, "*batch S A"]
    value_error: Float[Array, "*batch"]
    status: Int[Array, "*batch"]
    root: bool = False

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The maximum, in reward units, ``[*batch]``."""
        return self.expected_reward - self.beta * self.divergence_value

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_d[r]``, in reward units."""
        return self.expectation(self.mdp.reward)

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """What beta multiplies, ``χ²(d‖d_ref) = Σ (d − d_ref)²/d_ref`` or its root."""
        on = self.reference > 0
        ref = jnp.broadcast_to(jnp.where(on, self.reference, 1.0), self.occupancy.shape)
        far = jnp.where(on, (self.occupancy - ref) ** 2 / ref, 0.0).sum((-1, -2))
        return jnp.sqrt(far) if self.root else far

    def expectation(self, fn: ArrayLike) -> Float[Array, "..."]:
        """``E_d[fn]`` of values ``[S, A, ...]``; a ``ValueError`` of other shapes."""
        values = jnp.asarray(fn, self.occupancy.dtype)
        if values.shape[:2] != self.reference.shape:
            raise ValueError(
                f"fn has shape {values.shape}: its first axes must be states and actions, "
                f"{self.reference.shape}"
            )
        pairs = self.occupancy.reshape(*self.occupancy.shape[:-2], -1)
        mean = mix(pairs, values.reshape(pairs.shape[-1], -1))
        return mean.reshape(*pairs.shape[:-1], *values.shape[2:])

    def log_prob(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of pairs of state and action, integers ``[..., 2]``.

        A ``TypeError`` or ``ValueError`` of anything else.
        """
        states, actions = self.reference.shape
        pair = integer_rows(x, "x", {"state": states, "action": actions}, 1)
        return jnp.log(self.occupancy)[..., pair[..., 0], pair[..., 1]]

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Int[Array, "num_samples *batch 2"]:
        """Independent pairs of state and action."""
        logs = jnp.log(self.occupancy).reshape(*self.occupancy.shape[:-2], -1)
        shape = (num_samples, *logs.shape[:-1])
        at = jax.random.categorical(typed_key(key), logs, axis=-1, shape=shape)
        return jnp.stack(jnp.divmod(at, self.occupancy.shape[-1]), -1)


register(
    OccupancyTarget,
    tuple(f.name for f in dataclasses.fields(OccupancyTarget) if f.name != "root"),
    ("root",),
)


def solve_occupancy(
    mdp: MDP, log_ref: ArrayLike, beta: ArrayLike, *, root: bool = False
) -> OccupancyTarget:
    """The policy that maximises ``E_d[r] − β·χ²(d‖d_ref)`` over occupancy measures d, or its root.

    ``d(s, a) = (1 − γ) Σ_t γ^t P(s_t = s, a_t = a)`` is linear in what flows where, so this is a
    convex program. Its dual in state values v is piecewise quadratic,
    ``(1 − γ)ρ·v + Σ d_ref (w A − β(w − 1)²)`` with ``A = r + γPv − v`` and
    ``w = d/d_ref = (1 + A/2β)₊``; Newton's method ends at it. With ``root=True`` the charge is
    ``β √χ²``: up to some β the optimum is that of a χ² with a smaller coefficient, from there on it
    is the reference.

    Args:
        mdp: the decision process, without batch axes.
        log_ref: log-probabilities of the reference's actions, ``[S, A]``; ``-inf`` where none.
        beta: coefficient above 0, in reward units, ``[*batch]``.
        root: whether to charge √χ², as the bound for correlated proxies does.

    Returns:
        The target, computed on the host in double precision. A row whose ``value_error`` is above
        1e-6 of the rewards' range has the status ``NOT_CONVERGED``.

    Raises:
        TypeError: arguments that are traced.
        ValueError: shapes that do not fit, values out of range, a process that is not discounted.

    What the reference never does is not done: χ² is infinite there. Not differentiable.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import MDP
        >>> from kltarget.targets.mdps import solve_occupancy
        >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
        >>> mdp = MDP(stay_or_go, jnp.array([[0.0, 0.0], [1.0, 1.0]]), 0.9)
        >>> even = jnp.log(jnp.full((2, 2), 0.5))
        >>> target = solve_occupancy(mdp, even, jnp.array([0.1, 1.0, 10.0]))
        >>> print([f"{x:.3f}" for x in target.expected_reward])
        ['0.845', '0.556', '0.506']

    References:
        Laidlaw, Singhal, Dragan, "Correlated Proxies: A New Definition and Improved Mitigation for
        Reward Hacking", 2024, arXiv 2403.03185: if a proxy R̃ has correlation r > 0 with R under
        d_ref, ``(J(π, R) − J(π_ref, R))/σ_R ≥ [(J(π, R̃) − J(π_ref, R̃))/σ_R̃ − √((1 − r²) χ²)]/r``,
        so the best bound is at the optimum with ``root=True`` and ``β = σ_R̃ √(1 − r²)``.
    """
    if not isinstance(mdp, MDP):
        raise TypeError(f"mdp must be an MDP, got {type(mdp).__name__}")
    mdp.require_discounted("solve_occupancy")
    given = float_arguments(reward=mdp.reward, log_ref=log_ref, beta=beta)
    reward, _, coefficient = given.values()
    reference = log_probs_in(reward.dtype, log_ref=log_ref)
    if traced(mdp.transition, mdp.start, *given.values()):
        raise TypeError("solve_occupancy needs concrete arguments: call it outside jit and vmap")
    if mdp.batch_shape or reference.shape != reward.shape:
        raise ValueError(
            f"log_ref has shape {reference.shape} and mdp rewards {reward.shape} in a batch of "
            f"{mdp.batch_shape}: give one process and [S, A]"
        )
    require_normalized(log_ref=reference)
    raise_first(
        "beta",
        coefficient,
        ~((coefficient > 0) & (coefficient < jnp.inf)),
        "must be above 0 and finite",
    )
    program = _program(mdp, np.exp(np.asarray(reference, float)))
    solve = _solve_root if root else _solve
    rows = [solve(program, float(b)) for b in np.asarray(coefficient, float).ravel()]
    batch, cells = coefficient.shape, reward.shape
    spread = np.ptp(program.reward[program.on]) or 1.0
    errors = np.array([row.error for row in rows])
    policies = [_policy(row.occupancy, program.policy) for row in rows]
    with np.errstate(divide="ignore"):
        log_policy = np.log(np.array(policies).reshape(*batch, *cells))

    def cast(x: Any, shape: tuple[int, ...]) -> Array:
        return jnp.asarray(np.asarray(x).reshape(shape), reward.dtype)

    return OccupancyTarget(
        mdp,
        coefficient,
        cast(program.reference, cells),
        cast([row.occupancy for row in rows], (*batch, *cells)),
        cast(log_policy, (*batch, *cells)),
        cast(errors, batch),
        jnp.where(
            jnp.asarray(~(errors <= 1e-6 * spread)).reshape(batch), int(Status.NOT_CONVERGED), 0
        ).astype(jnp.int32),
        root,
    )


class _Program(NamedTuple):
    """The convex program, over the states that the reference visits."""

    reward: np.ndarray
    """Less its mean under the reference, so that at values of 0 not all actions are cut off."""
    reference: np.ndarray
    policy: np.ndarray
    flow: np.ndarray
    """``γP − 1`` of the rows with reference mass, ``[on, visited]``."""
    moves: np.ndarray
    on: np.ndarray
    visited: np.ndarray
    start: np.ndarray
    discount: float


class _Row(NamedTuple):
    occupancy: np.ndarray
    value: float
    error: float
    dual: np.ndarray


def _program(mdp: MDP, policy: np.ndarray) -> _Program:
    reward = np.asarray(mdp.reward, float)
    states, actions = reward.shape
    moves = np.asarray(mdp.dense_transition, float)
    policy = np.where(reward > -np.inf, policy, 0.0)
    total = policy.sum(-1, keepdims=True)
    raise_first("log_ref", None, total[..., 0] == 0, "has no action that the state has")
    policy = policy / total
    start = np.asarray(mdp.start, float)
    start, discount = start / start.sum(), float(mdp.discount)
    moves = moves / np.where(policy > 0, moves.sum(-1), 1.0)[..., None]
    reference = _occupancy(policy, moves, start, discount)
    visited = reference.sum(-1) > 0
    on = reference > 0
    own = np.repeat(np.eye(states)[:, None], actions, 1)
    flow = (discount * moves - own)[on][:, visited]
    reward = reward - reference[on] @ reward[on]
    return _Program(reward, reference, policy, flow, moves, on, visited, start, discount)


def _occupancy(
    policy: np.ndarray, moves: np.ndarray, start: np.ndarray, discount: float
) -> np.ndarray:
    chain = np.einsum("sa,sat->st", policy, moves)
    states = np.linalg.solve(np.eye(len(start)) - discount * chain.T, (1 - discount) * start)
    reached = start > 0
    for _ in start:
        reached = reached | (chain[reached] > 0).any(0)
    return np.where(reached, states, 0.0)[:, None] * policy


def _policy(occupancy: np.ndarray, reference: np.ndarray) -> np.ndarray:
    total = occupancy.sum(-1, keepdims=True)
    return np.where(total > 0, occupancy / np.where(total > 0, total, 1.0), reference)


def _chi_squared(program: _Program, occupancy: np.ndarray) -> float:
    ref = program.reference[program.on]
    return float(((occupancy[program.on] - ref) ** 2 / ref).sum())


def _gain(program: _Program, occupancy: np.ndarray) -> float:
    return float(occupancy[program.on] @ program.reward[program.on])


def _solve(program: _Program, beta: float, dual: np.ndarray | None = None) -> _Row:
    path = np.array([beta])
    if dual is None:
        # From coefficients at which nothing is cut off, downwards, each from the last one's values.
        dual = np.zeros(int(program.visited.sum()))
        top = max(beta, float(np.ptp(program.reward[program.on])) / (1 - program.discount))
        path = np.geomspace(top, beta, 1 + int(np.ceil(np.log(top / beta) / np.log(4))))
        path[-1] = beta
    for step in path:
        dual = _newton(program, float(step), dual)
    bound, ratio = _dual(program, beta, dual)
    occupancy = np.zeros_like(program.reference)
    occupancy[program.on] = program.reference[program.on] * ratio
    policy = _policy(occupancy, program.policy)
    occupancy = _occupancy(policy, program.moves, program.start, program.discount)
    value = _gain(program, occupancy) - beta * _chi_squared(program, occupancy)
    return _Row(occupancy, value, max(bound - value, 0.0), dual)


def _dual(program: _Program, beta: float, dual: np.ndarray) -> tuple[float, np.ndarray]:
    """The dual's value, which no policy exceeds, and the ratios d/d_ref that belong to it."""
    ahead = program.reward[program.on] + program.flow @ dual
    ratio = np.maximum(1 + ahead / (2 * beta), 0.0)
    gain = program.reference[program.on] @ (ratio * ahead - beta * (ratio - 1) ** 2)
    first = (1 - program.discount) * program.start[program.visited] @ dual
    return float(first + gain), ratio


def _newton(program: _Program, beta: float, dual: np.ndarray) -> np.ndarray:
    mass, flow = program.reference[program.on], program.flow
    value, ratio = _dual(program, beta, dual)
    # A state that nothing flows to leaves its value free, and so do actions that are cut off: where
    # steps along such directions lead nowhere, they are held back.
    least, damping = 1e-13, 1e-13
    uncut = float(mass @ (flow**2).sum(-1)) / (2 * beta)
    for _ in range(500):
        slope = (1 - program.discount) * program.start[program.visited] + flow.T @ (mass * ratio)
        curve = (flow * (mass * (ratio > 0) / (2 * beta))[:, None]).T @ flow
        curve += damping * (np.trace(curve) or uncut) * np.eye(len(dual))
        step = -np.linalg.solve(curve, slope)
        after, its_ratio = _dual(program, beta, dual + step)
        expected = -slope @ step
        if value - after < 1e-4 * expected:
            if expected <= 1e-13 * abs(value) or damping > 1e3:
                break
            damping *= 30
            continue
        gained = value - after
        dual, value, ratio = dual + step, after, its_ratio
        if gained <= 1e-16 * abs(value) and damping == least:
            break
        damping = max(damping / 1000, least)
    return dual


def _solve_root(program: _Program, beta: float) -> _Row:
    """Maximises ``E_d[r] − β √χ²`` by the χ² coefficient κ with ``2κ √χ² = β``.

    The best reward M(x) at ``√χ² = x`` is concave with slope 2κx, which grows with κ. Lines that
    touch M at both ends of the bracket bound what is left.
    """
    high = max(beta, float(np.ptp(program.reward[program.on])) / (1 - program.discount)) * 1e3
    upper = _solve(program, high)
    x_upper = np.sqrt(_chi_squared(program, upper.occupancy))
    rest = _gain(program, program.reference)
    if 2 * high * x_upper <= beta:
        # The line that touches M there, followed back to the reference, is above all of M.
        line = _gain(program, upper.occupancy) - 2 * high * x_upper**2
        left = max(line - rest, 0.0) + upper.error
        return _Row(program.reference, rest, left, upper.dual)
    low, lower = high, upper
    x_lower = x_upper
    while 2 * low * x_lower > beta and low > 1e-12 * high:
        high, upper, x_upper = low, lower, x_lower
        low /= 4
        lower = _solve(program, low, lower.dual)
        x_lower = np.sqrt(_chi_squared(program, lower.occupancy))
    for _ in range(60):
        middle = np.sqrt(low * high)
        row = _solve(program, middle, upper.dual)
        x = np.sqrt(_chi_squared(program, row.occupancy))
        if 2 * middle * x > beta:
            high, upper, x_upper = middle, row, x
        else:
            low, lower, x_lower = middle, row, x
    ends = []
    for row, x in ((upper, x_upper), (lower, x_lower)):
        ends.append((_gain(program, row.occupancy) - beta * x, row.occupancy))
    value, occupancy = max(ends, key=lambda pair: pair[0])
    # The line at the upper end, followed to the lower end, where the other one takes over.
    bound = ends[0][0] + max(2 * high * x_upper - beta, 0.0) * max(x_lower - x_upper, 0.0)
    left = max(bound - value, 0.0) + upper.error + lower.error
    return _Row(occupancy, value, left, lower.dual)
