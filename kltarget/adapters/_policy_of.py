"""A language model of JAX as a policy over the sequences of a few of its tokens."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from kltarget.policies import Policy
from kltarget.policies._sequential import Sequential, check_sizes

_FLAX = "flax"


def policy_of(
    model: Any,
    params: Any = None,
    *,
    prompt_ids: Sequence[int],
    length: int,
    vocab: Sequence[int],
    eos: int | None = None,
) -> tuple[Policy, Any]:
    """A model of JAX as a policy that :func:`kltarget.fine_tune` and ``verify`` take.

    The policy is the model given that it says nothing but some of its tokens: after the prompt it
    writes ``length`` tokens of ``vocab``, each with the model's probability among those. That is a
    space of ``V**length`` sequences, over which targets are exact; token i of the policy is token
    ``vocab[i]`` of the model.

    Args:
        model: a module of ``flax.nnx``, which brings its parameters; a module of ``flax.linen``; or
            a function ``(params, tokens)``. Each makes of tokens ``[N, T]`` logits ``[N, T, S]`` of
            the next token, or a tuple that begins with them; it must look at no later token.
            Modules that are called with ``positions``, ``cache`` and ``attention_mask``, as Tunix's
            are, get those.
        params: of a function or a linen module, a pytree of floating-point arrays.
        prompt_ids: the tokens before the first, one or more.
        length: number of tokens L of every sequence.
        vocab: the model's tokens that the policy chooses among, V of them.
        eos: one of them, after which nothing but itself follows.

    Returns:
        The policy, and its parameters: those of the model, in float32 where they are narrower. Its
        ``init`` gives the same, whatever the key. Every array of the parameters is trained.

    Raises:
        TypeError: a model that is none of these, or parameters that are no floating-point arrays.
        ValueError: parameters that are missing or given twice, no prompt, or tokens that repeat or
            are none of the model's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.adapters import policy_of
        >>> def bigram(params, tokens):  # the next token depends on the last alone
        ...     return params[tokens]
        >>> table = jnp.log(jnp.array([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]]))
        >>> policy, params = policy_of(bigram, table, prompt_ids=[0], length=2, vocab=[1, 2])
        >>> print([f"{p:.3f}" for p in jnp.exp(policy.log_probs(params, jnp.array([1, 0])))])
        ['0.600', '0.667']
    """
    forward, params = _forward(model, params)
    if len(prompt_ids) == 0:
        raise ValueError("prompt_ids must have a token or more: give the one that begins a text")
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError("params has no arrays, so that there is nothing to train")
    for leaf in leaves:
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
            raise TypeError(f"params must be floating-point arrays, got {type(leaf).__name__}")
    params = jax.tree.map(_wide, params)
    tokens = tuple(int(x) for x in vocab)
    if len(set(tokens)) < len(tokens) or not tokens:
        raise ValueError(f"vocab must be tokens that differ, got {list(tokens)}")
    prompt = tuple(int(x) for x in prompt_ids)
    shape = jax.eval_shape(forward, params, jnp.zeros((1, len(prompt)), jnp.int32)).shape
    if len(shape) != 3 or shape[:2] != (1, len(prompt)):
        raise ValueError(
            f"model makes shape {shape} of tokens (1, {len(prompt)}): logits must be [N, T, S]"
        )
    for name, given in (("vocab", tokens), ("prompt_ids", prompt)):
        if not all(0 <= x < shape[2] for x in given):
            raise ValueError(f"{name} must be tokens of the model, 0 to {shape[2] - 1}: {given}")
    if eos is not None and eos not in tokens:
        raise ValueError(f"eos must be one of vocab, got {eos}")
    end = None if eos is None else tokens.index(eos)
    policy = _LanguagePolicy(len(tokens), length, end, prompt, tokens, forward, _Held(params))
    return policy, params


class _Held:
    """Parameters that are themselves alone, so that a policy can be a key."""

    def __init__(self, params: Any) -> None:
        self.params = params


@dataclasses.dataclass(frozen=True)
class _LanguagePolicy(Sequential):
    """Sequences of some tokens of a model after a prompt; what it knows is what was said."""

    vocab_size: int | tuple[int, ...]
    length: int
    eos: int | None
    prompt: tuple[int, ...]
    vocab: tuple[int, ...]
    forward: Callable[[Any, Array], Array]
    start: _Held

    def __post_init__(self) -> None:
        check_sizes(self)

    def init(self, *, key: PRNGKeyArray) -> Any:
        """The parameters of the checkpoint."""
        return self.start.params

    def _teacher_forced(self, params: Any, tokens: Array) -> Array:
        said = jnp.array(self.vocab, jnp.int32)[tokens[:, :-1]]
        prompt = jnp.array(self.prompt, jnp.int32)
        prompt = jnp.broadcast_to(prompt, (len(tokens), len(self.prompt)))
        logits = self.forward(params, jnp.concatenate([prompt, said], axis=1))
        # A model may have more logits than it has tokens, and more tokens than are asked for.
        return logits[:, len(self.prompt) - 1 :][..., np.array(self.vocab)]

    def _start(self, params: Any) -> Any:
        return jnp.zeros((1, self.length), jnp.int32), jnp.zeros(1, jnp.int32)

    def _advance(self, params: Any, state: Any, tokens: Array, depth: Any) -> Any:
        said, depths = state
        return said.at[:, depth].set(tokens.astype(jnp.int32)), jnp.full_like(depths, depth + 1)

    def _logits(self, params: Any, state: Any) -> Array:
        said, depths = state
        # What is not said yet is something, which no earlier position looks at.
        logits = self._teacher_forced(params, said)
        return jnp.take_along_axis(logits, depths[:, None, None], axis=1)[:, 0]


def _wide(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf


def _forward(model: Any, params: Any) -> tuple[Callable[[Any, Array], Array], Any]:
    """A function of parameters and tokens, and the parameters."""
    kind = _module_kind(model)
    if kind == "nnx":
        if params is not None:
            raise ValueError("params is not for modules of flax.nnx, which bring their own")
        return _of_nnx(model)
    if params is None:
        raise ValueError("params is needed: the parameters that the model is called with")
    if kind == "linen":
        # What a module makes of its variables: here all of them are parameters.
        return lambda given, tokens: _first(model.apply({"params": given}, tokens)), params
    if not callable(model):
        raise TypeError(
            "model must be a module of flax or a function of parameters and tokens, got "
            f"{type(model).__name__}"
        )
    return lambda given, tokens: _first(model(given, tokens)), params


def _module_kind(model: Any) -> str | None:
    """Of which of flax's two kinds a module is, without flax being needed."""
    for base in type(model).__mro__:
        if base.__name__ == "Module" and base.__module__.split(".")[0] == _FLAX:
            return "nnx" if ".nnx" in base.__module__ else "linen"
    return None


