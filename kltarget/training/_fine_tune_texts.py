"""Training on texts too many to list: rewards and references are functions, gradients sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from kltarget._core.checks import positive
from kltarget._core.pytrees import as_function
from kltarget.divergences import Divergence
from kltarget.policies import Policy
from kltarget.recipes import Recipe
from kltarget.training import _methods, _run_setup
from kltarget.training._engine import Options
from kltarget.training._outcomes import sequences_of
from kltarget.training._runs import TextRun
from kltarget.training._texts import Texts

_ELSEWHERE = {"teacher": 0.0, "reward_weights": None}
"""Settings of a recipe that need a list of sequences, and what they are without one."""


def fine_tune_on_texts(
    policy: Policy,
    params: Any,
    reward: Callable[[Int[Array, "N T"]], Float[Array, " N"]],
    recipe: Recipe,
    *,
    batch_size: int,
    key: PRNGKeyArray,
    learning_rate: ArrayLike,
    num_steps: int,
    beta: ArrayLike | None = None,
    reward_scale: ArrayLike = 1.0,
    log_ref: Callable[[Int[Array, "N T"]], Float[Array, "N T"]] | None = None,
    num_measured: int = 1024,
    **options: Any,
) -> TextRun:
    """Fine-tunes copies of a policy on texts too many to list, by samples alone.

    As :func:`kltarget.fine_tune` with a ``batch_size``, of which nothing is ever enumerated: each
    copy ascends the sampled gradient that a trainer with this recipe follows for
    ``E_π[reward_scale · reward] − beta · D(π, π_ref)``, and what is measured of it are means over
    samples with their standard errors.

    Args:
        policy: any :class:`Policy` over sequences.
        params: its parameters, from which every run starts.
        reward: of texts, a function of tokens ``[N, T]`` that gives finite rewards ``[N]``. A new
            function object is compiled anew, unless it is a pytree.
        recipe: how the regulariser is estimated and where it is put, and how rewards become
            advantages; without teachers and several rewards.
        batch_size: texts per step, a multiple of the recipe's ``group_size``.
        key: random keys; runs that share a key share their random numbers.
        learning_rate: what ``optimizer`` is called with.
        num_steps: number of gradient steps.
        beta: coefficient of the regulariser, in reward units per nat; by default the recipe's.
        reward_scale: factor of the reward, beside the recipe's own.
        log_ref: log-probabilities of the tokens of texts ``[N, T]`` under the reference, such as
            ``kltarget.spaces.MarkovReference.log_probs``; by default the policy at ``params``.
        num_measured: texts that a measurement samples.
        **options: ``optimizer``, ``history_every``, ``chunk_runs``, ``devices``, ``progress`` and
            ``measure`` as in :func:`kltarget.fine_tune`.

    Returns:
        The runs. One that becomes NaN or infinite is stopped and says so in its status.

    Raises:
        TypeError: a policy, recipe or reward that is none.
        ValueError: values out of range, functions that give other shapes, settings of the recipe
            that need a list of sequences; the message names the argument.

    Not differentiable, and not to be called under a trace.

    Example:
        The 4,096 texts of twelve coins, of which those with more heads are better:

        >>> import jax, jax.numpy as jnp
        >>> from kltarget.policies import GRUPolicy
        >>> from kltarget.recipes import Recipe
        >>> from kltarget.training import fine_tune_on_texts
        >>> policy = GRUPolicy(vocab_size=2, length=12, width=4)
        >>> run = fine_tune_on_texts(
        ...     policy,
        ...     policy.init(key=jax.random.key(0)),
        ...     lambda tokens: tokens.mean(-1),
        ...     Recipe(),
        ...     beta=0.01,
        ...     batch_size=32,
        ...     key=jax.random.key(1),
        ...     learning_rate=0.05,
        ...     num_steps=60,
        ...     history_every=60,
        ... )
        >>> bool(run.history.expected_reward[-1] > 0.7)
        True

    References:
        Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
        learning", 1992.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a kltarget.recipes.Recipe, got {recipe!r}")
    for name, plain in _ELSEWHERE.items():
        if getattr(recipe, name) != plain:
            raise ValueError(
                f"{name}={getattr(recipe, name)!r} of the recipe needs a list of sequences, which "
                f"texts are not: fine_tune has them, texts need {plain!r}"
            )
    if log_ref is not None and recipe.temperature != 1:
        raise ValueError(
            f"temperature={recipe.temperature:g} of the recipe divides the reference's logits too, "
            "which a function log_ref does not show: leave log_ref out or set temperature=1.0"
        )
    if log_ref is not None and recipe.reference != "fixed":
        raise ValueError(
            f"log_ref cannot be given with reference={recipe.reference!r} of the recipe: leave it "
            "out, or set reference='fixed'"
        )
    _run_setup.check_batch(recipe, positive("batch_size", batch_size))
    beta = recipe.beta if beta is None else beta
    if beta is None:
        beta = 0.0 if recipe.place == "none" else 1.0 if recipe.kl_target is not None else None
    if beta is None:
        raise ValueError("beta is needed: pass beta=0.1, for instance, or give it to the recipe")
    outcomes = _texts_of(policy, num_measured)
    outcomes = dataclasses.replace(outcomes, known=_run_setup.of_tokens(recipe, outcomes))
    functions = {
        "reward": _of_texts(outcomes, params, reward, "reward", ()),
        "token_log_ref": _reference(outcomes, params, recipe, log_ref),
    }
    # Methods that share a recipe but for beta share a program.
    method = _methods.PolicyGradient(dataclasses.replace(recipe, beta=None), batch_size)
    numbers = {"beta": beta, "reward_scale": reward_scale, "learning_rate": learning_rate}
    shared = {"reward": _of_no_text(outcomes, params), "functions": functions}
    problem = (outcomes, params, method, shared, numbers, num_steps, key, Options(**options))
    return _run_setup.train_runs(*problem, recipe=recipe)


