"""A table or a log from standard input, for which ``-`` stands on the command line."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from kltarget.cli._output import InputError

_MARK = "-"
_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}


@contextlib.contextmanager
def with_standard_input(arguments: argparse.Namespace) -> Iterator[None]:
    """Puts a file for ``-``, of the kind that its content is of; errors call it standard input."""
    problem, paths = getattr(arguments, "problem", None), getattr(arguments, "paths", ())
    if problem != _MARK and pathlib.Path(_MARK) not in paths:
        yield
        return
    if getattr(arguments, "watch", None) is not None:
        raise InputError("--watch looks at files, not at standard input")
    with tempfile.TemporaryDirectory() as folder:
        content = sys.stdin.buffer.read()
        if not content.strip():
            raise InputError("standard input is empty")
        path = pathlib.Path(folder, f"stdin.{_extension(content)}")
        path.write_bytes(content)
        if problem == _MARK:
            arguments.problem = str(path)
        else:
            arguments.paths = [path if given == pathlib.Path(_MARK) else given for given in paths]
        try:
            yield
        except InputError as error:
            raise InputError(str(error).replace(str(path), "standard input")) from None


def _extension(content: bytes) -> str:
    """What a file of this content would be called."""
    for magic, kind in _MAGIC.items():
        if content.startswith(magic):
            return kind
    if content.startswith(b"\x1f\x8b"):
        try:
            return f"{_extension(gzip.decompress(content))}.gz"
        except (OSError, EOFError):
            return "csv.gz"
    text = content.decode("utf-8-sig", errors="replace").lstrip()
    if not text.startswith(("{", "[")):
        return "csv"
    try:
        return "jsonl" if isinstance(json.loads(text.partition("\n")[0]), dict) else "json"
    except json.JSONDecodeError:
        return "json"
