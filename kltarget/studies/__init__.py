"""Papers' toys: the forgetting problem of reverse-KL fine-tuning, and the shipped references."""

from kltarget.studies._forgetting import Forgetting, forgetting
from kltarget.studies._forgetting_path import ForgettingPath, forgetting_path
from kltarget.studies._references import train_reference

__all__ = ["Forgetting", "ForgettingPath", "forgetting", "forgetting_path", "train_reference"]
