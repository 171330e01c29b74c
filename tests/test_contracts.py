"""What every public name promises, one row of a table per name.

A function of arrays keeps its dtype, gives the same with and without ``jit``, treats a batch as a
loop over its rows, maps under ``vmap``, has finite derivatives and names what is wrong with bad
input. A public name that has no row here fails a test. Trainers run programs of their own and are
not for tracing: of them a batch is a loop, the dtype is that of the parameters, and bad input is
named.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import DTYPES, INF, eps

import kltarget as kt
from kltarget import (
    adapters,
    frontier,
    implied,
    mixtures,
    policies,
    targets,
    tasks,
    training,
)
from kltarget.divergences import KLMixture, Scaled, TermDivergence, score_weight
from kltarget.objectives import ddrl_reward, ensemble_reward, references
from kltarget.targets.automata import mara_on_automaton, token_local_on_automaton
from kltarget.targets.chains import solve_chain
from kltarget.targets.games import solve_game
from kltarget.targets.grids import score_regularized
from kltarget.targets.mdps import solve_mdp, solve_occupancy

LOG_REF = oracles.log_normalised(np.array([[0.0, -1, -2, 0.5], [1, 0, -1, -3.0]]), np.float64)
LOG_POLICY = oracles.log_normalised(np.array([[0.5, 0, -1, -2], [0, 1, 0, 0.5]]), np.float64)
REWARD = np.array([[0.0, 1.0, 0.5, 0.25], [1.0, -1.0, 0.0, 2.0]])
BETA = np.array([0.5, 2.0])
MODES = np.array([0, 0, 1, 2])


@dataclasses.dataclass(frozen=True)
class Bad:
    """Input that is refused, with the error and what its message says."""

    call: Callable[[], Any]
    error: type[Exception]
    message: str


@dataclasses.dataclass(frozen=True)
class Contract:
    """A function of arrays with two rows of arguments, and what it refuses.

    Args:
        run: the function under test; takes the arrays, returns one array or a tuple.
        arguments: arrays whose first axis is a batch of two.
        bad: inputs that raise.
        differentiable: whether its derivatives say something.
        narrow: the largest error of bfloat16 results that rounding the inputs explains; None
            where results have the dtype of a policy's probabilities, which are never narrower than
            float32.
        traced: whether it may be called under ``jit`` and ``vmap``.
    """

    run: Callable[..., Any]
    arguments: tuple[np.ndarray, ...]
    bad: tuple[Bad, ...]
    differentiable: bool = True
    narrow: float | None = 0.05
    traced: bool = True


def objective_of(divergence):
    def make(reward, log_ref, beta):
        return kt.Objective(reward, log_ref, beta, divergence, measure=True)

    return make


def values(target):
    best = target.value if isinstance(target, kt.Target) else target.objective_value
    return target.log_probs, target.multiplier, best, target.expected_reward


def gains(found):
    return found.gain, found.lower, found.upper, found.success, found.best, found.bound_holds_to


def drawn_best(best):
    numbers = best.log_probs, best.kl, best.kl_bound, best.expected_reward, best.win_rate
    return *numbers, best.log_prob(2), best.expectation(MODES)


PROBLEM = (REWARD, LOG_REF, BETA)
POLICIES = (LOG_POLICY, LOG_REF)
MISFIT = (np.zeros(4), np.zeros(3))
PAIRS = kt.SequenceSpace(2, 2)


def divergence_contract(divergence, *bad):
    return Contract(
        lambda p, q: divergence(p, q),
        POLICIES,
        (
            Bad(
                lambda: divergence(*MISFIT),
                ValueError,
                "log_policy has 4 outcomes and log_ref has 3",
            ),
            Bad(lambda: divergence(np.zeros(2, complex), np.zeros(2)), TypeError, "complex"),
            *bad,
        ),
    )


def target_contract(run, *bad, **options):
    negative = Bad(lambda: run(*PROBLEM[:2], -BETA), ValueError, "beta")
    return Contract(run, PROBLEM, (negative, *bad), **options)


def made_of(objective):
    return objective.reward, objective.log_ref, objective.beta, objective.divergence.weight


FORWARD = objective_of(kt.ForwardKL())
REVERSE = objective_of(kt.ReverseKL())

TABULAR = kt.TabularPolicy(2, 2)
K3_IN_GROUPS = kt.Recipe("loss", "k3", baseline="mean", normalize="group-std", group_size=4)
LOGITS = np.array([[0.5, -0.2], [0.3, 0.1], [-1.0, 0.4]])
TOKENS = np.array([[0, 1], [1, 0], [1, 1], [0, 0]])
FEW = {"learning_rate": 0.1, "num_steps": 5}


def log_probs_of(policy):
    """Log-probabilities of all sequences as a function of a factor of the parameters."""

    def one(scale):
        params = policy.init(key=jax.random.key(0))
        params = jax.tree.map(lambda x: x.astype(scale.dtype) * scale, params)
        return PAIRS.joint(policy.conditionals(params, PAIRS))

    return lambda scale: one(scale) if scale.ndim == 0 else jax.vmap(one)(scale)


def policy_contract(policy, make):
    return Contract(
        log_probs_of(policy),
        (np.array([0.5, 1.5]),),
        (
            Bad(lambda: make(0), ValueError, "vocab_size must be an integer of 1 or more"),
            Bad(
                lambda: policy.conditionals({}, kt.SequenceSpace(3, 2)),
                ValueError,
                "vocab_size=3 and the policy vocab_size=2",
            ),
        ),
        narrow=None,
    )


def trained(run):
    return run.log_probs, run.gradient_norm, run.gap


def fitted(weights):
    def one(weights):
        params = {"logits": jnp.asarray(LOGITS, weights.dtype)}
        fit = training.fit(
            TABULAR, TOKENS, key=jax.random.key(0), params=params, weights=weights, holdout=0, **FEW
        )
        return jnp.asarray(fit.params["logits"])

    return one(weights) if weights.ndim == 1 else jnp.stack([one(w) for w in weights])


def trainer_contract(run, arguments, *bad):
    def of_policy(*arrays):
        return trained(run({"logits": jnp.asarray(LOGITS, arrays[0].dtype)}, *arrays))

    return Contract(of_policy, arguments, bad, differentiable=False, narrow=None, traced=False)


TWO_MODES = np.array([[[-1.0], [1.5]], [[-2.0], [1.0]]])
SOME = TWO_MODES.astype(np.float32)
EVEN = np.log([0.5, 0.5])
FEATURES = np.array([[0.0], [1.0], [2.0], [3.0]])
BOX = kt.spaces.Box((-3.0, 3.0), 4)
ON_BOX = kt.policies.GaussianMixturePolicy(1, BOX)


def modes_at(means):
    """Two modes of unit variance."""
    dtype = means.dtype
    return kt.GaussianMixture(
        jnp.asarray(EVEN, dtype), means, jnp.ones(2, dtype), covariance_type="spherical"
    )


def bowl(dtype):
    return mixtures.QuadraticReward(-jnp.eye(1, dtype=dtype), jnp.ones(1, dtype))


@functools.cache
def same_nodes():
    """A grid to solve on again."""
    means = np.asarray(TWO_MODES[0], np.float32)
    with jax.ensure_compile_time_eval():
        return kt.solve_on_grid(modes_at(means), bowl(np.float32), 0.5, error_tol=1e-3)


def texts(dtype):
    """Texts of two letters, read by how many of them are the second."""
    even = np.full((2, 2), np.log(0.5), dtype)
    reference = kt.spaces.MarkovReference(even[0], even)
    return reference, kt.spaces.Automaton.counter([1], 2, most=3)


def on_texts(reward, beta, divergence=None):
    return kt.solve_on_automaton(*texts(reward.dtype), reward, beta, divergence, length=3)


def local_on_texts(reward, beta):
    problem = reward, beta, kt.ForwardKL()
    return token_local_on_automaton(*texts(reward.dtype), *problem, length=3)


MOVES = np.array([[[0.9, 0.1], [0.4, 0.6]], [[0.3, 0.7], [0.2, 0.8]]])


def by_state(x):
    """Two entries for each of two states."""
    return x.reshape(*x.shape[:-1], 2, 2)


def process(reward):
    return kt.spaces.MDP(MOVES.astype(reward.dtype), by_state(reward), horizon=2)


def on_process(reward, log_ref, beta):
    return solve_mdp(process(reward), kt.normalize(by_state(log_ref)), beta)


def in_game(payoff, log_ref, beta):
    sides = kt.normalize(by_state(log_ref))
    game = kt.spaces.MatrixGame(by_state(payoff))
    return solve_game(game, (sides[..., 0, :], sides[..., 1, :]), beta)


def on_chain(reward, log_ref, beta):
    steps = np.stack([LOG_REF[[0, 1, 0, 1]], LOG_POLICY[[0, 0, 1, 1]]]).astype(reward.dtype)
    return solve_chain(kt.spaces.Chain(kt.normalize(log_ref), steps), reward, beta)


def by_scores(reward, log_ref, beta):
    if reward.ndim == 1:
        found = score_regularized(reward, log_ref, beta, spacing=0.5)
        return found.log_probs, found.value
    found = [by_scores(*row) for row in zip(reward, log_ref, beta, strict=True)]
    return tuple(jnp.stack(x) for x in zip(*found, strict=True))


CONTRACTS: dict[str, Contract] = {
    "GaussianMixture": Contract(
        lambda means: (
            modes_at(means).log_prob(jnp.zeros(1, means.dtype)),
            modes_at(means).mean,
            modes_at(means).covariance,
        ),
        (TWO_MODES,),
        (
            Bad(
                lambda: kt.GaussianMixture(EVEN + 1, TWO_MODES, np.ones((2, 1, 1))), ValueError, "1"
            ),
            Bad(lambda: kt.GaussianMixture(EVEN, TWO_MODES, np.ones(3)), ValueError, "covariances"),
        ),
    ),
    "cauchy_schwarz": Contract(
        lambda means: mixtures.cauchy_schwarz(
            modes_at(means), modes_at(jnp.ones((2, 1), means.dtype))
        ),
        (TWO_MODES,),
        (
            Bad(
                lambda: mixtures.cauchy_schwarz(
                    modes_at(SOME),
                    kt.GaussianMixture(EVEN, np.ones((2, 2)), np.array([np.eye(2)] * 2)),
                ),
                ValueError,
                "dimensions",
            ),
        ),
    ),
    "QuadraticReward": Contract(
        lambda vector: mixtures.QuadraticReward(vector=vector)(jnp.ones(2, vector.dtype)),
        (np.array([[0.5, 1.0], [2.0, -1.0]]),),
        (Bad(lambda: mixtures.QuadraticReward(np.ones((2, 3))), ValueError, "square"),),
    ),
    "LogDensityReward": Contract(
        lambda means: mixtures.LogDensityReward(modes_at(means), 2.0)(jnp.zeros(1, means.dtype)),
        (TWO_MODES,),
        (Bad(lambda: mixtures.LogDensityReward(modes_at(SOME), 0.0), ValueError, "scale"),),
        narrow=0.1,
    ),
    "tilt": Contract(
        lambda means, beta: (
            (target := mixtures.tilt(modes_at(means), bowl(means.dtype), beta)).value,
            target.divergence_value,
            target.component_log_mass,
            target.mixture.means,
        ),
        (TWO_MODES, BETA),
        (
            Bad(
                lambda: mixtures.tilt(modes_at(SOME), bowl(np.float32), -BETA),
                ValueError,
                "beta",
            ),
        ),
    ),
    "power_tilt": Contract(
        lambda means, beta: (
            (target := mixtures.power_tilt(modes_at(means), bowl(means.dtype), beta)).offset,
            target.value,
            target.component_log_mass,
        ),
        (TWO_MODES, BETA),
        (
            Bad(
                lambda: mixtures.power_tilt(modes_at(SOME), bowl(np.float32), -BETA),
                ValueError,
                "beta",
            ),
        ),
    ),
    "solve_on_grid": Contract(
        lambda beta: (
            (
                target := kt.solve_on_grid(
                    modes_at(np.asarray(TWO_MODES[0], beta.dtype)),
                    bowl(beta.dtype),
                    beta,
                    grid=same_nodes(),
                )
            ).value,
            target.expected_reward,
        ),
        (BETA,),
        (
            Bad(
                lambda: kt.solve_on_grid(modes_at(SOME[0]), bowl(np.float32), -BETA),
                ValueError,
                "beta",
            ),
        ),
        narrow=None,
    ),
    "solve_on_automaton": Contract(
        lambda reward, beta: (
            (target := on_texts(reward, beta, kt.ForwardKL())).value,
            target.log_prob([0, 1, 1]),
            target.conditionals([1]),
            target.entropy,
        ),
        (REWARD, BETA),
        (Bad(lambda: on_texts(REWARD, -BETA), ValueError, "beta"),),
        # A reference of 16 bits is held in float32, and so are results.
        narrow=None,
    ),
    "mara_on_automaton": Contract(
        lambda reward, beta: (
            (target := mara_on_automaton(on_texts(reward, beta), 0.5)).value,
            target.log_level,
        ),
        (REWARD, BETA),
        (Bad(lambda: mara_on_automaton(REWARD, 0.5), TypeError, "solve_on_automaton"),),
        narrow=None,
    ),
    "token_local_on_automaton": Contract(
        lambda reward, beta: (
            (target := local_on_texts(reward, beta)).objective_value,
            target.entropy,
        ),
        (REWARD, BETA),
        (
            Bad(lambda: local_on_texts(REWARD, -BETA), ValueError, "beta"),
            Bad(lambda: local_on_texts(REWARD[:, :3], BETA), ValueError, "reward has shape"),
        ),
        narrow=None,
    ),
    "solve_mdp": target_contract(
        lambda *problem: ((target := on_process(*problem)).log_policy, target.value),
        Bad(lambda: solve_mdp(MOVES, LOG_REF, 1.0), TypeError, "mdp must be an MDP"),
        Bad(lambda: solve_mdp(process(REWARD), LOG_REF, 1.0), ValueError, "log_ref has shape"),
        # A process of 16 bits is held in float32, and so are results.
        narrow=None,
    ),
    "solve_game": Contract(
        lambda *problem: (
            (found := in_game(*problem)).row.log_probs,
            found.column.log_probs,
            found.value,
        ),
        (REWARD.copy(), LOG_REF, BETA),
        (
            Bad(lambda: in_game(*PROBLEM[:2], -BETA), ValueError, "beta"),
            Bad(lambda: solve_game(REWARD, LOG_REF, 1.0), TypeError, "game must be"),
        ),
    ),
    "solve_chain": target_contract(
        lambda *problem: (
            (target := on_chain(*problem)).value,
            target.log_first,
            target.log_kernels,
        ),
        Bad(lambda: solve_chain(LOG_REF, REWARD, 1.0), TypeError, "chain must be"),
        Bad(lambda: on_chain(REWARD[:, :3], LOG_REF, BETA), ValueError, "reward has shape"),
    ),
    "score_regularized": Contract(
        by_scores,
        PROBLEM,
        (
            Bad(lambda: score_regularized(*PROBLEM, spacing=0.5), ValueError, "give one problem"),
            Bad(lambda: score_regularized(*MISFIT, 1.0, spacing=0.5), ValueError, "log_ref"),
        ),
        differentiable=False,
        traced=False,
    ),
    "solve_on_samples": Contract(
        lambda beta: (
            kt.solve_on_samples(
                jnp.asarray(TWO_MODES[:, 0], beta.dtype), bowl(beta.dtype), beta
            ).target.log_probs
        ),
        (BETA,),
        (
            Bad(
                lambda: kt.solve_on_samples(np.zeros(3), bowl(np.float32), BETA),
                ValueError,
                "samples",
            ),
        ),
        narrow=None,
    ),
    "sampling_risk": Contract(
        lambda log_target: kt.projections.sampling_risk(log_target, 50).divergence_value,
        (LOG_REF,),
        (Bad(lambda: kt.projections.sampling_risk(LOG_REF[0], 0), ValueError, "num_samples"),),
        narrow=None,
    ),
    "moment_projection": Contract(
        lambda log_ref, moments: (
            (
                found := kt.projections.moment_projection(
                    log_ref, jnp.asarray(FEATURES, log_ref.dtype), moments
                )
            ).log_probs,
            found.multipliers,
        ),
        (LOG_REF, np.array([[1.2], [0.8]])),
        (
            Bad(
                lambda: kt.projections.moment_projection(LOG_REF[0], FEATURES, np.array([4.0])),
                ValueError,
                "cannot be had",
            ),
        ),
        narrow=None,
    ),
    "GaussianMixturePolicy": Contract(
        lambda means: (
            ON_BOX.log_probs(
                {
                    "logits": jnp.zeros(1, means.dtype),
                    "means": means,
                    "factors": jnp.zeros((1, 1, 1), means.dtype),
                },
                jnp.zeros(1, means.dtype),
            )
            if means.ndim == 2
            else jax.vmap(CONTRACTS["GaussianMixturePolicy"].run)(means)
        ),
        (np.array([[[0.5]], [[1.0]]]),),
        (Bad(lambda: kt.policies.GaussianMixturePolicy(0, BOX), ValueError, "num_components"),),
        narrow=None,
    ),
    "normalize": Contract(
        kt.normalize,
        (REWARD,),
        (Bad(lambda: kt.normalize([0.0, np.nan]), ValueError, "log_weights .* nan at index 1"),),
    ),
    "gain_limit": Contract(
        implied.gain_limit,
        POLICIES,
        (Bad(lambda: implied.gain_limit(*MISFIT), ValueError, "4 outcomes .* 3"),),
    ),
    "kl": Contract(
        kt.kl,
        POLICIES,
        (Bad(lambda: kt.kl(*MISFIT), ValueError, "4 outcomes .* 3"),),
    ),
    "ReverseKL": divergence_contract(kt.ReverseKL()),
    "ForwardKL": divergence_contract(kt.ForwardKL()),
    "ChiSquared": divergence_contract(kt.ChiSquared()),
    "ChiSquaredKL": divergence_contract(kt.ChiSquaredKL()),
    "NeymanChiSquared": divergence_contract(kt.NeymanChiSquared()),
    "SquaredHellinger": divergence_contract(kt.SquaredHellinger()),
    "JensenShannon": divergence_contract(kt.JensenShannon()),
    "TotalVariation": divergence_contract(kt.TotalVariation()),
    "Alpha": divergence_contract(kt.Alpha(0.25)),
    "Tsallis": divergence_contract(
        kt.Tsallis(1.5), Bad(lambda: kt.Tsallis(0.0), ValueError, "q must be above 0")
    ),
    "FDivergence": divergence_contract(
        kt.FDivergence(lambda u: (u - 1) ** 2),
        Bad(lambda: kt.FDivergence(lambda u: u**2), ValueError, r"f\(1\) = 0"),
    ),
    "KLMixture": divergence_contract(
        KLMixture(0.5), Bad(lambda: KLMixture(0.0), ValueError, "weight must be above 0")
    ),
    "Scaled": divergence_contract(
        Scaled(kt.JensenShannon(), 0.5),
        Bad(lambda: Scaled(kt.ReverseKL(), 0.0), ValueError, "factor must be a number above 0"),
        Bad(lambda: Scaled("kl", 1.0), TypeError, "base must be a Divergence"),
    ),
    "TermDivergence": divergence_contract(
        TermDivergence(lambda x: x + x**3 / 6, -np.inf, np.inf),
    ),
    "score_weight": Contract(
        lambda log_ratio: score_weight(kt.JensenShannon(), log_ratio),
        (REWARD,),
        (
            Bad(lambda: score_weight("kl", REWARD), TypeError, "divergence must be one such as"),
            Bad(lambda: score_weight(kt.TotalVariation(), REWARD), ValueError, "jumps"),
            Bad(lambda: score_weight(Scaled(kt.TotalVariation(), 2.0), 0.0), ValueError, "jumps"),
        ),
    ),
    "Objective": target_contract(
        lambda r, q, b: (
            REVERSE(r, q, b).value(LOG_POLICY[0].astype(np.float32)),
            kt.solve(REVERSE(r, q, b)).gap(LOG_POLICY[0].astype(np.float32)),
            REVERSE(r, q, b).gradient(LOG_POLICY[0].astype(np.float32)),
        ),
        Bad(lambda: kt.Objective(REWARD * np.nan, LOG_REF, 1.0), ValueError, "reward"),
        Bad(lambda: kt.Objective(REWARD, LOG_REF + 1, 1.0), ValueError, "kltarget.normalize"),
        Bad(lambda: kt.Objective(REWARD, LOG_REF, 1.0, None), TypeError, "divergence must be"),
    ),
    "solve": target_contract(lambda *problem: values(kt.solve(FORWARD(*problem)))),
    "greedy_limit": target_contract(
        lambda *problem: values(targets.greedy_limit(REVERSE(*problem)))
    ),
    "reference_limit": target_contract(
        lambda *problem: targets.reference_limit(REVERSE(*problem)).log_probs
    ),
    "log_odds": Contract(
        lambda log_probs: kt.log_odds(log_probs, 0, 2),
        (LOG_POLICY,),
        (Bad(lambda: kt.log_odds(LOG_POLICY, 0, 9), ValueError, "9"),),
    ),
    "flip_beta": Contract(
        lambda r, q: kt.flip_beta(REVERSE(r, q, jnp.ones_like(r[..., 0])), 0, 1),
        (REWARD[:, ::-1].copy(), LOG_REF),
        (Bad(lambda: kt.flip_beta(REVERSE(*PROBLEM), 0, 9), ValueError, "9"),),
    ),
    "combine": Contract(
        lambda r, q, beta: made_of(
            references.combine(r, reverse=[(q, beta)], forward=[(q[..., ::-1], 0.5)], entropy=0.1)
        ),
        PROBLEM,
        (
            Bad(lambda: references.combine(REWARD), ValueError, "nothing to regularise"),
            Bad(
                lambda: references.combine(REWARD, forward=[(LOG_REF, -1.0)]),
                ValueError,
                "forward.0. must be 0 or more",
            ),
        ),
    ),
    "soup": Contract(
        lambda p, q: references.soup([p, q], [0.25, 0.75]),
        POLICIES,
        (Bad(lambda: references.soup([REWARD], [0.5]), ValueError, "weights must be 1"),),
    ),
    "ensemble_reward": Contract(
        lambda r, weight: ensemble_reward(
            jnp.stack([r, r[..., ::-1]]), method="uncertainty", weight=weight
        ),
        (REWARD, BETA),
        (
            Bad(
                lambda: ensemble_reward(REWARD, method="median"),
                ValueError,
                "method must be one of",
            ),
        ),
    ),
    "proxy_bound": Contract(
        frontier.proxy_bound,
        (LOG_POLICY, REWARD, LOG_REF, np.array([0.5, 0.9])),
        (
            Bad(
                lambda: frontier.proxy_bound(LOG_POLICY, REWARD, LOG_REF, 2.0),
                ValueError,
                "correlation must be",
            ),
        ),
    ),
    "beta_for_root": Contract(
        frontier.beta_for_root,
        (REWARD, LOG_REF, np.array([0.2, 0.4])),
        (Bad(lambda: frontier.beta_for_root(*PROBLEM[:2], -1.0), ValueError, "charge must be"),),
    ),
    "best_of_n": Contract(
        lambda r, q: drawn_best(frontier.best_of_n(r, q, 4.0)),
        (REWARD, LOG_REF),
        (Bad(lambda: frontier.best_of_n(*PROBLEM[:2], 0.5), ValueError, "n must be"),),
    ),
    "success_gain": Contract(
        lambda p, b: gains(frontier.success_gain(p, b)),
        (np.array([0.2, 0.7]), np.array([0.5, 3.0])),
        (
            Bad(lambda: frontier.success_gain([0.2, 1.7], 1.0), ValueError, "success .* index 1"),
            Bad(lambda: frontier.success_gain(0.2, -1.0), ValueError, "beta must be"),
        ),
    ),
    "beta_for": Contract(
        lambda r, q: frontier.beta_for(REVERSE(r, q, jnp.ones_like(r[..., 0])), kl=0.2),
        (REWARD, LOG_REF),
        (
            Bad(lambda: frontier.beta_for(REVERSE(*PROBLEM), kl=99.0), ValueError, "not reached"),
            Bad(lambda: frontier.beta_for(REVERSE(*PROBLEM)), TypeError, "exactly one"),
        ),
    ),
    "collapse_beta": Contract(
        lambda r, q: kt.collapse_beta(
            objective_of(kt.ChiSquared())(r, q, jnp.ones_like(r[..., 0]))
        ),
        (REWARD, LOG_REF),
        (Bad(lambda: kt.collapse_beta(kt.Objective(REWARD, LOG_REF, -1.0)), ValueError, "beta"),),
    ),
    "mode_log_mass": Contract(
        lambda log_probs: kt.mode_log_mass(log_probs, MODES),
        (LOG_POLICY,),
        (Bad(lambda: kt.mode_log_mass(LOG_POLICY, MODES[:2]), ValueError, "modes"),),
    ),
    "effective_modes": Contract(
        lambda log_probs: kt.effective_modes(log_probs, MODES),
        (LOG_POLICY,),
        (Bad(lambda: kt.effective_modes(LOG_POLICY, order=-1), ValueError, "order"),),
    ),
    "coverage": Contract(
        lambda log_probs: kt.coverage(log_probs, MODES, least_probability=0.15),
        (LOG_POLICY,),
        (
            Bad(
                lambda: kt.coverage(LOG_POLICY, least_probability=2.0),
                ValueError,
                "least_probability",
            ),
        ),
        differentiable=False,
    ),
    "entropy": Contract(
        kt.entropy,
        (LOG_POLICY,),
        (Bad(lambda: kt.entropy(0.5), ValueError, "log_probs"),),
    ),
    "pass_at_k": Contract(
        lambda p: kt.pass_at_k(p, 4),
        (np.array([0.05, 0.5]),),
        (Bad(lambda: kt.pass_at_k(1.5, 4), ValueError, "success_probability"),),
    ),
    "pass_at_k_from_counts": Contract(
        lambda c: kt.modes.pass_at_k_from_counts(c, 20, 5),
        (np.array([3.0, 7.0]),),
        (Bad(lambda: kt.modes.pass_at_k_from_counts(3, 20, 21), ValueError, "k"),),
        differentiable=False,
    ),
    "mara_rewards": Contract(
        lambda reward, log_ref: adapters.mara_rewards(reward, log_ref, 0.25, 0.4),
        (REWARD, LOG_REF),
        (
            Bad(lambda: adapters.mara_rewards(REWARD, LOG_REF, 0.0, 0.4), ValueError, "beta"),
            Bad(
                lambda: adapters.mara_rewards(REWARD, LOG_REF[0], 0.1, 0.4), ValueError, "ref_logps"
            ),
        ),
    ),
    "mara": target_contract(
        lambda *problem: kt.mara(REVERSE(*problem), 0.4).reward,
        Bad(lambda: kt.mara(REVERSE(*PROBLEM), 0.4, method="both"), ValueError, "method"),
    ),
    "reward_for": Contract(
        kt.reward_for,
        (LOG_POLICY, LOG_REF, BETA),
        (Bad(lambda: kt.reward_for(LOG_POLICY, LOG_REF, -BETA), ValueError, "beta"),),
        narrow=0.2,  # the difference of two rounded logarithms
    ),
    "ddrl_reward": Contract(
        lambda *problem: (ddrl_reward(*problem), ddrl_reward(*problem, center=problem[2])),
        PROBLEM,
        (
            Bad(lambda: ddrl_reward(*PROBLEM[:2], -BETA), ValueError, "beta"),
            Bad(lambda: ddrl_reward(REWARD, LOG_REF + 1, BETA), ValueError, "log_ref"),
        ),
        narrow=0.2,  # exponentials of rounded rewards
    ),
    "SequenceSpace": Contract(
        lambda log_probs: (
            *PAIRS.prefix_log_masses(log_probs),
            *PAIRS.conditionals(log_probs),
            PAIRS.joint(PAIRS.conditionals(log_probs)),
        ),
        (LOG_POLICY,),
        (
            Bad(lambda: kt.SequenceSpace(2, 0), ValueError, "length must be at least 1"),
            Bad(lambda: PAIRS.conditionals(LOG_POLICY[:, :3]), ValueError, "log_probs has shape"),
        ),
    ),
    "soft_values": target_contract(
        lambda *problem: kt.soft_values(PAIRS, *problem),
        Bad(lambda: kt.soft_values(PAIRS, *MISFIT, 1.0), ValueError, "log_ref has shape"),
    ),
    "token_advantages": target_contract(
        lambda *problem: kt.token_advantages(PAIRS, *problem),
        Bad(lambda: kt.token_advantages(PAIRS, *MISFIT, 1.0), ValueError, "log_ref has shape"),
    ),
    "token_local_target": target_contract(
        lambda *problem: values(kt.token_local_target(PAIRS, *problem, kt.ForwardKL())),
        Bad(
            lambda: kt.token_local_target(PAIRS, *MISFIT, 1.0, kt.ForwardKL()),
            ValueError,
            "log_ref has shape",
        ),
    ),
    "token_preference_target": target_contract(
        lambda *problem: values(implied.token_preference_target(PAIRS, *problem, kl_weight=0.5)),
        Bad(
            lambda: implied.token_preference_target(PAIRS, *MISFIT, 1.0), ValueError, "log_ref has"
        ),
    ),
    "implied_target": Contract(
        lambda reward, log_ref, beta: values(
            kt.implied_target(K3_IN_GROUPS, reward, log_ref, beta=beta)
        ),
        PROBLEM,
        (
            Bad(
                lambda: kt.implied_target(K3_IN_GROUPS, *PROBLEM[:2], beta=-BETA),
                ValueError,
                "beta must be 0 or more",
            ),
            Bad(lambda: kt.implied_target(K3_IN_GROUPS, *MISFIT, beta=1.0), ValueError, "log_ref"),
        ),
        differentiable=False,
        traced=False,
    ),
    "MarkovPolicy": policy_contract(
        policies.MarkovPolicy(2, 2, 1), lambda size: policies.MarkovPolicy(size, 2, 1)
    ),
    "TabularPolicy": policy_contract(TABULAR, lambda size: kt.TabularPolicy(size, 2)),
    "GRUPolicy": policy_contract(kt.GRUPolicy(2, 2, width=3), lambda size: kt.GRUPolicy(size, 2)),
    "Tempered": policy_contract(
        policies.Tempered(kt.TabularPolicy(2, 2), 0.7),
        lambda size: policies.Tempered(kt.TabularPolicy(size, 2), 0.7),
    ),
    "TransformerPolicy": policy_contract(
        kt.TransformerPolicy(2, 2, width=4, num_layers=1, num_heads=2),
        lambda size: kt.TransformerPolicy(size, 2),
    ),
    "mirror_ascent": target_contract(
        lambda *problem: dataclasses.astuple(
            training.mirror_ascent(*problem, learning_rate=0.3, num_steps=4)
        )[:2],
        Bad(
            lambda: training.mirror_ascent(*PROBLEM, learning_rate=np.ones(3), num_steps=1),
            ValueError,
            "learning_rate has shape",
        ),
    ),
    "fine_tune": trainer_contract(
        lambda params, beta, scale: kt.fine_tune(
            TABULAR, params, REWARD[0], kt.Recipe(), beta=beta, reward_scale=scale, **FEW
        ),
        (BETA, np.array([1.0, 3.0])),
        Bad(
            lambda: kt.fine_tune(TABULAR, {"logits": LOGITS}, REWARD, kt.Recipe(), beta=1.0, **FEW),
            ValueError,
            "reward has shape",
        ),
    ),
    "dpo": trainer_contract(
        lambda params, beta: training.dpo(TABULAR, params, REWARD[0], beta=beta, **FEW),
        (BETA,),
        Bad(
            lambda: training.dpo(TABULAR, {"logits": LOGITS}, REWARD[0], beta=1.0, steps=1, **FEW),
            TypeError,
            "'steps'",
        ),
    ),
    "sft": trainer_contract(
        lambda params, log_target: training.sft(TABULAR, params, log_target, **FEW),
        (LOG_POLICY,),
        Bad(
            lambda: training.sft(TABULAR, {"logits": LOGITS}, LOG_POLICY + 1, **FEW),
            ValueError,
            "kltarget.normalize",
        ),
    ),
    "f_dpg": trainer_contract(
        lambda params, log_target: training.f_dpg(
            TABULAR, params, log_target, kt.ForwardKL(), **FEW
        ),
        (LOG_POLICY,),
        Bad(
            lambda: training.f_dpg(TABULAR, {"logits": LOGITS}, LOG_POLICY, "forward", **FEW),
            TypeError,
            "divergence must be",
        ),
    ),
    "fit": Contract(
        fitted,
        (np.array([[1.0, 2.0, 0.0, 1.0], [0.0, 1.0, 1.0, 5.0]]),),
        (
            Bad(
                lambda: training.fit(TABULAR, TOKENS + 1, key=jax.random.key(0), num_steps=1),
                ValueError,
                "tokens must be from 0 to 1",
            ),
        ),
        differentiable=False,
        narrow=None,
        traced=False,
    ),
}

NOT_OF_ARRAYS = {
    "ActionFlip": "a part of what action_flips returns",
    "ScaffoldReward": "chemistry, asked of the host",
    "canonical": "text",
    "decode": "texts",
    "encode": "texts",
    "load_smiles": "files",
    "scaffold": "text",
    "smiles_reference": "files",
    "train_on_smiles": "training of one policy",
    "AnchoredTarget": "what mara_on_automaton returns",
    "Automaton": "a table, as data",
    "AutomatonTarget": "what solve_on_automaton returns",
    "BanditPlay": "what bandit_play returns",
    "BestOfN": "what best_of_n returns",
    "Box": "a grid, as data",
    "Branches": "the shape of a tree, as data",
    "Chain": "a first law and kernels, as data",
    "ChainRun": "what fine_tune_chain returns",
    "ChainTarget": "what solve_chain returns",
    "fine_tune_chain": "training of the steps of a chain",
    "GaussianChain": "a first law and linear steps, as data",
    "Step": "a step of a chain, as data",
    "Distillation": "what distill returns",
    "distill": "training of students in one program",
    "DiscreteTarget": "abstract",
    "Divergence": "abstract",
    "Equilibrium": "what solve_game returns",
    "Fit": "what fit returns",
    "Flip": "a part of what equilibrium_flips returns",
    "GamePath": "what mirror_prox and nash_md return",
    "GaussianChainTarget": "what solve_chain returns of a Gaussian chain",
    "GridTarget": "what solve_on_grid returns",
    "History": "a part of what trainers return",
    "ImpliedTarget": "what implied_target returns",
    "Layer": "a protocol",
    "Layers": "a name for a type",
    "MarkovReference": "a chain, of no batch",
    "MDP": "a process, as data",
    "MDPRun": "what fine_tune_mdp returns",
    "MDPTarget": "what solve_mdp returns",
    "MarkovEquilibrium": "what solve_game returns of a Markov game",
    "OccupancyTarget": "what solve_occupancy returns",
    "fine_tune_mdp": "training of policies of a process",
    "MirrorAscent": "what mirror_ascent returns",
    "MarkovGame": "transitions and rewards, as data",
    "MatrixGame": "payoffs, as data",
    "OptimisticPlay": "what optimistic_play returns",
    "SelfPlay": "what self_play returns",
    "MixtureFit": "what fit_mixture returns",
    "MixtureTarget": "what tilt returns",
    "MomentProjection": "what moment_projection returns",
    "imitate": "training of policies in one program",
    "SamplingRisk": "what sampling_risk returns",
    "TextProjection": "what moment_projection_on_automaton returns",
    "moment_projection_on_automaton": "moment_projection and solve_on_automaton in one",
    "Policy": "a protocol",
    "PowerTarget": "what power_tilt returns",
    "PreferenceTarget": "what preference_target returns",
    "TokenPreferenceTarget": "what token_preference_target returns",
    "PrefixTree": "sequences, as data",
    "Default": "what installed found of a setting",
    "Explanation": "text, with where it was read",
    "InstalledDefaults": "what installed returns",
    "Preset": "choices, as data, with where they were read",
    "PreferenceGame": "preferences, as data",
    "StageGames": "a step of a Markov game, as data",
    "Projection": "what project returns",
    "Reading": "what read returns",
    "Recipe": "choices, as data",
    "LossReading": "what divergence_of_loss returns",
    "TermReading": "what read_term returns",
    "policy_of": "a model of another library as a policy",
    "RegularizationGap": "what regularization_gap returns",
    "ScoreTarget": "what score_regularized returns",
    "TokenLocalTexts": "what token_local_on_automaton returns",
    "ValueIterates": "what mirror_descent_vi returns",
    "Weighted": "a function, as data",
    "RewardSum": "what adding rewards returns",
    "Run": "what trainers return",
    "RunStatus": "an enumeration",
    "SampleTarget": "what solve_on_samples returns",
    "Status": "an enumeration",
    "Summary": "text for people",
    "SummaryRow": "a part of that text",
    "PerToken": "what per_token returns",
    "per_token": "a root on the host, of one chain",
    "SuccessGain": "what success_gain returns",
    "Target": "what solve returns",
    "TokenLocalTarget": "what token_local_target returns",
    "action_flips": "roots on a path of processes, on the host",
    "equilibrium_flips": "roots on a path of games, on the host",
    "over_modes": "a task of another task",
    "regularization_gap": "a search for a better policy, of what solve_mdp returned",
    "score": "a language model's log-probabilities",
    "score_files": "files",
    "solve_occupancy": "a program of many constraints, row by row on the host",
    "watch": "a reward function of TRL, watched",
    "named": "a name, as text",
    "backward": "a walk with a function of the caller's",
    "bandit_play": "learning by simulation",
    "basins": "a climb from every point, on the host",
    "compare": "draws of a posterior, of counts",
    "difference": "a sentence",
    "critical_beta": "a formula in NumPy",
    "ConfigReading": "what from_config returns",
    "KeyRead": "a part of what from_config returns",
    "curve": "labelled data on families of policies",
    "diagnose": "statements on a log",
    "effective_beta": "a formula in NumPy",
    "equivalent_beta": "a root on the host",
    "existence_beta": "a formula of quadratics",
    "explore": "a widget",
    "find_modes": "a search for all local maxima",
    "forecast": "draws of a posterior, of counts",
    "fit_mixture": "a search from many starts",
    "from_config": "files",
    "from_sklearn": "another library's object",
    "explanation": "text",
    "explanations": "text",
    "explanations_from_toml": "files",
    "installed": "files of another package",
    "load_params": "files",
    "mirror_prox": "an iteration in a game",
    "nash_md": "an iteration in a game",
    "optimistic_play": "learning by simulation",
    "self_play": "training of two policies in a game",
    "TextHistory": "a part of what trainers on texts return",
    "TextRun": "what trainers on texts return",
    "f_dpg_on_texts": "training towards functions of texts",
    "fine_tune_on_texts": "training by functions of texts",
    "sft_on_texts": "training by draws of texts",
    "mirror_descent_vi": "an iteration on a process",
    "munchausen_vi": "an iteration on a process",
    "flip_weight": "a root on a path of objectives, a function",
    "mode_flip_beta": "a root on the host",
    "phase_boundaries": "labelled data on one problem",
    "preference_target": "a fit on the host, of a table",
    "preference_targets": "the same of several prompts",
    "preset": "choices, as data, with where they were read",
    "presets": "a table",
    "presets_from_toml": "files",
    "project": "a search for all local optima",
    "read": "a recipe in words",
    "divergence_of": "a function, looked at",
    "divergence_of_loss": "a function, looked at",
    "read_rollouts": "files",
    "read_term": "a function, looked at",
    "recipe": "choices, as data",
    "saturation_beta": "a root on the host",
    "save_params": "files",
    "summarize": "text for people",
    "sweep": "labelled data on many targets",
    "table": "text for people",
    "unregularized_path": "a path in NumPy",
    "verify": "a report on many runs",
}
"""Public names that are no functions of arrays, and what they are instead."""


ROOMS = (
    "adapters",
    "divergences",
    "frontier",
    "implied",
    "mixtures",
    "modes",
    "objectives",
    "policies",
    "projections",
    "recipes",
    "spaces",
    "targets",
    "training",
)
"""Rooms whose functions are of arrays; the others hold labelled data, pages and figures."""


def public_rooms():
    """Those rooms and every public package inside them, whether or not a room shows it."""
    rooms = [getattr(kt, name) for name in ROOMS]
    inside = [
        importlib.import_module(module.name)
        for room in rooms
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")
        if module.ispkg and "._" not in module.name
    ]
    return [room for room in (*rooms, *inside, references) if hasattr(room, "__all__")]


def public_names():
    """Every name at the top and in those rooms, with what it stands for."""
    names = {name: getattr(kt, name) for name in kt.__all__}
    for room in public_rooms():
        for name in room.__all__:
            names.setdefault(name, getattr(room, name))
    return names


def callables():
    return {name: x for name, x in public_names().items() if not isinstance(x, types.ModuleType)}


def test_every_public_name_has_a_row():
    assert set(callables()) == set(CONTRACTS) | set(NOT_OF_ARRAYS)
    assert set(CONTRACTS).isdisjoint(NOT_OF_ARRAYS)
    with pytest.raises(AttributeError, match="no attribute 'fine_tuned'"):
        _ = kt.fine_tuned


def test_a_name_has_one_meaning():
    """Views are called as what they show, and each room loads and saves what is its own."""
    meanings = {}
    for room in sorted(set(dir(kt)) - set(kt.__all__) - {"plot", "pages"}):
        for name in set(getattr(kt, room).__all__) - {"load", "save"}:
            meaning = getattr(getattr(kt, room), name)
            assert meanings.setdefault(name, meaning) is meaning, f"{room}.{name}"
    # Rows are by name.
    for room in public_rooms():
        for name in room.__all__:
            assert public_names()[name] is getattr(room, name), f"{room.__name__}.{name}"


def test_packages_inside_rooms_are_seen():
    seen = {room.__name__.removeprefix("kltarget.") for room in public_rooms()}
    assert {"targets.mdps", "recipes.configs", "adapters.lm", "objectives.references"} <= seen
    assert not any("._" in room for room in seen)


def test_the_top_is_what_people_type_first():
    assert len(kt.__all__) <= 52
    rooms = set(dir(kt)) - set(kt.__all__)
    assert all(isinstance(getattr(kt, room), types.ModuleType) for room in rooms)


HEAVY = ("optax", "tqdm", "pandas", "scipy", "xarray", "matplotlib", "hypothesis")


@pytest.mark.parametrize(
    ("steps", "without"),
    [
        ("import kltarget", ("jax", "numpy", *HEAVY)),
        ("from kltarget import solve, summarize", HEAVY),
    ],
    ids=["the package", "its core"],
)
def test_importing_loads_no_more_than_it_must(steps, without):
    found = subprocess.run(
        [sys.executable, "-c", f"{steps}; import sys; print(set(sys.modules) & {set(without)})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize("name", sorted(callables()))
def test_docstrings_say_what_is_promised(name):
    documented = callables()[name]
    text = inspect.getdoc(documented) or ""
    assert text, "no docstring"
    first = text.splitlines()[0]
    assert first.endswith((".", ":")) or ":" in first, first
    if name not in NOT_OF_ARRAYS:
        assert "Example:" in text
        assert ">>>" in text
    if inspect.isfunction(documented):
        parameters = inspect.signature(documented).parameters
        assert "Args:" in text or not parameters, "no Args"
        for parameter in parameters:
            assert f"{parameter}:" in text, f"{parameter} is not documented"
        annotations = inspect.get_annotations(documented)
        assert set(annotations) == {*inspect.signature(documented).parameters, "return"}


CLASSES = [name for name, x in callables().items() if inspect.isclass(x) and not issubclass(x, int)]


@pytest.mark.parametrize("name", CLASSES)
def test_methods_are_documented(name):
    documented = callables()[name]
    for method, x in vars(documented).items():
        if not method.startswith("_") and (inspect.isfunction(x) or isinstance(x, property)):
            assert inspect.getdoc(getattr(documented, method)), method


def results():
    """One result of every function that gives a target, by the name of its class."""
    means = jnp.asarray(TWO_MODES[0], jnp.float32)
    density, reward = modes_at(means), bowl(np.float32)
    problem = tuple(x[0].astype(np.float32) for x in PROBLEM)
    even = jnp.log(jnp.full((2, 2), 0.5, jnp.float32))
    one = jnp.ones((1, 1), jnp.float32)
    walk = kt.spaces.GaussianChain(one[0], one, one[None], one, one[None])
    return {
        "Target": kt.solve(kt.Objective(*problem)),
        "AutomatonTarget": on_texts(*problem[::2]),
        "AnchoredTarget": mara_on_automaton(on_texts(*problem[::2]), 0.5),
        "ChainTarget": on_chain(*problem),
        "GaussianChainTarget": solve_chain(walk, reward, 0.5),
        "MDPTarget": on_process(*problem),
        "OccupancyTarget": solve_occupancy(
            kt.spaces.MDP(MOVES.astype(np.float32), by_state(problem[0]), 0.5), even, 0.5
        ),
        "TokenLocalTarget": kt.token_local_target(PAIRS, *problem, kt.ForwardKL()),
        "ImpliedTarget": kt.implied_target(kt.Recipe(), *problem[:2], beta=0.5),
        "PreferenceTarget": implied.preference_target(
            tasks.Preferences([0, 1, 2], [1, 2, 3], [2, 1, 1], [1, 1, 3]), problem[1], 0.5
        ),
        "TokenPreferenceTarget": implied.token_preference_target(PAIRS, *problem, kl_weight=0.5),
        "MixtureTarget": mixtures.tilt(density, reward, 0.5),
        "PowerTarget": mixtures.power_tilt(density, reward, 0.5),
        "GridTarget": same_nodes(),
        "SampleTarget": kt.solve_on_samples(means, reward, 0.5),
    }


@pytest.mark.slow
def test_every_target_answers_the_same_questions():
    classes = {n: x for n, x in callables().items() if n.endswith("Target") and inspect.isclass(x)}
    found = results()
    assert set(classes) == {*found, "DiscreteTarget", "ScoreTarget"}
    stationary = {"TokenLocalTarget", "ImpliedTarget", "PreferenceTarget"}
    stationary |= {"TokenPreferenceTarget"}
    assert not any(issubclass(classes[name], targets.Target) for name in stationary)
    # Of pairs of a state and an action there are tables, and a process sums over its two steps.
    pairs = jnp.ones((2, 2), jnp.float32)
    ones = {"MDPTarget": pairs / 2, "OccupancyTarget": pairs}
    for name, target in found.items():
        assert target.raise_if_failed() is target
        numbers = ["expected_reward", "divergence_value", "status"]
        numbers.append("objective_value" if name in stationary else "value")
        numbers += [x for x in dir(target) if x.endswith("_error") and x != "expectation_error"]
        for number in numbers:
            assert jnp.shape(getattr(target, number)) == (), (name, number)
        assert hasattr(target, "value") == (name not in stationary)
        draws = target.sample(key=jax.random.key(0), num_samples=5)
        assert draws.shape[0] == 5
        assert target.log_prob(draws).shape == (5,), name
        with pytest.raises(TypeError, match="key must be a random key of JAX"):
            target.sample(key=0, num_samples=1)
        one = target.expectation(ones.get(name, lambda x: jnp.ones(x.shape[:1], jnp.float32)))
        np.testing.assert_allclose(one, 1, rtol=1e-4)


def test_randomness_wants_a_key_by_name():
    for name, x in callables().items():
        functions = [x] if inspect.isfunction(x) else [f for f in vars(x).values() if callable(f)]
        for function in filter(inspect.isfunction, functions):
            key = inspect.signature(function).parameters.get("key")
            if key is not None:
                assert key.kind is inspect.Parameter.KEYWORD_ONLY, name
                # Exact gradients are not random: where samples are an option, so is the key.
                chosen = "batch_size" in inspect.signature(function).parameters
                chosen = chosen and name not in ("fit", "verify") and "_texts" not in name
                chosen |= name in ("compare", "diagnose", "forecast", "fine_tune_mdp")
                assert key.default is (None if chosen else inspect.Parameter.empty), name


@pytest.mark.parametrize("key", [0, "0", None, np.zeros(3, np.uint32)], ids=repr)
def test_what_is_no_key_is_named(key):
    chain = kt.spaces.Chain(EVEN, np.stack([[EVEN, EVEN]]))
    with pytest.raises(TypeError, match=r"key must be a random key of JAX .* got"):
        chain.sample(key=key, num_samples=1)


def test_options_are_keyword_only():
    for name in CONTRACTS:
        function = callables()[name]
        if inspect.isfunction(function):
            for parameter in inspect.signature(function).parameters.values():
                if parameter.default not in (inspect.Parameter.empty, None):
                    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, (name, parameter)


COSTLY = ("TransformerPolicy", "dpo", "f_dpg", "moment_projection", "power_tilt", "solve_on_grid")
"""Rows of large programs, whose parts other rows and tests have too."""


QUICK = (
    "GaussianMixture",
    "Objective",
    "SequenceSpace",
    "TabularPolicy",
    "TotalVariation",
    "coverage",
    "effective_modes",
    "entropy",
    "fine_tune",
    "kl",
    "log_odds",
    "mara",
    "mode_log_mass",
    "normalize",
    "pass_at_k",
    "pass_at_k_from_counts",
    "reward_for",
    "solve",
)
"""Rows of small programs, and of the two that all others are about."""


ALIKE = (
    "Alpha",
    "ChiSquared",
    "ChiSquaredKL",
    "JensenShannon",
    "NeymanChiSquared",
    "ReverseKL",
    "SquaredHellinger",
    "Tsallis",
    "flip_beta",
    "greedy_limit",
    "mara_on_automaton",
    "reference_limit",
    "solve_on_automaton",
    "token_local_on_automaton",
    "token_local_target",
    "token_preference_target",
)
"""Rows whose programs are made as those of another row: ForwardKL's, collapse_beta's, solve's."""


