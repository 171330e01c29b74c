"""How the shipped references of the tasks over sequences were made."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from kltarget.tasks.sequence_tasks import SEQUENCE_TASKS
from kltarget.training import fit

NUM_SEQUENCES = 200_000
"""How many sequences of its corpus a reference is trained on; a tenth more are held out."""


def train_reference(name: str, *, key: PRNGKeyArray) -> Any:
    """Trains the reference of a task anew: the way the shipped parameters were made.

    Maximum likelihood, ``max Σ_i log π(y_i)``, on 200,000 sequences of the task's corpus; 20,000
    more are held out. ``data/README.md`` says what the corpora are.

    Args:
        name: a task over sequences.
        key: random key of the corpus, of the first parameters and of the batches. The shipped
            parameters are those of ``jax.random.key(0)``; other versions of JAX and other machines
            may round differently and arrive at slightly different ones.

    Returns:
        A ``kltarget.training.Fit``. Its ``params`` can take the place of the task's own.

    Raises:
        ValueError: the task is unknown or has no trained reference.

    Example:
        >>> import jax
        >>> from kltarget import studies
        >>> studies.train_reference("one-two", key=jax.random.key(0))
        Traceback (most recent call last):
        ...
        ValueError: there is no trained reference of 'one-two': choose one of words-3, words-4,
        arithmetic-24, brackets, primes
    """
    if name not in SEQUENCE_TASKS:
        raise ValueError(
            f"there is no trained reference of {name!r}: choose one of {', '.join(SEQUENCE_TASKS)}"
        )
    spec = SEQUENCE_TASKS[name]
    corpus_key, fit_key = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(corpus_key)))
    num_held_out = NUM_SEQUENCES // 10
    drawn = rng.choice(spec.num_outcomes, NUM_SEQUENCES + num_held_out, p=spec.corpus())
    tokens = np.stack(np.unravel_index(drawn, spec.space.sizes), axis=-1).astype(np.int32)

    def decaying(learning_rate: Any) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(learning_rate, spec.num_steps))

    return fit(
        spec.policy,
        tokens[num_held_out:],
        key=fit_key,
        num_steps=spec.num_steps,
        learning_rate=1e-2,
        optimizer=decaying,
        batch_size=512,
        holdout=tokens[:num_held_out],
        history_every=500,
    )
