"""What a trainer's recipe asks for: implied targets, and the coefficients they amount to."""

from kltarget.implied._equivalent import equivalent_beta
from kltarget.implied._implied_target import (
    ImpliedTarget,
    effective_beta,
    implied_target,
    saturation_beta,
)
from kltarget.implied._unregularized_path import unregularized_path

__all__ = [
    "ImpliedTarget",
    "effective_beta",
    "equivalent_beta",
    "implied_target",
    "saturation_beta",
    "unregularized_path",
]
