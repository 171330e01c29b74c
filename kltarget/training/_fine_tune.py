"""Gradient-based fine-tuning of thousands of small policies at once.

Nothing here looks at a closed form: the targets computed elsewhere in this package can be checked
against what these trainers reach.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from kltarget._core.checks import positive_if_given
from kltarget.divergences import Divergence, ForwardKL, ReverseKL
from kltarget.policies import Policy
from kltarget.policies._mixture_policy import GaussianMixturePolicy
from kltarget.recipes import Recipe
from kltarget.tasks import Preferences
from kltarget.tasks._preferences import smoothing_of
from kltarget.training import _methods, _run_setup
from kltarget.training._engine import Optimizer, Options
from kltarget.training._outcomes import outcomes_of, sequences_of
from kltarget.training._runs import Run


def fine_tune(
    policy: Policy | GaussianMixturePolicy,
    params: Any,
    reward: Float[Array, "A"] | Callable[..., Any],
    recipe: Recipe,
    *,
    beta: ArrayLike | None = None,
    learning_rate: ArrayLike,
    num_steps: int,
    reward_scale: ArrayLike = 1.0,
    key: PRNGKeyArray | None = None,
    optimizer: Optimizer = optax.adam,
    batch_size: int | None = None,
    gradient: str = "score",
    log_ref: ArrayLike | Callable[..., Any] | None = None,
    log_teacher: ArrayLike | None = None,
    divergence: Divergence | None = None,
    modes: ArrayLike | None = None,
    history_every: int | None = 100,
    gradient_tol: float = 1e-5,
    chunk_runs: int | None = None,
    devices: Any = None,
    progress: bool = False,
    measure: bool = True,
) -> Run:
    """Fine-tunes copies of a policy on a reward with a regulariser, all in one compiled program.

    Each copy ascends the gradient that a trainer with this recipe follows for
    ``E_π[reward_scale · reward] − beta · D(π, π_ref)``. ``beta``, ``reward_scale``,
    ``learning_rate`` and ``key`` may each have batch axes; they broadcast together to ``*batch``,
    one run per entry.

    Args:
        policy: any :class:`Policy`, or a :class:`GaussianMixturePolicy`.
        params: its parameters, from which every run starts; floating-point leaves.
        reward: of every sequence, in the order of the policy's sequence space, shape ``[V**L]``, of
            several ``[J, V**L]``; finite wherever a sequence is possible. Of vectors an array
            ``[N]`` over the grid's points or a function ``[..., d] → [...]``, which samples and
            pathwise gradients need; a new function object is compiled anew, unless it is a pytree.
        recipe: how the regulariser is estimated and where it is put, and how rewards become
            advantages. Without a ``group_size`` a batch is one group; exact gradients are then
            those of infinitely large groups. With one they are expectations over all groups, for
            which rewards may take only a few different values.
        beta: coefficient of the regulariser, in reward units per nat, 0 or more; by default the
            recipe's. Where a controller moves it, what it starts from, by default 1.
        learning_rate: what ``optimizer`` is called with.
        num_steps: number of gradient steps.
        reward_scale: factor of the reward, beside the recipe's own.
        key: random keys; needed with ``batch_size``. Runs that share a key share their random
            numbers.
        optimizer: makes an optax transformation from a learning rate, such as ``optax.sgd`` or
            ``lambda rate: optax.chain(optax.clip(1.0), optax.adam(rate))``. A new function object
            is compiled anew.
        batch_size: samples per step, a multiple of the recipe's ``group_size``; None follows the
            exact gradient, summed over all sequences. Pathwise, it is of each component.
        gradient: ``"score"``, what trainers follow: that of the recipe, by score function; or, of a
            Gaussian mixture, ``"pathwise"``: that of ``E_π[reward − β k(log π/π_ref)]`` through
            the samples, with the recipe's estimator k, wherever it is placed. Its regulariser is
            thus what the estimator's *value* estimates: k3, which as a loss follows the forward
            KL, is then the reverse KL.
        log_ref: reference log-probabilities over sequences, ``[V**L]``; by default the policy at
            ``params``. Of vectors log-masses ``[N]`` of the grid's points, or the log-density as a
            function, as for rewards. A reference that moves starts as the policy.
        log_teacher: log-probabilities of a teacher, ``[V**L]``, for recipes that have one.
        divergence: what the reported gap is of; by default what the recipe follows at sequence
            level or, where it follows none, reverse KL, which all its estimators estimate.
        modes: integer mode label of every sequence, ``[V**L]``, negative in no mode, for the
            effective modes of the history; by default each sequence is a mode.
        history_every: steps between measurements, which sum over all sequences whatever the
            ``batch_size``; None measures at the end alone.
        gradient_tol: a run has converged when its exact gradient's norm is at most this times beta
            (times 1 where beta is 0). With exact gradients it then stops.
        chunk_runs: how many runs are trained at a time, to fit memory, at least one per device; by
            default as many as have 2^20 sequences at hand per device and step.
        devices: the devices that the runs are dealt to, ``jax.devices()`` by default. Where
            ``jax.distributed`` has joined several processes these are the devices of all: each has
            to make the same call, trains its share and gets all runs. ``jax.local_devices()``
            trains in one process alone.
        progress: show a tqdm bar with the time left and, as often as runs are measured, the mean
            reward and reverse KL of those in work.
        measure: False leaves out every measurement, the last one too, which can take as long as a
            hundred steps where there are many sequences: of what is returned the parameters count,
            ``log_probs`` are of shape ``[*batch, 0]``, the history has no steps, gap and gradient
            norm are NaN.

    Returns:
        The runs. A run depends on nothing but its own settings: not on its neighbours, on how often
        it is measured, nor, up to rounding, on chunks and devices. One that becomes NaN or infinite
        is stopped and says so in its status.

    Raises:
        TypeError: a policy, recipe or optimiser that is none.
        ValueError: shapes that do not fit, values out of range, a missing key; the message names
            the argument.

    Not differentiable, and not to be called under a trace.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.recipes import Recipe
        >>> from kltarget.policies import TabularPolicy
        >>> from kltarget.training import fine_tune
        >>> policy = TabularPolicy(vocab_size=2, length=2)
        >>> params = policy.init(key=jax.random.key(0))
        >>> reward = jnp.array([1.0, 0.0, 0.0, 1.0])
        >>> run = fine_tune(
        ...     policy,
        ...     params,
        ...     reward,
        ...     Recipe(place="reward", estimator="k1"),
        ...     beta=jnp.array([0.5, 2.0]),
        ...     learning_rate=0.1,
        ...     num_steps=300,
        ...     gradient_tol=1e-3,
        ... )
        >>> run.converged.tolist(), bool((run.gap < 0.05).all())
        ([True, True], True)

    References:
        Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
        learning", 1992. Frank and Wolfe, "An algorithm for quadratic programming", 1956; Jaggi,
        "Revisiting Frank-Wolfe: Projection-Free Sparse Convex Optimization", 2013 (the gap as a
        certificate).
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a kltarget.recipes.Recipe, got {recipe!r}")
    outcomes = outcomes_of(policy)
    _run_setup.check_vectors(outcomes, recipe, gradient)
    _run_setup.check_batch(recipe, batch_size)
    beta = recipe.beta if beta is None else beta
    if beta is None and recipe.kl_target is not None:
        beta = 1.0
    elif beta is None and recipe.place == "none":
        beta = 0.0
    if beta is None:
        raise ValueError("beta is needed: pass beta=0.1, for instance, or give it to the recipe")
    options = Options(
        optimizer, history_every, gradient_tol, chunk_runs, devices, progress, measure
    )
    # Recipes that differ in beta share a program.
    kind = _methods.Pathwise if gradient == "pathwise" else _methods.PolicyGradient
    method = kind(dataclasses.replace(recipe, beta=None), batch_size)
    if divergence is None and recipe.place != "none":
        divergence = None if gradient == "pathwise" else recipe.divergence
        divergence = divergence or ReverseKL()
    reward, rewards = _run_setup.one_reward(recipe, outcomes, reward)
    off_grid = _run_setup.functions(method, outcomes, params, reward=reward, log_ref=log_ref)
    given = (reward, log_ref, divergence, modes)
    shared, num_modes = _run_setup.shared_arrays(outcomes, params, *given)
    shared |= off_grid
    if gradient == "score":
        own = (recipe, outcomes, shared["reward"])
        dtype = shared["reward"].dtype
        shared |= _run_setup.of_recipe(*own, rewards, batch_size is None)
        shared |= _run_setup.reference_of(recipe, outcomes, params, log_ref, dtype)
        shared |= _run_setup.teacher_of(recipe, outcomes, log_teacher, dtype)
    numbers = {"beta": beta, "reward_scale": reward_scale, "learning_rate": learning_rate}
    problem = (outcomes, params, method, shared, numbers, num_steps, key, options)
    return _run_setup.train_runs(*problem, num_modes=num_modes, recipe=recipe)


