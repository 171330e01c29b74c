"""Verification where nothing can be enumerated: texts of a length, judged by an automaton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from kltarget._core.checks import positive
from kltarget._core.progress import progress_bar
from kltarget._core.words import counted
from kltarget.policies import GRUPolicy, Policy, TransformerPolicy
from kltarget.recipes import Recipe
from kltarget.targets.automata import AutomatonTarget, solve_on_automaton
from kltarget.tasks import TextTask, load_texts
from kltarget.training import RunStatus, fine_tune_on_texts
from kltarget.verification._annealed_adam import annealed_adam
from kltarget.verification._asked_runs import asked_runs
from kltarget.verification._from_reference import FromReference
from kltarget.verification._report import Check
from kltarget.verification._space_report import SpaceReport
from kltarget.verification._text_pulls import followable_by_samples

_IN_REWARD = Recipe("reward", "k1", "sequence", "leave-one-out")
_ALLOWED_ERRORS = 4.0
_PULLED = 512
_NETWORKS = {
    "gru": lambda task: GRUPolicy(task.reference.vocab_size, task.length, width=64),
    "transformer": lambda task: TransformerPolicy(
        task.reference.vocab_size, task.length, width=48, num_layers=1, num_heads=4
    ),
}
_LEGEND = (
    "KL: of the policy from the target, in nats, at the start and after training, ± its standard "
    "error; TV: total variation from it, 1 at most. J: reward less β times the KL from the "
    "reference, at most J*; J* − J = β KL. left: what is behind the rest, optimisation, where a "
    "change of the parameters would lead on, or the family of policies, where none does."
)


def verify_texts(
    problem: str | TextTask = "keywords-64",
    *,
    key: PRNGKeyArray,
    policies: Sequence[str] | Mapping[str, tuple[Policy, Any]] = ("gru", "transformer"),
    beta: Sequence[float] = (0.1, 0.3),
    num_seeds: int = 1,
    num_steps: int = 400,
    learning_rate: float = 0.015,
    batch_size: int = 128,
    num_measured: int = 4096,
    progress: bool = False,
) -> SpaceReport:
    """Fine-tunes networks on texts too many to list and measures how far they are from the target.

    Each policy is trained by sampled gradients on ``E_π[reward] − beta · KL(π‖π_ref)``, with k1 in
    the reward of the whole text. The target's log-probability of any text is known exactly, so that
    sample means are unbiased measures of what cannot be summed: ``KL(π‖π*)``, the total variation
    ``E_π[max(0, 1 − π*/π)]``, the gap ``J* − J(π)`` and the mass of every mode.

    Args:
        problem: a task over texts, or the name of one (:func:`kltarget.tasks.text_names`).
        key: random key of everything that is random.
        policies: of ``"gru"`` and ``"transformer"``, whose logits are added to those of the
            reference, where they begin; or a mapping from names of your own to
            ``(policy, params)``.
        beta: coefficients of the regulariser, in reward units per nat, shape ``[B]``.
        num_seeds: how many times to train each.
        num_steps: steps of a run. The learning rate falls to 0 along half a cosine.
        learning_rate: of Adam.
        batch_size: texts per step.
        num_measured: texts of every policy, and of every target, that are measured.
        progress: show a bar.

    Returns:
        The report. Its checks are: no run diverged; at each β some policy ended nearer to its
        target than it started, by three standard errors, and a run that did not is no farther,
        within four, and where no change of its parameters leads on; no policy has a larger J than
        the target, within four standard errors;
        ``J* − J = β KL`` on the same texts, but for rounding; two
        measures of each total variation, one on the policy's texts and one on the target's, agree
        within four; the target's own texts are in the modes, and have the rewards, that it says,
        within four and a half. What is left of a run's way is told apart as in
        :func:`kltarget.verify`, by the share of ``log π/π*`` of the next tokens that a change of
        the parameters explains on texts which it was not fitted to; NaN for a policy without
        ``next_log_probs``, of which nothing is said.

    Raises:
        ValueError: unknown names, no runs, values out of range.

    Not to be called under a trace.

    Example:
        >>> import jax
        >>> from kltarget.policies import GRUPolicy
        >>> from kltarget.verification import verify_texts
        >>> small = GRUPolicy(vocab_size=9, length=8, width=4)
        >>> policies = {"small": (small, small.init(key=jax.random.key(0)))}
        >>> options = {"policies": policies, "beta": [1.0], "num_measured": 512}
        >>> options |= {"num_steps": 60, "learning_rate": 0.05}
        >>> report = verify_texts("no-repeats", key=jax.random.key(1), **options)
        >>> report.passed, len(report.runs)
        (True, 1)
    """
    task = load_texts(problem) if isinstance(problem, str) else problem
    if not isinstance(task, TextTask):
        raise TypeError(f"problem must be a TextTask or the name of one, got {problem!r}")
    betas, settings = asked_runs(beta, num_seeds, num_steps, learning_rate)
    positive("num_measured", num_measured, 2)
    if not policies:
        raise ValueError("policies asks for no run: name one at least")
    start_key, run_key, target_key = jax.random.split(key, 3)
    target = solve_on_automaton(
        task.reference, task.automaton, task.reward, jnp.asarray(betas), length=task.length
    ).raise_if_failed()
    settings |= {
        "policies": list(policies),
        "batch_size": batch_size,
        "num_measured": num_measured,
    }
    own = _own_texts(task, target, target_key, num_measured)
    runs, agreements = [], []
    with progress_bar(progress, total=len(policies) * num_seeds, unit="run") as shown:
        for i, name in enumerate(policies):
            one_key = jax.random.fold_in(start_key, i)
            policy, params = _starting(task, policies, name, one_key)
            starts = _starts(task, target, policy, params, one_key, num_measured)
            for seed in range(num_seeds):
                shown.set_postfix_str(name)
                seeded = jax.random.fold_in(jax.random.fold_in(run_key, i), seed)
                run = fine_tune_on_texts(
                    policy,
                    params,
                    task.reward_of,
                    _IN_REWARD,
                    beta=jnp.asarray(betas),
                    batch_size=batch_size,
                    key=jax.random.split(seeded, betas.size),
                    learning_rate=learning_rate,
                    num_steps=num_steps,
                    optimizer=annealed_adam(num_steps),
                    log_ref=task.reference.log_probs,
                    history_every=None,
                )
                trained = [run.of(b) for b in range(betas.size)]
                end = _measured(task, target, policy, trained, seeded, num_measured)
                for b in range(betas.size):
                    texts = own.tokens[:, b]
                    again = policy.log_probs(trained[b], texts).sum(-1)
                    ratio = np.asarray(again, float) - own.log_probs[:, b]
                    agreements.append((end[b].tv, _mean(np.maximum(0, -np.expm1(ratio)))))
                    some = end[b].tokens[:_PULLED]
                    goal = target.next_log_probs(some)[b]
                    share = followable_by_samples(policy, trained[b], some, goal)
                    status = RunStatus(int(np.asarray(run.status)[b])).name
                    runs.append(_row(task, name, seed, b, target, starts[b], end[b], share, status))
                shown.update()
    checks = _checks(runs, agreements, task, target, own, betas)
    description = (
        f"{task.name}: {task.description}",
        f"{task.num_texts:.3g} texts of {task.length} tokens; the reference gives "
        f"{_right(target):.3g} of its mass to right ones",
        f"{counted(len(runs), 'run')} of {counted(num_steps, 'step')} of {batch_size} texts; "
        f"{num_measured:,} texts measure each",
    )
    shown_columns = ("policy", "β", "start KL", "KL", "KL ±", "TV", "J", "J*", "left")
    return SpaceReport(
        task.name, description, settings, tuple(runs), tuple(checks), shown_columns, _LEGEND
    )


class _Mean(NamedTuple):
    """A sample mean and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.error:.1g}"


