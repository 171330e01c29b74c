"""Several references, teachers, replayed data and entropy: what they ask for together."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import (
    float_arguments,
    raise_first,
    require_normalized,
    require_outcomes,
    traced,
    worded,
)
from kltarget._core.numerics import log_sum_exp, select, working_dtype
from kltarget.divergences import Divergence, ForwardKL, KLMixture, ReverseKL
from kltarget.objectives._objective import Objective

__all__ = ["combine", "soup"]

Term = tuple[ArrayLike, ArrayLike]
"""Log-probabilities of a reference, ``[*batch, A]``, and the coefficient of the KL to it."""


def combine(
    reward: ArrayLike,
    *,
    reverse: Sequence[Term] = (),
    forward: Sequence[Term] = (),
    entropy: ArrayLike | None = None,
) -> Objective:
    """One objective that stands for a reward, any number of KLs and an entropy bonus.

    ``E_π[r] − Σ_i b_i KL(π‖T_i) − Σ_j c_j KL(R_j‖π) + η H(π)``, of any policy π, is the value of
    the objective that is returned. With ``b = Σ b_i + η``, ``c = Σ c_j``, the geometric mean
    ``log G = Σ b_i log T_i / b`` and the mixture ``R = Σ c_j R_j / c``:

    - without forward terms it is reverse KL to G at β = b, of the target
      ``∝ G e^{r/b}``;
    - without the others it is forward KL to R at β = c, of the target ``c R/(Λ − r)``;
    - of both it is ``b KL(π‖R) + c KL(R‖π)``, a :class:`~kltarget.divergences.KLMixture` at
      β = b + c, of the reward ``r + b log(G/R)``.

    A teacher is a reference; so are replayed data, to which maximum likelihood is a forward term. A
    negative coefficient of a reverse term leads away from its reference:
    ``reverse=[(log_teacher, w * beta), (log_ref, (1 - w) * beta)]`` with w above 1 extrapolates.

    Args:
        reward: r, in reward units, ``[*batch, A]``; ``-inf`` forbids an outcome.
        reverse: pairs ``(log T_i, b_i)``: log-probabilities ``[*batch, A]`` and coefficients in
            reward units per nat, ``[*batch]``. They may be negative, but b must be above 0.
        forward: pairs ``(log R_j, c_j)``, coefficients 0 or more.
        entropy: η, in reward units per nat, ``[*batch]``; negative for a penalty.

    Returns:
        An objective of a normalised reference. Its rewards differ from r by a constant, and with
        terms of both kinds by a log ratio too: ``target.expectation(reward)`` is what r earns.

    Raises:
        TypeError: a term that is no pair.
        ValueError: no term at all, shapes that do not fit; outside a trace, references that are not
            normalised, coefficients out of range, and supports that do not fit: a reference with a
            negative coefficient that lacks what the others have, which would be without bound; an
            outcome that the forward references lack while the reverse ones or the entropy allow it,
            for which there is no one reference. Under a trace such rows have ``beta`` NaN, and
            :func:`kltarget.solve` says ``INVALID_BETA``.

    What some ``T_i`` with a coefficient above 0 lacks is forbidden, as by a reward of ``-inf``.
    Differentiable in everything.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.objectives import references
        >>> log_ref, log_teacher = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]]))
        >>> reward = jnp.array([0.0, 1.0, 0.0])
        >>> for terms in (
        ...     {"reverse": [(log_ref, 0.3), (log_teacher, 0.2)]},
        ...     {"forward": [(log_ref, 0.3), (log_teacher, 0.2)]},
        ...     {"reverse": [(log_ref, 0.3)], "forward": [(log_teacher, 0.2)]},
        ... ):
        ...     target = kt.solve(references.combine(reward, **terms))
        ...     print([f"{p:.3f}" for p in target.probs], f"{target.value:.3f}")
        ['0.201', '0.701', '0.097'] 0.373
        ['0.217', '0.653', '0.130'] 0.353
        ['0.162', '0.689', '0.149'] 0.361

    References:
        Xu et al., "KDRL: Post-Training Reasoning LLMs via Unified Knowledge Distillation and
        Reinforcement Learning", 2025, arXiv 2506.02208 (a teacher beside a reward). Yang et al.,
        "Learning beyond Teacher: Generalized On-Policy Distillation with Reward Extrapolation",
        2026, arXiv 2602.12125 (w above 1). Sums of ``KL(π‖T_i)`` and of ``KL(R_j‖π)`` are KLs to
        the two means and a constant; ``b KL(π‖G) = b KL(π‖R) − E_π[b log(G/R)]``.
    """
    given = {"reward": reward} | ({} if entropy is None else {"entropy": entropy})
    for name, terms in (("reverse", reverse), ("forward", forward)):
        for k, term in enumerate(terms):
            if not isinstance(term, (tuple, list)) or len(term) != 2:
                raise TypeError(
                    f"{name}[{k}] must be a pair of log-probabilities and a coefficient, got "
                    f"{type(term).__name__}"
                )
            given |= {f"{name}[{k}]": term[0], f"the coefficient of {name}[{k}]": term[1]}
    if len(given) == 1:
        raise ValueError("there is nothing to regularise by: give reverse, forward or entropy")
    arrays = _fitted(float_arguments(**given), "reward")

    def pairs(name: str, number: int) -> tuple[tuple[Array, Array], ...]:
        keys = (f"{name}[{k}]" for k in range(number))
        return tuple((arrays[key], arrays[f"the coefficient of {key}"]) for key in keys)

    found = _combined(
        arrays["reward"],
        pairs("reverse", len(reverse)),
        pairs("forward", len(forward)),
        arrays.get("entropy"),
    )
    _require_valid(found, arrays)
    kind: Divergence = KLMixture(found.weight) if reverse or entropy is not None else ForwardKL()
    return Objective(found.reward, found.log_ref, found.beta, kind if forward else ReverseKL())


def soup(
    log_probs: Sequence[ArrayLike],
    weights: Sequence[ArrayLike],
    *,
    of: Literal["logits", "probabilities"] = "logits",
) -> Float[Array, "*batch A"]:
    """The average of several policies, of their logits or of their probabilities.

    Averaged logits make the normalised geometric mean ``∝ Π_i π_i^{w_i}``, and reverse KL to it is
    the weighted sum of the reverse KLs but for a constant. Averaged probabilities make the mixture
    ``Σ_i w_i π_i``, likewise for forward KL. What one policy lacks the geometric mean lacks too,
    and the mixture has.

    Weights of logits may be negative, which extrapolates: ``[1 - w, w]`` with w above 1 goes beyond
    the second policy, and ``[1, a, -a]`` carries over to the first what distinguishes the second
    from the third.

    Args:
        log_probs: log-probabilities, each ``[*batch, A]``; for ``of="logits"`` logits will do.
        weights: one of each, ``[*batch]``, which sum to 1; those of probabilities 0 or more.
        of: what is averaged.

    Returns:
        Log-probabilities ``[*batch, A]``.

    Raises:
        ValueError: an unknown ``of``, not one weight each, shapes that do not fit; outside a trace,
            weights out of range or that do not sum to 1, probabilities that do not, policies
            without any outcome in common, and a policy of negative weight that lacks what the
            others have. Under a trace such rows are NaN.

    A policy of weight 0 counts for nothing, not even where it is ``-inf``. Differentiable in both
    arguments.

    Averaged parameters of a network are averaged logits only where logits are linear in them.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.objectives import references
        >>> one, two = jnp.log(jnp.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))
        >>> for of in ("logits", "probabilities"):
        ...     print([f"{p:.3f}" for p in jnp.exp(references.soup([one, two], [0.5, 0.5], of=of))])
        ['0.425', '0.150', '0.425']
        ['0.450', '0.100', '0.450']

    References:
        Chegini et al., "SALSA: Soup-based Alignment Learning for Stronger Adaptation in RLHF",
        2024, arXiv 2411.01798 (a soup as reference). Fan et al., "On Giant's Shoulders: Effortless
        Weak to Strong by Dynamic Logits Fusion", 2024, arXiv 2406.15480 (weights 1, a, −a).
    """
    if of not in ("logits", "probabilities"):
        raise ValueError(f"of must be 'logits' or 'probabilities', got {of!r}")
    if len(log_probs) != len(weights) or not len(weights):
        raise ValueError(
            f"there are {len(log_probs)} log_probs and {len(weights)} weights: give one weight each"
        )
    names = [f"log_probs[{k}]" for k in range(len(weights))]
    given = dict(zip(names, log_probs, strict=True))
    given |= {f"the weight of {names[k]}": w for k, w in enumerate(weights)}
    arrays = _fitted(float_arguments(**given), names[0], normalised=of == "probabilities")
    terms = tuple((arrays[x], arrays[f"the weight of {x}"]) for x in names)
    total, means, faults = _soup(terms, of)
    if of == "probabilities":
        for name, (_, weight) in zip(names, terms, strict=True):
            raise_first(f"the weight of {name}", weight, ~(weight >= 0), "must be 0 or more")
    raise_first("the sum of weights", total, faults["sum"], "must be 1")
    _raise_unbounded("weight", "log_probs", terms)
    raise_first("log_probs", None, faults["empty"], "have no outcome in common")
    return means


class _Combined(NamedTuple):
    reward: Array
    log_ref: Array
    beta: Array
    weight: Array
    uncovered: Array
    """Outcomes that the forward references lack and the others have, ``[*batch, A]``."""
    empty: Array


def _fitted(arrays: dict[str, Array], first: str, *, normalised: bool = True) -> dict[str, Array]:
    """The arguments in one batch shape, or an error of shapes or masses that names one."""
    outcomes = {k: x for k, x in arrays.items() if k == first or (k[-1] == "]" and "of" not in k)}
    for name, x in outcomes.items():
        require_outcomes(x, name)
        if x.shape[-1] != arrays[first].shape[-1]:
            raise ValueError(
                f"{name} has {x.shape[-1]} outcomes and {first} has {arrays[first].shape[-1]} "
                f"(shapes {x.shape} and {arrays[first].shape}); all need the same last axis"
            )
    shapes = {k: x.shape[:-1] if k in outcomes else x.shape for k, x in arrays.items()}
    listed = ", ".join(f"{k} {shape}" for k, shape in shapes.items())
    with worded(f"the batch axes do not broadcast: {listed}"):
        batch = jnp.broadcast_shapes(*shapes.values())
    if normalised:
        require_normalized(**{k: x for k, x in outcomes.items() if k != "reward"})
    tails = {k: x.shape[-1:] if k in outcomes else () for k, x in arrays.items()}
    return {k: jnp.broadcast_to(x, (*batch, *tails[k])) for k, x in arrays.items()}


def _sum_of_logs(terms: tuple[tuple[Array, Array], ...]) -> Array:
    """``Σ b_i log T_i``, where terms of coefficient 0 count for nothing."""
    total: Array | None = None
    for log_probs, coefficient in terms:
        weight = coefficient[..., None]
        there = log_probs > -jnp.inf
        endless = jnp.where(weight > 0, -jnp.inf, jnp.inf)
        own = weight * select(there, log_probs, 0.0)
        own = jnp.where(there | (weight == 0), own, endless)
        # What is lacked counts for more than what is led away from.
        total = own if total is None else jnp.where(jnp.isneginf(total), total, total + own)
        total = jnp.where(jnp.isneginf(own), own, total)
    assert total is not None
    return total


def _mixture(terms: tuple[tuple[Array, Array], ...]) -> Array:
    """``log Σ c_j R_j``."""
    parts = []
    for log_probs, coefficient in terms:
        some = coefficient > 0
        log_weight = jnp.where(some, jnp.log(jnp.where(some, coefficient, 1.0)), -jnp.inf)
        parts.append(log_probs + log_weight[..., None])
    return log_sum_exp(jnp.stack(parts, axis=-1))[..., 0]


@jax.jit
def _combined(
    reward: Array,
    reverse: tuple[tuple[Array, Array], ...],
    forward: tuple[tuple[Array, Array], ...],
    entropy: Array | None,
) -> _Combined:
    own, dtype = reward.dtype, working_dtype(reward.dtype)
    reward, reverse, forward, entropy = jax.tree.map(
        lambda x: x.astype(dtype), (reward, reverse, forward, entropy)
    )
    zero = jnp.zeros(reward.shape[:-1], dtype)
    b = sum((x for _, x in reverse), start=zero if entropy is None else entropy)
    c = sum((x for _, x in forward), start=zero)
    inner = bool(reverse) or entropy is not None
    valid = ((b > 0) if inner else (c > 0)) & jnp.isfinite(b + c)
    for _, coefficient in forward:
        valid &= coefficient >= 0
    b, c = select(valid, b, 1.0), select(valid, c, 1.0)

    logs = _sum_of_logs(reverse) if reverse else jnp.zeros_like(reward)
    valid &= ~jnp.any(logs == jnp.inf, axis=-1) if inner else True
    logs = select(logs < jnp.inf, logs, 0.0)
    there = logs > -jnp.inf
    geometric = jnp.where(there, select(there, logs, 0.0) / b[..., None], -jnp.inf)
    log_total = log_sum_exp(geometric)
    empty = inner & jnp.isneginf(log_total[..., 0])
    log_total = select(log_total > -jnp.inf, log_total, 0.0)
    uncovered = jnp.zeros(reward.shape, bool)
    if not forward:
        reward, log_ref = reward + b[..., None] * log_total, geometric - log_total
    else:
        some = (c > 0)[..., None]
        log_ref = _mixture(forward) - jnp.log(select(some, c[..., None], 1.0))
        log_ref = jnp.where(some, log_ref, geometric - log_total) if inner else log_ref
        for log_probs, coefficient in forward:
            apart = ReverseKL()._total(log_probs, log_ref)
            taken = coefficient > 0
            apart = jnp.where(taken, coefficient * jnp.where(taken, apart, 0.0), 0.0)
            reward = reward - apart[..., None]
        if inner:
            covered = log_ref > -jnp.inf
            uncovered = there & ~covered & (reward > -jnp.inf)
            both = there & covered
            ratio = select(both, logs, 0.0) - b[..., None] * select(both, log_ref, 0.0)
            reward = jnp.where(covered & ~there, -jnp.inf, reward + ratio)
    valid &= ~empty & ~jnp.any(uncovered, axis=-1)
    beta = select(valid, b + c if inner else c, jnp.nan)
    weight = b / (b + c)
    reward, log_ref, beta, weight = (x.astype(own) for x in (reward, log_ref, beta, weight))
    return _Combined(reward, log_ref, beta, weight, uncovered, empty)


def _require_valid(found: _Combined, arrays: dict[str, Array]) -> None:
    kinds: dict[str, list[tuple[Array, Array]]] = {"reverse": [], "forward": []}
    for key, x in arrays.items():
        name = key.split("[")[0]
        if name in kinds:
            coefficient = arrays[f"the coefficient of {key}"]
            kinds[name].append((x, coefficient))
            if name == "forward" and not traced(coefficient):
                known = np.asarray(coefficient)
                bad = ~((known >= 0) & (known < np.inf))
                raise_first(f"the coefficient of {key}", known, bad, "must be 0 or more")
    inner = [c for _, c in kinds["reverse"]] + [x for k, x in arrays.items() if k == "entropy"]
    name = "reverse and entropy" if inner else "forward"
    summed = inner or [c for _, c in kinds["forward"]]
    if not traced(*summed):
        total = np.stack(summed).sum(0)
        bad = ~((total > 0) & (total < np.inf))
        raise_first(f"the sum of the coefficients of {name}", total, bad, "must be above 0")
    _raise_unbounded("coefficient", "reverse", tuple(kinds["reverse"]))
    raise_first("reverse", None, found.empty, "has references without any outcome in common")
    raise_first(
        "forward",
        None,
        found.uncovered,
        "lacks an outcome that the other terms allow: give it some mass, as by one of their "
        "references with a small coefficient, or forbid it by a reward of -inf",
    )


def _raise_unbounded(word: str, name: str, terms: tuple[tuple[Array, Array], ...]) -> None:
    """An error that names a reference which is led away from where it has nothing."""
    if traced(*jax.tree.leaves(terms)) or not any((np.asarray(c) < 0).any() for _, c in terms):
        return
    endless = _sum_of_logs(terms) == jnp.inf
    for k, (log_probs, coefficient) in enumerate(terms):
        lacked = endless & (coefficient < 0)[..., None] & jnp.isneginf(log_probs)
        rule = f"has a negative {word} and lacks an outcome that the others have"
        raise_first(f"{name}[{k}]", None, lacked, f"{rule}: nothing bounds how far to go there")


@functools.partial(jax.jit, static_argnames="of")
def _soup(terms: tuple[tuple[Array, Array], ...], of: str) -> tuple[Array, Array, dict[str, Array]]:
    own = terms[0][0].dtype
    terms = jax.tree.map(lambda x: x.astype(working_dtype(own)), terms)
    total = jnp.stack([w for _, w in terms]).sum(0)
    bad = ~(jnp.abs(total - 1) <= 8 * float(jnp.finfo(own).eps) ** 0.5)
    logs = _sum_of_logs(terms) if of == "logits" else _mixture(terms)
    log_total = log_sum_exp(logs)
    empty = jnp.isneginf(log_total[..., 0])
    failed = bad | empty | jnp.any(logs == jnp.inf, axis=-1)
    if of == "probabilities":
        failed |= jnp.any(jnp.stack([w for _, w in terms]) < 0, axis=0)
    means = logs - select(log_total > -jnp.inf, log_total, 0.0)
    means = jnp.where(failed[..., None], jnp.nan, means)
    return total, means.astype(own), {"sum": bad, "empty": empty}
