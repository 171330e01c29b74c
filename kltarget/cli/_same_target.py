"""``--same-target-as``: the β under which two trainers aim at the same expected reward."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from kltarget._core.numerics import double_precision
from kltarget._core.page import Heading, Page, Paragraph, Table
from kltarget._core.words import compact
from kltarget.cli._config_options import Side
from kltarget.cli._output import InputError, input_errors

_P_REF = (0.1, 0.3, 0.5)


def same_target(side: Side, other: Side) -> tuple[dict[str, float], Page]:
    """The β of ``side`` at which its target earns what that of ``other`` does, and a page of it.

    Rewards are right or wrong and answers one token, by how often the reference is right.
    """
    from kltarget.implied import equivalent_beta

    for one in (other, side):
        if one.recipe.aim == "none":
            kl = "no KL" if one.recipe.place == "none" else "a KL that holds nothing"
            raise InputError(f"--same-target-as: {one.title} has {kl}, so no β gives a target")
    if not other.recipe.beta:
        raise InputError(f"--same-target-as: {other.title} has β = 0 and no target: give it a β")
    rates = np.array(_P_REF)
    log_ref = jnp.log(jnp.asarray(np.stack([rates, 1 - rates], axis=-1)))
    reward = jnp.broadcast_to(jnp.array([1.0, 0.0]), log_ref.shape)
    with input_errors("--same-target-as"), double_precision():
        found = np.asarray(equivalent_beta(other.recipe, reward, log_ref, side.recipe), float)
    betas = dict(zip(map(str, _P_REF), found.tolist(), strict=True))
    said = ("none" if math.isnan(x) else compact(float(f"{x:.4g}")) for x in betas.values())
    rows = [("reference success rate", "β"), *zip(betas, said, strict=True)]
    title = f"β under which {side.title} aims at what {other.title} does"
    text = (
        f"{other.title} has β = {compact(other.recipe.beta)}. The same expected reward at the "
        "target, for right-or-wrong rewards and answers of one token; kltarget.implied."
        "equivalent_beta takes any rewards."
    )
    return betas, Page([Heading(title), Table(rows, "lr"), Paragraph(text)])
