"""Small autoregressive policies over sequences of a fixed length, as pure functions of parameters.

A policy is a frozen dataclass of hyper-parameters; its parameters are a pytree of arrays that every
method takes as its first argument. Anything with these methods is a :class:`Policy`, whatever
library its layers come from.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kltarget._core.numerics import as_float
from kltarget.policies._sequential import Sequential, check_sizes, normal


class Policy(Protocol):
    """What training asks of a model of sequences: a hashable object with these methods.

    A frozen dataclass around a model of another library will do; parameters may be any pytree of
    floating-point arrays. A policy may also have an attribute ``eos``, the token after which
    nothing but itself follows.

    Example:
        A policy whose tokens do not depend on each other:

        >>> import dataclasses, jax, jax.numpy as jnp
        >>> from kltarget.recipes import Recipe
        >>> from kltarget.training import fine_tune
        >>> @dataclasses.dataclass(frozen=True)
        ... class Independent:
        ...     vocab_size: int
        ...     length: int
        ...
        ...     def init(self, *, key):
        ...         return jnp.zeros((self.length, self.vocab_size))
        ...
        ...     def log_probs(self, params, tokens):
        ...         table = jax.nn.log_softmax(params)
        ...         return table[jnp.arange(self.length), tokens]
        ...
        ...     def sample(self, params, *, key, num_samples):
        ...         shape = (num_samples, self.length)
        ...         return jax.random.categorical(key, params, shape=shape).astype(jnp.int32)
        ...
        ...     def conditionals(self, params, space):
        ...         table = jax.nn.log_softmax(params)
        ...         levels = range(self.length)
        ...         return tuple(jnp.tile(table[t], (self.vocab_size**t, 1)) for t in levels)
        >>> policy = Independent(2, 2)
        >>> params, reward = policy.init(key=jax.random.key(0)), jnp.array([1.0, 0.0, 0.0, 0.0])
        >>> run = fine_tune(
        ...     policy, params, reward, Recipe(), beta=0.2, learning_rate=0.1, num_steps=100
        ... )
        >>> bool(run.log_probs[0] > jnp.log(0.9))
        True
    """

    @property
    def vocab_size(self) -> int | tuple[int, ...]:
        """Number of tokens V, or a tuple with the number of each position."""
        ...

    @property
    def length(self) -> int:
        """Number of tokens L of every sequence."""
        ...

    def init(self, *, key: PRNGKeyArray) -> Any:
        """Fresh parameters."""
        ...

    def log_probs(self, params: Any, tokens: Int[Array, "*batch L"]) -> Float[Array, "*batch L"]:
        """The log-probability of each token given those before it."""
        ...

    def sample(
        self, params: Any, *, key: PRNGKeyArray, num_samples: int
    ) -> Int[Array, "num_samples L"]:
        """Independent sequences from the policy, int32."""
        ...

    def conditionals(self, params: Any, space: Any) -> tuple[Float[Array, "prefixes V"], ...]:
        """Next-token log-probabilities at every prefix: for each depth t an array ``[V**t, V]``."""
        ...


@dataclasses.dataclass(frozen=True)
class TabularPolicy(Sequential):
    """A logit for every prefix and next token: it can represent every distribution.

    Args:
        vocab_size: number of tokens V, or a tuple with the number of each position.
        length: number of tokens L of every sequence.
        eos: the token after which only itself follows, if any.
        init_scale: standard deviation of the initial logits.

    Its parameters are ``{"logits": [(V**L − 1)/(V − 1), V]}``, prefixes by length and then in
    lexicographic order; with one vocabulary size per position ``[num_prefixes, max_size]``, where a
    row's entries past the size of its position are not looked at.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.policies import TabularPolicy
        >>> policy = TabularPolicy(vocab_size=3, length=2)
        >>> params = policy.init(key=jax.random.key(0))
        >>> policy.log_probs(params, jnp.array([[0, 2], [1, 1]])).shape
        (2, 2)
        >>> policy.sample(params, key=jax.random.key(1), num_samples=5).shape
        (5, 2)
    """

    vocab_size: int | tuple[int, ...]
    length: int
    eos: int | None = None
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def num_prefixes(self) -> int:
        """Number of prefixes shorter than L, ``1 + V + … + V**(L − 1)``."""
        return self._first[-1]

    @property
    def _first(self) -> list[int]:
        """The row of the first prefix of t = 0…L tokens."""
        nodes = [math.prod(self.sizes[:t]) for t in range(self.length)]
        return list(itertools.accumulate(nodes, initial=0))

    def init(self, *, key: PRNGKeyArray) -> dict[str, Array]:
        """Normally distributed logits of standard deviation ``init_scale``."""
        logits = jax.random.normal(key, (self.num_prefixes, self.max_size))
        return {"logits": self.init_scale * logits}

    def from_conditionals(self, conditionals: Sequence[ArrayLike]) -> dict[str, Array]:
        """The parameters of given next-token log-probabilities.

        Args:
            conditionals: for each depth t log-probabilities ``[V**t, V]``; ``-inf`` stays
                impossible, and no gradient will change that.

        Returns:
            Parameters with which :meth:`Policy.conditionals` gives them back.

        Raises:
            ValueError: shapes that are not those of this policy's tree.

        Example:
            >>> import jax.numpy as jnp
            >>> from kltarget.policies import TabularPolicy
            >>> policy = TabularPolicy(vocab_size=2, length=2)
            >>> tree = (jnp.log(jnp.array([[0.7, 0.3]])), jnp.log(jnp.full((2, 2), 0.5)))
            >>> params = policy.from_conditionals(tree)
            >>> print(jnp.exp(policy.log_probs(params, jnp.array([0, 1]))))
            [0.7 0.5]
        """
        levels = [as_float(x) for x in conditionals]
        want = [(math.prod(self.sizes[:t]), size) for t, size in enumerate(self.sizes)]
        if [x.shape for x in levels] != want:
            raise ValueError(
                f"conditionals has shapes {[x.shape for x in levels]}, this policy's tree "
                f"{want}: one array [V**t, V] per depth t"
            )
        unused = [((0, 0), (0, self.max_size - size)) for size in self.sizes]
        return {"logits": jnp.concatenate(list(map(jnp.pad, levels, unused)))}

    def _start(self, params: Any) -> Array:
        return jnp.zeros(1, jnp.int32)

    def _advance(self, params: Any, state: Array, tokens: Array, depth: Any) -> Array:
        first = jnp.array(self._first, jnp.int32)
        size = jnp.array(self.sizes, jnp.int32)[depth]
        return first[depth + 1] + (state - first[depth]) * size + tokens

    def _logits(self, params: Any, state: Array) -> Array:
        return params["logits"].at[state].get(mode="clip")

    def _tree_of_logits(self, params: Any) -> list[Array]:
        return [params["logits"][i:j] for i, j in itertools.pairwise(self._first)]

    def _teacher_forced(self, params: Any, tokens: Array) -> Array:
        nodes = [jnp.zeros(tokens.shape[0], jnp.int32)]
        for t in range(self.length - 1):
            nodes.append(self._advance(params, nodes[-1], tokens[:, t].astype(jnp.int32), t))
        return self._logits(params, jnp.stack(nodes, axis=1))


@dataclasses.dataclass(frozen=True)
class GRUPolicy(Sequential):
    """A gated recurrent unit with one hidden layer and a linear read-out.

    Args:
        vocab_size: number of tokens V, or a tuple with the number of each position.
        length: number of tokens L of every sequence.
        width: number of hidden units.
        eos: the token after which only itself follows, if any.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.policies import GRUPolicy
        >>> policy = GRUPolicy(vocab_size=3, length=4, width=8)
        >>> params = policy.init(key=jax.random.key(0))
        >>> policy.log_probs(params, jnp.array([0, 2, 1, 1])).shape
        (4,)

    References:
        Cho et al., "Learning Phrase Representations using RNN Encoder–Decoder for Statistical
        Machine Translation", 2014, arXiv 1406.1078; the reset gate acts after the recurrent
        product, as in the fused implementations.
    """

    vocab_size: int | tuple[int, ...]
    length: int
    width: int = 32
    eos: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "width")

    def init(self, *, key: PRNGKeyArray) -> dict[str, Array]:
        """Normal weights of variance one over the number of inputs; biases and first state 0."""
        inputs, recurrent, output = jax.random.split(key, 3)
        return {
            "inputs": normal(inputs, (self.max_size, 3 * self.width), 1),
            "recurrent": normal(recurrent, (self.width, 3 * self.width), self.width),
            "bias": jnp.zeros(3 * self.width),
            "recurrent_bias": jnp.zeros(self.width),
            "start": jnp.zeros(self.width),
            "output": normal(output, (self.width, self.max_size), self.width),
            "output_bias": jnp.zeros(self.max_size),
        }

    def _start(self, params: Any) -> Array:
        return params["start"][None]

    def _advance(self, params: Any, state: Array, tokens: Array, depth: Any) -> Array:
        # A product with one-hot rows: its derivative is a product too, not a scatter.
        one_hot = jax.nn.one_hot(tokens, self.max_size, dtype=state.dtype)
        given = one_hot @ params["inputs"] + params["bias"][None]
        recurrent = state @ params["recurrent"]
        reset, update, new = jnp.split(given, 3, axis=-1)
        reset_state, update_state, new_state = jnp.split(recurrent, 3, axis=-1)
        gate = jax.nn.sigmoid(reset + reset_state)
        keep = jax.nn.sigmoid(update + update_state)
        candidate = jnp.tanh(new + gate * (new_state + params["recurrent_bias"][None]))
        return candidate + keep * (state - candidate)

    def _logits(self, params: Any, state: Array) -> Array:
        return state @ params["output"] + params["output_bias"][None]

    def _teacher_forced(self, params: Any, tokens: Array) -> Array:
        def step(state: Array, token: Array) -> tuple[Array, Array]:
            state = self._advance(params, state, token, None)
            return state, state

        start = jnp.broadcast_to(params["start"], (tokens.shape[0], self.width))
        _, later = lax.scan(step, start, tokens[:, :-1].T)
        states = jnp.concatenate([start[None], later]).swapaxes(0, 1)
        logits = self._logits(params, states.reshape(-1, self.width))
        return logits.reshape(*tokens.shape, self.max_size)


@dataclasses.dataclass(frozen=True)
class TransformerPolicy(Sequential):
    """A causal Transformer with layer normalisation before each block and learned positions.

    Args:
        vocab_size: number of tokens V, or a tuple with the number of each position.
        length: number of tokens L of every sequence.
        width: size of the residual stream, a multiple of ``num_heads``.
        num_layers: number of attention blocks, each followed by a perceptron of four times the
            width.
        num_heads: number of attention heads.
        eos: the token after which only itself follows, if any.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.policies import TransformerPolicy
        >>> policy = TransformerPolicy(vocab_size=3, length=4, width=8, num_heads=2, num_layers=1)
        >>> params = policy.init(key=jax.random.key(0))
        >>> policy.log_probs(params, jnp.array([0, 2, 1, 1])).shape
        (4,)

    References:
        Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762. Xiong et al., "On
        Layer Normalization in the Transformer Architecture", 2020, arXiv 2002.04745.
    """

    vocab_size: int | tuple[int, ...]
    length: int
    width: int = 32
    num_layers: int = 2
    num_heads: int = 4
    eos: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "width", "num_layers", "num_heads")
        if self.width % self.num_heads:
            given = f"{self.width} and {self.num_heads}"
            raise ValueError(f"width must be a multiple of num_heads, got {given}")

    def init(self, *, key: PRNGKeyArray) -> dict[str, Any]:
        """Normal weights of variance one over the number of inputs; biases 0, scales 1."""
        width, keys = self.width, jax.random.split(key, self.num_layers + 3)

        def layer(key: PRNGKeyArray) -> dict[str, Any]:
            attention, project, up, down = jax.random.split(key, 4)
            return {
                "attention_norm": _unit_norm(width),
                "attention": normal(attention, (width, 3 * width), width),
                "project": normal(project, (width, width), width),
                "mlp_norm": _unit_norm(width),
                "up": normal(up, (width, 4 * width), width),
                "up_bias": jnp.zeros(4 * width),
                "down": normal(down, (4 * width, width), 4 * width),
                "down_bias": jnp.zeros(width),
            }

        return {
            # The last row stands for the beginning of a sequence.
            "tokens": normal(keys[0], (self.max_size + 1, width), 1),
            "positions": normal(keys[1], (self.length, width), 1),
            "layers": [layer(k) for k in keys[3:]],
            "norm": _unit_norm(width),
            "output": normal(keys[2], (width, self.max_size), width),
            "output_bias": jnp.zeros(self.max_size),
        }

    def _start(self, params: Any) -> Any:
        heads = (self.num_heads, self.width // self.num_heads)
        empty = jnp.zeros((1, self.length, *heads), params["tokens"].dtype)
        none = [empty] * self.num_layers
        state = {"keys": none, "values": none, "last": jnp.zeros((1, self.width), empty.dtype)}
        return self._read(params, state, jnp.full(1, self.max_size, jnp.int32), jnp.int32(0))

    def _advance(self, params: Any, state: Any, tokens: Array, depth: Any) -> Any:
        return self._read(params, state, tokens, depth + 1)

    def _read(self, params: Any, state: Any, tokens: Array, position: Array) -> Any:
        """The state after one more token, whose keys and values join those already there."""
        x = self._embed(params, tokens) + params["positions"].at[position].get(mode="clip")[None]
        visible = (jnp.arange(self.length, dtype=jnp.int32) <= position)[None, None]
        # A cache per layer: an array of all layers would be copied for every token.
        keys, values = [], []
        for layer, *past in zip(params["layers"], state["keys"], state["values"], strict=True):
            query, *new = self._query_key_value(layer, x)
            # The final token is read at a position past the end, where nobody looks any more.
            past = [
                lax.dynamic_update_slice_in_dim(old, one[:, None], position, 1)
                for old, one in zip(past, new, strict=True)
            ]
            x = self._finish(layer, x, _attend(query[:, None], *past, visible)[:, 0])
            keys.append(past[0])
            values.append(past[1])
        return {"keys": keys, "values": values, "last": x}

    def _logits(self, params: Any, state: Any) -> Array:
        return self._read_out(params, state["last"])

    def _teacher_forced(self, params: Any, tokens: Array) -> Array:
        begin = jnp.full((tokens.shape[0], 1), self.max_size, tokens.dtype)
        x = self._embed(params, jnp.concatenate([begin, tokens[:, :-1]], axis=1))
        x = x + params["positions"][None]
        visible = jnp.tril(jnp.ones((self.length, self.length), bool))[None]
        for layer in params["layers"]:
            x = self._finish(layer, x, _attend(*self._query_key_value(layer, x), visible))
        return self._read_out(params, x)

    def _embed(self, params: Any, tokens: Array) -> Array:
        one_hot = jax.nn.one_hot(tokens, self.max_size + 1, dtype=params["tokens"].dtype)
        return one_hot @ params["tokens"]

    def _query_key_value(self, layer: Any, x: Array) -> tuple[Array, Array, Array]:
        projected = _layer_norm(layer["attention_norm"], x) @ layer["attention"]
        heads = (*x.shape[:-1], self.num_heads, self.width // self.num_heads)
        query, key, value = (y.reshape(heads) for y in jnp.split(projected, 3, axis=-1))
        return query, key, value

    def _finish(self, layer: Any, x: Array, attended: Array) -> Array:
        x = x + attended.reshape(x.shape) @ layer["project"]
        hidden = _layer_norm(layer["mlp_norm"], x) @ layer["up"]
        hidden = jax.nn.gelu(hidden + _like(layer["up_bias"], hidden))
        down = hidden @ layer["down"]
        return x + down + _like(layer["down_bias"], down)

    def _read_out(self, params: Any, x: Array) -> Array:
        logits = _layer_norm(params["norm"], x) @ params["output"]
        return logits + _like(params["output_bias"], logits)


def _attend(query: Array, key: Array, value: Array, visible: Array) -> Array:
    """Softmax attention ``[N, Q, heads, d]`` to keys ``[N, K, heads, d]``; mask ``[1, Q, K]``."""
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / query.shape[-1] ** 0.5
    visible = jnp.broadcast_to(visible[:, None], scores.shape)
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, value)


def _unit_norm(width: int) -> dict[str, Array]:
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def _layer_norm(params: Any, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    unit = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    return unit * _like(params["scale"], unit) + _like(params["bias"], unit)


def _like(x: Array, y: Array) -> Array:
    return jnp.broadcast_to(x, y.shape)
