"""What each trainer writes: the columns it is known by, and how a row of it becomes a `Rollout`."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from kltarget._core.rows import Row, shown
from kltarget.rollouts._rollout import (
    NAN,
    BadRow,
    Rollout,
    completion_text,
    content_text,
    integer,
    is_chat,
    mean,
    number,
    prompt_text,
    reward,
    split_chat,
    total,
)

Reader = Callable[[Row], Rollout]

# Columns that `read_rollouts` itself makes up; a file that has them is one of its own.
OWN = frozenset({"prompt_id", "sample_id", "group_id", "source"})

# Numbers beside the rewards in what TRL and its subclasses log.
_NO_REWARDS = {
    "advantage",
    "advantages",
    "entropy",
    "epoch",
    "kl",
    "logp",
    "loss",
    "num_tokens",
    "old_logp",
    "ref_logp",
    "step",
    "temperature",
    "time",
    "timestamp",
}
CANONICAL = (
    "prompt",
    "completion",
    "answer",
    "reward",
    "step",
    "advantage",
    "group_id",
    "logp",
    "ref_logp",
    "num_tokens",
)
_AS_CALLED = {name: name for name in CANONICAL}


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        kinds: The extensions it comes in, as `kind_of` calls them.
        columns: The columns it is known by.
        reader: Makes the function from a row to a rollout, for one file.
        grouping: Where rows do not name their group: whether groups are consecutive blocks, or all
            completions of one prompt at one step.
        notes: What its users should know.
        without: Columns of which it has none.
        shaped: Whether the rewards are logged as the trainer scaled and cut them.
    """

    name: str
    kinds: tuple[str, ...]
    columns: frozenset[str]
    reader: Callable[[pathlib.Path], Reader]
    grouping: Literal["blocks", "prompt"] = "prompt"
    notes: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()
    shaped: bool = False

    def matches(self, kind: str | None, columns: Collection[str]) -> bool:
        found = frozenset(columns)
        return kind in self.kinds and self.columns <= found and not self.without & found


def _step_in(path: pathlib.Path, pattern: str) -> int | None:
    found = re.search(pattern, path.as_posix())
    return int(found.group(1)) if found else None


def _log_probs(row: Row, columns: Mapping[str, str] = _AS_CALLED) -> tuple[float, float, float]:
    """A practitioner's `ref_logp` and `logp`, summed or per token, and the number of tokens."""
    ref_logp, logp = number(row, columns["ref_logp"]), number(row, columns["logp"])
    count = number(row, columns["num_tokens"])
    tokens = row.get("token_logps")
    listed = row.get("token_ids") or tokens
    return (
        total(row.get("ref_token_logps")) if math.isnan(ref_logp) else ref_logp,
        total(tokens) if math.isnan(logp) else logp,
        float(len(listed)) if math.isnan(count) and isinstance(listed, list) else count,
    )


def _trl(path: pathlib.Path) -> Reader:
    # Parquet keeps apart floats, which are rewards, and integers, which are not; JSON does not.
    numeric = (float, int) if path.suffix == ".json" else (float,)

    def read(row: Row) -> Rollout:
        parts = {
            name: float(entry)
            for name, entry in row.items()
            if isinstance(entry, numeric)
            and not isinstance(entry, bool)
            and name not in _NO_REWARDS
        }
        ref_logp, logp, num_tokens = _log_probs(row)
        return Rollout(
            prompt_text(row, "prompt"),
            completion_text(row, "completion"),
            reward=parts.pop("reward") if "reward" in parts else _sum(parts.values()),
            step=integer(row, "step"),
            advantage=number(row, "advantage"),
            parts=parts,
            ref_logp=ref_logp,
            logp=logp,
            num_tokens=num_tokens,
        )

    return read


def _sum(parts: Collection[float]) -> float:
    """As TRL adds rewards: NaN says that a reward does not apply, if not all of them are."""
    applying = [part for part in parts if not math.isnan(part)]
    return math.fsum(applying) if applying else NAN


def _verl(path: pathlib.Path) -> Reader:
    file_step = _step_in(path, r"(\d+)\.\w+$")

    def read(row: Row) -> Rollout:
        step, uid = integer(row, "step"), row.get("uid")
        mask = row.get("response_mask")
        return Rollout(
            prompt_text(row, "input"),
            completion_text(row, "output"),
            reward=reward(row, "score"),
            step=file_step if step is None else step,
            logp=_number_or_total(row, "old_log_probs", mask),
            ref_logp=_number_or_total(row, "ref_log_prob", mask),
            # One uid per prompt, session and trajectory; groups are of the prompt.
            group=None if uid is None else re.sub(r"_\d+_\d+$", "", str(uid)),
        )

    return read


def _number_or_total(row: Row, column: str, mask: Sequence[Any] | None) -> float:
    entry = row.get(column)
    return total(entry, mask) if isinstance(entry, list) else number(row, column)


