"""Sweeps: every point is a target, files give back what they were given, boundaries are exact."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import matplotlib.figure
import mpmath as mp
import numpy as np
import pytest

import kltarget as kt
from kltarget import cli, plot, sweeps, tasks

REWARD = np.array([0.2, 0.9, 1.0, 0.7, -0.5, 0.9])
LOG_REF = np.log([0.3, 0.25, 0.02, 0.13, 0.29, 0.01])
MODES = np.array([3, 0, 1, 0, -1, 2])  # the first of them holds two unequal rewards
TASK = tasks.Task("six", "four modes", LOG_REF, REWARD, tuple("abcdef"), MODES)
BETA, SCALE = [0.05, 0.3, 2.0], [0.5, 3.0]
# One program per divergence serves the tests that use these.
SETTINGS = {
    "beta": BETA,
    "reward_scale": SCALE,
    "divergence": ["reverse-kl", kt.ForwardKL()],
    "threshold": [None, 0.7],
    "k": [1, 3],
    "log_probs": True,
    "chunk_rows": 5,
}


@pytest.fixture(scope="module")
def data():
    return kt.sweep(TASK, **SETTINGS)


def log_softmax(x):
    return x - np.logaddexp.reduce(x)


def kl(log_p, log_q):
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def anchored(threshold, scale=1.0):
    """Rewards and reference masses with those of the likeliest good outcome on all good ones."""
    good = threshold <= REWARD
    if not good.any():
        return scale * REWARD, np.exp(LOG_REF)
    z = np.where(good, LOG_REF, -np.inf).argmax()
    return scale * np.where(good, REWARD[z], REWARD), np.exp(np.where(good, LOG_REF[z], LOG_REF))


def target(name, reward, mass, beta):
    """A target by bisection in its multiplier."""
    inverse = {
        "reverse-kl": lambda s: np.exp(np.minimum(s, 700)),
        "forward-kl": lambda s: 1 / np.maximum(1 - s, 1e-300),
        "chi-squared": lambda s: np.maximum(1 + s / 2, 0),
    }[name]
    low, high = reward.min() - 1e4, reward.max() + 1e4
    for _ in range(200):
        middle = (low + high) / 2
        probs = mass * inverse((reward - middle) / beta)
        low, high = (middle, high) if probs.sum() > 1 else (low, middle)
    return probs / probs.sum()


@pytest.mark.broad
def test_every_point_is_a_target(data):
    dims = ("divergence", "threshold", "reward_scale", "beta", "outcome")
    assert data.log_probs.dims == dims
    assert data.divergence.values.tolist() == ["reverse-kl", "forward-kl"]
    assert data.mode_label.values.tolist() == ["b", "c", "f", "a"]
    assert all("long_name" in x.attrs for x in data.variables.values())
    assert all("units" in x.attrs for x in data.data_vars.values())
    for at in np.ndindex(*data.value.shape):
        point = data.isel(dict(zip(data.value.dims, at, strict=True)))
        name, scale, beta = str(point.divergence.values), float(point.reward_scale), point.beta
        reward, ref = anchored(float(point.threshold), scale)
        probs = target(name, reward, ref, float(beta))
        log_probs = np.log(probs)
        if name == "reverse-kl":
            # This is how MARA changes a reward beside a reference that stays.
            reward = reward + float(beta) * (np.log(ref) - LOG_REF)
            cost = kl(log_probs, LOG_REF)
        else:
            cost = (probs - ref - ref * np.log(probs / ref)).sum()
        mass = np.array([probs[m == MODES].sum() for m in range(4)])
        share = mass / mass.sum()
        expected = {
            "expected_reward": probs @ REWARD,
            "reverse_kl": kl(log_probs, LOG_REF),
            "forward_kl": kl(LOG_REF, log_probs),
            "entropy": -(probs @ log_probs),
            "effective_modes": np.exp(-(share @ np.log(share))),
            "mode_mass": mass,
            "pass_at_k": 1 - (1 - mass.sum()) ** np.array([1, 3]),
            "value": probs @ reward - float(beta) * cost,
            "status": 0,
            "log_probs": log_probs,
        }
        assert set(expected) == set(data.data_vars)
        for variable, wanted in expected.items():
            np.testing.assert_allclose(
                point[variable], wanted, rtol=1e-9, atol=1e-11, err_msg=f"{variable} at {at}"
            )
            assert variable == "status" or point[variable].dtype == np.float64


def test_entropy_and_temperature_by_hand():
    weights, temperatures = [0.0, 0.4], [1.0, 2.5]
    data = kt.sweep(
        kt.Objective(REWARD, LOG_REF, 1.0),
        beta=BETA,
        reward_scale=2.0,
        entropy_weight=weights,
        ref_temperature=temperatures,
        log_probs=True,
    )
    assert data.value.dims == ("entropy_weight", "ref_temperature", "beta")
    assert float(data.reward_scale) == 2.0
    # Of an objective every right outcome is a mode.
    assert data.mode_label.values.tolist() == ["0", "1", "2", "3", "5"]
    for eta in weights:
        for temperature in temperatures:
            for beta in BETA:
                tempered = log_softmax(LOG_REF / temperature)
                scores = (2.0 * REWARD + beta * tempered) / (beta + eta)
                target = log_softmax(scores)
                at = data.sel(entropy_weight=eta, ref_temperature=temperature, beta=beta)
                # A reference in float32 is what the objective holds with x64 off.
                np.testing.assert_allclose(at.log_probs, target, rtol=1e-5, atol=1e-5)
                value = (beta + eta) * np.logaddexp.reduce(scores)
                np.testing.assert_allclose(at.value, value, rtol=1e-5, atol=1e-6)
                policy = at.log_probs.values
                own = 2.0 * np.exp(policy) @ REWARD - eta * np.exp(policy) @ policy
                own -= beta * kl(policy, tempered)
                np.testing.assert_allclose(at.value, own, rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(
                    at.reverse_kl, kl(policy, tempered), rtol=1e-4, atol=1e-6
                )


def test_one_point_to_many_digits():
    settings = SETTINGS | {"beta": 0.3, "reward_scale": 2.0, "divergence": "forward-kl"}
    point = kt.sweep(TASK, **settings | {"threshold": np.inf})
    assert dict(point.sizes) == {"mode": 4, "k": 2, "outcome": 6}
    with mp.workdps(40):
        beta = mp.mpf(0.3)
        rows = [(mp.exp(mp.mpf(q)), 2 * mp.mpf(r)) for q, r in zip(LOG_REF, REWARD, strict=True)]

        def excess(level):
            return mp.fsum(beta * q / (level - r) for q, r in rows) - 1

        level = mp.findroot(excess, (mp.mpf("2.0001"), mp.mpf("2.4")), solver="anderson")
        exact = [float(mp.log(beta * q / (level - r))) for q, r in rows]
    np.testing.assert_allclose(point.log_probs, exact, rtol=1e-13)


@pytest.mark.quick_only("reverse-kl-inf-kinds0")
@pytest.mark.parametrize(
    ("divergence", "threshold", "kinds"),
    [
        ("reverse-kl", np.inf, {"flip"}),
        ("chi-squared", np.inf, {"flip", "collapse"}),
        ("forward-kl", 0.7, {"flip"}),
    ],
)
def test_boundaries_are_where_the_order_of_modes_changes(divergence, threshold, kinds):
    found = kt.phase_boundaries(TASK, divergence=divergence, threshold=threshold)
    assert set(found.kind.values) == kinds
    assert (np.diff(found.ratio) <= 0).all()
    reward, ref = anchored(threshold, 4.0)
    names = ["b", "c", "f", "a"]

    def lead(i, j, ratio):
        probs = target(divergence, reward, ref, 4.0 * ratio)
        mass_i, mass_j = (probs[k == MODES].sum() for k in (i, j))
        return 0 if np.isclose(mass_i, mass_j, rtol=1e-9) else np.sign(mass_i - mass_j)

    columns = (found[x].values.tolist() for x in ("kind", "first", "second", "ratio"))
    boundaries = list(zip(*columns, strict=True))
    flips = {(x[1], x[2]): x[3] for x in boundaries if x[0] == "flip"}
    grid = np.geomspace(1e-3, 1e2, 101)
    for i, j in itertools.combinations(range(4), 2):
        order = np.array([lead(i, j, ratio) for ratio in grid])
        changes = np.count_nonzero(order[1:] * order[:-1] < 0)
        assert changes == ((names[i], names[j]) in flips) + ((names[j], names[i]) in flips)
    for (first, second), ratio in flips.items():
        i, j = names.index(first), names.index(second)
        assert lead(i, j, ratio * (1 - 1e-6)) > 0 > lead(i, j, ratio * (1 + 1e-6))
    for kind, first, second, ratio in boundaries:
        if kind == "collapse":
            assert (first, second) == ("c", "")
            below, above = (
                target(divergence, reward, ref, 4.0 * ratio * (1 + side)) for side in (-1e-6, 1e-6)
            )
            assert np.count_nonzero(below) == 1 < np.count_nonzero(above)


@pytest.mark.broad
def test_boundaries_of_the_didactic_problem():
    found = kt.phase_boundaries("bimodal")
    np.testing.assert_allclose(found.ratio, [0.25 / 1.9], rtol=1e-12)
    assert (found["first"].values, found["second"].values) == (["75"], ["25"])
    assert kt.phase_boundaries("bimodal", threshold=0.75).sizes["boundary"] == 0
    # Half the logarithm of the reference's ratio is left at temperature 2.
    found = kt.phase_boundaries("bimodal", ref_temperature=2.0)
    np.testing.assert_allclose(found.ratio, [0.5 / 1.9], rtol=1e-12)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_files_give_back_what_they_were_given(data, tmp_path, suffix):
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    path = tmp_path / f"six{suffix}"
    for _ in range(2):  # the second replaces the first
        sweeps.save(data, path)
    assert sweeps.load(path).identical(data)
    assert [x.name for x in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match=r"must end in \.nc or \.zarr"):
        sweeps.save(data, tmp_path / "six.csv")


def test_a_sweep_goes_on_where_it_stopped(data, tmp_path):
    kt.sweep(TASK, folder=tmp_path, **SETTINGS)
    (tmp_path / "part-000003.npz").unlink()
    (tmp_path / ".part-000003.npz.x.unfinished").write_bytes(b"half a part")
    with pytest.raises(ValueError, match="1 of 6 parts are missing"):
        sweeps.load(tmp_path)
    kept = {x: x.stat().st_mtime_ns for x in tmp_path.glob("part-*.npz")}
    again = kt.sweep(TASK, folder=tmp_path, **SETTINGS)
    assert len(kept) == 5
    assert {x: x.stat().st_mtime_ns for x in kept} == kept
    assert again.identical(data)
    assert sweeps.load(tmp_path).identical(data)
    assert {x.suffix for x in tmp_path.iterdir()} == {".json", ".npz"}


def test_parts_of_other_settings_are_refused(tmp_path):
    kt.sweep(TASK, folder=tmp_path, **SETTINGS)
    other = tasks.Task("six", "other rewards", LOG_REF, REWARD - 0.1, tuple("abcdef"), MODES)
    for problem, changed, message in (
        (TASK, {"beta": [1.0]}, r"with beta = \[0.05, 0.3, 2.0\], and this one has \[1.0\]"),
        (TASK, {"divergence": "forward-kl"}, r'divergence = \["reverse-kl", "forward-kl"\]'),
        (TASK, {"chunk_rows": 6}, "chunk_rows = 5, and this one has 6"),
        (other, {}, "problem's numbers and modes"),
    ):
        with pytest.raises(ValueError, match=message):
            kt.sweep(problem, folder=tmp_path, **SETTINGS | changed)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has parts but no manifest\.json"):
        kt.sweep(TASK, folder=tmp_path, **SETTINGS)


MANY_PARTS = {"beta": np.geomspace(1e-3, 10, 500), "reward_scale": [0.5, 2.0], "chunk_rows": 4}
_SWEEP = """
import sys, kltarget as kt, numpy as np
kt.sweep("bimodal", beta=np.geomspace(1e-3, 10, 500), reward_scale=[0.5, 2.0], chunk_rows=4,
         folder=sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_sweep_loses_nothing(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "parts"
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    written = {}
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", _SWEEP, str(folder)], env=environment)
        # After so many new parts, in the midst of what follows: no clock has a say.
        enough = len(written) + rng.integers(1, 12)
        while process.poll() is None and len(list(folder.glob("part-*"))) < enough:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        now = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
        assert {name: now[name] for name in written} == written  # nothing is written twice
        written = now
    assert 4 <= len(written) < 250
    resumed = kt.sweep("bimodal", folder=folder, **MANY_PARTS)
    whole = kt.sweep("bimodal", **MANY_PARTS)
    for name in whole.data_vars:
        assert resumed[name].values.tobytes() == whole[name].values.tobytes(), name
    assert {path.suffix for path in folder.iterdir()} == {".json", ".npz"}


def test_wrong_settings_are_named():
    for settings, error, message in (
        ({"beta": 0.0}, ValueError, "beta must be above 0 and finite, got 0"),
        ({"beta": [[1.0]]}, ValueError, r"beta has shape \(1, 1\)"),
        ({"beta": "many"}, TypeError, "beta must be a number or a sequence"),
        ({"reward_scale": [1.0, -1.0]}, ValueError, "reward_scale must be above 0"),
        ({"entropy_weight": -0.1}, ValueError, "entropy_weight must be 0 or more"),
        ({"entropy_weight": 0.1, "divergence": "forward-kl"}, ValueError, "entropy_weight needs"),
        ({"threshold": [0.5, 2.0]}, ValueError, "threshold 2 is above the reward of every"),
        ({"divergence": "kl"}, ValueError, "divergence: 'kl' is none of"),
        ({"divergence": kt.Alpha([0.5, 2.0])}, ValueError, "divergence has several parameters"),
        ({"divergence": ["reverse-kl", kt.ReverseKL()]}, ValueError, "names one twice"),
        ({"k": [0]}, ValueError, "k must be whole numbers above 0"),
        ({"chunk_rows": 0}, ValueError, "chunk_rows must be 1 or more"),
        ({"modes": [0, 1]}, ValueError, "modes has shape"),
        ({"bata": 1.0}, TypeError, "bata: not an option of sweep"),
        ({"fine_tune": True, "num_steps": 5}, TypeError, "learning_rate is needed"),
    ):
        with pytest.raises(error, match=message):
            kt.sweep(TASK, **{"beta": 1.0, **settings})
    with pytest.raises(TypeError, match=r"problem must be a kltarget\.tasks\.Task"):
        kt.sweep(3, beta=1.0)
    batch = kt.Objective(np.stack([REWARD, REWARD]), LOG_REF, 1.0)
    with pytest.raises(ValueError, match="problem has batch shape"):
        kt.sweep(batch, beta=1.0)
    augmented = kt.mara(kt.Objective(REWARD, LOG_REF, 1.0), 0.9, method="substitute")
    with pytest.raises(ValueError, match="before and threshold="):
        kt.sweep(augmented, beta=1.0)
    with pytest.raises(ValueError, match="must be single numbers"):
        kt.phase_boundaries(TASK, threshold=[0.5, 0.9])


@pytest.mark.slow
def test_trained_policies_are_those_of_fine_tune():
    keys = jax.random.split(jax.random.key(0), 2)
    options = {"learning_rate": 0.1, "num_steps": 15, "batch_size": 8, "key": keys}
    data = kt.sweep("one-two", beta=BETA, reward_scale=SCALE, fine_tune=True, **options)
    assert data.total_variation.dims == ("reward_scale", "beta", "seed")
    task = tasks.load("one-two")
    policy = kt.TabularPolicy(3, 1)
    space = kt.SequenceSpace(task.num_outcomes, 1)
    params = policy.from_conditionals(space.conditionals(jnp.asarray(task.log_ref)))
    run = kt.fine_tune(
        policy,
        params,
        jnp.asarray(task.reward),
        kt.Recipe("reward", "k1"),
        beta=np.tile(BETA, 2)[:, None],
        reward_scale=np.repeat(SCALE, 3)[:, None],
        history_every=None,
        **options,
    )
    policies = np.exp(np.asarray(run.log_probs, np.float64)).reshape(2, 3, 2, 3)
    for s, scale in enumerate(SCALE):
        for b, beta in enumerate(BETA):
            target = np.exp(log_softmax(task.log_ref + scale * task.reward / beta))
            apart = np.abs(policies[s, b] - target).sum(-1) / 2
            np.testing.assert_allclose(data.total_variation[s, b], apart, rtol=1e-4)
            reward = policies[s, b] @ task.reward
            np.testing.assert_allclose(data.tuned_expected_reward[s, b], reward, rtol=1e-4)
    assert np.ptp(data.total_variation.values, axis=-1).min() > 0  # seeds differ


@pytest.mark.slow
def test_training_reaches_the_targets_of_every_setting():
    # Entropy, temperature and MARA change what is trained with, in ways that training knows.
    data = kt.sweep(
        "one-two",
        beta=[0.5, 1.0],
        threshold=[None, 1.0],
        entropy_weight=[0.0, 0.3],
        ref_temperature=[1.0, 2.0],
        fine_tune=True,
        learning_rate=0.05,
        num_steps=800,
    )
    assert float(data.total_variation.max()) < 1e-3
    assert float(data.reverse_kl_to_target.max()) < 1e-4
    assert float(data.forward_kl_to_target.max()) < 1e-4
    np.testing.assert_allclose(data.tuned_effective_modes, data.effective_modes, rtol=1e-2)
    assert np.ptp(data.effective_modes.values) > 0.5
    with pytest.raises(ValueError, match="threshold needs the reverse KL"):
        kt.sweep(
            "one-two",
            beta=1.0,
            divergence="forward-kl",
            threshold=1.0,
            fine_tune=True,
            learning_rate=0.1,
            num_steps=5,
        )


def command(capsys, *arguments):
    code = cli.main(["sweep", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err.splitlines()[-1:]


def test_the_command_writes_what_sweep_returns(capsys, tmp_path, monkeypatch):
    drawn = []

    def phase(data, *, boundaries):
        drawn.append((data, boundaries))
        return matplotlib.figure.Figure().subplots()

    monkeypatch.setattr(plot, "phase", phase, raising=False)
    out, picture = tmp_path / "sweep.nc", tmp_path / "phase.png"
    grid = ["one-two", "--beta", "1e-2:10:5", "--reward-scale", "0.1:10:4"]
    code, printed, _ = command(capsys, *grid, "--k", "2", "--out", out, "--plot", picture)
    assert code == 0
    assert printed.splitlines()[0].startswith("one-two: 4 reward scale × 5 beta: 20 targets in")
    assert "reverse-kl: no modes trade places, none collapses exactly" in printed
    assert printed.splitlines()[-1] == f"wrote {picture}"
    assert picture.stat().st_size > 0
    data = sweeps.load(out)
    again = kt.sweep(
        "one-two", beta=np.geomspace(0.01, 10, 5), reward_scale=np.geomspace(0.1, 10, 4), k=[2]
    )
    assert data.sizes == again.sizes
    for name in again.data_vars:
        np.testing.assert_allclose(data[name], again[name], rtol=1e-9, atol=1e-12)
    assert drawn[0][0].sizes == data.sizes
    assert drawn[0][1].sizes["boundary"] == 0
    assert json.loads(data.attrs["settings"])["k"] == [2]


def test_the_command_names_what_is_wrong(capsys, tmp_path):
    out = tmp_path / "sweep.nc"
    for arguments, message in (
        (["--beta", "0.1", "--out", tmp_path / "x.csv"], "must end in .nc or .zarr"),
        (["--beta", "0.1,1", "--out", out, "--plot", tmp_path / "x.png"], "--plot draws a plane"),
        (["--beta", "0.1", "--divergence", "reverse-kl,kl", "--out", out], "'kl' is none of"),
        (["--beta", "0.1", "--threshold", "7", "--out", out], "threshold 7 is above"),
        (["--beta", "0", "--out", out], "'0' is not a finite number above 0"),
    ):
        code, _, error = command(capsys, "one-two", *arguments)
        assert code == 2
        assert message in error[0]
    assert os.listdir(tmp_path) == []
