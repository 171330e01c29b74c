"""Papers' toys: the forgetting problem of reverse-KL fine-tuning, and the shipped references."""

from kltarget.studies._exchanged_k3 import exchanged_k3
from kltarget.studies._forgetting import Forgetting, forgetting
from kltarget.studies._forgetting_path import ForgettingPath, forgetting_path
from kltarget.studies._references import train_reference

__all__ = [
    "Forgetting",
    "ForgettingPath",
    "exchanged_k3",
    "forgetting",
    "forgetting_path",
    "train_reference",
]
