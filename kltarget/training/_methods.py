"""What each trainer ascends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget.recipes import Recipe
from kltarget.training import estimators
from kltarget.training._advantages import shaped
from kltarget.training._engine import Method, Motion, Program
from kltarget.training._motions import motion_of
from kltarget.training._outcomes import Points

_BESIDE = ("lengths", "trained", "rewards", "token_log_teacher", "asked")
"""What a recipe's gradient may look up beside rewards and references."""


@dataclasses.dataclass(frozen=True)
class PolicyGradient(Method):
    """The gradient of a recipe: reward by score function, regulariser where the recipe puts it."""

    recipe: Recipe
    batch_size: int | None

    @property
    def updates_per_batch(self) -> int:
        """Steps taken with the samples of one policy."""
        return self.recipe.updates_per_batch

    def ascent(self, program: Program, params: Any, sampler: Any, facts: Any, key: Any) -> Array:
        """See :class:`kltarget.training._engine.Method`."""
        recipe, outcomes = self.recipe, self._outcomes(program)
        samples, log_probs, known = None, None, facts
        fresh = self.updates_per_batch == 1
        shape: tuple[int, ...] = (-1,)
        if key is not None:
            if fresh:
                samples, log_probs = outcomes.drawn(params, key, self.batch_size)
            else:
                samples = outcomes.sample(lax.stop_gradient(sampler), key, self.batch_size)
            known = outcomes.look_up(samples, facts)
            shape = (-1, recipe.group_size or self.batch_size or 0)

        def table(params: Any) -> Array:
            """Log-probabilities of what was sampled, or of everything."""
            if samples is not None:
                return outcomes.log_probs_of(params, samples)
            return outcomes.table(params) if self._by_token else outcomes.log_probs(params)[:, None]

        def grouped(x: Array) -> Array:
            return x.reshape(*shape, *x.shape[1:])

        log_ref = known["token_log_ref"]
        if "reference" in facts:
            log_ref = lax.stop_gradient(table(facts["reference"]))
        elif not (self._by_token or samples is not None):
            log_ref = known["log_ref"][:, None]
        log_probs = table(params) if log_probs is None else log_probs
        log_sampler = lax.stop_gradient(log_probs if fresh else table(sampler))
        weights = jnp.exp(log_sampler.sum(-1)) if samples is None else None
        if weights is not None and isinstance(outcomes, Points):
            log_probs = jnp.where(counts(weights)[:, None], log_probs, -jnp.inf)
        return estimators.surrogate(
            recipe,
            grouped(log_probs),
            grouped(log_ref),
            grouped(known["reward"] * facts["reward_scale"]),
            facts["beta"],
            weights,
            log_sampler=None if fresh else grouped(log_sampler),
            groups=facts.get("groups"),
            entropy_bonus=facts.get("entropy_bonus"),
            **{name: grouped(known[name]) for name in _BESIDE if name in known},
        ).sum()

    def controlled(self, program: Program, params: Any, facts: Any, key: Any) -> Array:
        """What a controller looks at: the KL, or the entropy per token."""
        outcomes, recipe = self._outcomes(program), self.recipe
        if key is None:
            log_probs, known = outcomes.table(params), facts
            share = jnp.exp(log_probs.sum(-1))
        else:
            samples = outcomes.sample(params, key, self.batch_size)
            log_probs, known = (
                outcomes.log_probs_of(params, samples),
                outcomes.look_up(samples, facts),
            )
            share = jnp.full(log_probs.shape[0], 1 / log_probs.shape[0], log_probs.dtype)
        some = counts(share)[:, None]
        each, counted = jnp.where(some, log_probs, 0.0), known["num_tokens"]
        if recipe.kl_target is None:
            return -(share * each.sum(-1)).sum() / (share * counted).sum()
        charged = (each - jnp.where(some, known["token_log_ref"], 0.0)).sum(-1)
        return (share * (charged / counted if recipe.kl_target_per == "token" else charged)).sum()

    @property
    def motion(self) -> Motion | None:
        """What moves beside the policy."""
        return motion_of(self.recipe)

    def _outcomes(self, program: Program) -> Any:
        """The outcomes as they are trained on."""
        outcomes, temperature = program.outcomes, self.recipe.temperature
        return outcomes if isinstance(outcomes, Points) else outcomes.at(temperature)

    @property
    def _by_token(self) -> bool:
        """Whether exact gradients need the tokens of every sequence, or only their sum."""
        recipe = self.recipe
        return (
            recipe.level == "token"
            or recipe.entropy_bonus > 0
            or recipe.entropy_target is not None
            or recipe.updates_per_batch > 1
            or recipe.temperature != 1
            or recipe.teacher > 0
            or recipe.reference == "none"
        )


