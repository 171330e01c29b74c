"""Targets of any reward and divergence by quadrature, in one to three dimensions."""

from kltarget.targets.grids._grid_target import GridTarget
from kltarget.targets.grids._score_regularized import ScoreTarget, score_regularized
from kltarget.targets.grids._solve_on_grid import solve_on_grid

__all__ = ["GridTarget", "ScoreTarget", "score_regularized", "solve_on_grid"]
