"""Which prompts rose and which fell."""

from __future__ import annotations

import numpy as np
from scipy.stats import false_discovery_control, fisher_exact, hypergeom

from kltarget.comparisons._sides import Side


def moved(before: Side, after: Side, rate: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Of each prompt the p-value of no change, and 1 where it rose, -1 where it fell, or 0.

    p-values are those of Fisher's exact test; of the prompts that are said to have moved a share of
    ``rate`` is expected not to have, by the procedure of Benjamini and Hochberg. That share may be
    all among the falls, where these are few: how many fell if falls alone are tested, one-sided and
    at the same rate, comes third.

    References:
        Benjamini, Hochberg, "Controlling the False Discovery Rate", Journal of the Royal
        Statistical Society B 57, 1995.
    """
    counts = np.stack([before.correct, before.samples, after.correct, after.samples])
    different, index = np.unique(counts, axis=1, return_inverse=True)
    a, m, b, n = different
    tables = np.stack([a, m - a, b, n - b], axis=-1).reshape(-1, 2, 2)
    both = np.array([fisher_exact(x).pvalue for x in tables])  # pyright: ignore
    # All tables at once, which SciPy's test of both sides does not take.
    fall = hypergeom.sf(a - 1, m + n, a + b, m)
    p_values, falls = (np.minimum(x, 1.0)[index.ravel()] for x in (both, fall))
    up = after.correct / after.samples - before.correct / before.samples
    sure = false_discovery_control(p_values) <= rate
    fell_alone = int((false_discovery_control(falls) <= rate).sum())
    return p_values, np.where(sure, np.sign(up), 0).astype(int), fell_alone
