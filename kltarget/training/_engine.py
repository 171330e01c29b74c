"""Many gradient runs in one compiled program: what every trainer here shares.

A method says what to ascend; this module initialises, steps, measures, shards and stops. Whether a
run has converged is read off its own gradient: nothing here knows a closed form.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from kltarget._core import processes
from kltarget._core.checks import positive_if_given
from kltarget._core.numerics import widest, working_dtype
from kltarget._core.progress import progress_bar
from kltarget.training import _outcomes
from kltarget.training._run_metrics import metrics_of, show_progress, shown_of_runs
from kltarget.training._runs import RunStatus
from kltarget.training._texts import Texts, estimated

_AT_ONCE = 2**20
"""Outcomes of all runs together whose activations a device holds at a time."""
_FEW_TOKENS = 8
_MEASURED = (
    "log_ref", "possible", "reward", "modes", "log_measure", "divergence", "beta", "reward_scale",
)  # fmt: skip
"""What the history asks of the facts."""

Optimizer = Callable[[Any], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Options:
    """What every trainer takes, as documented in :func:`kltarget.training.fine_tune`."""

    optimizer: Optimizer = optax.adam
    history_every: int | None = 100
    gradient_tol: float = 1e-5
    chunk_runs: int | None = None
    devices: Any = None
    progress: bool = False
    measure: bool = True

    def __post_init__(self) -> None:
        if not callable(self.optimizer):
            raise TypeError(
                "optimizer must be a function of a learning rate, such as optax.adam, got "
                f"{type(self.optimizer).__name__}"
            )
        positive_if_given("history_every", self.history_every)
        positive_if_given("chunk_runs", self.chunk_runs)
        if not isinstance(self.measure, bool):
            raise TypeError(f"measure must be True or False, got {self.measure!r}")
        if not self.gradient_tol >= 0:
            raise ValueError(f"gradient_tol must be 0 or more, got {self.gradient_tol}")
        if self.devices is not None and not len(self.devices):
            raise ValueError("devices must name at least one device, or be None for all")


class Method(abc.ABC):
    """A frozen, hashable statement of what a run ascends."""

    batch_size: int | None
    """Number of samples per step, None for the exact expectation."""

    @property
    def measured_exactly(self) -> bool:
        """Whether gradient norms in the history are of the exact gradient."""
        return True

    @property
    def updates_per_batch(self) -> int:
        """Steps taken with the samples of one policy."""
        return 1

    @property
    def motion(self) -> Motion | None:
        """What else moves while a run is trained, None for nothing but its parameters."""
        return None

    @property
    def looks_up(self) -> bool:
        """Whether rewards and references are asked for at samples of the policy."""
        return self.batch_size is not None

    @abc.abstractmethod
    def ascent(self, program: Program, params: Any, sampler: Any, facts: Any, key: Any) -> Array:
        """A scalar whose derivative in ``params`` is followed.

        ``sampler`` are the parameters that samples are drawn with; where ``key`` is None the
        expectation over them is exact. ``facts`` are what runs share and what the run has itself,
        which takes the place of what is shared, and what has moved, which takes theirs.
        """


class Motion(abc.ABC):
    """What moves beside the parameters: a frozen, hashable statement of how."""

    @abc.abstractmethod
    def start(self, params: Any, run: Any) -> Any:
        """The state before the first step."""

    @abc.abstractmethod
    def before(self, state: Any, params: Any, time: Any) -> Any:
        """The state with which a step is taken, the number of which is ``time``."""

    @abc.abstractmethod
    def after(self, program: Program, state: Any, params: Any, facts: Any, key: Any) -> Any:
        """The state when a step with these parameters has been looked at."""

    @abc.abstractmethod
    def facts(self, state: Any) -> dict[str, Any]:
        """What a method is told of it."""


@dataclasses.dataclass(frozen=True)
class Program:
    """All that is compiled in: runs with the same program share their executable."""

    outcomes: _outcomes.Outcomes
    method: Method
    optimizer: Optimizer
    num_modes: int
    devices: tuple[Any, ...]

    @property
    def measured_exactly(self) -> bool:
        """Whether what is measured is a sum over all outcomes."""
        return self.method.measured_exactly and not isinstance(self.outcomes, Texts)

    @property
    def steps_exactly(self) -> bool:
        """Whether a step follows the gradient whose norm is measured."""
        method = self.method
        alone = method.updates_per_batch == 1 and method.motion is None
        return self.measured_exactly and method.batch_size is None and alone


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to train: the program, what runs share and what each has of its own."""

    program: Program
    params: Any
    shared: Any
    runs: Any
    num_steps: int
    every: int
    options: Options

    @property
    def only_last(self) -> bool:
        """Whether the history is at most what is measured at the end."""
        return self.options.history_every is None or not self.options.measure

    def chunks(self) -> tuple[Plan, list[np.ndarray], int]:
        """This plan on the devices it can use, the runs of each chunk, and how many there are."""
        total = jax.tree.leaves(self.runs)[0].shape[0]
        chunk_runs = self.options.chunk_runs
        devices = self.program.devices
        # Processes without a device in it would not be told what the others' runs came to.
        if not processes.are_shared(devices):
            devices = devices[: min(total, chunk_runs or total)]
        each = _at_hand(self.program.outcomes, self.program.method.batch_size)
        each_device = max(1, chunk_runs // len(devices) if chunk_runs else _AT_ONCE // each)
        program = dataclasses.replace(self.program, devices=devices)
        rows = _chunks_of(total, len(devices), each_device)
        return dataclasses.replace(self, program=program), rows, total


def _at_hand(outcomes: _outcomes.Outcomes, num_samples: int | None = None) -> int:
    """How many outcomes there are at a time, or as many as so many samples are worth."""
    if not isinstance(outcomes, Texts):
        return num_samples or outcomes.num_outcomes
    # Activations are those of tokens, of which other outcomes have a few.
    return (num_samples or outcomes.num_measured) * math.ceil(outcomes.space.length / _FEW_TOKENS)


def _chunks_of(total: int, num_devices: int, each_device: int) -> list[np.ndarray]:
    """The runs of each chunk.

    Chunks are of one size, so that one program does them all: a multiple of the number of devices,
    filled up with repetitions of the last run.

    >>> [x.tolist() for x in _chunks_of(5, num_devices=2, each_device=1)]
    [[0, 1], [2, 3], [4, 4]]
    >>> [len(x) for x in _chunks_of(1001, num_devices=1, each_device=1000)]
    [501, 501]
    >>> [len(x) for x in _chunks_of(20, num_devices=4, each_device=2)]
    [8, 8, 8]
    """
    num_chunks = math.ceil(total / (each_device * num_devices))
    width = math.ceil(total / (num_chunks * num_devices)) * num_devices
    firsts = range(0, total, width)
    return [np.minimum(np.arange(first, first + width), total - 1) for first in firsts]


def train(plan: Plan) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """Final results per run, their history ``[R, H]`` and the steps at which it was taken."""
    plan, chunks, num_runs = plan.chunks()
    devices = plan.program.devices
    if processes.are_shared(devices):
        params, shared = processes.dealt((plan.params, plan.shared), devices)
        plan = dataclasses.replace(plan, params=params, shared=shared)
    times = [*range(0, plan.num_steps, plan.every), plan.num_steps]
    measured = [plan.num_steps] if plan.only_last else times
    measured = measured if plan.options.measure else []
    results, histories = [], []
    total = plan.num_steps * len(chunks)
    with progress_bar(plan.options.progress, total=total, unit="step") as bar:
        for rows in chunks:
            if len(chunks) == 1 and len(rows) == num_runs:
                final, history = _train_chunk(plan, plan.runs, times, bar)
            else:
                runs = jax.tree.map(lambda x, rows=rows: x[rows], plan.runs)
                final, history = _train_chunk(plan, runs, times, bar)
                keep = min(len(rows), num_runs - rows[0])
                final = jax.tree.map(lambda x, keep=keep: x[:keep], final)
                history = {name: x[:keep] for name, x in history.items()}
            results.append(final)
            histories.append(history)
    # Runs that stop early stay as they are, and so does what is measured of them.
    last = max((x.shape[1] for h in histories for x in h.values()), default=0)

    def padded(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, last - x.shape[1])), mode="edge")

    history = {n: np.concatenate([padded(h[n]) for h in histories]) for n in histories[0]}
    final = jax.tree.map(lambda *x: x[0] if len(x) == 1 else jnp.concatenate(x), *results)
    return final, history, np.array(measured[:last], int)


