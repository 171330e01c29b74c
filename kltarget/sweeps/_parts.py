"""Long sweeps in a folder: a part per file, and a manifest that says what they are parts of.

A file with a part's name is a whole part, whenever the process is killed. One job at a time may
write to a folder; the processes of a job that ``jax.distributed`` has joined write parts of their
own.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core import processes
from kltarget._core.files import UNFINISHED, open_whole
from kltarget.sweeps._dataset import dataset

if TYPE_CHECKING:
    import xarray

Arrays = dict[str, np.ndarray]

_MANIFEST = "manifest.json"
_PAUSE = 0.05
"""Seconds between two looks for a part of another process."""


class Parts:
    """The parts of one sweep in a folder, which is made if there is none.

    Args:
        folder: where they are, or shall be.
        manifest: what they are parts of; written to a new folder and compared with an old one.
    """

    def __init__(self, folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> None:
        self.folder, self.num_parts = pathlib.Path(folder), int(manifest["num_parts"])
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _MANIFEST
        # What JSON makes of it, tuples as lists, is what will be read again.
        manifest = json.loads(json.dumps(manifest))
        # In this order: another process may write the manifest, and then parts, meanwhile.
        begun = any(self.folder.glob("part-*.npz"))
        if begun and not path.exists():
            raise ValueError(f"folder {folder} has parts but no {_MANIFEST}: give another one")
        if not path.exists() and processes.is_mine(0):
            with open_whole(path) as file:
                json.dump(manifest, file, indent=1)
        while not path.exists():
            time.sleep(_PAUSE)
        _require_equal(json.loads(path.read_text("utf-8")), manifest, self.folder)
        for leftover in self.folder.glob(UNFINISHED):
            number = re.match(r"\.part-(\d+)", leftover.name)
            # What another process is writing is no leftover.
            if processes.is_mine(int(number[1]) if number else 0):
                leftover.unlink(missing_ok=True)

    def own_first(self) -> list[int]:
        """The numbers of the parts: those for this process to write, then those of others."""
        return sorted(range(self.num_parts), key=lambda number: not processes.is_mine(number))

    def get(self, number: int) -> Arrays | None:
        """A part, if it has been written; one of another process is waited for.

        JAX ends this process when it hears no more of one of the others.
        """
        path = _part(self.folder, number)
        while not path.exists():
            if processes.is_mine(number):
                return None
            time.sleep(_PAUSE)
        return _read_arrays(path)

    def put(self, number: int, arrays: Arrays) -> None:
        """Writes a part."""
        with open_whole(_part(self.folder, number), "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def _part(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"part-{number:06}.npz"


def is_folder_of_parts(path: pathlib.Path) -> bool:
    """Whether a sweep was begun there."""
    return (path / _MANIFEST).is_file()


def load_parts(folder: pathlib.Path) -> xarray.Dataset:
    """The sweep in a folder, if it is complete."""
    manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
    paths = [_part(folder, i) for i in range(manifest["num_parts"])]
    missing = sum(not path.exists() for path in paths)
    if missing:
        raise ValueError(
            f"{folder}: {missing} of {len(paths)} parts are missing: run the same sweep with this "
            "folder to finish it"
        )
    found = [_read_arrays(path) for path in paths]
    arrays = joined(found, len(manifest["frame"]["divergence"]))
    return dataset(manifest["frame"], manifest["settings"], arrays)


def joined(parts: list[Arrays], num_divergences: int) -> Arrays:
    """All rows of all divergences: arrays ``[D, N, …]``."""
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: x.reshape(num_divergences, -1, *x.shape[1:]) for name, x in rows.items()}


def _require_equal(there: Mapping[str, Any], here: Mapping[str, Any], folder: pathlib.Path) -> None:
    old, new = there["settings"], here["settings"]
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            raise ValueError(
                f"folder {folder} holds parts of a sweep with {name} = {_short(old.get(name))}, "
                f"and this one has {_short(new.get(name))}: give another folder"
            )
    if there != here:
        raise ValueError(f"folder {folder} holds parts of another sweep: give another folder")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]} … ({len(text):,} characters)"


def _read_arrays(path: pathlib.Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
