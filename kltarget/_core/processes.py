"""The processes of one job that ``jax.distributed`` has joined: what each does, what all know."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_PIECE = 1 << 26
"""Bytes of a process that are sent at a time."""


def are_several() -> bool:
    """Whether there are other processes than this one."""
    return jax.process_count() > 1


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def index() -> int:
    """The number of this one, from 0."""
    return jax.process_index()


def is_mine(number: int) -> bool:
    """Whether what has this number is for this process to do."""
    return number % jax.process_count() == jax.process_index()


def are_shared(devices: Sequence[Any]) -> bool:
    """Whether some of the devices are another process's."""
    return any(device.process_index != jax.process_index() for device in devices)


def shared(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """What ``work`` makes of each item: several processes do some each, and all get all.

    Where there are several it is a collective, and what is raised of an item is raised in all.
    """
    if not are_several():
        return [work(item) for item in items]
    own: dict[int, tuple[Any, Exception | None]] = {}
    for i, item in enumerate(items):
        if is_mine(i):
            try:
                own[i] = work(item), None
            except Exception as error:
                own[i] = None, error
    every = {i: found for share in exchanged(own) for i, found in share.items()}
    for i in range(len(every)):
        if (error := every[i][1]) is not None:
            raise error
    return [every[i][0] for i in range(len(every))]


def require_same(value: Any, what: str) -> None:
    """Refuses work to be shared of which the processes have been given different things."""
    if are_several() and len(set(exchanged(value))) > 1:
        raise ValueError(
            f"the processes that jax.distributed has joined were given different {what}: "
            "give all of them the same, or use one process"
        )


def dealt(tree: Any, devices: Sequence[Any], axis: str | None = None) -> Any:
    """Arrays that every process has as arrays of all devices, their first axis dealt or copied.

    JAX compares them: values that differ between processes are an error.
    """
    mesh = Mesh(np.array(devices), (axis or "copies",))
    sharding = NamedSharding(mesh, PartitionSpec(axis))

    def put(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.device_put(np.asarray(x), sharding)
        bits = jax.device_put(np.asarray(jax.random.key_data(x)), sharding)
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(x))

    return jax.tree.map(put, tree)


def gathered(tree: Any) -> Any:
    """Arrays of the devices of all processes as NumPy arrays, which every process gets."""
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(tree, tiled=True)


def exchanged(value: Any) -> list[Any]:
    """What each process gives, in their order: a collective that every process has to call."""
    from jax.experimental.multihost_utils import process_allgather

    own = np.frombuffer(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), np.uint8)
    # Without x64 an integer has 32 bits.
    sizes = process_allgather(np.array(divmod(own.size, _PIECE), np.int32))
    sizes = sizes[:, 0].astype(np.int64) * _PIECE + sizes[:, 1]
    pieces = []
    for start in range(0, int(sizes.max()), _PIECE):
        piece = own[start : start + _PIECE]
        width = min(int(sizes.max()) - start, _PIECE)
        pieces.append(process_allgather(np.pad(piece, (0, width - piece.size))))
    whole = np.concatenate(pieces, axis=1)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(whole, sizes, strict=True)]
