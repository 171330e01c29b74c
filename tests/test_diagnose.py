"""What `diagnose` reads from a log is what the log was made from, and nothing it does not hold.

Files under `data/rollouts` were written by trainers, with the exact probabilities of reference and
last policy beside them; the other frames are sampled here from targets that are known.
"""

import dataclasses
import json
import math
import pathlib
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import kltarget as kt
from kltarget import cli, pages, plot
from kltarget.diagnosis import Diagnosis, LogRatios, diagnose, fit_families
from kltarget.evidence import (
    groups_of,
    log_of,
    mean_interval,
    median_interval,
    pass_at,
    share_interval,
    wilson_interval,
)
from kltarget.implied import implied_target
from kltarget.recipes import Recipe
from kltarget.rollouts import RolloutError, read_rollouts

DATA = pathlib.Path(__file__).parent / "data" / "rollouts"
GRADED = DATA / "trl116_grpo_graded_noscale_k3_b03_long_logp"
GRADED_REWARDS = DATA / "trl116_grpo_graded_noscale_k3_b02_long"
SHORT = DATA / "trl116_grpo_digit_b004_logp"
AT_ZERO = DATA / "trl116_grpo_digit_b0"

K3 = Recipe("loss", "k3", "token", "mean", group_size=8)
GRPO = Recipe(
    *("loss", "weighted-k3", "token", "mean"),
    normalize="group-std",
    ddof=1,
    epsilon=1e-4,
    group_size=8,
)
AS_OPTION = "place=loss,estimator=k3,level=token,baseline=mean"


@pytest.fixture(scope="module")
def graded():
    return diagnose(GRADED, K3, beta=0.3)


@pytest.fixture(scope="module")
def short():
    return diagnose(SHORT, GRPO, beta=0.04)


def exact(folder, prompt=0):
    """Texts, rewards and reference log-probabilities of every token, as they truly are."""
    answers = json.loads((folder / "truth.json").read_text())["exact"][prompt]["answers"]
    reward = np.array([next(iter(x["rewards"].values())) for x in answers])
    log_ref = np.array([x["ref_logp"] for x in answers])
    return [x["text"] for x in answers], reward, log_ref - np.logaddexp.reduce(log_ref)


def exact_flip(folder, better, worse, divergence):
    names, reward, log_ref = exact(folder)
    with jax.enable_x64(True):
        objective = kt.Objective(reward, log_ref, 1.0, divergence)
        return float(kt.flip_beta(objective, names.index(better), names.index(worse)))


def sampled(family, beta, seed, prompts=4, steps=6, groups=4, size=8, jitter=0.05):
    """Rollouts of the target, its log-probabilities moved a little at every step."""
    rng = np.random.default_rng(seed)
    divergence = kt.ForwardKL() if family == "forward" else kt.ReverseKL()
    log_ref = np.log(rng.dirichlet(np.ones(8), prompts))
    reward = rng.choice([0.0, 0.5, 1.0], (prompts, 8))
    reward[:, :3] = [0, 0.5, 1]
    with jax.enable_x64(True):
        problem = kt.Objective(reward, log_ref, np.full(prompts, beta), divergence)
        target = np.asarray(kt.solve(problem).log_probs)
    rows = []
    for step in range(steps):
        log_probs = target + jitter * rng.normal(size=target.shape)
        log_probs -= np.logaddexp.reduce(log_probs, 1)[:, None]
        for group in range(prompts * groups):
            p = group // groups
            for a in rng.choice(8, size, p=np.exp(log_probs[p])):
                rows.append(
                    (f"prompt {p}", f"a{a}", f"a{a}", reward[p, a], step, step * 999 + group)
                )
                rows[-1] += (log_ref[p, a], log_probs[p, a])
    names = ["prompt", "completion", "answer", "reward", "step", "group_id", "ref_logp", "logp"]
    return pd.DataFrame(rows, columns=names)


