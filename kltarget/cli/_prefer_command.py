"""The sub-command ``kltarget prefer``.

``--json OUT`` writes an object of these keys:

- ``pairs``, ``loss``, ``label_smoothing``, ``divergence``, ``notes``: what was read, and how;
- ``labels``, ``log_ref``: the outcomes, a list with one entry per outcome;
- ``verdict``: what there is to say, in a sentence;
- ``unanimous``: the pairs of labels, winner and loser, whose log ratio grows without bound;
- ``groups``: a number per outcome: those of one number are compared with each other, directly or by
  way of others; ``null`` where training gives the outcome up;
- ``targets``: a list with an entry for each β, in the order given, of ``beta``; ``log_probs`` and
  ``reward``, lists with one entry per outcome; ``expected_reward``; ``kl_to_reference``, in nats;
  ``status``, a list of the names of its set bits.

Of a table of several prompts, without ``--prompt``, it is an object of one key, ``prompts``: a list
of such objects, each with its ``prompt``.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kltarget._core.numerics import double_precision
from kltarget._core.page import Lines, Page, Paragraph, Table
from kltarget._core.records import json_text
from kltarget._core.status import Status
from kltarget._core.words import counted, decimal, probability, short
from kltarget.cli._arguments import beta_list, chosen, finite, options_of, whole
from kltarget.cli._output import JSON, InputError, check_outputs, input_errors, say, write
from kltarget.cli._prefer_prompts import prompts_page
from kltarget.cli._problem_options import add_divergence
from kltarget.cli._solve_page import set_bits
from kltarget.divergences import kl
from kltarget.divergences.names import named
from kltarget.implied import PreferenceTarget, preference_target, preference_targets
from kltarget.tasks import (
    read_preferences,
    read_preferences_by_prompt,
    read_reference,
    read_references_by_prompt,
)
from kltarget.tasks._read_preferences import prompts_of

_MOST_COLUMNS = 5


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    command = commands.add_parser(
        "prefer",
        help="what DPO, IPO or KTO on a table of pairs aims at",
        description="Print the target of a loss over pairs, with the reward that has the same "
        "target in reinforcement learning at the same β, or which pairs leave it without one.",
        epilog="examples: kltarget prefer pairs.csv --reference answers.csv --beta 0.1; kltarget "
        "prefer pairs.csv --reference answers.csv --beta 0.01,0.1,1 --loss ipo --json targets.json",
    )
    command.add_argument(
        "problem",
        metavar="PAIRS",
        help="a table of pairs: chosen and rejected, perhaps with a count; or a and b with wins "
        "and losses or a win_rate; perhaps with the prompt of each; - for standard input",
    )
    add = options_of(command)
    add(
        "--reference TABLE",
        "the outcomes and their reference: log-probabilities, probabilities or counts",
        pathlib.Path,
        required=True,
    )
    add(
        "--beta β",
        "of the loss, per nat: 0.1, a list 0.01,0.1,1, or log-spaced FROM:TO:COUNT",
        beta_list,
        required=True,
    )
    add("--loss NAME", "dpo (default), ipo or kto", choices=("dpo", "ipo", "kto"), default="dpo")
    add_divergence(command)
    add("--desirable-weight λ", "of KTO (default: 1)", finite, default=1.0)
    add("--undesirable-weight λ", "of KTO (default: 1)", finite, default=1.0)
    add("--label-smoothing ε", "of DPO: share of wrong labels (default: 0)", finite, default=0.0)
    add("--prompt NAME", "of a table of several prompts the one to print")
    add("--top K", "outcomes, or prompts, to print", whole, default=10)
    add("--json OUT", JSON, pathlib.Path)
    command.set_defaults(run=_prefer)


def _prefer(arguments: argparse.Namespace) -> int:
    check_outputs([arguments.json], [arguments.problem, arguments.reference])
    with double_precision():
        with input_errors():
            prompts = prompts_of(arguments.problem)
            several = len(prompts) > 1 or (prompts and len(prompts_of(arguments.reference)) > 1)
            if arguments.prompt is not None and arguments.prompt not in prompts:
                raise InputError(
                    f"--prompt: {arguments.problem} has no prompt {arguments.prompt!r}"
                )
            pairs, references = (_by_prompt if several else _of_one_prompt)(arguments)
            log_refs = {prompt: reference.log_ref for prompt, reference in references.items()}
            options = {
                "beta": np.array(arguments.beta),
                "divergence": named(arguments.divergence),
                **chosen(arguments, "loss", "desirable_weight", "undesirable_weight"),
                **chosen(arguments, "label_smoothing"),
            }
            if several:
                targets = preference_targets(pairs, log_refs, **options)
            else:
                targets = {"": preference_target(pairs[""], log_refs[""], **options)}
        if len(targets) == 1:
            (prompt, target), *_ = targets.items()
            notes = references[prompt].notes
            page, content = _page(target, arguments, notes), _content(target, arguments, notes)
        else:
            page = prompts_page(targets, arguments)
            each = (
                {"prompt": prompt, **_content(target, arguments, references[prompt].notes)}
                for prompt, target in targets.items()
            )
            content = {"prompts": list(each)}
        say(page, unless=[arguments.json])
        say(write((arguments.json, lambda: json_text(content))))
    return 0


def _of_one_prompt(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    reference = read_reference(arguments.reference)
    pairs = read_preferences(arguments.problem, labels=reference.labels)
    return {"": pairs}, {"": reference}


def _by_prompt(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pairs and references of each prompt; a reference that names no prompts is that of all."""
    if prompts_of(arguments.reference):
        references = read_references_by_prompt(arguments.reference)
    else:
        reference = read_reference(arguments.reference)
        references = dict.fromkeys(prompts_of(arguments.problem), reference)
    labels = {prompt: reference.labels for prompt, reference in references.items()}
    pairs = read_preferences_by_prompt(arguments.problem, labels=labels)
    if arguments.prompt is not None:
        pairs = {arguments.prompt: pairs[arguments.prompt]}
    return pairs, references