def _train_chunk(
    plan: Plan, runs: Any, times: list[int], bar: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    program, shared = plan.program, plan.shared
    known = _as_they_are
    if processes.are_shared(program.devices):
        runs, known = processes.dealt(runs, program.devices, "runs"), processes.gathered
    tol = np.asarray(plan.options.gradient_tol, runs["learning_rate"].dtype)
    reused = program.method.updates_per_batch > 1
    held = (program.optimizer, program.method.motion, reused, program.devices)
    state = _start(*held, plan.params, runs)
    measured, taken = [], 0
    if not plan.only_last:
        measured.append(known(_measured(program, state, shared, runs, tol)[0]))
    for begin, end in itertools.pairwise(times):
        state = _advance(program, state, shared, runs, tol, np.int32(begin), np.int32(end), True)
        if end == plan.num_steps or not np.asarray(known(state["active"])).any():
            break
        if not plan.only_last:
            # Of the distributions, which are large, only the last are kept.
            measured.append(known(_measured(program, state, shared, runs, tol)[0]))
        show_progress(bar, end - begin, shown_of_runs(measured))
        taken = end
    failed = state["failed"]
    if plan.options.measure:
        metrics, log_probs = _measured(program, state, shared, runs, tol)
        measured.append(known(metrics))
    else:
        unknown = jnp.full_like(runs["learning_rate"], jnp.nan)
        gap = {} if isinstance(program.outcomes, Texts) else {"gap": unknown}
        metrics, log_probs = {"gradient_norm": unknown, **gap}, unknown[:, None][:, :0]
        failed = failed | _lost(state["params"])
    show_progress(bar, plan.num_steps - taken, shown_of_runs(measured))
    names = measured[0] if measured else ()
    history = {n: np.stack([np.asarray(m[n]) for m in measured], axis=1) for n in names}
    norm = metrics["gradient_norm"]
    final = {
        "params": state["params"],
        "log_probs": log_probs,
        "gradient_norm": norm,
        **({"gap": metrics["gap"]} if "gap" in metrics else {}),
        "status": _status(program.measured_exactly, norm, log_probs, failed, runs["scale"], tol),
        "num_steps": state["taken"],
    }
    if known is processes.gathered:
        final = jax.tree.map(jnp.asarray, known(final))
    return final, history


def _as_they_are(tree: Any) -> Any:
    return tree


@functools.partial(jax.jit, static_argnums=0)
def _status(
    exactly: bool, norm: Array, log_probs: Array, failed: Array, scale: Array, tol: Array
) -> Array:
    """How each run ended."""
    finite = jnp.isfinite(norm) & ~jnp.any(jnp.isnan(log_probs), axis=-1)
    finite = finite | (log_probs.shape[-1] == 0)  # nothing was measured
    at_rest = (norm <= tol * scale) & jnp.bool_(exactly)
    status = jnp.where(at_rest, int(RunStatus.CONVERGED), int(RunStatus.OUT_OF_STEPS))
    status = jnp.where(finite & ~failed, status, int(RunStatus.NON_FINITE))
    return status.astype(jnp.int32)


@jax.jit
def _lost(params: Any) -> Array:
    """Runs with a parameter that is no number."""
    finite = [jnp.isfinite(x).reshape(x.shape[0], -1).all(-1) for x in jax.tree.leaves(params)]
    return ~functools.reduce(jnp.logical_and, finite)


def _over_runs(
    devices: tuple[Any, ...],
    function: Callable[..., Any],
    *arguments: Any,
    at_once: int | None = None,
) -> Any:
    """``function`` of one run and what is shared, on all runs, which are dealt to the devices.

    The first two arguments are given per run. A device works on all of its runs together or, to
    save memory, on at most ``at_once`` of them.
    """

    def mapped(first: Any, second: Any, *rest: Any) -> Any:
        own = jax.tree.leaves(second)[0].shape[0]
        if at_once is None or own <= at_once:
            return jax.vmap(function, in_axes=(0, 0, *[None] * len(rest)))(first, second, *rest)
        size = max(n for n in range(1, at_once + 1) if own % n == 0)
        return lax.map(lambda x: function(*x, *rest), (first, second), batch_size=size)

    if len(devices) == 1:
        return mapped(*arguments)
    mesh = Mesh(np.array(devices), ("runs",))
    per_run, whole = PartitionSpec("runs"), PartitionSpec()
    specs = (per_run, per_run, *[whole] * (len(arguments) - 2))
    # The arguments are cut up as they are; every device then trains its runs by itself.
    cut = jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=per_run, check_vma=False)
    return cut(*arguments)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _start(
    optimizer: Optimizer,
    motion: Motion | None,
    reused: bool,
    devices: tuple[Any, ...],
    params: Any,
    runs: Any,
) -> Any:
    num_runs = runs["learning_rate"].shape[0]

    def start(_: Any, run: Any, params: Any) -> Any:
        params = run.get("start", params)
        with jax.numpy_dtype_promotion("standard"):
            opt_state = optimizer(run["learning_rate"]).init(params)
        return {
            "params": params,
            "sampler": params if reused else None,
            "moved": motion.start(params, run) if motion else None,
            "opt_state": opt_state,
            "active": jnp.bool_(True),
            "failed": jnp.bool_(False),
            "taken": jnp.int32(0),
            "norm": jnp.zeros_like(_norm(params)),
        }

    return _over_runs(devices, start, jnp.zeros(num_runs), runs, params)


