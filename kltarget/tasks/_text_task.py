"""What a task over texts too many to list is: a Markov reference and an automaton that judges."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget.spaces import Automaton, MarkovReference


@dataclasses.dataclass(frozen=True, eq=False)
class TextTask:
    """A reference, a reward and modes over all texts of a length, of which none is ever listed.

    Attributes:
        name: how :func:`kltarget.tasks.load_texts` finds it.
        description: one line for a reader who has not seen the problem.
        reference: the model of texts.
        automaton: what reads them.
        reward: of each final state, float64 ``[D]``.
        modes: integer label of each final state's mode, ``[D]``; wrong texts are labelled -1.
        mode_names: what each mode is called, by its label.
        length: the number T of tokens of a text.

    Example:
        >>> import kltarget as kt
        >>> from kltarget import tasks
        >>> task = tasks.load_texts("dates")
        >>> print(f"{task.num_texts:,} texts, {len(task.mode_names)} modes")
        25,937,424,601 texts, 12 modes
        >>> problem = (task.reference, task.automaton, task.reward)
        >>> target = kt.solve_on_automaton(*problem, 0.1, length=task.length)
        >>> print(f"{target.expected_reward:.3f}")
        1.000
    """

    name: str
    description: str
    reference: MarkovReference
    automaton: Automaton
    reward: np.ndarray
    modes: np.ndarray
    mode_names: dict[int, str]
    length: int

    @property
    def num_texts(self) -> int:
        """How many texts there are, ``V**T``."""
        return self.reference.vocab_size**self.length

    def reward_of(self, tokens: ArrayLike) -> Float[Array, "..."]:
        """Rewards ``[...]`` of texts, integers ``[..., T]``."""
        return jnp.asarray(self.reward)[self.automaton.run(tokens)]

    def mode_of(self, tokens: ArrayLike) -> Any:
        """Mode labels ``[...]`` of texts, integers ``[..., T]``."""
        return jnp.asarray(self.modes)[self.automaton.run(tokens)]
