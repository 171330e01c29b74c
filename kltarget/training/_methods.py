"""What each trainer ascends."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget.training import estimators
from kltarget.training._engine import Program, sequence_log_probs, token_table
from kltarget.training.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class PolicyGradient:
    """The gradient of a recipe: reward by score function, regulariser where the recipe puts it."""

    recipe: Recipe
    batch_size: int | None
    measured_exactly = True

    @property
    def updates_per_batch(self) -> int:
        """Steps taken with the samples of one policy."""
        return self.recipe.updates_per_batch

    def ascent(
        self, program: Program, params: Any, sampler: Any, shared: Any, run: Any, key: Any
    ) -> Array:
        """See :class:`kltarget.training._engine.Method`."""
        recipe, space = self.recipe, program.space
        reward = shared["reward"] * run["reward_scale"]
        groups = (-1, recipe.group_size or self.batch_size or 0)
        tokens = which = None
        if key is not None:
            tokens = program.policy.sample(
                lax.stop_gradient(sampler), key=key, num_samples=self.batch_size
            )
            which = space.index(tokens)
            reward = reward[which].reshape(groups)

        def table(params: Any) -> Array:
            """Log-probabilities of what was sampled, or of everything."""
            if tokens is not None:
                return program.policy.log_probs(params, tokens).reshape(*reward.shape, -1)
            if self._by_token:
                return token_table(space, program.policy.conditionals(params, space))
            return sequence_log_probs(program, params)[:, None]

        def of_samples(x: Array) -> Array:
            return x if which is None else x[which].reshape(*reward.shape, *x.shape[1:])

        log_probs = table(params)
        fresh = self.updates_per_batch == 1
        log_sampler = lax.stop_gradient(log_probs if fresh else table(sampler))
        by_token = self._by_token or tokens is not None
        log_ref = of_samples(shared["token_log_ref"] if by_token else shared["log_ref"][:, None])
        return estimators.surrogate(
            recipe,
            log_probs,
            log_ref,
            reward,
            run["beta"],
            jnp.exp(log_sampler.sum(-1)) if key is None else None,
            log_sampler=None if fresh else log_sampler,
            lengths=of_samples(shared["lengths"]) if "lengths" in shared else None,
            groups=shared.get("groups"),
        ).sum()

    @property
    def _by_token(self) -> bool:
        """Whether exact gradients need the tokens of every sequence, or only their sum."""
        recipe = self.recipe
        return recipe.level == "token" or recipe.entropy_bonus > 0 or recipe.updates_per_batch > 1


@dataclasses.dataclass(frozen=True)
class MaximumLikelihood:
    """Maximum likelihood of a given distribution over sequences."""

    batch_size: int | None
    updates_per_batch = 1
    measured_exactly = True

    def ascent(
        self, program: Program, params: Any, sampler: Any, shared: Any, run: Any, key: Any
    ) -> Array:
        """See :class:`kltarget.training._engine.Method`."""
        log_target = run["log_ref"]
        if key is None:
            log_probs = sequence_log_probs(program, params)
            wanted = log_target > -jnp.inf
            return jnp.sum(jnp.where(wanted, jnp.exp(log_target) * log_probs, 0.0))
        which = draw(log_target, key, self.batch_size)
        tokens = program.space.sequences()[which]
        return program.policy.log_probs(params, tokens).sum(-1).mean()


@dataclasses.dataclass(frozen=True)
class PseudoReward:
    """Descent of ``D_f(π‖p)`` by policy gradient with the reward ``−f′(π/p)``."""

    batch_size: int | None
    updates_per_batch = 1
    measured_exactly = True

    def ascent(
        self, program: Program, params: Any, sampler: Any, shared: Any, run: Any, key: Any
    ) -> Array:
        """See :class:`kltarget.training._engine.Method`."""
        policy, space, log_target = program.policy, program.space, run["log_ref"]
        if key is None:
            table = sequence_log_probs(program, params)[:, None]
        else:
            tokens = policy.sample(lax.stop_gradient(params), key=key, num_samples=self.batch_size)
            table, log_target = policy.log_probs(params, tokens), log_target[space.index(tokens)]
        log_probs = lax.stop_gradient(table.sum(-1))
        reward = estimators.pseudo_reward(shared["divergence"], log_probs, log_target)
        recipe = Recipe(place="none", baseline="leave-one-out")
        weights = jnp.exp(log_probs) if key is None else None
        return estimators.surrogate(recipe, table, table, reward, 0.0, weights).sum()


@dataclasses.dataclass(frozen=True)
class Preferences:
    """Direct preference optimisation on labelled pairs, drawn afresh at every step."""

    batch_size: int | None
    pairs: str
    updates_per_batch = 1

    @property
    def measured_exactly(self) -> bool:
        """All pairs of sequences are more than one wants to sum over where samples would do."""
        return self.batch_size is None

    def ascent(
        self, program: Program, params: Any, sampler: Any, shared: Any, run: Any, key: Any
    ) -> Array:
        """See :class:`kltarget.training._engine.Method`."""
        beta, reward = run["beta"], shared["reward"] * run["reward_scale"]
        log_ref = shared["log_ref"]
        if key is None:
            log_probs = sequence_log_probs(program, params)
            drawn = lax.stop_gradient(log_probs) if self.pairs == "policy" else log_ref
            possible = shared["possible"] & (log_ref > -jnp.inf)
            implied = beta * jnp.where(possible, log_probs - log_ref, 0.0)
            share = jnp.where(possible, jnp.exp(drawn), 0.0)
            preferred = jax.nn.sigmoid(reward[:, None] - reward[None])
            likelihood = jax.nn.log_sigmoid(implied[:, None] - implied[None])
            # Each pair counts in both orders, of which this sum has one.
            return 2 * jnp.sum(share[:, None] * share[None] * preferred * likelihood)
        draw_key, label_key = jax.random.split(key)
        num = self.batch_size or 0
        if self.pairs == "policy":
            tokens = program.policy.sample(
                lax.stop_gradient(params), key=draw_key, num_samples=2 * num
            )
            which = program.space.index(tokens)
        else:
            which = draw(log_ref, draw_key, 2 * num)
            tokens = program.space.sequences()[which]
        implied = beta * (program.policy.log_probs(params, tokens).sum(-1) - log_ref[which])
        first, second = reward[which].reshape(2, num)
        likely = jax.nn.sigmoid(first - second)
        won = jax.random.uniform(label_key, (num,), likely.dtype) < likely
        margin = implied[:num] - implied[num:]
        return jax.nn.log_sigmoid(jnp.where(won, margin, -margin)).mean()


def draw(log_probs: Array, key: Any, num_samples: int | None) -> Array:
    """Indices of sequences from their log-probabilities, by inversion of the cumulative sum."""
    return jax.random.choice(
        key, log_probs.shape[-1], (num_samples or 0,), p=jnp.exp(log_probs)
    ).astype(jnp.int32)