def rows(names, slow=COSTLY, quick=CONTRACTS):
    """One parameter per row, of which some are left to the slow and to the broad tests."""
    marked = []
    for name in sorted(names):
        marks = [pytest.mark.slow] * (name in slow) + [pytest.mark.broad] * (name not in quick)
        marked.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("name", marked)


contracts = rows(CONTRACTS)
KINDS = sorted({np.dtype(np.float32), *DTYPES, np.dtype(jnp.bfloat16)}, key=str)


def cast(arguments, dtype):
    return tuple(x.astype(dtype) for x in arguments)


def leaves(result):
    return [np.asarray(x) for x in jax.tree.leaves(result)]


def close(got, want, dtype, ulps=64, floor=0.0):
    for x, y in zip(leaves(got), leaves(want), strict=True):
        bound = ulps * eps(dtype)
        np.testing.assert_allclose(
            np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=bound, atol=bound + floor
        )


@rows(CONTRACTS, slow=(*COSTLY, *ALIKE), quick=QUICK)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_jit_vmap_and_loops_agree(name, dtype):
    contract = CONTRACTS[name]
    arguments = cast(contract.arguments, dtype)
    eager = contract.run(*arguments)

    def row(k, *arrays):
        return contract.run(*(x[k] for x in arrays))

    if not contract.traced:
        rows = [row(k, *arguments) for k in range(2)]
        close(jax.tree.map(lambda *x: np.stack(x), *rows), eager, dtype)
        return
    together = jax.jit(lambda *x: (jax.vmap(contract.run)(*x), row(1, *x)))
    mapped, alone = together(*arguments)
    close(mapped, eager, dtype)
    close(alone, jax.tree.map(lambda x: np.asarray(x)[1], eager), dtype)


