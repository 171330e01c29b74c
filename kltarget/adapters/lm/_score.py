"""Log-probabilities of logged completions, of rows in memory and of files."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from kltarget._core.checks import ArgumentError
from kltarget._core.file_kinds import Row
from kltarget._core.progress import progress_bar
from kltarget._core.words import counted
from kltarget.adapters.lm._kept_scores import KeptScores
from kltarget.adapters.lm._language_model import Dtype, LanguageModel
from kltarget.adapters.lm._logged_tokens import Eos, LoggedTokens, Scored
from kltarget.adapters.lm._scored_files import KINDS, rows_of_all, write_scored
from kltarget.rollouts import RolloutError
from kltarget.rollouts._log_files import Reading
from kltarget.rollouts._rollout import BadRow
from kltarget.rollouts._select import Path, listed, select, some

if TYPE_CHECKING:
    import pandas as pd

Role = Literal["reference", "policy"]

COLUMN_OF: dict[str, str] = {"reference": "ref_logp", "policy": "logp"}
_AT_ONCE = 4096
"""Rows whose tokens are in memory, among which those of like lengths are put together."""


def score(
    rollouts: pd.DataFrame,
    model: str | os.PathLike[str],
    *,
    role: Role = "reference",
    temperature: float = 1.0,
    columns: Mapping[str, str] | None = None,
    eos: Eos = "auto",
    max_completion_length: int | None = None,
    chat_template: str | None = None,
    tokenizer: str | None = None,
    dtype: Dtype = "auto",
    device: str | None = None,
    tokens_per_batch: int = 16384,
    progress: bool = False,
) -> pd.DataFrame:
    """Adds what a language model says of completions: the sum of their tokens' log-probabilities.

    ``Σ_t log π(y_t | x, y_<t)`` over the tokens of each completion y given its prompt x, in nats.
    Tokens are those of the log where it has them, such as ``completion_ids``; texts are tokenised
    as TRL does, prompts and completions apart. Prompts do not count, the token that ends a
    completion does.

    Args:
        rollouts: a row per completion, with its prompt. A chat is a list of messages; the frames of
            :func:`kltarget.rollouts.read_rollouts` have its text alone, so that
            :func:`score_files` is better for the logs of chats.
        model: the path of a folder, or an id of the hub; weights must be safetensors, and code that
            comes with a model is not run.
        role: whether the model is the ``"reference"``, for a column ``ref_logp``, or the
            ``"policy"`` that sampled, for ``logp``.
        temperature: logits are divided by it: that of sampling, if the trainer does so, as TRL,
            verl and open-instruct do.
        columns: the columns of ``"prompt"`` and ``"completion"``, if they have other names.
        eos: whether the token that ends a completion is appended to its text: ``"auto"`` asks a
            column such as ``finish_reason`` or ``truncated``, or else takes it for ended.
        max_completion_length: the trainer's: texts of so many tokens were cut.
        chat_template: another template than the tokenizer's, as TRL takes it; ``"none"`` takes the
            text of chats.
        tokenizer: the folder or id of the tokenizer, if it is not the model's.
        dtype: of the weights; by default bfloat16 on an accelerator, float32 on a CPU. Logarithms
            are taken in float32.
        device: such as ``"cpu"`` or ``"cuda:1"``; by default the first accelerator.
        tokens_per_batch: tokens in the model at once, padding included.
        progress: show a bar with the time that is left.

    Returns:
        The frame with that column, NaN for rows that have no completion; ``attrs["notes"]`` has how
        tokens came about, and what was left out and why.

    Raises:
        ValueError: the model cannot be loaded, or no row can be scored; one line.
        ImportError: ``kltarget[lm]`` is not installed.

    Example:
        >>> from kltarget.adapters.lm import score
        >>> scored = score(frame, "Qwen/Qwen3-0.6B", temperature=0.7)  # doctest: +SKIP
        >>> scored["ref_logp"].mean()  # doctest: +SKIP
        -41.2
    """
    options = _Options(
        str(model), role, temperature, dict(columns or {}), eos, max_completion_length,
        _template(chat_template), tokenizer, dtype, device, tokens_per_batch,
    )  # fmt: skip
    options.check()
    scorer = _Scorer(options)
    records = rollouts.to_dict("records")
    scores: dict[int, float | None] = {}

    def keep(rows: list[int], values: list[float | None]) -> None:
        scores.update(zip(rows, values, strict=True))

    rows = ((i, f"row {i}", {str(k): x for k, x in row.items()}) for i, row in enumerate(records))
    with progress_bar(progress, total=len(records), unit="row") as bar:
        scorer.run(rows, {}, keep, bar.update)
    scorer.check(scores)
    scored = rollouts.assign(**{options.column: [_number(scores[i]) for i in range(len(records))]})
    scored.attrs = {**rollouts.attrs, "notes": [*rollouts.attrs.get("notes", []), *scorer.notes()]}
    return scored


def score_files(
    paths: Path | Iterable[Path],
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    role: Role = "reference",
    temperature: float = 1.0,
    columns: Mapping[str, str] | None = None,
    eos: Eos = "auto",
    max_completion_length: int | None = None,
    chat_template: str | None = None,
    tokenizer: str | None = None,
    dtype: Dtype = "auto",
    device: str | None = None,
    tokens_per_batch: int = 16384,
    progress: bool = False,
) -> list[str]:
    """As :func:`score`, from the files of a log to one that :func:`kltarget.diagnose` reads.

    Logs are read a few thousand rows at a time. Finished batches are kept beside ``out``, in
    ``.OUT.scores``, until it is written: the same call after one that was killed goes on there.

    Args:
        paths: a file, several files, or a folder, in any format with a row per completion that
            :func:`kltarget.rollouts.read_rollouts` reads.
        model: as for :func:`score`.
        out: a ``.parquet`` or ``.jsonl`` file with all columns of the log and the new one. What is
            read from one or more Parquet files keeps its types in Parquet.
        role: as for :func:`score`, and so are the others.
        temperature: of sampling.
        columns: of prompts and completions.
        eos: whether texts are ended.
        max_completion_length: the trainer's.
        chat_template: another template, or ``"none"``.
        tokenizer: another tokenizer.
        dtype: of the weights.
        device: where the model runs.
        tokens_per_batch: tokens in the model at once.
        progress: show a bar with the time that is left.

    Returns:
        What was assumed, left out and resumed, in lines.

    Raises:
        ValueError: as :func:`score`, or a file that is none of these.
        kltarget.rollouts.RolloutError: a log that cannot be read.
        ImportError: ``kltarget[lm]`` is not installed, or pyarrow for Parquet.

    Example:
        >>> from kltarget.adapters.lm import score_files
        >>> score_files("completions/", "base/", "scored.parquet")  # doctest: +SKIP
        ['4,096 prompts by the tokenizer's chat template, with a generation prompt', ...]
    """
    options = _Options(
        str(model), role, temperature, dict(columns or {}), eos, max_completion_length,
        _template(chat_template), tokenizer, dtype, device, tokens_per_batch,
    )  # fmt: skip
    options.check()
    out = pathlib.Path(out)
    if out.suffix not in KINDS:
        raise ArgumentError("{}: its name must end in .parquet or .jsonl", "out", str(out))
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if any(out.resolve().is_relative_to(x) for x in map(_folder, given) if x is not None):
        raise ArgumentError(
            "{} is in a folder of the log, of which it would be a part: write elsewhere",
            "out",
            str(out),
        )
    reading = Reading(skip_bad=True)
    files, ignored = select(listed(given), "auto", {}, reading, some(given))
    if any(of.samples is not None for of in files.values()):
        raise RolloutError(f"{some(given)}: logs of evaluations have no rows of completions alone")
    steps = {path: of.step_of(path) for path, of in files.items()}

    total = sum(1 for _ in rows_of_all(files, reading))
    if not total:
        raise RolloutError(f"{some(given)}: no rows")
    scorer = _Scorer(options)
    with KeptScores(out, options.settings(files)) as kept:
        bar = progress_bar(progress, total=total, initial=kept.resumed, unit="row")
        with bar:
            scorer.run(_numbered(files), kept.scores, kept.add, bar.update)
        scorer.check(kept.scores)
        write_scored(files, steps, [kept.scores[i] for i in range(total)], options.column, out)
    notes = scorer.notes()
    if kept.resumed:
        notes.insert(0, f"{counted(kept.resumed, 'row')} scored before this call")
    if reading.skipped:
        notes.append(f"{counted(reading.skipped, 'bad row')} skipped, the first: {reading.first}")
    return [*notes, f"left out: {some(ignored)}"] if ignored else notes


def _numbered(files: Iterable[pathlib.Path]) -> Iterator[tuple[int, str, Row]]:
    for number, (path, where, row) in enumerate(rows_of_all(files)):
        yield number, f"{path}: {where}", row


def _folder(given: Path) -> pathlib.Path | None:
    path = pathlib.Path(given)
    return path.resolve() if path.is_dir() else None


def _template(given: str | None) -> str | None:
    """A template as text: TRL takes the text or the path of a file."""
    if given is None or given == "none" or "{" in given:
        return given
    try:
        return pathlib.Path(given).read_text(encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"{{}}: {error.strerror}", "chat_template", given) from None


def _number(score: float | None) -> float:
    return float("nan") if score is None else score


@dataclasses.dataclass(frozen=True)
class _Options:
    model: str
    role: str
    temperature: float
    columns: dict[str, str]
    eos: str
    max_completion_length: int | None
    chat_template: str | None
    tokenizer: str | None
    dtype: str
    device: str | None
    tokens_per_batch: int

    @property
    def column(self) -> str:
        return COLUMN_OF[self.role]

    def check(self) -> None:
        choices = {
            "role": tuple(COLUMN_OF),
            "eos": ("auto", "always", "never"),
            "dtype": ("auto", "float32", "bfloat16", "float16"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                listing = ", ".join(map(repr, known))
                raise ArgumentError(f"{{}} is none of {listing}", name, getattr(self, name))
        if not 0 < self.temperature < float("inf"):
            raise ArgumentError("{} is no number above 0", "temperature", self.temperature)
        if self.tokens_per_batch < 1:
            raise ArgumentError("{} is less than 1", "tokens_per_batch", self.tokens_per_batch)
        if strange := set(self.columns) - {"prompt", "completion"}:
            why = f"{{}}: {sorted(strange)[0]!r} is neither 'prompt' nor 'completion'"
            raise ArgumentError(why, "columns")

    def settings(self, files: Iterable[pathlib.Path]) -> dict[str, Any]:
        """What scores depend on, but for how the work is parted."""
        chosen = dataclasses.asdict(self)
        for name in ("tokens_per_batch", "device"):
            del chosen[name]
        if self.chat_template is not None:
            chosen["chat_template"] = hashlib.sha256(self.chat_template.encode()).hexdigest()
        # A checkpoint may have been written anew to the same folder.
        weights = sorted(pathlib.Path(self.model).glob("*.safetensors"))
        return chosen | {"files": _states(files), "weights": _states(weights)}


def _states(files: Iterable[pathlib.Path]) -> list[list[Any]]:
    found = [(str(path), path.stat()) for path in files]
    return [[path, x.st_size, x.st_mtime_ns] for path, x in found]


class _Scorer:
    """A model that goes through rows, and what it could not make use of."""

    def __init__(self, options: _Options) -> None:
        self.options = options
        self.model = LanguageModel(
            options.model,
            options.dtype,  # pyright: ignore[reportArgumentType]
            options.device,
            options.tokenizer,
        )
        self.tokens = LoggedTokens(
            self.model.tokenizer,
            options.columns,
            options.eos,  # pyright: ignore[reportArgumentType]
            options.chat_template,
            options.max_completion_length,
        )
        self.unused, self.first = 0, ""

    def run(
        self,
        rows: Iterable[tuple[int, str, Row]],
        done: Mapping[int, Any],
        keep: Callable[[list[int], list[float | None]], None],
        advance: Callable[[int], Any],
    ) -> None:
        """Scores what is not done, a few thousand rows after the other."""
        made: list[tuple[int, Scored]] = []
        for number, where, row in rows:
            # Rows themselves are dropped: what is beside their tokens may be long.
            try:
                one = self._sequence(row)
            except BadRow as error:
                self.unused += 1
                self.first = self.first or f"{where}: {error}"
                if number not in done:
                    keep([number], [None])
                    advance(1)
                continue
            if number not in done:
                made.append((number, one))
            if len(made) == _AT_ONCE:
                self._compute(made, keep, advance)
                made = []
        self._compute(made, keep, advance)

    def _compute(
        self, made: list[tuple[int, Scored]], keep: Callable[..., None], advance: Callable[..., Any]
    ) -> None:
        for batch in self.model.batches(made, self.options.tokens_per_batch):
            sums = self.model.log_probs([x for _, x in batch], self.options.temperature)
            keep([number for number, _ in batch], list(sums))
            advance(len(batch))

    def _sequence(self, row: Row) -> Scored:
        one = self.tokens(row)
        if self.model.longest is not None and len(one.tokens) > self.model.longest:
            raise BadRow(f"{len(one.tokens):,} tokens, the model takes {self.model.longest:,}")
        if one.tokens and not 0 <= min(one.tokens) <= max(one.tokens) < self.model.vocabulary:
            raise BadRow(f"a token is none of the model's {self.model.vocabulary:,}")
        return one

    def check(self, scores: Mapping[int, float | None]) -> None:
        if all(score is None for score in scores.values()):
            raise ArgumentError(f"no row can be scored, the first: {self.first}")

    def notes(self) -> list[str]:
        notes = self.tokens.notes()
        if self.unused:
            rows = counted(self.unused, "row")
            notes.append(f"{rows} without a {self.options.column}, the first: {self.first}")
        return notes