def small(reward, log_ref, counts=None, groups=12, size=8, **columns):
    """Rollouts of one prompt whose answers a, b, … have these rewards and reference masses."""
    names = [chr(ord("a") + i) for i in range(len(reward))]
    rng = np.random.default_rng(0)
    drawn = rng.permutation(np.arange(groups * size) % len(names))
    if counts is not None:
        drawn = np.repeat(np.arange(len(names)), counts)
    answer = np.array(names)[drawn]
    frame = pd.DataFrame({"answer": answer, "completion": answer})
    frame = frame.assign(prompt="?", step=1, group_id=np.arange(len(drawn)) // size, logp=np.nan)
    return frame.assign(
        reward=np.array(reward, float)[drawn], ref_logp=np.array(log_ref)[drawn], **columns
    )


THREE = np.log([0.6, 0.2, 0.2])


def test_a_real_run_shows_its_family_and_its_beta(graded):
    truth = 0.3 * 8 / 7
    assert graded.tier == 3
    assert graded["effective_beta"].value == pytest.approx(truth, rel=1e-12)
    assert graded["family"].value == 1.0  # forward
    assert graded["family"].text.startswith("the log follows the forward KL")
    low, high = graded["implied_beta"].interval
    assert low < truth < high
    assert high / low < 1.6
    assert graded["distance"].value < 0.03
    assert "close" in graded["distance"].text


def test_the_wrong_recipe_is_told_from_the_right_one(graded):
    wrong = diagnose(GRADED, Recipe("reward", "k1", baseline="leave-one-out"), beta=0.3)
    assert wrong["family"].value == 1.0
    assert "which the log follows but the recipe does not" in wrong["implied_beta"].text
    assert wrong["distance"].value > 5 * graded["distance"].value


@pytest.mark.broad
@pytest.mark.parametrize(("better", "worse"), [("2", "7"), ("1", "7"), ("1", "4")])
def test_flips_are_those_of_all_51_tokens(better, worse):
    names, reward, log_ref = exact(GRADED)
    frame = read_rollouts(GRADED)
    # The trainer logged float32 numbers of the same.
    known = dict(zip(names, log_ref, strict=True))
    frame["ref_logp"] = frame["answer"].map(known).astype(float)
    found = diagnose(frame, K3, beta=0.3)
    flips = {(x["better"], x["worse"]): x for x in found.featured.flips}
    effective = exact_flip(GRADED, better, worse, kt.ForwardKL())
    assert flips[better, worse]["effective_beta"] == pytest.approx(effective, rel=1e-6)
    assert flips[better, worse]["beta"] == pytest.approx(effective * 7 / 8, rel=1e-6)
    assert flips[better, worse]["interval"] is None
    # At the flip the recipe's own target is level.
    level = implied_target(K3, reward, log_ref, beta=flips[better, worse]["beta"]).log_probs
    i, j = names.index(better), names.index(worse)
    assert float(level[i] - level[j]) == pytest.approx(0, abs=1e-4)


def test_logged_references_give_the_same_to_their_rounding(graded):
    ratio = graded["reference_ratio"]
    names, _, log_ref = exact(GRADED)
    true = np.exp(log_ref[names.index("2")] - log_ref[names.index("1")])
    assert ratio.value == pytest.approx(true, rel=1e-6)
    assert ratio.text.startswith("“2” and “1” have equal rewards: the target's ratio stays the")
    assert "3.12 : 1, at every β" in ratio.text
    for flip in graded.featured.flips:
        effective = exact_flip(GRADED, flip["better"], flip["worse"], kt.ForwardKL())
        assert flip["effective_beta"] == pytest.approx(effective, rel=2e-5)


@pytest.mark.parametrize(("folder", "beta"), [(GRADED, 0.3), (GRADED_REWARDS, 0.2)])
def test_the_first_step_stands_in_for_the_reference(folder, beta):
    frame = read_rollouts(folder)
    frame[["ref_logp", "logp"]] = np.nan
    found = diagnose(frame, K3, beta=beta, reference="first-step", num_bootstrap=1000)
    assert found.tier == 2
    names, _, log_ref = exact(folder)
    ratio = found["reference_ratio"]
    low, high = ratio.interval
    assert low < np.exp(log_ref[names.index("2")] - log_ref[names.index("1")]) < high
    flips = [x for x in found.featured.flips if (x["better"], x["worse"]) == ("2", "7")]
    assert len(flips) == 1
    effective = exact_flip(folder, "2", "7", kt.ForwardKL())
    assert flips[0]["interval"][0] < effective * 7 / 8 < flips[0]["interval"][1]
    assert "the policy was still the reference at the first logged step" in ratio.assumptions
    assert ratio.sample_size == (frame["step"] == 1).sum()


@pytest.mark.broad
def test_flips_of_normalised_advantages_are_in_the_trainers_own_beta():
    found = diagnose(GRADED, GRPO, beta=1.0)
    flips = {(x["better"], x["worse"]): x for x in found.featured.flips}
    flip = flips["2", "7"]
    assert np.isnan(flip["effective_beta"])
    names, reward, log_ref = exact(GRADED)
    with jax.enable_x64(True):
        level = implied_target(GRPO, reward, log_ref, beta=flip["beta"]).log_probs
    assert float(level[names.index("2")] - level[names.index("7")]) == pytest.approx(0, abs=1e-3)
    assert "Not with this recipe: the division by a standard dev" in found["mara"].text


def test_rewards_alone_refuse_what_they_cannot_say():
    found = diagnose(GRADED_REWARDS, K3, beta=0.2)
    assert found.tier == 1
    flip = found["flip_beta"]
    assert flip.refused
    assert flip.value is None
    for what in ("ref_logp", "LogProbsGRPOTrainer", "verl", "--reference-from-first-step"):
        assert what in flip.text
    assert found.featured.target is None
    assert found.featured.flips == ()
    for absent in ("reference_ratio", "family", "implied_beta", "mara", "expected_reward"):
        assert absent not in found
    assert found["effective_beta"].value == pytest.approx(0.2 * 8 / 7)
    assert "✗ no flip β" in str(found)


def test_without_a_regulariser_the_path_decides():
    found = diagnose(AT_ZERO, GRPO, beta=0)
    assert found.tier == 1
    assert found["direction"].text.startswith("β = 0: nothing holds the policy")
    assert "effective_beta" not in found
    assert found["zero_std_groups"].value == 1.0
    page = str(found)
    assert "In short\n  • β = 0" in page
    assert "no target" in page
    found = diagnose(SHORT, GRPO, beta=0.0)
    assert "end on the likeliest of them alone, “2”" in found["favoured"].text
    assert found.featured.target is None
    assert "flip_beta" not in found
    # Where there is no target, no panel is empty.
    assert len(plot.diagnosis(found).axes) == 1


def test_a_short_run_is_called_one(short):
    assert "the run is far from its target" in short["distance"].text
    assert "too short" in short["distance"].text
    assert "cannot tell" in short["family"].text
    assert short["family"].value is None
    assert "on its way" in short["implied_beta"].text
    # The target keeps the reference's ratio, so what is lost of it was lost on the way.
    assert short["path"].value > 0.1
    assert "the target takes 0, the path" in short["path"].text
    assert short["saturated"].value == 4
    assert "already prefers the better" in short["flip_beta"].text


@pytest.mark.parametrize("family", ["reverse", "forward"])
def test_known_targets_are_recovered(family):
    recipe = Recipe("reward", "k1") if family == "reverse" else Recipe("loss", "k3")
    found = diagnose(sampled(family, 0.4, 0), recipe, beta=0.4)
    low, high = found["implied_beta"].interval
    assert low <= 0.4 <= high < 1.5 * low
    assert found["family"].value == float(family == "forward")
    assert "inside the interval" in found["implied_beta"].text
    assert found["distance"].value < 0.05


def jittered_cells(family, rng, prompts=3, steps=4, jitter=0.1, common=0.0):
    """Log-ratios of known targets with noise of every answer and step, and of every step."""
    divergence = kt.ForwardKL() if family == "forward" else kt.ReverseKL()
    log_ref = np.log(np.random.default_rng(5).dirichlet(np.ones(8), prompts))
    x = np.tile([0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0], (prompts, 1)) / 0.4
    factor = np.exp(common * rng.normal(size=(steps, 1)))
    with jax.enable_x64(True):
        problem = kt.Objective(x, log_ref, np.broadcast_to(factor, (steps, prompts)), divergence)
        ratio = np.asarray(kt.solve(problem).log_probs) - log_ref
    count = np.array([rng.multinomial(48, p / p.sum(-1)) for p in np.exp(ratio + log_ref)[0]])
    line = np.arange(steps * prompts).reshape(steps, prompts, 1)
    completion = np.arange(prompts * 8).reshape(prompts, 8)
    block = np.arange(steps).reshape(steps, 1, 1)
    ratio = ratio + jitter * rng.normal(size=ratio.shape)
    columns = np.broadcast_arrays(ratio, x, count.astype(float), line, completion, block)
    kept = columns[2].reshape(-1) > 0
    return LogRatios(*(column.reshape(-1)[kept] for column in columns))


@pytest.mark.broad
@pytest.mark.quick_only("reverse-0.08")
@pytest.mark.parametrize("common", [0.0, 0.08])
@pytest.mark.parametrize("family", ["reverse", "forward"])
def test_intervals_cover_as_often_as_they_say(family, common):
    covered = wrong = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        cells = jittered_cells(family, rng, common=common)
        reverse, forward, share, _ = fit_families(cells, rng, 60)
        fit = forward if family == "forward" else reverse
        other = reverse if family == "forward" else forward
        covered += fit.interval[0] <= 1 <= fit.interval[1]
        # What it takes to say "the log follows", as the statement says.
        wrong += other.miss * 1.5 < fit.miss and share >= 0.95
    # Of 100 intervals of 95 %, ninety or more hold it with a chance of 99 %.
    assert covered >= 90
    assert wrong == 0


def test_exact_log_probabilities_give_exact_betas():
    found = diagnose(sampled("forward", 0.4, 0, jitter=0.0), Recipe("loss", "k3"), beta=0.1)
    assert found["implied_beta"].value == pytest.approx(0.4, rel=1e-6)
    assert "outside the interval" in found["implied_beta"].text
    assert "far" in found["distance"].text


@pytest.mark.broad
def test_two_rewards_cannot_tell_the_family():
    frame = sampled("reverse", 0.4, 1)
    frame = frame[frame["reward"] != 0.5]
    found = diagnose(frame, Recipe("reward", "k1"), beta=0.4)
    assert found["family"].value is None
    assert "both pass through two" in found["family"].text


def test_long_completions_are_weighed():
    rng = np.random.default_rng(0)
    frame = sampled("reverse", 0.4, 2, jitter=0.0)
    # Every completion is one of very many that end in its answer.
    extra = -40.0 - rng.random(len(frame))
    frame["completion"] = [f"thought {i}: {a}" for i, a in enumerate(frame["answer"])]
    frame["ref_logp"] += extra
    frame["logp"] += extra
    found = diagnose(frame, Recipe("reward", "k1"), beta=0.4)
    assert found.tier == 3
    assert any("weighed by π_ref/π" in note for note in found.notes)
    assert found["implied_beta"].value == pytest.approx(0.4, rel=1e-6)
    plain = diagnose(sampled("reverse", 0.4, 2, jitter=0.0), Recipe("reward", "k1"), beta=0.4)
    for name, p in zip(found.featured.names[:-1], found.featured.reference[:-1], strict=True):
        if name in plain.featured.names and found.featured.prompt == plain.featured.prompt:
            q = plain.featured.reference[plain.featured.names.index(name)]
            assert p == pytest.approx(q, abs=0.08)
    frame["logp"] = np.nan
    found = diagnose(frame, Recipe("reward", "k1"), beta=0.4)
    assert found.tier == 1
    # It is not for want of what is logged already.
    assert "less than half of the reference's mass" in found["flip_beta"].text
    assert "score" not in found["flip_beta"].text


def test_rewards_that_are_logged_scaled_are_not_scaled_again():
    found = diagnose(DATA / "other_formats" / "open_instruct", "open-instruct")
    assert found["effective_beta"].value == pytest.approx(0.05 * 8 / 7)
    assert "the range of rewards, 10, is 175 times that" in found["effective_beta"].text
    assert any("scale and clip of rewards are in them already" in x for x in found.notes)


def test_a_target_beyond_the_trainers_clip_says_so():
    recipe = Recipe("loss", "k3", "token", "mean", kl_clip=10.0)
    found = diagnose(small([1, 1, 0], THREE), recipe, beta=0.001)
    assert "answers beyond the cut are held by nothing" in found["clipped"].text
    assert any("cuts its KL estimate" in sentence for sentence in found.verdict)
    assert "clipped" not in diagnose(small([1, 1, 0], THREE), recipe, beta=0.5)
    assert "no clip is active" not in str(found)


@pytest.mark.parametrize(
    ("fields", "words", "factor"),
    [
        # Where the KL is normalised with the reward, MARA is exact.
        ({"normalize": "group-std"}, None, False),
        ({"normalize": "none", "normalize_when": "before"}, None, True),
        (
            {"normalize": "batch-std", "normalize_when": "before"},
            "the division by a standard deviation",
            True,
        ),
    ],
)
def test_mara_is_refused_only_where_it_fails(fields, words, factor):
    recipe = Recipe("reward", "k1", "sequence", "mean", **fields)
    found = diagnose(small([1, 1, 0], THREE), recipe, beta=6.0)
    assert ("Not with this recipe" in found["mara"].text) == (words is not None)
    assert words is None or words in found["mara"].text
    assert ("ratio^(1/8)" in found["mara"].text) == factor
    assert ("· 8/7" in found["effective_beta"].text) == factor
    if words is None and not factor:
        with jax.enable_x64(True), np.errstate(divide="ignore"):
            log_ref = np.log(found.featured.reference)
            even = implied_target(recipe, found.featured.mara_reward, log_ref, beta=6.0).probs
        i, j = (found.featured.names.index(name) for name in "ab")
        assert float(even[i]) == pytest.approx(float(even[j]), rel=1e-6)


@pytest.mark.broad
def test_why_no_answers_change_places():
    # The better one is less likely, and its lead never shows.
    frame = small([1, 0.1, 0.2, 0], np.log([0.6, 0.2, 0.1, 0.1]))
    found = diagnose(frame, Recipe("loss", "k3", baseline="leave-one-out"), beta=0.3)
    assert "already prefers" not in found["flip_beta"].text
    assert "overtakes at no β" in found["flip_beta"].text
    # Total variation moves all at once, at twice its coefficient.
    frame = small([0.9, 1, 0], THREE)
    found = diagnose(frame, Recipe("loss", "absolute"), beta=0.06)
    assert found["flip_beta"].value == pytest.approx(0.05, rel=1e-4)
    assert "so the target prefers “a”" in found["flip_beta"].text
    # A search that finds nothing names its range.
    frame = small([1, 0.1, 0.2, 0], np.log([0.6, 0.2, 0.1, 0.1]))
    found = diagnose(frame, dataclasses.replace(K3, normalize="batch-std"), beta=1.0)
    assert "between β = 0.0001 and 1e+02" in found["flip_beta"].text


def test_an_entropy_bonus_is_no_kl():
    frame = small([1, 1, 0], THREE)
    bonus = Recipe("loss", "k2", "token", "mean", entropy_bonus=0.3)
    for beta in (0.0, 0.3):
        found = diagnose(frame, bonus, beta=beta)
        assert "entropy bonus of 0.3" in found["direction"].text
        assert "entropy bonus of 0.3" in found.verdict[0]
        assert "no target" not in str(found)
        for absent in ("reference_ratio", "mara", "effective_beta", "favoured"):
            assert absent not in found
    frame["logp"] = frame["ref_logp"]
    assert diagnose(frame, bonus, beta=0.3)["family"].value is None


def test_a_kl_per_token_has_a_target_per_token(short):
    assert "the target of every next token is π_ref·exp(Q/β)/Z" in short["direction"].text


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe("loss", "k1", baseline="mean"), "they teach nothing"),
        (Recipe("loss", "sampler", baseline="mean"), "they teach nothing"),
        (Recipe("loss", "k2", baseline="mean"), "only the KL acts there"),
        (Recipe("loss", "k2", baseline="mean", zero_std="drop"), "the trainer drops them"),
        (Recipe("none"), "their reward still counts"),
        (Recipe("loss", "k2", normalize="group-std"), "only the KL acts there"),
        (Recipe("reward", "k1", normalize="group-std"), "their reward still counts"),
        (Recipe("none", baseline="mean", entropy_bonus=0.1), "only the entropy bonus acts"),
    ],
)
def test_what_acts_on_equal_rewards(recipe, words):
    frame = small([1, 0], np.full(2, np.nan), counts=[88, 8])
    found = diagnose(frame.drop(columns="step").assign(step=None), recipe, beta=0.1)
    assert words in found["zero_std_groups"].text
    assert "over the whole log" not in found["zero_std_groups"].text