class _Measured(NamedTuple):
    """What samples of a policy say of it and of its target."""

    tokens: Any
    kl: _Mean
    tv: _Mean
    objective: _Mean
    reward: _Mean
    masses: np.ndarray


class _OwnTexts(NamedTuple):
    """Texts of the targets: tokens ``[N, B, T]`` and log-probabilities ``[N, B]``."""

    tokens: Any
    log_probs: np.ndarray


def _mean(x: np.ndarray) -> _Mean:
    return _Mean(float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5))


def _own_texts(task: TextTask, target: AutomatonTarget, key: Any, number: int) -> _OwnTexts:
    tokens = target.sample(key=key, num_samples=number)
    each = [target.log_prob(tokens[:, b])[b] for b in range(tokens.shape[1])]
    return _OwnTexts(tokens, np.asarray(jnp.stack(each, axis=1), float))


def _measured(
    task: TextTask, target: AutomatonTarget, policy: Any, each: list[Any], key: Any, number: int
) -> list[_Measured]:
    """Measures of a policy's parameters for every β."""
    found, beta = [], np.asarray(target.states.objective.beta, float)
    for b, params in enumerate(each):
        drawn = jax.random.fold_in(key, 1000 + b)
        tokens = policy.sample(params, key=drawn, num_samples=number)
        log_probs = np.asarray(policy.log_probs(params, tokens).sum(-1), float)
        log_target = np.asarray(target.log_prob(tokens)[b], float)
        log_ref = np.asarray(task.reference.log_prob(tokens), float)
        reward = np.asarray(task.reward_of(tokens), float)
        modes = np.asarray(task.mode_of(tokens))
        masses = np.array([(modes == mode).mean() for mode in task.mode_names])
        found.append(
            _Measured(
                tokens,
                _mean(log_probs - log_target),
                _mean(np.maximum(0, -np.expm1(log_target - log_probs))),
                _mean(reward - beta[b] * (log_probs - log_ref)),
                _mean(reward),
                masses,
            )
        )
    return found


