"""Comparisons: what counts before and after say of what changed, and which law it followed."""

import contextlib
import io
import itertools
import json
import pathlib
import tempfile

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import comb, expit, logit
from scipy.stats import fisher_exact

import kltarget as kt
from kltarget import cli, pages, plot, tasks
from kltarget.comparisons import Comparison, compare
from kltarget.evidence import simultaneous_band
from kltarget.recipes import Recipe

SPEED = {
    "gradient": lambda _, x: expit(x) * expit(-x),
    "gradient-std": lambda _, x: np.sqrt(expit(x) * expit(-x)),
    "maxrl": lambda _, x: expit(-x),
}


def table(correct, samples):
    return pd.DataFrame({"prompt": np.arange(len(correct)), "correct": correct, "samples": samples})


def log_odds_after(law, p, parameter):
    """Of prompts of success p, by the equations that define each law."""
    if law == "reverse":
        return logit(p) + 1 / parameter
    if law == "forward":
        # π = β π_ref/(Λ − r), whose masses add up to one.
        def excess(over, x):
            return parameter * x / over + parameter * (1 - x) / (over + 1) - 1

        return np.array([logit(parameter * x / brentq(excess, 1e-12, 1e3, x)) for x in p])
    if law == "reverse-std":
        # The first root on the way up from the reference.
        found = []
        for x in p:
            up = np.linspace(0, 60, 600_001)
            over = up * np.sqrt(expit(logit(x) + up) * expit(-logit(x) - up)) > 1 / parameter
            found.append(logit(x) + (up[over.argmax()] if over.any() else 60))
        return np.array(found)
    return np.array(
        [solve_ivp(SPEED[law], (0, parameter), [x], rtol=1e-9).y[0, -1] for x in logit(p)]
    )


def simulated(law, parameter, seed, prompts=400, samples=32, scatter=0.3):
    """Counts of prompts, a share of which is never solved, before and after."""
    rng = np.random.default_rng(seed)
    p = np.clip(rng.beta(0.6, 0.8, size=prompts), 1e-6, 1 - 1e-6)
    grid = np.linspace(logit(1e-6), logit(1 - 1e-6), 300)
    after = np.interp(logit(p), grid, log_odds_after(law, expit(grid), parameter))
    after = expit(after + scatter * rng.normal(size=prompts))
    solved = rng.uniform(size=prompts) > 0.15
    return [table(rng.binomial(samples, x * solved), samples) for x in (p, after)]


@pytest.fixture(scope="module")
def published():
    """Of the shipped counts, as the command writes it."""
    written = io.StringIO()
    recipe = "place=loss,estimator=k3,baseline=mean,normalize=group-std,group_size=16"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(written):
        path = pathlib.Path(folder) / "o.json"
        line = ["compare", "deepscaler", "--recipe", recipe, "--beta", "0.001"]
        assert cli.main([*line, "--json", str(path)]) == 0
        assert "304 prompts rose and 16 fell" in written.getvalue()
        return Comparison.load(path)


@pytest.mark.broad
def test_the_published_run_is_no_target(published):
    """What the data say, counted and binned without this code."""
    assert (published.num_rose, published.num_fell) == (304, 16)
    assert published.fell_alone == 14
    assert published.verdict == "neither"
    assert all(law.ruled_out for law in published.laws if law.kind in ("target", "recipe"))
    # Prompts of low success moved least.
    assert published.shifts.tilt[1] > 0.5
    plain = {2: 0.47, 3: 1.00, 4: 1.40, 5: 1.73}
    for at, mean in plain.items():
        low, high = published.shifts.mean[at][1:]
        assert low - 0.1 < mean < high + 0.1
    assert published.asked.success[0] > 0.9
    assert 0.15 < published.asked.covered[0] < published.asked.covered[2] < 0.3


@pytest.mark.broad
def test_pass_at_k_of_the_published_run(published):
    """Beside the unbiased estimates."""
    counts = tasks.deepscaler()
    n = counts["samples"].to_numpy()
    for side, name in (("before", "base_correct"), ("after", "rl_correct")):
        wrong = n - counts[name].to_numpy()
        for i, k in enumerate(published.k):
            if k <= 64:
                plain = float((1 - comb(wrong, k) / comb(n, k)).mean())
                low, _, high = published.pass_at_k[side][i]
                assert low < plain < high
    known = dict(zip(published.k, published.known, strict=True))
    assert (known[1], known[8], known[128], known[256]) == (1, 1, -1, -1)


