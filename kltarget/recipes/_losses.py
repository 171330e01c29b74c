"""What a whole loss function of a trainer asks for, read off its gradients."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kltarget._core.numerics import double_precision
from kltarget.divergences import (
    ChiSquared,
    Divergence,
    ForwardKL,
    ReverseKL,
    Scaled,
    TotalVariation,
)
from kltarget.recipes._loss_probes import Gradient as _Gradient, Model, unexplained
from kltarget.recipes._recipe import Recipe
from kltarget.recipes._terms import TermReading, from_slopes, log_ratios

Loss = Callable[..., Any]
"""``loss(logp, ref_logp, old_logp, advantages, mask)``, a number."""

_TINY = 1e-9
_LENGTHS = ("sum", "mean", "batch-mean")
_UNREAD = (
    "how rewards become advantages: they come in ready, so baseline and normalisation are not seen",
    "a KL that is charged to the rewards before the loss is called",
)


@dataclasses.dataclass(frozen=True, eq=False)
class LossReading:
    """A loss function, read.

    Attributes:
        recipe: what it does, with its coefficient in ``beta``; how rewards become advantages is
            left at the recipe's defaults.
        term: its KL term's divergence and where that holds nothing; None if there is no such term.
        remarks: what it does beside that, first what is unexplained.
        unread: what gradients at given advantages cannot show.
        unexplained: what its gradients do that the recipe does not say, or no divergence does. If
            there is anything, the recipe is not all that it asks for.
    """

    recipe: Recipe
    term: TermReading | None
    remarks: tuple[str, ...] = ()
    unread: tuple[str, ...] = _UNREAD
    unexplained: tuple[str, ...] = ()

    @property
    def divergence(self) -> Divergence | None:
        """The divergence of the KL term, without its coefficient; None if it has none."""
        if self.recipe.divergence is not None or self.term is None:
            return self.recipe.divergence
        return self.term.divergence


def divergence_of_loss(loss: Loss) -> LossReading:
    """What a trainer's loss function asks for, from its gradients at chosen log ratios.

    The derivative of a loss by the log-probability of a token is
    ``−w (A − β c(ℓ))`` on-policy, with the advantage A, the log ratio ℓ to the reference, and a
    weight w that says how lengths count. Two evaluations, with advantages of 0 and of 1, separate
    w from ``β c``, and ``f′(u) = c(log u)`` is the divergence; whether a token's derivative depends
    on the other tokens' ratios is its level, and where it vanishes for samples of an older policy
    is the clip.

    Args:
        loss: ``loss(logp, ref_logp, old_logp, advantages, mask)``, a number that is minimised,
            written with torch or JAX: log-probabilities ``[N, T]`` of sampled tokens under the
            policy in training, the reference and the policy that drew them; advantages ``[N]`` or
            ``[N, T]``; a mask ``[N, T]``, 1 for tokens that count.

    Returns:
        A :class:`LossReading`: the recipe, and what could not be read.

    Raises:
        TypeError: no function of these five, or one without derivative by ``logp``.
        ValueError: its derivative is not finite, or does not ascend the advantage.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget import recipes
        >>> def loss(logp, ref_logp, old_logp, advantages, mask):
        ...     ratio = jnp.exp(logp - old_logp)
        ...     clipped = jnp.clip(ratio, 0.8, 1.2)
        ...     gain = jnp.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
        ...     k3 = jnp.exp(ref_logp - logp) - 1 - (ref_logp - logp)
        ...     return -((gain - 0.04 * k3) * mask).sum() / mask.sum()
        >>> found = recipes.divergence_of_loss(loss).recipe
        >>> found.estimator, found.level, found.beta, found.clip, found.length
        ('k3', 'token', 0.04, 0.2, 'batch-mean')
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function, got {type(loss).__name__}")
    gradient = _gradient_of(loss)
    fields: dict[str, Any] = {"length": _length(gradient, 0.0)}
    remarks: list[str] = []
    clips, of_sequences = _clips(gradient)
    level, constant, centred = _level(gradient)
    if level is None:
        what: dict[str, Any] = {"place": "none"}
        if constant:
            what = {"place": "loss", "estimator": "k1", "beta": abs(constant)}
            remarks.append(
                "a term has the same derivative at every log ratio, as k1 has, and none on average"
            )
        elif of_sequences:
            what["ratio_level"] = "sequence"
        ends = np.array([-1.0, 1.0])
        # How lengths count for a term without a pull is no field's: any way is as read.
        model = Model(
            ends,
            0 * ends + constant,
            "token",
            False,
            fields["length"],
            _LENGTHS if constant else _LENGTHS[:1],
        )
        missed = unexplained(gradient, model)
        recipe = Recipe(**what, **fields, **clips)
        return LossReading(recipe, None, (*missed, *remarks), unexplained=missed)
    slopes, single = _slopes(gradient)
    term, primitive = from_slopes(slopes, _name(loss), single=single)
    kl_length = fields["length"] if centred else _length(gradient, 1.0)
    if kl_length != fields["length"]:
        fields["kl_length"] = kl_length
    at = log_ratios()
    model = Model(at, slopes, level, centred, fields["length"], (kl_length,))
    missed = unexplained(gradient, model)
    below, above = np.interp([-0.1, 0.1], at, slopes)
    if above < below - 1e-6 * max(abs(above), abs(below)):
        missed = ("the KL term has the wrong sign: it pushes away from the reference", *missed)
    if of_sequences and level == "sequence":
        fields["ratio_level"] = "sequence"
    elif of_sequences:
        remarks.append("ratios to the sampler are those of whole sequences")
    fields |= {"place": "loss", "level": level, **_estimator(term, primitive), **clips}
    if level == "onward":
        fields |= _charged_onward(fields, centred, remarks)
    elif centred:
        remarks.append("the batch's mean is taken off the term, which moves nothing on average")
    remarks += term.remarks
    return LossReading(Recipe(**fields), term, (*missed, *remarks), unexplained=missed)


