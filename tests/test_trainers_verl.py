"""The code of verl that the documentation shows, run between verl's own functions.

Its trainers ask for Ray and servers, so single functions of their files are taken out and run.
"""

import ast
import contextlib
import importlib.util
import json
import pathlib
import re
import sys
import types
import warnings

import numpy as np
import pytest

import kltarget as kt

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("default")]
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "howto" / "keep_answers.md"
BETA = 0.2


def shipped(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def source_of(path):
    folder = pathlib.Path(importlib.util.find_spec("verl").submodule_search_locations[0])
    return ast.parse((folder / path).read_text("utf-8"))


def functions_of(path, names, given):
    """Some functions of a file of verl, methods too, compiled without the rest of the file."""
    found = [
        x for x in ast.walk(source_of(path)) if isinstance(x, ast.FunctionDef) and x.name in names
    ]
    for function in found:
        function.decorator_list = [
            x for x in function.decorator_list if ast.unparse(x) == "staticmethod"
        ]
        # What their annotations name is not at hand.
        function.returns = None
        for argument in (*function.args.args, *function.args.kwonlyargs):
            argument.annotation = None
    assert len(found) == len(names)
    scope = dict(given)
    exec(compile(ast.Module(found, []), path, "exec"), scope)
    return {name: scope[name] for name in names}


def page_block(contains):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (block,) = [x for x in blocks if contains in x]
    return block


def modules(monkeypatch, **contents):
    for name, entries in contents.items():
        name = name.replace("__", ".")
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**entries))


@pytest.fixture
def verl():
    torch = shipped("torch")
    shipped("verl")
    core = shipped("verl.trainer.ppo.core_algos")
    masked_mean = shipped("verl.utils.torch_functional").masked_mean
    given = {"core_algos": core, "masked_mean": masked_mean, "torch": torch}
    path = "trainer/ppo/ray_trainer.py"
    charged = functions_of(path, ["apply_kl_penalty"], given)["apply_kl_penalty"]
    return types.SimpleNamespace(torch=torch, core=core, apply_kl_penalty=charged)


def batch_of(verl, policy, ref, reward, answers, lengths):
    """Answers to two prompts; log-probabilities are spread over tokens, with padding after."""
    torch = verl.torch
    width = max(lengths) + 1
    mask = torch.tensor([[float(t < n) for t in range(width)] for n in lengths])

    def spread(total):
        share = torch.tensor(total, dtype=torch.float32)[:, None] / torch.tensor(lengths)[:, None]
        return share * mask + (1 - mask) * -7.0

    scores = torch.zeros_like(mask)
    for k, (a, n) in enumerate(zip(answers, lengths, strict=True)):
        scores[k, n - 1] = reward[a]
    tensors = {
        "response_mask": mask,
        "token_level_scores": scores,
        "old_log_probs": spread([np.log(policy[a]) for a in answers]),
        "ref_log_prob": spread([np.log(ref[a]) for a in answers]),
    }
    batch = shipped("tensordict").TensorDict(tensors, batch_size=len(answers))
    uids = np.array([f"p{k // (len(answers) // 2)}" for k in range(len(answers))], dtype=object)
    return types.SimpleNamespace(batch=batch, non_tensor_batch={"uid": uids})


def advantages(verl, data, charged):
    control = verl.core.FixedKLController(BETA)
    data, metrics = charged(data, kl_ctrl=control, kl_penalty="kl")
    found, _ = verl.core.compute_rloo_outcome_advantage(
        token_level_rewards=data.batch["token_level_rewards"],
        response_mask=data.batch["response_mask"],
        index=data.non_tensor_batch["uid"],
    )
    return found[:, 0], metrics


def test_answers_are_kept_in_verl(verl, monkeypatch):
    """At the uniform target verl's own advantages vanish with the function, and not without."""
    reward, ref = np.array([1.0, 1.0, 0.0]), np.array([0.3, 0.02, 0.68])
    table = kt.mara(kt.Objective(reward, np.log(ref), BETA), 1.0)
    target = np.asarray(kt.solve(table).probs, np.float64)
    answers, lengths = [0, 1, 2, 0, 1, 0, 1, 2], [1, 2, 3, 3, 1, 2, 2, 1]
    trainer = types.SimpleNamespace(apply_kl_penalty=verl.apply_kl_penalty)
    modules(
        monkeypatch,
        verl__trainer__ppo__ray_trainer={"apply_kl_penalty": verl.apply_kl_penalty},
        verl__trainer__ppo__v1={"trainer_base": trainer},
    )
    exec(page_block("keeping_answers"), {})
    assert trainer.apply_kl_penalty is not verl.apply_kl_penalty

    data = batch_of(verl, target, ref, reward, answers, lengths)
    scores = data.batch["token_level_scores"].clone()
    at_target, metrics = advantages(verl, data, trainer.apply_kl_penalty)
    np.testing.assert_allclose(at_target, 0, atol=1e-5)
    assert {"actor/mara", "actor/reward_kl_penalty"} <= set(metrics)
    np.testing.assert_array_equal(data.batch["token_level_scores"], scores)
    plain, _ = advantages(
        verl, batch_of(verl, target, ref, reward, answers, lengths), verl.apply_kl_penalty
    )
    assert plain.abs().max() > 0.1


