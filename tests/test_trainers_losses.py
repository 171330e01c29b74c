"""The loss functions that trainers ship, as installed: what they ask for is what presets say.

Run with ``pytest -m trainers``; a trainer that is not installed is skipped.
"""

import collections
import dataclasses
import importlib
import importlib.machinery
import sys
import types
import warnings

import jax
import pytest

import kltarget as kt
from kltarget.recipes import divergence_of_loss, recipe
from kltarget.testing import assert_target

# What other packages warn of when they are imported is no affair of this one.
pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("default")]


def shipped(name):
    """A module of a trainer, or a skip where its package or one that it needs is absent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def agrees(loss, preset, **fields):
    """Holds a loss to what a preset says of losses."""
    expected = recipe(preset, **fields)
    if expected.kl_clip is not None:
        # A k3 of 10 is reached long before a log ratio of 20: that clip cannot be seen.
        expected = dataclasses.replace(expected, log_ratio_clip=None)
    assert_target(loss, expected)


def trl_loss(*, beta=0.04, corrected=True, loss_type="dapo", level="token"):
    """``GRPOTrainer._compute_loss`` with a trainer that has no model, only settings."""
    trainer = shipped("trl.trainer.grpo_trainer").GRPOTrainer
    torch = shipped("torch")

    def loss(logp, ref_logp, old_logp, advantages, mask):
        settings = types.SimpleNamespace(
            accelerator=types.SimpleNamespace(
                num_processes=1,
                reduce=lambda x, reduction: x,
                gather=lambda x: x,
                gather_for_metrics=lambda x: x,
            ),
            args=types.SimpleNamespace(
                delta=None, steps_per_generation=1, use_bias_correction_kl=corrected
            ),
            model=types.SimpleNamespace(training=True),
            beta=beta,
            loss_type=loss_type,
            importance_sampling_level=level,
            epsilon_low=0.2,
            epsilon_high=0.2,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            max_completion_length=logp.shape[1],
            current_gradient_accumulation_steps=1,
            use_vllm=False,
            aux_loss_enabled=False,
            _entropy_bonus_enabled=False,
            _metrics={"train": collections.defaultdict(list)},
            _get_per_token_logps_and_entropies=lambda *_, **__: (
                logp,
                torch.zeros_like(logp),
                None,
            ),
        )
        tokens = torch.zeros(logp.shape, dtype=torch.long)
        inputs = {
            "prompt_ids": tokens[:, :1],
            "prompt_mask": tokens[:, :1] + 1,
            "completion_ids": tokens,
            "completion_mask": mask,
            "advantages": advantages,
            "old_per_token_logps": old_logp,
            "ref_per_token_logps": ref_logp,
            "num_items_in_batch": mask.sum(),
        }
        return trainer._compute_loss(settings, None, inputs)

    return loss


@pytest.mark.parametrize(
    ("loss_type", "length"),
    [("dapo", "batch-mean"), ("bnpo", "batch-mean"), ("grpo", "mean"), ("dr_grpo", "sum")],
)
@pytest.mark.parametrize("corrected", [True, False])
def test_grpo_of_trl(corrected, loss_type, length):
    loss = trl_loss(corrected=corrected, loss_type=loss_type)
    agrees(loss, "trl-grpo", beta=0.04, length=length, estimator="k2" if corrected else "k3")
    assert_target(loss, "reverse-kl" if corrected else "forward-kl")


def test_gspo_of_trl_weighs_whole_sequences():
    assert_target(trl_loss(corrected=False, level="sequence"), "forward-kl")
    found = divergence_of_loss(trl_loss(level="sequence")).recipe
    # With sequence weights the correction spreads over the sequence: PR #6594 there.
    assert (found.ratio_level, found.level, found.clip) == ("sequence", "sequence", 0.2)


def verl_loss(kind, length="token-mean"):
    """The policy's loss and the KL's as ``ppo_loss`` adds them up."""
    algos = shipped("verl.trainer.ppo.core_algos")
    config = shipped("verl.workers.config").ActorConfig(
        strategy="fsdp", rollout_n=8, ppo_micro_batch_size_per_gpu=1, loss_agg_mode=length
    )

    def loss(logp, ref_logp, old_logp, advantages, mask):
        policy, _ = algos.compute_policy_loss_vanilla(
            old_logp, logp, advantages, mask, config.loss_agg_mode, config
        )
        kl = algos.kl_penalty(logp, ref_logp, kind)
        kl = algos.agg_loss(kl, mask, config.loss_agg_mode)
        return policy + config.kl_loss_coef * kl

    return loss


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", "none"),
        ("k1+", "reverse-kl"),
        ("k2", "reverse-kl"),
        ("abs", "total-variation"),
        ("low_var_kl", "forward-kl"),
        ("low_var_kl+", "reverse-kl"),
    ],
)
def test_estimators_of_verl(kind, expected):
    assert_target(verl_loss(kind), expected)


def test_loss_of_verl_is_its_preset():
    agrees(verl_loss("low_var_kl"), "verl-grpo")
    agrees(verl_loss("low_var_kl", "seq-mean-token-mean"), "verl-grpo", length="mean")
    agrees(verl_loss("low_var_kl", "seq-mean-token-sum"), "verl-grpo", length="sum")


def rlinf_loss(kind, *, swapped):
    """The loss of its FSDP actor, which gives ``kl_penalty`` the reference first up to 0.3.0."""
    kl_penalty = shipped("rlinf.algorithms.utils").kl_penalty
    policy_loss = shipped("rlinf.algorithms.losses").compute_ppo_actor_loss
    masked_mean = shipped("rlinf.utils.utils").masked_mean

    def loss(logp, ref_logp, old_logp, advantages, mask):
        logp, ref_logp, old_logp, advantages = (
            x.float() for x in (logp, ref_logp, old_logp, advantages)
        )
        policy, _ = policy_loss(logp, old_logp, 0.2, 0.2, advantages, mask.bool())
        first, second = (ref_logp, logp) if swapped else (logp, ref_logp)
        return policy + 0.01 * masked_mean(kl_penalty(first, second, kind), mask.bool())

    return loss


def test_swapped_arguments_of_rlinf():
    swapped = rlinf_loss("low_var_kl", swapped=True)
    agrees(swapped, "rlinf-fsdp", beta=0.01)
    assert_target(swapped, kt.ChiSquared())
    agrees(rlinf_loss("low_var_kl", swapped=False), "rlinf", beta=0.01)
    # The two directions of a square are one.
    for order in (True, False):
        assert_target(rlinf_loss("k2", swapped=order), "reverse-kl")


@pytest.fixture
def openrlhf(monkeypatch):
    """Its models' package, which wants kernels for GPUs that its losses do not use."""
    shipped("torch")
    for name in ("", ".bert_padding", ".utils", ".utils.distributed"):
        module = types.ModuleType(f"flash_attn{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        module.__path__ = []
        module.__getattr__ = lambda _: None
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return shipped("openrlhf.models"), shipped("openrlhf.models.utils")


@pytest.mark.parametrize(
    ("estimator", "unbiased", "expected"),
    [
        ("k1", False, "none"),
        ("k2", False, "reverse-kl"),
        ("k3", False, "forward-kl"),
        ("k1", True, "reverse-kl"),
        ("k3", True, "reverse-kl"),
    ],
)
def test_estimators_of_openrlhf(openrlhf, estimator, unbiased, expected):
    models, utils = openrlhf
    policy = models.PolicyLoss()

    def loss(logp, ref_logp, old_logp, advantages, mask):
        kl = utils.compute_approx_kl(
            logp, ref_logp, old_logp, kl_estimator=estimator, unbiased_gradient=unbiased
        )
        actor = policy(logp, old_logp, advantages, action_mask=mask)[0]
        return actor + 0.01 * utils.masked_mean(kl, mask)

    assert_target(loss, expected)
    found = divergence_of_loss(loss).recipe
    assert (found.beta, found.clip, found.length) == (0.01, 0.2, "batch-mean")


@pytest.mark.parametrize(
    ("mode", "expected"), [("kl", "none"), ("mse_kl", "reverse-kl"), ("low_var_kl", "forward-kl")]
)
def test_estimators_of_tunix(monkeypatch, mode, expected):
    core = shipped("tunix.rl.algo_core")
    learner = shipped("tunix.rl.grpo.grpo_learner")
    config = learner.GRPOConfig(num_generations=4, beta=0.04, epsilon=0.2, kl_loss_mode=mode)
    config.temperature = 1.0

    def loss(logp, ref_logp, old_logp, advantages, mask):
        monkeypatch.setattr(
            core.common,
            "compute_per_token_logps",
            lambda *_, **__: (logp, logp[..., None]),
        )
        example = types.SimpleNamespace(
            prompt_ids=None,
            completion_ids=None,
            completion_mask=mask,
            advantages=advantages,
            old_per_token_logps=old_logp,
            ref_per_token_logps=ref_logp,
        )
        # These tests forbid what JAX does by default with a float of one kind and another.
        with jax.numpy_dtype_promotion("standard"):
            return core.grpo_loss_fn(core.nnx.Module(), example, config, 0, 1)[0]

    assert_target(loss, expected)
