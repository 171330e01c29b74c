"""Mode-anchored reward augmentation of sampled answers, in whatever arrays they come."""

from __future__ import annotations

import math
import sys
from typing import Any, Literal

import numpy as np

from kltarget._core.checks import traced

_WIDE = ("float32", "float64")


def mara_rewards(
    rewards: Any,
    ref_logps: Any,
    beta: float,
    threshold: Any,
    *,
    groups: Any = None,
    anchor: Literal["reference", "best"] = "reference",
) -> Any:
    """Mode-anchored reward augmentation of a batch of sampled answers, for any training loop.

    What :func:`kltarget.mara` does to a table, with the answers that were drawn in place of all:
    with ``S`` the answers to one prompt whose reward reaches the threshold and the anchor z the one
    of them that the reference finds likeliest,
    ``r̄(y) = r(z) + β[log π_ref(z) − log π_ref(y)]`` on S and ``r̄ = r`` elsewhere. The maximiser of
    ``E_π[r̄] − β·KL(π‖π_ref)`` is uniform on S.

    NumPy arrays, PyTorch tensors and JAX arrays stay what they are, and no framework is imported.
    Give the β that acts: in GRPO, whose baseline is the mean of a group of G that includes the
    sample, that is ``β G/(G − 1)``. What else keeps training from the uniform target is said by
    ``kltarget.mara(…, recipe=…)``.

    Args:
        rewards: of the answers, in reward units. Shape ``[..., G]``: G answers to one prompt in
            each row, or ``[N]`` with ``groups``. NaN, or None in a list, where there is none.
        ref_logps: log-probability of each whole answer under the reference, the sum over its
            tokens in nats, of the same shape and kind. NaN where it is not known.
        beta: coefficient of the KL, in reward units per nat.
        threshold: reward from which on an answer is good: a number, an array with one for each
            answer, or ``"best"`` for the best reward of the whole batch, all prompts together. A
            prompt none of whose answers reaches it is left as it is. Where nothing good was drawn
            at all, ``"best"`` takes the least bad for good and rewards whichever of them is rare:
            give the number if it is known.
        groups: for rewards of shape ``[N]``, the prompt of each answer, as anything hashable. The
            more answers share one, the less often the likeliest of S is missing among them, and
            those that are lifted by it get less than they should.
        anchor: ``"reference"``, or ``"best"`` for the largest ``log π_ref + r/β``, as in
            :func:`kltarget.mara`.

    Returns:
        The rewards to train with: shape, kind, device and dtype of ``rewards``. Whole numbers
        become floats. Judge the policy by the original ones.

    Raises:
        TypeError: ``rewards`` and ``ref_logps`` of two kinds, groups that are not hashable.
        ValueError: shapes that do not fit, a beta that is not positive, an unknown threshold or
            anchor, an infinite reward, a positive log-probability. The last two are not looked for
            under a JAX trace.

    An answer of reward NaN stays NaN; one whose ``ref_logp`` is ``-inf`` or NaN keeps its reward.
    Neither can be the anchor. Differentiable in rewards and ref_logps where sets and anchors do not
    change.

    Example:
        >>> import math
        >>> from kltarget import adapters
        >>> ref_logps = [math.log(0.3), math.log(0.02), math.log(0.68), math.log(0.02)]
        >>> lifted = adapters.mara_rewards([1.0, 1.0, 0.0, 1.0], ref_logps, 0.1, 1.0)
        >>> print([f"{x:.3f}" for x in lifted])
        ['1.000', '1.271', '0.000', '1.271']
        >>> apart = adapters.mara_rewards([1.0, 1.0, 0.0, 1.0], ref_logps, 0.1, 1.0, groups="aaab")
        >>> print([f"{x:.3f}" for x in apart])
        ['1.000', '1.271', '0.000', '1.000']

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817, algorithm 1.
    """
    rewards, ref_logps, xp = _alike(rewards, ref_logps)
    dtype = rewards.dtype
    if "int" in str(dtype) or "bool" in str(dtype):
        dtype = ref_logps.dtype
    wide = dtype if str(dtype).removeprefix("torch.") in _WIDE else xp.float32
    reward, log_ref = _cast(rewards, wide), _cast(ref_logps, wide)
    beta = _checked(beta, anchor, reward, log_ref, xp)
    if 0 in reward.shape:
        return _cast(reward, dtype)
    good = (reward > -math.inf) & (log_ref > -math.inf)
    good = good & (reward >= _bar(threshold, reward, good, wide, xp))
    if groups is None:
        return _cast(_augmented(reward, log_ref, good, beta, anchor, xp), dtype)
    rows, back = _rows(groups, reward.shape)
    lifted = _augmented(reward[rows], log_ref[rows], good[rows], beta, anchor, xp)
    return _cast(lifted.reshape(-1)[back], dtype)


