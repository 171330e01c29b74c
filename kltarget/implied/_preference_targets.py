"""The targets of a loss over pairs for each of several prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax.typing import ArrayLike

from kltarget._core.checks import ArgumentError
from kltarget._core.words import short
from kltarget.implied._preference_target import PreferenceTarget, preference_target
from kltarget.tasks import Preferences


def preference_targets(
    pairs: Mapping[str, Preferences],
    log_ref: Mapping[str, ArrayLike] | ArrayLike,
    beta: ArrayLike,
    **options: Any,
) -> dict[str, PreferenceTarget]:
    """The policies at which DPO, f-DPO, χPO, IPO or KTO has its minimum, prompt by prompt.

    A loss over the pairs of several prompts is a sum of one loss for each, and a policy that can
    represent every prompt's target by itself minimises each: how often a prompt occurs does not
    count. The targets are those of :func:`preference_target`, which says what is minimised.

    Args:
        pairs: of each prompt, as :func:`kltarget.tasks.read_preferences_by_prompt` reads them.
        log_ref: of each prompt the log-probabilities of the reference, ``[A]``, where A may differ
            from prompt to prompt; or one array for all prompts.
        beta: the coefficient of the loss, in reward units per nat, above 0, shape ``[*batch]``.
        **options: ``loss``, ``divergence`` and the others of :func:`preference_target`.

    Returns:
        A target for each prompt, in the order of the pairs.

    Raises:
        TypeError: pairs that are no mapping, or as for :func:`preference_target`.
        ValueError: there are no prompts, one has no reference, or as for
            :func:`preference_target`; the message names the prompt.

    An outcome of ``log_ref = -inf`` that is never compared keeps its mass of 0. There are no
    derivatives.

    Assumptions: those of :func:`preference_target`, for each prompt. KTO's reference point is that
    of each prompt alone, where trainers take one number for a batch of prompts.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.implied import preference_targets
        >>> from kltarget.tasks import Preferences
        >>> pairs = {
        ...     "tea?": Preferences([0], [1], [3], [1]),
        ...     "milk?": Preferences([0], [1], [1], [1]),
        ... }
        >>> targets = preference_targets(pairs, jnp.log(jnp.array([0.5, 0.5])), beta=0.5)
        >>> [f"{target.probs[0]:.3f}" for target in targets.values()]
        ['0.900', '0.500']

    References:
        Those of :func:`preference_target`.
    """
    if not isinstance(pairs, Mapping):
        raise TypeError(
            f"pairs must be a mapping from prompts to Preferences, got a {type(pairs).__name__}: "
            "kltarget.tasks.read_preferences_by_prompt makes one of a table"
        )
    if not pairs:
        raise ValueError("pairs has no prompt: give at least one")
    targets = {}
    for prompt, given in pairs.items():
        if isinstance(log_ref, Mapping) and prompt not in log_ref:
            raise ValueError(f"log_ref has no reference for the prompt {short(prompt)!r}")
        reference = log_ref[prompt] if isinstance(log_ref, Mapping) else log_ref
        try:
            targets[prompt] = preference_target(given, reference, beta, **options)
        except ArgumentError:
            raise
        except ValueError as error:
            raise ValueError(f"prompt {short(prompt)!r}: {error}") from None
    return targets
