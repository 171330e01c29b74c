"""Trees of observed completions: targets as on whole spaces, and what logs show of them."""

import dataclasses
import itertools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from kltarget import recipes
from kltarget.diagnosis import diagnose
from kltarget.implied import implied_target, saturation_beta
from kltarget.recipes import Recipe
from kltarget.rollouts import read_rollouts
from kltarget.spaces import PrefixTree, SequenceSpace

TOKEN = Recipe("loss", "k3", "token", baseline="mean", group_size=4, beta=0.3)
RECIPES = {
    "forward": TOKEN,
    "reverse": dataclasses.replace(TOKEN, estimator="k2"),
    "deviation": dataclasses.replace(TOKEN, normalize="group-std"),
    "large groups": dataclasses.replace(TOKEN, normalize="group-std", group_size=None),
    "entropy": dataclasses.replace(TOKEN, entropy_bonus=0.05),
    "lengths": dataclasses.replace(TOKEN, length="mean"),
    "charged": Recipe("reward", "k1", "token", "none", beta=0.3, length="mean"),
    "sequences": Recipe("loss", "k2", "sequence", "none", beta=0.3),
}


def random_tree(seed=0):
    """A space with an end, and its possible sequences as a tree of prefixes."""
    rng = np.random.default_rng(seed)
    space = SequenceSpace(3, 3, eos=0)
    possible, lengths = np.asarray(space.possible()), np.asarray(space.lengths())
    log_ref = np.where(possible, rng.normal(size=possible.size), -np.inf)
    log_ref -= np.logaddexp.reduce(log_ref)
    reward = rng.integers(0, 3, possible.size) / 2.0
    rows = np.asarray(space.sequences())
    kept = rng.permutation(np.flatnonzero(possible))
    tree = PrefixTree(tuple(tuple(rows[i, : lengths[i]].tolist()) for i in kept))
    return space, tree, kept, reward, log_ref


@pytest.mark.broad
@pytest.mark.quick_only("forward", "lengths")
@pytest.mark.parametrize("name", RECIPES)
def test_a_tree_of_all_sequences_has_the_targets_of_the_space(name):
    space, tree, kept, reward, log_ref = random_tree()
    whole = implied_target(RECIPES[name], reward, log_ref, space=space)
    found = implied_target(RECIPES[name], reward[kept], log_ref[kept], space=tree)
    same = {"rtol": 2e-4, "atol": 1e-6}
    np.testing.assert_allclose(found.probs, np.asarray(whole.probs)[kept], **same)
    np.testing.assert_allclose(found.effective_beta, whole.effective_beta, **same)
    assert int(found.status) == int(whole.status)


def test_the_objective_of_a_tree_has_its_target():
    """The target is what the objective that comes with it asks for."""
    _, tree, kept, reward, log_ref = random_tree()
    found = implied_target(TOKEN, reward[kept], log_ref[kept], space=tree)
    wish = np.asarray(found.objective.reward, np.float64)
    tilted = log_ref[kept] + wish / float(found.objective.beta)
    tilted -= np.logaddexp.reduce(tilted)
    np.testing.assert_allclose(found.log_probs, tilted, rtol=1e-4)


def test_a_batch_of_betas_on_a_tree():
    _, tree, kept, reward, log_ref = random_tree()
    betas = np.array([0.1, 0.5, 3.0])
    rows = implied_target(TOKEN, reward[kept], log_ref[kept], space=tree, beta=betas)
    for beta, row in zip(betas, rows.log_probs, strict=True):
        alone = implied_target(TOKEN, reward[kept], log_ref[kept], space=tree, beta=beta)
        np.testing.assert_allclose(row, alone.log_probs, rtol=1e-5)


def test_saturation_on_a_tree():
    space, tree, kept, reward, log_ref = random_tree()
    recipe = dataclasses.replace(RECIPES["large groups"], estimator="k2")
    whole = saturation_beta(recipe, reward, log_ref, space=space)
    found = saturation_beta(recipe, reward[kept], log_ref[kept], space=tree)
    np.testing.assert_allclose(found, whole, rtol=1e-4)