@functools.partial(jax.jit, static_argnums=0)
def _advance(
    program: Program,
    state: Any,
    shared: Any,
    runs: Any,
    tol: Any,
    begin: Any,
    end: Any,
    taken: Any,
) -> Any:
    """Steps ``begin`` to ``end`` or, if they are not ``taken``, only the gradients they follow.

    The numbers are traced: how often runs are measured is not compiled in.
    """
    method, uses = program.method, program.method.updates_per_batch
    motion = method.motion

    def advance(
        state: Any, run: Any, shared: Any, tol: Any, begin: Any, end: Any, taken: Any
    ) -> Any:
        optimizer, facts = program.optimizer(run["learning_rate"]), {**shared, **run}

        def step(time: Any, state: Any) -> Any:
            params = sampler = state["params"]
            if uses > 1:
                renewed = functools.partial(jnp.where, time % uses == 0)
                sampler = jax.tree.map(renewed, params, state["sampler"])
            # Drawn by the number of the batch: the same whatever the chunks.
            batch = time // uses
            key = None if method.batch_size is None else jax.random.fold_in(run["key"], batch)
            moved, known = state["moved"], facts
            if motion:
                moved = motion.before(moved, params, time)
                known = {**facts, **motion.facts(moved)}
            loss = functools.partial(_loss, program, sampler=sampler, facts=known, key=key)
            gradient = jax.grad(loss)(params)
            norm = _norm(gradient)
            failed = ~jnp.isfinite(norm)
            # What moves may still set a run that is at rest in motion again.
            rests = method.batch_size is None and motion is None
            at_rest = (norm <= tol * run["scale"]) & jnp.bool_(rests)
            inside = state["active"] & taken
            go = inside & ~failed & ~at_rest
            with jax.numpy_dtype_promotion("standard"):
                updates, opt_state = optimizer.update(gradient, state["opt_state"], params)
                updated = optax.apply_updates(params, updates)

            def keep(new: Array, old: Array) -> Array:
                return jnp.where(go, new, old)

            new_state = {
                "params": jax.tree.map(keep, updated, params),
                "sampler": sampler if uses > 1 else None,
                "moved": motion.after(program, moved, params, known, key) if motion else None,
                "opt_state": jax.tree.map(keep, opt_state, state["opt_state"]),
                "active": jnp.where(inside, go, state["active"]),
                "failed": state["failed"] | (inside & failed),
                "taken": state["taken"] + go.astype(jnp.int32),
                "norm": norm,
            }
            return new_state

        return lax.fori_loop(begin, end, step, state)

    return _over_runs(program.devices, advance, state, runs, shared, tol, begin, end, taken)


