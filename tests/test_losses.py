"""Whole loss functions, written as trainers write them: what they ask for, read off gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kltarget as kt
from kltarget import cli
from kltarget.recipes import Recipe, divergence_of_loss
from kltarget.testing import assert_target


def policy_term(logp, old, advantages, low=0.2, high=0.2, xp=jnp):
    ratio = xp.exp(logp - old)
    return xp.minimum(ratio * advantages, xp.clip(ratio, 1 - low, 1 + high) * advantages)


def k3(logp, ref):
    return jnp.exp(ref - logp) - (ref - logp) - 1


def averaged(per_token, mask):
    return (per_token * mask).sum() / mask.sum()


def per_sequence(per_token, mask):
    return ((per_token * mask).sum(-1) / mask.sum(-1)).mean()


def grpo_of_each_sequence(logp, ref, old, advantages, mask):
    gain = policy_term(logp, old, advantages[:, None], 0.2, 0.28)
    return per_sequence(-gain + 0.04 * k3(logp, ref), mask)


def grpo_with_weighted_k3(logp, ref, old, advantages, mask):
    ratio = jnp.exp(logp - old)
    return averaged(-ratio * advantages[:, None] + 0.04 * ratio * k3(logp, ref), mask)


def low_variance_kl_of_tokens(logp, ref, old, advantages, mask):
    # Advantages per token, as some trainers hold them.
    gain = policy_term(logp, old, advantages + 0 * mask)
    kl = jnp.clip(k3(logp, jnp.clip(ref - logp, -20, 20) + logp), -10, 10)
    return averaged(-gain, mask) + 0.001 * averaged(kl, mask)


def swapped_arguments(logp, ref, old, advantages, mask):
    return averaged(-policy_term(logp, old, advantages[:, None]) + 0.01 * k3(ref, logp), mask)


def squared(logp, ref, old, advantages, mask):
    kl = (logp - ref) ** 2 / 2
    return averaged(-policy_term(logp, old, advantages[:, None]) + 0.02 * kl, mask)


def charged_to_the_advantage(logp, ref, old, advantages, mask):
    charged = advantages[:, None] - 0.1 * jax.lax.stop_gradient(logp - ref)
    return averaged(-jnp.exp(logp - old) * charged, mask)


def less_their_mean(cost, mask):
    return (cost - (cost * mask).sum() / mask.sum()) * mask


def charged_to_each_token(logp, ref, old, advantages, mask):
    cost = less_their_mean(jax.lax.stop_gradient(old - ref), mask)
    return averaged(-jnp.exp(logp - old) * (advantages[:, None] - 0.1 * cost), mask)


def charged_onward(logp, ref, old, advantages, mask):
    cost = jnp.cumsum((jax.lax.stop_gradient(logp - ref) * mask)[:, ::-1], axis=1)[:, ::-1]
    return averaged(-jnp.exp(logp - old) * (advantages[:, None] - 0.1 * cost), mask)


def charged_onward_less_the_mean(logp, ref, old, advantages, mask):
    cost = less_their_mean(jax.lax.stop_gradient(logp - ref), mask)
    cost = jnp.cumsum(cost[:, ::-1], axis=1)[:, ::-1]
    return averaged(-jnp.exp(logp - old) * (advantages[:, None] - 0.1 * cost), mask)


def of_whole_sequences(logp, ref, old, advantages, mask):
    log_ratio = ((logp - ref) * mask).sum(-1)
    gain = advantages * (logp * mask).sum(-1)
    return (-gain + 0.3 * log_ratio**2 / 2).mean()


def absolute(logp, ref, old, advantages, mask):
    gain = jnp.exp(logp - old) * advantages[:, None]
    return -((gain - 0.05 * jnp.abs(logp - ref)) * mask).sum() / mask.shape[0]


def clamped_ratio(logp, ref, old, advantages, mask):
    gain = jnp.exp(logp - old) * advantages[:, None]
    return averaged(-gain + 0.1 * jnp.clip(logp - ref, -4, 4) ** 2 / 2, mask)


def quartic(logp, ref, old, advantages, mask):
    gain = jnp.exp(logp - old) * advantages[:, None]
    return averaged(-gain + 0.1 * (logp - ref) ** 4 / 4, mask)


def sequence_ratio(logp, ref, old, advantages, mask):
    ratio = jnp.exp(((logp - old) * mask).sum(-1) / mask.sum(-1))
    gain = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.9, 1.1) * advantages)
    return -gain.mean() + 0.1 * averaged(k3(logp, ref), mask)


def nothing(logp, ref, old, advantages, mask):
    return averaged(-jnp.exp(logp - old) * advantages[:, None], mask)


def k1(logp, ref, old, advantages, mask):
    return averaged(-jnp.exp(logp - old) * advantages[:, None] + 0.1 * (logp - ref), mask)


TOKENS = {"place": "loss", "level": "token", "length": "batch-mean"}
LOSSES = {
    grpo_of_each_sequence: Recipe(
        "loss", "k3", "token", beta=0.04, clip=0.2, clip_high=0.28, length="mean"
    ),
    grpo_with_weighted_k3: Recipe(**TOKENS, estimator="k2", beta=0.04),
    low_variance_kl_of_tokens: Recipe(**TOKENS, estimator="k3", beta=0.001, clip=0.2, kl_clip=10.0),
    swapped_arguments: Recipe(**TOKENS, estimator="swapped-k3", beta=0.01, clip=0.2),
    squared: Recipe(**TOKENS, estimator="k2", beta=0.02, clip=0.2),
    charged_to_the_advantage: Recipe(**TOKENS, estimator="k2", beta=0.1),
    charged_to_each_token: Recipe(**TOKENS, estimator="k2", beta=0.1),
    charged_onward: Recipe("reward", "k1", "token", beta=0.1, length="batch-mean"),
    charged_onward_less_the_mean: Recipe(
        "reward", "k1", "token", beta=0.1, length="batch-mean", kl_centre="batch-mean"
    ),
    of_whole_sequences: Recipe("loss", "k2", "sequence", beta=0.3),
    absolute: Recipe("loss", "absolute", "token", beta=0.05),
    clamped_ratio: Recipe(**TOKENS, estimator="k2", beta=0.1, log_ratio_clip=4.0),
    sequence_ratio: Recipe(
        "loss", "k3", "token", beta=0.1, clip=0.1, length="mean", kl_length="batch-mean"
    ),
    nothing: Recipe("none", length="batch-mean"),
    k1: Recipe("loss", "k1", beta=0.1, length="batch-mean"),
}


@pytest.mark.quick_only("grpo_of_each_sequence", "of_whole_sequences", "nothing", others="broad")
@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: x.__name__)
def test_losses_are_read(loss):
    found = divergence_of_loss(loss)
    assert found.recipe == LOSSES[loss]
    assert found.unexplained == ()


@pytest.mark.broad
def test_a_term_of_its_own_has_its_target():
    found = divergence_of_loss(quartic).recipe
    reward, log_ref = jnp.array([0.1, 0.5, 1.0]), jnp.log(jnp.array([0.5, 0.3, 0.2]))
    own = Recipe("loss", lambda x: x**4 / 4, beta=0.1)
    targets = [kt.implied_target(x, reward, log_ref) for x in (found, own)]
    assert float(jnp.abs(targets[0].probs - targets[1].probs).max()) < 1e-5


@pytest.mark.broad
def test_what_is_beside_the_recipe_is_said():
    assert "whole sequences" in divergence_of_loss(sequence_ratio).remarks[0]
    assert "as k1 has, and none on average" in divergence_of_loss(k1).remarks[0]
    assert "moves nothing on average" in divergence_of_loss(charged_to_each_token).remarks[0]
    assert "further tokens" in divergence_of_loss(charged_onward_less_the_mean).remarks[0]
    reading = divergence_of_loss(low_variance_kl_of_tokens)
    assert any("nothing holds the policy" in x for x in reading.remarks)
    assert reading.unread


def test_a_loss_is_held_to_its_target():
    assert_target(swapped_arguments, "chi-squared")
    with pytest.raises(AssertionError, match=r"asks for 0.005 × χ², expected forward KL"):
        assert_target(swapped_arguments, "forward-kl")
    with pytest.raises(TypeError, match="expected must be"):
        assert_target(squared, 3)
    with pytest.raises(ValueError, match="is none of"):
        assert_target(squared, "reversed-kl")


@pytest.mark.broad
def test_assertions():
    assert_target(swapped_arguments, kt.ChiSquared())
    assert_target(nothing, "none")
    assert_target(k1, "none")
    assert_target(grpo_of_each_sequence, LOSSES[grpo_of_each_sequence])
    with pytest.raises(AssertionError, match="expected none"):
        assert_target(squared, "none")
    with pytest.raises(AssertionError, match=r"length=.mean., expected length=.sum."):
        assert_target(
            grpo_of_each_sequence, Recipe("loss", "k3", "token", clip=0.2, clip_high=0.28)
        )
    with pytest.raises(AssertionError, match=r"beta=0.02, expected beta=0.04"):
        assert_target(squared, Recipe(**TOKENS, estimator="k2", beta=0.04, clip=0.2))


def beside(term):
    """A loss of the plain policy gradient and one more term."""

    def loss(logp, ref, old, advantages, mask):
        return nothing(logp, ref, old, advantages, mask) + term(logp, ref, advantages, mask)

    return loss


def k2(logp, ref):
    return (logp - ref) ** 2 / 2


def mean_k3(logp, ref, mask):
    return averaged(k3(logp, ref), mask)


def places(logp):
    count = logp.shape[1]
    return jnp.arange(1, count + 1, dtype=logp.dtype)[None] / count


def counting():
    calls = []

    def term(logp, ref, advantages, mask):
        calls.append(1)
        return 0.1 * len(calls) * averaged(k2(logp, ref), mask)

    return beside(term)


ON_THE_ADVANTAGE = "the KL term depends on the advantage"
ON_THE_POSITION = "the KL term depends on the position of a token"
NO_SUM = "the KL term is not a sum over tokens"
ON_LOGP = "the KL term depends on logp itself, beside its ratio to the reference"
K3 = Recipe(**TOKENS, estimator="k3", beta=0.1)
NONE = Recipe("none", length="batch-mean")
MISREAD = {
    "where the advantage is above 0": (
        lambda: beside(
            lambda p, q, a, m: 0.1 * averaged(jnp.where(a[:, None] > 0, k2(p, q), 0.0), m)
        ),
        ON_THE_ADVANTAGE,
        NONE,
    ),
    "weighed by the advantage": (
        lambda: beside(lambda p, q, a, m: 0.1 * averaged(k2(p, q) * jnp.abs(a[:, None]), m)),
        ON_THE_ADVANTAGE,
        NONE,
    ),
    "of the first token": (
        lambda: beside(lambda p, q, a, m: 0.1 * k2(p, q)[:, 0].mean()),
        ON_THE_POSITION,
        NONE,
    ),
    "beyond a budget": (
        lambda: beside(lambda p, q, a, m: 0.1 * jax.nn.relu(mean_k3(p, q, m) - 0.5)),
        NO_SUM,
        NONE,
    ),
    "beyond a large budget": (
        lambda: beside(lambda p, q, a, m: 0.1 * jax.nn.relu(mean_k3(p, q, m) - 20)),
        NO_SUM,
        NONE,
    ),
    "growing along the sequence": (
        lambda: beside(lambda p, q, a, m: 0.1 * averaged(k3(p, q) * places(p), m)),
        ON_THE_POSITION,
        K3,
    ),
    "beside a bonus": (
        lambda: beside(lambda p, q, a, m: averaged(0.1 * k3(p, q) - 0.01 * p**2 / 2, m)),
        ON_LOGP,
        K3,
    ),
    "times itself": (
        lambda: beside(
            lambda p, q, a, m: (
                0.1 * mean_k3(p, q, m) * (1 + jax.lax.stop_gradient(mean_k3(p, q, m)))
            )
        ),
        NO_SUM,
        "forward-kl",
    ),
    "with a counter": (counting, "two calls with the same input differ", "reverse-kl"),
    "over padding": (
        lambda: beside(lambda p, q, a, m: 0.1 * k2(p, q).mean()),
        "the KL term depends on padding",
        "reverse-kl",
    ),
    "added up over the batch": (
        lambda: beside(lambda p, q, a, m: 0.1 * (k2(p, q) * m).sum()),
        "depends on the shape of the batch",
        "reverse-kl",
    ),
    "of the wrong sign": (
        lambda: beside(lambda p, q, a, m: -0.1 * averaged(k2(p, q), m)),
        "wrong sign: it pushes away from the reference",
        "none",
    ),
    "rewards above 0 alone": (
        lambda: lambda p, q, o, a, m: nothing(p, q, o, jax.nn.relu(a), m) + 0.1 * mean_k3(p, q, m),
        "the reward's part is not proportional to the advantage",
        K3,
    ),
    "rewards less their mean's half": (
        lambda: lambda p, q, o, a, m: nothing(p, q, o, a - a.mean() / 2, m),
        "the reward's part depends on the advantages of other sequences",
        NONE,
    ),
    "discounted rewards": (
        lambda: lambda p, q, o, a, m: -averaged(jnp.exp(p - o) * a[:, None] * 0.9 ** places(p), m),
        "the reward's part depends on the position of a token",
        NONE,
    ),
    "rewards without a mask": (
        lambda: lambda p, q, o, a, m: -(jnp.exp(p - o) * a[:, None]).mean(),
        "the reward's part moves padded tokens",
        "none",
    ),
    "rewards without a ratio": (
        lambda: lambda p, q, o, a, m: -averaged(jnp.exp(p) * a[:, None], m),
        "the reward's part depends on logp itself",
        "none",
    ),
    "rewards by the root of a length": (
        lambda: (
            lambda p, q, o, a, m: (
                -((jnp.exp(p - o) * a[:, None] * m).sum(-1) / jnp.sqrt(m.sum(-1))).mean()
            )
        ),
        "how lengths count for the reward",
        "none",
    ),
}


@pytest.mark.quick_only("where the advantage is above 0", "beyond a budget", others="broad")
@pytest.mark.parametrize("name", MISREAD)
def test_a_guard_fails_on_what_a_recipe_does_not_explain(name):
    make, said, expected = MISREAD[name]
    with pytest.raises(AssertionError, match=said):
        assert_target(make(), expected)


@pytest.mark.broad
def test_what_a_recipe_does_not_explain_is_said_first(tmp_path, monkeypatch, capsys):
    found = divergence_of_loss(MISREAD["over padding"][0]())
    assert len(found.unexplained) == 2
    # A mean over 4 places, of which a β of 0.1 for a sum would be 4 times.
    assert "0.25 times what it is for single tokens" in found.unexplained[1]
    assert found.remarks[:2] == found.unexplained
    (tmp_path / "padded.py").write_text(MODULE.replace("0.01 * kl", "0.01 * kl[:, :1]"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipe", "--loss", "padded.py:swapped"]) == 0
    mind = capsys.readouterr().out.split("Mind")[1]
    assert mind.split("- ")[1].startswith("The KL term depends on the position of a token")


@pytest.mark.broad
def test_a_product_of_each_token_has_a_divergence():
    # 0.1·k3·(1 + sg(k3)) per token is a function of the log ratio, and has a divergence.
    loss = beside(
        lambda p, q, a, m: 0.1 * averaged(k3(p, q) * (1 + jax.lax.stop_gradient(k3(p, q))), m)
    )
    found = divergence_of_loss(loss)
    assert found.unexplained == ()
    assert found.divergence is not None


@pytest.mark.broad
def test_absolute_value_by_the_tokens_of_a_batch():
    found = divergence_of_loss(beside(lambda p, q, a, m: 0.05 * averaged(jnp.abs(p - q), m)))
    assert found.recipe == Recipe(**TOKENS, estimator="absolute", beta=0.05)
    assert found.unexplained == ()


def whitened(advantages, epsilon):
    return (advantages - advantages.mean()) / (advantages.std() + epsilon)


BAD = {
    "whitens": (
        lambda p, q, o, a, m: nothing(p, q, o, whitened(a, 1e-6), m),
        ValueError,
        "normalises its advantages",
    ),
    "whitens without an epsilon": (
        lambda p, q, o, a, m: nothing(p, q, o, whitened(a, 0.0), m),
        ValueError,
        "normalises its advantages",
    ),
    "one argument": (lambda logp: logp.sum(), TypeError, "must be loss"),
    "no scalar": (lambda p, q, o, a, m: -p * a[:, None], TypeError, "must be loss"),
    "down": (lambda p, q, o, a, m: (p * a[:, None] * m).sum(), ValueError, "does not ascend"),
    "not finite": (
        lambda p, q, o, a, m: -(jnp.sqrt(-p - 1) * a[:, None]).sum(),
        ValueError,
        "not finite",
    ),
    "a number": (3, TypeError, "must be a function, got int"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_loss_is_refused(name):
    loss, error, message = BAD[name]
    with pytest.raises(error, match=message) as refused:
        divergence_of_loss(loss)
    assert "\n" not in str(refused.value)


@pytest.mark.broad
def test_losses_of_torch():
    torch = pytest.importorskip("torch")

    def loss(logp, ref, old, advantages, mask):
        ratio = torch.exp(logp - old)
        gain = torch.min(ratio * advantages[:, None], ratio.clamp(0.8, 1.2) * advantages[:, None])
        kl = torch.exp(ref - logp) - (ref - logp) - 1
        return ((-gain + 0.04 * kl) * mask).sum() / mask.sum().clamp(min=1)

    assert divergence_of_loss(loss).recipe == Recipe(**TOKENS, estimator="k3", beta=0.04, clip=0.2)


def in_single_precision(logp, ref, old, advantages, mask):
    logp, ref, old, advantages, mask = (
        jnp.asarray(x, jnp.float32) for x in (logp, ref, old, advantages, mask)
    )
    return averaged(-jnp.exp(logp - old) * advantages[:, None] + 0.04 * k3(logp, ref), mask)


@pytest.mark.broad
def test_a_loss_that_casts_to_single_precision():
    # 1 − e^(−ℓ) is 1 but for rounding from ℓ = 14 on, where it does not fall either.
    found = divergence_of_loss(in_single_precision)
    assert found.recipe == Recipe(**TOKENS, estimator="k3", beta=0.04)
    assert found.remarks == ()


@pytest.mark.broad
def test_a_loss_may_keep_what_it_was_given():
    seen = []

    def logged(logp, ref, old, advantages, mask):
        seen.append(jnp.mean(advantages))
        return in_single_precision(logp, ref, old, advantages, mask)

    found = divergence_of_loss(logged)
    assert found.recipe == Recipe(**TOKENS, estimator="k3", beta=0.04)
    # Arrays, not what a trace leaves of them.
    assert np.isfinite([float(x) for x in seen]).all()


@pytest.mark.broad
def test_absolute_value_of_torch_and_whose_error_is_told():
    torch = pytest.importorskip("torch")

    def loss(logp, ref, old, advantages, mask):
        gain = torch.exp(logp - old) * advantages[:, None]
        return -((gain - 0.05 * (logp - ref).abs()) * mask).sum() / mask.sum()

    # Its derivative at 0 is 0, where that of JAX is 1.
    assert divergence_of_loss(loss).recipe == Recipe(**TOKENS, estimator="absolute", beta=0.05)
    with pytest.raises(TypeError, match="by logp: RuntimeError: no such setting"):
        divergence_of_loss(lambda p, q, o, a, m: refuse(torch.exp(p)))
    with pytest.raises(TypeError, match="by logp: RuntimeError: no such setting"):
        divergence_of_loss(lambda p, q, o, a, m: refuse(jnp.exp(p)))


def refuse(_):
    raise RuntimeError("no such setting")


MODULE = """
import jax.numpy as jnp

