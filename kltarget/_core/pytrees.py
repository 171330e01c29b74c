"""Frozen dataclasses that JAX carries through its transformations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax

from kltarget._core.short_repr import short_repr

_Class = TypeVar("_Class", bound=type)
_T = TypeVar("_T")


@dataclass_transform(eq_default=False, frozen_default=True, field_specifiers=(dataclasses.field,))
def pytree(cls: _Class) -> _Class:
    """Makes a class a frozen dataclass of arrays, which are a pytree's leaves; no two are equal.

    It prints its arrays' types and shapes, not the arrays.
    """
    if "__repr__" not in vars(cls):
        type.__setattr__(cls, "__repr__", short_repr)
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


def register(cls: type, leaves: Sequence[str], static: Sequence[str] = ()) -> None:
    """Makes a frozen dataclass a pytree whose structure is its class and what is static.

    ``register_dataclass`` leaves the class out when two structures are compared: all divergences
    without parameters would be the same one to a jit cache, and a function compiled for one could
    be run for another. It also calls the constructor.
    """

    def flatten(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(x, n) for n in leaves), (cls, *(getattr(x, n) for n in static))

    def flatten_with_keys(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children, structure = flatten(x)
        keys = map(jax.tree_util.GetAttrKey, leaves)
        return tuple(zip(keys, children, strict=True)), structure

    def unflatten(structure: tuple[Any, ...], children: Iterable[Any]) -> Any:
        # Transformations carry other things than arrays through trees: no checks on the way back.
        values = (*children, *structure[1:])
        return made(cls, **dict(zip((*leaves, *static), values, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def made(cls: type[_T], **fields: Any) -> _T:
    """An object of a frozen dataclass with these fields; its constructor, which checks, is not."""
    x = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(x, name, value)
    return x


def as_function(f: Any) -> Any:
    """A function as a pytree: as it is if it is one, with its numbers as leaves, or wrapped."""
    return jax.tree_util.Partial(f) if jax.tree_util.all_leaves([f]) else f
