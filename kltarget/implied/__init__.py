"""What training asks for: the implied targets of recipes and of pairs, and coefficients."""

from kltarget.implied._equivalent import equivalent_beta
from kltarget.implied._gain_limit import gain_limit
from kltarget.implied._implied_target import (
    ImpliedTarget,
    effective_beta,
    implied_target,
    saturation_beta,
)
from kltarget.implied._preference_target import PreferenceTarget, preference_target
from kltarget.implied._preference_targets import preference_targets
from kltarget.implied._token_preference_target import (
    TokenPreferenceTarget,
    token_preference_target,
)
from kltarget.implied._unregularized_path import unregularized_path

__all__ = [
    "ImpliedTarget",
    "PreferenceTarget",
    "TokenPreferenceTarget",
    "effective_beta",
    "equivalent_beta",
    "gain_limit",
    "implied_target",
    "preference_target",
    "preference_targets",
    "saturation_beta",
    "token_preference_target",
    "unregularized_path",
]
