"""That annotations are enforced: a package whose annotations are false is found out."""

import importlib

import jax.numpy as jnp
import pytest
from annotations import AnnotationError, enforce

import kltarget as kt

LIAR = """
import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Pair:
    one: Float[Array, "*batch A"]
    other: Float[Array, "*batch"]

    @property
    def both(self) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        return self.one, self.other


def counted(x) -> Int[Array, "A"]:
    return x
"""


def test_false_annotations_are_found(tmp_path, monkeypatch):
    (tmp_path / "liar.py").write_text(LIAR)
    monkeypatch.syspath_prepend(tmp_path)
    enforce("liar")
    liar = importlib.import_module("liar")
    row, table = jnp.zeros(3), jnp.zeros((3, 2))
    assert liar.counted(jnp.arange(2)).tolist() == [0, 1]
    pair = liar.Pair(table, row)
    for call in (
        lambda: liar.counted(row),
        lambda: liar.Pair(table, table),
        lambda: liar.Pair(table, [0.0] * 3),
        lambda: pair.both,
    ):
        with pytest.raises(AnnotationError):
            call()


def test_those_of_the_library_are_enforced():
    objective = kt.Objective(jnp.zeros(2), jnp.log(jnp.ones(2) / 2), 1.0)
    with pytest.raises(AnnotationError, match=r"Target\.multiplier"):
        kt.Target(objective, objective.log_ref, objective.log_ref[None], jnp.int32(0))