def test_prompts_that_moved():
    """Fisher's test of each prompt and the steps of Benjamini and Hochberg, by hand."""
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 33, 60), rng.integers(0, 17, 60)
    found = compare(table(before, 32), table(after, 16), num_draws=100, k=(1,))
    p = [fisher_exact([[a, 32 - a], [b, 16 - b]])[1] for a, b in zip(before, after, strict=True)]
    order = np.argsort(p)
    below = np.flatnonzero(np.array(p)[order] <= 0.05 * np.arange(1, 61) / 60)
    moved = np.zeros(60, int)
    chosen = order[: below[-1] + 1]
    moved[chosen] = np.sign(after[chosen] / 16 - before[chosen] / 32)
    np.testing.assert_allclose(found.p_value, np.minimum(p, 1), rtol=1e-10)
    assert found.moved == moved.tolist()
    assert found.num_rose == (moved > 0).sum()
    assert found.num_fell == (moved < 0).sum()
    falls = [
        fisher_exact([[a, 32 - a], [b, 16 - b]], "greater")[1]
        for a, b in zip(before, after, strict=True)
    ]
    order = np.sort(falls) <= 0.05 * np.arange(1, 61) / 60
    assert found.fell_alone == (np.flatnonzero(order)[-1] + 1 if order.any() else 0)


def test_bands_hold_whole_curves():
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(4000, 6)) @ np.triu(np.ones((6, 6)))
    low, middle, high = simultaneous_band(draws).T
    inside = ((draws >= low) & (draws <= high)).all(1).mean()
    assert 0.95 <= inside < 0.953
    at_each = np.quantile(draws, [0.025, 0.975], axis=0)
    assert (low < at_each[0]).all()
    assert (high > at_each[1]).all()
    np.testing.assert_allclose(middle, np.median(draws, axis=0))
    # Of a single number it is the interval between quantiles.
    alone = simultaneous_band(draws[:, :1])[0]
    np.testing.assert_allclose(alone[[0, 2]], at_each[:, 0], atol=0.02)


LAWS = [
    ("reverse", 0.7),
    ("forward", 0.6),
    ("gradient", 6.0),
    ("gradient-std", 3.0),
    ("maxrl", 2.0),
]


@pytest.mark.broad
@pytest.mark.parametrize(("law", "parameter"), LAWS)
def test_a_law_is_found(law, parameter):
    found = compare(*simulated(law, parameter, 0), num_draws=100, k=(1,))
    laws = {x.name: x for x in found.laws}
    assert not laws[law].ruled_out
    assert laws["none"].ruled_out
    assert found.verdict in ("open", laws[law].kind)
    low, _, high = laws[law].parameter
    assert 0.85 * low < parameter < 1.15 * high
    others = [x.behind for x in found.laws if x.name not in (law, "free")]
    assert laws[law].behind < min(others)


@pytest.mark.slow
@pytest.mark.parametrize(("law", "parameter"), LAWS[::4])
def test_laws_are_found_again_and_again(law, parameter):
    held = ruled_out = 0
    for seed in range(5):
        found = compare(*simulated(law, parameter, seed, scatter=0.0), num_draws=100, k=(1,))
        fitted = next(x for x in found.laws if x.name == law)
        held += fitted.parameter[0] <= parameter <= fitted.parameter[2]
        ruled_out += fitted.ruled_out
    # Of five intervals of 95 % three or more hold in 99.9 of a hundred cases.
    assert held >= 3
    assert ruled_out <= 1


@pytest.fixture(scope="module")
def shifted():
    return compare(*simulated("reverse", 0.8, 3), num_draws=100, k=(1,))


@pytest.mark.parametrize("law", ["reverse", "forward", "reverse-std", *SPEED])
@pytest.mark.broad
def test_curves_are_those_of_their_equations(shifted, law):
    fitted = next(x for x in shifted.laws if x.name == law)
    p = np.array(shifted.shifts.success)
    wanted = log_odds_after(law, p, fitted.parameter[1]) - logit(p)
    near = np.abs(wanted) < 20
    np.testing.assert_allclose(np.array(fitted.curve)[near], wanted[near], rtol=0.01, atol=0.01)


