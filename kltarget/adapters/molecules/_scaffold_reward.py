"""Rewards of scaffolds, asked of the host while JAX trains."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kltarget._core.checks import float_argument
from kltarget._core.pytrees import register
from kltarget.adapters.molecules._canonical import canonical, rdkit, scaffold
from kltarget.adapters.molecules._smiles import decode


@dataclasses.dataclass(frozen=True, eq=False)
class ScaffoldReward:
    """A reward of texts, by the scaffold of the molecule that they spell.

    All that counts is which of K scaffolds a molecule has, its mode. So the target of
    ``E_π[r] − beta · D(π, π_ref)``, for any f-divergence, is that of K + 1 outcomes, the scaffolds
    and everything else, whose ``log_ref`` is the log of their masses under the reference; within a
    mode texts keep the reference's proportions. On those outcomes :func:`kltarget.solve` and
    :func:`kltarget.mara` say what to expect, and what reward to train with instead.

    Args:
        scaffolds: K of them, as SMILES in any spelling.
        rewards: of each and, last, of everything else, be it a molecule or not, shape ``[K + 1]``,
            in reward units. By default 1, and 0.
        accept: what else is asked of a molecule, a function of an RDKit molecule; of one that is
            refused the reward is that of everything else. A new function object is compiled anew.
        prompt: what texts are read after, as of :func:`smiles_reference`.

    Raises:
        ValueError: a scaffold that is none or is given twice; rewards of another shape.
        ModuleNotFoundError: ``kltarget[molecules]`` is not installed.

    A pytree whose leaf is ``rewards``, in which it is differentiable:
    :func:`kltarget.training.fine_tune_on_texts` takes others without compiling anew. RDKit is asked
    on the host, also under ``jit`` and ``vmap``; what it said of a text is kept.

    Example:
        >>> import kltarget as kt
        >>> from kltarget.adapters import molecules
        >>> reward = molecules.ScaffoldReward(["c1ccccc1", "c1ccncc1"])
        >>> texts = molecules.encode(["Cc1ccccc1", "Oc1cccnc1", "CCO", "c1cccc("])
        >>> reward.modes(texts).tolist(), reward(texts).tolist()
        ([0, 1, -1, -1], [1.0, 1.0, 0.0, 0.0])

        With masses of 0.3 and 0.02 under the reference, what MARA gives the rare one more:

        >>> import dataclasses, jax.numpy as jnp
        >>> known = kt.Objective(reward.rewards, jnp.log(jnp.array([0.3, 0.02, 0.68])), beta=0.1)
        >>> lifted = dataclasses.replace(reward, rewards=kt.mara(known, threshold=1.0).reward)
        >>> [f"{x:.3f}" for x in lifted(texts)]
        ['1.000', '1.271', '0.000', '0.000']

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817, algorithm 1, here with a scaffold's mass in place of an answer's.
    """

    scaffolds: Sequence[str]
    rewards: Float[ArrayLike, "modes"] | Any = None
    accept: Callable[[Any], bool] | None = None
    prompt: str = ""

    def __post_init__(self) -> None:
        names = [canonical(smiles) for smiles in self.scaffolds]
        for smiles, name in zip(self.scaffolds, names, strict=True):
            if name is None or scaffold(name) != name or not name:
                raise ValueError(f"scaffolds has {smiles!r}, which is the scaffold of no molecule")
            if names.count(name) > 1:
                raise ValueError(f"scaffolds has {name!r} twice, in whatever spelling")
        rewards = [1.0] * len(names) + [0.0] if self.rewards is None else self.rewards
        rewards = float_argument(rewards, "rewards")
        if rewards.shape != (len(names) + 1,):
            raise ValueError(
                f"rewards has shape {rewards.shape}: of {len(names)} scaffolds and everything else "
                f"it needs shape ({len(names) + 1},)"
            )
        object.__setattr__(self, "scaffolds", tuple(names))
        object.__setattr__(self, "rewards", rewards)

    def modes(self, tokens: Int[ArrayLike, "*batch T"]) -> Int[Array, "*batch"]:
        """Which scaffold the molecule of each text has, int32; −1 for everything else."""
        tokens = jnp.asarray(tokens)
        like = jax.ShapeDtypeStruct(tokens.shape[:-1], np.int32)
        known = functools.partial(_modes, tuple(self.scaffolds), self.accept, self.prompt)
        return jax.pure_callback(known, like, tokens, vmap_method="expand_dims")

    def __call__(self, tokens: Int[ArrayLike, "*batch T"]) -> Float[Array, "*batch"]:
        """The rewards of texts, in reward units."""
        return jnp.asarray(self.rewards)[self.modes(tokens)]


register(ScaffoldReward, leaves=["rewards"], static=["scaffolds", "accept", "prompt"])


def _modes(scaffolds: tuple[str, ...], accept: Any, prompt: str, tokens: Any) -> np.ndarray:
    tokens = np.asarray(tokens)
    texts = decode(tokens.reshape(-1, tokens.shape[-1]))
    numbers = [_mode(scaffolds, accept, prompt + text) for text in texts]
    return np.array(numbers, np.int32).reshape(tokens.shape[:-1])


@functools.lru_cache(maxsize=1 << 18)
def _mode(scaffolds: tuple[str, ...], accept: Any, text: str) -> int:
    name = scaffold(text)
    if name not in scaffolds:
        return -1
    if accept is not None:
        with rdkit() as chem:
            if not accept(chem.MolFromSmiles(text)):
                return -1
    return scaffolds.index(name)
