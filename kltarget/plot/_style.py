"""What all figures share."""

import pathlib

STYLE = pathlib.Path(__file__).with_name("kltarget.mplstyle")
REFERENCE_COLOR = "#9a9a9a"