def test_nothing_changed():
    before, after = simulated("reverse", 1e6, 4, scatter=0.0)
    found = compare(before, after, num_draws=100, k=(1, 8))
    assert found.verdict == "unchanged"
    assert found.num_rose + found.num_fell <= 1
    assert "No change is known" in str(found)


@pytest.mark.slow
def test_bands_of_the_difference_hold():
    """At all k at once, of 40 data sets: 33 or more in 99.9 of a hundred cases."""
    held = 0
    ks = (1, 4, 16, 64, 256)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p = np.where(rng.uniform(size=200) < 0.2, 0, rng.beta(0.4, 1.2, size=200))
        q = np.where(p > 0, expit(logit(np.clip(p, 1e-12, 1 - 1e-12)) + 1.0), 0)
        sides = [
            table(rng.binomial(16, x), 16).assign(prompt=i * 1000 + np.arange(200))
            for i, x in enumerate((p, q))
        ]
        found = compare(*sides, num_draws=300, k=ks)
        truth = np.array([((1 - p) ** k).mean() - ((1 - q) ** k).mean() for k in ks])
        low, _, high = np.array(found.pass_at_k["difference"]).T
        held += bool(((low <= truth) & (truth <= high)).all())
    assert held >= 33


@pytest.mark.broad
def test_what_the_recipe_asks_for():
    """With so many samples that nothing is open: log-odds shifted by 1/β."""
    rng = np.random.default_rng(5)
    p = rng.uniform(0.05, 0.95, 30)
    before = table((10_000 * p).round().astype(int), 10_000)
    end = expit(logit(p) + 1.0)
    after = table((10_000 * (p + end) / 2).round().astype(int), 10_000)
    found = compare(before, after, Recipe(), beta=0.5, k=(1, 4), num_draws=100)
    goal = expit(logit(p) + 2.0)
    np.testing.assert_allclose(found.asked.success[1], goal.mean(), atol=2e-3)
    np.testing.assert_allclose(found.asked.pass_at_k[1][1], (1 - (1 - goal) ** 4).mean(), atol=2e-3)
    covered = (end - p).mean() / 2 / (goal - p).mean()
    np.testing.assert_allclose(found.asked.covered[1], covered, atol=0.02)


def test_prompts_are_paired_by_name():
    before, after = simulated("reverse", 0.7, 6, prompts=80)
    mixed = after.sample(frac=1, random_state=0)
    one, two = (compare(before, x, num_draws=100, k=(1,)) for x in (after, mixed))
    assert one.moved == two.moved
    assert one.prompts == two.prompts
    some = compare(before.iloc[:60], after.iloc[20:], num_draws=100, k=(1,))
    assert len(some.prompts) == 40
    assert "20 prompts only before: left out" in some.notes
    assert "20 prompts only after: left out" in some.notes


def test_without_pairs_only_pass_at_k_is_said():
    before, after = simulated("reverse", 0.5, 7, prompts=100)
    after["prompt"] += 1000
    found = compare(before, after, num_draws=100, k=(1, 8))
    assert (found.paired, found.verdict, found.laws, found.shifts) == (False, "unpaired", [], None)
    assert found.known[0] == 1
    assert "no prompt is in both" in found.notes[0]
    assert "unpaired" in found.title
    assert len(plot.comparison(found).axes) == 1
    assert found.dataset["pass_at_k"].sizes == {"side": 3, "k": 2, "bound": 3}
    assert found.to_dataframe().empty


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([0, 1, 0, 1, 1], [1, 1, 0, 1, 0]),
        ([0] * 5, [0] * 5),
        ([1] * 5, [1] * 5),
        ([0] * 5, [1] * 5),
        ([1], [0]),
    ],
    ids=["one-sample", "all-wrong", "all-right", "wrong-to-right", "one-prompt"],
)
def test_samples_that_say_little(before, after):
    """Intervals as wide as that, finite numbers, and no law that is known."""
    found = compare(table(before, 1), table(after, 1), num_draws=100, k=(1, 256))
    bands = np.array([found.pass_at_k[x] for x in ("before", "after", "difference")])
    assert np.isfinite(bands).all()
    assert (bands[:2] >= 0).all()
    assert (bands[:2] <= 1).all()
    assert (bands[:, 0, 2] > bands[:, 0, 0] + 0.1).all()
    if before == after:
        assert found.known == [0, 0]
    assert found.verdict in ("unchanged", "open", "target")
    assert found.num_rose == found.num_fell == 0
    assert np.isfinite(found.shifts.mean).all()
    assert str(found)


