"""What people call the columns of tables and logs, in order of preference.

Names are compared by ``simple_name``: in any case, with spaces and hyphens for underscores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from kltarget._core.rows import simple_name

PROMPT_NAMES = ("prompt", "prompts", "question", "problem", "query", "instruction", "input")
COMPLETION_NAMES = (
    *("completion", "completions", "response", "responses", "output", "outputs"),
    *("generation", "generations", "generated_text", "model_output", "prediction"),
)
OUTCOME_NAMES = (
    *("outcome", "answer", *COMPLETION_NAMES),
    *("text", "word", "token", "label", "name"),
)
REWARD_NAMES = (
    *("reward", "rewards", "score", "scores", "r", "total_reward", "reward_score"),
    *("correct", "is_correct", "correctness"),
)
STEP_NAMES = (
    *("step", "steps", "global_step", "global_steps", "training_step", "train_step"),
    *("iteration", "iter", "update"),
)
ADVANTAGE_NAMES = ("advantage", "advantages", "adv")
CHAT_NAMES = ("messages", "conversation", "conversations", "trajectory")
GROUP_NAMES = ("group_id", "group")
POLICY_NAMES = ("logp", "logprob", "log_prob", "log_probability", "old_logp", "policy_logp")
REFERENCE_NAMES = ("ref_logp", "ref_logprob", "ref_log_prob", "log_ref", "reference_logp")
LENGTH_NAMES = ("num_tokens", "n_tokens", "completion_length", "response_length")


def first_called(
    columns: Collection[str], known: Sequence[str], taken: Collection[str | None] = ()
) -> str | None:
    """The column whose name stands first among the known ones; those taken are left out."""
    simple: Mapping[str, str] = {
        simple_name(x): x for x in reversed(list(columns)) if x not in taken
    }
    return next((simple[name] for name in known if name in simple), None)
