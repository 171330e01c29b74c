"""What the summary says, and that it says it readably."""

import html.parser
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kltarget as kt
from kltarget import tasks

FLOAT = np.dtype(jnp.result_type(float))


def problem(ref, reward, beta, divergence=None):
    with np.errstate(divide="ignore"):
        log_ref = np.log(np.asarray(ref, np.float64)).astype(FLOAT)
    return kt.Objective(np.asarray(reward, FLOAT), log_ref, beta, divergence or kt.ReverseKL())


def of_task(name, beta, divergence=None, **options):
    task = tasks.load(name)
    objective = task.objective(beta, divergence=divergence or kt.ReverseKL())
    return kt.summarize(objective, task.modes, labels=task.labels, **options)


VERDICTS = {
    "collapses among equals": (
        lambda: of_task("one-two", 0.1),
        "collapses: 93.7 % of the mass is on “1”, one of 2 equally rewarded modes; "
        "equal rewards keep the reference's ratio (15 : 1) at every β",
    ),
    "collapses on the only best": (
        lambda: of_task("bimodal", 0.05),
        r"collapses: 95\.\d % of the mass is on the mode of “75”, which alone has the best reward "
        r"\(1\); it overtakes the mode of “25” below β = 0.1316, and this β is below that",
    ),
    "misses the only best": (
        lambda: of_task("bimodal", 0.3),
        r"misses the best reward: only 25.\d % .*; it overtakes .* and this β is above that",
    ),
    "misses all equals": (
        lambda: kt.summarize(problem([0.05, 0.02, 0.93], [1, 1, 0], 0.6)),
        r"misses the best reward: 7\d.\d % of the mass is on outcomes of lower reward than the 2 "
        r"equally rewarded modes; equal rewards keep the reference's ratio \(2.5 : 1\) at every β",
    ),
    "keeps": (
        lambda: kt.summarize(problem([0.3, 0.2, 0.1, 0.4], [1, 1, 1, 0], 0.1)),
        r"keeps the reference's diversity: 2.75 effective modes among 3 equally rewarded modes; "
        r"equal rewards keep the reference's ratios \(up to 3 : 1\) at every β",
    ),
    "leans among equals": (
        lambda: kt.summarize(problem([0.48, 0.02, 0.3, 0.2], [0, 1, 1, 1], 0.6), [0, 0, 1, 1]),
        r"leans to the mode of “2”: 1.\d\d effective modes among 2 equally rewarded modes, where "
        r"the reference has 2",
    ),
    "leans to the only best": (
        lambda: kt.summarize(problem([0.3, 0.7], [1, 0], 0.5)),
        r"leans: 76 % of the mass is on “0”, which alone has the best reward \(1\); it overtakes "
        r"“1” below β = 1.18, and this β is below that",
    ),
    "prefers it already": (
        lambda: kt.summarize(problem([0.7, 0.3], [1, 0], 0.5)),
        r"collapses: .*; the reference prefers it to “1” already",
    ),
    "stays": (
        lambda: of_task("one-two", 100.0),
        r"stays at the reference: KL\(π\*‖π_ref\) is 1.1e-05 nats; equal rewards keep .*15 : 1",
    ),
    "nothing to gain": (
        lambda: kt.summarize(problem([0.7, 0.3], [1, 1], 0.5)),
        "keeps the reference at every β: all possible outcomes have the same reward",
    ),
    "no choice": (
        lambda: kt.summarize(problem([0.7, 0.3], [1, -np.inf], 0.5), labels=["a", "b"]),
        "there is no choice: only “a” is possible",
    ),
    "one outcome": (
        lambda: kt.summarize(problem([1.0], [3], 0.5)),
        "there is no choice: only “0” is possible",
    ),
    "a condensed target": (
        lambda: kt.summarize(problem([0.5, 0.5, 0], [0, 0.5, 2], 0.01, kt.ForwardKL())),
        r"collapses: 99.4 % of the mass is on “2”, which alone has the best reward \(2\); .*",
    ),
    "no mode": (
        lambda: kt.summarize(problem([0.5, 0.5, 0], [0, 1, 2], 0.3), [-1, -1, 0]),
        "no mode is possible: all mass is on outcomes of no mode",
    ),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts(name):
    summary, want = VERDICTS[name]
    verdict = summary().verdict
    assert verdict == want or re.fullmatch(want + ".*", verdict), verdict


def test_numbers_are_those_of_the_functions():
    task = tasks.load("words")
    target = kt.solve(task.objective(0.2, divergence=kt.ForwardKL()))
    summary = kt.summarize(target, task.modes, labels=task.labels)
    log_ref = target.objective.log_ref
    right = task.reward > 0
    rtol = 1e-5 if FLOAT.itemsize == 4 else 1e-12
    for got, want in (
        (summary.expected_reward, target.expected_reward),
        (summary.expected_reward_reference, np.exp(task.log_ref)[right].sum()),
        (summary.reverse_kl, kt.kl(target.log_probs, log_ref)),
        (summary.forward_kl, kt.kl(log_ref, target.log_probs)),
        (summary.effective_modes, kt.effective_modes(target.log_probs, task.modes)),
        (summary.effective_best_modes_reference, kt.effective_modes(log_ref, task.modes)),
        (summary.best_mass, target.probs[right].sum()),
        (summary.best_mass_reference, np.exp(task.log_ref)[right].sum()),
    ):
        np.testing.assert_allclose(got, want, rtol=10 * rtol)
    assert summary.divergence == "forward KL"
    np.testing.assert_allclose(summary.beta, 0.2, rtol=rtol)
    assert (summary.num_outcomes, summary.num_modes, summary.num_best_modes) == (3118, 35, 35)
    likeliest = np.argsort(-np.asarray(target.log_probs))[:10]
    assert [row.label for row in summary.rows][:3] == [task.labels[i] for i in likeliest][:3]
    assert summary.mode_rows == ()
    assert summary.greedy[0][0] == "is"


def test_an_objective_is_solved():
    objective = problem([0.3, 0.02, 0.68], [1, 1, 0], 0.1)
    assert kt.summarize(objective) == kt.summarize(kt.solve(objective))


@pytest.mark.quick_only("divergence0")
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.Alpha(np.array([[0.5], [2]]))])
def test_a_batch_is_a_summary_per_problem(divergence):
    task = tasks.load("one-two")
    betas, scales = np.array([0.1, 1.0, 10.0]), np.array([[1.0], [2.0]])
    objective = kt.Objective(
        (scales[..., None] * task.reward).astype(FLOAT),
        task.log_ref.astype(FLOAT),
        betas.astype(FLOAT),
        divergence,
    )
    summaries = kt.summarize(objective, task.modes, labels=task.labels, top=2)
    assert len(summaries) == 6
    for k, summary in enumerate(summaries):
        scale, beta = scales.flat[k // 3], betas[k % 3]
        alone = jax.tree.map(lambda x, k=k: x.flat[k // 3].astype(FLOAT), divergence)
        one = problem([0.3, 0.02, 0.68], scale * task.reward, beta, alone)
        alone = kt.summarize(one, task.modes, labels=task.labels, top=2)
        assert summary.verdict == alone.verdict
        assert summary.rows[0].log_prob == pytest.approx(alone.rows[0].log_prob, abs=1e-5)
        assert summary.beta == pytest.approx(beta)


def test_the_parts_of_a_verdict_are_fields():
    summary = of_task("one-two", 0.1)
    assert summary.headline.startswith("collapses: 93.7 %")
    assert summary.invariant == "equal rewards keep the reference's ratio (15 : 1) at every β"
    assert summary.verdict == f"{summary.headline}; {summary.invariant}"
    assert of_task("bimodal", 0.05).invariant == ""


def test_summaries_are_saved_and_loaded(tmp_path):
    forbidden = kt.summarize(
        problem([0.5, 0.3, 0.2], [1, 0, -np.inf], 0.5), labels=["nan", "b", "c"]
    )
    for summary in (of_task("bimodal", 0.05), forbidden):
        summary.save(tmp_path / "summary.json")
        again = kt.modes.Summary.load(tmp_path / "summary.json")
        assert str(again) == str(summary)
        assert again.rows == summary.rows
        assert again.expected_reward_reference == summary.expected_reward_reference
        assert again.to_json() == summary.to_json()


def test_modes_are_listed_when_they_have_members():
    summary = of_task("bimodal", 0.05, top=1)
    row = summary.mode_rows[0]
    assert (row.label, row.size, row.reward, row.mode) == ("75", 21, 1.0, 1)
    assert len(summary.rows) == len(summary.mode_rows) == 1
    text = str(summary)
    assert "of “75”" in text
    assert "(1 more)" in text
    assert "(99 more)" in text


def test_text_is_an_aligned_table():
    text = str(of_task("one-two", 0.1))
    assert text.startswith("Target of reverse KL at β = 0.1, 3 outcomes, 2 modes\n")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 96
    assert not any(line != line.rstrip() for line in lines)
    header = next(line for line in lines if line.startswith("outcome"))
    row = next(line for line in lines if line.startswith("1 "))
    assert header.index("reference") + len("reference") == row.index("30 %") + len("30 %")
    assert "× 3.12" in row
    # The thresholds of the verdict are on the page.
    flat = " ".join(text.split())
    for threshold in ("at least 90 % of the best modes' mass", "less than 50 %", "0.01 nats"):
        assert threshold in flat


def test_labels_are_cut_in_the_middle_and_escaped():
    long = "the-beginning-" + "x" * 60 + "-the-end"
    nasty = '<script>alert("1")</script> & co'
    summary = kt.summarize(
        problem([0.2, 0.3, 0.5], [1, 0.5, 0], 1.0), labels=[long, nasty, "two\nlines"]
    )
    assert summary.rows[0].label in {long, nasty, "two\nlines"}
    text = str(summary)
    assert long not in text
    assert re.search(r"the-beginning-x+…x+-the-end", text)
    assert "two\\nlines" in text
    page = summary._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_wide_characters_keep_the_columns():
    summary = kt.summarize(problem([0.4, 0.6], [1, 0], 1.0), labels=["日本", "ab"])
    first, second = (line for line in str(summary).splitlines() if line.startswith(("日本", "ab")))
    assert first.index(" %") + 2 == second.index(" %")  # two characters of double width


class Balanced(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_well_formed():
    summary = of_task("one-two", 0.1)
    parser = Balanced()
    parser.feed(summary._repr_html_())
    assert parser.open == []
    assert parser.seen.count("table") == 2
    joined = "".join(parser.text)
    assert summary.verdict in joined
    assert "93.7 %" in joined


@pytest.mark.parametrize(
    "summary",
    [
        lambda: of_task("one-two", 0.1),
        lambda: kt.summarize(problem([0.5, 0.5, 0], [0, -np.inf, 2], 0.01, kt.ForwardKL())),
    ],
)
def test_the_dictionary_is_strict_json(summary):
    content = summary().to_dict()
    again = json.loads(json.dumps(content, allow_nan=False))
    assert again == content
    assert set(content) == set(kt.modes.Summary.__dataclass_fields__)
    assert content["rows"][0]["label"] in {"1", "2"}


def test_a_failed_target_is_reported():
    with np.errstate(invalid="raise"):
        target = jax.jit(lambda b: kt.solve(problem([0.5, 0.5], [1, 0], b)))(-1.0)
        summary = kt.summarize(target)
    assert summary.verdict == "no target: the problem is invalid or was not solved"
    assert summary.status == "beta is not above 0 and finite"
    assert math.isnan(summary.expected_reward)
    assert "nan" in str(summary)
    assert summary.to_dict()["reverse_kl"] == "nan"


def test_remarks():
    summary = kt.summarize(problem([0.5, 0.3, 0.2, 0], [0.2, 0.6, 1, 1.5], 0.01, kt.ChiSquared()))
    assert summary.status == "the target is exactly 0 on outcomes that the reference can produce"
    assert "“3” has a higher reward (1.5), but no reference mass" in summary.notes[0]
    assert "for β up to 0.04; this β is within" in summary.notes[1]
    condensed = kt.summarize(problem([0.5, 0.5, 0], [0, 0.5, 2], 0.01, kt.ForwardKL()))
    assert condensed.status == "part of the target stands on outcomes without reference mass"
    assert condensed.reverse_kl == math.inf
    assert "∞" in str(condensed)
    assert "new" in str(condensed)


def test_tiny_probabilities_are_not_zeros():
    summary = kt.summarize(problem([0.5, 0.5], [1, 0], 0.001))
    assert re.search(r"\d\.\de-43\d %", str(summary))
    assert "> 99.9 %" not in str(summary)
    assert "> 99.9 %" in str(of_task("one-two", 0.1))


def test_a_forbidden_outcome_of_the_reference():
    summary = kt.summarize(problem([0.5, 0.3, 0.2], [1, 0, -np.inf], 0.5))
    assert summary.expected_reward_reference == -math.inf
    assert "-∞" in str(summary)


def test_what_is_refused():
    single = problem([0.5, 0.5], [1, 0], 0.1)
    with pytest.raises(ValueError, match="there are 1 labels for 2 outcomes"):
        kt.summarize(single, labels=["a"])
    with pytest.raises(ValueError, match=r"modes has shape \(1,\), but there are 2 outcomes"):
        kt.summarize(single, [0])
    with pytest.raises(ValueError, match="top must be 1 or more"):
        kt.summarize(single, top=0)
    with pytest.raises(TypeError, match=r"problem must be .* got ndarray"):
        kt.summarize(np.zeros(2))
    with pytest.raises(TypeError, match="summarize needs concrete numbers"):
        jax.jit(lambda b: kt.summarize(problem([0.5, 0.5], [1, 0], b)).expected_reward)(0.1)


OF_RECIPES = [1.0, 0.0, 1.0], [0.5, 0.3, 0.2]


def of_recipe(beta, **changes):
    reward, ref = (np.asarray(x, FLOAT) for x in OF_RECIPES)
    recipe = kt.recipe("trl-grpo==1.16.0", **changes)
    return kt.implied_target(recipe, reward, np.log(ref), beta=beta)


@pytest.mark.parametrize(("beta", "changes"), [(0.0, {}), (0.1, {"estimator": "k1"})])
def test_where_nothing_regularises_no_target_is_told_of(beta, changes):
    summary = kt.summarize(of_recipe(beta, **changes))
    assert summary.beta == pytest.approx(beta)
    assert (summary.effective_beta, summary.divergence) == (0, "none")
    assert summary.expected_reward_reference == pytest.approx(0.7, rel=1e-6)
    assert {row.label: row.reward for row in summary.rows} == {"0": 1, "1": 0, "2": 1}
    assert "there is no target" in summary.headline
    assert "path of training" in summary.status
    assert (summary.greedy, summary.flip_modes, summary.invariant) == ((), (), "")
    page = str(summary)
    assert page.startswith(f"No target at β = {beta:g}, 3 outcomes")
    assert "reverse KL" not in page
    assert "∞" not in page.split("outcome ")[1]


def test_no_target_at_all_is_told_of():
    recipe = kt.Recipe("reward", "k2", "sequence", "mean")
    target = kt.implied_target(
        recipe, *(np.asarray(x, FLOAT) for x in ([1, 0], [-1e-9, -30])), beta=1
    )
    summary = kt.summarize(target)
    assert np.isnan(target.probs).all()
    assert math.isnan(summary.expected_reward)
    assert summary.headline == "there is no target"


def test_the_target_of_a_recipe_has_the_trainers_own_rewards():
    target = of_recipe(0.1)
    assert target.reward.tolist() == [1, 0, 1]
    assert target.beta == pytest.approx(0.1)
    summary = kt.summarize(target)
    assert {row.label: row.reward for row in summary.rows} == {"0": 1, "1": 0, "2": 1}
    assert summary.expected_reward_reference == pytest.approx(0.7, rel=1e-6)
    assert summary.expected_reward == pytest.approx(1, rel=1e-6)
    assert summary.effective_beta == pytest.approx(float(target.effective_beta))
    assert "at β = 0.1 (effective β = 0.0404" in str(summary)
    assert "ratio (2.5 : 1)" in summary.invariant
    ours = kt.implied_target(
        kt.recipe("trl-grpo==1.16.0"),
        np.asarray([1, 0, 1], FLOAT),
        np.log(np.asarray([0.5, 0.3, 0.2], FLOAT)),
        beta=np.asarray([0, 0.1, 3], FLOAT),
    )
    several = kt.summarize(ours)
    assert [x.divergence for x in several] == ["none", "reverse KL", "reverse KL"]
    assert [x.beta for x in several] == pytest.approx([0, 0.1, 3])
    assert several[1] == summary
    assert "β = 3 (effective 1." in str(several)
    assert "β = 0: there is no target" in str(several)


def test_an_entropy_bonus_alone_is_named_and_moves_equal_rewards():
    recipe = kt.Recipe("none", "k1", baseline="mean", entropy_bonus=1.0)
    ref = np.log(np.asarray([0.9, 0.1], FLOAT))
    summary = kt.summarize(kt.implied_target(recipe, np.ones(2, FLOAT), ref, beta=0))
    assert summary.divergence == "an entropy bonus alone"
    assert summary.invariant == ""
    assert "keeps the reference at" not in summary.headline


def test_what_rounding_leaves_of_an_expected_reward_is_nothing():
    summary = kt.summarize(problem([0.45, 0.15, 0.4], [0.1, -0.3, 0], 1e12))
    assert (summary.expected_reward_reference, summary.expected_reward) == (0, 0)
    exact = problem([0.5, 0.5], [1e-20, 0], 1.0)
    assert 0 < kt.summarize(exact).expected_reward < 1e-20


def test_equals_in_the_reference_are_not_called_preferred():
    summary = kt.summarize(problem([0.4, 0.4, 0.2], [1, -1, 0], 1e4))
    assert "the reference makes “1” as likely" in summary.headline


def test_one_row_is_not_rows():
    failed = kt.solve(
        kt.Objective.unchecked(*map(jnp.asarray, ([jnp.nan, 0.0], [0.0, 0.0], 1.0)), kt.ReverseKL())
    )
    with pytest.raises(ValueError, match=r"1 of 1 row\)"):
        failed.raise_if_failed()
