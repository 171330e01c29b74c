"""Targets over a list of outcomes: one root per row, and its implicit derivative."""

from kltarget.targets.discrete._solve import Target, greedy_limit, reference_limit, solve

__all__ = ["Target", "greedy_limit", "reference_limit", "solve"]
