"""Where outcomes live: token trees and mixtures of Gaussians, and what targets look like on them.

Only the spaces themselves are re-exported here, so that code without an interest in targets, such
as the training side, can import them; the closed forms on a space are in the module of its kind.
"""

from kltarget.spaces._gaussian_mixture import GaussianMixture
from kltarget.spaces._tree import SequenceSpace

__all__ = ["GaussianMixture", "SequenceSpace"]
