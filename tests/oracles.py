"""Answers to compare with: arbitrary-precision roots, direct convex optimisation, a reference bank.

Nothing here calls the closed forms under test or rewrites them in log space. The roots work with
density ratios in as many digits as a problem needs; the convex programmes know only the objective.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import kltarget as kt

X64 = bool(jax.config.jax_enable_x64)
DTYPES = [np.dtype(np.float64 if X64 else np.float32)]
"""The float types to test in this session's mode."""

INF = math.inf


def eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def double_precision() -> Any:
    """64-bit floats inside a ``with`` block, whatever the session's mode."""
    return _with_x64(True)


def single_precision() -> Any:
    """32-bit floats inside a ``with`` block, whatever the session's mode."""
    return _with_x64(False)


def _with_x64(on: bool) -> Any:
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    from jax.experimental import enable_x64

    return enable_x64(on)


@functools.cache
def has_float16() -> bool:
    """Whether XLA can compute in float16 here: on some processors it lacks the conversions."""
    try:
        jax.jit(lambda x: x.astype(jnp.float16) + jnp.float16(1))(np.float32(1))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def require_float16() -> None:
    """Skips a test where XLA cannot compute in float16."""
    if not has_float16():
        pytest.skip("XLA cannot compute in float16 on this processor")


@dataclasses.dataclass(frozen=True)
class Generator:
    """A convex generator in arbitrary precision, with the inverse of its derivative."""

    f: Callable[[mp.mpf], mp.mpf]
    f_prime: Callable[[mp.mpf], mp.mpf]
    inverse: Callable[[mp.mpf], mp.mpf]
    f_zero: Callable[[], mp.mpf]
    slope: Callable[[], mp.mpf]
    digits_per_nat: float = 0.5
    """Digits that ``f′`` loses per nat of the log density ratio of the best outcome."""


def power(alpha: float, scale: float = 1, tilt: float = 0) -> Generator:
    """``scale·f_α(u) + tilt·(u − 1)``."""
    exact = {x: mp.mpf(float(x)) for x in (alpha, scale, tilt)}
    a, c, b = exact[alpha], exact[scale], exact[tilt]

    def f(u: mp.mpf) -> mp.mpf:
        if a == 1:
            own = u * mp.log(u) - u + 1
        elif a == 0:
            own = u - 1 - mp.log(u)
        else:
            own = (u**a - a * u + a - 1) / (a * (a - 1))
        return c * own + b * (u - 1)

    def f_prime(u: mp.mpf) -> mp.mpf:
        return b + c * (mp.log(u) if a == 1 else (u ** (a - 1) - 1) / (a - 1))

    def inverse(s: mp.mpf) -> mp.mpf:
        s = (s - b) / c
        if a == 1:
            return mp.exp(s)
        base = 1 + (a - 1) * s
        if base <= 0:
            return mp.mpf(0) if a > 1 else mp.inf
        return base ** (1 / (a - 1))

    return Generator(
        f,
        f_prime,
        inverse,
        lambda: (c / a if a > 0 else mp.inf) - b,
        lambda: mp.inf if a >= 1 else c / (1 - a) + b,
        0.5 * (1 + abs(float(alpha) - 1)),
    )


def jensen_shannon() -> Generator:
    return Generator(
        lambda u: u * mp.log(u) - (u + 1) * mp.log((u + 1) / 2),
        lambda u: mp.log(2 * u / (1 + u)),
        lambda s: 1 / (2 * mp.exp(-s) - 1) if s < mp.log(2) else mp.inf,
        lambda: mp.log(2),
        lambda: mp.log(2),
        1,
    )


def chi_squared_kl() -> Generator:
    def inverse(s: mp.mpf) -> mp.mpf:
        # u + log u = s, by Newton's method in log u from the right of the root
        x = mp.log(s) if s > 1 else +s
        for _ in range(400):
            step = (mp.exp(x) + x - s) / (mp.exp(x) + 1)
            x -= step
            if abs(step) < mp.mpf(10) ** (8 - mp.mp.dps) * (1 + abs(x)):
                return mp.exp(x)
        raise ArithmeticError(f"no root of u + log u = {s}")

    return Generator(
        lambda u: (u - 1) ** 2 / 2 + u * mp.log(u),
        lambda u: u + mp.log(u),
        inverse,
        lambda: mp.mpf(1) / 2,
        lambda: mp.inf,
        0.5,
    )


