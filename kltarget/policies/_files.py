"""Parameters on disk."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kltarget._core.files import open_whole


def save_params(path: str | os.PathLike[str], params: Any) -> None:
    """Writes parameters to an ``.npz`` file, one array per leaf, named by its place in the tree.

    The file appears whole or not at all.

    Args:
        path: where to; the name is taken as it is.
        params: a pytree of arrays.

    Example:
        >>> import jax, pathlib, tempfile
        >>> from kltarget.policies import GRUPolicy, load_params, save_params
        >>> policy = GRUPolicy(3, 4, width=8)
        >>> params = policy.init(key=jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "reference.npz"
        ...     save_params(file, params)
        ...     again = load_params(file, like=policy.init(key=jax.random.key(1)))
        >>> bool((again["recurrent"] == params["recurrent"]).all())
        True
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    arrays = {_name(where): np.asarray(leaf) for where, leaf in leaves}
    with open_whole(path, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_params(path: str | os.PathLike[str], like: Any) -> Any:
    """Reads what :func:`save_params` wrote.

    Args:
        path: the file.
        like: parameters of the same structure and shapes, for instance fresh ones of the policy.

    Returns:
        Parameters of the structure of ``like``, in the dtypes of the file.

    Raises:
        ValueError: leaves that are missing, left over or of another shape; all are named.
    """
    with np.load(path, allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {_name(where): leaf for where, leaf in leaves}
    faults = [f"{name} is missing" for name in wanted if name not in stored]
    faults += [f"{name} is not a parameter" for name in stored if name not in wanted]
    faults += [
        f"{name} has shape {stored[name].shape}, not {jnp.shape(leaf)}"
        for name, leaf in wanted.items()
        if name in stored and stored[name].shape != jnp.shape(leaf)
    ]
    if faults:
        raise ValueError(f"{os.fspath(path)} does not fit: {'; '.join(faults)}")
    arrays = []
    for name, leaf in wanted.items():
        array = stored[name]
        if array.dtype.kind == "V":  # NumPy's format keeps the bits of bfloat16, not its name
            array = array.view(jnp.asarray(leaf).dtype)
        arrays.append(jnp.asarray(array))
    return jax.tree_util.tree_unflatten(structure, arrays)


def _name(where: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(where, simple=True, separator=".") or "params"
