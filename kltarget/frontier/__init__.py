"""What a budget buys: coefficients that meet one, best-of-n, curves of reward against KL, gains."""

from kltarget.frontier._best_of_n import BestOfN, best_of_n
from kltarget.frontier._beta_for import beta_for
from kltarget.frontier._curve import curve
from kltarget.frontier._per_token import PerToken, per_token
from kltarget.frontier._proxies import beta_for_root, proxy_bound
from kltarget.frontier._success_gain import SuccessGain, success_gain

__all__ = [
    "BestOfN",
    "PerToken",
    "SuccessGain",
    "best_of_n",
    "beta_for",
    "beta_for_root",
    "curve",
    "per_token",
    "proxy_bound",
    "success_gain",
]
