"""Counts of a base model and of the model trained from it, as they were published."""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def deepscaler() -> pd.DataFrame:
    """How often a base model, and the model trained from it by RL, solve 1,060 problems.

    The base is DeepSeek-R1-Distill-Qwen-1.5B, the trained model DeepScaleR-1.5B-Preview, which GRPO
    made from it. Each solved every problem 128 times, at temperature 0.6, top-p 0.95 and at most
    32,768 tokens; answers were judged by symbolic equivalence, a time-out as wrong. See
    ``data/README.md`` for the source and ``data/deepscaler32k-NOTICE.md`` for its licence.

    Returns:
        A frame with a row per problem, which is new each time, and the columns

        - ``prompt``: the problem's name; its text is not shipped
        - ``benchmark``: ``olympiadbench`` (633), ``gaokao2023en`` (358), ``amc23`` (39) or
          ``aime24`` (30)
        - ``base_correct``, ``rl_correct``: of how many samples the answer is right
        - ``samples``: how many there are, 128

    Example:
        >>> from kltarget import tasks
        >>> counts = tasks.deepscaler()
        >>> rates = counts[["base_correct", "rl_correct"]].div(counts["samples"], axis=0)
        >>> rates.mean().round(3).to_dict()
        {'base_correct': 0.604, 'rl_correct': 0.68}

    References:
        Yang, Zhang and Chen, "RLVR is a Kernel, Not a Function: Statistical Inference for pass@k
        Crossovers", 2026, arXiv 2609.22547, Table 1.
    """
    import pandas as pd

    data = importlib.resources.files("kltarget") / "data" / "deepscaler32k.csv"
    with data.open(encoding="utf-8") as file:
        return pd.read_csv(file)
