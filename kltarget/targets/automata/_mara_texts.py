"""MARA over texts too many to list: good ones are equally likely, the others the reference's."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from kltarget._core.checks import at_once
from kltarget._core.numerics import as_float, log_sum_exp
from kltarget._core.pytrees import register
from kltarget._core.short_repr import short_repr
from kltarget.divergences import ReverseKL
from kltarget.objectives import Objective, mara
from kltarget.objectives._objective import broadcast_fields
from kltarget.spaces import Automaton, MarkovReference
from kltarget.targets.automata._automaton_target import AutomatonTarget
from kltarget.targets.automata._likeliest_texts import likeliest_texts
from kltarget.targets.automata._product_walks import (
    Product,
    counting,
    final_log_counts,
    final_log_maxima,
    log_values,
)
from kltarget.targets.automata._texts_optimum import (
    TextsOptimum,
    Walk,
    log_ratio_of,
    without_undetermined,
)
from kltarget.targets.discrete import Target, solve


@dataclasses.dataclass(frozen=True, eq=False)
class AnchoredTarget(TextsOptimum):
    """The policy over texts that :func:`mara_on_automaton` asks for.

    It is two walks in one: all good texts have one probability, and texts that are not good keep
    the reference's proportions within each final state.

    Attributes:
        original: the target without MARA.
        states: the target over final states, as of outcomes: a good state has the anchor's reward,
            and as reference as often the anchor's mass as it has texts. Masses of modes are asked
            of it. For reverse KL its reference is divided by its total.
        good: which final states reach the threshold, ``[*batch, D]``.
        log_counts: logarithms of how many texts that the reference finds possible end in each
            state, ``[D]``.
        log_anchor: ``log π_ref`` of the anchor, ``[*batch]``.
        log_total: the logarithm of what the reference of ``states`` was divided by, ``[*batch]``.
        method: ``"augment"`` or ``"substitute"``.

    Example:
        >>> import kltarget as kt
        >>> from kltarget.spaces import Automaton, MarkovReference
        >>> from kltarget.targets.automata import mara_on_automaton
        >>> reference = MarkovReference.fit(["abab", "aabb", "bbab"], smoothing=1.0)
        >>> found = Automaton.from_words(["aa"], "ab")
        >>> target = kt.solve_on_automaton(reference, found, found.accepting, 0.05, length=40)
        >>> even = mara_on_automaton(target, 1.0)
        >>> print(f"the likeliest of e^{even.log_counts[-1]:.1f}: {even.log_anchor:.1f} nats")
        the likeliest of e^27.7: -21.3 nats
        >>> print(f"{target.entropy:.1f} and {even.entropy:.1f} nats")
        26.2 and 27.7 nats
    """

    __repr__ = short_repr

    made_by = "mara_on_automaton"

    original: AutomatonTarget
    states: Target
    good: Bool[Array, "*batch D"]
    log_counts: Float[Array, " D"]
    log_anchor: Float[Array, "*batch"]
    log_total: Float[Array, "*batch"]
    method: str

    @property
    def reference(self) -> MarkovReference:
        """What the policy was regularised to without MARA."""
        return self.original.reference

    @property
    def automaton(self) -> Automaton:
        """What reads the texts."""
        return self.original.automaton

    @property
    def length(self) -> int:
        """The number T of tokens of a text."""
        return self.original.length

    @functools.cached_property
    def anchor(self) -> Int[Array, "*batch T"]:
        """The text z whose reward and mass good texts were given, tokens ``[*batch, T]``."""
        objective = self.original.states.objective
        with at_once(self):
            reward = broadcast_fields(objective)[0]
            best = broadcast_fields(self.states.objective)[0] == reward
            # Of states with the anchor's reward it has the likeliest text.
            ends = jnp.where(self.good & best, 0.0, -jnp.inf).astype(self.log_counts.dtype)
            return likeliest_texts(self._product, ends, self.length, 1)[0][..., 0, :]

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The maximum of what MARA makes of the objective, in reward units, shape ``[*batch]``."""
        beta = broadcast_fields(self.states.objective)[2][..., 0]
        return self.states.value - (beta * self._unlike).astype(self.states.value.dtype)

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_π[r̄]`` of the rewards that MARA made, in reward units, shape ``[*batch]``.

        That of the original ones is ``expectation(reward)``.
        """
        if self.method == "substitute":
            return self.states.expected_reward
        beta = broadcast_fields(self.states.objective)[2][..., 0]
        return self.states.expected_reward + beta * self._lift

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """The divergence in nats, shape ``[*batch]``.

        From the reference for ``"augment"``, from what was substituted for it else.
        """
        objective = self.states.objective
        share = broadcast_fields(objective)[2][..., 0] / objective.beta
        apart = self._unlike
        if self.method == "augment":
            apart = apart + self._lift
        return self.states.divergence_value + share * apart

    @property
    def log_level(self) -> Float[Array, "*batch D"]:
        """``log π`` of good texts and ``log π/π_ref`` of the others, by their final state.

        It is infinite where the target has mass and the reference none.
        """
        masses = self.original.states.objective.log_ref
        return _level(self.good, self.log_counts, masses, self.states.log_probs)

    @functools.cached_property
    def _product(self) -> Product:
        return self.original._product

    @property
    def _log_final(self) -> Array:
        return self.log_level

    def _log_weight(self, tokens: Array, state: Array) -> Array:
        good = self.good[..., state]
        log_ref = jnp.broadcast_to(self.reference.log_prob(tokens), good.shape)
        return jnp.where(good & (log_ref > -jnp.inf), 0.0, log_ref)

    def _walks(self, log_final: Array) -> tuple[Walk, ...]:
        return _two_walks(self._product, self.good, self.states.log_probs, log_final)

    @property
    def _lift(self) -> Array:
        """``E_π[log π_ref(z)/π_ref]`` over good texts, how much rarer than the anchor they are."""
        _, good = self._walks(without_undetermined(self.log_level))
        return _lift(good, self._product.log_next, self.log_anchor, self.length)

    @property
    def _unlike(self) -> Array:
        """How much more the divergence is from what it is measured from than from ``states``'."""
        if self.method == "augment":
            return -self.log_total
        if not isinstance(broadcast_fields(self.states.objective)[3], ReverseKL):
            return jnp.zeros_like(self.log_total)
        # Σπ log π/μ − π + μ, as of every divergence whose reference is none of mass 1.
        return jnp.expm1(self.log_total) - self.log_total


