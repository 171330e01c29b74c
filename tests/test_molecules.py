"""Molecules as texts: rewards of scaffolds, and targets of a reference that was trained on them."""

import dataclasses
import gzip
import random
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from hypothesis import given

import kltarget as kt
from kltarget import mixtures, training
from kltarget.adapters import molecules
from kltarget.recipes import Recipe

Chem = pytest.importorskip("rdkit.Chem")
Crippen = pytest.importorskip("rdkit.Chem.Crippen")

PROMPT = "CCOC(=O)CN(C)C(=O)c1"
LENGTH = molecules.smiles_reference()[0].length
SCAFFOLDS = ["c1ccccc1", "c1ccncc1", "c1ccsc1"]

DRUGS = {
    "CC(=O)Oc1ccccc1C(=O)O": "c1ccccc1",  # aspirin
    "CC(=O)Nc1ccc(O)cc1": "c1ccccc1",  # paracetamol
    "CC(C)Cc1ccc(C(C)C(=O)O)cc1": "c1ccccc1",  # ibuprofen
    "NNC(=O)c1ccncc1": "c1ccncc1",  # isoniazid
    "NC(=O)c1cccnc1": "c1ccncc1",  # nicotinamide
    "CCN(CC)C(=O)c1cccnc1": "c1ccncc1",  # nikethamide
    "CN1CCCC1c1cccnc1": "c1cncc(C2CCCN2)c1",  # nicotine
    "Cn1c(=O)c2c(ncn2C)n(C)c1=O": "O=c1[nH]c(=O)c2[nH]cnc2[nH]1",  # caffeine
    "CN(C)C(=N)N=C(N)N": "",  # metformin
    "CCCC(CCC)C(=O)O": "",  # valproic acid
    "O=C(O)c1cccs1": "c1ccsc1",
    "Brc1ccsc1": "c1ccsc1",
}
VALID = 0.786
"""The share of the reference's texts that are molecules, as data/README.md has it."""

BROKEN = ["c1ccccc1(", "CC(C)(C)(C)C", "c1cccc1", "C1CC", ""]


def spellings(smiles, number, seed):
    molecule, rng = Chem.MolFromSmiles(smiles), random.Random(seed)
    order = list(range(molecule.GetNumAtoms()))
    for _ in range(number):
        rng.shuffle(order)
        yield Chem.MolToSmiles(Chem.RenumberAtoms(molecule, order), canonical=False)


@pytest.fixture(scope="module")
def drawn():
    """Texts that the reference draws, and what they spell."""
    policy, params = molecules.smiles_reference()
    texts = policy.sample(params, key=jax.random.key(11), num_samples=512)
    return np.asarray(texts), molecules.decode(texts)


@given(st.lists(st.lists(st.integers(1, 24), max_size=LENGTH), min_size=1, max_size=4))
def test_texts_are_read_as_they_are_written(rows):
    tokens = np.zeros((len(rows), LENGTH), np.int32)
    for row, text in zip(tokens, rows, strict=True):
        row[: len(text)] = text
    assert (molecules.encode(molecules.decode(tokens)) == tokens).all()


def test_what_follows_the_end_is_not_read():
    assert molecules.decode(np.array([[12, 13, 0, 12], [0, 12, 12, 12]])) == ["CCl", ""]


@pytest.mark.parametrize(
    ("smiles", "says"),
    [(["CC", "CCP"], r"smiles\[1\] .*'P'"), (["C" * 37], "of 37 tokens"), (["Cc1\n"], r"'\\n'")],
)
def test_what_is_no_text_is_named(smiles, says):
    with pytest.raises(ValueError, match=says):
        molecules.encode(smiles)


