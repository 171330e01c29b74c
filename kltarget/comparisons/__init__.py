"""Comparisons: what changed between two checkpoints, prompt by prompt.

``compare`` takes samples before and after a run and says which prompts rose and fell, what became
of pass@k, and which law of RL the shift of the log-odds follows: a target's, a path's, or none.
"""

from kltarget.comparisons._compare import compare
from kltarget.comparisons._comparison import Asked, Comparison, Law, Shifts
from kltarget.comparisons._kept_answers import KeptAnswers

__all__ = ["Asked", "Comparison", "KeptAnswers", "Law", "Shifts", "compare"]
