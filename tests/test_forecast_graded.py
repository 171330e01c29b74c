"""Forecasts from samples whose rewards have more than two levels."""

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.special import rel_entr
from test_forecast import FORWARD, GROUPS, RECIPES, REVERSE

from kltarget import cli, pages, plot
from kltarget.evidence import level_masses
from kltarget.forecasts import forecast
from kltarget.implied import implied_target, saturation_beta
from kltarget.implied.levels import level_targets, saturation_betas
from kltarget.policies import TabularPolicy
from kltarget.recipes import Recipe
from kltarget.rollouts import read_rollouts
from kltarget.training import fine_tune

LEVELS = np.array([0.0, 0.3, 0.7, 1.0])


def log_of(rewards, **columns):
    """Rows of samples, a list of rewards per prompt."""
    size = [len(x) for x in rewards]
    frame = pd.DataFrame(
        {
            "prompt": np.repeat([f"p{i}" for i in range(len(size))], size),
            "completion": [f"c{i}" for i in range(sum(size))],
            "reward": np.concatenate(rewards).astype(float),
            "step": 0,
            "group_id": np.repeat(np.arange(len(size)), size),
        }
    )
    return frame.assign(logp=None, ref_logp=None, answer=frame["completion"]).assign(**columns)


def drawn_masses(rng, prompts, kind):
    """Masses of the levels of prompts, of which no kind is a chain of Beta distributions."""
    if kind == "dirichlet":
        masses = rng.dirichlet([1.2, 0.5, 0.3, 0.4], prompts)
        never = rng.uniform(size=(prompts, 2)) < [0.1, 0.2]
        masses[:, 2:][never] = 0
    else:
        # One ability per prompt: what reaches the best level reaches the others more often too.
        ability = rng.normal(-1.0, 1.5, prompts)
        above = 1 / (1 + np.exp(-(ability[:, None] - np.array([0.0, 1.0, 2.5]))))
        ends = np.zeros((prompts, 1))
        masses = -np.diff(np.concatenate([ends + 1, above, ends], axis=1), axis=1)
    return masses / masses.sum(1, keepdims=True)


def simulated(n, prompts, seed, kind):
    rng = np.random.default_rng(seed)
    masses = drawn_masses(rng, prompts, kind)
    return masses, log_of([rng.choice(LEVELS, n, p=x) for x in masses])


def truth_of(recipe, masses, betas):
    """Means over prompts of the expected reward and the KL of the targets, ``[B]`` each."""
    with np.errstate(divide="ignore"):
        log_masses = np.log(masses)
    targets, _ = level_targets(recipe, LEVELS, log_masses, betas)
    probs = np.exp(targets)
    log_ratio = np.where(probs > 0, targets, 0) - np.where(probs > 0, log_masses, 0)
    return (probs @ LEVELS).mean(1), (probs * log_ratio).sum(-1).mean(1)


def what_holds(seed, recipes, kind):
    """Which intervals of each recipe hold the truth, ``[recipes, 2, B]``."""
    betas = np.array([0.1, 0.25, 1.0])
    rng = np.random.default_rng(20_000 + seed)
    n, prompts = rng.choice([4, 8, 16, 64]), rng.choice([30, 100, 300, 1000])
    masses, log = simulated(int(n), int(prompts), seed, kind)
    held = np.zeros((len(recipes), 2, betas.size))
    for row, recipe in enumerate(recipes):
        found = forecast(log, recipe, beta=betas, key=jax.random.key(seed))
        said = [found.curves["expected_reward"], found.curves["kl"]]
        truth = truth_of(recipe, masses, betas)
        for what, (interval, value) in enumerate(zip(said, truth, strict=True)):
            low, _, high = np.array(interval).T
            held[row, what] = (low - 1e-9 <= value) & (value <= high + 1e-9)
    return held


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "bar"), [("dirichlet", 0.92), ("ability", 0.65)])
def test_intervals_hold_the_truth(kind, bar):
    """In as many data sets as are asked for: two hundred take an hour.

    Where one ability decides how often all levels are reached, steps are tied more closely than the
    posterior has it: intervals of the reverse target's KL at a β of the rewards' span held in 17 of
    24 data sets, all others in 21 or more. That is less than they say, and the bar is no aim.
    """
    number = int(os.environ.get("KLTARGET_DATA_SETS", "1"))
    recipes = [REVERSE, FORWARD, GROUPS]
    held = np.mean([what_holds(seed, recipes, kind) for seed in range(number)], axis=0)
    if number < 200:
        # Of few data sets, whose intervals share what was drawn, three quarters of all numbers.
        assert held.mean() >= 0.75, held
    else:
        assert held.min() >= bar, held


