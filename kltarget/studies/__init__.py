"""Papers' toys: what fine-tuning forgets, and how the shipped references were made."""

from kltarget.studies._exchanged_k3 import exchanged_k3
from kltarget.studies._forgetting import Forgetting, forgetting
from kltarget.studies._forgetting_path import ForgettingPath, forgetting_path
from kltarget.studies._references import train_reference
from kltarget.studies._retention import Retention, retention
from kltarget.studies._retention_path import RetentionPath, retention_path

__all__ = [
    "Forgetting",
    "ForgettingPath",
    "Retention",
    "RetentionPath",
    "exchanged_k3",
    "forgetting",
    "forgetting_path",
    "retention",
    "retention_path",
    "train_reference",
]
