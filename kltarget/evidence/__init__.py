"""The prompts of a log as small problems, with what the number of samples leaves open.

``log_of`` turns the frame of :func:`kltarget.rollouts.read_rollouts` into arrays; ``groups_of`` has
its generation groups, ``prompts_of`` its prompts: the seen answers with their rewards and the
reference's masses, and one outcome for all unseen ones; ``read_counts`` reads how many of a
prompt's samples are correct where that is all there is. Means, medians and shares of independent
values have intervals, a law's entropy is estimated from what a sample of it shows, and
``LoggedAdvantages`` tells what was subtracted from rewards and what divided them. Nothing here
knows a recipe or judges a run.
"""

from kltarget.evidence._advantage_rules import AdvantageFit, AdvantageRule, LoggedAdvantages
from kltarget.evidence._answer_numbers import (
    AnswerCounts,
    effective_number,
    missed_share,
    number_of_answers,
)
from kltarget.evidence._counts import read_counts
from kltarget.evidence._entropy import (
    chance_of_seeing,
    entropy_of_counts,
    entropy_of_seen,
    likely_law,
    unseen_share,
)
from kltarget.evidence._intervals import (
    LEVEL,
    Interval,
    mean_interval,
    median_interval,
    share_interval,
    simultaneous_band,
    wilson_interval,
)
from kltarget.evidence._level_masses import LevelMasses, level_masses
from kltarget.evidence._log import (
    Groups,
    Log,
    answer_entropy,
    are_summed,
    evident_threshold,
    groups_of,
    history,
    log_of,
    pass_at,
    rewards_vary,
)
from kltarget.evidence._prompts import (
    IMPOSSIBLE,
    LEAST_SEEN,
    Prompt,
    disagreements,
    informative_order,
    num_right,
    padded,
    policy_sums,
    prompts_of,
    reference_kind,
    reference_sums,
)
from kltarget.evidence._sample_counts import SampleCounts, counts_of
from kltarget.evidence._success_rates import SuccessRates, success_rates
from kltarget.evidence._trees import TokenTree

__all__ = [
    "IMPOSSIBLE",
    "LEAST_SEEN",
    "LEVEL",
    "AdvantageFit",
    "AdvantageRule",
    "AnswerCounts",
    "Groups",
    "Interval",
    "LevelMasses",
    "Log",
    "LoggedAdvantages",
    "Prompt",
    "SampleCounts",
    "SuccessRates",
    "TokenTree",
    "answer_entropy",
    "are_summed",
    "chance_of_seeing",
    "counts_of",
    "disagreements",
    "effective_number",
    "entropy_of_counts",
    "entropy_of_seen",
    "evident_threshold",
    "groups_of",
    "history",
    "informative_order",
    "level_masses",
    "likely_law",
    "log_of",
    "mean_interval",
    "median_interval",
    "missed_share",
    "num_right",
    "number_of_answers",
    "padded",
    "pass_at",
    "policy_sums",
    "prompts_of",
    "read_counts",
    "reference_kind",
    "reference_sums",
    "rewards_vary",
    "share_interval",
    "simultaneous_band",
    "success_rates",
    "unseen_share",
    "wilson_interval",
]
