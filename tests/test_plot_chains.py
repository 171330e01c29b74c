"""The figure of chains shows what was computed."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from kltarget import plot, tasks


@pytest.mark.broad
def test_what_is_generated_is_drawn():
    task = tasks.load_chain("denoise")
    ax = plot.chain_ends(task, 0.2)
    reference, tilted, fixed = (line.get_ydata() for line in ax.get_lines()[:3])
    base = np.exp(np.asarray(task.chain.log_marginals()[-1], float))
    gibbs = base * np.exp(task.reward / 0.2)
    np.testing.assert_allclose(reference, base, rtol=1e-5)
    np.testing.assert_allclose(tilted, gibbs / gibbs.sum(), rtol=1e-4)
    assert 0.5 < np.abs(fixed - tilted).sum() < 0.7
    plt.close(ax.figure)


def test_a_chain_without_points_is_refused():
    with pytest.raises(ValueError, match="has no states on a line"):
        plot.chain_ends("drift", 0.2)
