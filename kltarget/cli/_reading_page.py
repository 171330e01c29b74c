"""What pages say of a recipe that was read, wherever it came from."""

from __future__ import annotations

from typing import Any

from kltarget._core.page import Bullets, Item
from kltarget._core.words import compact
from kltarget.recipes import Reading


def labelled(reading: Reading) -> Bullets:
    """The parts of a reading, each behind its label."""
    return Bullets(
        [Item(f"{label:<14}", _unbroken(text)) for label, text in _entries(reading)], "labelled"
    )


def shown(value: Any) -> str:
    """A field of a recipe in a table; of an estimator that is a function its name."""
    if value is None:
        return "–"
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    return compact(value) if isinstance(value, float) else str(value)


def _unbroken(text: str) -> str:
    """Keeps “β = 0.1” on one line."""
    return text.replace("β = ", "β\u00a0=\u00a0").replace("σ = ", "σ\u00a0=\u00a0")


def _entries(reading: Reading) -> list[tuple[str, str]]:
    by_advantage = "A = " not in reading.objective
    entries = [
        ("objective", reading.objective),
        ("advantage", f"A = {reading.advantage}" if by_advantage else "—"),
        ("β", "—" if reading.beta is None else compact(reading.beta)),
        ("KL", f"{reading.kl}: {reading.why}"),
        ("level", reading.level),
        ("effective β", reading.effective_text),
        ("critical β", reading.critical_text),
        ("target", reading.target),
    ]
    return [(label, text) for label, text in entries if text != "—"]
