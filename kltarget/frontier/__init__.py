"""What a budget buys: coefficients that meet one, best-of-n, and curves of reward against KL."""

from kltarget.frontier._best_of_n import BestOfN, best_of_n
from kltarget.frontier._beta_for import beta_for
from kltarget.frontier._curve import curve
from kltarget.frontier._proxies import beta_for_root, proxy_bound

__all__ = ["BestOfN", "best_of_n", "beta_for", "beta_for_root", "curve", "proxy_bound"]
