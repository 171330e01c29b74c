"""How many combinations of a recipe's fields have a target that is known, and where training ends.

Draws combinations at random, asks ``implied_target`` for each, and trains a table of logits with
exact gradients: ``python benchmarks/combinations.py --number 300``.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
from typing import Any

import jax
import numpy as np

SIZES = {"one token": (5, 1, None), "two tokens": (3, 2, None), "with an end": (3, 2, 2)}
STEPS = 9000
LONG = 25_000
"""Controllers swing around what they keep."""
CLOSE = 1e-3


def draw(rng: random.Random) -> dict[str, Any]:
    """Fields at random: those of old as likely as not, of the others a few."""
    fields: dict[str, Any] = {
        "place": rng.choice(["reward", "loss", "loss", "none"]),
        "estimator": rng.choice(["k1", "k2", "k3", "weighted-k1", "weighted-k3", "swapped-k3"]),
        "level": rng.choice(["sequence", "token"]),
        "baseline": rng.choice(["none", "mean", "leave-one-out"]),
        "normalize": rng.choice(["none", "none", "group-std", "batch-std", "group-mean"]),
        "normalize_when": rng.choice(["before", "after"]),
        "epsilon": 1e-3,
        "group_size": rng.choice([None, None, 3]),
        "length": rng.choice(["sum", "sum", "mean", "batch-mean"]),
    }
    if fields["place"] == "reward":
        fields["estimator"] = "k1"
    if fields["place"] == "loss" and fields["estimator"] == "k1":
        fields["estimator"] = "k2"
    seldom: list[dict[str, Any]] = [
        {"entropy_bonus": 0.1},
        {"zero_std": "drop"},
        {"renormalize": rng.choice(["batch-std", "mean-abs"])},
        {"advantage_clip": 0.8},
        {"reward_weights": (1.0, 0.5), "combine": rng.choice(["sum", "normalize-then-sum"])},
        {"temperature": rng.choice([0.7, 1.3])},
        {"reference": "copied", "reference_every": STEPS // 3},
        {
            "reference": "averaged",
            "reference_every": STEPS // 3,
            "reference_share": rng.choice([0.4, 0.6]),
        },
        {"reference": "none"},
        {"reference": "lagged", "reference_every": 50},
        {"teacher": 0.3, "teacher_direction": rng.choice(["reverse", "forward"])},
        {"teacher": 0.3, "teacher_top_k": 2, "level": "token"},
        {"kl_target": 0.1},
        {"entropy_target": 0.9},
        {"charge": "own", "place": "reward", "level": "token", "estimator": "k1"},
        {"kl_centre": "batch-mean", "place": "reward", "level": "token", "estimator": "k1"},
        {"ratio_level": "sequence"},
        {"eos": "cut", "level": "token"},
    ]
    for further in rng.sample(seldom, rng.choice([1, 1, 2, 2, 3])):
        fields |= further
    return fields


def tried(fields: dict[str, Any], where: str, seed: int) -> tuple[str, str]:
    """What became of one combination, and what is to be said of it."""
    import jax.numpy as jnp

    import kltarget as kt
    from kltarget.implied import implied_target
    from kltarget.policies import TabularPolicy
    from kltarget.recipes import Recipe
    from kltarget.training import fine_tune

    vocab_size, length, eos = SIZES[where]
    try:
        recipe = Recipe(**fields)
    except ValueError as error:
        return "makes no sense", str(error)
    policy = TabularPolicy(vocab_size, length, eos, init_scale=0.7)
    space = kt.SequenceSpace(vocab_size, length, eos)
    params = policy.init(key=jax.random.key(seed))
    params = jax.tree.map(lambda x: x.astype(float), params)
    log_ref = space.joint(policy.conditionals(params, space))
    several = recipe.reward_weights is not None
    rng = np.random.default_rng(seed)
    shape = (2, space.num_sequences) if several else (space.num_sequences,)
    # Finite groups of many different rewards are too many to sum over.
    levels = 2 if recipe.group_size else 3
    reward = rng.integers(0, levels, shape) / (levels - 1)
    given: dict[str, Any] = {}
    if recipe.teacher:
        other = jax.tree.map(lambda x: x.astype(float), policy.init(key=jax.random.key(seed + 99)))
        given["log_teacher"] = space.joint(policy.conditionals(other, space))
    beta = None if recipe.kl_target is not None else 0.4
    moves = recipe.reference in ("copied", "averaged")
    try:
        target = implied_target(
            recipe,
            jnp.asarray(reward),
            log_ref,
            space=space,
            beta=beta,
            num_syncs=2 if moves else None,
            **given,
        )
    except ValueError as error:
        return "refused", str(error)
    probs = np.asarray(target.probs)
    status = kt.Status(int(target.status))
    if status & kt.Status.NO_TARGET or np.isnan(probs).any():
        return "none", str(status)
    controlled = recipe.kl_target is not None or recipe.entropy_target is not None
    run = fine_tune(
        policy,
        params,
        jnp.asarray(reward),
        recipe,
        beta=beta,
        learning_rate=0.003 if controlled else 0.01,
        num_steps=LONG if controlled else STEPS,
        history_every=None,
        gradient_tol=1e-8,
        **given,
    )
    found = np.exp(np.asarray(run.log_probs))
    apart = 0.5 * np.abs(found - probs).sum()
    said = f"{apart:.1e} {status!s}"
    if apart < (2e-2 if status & kt.Status.SATURATED else CLOSE):
        return "solved", said
    best = found[probs > 1e-6].sum()
    if status & kt.Status.SATURATED and best > 0.98:
        # On the best outcomes, but shared out by the path: steps grow as deviations vanish.
        return "saturated", said
    return "DIFFERS", said


def main() -> None:
    """Prints each combination that is not solved, and how many are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print the solved ones too")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # noqa: TID251
    rng, counts, made = random.Random(options.seed), collections.Counter(), 0
    while made < options.number:
        fields, where = draw(rng), rng.choice(list(SIZES))
        outcome, said = tried(fields, where, made)
        if outcome == "makes no sense":
            continue
        made += 1
        counts[outcome] += 1
        if outcome != "solved" or options.show:
            print(f"{made:4d} {outcome:8s} {where}: {said}\n     {json.dumps(fields)}", flush=True)
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
