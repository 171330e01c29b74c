"""What a forecast says of answers, tokens, samples and coefficients, prompt by prompt."""

import dataclasses
import json

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.special import rel_entr
from test_forecast import GROUPS, RECIPES, REVERSE, table
from test_forecast_graded import log_of

from kltarget import cli
from kltarget.evidence import effective_number, missed_share, number_of_answers
from kltarget.forecasts import Forecast, forecast
from kltarget.implied import effective_beta, implied_target
from kltarget.recipes import Recipe, critical_beta

ANSWERS = np.array([0.4, 0.2, 0.15, 0.15, 0.1])
REWARDS = np.array([0.0, 0.5, 0.5, 1.0, 1.0])


def answered(number=5000, rewards=REWARDS, prompts=2):
    """A log of answers in exact proportions."""
    counts = np.round(ANSWERS * number).astype(int)
    log = log_of([np.repeat(rewards, counts)] * prompts)
    return log.assign(answer=np.tile(np.repeat(list("abcde"), counts), prompts))


def in_effect(probs):
    return float(np.exp(-rel_entr(probs, np.ones_like(probs)).sum()))


def test_answers_of_several_rewards():
    betas = np.geomspace(0.05, 20, 25)
    found = forecast(answered(), REVERSE, beta=betas, threshold=1.0)
    with jax.enable_x64(True):
        target = implied_target(REVERSE, REWARDS, np.log(ANSWERS), beta=betas)
    truth = np.array([in_effect(x) for x in np.asarray(target.probs)])
    curve = np.array(found.curves["effective_answers"])[:, 1]
    np.testing.assert_allclose(curve, truth, rtol=0.01)
    np.testing.assert_allclose(found.start["effective_answers"], in_effect(ANSWERS), rtol=0.02)
    choice = found.choose(keep_answers=0.8)
    assert choice.low <= choice.beta <= choice.high
    with jax.enable_x64(True):
        target = implied_target(REVERSE, REWARDS, np.log(ANSWERS), beta=choice.beta)
    assert abs(in_effect(np.asarray(target.probs)) / in_effect(ANSWERS) - 0.8) < 0.02
    # 0.15 and 0.1 are right, and stay so at every β.
    low, middle, high = found.right_answers["effective"]
    assert low <= middle <= high
    assert abs(middle - in_effect(np.array([0.6, 0.4]))) < 0.01
    low, middle, high = found.right_answers["number"]
    assert (low, middle) == (2.0, 2.0)
    assert np.isnan(high)
    never = found.choose(keep_answers=1.1)
    assert np.isnan(never.beta)
    assert "equal reward keep the reference's proportions" in never.reason


def test_where_no_beta_keeps_the_answers_the_page_says_so():
    every = forecast(answered(200), REVERSE, beta=[0.02, 0.05, 0.1])
    # What is chosen does not hang on which β are shown.
    assert every.choose(keep_answers=0.9) == forecast(answered(200), REVERSE).choose(
        keep_answers=0.9
    )
    few = {name: np.array(x)[:, :9].tolist() for name, x in every.draws.items()}
    found = dataclasses.replace(every, draws=few, draws_beta=every.draws_beta[:9])
    assert found.draws_beta[-1] < 0.05
    text = " ".join(str(found).split())
    assert "No β between 0.01 and 0.04 keeps nine tenths of these, wrong ones included" in text
    assert "MARA (kltarget.mara) evens out those with a reward of its threshold or more" in text
    assert found.choose(keep_answers=0.9).reached == 0
    kept = " ".join(str(forecast(answered(200), REVERSE)).split())
    assert "keeps nine tenths of them" in kept


def test_answers_of_right_and_wrong():
    found = forecast(answered(2000, REWARDS == 1.0), REVERSE)
    assert abs(found.right_answers["effective"][1] - in_effect(np.array([0.6, 0.4]))) < 0.01
    choice = found.choose(keep_answers=0.9)
    assert np.isnan(choice.beta)
    assert choice.reason.startswith("every β keeps them all")
    assert "No β makes them more even" in " ".join(str(found).split())
    again = Forecast.from_dict(json.loads(found.to_json()))
    assert again.to_json() == found.to_json()


