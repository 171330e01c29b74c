"""Models that gradients move, and files of their parameters."""

from kltarget.policies._files import load_params, save_params
from kltarget.policies._markov_policy import MarkovPolicy
from kltarget.policies._mixture_policy import GaussianMixturePolicy
from kltarget.policies._sequence_policies import GRUPolicy, Policy, TabularPolicy, TransformerPolicy
from kltarget.policies._tempered import Tempered

__all__ = [
    "GRUPolicy",
    "GaussianMixturePolicy",
    "MarkovPolicy",
    "Policy",
    "TabularPolicy",
    "Tempered",
    "TransformerPolicy",
    "load_params",
    "save_params",
]