def _measured(
    program: Program, state: Any, shared: Any, runs: Any, tol: Any
) -> tuple[dict[str, Array], Array]:
    """What the history is made of, and the log-probabilities of all outcomes."""
    if not program.steps_exactly:
        return _measure(program, state, shared, runs)
    # The program that steps has the gradient already, and the rest is the same for all methods.
    zero, one = np.int32(0), np.int32(1)
    norm = _advance(program, state, shared, runs, tol, zero, one, False)["norm"]
    shared = {name: x for name, x in shared.items() if name in _MEASURED}
    runs = {name: x for name, x in runs.items() if name in _MEASURED}
    known = (program.outcomes, program.num_modes, program.devices)
    metrics, log_probs = _measure_outcomes(*known, state["params"], shared, runs)
    return {**metrics, "gradient_norm": norm}, log_probs


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measure_outcomes(
    outcomes: Any, num_modes: int, devices: Any, params: Any, shared: Any, runs: Any
) -> tuple[dict[str, Array], Array]:
    def measure(params: Any, run: Any, shared: Any) -> Any:
        log_probs = outcomes.log_probs(params)
        return metrics_of(num_modes, log_probs, {**shared, **run}), log_probs

    at_once = max(1, _AT_ONCE // _at_hand(outcomes))
    return _over_runs(devices, measure, params, runs, shared, at_once=at_once)


@functools.partial(jax.jit, static_argnums=0)
def _measure(program: Program, state: Any, shared: Any, runs: Any) -> tuple[Any, Array]:
    method = program.method

    def measure(state: Any, run: Any, shared: Any) -> Any:
        params, facts = state["params"], {**shared, **run}
        if method.motion:
            moved = method.motion.before(state["moved"], params, state["taken"])
            facts |= method.motion.facts(moved)
        key = None if program.measured_exactly else jax.random.fold_in(run["key"], 2**31 - 1)
        loss = functools.partial(_loss, program, sampler=params, facts=facts, key=key)
        if isinstance(program.outcomes, Texts):
            metrics, log_probs = estimated(program.outcomes, params, facts, key)
        else:
            log_probs = program.outcomes.log_probs(params)
            metrics = metrics_of(program.num_modes, log_probs, facts)
        return {**metrics, "gradient_norm": _norm(jax.grad(loss)(params))}, log_probs

    at_once = max(1, _AT_ONCE // _at_hand(program.outcomes))
    return _over_runs(program.devices, measure, state, runs, shared, at_once=at_once)


def _loss(program: Program, params: Any, sampler: Any, facts: Any, key: Any) -> Array:
    return -program.method.ascent(program, params, lax.stop_gradient(sampler), facts, key)


def _norm(gradient: Any) -> Array:
    leaves = jax.tree.leaves(gradient)
    dtype = working_dtype(widest(*(x.dtype for x in leaves)))
    total = [jnp.sum(jnp.square(x.astype(dtype))) for x in leaves]
    return jnp.sqrt(functools.reduce(jnp.add, total))
