"""What a trainer's recipe asks for: implied targets, and the coefficients they amount to."""

from kltarget.implied._implied import (
    ImpliedTarget,
    effective_beta,
    implied_target,
    saturation_beta,
)

__all__ = ["ImpliedTarget", "effective_beta", "implied_target", "saturation_beta"]
