"""What maximises a reward less a divergence of scores, on a line: a ground state, not a tilt."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import float_arguments
from kltarget._core.pytrees import pytree
from kltarget.objectives import Objective

_ROUNDS = 8
"""Of inverse iteration; each takes entries that are rounding down by many powers of ten."""


@pytree
class ScoreTarget:
    """A law on points of a line that is regularised by scores.

    Attributes:
        log_probs: log-probabilities of the points, ``[A]``.
        value: the maximum in reward units; with the sampling law held, the multiplier, which is
            ``r + β L_q u/u`` everywhere.
    """

    log_probs: Float[Array, " A"]
    value: Float[Array, ""]


def score_regularized(
    reward: ArrayLike,
    log_ref: ArrayLike,
    beta: ArrayLike,
    *,
    spacing: float,
    held: bool = False,
) -> ScoreTarget:
    """The law that maximises ``E_p[r] − β·½E_p|∇ log p − ∇ log q|²`` on a line.

    With ``p = q ψ²`` the divergence of scores is ``2 E_q|∇ψ|²``, so ψ is the ground state of a
    Schrödinger operator, ``2β L_q ψ + r ψ = J ψ`` with the largest J and
    ``L_q ψ = ψ'' + (log q)' ψ'``. It is no tilt ``q e^{r/β}``. Scores do not see how mass is shared
    among modes that are far apart: a difference in reward that is small against β, but not against
    the rate at which ``β L_q`` passes between the modes, takes all mass to the better one.

    Diff-Instruct* does not follow the derivative of this objective. It holds the law fixed over
    which scores are compared, ``E_{sg(p)}[d(∇ log p − ∇ log q)]``, whose derivative is that of
    ``−E_p[d'(y)·(∇ log sg(p)(x_t) − ∇ log q(x_t|x_0))]`` over draws and their noise. Where that
    rests, ``p = q u`` with ``β L_q u + r u = λ u``: with ``held=True``, for ``d = ½|y|²``.

    Args:
        reward: r at equidistant points, in reward units, ``[A]``, finite.
        log_ref: log-probabilities q of the points, ``[A]``, finite.
        beta: coefficient, in reward units times the square of a length.
        spacing: distance of the points; the ends reflect.
        held: whether the law over which scores are compared is held fixed.

    Returns:
        The law and the value, computed in double precision on the host, of the inputs' float type.
        Not differentiable, and not for use under ``jit``.

    Raises:
        ValueError: shapes that do not fit, values out of range, a reference that is 0 somewhere.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.targets.grids import score_regularized
        >>> x = jnp.linspace(-5, 5, 401)
        >>> log_q = -(x**2) / 2 - jnp.log(jnp.exp(-(x**2) / 2).sum())
        >>> for held in (False, True):  # 1/√(1 + a/β), 2/(1 + √(1 + 2a/β)); a tilt has 1/(1 + a/β)
        ...     p = score_regularized(-1.5 * x**2, log_q, 1.0, spacing=0.025, held=held)
        ...     print(f"{(jnp.exp(p.log_probs) * x**2).sum():.3f}")
        0.500
        0.549

    References:
        Luo et al., "David and Goliath: Small One-step Model Beats Large Diffusion with Score
        Post-training", 2024, arXiv 2410.20898 (Diff-Instruct*).
    """
    given = float_arguments(reward=reward, log_ref=log_ref, beta=beta)
    # An objective checks what it is made of.
    problem = Objective(given["reward"], given["log_ref"], given["beta"])
    if problem.batch_shape or problem.num_outcomes < 2:
        raise ValueError(
            f"reward has shape {given['reward'].shape} and beta {given['beta'].shape}: give one "
            "problem on two points or more"
        )
    if not 0 < spacing < np.inf:
        raise ValueError(f"spacing must be above 0 and finite, got {spacing}")
    r, log_q = (np.asarray(given[name], float) for name in ("reward", "log_ref"))
    for name, values in (("reward", r), ("log_ref", log_q)):
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(
                f"{name} must be finite, as scores are, got {values[at]} at index {at}"
            )
    pace = (1 if held else 2) * float(given["beta"]) / spacing**2
    root = np.exp(np.diff(log_q) / 2)
    leaving = np.append(root, 0.0) + np.insert(1 / root, 0, 0.0)
    level, log_state = _ground_state(r - pace * leaving, pace)
    log_p = log_state + log_q / 2 if held else 2 * log_state
    log_p = log_p - np.logaddexp.reduce(log_p)
    dtype = problem.reward.dtype
    return ScoreTarget(jnp.asarray(log_p, dtype), jnp.asarray(level, dtype))


def _ground_state(diagonal: np.ndarray, beside: float) -> tuple[float, np.ndarray]:
    """The largest eigenvalue, and the logarithm of its vector, whose entries are all positive.

    An eigenvector by itself loses entries below rounding. Inverse iteration with a shift above the
    eigenvalue only adds positive numbers, so that it keeps them.
    """
    from scipy.linalg import eigh_tridiagonal

    last = len(diagonal) - 1
    off = np.full(last, beside)
    (level,), vector = eigh_tridiagonal(diagonal, off, select="i", select_range=(last, last))
    scale = np.abs(diagonal).max() + 2 * beside
    pivots = level + 64 * np.finfo(float).eps * scale - diagonal
    for i in range(1, last + 1):
        pivots[i] -= beside**2 / pivots[i - 1]
    state = np.abs(vector[:, 0])
    for _ in range(_ROUNDS):
        for i in range(1, last + 1):
            state[i] += beside * state[i - 1] / pivots[i - 1]
        state[last] /= pivots[last]
        for i in range(last - 1, -1, -1):
            state[i] = (state[i] + beside * state[i + 1]) / pivots[i]
        state /= state.max()
    return float(level), np.log(state)
