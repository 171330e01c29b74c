"""What RDKit says of a molecule."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any


def canonical(smiles: str) -> str | None:
    """RDKit's canonical SMILES of a molecule, the same of all its spellings.

    Args:
        smiles: a text.

    Returns:
        The canonical text; None if the text is no molecule: it does not parse, a valence is
        wrong, an aromatic ring cannot be, or it is empty.

    Raises:
        ModuleNotFoundError: ``kltarget[molecules]`` is not installed.

    Example:
        >>> from kltarget.adapters import molecules
        >>> (
        ...     molecules.canonical("C1=CC=CC=C1O"),
        ...     molecules.canonical("c1ccccc1("),
        ...     molecules.canonical(""),
        ... )
        ('Oc1ccccc1', None, None)
    """
    return _names(smiles)[0]


def scaffold(smiles: str) -> str | None:
    """The Bemis–Murcko scaffold of a molecule: its rings and what links them.

    Args:
        smiles: a text.

    Returns:
        The scaffold's canonical SMILES, empty of a molecule without a ring; None of no molecule.

    Raises:
        ModuleNotFoundError: ``kltarget[molecules]`` is not installed.

    Example:
        >>> from kltarget.adapters import molecules
        >>> molecules.scaffold("CC(=O)Oc1ccccc1C(=O)O"), molecules.scaffold("CCO")
        ('c1ccccc1', '')

    References:
        Bemis and Murcko, "The Properties of Known Drugs. 1. Molecular Frameworks", 1996; as RDKit
        has it, with the atoms that double bonds join to rings and linkers.
    """
    return _names(smiles)[1]


@contextlib.contextmanager
def rdkit() -> Iterator[Any]:
    """RDKit's ``Chem``, which does not log each text that is no molecule."""
    try:
        from rdkit import Chem, rdBase
    except ImportError:
        raise ModuleNotFoundError(
            'molecules need RDKit: pip install "kltarget[molecules]"', name="rdkit"
        ) from None
    with rdBase.BlockLogs():
        yield Chem


@functools.lru_cache(maxsize=1 << 18)
def _names(smiles: str) -> tuple[str | None, str | None]:
    with rdkit() as chem:
        molecule = chem.MolFromSmiles(smiles) if smiles else None
        if molecule is None:
            return None, None
        from rdkit.Chem.Scaffolds.MurckoScaffold import GetScaffoldForMol

        return chem.MolToSmiles(molecule), chem.MolToSmiles(GetScaffoldForMol(molecule))
