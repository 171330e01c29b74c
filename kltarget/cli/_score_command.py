"""The sub-command ``kltarget score``."""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from typing import Any

from kltarget._core.checks import ArgumentError
from kltarget.cli._arguments import chosen, finite, options_of, whole
from kltarget.cli._output import InputError, Stopped, check_outputs, input_errors, say
from kltarget.cli._recipe_options import columns_of

_OPTIONS = {"role": "--as"}
"""The options that are called otherwise than Python's arguments."""


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    score = commands.add_parser(
        "score",
        help="log-probabilities of a log's completions by a language model",
        description="Sum the log-probabilities that a language model gives the tokens of each "
        "logged completion, in nats, and write the log with a column ref_logp, or logp, which "
        "kltarget diagnose reads. Needs kltarget[lm]: torch and transformers. Finished batches are "
        "kept, so that the same command goes on where it was stopped.",
        epilog="examples: kltarget score completions/ --model base/ --temperature 0.7 --out "
        "scored.parquet; kltarget score rollouts.jsonl --model Qwen/Qwen3-0.6B --eos never --out "
        "scored.jsonl. Exit codes: 0 fine, 2 bad input, 130 interrupted.",
    )
    score.add_argument(
        "paths",
        nargs="+",
        type=pathlib.Path,
        metavar="LOG",
        help="files or folders of rollouts, - for standard input",
    )
    add = options_of(score)
    add(
        "--model PATH_OR_ID",
        "a folder with safetensors weights, or an id of the hub",
        required=True,
    )
    add("--out OUT", "the .parquet or .jsonl file to write", pathlib.Path, required=True)
    add(
        "--as ROLE",
        "reference (default: a column ref_logp), or policy, the one that sampled (logp)",
        choices=("reference", "policy"),
        default="reference",
        dest="role",
    )
    above_0 = functools.partial(finite, what="a finite number above 0")
    add(
        "--temperature T",
        "logits are divided by it, as TRL, verl and open-instruct do by that of sampling "
        "(default: 1)",
        above_0,
        default=1.0,
    )
    add = options_of(score.add_argument_group("tokens"))
    add(
        "--chat-template FILE",
        "for prompts that are chats; none takes their text (default: the tokenizer's)",
    )
    add("--tokenizer PATH_OR_ID", "if it is not the model's")
    add(
        "--eos WHEN",
        "whether the token that ends a completion is appended to its text: always, never, or auto "
        "(default: as finish_reason or truncated says, else always)",
        choices=("auto", "always", "never"),
        default="auto",
    )
    add("--max-completion-length N", "the trainer's: texts of N tokens were cut", whole)
    add("--columns a=b,…", "prompt=question,completion=text", columns_of)
    add = options_of(score.add_argument_group("computing"))
    dtypes = ("auto", "float32", "bfloat16", "float16")
    add(
        "--dtype DTYPE",
        "of the weights (default: bfloat16 on an accelerator, float32 on a CPU)",
        choices=dtypes,
        default="auto",
    )
    add("--device NAME", "cpu, cuda, cuda:1, … (default: the first accelerator, if any)")
    add("--tokens-per-batch N", "padding included (default: 16384)", whole, default=16384)
    score.set_defaults(run=_score)


def _score(arguments: argparse.Namespace) -> int:
    from kltarget.adapters.lm import score_files

    check_outputs([arguments.out], arguments.paths, what="the log")
    settings = chosen(
        arguments,
        *("role", "temperature", "columns", "eos", "max_completion_length", "chat_template"),
        *("tokenizer", "dtype", "device", "tokens_per_batch"),
    )
    try:
        with input_errors():
            try:
                notes = score_files(
                    arguments.paths,
                    arguments.model,
                    arguments.out,
                    progress=sys.stderr.isatty(),
                    **settings,
                )
            except ArgumentError as error:
                name = error.argument.replace("_", "-")
                option = _OPTIONS.get(error.argument, f"--{name}")
                text = error.with_option(option) if error.argument else str(error)
                raise InputError(text) from None
    except KeyboardInterrupt:
        kept = arguments.out.with_name(f".{arguments.out.name}.scores")
        if not kept.exists():
            raise
        why = f"finished batches are in {kept}, the same command goes on from there"
        raise Stopped(why) from None
    say([*notes, f"wrote {arguments.out}"])
    return 0