def sft_on_texts(
    policy: Policy,
    params: Any,
    sample: Callable[..., Int[Array, "N T"]],
    *,
    batch_size: int,
    key: Shaped[Array, "..."],
    learning_rate: ArrayLike,
    num_steps: int,
    log_target: Callable[[Int[Array, "N T"]], Float[Array, "N T"]] | None = None,
    num_measured: int = 1024,
    **options: Any,
) -> TextRun:
    """Supervised fine-tuning on texts too many to list: ``max E_p[log π]`` on fresh samples of p.

    This minimises the forward KL ``KL(p‖π)`` to the distribution that the samples are from.

    Args:
        policy: any :class:`Policy` over sequences.
        params: its parameters, from which every run starts.
        sample: draws texts, a function of ``key=`` and ``num_samples=`` that gives tokens
            ``[num_samples, T]``, such as ``kltarget.spaces.MarkovReference(…).sample`` with its
            length given.
        batch_size: texts per step.
        key: random keys.
        learning_rate: what ``optimizer`` is called with.
        num_steps: number of gradient steps.
        log_target: log-probabilities of the tokens of texts under p, for the history's KL; without
            it that is NaN.
        num_measured: texts that a measurement samples.
        **options: as in :func:`fine_tune_on_texts`.

    Returns:
        The runs. In their history the reference is p, ``reverse_kl`` is ``KL(π‖p)``, and there is
        no reward.

    Raises:
        TypeError: a policy or a function that is none.
        ValueError: values out of range, functions that give other shapes.

    Example:
        >>> import functools, jax
        >>> from kltarget.policies import GRUPolicy
        >>> from kltarget.spaces import MarkovReference
        >>> from kltarget.training import sft_on_texts
        >>> reference = MarkovReference.fit(["abab", "aabb", "bbab"], smoothing=1.0)
        >>> policy = GRUPolicy(vocab_size=2, length=30, width=4)
        >>> run = sft_on_texts(
        ...     policy,
        ...     policy.init(key=jax.random.key(0)),
        ...     functools.partial(reference.sample, length=30),
        ...     log_target=reference.log_probs,
        ...     batch_size=64,
        ...     key=jax.random.key(1),
        ...     learning_rate=0.05,
        ...     num_steps=60,
        ...     history_every=60,
        ... )
        >>> bool(run.history.reverse_kl[-1] < 0.2)
        True
    """
    positive("batch_size", batch_size)
    outcomes = _texts_of(policy, num_measured)
    drawn = jax.eval_shape(lambda key: sample(key=key, num_samples=2), jax.random.key(0))
    if drawn.shape != (2, outcomes.space.length):
        raise ValueError(
            f"sample must draw tokens of shape [num_samples, {outcomes.space.length}], but of 2 it "
            f"gives shape {drawn.shape}"
        )
    nothing = jax.tree_util.Partial(_nothing)
    known = jax.tree_util.Partial(_unknown) if log_target is None else log_target
    functions = {
        "reward": nothing,
        "token_log_ref": _of_texts(outcomes, params, known, "log_target", (outcomes.space.length,)),
    }
    shared = {
        "reward": _of_no_text(outcomes, params),
        "functions": functions,
        "sample": as_function(sample),
    }
    method = _methods.Imitation(batch_size)
    numbers = {"beta": 1.0, "reward_scale": 1.0, "learning_rate": learning_rate}
    problem = (outcomes, params, method, shared, numbers, num_steps, key, Options(**options))
    return _run_setup.train_runs(*problem)


