"""Divergences by the names that the command line and labelled data call them."""

from __future__ import annotations

import math
from collections.abc import Callable

from kltarget._core.checks import worded
from kltarget.divergences import _families
from kltarget.divergences._base import Divergence

# In the order of their definitions, which is that of lists for people.
_ALL = [cls for cls in vars(_families).values() if isinstance(cls, type)]
CLASSES: dict[str, Callable[..., Divergence]] = {
    cls._slug: cls for cls in _ALL if issubclass(cls, Divergence) and cls._slug
}
_WITH_PARAMETER = {"alpha": "0.5", "tsallis": "1.5"}

EXAMPLES = tuple(
    f"{name}:{_WITH_PARAMETER[name]}" if name in _WITH_PARAMETER else name for name in CLASSES
)
"""Every name, those of families with an example of their parameter."""


def named(text: str) -> Divergence:
    """The divergence whose ``slug`` is ``text``, such as ``"reverse-kl"`` or ``"alpha:0.5"``.

    Args:
        text: a name, with its parameter after a colon where the family has one.

    Returns:
        The divergence.

    Raises:
        ValueError: there is none of that name, or its parameter is missing or no number.

    Example:
        >>> import kltarget as kt
        >>> kt.divergences.named("alpha:0.5")
        Alpha(alpha=0.5)
    """
    name, colon, parameter = text.partition(":")
    if name not in CLASSES:
        raise ValueError(f"{text!r} is none of {', '.join(CLASSES)}")
    make = CLASSES[name]
    if name not in _WITH_PARAMETER:
        if colon:
            raise ValueError(f"{name} has no parameter")
        return make()
    if not colon:
        raise ValueError(f"{name} needs its parameter, such as {name}:{_WITH_PARAMETER[name]}")
    with worded(f"{parameter!r} is not a number"):
        value = float(parameter)
    if not math.isfinite(value):
        raise ValueError(f"{parameter!r} is not a finite number")
    return make(value)
