"""The closest law in a family: given moments, a mixture of Gaussians, a fit to samples."""

from kltarget.projections._em import MixtureFit, fit_mixture, from_sklearn
from kltarget.projections._moments import MomentProjection, moment_projection
from kltarget.projections._moments_of_texts import (
    TextProjection,
    moment_projection_on_automaton,
)
from kltarget.projections._project import Projection, project
from kltarget.projections._sampling_risk import SamplingRisk, sampling_risk

__all__ = [
    "MixtureFit",
    "MomentProjection",
    "Projection",
    "SamplingRisk",
    "TextProjection",
    "fit_mixture",
    "from_sklearn",
    "moment_projection",
    "moment_projection_on_automaton",
    "project",
    "sampling_risk",
]
