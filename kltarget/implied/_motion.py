"""What moves while a policy is trained: the reference, and coefficients that a controller sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.optimize import root_scalar

from kltarget._core.status import Status
from kltarget.implied._fixed_point_problem import FixedPoint
from kltarget.implied._known import several_tokens
from kltarget.implied._nodes import token_by_token
from kltarget.implied._rows import Rows

Found = list[FixedPoint]
Find = Callable[[Rows], Found]

_RANGE = (1e-8, 1e8)
_CLOSE = 1e-6
"""How far off what it is to keep a coefficient may leave a controller, relative to that."""


def in_motion(rows: Rows, find: Find, num_syncs: int | None) -> tuple[Rows, Found]:
    """The rows as they are when everything has come to rest, and their fixed points."""
    recipe = rows.recipe
    if recipe.kl_target is not None and recipe.divergence is not None:
        return _kept_at_kl(rows, find)
    if recipe.entropy_target is not None:
        return _kept_at_entropy(rows, find)
    if recipe.reference in ("copied", "averaged"):
        return rows, _renewed(rows, find, num_syncs)
    return rows, find(rows)


def _kept_at_kl(rows: Rows, find: Find) -> tuple[Rows, Found]:
    """The coefficient at which prompts have the mean KL that is asked for."""
    wanted = rows.recipe.kl_target or 0.0
    spread = max(float(np.ptp(x.levels)) for x in rows.problems)
    unit = 1.0 if rows.recipe.normalized or spread == 0 else spread

    def excess(log_beta: float) -> float:
        return _mean_kl(rows, find(rows.changed(float(np.exp(log_beta)) * unit))) - wanted

    low, high = np.log(_RANGE)
    if excess(low) < 0:
        # No coefficient is small enough: the controller lowers it for ever.
        rows = rows.changed(0.0)
        return rows, find(rows)
    return _at_rest(rows, find, excess, (low, high), wanted, lambda x: rows.changed(x * unit))


def _kept_at_entropy(rows: Rows, find: Find) -> tuple[Rows, Found]:
    """The entropy bonus at which prompts have the mean entropy per token that is asked for."""
    wanted = rows.recipe.entropy_target or 0.0

    def under(bonus: float) -> Rows:
        return rows.changed(entropy_bonus=bonus)

    def lack(bonus: float) -> float:
        return wanted - _mean_entropy(rows, find(under(bonus)))

    found = find(under(0.0))
    if _mean_entropy(rows, found) >= wanted:
        return under(0.0), found
    low, high = np.log(_RANGE)
    if lack(_RANGE[1]) > -_CLOSE * wanted:
        raise ValueError(
            f"entropy_target={wanted:g} nats per token is more than any bonus reaches: the most is "
            f"{wanted - lack(_RANGE[1]):.4g}"
        )
    return _at_rest(rows, find, lambda x: lack(float(np.exp(x))), (low, high), wanted, under)


def _at_rest(
    rows: Rows,
    find: Find,
    excess: Callable[[float], float],
    ends: tuple[float, float],
    wanted: float,
    at: Callable[[float], Rows],
) -> tuple[Rows, Found]:
    """The rows at a root of ``excess``; without a target where it only jumps over 0."""
    root = root_scalar(excess, bracket=ends, method="brentq", xtol=1e-14, rtol=1e-14).root
    settled = at(float(np.exp(root)))
    found = find(settled)
    if abs(excess(root)) > max(_CLOSE * wanted, 1e-9):
        found = [
            dataclasses.replace(
                x, log_probs=np.full_like(x.log_probs, np.nan), status=Status.NO_TARGET
            )
            for x in found
        ]
    return settled, found


def _mean_kl(rows: Rows, found: Found) -> float:
    """The KL of sequences, or its mean per token, over all prompts."""
    charges = []
    for problem, point in zip(rows.problems, found, strict=True):
        some = point.log_probs > -np.inf
        log_ratio = point.log_probs[some] - problem.log_ref[some]
        counts = rows.lengths[some] if rows.recipe.kl_target_per == "token" else 1.0
        charges.append(float((np.exp(point.log_probs[some]) * log_ratio / counts).sum()))
    return float(np.mean(charges))


def _mean_entropy(rows: Rows, found: Found) -> float:
    """Nats per token, over all tokens of all prompts."""
    probs = [np.exp(x.log_probs) for x in found]
    nats = sum(-(p[p > 0] * np.log(p[p > 0])).sum() for p in probs)
    return float(nats / sum((p * rows.lengths).sum() for p in probs))


def _renewed(rows: Rows, find: Find, num_syncs: int | None) -> Found:
    """What is reached where each reference is kept until the policy has come to rest."""
    recipe = rows.recipe
    whole = not several_tokens(rows.space) or (recipe.reference_share == 1 and not recipe.per_token)
    if num_syncs is None:
        return _without_end(rows, find, whole)
    found, passed = find(rows), np.zeros(len(rows.problems))
    share = recipe.reference_share

    def average(reference: np.ndarray, policy: np.ndarray) -> np.ndarray:
        return policy if share == 1 else (1 - share) * reference + share * policy

    for _ in range(num_syncs):
        with np.errstate(divide="ignore"):
            passed = passed + share / np.array([x.effective_beta for x in found])
        problems = [
            dataclasses.replace(
                problem, log_ref=token_by_token(rows.tree, average, problem.log_ref, x.log_probs)
            )
            for problem, x in zip(rows.problems, found, strict=True)
        ]
        rows = dataclasses.replace(rows, problems=problems)
        found = find(rows)
    if not (whole and recipe.aim == "reverse"):
        return found
    # Tilts add up: in units of the first reference, their coefficients as resistances do.
    with np.errstate(divide="ignore"):
        in_all = [1 / (1 / x.effective_beta + more) for x, more in zip(found, passed, strict=True)]
    return [dataclasses.replace(x, effective_beta=b) for x, b in zip(found, in_all, strict=True)]


def _without_end(rows: Rows, find: Find, whole: bool) -> Found:
    """The limit of many renewals: the regulariser holds to nothing in the end."""
    free = rows.changed(0.0)
    if any(x.held for x in free.problems):
        return find(free)
    if not whole:
        raise ValueError(
            "num_syncs is needed: where a reference is renewed without end and a policy has "
            "several tokens, the way there decides between equally good answers"
        )
    return [x.only(x.best, Status.NO_TARGET | Status.SATURATED) for x in free.problems]
