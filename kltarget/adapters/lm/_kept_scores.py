"""Scores of finished batches beside the file they will be written to, for a call that goes on."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any


class KeptScores:
    """Scores by the number of their row; those on disk are of the same settings.

    Args:
        out: the file that the scores are for.
        settings: what they depend on: others' scores are dropped.

    Attributes:
        scores: those of finished batches; None of rows that have none.
        resumed: how many were there before.
    """

    def __init__(self, out: pathlib.Path, settings: Mapping[str, Any]) -> None:
        self.path = out.with_name(f".{out.name}.scores")
        self.scores: dict[int, float | None] = {}
        head = json.dumps({"kltarget": "scores", **settings}, sort_keys=True) + "\n"
        whole = self._read(head)
        self.resumed = len(self.scores)
        if whole:
            # What a killed call left of its last line.
            os.truncate(self.path, whole)
        else:
            self.path.write_text(head, encoding="utf-8")
        self._file: IO[str] = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def _read(self, head: str) -> int:
        """Reads what is there; how many bytes of it are whole lines."""
        try:
            with open(self.path, "rb") as file:
                if file.readline() != head.encode():
                    return 0
                whole = file.tell()
                for line in file:
                    try:
                        pairs = json.loads(line)
                        if not line.endswith(b"\n"):
                            break
                    except ValueError:
                        break
                    self.scores |= {int(row): score for row, score in pairs}
                    whole += len(line)
                return whole
        except FileNotFoundError:
            return 0

    def add(self, rows: Sequence[int], scores: Sequence[float | None]) -> None:
        """Keeps a finished batch, on disk too."""
        pairs = list(zip(rows, scores, strict=True))
        self._file.write(json.dumps(pairs) + "\n")
        self._file.flush()
        self.scores |= dict(pairs)

    def __enter__(self) -> KeptScores:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: Any, where: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            self.path.unlink()