def test_tokens_of_any_kind_and_lengths():
    tree = PrefixTree([["a", 1], ["a", None], ["b"]])  # pyright: ignore[reportArgumentType]
    assert tree.num_sequences == 3
    assert tree.length == 2
    assert tree.lengths().tolist() == [2, 2, 1]
    assert tree.possible().all()
    assert {tree: 1}[PrefixTree((("a", 1), ("a", None), ("b",)))] == 1


@pytest.mark.parametrize(
    ("sequences", "words"),
    [
        ((), "one or more"),
        (((),), "a token or more"),
        ((("a",), ("a", "b")), "another begins with"),
        ((("a",), ("a",)), "given twice"),
    ],
)
def test_what_is_no_tree(sequences, words):
    with pytest.raises(ValueError, match=words):
        PrefixTree(sequences)


def test_what_a_tree_is_refused_for():
    tree = PrefixTree(((0,), (1, 0)))
    reward, log_ref = jnp.array([1.0, 0.0]), jnp.log(jnp.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="has 3 outcomes, but the space 2"):
        implied_target(TOKEN, jnp.zeros(3), jnp.log(jnp.full(3, 1 / 3)), space=tree)
    with pytest.raises(ValueError, match="the last axis must be 2"):
        tree.require_log_probs(jnp.zeros(3), "log_ref")
    with pytest.raises(TypeError, match="log_ref is needed beside a PrefixTree"):
        implied_target(TOKEN, "bimodal", space=tree)
    with pytest.raises(TypeError, match="PrefixTree"):
        implied_target(TOKEN, reward, log_ref, space="tree")  # pyright: ignore[reportArgumentType]
    for fields in ({"eos": "cut"}, {"estimator": "absolute"}):
        with pytest.raises(ValueError, match="on a PrefixTree"):
            implied_target(dataclasses.replace(TOKEN, **fields), reward, log_ref, space=tree)


# What a real run over two tokens looks like in a log.

RUN = pathlib.Path(__file__).parent / "data" / "rollouts_two" / "two_none_on" / "truth.json"


