"""Where outcomes live: token sequences, boxes of real vectors and mixtures of Gaussians.

A space whose outcomes come about step by step is walked :func:`backward`.
"""

from typing import TYPE_CHECKING

from kltarget._core.rooms import loaded_on_use

if TYPE_CHECKING:
    from kltarget.spaces._automata import Automaton
    from kltarget.spaces._boxes import Box
    from kltarget.spaces._cauchy_schwarz import cauchy_schwarz
    from kltarget.spaces._chains import Chain, Step
    from kltarget.spaces._games import MarkovGame, MatrixGame, PreferenceGame, StageGames
    from kltarget.spaces._gaussian_chains import GaussianChain
    from kltarget.spaces._gaussian_mixture import GaussianMixture
    from kltarget.spaces._layers import Branches, Layer, Layers, backward
    from kltarget.spaces._markov_reference import MarkovReference
    from kltarget.spaces._maxima import basins, find_modes
    from kltarget.spaces._mdps import MDP
    from kltarget.spaces._prefix_trees import PrefixTree
    from kltarget.spaces._sequences import SequenceSpace

__getattr__ = loaded_on_use(
    __name__,
    {
        "_automata": ("Automaton",),
        "_boxes": ("Box",),
        "_cauchy_schwarz": ("cauchy_schwarz",),
        "_chains": ("Chain", "Step"),
        "_games": ("MarkovGame", "MatrixGame", "PreferenceGame", "StageGames"),
        "_gaussian_chains": ("GaussianChain",),
        "_gaussian_mixture": ("GaussianMixture",),
        "_layers": ("Branches", "Layer", "Layers", "backward"),
        "_markov_reference": ("MarkovReference",),
        "_maxima": ("basins", "find_modes"),
        "_mdps": ("MDP",),
        "_prefix_trees": ("PrefixTree",),
        "_sequences": ("SequenceSpace",),
    },
)

__all__ = [
    "MDP",
    "Automaton",
    "Box",
    "Branches",
    "Chain",
    "GaussianChain",
    "GaussianMixture",
    "Layer",
    "Layers",
    "MarkovGame",
    "MarkovReference",
    "MatrixGame",
    "PreferenceGame",
    "PrefixTree",
    "SequenceSpace",
    "StageGames",
    "Step",
    "backward",
    "basins",
    "cauchy_schwarz",
    "find_modes",
]


def __dir__() -> list[str]:
    return list(__all__)