@contracts
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_the_dtype_is_kept(name, dtype):
    contract = CONTRACTS[name]
    if dtype == jnp.bfloat16 and contract.narrow is None:
        return
    # Tracing knows the dtypes: nothing need be compiled.
    run = functools.partial(jax.eval_shape, contract.run) if contract.traced else contract.run
    for x in jax.tree.leaves(run(*cast(contract.arguments, dtype))):
        assert x.dtype == dtype or jnp.issubdtype(x.dtype, np.integer), x.dtype


@pytest.mark.slow
@rows(x for x in CONTRACTS if CONTRACTS[x].narrow is not None and x not in ALIKE)
def test_sixteen_bit_inputs_lose_no_more_than_their_own_rounding(name):
    contract = CONTRACTS[name]
    run = jax.jit(contract.run) if contract.traced else contract.run
    got, wide = (run(*cast(contract.arguments, t)) for t in (jnp.bfloat16, np.float32))
    for x, y in zip(leaves(got), leaves(wide), strict=True):
        np.testing.assert_allclose(
            x.astype(np.float32), y, rtol=contract.narrow, atol=contract.narrow
        )


LOGARITHMIC = set(CONTRACTS) - {"reward_for", "normalize", "log_odds", *COSTLY}


def with_impossible_outcomes(name):
    """The arguments of a function of log-probabilities with -inf on both sides."""
    masked = cast((LOG_POLICY, LOG_REF, REWARD), np.float32)
    policy, log_ref, reward = (x.copy() for x in masked)
    policy[:, 1] = log_ref[:, 1] = reward[:, 2] = -INF
    policy = oracles.log_normalised(policy.astype(np.float64), np.float32)
    replaced = {id(LOG_POLICY): policy, id(LOG_REF): log_ref, id(REWARD): reward}
    return tuple(replaced.get(id(x), x.astype(np.float32)) for x in CONTRACTS[name].arguments)


