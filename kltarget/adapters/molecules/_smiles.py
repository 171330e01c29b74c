"""Molecules as texts: the characters of SMILES, and a set of real ones."""

from __future__ import annotations

import gzip
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Literal

import numpy as np
from jaxtyping import Int

VOCABULARY = ("", *"#()-12345=", "Br", "C", "Cl", *"FHNOS[]cnos")
"""What tokens stand for. The first is the end of a text; Br and Cl are one each."""

LENGTH = 36
"""Tokens of a text, its end not counted."""

_TOKENS = re.compile("Br|Cl|.", re.DOTALL)
_NUMBERS = {token: number for number, token in enumerate(VOCABULARY)}


def encode(smiles: Iterable[str]) -> Int[np.ndarray, "N T"]:
    """SMILES as texts of the reference: a token for each character, Br and Cl one each.

    Args:
        smiles: N molecules.

    Returns:
        int32 of shape ``[N, 36]``, filled up with 0, the token that ends a text.

    Raises:
        ValueError: a molecule of more than 36 tokens, or with a character that is none of
            ``# ( ) - 1 2 3 4 5 = Br C Cl F H N O S [ ] c n o s``.

    Example:
        >>> from kltarget.adapters import molecules
        >>> molecules.encode(["Clc1ccccc1"])[0, :4].tolist()
        [13, 21, 5, 21]
        >>> molecules.decode(molecules.encode(["Clc1ccccc1"]))
        ['Clc1ccccc1']
    """
    texts = []
    for number, molecule in enumerate(smiles):
        if unknown := sorted(set(_TOKENS.findall(molecule)) - set(_NUMBERS)):
            raise ValueError(
                f"smiles[{number}] is {molecule!r}: {', '.join(map(repr, unknown))} is no token of "
                f"{' '.join(VOCABULARY[1:])}"
            )
        texts.append([_NUMBERS[token] for token in _TOKENS.findall(molecule)])
        if len(texts[-1]) > LENGTH:
            raise ValueError(
                f"smiles[{number}] is {molecule!r}, of {len(texts[-1])} tokens: a text has at most "
                f"{LENGTH}"
            )
    tokens = np.zeros((len(texts), LENGTH), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return tokens


def decode(tokens: Int[np.ndarray, "N T"]) -> list[str]:
    """Texts as they are written: what :func:`encode` was given, a molecule or not.

    Args:
        tokens: integers of shape ``[N, T]``; what follows the first 0 is not read.

    Returns:
        N strings.
    """
    tokens = np.asarray(tokens)
    going = np.logical_and.accumulate(tokens != 0, axis=-1)
    table = np.array(VOCABULARY)
    return ["".join(row) for row in table[np.where(going, tokens, 0)]]


def load_smiles(
    path: str | os.PathLike[str] | None = None, *, part: Literal["train", "test"] = "train"
) -> list[str]:
    """Real molecules, as many of a set as fit the reference's texts.

    Args:
        path: a text file of SMILES, one first on each line, plain or gzipped; a first line that
            says ``SMILES`` is none. By default the set of the package molsets, MOSES, which
            ``pip install --no-deps molsets`` installs: nothing of it is imported.
        part: of that set.

    Returns:
        Those that :func:`encode` takes, in the file's order; of MOSES that is 55 in a hundred.

    Raises:
        ModuleNotFoundError: no path is given and molsets is not installed.
        ValueError: an unknown part, or a file none of whose lines fits.

    References:
        Polykovskiy et al., "Molecular Sets (MOSES): A Benchmarking Platform for Molecular
        Generation Models", 2018, arXiv 1811.12823.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part must be 'train' or 'test', got {part!r}")
    path = _moses() / f"{part}.csv.gz" if path is None else pathlib.Path(path)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        first = (re.split(r"[,\s]", line, maxsplit=1)[0] for line in file)
        molecules = [smiles for smiles in first if smiles not in ("", "SMILES")]
    known = re.compile(f"(?:{'|'.join(map(re.escape, VOCABULARY[1:]))}){{1,{LENGTH}}}")
    fit = [smiles for smiles in molecules if known.fullmatch(smiles)]
    if not fit:
        raise ValueError(
            f"{path}: none of {len(molecules)} lines is a molecule of at most {LENGTH} tokens of "
            f"{' '.join(VOCABULARY[1:])}"
        )
    return fit


def _moses() -> pathlib.Path:
    """The folder of the set, found without importing its package, which needs much else."""
    spec = importlib.util.find_spec("moses")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "the MOSES set is a part of molsets: pip install --no-deps molsets, or give a path"
        )
    return pathlib.Path(spec.submodule_search_locations[0]) / "dataset" / "data"