def test_answers_that_the_reference_cannot_give():
    impossible = small([2, 1, 1, 0], [-np.inf, *np.log([0.5, 0.2, 0.3])])
    found = diagnose(impossible, GRPO, beta=0.0)
    assert "“b” and “c” is optimal" in found["favoured"].text
    # Not logged is not impossible.
    unlogged = small([1, 1, 0], [np.nan, np.log(0.55), np.log(0.3)])
    found = diagnose(unlogged, Recipe("reward", "k1"), beta=0.5)
    assert any("1 answer of 1 prompt without reference" in note for note in found.notes)
    assert np.isnan(found.featured.reference[0])
    assert np.isnan(found.featured.target[0])
    assert re.search(r"^  a +\d+ +1 +\? +\? ", str(found), re.MULTILINE)
    assert Diagnosis.from_dict(json.loads(found.to_json())).to_json() == found.to_json()
    plot.diagnosis(found)
    # Nor is such a policy infinitely far from its target.
    unlogged["logp"] = unlogged["answer"].map({"a": -1.9, "b": -0.5, "c": -1.5})
    found = diagnose(unlogged, Recipe("reward", "k1"), beta=0.5)
    assert "∞" not in found["distance"].text


def test_a_cost_without_divergence_favours_nobody():
    found = diagnose(small([1, 1, 0], THREE), Recipe("reward", "absolute", baseline="mean"), beta=5)
    assert "favoured" not in found
    assert "its cost still acts" in found["direction"].text


