"""The reference that is shipped, and how it was made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from kltarget.adapters.molecules._smiles import LENGTH, VOCABULARY, encode
from kltarget.policies import GRUPolicy, load_params
from kltarget.training import TextRun, sft_on_texts

_POLICY = GRUPolicy(len(VOCABULARY), LENGTH, width=160, eos=0)


def smiles_reference(prompt: str = "") -> tuple[GRUPolicy, dict[str, Array]]:
    """A small model of drug-like molecules: a GRU that writes SMILES, and its parameters.

    Args:
        prompt: what every molecule begins with; the texts are what follows, and the first state is
            that after the prompt.

    Returns:
        The policy over texts of 36 tokens, less those of the prompt, and what
        :func:`train_on_smiles` made of 870,346 molecules of MOSES, in float32. ``data/README.md``
        says how well it does; reading it needs no RDKit.

    Raises:
        ValueError: a prompt that :func:`encode` refuses, or of all 36 tokens.

    Example:
        >>> import jax
        >>> from kltarget.adapters import molecules
        >>> policy, params = molecules.smiles_reference()
        >>> texts = policy.sample(params, key=jax.random.key(0), num_samples=4)
        >>> all(molecules.decode(texts))
        True
        >>> molecules.smiles_reference("CCOC(=O)c1")[0].length
        26
    """
    like = jax.eval_shape(lambda: _POLICY.init(key=jax.random.key(0)))
    with resources.as_file(resources.files("kltarget") / "data" / "smiles.npz") as file:
        params = load_params(file, like)
    # By NumPy: not every processor that JAX compiles for converts from float16.
    params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float32)), params)
    tokens = encode([prompt])[0]
    tokens = tokens[tokens != 0]
    if len(tokens) == LENGTH:
        raise ValueError(f"prompt is {prompt!r}, of all {LENGTH} tokens: nothing can follow it")
    state = params["start"][None]
    for token in tokens:
        state = _POLICY._advance(params, state, token[None], None)
    return dataclasses.replace(_POLICY, length=LENGTH - len(tokens)), {**params, "start": state[0]}


def train_on_smiles(
    smiles: Iterable[str],
    *,
    key: PRNGKeyArray,
    num_steps: int = 6000,
    **options: Any,
) -> TextRun:
    """Trains the reference anew: maximum likelihood, ``max E[log π]``, of molecules' texts.

    Each step takes 256 molecules drawn afresh; Adam's learning rate decays from 0.005 to 0 along a
    cosine. The shipped parameters are those of ``jax.random.key(0)``, all of
    :func:`load_smiles` and the defaults, rounded to float16; another machine or version of JAX may
    round differently and arrive at slightly different ones.

    Args:
        smiles: molecules, as :func:`load_smiles` gives them.
        key: random key of the first parameters and of the batches.
        num_steps: number of gradient steps.
        **options: as of :func:`kltarget.training.sft_on_texts`.

    Returns:
        The run; its ``params`` can take the place of the shipped ones.

    Raises:
        ValueError: what :func:`encode` refuses, or no molecule at all.
    """
    texts = encode(smiles)
    if not len(texts):
        raise ValueError("smiles has no molecule to train on")
    init_key, run_key = jax.random.split(key)

    def decaying(rate: Any) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(rate, num_steps))

    return sft_on_texts(
        _POLICY,
        _POLICY.init(key=init_key),
        jax.tree_util.Partial(_drawn, jnp.asarray(texts.astype(np.int8))),
        batch_size=256,
        key=run_key,
        learning_rate=5e-3,
        num_steps=num_steps,
        optimizer=decaying,
        **{"history_every": num_steps, **options},
    )


def _drawn(texts: Array, *, key: PRNGKeyArray, num_samples: int) -> Array:
    rows = jax.random.randint(key, (num_samples,), 0, len(texts))
    return texts[rows].astype(jnp.int32)
