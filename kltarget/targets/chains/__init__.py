"""Targets on chains of steps, such as diffusion models, with a reward at the end."""

from kltarget.targets.chains._chain_target import ChainTarget
from kltarget.targets.chains._gaussian_chain_target import GaussianChainTarget
from kltarget.targets.chains._solve_chain import solve_chain

__all__ = ["ChainTarget", "GaussianChainTarget", "solve_chain"]
