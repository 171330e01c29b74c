"""Inspect's archives (``.eval``): a zip file with a JSON file for every sample."""

from __future__ import annotations

import json
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from kltarget._core.file_kinds import NOT_A_RECORD, Fault, FileError, Row, readable

# Of a large sample, what is not its events and messages is a file in a folder of its own.
_SAMPLE = re.compile(r"samples/.+_epoch_\d+(/sample)?\.json")
# A zip file of a few kilobytes can unpack to any size.
MOST_BYTES = 1 << 28


def is_archive(path: pathlib.Path) -> bool:
    return path.suffix.lower() == ".eval"


def samples_in(
    path: pathlib.Path, advance: Callable[[int], Any] = lambda _: None
) -> Iterator[tuple[str, Row | Fault]]:
    """The samples of an archive, one in memory at a time, with their names in it."""
    with readable(path):
        try:
            with zipfile.ZipFile(path) as archive:
                # A sample that is written again stands twice, and the last counts.
                entries = {entry.filename: entry for entry in archive.infolist()}
                for name, entry in entries.items():
                    if _SAMPLE.fullmatch(name):
                        yield name, _sample(archive, entry)
                        advance(entry.compress_size)
        except zipfile.BadZipFile as error:
            reason = str(error).splitlines()[0]
            raise FileError(f"{path}: not a readable log of Inspect: {reason}") from None
        except NotImplementedError:
            raise FileError(
                f"{path}: packed in a way that this Python cannot unpack (Zstandard): use Python "
                "3.14 or convert it by inspect log convert --to json"
            ) from None


def _sample(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Row | Fault:
    if entry.file_size > MOST_BYTES:
        return Fault(f"{entry.file_size:,} bytes: a sample may have {MOST_BYTES:,}")
    try:
        with archive.open(entry) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            return Fault(f"more than {MOST_BYTES:,} bytes")
        row = json.loads(content)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        if isinstance(error, NotImplementedError):
            raise
        return Fault(f"cannot be unpacked: {error}")
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        return Fault(f"not JSON: {getattr(error, 'msg', error)}")
    return row if isinstance(row, dict) else NOT_A_RECORD