def f_dpg_on_texts(
    policy: Policy,
    params: Any,
    log_target: Callable[[Int[Array, "N T"]], Float[Array, " N"]],
    divergence: Divergence,
    *,
    batch_size: int,
    key: Shaped[Array, "..."],
    learning_rate: ArrayLike,
    num_steps: int,
    num_measured: int = 1024,
    **options: Any,
) -> TextRun:
    """Minimises any f-divergence to a target over texts too many to list, ``D_f(π‖p)``.

    As :func:`f_dpg` with a ``batch_size``: texts are drawn from the policy and rewarded with
    ``−f′(π/p)``, of which the target has only to say log-probabilities. Those of targets on
    automata are exact, partition function and all.

    Args:
        policy: any :class:`Policy` over sequences.
        params: its parameters, from which every run starts.
        log_target: log-probabilities of whole texts, a function of tokens ``[N, T]`` that gives
            ``[N]``, such as ``kltarget.solve_on_automaton(…).log_prob``. They must
            be normalised: of reverse KL alone no step depends on it.
        divergence: any f-divergence, the policy first. Where the policy goes and the target cannot,
            f must have a finite slope at infinity, as of forward KL, Jensen–Shannon and total
            variation: the reward is else ``−inf``, and the run stops as ``NON_FINITE``.
        batch_size: texts per step, at least 2.
        key: random keys; runs that share a key share their random numbers.
        learning_rate: what ``optimizer`` is called with.
        num_steps: number of gradient steps.
        num_measured: texts that a measurement samples.
        **options: as in :func:`fine_tune_on_texts`.

    Returns:
        The runs. In their history the reference is the target, ``reverse_kl`` is ``KL(π‖p)``, and
        there is no reward.

    Raises:
        TypeError: a policy, target or divergence that is none.
        ValueError: values out of range, a function that gives another shape.

    Not differentiable, and not to be called under a trace.

    Example:
        Towards texts of a chain in which a word is found half of the time:

        >>> import jax, kltarget as kt
        >>> from kltarget.policies import MarkovPolicy
        >>> from kltarget.projections import moment_projection_on_automaton
        >>> from kltarget.training import f_dpg_on_texts
        >>> reference = kt.spaces.MarkovReference.fit(["abab", "aabb", "bbab"], smoothing=1.0)
        >>> word = kt.spaces.Automaton.from_words(["bbb"], "ab")
        >>> projection = moment_projection_on_automaton(
        ...     reference, word, word.accepting, [0.5], length=30
        ... )
        >>> policy = MarkovPolicy(2, 30, 2)
        >>> run = f_dpg_on_texts(
        ...     policy,
        ...     policy.init(key=jax.random.key(0)),
        ...     projection.target.log_prob,
        ...     kt.ReverseKL(),
        ...     batch_size=64,
        ...     key=jax.random.key(1),
        ...     learning_rate=0.1,
        ...     num_steps=60,
        ...     history_every=60,
        ... )
        >>> bool(run.history.reverse_kl[-1] < run.history.reverse_kl[0] / 2)
        True

    References:
        Go et al., "Aligning Language Models with Preferences through f-divergence Minimization",
        2023, arXiv 2302.08215. Khalifa, Elsahar and Dymetman, "A Distributional Approach to
        Controlled Text Generation", 2021, arXiv 2012.11635 (the targets).
    """
    if not isinstance(divergence, Divergence):
        raise TypeError(f"divergence must be a kltarget.Divergence, got {divergence!r}")
    method = _methods.PseudoReward(positive("batch_size", batch_size, 2))
    outcomes = _texts_of(policy, num_measured)
    known = _of_texts(outcomes, params, log_target, "log_target", ())
    functions = {
        "reward": jax.tree_util.Partial(_nothing),
        "log_ref": known,
        "token_log_ref": jax.tree_util.Partial(_as_of_one_token, known),
    }
    shared = {
        "reward": _of_no_text(outcomes, params),
        "functions": functions,
        "divergence": divergence,
    }
    numbers = {"beta": 1.0, "reward_scale": 1.0, "learning_rate": learning_rate}
    problem = (outcomes, params, method, shared, numbers, num_steps, key, Options(**options))
    return _run_setup.train_runs(*problem)


