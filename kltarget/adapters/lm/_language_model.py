"""A language model and its tokenizer, and what it makes of batches of tokens."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from kltarget._core.checks import ArgumentError
from kltarget.adapters.lm._logged_tokens import Scored

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_MOST_LOGITS = 2**28
"""Logits that are in memory at once."""


class LanguageModel:
    """A causal model of transformers whose weights are safetensors.

    Args:
        model: the path of a folder or an id of the hub.
        dtype: of the weights; ``"auto"`` is bfloat16 on an accelerator and float32 on a CPU.
        device: where it runs; the first accelerator by default, if there is one.
        tokenizer: the same of the tokenizer, if it is elsewhere.

    Raises:
        ArgumentError: it cannot be loaded, in one line.
        ImportError: torch or transformers is not installed.
    """

    def __init__(
        self,
        model: str,
        dtype: Dtype = "auto",
        device: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        try:
            import torch  # pyright: ignore[reportMissingImports]
            import transformers  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                f"a language model needs torch and transformers: pip install 'kltarget[lm]' "
                f"({error})"
            ) from None
        self.torch = torch
        _check_folder(model)
        whose = ("model", model) if tokenizer is None else ("tokenizer", tokenizer)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto":
            dtype = "float32" if self.device == "cpu" else "bfloat16"
        self.dtype = dtype
        with _quiet(transformers):
            try:
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                    whose[1], trust_remote_code=False
                )
            except Exception as error:
                raise ArgumentError(_no_tokenizer(*whose, error), *whose) from None
            try:
                loaded = transformers.AutoModelForCausalLM.from_pretrained(
                    model,
                    dtype=getattr(torch, dtype),
                    use_safetensors=True,
                    trust_remote_code=False,
                )
            except Exception as error:
                # Each part of a model is read by another library, with errors of its own.
                raise ArgumentError(_why_not(model, error), "model", model) from None
        try:
            self.model = loaded.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            why = f"{{}} cannot be used: {str(error).splitlines()[0]}"
            raise ArgumentError(why, "device", self.device) from None
        texts = loaded.config.get_text_config()
        self.longest = getattr(texts, "max_position_embeddings", None)
        self.vocabulary = loaded.get_input_embeddings().weight.shape[0]
        self._keeps = "logits_to_keep" in inspect.signature(loaded.forward).parameters

    def batches(
        self, sequences: Sequence[tuple[int, Scored]], tokens: int
    ) -> Iterator[list[tuple[int, Scored]]]:
        """Sequences of like lengths, so many that they are no more tokens with their padding."""
        # The longest first: what does not fit into memory says so at once.
        ordered = sorted(sequences, key=lambda x: (-len(x[1].tokens), x[0]))
        batch: list[tuple[int, Scored]] = []
        for one in ordered:
            width = len((batch or [one])[0][1].tokens)
            wide = width * (len(batch) + 1)
            if batch and (wide > tokens or wide * self.vocabulary > _MOST_LOGITS):
                yield batch
                batch = []
            batch.append(one)
        if batch:
            yield batch

    def log_probs(self, batch: Sequence[Scored], temperature: float) -> list[float]:
        """The sums over the tokens that count, in nats; half a batch at a time if memory ends."""
        try:
            return self._log_probs(batch, temperature)
        except self.torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        self.torch.cuda.empty_cache()
        middle = len(batch) // 2
        halves = batch[:middle], batch[middle:]
        return [x for half in halves for x in self.log_probs(half, temperature)]

    def _log_probs(self, batch: Sequence[Scored], temperature: float) -> list[float]:
        torch = self.torch
        width = max(len(x.tokens) for x in batch)
        # On the right, where no token looks, so that positions need not be moved.
        tokens = [x.tokens + [0] * (width - len(x.tokens)) for x in batch]
        mask = [[1] * len(x.tokens) + [0] * (width - len(x.tokens)) for x in batch]
        firsts = [x.counts.index(True) if any(x.counts) else len(x.counts) for x in batch]
        start = min(min(firsts), width) - 1
        options: dict[str, Any] = {"logits_to_keep": width - start} if self._keeps else {}
        with torch.inference_mode():
            ids = torch.tensor(tokens, device=self.device)
            given = {"input_ids": ids, "attention_mask": torch.tensor(mask, device=self.device)}
            logits = self.model(**given, **options).logits[:, -(width - start) :]
            sums = []
            for i, one in enumerate(batch):
                counts = torch.tensor(one.counts[start + 1 :], device=self.device, dtype=torch.bool)
                places = counts.nonzero()[:, 0]
                # As the trainers do: in float32, at the temperature of sampling.
                scaled = logits[i, places].float() / temperature
                chosen = ids[i, start + 1 + places]
                each = torch.log_softmax(scaled, -1).gather(1, chosen[:, None])
                sums.append(float(each.double().sum()))
        return sums


def _check_folder(model: str) -> None:
    """Refuses a folder whose weights are pickles alone, which can run any code."""
    folder = pathlib.Path(model)
    if not folder.is_dir():
        return
    if not any((folder / f"{name}config.json").exists() for name in ("", "adapter_")):
        raise ArgumentError(
            "{} cannot be loaded from this folder: it has no config.json, as those have that "
            "save_pretrained wrote, such as the checkpoints of a run",
            "model",
            model,
        )
    # Weights of an adapter are read by another library, which would take pickles.
    for name in ("", "adapter_"):
        configured = (folder / f"{name}config.json").exists()
        safe = any(folder.glob(f"{name}*.safetensors"))
        found = {x.name for x in folder.glob(f"{name}*.bin")} - {"training_args.bin"}
        pickles = sorted(found)
        if configured and pickles and not safe:
            raise ArgumentError(
                f"{{}} has its weights in pickles alone ({pickles[0]}), which can run any code "
                "and are never loaded: save it by save_pretrained, which writes safetensors",
                "model",
                model,
            )


def _first_line(error: Exception) -> str:
    return next((x.strip() for x in str(error).splitlines() if x.strip()), type(error).__name__)


def _no_tokenizer(argument: str, source: str, error: Exception) -> str:
    """In a line, why a tokenizer cannot be loaded."""
    if argument == "model" and not pathlib.Path(source).is_dir():
        return _why_not(source, error)
    mend = "; give the tokenizer's own folder, tokenizer=…" if argument == "model" else ""
    return f"{{}}: its tokenizer cannot be loaded{mend} ({_first_line(error)})"


def _why_not(model: str, error: Exception) -> str:
    """In a line, why a model cannot be loaded."""
    first = _first_line(error)
    if pathlib.Path(model).is_dir():
        return f"{{}} cannot be loaded from this folder: {first}"
    return (
        "{} is no folder here, and the hub cannot be reached or has no such model with safetensors "
        f"weights: give the path of a folder that save_pretrained wrote ({first})"
    )


class _quiet:
    """Keeps transformers from drawing bars and from remarks while a model is loaded."""

    def __init__(self, transformers: Any) -> None:
        self.logging = transformers.utils.logging

    def __enter__(self) -> None:
        self.level = self.logging.get_verbosity()
        self.bars = self.logging.is_progress_bar_enabled()
        self.logging.set_verbosity_error()
        self.logging.disable_progress_bar()

    def __exit__(self, *unused: Any) -> None:
        self.logging.set_verbosity(self.level)
        if self.bars:
            self.logging.enable_progress_bar()
