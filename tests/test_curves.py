"""What a diagnosis says of curves alone: means that policies of known targets would log."""

from __future__ import annotations

import math
import pathlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from scipy.special import rel_entr, softmax

import kltarget as kt
from kltarget import pages, plot
from kltarget.cli import main
from kltarget.diagnosis import Diagnosis, diagnose
from kltarget.recipes import Recipe, recipe
from kltarget.rollouts import read_scalars

LOGS = pathlib.Path(__file__).parent / "data" / "rollouts"
REVERSE = Recipe("reward", "k1", baseline="leave-one-out")
NAMES = ("reward", "reward_deviation", "kl", "entropy", "zero_std", "length", "beta")


def curves(*, kl_per="answer", steps=None, **columns):
    """A frame as ``read_scalars`` returns, the columns that are not given NaN."""
    size = len(next(iter(columns.values())))
    steps = list(range(1, size + 1)) if steps is None else steps
    frame = pd.DataFrame({"step": steps, **dict.fromkeys(NAMES, math.nan)})
    frame = frame.assign(**columns)
    frame.attrs = {"format": "table", "kl_per": kl_per, "notes": []}
    return frame


def logged(reference, policy, reward):
    """Mean reward and KL(π‖π_ref) at the start and then, five times, of the policy."""
    rewards = [float(reference @ reward), *[float(policy @ reward)] * 5]
    kl = [0.0, *[float(rel_entr(policy, reference).sum())] * 5]
    return curves(reward=rewards, kl=kl)


def target(reference, reward, beta):
    """By the closed form, in NumPy."""
    return softmax(np.log(reference) + reward / beta)


POSITIVE = st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4)


@hypothesis.given(POSITIVE, POSITIVE, st.lists(st.floats(0, 1), min_size=4, max_size=4))
@hypothesis.settings(max_examples=15)
def test_no_policy_raises_its_reward_for_less_than_the_least(p, q, reward):
    reference, policy = np.array(p) / np.sum(p), np.array(q) / np.sum(q)
    found = diagnose(logged(reference, policy, np.array(reward)), REVERSE, beta=0.1)
    if "kl_budget" in found:
        assert found["kl_budget"].value >= 1 - 1e-9
        assert not found["kl_budget"].warning


@pytest.mark.parametrize("beta", [0.05, 0.3, 2.0])
def test_at_its_target_a_run_gained_more_than_it_was_charged(beta):
    reference, reward = np.array([0.3, 0.02, 0.5, 0.18]), np.array([1.0, 1.0, 0.0, 0.4])
    found = diagnose(logged(reference, target(reference, reward, beta), reward), REVERSE, beta=beta)
    assert found["price"].value > beta
    assert not found["price"].warning


def test_a_run_that_paid_more_than_it_gained_is_told():
    reference, reward = np.array([0.3, 0.02, 0.5, 0.18]), np.array([1.0, 1.0, 0.0, 0.4])
    charged = 1.0
    policy = target(reference, reward, 0.05)  # as if the coefficient were smaller
    frame = logged(reference, policy, reward)
    worse = frame["reward"].iloc[-1] - charged * frame["kl"].iloc[-1] < frame["reward"].iloc[0]
    assert worse
    found = diagnose(frame, REVERSE, beta=charged)
    assert found["price"].warning
    assert "worse off than it began" in found["price"].text
    assert "worse off" in " ".join(found.verdict)
    # The forward KL charges something else than what is logged.
    assert not diagnose(frame, Recipe("loss", "k3"), beta=charged)["price"].warning


def test_a_first_step_that_scatters_is_no_loss():
    # From 0.5 to 0.53 at 1.5 nats for a coefficient of 0.05: less by no more than the scatter.
    late = [0.43, 0.63] * 6
    found = diagnose(curves(reward=[0.5, *late], kl=[0, *[1.5] * 12]), REVERSE, beta=0.05)
    assert found["price"].value < 0.05
    assert not found["price"].warning
    still = diagnose(curves(reward=[0.5, *[0.53] * 12], kl=[0, *[1.5] * 12]), REVERSE, beta=0.05)
    assert still["price"].warning


