"""What is maximised: the regularised objective, and rewards that are made from others."""

from kltarget.objectives import references
from kltarget.objectives._ddrl_reward import ddrl_reward
from kltarget.objectives._ensembles import ensemble_reward
from kltarget.objectives._objective import Objective, normalize
from kltarget.objectives._point_rewards import LogDensityReward, QuadraticReward, RewardSum
from kltarget.objectives._rewards import mara, reward_for

__all__ = [
    "LogDensityReward",
    "Objective",
    "QuadraticReward",
    "RewardSum",
    "ddrl_reward",
    "ensemble_reward",
    "mara",
    "normalize",
    "references",
    "reward_for",
]
