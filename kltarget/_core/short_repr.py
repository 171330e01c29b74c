"""What objects that hold tables print as: what is in them and how large it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kltarget._core.checks import traced

_SPELLED = 4
"""Arrays of at most so many numbers, and tuples of so many names, are written out."""


def short_repr(self: Any) -> str:
    """A dataclass with its fields, of arrays no more than type and shape.

    It is the ``__repr__`` of a class, given in its body. Fields that are None are left out.
    """
    fields = ((f.name, getattr(self, f.name, None)) for f in dataclasses.fields(self) if f.repr)
    told = ", ".join(f"{name}={_short(value)}" for name, value in fields if value is not None)
    return f"{type(self).__name__}({told})"


def _short(x: Any) -> str:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return _of_array(x)
    if isinstance(x, tuple) and not hasattr(x, "_fields"):
        alike = all(isinstance(item, str) for item in x)
        if len(x) > _SPELLED:
            return f"<{len(x)} names>" if alike else f"<{len(x)} of {type(x[0]).__name__}>"
        return repr(x) if alike else f"({', '.join(map(_short, x))})"
    if hasattr(x, "_fields"):
        return f"<{type(x).__name__}>"
    if dataclasses.is_dataclass(x) and not isinstance(x, type) and _has_arrays(x):
        return short_repr(x)
    return repr(x)


def _has_arrays(x: Any) -> bool:
    """Whether what a dataclass prints by itself could be a table."""
    values = [getattr(x, f.name, None) for f in dataclasses.fields(x)]
    return any(getattr(v, "ndim", 0) or dataclasses.is_dataclass(v) for v in values)


def _of_array(x: Any) -> str:
    if not traced(x) and x.ndim < 2 and x.size <= _SPELLED and x.dtype.kind in "biuf":
        return np.array2string(np.asarray(x), separator=", ", precision=4)
    return f"{x.dtype}[{', '.join(map(str, x.shape))}]"