def logged(tmp_path, columns, seed=3):
    """A log of the run's first and last policy, with the exact log-probabilities of both."""
    truth = json.loads(RUN.read_text(encoding="utf-8"))
    (prompt,) = truth["exact"]
    answers, rng = prompt["answers"], np.random.default_rng(seed)
    mass = {}
    for answer in answers:
        for t in range(len(answer["token_ids"]) + 1):
            prefix = tuple(answer["token_ids"][:t])
            mass[prefix] = mass.get(prefix, 0.0) + np.exp(answer["ref_logp"])
    rows = []
    for step, name in ((1, "ref_logp"), (900, "final_logp")):
        log_probs = np.array([answer[name] for answer in answers])
        probs = np.exp(log_probs - np.logaddexp.reduce(log_probs))
        for place in rng.choice(len(answers), size=1600, p=probs):
            ids = answers[place]["token_ids"]
            prefixes = [tuple(ids[:t]) for t in range(len(ids) + 1)]
            known = {
                "token_ids": ids,
                "num_tokens": len(ids),
                "ref_token_logps": [
                    float(np.log(mass[y] / mass[x])) for x, y in itertools.pairwise(prefixes)
                ],
            }
            row = {"step": step, "prompt": prompt["prompt"], "group_id": len(rows) // 8}
            row |= {"completion": answers[place]["text"], "ref_logp": answers[place]["ref_logp"]}
            row |= {"reward": sum(answers[place]["rewards"].values()), "logp": log_probs[place]}
            rows.append(row | {name: known[name] for name in columns})
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path, {answer["text"]: answer for answer in answers}


RUN_RECIPE = recipes.recipe("trl-grpo==1.16.0", normalize="none", beta=0.2)


@pytest.mark.broad
def test_the_true_distance_of_a_run_over_two_tokens(tmp_path):
    """Over whole answers it would be called 0.25 away, with a ratio of 2.51 : 1 at every β."""
    path, exact = logged(tmp_path, ["token_ids", "ref_token_logps"])
    found = diagnose(path, RUN_RECIPE, key=None)
    assert found["distance"].value == pytest.approx(0.0076, abs=0.002)
    assert not found["distance"].warning
    text = found["reference_ratio"].text
    assert "the target's is 0.99" in text
    assert "2.51 : 1" in text
    now = np.exp(exact["ab"]["final_logp"] - exact["cd"]["final_logp"])
    assert f"now it is {now:.3g} : 1" in text
    assert found["family"].refused
    with pytest.raises(KeyError):
        _ = found["implied_beta"]
    # Of the reward that the run ended with, the target has no less than it.
    reward = sum(np.exp(x["final_logp"]) * sum(x["rewards"].values()) for x in exact.values())
    target = float(found["expected_reward"].text.split("of the target ")[1].split()[0].rstrip(";"))
    assert target == pytest.approx(reward, abs=0.01)


@pytest.mark.slow
def test_flips_along_a_tree_are_where_the_target_is_level(tmp_path):
    path, _ = logged(tmp_path, ["token_ids", "ref_token_logps"])
    found = diagnose(path, RUN_RECIPE)
    assert found.featured is not None
    assert found.featured.flips
    for flip in found.featured.flips:
        near = diagnose(path, RUN_RECIPE, beta=flip["beta"]).featured
        assert near is not None
        assert near.target is not None
        shares = dict(zip(near.names, near.target, strict=True))
        assert shares[flip["better"]] == pytest.approx(shares[flip["worse"]], rel=1e-3)


@pytest.mark.broad
@pytest.mark.quick_only("columns1")
@pytest.mark.parametrize("columns", [[], ["num_tokens"], ["token_ids"], ["ref_token_logps"]])
def test_without_tokens_nothing_is_said_of_targets(tmp_path, columns):
    path, _ = logged(tmp_path, columns)
    found = diagnose(path, RUN_RECIPE)
    names = {statement.name for statement in found.statements}
    assert names.isdisjoint({"distance", "reference_ratio", "implied_beta", "path", "mara"})
    assert found["flip_beta"].refused
    for column in ("token_ids", "ref_token_logps", "num_tokens"):
        assert column in found["flip_beta"].text
    # A loss over whole answers has its target over whole answers.
    whole = diagnose(path, dataclasses.replace(RUN_RECIPE, level="sequence"))
    assert not whole["flip_beta"].refused


def rows_of(completions, probs, **columns):
    rng = np.random.default_rng(0)
    rows = []
    for i, place in enumerate(rng.choice(len(probs), size=400, p=probs)):
        row = {"step": i // 200, "prompt": "?", "group_id": i // 8, "logp": None}
        row |= {"completion": completions[place], "reward": float(place == 0)}
        row |= {"ref_logp": float(np.log(probs[place]))}
        rows.append(row | {name: values[place] for name, values in columns.items()})
    return rows


def diagnosed(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return diagnose(path, RUN_RECIPE)


@pytest.mark.parametrize(
    ("completions", "columns"),
    [
        (["1", "2", "3"], {}),
        (["yes", "no", "maybe"], {}),
        (["10", "11", "12"], {"num_tokens": [1, 1, 1]}),
        (["the cat", "the dog", ""], {"num_tokens": [1, 1, 1]}),
    ],
)
def test_answers_that_part_at_once_are_wholes(tmp_path, completions, columns):
    found = diagnosed(tmp_path, rows_of(completions, [0.2, 0.3, 0.5], **columns))
    assert not found["flip_beta"].refused
    assert any("part at their first token" in x for x in found["flip_beta"].assumptions)


@pytest.mark.parametrize(
    ("completions", "columns"),
    [
        (["10", "11", "12"], {}),
        (["10", "11", "12"], {"num_tokens": [1, 2, 1]}),
        # One character each, but more tokens than one.
        (["1", "2", "3"], {"num_tokens": [2, 2, 2]}),
        (["1", "2", "3"], {"ref_token_logps": [[-1.6, 0.0], [-1.2, 0.0], [-0.7, 0.0]]}),
        # The end of "a" is a token of its own that is not among its tokens.
        (
            ["a", "ab", "c"],
            {"token_ids": [[1], [1, 2], [3]], "ref_token_logps": [[-1.6], [-1.6, -0.3], [-0.7]]},
        ),
        # A list too short for its completion.
        (
            ["ab", "ac", "c"],
            {
                "token_ids": [[1], [1, 2], [3]],
                "ref_token_logps": [[-1.6, -1], [-1.6, -0.3], [-0.7]],
            },
        ),
    ],
)
def test_answers_that_may_part_later_are_not(tmp_path, completions, columns):
    assert diagnosed(tmp_path, rows_of(completions, [0.2, 0.3, 0.5], **columns))[
        "flip_beta"
    ].refused


def test_texts_that_differ_early_say_nothing_where_much_is_unseen(tmp_path):
    rows = rows_of(["the cat", "a dog", "no"], [0.2, 0.3, 0.5])
    assert not diagnosed(tmp_path, rows)["flip_beta"].refused
    for row in rows:
        row["ref_logp"] += np.log(0.9)
    assert diagnosed(tmp_path, rows)["flip_beta"].refused


@pytest.mark.parametrize("names", [("x y", "w y", "v"), ("A", "B", "C")])
def test_what_is_unseen_behind_a_token_stays_there(tmp_path, names):
    """Seen answers part at once, but one of them may go on otherwise: tokens outweigh texts."""
    columns = {
        "token_ids": [[1, 2], [4, 2], [5]],
        "ref_token_logps": [
            np.log([0.5, 0.4]).tolist(),
            [float(np.log(0.3)), 0.0],
            [float(np.log(0.2))],
        ],
    }
    rows = rows_of(names, [0.3, 0.4, 0.3], **columns)
    for row in rows:
        row["reward"] = float(row["completion"] != names[2])
    # By hand, reverse KL per token, an effective β of 0.2 · 8/7.
    beta = 0.2 * 8 / 7
    second = np.array([0.4 * np.exp(1 / beta), 0.6])
    second /= second.sum()
    first = np.array([0.5 * np.exp(second[0] / beta), 0.3 * np.exp(1 / beta), 0.2])
    first /= first.sum()
    found = diagnosed(tmp_path, rows).featured
    assert found is not None
    assert found.target is not None
    target = dict(zip(found.names, found.target, strict=True))
    expected = dict(zip(names, [first[0] * second[0], first[1], first[2]], strict=True))
    expected["(unseen)"] = first[0] * second[1]
    assert target == pytest.approx(expected, rel=1e-5)


def of_two_tokens(tmp_path, change=lambda probs: probs):
    """The diagnosis of a log in which all of four answers of two tokens were seen."""
    ids, second = [[1, 1], [1, 2], [2, 1], [2, 2]], [0.3, 0.7, 0.6, 0.4]
    token_probs = [[0.2 if i[0] == 1 else 0.8, p] for i, p in zip(ids, second, strict=True)]
    logged = [np.log(change(np.float32(x))).tolist() for x in token_probs]
    columns = {"token_ids": ids, "ref_token_logps": logged}
    rows = rows_of(["1 1", "1 2", "2 1", "2 2"], [0.06, 0.14, 0.48, 0.32], **columns)
    for row in rows:
        row["reward"] = float(row["completion"][0] == row["completion"][2])
    return diagnosed(tmp_path, rows)


@pytest.mark.parametrize("missing", [4e-6, -4e-6])
def test_log_probabilities_of_tokens_may_be_rounded(tmp_path, missing):
    found = of_two_tokens(tmp_path, lambda probs: probs * np.float32(1 - missing))
    assert not [note for note in found.notes if "no target" in note]
    # By hand, as above, with an effective β of 0.2 · 8/7.
    beta = 0.2 * 8 / 7
    best = np.exp(1 / beta)
    right = np.array([0.3 * best, 0.4 * best]) / (np.array([0.3, 0.4]) * best + [0.7, 0.6])
    first = np.array([0.2, 0.8]) * np.exp(right / beta)
    first /= first.sum()
    shares = dict(zip(found.featured.names, found.featured.target, strict=True))
    assert shares["1 1"] == pytest.approx(first[0] * right[0], rel=1e-3)
    assert shares["2 2"] == pytest.approx(first[1] * right[1], rel=1e-3)


def test_log_probabilities_of_tokens_that_are_none_are_refused(tmp_path):
    found = of_two_tokens(tmp_path, lambda probs: np.minimum(probs * np.float32(1.2), 1))
    assert found["flip_beta"].refused
    assert "add up to more than 1" in found["flip_beta"].text
    assert any("1 prompt left out" in note for note in found.notes)


def test_prompts_of_equal_rewards_take_their_bounds_from_the_log(tmp_path):
    rows = rows_of(["1", "2", "3"], [0.2, 0.3, 0.5])
    for i, row in enumerate(rows):
        row["prompt"] = "always right" if i % 16 < 8 else "others"
        if row["prompt"] == "always right":
            row |= {"completion": "4", "reward": 1.0, "ref_logp": float(np.log(0.7))}
    found = diagnosed(tmp_path, rows)
    (frame,) = [found.prompts]
    place = frame["prompt"].index("always right")
    # 0.7 of the reference at the best reward, the rest at the log's worst.
    assert frame["seen_reference_mass"][place] == pytest.approx(0.7)
    text = next(x.text for x in found.statements if x.name == "expected_reward")
    before = float(text.split("of the reference ")[1].split(",")[0])
    ours = 0.2 / 1.0
    assert before == pytest.approx((0.7 + ours) / 2, abs=2e-3)


def test_what_the_last_steps_do_not_show_has_no_number(tmp_path):
    rows = rows_of(["1", "2", "3"], [0.2, 0.3, 0.5])
    for row in rows:
        row["prompt"] = f"of step {row['step']}"
    found = diagnosed(tmp_path, rows).featured
    assert found is not None
    assert found.prompt == "of step 1"
    for row in rows:
        row["reward"] = float(row["completion"] != "3")
    text = diagnosed(tmp_path, rows)["right_answers"].text
    assert "2 of 2 prompts; in step 1 0 % of the 1 of those sampled there show" in text
    early = [row | {"prompt": "?"} for row in rows if row["completion"] != "3" or row["step"] == 0]
    logged = [
        row | {"logp": float(np.log({"1": 0.5, "2": 0.4, "3": 0.1}[row["completion"]]))}
        for row in early
    ]
    found = diagnosed(tmp_path, logged).featured
    assert found is not None
    now = dict(zip(found.names, found.now, strict=True))
    assert np.isnan(now["3"])
    assert now["(unseen)"] == pytest.approx(0.1)


def test_unseen_continuations_are_one_choice_per_prefix(tmp_path):
    """What the seen ones leave at a prefix, in its target: bounded by the lowest reward there."""
    columns = {
        "token_ids": [[1, 1], [1, 2], [2]],
        "ref_token_logps": [
            np.log([0.5, 0.5]).tolist(),
            np.log([0.5, 0.3]).tolist(),
            [float(np.log(0.4))],
        ],
    }
    found = diagnosed(tmp_path, rows_of(["aa", "ab", "b"], [0.3, 0.2, 0.5], **columns))
    # By hand: reverse KL per token, an effective β of 0.2 · 8/7; only "aa" is rewarded.
    beta = 0.2 * 8 / 7
    second = np.array([0.5 * np.exp(1 / beta), 0.3, 0.2])
    second /= second.sum()
    first = np.array([0.5 * np.exp(second[0] / beta), 0.4, 0.1])
    first /= first.sum()
    expected = {
        "aa": first[0] * second[0],
        "ab": first[0] * second[1],
        "b": first[1],
        "(unseen)": first[0] * second[2] + first[2],
    }
    assert found.featured is not None
    assert found.featured.target is not None
    got = dict(zip(found.featured.names, found.featured.target, strict=True))
    assert got == pytest.approx(expected, rel=1e-6)


def test_tokens_of_a_log_are_columns_of_the_frame(tmp_path):
    columns = {
        # +1 is what trainers write for padding.
        "completion_ids": [[1, 1, 0], [1, 2, 0], [2, 0, 0]],
        "ref_token_logps": [[-0.7, -0.7, 1.0], [-0.7, -1.2, 1.0], [-0.9, 1.0, 1.0]],
    }
    path = tmp_path / "rows.jsonl"
    rows = rows_of(["aa", "ab", "b"], [0.3, 0.2, 0.5], **columns)
    rows[0]["completion_ids"] = list(range(300))
    rows[0]["ref_token_logps"] = [-0.1] * 300
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    frame = read_rollouts(path)
    # Long ones are not kept.
    assert frame["tokens"][0] is None
    chosen = frame[(frame["completion"] == "ab") & (frame.index > 0)].iloc[0]
    assert chosen["tokens"].tolist() == [1, 2]
    assert chosen["ref_token_logps"].tolist() == [-0.7, -1.2]
    assert chosen["num_tokens"] == 2