def _rows(target: PreferenceTarget) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and rewards, a row per β."""
    log_probs = np.asarray(target.log_probs)
    return log_probs, np.broadcast_to(np.asarray(target.reward), log_probs.shape)


def _page(target: PreferenceTarget, arguments: Any, notes: Sequence[str]) -> Page:
    pairs, objective = target.pairs, target.objective
    log_probs, rewards = _rows(target)
    log_ref = np.asarray(objective.log_ref)
    last = len(arguments.beta) - 1
    count = min(last + 1, _MOST_COLUMNS)
    columns = sorted({round(k * last / max(count - 1, 1)) for k in range(count)})
    masses = np.vstack([log_ref, log_probs[columns]])
    # The rewards of DPO and IPO are the same at every β.
    several = target.loss == "kto" and len(columns) > 1
    worth = rewards[columns] if several else rewards[:1]
    betas = [f"β = {arguments.beta[k]:g}" for k in columns]
    heads = [f"reward, {beta}" for beta in betas] if several else ["reward"]
    table = [["outcome", *heads, "reference", *betas]]
    order = np.lexsort((-log_ref, -log_probs.max(0)))
    kept = np.sort(order[: arguments.top])
    for k in kept:
        cells = [*map(decimal, worth[:, k].tolist()), *map(probability, masses[:, k].tolist())]
        table.append([short(pairs.label(int(k))), *cells])
    rest = np.delete(masses, kept, axis=1)
    if rest.shape[1]:
        others = map(probability, np.logaddexp.reduce(rest, axis=1).tolist())
        table.append([f"({rest.shape[1]:,} more)", *[""] * len(heads), *others])
    sizes = [("β", "expected reward", "KL(π‖π_ref)")]
    nats = np.asarray(kl(target.log_probs, objective.log_ref))
    for beta, reward, size in zip(arguments.beta, target.expected_reward, nats, strict=True):
        sizes.append((f"{beta:g}", decimal(float(reward)), decimal(max(float(size), 0.0))))
    sentences = [target.verdict]
    if (np.asarray(target.status) & int(Status.NO_TARGET)).any():
        sentences.append("Note: the columns of β show what the loss is least at in the limit")
    first = (
        f"{pathlib.Path(arguments.problem).stem}: {counted(len(pairs.first), 'pair')} of "
        f"{counted(log_ref.size, 'outcome')}, {target.loss} with {objective.divergence.title}"
        + (f", labels smoothed by {target.label_smoothing:g}" if target.label_smoothing else "")
    )
    return Page(
        [Lines([first, *(f"  {note}" for note in notes)])],
        [Table(sizes, "lrr")],
        [Table(table, "l" + "r" * (len(table[0]) - 1))],
        [Paragraph(sentence, hanging=4) for sentence in sentences],
    )


def _content(target: PreferenceTarget, arguments: Any, notes: Sequence[str]) -> dict[str, Any]:
    log_probs, rewards = _rows(target)
    status = np.asarray(target.status).tolist()
    names = target.pairs.label
    return {
        "pairs": pathlib.Path(arguments.problem).stem,
        "loss": target.loss,
        "label_smoothing": target.label_smoothing,
        "divergence": arguments.divergence,
        "notes": list(notes),
        "labels": list(target.pairs.labels or ()),
        "log_ref": np.asarray(target.objective.log_ref),
        "unanimous": [[names(i), names(j)] for i, j in target.unanimous],
        "groups": [k if k >= 0 else None for k in np.asarray(target.group).tolist()],
        "verdict": target.verdict,
        "targets": [
            {
                "beta": beta,
                "log_probs": log_probs[k],
                "reward": rewards[k],
                "expected_reward": float(target.expected_reward[k]),
                "kl_to_reference": max(float(kl(log_probs[k], target.objective.log_ref)), 0.0),
                "status": set_bits(Status(status[k])),
            }
            for k, beta in enumerate(arguments.beta)
        ],
    }