def test_a_reference_that_moves_shows_in_the_budget():
    # From 10 to 90 % success takes 1.76 nats; against a reference that follows 0.1 are logged.
    found = diagnose(curves(reward=[0.1, 0.5, 0.9, 0.9], kl=[0, 0.1, 0.1, 0.1]), REVERSE, beta=0.1)
    assert found["kl_budget"].warning
    assert "a reference that moves" in found["kl_budget"].text


def test_a_kl_that_scatters_is_not_called_too_small():
    # The same least of 1.76 nats, of which the mean KL of 1.2 falls short by less than its noise.
    kl = [0, *[0.2, 3.0, 0.4] * 3]
    found = diagnose(curves(reward=[0.1, *[0.9] * 9], kl=kl), REVERSE, beta=0.1)
    assert found["kl_budget"].value < 0.8
    assert not found["kl_budget"].warning


def test_a_rise_within_the_scatter_takes_nothing():
    late = [0.45, 0.65] * 6
    found = diagnose(curves(reward=[0.45, *late], kl=[0, *[0.005] * 12]), REVERSE, beta=0.1)
    assert found["kl_budget"].value < 0.8
    assert not found["kl_budget"].warning


@pytest.mark.parametrize("name", ["trl-rloo", "trl-grpo==1.9.2", "trl-grpo"])
def test_what_is_asked_for_is_the_implied_target_of_the_mean_prompt(name):
    used = recipe(name, beta=0.5, group_size=8)
    p = 0.3
    exact = kt.implied_target(used, np.array([1.0, 0.0]), np.log(np.array([p, 1 - p])))
    found = diagnose(curves(reward=[p, 0.6, 0.6, 0.6], kl=[0, 0.2, 0.2, 0.2]), used)
    assert found["asked_for"].value == pytest.approx(float(exact.probs[0]), abs=2e-3)
    assert found["asked_for"].headline.startswith("were every prompt as hard as the mean one")


def test_the_kl_of_a_token_is_multiplied_by_the_length():
    long = curves(reward=[0.2, 0.5, 0.5], kl=[0, 0.01, 0.01], length=[100.0] * 3, kl_per="token")
    whole = curves(reward=[0.2, 0.5, 0.5], kl=[0, 1.0, 1.0])
    found = [diagnose(x, REVERSE, beta=0.1)["kl_budget"].value for x in (long, whole)]
    assert found[0] == pytest.approx(found[1])


def test_without_a_length_the_kl_of_a_token_is_not_that_of_an_answer():
    short = curves(reward=[0.2, 0.5, 0.5, 0.5], kl=[0, 0.01, 0.01, 0.01], kl_per="token")
    found = diagnose(short, REVERSE, beta=0.1)
    assert "nats a token" in found["kl_term"].headline
    assert "no length of answers is logged" in found["kl_term"].text
    assert "kl_budget" not in found
    assert "price" not in found
    assert " nats" not in found["asked_for"].detail
    # A step without a length has no KL of answers.
    some = curves(
        reward=[0.2, 0.5, 0.5], kl=[0, 0.01, 0.02], length=[9, math.nan, 100.0], kl_per="token"
    )
    assert diagnose(some, REVERSE, beta=0.1)["kl_term"].value == pytest.approx(2)


def test_rewards_that_are_not_between_0_and_1_have_no_least():
    wide = curves(reward=[0.2, 0.5, 0.5], kl=[0, 1.0, 1.0], reward_deviation=[2.0, 2.0, 2.0])
    found = diagnose(wide, REVERSE, beta=0.1)
    assert "kl_budget" not in found
    assert "asked_for" not in found


def test_a_run_without_a_kl_is_told():
    frame = curves(reward=[0.2, 0.9, 1.0], entropy=[2.0, 0.3, 0.1])
    charged = diagnose(frame, REVERSE, beta=0.1)["kl_term"]
    assert charged.warning
    assert charged.refused
    free = diagnose(frame, recipe("trl-grpo"), beta=0.0)
    assert not free["kl_term"].warning
    assert "nothing holds" in free["direction"].text


