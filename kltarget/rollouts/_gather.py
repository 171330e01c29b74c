"""Rows of files gathered as columns, of training and of validation apart."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from kltarget._core.file_kinds import Row
from kltarget._core.progress import progress_bar
from kltarget._core.words import abridged
from kltarget.rollouts._answers import Rule
from kltarget.rollouts._blocks import Stretch, stretches_of
from kltarget.rollouts._entries import ROW_ITSELF
from kltarget.rollouts._frame import Columns
from kltarget.rollouts._log_files import Reading
from kltarget.rollouts._one_run import Origin
from kltarget.rollouts._rollout import BadRow, Rollout, RolloutError, UnusedRow
from kltarget.rollouts.formats._evaluation import Metric
from kltarget.rollouts.formats._format import Format


@dataclasses.dataclass(frozen=True)
class Asked:
    """How files are read.

    Attributes:
        rule_name: what the rule of answers is called.
        rule: from a completion to its answer.
        metric: of evaluations, the metric that is the reward, if the user named it.
        full_text: whether long texts are kept whole.
        only: for columns, the entry of the rows that are wanted.
        apart: the files that their names say are of validation.
        skip_bad: whether bad rows are skipped.
    """

    rule_name: str
    rule: Rule
    metric: str | None
    full_text: bool
    only: Mapping[str, str]
    apart: set[pathlib.Path]
    skip_bad: bool


@dataclasses.dataclass
class Gathered:
    """What was read: rows of training and of validation, of which run, and what went wrong."""

    parts: tuple[Columns, Columns]
    origin: Origin
    reading: Reading


def gather(
    files: Mapping[pathlib.Path, Format], asked: Asked, progress: bool, alone: bool
) -> Gathered:
    """Reads files one after the other; ``alone`` says that there are no others."""
    found = Gathered((Columns(), Columns()), Origin(asked.only), Reading(asked.skip_bad))
    size = sum(path.stat().st_size for path in files)
    with progress_bar(progress, total=size, unit="B", unit_scale=True, desc="rollouts") as bar:
        found.reading.advance = bar.update
        for path, format in files.items():
            try:
                _gather_file(path, format, asked, found)
            except RolloutError as error:
                # What remains under skip_bad is a file that breaks off, or never begins.
                if not asked.skip_bad or alone:
                    raise
                found.reading.broken.append(str(error))
    return found


def _gather_file(path: pathlib.Path, format: Format, asked: Asked, found: Gathered) -> None:
    """Adds the rows of a file to those of training, or to those of validation."""
    reading, origin, parts, rule = found.reading, found.origin, found.parts, asked.rule
    apart, full_text, metric = path in asked.apart, asked.full_text, None
    if format.samples is not None:
        metric = Metric(format, asked.metric, keeps_answers=asked.rule_name == "text")
    source, step, more = str(path), format.step_of(path), 0
    # Rows of another part are between those of a block as if they were not there.
    count, unwanted, variant = [0, 0], 0, None
    for stretch in stretches_of(path, format, reading):
        start = stretch.place + more - unwanted
        part = _add_block(stretch, start, count, path, format, asked, found)
        if part is not None:
            count[part] += len(stretch.block or ())
            continue
        for place, where, whole in stretch.rows():
            if not origin.wants(whole):
                unwanted += 1
                continue
            if format.variant is not None and format.variant in whole:
                entry = str(whole[format.variant])
                variant = entry if variant is None else variant
                if entry != variant:
                    reading.variants[format.variant, variant] += 1
                    unwanted += 1
                    continue
            held_out, run = origin.of(whole, path, apart)
            part = int(held_out and metric is None)
            rows = _rows(whole, place, format, metric, path, where, reading)
            if rows is None:
                count[part] += 1
                continue
            for position, row in enumerate(rows, start=place + more - unwanted - count[1 - part]):
                try:
                    rollout = _with_scores(format.read(row, path), row)
                    rollout.check()
                except BadRow as error:
                    reading.bad(path, where, str(error))
                    continue
                except KeyError as error:
                    reading.bad(path, where, f"no {error.args[0]!r}, which {format.name!r} has")
                    continue
                except (
                    TypeError,
                    ValueError,
                    AttributeError,
                    IndexError,
                    ArithmeticError,
                ) as error:
                    reading.bad(path, where, f"not as {format.name!r} writes it: {error}")
                    continue
                if rollout.step is None:
                    rollout.step = step
                gathered, group = parts[part], rollout.group
                gathered.in_rows |= group is not None and group == row.get(ROW_ITSELF)
                if rollout.reward is not None and math.isnan(rollout.reward):
                    gathered.first_missing = gathered.first_missing or f"{path}: {where}"
                answer = rollout.answer if rollout.answered else rule(rollout.completion)
                texts = None
                # What further outputs of a session say is read again when they are joined.
                if not full_text and not rollout.turn:
                    short = abridged(rollout.completion)
                    same = answer is rollout.completion or answer is None
                    texts = short, (None if answer is None else short if same else abridged(answer))
                try:
                    gathered.add(rollout, answer, source, position, format.apart, run, texts)
                except BadRow as error:
                    reading.bad(path, where, str(error))
            more += len(rows) - 1
            count[part] += len(rows)
    if metric is not None:
        metric.check(path)
        reading.metrics |= dict.fromkeys(metric.notes())
        reading.models.setdefault(metric.model, path)


def _add_block(
    stretch: Stretch,
    start: int,
    count: list[int],
    path: pathlib.Path,
    format: Format,
    asked: Asked,
    found: Gathered,
) -> int | None:
    """Adds a block of plain rows and returns to which part; None if it has to be read by rows."""
    block = stretch.block
    if block is None or not all(columns.takes(block) for columns in found.parts):
        return None
    told = found.origin.of_block(block.first, block.steady, len(block), path, path in asked.apart)
    if told is None:
        return None
    part, run = int(told[0]), told[1]
    columns = found.parts[part]
    position, step = start - count[1 - part], format.step_of(path)
    where = str(path), position, step, format.apart, run
    columns.add_all(block, asked.rule, *where, asked.full_text)
    missing = np.isnan(block.numbers["reward"])
    if missing.any() and not columns.first_missing:
        columns.first_missing = f"{path}: {stretch.where(stretch.place + int(missing.argmax()))}"
    return part


def _with_scores(rollout: Rollout, row: Row) -> Rollout:
    """With what a model was asked later: the columns that ``kltarget score`` writes."""
    for name in ("ref_logp", "logp"):
        entry = row.get(name)
        if isinstance(entry, float) and math.isnan(getattr(rollout, name)):
            setattr(rollout, name, entry)
    return rollout


def _rows(
    row: Row,
    place: int,
    format: Format,
    metric: Metric | None,
    path: pathlib.Path,
    where: str,
    reading: Reading,
) -> list[Row] | None:
    """A row for every completion of a row; None if there is none that can be read."""
    try:
        return format.rows(row, place) if metric is None else metric.rows(row, place)
    except UnusedRow as why:
        reading.leave_out(path, where, str(why))
    except BadRow as error:
        reading.bad(path, where, str(error))
    except KeyError as error:
        reading.bad(path, where, f"no {error.args[0]!r}, which {format.name!r} has")
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        reading.bad(path, where, f"not as {format.name!r} writes it: {error}")
    return None
