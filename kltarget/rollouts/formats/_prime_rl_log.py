"""What prime-rl writes: traces, read along their last branch, and exports of tokens."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from kltarget._core.file_kinds import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import NAN, BadRow, Rollout
from kltarget.rollouts.formats._format import IDS_ALONE, added_up, ids_as_text, written_as


@written_as("prime-rl", "jsonl", columns={"nodes", "rewards"}, step_pattern=r"step_(\d+)/")
def _read_prime_rl(row: Row, path: pathlib.Path) -> Rollout:
    nodes = _last_branch(row["nodes"])
    sampled = [node for node in nodes if node.get("sampled")]
    if not sampled:
        raise BadRow("no message of this trace was sampled")
    before = nodes[: nodes.index(sampled[0])]
    # What scoring did not reach is null.
    scored = {name: entry for name, entry in row["rewards"].items() if entry is not None}
    rewards = [entries.reward_in(x, "score") * x.get("weight", 1.0) for x in scored.values()]
    referred = all(node.get("reference_logprobs") is not None for node in sampled)
    tokens = {}
    if len(sampled) == 1:
        (node,) = sampled
        streams = (node.get(name) for name in ("token_ids", "reference_logprobs", "mask"))
        tokens = entries.tokens_in(*streams)
    return Rollout(
        entries.prompt_in({"prompt": [node["message"] for node in before]}, "prompt"),
        "\n".join(entries.message_text(node["message"]) for node in sampled),
        reward=added_up(rewards),
        logp=entries.log_total(_joined(sampled, "logprobs")),
        ref_logp=entries.log_total(_joined(sampled, "reference_logprobs")) if referred else NAN,
        num_tokens=float(sum(map(bool, _joined(sampled, "mask")))) or NAN,
        advantage=entries.mean(_joined(sampled, "advantages")),
        parts={name: float(entry["score"]) for name, entry in scored.items()},
        group=_problem(row.get("task"), row.get("info") or {}),
        **tokens,
    )


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
    known = [info.get("group_id"), info.get("problem_id"), task.get("key"), task.get("hash")]
    known += [data.get(name) for name in ("problem_id", "idx", "id")]
    return next((json.dumps(entry) for entry in known if entry is not None), None)


@written_as(
    "prime-rl-tokens",
    "jsonl",
    columns={"token_ids", "loss_mask", "inference_logprobs"},
    grouping="blocks",
    notes=(IDS_ALONE,),
)
def _read_prime_rl_tokens(row: Row, path: pathlib.Path) -> Rollout:
    mask, tokens = row["loss_mask"], row["token_ids"]
    if True not in mask:
        raise BadRow("column 'loss_mask': no token was sampled")
    start = mask.index(True)
    return Rollout(
        ids_as_text(tokens[:start]),
        ids_as_text([token for token, on in zip(tokens, mask, strict=True) if on]),
        reward=None,
        step=entries.whole_in(row, "step"),
        logp=entries.log_total(row["inference_logprobs"], mask),
        num_tokens=float(sum(mask)),
        advantage=entries.mean(row.get("advantages"), mask),
    )