def test_where_no_answer_recurs_nothing_is_said_of_answers():
    found = forecast(log_of([[0, 0.5, 1.0, 1.0]] * 3), REVERSE, beta=[0.1, 1.0], threshold=1.0)
    assert found.right_answers == {}
    assert "effective_answers" not in found.curves
    with pytest.raises(ValueError, match="keep_answers needs samples with answers"):
        found.choose(keep_answers=0.5)


def test_numbers_of_answers_by_hand():
    # Two singletons and one doubleton of eleven samples: 10/11 · 2 · 1/(2 · 2) unseen.
    low, middle, high = number_of_answers(np.array([7, 2, 1, 1]))
    assert abs(middle - (4 + 10 / 11 / 2)) < 1e-12
    # Its variance is 0.4545 + 0.9298 + 0.0517, so that the interval has a factor of 16.8.
    assert (low, high) == (4, 12)
    # Where none, or one alone, was seen just once, nothing says how many were not seen.
    for counts in ([5, 3], [5, 1]):
        low, middle, high = number_of_answers(np.array(counts))
        assert (low, middle) == (2.0, 2.0)
        assert np.isnan(high)


def test_the_rule_of_three():
    for size in (2, 8, 100):
        assert abs((1 - missed_share(size)) ** size - 0.05) < 1e-12
    assert abs(missed_share(1000) * 1000 - 3) < 0.01


def right_ones(*counts):
    """A log of right answers of these counts a prompt, and a wrong one each."""
    log = log_of([np.repeat([1.0, 0.0], [sum(x), 1]) for x in counts])
    named = [np.repeat([*"abcdefgh"[: len(x)], "z"], [*x, 1]) for x in counts]
    return log.assign(answer=np.concatenate(named))


def test_what_was_not_seen_is_not_said_to_be_none():
    found = forecast(right_ones([4], [2, 2]), REVERSE)
    assert np.isnan(found.right_answers["number"][2])
    text = " ".join(str(found).split())
    assert "A prompt shows 1.5 different right answers, 1.5 in effect" in text
    # 1 − 0.05^(1/4).
    assert "a further one with a share below 53 % of a prompt's right ones is missed" in text
    assert "(1.5–1.5)" not in text
    again = Forecast.from_dict(json.loads(found.to_json()))
    assert str(again) == str(found)


@pytest.mark.parametrize("counts", [[[1, 1, 1]], [[1, 1, 3], [2]], [[6, 5, 5], [4, 4]]])
def test_no_more_answers_in_effect_than_there_are(counts):
    answers = forecast(right_ones(*counts, [2, 1]), REVERSE).right_answers
    for number, effective in zip(answers["number"], answers["effective"], strict=True):
        most = answers["number"][1] if np.isnan(number) else number
        assert effective <= most + 1e-9


def test_numbers_of_answers_hold_the_truth():
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(200):
        counts = rng.multinomial(40, np.full(20, 1 / 20))
        low, _, high = number_of_answers(counts[counts > 0])
        held[0] += low <= 20 <= high
        value, error = effective_number(counts[counts > 0], rng)
        held[1] += abs(value - 20) <= 1.96 * error
    assert (held / 200 > 0.9).all(), held


@pytest.mark.broad
def test_the_command_keeps_answers(capsys, tmp_path):
    samples = tmp_path / "samples.jsonl"
    log = answered(100)
    log["completion"] = log["answer"]
    log[["prompt", "completion", "reward"]].to_json(samples, orient="records", lines=True)
    command = ["forecast", str(samples), "--recipe", "place=reward,estimator=k1"]
    assert cli.main([*command, "--keep-answers", "0.8"]) == 0
    assert "keeps 80 % of the effective answers." in capsys.readouterr().out
    assert cli.main([*command, "--keep-answers", "2"]) == 0
    assert "No β between 0.01 and 10 keeps 200 % of the effective" in capsys.readouterr().out
    assert cli.main([*command, "--keep-answers", "0.8", "--reward", "0.5"]) == 2
    assert "--reward and --keep-answers: choose one of them" in capsys.readouterr().err


def test_samples_that_the_target_rests_on():
    betas = np.array([0.1, 0.5, 2.0])
    found = forecast(table([2, 0], [8, 4]), REVERSE, beta=betas)
    weights = np.array([np.repeat([np.exp(1 / b), 1.0], [2, 6]) for b in betas])
    size = weights.sum(1) ** 2 / (weights**2).sum(1)
    np.testing.assert_allclose(found.effective_samples, (size + 4) / 2, rtol=1e-6)
    assert "the target rests on 3.0 of the 6 samples a prompt" in " ".join(str(found).split())
    # Where all samples are right each counts: eight are all there are.
    for correct in ([8, 8], [8, 0]):
        assert "the target rests on" not in str(forecast(table(correct, 8), REVERSE))
    many = forecast(table([300, 400], 800), REVERSE, beta=betas)
    assert "the target rests on" not in str(many)