def kl_mixture(weight: float) -> Generator:
    w = mp.mpf(weight)

    def inverse(s: mp.mpf) -> mp.mpf:
        # w log u + (1 − w)(1 − 1/u) = s is concave in log u: Newton's method from the left.
        x = max(s / w, -mp.log(1 - s / (1 - w))) if s < 0 else mp.mpf(0)
        for _ in range(400):
            step = (w * x + (1 - w) * (1 - mp.exp(-x)) - s) / (w + (1 - w) * mp.exp(-x))
            x -= step
            if abs(step) < mp.mpf(10) ** (8 - mp.mp.dps) * (1 + abs(x)):
                return mp.exp(x)
        raise ArithmeticError(f"no root for a slope of {s}")

    return Generator(
        lambda u: w * (u * mp.log(u) - u + 1) + (1 - w) * (u - 1 - mp.log(u)),
        lambda u: w * mp.log(u) + (1 - w) * (1 - 1 / u),
        inverse,
        lambda: mp.inf,
        lambda: mp.inf,
        0.5,
    )


def total_variation() -> Generator:
    """Only for divergences and values: its derivative has no inverse."""
    return Generator(
        lambda u: abs(u - 1) / 2,
        lambda u: mp.sign(u - 1) / 2,
        lambda s: mp.nan,
        lambda: mp.mpf(1) / 2,
        lambda: mp.mpf(1) / 2,
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A divergence of the library with its generator in arbitrary precision."""

    id: str
    divergence: kt.Divergence
    generator: Generator
    curvature: float
    """``f″(1)``."""


CASES = [
    Case("reverse-kl", kt.ReverseKL(), power(1), 1),
    Case("forward-kl", kt.ForwardKL(), power(0), 1),
    Case("jensen-shannon", kt.JensenShannon(), jensen_shannon(), 0.5),
    Case("hellinger", kt.SquaredHellinger(), power(0.5, 0.5), 0.5),
    Case("neyman", kt.NeymanChiSquared(), power(-1, 2), 2),
    Case("chi-squared", kt.ChiSquared(), power(2, 2), 2),
    Case("chi-squared-kl", kt.ChiSquaredKL(), chi_squared_kl(), 2),
    Case("tsallis-1.5", kt.Tsallis(1.5), power(1.5, 1.5, 1), 1.5),
    Case("tsallis-0.5", kt.Tsallis(0.5), power(0.5, 0.5, 1), 0.5),
    Case("alpha--0.5", kt.Alpha(-0.5), power(-0.5), 1),
    Case("alpha-0", kt.Alpha(0.0), power(0), 1),
    Case("alpha-0.5", kt.Alpha(0.5), power(0.5), 1),
    Case("alpha-0.875", kt.Alpha(0.875), power(0.875), 1),
    Case("alpha-1-2^-5", kt.Alpha(1 - 2.0**-5), power(1 - 2.0**-5), 1),
    Case("alpha-1", kt.Alpha(1.0), power(1), 1),
    Case("alpha-1+2^-10", kt.Alpha(1 + 2.0**-10), power(1 + 2.0**-10), 1),
    Case("alpha-1.5", kt.Alpha(1.5), power(1.5), 1),
    Case("alpha-2.5", kt.Alpha(2.5), power(2.5), 1),
    Case("alpha-3", kt.Alpha(3.0), power(3), 1),
]
"""The orders are exact in every float type, so that the oracle solves the very same problem."""

BY_ID = {case.id: case for case in CASES}
NAMED = [case for case in CASES if not case.id.startswith(("alpha", "tsallis"))]
"""One of each class without parameters, TotalVariation excepted."""


LOOK_ALIKES = (
    *("hellinger", "neyman", "tsallis", "js_twice"),
    *(f"alpha-{alpha}" for alpha in (0.875, -0.5, 2.5)),
)
"""Multiples of members of other families: the same formulas, compiled once more."""


def ids(case: Any) -> str:
    return getattr(case, "id", str(case))


def slow(cases: Iterable[Any]) -> list[Any]:
    """The cases as parameters of slow tests."""
    return [pytest.param(case, id=ids(case), marks=pytest.mark.slow) for case in cases]


def slow_look_alikes(cases: Iterable[Any]) -> list[Any]:
    """The cases as parameters, of slow tests where a look-alike's name is in theirs."""
    return [
        pytest.param(
            case,
            id=ids(case),
            marks=pytest.mark.slow if any(x in ids(case) for x in LOOK_ALIKES) else (),
        )
        for case in cases
    ]


def _exact(x: Any) -> mp.mpf:
    """A float as it is, or a number that already has more digits than one."""
    return x if isinstance(x, mp.mpf) else mp.mpf(float(x))


def _digits(generator: Generator, log_ref: Iterable[float]) -> int:
    deepest = max((-float(x) for x in log_ref if x > -INF), default=0)
    return 80 + math.ceil(2 * generator.digits_per_nat * max(deepest, 0) / math.log(10))


@dataclasses.dataclass(frozen=True)
class Answer:
    log_probs: list[mp.mpf]
    multiplier: mp.mpf
    condensed: bool

    @property
    def probs(self) -> list[mp.mpf]:
        return [mp.exp(x) for x in self.log_probs]


def exact_target(
    reward: Sequence[Any], log_ref: Sequence[Any], beta: Any, generator: Generator
) -> Answer:
    """The target of one problem, to at least fifty digits, of exactly these numbers.

    The unknown is the log density ratio x of the best supported outcome; ``Σ π = 1`` is increasing
    in x and is bracketed by what the best outcomes can hold.
    """
    with mp.workdps(_digits(generator, [float(x) for x in log_ref])):
        r, q, b = [_exact(x) for x in reward], [mp.exp(_exact(x)) for x in log_ref], _exact(beta)
        outcomes = range(len(r))
        on = [i for i in outcomes if q[i] > 0 and r[i] > -mp.inf]
        best = max(r[i] for i in on)
        tied = sum(q[i] for i in on if r[i] == best)

        def ratios(s_best: mp.mpf, u_best: mp.mpf | None) -> list[mp.mpf]:
            return [
                u_best
                if u_best is not None and r[i] == best
                else generator.inverse(s_best + (r[i] - best) / b)
                for i in on
            ]

        def answer(u: list[mp.mpf], multiplier: mp.mpf, atoms: dict[int, mp.mpf]) -> Answer:
            log_probs = [-mp.inf] * len(r)
            for i, ratio in zip(on, u, strict=True):
                log_probs[i] = mp.log(q[i]) + mp.log(ratio) if ratio > 0 else -mp.inf
            log_probs = [mp.log(atoms[i]) if i in atoms else log_probs[i] for i in outcomes]
            return Answer(log_probs, multiplier, bool(atoms))

        off = max((r[i] for i in outcomes if q[i] == 0), default=-mp.inf)
        slope = generator.slope()
        if off > best and slope < mp.inf:
            u = ratios(slope + (best - off) / b, None)
            missing = 1 - sum(q[i] * ratio for i, ratio in zip(on, u, strict=True))
            if missing > 0:
                holders = [i for i in outcomes if q[i] == 0 and r[i] == off]
                return answer(u, off - b * slope, dict.fromkeys(holders, missing / len(holders)))

        def excess(x: mp.mpf) -> mp.mpf:
            u_best = mp.exp(x)
            u = ratios(generator.f_prime(u_best), u_best)
            return mp.log(sum(q[i] * ratio for i, ratio in zip(on, u, strict=True)))

        x = increasing_root(excess, -mp.log(sum(q[i] for i in on)), -mp.log(tied))
        u_best = mp.exp(x)
        s_best = generator.f_prime(u_best)
        return answer(ratios(s_best, u_best), best - b * s_best, {})


def increasing_root(g: Callable[[mp.mpf], mp.mpf], low: mp.mpf, high: mp.mpf) -> mp.mpf:
    """The root of an increasing function, by false position with bisection behind it."""
    margin = mp.mpf(10) ** (20 - mp.mp.dps)
    low, high = low - margin * (1 + abs(low)), high + margin * (1 + abs(high))
    at_low, at_high = g(low), g(high)
    if at_low >= 0 or at_high <= 0:
        return low if abs(at_low) <= abs(at_high) else high
    side, width = 0, high - low
    for k in range(2000):
        x = (low * at_high - high * at_low) / (at_high - at_low)
        if k % 4 == 3 and high - low > width / 8:
            x = (low + high) / 2
        width = high - low if k % 4 == 3 else width
        at_x = g(x)
        if abs(at_x) <= margin * mp.mpf(10) ** -5 or high - low <= margin * (1 + abs(x)):
            return x
        if at_x > 0:
            high, at_high = x, at_x
            at_low = at_low / 2 if side == 1 else at_low
            side = 1
        else:
            low, at_low = x, at_x
            at_high = at_high / 2 if side == -1 else at_high
            side = -1
    raise ArithmeticError("no root")


def exact_divergence(log_p: Sequence[Any], log_q: Sequence[Any], generator: Generator) -> mp.mpf:
    """``Σ q f(p/q)`` of exactly these log-probabilities, with what zeros cost."""
    with mp.workdps(_digits(generator, [*map(float, log_p), *map(float, log_q)])):
        total = mp.mpf(0)
        for a, b in zip(log_p, log_q, strict=True):
            p, q = mp.exp(_exact(a)), mp.exp(_exact(b))
            if p > 0 and q > 0:
                total += q * generator.f(p / q)
            elif q > 0:
                total += q * generator.f_zero()
            elif p > 0:
                total += p * generator.slope()
        return total


def exact_value(
    log_p: Sequence[Any],
    reward: Sequence[Any],
    log_ref: Sequence[Any],
    beta: Any,
    generator: Generator,
) -> mp.mpf:
    """``E_p[reward] − beta·D(p, ref)``."""
    with mp.workdps(_digits(generator, [*map(float, log_p), *map(float, log_ref)])):
        gain = sum(
            (mp.exp(_exact(a)) * _exact(r) for a, r in zip(log_p, reward, strict=True) if a > -INF),
            mp.mpf(0),
        )
        return gain - _exact(beta) * exact_divergence(log_p, log_ref, generator)


def exact_gap(
    log_p: Sequence[Any],
    reward: Sequence[Any],
    log_ref: Sequence[Any],
    beta: Any,
    generator: Generator,
) -> mp.mpf:
    """The largest value minus the value at ``p``, as a plain difference in many digits."""
    with mp.workdps(_digits(generator, [*map(float, log_p), *map(float, log_ref)])):
        best = exact_target(reward, log_ref, beta, generator)
        r, q, b = [_exact(x) for x in reward], [mp.exp(_exact(x)) for x in log_ref], _exact(beta)
        # The target's own value, from its probabilities in full precision.
        value = mp.mpf(0)
        for p, reward_i, q_i in zip(best.probs, r, q, strict=True):
            value += p * reward_i if p > 0 else 0
            if q_i > 0:
                value -= b * q_i * (generator.f(p / q_i) if p > 0 else generator.f_zero())
            elif p > 0:
                value -= b * p * generator.slope()
        # A float policy's masses do not sum to one exactly, and the gap is that of the nearest
        # policy that does: the multiplier prices what is missing.
        missing = 1 - sum(mp.exp(_exact(a)) for a in log_p)
        return (
            value
            - exact_value(log_p, reward, log_ref, beta, generator)
            - missing * (best.multiplier)
        )


def bar_errors(got: Any, want: Sequence[mp.mpf], dtype: Any) -> np.ndarray:
    """Errors of log-probabilities in units of ``eps·(1 + |log p|)``; the bar is 32."""
    got = np.asarray(got, np.float64)
    largest = float(jnp.finfo(dtype).max)
    errors = np.empty(len(want))
    for i, w in enumerate(want):
        if w < -largest:  # a zero, or too deep for the type
            errors[i] = 0 if got[i] <= -0.99 * largest else INF
        elif not np.isfinite(got[i]):
            errors[i] = INF
        else:
            errors[i] = float(abs(mp.mpf(float(got[i])) - w) / (1 + abs(w))) / eps(dtype)
    return errors


def clarabel(problem: Any) -> float:
    """Solves with the peer's own settings and returns the error that it promises then."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(solver="CLARABEL")
    # Its `tol_gap_*` and `tol_feas`, and the reduced ones where a machine's rounding stops it.
    return {"optimal": 1e-8, "optimal_inaccurate": 1e-4}[problem.status] * (1 + abs(problem.value))


def convex_optimum(
    reward: Sequence[float], ref: Sequence[float], beta: float, name: str
) -> tuple[np.ndarray, float, float]:
    """Policy, value and error from an interior-point solver that knows only the objective."""
    import cvxpy as cp

    r, q = np.asarray(reward, float), np.asarray(ref, float)
    p = cp.Variable(len(q))
    on = np.flatnonzero(q > 0)
    p_on, q_on = p[on], q[on]
    off_mass = 1 - cp.sum(p_on)
    ratio = cp.multiply(1 / q_on, p_on)
    chi_squared = cp.sum(cp.multiply(q_on, cp.square(ratio - 1)))
    reverse = cp.sum(cp.rel_entr(p_on, q_on))
    costs: dict[str, Callable[[], Any]] = {
        "reverse-kl": lambda: reverse,
        "forward-kl": lambda: cp.sum(cp.rel_entr(q_on, p_on)),
        "jensen-shannon": lambda: (
            cp.sum(cp.rel_entr(p_on, (p_on + q_on) / 2))
            + cp.sum(cp.rel_entr(q_on, (p_on + q_on) / 2))
            + math.log(2) * off_mass
        ),
        "hellinger": lambda: 2 - 2 * cp.sum(cp.multiply(np.sqrt(q_on), cp.sqrt(p_on))),
        "neyman": lambda: cp.sum(cp.multiply(q_on**2, cp.inv_pos(p_on))) - 1,
        "chi-squared": lambda: chi_squared,
        "chi-squared-kl": lambda: 0.5 * chi_squared + reverse,
        "total-variation": lambda: 0.5 * cp.norm1(p - q),
        "alpha-1.5": lambda: (cp.sum(cp.multiply(q_on, cp.power(ratio, 1.5))) - 1) / 0.75,
        "alpha-3": lambda: (cp.sum(cp.multiply(q_on, cp.power(ratio, 3))) - 1) / 6,
    }
    constraints = [p >= 0, cp.sum(p) == 1]
    if name in {"reverse-kl", "chi-squared", "chi-squared-kl", "alpha-1.5", "alpha-3"}:
        constraints += [p[i] == 0 for i in range(len(q)) if q[i] == 0]
    problem = cp.Problem(cp.Maximize(r @ p - beta * costs[name]()), constraints)
    slack = clarabel(problem)
    return np.asarray(p.value), float(problem.value), slack


@functools.cache
def _bank() -> dict[str, dict[str, Any]]:
    path = pathlib.Path(__file__).with_name("reference_values.json")
    return {case["id"]: _numbers(case) for case in json.loads(path.read_text())}


def _numbers(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _numbers(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_numbers(value) for value in x]
    return {"inf": INF, "-inf": -INF}.get(x, x) if isinstance(x, str) else x


def reference_ids(*prefixes: str) -> list[str]:
    """The ids of the bank's cases that start with one of these."""
    return [name for name in _bank() if name.startswith(prefixes)]


def reference(name: str) -> dict[str, Any]:
    """A case of the bank: its id, inputs, expected values and tolerances."""
    return _bank()[name]


def assert_reference(name: str, got: Any, key: str, dtype: Any, *, ulps: float = 32) -> None:
    """Compares with one expected entry of a case, to its tolerance or the dtype's, the larger."""
    case = _bank()[name]
    want = np.asarray(case["expected"][key], np.float64)
    rtol = max(case["rel_tol"], ulps * eps(dtype))
    atol = max(case["abs_tol"], ulps * eps(dtype) * (1 if np.any(want == 0) else 0))
    np.testing.assert_allclose(
        np.asarray(got, np.float64), want, rtol=rtol, atol=atol, err_msg=f"{name}: {key}"
    )


ROWS, WIDTH = 48, 12


def solve_rows(
    rows: Sequence[tuple[Sequence[float], Sequence[float], float]],
    divergence: kt.Divergence,
    dtype: Any,
) -> list[Row]:
    """Targets of many small problems, computed in one program per divergence and dtype.

    Rows are padded with outcomes that are both forbidden and impossible, and the batch with copies
    of the first row, so that every test shares a compiled program.
    """
    targets: list[Row] = []
    for start in range(0, len(rows), ROWS):
        chunk = list(rows[start : start + ROWS])
        padded = chunk + [chunk[0]] * (ROWS - len(chunk))
        reward = np.full((ROWS, WIDTH), -np.inf, dtype)
        log_ref = np.full((ROWS, WIDTH), -np.inf, dtype)
        for k, (r, q, _) in enumerate(padded):
            reward[k, : len(r)], log_ref[k, : len(q)] = r, q
        beta = np.array([b for *_, b in padded], dtype)
        objective = kt.Objective(reward, log_ref, beta, divergence)
        log_probs, multiplier, status, value = map(np.asarray, _numbers_of(objective))
        targets += [
            Row(log_probs[k, : len(r)], multiplier[k], int(status[k]), value[k])
            for k, (r, *_) in enumerate(chunk)
        ]
    return targets


@jax.jit
def _numbers_of(objective: kt.Objective) -> tuple[jax.Array, ...]:
    target = kt.solve(objective)
    return target.log_probs, target.multiplier, target.status, target.value


@dataclasses.dataclass(frozen=True)
class Row:
    """One problem's answer from ``solve``, as NumPy numbers."""

    log_probs: np.ndarray
    multiplier: np.floating
    status: int
    value: np.floating

    @property
    def probs(self) -> np.ndarray:
        return np.exp(np.asarray(self.log_probs, np.float64))


def log_normalised(weights: np.ndarray, dtype: Any) -> np.ndarray:
    """Log-probabilities of log-weights, rounded once to ``dtype``."""
    top = weights.max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return (weights - top - np.log(np.exp(weights - top).sum(-1, keepdims=True))).astype(dtype)


def random_problems(
    seed: int, count: int, dtype: Any
) -> list[tuple[np.ndarray, np.ndarray, np.floating]]:
    """Problems from every corner: deep references, ties, offsets, forbidden outcomes, any beta."""
    rng = np.random.default_rng(seed)
    problems = []
    while len(problems) < count:
        k = len(problems)
        size = int(rng.choice([1, 2, 3, 5, WIDTH]))
        if k % 3 == 0:
            weights = rng.normal(size=size) * rng.choice([0.1, 1, 3, 15])
        elif k % 3 == 1:
            weights = -rng.uniform(0, 800, size=size)
            weights[rng.integers(size)] = 0
        else:
            weights = np.zeros(size)
            weights[rng.integers(size)] = -800 * rng.uniform()
            weights[rng.integers(size)] = 0
        if size > 1 and rng.uniform() < 0.2:
            weights[rng.integers(size)] = -np.inf
        if not np.isfinite(weights).any():
            continue
        reward = rng.choice([0, 1, 0.5, 1, -2], size=size) if k % 2 else rng.normal(size=size)
        reward = reward * rng.choice([1, 1e-3, 100]) + rng.choice([0, 0, 1e6])
        if size > 1 and rng.uniform() < 0.15:
            reward[rng.integers(size)] = -np.inf
        reward, log_ref = reward.astype(dtype), log_normalised(weights, dtype)
        if not np.any((reward > -np.inf) & (log_ref > -np.inf)):
            continue
        beta = 10 ** (rng.uniform(-12, 12) if k % 4 == 0 else rng.uniform(-3, 1))
        problems.append((reward, log_ref, dtype.type(beta)))
    return problems


def central_difference(f: Callable[[float], Any], x: float, step: float) -> np.ndarray:
    """Richardson's central difference, of fourth order in ``step``."""
    wide, narrow = (
        (np.asarray(f(x + h), np.float64) - np.asarray(f(x - h), np.float64)) / (2 * h)
        for h in (step, step / 2)
    )
    return (4 * narrow - wide) / 3