def test_a_set_is_read_from_files_and_from_the_package(tmp_path, monkeypatch):
    lines = "SMILES,SPLIT\nCCO,train\nCCP,train\n" + "C" * 37 + ",train\nClc1ccccc1,train\n"
    plain = tmp_path / "some.csv"
    plain.write_text(lines)
    assert molecules.load_smiles(plain) == ["CCO", "Clc1ccccc1"]
    folder = tmp_path / "moses" / "dataset" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "moses" / "__init__.py").write_text("raise ImportError('it needs much else')")
    with gzip.open(folder / "test.csv.gz", "wt") as file:
        file.write(lines)
    monkeypatch.syspath_prepend(tmp_path)
    assert molecules.load_smiles(part="test") == ["CCO", "Clc1ccccc1"]
    plain.write_text("CCP\n")
    with pytest.raises(ValueError, match="none of 1 lines"):
        molecules.load_smiles(plain)
    with pytest.raises(ValueError, match="'train' or 'test'"):
        molecules.load_smiles(part="all")


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps molsets"):
        molecules.load_smiles()
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ModuleNotFoundError, match=r"kltarget\[molecules\]"):
        molecules.scaffold("CCCCCCCCCCF")


def pruned(smiles):
    """Rings, what links them, and the atoms that double bonds join to either, counted by hand."""
    molecule = Chem.MolFromSmiles(smiles)
    bonds = [(x.GetBeginAtomIdx(), x.GetEndAtomIdx()) for x in molecule.GetBonds()]
    kept = set(range(molecule.GetNumAtoms()))
    while leaves := {
        atom for atom in kept if sum(atom in bond and set(bond) <= kept for bond in bonds) < 2
    }:
        kept -= leaves
    core = kept
    for bond, (i, j) in zip(molecule.GetBonds(), bonds, strict=True):
        if bond.GetBondTypeAsDouble() == 2 and (i in core) != (j in core):
            kept = kept | {i, j}
    return sorted(molecule.GetAtomWithIdx(k).GetSymbol() for k in kept)


def test_scaffolds_are_rings_and_linkers(drawn):
    for smiles, scaffold in DRUGS.items():
        assert molecules.scaffold(smiles) == scaffold
    told = [text for text in drawn[1] if molecules.scaffold(text)][:150]
    assert len(told) == 150
    for text in [*DRUGS, *told]:
        scaffold = Chem.MolFromSmiles(molecules.scaffold(text))
        assert sorted(x.GetSymbol() for x in scaffold.GetAtoms()) == pruned(text)
    assert [molecules.scaffold(text) for text in BROKEN] == [None] * len(BROKEN)


def test_all_spellings_of_a_molecule_are_one():
    reward = molecules.ScaffoldReward(SCAFFOLDS)
    for number, smiles in enumerate(DRUGS):
        found = [x for x in spellings(smiles, 8, number) if len(x) <= LENGTH]
        assert len(set(found)) >= 3
        assert len({molecules.canonical(x) for x in [smiles, *found]}) == 1
        modes = reward.modes(molecules.encode([smiles, *found]))
        assert len(set(modes.tolist())) == 1


def test_rewards_are_those_of_scaffolds():
    reward = molecules.ScaffoldReward(["C1=CC=CC=C1", *SCAFFOLDS[1:]], [1.0, 0.5, 0.25, -1.0])
    assert reward.scaffolds == tuple(SCAFFOLDS)
    texts = molecules.encode([*DRUGS, *BROKEN])
    told = [*DRUGS.values(), *[None] * len(BROKEN)]
    wanted = [SCAFFOLDS.index(x) if x in SCAFFOLDS else -1 for x in told]
    assert reward.modes(texts).tolist() == wanted
    values = np.array([1.0, 0.5, 0.25, -1.0])[wanted]
    assert reward(texts).tolist() == values.tolist()
    assert reward(texts).dtype == oracles.DTYPES[-1]
    assert jax.jit(reward)(texts).tolist() == values.tolist()
    twice = jax.vmap(reward)(jnp.stack([texts, texts[::-1]]))
    assert twice.tolist() == [values.tolist(), values[::-1].tolist()]
    slope = jax.grad(lambda r: dataclasses.replace(reward, rewards=r)(texts).sum())(reward.rewards)
    assert slope.tolist() == [wanted.count(k) for k in (0, 1, 2, -1)]