@dataclasses.dataclass(frozen=True)
class Pathwise(Method):
    """The derivative of reward less regulariser through the samples of a mixture.

    ``Σ_k w_k E_z[r(x) − β k(ℓ(x))]`` at ``x = μ_k + L_k z``: every component has its own samples,
    so that the weights have derivatives too.
    """

    recipe: Recipe
    batch_size: int | None

    @property
    def looks_up(self) -> bool:
        """Between the points of the grid in any case."""
        return True

    def ascent(self, program: Program, params: Any, sampler: Any, facts: Any, key: Any) -> Array:
        """See :class:`kltarget.training._engine.Method`."""
        policy, recipe = program.outcomes.policy, self.recipe
        log_weights, means, factors = policy.components(params)
        if self.batch_size is None or key is None:
            # The z that lead to the points of the grid, and the mass that they stand for.
            points, fixed = program.outcomes.all(), lax.stop_gradient(params)
            noise = policy.noise(fixed, points)
            log_density = policy.component_log_probs(fixed, points)
            share = jnp.exp(log_density + facts["log_measure"][:, None])
        else:
            noise = jax.random.normal(key, (self.batch_size, *means.shape), means.dtype)
            share = jnp.full(noise.shape[:-1], 1 / self.batch_size, means.dtype)
        x = means[None] + jnp.einsum("kij,nkj->nki", factors, noise)
        share = share * jnp.exp(log_weights)[None]
        somewhere = jnp.broadcast_to(lax.stop_gradient(means[jnp.argmax(log_weights)]), x.shape)
        x = jnp.where(counts(share)[..., None], x, somewhere)
        known = program.outcomes.look_up(x, facts)
        gain = shaped(recipe, known["reward"] * facts["reward_scale"])
        log_probs = policy.log_probs(params, x)
        if recipe.place != "none":
            token = log_probs[..., None]
            cost = estimators.estimate(recipe, token, known["token_log_ref"], token)
            cost = facts["beta"] * cost[..., 0]
            gain = gain - jnp.where(facts["beta"] == 0, jnp.zeros_like(cost), cost)
        gain = gain - recipe.entropy_bonus * log_probs
        return jnp.sum(jnp.where(counts(share), share * gain, 0.0))


@dataclasses.dataclass(frozen=True)
class MaximumLikelihood(Method):
    """Maximum likelihood of a given distribution over outcomes."""

    batch_size: int | None

    @property
    def looks_up(self) -> bool:
        """Samples are drawn from the outcomes."""
        return False

    def ascent(self, program: Program, params: Any, sampler: Any, facts: Any, key: Any) -> Array:
        """See :class:`kltarget.training._engine.Method`."""
        log_target = facts["log_ref"]
        if key is None:
            log_probs = program.outcomes.log_probs(params)
            wanted = log_target > -jnp.inf
            return jnp.sum(jnp.where(wanted, jnp.exp(log_target) * log_probs, 0.0))
        which = draw(log_target, key, self.batch_size)
        samples = program.outcomes.all()[which]
        return program.outcomes.log_probs_of(params, samples).sum(-1).mean()


@dataclasses.dataclass(frozen=True)
class Imitation(Method):
    """Maximum likelihood of whatever fresh samples are drawn from."""

    batch_size: int | None

    def ascent(self, program: Program, params: Any, sampler: Any, facts: Any, key: Any) -> Array:
        """See :class:`kltarget.training._engine.Method`."""
        samples = facts["sample"](key=key, num_samples=self.batch_size)
        return program.outcomes.log_probs_of(params, samples).sum(-1).mean()


