"""Log-probabilities of logged completions by a tiny language model, against sums by hand."""

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import tiny_llama

import kltarget as kt
from kltarget import cli
from kltarget.adapters.lm import score, score_files

real = pytest.mark.trainers
pytestmark = pytest.mark.filterwarnings("default")

ROWS = [
    {"prompt": "a b", "completion": "c d e", "reward": 1.0, "step": 1},
    {"prompt": "a b", "completion": "c", "reward": 0.0, "step": 1},
    {"prompt": "f g h i j k", "completion": "0 1", "reward": 1.0, "step": 2},
    {"prompt": "p", "completion": "a b c d e f g h", "reward": 0.5, "step": 2},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers")
    return tiny_llama.saved(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    pytest.importorskip("transformers")
    return tiny_llama.saved(tmp_path_factory.mktemp("chatty"), chat=True)


def by_hand(folder, prompt, completion, temperature=1.0):
    """Token by token, each with a forward pass of its own over what comes before."""
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    total = 0.0
    with torch.no_grad():
        for i, token in enumerate(completion):
            before = torch.tensor([[*prompt, *completion[:i]]])
            logits = model(before).logits[0, -1].double() / temperature
            total += float(logits[token] - torch.logsumexp(logits, 0))
    return total


def ids(text):
    return [tiny_llama.WORDS.index(word) for word in text.split()]


END = tiny_llama.WORDS.index("</s>")


@real
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sums_are_those_of_token_by_token(folder, temperature):
    found = score(pd.DataFrame(ROWS), folder, temperature=temperature)
    expected = [
        by_hand(folder, ids(row["prompt"]), [*ids(row["completion"]), END], temperature)
        for row in ROWS
    ]
    np.testing.assert_allclose(found["ref_logp"], expected, atol=1e-5)
    assert list(found.columns) == [*ROWS[0], "ref_logp"]
    bare = score(pd.DataFrame(ROWS), folder, role="policy", eos="never")
    assert bare["logp"][1] == pytest.approx(by_hand(folder, ids("a b"), ids("c")), abs=1e-5)


@real
def test_batches_and_padding_change_nothing(folder):
    rng = np.random.default_rng(0)
    words = [x for x in tiny_llama.WORDS if len(x) == 1]
    text = lambda: " ".join(rng.choice(words, rng.integers(1, 12)))  # noqa: E731
    frame = pd.DataFrame([{"prompt": text(), "completion": text()} for _ in range(64)])
    one = score(frame, folder, tokens_per_batch=1)["ref_logp"]
    whole = score(frame, folder, tokens_per_batch=10**6)["ref_logp"]
    np.testing.assert_allclose(one, whole, atol=1e-5)
    order = rng.permutation(64)
    other = score(frame.iloc[order], folder, tokens_per_batch=200)["ref_logp"]
    np.testing.assert_allclose(other.to_numpy(), whole.to_numpy()[order], atol=1e-5)


@real
def test_logged_tokens_come_before_texts(folder):
    rows = [
        {"prompt": "a b", "completion": "?", "completion_ids": [5, 6, END]},
        {"prompt": "?", "completion": "?", "prompt_ids": [4, 5], "completion_ids": [5, 6, END]},
        {"prompt": "?", "completion": "?", "token_ids": [[4, 5, 5, 6, END]],
         "token_loss_mask": [[0, 0, 1, 0, 1]]},
        {"prompt": "a b", "completion": "?", "completion_ids": [5, 5, 6, END],
         "loss_mask": [1, 0, 0, 1]},
    ]  # fmt: skip
    found = score(pd.DataFrame(rows), folder)
    whole = by_hand(folder, [4, 5], [5, 6, END])
    # The token that is masked out is read, but not counted.
    apart = by_hand(folder, [4, 5], [5]) + by_hand(folder, [4, 5, 5, 6], [END])
    np.testing.assert_allclose(found["ref_logp"][:3], [whole, whole, apart], atol=1e-5)
    late = by_hand(folder, [4, 5], [5]) + by_hand(folder, [4, 5, 5, 5, 6], [END])
    assert found["ref_logp"][3] == pytest.approx(late, abs=1e-5)
    assert found.attrs["notes"][:2] == [
        "tokens and mask as logged in 1 row",
        "completions by their logged tokens in 3 rows",
    ]


@real
def test_who_was_cut_has_no_end(folder):
    rows = [
        {"prompt": "a", "completion": "b c", "finish_reason": "length"},
        {"prompt": "a", "completion": "b c", "finish_reason": "stop"},
        {"prompt": "a", "completion": "b c", "truncated": True},
        {"prompt": "a", "completion": "b c </s>"},
        {"prompt": "a", "completion": "b c"},
    ]
    cut, ended = (by_hand(folder, ids("a"), ids("b c") + end) for end in ([], [END]))
    expected = {"auto": [cut, ended, cut, ended, ended], "never": [cut, cut, cut, ended, cut]}
    for eos, sums in expected.items():
        found = score(pd.DataFrame(rows), folder, eos=eos)
        np.testing.assert_allclose(found["ref_logp"], sums, atol=1e-5)
    limited = score(pd.DataFrame(rows[4:]), folder, max_completion_length=2)
    np.testing.assert_allclose(limited["ref_logp"], [cut], atol=1e-5)


CHAT = [{"role": "user", "content": "a b"}]


@real
def test_chats_are_as_the_template_makes_them(folder, chatty, tmp_path):
    said = [{"role": "assistant", "content": "c d"}]
    rows = [
        {"prompt": CHAT, "completion": said},
        {"prompt": json.dumps(CHAT), "completion": "c d"},
    ]
    frame = pd.DataFrame(rows)
    found = score(frame, chatty)
    prompt = ids("<s> user a b <s> assistant")
    expected = by_hand(chatty, prompt, [*ids("c d"), END])
    np.testing.assert_allclose(found["ref_logp"], [expected] * 2, atol=1e-5)
    assert found.attrs["notes"][0] == (
        "2 prompts by the tokenizer's chat template, with a generation prompt"
    )
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        score(frame, folder)
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0]['content'] }} 0")
    other = score(frame, folder, chat_template=str(template))
    expected = by_hand(folder, ids("a b 0"), [*ids("c d"), END])
    np.testing.assert_allclose(other["ref_logp"], [expected] * 2, atol=1e-5)
    plain = score(frame, folder, chat_template="none")
    expected = by_hand(folder, ids("a b"), [*ids("c d"), END])
    np.testing.assert_allclose(plain["ref_logp"], [expected] * 2, atol=1e-5)