def _open_instruct(path: pathlib.Path) -> Reader:
    run = re.sub(r"_rollouts_\d+$", "", path.stem)

    def read(row: Row) -> Rollout:
        return Rollout(
            _ids(row["prompt_tokens"]),
            _ids(row["response_tokens"]),
            reward=reward(row, "reward"),
            step=integer(row, "step"),
            logp=total(row.get("logprobs")),
            num_tokens=float(len(row["response_tokens"])),
            advantage=number(row, "advantage"),
            group=(run, str(row["prompt_idx"])),
        )

    return read


def _ids(tokens: Sequence[int]) -> str:
    if not isinstance(tokens, list):
        raise BadRow(f"{shown(tokens)} is not a list of token ids")
    return " ".join(map(str, tokens))


def _nemo_rl(path: pathlib.Path) -> Reader:
    step = _step_in(path, r"step(\d+)\.\w+$")

    def read(row: Row) -> Rollout:
        row = {
            name: entry[0] if isinstance(entry, list) and len(entry) == 1 else entry
            for name, entry in row.items()
        }
        prompt, *said = row["content"]
        mask = row["token_loss_mask"]
        return Rollout(
            prompt_text({"content": prompt}, "content"),
            "\n".join(map(content_text, said)),
            reward=reward(row, "rewards"),
            step=step,
            logp=total(row.get("generation_logprobs", row.get("prev_logprobs")), mask),
            num_tokens=float(sum(map(bool, mask))),
            advantage=mean(row.get("advantages"), mask),
            index=integer(row, "idx"),
        )

    return read


def _prime_rl(path: pathlib.Path) -> Reader:
    step = _step_in(path, r"step_(\d+)/")

    def read(row: Row) -> Rollout:
        nodes = _last_branch(row["nodes"])
        sampled = [node for node in nodes if node.get("sampled")]
        if not sampled:
            raise BadRow("no message of this trace was sampled")
        before = nodes[: nodes.index(sampled[0])]
        # What scoring did not reach is null.
        scored = {name: entry for name, entry in row["rewards"].items() if entry is not None}
        info = row.get("info") or {}
        references = [node.get("reference_logprobs") for node in sampled]
        return Rollout(
            prompt_text({"prompt": [node["message"] for node in before]}, "prompt"),
            "\n".join(content_text(node["message"].get("content")) for node in sampled),
            reward=_sum([reward(x, "score") * x.get("weight", 1.0) for x in scored.values()]),
            step=step,
            logp=total(_joined(sampled, "logprobs")),
            ref_logp=NAN if None in references else total(_joined(sampled, "reference_logprobs")),
            num_tokens=float(sum(map(bool, _joined(sampled, "mask")))) or NAN,
            advantage=mean(_joined(sampled, "advantages")),
            parts={name: float(entry["score"]) for name, entry in scored.items()},
            group=_problem(row.get("task"), info),
        )

    return read


def _last_branch(nodes: list[Row]) -> list[Row]:
    """The messages from the root to the last of them; each names the one before it."""
    path, at = [], len(nodes) - 1 if nodes else None
    while at is not None and len(path) < len(nodes):
        path.append(nodes[at])
        at = nodes[at].get("parent")
    return path[::-1]


def _joined(nodes: list[Row], stream: str) -> list[Any]:
    return [entry for node in nodes for entry in node.get(stream) or ()]


def _problem(task: Any, info: Mapping[str, Any]) -> str | None:
    """What identifies the problem that a trace is a solution of, if anything does."""
    task = task if isinstance(task, dict) else {"key": task}
    data = task.get("data") if isinstance(task.get("data"), dict) else {}
    known = (
        info.get("group_id"),
        info.get("problem_id"),
        task.get("key"),
        task.get("hash"),
        *(data.get(name) for name in ("problem_id", "idx", "id")),
    )
    return next((json.dumps(entry) for entry in known if entry is not None), None)


def _prime_rl_tokens(path: pathlib.Path) -> Reader:
    def read(row: Row) -> Rollout:
        mask, tokens = row["loss_mask"], row["token_ids"]
        if True not in mask:
            raise BadRow("column 'loss_mask': no token was sampled")
        start = mask.index(True)
        return Rollout(
            _ids(tokens[:start]),
            _ids([token for token, on in zip(tokens, mask, strict=True) if on]),
            reward=None,
            step=integer(row, "step"),
            logp=total(row["inference_logprobs"], mask),
            num_tokens=float(sum(mask)),
            advantage=mean(row.get("advantages"), mask),
        )

    return read


def _tunix(path: pathlib.Path) -> Reader:
    def read(row: Row) -> Rollout:
        conversation = _literal(row, "conversation_text")
        if not is_chat(conversation):
            raise BadRow("column 'conversation_text': not a list of messages with roles")
        prompt, completion = split_chat(conversation)
        mask = _literal(row, "conversation_masks")
        if not row.get("group_id"):
            raise BadRow("column 'group_id': the entry is empty")
        return Rollout(
            prompt,
            completion,
            reward=reward(row, "trajectory_reward"),
            logp=total(_literal(row, "old_logprobs"), mask),
            num_tokens=float(sum(map(bool, mask or ()))),
            group=(path.as_posix(), row["group_id"]),
        )

    return read