@dataclasses.dataclass(frozen=True)
class PseudoReward(Method):
    """Descent of ``D_f(π‖p)`` by policy gradient with the reward ``−f′(π/p)``."""

    batch_size: int | None

    def ascent(self, program: Program, params: Any, sampler: Any, facts: Any, key: Any) -> Array:
        """See :class:`kltarget.training._engine.Method`."""
        outcomes, known = program.outcomes, facts
        if key is None:
            table = outcomes.log_probs(params)[:, None]
        else:
            samples = outcomes.sample(lax.stop_gradient(params), key, self.batch_size)
            table = outcomes.log_probs_of(params, samples)
            known = outcomes.look_up(samples, facts)
        log_probs = lax.stop_gradient(table.sum(-1))
        reward = estimators.pseudo_reward(facts["divergence"], log_probs, known["log_ref"])
        recipe = Recipe(place="none", baseline="leave-one-out")
        weights = jnp.exp(log_probs) if key is None else None
        return estimators.surrogate(recipe, table, table, reward, 0.0, weights).sum()


@dataclasses.dataclass(frozen=True)
class Losses(Method):
    """Descent of a loss of whole distributions, by its exact gradient."""

    loss: Callable[[Array, Array, Array], Array]
    batch_size: int | None = None

    def ascent(self, program: Program, params: Any, sampler: Any, facts: Any, key: Any) -> Array:
        """See :class:`kltarget.training._engine.Method`."""
        log_probs = program.outcomes.log_probs(params)
        return -self.loss(log_probs, facts["log_ref"], facts["parameter"])