def _starts(
    task: TextTask, target: AutomatonTarget, policy: Any, params: Any, key: Any, number: int
) -> list[_Mean]:
    """The KL from every target before training; of the reference that of final states, exactly."""
    if not isinstance(policy, FromReference):
        each = [params] * target.status.size
        return [x.kl for x in _measured(task, target, policy, each, key, number)]
    log_ref = np.asarray(target.states.objective.log_ref, float)
    log_probs = np.asarray(target.states.log_probs, float)
    some = log_ref > -np.inf
    apart = np.where(some, log_ref, 0.0) - np.where(some, log_probs, 0.0)
    return [_Mean(float(x), 0.0) for x in (np.exp(log_ref) * apart).sum(-1)]


def _starting(task: TextTask, policies: Any, name: str, key: Any) -> tuple[Any, Any]:
    """A policy and its parameters, at the reference if they are not given."""
    if isinstance(policies, Mapping):
        return policies[name]
    if name not in _NETWORKS:
        raise ValueError(
            f"policies has {name!r}, which is none of {', '.join(map(repr, _NETWORKS))}: give "
            "policies of your own as a mapping from names to (policy, params)"
        )
    policy = FromReference(_NETWORKS[name](task), task.reference.order)
    return policy, policy.at(task.reference, key=key)


def _row(
    task: TextTask,
    name: str,
    seed: int,
    b: int,
    target: AutomatonTarget,
    start: _Mean,
    end: _Measured,
    share: float,
    status: str,
) -> dict[str, Any]:
    probs = np.exp(np.asarray(target.states.log_probs[b], float))
    right = end.masses[end.masses > 0]
    right = right / right.sum() if right.size else right
    if status == "NON_FINITE":
        left = "diverged"
    elif end.tv.value <= 3 * end.tv.error:
        left = "nothing"
    else:
        left = "unknown" if np.isnan(share) else "optimisation" if share >= 0.5 else "family"
    beta = float(target.states.objective.beta[b])
    row: dict[str, Any] = {"policy": name, "β": beta, "seed": seed}
    measures = {
        "start KL": start,
        "KL": end.kl,
        "TV": end.tv,
        "J": end.objective,
        "reward": end.reward,
    }
    for measure, mean in measures.items():
        row |= {measure: mean.value, f"{measure} ±": mean.error}
    for mode, called in task.mode_names.items():
        at = list(task.mode_names).index(mode)
        mass, size = float(end.masses[at]), end.tokens.shape[0]
        row |= {
            f"mass of {called}": mass,
            f"mass of {called} ±": (mass * (1 - mass) / size) ** 0.5,
            f"target's mass of {called}": float(probs[task.modes == mode].sum()),
        }
    return row | {
        "J*": float(target.value[b]),
        "target's reward": float(target.expected_reward[b]),
        "modes": float(np.exp(-(right * np.log(right)).sum())),
        "followable": share,
        "left": left,
        "status": status,
    }