def test_what_else_is_asked_of_a_molecule():
    reward = molecules.ScaffoldReward(SCAFFOLDS, accept=lambda mol: Crippen.MolLogP(mol) < 1.5)
    told = zip(DRUGS, reward.modes(molecules.encode(DRUGS)).tolist(), strict=True)
    for text, mode in told:
        light = Crippen.MolLogP(Chem.MolFromSmiles(text)) < 1.5
        assert (mode >= 0) == (light and DRUGS[text] in SCAFFOLDS)


def test_new_rewards_are_not_compiled_anew():
    traces = []

    @jax.jit
    def earned(reward, texts):
        traces.append(reward.scaffolds)
        return reward(texts)

    texts = molecules.encode(DRUGS)
    for scale in (1.0, 2.0):
        reward = molecules.ScaffoldReward(SCAFFOLDS, [scale, scale, scale, 0.0])
        assert float(earned(reward, texts).max()) == scale
    assert len(traces) == 1


def test_a_prompt_is_what_every_text_begins_with():
    """The law of what follows is the conditional one, and rewards read both."""
    whole, params = molecules.smiles_reference()
    policy, begun = molecules.smiles_reference(PROMPT)
    ends = ["ccccc1", "ccsc1", "ccc(Cl)cc1", "ccc2ccccc2c1"]
    texts = molecules.encode([PROMPT + end for end in ends])
    rest = texts[:, whole.length - policy.length :]
    assert molecules.decode(rest) == ends
    log_probs = np.asarray(whole.log_probs(params, texts))[:, whole.length - policy.length :]
    assert np.allclose(policy.log_probs(begun, rest), log_probs, atol=1e-4)
    reward = molecules.ScaffoldReward(SCAFFOLDS, prompt=PROMPT)
    assert reward.modes(rest).tolist() == [0, 2, 0, -1]
    assert dataclasses.replace(reward, prompt="").modes(rest).tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: molecules.smiles_reference("C" * 36), "of all 36 tokens"),
        (lambda: molecules.ScaffoldReward(["c1ccccc1", "C1=CC=CC=C1"]), "twice"),
        (lambda: molecules.ScaffoldReward(["Cc1ccccc1"]), "scaffold of no molecule"),
        (lambda: molecules.ScaffoldReward(["CC"]), "scaffold of no molecule"),
        (lambda: molecules.ScaffoldReward(["c1cccc1"]), "scaffold of no molecule"),
        (lambda: molecules.ScaffoldReward(["c1ccccc1"], [1.0]), r"rewards has shape \(1,\)"),
        (lambda: molecules.train_on_smiles([], key=jax.random.key(0)), "no molecule to train on"),
    ],
)
def test_bad_arguments_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def listed(dtype):
    """A law over the drugs and texts that are none, with their modes as told by hand."""
    texts = [*DRUGS, *BROKEN[:3]]
    told = [*DRUGS.values(), *[None] * 3]
    modes = np.array([SCAFFOLDS.index(x) if x in SCAFFOLDS else 3 for x in told])
    log_ref = oracles.log_normalised(-0.6 * np.arange(len(texts)) % 4.0, dtype)
    return molecules.encode(texts), modes, log_ref


LAWS = [
    kt.ReverseKL(),
    kt.ForwardKL(),
    pytest.param(kt.JensenShannon(), marks=pytest.mark.broad),
]