def test_group_sizes_that_differ():
    frame = small([1, 0], np.full(2, np.nan), counts=[36, 28])
    frame["group_id"] = np.repeat(np.arange(16), [6, 2] * 8)
    asked = diagnose(frame, Recipe("loss", "k2", baseline="mean", group_size=6), beta=0.1)
    assert asked.recipe.group_size == 6
    assert "groups of 2 to 6 rollouts: 6, that of the recipe, counts" in asked.notes
    found = diagnose(frame, Recipe("loss", "k2", baseline="mean"), beta=0.1)
    assert found.recipe.group_size == 4


def test_the_first_step_begins_the_curves():
    found = diagnose(sampled("reverse", 0.4, 0, steps=30), Recipe("reward", "k1"), beta=0.4)
    assert re.search(r"along the steps +0 +… +29$", str(found), re.MULTILINE)


def test_group_statistics_are_those_of_pandas():
    frame = sampled("reverse", 0.4, 3)
    log = log_of(frame)
    groups = groups_of(log, 1.0, 1)
    by = frame.groupby("group_id")
    assert groups.deviation == pytest.approx(by["reward"].std().to_numpy())
    assert groups.equal.tolist() == (by["reward"].nunique() == 1).tolist()
    assert groups.right.tolist() == by["reward"].apply(lambda r: (r >= 1).sum()).tolist()
    pairs = by["answer"].apply(
        lambda a: np.mean([x != y for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    )
    assert groups.differ == pytest.approx(pairs.to_numpy())
    expected = [float(kt.modes.pass_at_k_from_counts(int(c), 8, 4)) for c in groups.right]
    assert pass_at(groups, np.ones(len(groups.size), bool), 4) == pytest.approx(expected, abs=1e-6)


def test_intervals():
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert median_interval(np.arange(101.0)) == (50.0, (40.0, 60.0))
    # From six values on some pair of them holds the median with 95 %: here as often as it says.
    assert median_interval(np.arange(5.0))[1] is None
    for size in (6, 7, 10, 25):
        low, high = (int(x) for x in median_interval(np.arange(float(size)))[1])
        ways = [math.comb(size, k) for k in range(size + 1)]
        assert sum(ways[low + 1 : high + 1]) >= 0.95 * 2**size > sum(ways[low + 2 : high])


@pytest.mark.parametrize("number", [3, 10, 30])
@pytest.mark.parametrize("p", [0.5, 0.95, 0.99])
def test_intervals_of_shares_hold_what_they_say(number, p):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        mean, (low, high) = share_interval(rng.binomial(8, p, number) / 8)
        assert 0 <= low <= mean <= high <= 1
        assert low < high
        held += low <= p <= high
    # 95 % of 300 is 285; fewer than 276 have a chance of 1 %.
    assert held >= 276
    assert share_interval(np.ones(1)) == (1.0, None)
    assert mean_interval(np.full(4, 0.7)) == (pytest.approx(0.7), None)


def test_an_effective_beta_per_group(short):
    statement = short["effective_beta"]
    assert statement.value == pytest.approx(0.04 * 8 / 7 * (np.sqrt(1 / 8) + 1e-4), rel=1e-6)
    assert "differ by group" in statement.text
    large = diagnose(SHORT, Recipe("reward", "k1", normalize="group-std"), beta=0.04)
    assert large["effective_beta"].value == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe("loss", "k1"), "no expected gradient"),
        (Recipe("loss", "sampler"), "the policy that drew the sample"),
        (Recipe("none"), "the recipe has no KL"),
        (Recipe("loss", "absolute"), "total variation"),
        (Recipe("reward", "k3"), "no divergence"),
        (Recipe("loss", "k2"), "reverse KL(π‖π_ref)"),
        (Recipe("reward", "k1", normalize="batch-std"), "reverse KL(π‖π_ref)"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_every_recipe_has_a_page(recipe, words):
    found = diagnose(SHORT, recipe, beta=0.2)
    assert words in found["direction"].text
    assert len(str(found)) > 1000
    assert Diagnosis.from_dict(json.loads(found.to_json())).to_json() == found.to_json()


def test_every_statement_says_on_what_it_rests(graded, short):
    for found in (graded, short):
        for statement in found.statements:
            assert statement.text
            assert statement.tier in (1, 2, 3)
            assert statement.refused or statement.assumptions, statement.name
            if statement.interval is not None:
                low, high = statement.interval
                assert low <= statement.value <= high, statement.name
                assert statement.sample_size > 0


def test_the_page(graded, short):
    for found in (graded, short):
        page = str(found)
        assert max(map(len, page.splitlines())) <= 100
        for heading in (
            *("In short", "From the rewards", "From the reference's log-probabilities"),
            *("From the policy's log-probabilities", "Assumptions", "Notes", "along the steps"),
        ):
            assert heading in page
        letters = set(re.findall(r"^  ([a-z])  ", page, re.MULTILINE))
        used = re.findall(r"(?:; |\[)((?:[a-z]\s+)*[a-z])\s*\]", page)
        assert {x for group in used for x in group.split()} == letters
    verdict = ("pass@1 is 1", "k1 in the loss", "cannot tell")
    page = str(dataclasses.replace(graded, verdict=verdict))
    assert "• pass@1 is 1.\n  • k1 in the loss.\n  • Cannot tell.\n" in page
    page = str(graded)
    assert "“2” overtakes “7” below β = 0.6912 (effective 0.7899)" in page
    assert "MARA would pay" in page
    assert "ratio^(1/8)" in page
    assert "the augmentation over-corrects" in page


def test_answers_may_hold_what_parts_sentences():
    """And the word that says that a run is far from its target."""
    names = {"a": "It is 1. Sure", "b": "so far; 2", "c": "3; or 4. Far"}
    log_ref = np.log([0.6, 0.3, 0.1])
    frame = small([0, 1, 1], log_ref, counts=[10, 50, 36])
    with jax.enable_x64(True):
        log_probs = np.asarray(
            kt.solve(kt.Objective(np.array([0.0, 1, 1]), log_ref, 0.4)).log_probs
        )
    frame["logp"] = frame["answer"].map(dict(zip("abc", log_probs, strict=True)))
    plain = diagnose(frame, Recipe("reward", "k1"), beta=0.4)
    frame["answer"] = frame["completion"] = frame["answer"].map(names)
    found = diagnose(frame, Recipe("reward", "k1"), beta=0.4)

    def renamed(text):
        return re.sub("“([abc])”", lambda match: f"“{names[match[1]]}”", text)

    assert any("“" in text for text in plain.verdict)
    assert found.verdict == tuple(map(renamed, plain.verdict))
    for statement in found.statements:
        assert statement.text.startswith(statement.headline)
        assert statement.warning == plain[statement.name].warning
        assert statement.headline.count("“") == statement.headline.count("”")
    for sentence in found.verdict:
        assert sentence[1:40] in str(found)


def test_a_run_far_from_its_target_is_a_warning(short, graded):
    assert short["distance"].warning
    assert not graded["distance"].warning


def test_unseen_answers_may_decide_how_far_a_run_is():
    """At its target, with half of the right answers in no rollout."""
    probs = np.array([0.05] * 8 + [0.6])
    reward = np.array([1.0] * 8 + [0.0])
    target = probs * np.exp(reward)
    target /= target.sum()
    seen = [0, 1, 2, 3, 8]
    rows = [
        {"prompt": "?", "completion": str(k), "answer": str(k), "reward": reward[k], "step": step,
         "group_id": 10 * step + i // 5, "ref_logp": np.log(probs[k]), "logp": np.log(target[k])}
        for step in range(4)
        for i, k in enumerate(seen * 2)
    ]  # fmt: skip
    found = diagnose(pd.DataFrame(rows), Recipe("loss", "k2", "sequence"), beta=1.0)["distance"]
    lowest = np.append(probs[seen] * np.exp(reward[seen]), 0.2)
    lowest /= lowest.sum()
    apart = np.abs(lowest - np.append(target[seen], 4 * target[4])).sum() / 2
    assert apart > 0.1
    assert f"0 to {apart:.2g} away from the target" in found.text
    assert "by how unseen answers are rewarded" in found.text
    assert not found.warning


def test_errors_carry_their_argument():
    for options, argument in (
        ({"answer": "best"}, "answer"),
        ({"format": "trll"}, "format"),
        ({"columns": {"x": "y"}}, "columns"),
        ({"num_generations": 7}, "num_generations"),
    ):
        with pytest.raises(RolloutError, match=argument) as error:
            read_rollouts(DATA / "trl116_grpo_digit_b004", **options)
        assert error.value.argument == argument
    with pytest.raises(ValueError, match=r"^beta is needed: pass beta=0\.04, for") as error:
        diagnose(GRADED, K3)
    assert error.value.argument == "beta"


def test_mara_makes_the_best_answers_equal(graded):
    featured = graded.featured
    paid = jnp.asarray(featured.mara_reward)
    log_ref = jnp.log(jnp.asarray(featured.reference))
    log_ref = log_ref - jnp.log(jnp.exp(log_ref).sum())
    target = kt.solve(kt.Objective(paid, log_ref, featured.effective_beta)).probs
    i, j = featured.names.index("2"), featured.names.index("1")
    assert float(target[i]) == pytest.approx(float(target[j]), rel=1e-4)


def test_json_round_trip(graded, short, tmp_path):
    for found in (graded, short, diagnose(AT_ZERO, GRPO, beta=0)):
        found.save(tmp_path / "found.json")
        again = Diagnosis.load(tmp_path / "found.json")
        assert str(again) == str(found)
        assert again.to_json() == found.to_json()
        assert again.recipe == found.recipe
        assert again.statements[0] == found.statements[0]


def test_the_table_of_prompts(short):
    table = short.to_dataframe()
    assert len(table) == 4
    assert table["rollouts"].sum() == 960
    assert table["effective_beta"].notna().all()
    several = table["right_answers"] > 1
    assert table.loc[several, "target_modes"].to_numpy() == pytest.approx(
        table.loc[several, "reference_modes"].to_numpy(), rel=1e-5
    )


def test_html(graded):
    page = pages.diagnosis(graded)
    assert page.startswith("<!DOCTYPE html>")
    # Two figures, each for light and for dark pages.
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page.replace("http-equiv", "")
    for words in ("In short", "“digit:”", "the log follows the forward KL", "Assumptions"):
        assert words in page
    assert "<img" not in graded._repr_html_()
    frame = sampled("reverse", 0.4, 0)
    frame["prompt"] = "<script>alert(1)</script>"
    found = diagnose(frame[frame["group_id"] < 4], Recipe("reward", "k1"), beta=0.4)
    assert "<script>alert" not in pages.diagnosis(found)


def test_the_figure(graded):
    left, right = plot.diagnosis(graded).axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        *("reference", "target", "now")
    ]
    assert len(left.patches) == 27
    heights = [bar.get_height() for bar in left.patches[9:18]]
    assert heights == sorted(heights, reverse=True)
    assert [line.get_xdata()[0] for line in right.lines if len(set(line.get_xdata())) == 1] == [
        *(0.3, *(flip["beta"] for flip in graded.featured.flips))
    ]
    assert right.get_xscale() == "log"
    assert right.texts[0].get_text() == "configured 0.3"
    assert plot.answers(graded).get_title(loc="left") == "“digit:”"
    assert plot.beta_path(graded).get_xlabel() == "β of the trainer"


def test_the_same_call_gives_the_same_numbers(graded):
    assert diagnose(GRADED, K3, beta=0.3).to_json() == graded.to_json()
    assert diagnose(GRADED, K3, beta=0.3, key=jax.random.key(1)).to_json() != graded.to_json()


def test_group_sizes_come_from_the_log():
    found = diagnose(SHORT, Recipe("loss", "k3", baseline="mean", group_size=16), beta=0.1)
    assert found.recipe.group_size == 8
    assert "groups of 8 in the log, 16 in the recipe: 8 is used" in found.notes


@pytest.mark.slow
def test_a_preset_by_its_name(capsys):
    found = diagnose(GRADED, "trl-grpo==1.9.2", beta=0.3)
    assert "trl-grpo==1.9.2" in str(found)
    # Fields of the preset are overridden by name.
    options = ("--trainer", "trl-grpo==1.9.2", "--recipe", "normalize=none", "--beta", "0.3")
    code, out, err = run(capsys, "diagnose", GRADED, *options)
    assert (code, err) == (0, "")
    assert "0.343" in out


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda f: f.iloc[:0], RolloutError, "there are no rollouts"),
        (lambda f: f.assign(reward=np.nan), RolloutError, "no rewards"),
        (lambda f: f.drop(columns="answer"), RolloutError, "no column 'answer'"),
    ],
)
def test_frames_that_say_nothing(change, error, words):
    with pytest.raises(error, match=words):
        diagnose(change(sampled("reverse", 0.4, 0)), K3, beta=0.1)


