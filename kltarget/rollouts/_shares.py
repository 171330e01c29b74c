"""Files that the processes of a job read together: each a share, and all get the whole."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping

from kltarget._core import processes
from kltarget.rollouts._gather import Asked, Gathered, gather
from kltarget.rollouts._log_files import Reading
from kltarget.rollouts.formats._format import Format


def gathered_by_all(files: Mapping[pathlib.Path, Format], asked: Asked, progress: bool) -> Gathered:
    """What ``gather`` returns, read by all processes that ``jax.distributed`` has joined.

    What is wrong, or depends on what other files hold, is read once more by each of them, so that
    all say what one would have said.
    """
    if not processes.are_several() or len(files) < 2:
        return gather(files, asked, progress, alone=len(files) == 1)
    own: Gathered | None = None
    try:
        own = gather(_share(files), asked, progress, alone=False)
        own.reading.advance = Reading.advance
    except Exception:
        own = None
    whole = _joined(processes.exchanged(own))
    return whole or gather(files, asked, progress, alone=False)


def _share(files: Mapping[pathlib.Path, Format]) -> dict[pathlib.Path, Format]:
    """The files of this process: neighbours of about an equal number of bytes."""
    count, own = processes.count(), processes.index()
    sizes = [path.stat().st_size for path in files]
    ends = list(itertools.accumulate(sizes))
    total = max(ends[-1], 1)
    middles = [end - size / 2 for end, size in zip(ends, sizes, strict=True)]
    of = [min(int(middle * count / total), count - 1) for middle in middles]
    return {path: format for (path, format), i in zip(files.items(), of, strict=True) if i == own}


def _joined(shares: list[Gathered | None]) -> Gathered | None:
    """All shares as one, None if there is none of a process, or they do not fit each other."""
    whole = [share for share in shares if share is not None]
    # What a tracker logs twice may stand in the files of two processes.
    if len(whole) < len(shares) or sum(bool(share.reading.seen) for share in whole) > 1:
        return None
    first, *others = whole
    for other in others:
        if not first.origin.extend(other.origin):
            return None
        if not all(x.extend(y) for x, y in zip(first.parts, other.parts, strict=True)):
            return None
        first.reading.extend(other.reading)
    return first
