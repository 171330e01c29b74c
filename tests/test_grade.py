"""What a diagnosis grades, and what it says to do, against runs whose truth is known.

The runs are drawn here from a reference, a target or something narrower; what an action changes is
read back by the reader of configurations, and its target is computed anew.
"""

import json
import pathlib

import jax
import numpy as np
import pandas as pd
import pytest

import kltarget as kt
from kltarget import recipes
from kltarget.diagnosis import CAUSES, GRADES, diagnose
from kltarget.implied import implied_target
from kltarget.recipes import Recipe

DATA = pathlib.Path(__file__).parent / "data" / "rollouts"
AT_ZERO = DATA / "trl116_grpo_digit_b0"
FEW = DATA / "trl116_grpo_digit_b004"
SHORT = DATA / "trl116_grpo_digit_b004_logp"
GRADED = DATA / "trl116_grpo_graded_noscale_k3_b03_long_logp"
GRADED_REWARDS = DATA / "trl116_grpo_graded_noscale_k3_b02_long"
TRL = "trl-grpo==1.16.0"
REVERSE = Recipe("reward", "k1")

# Three right answers of four, then one that is nearly right, and two wrong ones.
MASS = np.array([0.2, 0.1, 0.1, 0.3, 0.3])
REWARD = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
# The likeliest right answer alone.
ALONE = np.array([0.99, 0.0005, 0.0005, 0.0045, 0.0045])
NARROW = np.array([0.8, 0.09, 0.09, 0.01, 0.01])


def target_of(recipe, beta, reward=REWARD, mass=MASS):
    with jax.enable_x64(True):
        return np.exp(np.asarray(implied_target(recipe, reward, np.log(mass), beta=beta).log_probs))