def _texts_of(policy: Any, num_measured: int) -> Texts:
    positive("num_measured", num_measured, 2)
    listed = sequences_of(policy)
    return Texts(listed.policy, listed.space, num_measured=num_measured)


def _reference(outcomes: Texts, params: Any, recipe: Recipe, log_ref: Any) -> Any:
    """The reference's log-probabilities of tokens, as a function of texts."""
    if recipe.reference == "none":
        return jax.tree_util.Partial(_zeros)
    if log_ref is None:
        policy = outcomes.at(recipe.temperature).policy
        return jax.tree_util.Partial(policy.log_probs, params)
    return _of_texts(outcomes, params, log_ref, "log_ref", (outcomes.space.length,))


def _of_texts(outcomes: Texts, params: Any, function: Any, name: str, own: tuple[int, ...]) -> Any:
    """A function of texts as a pytree, or an error that names it."""
    if not callable(function):
        raise TypeError(
            f"{name} must be a function of tokens [N, {outcomes.space.length}], got "
            f"{type(function).__name__}: texts are too many for an array"
        )
    texts = jax.ShapeDtypeStruct((3, outcomes.space.length), jnp.int32)
    shape = jax.eval_shape(function, texts).shape
    if shape != (3, *own):
        raise ValueError(
            f"{name} must turn tokens [N, {outcomes.space.length}] into numbers of shape "
            f"[{', '.join(['N', *map(str, own)])}], but of 3 texts it makes shape {shape}"
        )
    return as_function(function)


def _of_no_text(outcomes: Texts, params: Any) -> Array:
    """The rewards that are known beforehand: none, of the policy's dtype."""
    texts = jax.ShapeDtypeStruct((1, outcomes.space.length), jnp.int32)
    return jnp.zeros(0, jax.eval_shape(outcomes.policy.log_probs, params, texts).dtype)


def _nothing(tokens: Array) -> Array:
    return jnp.zeros(tokens.shape[:-1])


def _as_of_one_token(log_prob: Any, tokens: Array) -> Array:
    """What a text's tokens add up to, as if it were one token."""
    return log_prob(tokens)[..., None]


def _zeros(tokens: Array) -> Array:
    return jnp.zeros(tokens.shape)


def _unknown(tokens: Array) -> Array:
    return jnp.full(tokens.shape, jnp.nan)
