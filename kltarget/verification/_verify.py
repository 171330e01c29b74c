"""The comparison itself: every policy, recipe, β, reward scale and seed."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int, PRNGKeyArray

from kltarget._core.ahead import compiled_ahead
from kltarget._core.progress import progress_bar
from kltarget._core.words import counted as numbered
from kltarget.policies import Policy, TabularPolicy
from kltarget.recipes import Recipe
from kltarget.spaces import SequenceSpace
from kltarget.spaces._sequences import counted
from kltarget.tasks import ProblemLike, Task
from kltarget.training import Run, fine_tune
from kltarget.verification._annealed_adam import annealed_adam
from kltarget.verification._exact_targets import exact_targets, followable, own_target
from kltarget.verification._judge import Judge, described
from kltarget.verification._report import Check, Report, VerifiedRun
from kltarget.verification._verified_problem import starting_policies, verified_task

RECIPES = (
    Recipe("reward", "k1", "sequence", "leave-one-out"),
    Recipe("loss", "k3", "sequence", "leave-one-out"),
    Recipe("loss", "k2", "token", "leave-one-out"),
    Recipe("loss", "k3", "token", "leave-one-out"),
)
"""One recipe for each of the four targets."""
ALL_RECIPES = (
    *RECIPES,
    Recipe("reward", "k1", "token", "leave-one-out"),
    Recipe("loss", "k2", "sequence", "leave-one-out"),
    Recipe("loss", "weighted-k3", "sequence", "leave-one-out"),
    Recipe("loss", "weighted-k3", "token", "leave-one-out"),
)
"""Every recipe that has a target."""

_JITTER = 0.1


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during :func:`verify`.

    Attributes:
        report: that of the runs that were finished, one check of which fails; None if none was.
    """

    def __init__(self, report: Report | None) -> None:
        super().__init__("verify was interrupted")
        self.report = report


