"""Figures of densities, their atoms, and of learning against forgetting."""

import jax
import numpy as np
import pytest

import kltarget as kt
from kltarget import mixtures, plot, studies
from kltarget.studies import forgetting_path

FIRST = np.float32([[-2.0], [2.0]])


def on_line():
    log_weights = np.log(np.float32([0.7, 0.3]))
    return kt.GaussianMixture(
        log_weights, FIRST, np.float32([0.64, 0.36]), covariance_type="spherical"
    )


def peak(size=1):
    center, curvature = np.ones(size, np.float32), 2 * np.eye(size, dtype=np.float32)
    return kt.mixtures.QuadraticReward.peak(center, curvature)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_lines_are_densities_and_the_reward_is_scaled():
    p = on_line()
    target = kt.mixtures.tilt(p, peak(), 0.5)
    ax = plot.density({"reverse KL": target}, p, reward=peak(), name="base model")
    assert legend(ax) == ["base model", "reverse KL", "reward (scaled)"]
    (line,) = [x for x in ax.lines if x.get_label() == "reverse KL"]
    x, y = line.get_data()
    np.testing.assert_allclose(y, np.exp(target.log_prob(x[:, None].astype(np.float32))), rtol=1e-6)
    assert np.isclose(np.trapezoid(y, x), 1, atol=2e-3)
    (dashed,) = [x for x in ax.lines if x.get_label().startswith("reward")]
    assert x[np.argmax(dashed.get_ydata())] == pytest.approx(1.0, abs=0.02)


def test_atoms_are_arrows_with_their_mass():
    target = kt.mixtures.power_tilt(on_line(), peak(), 0.05, kt.Alpha(-3.0))
    ax = plot.density(target, on_line())
    tips = [text.xy for text in ax.texts if text.arrow_patch is not None]
    assert tips[0][0] == pytest.approx(1.0)
    assert [text.get_text() for text in ax.texts if text.get_text()] == [
        f"atom {float(target.atom_mass):.2g}"
    ]


def test_a_plane_has_contours_and_a_disc():
    means = np.float32([[0.5, -1.0], [-1.0, 1.5]])
    log_weights = np.log(np.float32([0.6, 0.4]))
    p = kt.GaussianMixture(log_weights, means, np.float32([0.7, 0.5]), covariance_type="spherical")
    ax = plot.density(kt.mixtures.power_tilt(p, peak(2), 0.2, kt.NeymanChiSquared()), p)
    assert legend(ax) == ["reference", "target", "atom"]
    assert ax.get_aspect() == 1.0
    with pytest.raises(ValueError, match="one target, got 2"):
        plot.density({"a": p, "b": p}, p)


def test_what_cannot_be_drawn_is_named():
    p = on_line()
    space = kt.GaussianMixture([0.0], [[0.0] * 3], [1.0], covariance_type="spherical")
    with pytest.raises(ValueError, match="a line or a plane"):
        plot.density(space, space)
    with pytest.raises(ValueError, match=r"needs shape \(1, 2\)"):
        plot.density(p, p, bounds=[0.0, 1.0])
    lost = jax.tree.map(lambda x: x * np.nan, p)
    with pytest.raises(ValueError, match="NaN"):
        plot.density(lost, p)
    with pytest.raises(ValueError, match="at least one"):
        plot.forgetting({})


@pytest.mark.broad
def test_forgetting_is_drawn_against_learning():
    task = studies.forgetting()
    rates = np.array([0.15, 0.01])
    paths = {
        "one": forgetting_path(task, "sft", learning_rate=0.15, num_steps=20),
        "two": forgetting_path(task, "rl", learning_rate=rates, num_steps=20),
    }
    ax = plot.forgetting(paths)
    assert legend(ax) == ["one", "two"]
    assert len(ax.lines) == 3
    np.testing.assert_allclose(ax.lines[0].get_xdata(), paths["one"].gain)
    np.testing.assert_allclose(ax.lines[2].get_ydata(), paths["two"].loss[1])


@pytest.mark.broad
def test_a_target_on_a_grid_can_be_drawn():
    p = on_line()
    target = mixtures.solve_on_grid(p, peak(), 0.5, error_tol=1e-3)
    assert legend(plot.density(target, p)) == ["reference", "target"]
