"""What is maximised: the regularised objective, and rewards that are made from others."""

from typing import TYPE_CHECKING

from kltarget._core.rooms import loaded_on_use

if TYPE_CHECKING:
    from kltarget.objectives import references
    from kltarget.objectives._ddrl_reward import ddrl_reward
    from kltarget.objectives._ensembles import ensemble_reward
    from kltarget.objectives._objective import Objective, normalize
    from kltarget.objectives._point_rewards import LogDensityReward, QuadraticReward, RewardSum
    from kltarget.objectives._rewards import mara, reward_for

__getattr__ = loaded_on_use(
    __name__,
    {
        "references": (),
        "_ddrl_reward": ("ddrl_reward",),
        "_ensembles": ("ensemble_reward",),
        "_objective": ("Objective", "normalize"),
        "_point_rewards": ("LogDensityReward", "QuadraticReward", "RewardSum"),
        "_rewards": ("mara", "reward_for"),
    },
)

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


def __dir__() -> list[str]:
    return list(__all__)
