"""Learning to answer new prompts without losing the answers to old ones, with a small network."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kltarget._core.pytrees import pytree
from kltarget.policies import Policy
from kltarget.tasks import load
from kltarget.tasks.sequence_tasks import SEQUENCE_TASKS

_VOWELS = "aeiou"


@pytree
class Retention:
    """A policy over sequences of a prompt, the first token, and its answer, the N ways to go on.

    Attributes:
        params: the policy's parameters before training.
        old: shares of the prompts of what can be done already, ``[P]``.
        new: shares of the prompts of what is to be learned, ``[P]``.
        right_old: which answers to the old ones are right, booleans ``[P, N]``.
        right_new: the same of the new ones.
        policy: the policy, without parameters.
        space: the sequences that it is over.
    """

    params: Any
    old: Float[Array, " P"]
    new: Float[Array, " P"]
    right_old: Bool[Array, "P N"]
    right_new: Bool[Array, "P N"]
    policy: Any = dataclasses.field(metadata={"static": True})
    space: Any = dataclasses.field(metadata={"static": True})

    def answers(self, params: Any) -> Float[Array, "P N"]:
        """Log-probabilities of the answers to each prompt, under the policy with ``params``.

        Example:
            >>> import jax
            >>> from kltarget import studies
            >>> task = studies.retention()
            >>> print(jax.numpy.exp(task.answers(task.params)).sum(-1)[:3].round(3))
            [1. 1. 1.]
        """
        levels = self.policy.conditionals(params, self.space)[1:]
        log_probs = jnp.zeros((self.old.shape[0], 1), levels[0].dtype)
        for level in levels:
            longer = log_probs[..., None] + level.reshape(*log_probs.shape, -1)
            log_probs = longer.reshape(longer.shape[0], -1)
        return log_probs

    def accuracy(
        self, log_probs: Float[Array, "*batch P N"]
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """Mass of right answers to old and to new prompts, of log-probabilities of the answers.

        Example:
            >>> from kltarget import studies
            >>> task = studies.retention()
            >>> old, new = task.accuracy(task.answers(task.params))
            >>> print(f"{old:.3f} {new:.3f}")
            0.415 0.584
        """
        probs = jnp.exp(log_probs)

        def mass(shares: Array, right: Array) -> Array:
            return jnp.einsum("p,pn,...pn->...", shares, right.astype(shares.dtype), probs)

        return mass(self.old, self.right_old), mass(self.new, self.right_new)


def retention(policy: Policy | None = None, params: Any = None) -> Retention:
    """The task of learning words that end in a vowel, by a network that knows words.

    The sequences are those of ``words-3``, three letters each. The first letter is the prompt. To
    the old prompts, a to m, answers are right that make a word of Python's documentation, to the
    new ones, n to z, those that end in a vowel. Prompts are drawn as often as the task's reference
    has them. One network answers both, so that learning the new is forgetting of the old.

    Args:
        policy: a policy over three letters; by default that of ``words-3``, with its parameters.
        params: the policy's parameters, such as :func:`kltarget.training.sft` on the task's
            ``log_ref`` gives.

    Returns:
        The task, for :func:`kltarget.studies.retention_path`.

    Raises:
        ValueError: a policy without parameters, or of other sequences.

    Example:
        >>> from kltarget import studies
        >>> task = studies.retention()
        >>> task.right_new.shape, task.right_new.sum(-1)[0].item()
        ((26, 676), 130)

    References:
        Chen, Razin, Narasimhan, Chen, "Retaining by Doing: The Role of On-Policy Data in Mitigating
        Forgetting", 2025, arXiv 2510.18874, whose tasks are those of language models.
    """
    words, spec = load("words-3"), SEQUENCE_TASKS["words-3"]
    if (policy is None) != (params is None):
        raise ValueError("policy and params belong together: give both or neither")
    if policy is None:
        return retention(spec.policy, words.params)
    space = spec.space
    own = (policy.length, getattr(policy, "sizes", policy.vocab_size))
    if own not in ((space.length, space.sizes), (space.length, space.vocab_size)):
        raise ValueError(
            f"policy is over {own[0]} tokens of {own[1]}: it must be over those of words-3, "
            f"{space.length} of {space.sizes}"
        )
    shape = (space.sizes[0], -1)
    known = np.logaddexp.reduce(np.asarray(words.log_ref).reshape(shape), axis=-1)
    first = np.arange(space.sizes[0]) < space.sizes[0] // 2
    dtype = jax.eval_shape(policy.conditionals, params, space)[0].dtype
    share = [np.where(part, np.exp(known), 0.0) for part in (first, ~first)]
    old, new = (jnp.asarray(x / x.sum(), dtype) for x in share)
    ending = np.isin(list(spec.alphabet), list(_VOWELS))
    return Retention(
        params=params,
        old=old,
        new=new,
        right_old=jnp.asarray(spec.right().reshape(shape)),
        right_new=jnp.asarray(np.broadcast_to(ending, space.sizes).reshape(shape)),
        policy=policy,
        space=space,
    )
