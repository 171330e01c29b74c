"""Which prompts the gradient comes from, against sums over a log's groups."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from kltarget.diagnosis import diagnose
from kltarget.recipes import Recipe
from kltarget.rollouts import read_rollouts

SHIPPED = "tests/data/rollouts/trl116_grpo_digit_b004_logp"
CENTRED = Recipe("loss", "k3", "token", "mean")
GRPO = dataclasses.replace(CENTRED, normalize="group-std")


def log_of(right, size=4):
    """One group of each prompt, so many of it right."""
    rows = [(f"q{i}", j < k, i) for i, k in enumerate(right) for j in range(size)]
    prompt, reward, group = (np.array(x) for x in zip(*rows, strict=True))
    answer = np.where(reward, "yes", "no").astype(object)
    frame = pd.DataFrame({"prompt": prompt, "answer": answer, "completion": answer})
    return frame.assign(reward=reward * 1.0, group_id=group, step=1, logp=np.nan, ref_logp=np.nan)


def test_shares_by_hand():
    # Of four rollouts 0, 1, 2, 3, 4 and 4 are right: k(4 − k) is 0, 3, 4, 3, 0, 0.
    found = diagnose(log_of([0, 1, 2, 3, 4, 4]), CENTRED, beta=0.1)
    np.testing.assert_allclose(found.prompts["gradient_share"], [0, 0.3, 0.4, 0.3, 0, 0])
    said = found["gradient"]
    assert said.value == 0.5
    assert said.sample_size == 6
    assert said.headline == (
        "half of the reward's gradient comes from 2 of 6 prompts in step 1; 3 of them, 50 %, give "
        "none"
    )
    assert said.detail == (
        ": 2 always right, 1 always wrong; the 3 of success 0.2 to 0.8 there have 100 % of it"
    )
    assert "50 % [95 %: 18.8 to 81.2 %], give none" in said.told
    assert "share of the gradient" not in str(found)
    # Divided by the deviation prompts near ½ are no longer ahead by as much.
    roots = np.sqrt([0, 3, 4, 3, 0, 0])
    divided = diagnose(log_of([0, 1, 2, 3, 4, 4]), GRPO, beta=0.1).prompts["gradient_share"]
    np.testing.assert_allclose(divided, roots / roots.sum())


@pytest.mark.parametrize("recipe", [CENTRED, GRPO], ids=["centred", "normalised"])
def test_shares_of_a_shipped_log(recipe):
    frame = read_rollouts(SHIPPED)
    late = frame[frame.step > 20]
    sizes = {}
    for (prompt, _), reward in late.groupby(["prompt", "group_id"]).reward:
        apart = reward - reward.mean()
        if recipe is GRPO and reward.std() > 0:
            apart = apart / reward.std(ddof=0)
        sizes[prompt] = sizes.get(prompt, 0.0) + apart.abs().sum()
    found = diagnose(frame, recipe, beta=0.04, num_bootstrap=2)
    got = dict(zip(found.prompts["prompt"], found.prompts["gradient_share"], strict=True))
    assert set(got) == set(sizes)
    for prompt, size in sizes.items():
        assert got[prompt] == pytest.approx(size / sum(sizes.values()), rel=1e-6), prompt
    assert found["gradient"].value == pytest.approx(np.mean([x == 0 for x in sizes.values()]))


def test_where_nothing_is_said_of_the_gradient():
    frame = log_of([1, 2, 3])
    # Without a baseline groups of equal rewards count too.
    bare = diagnose(frame, Recipe("loss", "k3"), beta=0.1)
    assert "gradient" not in bare
    assert np.isnan(bare.prompts["gradient_share"]).all()
    assert "gradient" not in diagnose(log_of([2]), CENTRED, beta=0.1)
    assert "gradient" not in diagnose(log_of([4, 4, 0]), CENTRED, beta=0.1)
    # A recipe need not be known.
    assert "gradient" in diagnose(frame)
    graded = frame.assign(reward=np.linspace(0, 1, len(frame)))
    assert "success" not in diagnose(graded, CENTRED, beta=0.1)["gradient"].text
