"""What a run's log says: what was asked for, how far it got, and what stood in the way."""

from kltarget.diagnosis._action import Action
from kltarget.diagnosis._diagnose import diagnose
from kltarget.diagnosis._diagnosis import Diagnosis
from kltarget.diagnosis._family import FamilyFit, LogRatios, fit_families
from kltarget.diagnosis._grade import CAUSES, GRADES
from kltarget.diagnosis._process_rewards import process_rewards
from kltarget.diagnosis._statement import Featured, Statement

__all__ = [
    "CAUSES",
    "GRADES",
    "Action",
    "Diagnosis",
    "FamilyFit",
    "Featured",
    "LogRatios",
    "Statement",
    "diagnose",
    "fit_families",
    "process_rewards",
]
