"""Ratios of times that what else the machine does leaves alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = 5) -> float:
    """Median time of the first over that of the second, measured in turn once both are warm."""
    times: tuple[list[float], list[float]] = ([], [])
    for function in (ours, theirs):
        function()
    for _ in range(rounds):
        for kept, function in zip(times, (ours, theirs), strict=True):
            start = time.perf_counter()
            function()
            kept.append(time.perf_counter() - start)
    return float(np.median(times[0]) / np.median(times[1]))
