"""Rewards of tokens: on texts and from logs against sums over all sequences; what training does.

The oracle lists every sequence with its reference probability and reward, and sums by prefixes.
"""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import DTYPES, eps
from scipy.special import log_softmax, logsumexp

import kltarget as kt
from kltarget.diagnosis import process_rewards
from kltarget.policies import TabularPolicy
from kltarget.rollouts import RolloutError
from kltarget.spaces import Automaton, MarkovReference

DTYPE = DTYPES[0]
FINE = 512 * eps(DTYPE)


def soft_values(sequences, log_ref, reward, beta):
    """``β log E_ref[e^{r/β} | prefix]`` of every prefix, by sums over all sequences below it."""
    prefixes = {y[:t] for y in sequences for t in range(len(y) + 1)}
    found = {}
    for s in prefixes:
        below = np.array([y[: len(s)] == s for y in sequences])
        total = logsumexp(log_ref[below] + reward[below] / beta) - logsumexp(log_ref[below])
        found[s] = beta * total
    return found


def texts(step_reward=None, beta=0.3, divergence=None):
    reference = MarkovReference.fit(["abab", "aabb", "bbab", "a"], smoothing=1.0, end="$")
    automaton = Automaton.from_words(["aa", "bab"], "ab$")
    reward = np.linspace(-1, 1, automaton.num_states).astype(DTYPE)
    options = {} if step_reward is None else {"step_reward": step_reward(automaton)}
    if divergence is not None:
        options["divergence"] = divergence
    target = kt.solve_on_automaton(reference, automaton, reward, beta, length=5, **options)
    every = np.array(list(itertools.product(range(3), repeat=5)))
    possible = np.asarray(reference.log_prob(every)) > -np.inf
    return target, every[possible], reward


@pytest.mark.broad
def test_texts_against_all_of_them():
    for steps in (None, lambda a: np.full((a.num_states, 3), [0.2, -0.1, 0.0], DTYPE)):
        betas = np.array([0.1, 2.0], DTYPE)
        target, every, reward = texts(steps, betas)
        each = target.token_advantages(every)
        assert each.shape == (2, len(every), 5)
        total = reward[np.asarray(target.automaton.run(every))].astype(np.float64)
        earned = np.zeros(every.shape)
        if steps is not None:
            before = np.pad(every, ((0, 0), (1, 0)), constant_values=0)[:, :-1] != 2
            earned = np.where(before, np.array([0.2, -0.1, 0.0])[every], 0.0)
        sequences = [tuple(y) for y in every.tolist()]
        log_ref = np.asarray(target.reference.log_prob(every), np.float64)
        for row, beta in enumerate(betas):
            values = soft_values(sequences, log_ref, total + earned.sum(1), beta)
            for y, got in zip(sequences, np.asarray(each[row]), strict=True):
                want = np.diff([values[y[:t]] for t in range(6)])
                np.testing.assert_allclose(got, want, atol=8 * FINE * (1 + beta))


