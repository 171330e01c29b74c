"""What a run has come to pay each token with, beside what its rewards are worth there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget import evidence
from kltarget._core.words import quoted
from kltarget.rollouts import RolloutError, read_rollouts

if TYPE_CHECKING:
    import pandas as pd


def process_rewards(rollouts: Any, beta: float, *, prompt: str | None = None) -> pd.DataFrame:
    r"""Process rewards of one prompt's tokens: ``β log π/π_ref``, beside the soft advantages.

    At the target of ``max E_π[reward] − beta · KL(π‖π_ref)`` over whole completions the two are
    equal: a token's ``β log π(a|s)/π_ref(a|s)`` is ``V(sa) − V(s)`` with the soft values ``V(s) = β
    log E_ref[e^{reward/β} | s]``, and along a completion they add up to its reward less ``V`` of
    the prompt. Where a run's fall short, that token has still to be learnt, or its trainer credits
    tokens otherwise.

    Args:
        rollouts: what :func:`kltarget.rollouts.read_rollouts` returned, or a file, a folder or
            several; with the tokens of completions (``token_ids``), the reference's log-probability
            of each (``ref_token_logps``) and steps.
        beta: coefficient of the divergence, in reward units per nat, above 0.
        prompt: which prompt; by default the one whose rollouts say most.

    Returns:
        A table with a row for each token that was seen after each prefix, prefixes in the order of
        their lengths. ``prefix``, a tuple of token ids, and ``token``; ``ref_prob``, what the
        reference gives the token there; ``rollouts``, how many of the last third of the logged
        steps came to the prefix, and ``prob``, the share of these that took the token; then in
        reward units ``process_reward`` with its standard error ``process_reward_error``, ``-inf``
        where no late rollout took the token and NaN where none reached the prefix, and
        ``advantage``. ``attrs`` has the ``prompt`` and its soft ``value``.

    Raises:
        ValueError: beta is not above 0 and finite, or there is no such prompt.
        kltarget.rollouts.RolloutError: the log lacks what is needed, or the completions of the
            prompt part at their first token, which has no process.

    Rewards are the means of answers as logged. What was not seen to follow a prefix ends there and
    has the least reward of the prompt, as :func:`kltarget.diagnose` takes it.

    Example:
        Two tokens of two kinds; the run has learnt the second token and not yet the first:

        >>> import json, math, pathlib, tempfile
        >>> from kltarget.diagnosis import process_rewards
        >>> half = math.log(0.5)
        >>> lines = [
        ...     {"step": step, "prompt": "go", "completion": f"{a}{b}", "reward": a * b}
        ...     | {"token_ids": [a, b], "ref_token_logps": [half] * 2, "ref_logp": 2 * half}
        ...     for step, counts in ((0, (5, 5, 5, 5)), (9, (5, 5, 1, 9)))
        ...     for (a, b), n in zip(((0, 0), (0, 1), (1, 0), (1, 1)), counts)
        ...     for _ in range(n)
        ... ]
        >>> file = pathlib.Path(tempfile.mkdtemp(), "rollouts.jsonl")
        >>> _ = file.write_text("\n".join(map(json.dumps, lines)))
        >>> table = process_rewards(file, 0.5)
        >>> print(table[["prefix", "token", "process_reward", "advantage"]].round(2))
          prefix  token  process_reward  advantage
        0     ()      0            0.00      -0.48
        1     ()      1            0.00       0.24
        2   (0,)      0            0.00       0.00
        3   (0,)      1            0.00       0.00
        4   (1,)      0           -0.80      -0.72
        5   (1,)      1            0.29       0.28

    References:
        Yao, Wang, Zhang, "PRL: Process Reward Learning Improves LLMs' Reasoning Ability and
        Broadens the Reasoning Boundary", 2026, arXiv 2601.10201. Rafailov et al., "From r to Q*:
        Your Language Model is Secretly a Q-Function", 2024, arXiv 2404.12358.
    """
    import pandas as pd

    if not 0 < beta < np.inf:
        raise ValueError(f"beta must be above 0 and finite, got {beta}")
    frame: Any = rollouts
    if isinstance(rollouts, (str, os.PathLike)) or not hasattr(rollouts, "columns"):
        frame = read_rollouts(rollouts, full_text=False)
    log = evidence.log_of(frame)
    found = _of_prompt(log, prompt)
    tree = found.tree
    assert tree is not None
    leaves = [x for x in zip(tree.space.sequences, tree.log_ref, strict=True) if np.isfinite(x[1])]
    ref = _masses(leaves)
    rewards = dict(zip(tree.space.sequences, found.reward[tree.outcome], strict=True))
    worth = _masses([(y, log_ref + rewards[y] / beta) for y, log_ref in leaves])
    value = {s: beta * (worth[s] - ref[s]) for s in ref}
    late = log.late & (log.prompt == found.code)
    reached: dict[tuple[Any, ...], int] = {}
    for ids in log.tokens.ids[late]:
        sequence = tuple(np.asarray(ids).tolist())
        for t in range(len(sequence) + 1):
            reached[sequence[:t]] = reached.get(sequence[:t], 0) + 1
    rows = []
    for child in sorted((x for x in ref if x and x[-1] is not None), key=lambda x: len(x)):
        prefix, number = child[:-1], reached.get(child[:-1], 0)
        ref_prob = float(np.exp(ref[child] - ref[prefix]))
        prob = reached.get(child, 0) / number if number else np.nan
        with np.errstate(divide="ignore"):
            reward = beta * float(np.log(prob) - np.log(ref_prob))
            error = beta * float(np.sqrt((1 - prob) / np.float64(prob * number)))
        known = (prefix, child[-1], ref_prob, number, prob, reward, error)
        rows.append((*known, value[child] - value[prefix]))
    names = ["prefix", "token", "ref_prob", "rollouts", "prob", "process_reward"]
    table = pd.DataFrame(rows, columns=[*names, "process_reward_error", "advantage"])
    table.attrs |= {"prompt": found.text, "value": value[()]}
    return table


def _masses(leaves: Sequence[tuple[tuple[Any, ...], float]]) -> dict[tuple[Any, ...], float]:
    """Logarithms of what the leaves below each prefix add up to."""
    found: dict[tuple[Any, ...], float] = {}
    for sequence, log_mass in leaves:
        for t in range(len(sequence) + 1):
            found[sequence[:t]] = np.logaddexp(found.get(sequence[:t], -np.inf), log_mass)
    return found


def _of_prompt(log: evidence.Log, prompt: str | None) -> evidence.Prompt:
    """The chosen prompt, or the first of which there is a tree."""
    if not len(log.steps):
        raise RolloutError("process rewards are of the last steps, and the files do not say steps")
    if prompt is None:
        codes = evidence.informative_order(log, np.inf)
    elif prompt in log.prompts:
        codes = np.array([log.prompts.index(prompt)])
    else:
        raise ValueError(f"prompt {quoted(prompt)} is not in the log")
    for code in codes:
        for found in evidence.prompts_of(log, np.array([code]), "logged"):
            if found.tree is not None:
                return found
    raise RolloutError(
        "no prompt has a tree of tokens: log token_ids and ref_token_logps, the reference's "
        "log-probability of each; completions that part at their first token have no process"
    )