@pytest.mark.parametrize("name", RECIPES)
def test_targets_of_levels_are_those_of_implied_target(name):
    recipe = RECIPES[name]
    betas = np.geomspace(0.02, 3.0, 13)
    masses = np.array([[0.9, 0.06, 0.039, 0.001], [0.3, 0.3, 0.4, 0.0], [0.0, 0.5, 0.0, 0.5]])
    with np.errstate(divide="ignore"):
        log_masses = np.log(masses)
    targets, held = level_targets(recipe, LEVELS, log_masses, betas)
    np.testing.assert_allclose(np.exp(targets).sum(-1), 1)
    for at in (0, 4, 8, 12):
        with jax.enable_x64(True):
            target = implied_target(recipe, LEVELS, log_masses, beta=np.full(3, betas[at]))
        # Next to where a fixed point ends, a coefficient's last digits move it.
        np.testing.assert_allclose(np.exp(targets[at]), np.asarray(target.probs), atol=3e-4)
        effective = np.asarray(target.effective_beta)
        sharp = np.asarray(target.probs).max(1) < 1 - 1e-6
        np.testing.assert_allclose(held[at][sharp], effective[sharp], rtol=5e-3)


def test_saturation_of_levels_is_that_of_saturation_beta():
    masses = np.array([[0.9, 0.06, 0.039, 0.001], [0.3, 0.3, 0.4, 0.0], [0.1, 0.4, 0.1, 0.4]])
    with np.errstate(divide="ignore"):
        log_masses = np.log(masses)
    recipe = Recipe("loss", "k2", baseline="mean", normalize="group-std", group_size=8)
    with jax.enable_x64(True):
        known = np.asarray(saturation_beta(recipe, LEVELS, log_masses))
    np.testing.assert_allclose(saturation_betas(recipe, LEVELS, log_masses), known, rtol=2e-3)
    assert (saturation_betas(GROUPS, LEVELS, log_masses) == 0).all()
    assert np.isnan(saturation_betas(REVERSE, LEVELS, log_masses)).all()


def many_of(masses, number=10**4, levels=LEVELS):
    """Samples in exact proportions, so many that nothing is left open."""
    counts = np.round(masses * number).astype(int)
    return log_of([np.repeat(levels, row) for row in counts])


@pytest.mark.parametrize("name", ["reverse", "forward", "groups", "large groups"])
def test_many_samples_leave_nothing_open(name):
    masses = np.array([[0.5, 0.3, 0.15, 0.05], [0.2, 0.2, 0.3, 0.3], [0.7, 0.1, 0.1, 0.1]])
    betas = [0.2, 1.0]
    found = forecast(many_of(masses), RECIPES[name], beta=betas, threshold=0.7, k=[1, 4])
    for at, beta in enumerate(betas):
        with jax.enable_x64(True):
            target = implied_target(RECIPES[name], LEVELS, np.log(masses), beta=np.full(3, beta))
        probs = np.asarray(target.probs)
        kl = rel_entr(probs, masses).sum(1)
        success = probs[:, 2:].sum(1)
        curves = {x: y[at] for x, y in found.curves.items()}
        np.testing.assert_allclose(curves["expected_reward"], (probs @ LEVELS).mean(), atol=0.01)
        np.testing.assert_allclose(curves["kl"], kl.mean(), rtol=0.05)
        np.testing.assert_allclose(curves["success"], success.mean(), atol=0.012)
        np.testing.assert_allclose(
            found.pass_at_k[1][at], (1 - (1 - success) ** 4).mean(), atol=0.012
        )
        if "zero_std" in curves:
            np.testing.assert_allclose(curves["zero_std"], (probs**8).sum(1).mean(), atol=0.015)
        own = found.dataset["prompt_expected_reward"][:, at, 1]
        np.testing.assert_allclose(own, probs @ LEVELS, atol=0.01)
        np.testing.assert_allclose(found.dataset["prompt_kl"][:, at, 1], kl, atol=0.02)
    np.testing.assert_allclose(found.start["expected_reward"], (masses @ LEVELS).mean(), atol=0.01)