def drawn(law, seed, *, start=MASS, mass=MASS, reward=REWARD, prompts=6, steps=9, known=True, of=2):
    """Rollouts from ``start`` to ``law``, in so many groups of 8 of every prompt at every step."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(steps):
        far = min(step / (steps / 2), 1.0)
        share = (1 - far) * start + far * law
        for prompt in range(prompts):
            for group in range(of):
                for a in rng.choice(len(mass), 8, p=share / share.sum()):
                    ref = np.log(mass[a]) if known else np.nan
                    name = (step * prompts + prompt) * of + group
                    rows.append((f"prompt {prompt}", f"a{a}", reward[a], step, name, ref, np.nan))
    names = ["prompt", "completion", "reward", "step", "group_id", "ref_logp", "logp"]
    frame = pd.DataFrame(rows, columns=names)
    return frame.assign(answer=frame["completion"])


def graded(frame, recipe=REVERSE, beta=0.2, **options):
    return diagnose(frame, recipe, beta=beta, num_bootstrap=20, **options)


def differ(mass):
    share = mass / mass.sum()
    return 1 - (share**2).sum()


@pytest.mark.parametrize(
    ("log", "recipe", "beta", "grade", "cause"),
    [
        (AT_ZERO, TRL, 0.0, "collapsed", "unregularised"),
        (AT_ZERO, None, None, "unknown", "unknown"),
        pytest.param(*(FEW, TRL, 0.04, "unknown", "unknown"), marks=pytest.mark.broad),
        pytest.param(*(SHORT, TRL, 0.04, "narrowing", "path"), marks=pytest.mark.broad),
        pytest.param(*(SHORT, TRL, 0.0, "narrowing", "unregularised"), marks=pytest.mark.broad),
        (SHORT, None, None, "narrowing", "unknown"),
        pytest.param(
            *(GRADED, Recipe("loss", "k3", "token", "mean"), 0.3, "held", None),
            marks=pytest.mark.broad,
        ),
        (GRADED_REWARDS, Recipe("loss", "k3", "token", "mean"), 0.2, "held", None),
        (GRADED_REWARDS, None, None, "held", None),
        (DATA / "tunix017_agentic_odd_b004", None, None, "unknown", "unknown"),
    ],
)
def test_real_runs(log, recipe, beta, grade, cause):
    found = diagnose(log, recipe, beta=beta, num_bootstrap=20)
    assert (found.grade, found.cause) == (grade, cause)
    assert found.grade in GRADES
    assert found.cause is None or found.cause in CAUSES
    assert str(found).startswith(found.headline.split(":")[0].split(",")[0])
    assert 1 <= len(found.actions) <= 3


@pytest.mark.broad
def test_the_reference_of_a_real_run_is_what_it_is_graded_by():
    found = diagnose(GRADED, Recipe("loss", "k3", "token", "mean"), beta=0.3)
    answers = json.loads((GRADED / "truth.json").read_text())["exact"][0]["answers"]
    right = np.array([x["text"] in ("1", "2") for x in answers])
    before = differ(np.exp([x["ref_logp"] for x in answers])[right])
    now = differ(np.exp([x["final_logp"] for x in answers])[right])
    low, high = found["kept"].interval
    assert low < now / before < high
    assert found["kept"].value == pytest.approx(now / before, abs=0.1)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("law", "grade"),
    [
        (MASS, "held"),
        (None, "held"),
        (NARROW, "narrowing"),
        (ALONE, "collapsed"),
    ],
    ids=["reference", "target", "narrow", "alone"],
)
def test_what_was_drawn(law, grade, known):
    law = target_of(REVERSE, 0.2) if law is None else law
    found = graded(drawn(law, 0, known=known, prompts=16))
    assert found.grade == grade
    lost = grade != "held"
    assert found.cause == (("path" if known else "unknown") if lost else None)
    if not lost:
        return
    # The first tenth of the steps is drawn from the reference itself.
    share = differ(law[:3]) / differ(MASS[:3])
    assert found["kept"].interval[0] < 1.5 * share
    assert found["kept"].value == pytest.approx(share, abs=0.12)
    assert found["kept"].told.startswith(f"{100 * found['kept'].value:.3g} % [95 %: ")


def test_a_target_that_asks_for_it():
    reward = np.array([1.0, 0.9, 0.9, 0.0, 0.0])
    law = target_of(REVERSE, 0.02, reward)
    frame = drawn(law, 0, reward=reward)
    found = graded(frame, beta=0.02, threshold=0.9)
    assert (found.grade, found.cause) == ("collapsed", "target")
    assert found.headline == "Collapsed, and the target asked for it."
    raised = found.actions[0]
    assert raised.text.startswith("raise beta above ")
    # At the β that is named three quarters are kept, and a little below they are not.
    kept = [
        differ(target_of(REVERSE, raised.value * factor, reward)[:3]) / differ(MASS[:3])
        for factor in (1.0, 0.9)
    ]
    assert kept[0] >= 0.75 > kept[1]
    # Of the best answer alone there is nothing to keep.
    assert graded(frame, beta=0.02).grade == "unknown"


@pytest.mark.parametrize(
    ("recipe", "beta", "cause"),
    [
        (REVERSE, 0.0, "unregularised"),
        (Recipe("loss", "k1", baseline="mean"), 0.1, "unregularised"),
        (Recipe("none", baseline="mean"), 0.1, "unregularised"),
        (Recipe("loss", "k3", baseline="mean"), 0.1, "path"),
        (Recipe("reward", "absolute", baseline="mean"), 0.1, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_causes(recipe, beta, cause):
    found = graded(drawn(ALONE, 1), recipe, beta)
    assert (found.grade, found.cause) == ("collapsed", cause)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (drawn(ALONE, 0, steps=1, known=False), "one logged step"),
        (drawn(MASS, 0, prompts=1, steps=2, of=1, known=False), "too few right completions"),
        (drawn(NARROW, 1, prompts=1, steps=2, of=4, known=False), "leave it open"),
        (drawn(np.array([0.9, 0.1, 0, 0, 0]), 0, reward=np.array([1.0, 0, 0, 0, 0])), "no prompt"),
        (drawn(ALONE, 0).assign(reward=1.0), "which answers are right"),
    ],
)
def test_too_little_to_grade(frame, why):
    found = graded(frame)
    assert (found.grade, found.cause) == ("unknown", "unknown")
    assert why in found.headline


def test_one_right_answer_cannot_be_lost():
    frame = drawn(np.array([0.9, 0.1, 0, 0, 0]), 0, reward=np.array([1.0, 0, 0, 0, 0]))
    assert [x.text for x in graded(frame).actions] == ["nothing to change"]


def test_completions_that_never_recur_are_not_graded():
    frame = drawn(ALONE, 0, known=False)
    frame["completion"] = [f"so {i}: \\boxed{{{a}}}" for i, a in enumerate(frame["answer"])]
    frame["answer"] = frame["completion"]
    found = graded(frame)
    assert found.grade == "unknown"
    assert str(found.actions[0]) == (
        "Add --answer boxed. Why: every completion is its own answer, and \\boxed was seen in most."
    )
    assert "diversity" not in found


@pytest.mark.parametrize("law", [MASS, ALONE], ids=["held", "collapsed"])
@pytest.mark.parametrize("known", [True, False])
def test_order_and_copies_change_nothing(law, known):
    frame = drawn(law, 3, known=known)
    found = graded(frame)
    mixed = frame.sample(frac=1, random_state=0)
    for other in (mixed, frame.iloc[::-1]):
        again = graded(other)
        assert (again.grade, again.cause, again.actions) == (
            *(found.grade, found.cause),
            found.actions,
        )
        assert again["kept"].value == pytest.approx(found["kept"].value, rel=1e-12)
    copy = frame.assign(group_id=frame["group_id"] + 10_000)
    twice = graded(pd.concat([frame, copy], ignore_index=True))
    assert (twice.grade, twice.cause) == (found.grade, found.cause)


def alarms(law, known, keys, **options):
    found = [graded(drawn(law, key, known=known, **options)).grade for key in keys]
    return np.array([grade in ("narrowing", "collapsed") for grade in found])


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("prompts", [1, 12])
def test_runs_that_held_raise_few_alarms(known, prompts):
    uneven = np.array([0.3, 0.03, 0.07, 0.3, 0.3])
    for mass in (MASS, uneven):
        law = target_of(REVERSE, 0.2, mass=mass)
        options = {"mass": mass, "start": mass, "prompts": prompts, "steps": 6}
        assert alarms(law, known, range(40), **options).mean() <= 0.05


def once_each(frame):
    """The same with prompts that never come back."""
    return frame.assign(prompt=frame["prompt"] + " of step " + frame["step"].astype(str))


@pytest.mark.parametrize(("law", "grade"), [(MASS, "held"), (ALONE, "collapsed")])
def test_prompts_that_do_not_recur(law, grade):
    found = graded(once_each(drawn(law, 0, known=False, prompts=20)), None, None)
    assert found.grade == grade
    assert any("prompts of the first and of the last" in x for x in found["kept"].assumptions)
    few = graded(once_each(drawn(law, 0, known=False, prompts=4)), None, None)
    assert few.grade == "unknown"


@pytest.mark.slow
def test_groups_alone_are_graded_as_they_should_be():
    truth, found = differ(NARROW[:3]) / differ(MASS[:3]), []
    for key in range(200):
        frame = once_each(drawn(NARROW, key, known=False, prompts=16, steps=6, of=1))
        low, high = graded(frame, None, None)["kept"].interval
        found.append(low <= truth <= high)
    assert np.mean(found) >= 0.92
    false = [
        graded(once_each(drawn(MASS, key, known=False, prompts=16, steps=6, of=1)), None, None)
        for key in range(40)
    ]
    assert sum(x.grade in ("narrowing", "collapsed") for x in false) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("size", [{"prompts": 4, "steps": 2, "of": 1}, {"steps": 3, "of": 1}])
def test_small_logs_without_a_regulariser_raise_few_alarms(size):
    """One right answer is rare from the start; all answers become few as they become right."""
    mass = np.array([0.3, 0.02, 0.02, 0.33, 0.33])
    law = np.append(mass[:3], [0.005, 0.005])
    found = [
        graded(drawn(law, key, mass=mass, start=mass, known=False, **size), REVERSE, 0.0).grade
        for key in range(40)
    ]
    assert sum(grade in ("narrowing", "collapsed") for grade in found) <= 2
    found = [graded(drawn(ALONE, key, known=False, **size), REVERSE, 0.0) for key in range(40)]
    assert {x.grade for x in found} <= {"collapsed", "unknown", "narrowing"}


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_collapses_are_found(known):
    assert alarms(ALONE, known, range(40)).mean() >= 0.9


@pytest.mark.broad
def test_a_few_runs_that_held_and_a_few_that_did_not():
    law = target_of(REVERSE, 0.2)
    assert not alarms(law, True, range(5)).any()
    assert alarms(ALONE, False, range(5)).all()


def right_kept(recipe, beta, reward=REWARD, right=3):
    return differ(target_of(recipe, beta, reward)[:right]) / differ(MASS[:right])


def test_a_beta_where_there_was_none():
    found = graded(drawn(ALONE, 0), REVERSE, 0.0)
    action = found.actions[0]
    assert (action.key, action.text) == ("beta", f"set beta: {action.value:g}")
    law = target_of(REVERSE, action.value)
    gain = (law @ REWARD - MASS @ REWARD) / (1 - MASS @ REWARD)
    assert 0.9 < gain < 0.99
    assert right_kept(REVERSE, action.value) == pytest.approx(1)
    # Without the reference no number is known.
    unknown = graded(drawn(ALONE, 0, known=False), REVERSE, 0.0).actions
    assert unknown[0].value is None
    assert "kltarget forecast" in unknown[0].text
    assert unknown[1].key == "kltarget score"
    # A run that held is left alone.
    assert [x.text for x in graded(drawn(MASS, 0), REVERSE, 0.0).actions] == ["nothing to change"]


def trl_recipe(action, beta):
    """What TRL does with a configuration that holds what an action says."""
    settings = {"beta": beta, "num_generations": 8, action.key: action.value}
    return recipes.from_config(settings, trainer=TRL).recipe


@pytest.mark.broad
def test_no_division_where_it_makes_the_target_collapse():
    """Divided by a small σ, nearly right answers are far from right; undivided they are kept."""
    reward, beta = np.array([1.0, 0.9, 0.9, 0.0, 0.0]), 0.13
    before = recipes.recipe(TRL, beta=beta, group_size=8)
    assert right_kept(before, beta, reward) < 0.25
    frame = drawn(target_of(before, beta, reward), 0, reward=reward).assign(num_tokens=1.0)
    found = graded(frame, TRL, beta, threshold=0.9)
    assert (found.grade, found.cause) == ("collapsed", "target")
    named = {action.key: action for action in found.actions}
    # Each of both restores three quarters.
    raised, undivided = named["beta"], named["scale_rewards"]
    assert raised.text == f"raise beta above {raised.value:g}"
    higher = trl_recipe(raised, beta)
    assert higher.beta == raised.value > beta
    assert right_kept(higher, higher.beta, reward) >= 0.75
    assert undivided.text == "set scale_rewards: none"
    plain = trl_recipe(undivided, beta)
    assert plain.normalize == "none"
    assert right_kept(plain, beta, reward) >= 0.75


def test_the_division_is_left_where_it_moves_nothing():
    inside = Recipe("reward", "k1", normalize="group-std", baseline="mean", group_size=8)
    keys = {x.key for x in graded(drawn(ALONE, 0), inside, 0.2).actions}
    assert "normalize" not in keys
    plain = Recipe("loss", "k2", baseline="mean")
    assert "normalize" not in {x.key for x in graded(drawn(ALONE, 0), plain, 0.001).actions}
    divided = Recipe("loss", "k2", baseline="mean", normalize="group-std")
    assert "normalize" in {x.key for x in graded(drawn(ALONE, 0), divided, 0.01).actions}


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        (Recipe("loss", "k2", baseline="mean"), "kltarget.adapters.mara_rewards", None),
        pytest.param(REVERSE, "kltarget.adapters.mara_rewards", None, marks=pytest.mark.broad),
        (Recipe("loss", "k3", baseline="mean"), "estimator", "k2"),
        ("trl-rloo", "kltarget.adapters.trl.MaraRLOOTrainer", None),
        ("trl-grpo==1.9.2", "use_bias_correction_kl", "true"),
    ],
)
def test_mara_where_it_works_and_what_stands_in_its_way(recipe, key, value):
    frame = drawn(ALONE, 0).assign(num_tokens=1.0)
    actions = graded(frame, recipe, 0.3).actions
    named = {action.key: action for action in actions}
    assert key in named
    assert named[key].value == value


def test_mara_is_not_named_where_it_does_nothing():
    for recipe, beta in ((REVERSE, 0.0), (Recipe("loss", "k1"), 0.1), (None, None)):
        actions = graded(drawn(ALONE, 0), recipe, beta).actions
        assert not any("mara" in action.key.lower() for action in actions)
    # Nor where one answer alone is best.
    reward = np.array([1.0, 0.9, 0.9, 0.0, 0.0])
    actions = graded(drawn(ALONE, 0, reward=reward), REVERSE, 0.2, threshold=0.9).actions
    assert not any("mara" in action.key.lower() for action in actions)


def test_mara_makes_what_collapsed_even():
    """The reward that the action is about, at the β that acts, under the recipe it is named for."""
    recipe = Recipe("loss", "k2", baseline="mean", group_size=8)
    actions = graded(drawn(ALONE, 0), recipe, 0.3).actions
    assert "kltarget.adapters.mara_rewards" in {x.key for x in actions}
    effective = 0.3 * 8 / 7
    with jax.enable_x64(True):
        paid = kt.mara(kt.Objective(REWARD, np.log(MASS), effective), 1.0).reward
    law = target_of(recipe, 0.3, np.asarray(paid))
    np.testing.assert_allclose(law[:3], law[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "format", "key"),
    [
        (TRL, "trl", "kltarget.adapters.trl.LogProbsGRPOTrainer"),
        ("verl-grpo", "verl", "ref_log_prob"),
        pytest.param(REVERSE, "verl", "ref_log_prob", marks=pytest.mark.broad),
        (REVERSE, "generic", "kltarget score"),
        ("trl-rloo", "trl", "kltarget score"),
    ],
)
def test_what_to_log(recipe, format, key):
    frame = drawn(ALONE, 0, known=False)
    frame.attrs["format"] = format
    actions = graded(frame, recipe, 0.1).actions
    assert key in {x.key for x in actions}
    # Where they are logged already there is nothing to log.
    frame = drawn(ALONE, 0).assign(num_tokens=1.0)
    frame.attrs["format"] = format
    assert key not in {x.key for x in graded(frame, recipe, 0.1).actions}


def test_a_regulariser_that_acts_is_named_by_the_trainers_key():
    frame = drawn(ALONE, 0).assign(num_tokens=1.0)
    slime = graded(frame, "slime", 0.1).actions[0]
    assert slime.text == f"set {slime.key}: {slime.value}"
    still = recipes.from_config({"kl_loss_coef": 0.1, "use_kl_loss": True}, trainer="slime")
    assert still.recipe.aim == "none"
    settings = {"kl_loss_coef": 0.1, "use_kl_loss": True, slime.key: slime.value}
    read = recipes.from_config(settings, trainer="slime").recipe
    assert read.aim in ("reverse", "forward")
    own = graded(frame, Recipe("loss", "k1", baseline="mean"), 0.1).actions[0]
    assert (own.key, own.value) == ("estimator", "k2")
    none = graded(frame, Recipe("none", baseline="mean"), 0.1).actions[0]
    assert (none.key, none.value) == ("place", "loss")


def test_a_coefficient_that_does_nothing_is_told_whatever_the_grade():
    frame = drawn(MASS, 0, known=False, steps=1)
    idle = graded(frame, Recipe("loss", "k1"), 0.1)
    assert idle.grade == "unknown"
    assert (idle.actions[0].key, idle.actions[0].value) == ("estimator", "k2")
    for recipe, beta in ((Recipe("loss", "k1"), 0.1), (REVERSE, 0.0)):
        # There is no target that log-probabilities could show.
        (logs,) = (x for x in graded(frame, recipe, beta).actions if x.key == "kltarget score")
        assert "the target" not in logs.why
    (logs,) = (x for x in graded(frame, REVERSE, 0.1).actions if x.key == "kltarget score")
    assert "the target" in logs.why


def test_right_completions_that_became_few():
    wrong = np.array([0.002, 0.001, 0.001, 0.5, 0.496])
    for known in (True, False):
        found = graded(drawn(wrong, 0, known=known))
        assert found.grade == "unknown"
        assert "right completions fell from " in found.headline
        assert found.actions[0].key == "learning_rate"
    # Where there never were many, none were lost.
    rare = np.array([0.004, 0.003, 0.003, 0.5, 0.49])
    found = graded(drawn(wrong, 0, start=rare, mass=rare))
    assert "fell" not in found.headline


def test_a_run_that_learned_nothing_trains_on():
    still = graded(drawn(MASS, 0), REVERSE, 0.1)
    assert (still.grade, [x.text for x in still.actions]) == ("held", ["train longer"])
    assert still.actions[0].why.endswith("where the target has 1")
    arrived = graded(drawn(target_of(REVERSE, 0.1), 0), REVERSE, 0.1)
    assert [x.text for x in arrived.actions] == ["nothing to change"]
    # Where the target is next to the reference there is no way to go.
    heavy = graded(drawn(MASS, 0), REVERSE, 20.0)
    assert [x.text for x in heavy.actions] == ["nothing to change"]


def test_two_rollouts_do_not_show_that_there_is_one_right_answer():
    few = drawn(np.array([0.9, 0.1, 0, 0, 0]), 0, reward=np.array([1.0, 0, 0, 0, 0]), prompts=1)
    assert [x.text for x in graded(few.iloc[:6]).actions] == ["log more rollouts"]


@pytest.mark.parametrize(("format", "name"), [("trl", "trl-grpo"), ("verl", "verl-grpo")])
def test_how_to_give_the_recipe(format, name):
    frame = drawn(ALONE, 0)
    frame.attrs["format"] = format
    action = graded(frame, None, None).actions[0]
    assert (action.key, action.value) == ("--trainer", name)
    assert f"--trainer {name}" in action.text
    recipes.preset(name)
    unknown = graded(drawn(ALONE, 0), None, None).actions[0]
    assert unknown.value is None
    assert "--trainer, --config or --recipe" in unknown.text


def test_the_recipe_that_the_log_shows_comes_first():
    frame = drawn(ALONE, 0).assign(num_tokens=1.0)
    mean = frame.groupby("group_id")["reward"].transform("mean")
    deviation = frame.groupby("group_id")["reward"].transform("std")
    undivided = frame.assign(advantage=frame["reward"] - mean)
    action = graded(undivided, TRL, 0.2).actions[0]
    assert (action.key, action.value) == ("--recipe", "normalize=none")
    divided = frame.assign(advantage=(frame["reward"] - mean) / (deviation + 1e-4))
    assert "--recipe" not in {x.key for x in graded(divided, TRL, 0.2).actions}


def test_a_controlled_coefficient_is_not_raised():
    reward = np.array([1.0, 0.9, 0.9, 0.0, 0.0])
    frame = drawn(target_of(REVERSE, 0.02, reward), 0, reward=reward)
    steered = Recipe("reward", "k1", kl_target=6.0)
    keys = {x.key for x in graded(frame, steered, 0.02, threshold=0.9).actions}
    assert "kl_target" in keys
    assert "beta" not in keys


def test_what_no_target_is_known_of():
    for recipe in (Recipe("reward", "absolute"), Recipe("reward", "k1", teacher=0.2)):
        (action,) = graded(drawn(ALONE, 0, known=False), recipe, 0.2).actions
        assert action.text == "look at the path of training"


@pytest.mark.parametrize(
    ("rule", "form"),
    [
        ("boxed", "so {i}: \\boxed{{{a}}}, I think {i}"),
        ("answer", "<answer>{a}</answer> by way {i}"),
        ("number", "way {i} gives {a}"),
        # The first word is the same in all, and the last one is not the answer.
        ("boxed", "think {i}: \\boxed{{{a}}} done"),
    ],
)
def test_a_rule_that_would_tell_answers_apart(rule, form):
    frame = drawn(ALONE, 0, known=False)
    text = [form.format(i=i * 1000, a=a[1:]) for i, a in enumerate(frame["answer"])]
    found = graded(frame.assign(completion=text, answer=text))
    assert (found.actions[0].key, found.actions[0].value) == ("--answer", rule)


def test_a_word_that_all_begin_with_tells_no_answers_apart():
    frame = drawn(ALONE, 0, known=False)
    text = [f"think {i} x{i}" for i in range(len(frame))]
    found = graded(frame.assign(completion=text, answer=text))
    assert (found.actions[0].key, found.actions[0].value) == ("--answer", None)


def test_without_a_recipe_nothing_is_said_of_one():
    found = graded(drawn(ALONE, 0), None, None)
    assert found.recipe is None
    assert found.beta is None
    for absent in ("direction", "effective_beta", "family", "reference_ratio"):
        assert absent not in found
    for present in ("zero_std_groups", "pass@1", "diversity", "kept"):
        assert present in found
    assert "recipe: not given" in str(found)
    assert "β = 0" not in str(found)
    again = type(found).from_dict(json.loads(found.to_json()))
    assert again.to_json() == found.to_json()
    assert again.actions == found.actions
    with pytest.raises(ValueError, match="beta says nothing without"):
        graded(drawn(ALONE, 0), None, 0.1)


def test_smaller_steps_or_more_of_them():
    collapsed = graded(drawn(ALONE, 0), Recipe("loss", "k2"), 0.3).actions
    assert any(x.key == "learning_rate" for x in collapsed)
    # Whose key is not known is not given another trainer's.
    (smaller,) = (
        x
        for x in graded(drawn(ALONE, 0).assign(num_tokens=1.0), "skyrl", 0.3).actions
        if x.text.startswith("take smaller steps")
    )
    assert (smaller.key, "a lower learning rate," in smaller.text) == ("", True)
    frame = drawn(NARROW, 0)
    law = np.log(NARROW)
    frame["logp"] = [law[int(a[1:])] for a in frame["answer"]]
    found = graded(frame, Recipe("loss", "k2"), 0.3)
    assert (found.grade, found.cause) == ("narrowing", "path")
    assert any(x.text == "train longer" for x in found.actions)


def test_the_collapse_step_of_a_prompt():
    frame = pd.concat([drawn(ALONE, 0, prompts=2), drawn(MASS, 0, prompts=1)], ignore_index=True)
    kept = frame.index[-9 * 16 :]
    frame.loc[kept, "prompt"] = "kept"
    found = graded(frame, None, None)
    steps = dict(zip(found.prompts["prompt"], found.prompts["collapse_step"], strict=True))
    assert np.isnan(steps["kept"])
    for prompt in ("prompt 0", "prompt 1"):
        own = frame[(frame["prompt"] == prompt) & (frame["reward"] == 1)]
        last = own[own["answer"] != "a0"]["step"].max()
        assert np.isnan(steps[prompt]) if last == 8 else steps[prompt] == last + 1
    short = graded(drawn(ALONE, 0, prompts=1, steps=2, of=1), None, None)
    assert np.isnan(short.prompts["collapse_step"]).all()


def test_the_curves_end_at_the_target():
    found = graded(drawn(target_of(REVERSE, 0.2), 0))
    law = target_of(REVERSE, 0.2)
    ends = found.asymptotes
    assert ends["reward"] == pytest.approx(law @ REWARD)
    assert ends["entropy"] == pytest.approx(-(law @ np.log(law)))
    assert ends["differ"] == pytest.approx(1 - (law**2).sum())
    right = law[:3].sum()
    assert ends["zero_std"] == pytest.approx(right**8 + (1 - right) ** 8)
    assert graded(drawn(ALONE, 0), REVERSE, 0.0).asymptotes == {}


@pytest.mark.parametrize("known", [True, False])
def test_every_interval_stands_behind_its_own_number(known):
    found = [graded(drawn(law, 1, known=known)) for law in (MASS, NARROW, ALONE)]
    statements = [x for one in found for x in one.statements if x.interval is not None]
    assert len(statements) > 12
    for statement in statements:
        letters = dict.fromkeys(statement.assumptions, "a")
        assert "95 %" not in statement.evidence(letters)
        before, _ = statement.told.split(" [95 %: ")
        share = statement.name in ("kept", "zero_std_groups")
        said = float(before.removesuffix(" %").split()[-1]) / (100 if share else 1)
        assert said == pytest.approx(statement.value, rel=0.01)


@pytest.mark.broad
def test_files_given_twice_are_read_once():
    found = diagnose([SHORT, SHORT], TRL, beta=0.04, num_bootstrap=20)
    once = diagnose(SHORT, TRL, beta=0.04, num_bootstrap=20)
    assert (found.grade, found.actions) == (once.grade, once.actions)
    assert found["kept"] == once["kept"]
