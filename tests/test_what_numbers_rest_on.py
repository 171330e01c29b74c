"""Sentences say on how much their numbers rest, and where no answer recurs, that none does."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from kltarget.diagnosis import Statement, diagnose
from kltarget.recipes import Recipe, recipe

GRPO = Recipe("loss", "weighted-k3", "token", "mean", "group-std", ddof=1, epsilon=1e-4)
K3 = Recipe("loss", "k3", "token", "mean")


def frame_of(answers, rewards, groups, steps, prompts=None, completions=None):
    answer = np.asarray(answers, object)
    frame = pd.DataFrame(
        {"answer": answer, "completion": answer if completions is None else completions}
    )
    frame = frame.assign(reward=np.asarray(rewards, float), group_id=groups, step=steps)
    prompt = "?" if prompts is None else prompts
    return frame.assign(prompt=prompt, logp=np.nan, ref_logp=np.nan)


def along(shares, seed=0, groups=12, size=8, prompts=1):
    """Rollouts of which so many are right at each step, and otherwise all different."""
    rng = np.random.default_rng(seed)
    right = np.concatenate([rng.random(groups * size) < x for x in shares])
    group = np.arange(len(right)) // size
    step = np.repeat(np.arange(1, len(shares) + 1), groups * size)
    answer = np.where(right, "right", rng.integers(0, 40, len(right)).astype(str))
    asked = [f"q{x % prompts}" for x in group]
    return frame_of(answer, right, group, step, asked)


def test_numbers_of_few_groups_say_so():
    # Of the last groups, three have rewards that differ.
    frame = along([0.5, 1.0, 1.0, 1.0], groups=40)
    frame.loc[[700, 900, 1100], "reward"] = 0.0
    found = diagnose(frame, GRPO, beta=0.1)
    said = found["effective_beta"]
    assert re.search(rf"of the {said.sample_size} of 80 groups whose rewards differ", said.headline)
    assert said.sample_size < 5
    assert "of 80 groups" not in found["pass@1"].text
    few = diagnose(along([0.5, 0.9], groups=3), GRPO, beta=0.1)
    assert "(3 groups)" in few["pass@1"].headline
    assert "(3 groups)" in few["diversity"].headline
    assert re.search(r", \d of 3,", few["zero_std_groups"].headline)


def test_groups_of_one_rollout_say_nothing_of_deviations():
    frame = frame_of(list("ab" * 10), [0.0, 1.0] * 10, range(20), range(20), list("abcdefghij" * 2))
    found = diagnose(frame, recipe("trl-grpo"), beta=0.1)
    assert "say nothing of σ" in found["zero_std_groups"].text
    assert found["zero_std_groups"].value is None
    assert "no deviation" in found["effective_beta"].text
    assert any("groups of 1 in the log, 8 in the recipe: 8 is used" in x for x in found.notes)
    assert "-0" not in str(found)
    assert "-0.0" not in str(found.to_dict())
    assert "in 20 groups of 1, " in found.title
    # Beside larger groups they are not counted.
    mixed = frame_of(list("aabab"), [1, 1, 0, 1, 0], [0, 0, 1, 1, 2], 1)
    said = diagnose(mixed, GRPO, beta=0.1)["zero_std_groups"]
    assert (said.value, said.sample_size) == (0.5, 2)
    assert "1 group of one rollout, which say" not in said.text
    assert "1 group of one rollout says nothing of σ and is not counted" in said.text


def test_numbers_of_one_are_in_the_singular():
    found = diagnose(frame_of(list("aabb"), [1.0, 1, 0, 0], 0, 1), GRPO, beta=0.1)
    said = found["effective_beta"].headline
    assert said.endswith("in the one group whose rewards differ")
    assert "10 %" not in said
    assert "seen for 0 of 1 prompt" in found["right_answers"].text
    assert "none for 0" not in str(found)
    assert "1 logged step, step 1" in found.title
    two = frame_of(list("aabbcc"), [1.0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1], 1)
    said = diagnose(two, GRPO, beta=0.1)["effective_beta"].headline
    assert said.endswith("in the one of 2 groups whose rewards differ")


def test_rewards_that_vary_on_one_answer_are_noted():
    note = "some answers were rewarded differently at times: their mean reward is used"
    noisy = frame_of(list("abab"), [1.0, 0, 0, 1], 0, 1)
    assert note in diagnose(noisy, GRPO, beta=0.1).notes
    assert note not in diagnose(noisy.assign(reward=[1.0, 0, 1, 0]), GRPO, beta=0.1).notes


@pytest.mark.parametrize(("shares", "moved"), [((0.1, 0.5, 0.9), True), ((0.9, 0.5, 0.1), True)])
def test_in_short_speaks_of_diversity_that_changed(shares, moved):
    found = diagnose(along(shares, groups=40), K3, beta=0.1)
    assert (found["diversity"].headline in found.verdict) == moved


def test_in_short_is_silent_on_diversity_that_did_not():
    often = 0
    for seed in range(40):
        found = diagnose(along((0.5, 0.5, 0.5), seed, groups=12), K3, beta=0.1)
        often += found["diversity"].headline in found.verdict
    assert often <= 6
    alone = diagnose(along((0.5,)), K3, beta=0.1)
    assert alone["diversity"].headline not in alone.verdict


@pytest.mark.parametrize(
    ("name", "headline", "value", "interval", "told"),
    [
        ("pass@1", "pass@1 is 0.5, 0.2 before", 0.5, (0.4, 0.6), "is 0.5 [95 %: 0.4 to 0.6], 0.2"),
        ("pass@1", "pass@1 is 1 in step 1", 1.0, (0.9, 1), "is 1 [95 %: 0.9 to 1] in step 1"),
        ("x", "“0.5” and 0.55 are less than 0.5", 0.5, (0, 1), "than 0.5 [95 %: 0 to 1]"),
        ("x", "-0.5 or 0.5", 0.5, (0, 1), "or 0.5 [95 %"),
        ("x", "a ratio of 3 : 1 of 3", 3.0, (2, 4), "3 : 1 [95 %: 2 to 4] of 3"),
        ("zero_std_groups", "25 % of 25", 0.25, (0.2, 0.3), "25 % [95 %: 20 to 30 %] of 25"),
    ],
)
def test_intervals_stand_behind_their_number(name, headline, value, interval, told):
    statement = Statement(name, headline, ", so", value, interval)
    assert told in statement.told
    assert statement.told.endswith(", so")
    assert statement.evidence({}) == ""
    assert statement.text == headline + ", so"


def test_an_interval_of_no_number_in_the_text_stands_at_the_end():
    statement = Statement("x", "it is large", "", 0.5, (0.4, 0.6))
    assert statement.told == "it is large"
    assert statement.evidence({}) == "95 %: 0.4 to 0.6"


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("recipe", [K3, GRPO])
def test_every_interval_of_a_page_has_its_number(recipe, beta):
    frame = along((0.2, 0.5, 0.8), prompts=3)
    masses = {"right": math.log(0.2)} | {str(i): math.log(0.8 / 40) for i in range(40)}
    frame["ref_logp"] = frame["answer"].map(masses).astype(float)
    for logged in (False, True):
        if logged:
            frame["logp"] = frame["ref_logp"] + np.where(frame["reward"] > 0, 0.8, -0.4)
        found = diagnose(frame, recipe, beta=beta, num_bootstrap=20)
        assert len(found.statements) > 5
        for statement in found.statements:
            if statement.interval is not None:
                assert "95 %" in statement.told, statement.text
                assert "95 %" not in statement.evidence(dict.fromkeys(statement.assumptions, "a"))


ENDINGS = {
    "boxed": (r"So \boxed{{{0}}}. Check: {1}", r"answer='boxed' (--answer boxed)"),
    "answer": ("<answer>{0}</answer> {1}", "answer='answer' (--answer answer)"),
    "number": ("I thought {1} times, so it is {0}.", "answer='number' (--answer number)"),
    "first word": ("w{0}, since {1}, I am sure of x{1}y", "the first word"),
    "last word": ("x{1}y is what I think, so {2}", "the last word"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_answers_that_never_recur_say_which_rule_would_help(ending):
    form, told = ENDINGS[ending]
    rng = np.random.default_rng(0)
    right = rng.integers(0, 5, 96)
    said = [form.format(x, f"{i * 7919}", "abcde"[x]) for i, x in enumerate(right)]
    frame = frame_of(said, right == 2, np.arange(96) // 8, 1)
    found = diagnose(frame, K3, beta=0.1)
    assert found["answers"].headline.startswith("each completion is its own answer, 96 of 96")
    assert told in found["answers"].text
    assert "96 of them would be 5 different answers" in found["answers"].text
    assert found["answers"].headline in found.verdict
    # Of what recurs nothing is said, by a number or along the steps.
    assert "diversity" not in found
    assert "right_answers" not in found
    assert "nats" not in str(found)
    assert "two answers differ" not in str(
        diagnose(frame.assign(step=frame["group_id"]), K3, beta=1)
    )
    # Read by a rule, they recur.
    assert "answers" not in diagnose(frame.assign(answer=right.astype(str)), K3, beta=0.1)


def test_rules_that_mix_right_and_wrong_do_not_help():
    rng = np.random.default_rng(0)
    said = [f"Let us see: {''.join(rng.choice(list('abcdefgh'), 12))}" for _ in range(64)]
    frame = frame_of(said, rng.integers(0, 2, 64), np.arange(64) // 8, 1)
    text = diagnose(frame, K3, beta=0.1)["answers"].text
    assert "answer='regex:…'" in text
    assert "would be" not in text