@rows((x for x in CONTRACTS if CONTRACTS[x].differentiable), slow=(*COSTLY, *ALIKE), quick=QUICK)
def test_derivatives_are_finite_and_not_all_zero(name):
    contract = CONTRACTS[name]

    @functools.partial(jax.grad, argnums=tuple(range(len(contract.arguments))))
    def total(*arrays):
        found = jax.tree.leaves(contract.run(*arrays))
        return sum(jnp.sum(jnp.sin(jnp.where(jnp.isinf(x), 0.0, x))) for x in found)

    arguments, derivatives = cast(contract.arguments, np.float32), jax.jit(total)
    gradients = derivatives(*arguments)
    assert all(np.isfinite(x).all() for x in gradients)
    assert any(np.any(np.asarray(x) != 0) for x in gradients)
    for x, argument in zip(gradients, arguments, strict=True):
        assert x.dtype == argument.dtype
        assert x.shape == argument.shape
    if name in LOGARITHMIC:
        # Where sums of infinities would make NaNs.
        masked = derivatives(*with_impossible_outcomes(name))
        assert all(np.isfinite(x).all() for x in masked)


@pytest.mark.parametrize(
    ("name", "index"),
    [(name, k) for name in sorted(CONTRACTS) for k in range(len(CONTRACTS[name].bad))],
)
def test_bad_input_gives_the_promised_error(name, index):
    bad = CONTRACTS[name].bad[index]
    with pytest.raises(bad.error, match=bad.message):
        bad.call()


@contracts
def test_every_row_refuses_something(name):
    assert CONTRACTS[name].bad
    assert np.shape(CONTRACTS[name].arguments[0])[0] == 2
