"""Verification on games, and the games that come with the package."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from kltarget import tasks
from kltarget.spaces import MarkovGame, MatrixGame
from kltarget.targets.games import solve_game
from kltarget.verification import SpaceReport, verifier_of, verify_game


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cycle", "penalty"])
def test_training_ends_at_the_equilibrium(name):
    report = verify_game(name, key=jax.random.key(1), num_steps=3000)
    assert report.passed, str(report)
    assert set(report.to_dataframe()["trained by"]) == {
        "exact gradients",
        "sampled gradients",
        "Mirror Prox",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["duel", "soccer"])
def test_training_in_a_markov_game_ends_at_the_equilibrium(name):
    report = verify_game(name, key=jax.random.key(1), num_seeds=2, num_steps=600)
    assert report.passed, str(report)
    assert len(report.runs) == 4
    assert ("keep their ratio" in str(report)) == (name == "soccer")


@pytest.mark.broad
def test_too_few_steps_in_a_markov_game_do_not_pass():
    report = verify_game("duel", key=jax.random.key(1), beta=[0.5], num_seeds=1, num_steps=5)
    failed = [check.name for check in report.checks if not check.passed]
    assert [name.split()[0] for name in failed] == ["TV", "values", "gap"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("payoff", "probs"), [([[1.0, -1.0], [-1.0, 1.0]], [0.5, 0.5]), (np.zeros((2, 2)), [0.7, 0.3])]
)
def test_references_that_are_the_equilibrium_leave_nothing_to_be_gained(payoff, probs):
    labels = (("a", "b"), ("a", "b"))
    task = tasks.GameTask("there", "already", MatrixGame(payoff), np.log(probs), labels)
    report = verify_game(task, key=jax.random.key(0), num_seeds=2)
    assert report.passed, str(report)
    assert np.isfinite(report.to_dataframe()[["TV", "gap"]].to_numpy()).all()


@pytest.mark.slow
def test_actions_that_nobody_may_play_are_left_out():
    rows, columns = np.array([0.6, 0.2, 0.2, 0.0, 0.0]), np.array([0.3, 0.7, 0.0])
    payoff = np.array([[1.0, 0.0, 9.0], [0.0, 1.0, 9.0], [0.0, 1.0, 9.0]] + 2 * [[5.0, 5.0, 5.0]])
    with np.errstate(divide="ignore"):
        refs = np.log(rows), np.log(columns)
    labels = tuple("abcde"), tuple("fgh")
    task = tasks.GameTask("mine", "two of them", MatrixGame(payoff), refs, labels)
    report = verify_game(task, key=jax.random.key(0), beta=[0.3], num_seeds=2)
    assert report.passed, str(report)
    assert [c.name for c in report.checks if "ratio" in c.name] == ["b and c keep their ratio"]


@pytest.mark.slow
def test_too_few_steps_do_not_pass():
    report = verify_game("penalty", key=jax.random.key(1), num_steps=20)
    failed = {check.name.split(":")[0] for check in report.checks if not check.passed}
    assert "exact gradients" in failed
    assert "the equilibrium's own gap is rounding" not in failed


def test_shipped_games_are_as_described():
    assert tasks.game_names() == ("cycle", "penalty", "duel", "soccer")
    for name in tasks.game_names():
        task = tasks.load_game(name)
        assert task is tasks.load_game(name)
        assert tuple(map(len, task.labels)) == task.game.num_actions
        pair = task.log_ref if isinstance(task.log_ref, tuple) else (task.log_ref,)
        for log_ref in pair:
            np.testing.assert_allclose(np.exp(log_ref).sum(), 1, rtol=1e-12)
    with pytest.raises(ValueError, match="choose one of cycle, penalty, duel, soccer"):
        tasks.load_game("chess")


@pytest.mark.broad
def test_the_cycle_changes_its_leader_and_the_penalty_is_mixed():
    task = tasks.load_game("cycle")
    found = solve_game(task.game, task.log_ref, np.array([0.02, 1.0]))
    lead = [task.labels[0][i] for i in np.asarray(found.row.probs).argmax(-1)]
    assert lead == ["scissors", "rock"]
    # Without a regulariser each is played as often as the other two are apart: 3 : 3 : 4.
    least = solve_game(task.game, task.log_ref, 1e-3).row.probs
    shares = [float(least[0] + least[1]), float(least[2]), float(least[3])]
    np.testing.assert_allclose(shares, [0.3, 0.3, 0.4], atol=0.01)
    assert isinstance(tasks.load_game("penalty").game, MatrixGame)
    penalty = tasks.load_game("penalty")
    hard = solve_game(penalty.game, penalty.log_ref, 0.01)
    assert float(hard.row.probs.min()) > 0.1


@pytest.mark.broad
def test_the_duel_is_worth_more_the_further_ahead():
    task = tasks.load_game("duel")
    found = solve_game(task.game, task.log_ref, 0.2)
    assert isinstance(task.game, MarkovGame)
    assert (np.diff(np.asarray(found.value)) > 0).all()


def test_soccer_is_played_by_its_rules():
    task = tasks.load_game("soccer")
    transition, reward = (np.asarray(x) for x in (task.game.transition, task.game.reward))
    up, down, ahead, stay = (task.labels[0].index(x) for x in ("up", "down", "ahead", "stay"))
    at = task.states.index
    # With the ball at the far end and the other behind, ahead is a goal whatever happens.
    alone = at("1.3 against 2.1, ball of the row")
    assert (reward[alone, ahead] == 1).all()
    assert (transition[alone, ahead, :, at("over")] == 1).all()
    # Whoever runs into the other loses the ball, but for one who has got out of the way before.
    facing = at("1.1 against 1.2, ball of the row")
    lost, passed = (
        at(f"{x}, ball of the {y}")
        for x, y in (
            ("1.1 against 1.2", "column"),
            ("1.2 against 2.2", "row"),
        )
    )
    assert transition[facing, ahead, stay, lost] == 1
    assert transition[facing, ahead, down, passed] == 0.5
    assert transition[facing, ahead, down, at("1.1 against 2.2, ball of the column")] == 0.5
    # The wall keeps players where they are, and nothing comes after a goal.
    assert transition[facing, up, stay, facing] == 1
    assert (reward[at("over")] == 0).all()
    # Either may be the first to score.
    both = at("1.3 against 2.1, ball of the column")
    assert (reward[both, :, ahead] == -1).all()


@pytest.mark.slow
def test_soccer_is_the_same_game_from_both_ends_and_dodging_pays_at_small_beta():
    task = tasks.load_game("soccer")
    # As many β as a verification has, whose program it is.
    found = solve_game(task.game, task.log_ref, np.array([0.05, 1.0], task.game.reward.dtype))
    stages = found.stages
    value, ours, theirs = map(np.asarray, (found.value, stages.row.probs, stages.column.probs))
    for state, name in enumerate(task.states[:-1]):
        places, ball = name.split(", ball of the ")
        row, column = places.split(" against ")
        turned = [f"{x[0]}.{4 - int(x[2])}" for x in (column, row)]
        other = {"row": "column", "column": "row"}[ball]
        mirror = task.states.index(f"{turned[0]} against {turned[1]}, ball of the {other}")
        np.testing.assert_allclose(value[:, state], -value[:, mirror], atol=2e-6)
        np.testing.assert_allclose(ours[:, state], theirs[:, mirror], atol=1e-5)
    facing = task.states.index("1.1 against 1.2, ball of the row")
    assert [task.labels[0][k] for k in ours[:, facing].argmax(-1)] == ["down", "ahead"]


def test_a_game_of_your_own_is_taken():
    task = dataclasses.replace(tasks.load_game("cycle"), name="mine")
    with pytest.raises(ValueError, match="num_seeds must be"):
        verify_game(task, key=jax.random.key(0), num_seeds=0)


@pytest.mark.broad
def test_the_command_verifies_what_is_no_list(tmp_path, capsys):
    from kltarget.cli import main

    assert main(["verify", "cycle", "--seeds", "2", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Verdict: confirmed." in out
    report = SpaceReport.load(tmp_path / "report.json")
    assert report.passed
    assert report.problem == "cycle"
    assert (tmp_path / "verify.png").stat().st_size > 1000
    assert main(["verify", "cycle", "--full", "--out", str(tmp_path)]) == 2
    assert "--full is for lists of outcomes" in capsys.readouterr().err


def test_every_problem_on_a_space_of_its_own_has_a_verifier():
    spaces = (tasks.text_names, tasks.chain_names, tasks.game_names, tasks.mdp_names)
    names = [name for names in spaces for name in names()]
    assert len(set(names)) == len(names)
    assert all(verifier_of(name) is not None for name in names)
    assert not any(verifier_of(name) for name in tasks.names())
