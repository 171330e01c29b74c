"""What a trainer's recipe asks for: implied targets, and the coefficients they amount to."""

from kltarget.implied._critical import critical_beta
from kltarget.implied._equivalent import equivalent_beta
from kltarget.implied._implied import (
    ImpliedTarget,
    effective_beta,
    implied_target,
    saturation_beta,
)
from kltarget.implied._path import unregularised_path

__all__ = [
    "ImpliedTarget",
    "critical_beta",
    "effective_beta",
    "equivalent_beta",
    "implied_target",
    "saturation_beta",
    "unregularised_path",
]
