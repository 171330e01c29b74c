"""``python -m kltarget`` is the command ``kltarget``."""

import sys

from kltarget.cli import command

sys.exit(command())