register(
    AnchoredTarget,
    ("original", "states", "good", "log_counts", "log_anchor", "log_total"),
    ("method",),
)


@jax.jit
def _two_walks(
    product: Product, good: Array, log_probs: Array, log_final: Array
) -> tuple[Walk, ...]:
    def ending(some: Array, product: Product) -> Walk:
        share = log_sum_exp(jnp.where(some, log_probs, -jnp.inf))[..., 0]
        return Walk(product, jnp.where(some, log_final, -jnp.inf), share)

    return ending(~good, product), ending(good, counting(product))


@functools.partial(jax.jit, static_argnums=3)
def _lift(good: Walk, log_next: Array, log_anchor: Array, length: int) -> Array:
    counted, log_final, log_share = good
    log_ref = jnp.where(log_next > -jnp.inf, log_next, 0.0)

    def log_mass(steps: Array) -> Array:
        walked = counted._replace(log_next=steps)
        return log_values(walked, log_final, length=length)[0][..., 0]

    # The derivative of a log-sum along what the texts' weights move by is that's mean.
    _, mean = jax.jvp(log_mass, (counted.log_next,), (log_ref,))
    return jnp.exp(log_share) * (log_anchor - mean)


@jax.jit
def _level(good: Array, log_counts: Array, masses: Array, log_probs: Array) -> Array:
    each = (jnp.broadcast_to(x, good.shape) for x in (log_counts, masses))
    return log_ratio_of(log_probs, jnp.where(good, *each))


@functools.partial(jax.jit, static_argnums=6)
def _merged(
    reward: Array,
    anchored: Array,
    bar: Array,
    likely: Array,
    counts: Array,
    masses: Array,
    reverse: bool,
) -> tuple[Array, Array, Array, Array]:
    """Good states, their reference, the logarithm of its total, and that of the anchor's mass."""
    bar = jnp.broadcast_to(bar.astype(reward.dtype), reward.shape[:-1])[..., None]
    likely, each = (jnp.broadcast_to(x, reward.shape) for x in (likely, counts))
    good = (reward >= bar) & (likely > -jnp.inf) & (reward > -jnp.inf)
    first = jnp.where(good & (reward == anchored), likely, -jnp.inf).max(-1)
    log_ref = jnp.where(good, first[..., None] + each, masses)
    if not reverse:
        return good, log_ref, jnp.zeros_like(first), first
    # Its target is the same whatever the total, which may be beyond every float.
    log_total = log_sum_exp(log_ref)[..., 0]
    return good, log_ref - log_total[..., None], log_total, first


