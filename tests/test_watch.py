"""Watched reward functions, called as TRL calls them; no trainer is needed."""

import asyncio
import functools
import inspect
import itertools
import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy.optimize import brentq

import kltarget as kt
from kltarget.adapters.trl import watch

RLOO = kt.Recipe("reward", "k1", "sequence", "leave-one-out", group_size=4, beta=0.2)


class Trainer:
    """What TRL's trainers do with reward functions, through their public signature."""

    def __init__(self, reward_funcs):
        self.reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        self.metrics = {}

    def log_metric(self, name, value):
        assert name not in self.metrics, f"{name} is logged twice in a batch"
        self.metrics[name] = value

    def batch(self, prompts, completions, **columns):
        self.metrics = {}
        keywords = {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": columns.pop("completion_ids", [[1, 2]] * len(prompts)),
            "trainer_state": object(),
            "log_extra": lambda column, values: None,
            "log_metric": self.log_metric,
            **columns,
        }
        rewards, awaited = [None] * len(self.reward_funcs), []
        for i, function in enumerate(self.reward_funcs):
            if inspect.iscoroutinefunction(function):
                awaited.append(i)
            else:
                rewards[i] = function(**keywords)

        async def together():
            calls = [self.reward_funcs[i](**keywords) for i in awaited]
            return await asyncio.gather(*calls)

        for i, found in zip(awaited, asyncio.run(together()) if awaited else (), strict=True):
            rewards[i] = found
        return rewards

    def __getitem__(self, name):
        return self.metrics[f"kltarget/{name}"]


def right(completions, **kwargs):
    return [float(x.endswith("!")) for x in completions]


def short(completions, **kwargs):
    return [1.0 if len(x) < 3 else 0.5 for x in completions]


async def judged(completions, **kwargs):
    await asyncio.sleep(0)
    return [None if x == "?" else 2.0 for x in completions]


TWO = ["p"] * 4 + ["q"] * 4
TEXTS = ["a!", "b!", "a!", "c", "c", "c", "d", "e"]


def test_names_and_rewards_are_those_of_the_functions():
    partial = functools.partial(short, unused=1)
    watched = watch([right, partial, judged], RLOO)
    assert [x.__name__ for x in watched] == ["right", "short", "judged"]
    assert [inspect.iscoroutinefunction(x) for x in watched] == [False, False, True]
    assert Trainer(watched).batch(TWO, TEXTS) == [right(TEXTS), short(TEXTS), [2.0] * 8]
    same = []
    alone = watch(lambda completions, **kwargs: same, RLOO)
    assert callable(alone)
    assert alone(prompts=[], completions=[]) is same


def test_a_callable_object_is_called_as_its_class():
    class Judge:
        async def __call__(self, completions, **kwargs):
            return [1.0] * len(completions)

    watched = watch(Judge(), RLOO)
    assert watched.__name__ == "Judge"
    assert inspect.iscoroutinefunction(watched)
    assert Trainer(watched).batch(TWO, TEXTS) == [[1.0] * 8]


def test_numbers_of_a_batch_by_hand():
    trainer = Trainer(watch(right, RLOO))
    trainer.batch(TWO, TEXTS)
    assert trainer["zero_std_groups"] == 0.5
    assert trainer["distinct_right"] == 2
    # Of the pairs of a!, b!, a!, two of three differ.
    assert trainer["right_pairs_differ"] == pytest.approx(2 / 3)
    assert [trainer[f"effective_beta_p{p}"] for p in (10, 50, 90)] == [0.2] * 3
    assert trainer["missing_rewards"] == 0
    for k in range(1, 5):
        hits = [any(x.endswith("!") for x in some) for some in itertools.combinations(TEXTS[:4], k)]
        assert trainer[f"pass@{k}"] == pytest.approx(np.mean(hits) / 2)
    assert "kltarget/collapse_alarm" not in trainer.metrics