def _charged_onward(fields: dict[str, Any], centred: bool, remarks: list[str]) -> dict[str, Any]:
    """The fields of a term that acts on the tokens before it, as one in the reward does."""
    changes: dict[str, Any] = {"level": "token"}
    if fields["estimator"] != "k2":
        remarks.append("a token is charged with the terms of those after it, which no field says")
        return changes
    changes |= {"place": "reward", "estimator": "k1", "kl_length": None}
    if centred:
        changes["kl_centre"] = "batch-mean"
        remarks.append("the batch's mean is taken off the term, which pays for further tokens")
    return changes


def _estimator(term: TermReading, primitive: Callable[[Any], Any]) -> dict[str, Any]:
    """The estimator that has this divergence, by name if it has one, its coefficient and clips."""
    family, factor = term.family, 1.0
    if isinstance(family, Scaled):
        family, factor = family.base, family.factor
    named: dict[Divergence | None, tuple[str, float, Callable[[float], float]]] = {
        ReverseKL(): ("k2", factor, lambda x: x * x / 2),
        ForwardKL(): ("k3", factor, lambda x: math.expm1(-x) + x),
        ChiSquared(): ("swapped-k3", 2 * factor, lambda x: math.expm1(x) - x),
        TotalVariation(): ("absolute", factor / 2, abs),
    }
    if family not in named:
        return {"estimator": primitive, "beta": 1.0}
    name, beta, value = named[family]
    found: dict[str, Any] = {"estimator": name, "beta": float(f"{beta:.6g}")}
    low, high = term.held
    if math.isfinite(low) and math.isfinite(high):
        cost = value(low), value(high)
        if math.isclose(*cost, rel_tol=0.02) and not math.isclose(-low, high, rel_tol=0.01):
            found["kl_clip"] = float(f"{max(cost):.2g}")
        elif math.isclose(-low, high, rel_tol=0.01):
            found["log_ratio_clip"] = float(f"{high:.3g}")
    return found


class _NotFiniteError(ValueError):
    """Of a loss that could be called."""