def test_unequal_samples():
    before = table([3, 40, 0], [4, 50, 7])
    found = compare(before, table([9, 10, 8], [10, 10, 9]), num_draws=100, k=(1,))
    assert found.samples == [[4, 50, 7], [10, 10, 9]]
    assert "4 to 50 samples each before and 9 to 10 samples each after" in found.title


def rollouts(rewards, step=1, prompts=3):
    rows = [
        {"prompt": f"p{i}", "completion": f"{j}", "answer": f"{j}", "reward": float(r)}
        for i in range(prompts)
        for j, r in enumerate(rewards)
    ]
    return pd.DataFrame(rows).assign(step=step, group_id=0, logp=None, ref_logp=None)


def test_of_logs_the_first_step_and_the_last_third_count():
    steps = [rollouts([0, 0, 0, 1], 0), rollouts([0, 0, 1, 1], 1), rollouts([1, 1, 1, 1], 2)]
    log = pd.concat(steps, ignore_index=True)
    found = compare(log, log, num_draws=100, k=(1,))
    assert found.correct == [[1, 1, 1], [4, 4, 4]]
    assert any("before: the first of 3 logged steps" in x for x in found.notes)
    assert any("after: the last third of 3 logged steps" in x for x in found.notes)


def test_unknown_rewards_are_left_out():
    log = rollouts([0, 1, np.nan, 1])
    found = compare(log, log, num_draws=100, k=(1,))
    assert found.samples[0] == [3, 3, 3]
    assert any("reward" in x for x in found.notes)


