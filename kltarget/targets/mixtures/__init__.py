"""Targets of Gaussian mixtures in closed form: tilts for reverse KL, power tilts for forward KL."""

from kltarget.targets.mixtures._power_tilt import PowerTarget, power_tilt
from kltarget.targets.mixtures._tilt import MixtureTarget, existence_beta, tilt

__all__ = ["MixtureTarget", "PowerTarget", "existence_beta", "power_tilt", "tilt"]
