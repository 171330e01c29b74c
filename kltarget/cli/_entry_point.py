"""The program ``kltarget``, which ends in one line whenever Ctrl-C comes.

Until everything is imported there is nothing to keep, and an import that is interrupted may say
anything; from then on Ctrl-C is an exception, as usual.
"""

from __future__ import annotations

import signal
import sys

from kltarget.cli._interrupts import LINE, interrupt, leave, swallowed


def command() -> int:
    """The program ``kltarget``: :func:`kltarget.cli.main` in a process of its own."""
    # A shell that runs the command in the background has it ignore Ctrl-C.
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not listens:
        return _run()
    signal.signal(signal.SIGINT, leave)
    sys.unraisablehook = swallowed
    try:
        return _run()
    except KeyboardInterrupt:
        print(LINE, file=sys.stderr)
        return 130
    finally:
        # What is left is to go, which nobody needs to hurry.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run() -> int:
    from kltarget.cli._compiled_programs import keep_compiled_programs
    from kltarget.cli._main import main

    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, interrupt)
    # Before anything is compiled, thus before the arguments are read.
    if "--no-cache" not in sys.argv[1:]:
        keep_compiled_programs()
    return main()