GOOD = table([1, 2], 4)
GRADED = rollouts(np.zeros(12)).assign(reward=np.random.default_rng(0).uniform(size=36))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: compare(table([5], 4), GOOD), kt.tasks.TableError, "5 are correct of 4 samples"),
        (lambda: compare(table([1], 0), GOOD), kt.tasks.TableError, "samples"),
        (
            lambda: compare(GOOD, pd.concat([GOOD, GOOD])),
            kt.tasks.TableError,
            "the prompt '0' is in",
        ),
        (lambda: compare(GOOD, GOOD, k=()), ValueError, "k must be a sequence"),
        (lambda: compare(GOOD, GOOD, k=(0,)), ValueError, "k must be integers of 1 or more"),
        (lambda: compare(GOOD, GOOD, k=(1.5,)), ValueError, "k must be integers"),
        (
            lambda: compare(GOOD, GOOD, false_discovery_rate=1),
            ValueError,
            "false_discovery_rate must be between 0 and 1",
        ),
        (lambda: compare(GOOD, GOOD, num_draws=10), ValueError, "num_draws must be 100 or more"),
        (lambda: compare(GOOD, GOOD, beta=0.1), ValueError, "beta is that of a recipe"),
        (lambda: compare(GOOD, GOOD, Recipe(), beta=-1.0), ValueError, "beta must be a finite"),
        (lambda: compare(GOOD, GOOD, 3), TypeError, "recipe must be"),
        (lambda: compare(GOOD, GOOD, threshold=0.5), ValueError, "threshold is of rewards"),
        (
            lambda: compare(GOOD, GOOD, Recipe(entropy_bonus=0.1)),
            ValueError,
            "no forecast is known for an entropy bonus",
        ),
        (
            lambda: compare(GRADED, GRADED),
            ValueError,
            "threshold is needed",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.fixture(scope="module")
def small():
    before, after = simulated("reverse", 0.7, 8, prompts=60, samples=16)
    return compare(before, after, "trl-grpo==1.9.2", beta=0.5, k=(1, 4, 16), num_draws=100)


def test_it_is_kept(small, tmp_path):
    small.save(tmp_path / "comparison.json")
    again = Comparison.load(tmp_path / "comparison.json")
    assert again.to_dict() == small.to_dict()
    assert str(again) == str(small)
    assert again.recipe == small.recipe


def test_it_is_labelled(small):
    data = small.dataset
    assert (
        data["pass_at_k"].sel(side="after", k=4, bound="middle") == small.pass_at_k["after"][1][1]
    )
    assert set(data["law"].values) >= {"none", "free", "reverse", "recipe", "maxrl"}
    frame = small.to_dataframe()
    assert len(frame) == 60
    assert frame["p_value"].is_monotonic_increasing


def test_the_figure_and_the_page(small, tmp_path):
    plot.comparison(small).savefig(tmp_path / "comparison.png")
    page = pages.comparison(small)
    assert "data:image/png;base64," in page
    assert "asked for" in page
    text = str(small)
    assert max(map(len, text.splitlines())) <= 96
    assert "recipe: trl-grpo==1.9.2" in text


def run(capsys, *arguments):
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command(capsys, tmp_path):
    before, after = simulated("reverse", 0.7, 9, prompts=40, samples=8)
    both = before.rename(columns={"correct": "old"}).assign(new=after["correct"])
    before.to_csv(tmp_path / "before.csv", index=False)
    after.to_csv(tmp_path / "after.csv", index=False)
    both.to_csv(tmp_path / "both.csv", index=False)
    out = [str(tmp_path / x) for x in ("c.json", "c.html", "c.png")]
    one = [str(tmp_path / "before.csv"), str(tmp_path / "after.csv")]
    code, text, _ = run(capsys, "compare", *one, "--k", "1,8", "--plot", out[2])
    assert code == 0
    assert text.startswith("kltarget compare · 40 prompts, 8 samples each")
    columns = ["--columns", "correct=old", "--columns-after", "correct=new"]
    files = ["--json", out[0], "--html", out[1]]
    code, text, _ = run(capsys, "compare", str(tmp_path / "both.csv"), *columns, *files)
    assert code == 0
    found = Comparison.from_dict(json.loads((tmp_path / "c.json").read_text()))
    assert found.correct == [before["correct"].tolist(), after["correct"].tolist()]
    code, _, err = run(capsys, "compare", one[0])
    assert code == 2
    assert "AFTER" in err
    code, _, err = run(capsys, "compare", *one, "--false-discovery-rate", "2")
    assert code == 2
    assert "--false-discovery-rate" in err
    code, _, err = run(capsys, "compare", *one, "--beta", "0.1")
    assert code == 2
    assert "recipe" in err


def answered(laws, samples, rng):
    """Rollouts whose right answers follow a law per prompt; every third is wrong."""
    rows = []
    for i, law in enumerate(laws):
        right = rng.choice(len(law), size=samples, p=law)
        rows += [(f"p{i}", f"right {x}", 1.0) for x in right]
        rows += [(f"p{i}", f"wrong {x}", 0.0) for x in range(samples // 2)]
    frame = pd.DataFrame(rows, columns=["prompt", "answer", "reward"])
    frame["completion"] = frame["answer"]
    return frame.assign(step=0, group_id=0, logp=None, ref_logp=None)


def test_no_right_answer_at_all():
    log = pd.concat([rollouts([0, 1], 0), rollouts([0, 0], 1)], ignore_index=True)
    found = compare(log, log, num_draws=100, k=(1,))
    assert found.correct == [[1, 1, 1], [0, 0, 0]]
    assert found.answers is None


def test_kept_answers():
    rng = np.random.default_rng(0)
    laws = [rng.dirichlet(np.ones(6)) for _ in range(30)]
    same = compare(answered(laws, 24, rng), answered(laws, 12, rng), num_draws=100, k=(1,))
    low, _, high = same.answers.kept
    assert low < 1 < high
    assert (same.answers.prompts, same.answers.samples) == (30, 12)
    fewer = [np.eye(6)[law.argmax()] * 0.8 + 0.2 * law for law in laws]
    lost = compare(answered(laws, 24, rng), answered(fewer, 24, rng), num_draws=100, k=(1,))
    assert lost.answers.kept[2] < 0.9
    assert "so the path lost the rest" in " ".join(str(lost).split())
    assert Comparison.from_dict(lost.to_dict()).answers == lost.answers


def test_different_answers_are_counted_at_equal_numbers():
    """Beside all ways to draw three of five."""
    five, three = ["a", "a", "b", "c", "c"], ["a", "b", "b"]
    wanted = np.mean([len(set(x)) for x in itertools.combinations(five, 3)])
    sides = [
        pd.concat(
            [
                rollouts([1] * len(x) + [0], prompts=1).assign(answer=[*x, "z"], prompt=f"{i}")
                for i in range(5)
            ]
        )
        for x in (five, three)
    ]
    found = compare(*sides, num_draws=100, k=(1,))
    np.testing.assert_allclose(found.answers.before, wanted)
    np.testing.assert_allclose(found.answers.after, 2)
    assert found.answers.samples == 3


def test_counts_say_nothing_of_answers(small):
    assert small.answers is None


def test_two_runs_are_compared_by_their_last_steps():
    one = pd.concat([rollouts([0, 0, 0, 0], 0), rollouts([0, 0, 1, 1], 1)], ignore_index=True)
    two = pd.concat([rollouts([0, 0, 0, 0], 0), rollouts([0, 1, 1, 1], 1)], ignore_index=True)
    found = compare(one, two, steps=("last", "last"), num_draws=100, k=(1,))
    assert found.correct == [[2, 2, 2], [3, 3, 3]]
    with pytest.raises(ValueError, match="steps must be two of 'first' and 'last'"):
        compare(one, two, steps=("first", "middle"))


RUNS = pathlib.Path(__file__).parent / "data" / "rollouts"


@pytest.mark.broad
def test_two_runs_side_by_side(capsys, tmp_path):
    names = ("trl116_grpo_digit_b004", "trl116_grpo_digit_b0")
    one, other = (str(RUNS / name) for name in names)
    given = ["--trainer", "trl-grpo==1.9.2", "--beta", "0.04"]
    json_file, page = str(tmp_path / "two.json"), str(tmp_path / "two.html")
    code, text, err = run(capsys, "diagnose", one, "--against", other, *given)
    assert (code, err) == (0, "")
    both = [run(capsys, "diagnose", x, *given)[1] for x in (one, other)]
    for found in both:
        # The first statement of each run's own page.
        short = found[found.index("• ") + 2 :].splitlines()[0][:40].lower()
        assert short in text.lower()
    assert "No KL target" not in text
    assert "ruled out" not in text
    files = ["--json", json_file, "--html", page, "--plot", str(tmp_path / "two.png")]
    code, _, _ = run(capsys, "diagnose", one, "--against", other, *given, *files)
    assert code == 0
    content = json.loads(pathlib.Path(json_file).read_text("utf-8"))
    last = Comparison.from_dict(content["comparison"])
    assert (last.labels, last.from_base) == (("A", "B"), False)
    assert content["A"]["title"] != content["B"]["title"]
    assert "data:image/png" in pathlib.Path(page).read_text("utf-8")


@pytest.mark.broad
def test_runs_whose_rewards_do_not_show_what_is_right(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        rows = pd.concat([GRADED.assign(step=step) for step in (1, 2, 3)])
        rows["reward"] = rng.uniform(size=len(rows))
        rows.drop(columns=["group_id", "logp", "ref_logp"]).to_csv(tmp_path / f"{name}.csv")
    given = ["--recipe", "place=loss,estimator=k3,baseline=mean,group_size=8", "--beta", "0.1"]
    paths = [str(tmp_path / f"{name}.csv") for name in ("one", "two")]
    code, text, _ = run(capsys, "diagnose", paths[0], "--against", paths[1], *given)
    assert code == 0
    assert "Not compared: --threshold is needed" in text


@pytest.mark.broad
@pytest.mark.parametrize("clumped", [False, True])
def test_alike_and_clumped_prompts_rule_no_true_law_out(clumped):
    """At the exact target of a reverse KL at β = 1."""
    verdicts = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        hard = rng.uniform(size=300) < 0.5
        p = rng.beta(20, 46, 300)
        p = np.where(hard, rng.beta(2, 60, 300), rng.beta(30, 3, 300)) if clumped else p
        counts = [rng.binomial(32, x) for x in (p, expit(logit(p) + 1))]
        found = compare(*(table(c, 32) for c in counts), num_draws=100, k=(1,))
        low, _, high = found.pass_at_k["before"][0]
        assert low < counts[0].mean() / 32 < high
        verdicts.append(found.verdict)
        assert any("clumps" in x for x in found.notes) == clumped
    assert set(verdicts) <= {"target", "open"}