def swapped(logp, ref, old, advantages, mask):
    kl = jnp.exp(logp - ref) - 1 - (logp - ref)
    per_token = -jnp.exp(logp - old) * advantages[:, None] + 0.01 * kl
    return (per_token * mask).sum() / mask.sum()

number = 3
"""


def test_the_command_reads_a_loss(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_losses.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipe", "--loss", "own_losses:swapped", "--json", "found.json"]) == 0
    page = capsys.readouterr().out
    assert "is the gradient of 0.5 × χ²" in page
    assert "Not read" in page
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["recipe"]["estimator"] == "swapped-k3"
    assert found["effective_beta"] == 0.01
    assert cli.main(["recipe", "--loss", "own_losses.py:swapped"]) == 0
    capsys.readouterr()
    for asked, message in {
        "own_losses": "MODULE:FUNCTION",
        "own_loses:swapped": "cannot be imported: ModuleNotFoundError",
        "other.py:swapped": "there is no file",
        "own_losses:swaped": "has no 'swaped'",
        "own_losses:number": "must be a function, got int",
        "json:dumps": "must be loss(logp",
    }.items():
        assert cli.main(["recipe", "--loss", asked]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert cli.main(["recipe", "trl-grpo", "--loss", "own_losses:swapped"]) == 2