@pytest.mark.precise
@pytest.mark.parametrize("divergence", LAWS, ids=lambda x: x.name)
def test_a_target_over_molecules_is_one_over_scaffolds(divergence):
    """Exact sums over a list of molecules, against K + 1 outcomes and against samples."""
    dtype = oracles.DTYPES[-1]
    texts, modes, log_ref = listed(dtype)
    reward = molecules.ScaffoldReward(SCAFFOLDS, np.array([1.0, 1.0, 0.6, 0.0], dtype))
    beta = dtype.type(0.4)
    exact = kt.solve(kt.Objective(reward(texts), log_ref, beta, divergence))
    masses = np.bincount(modes, np.asarray(exact.probs, float), 4)
    log_masses = np.log(np.bincount(modes, np.exp(np.asarray(log_ref, float)), 4)).astype(dtype)
    few = kt.solve(kt.Objective(reward.rewards, log_masses, beta, divergence))
    tight = 200 * oracles.eps(dtype)
    assert np.allclose(few.probs, masses, atol=tight)
    assert np.allclose(few.value, exact.value, atol=tight)

    which = jax.random.categorical(jax.random.key(4), log_ref, shape=(4000,))
    one_hot = jnp.eye(4, dtype=dtype)[reward.modes(texts[which])]
    told = mixtures.solve_on_samples(one_hot, reward(texts[which]), beta, divergence)
    apart = np.asarray(told.expectation(lambda x: x)) - masses
    errors = np.asarray(told.expectation_error(lambda x: x))
    assert (np.abs(apart) < 4 * errors).all()
    assert (errors < 0.03).all()
    assert 1000 < told.effective_sample_size < 4000


def test_the_reference_writes_molecules(drawn):
    """As often as the data's notes say; and real molecules are likelier than shuffled ones."""
    _, spelt = drawn
    valid = np.mean([molecules.canonical(text) is not None for text in spelt])
    assert abs(valid - VALID) < 4 * (VALID * (1 - VALID) / len(spelt)) ** 0.5
    assert len(set(spelt)) > 0.97 * len(spelt)
    policy, params = molecules.smiles_reference()
    rng = random.Random(0)
    shuffled = ["".join(rng.sample(text, len(text))) for text in DRUGS if "Br" not in text]
    real = policy.log_probs(params, molecules.encode(DRUGS)).sum(-1)
    mixed = policy.log_probs(params, molecules.encode(shuffled)).sum(-1)
    assert float(real.mean() - mixed.mean()) > 20


@pytest.mark.slow
def test_runs_end_nearer_to_the_target_over_scaffolds():
    """By samples of what was trained; rare scaffolds that are paid for come up."""
    policy, params = molecules.smiles_reference(PROMPT)
    reward = molecules.ScaffoldReward(SCAFFOLDS, prompt=PROMPT)
    size = 2048
    drawn = policy.sample(params, key=jax.random.key(0), num_samples=size)
    masses = np.bincount(np.asarray(reward.modes(drawn)) % 4, minlength=4) / size
    log_masses = kt.normalize(np.log(masses).astype(np.float32))
    lifted = kt.mara(kt.Objective(reward.rewards.astype(np.float32), log_masses, 0.7), 1.0)
    law = kt.solve(lifted)
    run = training.fine_tune_on_texts(
        policy,
        params,
        dataclasses.replace(reward, rewards=lifted.reward),
        Recipe("reward", "k1", baseline="leave-one-out"),
        beta=0.7,
        batch_size=128,
        key=jax.random.key(1),
        learning_rate=0.03,
        optimizer=clipped,
        num_steps=20,
        history_every=20,
        num_measured=64,
    )
    own = policy.sample(run.of(()), key=jax.random.key(2), num_samples=size)
    found = np.asarray(reward.modes(own))
    log_ratio = policy.log_probs(run.of(()), own).sum(-1) - policy.log_probs(params, own).sum(-1)
    distance = np.asarray(log_ratio) - np.asarray(law.log_probs - log_masses)[found]
    error = distance.std() / size**0.5
    assert distance.mean() + 6 * error < kt.kl(log_masses, law.log_probs)
    rare = np.isin(found, [1, 2]).mean()
    assert rare - masses[1:3].sum() > 6 * (rare * (1 - rare) / size) ** 0.5


def clipped(rate):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate, momentum=0.9))
