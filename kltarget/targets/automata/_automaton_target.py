"""What is known of a target over all texts of a length, of which there may be 10¹⁰⁰."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kltarget._core.checks import at_once, positive
from kltarget._core.pytrees import register
from kltarget._core.short_repr import short_repr
from kltarget.divergences import ReverseKL, Scaled
from kltarget.objectives._objective import broadcast_fields
from kltarget.spaces import Automaton, MarkovReference
from kltarget.spaces._markov_reference import walk
from kltarget.targets.automata._final_states import log_tilt
from kltarget.targets.automata._likeliest_texts import likeliest_texts
from kltarget.targets.automata._policy_sums import policy_sums
from kltarget.targets.automata._product_walks import Product, product_of, tilted
from kltarget.targets.automata._text_arguments import whole_texts
from kltarget.targets.automata._texts_optimum import TextsOptimum, Walk, log_ratio_of
from kltarget.targets.discrete import Target, greedy_limit


@dataclasses.dataclass(frozen=True, eq=False)
class AutomatonTarget(TextsOptimum):
    """The policy over all texts of T tokens that maximises an objective, exactly.

    Texts are rewarded by the state in which an automaton ends, and those that end in one state keep
    their proportions, for every divergence: what changes is how much mass each state has. That is
    a problem of D outcomes, ``states``, and all else is the reference's.

    Attributes:
        reference: what the policy is regularised to.
        automaton: what reads the texts.
        length: the number T of tokens of a text.
        states: the target over final states, as of outcomes: :class:`kltarget.Target` with
            rewards ``[*batch, D]``. Masses of modes, flips between them, best-of-n and all that is
            known of lists of outcomes are asked of it. With rewards of steps its reference is the
            one tilted by them.
        step_reward: what reading a token in a state earns, ``[*batch, D, V]``, if anything.
        log_total: the logarithm of the mass of the reference tilted by these, ``[*batch]``.

    Example:
        >>> import kltarget as kt
        >>> from kltarget.spaces import Automaton, MarkovReference
        >>> reference = MarkovReference.fit(["abab", "aabb", "bbab"], smoothing=1.0)
        >>> found = Automaton.from_words(["aa"], "ab")
        >>> target = kt.solve_on_automaton(reference, found, found.accepting, 0.2, length=300)
        >>> print(f"{target.expected_reward:.4f} {target.value:.4f}")
        1.0000 1.0000
    """

    __repr__ = short_repr

    made_by = "solve_on_automaton"

    reference: MarkovReference
    automaton: Automaton
    states: Target
    length: int
    step_reward: Float[Array, "*_ D V"] | None = None
    log_total: Float[Array, "*_"] | None = None

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The maximum J* in reward units, shape ``[*batch]``."""
        if self.log_total is None:
            return self.states.value
        beta = broadcast_fields(self.states.objective)[2][..., 0]
        value = self.states.value
        return value + beta.astype(value.dtype) * self._log_total

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_π[reward]`` in reward units, with that of steps, shape ``[*batch]``."""
        if self.step_reward is None:
            return self.states.expected_reward
        return self.states.expected_reward + self._tallies["earned"]

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """The divergence from the reference in nats, shape ``[*batch]``."""
        if self.step_reward is None:
            return self.states.divergence_value
        own = self.states.objective.divergence
        total = self._tallies["kl"]
        return own.factor * total if isinstance(own, Scaled) else total

    @property
    def log_ratio(self) -> Float[Array, "*batch D"]:
        """``log π/π_ref`` of texts by their final state; 0 where neither has any.

        With rewards of steps, what a text earns on the way, divided by β, is to be added.

        It is infinite where the target has mass and the reference none: of the texts that end
        there only their total is determined, and their log-probability is NaN.
        """
        ratio = log_ratio_of(self.states.log_probs, self.states.objective.log_ref)
        return ratio if self.log_total is None else ratio - self._log_total[..., None]

    def token_advantages(self, x: ArrayLike) -> Float[Array, "... T"]:
        """What each token of texts adds to the soft value, ``β log(π/π_ref)`` of the token.

        With reverse KL the value before a token is ``V(s) = β log E_ref[e^{reward/β} | s]``, and a
        token's advantage what it changes: ``V(sa) − V(s)``, with what the step itself earns. Along
        a text they add up to its reward less :attr:`value`: rewards of steps in place of one at the
        end, of which every token has its own and expects no more.

        Args:
            x: tokens, integers ``[..., T]``, or strings in the reference's alphabet.

        Returns:
            Advantages in reward units, shape ``[*batch, ..., T]``; ``-inf`` at tokens that lead to
            forbidden texts alone, NaN at those that the reference cannot produce and after either.

        Raises:
            ValueError: the divergence is not reverse KL, for others of which a text's log ratio is
                not its reward.

        Example:
            >>> import kltarget as kt
            >>> from kltarget.spaces import Automaton, MarkovReference
            >>> reference = MarkovReference.fit(["abab", "aabb", "bbab"], smoothing=1.0)
            >>> found = Automaton.from_words(["aa"], "ab")
            >>> target = kt.solve_on_automaton(reference, found, found.accepting, 0.5, length=4)
            >>> each = target.token_advantages("baab")
            >>> print([f"{a:.3f}" for a in each], f"{each.sum():.3f} {1 - target.value:.3f}")
            ['-0.124', '0.088', '0.481', '-0.000'] 0.445 0.445

        References:
            Rafailov et al., "From r to Q*: Your Language Model is Secretly a Q-Function", 2024,
            arXiv 2404.12358; Yao, Wang, Zhang, "PRL: Process Reward Learning Improves LLMs'
            Reasoning Ability and Broadens the Reasoning Boundary", 2026, arXiv 2601.10201.
        """
        objective = self.states.objective
        own = objective.divergence
        base = own.base if isinstance(own, Scaled) else own
        if not isinstance(base, ReverseKL):
            raise ValueError(
                f"token_advantages needs a target of reverse KL, not of {own!r}, whose log ratios "
                "are not rewards: solve with divergence=ReverseKL()"
            )
        tokens = whole_texts(self.reference, self.length, x)
        product = product_of(self.reference, self.automaton)
        known = product.log_next[walk(product.below, tokens)[..., :-1], tokens]
        after = self.next_log_probs(tokens)
        at = jnp.broadcast_to(tokens, after.shape[:-1])[..., None]
        log_probs = jnp.take_along_axis(after, at, axis=-1)[..., 0]
        beta = broadcast_fields(objective)[2][..., 0].astype(log_probs.dtype)
        beta = beta.reshape(*self.status.shape, *(1,) * tokens.ndim)
        return beta * (log_probs - jnp.broadcast_to(known, log_probs.shape).astype(log_probs.dtype))

    def likeliest(
        self, number: int = 10
    ) -> tuple[Int[Array, "*batch k T"], Float[Array, "*batch k"]]:
        """The most probable texts and their log-probabilities, the first one first.

        Args:
            number: how many, k; where there are fewer texts the rest have ``-inf``.

        Returns:
            Tokens ``[*batch, k, T]`` and log-probabilities ``[*batch, k]``.

        Raises:
            ValueError: as :meth:`conditionals`; under a trace they are -1 and NaN there.
        """
        positive("number", number)
        log_ratio = self._determined()
        tokens, scores = likeliest_texts(self._product, log_ratio, self.length, number)
        lost = jnp.isnan(log_ratio).any(-1)[..., None]
        return jnp.where(lost[..., None], -1, tokens), jnp.where(lost, jnp.nan, scores)

    def greedy_limit(self) -> AutomatonTarget:
        """The limit for beta → 0: the texts of the best reward, in the reference's proportions.

        It is :func:`kltarget.targets.greedy_limit` of the final states: what is best among those
        that the reference ends in, and with a finite slope at infinity among all that some text
        ends in. Its first :meth:`likeliest` is the reference's most probable text of that reward.

        Returns:
            The target; its value is the best reward.

        Raises:
            ValueError: there are rewards of steps.

        Example:
            >>> import kltarget as kt
            >>> from kltarget.spaces import Automaton, MarkovReference
            >>> reference = MarkovReference.fit(["abab", "aabb", "bbab"], smoothing=1.0)
            >>> found = Automaton.from_words(["aa"], "ab")
            >>> target = kt.solve_on_automaton(reference, found, found.accepting, 0.5, length=7)
            >>> limit = target.greedy_limit()
            >>> tokens, log_prob = limit.likeliest(1)
            >>> print(limit.value, reference.spell(tokens))
            1.0 ['aababab']
        """
        if self.step_reward is not None:
            raise ValueError(
                "greedy_limit takes rewards of final states alone: which texts tie for the best "
                "sum of step_reward is not known at their end; where steps are few-valued let the "
                "automaton count them (Automaton.counter, product), or solve for a small beta"
            )
        return dataclasses.replace(self, states=greedy_limit(self.states.objective))

    @functools.cached_property
    def _product(self) -> Product:
        with at_once(self):
            product = product_of(self.reference, self.automaton)
            return product if self.step_reward is None else tilted(product, self._log_tilt)

    @property
    def _log_tilt(self) -> Array:
        """Of every row, ``[*batch, D, V]``."""
        assert self.step_reward is not None
        objective = self.states.objective
        tilt = log_tilt(self.step_reward, objective.beta, objective.divergence)
        return jnp.broadcast_to(tilt, (*self.status.shape, *tilt.shape[-2:]))

    @property
    def _log_total(self) -> Array:
        assert self.log_total is not None
        return jnp.broadcast_to(self.log_total, self.status.shape)

    @property
    def _tallies(self) -> dict[str, Array]:
        """What is earned on the way and the KL from the reference, ``[*batch]`` each."""
        assert self.step_reward is not None
        log_ratio = self.log_ratio
        log_ref = product_of(self.reference, self.automaton).log_next.astype(log_ratio.dtype)
        steps = self.step_reward.astype(log_ratio.dtype)
        options = {"length": self.length, "end": self.reference.end}
        sums = policy_sums(self._product, log_ratio, steps, log_ref, **options)
        return {name: x.sum(0) for name, x in sums.tallies.items()}

    @property
    def _log_final(self) -> Array:
        return self.log_ratio

    def _log_weight(self, tokens: Array, state: Array) -> Array:
        if self.step_reward is None:
            return self.reference.log_prob(tokens)
        product = self._product
        nodes = walk(product.below, tokens)[..., :-1]
        return product.log_next[..., nodes, tokens].sum(-1)

    def _walks(self, log_final: Array) -> tuple[Walk, ...]:
        none = jnp.zeros(log_final.shape[:-1], log_final.dtype)
        return (Walk(self._product, log_final, none),)


register(
    AutomatonTarget,
    ("reference", "automaton", "states", "step_reward", "log_total"),
    ("length",),
)