def test_the_best_of_n_of_levels_is_that_of_drawing():
    masses = np.array([[0.5, 0.3, 0.15, 0.05]])
    found = forecast(many_of(masses), REVERSE)
    number = np.array(found.curves["best_of_n"])[:, 1]
    at = int(np.nanargmin(np.abs(number - 4)))
    n = number[at]
    up_to = masses[0].cumsum() ** n
    taken = np.diff(up_to, prepend=0)
    kl = (taken * np.log(taken / masses[0])).sum()
    np.testing.assert_allclose(kl, found.curves["kl"][at][1], rtol=0.03)
    np.testing.assert_allclose(found.curves["best_of_n_reward"][at][1], taken @ LEVELS, atol=0.01)
    # At the same KL nothing earns more than the target of a reverse KL.
    best, target = (np.array(found.curves[x]) for x in ("best_of_n_reward", "expected_reward"))
    known = np.isfinite(best[:, 1])
    assert (best[known, 1] <= target[known, 1] + 1e-3).all()


def test_a_level_is_reached_or_missed_by_what_is_left():
    counts = np.array([[5, 0, 3], [0, 8, 0], [8, 0, 0], [2, 4, 2]])
    rng = np.random.default_rng(0)

    def every(draws):
        return np.broadcast_to(np.arange(4), (draws, 4))

    masses = np.exp(level_masses(counts, num_draws=400, rng=rng).log_masses(every(400), rng))
    np.testing.assert_allclose(masses.sum(-1), 1)
    assert (masses[:, 0, 2] > 0).all()
    assert (masses[:, 1, 1] > 0).all()
    # What no sample showed may be impossible, and need not be.
    assert 0.05 < (masses[:, 2, 2] == 0).mean() < 0.95
    # Many samples outweigh what other prompts suggest.
    many = level_masses(1000 * counts, num_draws=100, rng=rng).log_masses(every(100), rng)
    np.testing.assert_allclose(np.exp(many).mean(0), counts / 8, atol=0.01)


@pytest.mark.broad
def test_many_rewards_are_gathered():
    rng = np.random.default_rng(0)
    rewards = [rng.normal(x, 1.0, 64) for x in rng.normal(size=40)]
    found = forecast(log_of(rewards), REVERSE, beta=[0.5, 2.0], num_draws=100)
    assert len(found.rewards) == 12
    assert any("are gathered in 12 levels" in note for note in found.notes)
    assert (np.array(found.levels).sum(1) == 64).all()
    values = np.concatenate(rewards)
    low, _, high = found.start["expected_reward"]
    assert low < values.mean() < high
    # The gathered levels have the mean of all rewards, exactly.
    levels = np.array(found.levels).sum(0)
    np.testing.assert_allclose(levels @ found.rewards / levels.sum(), values.mean())


def test_what_is_not_said_is_not_there():
    # Each prompt has rewards of its own: none of them says what is right.
    rng = np.random.default_rng(1)
    log = log_of(list(rng.uniform(size=(9, 8))))
    found = forecast(log, REVERSE, beta=[0.1, 1.0], num_draws=100)
    assert found.k == []
    assert found.correct == []
    assert not {"success", "met"} & set(found.curves)
    assert "pass_at_k" not in found.dataset
    assert "right" not in str(found).split("MARA")[0]
    assert np.isnan(found.share_unsolved)
    assert list(found.to_dataframe())[:2] == ["beta", "expected_reward"]
    again = type(found).from_dict(found.to_dict())
    assert str(again) == str(found)
    assert again.choose(expected_reward=0.7) == found.choose(expected_reward=0.7)


@pytest.mark.parametrize(
    ("log", "options", "message"),
    [
        (log_of([[0, 0.5, 1.0]]), {"rollouts_per_prompt": 8}, "rollouts_per_prompt is of right"),
        (log_of([[-1, 0.5, 1.0]]), {"recipe": RECIPES["mean as divisor"]}, "rewards must be 0 or"),
        (log_of([[2, 3, 4]]), {"recipe": Recipe(reward_clip=1.0)}, "all samples the same reward"),
        (log_of([[np.nan] * 3]), {}, "the rollouts have no rewards"),
        (log_of([[np.inf] * 3]), {}, "the rollouts have no finite rewards"),
    ],
)
def test_bad_input_is_named(log, options, message):
    recipe = options.pop("recipe", REVERSE)
    with pytest.raises(ValueError, match=message):
        forecast(log, recipe, **options)