def test_frames_with_holes():
    frame = sampled("reverse", 0.4, 0).astype({"answer": object})
    frame.loc[::7, "reward"] = np.nan
    frame.loc[::5, "answer"] = None
    frame.loc[::3, "ref_logp"] = np.nan
    frame.loc[::4, "logp"] = np.nan
    frame["step"] = pd.array([None] * len(frame), dtype="Int64")
    found = diagnose(frame, K3, beta=0.1)
    assert any("without a finite reward left out" in note for note in found.notes)
    assert "(no answer)" in str(found)
    assert found.size["steps"] == 0
    with pytest.raises(RolloutError, match="do not say the steps"):
        diagnose(frame, K3, beta=0.1, reference="first-step")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ValueError, "beta is needed"),
        ({"beta": -0.1}, ValueError, "0 or more"),
        ({"beta": float("nan")}, ValueError, "finite"),
        ({"beta": 0.1, "reference": "last"}, ValueError, "'first-step'"),
        ({"beta": 0.1, "max_prompts": 0}, ValueError, "max_prompts"),
        ({"beta": 0.1, "num_bootstrap": 0}, ValueError, "num_bootstrap"),
    ],
)
def test_bad_options(options, error, words):
    with pytest.raises(error, match=words):
        diagnose(sampled("reverse", 0.4, 0, steps=1), Recipe("reward", "k1"), **options)
    with pytest.raises(TypeError, match="recipe"):
        diagnose(sampled("reverse", 0.4, 0, steps=1), 3, beta=0.1)


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command(capsys, tmp_path):
    files = {"--json": "found.json", "--html": "report.html", "--plot": "out.png"}
    options = [x for name, file in files.items() for x in (name, tmp_path / file)]
    code, out, err = run(
        *(capsys, "diagnose", GRADED, "--recipe", AS_OPTION, "--beta", "0.3", *options)
    )
    assert (code, err) == (0, "")
    assert out.startswith("Held: right answers are about as different as they were.\n  1. Nothing")
    assert "\nkltarget diagnose · trl-logp: 1,120 rollouts of 1 prompt" in out
    assert f"wrote {tmp_path / 'report.html'}" in out
    found = Diagnosis.load(tmp_path / "found.json")
    assert str(found) in out
    assert found.recipe == Recipe("loss", "k3", "token", "mean", group_size=8, beta=0.3)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_preset_whose_beta_nobody_gave(capsys, tmp_path):
    path = tmp_path / "rollouts.csv"
    small([1, 0], np.full(2, np.nan)).to_csv(path, index=False)
    options = ["--trainer", "trl-grpo==1.10", "--recipe", "normalize=none", "--format", "generic"]
    code, out, err = run(capsys, "diagnose", path, *options)
    assert (code, err) == (0, "")
    assert "recipe: trl-grpo==1.10 with normalize=none, groups of 8; β = 0" in out
    assert out.count("the default of trl-grpo==1.10 with normalize=none: give beta (--beta)") == 2
    code, out, err = run(capsys, "diagnose", path, *options[:3], "normalize=none,beta=0.1")
    assert (code, err) == (0, "")
    assert "; β = 0.1" in out
    assert "default" not in out