def test_the_weighted_sum_of_all_functions_is_logged_once():
    trainer = Trainer(watch([right, judged, short], RLOO, reward_weights=[1.0, 0.0, 2.0]))
    trainer.batch(TWO, TEXTS)
    # 1 + 2 for a! and b!; what is right is the best total.
    assert trainer["pass@1"] == pytest.approx(3 / 8)
    assert trainer["zero_std_groups"] == 0.5


def test_effective_beta_of_a_recipe_that_divides_by_the_deviation():
    recipe = kt.Recipe(
        "loss", "k3", baseline="mean", normalize="group-std", ddof=1, epsilon=1e-4, group_size=4
    )
    trainer = Trainer(watch(right, recipe, beta=0.3))
    trainer.batch(TWO, TEXTS)
    expected = 0.3 * 4 / 3 * (np.std([1, 1, 1, 0], ddof=1) + 1e-4)
    # It is the groups that the trainer makes that count, and the policy that draws them.
    preset = kt.recipe("trl-grpo", temperature=0.5)
    other = Trainer(watch(right, preset, beta=0.3, group_size=4))
    other.batch(TWO, TEXTS)
    assert other["effective_beta_p50"] == pytest.approx(expected)
    # The group of equal rewards has none.
    assert [trainer[f"effective_beta_p{p}"] for p in (10, 90)] == pytest.approx([expected] * 2)
    nothing = Trainer(watch(right, recipe, beta=0.0))
    nothing.batch(TWO, TEXTS)
    assert not any("effective" in name for name in nothing.metrics)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_distance_is_zero_at_the_target_and_the_spread_elsewhere(estimator):
    rng, beta = np.random.default_rng(0), 0.4
    recipe = kt.Recipe("loss", estimator, "sequence", group_size=6, beta=beta)
    reward = rng.uniform(size=6)
    log_ref = np.log(rng.dirichlet(np.ones(6)))
    if estimator == "k2":
        target = log_ref + reward / beta
        target -= np.log(np.exp(target).sum())
    else:
        total = lambda x: (beta * np.exp(log_ref) / (x - reward)).sum() - 1  # noqa: E731
        multiplier = brentq(total, reward.max() + 1e-9, reward.max() + 10, xtol=1e-15)
        target = log_ref + np.log(beta / (multiplier - reward))
    trainer = Trainer(watch(lambda **kwargs: reward.tolist(), recipe))
    prompts, texts = ["p"] * 6, list("abcdef")
    trainer.batch(prompts, texts, logp=target.tolist(), ref_logp=log_ref.tolist())
    assert trainer["distance"] == pytest.approx(0, abs=1e-6)
    assert trainer["entropy"] == pytest.approx(-target.mean())
    assert trainer["kl"] == pytest.approx((target - log_ref).mean())
    # Three answers a nat up: the deviation of three ones and three zeros.
    away = target + 1.0 * (np.arange(6) < 3)
    trainer.batch(prompts, texts, logp=away.tolist(), ref_logp=log_ref.tolist())
    if estimator == "k2":
        assert trainer["distance"] == pytest.approx(np.std([0, 0, 0, 1, 1, 1], ddof=1))
    else:
        # Another multiplier fits better, which moves the target's own log-ratios too.
        assert trainer["distance"] > 0.3


def test_a_group_that_says_one_thing_has_no_distance():
    trainer = Trainer(watch(right, RLOO))
    logps = {"logp": [-0.1] * 4 + [-1.0, -2.0, -1.0, -2.0], "ref_logp": [-5.0] * 4 + [-1.5] * 4}
    trainer.batch(TWO, ["a!"] * 4 + ["b", "c", "b", "c"], **logps)
    assert trainer["distance"] == pytest.approx(np.std([0.5, -0.5, 0.5, -0.5], ddof=1))
    trainer.batch(TWO[:4], ["a!"] * 4, logp=[-0.1] * 4, ref_logp=[-5.0] * 4)
    assert "kltarget/distance" not in trainer.metrics