def _gradient_of(loss: Loss) -> _Gradient:
    """The derivative by ``logp`` on the host, with advantages per sequence as the loss takes them.

    Three sequences of four tokens tell the two shapes of advantages apart.
    """
    shape = (3, 4)
    even = np.full(shape, -1.0)
    refused = []
    for derivative in (_by_jax, _by_torch):
        for per_token in (False, True):

            def gradient(
                logp: np.ndarray,
                ref: np.ndarray,
                old: np.ndarray,
                advantages: np.ndarray,
                mask: np.ndarray,
                per_token: bool = per_token,
                derivative: Callable[..., np.ndarray] = derivative,
            ) -> np.ndarray:
                each = advantages
                if per_token:
                    each = np.broadcast_to(advantages[:, None], logp.shape).copy()
                found = derivative(loss, logp, ref, old, each, mask)
                if not np.isfinite(found).all():
                    raise _NotFiniteError(
                        f"loss {_name(loss)} has a derivative that is not finite: at log ratios "
                        f"of up to {np.abs(logp - ref).max():g}"
                    )
                return found

            try:
                found = gradient(even, even, even, np.ones(3), np.ones(shape))
            except _NotFiniteError:
                # The deviation of equal advantages, by which some losses divide, is 0.
                found = np.zeros(shape)
                if not _whitens(gradient):
                    raise
            except Exception as error:
                refused.append(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
                continue
            if not (found < 0).all():
                if _whitens(gradient):
                    raise ValueError(
                        f"loss {_name(loss)} normalises its advantages: equal ones move nothing, "
                        "unequal ones do; pass a function of advantages that are ready"
                    )
                raise ValueError(
                    f"loss {_name(loss)} does not ascend the advantage: where that is 1 its "
                    "derivative by logp must be below 0"
                )
            return gradient
    # What a library says of another's arrays is not what is wrong.
    own = [x for x in refused if "Tracer" not in x and "torch.Tensor" not in x]
    why = (own or refused)[0]
    raise TypeError(
        f"loss {_name(loss)} must be loss(logp, ref_logp, old_logp, advantages, mask), a number "
        f"that torch or JAX can differentiate by logp: {why}"
    )


def _whitens(gradient: _Gradient) -> bool:
    """Whether advantages of 0, 1 and 2 act as −1, 0 and 1 would."""
    even = np.full((3, 4), -1.0)
    low, _, high = gradient(even, even, even, np.arange(3.0), np.ones((3, 4)))
    return bool((low > 0).all() and (high < 0).all())


def _by_jax(loss: Loss, *arrays: np.ndarray) -> np.ndarray:
    with double_precision():
        logp, *others = (jnp.asarray(x, jnp.float64) for x in arrays)
        return np.asarray(jax.grad(lambda x: jnp.asarray(loss(x, *others)).reshape(()))(logp))


def _by_torch(loss: Loss, *arrays: np.ndarray) -> np.ndarray:
    torch = sys.modules.get("torch")
    if torch is None:
        raise TypeError("torch is not imported")
    logp, *others = (torch.tensor(x, dtype=torch.float64) for x in arrays)
    logp.requires_grad_()
    loss(logp, *others).backward()
    return logp.grad.numpy()


def _length(gradient: _Gradient, by_kl: float) -> str:
    """How the tokens of sequences of two and of four tokens count, for the reward or the KL."""
    mask = np.array([[1.0, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    weights = []
    for kept in (mask, np.ones_like(mask)):
        even = np.full_like(kept, -1.0)
        # From the other side of equality: at it, |x| has the derivative that a library gives it.
        nothing = gradient(even, even + 0.1 * by_kl, even, np.zeros(3), kept)
        moved = gradient(even, even - 0.1 * by_kl, even, np.full(3, 1 - by_kl), kept)
        weights.append(np.abs(moved - nothing))
    (short, full) = weights
    # A KL of sequences is larger where these are longer.
    if short[0, 0] > 1.5 * short[1, 0]:
        return "mean"
    # Fewer tokens in the batch weigh more, each, if they are divided by.
    return "batch-mean" if short[1, 0] > full[1, 0] * (1 + 1e-6) else "sum"


def _level(gradient: _Gradient) -> tuple[str | None, float, bool]:
    """Which tokens a token's log ratio acts on; what is the same at every ratio; if it is centred.

    ``"token"`` if on itself alone, ``"onward"`` if on those before it as well, as a charge to
    returns does, ``"sequence"`` if on all of its sequence.
    """
    shape = (3, 4)
    logp, nothing, ones = np.full(shape, -1.0), np.zeros(3), np.ones(shape)
    below, above = logp.copy(), logp.copy()
    below[0, 1], above[0, 1] = -2.0, 0.0
    base = gradient(logp, logp, logp, nothing, ones)
    # On both sides: what a library says of |x| at 0 is that of one of them.
    moved = np.subtract(*(gradient(logp, x, logp, nothing, ones) for x in (below, above)))
    size = np.abs(gradient(logp, logp, logp, np.ones(3), ones) - base).max()
    constant = float(f"{base[1, 1] / size:.6g}") if np.abs(base).max() > _TINY * size else 0.0
    acts = np.abs(moved) > _TINY * size
    if not acts.any():
        return None, constant, False
    centred = bool(acts[1:].any())
    # The mean that is taken off in other sequences is taken off here too.
    own = moved[0] - moved[1] if centred else moved[0]
    on = np.abs(own) > 1e-6 * np.abs(own).max()
    if on[2:].any():
        return "sequence", constant, centred
    return ("onward" if on[0] else "token"), constant, centred


def _slopes(gradient: _Gradient) -> tuple[np.ndarray, bool]:
    """``β c`` at the log ratios of a grid, one sequence of one token each.

    And whether the loss computes in single precision, as many do whatever they are given.
    """
    ratios = log_ratios()[:, None]
    logp, ones = np.full_like(ratios, -1.0), np.ones_like(ratios)
    weight = -gradient(logp, logp, logp, np.ones(len(ratios)), ones)
    pull = gradient(logp, logp - ratios, logp, np.zeros(len(ratios)), ones)
    weight += gradient(logp, logp, logp, np.zeros(len(ratios)), ones)
    slopes = (pull / weight)[:, 0]
    # What a library says of |x| at 0 is 0 or the derivative on one side: let it be that above.
    below, at, above = np.searchsorted(ratios[:, 0], 0.0) + np.array([-1, 0, 1])
    if slopes[above] - slopes[below] > 10 * (slopes[above + 1] - slopes[above]):
        slopes[at] = slopes[above]
    return slopes, bool((pull == pull.astype(np.float32)).all())


def _clips(gradient: _Gradient) -> tuple[dict[str, Any], bool]:
    """The clip of the ratio to the sampler, and whether that is one of whole sequences."""
    shape = (3, 4)
    old, ones = np.full(shape, -2.0), np.ones(shape)

    def pulls(advantage: float, shift: float) -> float:
        moved = old + shift
        with_it = gradient(moved, moved, old, np.full(3, advantage), ones)
        return float(np.abs(with_it - gradient(moved, moved, old, np.zeros(3), ones)).max())

    def edge(sign: float) -> float | None:
        """Where samples stop to count: ratios above 1 of good ones, below 1 of bad ones."""
        if pulls(sign, sign * 1.5) > _TINY or pulls(sign, 0.0) <= _TINY:
            return None
        inner, outer = 0.0, 1.5
        for _ in range(40):
            middle = (inner + outer) / 2
            inner, outer = (
                (middle, outer) if pulls(sign, sign * middle) > _TINY else (inner, middle)
            )
        return float(f"{abs(math.expm1(sign * inner)):.6g}")

    high, low = edge(1.0), edge(-1.0)
    fields: dict[str, Any] = {}
    if low is not None:
        fields["clip"] = low
        if high is not None and not math.isclose(high, low, rel_tol=1e-4):
            fields["clip_high"] = high
    elif high is not None:
        fields |= {"clip": 1.0, "clip_high": high}
    moved = old.copy()
    moved[0, 0] += 0.05
    # Without what the loss does where nothing is gained, its KL term.
    gains = [
        np.subtract(*(gradient(at, at, old, np.full(3, gain), ones) for gain in (1.0, 0.0)))
        for at in (moved, old)
    ]
    apart = gains[0] - gains[1]
    return fields, bool(np.abs(apart[0, 1:]).max() > 1e-3 * np.abs(apart[0, 0]))


def _name(loss: Loss) -> str:
    return str(getattr(loss, "__name__", type(loss).__name__))
