"""Verification: its targets, what it says of runs that do and do not arrive, and the command.

Targets are recomputed here with NumPy, by recursion and bisection.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from oracles import DTYPES

import kltarget as kt
from kltarget import cli, plot, targets, verification
from kltarget.policies import TabularPolicy
from kltarget.recipes import Recipe
from kltarget.training import RunStatus, fine_tune
from kltarget.verification import ALL_RECIPES, RECIPES, TARGETS, verify

DTYPE = DTYPES[0]
KEY = jax.random.key(0)


def tree(vocab_size, seed, length=3):
    """A random reference and reward over all sequences."""
    space = kt.SequenceSpace(vocab_size, length)
    policy = TabularPolicy(vocab_size, length)
    params = policy.init(key=jax.random.key(seed))
    log_ref = np.asarray(space.joint(policy.conditionals(params, space)), np.float64)
    reward = np.random.default_rng(seed).uniform(size=space.num_sequences)
    return {"space": space, "reward": reward, "log_ref": log_ref - np.logaddexp.reduce(log_ref)}


def tilted(ref, reward, beta):
    weights = ref * np.exp((reward - reward.max(-1, keepdims=True)) / beta)
    return weights / weights.sum(-1, keepdims=True)


def hyperbolic(ref, reward, beta):
    low, high = reward.max(-1, keepdims=True), reward.max(-1, keepdims=True) + beta
    for _ in range(200):
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):
            above = (beta * ref / (middle - reward)).sum(-1, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    policy = beta * ref / (high - reward)
    return policy / policy.sum(-1, keepdims=True)


def local(solve, ref, reward, beta, size):
    """The backward recursion with mean values."""
    mass, values, probs = ref, reward, np.ones_like(ref)
    while mass.size > 1:
        above = mass.reshape(-1, size).sum(-1)
        given = mass.reshape(-1, size) / above[:, None]
        chosen = solve(given, values.reshape(-1, size), beta)
        values = (chosen * values.reshape(-1, size)).sum(-1)
        probs = probs * np.repeat(chosen.ravel(), probs.size // chosen.size)
        mass = above
    return probs


def verify_tree(problem, **options):
    return verify((problem["reward"], problem["log_ref"]), space=problem["space"], **options)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.05, 2.0])
def test_the_four_targets(beta):
    problem = tree(3, 4)
    ref, reward = np.exp(problem["log_ref"]), problem["reward"]
    kinds = {"reverse": kt.ReverseKL(), "forward": kt.ForwardKL()}
    for scale in (1.0, 2.0):
        arguments = (ref, scale * reward, beta)
        with oracles.double_precision():
            given = jnp.asarray(scale * reward), jnp.asarray(problem["log_ref"]), beta
            found = {}
            for kind, divergence in kinds.items():
                found[f"sequence_{kind}"] = kt.solve(kt.Objective(*given, divergence)).log_probs
                token = kt.token_local_target(problem["space"], *given, divergence)
                found[f"token_{kind}"] = token.log_probs
        expected = {
            "sequence_reverse": tilted(*arguments),
            "sequence_forward": hyperbolic(*arguments),
            "token_reverse": local(tilted, *arguments, 3),
            "token_forward": local(hyperbolic, *arguments, 3),
        }
        for name, probs in expected.items():
            np.testing.assert_allclose(np.exp(np.asarray(found[name])), probs, rtol=1e-9)


BETAS = [0.05, 0.5, 1.0]


@pytest.fixture(scope="module")
def report():
    return verify_tree(
        tree(3, 1),
        key=KEY,
        policies=["tabular"],
        beta=BETAS,
        reward_scale=[1.0],
        num_steps=1000,
    )


@pytest.fixture(scope="module")
def short_report():
    options = {"policies": ["tabular"], "beta": [0.5], "reward_scale": [1.0], "num_seeds": 1}
    return verify_tree(tree(3, 1), key=KEY, recipes=RECIPES[:1], **options, num_steps=6)


@pytest.mark.slow
def test_tabular_policies_reach_their_targets(report):
    assert report.passed, str(report)
    assert len(report.runs) == 4 * 3 * 2
    assert {run.target for run in report.runs} == set(TARGETS)
    for run in report.runs:
        assert run.distance < 1e-4
        assert (run.nearest, run.remains) == (run.target, "nothing")
        assert run.start_tv > 0.02, "a start at the target would say nothing"
        assert min(x for name, x in run.target_tv.items() if name != run.target) > 1e-3
        np.testing.assert_allclose(run.mode_mass, run.target_mode_mass, atol=2e-4)


@pytest.mark.slow
def test_numbers_are_those_of_the_run():
    problem = tree(3, 1)
    ref, reward = np.exp(problem["log_ref"]), problem["reward"]
    options = {"policies": ["tabular"], "beta": [0.5], "reward_scale": [2.0], "num_seeds": 1}
    (run,) = verify_tree(problem, key=KEY, recipes=RECIPES[:1], **options, num_steps=6).runs
    # The same training, seen by NumPy.

    def annealed(rate):
        return optax.adam(optax.cosine_decay_schedule(rate, 6), b2=0.95, eps=1e-15)

    policy = TabularPolicy(3, 3)
    params = policy.from_conditionals(
        problem["space"].conditionals(jnp.asarray(problem["log_ref"]))
    )
    trained = fine_tune(
        policy,
        params,
        jnp.asarray(reward),
        RECIPES[0],
        beta=0.5,
        reward_scale=2.0,
        learning_rate=0.3,
        num_steps=6,
        optimizer=annealed,
        history_every=1,
        log_ref=jnp.asarray(problem["log_ref"]),
    )
    p = np.exp(np.asarray(trained.log_probs, np.float64))
    p = p / p.sum()
    target = tilted(ref, 2 * reward, 0.5)
    best = 0.5 * np.log(ref @ np.exp(2 * reward / 0.5))
    tol = {"rtol": 2e-4}
    np.testing.assert_allclose(run.distance, np.abs(p - target).sum() / 2, **tol)
    np.testing.assert_allclose(run.reverse_kl["sequence_reverse"], p @ np.log(p / target), **tol)
    np.testing.assert_allclose(
        run.forward_kl["sequence_reverse"], target @ np.log(target / p), **tol
    )
    np.testing.assert_allclose(run.value, best, rtol=1e-9)
    np.testing.assert_allclose(run.gap, best - (2 * p @ reward - 0.5 * p @ np.log(p / ref)), **tol)
    np.testing.assert_allclose(run.expected_reward, p @ reward, **tol)
    np.testing.assert_allclose(run.target_expected_reward, target @ reward, rtol=1e-9)
    np.testing.assert_allclose(run.start_tv, np.abs(ref - target).sum() / 2, rtol=1e-9)
    assert run.bound >= run.gap > 0
    assert run.bound_holds
    assert run.identity_error < 1e-12


@pytest.mark.slow
def test_unfinished_training_is_called_so():
    options = {"policies": ["tabular"], "beta": [0.5], "reward_scale": [1.0], "num_seeds": 1}
    report = verify_tree(tree(3, 1), key=KEY, **options, num_steps=6, recipes=RECIPES[::2])
    assert not report.passed
    assert "NOT confirmed" in str(report)
    for run in report.runs:
        assert run.remains == "optimisation"
        # A logit per prefix and token can follow whatever pulls at it.
        np.testing.assert_allclose(run.followable, 1, atol=2e-3)


@dataclasses.dataclass(frozen=True)
class Independent:
    """Tokens that do not know of each other: most distributions are not of this kind."""

    vocab_size: int
    length: int

    def init(self, *, key):
        return jnp.zeros((self.length, self.vocab_size))

    def log_probs(self, params, tokens):
        return jax.nn.log_softmax(params)[jnp.arange(self.length), tokens]

    def sample(self, params, *, key, num_samples):
        shape = (num_samples, self.length)
        return jax.random.categorical(key, params, shape=shape).astype(jnp.int32)

    def conditionals(self, params, space):
        table = jax.nn.log_softmax(params)
        return tuple(jnp.tile(table[t], (self.vocab_size**t, 1)) for t in range(self.length))


@pytest.mark.slow
def test_what_a_family_cannot_represent_is_called_so():
    policy = Independent(3, 3)
    policies = {"independent": (policy, policy.init(key=KEY))}
    options = {"beta": [0.5], "reward_scale": [1.0], "num_seeds": 1, "recipes": RECIPES[:1]}
    # Tokens earn by themselves, which the family can follow, and a little together.
    space, tokens = kt.SequenceSpace(3, 3), np.indices((3, 3, 3)).reshape(3, -1)
    reward = tokens.sum(0) / 2 + 0.3 * (tokens[0] == tokens[1])
    problem = {"space": space, "reward": reward, "log_ref": np.full(27, -np.log(27))}
    (run,) = verify_tree(problem, key=KEY, policies=policies, **options, num_steps=600).runs
    assert run.distance > 0.02
    assert run.followable < 1e-3
    assert run.remains == "family"
    (run,) = verify_tree(problem, key=KEY, policies=policies, **options, num_steps=2).runs
    assert run.remains == "optimisation"
    assert 0.8 < run.followable < 0.999


def of_other_beta(factor):
    solve = targets.solve
    return lambda x: solve(dataclasses.replace(x, beta=factor * x.beta))


@pytest.mark.slow
def test_a_wrong_prediction_fails(monkeypatch):
    monkeypatch.setattr(targets, "solve", of_other_beta(1.01))
    options = {"policies": ["tabular"], "beta": [0.5], "reward_scale": [1.0], "num_seeds": 1}
    report = verify("one-two", key=KEY, recipes=RECIPES[:1], **options)
    failed = [check.name for check in report.checks if not check.passed]
    assert len(failed) == 2
    assert failed[0].startswith("tabular policies end within TV 0.0001")
    assert failed[1].startswith("J* − J(π) = β·KL(π‖π*)")


@pytest.mark.slow
def test_diverged_runs_are_reported():
    options = {"policies": ["tabular"], "beta": [0.5], "reward_scale": [1.0], "num_seeds": 1}
    options["recipes"] = RECIPES[:1]
    report = verify("one-two", key=KEY, learning_rate=float("inf"), **options)
    assert {run.status for run in report.runs} == {RunStatus.NON_FINITE.name}
    assert {run.remains for run in report.runs} == {"diverged"}
    assert not report.passed


@pytest.mark.slow
def test_recipes_without_a_target_are_shown_beside_the_others():
    recipes = [Recipe("loss", "k1"), Recipe("none", "k1")]
    options = {"policies": ["tabular"], "beta": [0.5], "reward_scale": [1.0], "num_seeds": 1}
    report = verify("one-two", key=KEY, recipes=recipes, **options, num_steps=20)
    assert [run.remains for run in report.runs] == ["no target"] * 2
    assert [run.recipe for run in report.runs] == ["k1 in loss, sequence", "no regulariser"]
    assert report.passed
    assert "none" in str(report)


SAMPLED = {"policies": ["tabular"], "beta": [0.5], "reward_scale": [1.0], "batch_size": 64}


@pytest.mark.slow
def test_sampled_gradients_stay_within_their_variance(monkeypatch):
    arguments = {**SAMPLED, "recipes": RECIPES[3:], "num_seeds": 8, "learning_rate": 0.03}
    report = verify_tree(tree(3, 1, length=2), key=KEY, num_steps=400, **arguments)
    assert report.passed, str(report)
    assert {run.remains for run in report.runs} == {"sampling"}
    assert max(run.distance for run in report.runs) < 0.1
    assert any("standard errors" in check.name for check in report.checks)

    token_local_target = targets.token_local_target

    def wrong(space, reward, log_ref, beta, divergence):
        return token_local_target(space, reward, log_ref, 1.5 * beta, divergence)

    monkeypatch.setattr(targets, "token_local_target", wrong)
    report = verify_tree(tree(3, 1, length=2), key=KEY, num_steps=400, **arguments)
    assert not next(c for c in report.checks if "standard errors" in c.name).passed


@pytest.mark.slow
def test_report_as_data(report, tmp_path):
    frame = report.to_dataframe()
    assert len(frame) == len(report.runs)
    assert list(dict.fromkeys(frame.recipe)) == report.settings["recipes"]
    assert set(frame.recipe) >= {"k1 in reward, sequence", "k3 in loss, token"}
    row, run = frame.iloc[5], report.runs[5]
    assert row.tv_token_reverse == run.tv["token_reverse"]
    assert row.gap == run.gap
    csv = report.to_csv().splitlines()
    assert csv[0].split(",") == list(frame.columns)
    assert len(csv) == len(report.runs) + 1
    report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert verification.Report.load(tmp_path / "report.json").to_json() == report.to_json()
    assert content["passed"] is True
    assert content["runs"][5]["mode_mass"] == run.mode_mass.tolist()
    assert content["verdict"] == report.verdict
    table = str(report)
    assert all(words in table for words in ("token-local", "forward KL"))
    assert "Verdict: confirmed." in table


@pytest.mark.broad
def test_a_report_is_saved_and_loaded(short_report, tmp_path):
    short_report.save(tmp_path / "report.json")
    again = verification.Report.load(tmp_path / "report.json")
    assert str(again) == str(short_report)
    assert again.to_json() == short_report.to_json()
    assert np.array_equal(again.runs[0].history, short_report.runs[0].history)


def test_wide_names_keep_the_columns(short_report):
    runs = [
        dataclasses.replace(short_report.runs[0], policy=name) for name in ("日本語", "tabular")
    ]
    lines = str(dataclasses.replace(short_report, runs=tuple(runs))).splitlines()
    wide, narrow = (line for line in lines if line.startswith(("日本語", "tabular")))
    assert wide.index("k1 in") + 3 == narrow.index("k1 in")  # three characters of double width


@pytest.mark.slow
def test_figures_of_a_report(report):
    ax = plot.predicted_vs_reached(report)
    points = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    np.testing.assert_allclose(points[:, 0], points[:, 1], atol=2e-4)
    assert len(points) == sum((run.target_mode_mass >= 1e-4).sum() for run in report.runs)
    ax = plot.distances(report)
    assert ax.images[0].get_array().shape == (4, 4)
    assert len(ax.patches) == 4
    assert len(plot.verification(report).axes) == 3


@pytest.mark.slow
def test_training_curves_end_at_their_targets():
    problem = tree(3, 1)
    policy = TabularPolicy(3, 3)
    space, log_ref = problem["space"], jnp.asarray(problem["log_ref"])
    reward = jnp.asarray(problem["reward"])
    beta = jnp.asarray([0.5, 2.0])
    run = fine_tune(
        policy,
        policy.from_conditionals(space.conditionals(log_ref)),
        reward,
        Recipe(),
        beta=beta,
        reward_scale=2.0,
        learning_rate=0.1,
        num_steps=300,
        history_every=50,
        gradient_tol=1e-3,
    )
    target = kt.solve(kt.Objective(2 * reward, log_ref, beta))
    for metric in ("expected_reward", "reverse_kl", "forward_kl", "entropy"):
        ax = plot.training(run, target=target, metric=metric)
        ends = [line.get_ydata() for line in ax.lines if line.get_linestyle() == "--"]
        curves = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) > 2]
        assert len(curves) == 2
        for curve, end in zip(curves, [e for e in ends if len(e)], strict=True):
            assert abs(curve[-1] - end[0]) < 0.05 * abs(curve[0] - end[0])
    assert plot.training(run, metric="gap").get_yscale() == "log"
    with pytest.raises(ValueError, match="metric must be one of"):
        plot.training(run, metric="loss")
    with pytest.raises(ValueError, match="does not broadcast"):
        plot.training(run, target=kt.solve(kt.Objective(reward, log_ref, jnp.ones(3))))


FOUR = {"problem": (np.zeros(4), np.log(np.ones(4) / 4))}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"problem": "one-three"}, "'one-three' is neither a file nor a task"),
        ({"problem": "one-two", "space": kt.SequenceSpace(2, 2)}, "space has 4 sequences"),
        ({"problem": (np.zeros(3), np.log(np.ones(4) / 4))}, "reward has 3 outcomes"),
        ({**FOUR, "space": kt.SequenceSpace(3, 1)}, r"reward has shape \(4,\)"),
        ({"problem": ([0, -np.inf, 0, 0], FOUR["problem"][1])}, "reward must be finite"),
        ({"problem": (np.zeros(4), np.zeros(4))}, "log_ref has mass 4"),
        ({**FOUR, "space": kt.SequenceSpace(2, 2, eos=0)}, "log_ref has mass 0.75 on"),
        ({"policies": ["lstm"]}, "policies has 'lstm'"),
        ({"beta": [-1.0]}, "beta must be finite numbers above 0"),
        ({"recipes": []}, "ask for no run"),
        (
            {"recipes": [Recipe(normalize="group-std")]},
            "recipes may choose place, estimator, level and baseline alone",
        ),
        ({"batch_size": 8}, "num_seeds must be at least 4"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        verify(**{"problem": "one-two", **arguments}, key=KEY)


def run_command(capsys, *arguments):
    code = cli.main(["verify", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.slow
def test_the_command_writes_its_report(capsys, tmp_path, monkeypatch):
    out = tmp_path / "a" / "b"
    options = ("one-two", "--policies", "tabular", "--beta", "0.5", "--seeds", "1", "--out", out)
    code, printed, _ = run_command(capsys, *options)
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "report.csv",
        "report.json",
        "verify.png",
    ]
    assert (out / "verify.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["passed"] is True
    assert "Verdict: confirmed." in printed
    assert str(out / "verify.png") in printed

    monkeypatch.setattr(targets, "solve", of_other_beta(2))
    code, printed, _ = run_command(capsys, *options)
    assert code == 1
    assert "NOT confirmed" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one-three"], "there is no task 'one-three'"),
        (["one-two", "--tasks", "all"], "not both"),
        (["--tasks", "one-two,none"], "there is no task 'none'"),
        (["--policies", "lstm"], "there is no policy 'lstm'"),
        (["--beta", "-1"], "argument --beta"),
        (["one-two", "--out", "/dev/null/x"], "cannot be made"),
    ],
)
def test_bad_options_of_the_command(capsys, arguments, message):
    code, _, error = run_command(capsys, *arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "recipes"),
    [("one-two", RECIPES), ((3, 1), ALL_RECIPES[4:])],
    ids=["one-two", "three tokens"],
)
def test_every_recipe_reaches_its_target(problem, recipes):
    """With those of the report on the tree of three tokens."""
    run = verify if isinstance(problem, str) else verify_tree
    report = run(
        problem if isinstance(problem, str) else tree(*problem),
        key=KEY,
        policies=["tabular"],
        recipes=recipes,
        beta=BETAS,
        reward_scale=[1.0],
        num_seeds=1,
        num_steps=1000,
    )
    assert report.passed, str(report)
    assert max(run.distance for run in report.runs) < 1e-4


@pytest.mark.slow
def test_networks_are_split_into_optimisation_and_family():
    report = verify_tree(
        tree(3, 1),
        key=KEY,
        policies=["gru", "transformer"],
        recipes=RECIPES[:1],
        beta=[0.2, 1.0],
        num_seeds=1,
    )
    assert report.passed, str(report)
    assert {run.remains for run in report.runs} <= {"nothing", "optimisation", "family"}
    assert all(run.distance < 0.2 * run.start_tv + 0.01 for run in report.runs)
