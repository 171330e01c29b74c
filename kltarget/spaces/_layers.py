"""Spaces that are walked backwards: one pass from the leaves to the root, for any backup.

Token trees, products of an automaton and a Markov chain, decision processes of finite horizon,
chains of steps and stage games differ in their layers alone; soft values, token-local targets,
maxima and minimax values in the backup alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


class Layer(Protocol):
    """The nodes of one depth of a space: where their choices lead, and the reference's kernel.

    A pytree, such as a ``NamedTuple``, that holds what a backup needs of its depth. Nodes may share
    children, by indices into those below, and every depth may have nodes, choices and a kernel of
    its own.
    """

    @property
    def log_ref(self) -> Float[Array, "*batch nodes choices"]:
        """Log-probabilities of the choices under the reference, ``-inf`` at those that are none."""
        ...

    def children(self, values: Any) -> Any:
        """Values of the nodes below, nodes last, as ``[*batch, nodes, choices]`` of these nodes."""
        ...


Layers = Sequence[Layer]
"""A space that can be walked backwards, from the root's layer to that above the leaves."""

_Layer = TypeVar("_Layer", bound=Layer)


def backward(
    layers: Sequence[_Layer], leaf_values: Any, backup: Callable[[Any, _Layer], tuple[Any, Any]]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Values of all nodes, from the leaves to the root: ``V(s) = backup(V(children of s))``.

    Args:
        layers: the space, the root's layer first.
        leaf_values: values of the leaves, an array with nodes last or a pytree of such arrays.
        backup: a function of the children's values ``[*batch, nodes, choices]`` and the layer,
            which returns the values of its nodes ``[*batch, nodes]`` and a pytree of whatever else
            is to be kept of them, such as a policy. A soft value is ``beta · logsumexp(log_ref +
            values / beta)`` over the choices, a greedy one their maximum.

    Returns:
        Values per depth, the root's first and the leaves' last, and what was kept per depth.

    Layers of equal shapes that follow each other are compiled once, and one object repeated, as in
    ``(layer,) * 100``, is held in memory once. Works under ``jit``, ``vmap`` and ``grad`` as the
    backup does.

    Example:
        Two coins in turn, of which every head earns 1, as three nodes that count heads:

        >>> from typing import NamedTuple
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import backward
        >>> class Coin(NamedTuple):
        ...     log_ref: jnp.ndarray
        ...     below: jnp.ndarray
        ...
        ...     def children(self, values):
        ...         return values[..., self.below]
        >>> root = Coin(jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[0, 1]]))
        >>> after = Coin(jnp.log(jnp.full((2, 2), 0.5)), jnp.array([[0, 1], [1, 2]]))
        >>> mean = lambda values, layer: ((jnp.exp(layer.log_ref) * values).sum(-1), None)
        >>> values, _ = backward((root, after), jnp.array([0.0, 1.0, 2.0]), mean)
        >>> print(values[0], values[1])
        [1.] [0.5 1.5]
    """
    values, kept = [leaf_values], []

    def step(value: Any, layer: _Layer) -> tuple[Any, tuple[Any, Any]]:
        value, extra = backup(layer.children(value), layer)
        return value, (value, extra)

    depth = len(layers)
    while depth:
        run = _equal_steps(step, values[-1], layers[:depth])
        if run == 1:
            _, each = step(values[-1], layers[depth - 1])
            steps = [each]
        else:
            each = _together(step, values[-1], layers[depth - run : depth][::-1])
            leaves, structure = jax.tree.flatten(each)
            steps = [structure.unflatten(x) for x in zip(*map(jnp.unstack, leaves), strict=True)]
        values += [value for value, _ in steps]
        kept += [extra for _, extra in steps]
        depth -= run
    return tuple(values[::-1]), tuple(kept[::-1])


def _together(step: Callable[[Any, Any], Any], value: Any, layers: Sequence[Any]) -> Any:
    """What equal steps give, stacked. XLA takes minutes for a few hundred that are not one loop."""
    first = layers[0]
    if all(layer is first for layer in layers):
        # As of a chain that is homogeneous: its kernel is in memory once.
        return lax.scan(lambda x, _: step(x, first), value, length=len(layers))[1]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    return lax.scan(step, value, stacked)[1]


def _equal_steps(step: Callable[[Any, Any], Any], value: Any, layers: Sequence[Any]) -> int:
    """How many of the last layers can be walked by one program, at least 1."""
    last, run = _shapes(layers[-1]), 1
    while run < len(layers) and (
        layers[-1 - run] is layers[-1] or _shapes(layers[-1 - run]) == last
    ):
        run += 1
    if run > 1 and _shapes(jax.eval_shape(step, value, layers[-1])[0]) != _shapes(value):
        return 1
    return run


def _shapes(x: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), x)


class Branches(NamedTuple):
    """The shape of a tree, as index arrays on the host.

    Among the nodes of a depth those that branch come first, then the leaves.

    Attributes:
        children: per depth, of every node that branches there, the nodes below it, integers
            ``[nodes, choices]``; -1 where it has fewer choices than others.
        leaves: per depth, from the root's to the last, which sequences end there.
    """

    children: tuple[np.ndarray, ...]
    leaves: tuple[np.ndarray, ...]