def sft(
    policy: Policy | GaussianMixturePolicy,
    params: Any,
    log_target: Float[Array, "*batch A"] | Callable[..., Any],
    *,
    learning_rate: ArrayLike,
    num_steps: int,
    key: PRNGKeyArray | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Run:
    """Supervised fine-tuning: maximum likelihood of a given distribution, ``max E_p[log π]``.

    This minimises the forward KL ``KL(p‖π)`` to the target p.

    Args:
        policy: any :class:`Policy`, or a :class:`GaussianMixturePolicy`.
        params: its parameters, from which every run starts.
        log_target: log-probabilities of the sequences, ``[*batch, V**L]``; its batch axes broadcast
            with those of the learning rate and the key. For vectors log-masses ``[*batch, N]`` of
            the grid's points, which samples are then drawn from, or a log-density
            ``[..., d] → [...]``.
        learning_rate: what the optimiser is called with.
        num_steps: number of gradient steps.
        key: random keys; needed with ``batch_size``.
        batch_size: sequences drawn from the target per step; None for the exact gradient.
        **options: ``optimizer``, ``history_every``, ``gradient_tol``, ``chunk_runs``, ``devices``,
            ``progress`` and ``measure`` as in :func:`fine_tune`.

    Returns:
        The runs. In their history the reference of both KLs is the target, there is no reward, and
        the gap bounds ``KL(p‖π)`` from above.

    Raises:
        ValueError: shapes that do not fit, values out of range, a missing key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.policies import TabularPolicy
        >>> from kltarget.training import sft
        >>> policy = TabularPolicy(vocab_size=2, length=2)
        >>> target = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
        >>> run = sft(
        ...     policy,
        ...     policy.init(key=jax.random.key(0)),
        ...     target,
        ...     learning_rate=0.1,
        ...     num_steps=200,
        ...     gradient_tol=1e-4,
        ... )
        >>> print(jnp.exp(run.log_probs).round(3))
        [0.4 0.3 0.2 0.1]
    """
    method = _methods.MaximumLikelihood(positive_if_given("batch_size", batch_size))
    problem = (policy, params, log_target, ForwardKL(), method)
    return _run_setup.to_target(*problem, learning_rate, num_steps, key, options)


def f_dpg(
    policy: Policy | GaussianMixturePolicy,
    params: Any,
    log_target: Float[Array, "*batch A"] | Callable[..., Any],
    divergence: Divergence,
    *,
    learning_rate: ArrayLike,
    num_steps: int,
    key: PRNGKeyArray | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Run:
    """Minimises any f-divergence to a given target, ``D_f(π‖p)``, by policy gradient.

    The policy gradient with the pseudo-reward ``−f′(π/p)`` is that of the divergence; samples come
    from the policy and are compared with each other (leave-one-out baseline).

    Args:
        policy: any :class:`Policy`, or a :class:`GaussianMixturePolicy`.
        params: its parameters, from which every run starts.
        log_target: log-probabilities p of the sequences, ``[*batch, V**L]``. For vectors log-masses
            ``[*batch, N]`` of the grid's points or, with samples, a log-density
            ``[..., d] → [...]``.
        divergence: any f-divergence, the policy first: :class:`kltarget.ReverseKL` is
            ``KL(π‖p)``.
        learning_rate: what the optimiser is called with.
        num_steps: number of gradient steps.
        key: random keys; needed with ``batch_size``.
        batch_size: samples per step, at least 2; None for the exact gradient.
        **options: ``optimizer``, ``history_every``, ``gradient_tol``, ``chunk_runs``, ``devices``,
            ``progress`` and ``measure`` as in :func:`fine_tune`.

    Returns:
        The runs. In their history the reference of both KLs is the target, there is no reward, and
        the gap bounds ``D_f(π‖p)`` from above.

    Raises:
        ValueError: shapes that do not fit, values out of range, a missing key.

    Example:
        >>> import jax, jax.numpy as jnp, kltarget as kt
        >>> from kltarget.policies import TabularPolicy
        >>> from kltarget.training import f_dpg
        >>> policy = TabularPolicy(vocab_size=2, length=2)
        >>> target = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
        >>> run = f_dpg(
        ...     policy,
        ...     policy.init(key=jax.random.key(0)),
        ...     target,
        ...     kt.JensenShannon(),
        ...     learning_rate=0.1,
        ...     num_steps=200,
        ...     gradient_tol=1e-4,
        ... )
        >>> print(jnp.exp(run.log_probs).round(3))
        [0.4 0.3 0.2 0.1]

    References:
        Go et al., "Aligning Language Models with Preferences through f-divergence Minimization",
        2023, arXiv 2302.08215.
    """
    if not isinstance(divergence, Divergence):
        raise TypeError(f"divergence must be a kltarget.Divergence, got {divergence!r}")
    method = _methods.PseudoReward(positive_if_given("batch_size", batch_size, 2))
    problem = (policy, params, log_target, divergence, method)
    return _run_setup.to_target(*problem, learning_rate, num_steps, key, options)


def dpo(
    policy: Policy,
    params: Any,
    reward: Float[Array, "A"] | None,
    *,
    beta: ArrayLike,
    learning_rate: ArrayLike,
    num_steps: int,
    reward_scale: ArrayLike = 1.0,
    key: PRNGKeyArray | None = None,
    batch_size: int | None = None,
    pairs: str | Preferences = "reference",
    loss: Literal["dpo", "ipo"] = "dpo",
    label_smoothing: float = 0.0,
    divergence: Divergence | None = None,
    ratio_weight: ArrayLike | None = None,
    kl_weight: ArrayLike | None = None,
    kl_gradient: Literal["both", "loser"] = "both",
    log_ref: ArrayLike | None = None,
    modes: ArrayLike | None = None,
    **options: Any,
) -> Run:
    """Direct preference optimisation on pairs of sequences, labelled by their rewards or given.

    Of a pair the first is preferred with probability ``σ(r₁ − r₂)``, where r is the reward times
    its scale (Bradley–Terry); the policy maximises the likelihood of the labels under rewards of
    ``beta · f′(π/π_ref)``, with reverse KL ``beta · log π/π_ref``. With all pairs and any policy at
    hand its optimum is the target of r at beta. IPO instead minimises the square of
    ``f′(π/π_ref)`` of the winner less that of the loser less ``1/(2 beta)``.

    With weights of tokens what is compared is ``Σ_t m_t log π/π_ref(a_t|s_t) + Σ_t d_t
    KL(π_ref(·|s_t)‖π(·|s_t))``, m the ``ratio_weight`` and d the ``kl_weight``, in place of the log
    ratio. ``kl_weight=1.0`` makes it TDPO, with ``kl_gradient="loser"`` and any weight TDPO's
    second loss; masks of tokens make it SparsePO with masks that are given, not learned.
    :func:`kltarget.implied.token_preference_target` is where it ends.

    Args:
        policy: any :class:`Policy`.
        params: its parameters, from which every run starts.
        reward: of every sequence, ``[V**L]``; a unit is a nat of preference. Given pairs have their
            labels: there it is only measured, and may be None.
        beta: coefficient of the implied regulariser, in reward units per nat, above 0.
        learning_rate: what the optimiser is called with.
        num_steps: number of gradient steps.
        reward_scale: factor of the reward.
        key: random keys; needed with ``batch_size``.
        batch_size: pairs drawn and labelled per step; None sums over all ``V**2L`` pairs.
        pairs: who the pairs are drawn from, the ``"reference"`` or the ``"policy"`` as it is; or
            given ones, of sequences by their indices, as :class:`kltarget.tasks.Preferences`. Of
            these the loss is the mean over all comparisons, or over ``batch_size`` drawn ones.
        loss: ``"dpo"`` or ``"ipo"``.
        label_smoothing: how likely a label is taken to be wrong (conservative DPO), from 0 to less
            than ½: the likelihood of the other label counts with this weight. For ``"dpo"`` alone.
        divergence: f of the implied rewards, by default reverse KL; any other makes it f-DPO, and
            :class:`kltarget.ChiSquaredKL` χPO.
        ratio_weight: weights of the log ratios of tokens, 0 or more, ``[]``, ``[L]`` or ``[V**L,
            L]``; by default 1. For reverse KL alone.
        kl_weight: weights of the KL at the prefixes before the tokens, of the same shapes; by
            default 0. Every step then computes them at all prefixes, with ``batch_size`` too.
        kl_gradient: ``"loser"`` lets no gradient through the winner's KL.
        log_ref: reference log-probabilities over sequences, ``[V**L]``; by default the policy at
            ``params``.
        modes: mode labels for the history, as in :func:`fine_tune`.
        **options: ``optimizer``, ``history_every``, ``gradient_tol``, ``chunk_runs``, ``devices``,
            ``progress`` and ``measure`` as in :func:`fine_tune`.

    Returns:
        The runs. The gap is that of the reward regularised by the divergence. With samples the
        gradient norms are of a sampled gradient.

    Raises:
        ValueError: shapes that do not fit, values out of range, a missing key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.policies import TabularPolicy
        >>> from kltarget.training import dpo
        >>> policy = TabularPolicy(vocab_size=2, length=2)
        >>> params = policy.init(key=jax.random.key(0))
        >>> run = dpo(
        ...     policy,
        ...     params,
        ...     jnp.array([1.0, 0.0, 0.0, 1.0]),
        ...     beta=0.5,
        ...     learning_rate=0.1,
        ...     num_steps=500,
        ...     gradient_tol=1e-4,
        ... )
        >>> bool(run.gap < 0.01)
        True

    References:
        Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward
        Model", 2023, arXiv 2305.18290. Azar et al., "A General Theoretical Paradigm to Understand
        Learning from Human Preferences", 2023, arXiv 2310.12036 (IPO). Wang et al., "Beyond Reverse
        KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints", 2023,
        arXiv 2309.16240 (f-DPO). Zeng et al., "Token-level Direct Preference Optimization", 2024,
        arXiv 2404.11999 (TDPO). Christopoulou et al., "SparsePO: Controlling Preference Alignment
        of LLMs via Sparse Token Masks", 2024, arXiv 2410.05102.
    """
    known = isinstance(pairs, Preferences)
    if not known and pairs not in ("reference", "policy"):
        raise ValueError(
            "pairs must be one of 'reference', 'policy' or be kltarget.tasks.Preferences, got "
            f"{pairs!r}"
        )
    if loss not in ("dpo", "ipo"):
        raise ValueError(f"loss must be one of 'dpo', 'ipo', got {loss!r}")
    if divergence is not None and not isinstance(divergence, Divergence):
        raise TypeError(f"divergence must be a kltarget.Divergence, got {divergence!r}")
    outcomes = sequences_of(policy)
    if reward is None:
        if not known:
            raise ValueError(
                "reward is needed to label pairs that are drawn: give one per sequence"
            )
        reward = jnp.zeros(outcomes.num_outcomes)
    given = (reward, log_ref, divergence or ReverseKL(), modes)
    shared, num_modes = _run_setup.shared_arrays(outcomes, params, *given)
    if isinstance(pairs, Preferences):
        shared["given_pairs"] = _run_setup.comparisons(pairs, shared)
    weights = {"ratio_weight": ratio_weight, "kl_weight": kl_weight}
    by_token = _run_setup.weights_of_tokens(outcomes, weights, kl_gradient, divergence, shared)
    kind = "given" if known else pairs
    wrong = smoothing_of(label_smoothing, loss)
    batch_size = positive_if_given("batch_size", batch_size)
    method = _methods.Preferences(batch_size, kind, loss, wrong, by_token, kl_gradient)
    numbers = {"beta": beta, "reward_scale": reward_scale, "learning_rate": learning_rate}
    problem = (outcomes, params, method, shared, numbers, num_steps, key, Options(**options))
    return _run_setup.train_runs(*problem, num_modes=num_modes, positive_beta=True)
