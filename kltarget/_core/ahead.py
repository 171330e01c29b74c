"""What is compiled while something else runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kltarget._core import processes


def compile_ahead(calls: Iterable[Callable[[], Any]]) -> Callable[[], None]:
    """Makes the calls one after the other in a thread of their own, for what they compile.

    Whoever makes them later finds their programs ready, or waits for them. What the calls return is
    lost, and so is what they raise. Processes that share devices have to run all in one order, so
    they compile when they get there.

    Returns:
        What stops after the call that is under way, as the end of the main thread does.
    """
    stopped, main = threading.Event(), threading.main_thread()

    def work() -> None:
        left = iter(calls)
        while not stopped.is_set() and main.is_alive():
            with contextlib.suppress(Exception):
                call = next(left, None)
                if call is None:
                    return
                call()

    if not processes.are_several():
        threading.Thread(target=work, name="compile ahead").start()
    return stopped.set


@contextlib.contextmanager
def compiled_ahead(calls: Iterable[Callable[[], Any]]) -> Iterator[None]:
    """Makes the calls ahead of the block, which stops them at its end."""
    stop = compile_ahead(calls)
    try:
        yield
    finally:
        stop()
