"""What a policy or a target does to the modes: masses, coverage, flips, and a summary in words."""

from kltarget.modes._flips import collapse_beta, flip_beta
from kltarget.modes._measures import (
    coverage,
    effective_modes,
    entropy,
    log_odds,
    mode_log_mass,
    pass_at_k,
    pass_at_k_from_counts,
)
from kltarget.modes._summary import Summary, SummaryRow, summarize
from kltarget.modes._weight_flips import flip_weight

__all__ = [
    "Summary",
    "SummaryRow",
    "collapse_beta",
    "coverage",
    "effective_modes",
    "entropy",
    "flip_beta",
    "flip_weight",
    "log_odds",
    "mode_log_mass",
    "pass_at_k",
    "pass_at_k_from_counts",
    "summarize",
]