def _literal(row: Row, column: str) -> Any:
    """A nested value that was written as Python writes it, or as JSON; it is never run."""
    entry = row.get(column)
    if not isinstance(entry, str) or not entry.strip():
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(entry)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    raise BadRow(f"column {column!r}: neither a Python literal nor JSON")


def _skyrl(path: pathlib.Path) -> Reader:
    step = _step_in(path, r"global_step_(\d+)")

    def read(row: Row) -> Rollout:
        score = row["score"]
        return Rollout(
            prompt_text(row, "input_prompt"),
            completion_text(row, "output_response"),
            # One number, or one per token.
            reward=total(score) if isinstance(score, list) else reward(row, "score"),
            step=step,
        )

    return read


_TOKENS = "texts are token ids, separated by spaces: the file has no others"
_TRL_COLUMNS = frozenset({"step", "prompt", "completion"})

FORMATS = (
    Format(
        "open-instruct",
        ("jsonl",),
        frozenset({"prompt_tokens", "response_tokens", "reward"}),
        _open_instruct,
        notes=(_TOKENS,),
        shaped=True,
    ),
    Format(
        "nemo-rl",
        ("jsonl",),
        frozenset({"content", "rewards", "token_loss_mask"}),
        _nemo_rl,
        "blocks",
        ("logp is that of the engine that sampled, not of the trainer",),
    ),
    Format("prime-rl", ("jsonl",), frozenset({"nodes", "rewards"}), _prime_rl),
    Format(
        "prime-rl-tokens",
        ("jsonl",),
        frozenset({"token_ids", "loss_mask", "inference_logprobs"}),
        _prime_rl_tokens,
        "blocks",
        (_TOKENS,),
    ),
    Format(
        "tunix",
        ("csv",),
        frozenset({"conversation_text", "trajectory_reward"}),
        _tunix,
        notes=("no steps: groups are in the order of training",),
    ),
    Format("skyrl", ("jsonl",), frozenset({"input_prompt", "output_response", "score"}), _skyrl),
    Format("verl", ("jsonl",), frozenset({"input", "output", "score"}), _verl),
    *(
        Format(
            "trl-logp",
            ("parquet", "jsonl"),
            _TRL_COLUMNS | {"advantage", logged},
            _trl,
            "blocks",
            without=OWN,
        )
        for logged in ("logp", "ref_logp")
    ),
    Format(
        "trl",
        ("parquet",),
        _TRL_COLUMNS | {"advantage"},
        _trl,
        "blocks",
        without=OWN | {"logp", "ref_logp"},
    ),
    Format("trl-table", ("json",), _TRL_COLUMNS, _trl, "blocks"),
)


def generic(names: Mapping[str, str | Sequence[str]], present: Collection[str]) -> Format:
    """The format of canonical columns, or of others that were named.

    Args:
        names: The file's column of each canonical one; of the reward also several, to be added.
        present: The columns of the file.
    """
    columns = _AS_CALLED | {k: v for k, v in names.items() if isinstance(v, str)}
    rewards = names.get("reward", "reward")
    parts = () if isinstance(rewards, str) else tuple(rewards)
    prompt, completion = columns["prompt"], columns["completion"]
    by_id = prompt not in present and "prompt_id" in present
    named = [column for column in names.values() if isinstance(column, str)]
    # In other files, what is called the answer is more likely the right one than the completion's.
    answered = set(present) >= OWN or "answer" in names

    def read(row: Row) -> Rollout:
        if by_id:
            row[prompt] = str(row["prompt_id"])
        amounts = {name: reward(row, name) for name in parts}
        for name in row:
            if name.startswith("reward/"):
                amounts[name.removeprefix("reward/")] = number(row, name)
        if parts or columns["reward"] not in row:
            amount = _sum(amounts.values()) if amounts else None
        else:
            amount = reward(row, columns["reward"])
        text = completion_text(row, completion)
        ref_logp, logp, num_tokens = _log_probs(row, columns)
        return Rollout(
            prompt_text(row, prompt),
            text,
            reward=amount,
            step=integer(row, columns["step"]),
            advantage=number(row, columns["advantage"]),
            parts=amounts,
            group=_hashable(row.get(columns["group_id"])),
            answer=_answer(row.get(columns["answer"]), text) if answered else None,
            answered=answered,
            ref_logp=ref_logp,
            logp=logp,
            num_tokens=num_tokens,
        )

    return Format(
        "generic",
        ("parquet", "jsonl", "csv", "tsv"),
        frozenset({completion, *parts, *named} | (set() if by_id else {prompt})),
        lambda path: read,
    )


def _hashable(group: Any) -> str | int | None:
    if group is None or group == "" or group != group:
        return None
    return group if isinstance(group, str | int) else json.dumps(group, default=str)


def _answer(entry: Any, completion: str) -> str | None:
    """The answer that a file says; text files spell a missing one as an empty one."""
    missing = entry is None or (entry == "" and completion.strip())
    return None if missing else str(entry)