def test_rewards_of_tokens_add_up_to_the_reward_less_the_value():
    """Claim: with the optimum's log ratios as process rewards a response's reward less their sum
    over η is the same for every response to a prompt (arXiv 2601.10201, Corollary 3.2).

    Holds: on trees, on texts too many to list, and in logs within their errors; it is the soft
    value of the prompt. With no other divergence than reverse KL.
    """
    reference = MarkovReference.fit(["abab", "aabb", "bbab"], smoothing=1.0)
    counter = Automaton.from_words(["aa", "bab"], "ab")
    target = kt.solve_on_automaton(reference, counter, counter.accepting, 0.2, length=300)
    drawn = np.random.default_rng(0).integers(0, 2, (20, 300))
    drawn[0] = np.arange(300) // 2 % 2 == 0
    sums = np.asarray(target.token_advantages(drawn), np.float64).sum(-1)
    reward = np.asarray(counter.accepting, float)[np.asarray(counter.run(drawn))]
    np.testing.assert_allclose(sums, reward - float(target.value), atol=300 * FINE)

    space = kt.SequenceSpace(2, 3)
    rng = np.random.default_rng(1)
    reward, log_ref = rng.normal(size=8).astype(DTYPE), log_softmax(rng.normal(size=8))
    advantages = kt.token_advantages(space, reward, log_ref.astype(DTYPE), 0.3)
    path = sum(np.repeat(np.ravel(x), 4 // 2**t) for t, x in enumerate(advantages))
    value = 0.3 * logsumexp(log_ref + reward / 0.3)
    np.testing.assert_allclose(path, reward - value, atol=FINE)

    other = kt.solve(kt.Objective(reward, log_ref.astype(DTYPE), 0.3, kt.ForwardKL()))
    assert np.ptp(reward - 0.3 * (np.asarray(other.log_probs) - log_ref)) > 0.1


def test_texts_of_other_divergences_are_refused():
    target, every, _ = texts(divergence=kt.ForwardKL())
    with pytest.raises(ValueError, match="token_advantages needs a target of reverse KL"):
        target.token_advantages(every)
    twice, *_ = texts(beta=0.15, divergence=kt.divergences.Scaled(kt.ReverseKL(), 2.0))
    once, *_ = texts(beta=0.3)
    np.testing.assert_allclose(
        twice.token_advantages(every), once.token_advantages(every), atol=FINE
    )


RATIOS = {(): [0.5, 0.5], (0,): [0.7, 0.3], (1,): [0.2, 0.8]}
REWARDS = {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 0.5, (1, 1): 0.25}


def run_at(tmp_path, law, number=4000, names=("token_ids", "ref_token_logps"), seed=0):
    """A log whose first step drew from the reference and whose last one from ``law``."""
    rng, lines = np.random.default_rng(seed), []
    answers = list(REWARDS)
    ref = np.array([RATIOS[()][a] * RATIOS[(a,)][b] for a, b in answers])
    for step, probs in ((0, ref), (50, law)):
        for place in rng.choice(4, size=number, p=probs):
            a, b = answers[place]
            logps = [np.log(RATIOS[()][a]), np.log(RATIOS[(a,)][b])]
            known = {"token_ids": [a, b], "ref_token_logps": logps}
            line = {"step": step, "prompt": "go", "completion": f"{a} {b}"}
            line |= {"reward": REWARDS[a, b], "ref_logp": sum(logps)}
            lines.append(line | {name: known[name] for name in names})
    path = tmp_path / "rollouts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_a_run_at_its_target_pays_tokens_what_they_are_worth(tmp_path):
    answers, beta = list(REWARDS), 0.4
    log_ref = np.log([RATIOS[()][a] * RATIOS[(a,)][b] for a, b in answers])
    reward = np.array(list(REWARDS.values()))
    law = np.exp(log_softmax(log_ref + reward / beta))
    table = process_rewards(run_at(tmp_path, law), beta)
    values = soft_values(answers, log_ref, reward, beta)
    assert table.attrs["prompt"] == "go"
    assert table.attrs["value"] == pytest.approx(values[()], abs=1e-6)
    assert len(table) == 6
    total = dict.fromkeys(answers, 0.0)
    for row in table.itertuples():
        child = (*row.prefix, row.token)
        assert row.advantage == pytest.approx(values[child] - values[row.prefix], abs=1e-6)
        assert abs(row.process_reward - row.advantage) < 4 * row.process_reward_error
        assert 0 < row.process_reward_error < 0.02
        for y in answers:
            total[y] += row.process_reward * (y[: len(child)] == child)
    for y in answers:
        assert total[y] == pytest.approx(REWARDS[y] - values[()], abs=0.06)
    # By counts the log ratio of a token is that of shares.
    assert table["prob"][0] + table["prob"][1] == pytest.approx(1)
    assert (table["rollouts"][:2] == 4000).all()


def test_a_run_that_has_not_moved_pays_nothing_and_what_is_gone_without_end(tmp_path):
    ref = np.array([0.35, 0.15, 0.1, 0.4])
    table = process_rewards(run_at(tmp_path, ref), 0.4, prompt="go")
    assert (table["process_reward"].abs() < 4 * table["process_reward_error"]).all()
    assert table["advantage"].abs().max() > 0.1
    table = process_rewards(run_at(tmp_path, np.array([0.0, 0.0, 0.3, 0.7]), seed=1), 0.4)
    gone = table.set_index(["prefix", "token"])["process_reward"]
    assert gone[(), 0] == -np.inf
    assert np.isnan(gone[(0,), 1])
    with pytest.raises(ValueError, match="beta must be above 0"):
        process_rewards(tmp_path, 0.0)
    with pytest.raises(ValueError, match="“stay” is not in the log"):
        process_rewards(tmp_path, 0.4, prompt="stay")
    with pytest.raises(RolloutError, match="no prompt has a tree of tokens: log token_ids"):
        process_rewards(run_at(tmp_path, ref, names=("token_ids",)), 0.4)


def levels(log_joint):
    mass = [logsumexp(np.reshape(log_joint, (2**t, -1)), axis=1) for t in range(4)]
    return [mass[t + 1].reshape(-1, 2) - mass[t][:, None] for t in range(3)]


def spread_of_gradients(log_policy, log_ref, reward, beta):
    """Mean and total variance of one sample's gradient by logits, by kind of return, exactly.

    A token's return is the reward less β times the log ratios of all tokens, of those from it on
    (process rewards), or the token's soft advantage less its own log ratio alone; less its mean.
    """
    space = kt.SequenceSpace(2, 3)
    probs = np.exp(log_policy)
    policy, ref = levels(log_policy), levels(log_ref)
    ratio = np.stack([np.repeat((p - q).ravel(), 4 // 2**t) for t, (p, q) in
                      enumerate(zip(policy, ref, strict=True))], -1)  # fmt: skip
    whole = ratio.sum(1, keepdims=True) + 0 * ratio
    onward = ratio[:, ::-1].cumsum(1)[:, ::-1]
    worth = kt.token_advantages(space, reward.astype(DTYPE), log_ref.astype(DTYPE), beta)
    own = np.stack([np.repeat(np.ravel(x), 4 // 2**t) for t, x in enumerate(worth)], -1)
    returns = {
        "outcome": reward[:, None] - beta * whole,
        "process": reward[:, None] - beta * onward,
        "advantage": own - beta * ratio,
    }
    score = np.zeros((8, 3, 7, 2))
    for y, tokens in enumerate(itertools.product(range(2), repeat=3)):
        for t in range(3):
            node = 2**t - 1 + int("".join(map(str, tokens[:t])) or "0", 2)
            score[y, t, node] = -np.exp(policy[t][node - 2**t + 1])
            score[y, t, node, tokens[t]] += 1
    found = {}
    for name, x in returns.items():
        x = x - probs @ x
        each = np.einsum("yt,ytna->yna", x, score).reshape(8, -1)
        mean = probs @ each
        found[name] = mean, float(probs @ ((each - mean) ** 2).sum(1))
    return found


def test_process_rewards_have_the_gradient_of_outcomes_and_another_variance():
    """Claim: process rewards, the reward less 1/η times the log ratios of the tokens to come, are
    equivalent to the objective of reward less KL (arXiv 2601.10201, abstract).

    Holds: the expected gradient is the same. But on the way from the reference to the target a
    sample of it varies more than with the log ratio of the whole response, which leaves no variance
    at the target; less only where the policy has gone another way.
    """
    beta, more = 0.5, []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        log_ref, reward = log_softmax(rng.normal(size=8)), rng.normal(size=8)
        at = {}
        for tilt in (-0.5, 0.0, 0.75, 1.0):
            policy = log_softmax(log_ref + tilt * reward / beta)
            found = spread_of_gradients(policy, log_ref, reward, beta)
            np.testing.assert_allclose(found["outcome"][0], found["process"][0], atol=1e-9)
            at[tilt] = {kind: variance for kind, (_, variance) in found.items()}
        assert at[-0.5]["process"] < at[-0.5]["outcome"]
        # Nothing is charged at the reference, where both are one.
        assert at[0.0]["process"] == pytest.approx(at[0.0]["outcome"])
        more.append(at[0.75]["process"] / at[0.75]["outcome"])
        assert at[1.0]["outcome"] < 1e-20
        assert at[1.0]["process"] > 1e-3
        # The target's advantages, which nobody has before it is found, leave none either.
        assert at[1.0]["advantage"] < 1e3 * eps(DTYPE)
    assert min(more) > 1.1


@pytest.mark.broad
def test_training_with_either_ends_at_one_target():
    rng = np.random.default_rng(4)
    log_ref, reward = log_softmax(rng.normal(size=8)), rng.normal(size=8)
    policy = TabularPolicy(2, 3)
    params = policy.from_conditionals([x.astype(DTYPE) for x in levels(log_ref)])
    want = np.exp(log_softmax(log_ref + reward / 0.5))
    for recipe in (
        kt.Recipe("reward", "k1", "sequence", "mean"),
        kt.Recipe("reward", "k1", "token", "mean", charge="onward"),
    ):
        run = kt.fine_tune(
            policy,
            params,
            jnp.asarray(reward, DTYPE),
            recipe,
            beta=0.5,
            learning_rate=0.1,
            num_steps=1500,
            optimizer=lambda rate: optax.adam(optax.cosine_decay_schedule(rate, 1500)),
            gradient_tol=0.0,
        )
        np.testing.assert_allclose(np.exp(np.asarray(run.log_probs)), want, atol=1e-4)
