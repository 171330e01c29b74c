"""Eight simulated CPU devices for the sharding tests, and compiled programs that are kept.

Here and not at the root: the benchmarks must time the machine as it is.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import pytest

# Most of the suite's time is compilation; what one worker or an earlier session compiled is reused.
jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)

# The first example of every test pays for compilation, which is neither slow data nor a hang.
_COMPILES = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("default", max_examples=30, derandomize=True, **_COMPILES)
hypothesis.settings.register_profile("thorough", max_examples=500, **_COMPILES)
hypothesis.settings.load_profile("default")

ALIKE = ("hellinger", "neyman", "tsallis", "js_twice", "alpha-0.875", "alpha--0.5")
"""Multiples of members of other families: the same formulas, compiled once more.

Where targets and divergences themselves are tested they are slow tests, elsewhere left out.
"""

QUICK = {
    "test_every_divergence": ("forward-kl", "total-variation"),
    "test_sharded_inputs_give_the_same_results": ("forward KL-batch",),
    "test_sixteen_bit_inputs_are_computed_in_float32": ("bfloat16",),
    "test_rewards_per_prefix_add_up": ("2",),
    "test_gap_vanishes_quadratically_at_the_target": ("forward-kl", "chi-squared-float"),
    "test_jacobians_in_arbitrary_precision": ("reverse-kl", "forward-kl"),
    "test_derivatives_at_masked_outcomes_are_exactly_zero": ("forward-kl", "jensen"),
    "test_forward_and_reverse_mode_agree": ("forward-kl", "reverse-kl"),
    "test_gradients_of_the_bank": ("alpha0-",),
    "test_gap_is_the_best_value_minus_this_one": (
        "reverse-kl",
        "forward-kl",
        "chi-squared-float",
        "tv",
    ),
    "test_derivative_by_alpha": ("0.5-",),
    "test_under_tracing_only_the_bad_rows_fail": ("forward KL",),
    "test_a_written_generator_has_the_target_of_the_built_in_one": ("forward-kl",),
    "test_written_generators_equal_the_built_in_ones": ("forward-kl", "chi-squared-float"),
    "test_substitution_is_uniform_for_every_divergence": ("forward-kl", "chi-squared", "alpha"),
    "test_gradients_of_flips": ("None",),
    "test_targets_collapse_exactly_below_the_threshold": ("χ", "total"),
    "test_limits_in_beta": ("forward-kl", "chi-squared-float", "alpha"),
    "test_a_million_outcomes": ("reverse-kl", "forward-kl"),
    "test_the_target_of_the_reward_is_the_wish": ("reverse KL", "forward KL", "χ²"),
    "test_gradient_is_that_of_the_value": ("reverse-kl", "forward-kl", "chi-squared-float"),
    "test_results_have_the_dtype_of_the_inputs": ("reward0", "reward6", "reward8"),
    "test_rewards_under_transformations": ("forward",),
    "test_impossible_outcomes_keep_derivatives_finite": (
        "coverage",
        "entropy",
        "kl",
        "ForwardKL",
        "mirror_ascent",
        "mode_log_mass",
        "soft_values",
        "solve",
    ),
    "test_one_token_is_solve": ("reverse",),
    "test_targets_of_the_bank_on_trees": ("tree2-",),
    "test_gradients_are_finite_and_agree_between_both_ways": ("GRUPolicy-None",),
    "test_conditionals_are_the_log_probs_of_sequences": ("TabularPolicy", "GRUPolicy-1"),
    "test_samples_are_as_frequent_as_they_are_probable": (
        "TabularPolicy-None",
        "GRUPolicy-1",
        "TransformerPolicy-1",
    ),
    "test_log_probs_take_any_batch_shape": ("GRUPolicy-1", "TransformerPolicy-None"),
    "test_the_mean_of_sampled_gradients_is_the_exact_one": ("k3-token",),
    "test_training_reaches_the_implied_target": ("k3 in groups-graded", "dropped groups-lengths"),
    "test_presets_train_to_their_implied_target": ("trl-rloo*-one-two", "prime-rl"),
    "test_equivalent_coefficients_are_equivalent": ("erse-reward",),
    "test_boundaries_are_where_the_order_of_modes_changes": ("reverse",),
    "test_the_reference_is_the_trained_policy": ("words-3",),
    "test_tabular_policies_reach_the_target_of_their_recipe": (
        "reward-k1-sequence",
        "loss-k3-sequence",
        "loss-k3-token",
    ),
}
"""Tests of many programs, and which of them the quick suite compiles; the others are slow."""

SLOW = {
    "kltarget.plot._verification_figures.distances",
    "kltarget.plot._verification_figures.predicted_vs_reached",
    "kltarget.verification._report.Report",
    "kltarget.verification._verify.verify",
    "test_a_clip_that_is_active_at_the_target_is_reported",
    "test_a_constant_reward_changes_nothing",
    "test_a_model_of_another_library",
    "test_a_run_that_diverges_is_reported_and_spoils_no_other",
    "test_a_wrong_prediction_fails",
    "test_an_atom_that_no_float_can_resolve_is_not_believed",
    "test_batches_are_loops_and_pytrees",
    "test_conditionals_and_joint_are_inverses",
    "test_diverged_runs_are_reported",
    "test_figures_of_a_report",
    "test_fine_tuning_starts_from_the_reference",
    "test_forbidden_sequences_have_soft_values",
    "test_gradient_and_hessian_of_the_value",
    "test_gradients_of_token_local_targets",
    "test_held_out_likelihood_is_of_what_was_not_seen",
    "test_mapping_and_differentiating_commute",
    "test_mirror_ascent_on_other_divergences_is_certified_by_its_gap",
    "test_no_policy_beats_the_target",
    "test_numbers_are_those_of_the_run",
    "test_only_the_last_tokens_may_count",
    "test_outcomes_of_equal_reward_can_be_merged",
    "test_outside_jit_too",
    "test_policies",
    "test_pseudo_rewards_follow_any_divergence",
    "test_python_dash_m_is_the_same_command",
    "test_recipes_without_a_target_are_shown_beside_the_others",
    "test_report_as_data",
    "test_sampled_gradients_stay_within_their_variance",
    "test_samples_in_five_dimensions",
    "test_sequences_that_end",
    "test_sft_reaches_its_targets",
    "test_tabular_policies_reach_their_targets",
    "test_the_chunks_do_not_matter",
    "test_the_command_solves_them",
    "test_the_command_writes_its_report",
    "test_the_devices_do_not_matter",
    "test_the_four_targets",
    "test_the_mean_of_sampled_steps_is_the_exact_step",
    "test_the_order_of_outcomes_does_not_matter",
    "test_token_local_targets_by_brute_force",
    "test_training_curves_end_at_their_targets",
    "test_training_reaches_the_target",
    "test_under_shard_map",
    "test_unfinished_training_is_called_so",
    "test_what_a_family_cannot_represent_is_called_so",
    "test_zeros_of_the_wish",
}
"""Tests that train or compile for several seconds."""


PRECISE = (
    "test_gradients.py",
    "test_mixtures.py",
    "test_targets.py",
)
"""Closed forms and their derivatives: worth their digits in double precision too."""


def pytest_configure() -> None:
    """Sets XLA's flags, which it reads when the first array is made."""
    devices = "--xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = " ".join(filter(None, (devices, os.environ.get("XLA_FLAGS", ""))))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps a file's tests in one process, where they share what they trace and compile."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def all_devices() -> list[jax.Device]:
    """All simulated devices."""
    return jax.local_devices()


@pytest.fixture(autouse=True, scope="session")
def one_device(all_devices: list[jax.Device]) -> Iterator[None]:
    """Trains on one device by default: eight on two cores take several times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: all_devices[:1])
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves to the slow tests what costs much compilation and says little that is new."""
    kept, left_out = [], []
    for item in items:
        callspec = getattr(item, "callspec", None)
        name, case = getattr(item, "originalname", item.name), getattr(callspec, "id", "")
        alike = any(x in case for x in ALIKE)
        formulas = item.path.name in ("test_targets.py", "test_divergences.py")
        (left_out if alike and not formulas else kept).append(item)
        if item.path.name in PRECISE:
            item.add_marker("precise")
        if alike or name in SLOW or not any(x in case for x in QUICK.get(name, ("",))):
            item.add_marker("slow")
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Lets go of compiled programs before their memory maps reach the kernel's limit of 65,530."""
    maps = Path("/proc/self/maps")
    if nextitem is None or nextitem.name[:12] == item.name[:12] or not maps.exists():
        return  # reading thousands of maps takes a while: once per test function
    if maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