def test_verl_charges_the_kl_where_the_page_says():
    """Both trainers call the function by this name, with these arguments, after the reference."""
    shipped("verl")
    path = "trainer/ppo/v1/trainer_base.py"
    imported = {
        f"{x.module}.{name.name}"
        for x in ast.walk(source_of(path))
        if isinstance(x, ast.ImportFrom)
        for name in x.names
    }
    assert "verl.trainer.ppo.ray_trainer.apply_kl_penalty" in imported
    for file, method in ((path, "_compute_advantage"), ("trainer/ppo/ray_trainer.py", "fit")):
        (body,) = [
            x
            for x in ast.walk(source_of(file))
            if isinstance(x, ast.FunctionDef) and x.name == method
        ]
        (call,) = [
            x
            for x in ast.walk(body)
            if isinstance(x, ast.Call) and ast.unparse(x.func) == "apply_kl_penalty"
        ]
        assert len(call.args) == 1
        assert {x.arg for x in call.keywords} == {"kl_ctrl", "kl_penalty"}
        text = ast.unparse(body)
        assert text.index("ref_log_prob") < text.index("apply_kl_penalty(")


def test_log_probs_are_in_verls_dump(tmp_path, monkeypatch):
    torch = shipped("torch")
    shipped("verl")
    keys = ["p0_0_0", "p0_1_0", "p1_0_0"]
    numbers = {
        "prompts": [[5, 6], [5, 6], [7, 8]],
        "responses": [[1, 2], [3], [4, 1, 2]],
        "rm_scores": [[0.0, 1.0], [0.0], [0.0, 0.0, 1.0]],
        "ref_log_prob": [[-1.0, -2.0], [-0.5], [-1.0, -1.5, -0.25]],
        "old_log_probs": [[-0.5, -1.0], [-0.25], [-0.5, -1.25, -0.125]],
        "response_mask": [[1, 1], [1], [1, 1, 1]],
    }

    def get(keys, partition_id, select_fields):
        assert partition_id == "train"
        rows = [KEYS.index(key) for key in keys]
        found = {}
        for name in select_fields:
            if name in numbers:
                values = [torch.tensor(numbers[name][k]) for k in rows]
                found[name] = torch.nested.nested_tensor(values, layout=torch.jagged)
        if "uid" in select_fields:
            found["uid"] = np.array([key.rsplit("_", 2)[0] for key in keys], dtype=object)
        return Fields(found)

    class Fields(dict):
        pass

    KEYS = keys
    queue = types.SimpleNamespace(kv_batch_get=get)
    given = {
        "marked_timer": lambda *args, **kwargs: contextlib.nullcontext(),
        "tq": queue,
        "os": __import__("os"),
        "json": json,
        "np": np,
    }
    names = ["_log_rollout_data", "_write_generations"]
    own = functions_of("trainer/ppo/v1/trainer_base.py", names, given)

    class Trainer:
        """verl's methods without the rest; the dump is written at once."""

        _log_rollout_data = own["_log_rollout_data"]
        config = types.SimpleNamespace(
            trainer=types.SimpleNamespace(rollout_data_dir=str(tmp_path))
        )
        tokenizer = types.SimpleNamespace(
            pad_token_id=0, decode=lambda ids, skip_special_tokens: " ".join(map(str, ids.tolist()))
        )

        def _dump_generations(self, **arguments):
            write = own["_write_generations"]
            getattr(write, "__func__", write)(**arguments, global_steps=3)

    # Only what the page adds is positional or not as verl calls it: by name.
    original = Trainer._dump_generations
    Trainer._dump_generations = lambda self, *a, **k: original(
        self,
        **dict(
            zip(
                ("inputs", "outputs", "gts", "scores", "reward_extra_infos_dict", "dump_path"),
                a,
                strict=False,
            )
        ),
        **k,
    )
    modules(
        monkeypatch,
        transfer_queue=vars(queue),
        verl__trainer__ppo__v1={
            "PPOTrainerSync": Trainer,
            "register_trainer": lambda name: lambda cls: cls,
        },
    )
    scope = {}
    exec(page_block("class LogsLogProbs"), scope)
    batch = types.SimpleNamespace(keys=list(reversed(keys)), partition_id="train")
    scope["LogsLogProbs"]()._log_rollout_data(batch, {}, str(tmp_path))
    rollouts = kt.read_rollouts(tmp_path)
    np.testing.assert_allclose(rollouts["ref_logp"], [-3.0, -0.5, -2.75])
    np.testing.assert_allclose(rollouts["logp"], [-1.5, -0.25, -1.875])
    assert list(rollouts["reward"]) == [1.0, 0.0, 1.0]