def _right(target: AutomatonTarget) -> float:
    reward = np.asarray(target.states.objective.reward)
    reference = np.exp(np.asarray(target.states.objective.log_ref, float))
    return float(np.broadcast_to(reference, reward.shape)[reward > 0].sum())


def _checks(
    runs: list[dict[str, Any]],
    agreements: list[tuple[_Mean, _Mean]],
    task: TextTask,
    target: AutomatonTarget,
    own: _OwnTexts,
    betas: np.ndarray,
) -> list[Check]:
    diverged = sum(run["left"] == "diverged" for run in runs)
    checks = [Check("no run diverged", not diverged, f"{diverged} of {len(runs)} did")]
    nearer: dict[float, list[float]] = {}
    astray, stayed = 0, 0
    for run in runs:
        error = np.hypot(run["start KL ±"], run["KL ±"])
        gained = float((run["start KL"] - run["KL"]) / error)
        # Of a KL that is no number nothing is known but that it is no nearer.
        gained = -np.inf if np.isnan(gained) else gained
        nearer.setdefault(run["β"], []).append(gained)
        # A family that does not lead from the start to the target says nothing against either.
        held = run["left"] in ("family", "nothing") and gained >= -_ALLOWED_ERRORS
        stayed += gained <= 3
        astray += gained <= 3 and not held
    best = min(map(max, nearer.values()))
    name = "at each β some policy ended nearer to its target than it started"
    checks.append(Check(name, bool(best > 3), f"by {best:.3g} standard errors of the KL at least"))
    name = "every other run stayed where its policy could not follow"
    detail = f"{stayed} of {len(runs)} ended no nearer, of which {astray} could have or went astray"
    checks.append(Check(name, bool(astray == 0), detail))
    above = max((run["J"] - run["J*"]) / run["J ±"] for run in runs)
    detail = f"the largest J is {above:+.3g} standard errors from J*"
    checks.append(Check("no policy has a larger J than J*", bool(above <= _ALLOWED_ERRORS), detail))
    off = max(abs(run["J*"] - run["J"] - run["β"] * run["KL"]) for run in runs)
    # Log-probabilities are sums over tokens, of which each is rounded.
    size = 1 + betas.max() * task.length * np.log(task.reference.vocab_size)
    rounding = 100 * float(jnp.finfo(target.value.dtype).eps) * size
    name = "J* − J = β KL, measured on the same texts"
    checks.append(Check(name, bool(off <= rounding), f"off by at most {off:.1e}"))
    apart = max(
        abs(a.value - b.value) / max(np.hypot(a.error, b.error), 1e-12) for a, b in agreements
    )
    name = "total variation measured on the policy's texts and on the target's agree"
    checks.append(
        Check(name, bool(apart <= _ALLOWED_ERRORS), f"within {apart:.3g} standard errors")
    )
    worst = _of_own_texts(task, target, own, betas.size)
    name = "the target's texts are in the modes that it says"
    checks.append(Check(name, bool(worst <= 4.5), f"within {worst:.3g} standard errors"))
    return checks


def _of_own_texts(task: TextTask, target: AutomatonTarget, own: _OwnTexts, number: int) -> float:
    """How far frequencies of modes among the target's texts are from their masses, in errors."""
    probs, worst = np.exp(np.asarray(target.states.log_probs, float)), 0.0
    for b in range(number):
        modes, size = np.asarray(task.mode_of(own.tokens[:, b])), own.tokens.shape[0]
        for mode in (-1, *task.mode_names):
            mass = float(probs[b, task.modes == mode].sum())
            # A rare mode's count is not normal: it is left to the others.
            if min(mass, 1 - mass) * size >= 10:
                error = (mass * (1 - mass) / size) ** 0.5
                worst = max(worst, abs(float((modes == mode).mean()) - mass) / error)
    return worst
