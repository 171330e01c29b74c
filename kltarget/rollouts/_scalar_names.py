"""What trainers call the numbers that they log once a step."""

from __future__ import annotations

from collections.abc import Collection, Mapping

STEP_NAMES = (
    *("_step", "step", "Step", "global_step"),
    *("train/global_step", "trainer/global_step", "training/global_step"),
)
"""Names of steps, of which the last that is there counts, for a tracker has a count of its own."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "reward": ("reward", "critic/score/mean", "critic/rewards/mean", "objective/scores"),
    "reward_deviation": ("reward_std",),
    "kl": ("kl", "actor/kl_loss", "actor/reward_kl_penalty", "kl_loss", "objective/kl"),
    "entropy": ("entropy", "actor/entropy", "policy/entropy_avg"),
    "zero_std": ("frac_reward_zero_std",),
    "length": ("completions/mean_length", "response_length/mean", "completion_length"),
    "beta": ("actor/reward_kl_penalty_coeff", "actor/kl_coef", "objective/kl_coef"),
}
"""The columns of a frame of curves, and what they are called by trainers.

TRL's trainers write ``reward``, ``reward_std``, ``kl``, ``entropy``, ``frac_reward_zero_std`` and
``completions/mean_length``, its PPO ``objective/…`` and ``policy/…`` (1.16); verl ``critic/…``,
``actor/…`` and ``response_length/mean`` (0.9.1).
"""

_OF_ANSWERS = ("objective/kl",)
_SPLITS = ("train/", "train.", "global/")


def kl_is_of_answers(name: str) -> bool:
    """Whether a KL is summed over the tokens of an answer, not a mean over tokens."""
    return bare(name) in _OF_ANSWERS


def bare(name: str) -> str:
    """A metric's name without the split that report targets put before it."""
    for split in _SPLITS:
        name = name.removeprefix(split)
    return name


def found_among(columns: Collection[str], given: Mapping[str, str]) -> dict[str, str]:
    """For each column of a frame of curves that there is: what the file calls it."""
    by_bare = {bare(name): name for name in reversed(list(columns))}
    found = {}
    for ours, names in NAMES.items():
        if ours in given:
            found[ours] = given[ours]
        else:
            called = next((by_bare[name] for name in names if name in by_bare), None)
            if called is not None:
                found[ours] = called
    return found
