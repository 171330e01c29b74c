"""``verify``: targets computed in closed form beside what gradient-based training reaches.

This is the one place where the two sides of the package meet. Training knows no closed form, and
the targets know no training; what both say about the same problem is compared here.
"""

from kltarget.verification._by_name import verifier_of
from kltarget.verification._exact_targets import TARGETS
from kltarget.verification._of_chains import verify_chain
from kltarget.verification._of_games import verify_game
from kltarget.verification._of_mdps import verify_mdp
from kltarget.verification._of_texts import verify_texts
from kltarget.verification._report import Check, Report, VerifiedRun
from kltarget.verification._space_report import SpaceReport
from kltarget.verification._verify import ALL_RECIPES, RECIPES, Interrupted, verify

__all__ = [
    "ALL_RECIPES",
    "RECIPES",
    "TARGETS",
    "Check",
    "Interrupted",
    "Report",
    "SpaceReport",
    "VerifiedRun",
    "verifier_of",
    "verify",
    "verify_chain",
    "verify_game",
    "verify_mdp",
    "verify_texts",
]
