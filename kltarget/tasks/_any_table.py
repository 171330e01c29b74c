"""A table as users have it, in a file or in memory, as columns of untyped entries."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from kltarget.tasks._raw_table import RawTable, TableError, read_raw


@runtime_checkable
class Frame(Protocol):
    """A table in memory, as pandas and polars have them."""

    @property
    def columns(self) -> Any: ...

    def __getitem__(self, name: Any, /) -> Any: ...


def raw_of(table: Any, name: str, argument: str = "table") -> RawTable:
    """The table of a path, of a DataFrame or of a dictionary of columns.

    Args:
        table: one of these.
        name: what messages call a table that is in no file.
        argument: what they call the argument.
    """
    if isinstance(table, str | os.PathLike):
        return read_raw(pathlib.Path(table))
    if isinstance(table, Mapping):
        given = {str(name): x for name, x in table.items()}
    elif isinstance(table, Frame):
        given = {str(name): table[name] for name in table.columns}
    else:
        raise TypeError(
            f"{argument} must be the path of a table, a DataFrame or a dictionary of columns, got "
            f"{type(table).__name__}"
        )
    # Of a list of chats each is an entry; NumPy would make axes of them.
    entries = {name: x.tolist() if hasattr(x, "tolist") else list(x) for name, x in given.items()}
    lengths = {name: len(x) for name, x in entries.items()}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise TableError(f"{name}: the columns differ in length: {listing}")
    size = max(lengths.values(), default=0)
    if not size:
        raise TableError(f"{name}: there are no rows, only the columns {list(entries)}")
    return RawTable(pathlib.Path(name), entries, [None] * size)
