"""Files that appear whole or not at all, whenever the process is killed."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import IO, Any

UNFINISHED = ".*.unfinished"
"""The names of what is not whole yet, a pattern for ``glob``."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A path to write a file or a folder to, which takes the place of another when it is whole.

    It is beside that place. Where the block raises, what is there stays as it was.
    """
    # As ``open`` does, a link is followed.
    place = pathlib.Path(os.path.realpath(path))
    part = place.with_name(f".{place.name}.{secrets.token_hex(4)}.unfinished")
    try:
        yield part
        if place.is_dir() and part.is_dir():
            shutil.rmtree(place)
        elif place.is_file():
            os.chmod(part, place.stat().st_mode)
        os.replace(part, place)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == os.fspath(part):
            error.filename = os.fspath(path)
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def open_whole(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file to be written, as text ("w") or bytes ("wb"), which appears when it is whole.

    Its permissions are those that ``open`` would give. What is no file, a pipe or a terminal, is
    written to as it is.
    """
    encoding = None if "b" in mode else "utf-8"
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, mode, encoding=encoding) as file:
            yield file
        return
    with replacing(path) as part, open(part, mode, encoding=encoding) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
