"""Log-probabilities of logged completions by a language model, which is ``kltarget[lm]``.

``score`` is for rows in memory, ``score_files`` for logs of any size, which a killed call goes on
with; ``kltarget score`` is the same from the command line. torch and transformers are imported when
a model is loaded.
"""

from kltarget.adapters.lm._score import score, score_files

__all__ = ["score", "score_files"]