def mara_on_automaton(
    target: AutomatonTarget,
    threshold: ArrayLike,
    *,
    method: Literal["augment", "substitute"] = "augment",
    anchor: Literal["reference", "best"] = "reference",
) -> AnchoredTarget:
    """Mode-anchored reward augmentation of texts: all good ones become equally likely.

    What :func:`kltarget.mara` makes of a list of outcomes, and :func:`kltarget.solve` of that, with
    all texts of a length as outcomes, none of which is listed. Good are texts y with
    ``r(y) ≥ threshold`` that the reference finds possible, and one of them is the anchor z:

    - ``"augment"`` maximises ``E_π[r̄] − β·KL(π‖π_ref)`` with
      ``r̄(y) = r(z) + β[log π_ref(z) − log π_ref(y)]`` on good texts, r elsewhere.
    - ``"substitute"`` maximises ``E_π[r̄] − β·D(π, π̄_ref)`` with ``r(z)`` and ``π_ref(z)`` in the
      places of ``r`` and ``π_ref`` on good texts, for every divergence.

    **Uniform over texts is not uniform over modes**: modes have mass as they have texts, and nearly
    all texts of a mode are what the reference finds gibberish. To keep modes, use MARA on
    :func:`over_modes`, whose outcomes they are.

    Args:
        target: what :func:`kltarget.solve_on_automaton` returned, of any batch shape.
        threshold: reward from which on a text is good, in reward units; a number, or an array that
            broadcasts against ``*batch``.
        method: ``"augment"`` for reverse KL alone, ``"substitute"`` for every divergence. With
            reverse KL the two have one target.
        anchor: ``"reference"`` for the likeliest good text, of several the best-rewarded, or
            ``"best"`` for ``argmax log π_ref + r/β`` among them.

    Returns:
        The target, of the same batch shape.

    Raises:
        TypeError: no target of texts.
        ValueError: ``"augment"`` with another divergence than reverse KL, a target with rewards of
            steps; and what :func:`kltarget.mara` refuses.

    Status:
        As of :func:`kltarget.solve`. ``NOT_CONVERGED`` where, for another divergence than reverse
        KL, the good texts' number times the anchor's mass is beyond the float type: e⁸⁸ in 32 bits,
        e⁷⁰⁹ in 64.

    Texts that the reference finds impossible stay so. Differentiable in reward, beta and the
    reference where the good states and the anchor do not change.

    Example:
        >>> import numpy as np, kltarget as kt
        >>> from kltarget.spaces import Automaton, MarkovReference
        >>> from kltarget.targets.automata import mara_on_automaton
        >>> mostly_a = np.log(np.array([0.9, 0.1]))
        >>> reference = MarkovReference(mostly_a, np.stack([mostly_a, mostly_a]), ("a", "b"))
        >>> count = Automaton.counter([1], 2, most=3)
        >>> target = kt.solve_on_automaton(reference, count, [0.0, 1.0, 1.0, 1.0], 0.1, length=3)
        >>> even = mara_on_automaton(target, 1.0)
        >>> texts = ["aab", "abb", "bbb"]
        >>> for policy in (target, even):
        ...     print([f"{p:.3f}" for p in np.exp(policy.log_prob(texts))])
        ['0.299', '0.033', '0.004']
        ['0.143', '0.143', '0.143']

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817, algorithms 1 and 2. Good texts have one reward and one mass, so that they
        merge by their final state as texts of equal reward do, with their number as a factor.
    """
    if not isinstance(target, AutomatonTarget):
        raise TypeError(
            f"target must be what solve_on_automaton returns, got {type(target).__name__}; for a "
            "list of outcomes there is kltarget.mara"
        )
    if method not in ("augment", "substitute"):
        raise ValueError(f"method must be 'augment' or 'substitute', got {method!r}")
    if target.step_reward is not None:
        raise ValueError(
            "target has rewards of steps, so that texts which end in one state differ in reward: "
            "let the automaton count them, and reward its final states"
        )
    objective = target.states.objective
    reward, masses, _, divergence = broadcast_fields(objective)
    reverse = isinstance(divergence, ReverseKL)
    if method == "augment" and not reverse:
        raise ValueError(
            "method 'augment' makes good texts equally likely for reverse KL alone, and the target "
            f"is of {divergence.name}: pass method='substitute'"
        )
    walked = {"num_states": target.automaton.num_states, "length": target.length}
    likely = final_log_maxima(target._product, **walked).astype(masses.dtype)
    counts = final_log_counts(target._product, **walked).astype(masses.dtype)
    # A text for each state: the likeliest that ends there.
    listed = Objective(
        objective.reward,
        _tied(likely, target.length),
        objective.beta,
        objective.divergence,
        measure=True,
    )
    anchored = broadcast_fields(mara(listed, threshold, method="substitute", anchor=anchor))[0]
    good, log_ref, log_total, first = _merged(
        reward, anchored, as_float(threshold), likely, counts, masses, reverse
    )
    dtype = objective.reward.dtype
    states = solve(
        Objective(
            anchored.astype(dtype),
            log_ref.astype(dtype),
            objective.beta,
            objective.divergence,
            measure=not reverse,
        )
    )
    return AnchoredTarget(target, states, good, counts, first, log_total, method)


@functools.partial(jax.jit, static_argnums=1)
def _tied(scores: Array, length: int) -> Array:
    """Scores that differ by no more than rounding, made equal: the same steps in another order."""
    order = jnp.argsort(-scores)
    ranked = scores[order]
    rounding = 8 * length**0.5 * jnp.finfo(scores.dtype).eps
    apart = ranked[:-1] - ranked[1:] > rounding * (1 + jnp.abs(ranked[:-1]))
    group = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(apart)])
    tops = jax.ops.segment_max(ranked, group, scores.size)
    return jnp.zeros_like(scores).at[order].set(tops[group])
