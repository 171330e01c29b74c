"""Targets over grids of settings, as one labelled ``xarray.Dataset``.

``sweep`` solves a problem at every combination of β, reward scale, divergence, MARA threshold,
entropy weight and temperature of the reference, and fine-tunes policies over the same grid if
asked. ``phase_boundaries`` says where in the plane of β and reward scale its modes trade places,
and where it collapses. ``save`` and ``load`` keep the results.
"""

from kltarget.sweeps._boundaries import phase_boundaries
from kltarget.sweeps._saved_sweeps import load, save
from kltarget.sweeps._sweep import sweep

__all__ = ["load", "phase_boundaries", "save", "sweep"]