def _alike(rewards: Any, ref_logps: Any) -> tuple[Any, Any, Any]:
    """Both as arrays of one kind, and the functions of that kind."""
    kinds = [x for x in (rewards, ref_logps) if hasattr(x, "dtype") and hasattr(x, "shape")]
    first = kinds[0] if kinds else np.empty(0)
    xp = _functions_of(first)
    if any(_functions_of(x) is not xp for x in kinds):
        raise TypeError(
            f"rewards and ref_logps must be of one kind, got {type(rewards).__name__} and "
            f"{type(ref_logps).__name__}"
        )
    where = {"device": first.device} if xp.__name__ == "torch" else {}
    given = (_without_none(x) for x in (rewards, ref_logps))
    arrays = [x if hasattr(x, "dtype") else xp.asarray(x, **where) for x in given]
    if arrays[0].shape != arrays[1].shape or not len(arrays[0].shape):
        raise ValueError(
            f"ref_logps has shape {tuple(arrays[1].shape)} and rewards {tuple(arrays[0].shape)}: "
            "one of each is needed for every answer"
        )
    if "float" not in str(arrays[1].dtype):
        arrays[1] = _cast(arrays[1], xp.float32)
    return arrays[0], arrays[1], xp


def _without_none(x: Any) -> Any:
    """Lists with NaN in place of None, which is what reward functions give that judge not all."""
    if isinstance(x, list | tuple):
        return [_without_none(y) for y in x]
    return math.nan if x is None else x


def _functions_of(x: Any) -> Any:
    """The module whose functions take this array; it is loaded, as the array exists."""
    if type(x).__module__.partition(".")[0] == "torch":
        return sys.modules["torch"]
    if isinstance(x, np.ndarray | np.generic):
        return np
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    raise TypeError(f"rewards: arrays of type {type(x).__name__} are not known")


def _cast(x: Any, dtype: Any) -> Any:
    return x.to(dtype) if hasattr(x, "to") else x.astype(dtype)


def _checked(beta: float, anchor: str, reward: Any, log_ref: Any, xp: Any) -> float:
    if anchor not in ("reference", "best"):
        raise ValueError(f"anchor must be 'reference' or 'best', got {anchor!r}")
    beta = float(beta)
    if not 0 < beta < math.inf:
        raise ValueError(
            f"beta must be positive and finite, got {beta:g}: the augmentation acts through the KL"
        )
    if not traced(reward, log_ref):
        if bool(xp.any(reward == math.inf)):
            raise ValueError("rewards must not be +inf")
        if bool(xp.any(log_ref > 1e-3)):
            worst = float(xp.amax(xp.where(log_ref > 0, log_ref, xp.zeros_like(log_ref))))
            raise ValueError(f"ref_logps must be log-probabilities, at most 0; one is {worst:g}")
    return beta


def _bar(threshold: Any, reward: Any, usable: Any, dtype: Any, xp: Any) -> Any:
    if isinstance(threshold, str):
        if threshold != "best":
            raise ValueError(f"threshold must be a reward or 'best', got {threshold!r}")
        return xp.amax(xp.where(usable, reward, xp.full_like(reward, -math.inf)))
    if not hasattr(threshold, "shape") and np.ndim(threshold) == 0:
        if math.isnan(threshold):
            raise ValueError("threshold must not be NaN")
        return threshold
    if not hasattr(threshold, "shape"):
        threshold = xp.asarray(threshold)
    if tuple(threshold.shape) not in ((), tuple(reward.shape)):
        raise ValueError(
            f"threshold has shape {tuple(threshold.shape)} and rewards {tuple(reward.shape)}: give "
            "a number, or one for each answer"
        )
    return _cast(threshold, dtype)


def _rows(groups: Any, shape: Any) -> tuple[np.ndarray, np.ndarray]:
    """Where the answers of each group are, and where each answer then stands among those rows."""
    as_list = getattr(groups, "tolist", None)
    labels = list(groups) if as_list is None else as_list()
    if len(shape) != 1 or len(labels) != shape[0]:
        raise ValueError(
            f"groups has {len(labels)} entries and rewards shape {tuple(shape)}: with groups, both "
            "have one entry for each answer"
        )
    members: dict[Any, list[int]] = {}
    for i, label in enumerate(labels):
        try:
            members.setdefault(label, []).append(i)
        except TypeError:
            raise TypeError(
                f"groups: a {type(label).__name__} is not hashable; name each prompt by its text "
                "or its number"
            ) from None
    width = max(map(len, members.values()))
    back = np.empty(len(labels), np.int64)
    for row, group in enumerate(members.values()):
        back[group] = row * width + np.arange(len(group))
    # An answer that stands in a row more than once moves no maximum.
    rows = [group + group[:1] * (width - len(group)) for group in members.values()]
    return np.array(rows, np.int64), back


def _augmented(reward: Any, log_ref: Any, good: Any, beta: float, anchor: str, xp: Any) -> Any:
    def largest(x: Any, among: Any) -> Any:
        return xp.amax(xp.where(among, x, xp.full_like(x, -math.inf)), axis=-1, keepdims=True)

    likely = xp.where(good, log_ref, xp.zeros_like(log_ref))
    worth = xp.where(good, reward, xp.zeros_like(reward))
    score = likely if anchor == "reference" else likely + worth / beta
    first = good & (score == largest(score, good))
    # Of equal scores the best reward decides, as in a table.
    reward_z = largest(worth, first)
    log_ref_z = largest(likely, first & (worth == reward_z))
    some = reward_z > -math.inf
    reward_z, log_ref_z = (xp.where(some, x, xp.zeros_like(x)) for x in (reward_z, log_ref_z))
    return xp.where(good, reward_z + beta * (log_ref_z - likely), reward)
