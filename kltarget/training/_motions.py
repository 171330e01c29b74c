"""What moves while a policy is trained: its reference, and coefficients that a controller sets."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kltarget.recipes import Recipe
from kltarget.training._engine import Motion, Program

_MOST = 0.2
_ENTROPY_RATE = 0.01


@dataclasses.dataclass(frozen=True)
class Renewed(Motion):
    """A reference that is copied from the policy, or averaged with it, now and then."""

    every: int
    share: float

    def start(self, params: Any, run: Any) -> Any:
        """See :class:`kltarget.training._engine.Motion`."""
        return params

    def before(self, state: Any, params: Any, time: Any) -> Any:
        """See :class:`kltarget.training._engine.Motion`."""
        now = (time > 0) & (time % self.every == 0)

        def renewed(old: Any, new: Any) -> Any:
            mixed = new if self.share == 1 else (1 - self.share) * old + self.share * new
            return jnp.where(now, mixed, old)

        return jax.tree.map(renewed, state, params)

    def after(self, program: Program, state: Any, params: Any, facts: Any, key: Any) -> Any:
        """See :class:`kltarget.training._engine.Motion`."""
        return state

    def facts(self, state: Any) -> dict[str, Any]:
        """See :class:`kltarget.training._engine.Motion`."""
        return {"reference": state}


@dataclasses.dataclass(frozen=True)
class Lagged(Motion):
    """The policy of so many steps ago; before that, the one that training starts from."""

    steps: int

    def start(self, params: Any, run: Any) -> Any:
        """See :class:`kltarget.training._engine.Motion`."""
        kept = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.steps, *x.shape)), params)
        return {"kept": kept, "reference": params, "at": jnp.int32(0)}

    def before(self, state: Any, params: Any, time: Any) -> Any:
        """See :class:`kltarget.training._engine.Motion`."""
        at = time % self.steps
        return {**state, "reference": jax.tree.map(lambda x: x[at], state["kept"]), "at": at}

    def after(self, program: Program, state: Any, params: Any, facts: Any, key: Any) -> Any:
        """See :class:`kltarget.training._engine.Motion`."""
        kept = jax.tree.map(lambda x, new: x.at[state["at"]].set(new), state["kept"], params)
        return {**state, "kept": kept}

    def facts(self, state: Any) -> dict[str, Any]:
        """See :class:`kltarget.training._engine.Motion`."""
        return {"reference": state["reference"]}


@dataclasses.dataclass(frozen=True)
class Controlled(Motion):
    """A coefficient that is raised where what it acts on is on one side of what is asked for.

    The KL's is multiplied, as Ziegler et al. do, by 1 plus a share of the relative distance; that
    of the entropy grows by a share of what is missing, and never falls below 0.
    """

    recipe: Recipe

    def start(self, params: Any, run: Any) -> Any:
        """See :class:`kltarget.training._engine.Motion`."""
        if self.recipe.kl_target is not None:
            return run["beta"]
        return jnp.asarray(self.recipe.entropy_bonus, run["beta"].dtype)

    def before(self, state: Any, params: Any, time: Any) -> Any:
        """See :class:`kltarget.training._engine.Motion`."""
        return state

    def after(self, program: Program, state: Any, params: Any, facts: Any, key: Any) -> Any:
        """See :class:`kltarget.training._engine.Motion`."""
        method: Any = program.method
        measured = lax.stop_gradient(method.controlled(program, params, facts, key))
        if self.recipe.kl_target is not None:
            error = jnp.clip(measured / self.recipe.kl_target - 1, -_MOST, _MOST)
            return state * (1 + self.recipe.kl_gain * error)
        wanted = self.recipe.entropy_target or 0.0
        return jnp.maximum(state + _ENTROPY_RATE * (wanted - measured), 0)

    def facts(self, state: Any) -> dict[str, Any]:
        """See :class:`kltarget.training._engine.Motion`."""
        return {"beta" if self.recipe.kl_target is not None else "entropy_bonus": state}


def motion_of(recipe: Recipe) -> Motion | None:
    """What moves under a recipe beside the policy."""
    if recipe.reference in ("copied", "averaged"):
        return Renewed(recipe.reference_every or 1, recipe.reference_share)
    if recipe.reference == "lagged":
        return Lagged(recipe.reference_every or 1)
    if recipe.kl_target is not None or recipe.entropy_target is not None:
        return Controlled(recipe)
    return None