def test_entropy_groups_lengths_and_a_controller():
    frame = curves(
        reward=[0.2, 0.9, 1.0, 1.0, 1.0, 1.0],
        entropy=[2.0, 0.5, 0.1, 0.1, 0.1, 0.1],
        zero_std=[0.0, 0.5, 0.8, 0.8, 0.8, 0.8],
        length=[100.0, 150, 200, 200, 200, 200],
        beta=[0.1, 0.2, 0.3, 0.3, 0.3, 0.3],
    )
    found = diagnose(frame, REVERSE, beta=0.1)
    assert found["token_entropy"].value == pytest.approx(0.05)
    assert found["token_entropy"].warning
    assert found["zero_std_groups"].value == pytest.approx(0.8)
    assert found["lengths"].value == pytest.approx(2.0)
    assert found["controller"].value == pytest.approx(0.3)
    assert all(x.tier == 0 for x in found.statements)
    assert found.tier == 0


def test_one_step_and_an_entropy_that_stays():
    found = diagnose(curves(reward=[0.3], kl=[0.0]), REVERSE, beta=0.1)
    assert "1 logged step, step " in found.title
    still = diagnose(curves(reward=[0.2, 0.3, 0.4], entropy=[1.0] * 3), REVERSE, beta=0.1)
    assert still["token_entropy"].text == "the entropy of a token is where it began, at 1 nats"


def test_a_real_run_and_its_page(tmp_path):
    used = recipe("trl-grpo==1.9.2", beta=0.3, normalize="none", group_size=8)
    state = LOGS / "trl116_grpo_graded_noscale_k3_b03_long_logp" / "trainer_state.json"
    found = diagnose(state, used)
    assert found.statements == diagnose(read_scalars(state), used).statements
    # By the exact final policy, which is known: KL(π‖π_ref) 0.384, mean reward 0.786.
    assert found["kl_term"].value == pytest.approx(0.384, abs=0.01)
    page = str(found)
    assert "weakest evidence" in page
    assert "From curves alone" in page
    assert "nan" not in page
    assert found.grade == "unknown"
    assert [x.key for x in found.actions] == ["log_completions"]
    # A run of several prompts, of which the mean one stands for all: no more than that is said.
    assert found.asymptotes["reward"] == found["asked_for"].value
    html = pages.diagnosis(found)
    assert html.count("<img") == 1
    assert "All prompts" not in html
    assert len(plot.diagnosis(found).axes) == 4
    found.save(tmp_path / "found.json")
    assert str(Diagnosis.load(tmp_path / "found.json")) == page


def test_beside_rollouts_curves_are_shown_and_not_compared(capsys):
    run = LOGS / "trl116_grpo_digit_b0"
    curved = LOGS / "trl116_grpo_digit_b004_logp" / "trainer_state.json"
    words = ["diagnose", str(curved), "--trainer", "trl-grpo", "--beta", "0", "--against", str(run)]
    assert main(words) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "curves have no prompts" in page
    assert "β = 0: nothing holds the policy" in page


def test_without_a_recipe_curves_say_how_to_give_it():
    state = LOGS / "trl116_grpo_digit_b004_logp" / "trainer_state.json"
    found = diagnose(state)
    assert found.recipe is None
    assert found.beta is None
    assert [x.key for x in found.actions] == ["--trainer", "log_completions"]
    assert "asked_for" not in found
    assert "direction" not in found
    assert "recipe: not given" in str(found)
    unheld = diagnose(state, recipe("trl-grpo"), beta=0.0)
    assert [x.key for x in unheld.actions] == ["beta", "log_completions"]


def test_curves_of_a_point_each_have_a_page():
    frame = curves(reward=[0.2, math.nan], kl=[math.nan, 0.1])
    found = diagnose(frame, REVERSE, beta=0.1)
    assert plot.history(found) is None
    assert "<img" not in pages.diagnosis(found)