@pytest.mark.parametrize("name", ["reverse", "groups", "large groups"])
def test_effective_betas_by_prompt(name):
    p, beta = np.array([0.1, 0.5]), 2.5
    recipe = RECIPES[name]
    found = forecast(table((p * 10**6).astype(int), 10**6), recipe, beta=beta)
    log_ref = np.log(np.stack([1 - p, p], axis=1))
    with jax.enable_x64(True):
        known = effective_beta(recipe, np.array([0.0, 1.0]), log_ref, beta=np.full(2, beta))
    own = found.dataset["prompt_effective_beta"][:, 0, 1]
    np.testing.assert_allclose(own, known, rtol=5e-3)
    if name == "large groups":
        exact = forecast(
            table((p * 10**6).astype(int), 10**6),
            Recipe("loss", "k2", baseline="mean", normalize="group-std"),
            beta=[1.0, 4.0],
        )
        critical = exact.dataset["prompt_saturation_beta"][:, 1]
        np.testing.assert_allclose(critical, critical_beta(p), rtol=1e-2)


@pytest.mark.broad
def test_what_deviations_make_of_beta_is_said():
    counts, betas = table([2, 6, 12, 16, 8, 1], 20), np.geomspace(0.05, 5, 9)
    text = " ".join(str(forecast(counts, GROUPS, beta=betas)).split())
    assert "the effective β of the median prompt is" in text
    assert "divided by their deviation" not in str(forecast(counts, REVERSE, beta=betas))


def test_kl_per_token():
    log = answered(100).assign(num_tokens=4.0)
    found = forecast(log, REVERSE, beta=[0.2, 1.0])
    assert found.tokens == 4.0
    data = found.dataset
    np.testing.assert_allclose(data["kl_per_token"], data["kl"] / 4)
    assert "A sample has 4 tokens on average" in " ".join(str(found).split())
    assert "kl_per_token" not in forecast(table([1], 4), REVERSE).dataset


HARD = {
    "one sample a prompt": [[0.0], [0.5], [1.0], [0.0], [0.5]],
    "unequal numbers": [[0.0], [0.5, 1.0, 0.0], [0.0, 0.5] * 20],
    "all the best": [[1.0] * 4, [1.0] * 4, [1.0] * 4, [0.0, 0.5, 1.0, 1.0]],
    "all the least": [[0.0] * 4, [0.0] * 4, [0.0] * 4, [0.0, 0.5, 1.0, 0.0]],
    "one prompt": [[0.0, 0.5, 0.5, 1.0]],
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("recipe", ["reverse", "groups"])
def test_samples_that_say_little(name, recipe):
    found = forecast(log_of(HARD[name]), RECIPES[recipe], beta=[0.1, 1.0], threshold=1.0)
    for curve in (*found.curves.values(), *found.pass_at_k):
        low, middle, high = np.array(curve).T
        assert ((low <= middle) & (middle <= high) | np.isnan(middle)).all()
    low, _, high = np.array(found.curves["expected_reward"]).T
    assert ((low >= 0) & (high <= 1)).all()
    # What few samples leave open is left open: no success is a bare number.
    low, _, high = np.array(found.pass_at_k[0]).T
    assert (high > low).all()
    assert str(found)


def test_rewards_that_are_missing_or_twice():
    log = log_of([[0.0, 0.5, 1.0, np.nan], [0.0, np.nan, 0.5, 1.0]])
    found = forecast(log, REVERSE, beta=1.0)
    assert found.samples == [3, 3]
    assert any("2 of 8 rollouts without a finite reward left out" in x for x in found.notes)
    # A sample that is there twice was drawn twice.
    twice = pd.concat([log, log], ignore_index=True)
    assert forecast(twice, REVERSE, beta=1.0).samples == [6, 6]
    with pytest.raises(ValueError, match="the prompt 'a' is in row 1 too"):
        forecast(pd.DataFrame({"prompt": ["a", "a"], "correct": 1, "samples": 4}), REVERSE)
