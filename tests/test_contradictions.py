"""What is known is checked against itself: advantages against rewards, rows against groups."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from kltarget.diagnosis import diagnose
from kltarget.recipes import Recipe, recipe

PLAIN = Recipe("loss", "k3", "token", "mean")


def made(rule, seed=0, steps=6, prompts=5, size=8, levels=(0.0, 0.5, 0.9, 1.0), kl=0.0):
    """A log whose advantages are made by a recipe, one group at a time."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(1, steps + 1):
        chances = rng.dirichlet(np.ones(len(levels)), prompts)
        drawn = np.stack([rng.choice(len(levels), size, p=p) for p in chances])
        logp = rng.uniform(-9, -5, drawn.shape)
        ref_logp = logp + rng.normal(size=drawn.shape)
        reward = np.array(levels)[drawn] + np.arange(prompts)[:, None] / 8
        returned = reward - kl * (logp - ref_logp)
        mean = returned.mean(1, keepdims=True)
        top = {
            "none": returned,
            "mean": returned - mean,
            "leave-one-out": (returned - mean) * size / (size - 1),
        }[rule.baseline]
        if rule.normalize == "group-std":
            bottom = returned.std(1, ddof=rule.ddof, keepdims=True)
        elif rule.normalize == "others-std":
            others = [
                [np.delete(row, i).std(ddof=rule.ddof) for i in range(size)] for row in returned
            ]
            bottom = np.array(others)
            bottom = np.where(bottom > 1e-9, bottom, 1.0 - rule.epsilon)
        elif rule.normalize == "batch-std":
            bottom = returned.std(ddof=rule.ddof)
        else:
            bottom = 1.0 - rule.epsilon
        advantage = top / (bottom + rule.epsilon)
        for p in range(prompts):
            for i in range(size):
                text = f"a{drawn[p, i]}"
                rows.append((f"q{p}", text, text, reward[p, i], step, step * prompts + p))
                rows[-1] += (float(ref_logp[p, i]), float(logp[p, i]), advantage[p, i])
    names = ["prompt", "completion", "answer", "reward", "step", "group_id"]
    return pd.DataFrame(rows, columns=[*names, "ref_logp", "logp", "advantage"])


def bare(frame):
    return frame.assign(ref_logp=np.nan, logp=np.nan)


def with_rule(baseline, normalize, ddof=0, epsilon=0.0):
    return dataclasses.replace(
        PLAIN, baseline=baseline, normalize=normalize, ddof=ddof, epsilon=epsilon
    )


RULES = [
    with_rule("mean", "none"),
    with_rule("mean", "group-std", 1, 1e-4),
    with_rule("mean", "group-std", 0, 1e-6),
    with_rule("leave-one-out", "none"),
    with_rule("leave-one-out", "others-std", 1),
    with_rule("mean", "batch-std", 1, 1e-4),
    with_rule("none", "none"),
    with_rule("none", "batch-std"),
]
SPELLED = {
    "exactly": lambda a: a,
    "float32": lambda a: np.float32(a).astype(float),
    "four decimals": lambda a: np.round(a, 4),
    "two decimals": lambda a: np.round(a, 2),
    "three digits": lambda a: np.array([float(f"{x:.3g}") for x in a]),
}


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("rule", RULES, ids=lambda x: f"{x.baseline}-{x.normalize}-{x.ddof}")
def test_advantages_that_fit_the_recipe_are_noted(rule, spelled):
    frame = bare(made(rule))
    frame["advantage"] = SPELLED[spelled](frame["advantage"].to_numpy())
    found = diagnose(frame, rule, beta=0.2)
    assert "advantages" not in found
    assert any(note.startswith("the logged advantages fit the recipe") for note in found.notes)


@pytest.mark.parametrize("given", RULES, ids=lambda x: f"{x.baseline}-{x.normalize}-{x.ddof}")
@pytest.mark.parametrize("rule", RULES, ids=lambda x: f"{x.baseline}-{x.normalize}-{x.ddof}")
def test_advantages_of_another_recipe_name_it(rule, given):
    if rule == given:
        return
    frame = bare(made(rule, seed=1))
    frame["advantage"] = np.float32(frame["advantage"])
    found = diagnose(frame, given, beta=0.2)
    said = found["advantages"]
    assert said.warning
    assert found.statements[0] is said
    assert found.verdict[0] == said.headline
    assert "contradict the recipe" in said.text
    assert re.search(r"in \d+ of \d+ groups", said.headline)
    for name in ("baseline", "normalize"):
        changed = getattr(rule, name) != getattr(given, name)
        assert (f"{name}={getattr(rule, name)}" in said.text) == changed
    right = diagnose(frame, rule, beta=0.2)["effective_beta"].value
    if rule.normalize != "others-std":
        # ε counts in the recipe's own formula alike.
        assert said.value == pytest.approx(right, rel=2e-2)
    # What was given is what all other numbers are of.
    plain = diagnose(frame.drop(columns="advantage"), given, beta=0.2)
    assert found["effective_beta"].text == plain["effective_beta"].text


def test_effective_beta_of_the_advantages_is_told_beside_the_recipes():
    frame = bare(made(with_rule("mean", "none"), levels=(0.0, 1.0), steps=40))
    found = diagnose(frame, "trl-grpo", beta=0.2)
    said = found["advantages"]
    assert said.value == pytest.approx(0.2 * 8 / 7)
    assert "effective β is 0.229, not 0.1" in said.headline
    assert "normalize=none (scale_rewards)" in said.text
    assert not any("effective β = 0.2" in text for text in found.verdict)


