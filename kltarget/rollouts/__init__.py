r"""Read the rollouts that RL trainers log: what was sampled, how likely, and how rewarded.

``read_rollouts`` reads the files of these trainers, and files of your own, into one frame of the
same columns; which format it is, it tells by the columns of the files:

===================  ===============================  ==============================================
format               files                            written by
===================  ===============================  ==============================================
``trl``              ``completions_*.parquet``        TRL, ``log_completions=True``
``trl-logp``         ``.parquet``, ``.jsonl``         a subclass of TRL's trainer that adds
                                                      ``logp``, ``ref_logp``
``trl-table``        ``.table.json``                  TRL's tables in Weights & Biases or Trackio
``verl``             ``{step}.jsonl``                 verl, ``rollout_data_dir``,
                                                      ``validation_data_dir``
``open-instruct``    ``*_rollouts_*.jsonl``           open-instruct, ``--save_traces``
``nemo-rl``          ``train_data_step*.jsonl``       NeMo-RL
``prime-rl``         ``traces.jsonl``                 prime-rl; a trace of several branches is read
                                                      along its last
``prime-rl-tokens``  ``rank_*.jsonl``                 prime-rl's token exports
``tunix``            ``trajectory_log_*.csv``         Tunix, agentic learners
``skyrl``            ``global_step_*_evals/*.jsonl``  SkyRL, evaluations
``lm-eval``          ``samples_*.jsonl``              the LM evaluation harness,
                                                      ``--log_samples``
``inspect``          ``.eval``, ``.json``             Inspect
``lighteval``        ``details_*.parquet``            lighteval, ``--save-details``
``noveltybench``     ``generations.jsonl``,           NoveltyBench; classes of ``partition`` are
                     ``partitions.jsonl``,            answers
                     ``scores.jsonl``
``openr1``           ``.parquet``, ``.jsonl``         data sets such as OpenR1-Math-220k:
                                                      ``generations``, ``correctness_…``
``generic``          ``.parquet``, ``.arrow``,        you: ``prompt``, ``completion``, ``reward``, …
                     ``.feather``, ``.jsonl``,        or what else they are called (``input``,
                     ``.json``, ``.csv``, ``.tsv``    ``response``, ``score``, ``is_correct``, …)
===================  ===============================  ==============================================

Text files may be packed (``.jsonl.gz``). JSON may be a list of records, an object of columns or
what pandas and experiment trackers write. A row whose completion is a list is one rollout per
element.

Logs of evaluations (lm-eval, inspect, lighteval, noveltybench, openr1) have no steps, and their
reward is a metric: the first in the file that is a number, or the one that
``columns={"reward": "acc_norm"}`` names (``--columns reward=acc_norm``). True, "C" and "yes" are 1,
false, "I", "N" and "no" 0, and "P" is 0.5. A completion that no metric judges is left out and
counted in the notes, and so are rows without a completion and those with one number for several
completions, which does not say which of them are right. Where the harness judges a response by
several filters, the first is read (``only={"filter": "flexible-extract"}`` reads another). Files
that name several models are an error.

SkyRL dumps its training batches as pickles, which can run any code when they are opened and are
never opened here. Convert your own in the environment that wrote them, with a script like this
(``python convert.py MODEL global_step_5_training_input.pkl > step_5.jsonl``), leaving out what your
run does not have::

    import json, pickle, re, sys
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    with open(sys.argv[2], "rb") as file:
        batch = pickle.load(file)
    for i, sampled in enumerate(batch["response_mask"].bool()):
        tokens, present = batch["sequences"][i], batch["attention_mask"][i].bool()
        start = len(tokens) - len(sampled)
        row = {
            "step": int(re.search(r"global_step_(\d+)", sys.argv[2])[1]),
            "prompt": tokenizer.decode(tokens[:start][present[:start]]),
            "completion": tokenizer.decode(tokens[start:][sampled]),
            "reward": batch["rewards"][i][sampled].sum().item(),
            "logp": batch["action_log_probs"][i][sampled].sum().item(),
            "ref_logp": batch["base_action_log_probs"][i][sampled].sum().item(),
            "advantage": batch["advantages"][i][sampled].mean().item(),
            "num_tokens": int(sampled.sum()),
        }
        print(json.dumps(row))
"""

from kltarget.rollouts._answers import answer_rule
from kltarget.rollouts._read import read_rollouts
from kltarget.rollouts._rollout import RolloutError
from kltarget.rollouts._scalar_logs import are_scalars, read_scalars
from kltarget.rollouts._select import FORMAT_NAMES

__all__ = [
    "FORMAT_NAMES",
    "RolloutError",
    "answer_rule",
    "are_scalars",
    "read_rollouts",
    "read_scalars",
]