@pytest.mark.broad
def test_the_page_the_figure_and_the_command(capsys, tmp_path):
    _, log = simulated(8, 20, 0, "dirichlet")
    found = forecast(log, GROUPS, beta=np.geomspace(0.05, 5, 5), num_draws=100)
    left, right = plot.forecast(found).axes
    labels = [x.get_label() for x in left.get_lines() if x.get_label()[0] != "_"]
    assert labels == ["reward", "base model"]
    assert right.get_ylabel() == "reward"
    page = " ".join(pages.forecast(found).split())
    assert "of rewards in 4 levels from 0 to 1" in page
    assert "No KL target lowers any prompt" not in page
    samples = tmp_path / "samples.jsonl"
    log[["prompt", "completion", "reward"]].to_json(samples, orient="records", lines=True)
    options = ["--recipe", "place=loss,estimator=k3", "--beta", "0.05:5:5", "--reward", "0.6"]
    for more, said in ([], "has a mean reward of 0.6"), (["--threshold", "0.7"], "pass@16, %"):
        assert cli.main(["forecast", str(samples), *options, *more]) == 0
        assert said in capsys.readouterr().out


DATA = pathlib.Path(__file__).parent / "data" / "rollouts"
LONG_RUNS = {
    "trl116_grpo_graded_noscale_k3_b02_long": 0.2,
    "trl116_grpo_graded_noscale_k3_b03_long_logp": 0.3,
}


@pytest.mark.parametrize("run", LONG_RUNS)
def test_the_first_step_of_a_real_run_tells_its_last(run):
    """TRL's runs of 600 and 800 steps end where samples of their first step said they would."""
    answers = json.loads((DATA / run / "truth.json").read_text())["exact"][0]["answers"]
    reward = np.array([x["rewards"]["reward_graded_digit"] for x in answers])
    base, final = (np.exp([x[f"{x_of}_logp"] for x in answers]) for x_of in ("ref", "final"))
    recipe = Recipe("loss", "k3", "token", "mean", group_size=8)
    beta = LONG_RUNS[run]
    found = forecast(read_rollouts(DATA / run), recipe, beta=[beta / 2, beta, 2 * beta])
    assert any("logged steps is taken for the base model" in note for note in found.notes)
    truth = {"expected_reward": final @ reward, "kl": rel_entr(final, base).sum()}
    for curve, value in truth.items():
        half, (low, _, high), twice = found.curves[curve]
        assert low < value < high
        # It says so of this β alone.
        assert half[0] > value > twice[2]
    low, _, high = found.start["expected_reward"]
    assert low < base @ reward < high < truth["expected_reward"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "beta", "rewards"),
    [
        ("reverse", 0.4, (0.0, 0.0, 1.0, 1.0)),
        ("forward", 0.3, tuple(LEVELS)),
        ("groups", 0.3, (0.0, 0.0, 1.0, 1.0)),
        ("groups", 0.3, tuple(LEVELS)),
    ],
)
def test_training_ends_at_the_forecast(name, beta, rewards):
    """The mean reward of 64 trained policies is that of the targets, for prompts that are known."""
    rng = np.random.default_rng(3)
    masses, reward = rng.dirichlet(np.ones(4), 64), np.array(rewards)
    policy, trained = TabularPolicy(4, 1), []
    for row in masses:
        run = fine_tune(
            policy,
            policy.from_conditionals([np.log(row)[None]]),
            reward,
            dataclasses.replace(RECIPES[name], level="sequence"),
            beta=beta,
            learning_rate=0.05,
            num_steps=1500,
            gradient_tol=1e-4,
        )
        trained.append(np.exp(np.asarray(run.log_probs, np.float64)).reshape(-1) @ reward)
    with np.errstate(divide="ignore"):
        levels = np.unique(reward)
        known = np.stack([masses[:, reward == x].sum(1) for x in levels], axis=1)
    targets, _ = level_targets(RECIPES[name], levels, np.log(known), np.array([beta]))
    target = np.exp(targets[0]) @ levels
    np.testing.assert_allclose(trained, target, atol=2e-3)
    np.testing.assert_allclose(np.mean(trained), target.mean(), atol=5e-4)
    # And of samples in these proportions, so many that they leave nothing open.
    number = 10**5
    counts = np.round(known * number).astype(int)
    if len(levels) == 2:
        table = {"prompt": range(64), "correct": counts[:, 1], "samples": counts.sum(1)}
        found = forecast(pd.DataFrame(table), RECIPES[name], beta=beta)
    else:
        found = forecast(many_of(known, 2000), RECIPES[name], beta=beta)
    assert abs(found.curves["expected_reward"][0][1] - np.mean(trained)) < 3e-3