@pytest.mark.parametrize("rule", RULES[:4], ids=lambda x: f"{x.baseline}-{x.normalize}-{x.ddof}")
def test_a_constant_factor_is_told_apart(rule):
    frame = bare(made(rule))
    frame["advantage"] *= 0.37
    found = diagnose(frame, rule, beta=0.2)
    assert "0.37 times" in found["advantages"].headline
    plain = diagnose(bare(made(rule)), rule, beta=0.2)
    assert found["advantages"].value == pytest.approx(
        plain["effective_beta"].value / 0.37, rel=0.01
    )


def test_groups_that_lost_rows_and_clips_contradict_nothing():
    rule = with_rule("mean", "group-std", 1, 1e-4)
    frame = bare(made(rule))
    fewer = frame.drop(index=[3, 50, 51, 120, 200])
    assert "advantages" not in diagnose(fewer, rule, beta=0.2)
    assert diagnose(fewer, with_rule("mean", "none"), beta=0.2)["advantages"].warning
    cut = frame.assign(advantage=frame["advantage"].clip(-1.2, 1.2))
    found = diagnose(cut, rule, beta=0.2)
    assert "advantages" not in found
    assert any("fit the recipe but for a clip" in note for note in found.notes)
    other = diagnose(cut, with_rule("mean", "none"), beta=0.2)
    assert "cut at their largest" in other["advantages"].text
    assert "normalize=group-std" in other["advantages"].text


def test_rewards_are_scaled_and_cut_first():
    rule = dataclasses.replace(PLAIN, reward_scale=10.0, reward_clip=4.0)
    frame = bare(made(PLAIN))
    scaled = np.minimum(10 * frame["reward"], 4.0)
    frame["advantage"] = scaled - scaled.groupby(frame["group_id"]).transform("mean")
    assert "advantages" not in diagnose(frame, rule, beta=0.2)
    assert diagnose(frame, PLAIN, beta=0.2)["advantages"] is not None


@pytest.mark.broad
def test_a_kl_in_the_reward_is_in_the_advantages():
    rule = Recipe("reward", "k1", "sequence", "leave-one-out")
    frame = made(rule, kl=0.2)
    assert "advantages" not in diagnose(frame, rule, beta=0.2)
    # What the log does not show contradicts nothing.
    assert "advantages" not in diagnose(bare(frame), rule, beta=0.2)
    assert "advantages" not in diagnose(bare(made(rule)), rule, beta=0.2)
    without = diagnose(made(rule), rule, beta=0.2)["advantages"]
    assert without.warning
    assert "without the KL that the recipe charges" in without.headline
    other = diagnose(frame, dataclasses.replace(rule, baseline="mean"), beta=0.2)["advantages"]
    assert "baseline=leave-one-out" in other.text
    assert other.value is None


def test_what_fits_nothing_is_said_neutrally():
    frame = bare(made(PLAIN))
    frame["advantage"] += np.random.default_rng(0).normal(size=len(frame))
    found = diagnose(frame, recipe("trl-grpo"), beta=0.2)
    assert not found["advantages"].warning
    assert "not what the recipe makes" in found["advantages"].text
    assert found.verdict[0] == found["advantages"].headline
    assert not any("effective β = " in sentence for sentence in found.verdict)
    for silent in (frame.assign(advantage=np.nan), frame.assign(advantage=0.0)):
        assert "advantages" not in diagnose(silent, recipe("trl-grpo"), beta=0.2)


@pytest.mark.parametrize("factor", [-1.0, -0.37])
def test_advantages_of_the_other_sign_are_told(factor):
    frame = bare(made(RULES[1]))
    frame["advantage"] *= factor
    found = diagnose(frame, RULES[1], beta=0.2)
    assert found["advantages"].warning
    assert "opposite sign of those of the recipe: in 30 of 30 groups" in found.verdict[0]
    assert f"they are {factor:g} times the rewards less the group's mean" in found.verdict[0]
    assert not any("effective β = " in sentence for sentence in found.verdict)


def test_groups_that_lost_rows_show_nothing_where_some_are_whole():
    rule = dataclasses.replace(RULES[1], group_size=8)
    frame = bare(made(rule))
    lost = frame[(frame["group_id"] % 3 == 0) | (frame.groupby("group_id").cumcount() > 0)]
    found = diagnose(lost, rule, beta=0.2)
    assert "advantages" not in found
    assert "in 30 groups of 7 to 8 (8 counts)" in found.title
    assert found.size["group_size"] == 8


def test_a_part_of_a_batch_shows_what_divides():
    rule = with_rule("mean", "batch-std", 1)
    frame = bare(made(rule, prompts=12))
    part = frame[frame["group_id"] % 12 < 4]
    found = diagnose(part, rule, beta=0.2)
    assert "advantages" not in found
    assert any("but for a constant of each step" in note for note in found.notes)
    assert "normalize=batch-std" in diagnose(part, RULES[1], beta=0.2)["advantages"].text
    # One constant is that of nothing.
    plain = diagnose(bare(made(RULES[0])), rule, beta=0.2)
    assert "normalize=none" in plain["advantages"].text