def test_the_command_reads_files_of_ones_own(capsys, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("q,a,r\none?,so 1,1\none?,so 2,0\none?,or 1,1\none?,,0\n")
    options = ["--columns", "prompt=q,completion=a,reward=r", "--answer", "number"]
    options += ["--group-size", "4", "--skip-bad", "--recipe", "place=reward", "--beta", "1"]
    code, out, err = run(capsys, "diagnose", path, *options)
    assert (code, err) == (0, "")
    assert re.search(r"^  1 +2 +1 ", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (None, [], "no such file"),
        ("", [], "empty"),
        ("prompt,completion,reward\n", [], "empty, or has no row"),
        ("prompt,completion,reward\na,b,nan\n", [], "reward"),
        ("prompt,completion,reward\na,b,inf\n", [], "reward"),
        ("prompt,completion,reward\na,b,one\n", [], "reward"),
        (
            "prompt,completion,reward,ref_logp\na,b,1,0.5\n",
            [],
            "ref_logp: 0.5 is no log-probability",
        ),
        ("x,y\n1,2\n", [], "columns"),
        ("prompt,completion,reward\na,b,1\n", ["--beta", "-1"], "--beta"),
        ("prompt,completion,reward\na,b,1\n", ["--beta", "nan"], "--beta"),
        ("prompt,completion,reward\na,b,1\n", ["--answer", "best"], "--answer best is no rule"),
        ("prompt,completion,reward\na,b,1\n", ["--group-size", "7"], "--group-size 7 does not fit"),
        ("prompt,completion,reward\na,b,1\n", ["--format", "trll"], "--format trll is none of"),
        ("x,y\n1,2\n", [], "by --columns prompt=…,completion=…,reward=…"),
        ("prompt,completion,reward\na,b,1\n", ["--columns", "a"], "name=column"),
        ("prompt,completion,reward\na,b,1\n", ["--group-size", "0"], "--group-size"),
        ("prompt,completion,reward\na,b,1\n", ["--recipe", "place=los"], "place"),
        ("prompt,completion,reward\na,b,1\n", ["--recipe", "kl=1"], "fields"),
        ("prompt,completion,reward\na,b,1\n", ["--recipe", "normalise=none"], "'normalize'"),
        ("prompt,completion,reward\na,b,1\n", ["--trainer", "trl-grp"], "trl-grpo"),
        ("prompt,completion,reward\na,b,1\n", ["--reference-from-first-step"], "steps"),
        ("prompt,completion,reward\na,b,1\n", ["--plot", "no/where.png"], "no folder"),
        ("prompt,completion,reward\na,b,1\n", ["--plot", "x.doc"], "cannot draw"),
        ("prompt,completion,reward\na,b,1\n", ["--watch", "0"], "--watch"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, tmp_path, content, options, words):
    path = tmp_path / "rollouts.csv"
    if content is not None:
        path.write_text(content)
    base = ["--recipe", "place=reward"] if "--recipe" not in options else []
    base += ["--beta", "0.1"] if "--beta" not in options else []
    code, out, err = run(capsys, "diagnose", path, *base, *options)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("kltarget: ")
    assert words in err


def test_no_beta_is_one_line(capsys):
    code, out, err = run(capsys, "diagnose", GRADED, "--recipe", AS_OPTION)
    assert (code, out) == (2, "")
    assert "beta is needed: --beta 0.04" in err


def watching(path):
    options = "--recipe place=reward --beta 0.1 --max-prompts 10 --watch 0.01"
    return "diagnose", path, *options.split()


def test_watching_a_folder(capsys, tmp_path, monkeypatch):
    rows = '{"prompt": "a?", "completion": "1", "reward": 1.0, "step": %d}\n'
    steps = iter(range(1, 4))

    def arrives(seconds):
        assert seconds == 0.01
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        if step < 3:
            (tmp_path / f"{step}.jsonl").write_text(rows % step)

    monkeypatch.setattr(time, "sleep", arrives)
    code, out, err = run(capsys, *watching(tmp_path))
    assert (code, err) == (130, "kltarget: interrupted\n")
    assert out.startswith("waiting: ")
    assert "1 logged step, step 1" in out
    assert "2 logged steps, 1 to 2" in out
    # Nothing came in the last round, so nothing was printed.
    assert out.count("kltarget diagnose ·") == 2


def test_ctrl_c_ends_watching(capsys, tmp_path, monkeypatch):
    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", stop)
    page = tmp_path / "page.html"
    code, out, err = run(capsys, *watching(GRADED), "--html", page)
    assert code == 130
    assert "\nkltarget diagnose ·" in out
    assert re.fullmatch(rf"kltarget: interrupted: {re.escape(str(page))} is as of [-:\d ]+\n", err)
    text = page.read_text("utf-8")
    assert "no longer watched" in text
    assert "location.reload" not in text
    assert "http-equiv" not in text


def test_a_watched_page_loads_itself_again(tmp_path, monkeypatch):
    page, seen = tmp_path / "page.html", []

    def look(seconds):
        seen.append(page.read_text("utf-8"))
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", look)
    assert cli.main([str(x) for x in (*watching(GRADED), "--html", page)]) == 130
    (text,) = seen
    # Not more often than every two seconds, though files are looked at a hundred times as often.
    assert text.count("location.reload(), 2000") + text.count("}, 2000);") == 1
    assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in text
    assert re.search(r"Files read at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d; looked at again", text)
    assert text.index("location.reload") < text.index("</head>") < text.index("Files read at")
    # What stays is the same page without that.
    said = re.compile(r'<p style="opacity[^>]*>Files read at .*?</p>')
    stays = said.sub("", page.read_text("utf-8"))
    cut = re.sub(r"<script>.*?</noscript>\n", "", said.sub("", text), count=1, flags=re.DOTALL)
    assert stays == cut


@pytest.mark.slow
def test_hundreds_of_thousands_of_rollouts(tmp_path):
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
    try:
        import bench_rollouts
    finally:
        sys.path.pop(0)
    path = tmp_path / "rollouts.parquet"
    bench_rollouts.make(path, 300_000, 3_000)
    few = tmp_path / "few.parquet"
    bench_rollouts.make(few, 1_000, 100)
    small, found = map(bench_rollouts.measure, (few, path))
    assert found["tier"] == 3
    # At most a kilobyte for each rollout: what the libraries take differs between machines.
    assert (found["peak_gib"] - small["peak_gib"]) * 2**30 < 3e8


MOVED = {
    "a reference that moves": (
        {"reference": "averaged", "reference_every": 64, "reference_share": 0.6},
        "the reference moves: what is said of targets is of the reference that was logged",
    ),
    "a temperature": ({"temperature": 0.7}, "are taken to be at the recipe's temperature, 0.7"),
    "a controller": ({"kl_target": 0.3}, "a controller moves β: give the one that the run had"),
    "weighed rewards": ({"reward_weights": (1.0, 0.5)}, None),
}


@pytest.mark.parametrize("name", MOVED)
def test_what_moved_is_as_it_was_logged(name):
    fields, note = MOVED[name]
    frame = sampled("forward", 0.3, 1, prompts=2, steps=3, groups=2)
    whole = Recipe("loss", "k3", baseline="mean", group_size=8)
    plain = diagnose(frame, whole, beta=0.3, num_bootstrap=20)
    found = diagnose(frame, dataclasses.replace(whole, **fields), beta=0.3, num_bootstrap=20)
    assert found["distance"].value == plain["distance"].value
    told = [x for x in found.notes if x not in plain.notes]
    assert len(told) == (note is not None)
    assert note is None or note in told[0]


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"teacher": 0.2}, "no target: the recipe has a teacher"),
        (
            {
                "reward_weights": (1.0, 0.5),
                "combine": "normalize-then-sum",
                "normalize": "group-std",
            },
            "no target: rewards are normalised one by one",
        ),
    ],
)
def test_targets_that_need_what_no_log_has(fields, note):
    frame = sampled("forward", 0.3, 1, prompts=2, steps=3, groups=2)
    recipe = Recipe("loss", "k3", baseline="mean", group_size=8, **fields)
    found = diagnose(frame, recipe, beta=0.3, num_bootstrap=20)
    assert any(x.startswith(note) for x in found.notes)
    assert found.tier == 1


def test_fields_of_a_recipe_on_the_command_line(capsys, tmp_path):
    fields = f"{AS_OPTION},reference=copied,reference_every=64,reward_weights=1:0.5"
    code, _, err = run(
        *(capsys, "diagnose", GRADED, "--recipe", fields, "--beta", "0.3", "--json"),
        tmp_path / "found.json",
    )
    assert (code, err) == (0, "")
    assert Diagnosis.load(tmp_path / "found.json").recipe.reference == "fixed"