def _of_nnx(model: Any) -> tuple[Callable[[Any, Array], Array], Any]:
    from flax import nnx  # pyright: ignore[reportMissingImports]

    graph, state, rest = nnx.split(model, nnx.Param, ...)
    names = tuple(inspect.signature(type(model).__call__).parameters)
    positioned = {"positions", "attention_mask"} <= set(names)
    leaves, structure = jax.tree.flatten(state)
    # Names and arrays, which any library can read; nnx keeps more beside each.
    plain = nnx.to_pure_dict(state)
    same = all(x is y for x, y in zip(leaves, jax.tree.leaves(plain), strict=True))

    def forward(given: Any, tokens: Array) -> Array:
        module = nnx.merge(graph, jax.tree.unflatten(structure, jax.tree.leaves(given)), rest)
        return _first(_with_positions(module, names, tokens) if positioned else module(tokens))

    return forward, plain if same else state


def _with_positions(module: Any, names: tuple[str, ...], tokens: Array) -> Any:
    """As Tunix calls its models: no cache, and no token looks at a later one."""
    size = tokens.shape[1]
    earlier = jnp.tril(jnp.ones((size, size), bool))
    given = {
        "positions": jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), tokens.shape),
        "attention_mask": jnp.broadcast_to(earlier, (len(tokens), size, size)),
        "cache": None,
    }
    return module(tokens, **{name: x for name, x in given.items() if name in names})


def _first(made: Any) -> Array:
    return made[0] if isinstance(made, tuple) else getattr(made, "logits", made)
