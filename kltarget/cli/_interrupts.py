"""What Ctrl-C does in a process of the command."""

from __future__ import annotations

import _thread
import os
import sys
import threading
from typing import Any

LINE = "kltarget: interrupted"
_AGAIN = 0.05

_pressed = False


def pressed() -> bool:
    """Whether Ctrl-C was pressed, whatever an exception of now says."""
    return _pressed


def leave(*unused: Any) -> None:
    """Ends the process at once."""
    os.write(2, f"{LINE}\n".encode())
    os._exit(130)


def interrupt(*unused: Any) -> None:
    """Raises, as Python does by itself, and remembers that it did."""
    global _pressed
    _pressed = True
    raise KeyboardInterrupt


def swallowed(what: Any) -> None:
    """Where nothing can be raised, as while an object is thrown away, Ctrl-C comes again."""
    if issubclass(what.exc_type, KeyboardInterrupt):
        again = threading.Timer(_AGAIN, _thread.interrupt_main)
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(what)
