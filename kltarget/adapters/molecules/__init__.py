"""Real molecules, written as SMILES: a reference trained on them, scaffolds and rewards.

Needs RDKit, ``pip install "kltarget[molecules]"``, which is imported when a molecule is first
looked at. ``data/README.md`` says what the reference was trained on and under which licence.
"""

from kltarget.adapters.molecules._canonical import canonical, scaffold
from kltarget.adapters.molecules._scaffold_reward import ScaffoldReward
from kltarget.adapters.molecules._smiles import decode, encode, load_smiles
from kltarget.adapters.molecules._smiles_reference import smiles_reference, train_on_smiles

__all__ = [
    "ScaffoldReward",
    "canonical",
    "decode",
    "encode",
    "load_smiles",
    "scaffold",
    "smiles_reference",
    "train_on_smiles",
]