@dataclasses.dataclass(frozen=True)
class Preferences(Method):
    """Preference optimisation on labelled pairs: drawn afresh at every step, or given ones."""

    batch_size: int | None
    pairs: str
    loss: str = "dpo"
    label_smoothing: float = 0.0
    by_token: bool = False
    kl_gradient: str = "both"

    @property
    def measured_exactly(self) -> bool:
        """All pairs of sequences are more than one wants to sum over where samples would do."""
        return self.batch_size is None

    def ascent(self, program: Program, params: Any, sampler: Any, facts: Any, key: Any) -> Array:
        """See :class:`kltarget.training._engine.Method`."""
        if self.pairs == "given":
            return self._on_given(program, params, facts, key)
        reward, log_ref = facts["reward"] * facts["reward_scale"], facts["log_ref"]
        if key is None:
            log_probs = program.outcomes.log_probs(params)
            drawn = lax.stop_gradient(log_probs) if self.pairs == "policy" else log_ref
            possible = facts["possible"] & (log_ref > -jnp.inf)
            winner, loser = self._of_all(program, params, facts, log_probs)
            share = jnp.where(possible, jnp.exp(drawn), 0.0)
            preferred = jax.nn.sigmoid(reward[:, None] - reward[None])
            agreement = self._agreement(winner[:, None] - loser[None], facts["beta"])
            # Each pair counts in both orders, of which this sum has one.
            return 2 * jnp.sum(share[:, None] * share[None] * preferred * agreement)
        draw_key, label_key = jax.random.split(key)
        outcomes: Any = program.outcomes
        num = self.batch_size or 0
        if self.pairs == "policy":
            samples = outcomes.sample(lax.stop_gradient(params), draw_key, 2 * num)
            which = outcomes.space.index(samples)
        else:
            which = draw(log_ref, draw_key, 2 * num)
            samples = outcomes.all()[which]
        winner, loser = self._of_some(program, params, facts, samples, which)
        first, second = reward[which].reshape(2, num)
        likely = jax.nn.sigmoid(first - second)
        won = jax.random.uniform(label_key, (num,), likely.dtype) < likely
        margin = jnp.where(won, winner[:num] - loser[num:], winner[num:] - loser[:num])
        return self._agreement(margin, facts["beta"]).mean()

    def _on_given(self, program: Program, params: Any, facts: Any, key: Any) -> Array:
        """The mean over given comparisons, or over as many drawn from them."""
        given, outcomes = facts["given_pairs"], program.outcomes
        sides, weight = jnp.stack([given["winner"], given["loser"]]), given["weight"]
        if key is None:
            log_probs = outcomes.log_probs(params)
            winner, loser = self._of_all(program, params, facts, log_probs)
            winner, loser = winner[sides[0]], loser[sides[1]]
        else:
            num = self.batch_size or 0
            sides = sides[:, draw(jnp.log(weight), key, num)]
            weight = jnp.full(num, 1 / max(num, 1), weight.dtype)
            which = sides.reshape(-1)
            scores = self._of_some(program, params, facts, outcomes.all()[which], which)
            winner, loser = scores[0][:num], scores[1][num:]
        return jnp.sum(weight * self._agreement(winner - loser, facts["beta"]))

    def _of_all(
        self, program: Program, params: Any, facts: Any, log_probs: Array
    ) -> tuple[Array, Array]:
        """What is compared of every sequence, over beta: where it wins and where it loses."""
        if self.by_token:
            return self._by_tokens(program, params, facts)
        possible = facts["possible"] & (facts["log_ref"] > -jnp.inf)
        slope = _slopes(facts, log_probs, facts["log_ref"], possible)
        return slope, slope

    def _of_some(
        self, program: Program, params: Any, facts: Any, samples: Array, which: Array
    ) -> tuple[Array, Array]:
        """The same of samples, which are those of these indices."""
        if self.by_token:
            winner, loser = self._by_tokens(program, params, facts)
            return winner[which], loser[which]
        log_probs = program.outcomes.log_probs_of(params, samples).sum(-1)
        slope = _slopes(facts, log_probs, facts["log_ref"][which], True)
        return slope, slope

    def _by_tokens(self, program: Program, params: Any, facts: Any) -> tuple[Array, Array]:
        """Weighted log ratios of the tokens, with the KL from the reference before each of them."""
        outcomes: Any = program.outcomes
        log_ref, table = facts["token_log_ref"], outcomes.table(params)
        asked = facts["possible"][:, None] & (log_ref > -jnp.inf)
        ratio = jnp.where(asked, table, 0.0) - jnp.where(asked, log_ref, 0.0)
        margin = (facts["ratio_weight"] * ratio).sum(-1)
        before, nodes = jnp.zeros_like(margin), 1
        for t, size in enumerate(outcomes.space.sizes):
            levels = (x[:, t].reshape(nodes, size, -1)[..., 0] for x in (table, log_ref))
            log_prob, known = levels
            some = known > -jnp.inf
            apart = jnp.where(some, known, 0.0) - jnp.where(some, log_prob, 0.0)
            kl = jnp.where(some, jnp.exp(known) * apart, 0.0).sum(-1)
            before = before + facts["kl_weight"][:, t] * jnp.repeat(kl, len(before) // nodes)
            nodes *= size
        held = lax.stop_gradient(before) if self.kl_gradient == "loser" else before
        return margin + held, margin + before

    def _agreement(self, margin: Array, beta: Array) -> Array:
        """What a comparison adds, by the difference of ``f′(π/π_ref)`` of winner and loser."""
        if self.loss == "ipo":
            return -jnp.square(margin - 1 / (2 * beta))
        agreement, wrong = jax.nn.log_sigmoid(beta * margin), self.label_smoothing
        if wrong:
            agreement = (1 - wrong) * agreement + wrong * jax.nn.log_sigmoid(-beta * margin)
        return agreement


def _slopes(facts: Any, log_probs: Array, log_ref: Array, possible: Array | bool) -> Array:
    """``f′(π/π_ref)``, of reverse KL the log ratio; 0 where it is not asked for."""
    zero = jnp.zeros_like(log_probs)
    return facts["divergence"]._f_prime_at(jnp.where(possible, log_probs - log_ref, zero))


def counts(masses: Array) -> Array:
    """Where a mass is not so small that its ratio to a reference or its derivatives overflow."""
    info = jnp.finfo(masses.dtype)
    return masses > float(info.tiny) / float(info.eps)


def draw(log_probs: Array, key: Any, num_samples: int | None) -> Array:
    """Indices of sequences from their log-probabilities, by inversion of the cumulative sum."""
    shape, probs = (num_samples or 0,), jnp.exp(log_probs)
    return jax.random.choice(key, log_probs.shape[-1], shape, p=probs).astype(jnp.int32)