def test_per_token_terms_have_a_distance_for_single_tokens_alone():
    recipe = kt.Recipe("loss", "k2", "token", group_size=2, beta=1.0)
    trainer = Trainer(watch(lambda **kwargs: [1.0, 0.0], recipe))
    logps = {"logp": [-1.0, -2.0], "ref_logp": [-1.5, -1.5]}
    trainer.batch(["p"] * 2, ["a", "b"], **logps)
    assert "kltarget/distance" not in trainer.metrics
    trainer.batch(["p"] * 2, ["a", "b"], completion_ids=[[3], [4]], **logps)
    assert trainer["distance"] == pytest.approx(0, abs=1e-12)


def test_chats_and_rules_of_answers():
    chats = [[{"role": "assistant", "content": f"so \\boxed{{{x}}}"}] for x in (1, 2, 1, 3)]
    trainer = Trainer(watch(lambda **kwargs: [1, 1, 1, 0], RLOO, answer="boxed"))
    trainer.batch([[{"role": "user", "content": "?"}]] * 4, chats)
    assert trainer["distinct_right"] == 2
    with pytest.raises(ValueError, match="answer"):
        watch(right, RLOO, answer="no such rule")


def test_missing_rewards_are_counted_and_passed_on():
    rewards = [1.0, None, math.nan, 0.0]
    trainer = Trainer(watch(lambda **kwargs: rewards, RLOO))
    (found,) = trainer.batch(["p"] * 4, list("abcd"))
    assert found is rewards
    assert trainer["missing_rewards"] == 2
    assert trainer["zero_std_groups"] == 0
    assert not any("pass@" in name for name in trainer.metrics)
    nobody = Trainer(watch([judged, judged], RLOO))
    nobody.batch(["p"] * 4, ["?"] * 4)
    assert nobody["missing_rewards"] == 4


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
def test_infinite_rewards_say_nothing_of_their_group(infinite):
    rewards = [infinite, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    recipe = kt.Recipe("loss", "k2", "sequence", "mean", "group-std", group_size=4)
    at = {"beta": 0.3, "threshold": 1.0}
    trainer = Trainer(watch(lambda **kwargs: rewards, recipe, **at))
    log_probs = {"logp": [-1.0, -2.0] * 4, "ref_logp": [-1.5] * 8}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.batch(TWO, TEXTS, **log_probs)
    alone = Trainer(watch(lambda **kwargs: rewards[4:], recipe, **at))
    alone.batch(TWO[4:], TEXTS[4:], **{name: x[4:] for name, x in log_probs.items()})
    for name in ("effective_beta_p50", "distance"):
        assert math.isfinite(trainer[name])
        assert trainer[name] == alone[name]


def test_a_function_that_raises_behaves_as_without():
    broken = True

    def sometimes(completions, **kwargs):
        if broken:
            raise RuntimeError("no judge today")
        return [1.0] * len(completions)

    trainer = Trainer(watch([right, sometimes], RLOO))
    with pytest.raises(RuntimeError, match="no judge today"):
        trainer.batch(TWO, TEXTS)
    assert trainer.metrics == {}
    broken = False
    trainer.batch(["p"] * 4, ["x!"] * 4)
    assert trainer["pass@1"] == 1


def test_errors_of_its_own_are_warned_of_once_and_stop_nothing():
    def rule(text):
        raise LookupError("a rule of one's own")

    trainer = Trainer(watch(right, RLOO, answer=rule))
    with pytest.warns(UserWarning, match="LookupError: a rule of one's own"):
        assert trainer.batch(TWO, TEXTS) == [right(TEXTS)]
    assert trainer.batch(TWO, TEXTS) == [right(TEXTS)]
    other = Trainer(watch(right, RLOO, answer=rule))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert other.batch(TWO, TEXTS) == [right(TEXTS)]


def test_batches_without_whole_groups_and_without_a_log():
    trainer = Trainer(watch(right, RLOO))
    with pytest.warns(UserWarning, match="blocks of 4 equal prompts"):
        trainer.batch(["p", "q"] * 4, TEXTS)
    assert set(trainer.metrics) == {"kltarget/missing_rewards"}
    by_hand = watch(lambda prompts, completions, **kwargs: right(completions), RLOO)
    assert by_hand(["p"] * 4, ["a!"] * 4) == [1.0] * 4


def test_the_alarm_goes_off_when_right_answers_become_one():
    trainer = Trainer(watch(right, RLOO, alarm_window=3))
    alarms = []
    for i in range(12):
        texts = ["a!", "b!", "c!", "d"] if i < 6 else ["a!", "a!", "a!", "a!"]
        trainer.batch(["p"] * 4, texts)
        alarms.append(trainer.metrics.get("kltarget/collapse_alarm"))
    assert alarms == [None, None, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    # More success with as many answers is no alarm.
    steady = Trainer(watch(right, RLOO, alarm_window=2))
    for texts in (["a!", "b!", "c", "d"],) * 3 + (["a!", "b!", "a!", "b!"],) * 6:
        steady.batch(["p"] * 4, texts)
    assert steady["collapse_alarm"] == 0


def test_the_alarm_goes_off_when_entropy_falls():
    trainer = Trainer(watch(right, RLOO, alarm_window=2, alarm_share=0.3))
    for logp in (-2.0, -2.0, -1.0, -0.1, -0.1):
        trainer.batch(["p"] * 4, ["a", "b", "c", "d"], logp=[logp] * 4)
    assert trainer["collapse_alarm"] == 1


def test_models_are_passed_on_and_named():
    module = type("Module", (), {"__module__": "torch.nn.modules.module", "__call__": None})
    model = type("Judge", (module,), {})()
    with pytest.warns(UserWarning, match=r"reward_funcs\[[12]\]") as said:
        found = watch([right, model, "org/reward-model"], RLOO)
    assert found[1:] == [model, "org/reward-model"]
    assert len(said) == 2
    trainer = Trainer(found[:1])
    trainer.batch(TWO, TEXTS)
    assert trainer["distinct_right"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta must be"),
        ({"group_size": -2}, "group_size must be"),
        ({"group_size": 2.5}, "group_size must be"),
        ({"threshold": "best"}, "threshold must be"),
        ({"threshold": math.nan}, "threshold must be"),
        ({"reward_weights": [1.0, 2.0]}, "one for each of the 1 reward functions"),
        ({"alarm_share": 1.5}, "alarm_share must be"),
        ({"alarm_window": 0}, "alarm_window must be"),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        watch(right, RLOO, **options)


def test_what_is_needed_and_missing():
    with pytest.raises(TypeError, match=r"kltarget\.recipe\('trl-grpo'\)"):
        watch(right, "trl-grpo")
    with pytest.raises(ValueError, match=r"beta must be .* got None"):
        watch(right, kt.Recipe(group_size=4))
    with pytest.raises(ValueError, match=r"group_size must be .* got None"):
        watch(right, kt.Recipe(beta=0.1))


def test_no_device_of_jax_is_started():
    """Its memory is the trainer's: with a platform that does not exist JAX would fail."""
    program = (
        "import kltarget as kt\n"
        "from kltarget.adapters.trl import watch\n"
        "recipe = kt.recipe('trl-grpo')\n"
        "seen = {}\n"
        "f = watch(lambda **kwargs: [1.0, 0.0], recipe, beta=0.1, group_size=2)\n"
        "f(prompts=['p', 'p'], completions=['a', 'b'], logp=[-1.0, -2.0], ref_logp=[-1.0, -1.0],\n"
        "  completion_ids=[[1], [2]], log_metric=seen.__setitem__)\n"
        "print(*sorted(seen))\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "no_such_device"}
    command = [sys.executable, "-W", "error", "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    assert "kltarget/distance" in found.stdout
