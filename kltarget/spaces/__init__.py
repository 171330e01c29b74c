"""Where outcomes live: token sequences, boxes of real vectors and mixtures of Gaussians."""

from kltarget.spaces._boxes import Box
from kltarget.spaces._gaussian_mixture import GaussianMixture
from kltarget.spaces._maxima import basins, find_modes
from kltarget.spaces._sequences import SequenceSpace

__all__ = ["Box", "GaussianMixture", "SequenceSpace", "basins", "find_modes"]
