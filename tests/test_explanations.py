"""What trainers do that no recipe says, and whether it is so."""

import itertools
import json

import numpy as np
import pytest
import scipy.optimize

from kltarget import Objective, cli, recipes, solve
from kltarget.divergences import Alpha, ForwardKL, JensenShannon, ReverseKL

NAMES = [entry.name for entry in recipes.explanations()]


def _run(capsys, *arguments):
    code = cli.main(["recipe", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_wanted_ones_are_there():
    assert {*NAMES} >= {"trl-dpo", "trl-ipo", "trl-kto", "trl-gkd", "trl-distillation"}
    assert {"marin", "llamafactory-dpo", "tinker-distillation"} <= {*NAMES}
    assert not {*NAMES} & {entry.name for entry in recipes.presets()}
    assert len({*NAMES}) == len(NAMES)


@pytest.mark.parametrize("entry", recipes.explanations(), ids=NAMES)
def test_an_explanation_is_a_page_and_an_error(capsys, entry, tmp_path):
    code, out, err = _run(capsys, entry.name)
    assert (code, err) == (0, "")
    flat = " ".join(out.split())
    assert flat.startswith(f"{entry.name}: {entry.trainer} read in {entry.file}")
    assert all(text in flat for text in entry.text)
    assert all(text.endswith(".") for text in entry.text)
    assert max(map(len, out.splitlines())) <= 96
    record = tmp_path / "out.json"
    assert _run(capsys, entry.name, "--json", record)[0] == 0
    assert json.loads(record.read_text("utf-8"))["text"] == list(entry.text)
    for ask in (recipes.recipe, recipes.preset):
        with pytest.raises(ValueError, match=f"^no recipe says what {entry.name} does: ") as caught:
            ask(entry.name)
        assert str(entry) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["trl-gkd", "trl-distillation"])
def test_what_beta_of_a_distillation_is(name):
    said = recipes.explanation(name).text[0]
    assert said.startswith("beta is not a KL coefficient")
    assert "0 the forward KL(teacher‖student)" in said


def test_a_version_that_was_not_read_has_a_caveat(capsys):
    code, out, _ = _run(capsys, "trl-gkd==9.9")
    assert code == 0
    assert "Version 9.9 of trl-gkd was not read: the newest release that was is 1.16.0" in out
    assert recipes.explanation("trl-gkd==1.16.0").caveat == ""
    assert recipes.explanation("trl-grpo") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trl-gkd", "--beta", "0.5"],
            "--beta: no recipe says what trl-gkd does: beta is",
        ),
        (["trl-grpo", "--compare", "trl-dpo"], "no recipe says what trl-dpo does: beta = 0.1 is"),
        (["trl-gkd", "--installed"], "no recipe says what trl-gkd does: "),
        (["trl-gkd==new"], "'new' in 'trl-gkd==new' is not a version"),
        (["trl-gkdd"], "there is no preset 'trl-gkdd': did you mean 'trl-gkd'"),
    ],
)
def test_what_needs_a_recipe_is_refused_in_a_line(capsys, arguments, message):
    code, out, err = _run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("text", "texts", "explained 'mine': there is no key 'texts': did you mean 'text'?"),
        ('["It is."]', "[]", "explained 'mine': text is empty: what is its coefficient?"),
        ('read = ["1"]\n', "", "explained 'mine': read is missing"),
        ('["1"]', '["2", "1"]', "explained 'mine': read must go from old to new, got 2, 1"),
    ],
)
def test_a_mistake_in_an_entry_is_said_in_a_line(right, wrong, message):
    text = """[[explained]]
name = "mine"
trainer = "Mine"
file = "mine.py"
checked = 2026-01-02
read = ["1"]
text = ["It is."]
"""
    assert recipes.explanations_from_toml(text)[0].text == ("It is.",)
    with pytest.raises(ValueError, match=r"^mine\.toml, ") as caught:
        recipes.explanations_from_toml(text.replace(right, wrong, 1), "mine.toml")
    assert message in str(caught.value)


REWARD = np.array([1.0, 0.2, 0.0, -0.5])
REF = np.array([0.4, 0.1, 0.3, 0.2])


def _minimum(loss):
    """The policy at which a loss of log-ratios is least, by plain minimisation."""

    def of_logits(logits):
        log_policy = logits - np.log(np.exp(logits).sum())
        return loss(log_policy - np.log(REF))

    found = scipy.optimize.minimize(of_logits, np.zeros(4), tol=1e-14)
    return np.exp(found.x) / np.exp(found.x).sum()


def _wins(reward):
    return 1 / (1 + np.exp(reward[None] - reward[:, None]))


# What the trainer takes the difference of, from its own source.
SCORES = {
    "reverse_kl": (lambda x: x, ReverseKL()),
    "forward_kl": (lambda x: 1 - np.exp(-x), ForwardKL()),
    "js_divergence": (lambda x: np.log(2) - np.log1p(np.exp(-x)), JensenShannon()),
    "alpha_divergence": (lambda x: (np.exp(-0.5 * x) - 1) / -0.5, Alpha(0.5)),
}


@pytest.mark.broad
@pytest.mark.parametrize("kind", SCORES)
def test_the_optimum_of_dpo_is_the_target_it_is_said_to_be(kind):
    score, divergence = SCORES[kind]
    beta, wins = 0.6, _wins(REWARD)

    def loss(log_ratio):
        margin = beta * np.subtract.outer(score(log_ratio), score(log_ratio))
        return (wins * np.logaddexp(0, -margin)).sum()

    target = solve(Objective(REWARD, np.log(REF), beta, divergence))
    np.testing.assert_allclose(_minimum(loss), target.probs, atol=2e-5)


def test_the_optimum_of_ipo_is_the_target_it_is_said_to_be():
    beta, tokens, wins = 0.6, 3, _wins(REWARD)

    def loss(log_ratio):
        margin = np.subtract.outer(log_ratio, log_ratio) / tokens
        return (wins * (margin - 1 / (2 * beta)) ** 2).sum()

    target = solve(Objective(wins.mean(1), np.log(REF), beta / tokens, ReverseKL()))
    np.testing.assert_allclose(_minimum(loss), target.probs, atol=2e-5)


def test_all_pairs_are_those_of_distinct_answers_too():
    """An answer against itself tells nothing, so leaving such pairs out changes no optimum."""
    wins = _wins(REWARD)
    pairs = [(i, j) for i, j in itertools.product(range(4), repeat=2) if i != j]

    def loss(log_ratio):
        return sum(wins[i, j] * np.logaddexp(0, log_ratio[j] - log_ratio[i]) for i, j in pairs)

    target = solve(Objective(REWARD, np.log(REF), 1.0, ReverseKL()))
    np.testing.assert_allclose(_minimum(loss), target.probs, atol=2e-5)