def written(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@real
@pytest.mark.parametrize("kinds", [("jsonl", "jsonl"), ("jsonl", "parquet"), ("parquet",) * 2])
def test_files_have_all_that_the_log_has(folder, tmp_path, kinds, capsys):
    log, out = (
        tmp_path / f"{name}.{kind}" for name, kind in zip(("log", "out"), kinds, strict=True)
    )
    rows = [{**row, "note": {"x": [i, None]}} for i, row in enumerate(ROWS)]
    if kinds[0] == "parquet":
        pd.DataFrame(rows).to_parquet(log)
    else:
        written(log, rows)
    line = ["score", log, "--model", folder, "--out", out, "--temperature", "0.7"]
    assert cli.main([str(x) for x in line]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {out}\n")
    read = pd.read_parquet(out) if kinds[1] == "parquet" else pd.read_json(out, lines=True)
    expected = score(pd.DataFrame(ROWS), folder, temperature=0.7)["ref_logp"]
    np.testing.assert_allclose(read["ref_logp"], expected, atol=1e-5)
    assert [x["x"][0] for x in read["note"]] == [0, 1, 2, 3]
    assert read["completion"].tolist() == [row["completion"] for row in ROWS]
    frame = kt.read_rollouts(out)
    np.testing.assert_allclose(frame["ref_logp"], expected, atol=1e-5)
    assert sorted(os.listdir(tmp_path)) == sorted([log.name, out.name])


@real
def test_what_diagnose_reads(folder, tmp_path):
    """verl's log has no reference log-probabilities; scored, its diagnosis knows targets."""
    words = [x for x in tiny_llama.WORDS if len(x) == 1]
    at = {"temperature": 0.1, "eos": "never"}
    each = score(pd.DataFrame([{"prompt": "a", "completion": x} for x in words]), folder, **at)
    likely = np.array(words)[np.argsort(-each["ref_logp"].to_numpy())[:8]]
    assert np.exp(each["ref_logp"]).sum() > 0.8
    rows = [
        {"input": "a", "output": str(likely[i % 8]), "score": float(i % 2), "step": 1 + i // 16,
         "uid": f"p_{i % 8}_0"}
        for i in range(32)
    ]  # fmt: skip
    log, out = written(tmp_path / "log.jsonl", rows), tmp_path / "scored.jsonl"
    score_files(log, folder, out, **at)
    frame = kt.read_rollouts(out)
    assert frame.attrs["format"] == "verl"
    expected = [each["ref_logp"][words.index(row["output"])] for row in rows]
    np.testing.assert_allclose(frame["ref_logp"], expected, atol=1e-5)
    recipe = kt.Recipe("reward", "k1")
    assert kt.diagnose(kt.read_rollouts(log), recipe, beta=0.1).tier == 1
    assert kt.diagnose(frame, recipe, beta=0.1).tier == 2


@real
def test_a_killed_call_goes_on(folder, tmp_path):
    rng = np.random.default_rng(1)
    rows = [
        {"prompt": "a", "completion": " ".join(rng.choice(list("abcdef"), 40)), "reward": 1.0}
        for _ in range(3000)
    ]
    log, out = written(tmp_path / "log.jsonl", rows), tmp_path / "out.jsonl"
    line = [str(log), "--model", str(folder), "--out", str(out), "--tokens-per-batch", "200"]
    kept = tmp_path / ".out.jsonl.scores"
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from kltarget.cli import command; import sys; sys.exit(command())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "score", *line], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (kept.exists() and kept.read_text().count("\n") > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith(f"kltarget: interrupted: finished batches are in {kept}")
    assert not out.exists()
    # What was killed in the middle of a line is computed again.
    with open(kept, "a") as file:
        file.write("[[2999, -1")
    notes = score_files(log, folder, out, tokens_per_batch=200)
    assert notes[0].endswith("scored before this call")
    assert not kept.exists()
    whole = score(pd.DataFrame(rows[:50]), folder)["ref_logp"]
    found = pd.read_json(out, lines=True)["ref_logp"]
    np.testing.assert_allclose(found[:50], whole, atol=1e-4)
    assert found.notna().all()


@real
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_log_is_never_in_memory_as_a_whole(folder, tmp_path, kind):
    log, out = tmp_path / f"log.{kind}", tmp_path / f"out.{kind}"
    rows = [{**ROWS[i % 4], "junk": f"{i}" + "x" * 20_000} for i in range(6000)]
    if kind == "jsonl":
        written(log, rows)
    else:
        pd.DataFrame(rows).to_parquet(log)
    del rows
    score(pd.DataFrame(ROWS), folder)  # what is loaded once
    tracemalloc.start()
    try:
        score_files(log, folder, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A hundred and twenty megabytes of text; Parquet is read a thousand rows at a time.
    assert peak < 60e6
    assert out.stat().st_size > 6000 * (20_000 if kind == "jsonl" else 10)


@real
def test_another_calls_scores_are_not_gone_on_with(folder, tmp_path):
    log, out = written(tmp_path / "log.jsonl"), tmp_path / "out.jsonl"
    kept = tmp_path / ".out.jsonl.scores"
    kept.write_text('{"kltarget": "scores", "temperature": 0.5}\n[[0, -1.0]]\n')
    notes = score_files(log, folder, out)
    assert "before this call" not in notes[0]
    assert pd.read_json(out, lines=True)["ref_logp"][0] != -1.0


@real
def test_templates_that_cannot_be_used(chatty, tmp_path, capsys):
    odd = [{"role": "assistant", "content": "a"}]
    rows = [{"prompt": x, "completion": "b", "reward": 1.0} for x in (CHAT, odd)]
    log, out, template = written(tmp_path / "log.jsonl", rows), tmp_path / "o.jsonl", tmp_path / "t"
    template.write_text(
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('a user first') }}{% endif %}a"
    )
    notes = score_files(log, chatty, out, chat_template=str(template))
    assert "1 row without a ref_logp" in notes[-1]
    assert "the chat template does not take the prompt: a user first" in notes[-1]
    template.write_text("a\n{% for")
    line = ["score", log, "--model", chatty, "--chat-template", template, "--out", out]
    assert cli.main([str(x) for x in line]) == 2
    err = capsys.readouterr().err
    assert err.startswith("kltarget: --chat-template: line 2 of the template: ")
    assert err.count("\n") == 1


@real
def test_entries_that_parquet_cannot_hold(folder, tmp_path, capsys):
    rows = [{**ROWS[0], "extra": {"a": 1}}, {**ROWS[1], "extra": "b"}]
    log, out = written(tmp_path / "log.jsonl", rows), tmp_path / "out.parquet"
    assert cli.main(["score", str(log), "--model", str(folder), "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"kltarget: --out {out}: a column has entries of several kinds")
    assert "write a .jsonl file" in err
    assert not out.exists()


def test_what_is_written_is_no_part_of_the_log(tmp_path, capsys):
    written(tmp_path / "log.jsonl")
    line = ["score", str(tmp_path), "--model", "base/", "--out", str(tmp_path / "out.jsonl")]
    assert cli.main(line) == 2
    assert "is in a folder of the log" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["log.jsonl"]


@real
@pytest.mark.parametrize("changed", ["weights", "temperature", "nothing"])
def test_only_the_same_call_goes_on(changed, tmp_path, monkeypatch):
    log, out = written(tmp_path / "log.jsonl"), tmp_path / "out.jsonl"
    model = tiny_llama.saved(tmp_path / "model")
    llama = pytest.importorskip("transformers").LlamaForCausalLM
    left = iter([llama.forward])

    @functools.wraps(llama.forward)
    def interrupted(*arguments, **options):
        forward = next(left, None)
        if forward is None:
            raise KeyboardInterrupt
        return forward(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(llama, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            score_files(log, model, out, tokens_per_batch=1)
    if changed == "weights":
        tiny_llama.saved(model, seed=1)
    at = {"temperature": 2.0 if changed == "temperature" else 1.0}
    notes = score_files(log, model, out, **at)
    assert ("1 row scored before this call" in notes) == (changed == "nothing")
    expected = score(pd.DataFrame(ROWS), model, **at)["ref_logp"]
    np.testing.assert_allclose(pd.read_json(out, lines=True)["ref_logp"], expected, atol=1e-5)


@real
def test_rows_that_cannot_be_scored_are_named_and_kept(folder, tmp_path):
    rows = [*ROWS, {"prompt": "a", "completion": "b", "completion_ids": [10**6]},
            {"prompt": "", "completion": "b"},
            {"prompt": "a", "completion": "b", "completion_ids": [4, math.nan]},
            {"prompt": "a", "completion": "b", "completion_ids": [4, 5], "loss_mask": [0, 0]},
            {"prompt": "a", "completion": "", "truncated": True}]  # fmt: skip
    log, out = written(tmp_path / "log.jsonl", rows), tmp_path / "out.jsonl"
    with open(log, "a") as file:
        file.write('{"prompt": "a", "comp\n')
    notes = score_files(log, folder, out)
    said = " ".join(notes)
    assert "5 rows without a ref_logp, the first" in said
    assert "a token is none of the model's" in said
    assert "1 bad row skipped" in said
    read = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["ref_logp"] is None for row in read] == [False] * 4 + [True] * 5
    with pytest.raises(ValueError, match=r"'x' is not in the log; .*, --columns completion=…"):
        score(pd.DataFrame(rows), folder, columns={"completion": "x"})
    with pytest.raises(ValueError, match="no row can be scored, the first"):
        score(pd.DataFrame(rows[5:]), folder)


@real
def test_frames_of_rollouts_and_texts_that_are_abridged(folder, tmp_path):
    rows = [*ROWS, {**ROWS[0], "completion": "a " * 30 + "0" * 1000}]
    log = written(tmp_path / "log.jsonl", rows)
    found = score(kt.read_rollouts(log), folder)
    expected = score(pd.DataFrame(ROWS), folder)["ref_logp"]
    np.testing.assert_allclose(found["ref_logp"][:4], expected, atol=1e-5)
    assert found["ref_logp"].notna().all()
    short = score(kt.read_rollouts(log, full_text=False), folder)
    assert short["ref_logp"].isna().tolist() == [False] * 4 + [True]
    assert "the text is abridged" in short.attrs["notes"][-1]


@real
def test_pickled_weights_are_never_loaded(folder, tmp_path, capsys):
    import torch
    import transformers

    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    pickled = tmp_path / "pickled"
    transformers.AutoConfig.from_pretrained(folder).save_pretrained(pickled)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(pickled)
    torch.save(Evil(), pickled / "pytorch_model.bin")
    log = written(tmp_path / "log.jsonl")
    line = ["score", log, "--model", pickled, "--out", tmp_path / "out.jsonl"]
    assert cli.main([str(x) for x in line]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "never loaded: save it by save_pretrained" in err
    assert not marker.exists()


@real
def test_an_adapter_is_a_model_too(folder, tmp_path):
    peft = pytest.importorskip("peft")
    import safetensors.torch
    import torch
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(loaded, config)
    for name, model in (("adapter", adapted), ("merged", None)):
        (model or adapted.merge_and_unload()).save_pretrained(tmp_path / name)
        tiny_llama.tokenizer().save_pretrained(tmp_path / name)
    frame = pd.DataFrame(ROWS)
    found = score(frame, tmp_path / "adapter", role="policy")["logp"]
    merged = score(frame, tmp_path / "merged", role="policy")["logp"]
    np.testing.assert_allclose(found, merged, atol=1e-4)
    assert np.abs(found - score(frame, folder)["ref_logp"]).max() > 0.1
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(safetensors.torch.load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"pickles alone \(adapter_model.bin\)"):
        score(frame, tmp_path / "adapter")


@real
def test_a_model_that_is_nowhere_is_one_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    log = written(tmp_path / "log.jsonl")
    empty = tmp_path / "empty"
    empty.mkdir()
    for model in ("nobody/such-a-model", tmp_path / "no-folder", empty):
        line = ["score", log, "--model", model, "--out", tmp_path / "out.jsonl"]
        assert cli.main([str(x) for x in line]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err.startswith(f"kltarget: --model {model} ")
    assert "cannot be loaded from this folder: it has no config.json" in err


@real
def test_a_tokenizer_that_is_nowhere_is_not_the_models_fault(folder, tmp_path, capsys):
    log, out = written(tmp_path / "log.jsonl"), tmp_path / "out.jsonl"
    line = ["score", log, "--model", folder, "--tokenizer", tmp_path / "none", "--out", out]
    assert cli.main([str(x) for x in line]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"kltarget: --tokenizer {tmp_path / 'none'}: ")
    bare, transformers = tmp_path / "bare", pytest.importorskip("transformers")
    transformers.LlamaForCausalLM.from_pretrained(folder).save_pretrained(bare)
    with pytest.raises(ValueError, match="tokenizer cannot be loaded; give the tokenizer's own"):
        score(pd.DataFrame(ROWS), bare)


@real
def test_a_file_of_weights_that_breaks_off_is_one_line(tmp_path, capsys):
    broken = tiny_llama.saved(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    capsys.readouterr()
    line = ["score", written(tmp_path / "log.jsonl"), "--model", broken, "--out"]
    assert cli.main([str(x) for x in (*line, tmp_path / "out.jsonl")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"--model {broken} cannot be loaded from this folder" in err
    assert not (tmp_path / "out.jsonl").exists()


@real
def test_dtypes_and_devices(folder):
    frame = pd.DataFrame(ROWS)
    whole = score(frame, folder)["ref_logp"]
    narrow = score(frame, folder, dtype="bfloat16")["ref_logp"]
    assert 0 < np.abs(narrow - whole).max() < 0.5
    with pytest.raises(ValueError, match="device='no-such-device' cannot be used"):
        score(frame, folder, device="no-such-device")


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_what_is_missing_is_said(package, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    log = written(tmp_path / "log.jsonl")
    line = ["score", str(log), "--model", "base/", "--out", str(tmp_path / "out.jsonl")]
    assert cli.main(line) == 2
    assert "pip install 'kltarget[lm]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "out.csv"], "--out out.csv: its name must end in .parquet or .jsonl"),
        (["--temperature", "0"], "--temperature"),
        (["--columns", "reward=r"], "--columns: 'reward' is neither 'prompt' nor 'completion'"),
        (["--chat-template", "nowhere.jinja"], "--chat-template nowhere.jinja: No such file"),
    ],
)
def test_options_that_make_no_sense(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "log.jsonl")
    line = ["score", "log.jsonl", "--model", "base/", "--out", "out.jsonl", *options]
    assert cli.main(line) == 2
    assert message in capsys.readouterr().err
    assert os.listdir() == ["log.jsonl"]


@pytest.mark.parametrize(
    ("option", "value"), [("role", "judge"), ("eos", "maybe"), ("dtype", "int8")]
)
def test_choices_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option}='{value}' is none of"):
        score(pd.DataFrame(ROWS), "base/", **{option: value})


def test_a_log_that_is_not_there_is_said_before_a_model_is_loaded(tmp_path, capsys):
    line = ["score", str(tmp_path / "no.jsonl"), "--model", "base/", "--out", "out.jsonl"]
    assert cli.main(line) == 2
    assert "there is no such file or folder" in capsys.readouterr().err