def verify(
    problem: ProblemLike = "words-3",
    *,
    key: PRNGKeyArray,
    space: SequenceSpace | None = None,
    modes: Int[ArrayLike, "A"] | None = None,
    policies: Sequence[str] | Mapping[str, tuple[Policy, Any]] = ("tabular", "gru"),
    recipes: Sequence[Recipe] = RECIPES,
    beta: ArrayLike | Sequence[float] = (0.1, 0.3, 1.0),
    reward_scale: ArrayLike | Sequence[float] = (1.0, 2.0),
    num_seeds: int = 2,
    num_steps: int | Mapping[str, int] | None = None,
    learning_rate: float | Mapping[str, float] | None = None,
    batch_size: int | None = None,
    bar: float = 1e-4,
    progress: bool = False,
) -> Report:
    """Fine-tunes policies on ``E_π[reward_scale · reward] − beta · D(π, π_ref)`` and compares.

    For every policy, recipe, beta, reward scale and seed a copy is trained by gradients and then
    held against four targets: the maximisers of the objective on whole sequences with reverse and
    with forward KL (:func:`kltarget.solve`), and the fixed points of per-token losses with either
    (:func:`kltarget.token_local_target`). Which one a recipe aims at follows from its gradient:
    k1 in the reward from the sequence's reverse KL; in the loss, k2 and weighted k3 from reverse
    and k3 from forward KL, at the level at which they are applied.

    All β and reward scales of a policy and a recipe train at once in one compiled program, which
    every seed runs again. Training has the precision of the parameters, comparisons are made in
    float64.

    Args:
        problem: in any form that :func:`kltarget.tasks.as_task` takes: a task, the name of one, the
            path of a table, an objective, whose beta is not used, or arrays ``(reward, log_ref)``
            of shape ``[V**L]``. Rewards are finite wherever the reference has mass. A task's
            ``policy`` and ``params``, if any, are the trained reference. By default it is the
            strings of three letters; the reference is a small GRU, and right is a listed word.
        key: random key of everything that is random.
        space: the sequences that the outcomes are; by default the task's, or sequences of one
            token.
        modes: integer mode labels, negative in no mode, shape ``[V**L]``; by default the task's, or
            each right sequence is one.
        policies: of ``"tabular"``, which starts exactly at the reference, ``"gru"`` and
            ``"transformer"``, which are the task's own or learn to imitate the reference first; or
            a mapping from names of your own to ``(policy, params)``.
        recipes: how the regulariser is applied, by default one recipe per target.
        beta: coefficients of the regulariser, in reward units per nat, shape ``[B]``.
        reward_scale: factors of the reward, shape ``[S]``.
        num_seeds: how many times to train each. With exact gradients the first seed starts at the
            policy's parameters and every other with noise of a tenth of each array's root mean
            square; with sampled gradients they differ in what is drawn.
        num_steps: most steps of a run, or by policy; by default 500 of a tabular policy and 300 of
            others. The learning rate falls to 0 along half a cosine.
        learning_rate: of Adam, or by policy; by default 0.3 of a tabular policy and 0.02 of others.
        batch_size: samples per step; None follows the exact gradient.
        bar: total variation within which a tabular policy must end at its target with exact
            gradients. With sampled ones the mean policy over the seeds must be within this plus
            three standard errors, summed over the sequences; this needs at least 4 seeds.
        progress: show a bar, from the first second.

    Returns:
        The report. Its checks are: no run diverged; tabular policies within the bar; ``J* − J(π) =
        β·KL(π‖π*)`` for reverse KL to a relative 1e-9; the Frank–Wolfe bound of training no less
        than the true gap ``J* − J(π)``. Runs that end further than ``bar`` from their target are
        told apart by what keeps them there: the recipe still pulls at each token of each prefix,
        and at least half of that pull, in the squared norm that the policy weighs, is either
        something a natural-gradient step could follow (``"optimisation"``: the training was not
        finished) or not (``"family"``: the gradient has vanished where the policy can move at all,
        the target is not in its family). The step is that of 100
        conjugate-gradient iterations, whose share is a lower bound: with more of them, or more
        training, some of what counts as family may turn out to be optimisation along directions
        that gradients hardly feel.

    Raises:
        ValueError: arrays that do not fit or are not finite, unknown names, no runs.
        kltarget.verification.Interrupted: Ctrl-C, a ``KeyboardInterrupt`` whose ``report`` is that
            of the runs that were finished.

    Not to be called under a trace.

    Example:
        >>> import jax
        >>> from kltarget.verification import RECIPES, verify
        >>> options = {"policies": ["tabular"], "recipes": RECIPES[:1], "num_seeds": 1}
        >>> report = verify("one-two", key=jax.random.key(0), **options)
        >>> report.passed, report.runs[0].target, report.runs[0].remains
        (True, 'sequence_reverse', 'nothing')

    References:
        Frank and Wolfe, "An algorithm for quadratic programming", 1956 (the bound). Amari,
        "Natural gradient works efficiently in learning", 1998 (the projection). Tang and Munos,
        "On a few pitfalls in KL divergence gradient estimation for RL", 2025, arXiv 2506.09477
        (what the estimators' gradients are).
    """
    beta, reward_scale = (np.atleast_1d(np.asarray(x, float)) for x in (beta, reward_scale))
    if not recipes or not policies or num_seeds < 1 or not beta.size or not reward_scale.size:
        raise ValueError("policies, recipes, beta, reward_scale and num_seeds ask for no run")
    if batch_size is not None and num_seeds < 4:
        raise ValueError(
            f"num_seeds must be at least 4 with batch_size, got {num_seeds}: the allowance for "
            "sampling is measured over seeds"
        )
    for name, x in (("beta", beta), ("reward_scale", reward_scale)):
        if x.ndim != 1 or not (np.isfinite(x) & (x > 0)).all():
            raise ValueError(f"{name} must be finite numbers above 0, got {x.tolist()}")
    for recipe in recipes:
        if recipe != Recipe(recipe.place, recipe.estimator, recipe.level, recipe.baseline):
            raise ValueError(
                "recipes may choose place, estimator, level and baseline alone, for whose targets "
                f"there are formulas; kltarget.implied_target knows that of {recipe}"
            )
    settings = {
        "policies": list(policies),
        "recipes": [described(recipe) for recipe in recipes],
        "beta": beta.tolist(),
        "reward_scale": reward_scale.tolist(),
        "num_seeds": num_seeds,
        "batch_size": batch_size,
        "bar": bar,
    }
    policy_key, run_key = jax.random.split(key)
    sampled = batch_size is not None
    count = len(set(policies)) * len(recipes) * num_seeds * beta.size * reward_scale.size
    with progress_bar(progress, total=count, unit="run") as shown:
        shown.set_postfix_str("policies")
        task, space = verified_task(problem, space, modes)
        starts, notes = starting_policies(task, space, policies, policy_key)
        settings["policies"] = list(starts)
        groups = list(itertools.product(starts, recipes))

        def trained(name: str, recipe: Recipe, seed: int, at_most: int | None = None) -> Run:
            policy, params = starts[name]
            tabular = isinstance(policy, TabularPolicy)
            steps = int(_of(num_steps, name, 500 if tabular else 300))
            keys = jax.random.split(jax.random.fold_in(run_key, seed), 2)
            return fine_tune(
                policy,
                params if seed == 0 or sampled else _perturbed(params, keys[0]),
                jnp.asarray(task.reward),
                recipe,
                beta=jnp.asarray(beta)[:, None],
                reward_scale=jnp.asarray(reward_scale),
                learning_rate=_of(learning_rate, name, 0.3 if tabular else 0.02),
                num_steps=at_most or steps,
                key=jax.random.split(keys[1], (beta.size, reward_scale.size)),
                optimizer=annealed_adam(steps),
                batch_size=batch_size,
                log_ref=jnp.asarray(task.log_ref),
                history_every=max(1, steps // 10),
                gradient_tol=1e-5,
            )

        def first_steps() -> Iterator[Callable[[], Any]]:
            for name, recipe in groups:
                policy, params = starts[name]
                yield functools.partial(trained, name, recipe, num_seeds - 1, at_most=1)
                if not (sampled or own_target(recipe) is None or isinstance(policy, TabularPolicy)):
                    numbers = (task.log_ref, task.log_ref, task.reward, 1.0)
                    yield functools.partial(followable, policy, space, recipe, params, *numbers)

        with compiled_ahead(first_steps()):
            shown.set_postfix_str("targets")
            targets = exact_targets(space, task.reward, task.log_ref, beta, reward_scale, recipes)
            judge = Judge(task, space, targets, beta, reward_scale, bar, sampled)

            def report(runs: list[VerifiedRun], *further: Check) -> Report:
                description = _description(task, space, notes, settings)
                checks = *further, *judge.checks(runs)
                return Report(task.name, description, settings, tuple(runs), checks)

            runs: list[VerifiedRun] = []
            try:
                for name, recipe in groups:
                    shown.set_postfix_str(f"{name}, {described(recipe)}")
                    for seed in range(num_seeds):
                        runs += judge.verified(name, recipe, seed, trained(name, recipe, seed))
                        shown.update(beta.size * reward_scale.size)
                shown.set_postfix_str("")
                return report(runs)
            except KeyboardInterrupt:
                made = f"stopped after {len(runs)} of {count}"
                stopped = Check("all runs were made", len(runs) == count, made)
                raise Interrupted(report(runs, stopped) if runs else None) from None


def _of(setting: Any, name: str, default: Any) -> Any:
    if isinstance(setting, Mapping):
        return setting.get(name, default)
    return default if setting is None else setting


@jax.jit
def _perturbed(params: Any, key: Any) -> Any:
    leaves, structure = jax.tree.flatten(params)
    noisy = []
    for leaf, one in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
        size = jnp.sqrt(jnp.mean(jnp.square(jnp.where(jnp.isfinite(leaf), leaf, 0.0))))
        noise = jax.random.normal(one, leaf.shape, leaf.dtype)
        noisy.append(leaf + jnp.broadcast_to(_JITTER * size, leaf.shape).astype(leaf.dtype) * noise)
    return jax.tree.unflatten(structure, noisy)


def _description(
    task: Task, space: SequenceSpace, notes: tuple[str, ...], settings: dict[str, Any]
) -> tuple[str, ...]:
    right = task.modes >= 0
    share = np.exp(task.log_ref[right]).sum()
    size = (
        f"{counted(space)} = {space.num_sequences:,} sequences, "
        f"{right.sum():,} right; the reference gives those {share:.1%}"
    )
    swept = {"policies": "policy", "recipes": "recipe"}
    swept |= {"beta": "β", "reward_scale": "reward scale"}
    sizes = [(len(settings[name]), what) for name, what in swept.items()]
    sizes.append((settings["num_seeds"], "seed"))
    batch = settings["batch_size"]
    gradients = "exact gradients" if batch is None else f"{numbered(batch, 'sample')} a step"
    grid = " × ".join(f"{n} β" if what == "β" else numbered(n, what) for n, what in sizes)
    return (
        f"{task.name}: {task.description}",
        size,
        *notes,
        f"{numbered(math.prod(n for n, _ in sizes), 'run')}: {grid}; {gradients}",
    )
