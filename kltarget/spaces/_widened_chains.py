"""Chains with all batch axes of a problem on each of their arrays."""

from __future__ import annotations

from typing import TypeVar

import jax.numpy as jnp

from kltarget._core.pytrees import made
from kltarget.spaces._chains import Chain
from kltarget.spaces._gaussian_chains import GaussianChain

_Chain = TypeVar("_Chain", Chain, GaussianChain)
_AXES = {"log_initial": 1, "log_kernels": 3}
_GAUSSIAN_AXES = {"mean": 1, "covariance": 2, "matrices": 3, "offsets": 2, "covariances": 3}


def widened(chain: _Chain, batch: tuple[int, ...]) -> _Chain:
    """The same chain for every row of a batch."""
    wide = {}
    for name, axes in (_AXES if isinstance(chain, Chain) else _GAUSSIAN_AXES).items():
        x = getattr(chain, name)
        wide[name] = jnp.broadcast_to(x, (*batch, *x.shape[x.ndim - axes :]))
    return made(type(chain), **wide)
