"""A table, a log or a configuration from standard input, for which ``-`` stands."""

from __future__ import annotations

import argparse
import ast
import contextlib
import gzip
import json
import pathlib
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator

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
    with _as_file(_extension) as path:
        if problem == _MARK:
            arguments.problem = str(path)
        else:
            arguments.paths = [path if given == pathlib.Path(_MARK) else given for given in paths]
        yield


@contextlib.contextmanager
def with_configuration(files: list[str]) -> Iterator[list[str]]:
    """Puts a file for ``-`` among a trainer's configuration files."""
    if _MARK not in files:
        yield files
        return
    with _as_file(_kind_of_configuration) as path:
        yield [str(path) if file == _MARK else file for file in files]


@contextlib.contextmanager
def _as_file(kind: Callable[[bytes], str]) -> Iterator[pathlib.Path]:
    """Standard input in a file of this kind; errors call it standard input."""
    with tempfile.TemporaryDirectory() as folder:
        content = sys.stdin.buffer.read()
        if not content.strip():
            raise InputError("standard input is empty")
        path = pathlib.Path(folder, f"stdin.{kind(content)}")
        path.write_bytes(content)
        try:
            yield path
        except InputError as error:
            raise InputError(str(error).replace(str(path), "standard input")) from None


def _kind_of_configuration(content: bytes) -> str:
    """What a configuration of this content would be called; a command line if nothing else."""
    text = content.decode("utf-8-sig", errors="replace")
    if text.lstrip().startswith("{"):
        return "json"
    if not text.startswith("#!"):
        with contextlib.suppress(tomllib.TOMLDecodeError, RecursionError):
            tomllib.loads(text)
            return "toml"
        if re.search(r"Config\(", text) and _is_python(text):
            return "py"
        if re.search(r"^[\w.\"'-]+\s*:(\s|$)", text, re.MULTILINE):
            return "yaml"
    return "sh"


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


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
