"""The command ``kltarget``; a file per sub-command."""

from kltarget.cli._main import main

__all__ = ["main"]
