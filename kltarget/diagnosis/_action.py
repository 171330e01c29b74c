"""One thing to do about a run."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Action:
    """What to change, or to log.

    Attributes:
        text: what to do, without a full stop.
        key: the trainer's own key, an option of the command line, a class or a function; a field of
            the recipe where no trainer is named. Empty where there is nothing to set.
        value: what to set it to; None where the text says more than a value can.
        why: what it does, without a full stop.

    Example:
        >>> from kltarget.diagnosis import Action
        >>> print(Action("set scale_rewards: none", "scale_rewards", "none", "σ shrinks β"))
        Set scale_rewards: none. Why: σ shrinks β.
    """

    text: str
    key: str = ""
    value: float | str | None = None
    why: str = ""

    def __str__(self) -> str:
        return f"{self.text[0].upper()}{self.text[1:]}. Why: {self.why}."
