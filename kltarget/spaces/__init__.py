"""Where outcomes live: token trees, boxes of real vectors and mixtures of Gaussians.

Only the spaces themselves are re-exported here, so that code without an interest in targets, such
as the training side, can import them; the closed forms on a space are in the module of its kind.
"""

from kltarget.spaces._box import Box
from kltarget.spaces._gaussian_mixture import GaussianMixture
from kltarget.spaces._tree import SequenceSpace

__all__ = ["Box", "GaussianMixture", "SequenceSpace"]
