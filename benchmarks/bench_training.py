"""Fine-tuning many small policies in one program, against one at a time and against PyTorch.

    pytest benchmarks/bench_training.py --benchmark-json=training.json
    python benchmarks/report.py training.json

``times faster`` in ``extra_info`` is a ratio per run, both sides measured in turn: policies of 32
hidden units over 8 tokens and sequences of 6, 128 samples a step, Adam, k1 in the reward with a
leave-one-out baseline, from the same reward and reference. Neither side measures what it reached;
compilation is paid before.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kltarget.policies import GRUPolicy, Policy, TabularPolicy
from kltarget.recipes import Recipe
from kltarget.training import fine_tune

VOCAB_SIZE, LENGTH, WIDTH, BATCH_SIZE, NUM_STEPS = 8, 6, 32, 128, 300
BETA, LEARNING_RATE = 0.3, 3e-3
RECIPE = Recipe(place="reward", estimator="k1", baseline="leave-one-out")
ROUNDS = 3


def reward_of(space_size: int) -> np.ndarray:
    return (np.random.default_rng(0).random(space_size) < 0.1).astype(np.float32)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def train_together(policy: Policy, params: Any, num_runs: int, num_steps: int) -> Any:
    """As many policies, each with its own random numbers, in one program."""
    return fine_tune(
        policy,
        params,
        jnp.asarray(reward_of(policy.vocab_size**policy.length)),
        RECIPE,
        beta=BETA,
        learning_rate=LEARNING_RATE,
        num_steps=num_steps,
        key=jax.random.split(jax.random.key(0), num_runs),
        batch_size=BATCH_SIZE,
        measure=False,
    ).params


def train_in_torch(params: Any, num_steps: int) -> None:
    """One run as one would write it in PyTorch, from the same parameters."""
    import torch
    from torch.nn import functional as F

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = torch.nn.GRUCell(VOCAB_SIZE, WIDTH)
            self.out = torch.nn.Linear(WIDTH, VOCAB_SIZE)
            self.start = torch.nn.Parameter(torch.zeros(WIDTH))
            tensors = {name: torch.tensor(np.asarray(x)) for name, x in params.items()}
            with torch.no_grad():
                self.cell.weight_ih.copy_(tensors["inputs"].T)
                self.cell.weight_hh.copy_(tensors["recurrent"].T)
                self.cell.bias_ih.copy_(tensors["bias"])
                self.cell.bias_hh.zero_()
                self.cell.bias_hh[2 * WIDTH :].copy_(tensors["recurrent_bias"])
                self.out.weight.copy_(tensors["output"].T)
                self.out.bias.copy_(tensors["output_bias"])
                self.start.copy_(tensors["start"])

        def log_probs(self, tokens: torch.Tensor) -> torch.Tensor:
            state, total = self.start.expand(len(tokens), WIDTH), 0.0
            for t in range(LENGTH):
                given = F.log_softmax(self.out(state), dim=-1)
                total = total + given.gather(1, tokens[:, t : t + 1])[:, 0]
                if t + 1 < LENGTH:
                    state = self.cell(F.one_hot(tokens[:, t], VOCAB_SIZE).float(), state)
            return total

        @torch.no_grad()
        def sample(self) -> torch.Tensor:
            state, tokens = self.start.expand(BATCH_SIZE, WIDTH), []
            for t in range(LENGTH):
                probs = F.softmax(self.out(state), dim=-1)
                tokens.append(torch.multinomial(probs, 1)[:, 0])
                if t + 1 < LENGTH:
                    state = self.cell(F.one_hot(tokens[-1], VOCAB_SIZE).float(), state)
            return torch.stack(tokens, dim=1)

    policy, reference = Model(), Model()
    reward = torch.tensor(reward_of(VOCAB_SIZE**LENGTH))
    place = VOCAB_SIZE ** torch.arange(LENGTH - 1, -1, -1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    for _ in range(num_steps):
        tokens = policy.sample()
        log_probs = policy.log_probs(tokens)
        with torch.no_grad():
            log_ratio = log_probs - reference.log_probs(tokens)
            gain = reward[(tokens * place).sum(1)] - BETA * log_ratio
            advantage = (gain - gain.mean()) * (BATCH_SIZE / (BATCH_SIZE - 1))
        loss = -(advantage * log_probs).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@functools.cache
def gru() -> tuple[GRUPolicy, Any]:
    policy = GRUPolicy(vocab_size=VOCAB_SIZE, length=LENGTH, width=WIDTH)
    return policy, policy.init(key=jax.random.key(1))


@pytest.mark.parametrize("num_runs", [64])
@pytest.mark.parametrize("peer", ["one at a time", "PyTorch loop"])
def test_many_runs_in_one_program(benchmark: Any, num_runs: int, peer: str) -> None:
    policy, params = gru()
    if peer == "PyTorch loop":
        pytest.importorskip("torch")
        one = functools.partial(train_in_torch, params, NUM_STEPS)
    else:
        one = functools.partial(train_together, policy, params, 1, NUM_STEPS)
    together = functools.partial(train_together, policy, params, num_runs, NUM_STEPS)
    if benchmark.disabled:
        together = functools.partial(train_together, policy, params, 2, 2)
        one = one if peer == "one at a time" else functools.partial(train_in_torch, params, 2)
        one(), benchmark(together)
        return
    one(), together()
    pairs = [(seconds(one), seconds(together) / num_runs) for _ in range(ROUNDS)]
    benchmark.extra_info.update(
        {
            "runs": num_runs,
            "against": peer,
            "ms per run": 1e3 * statistics.median(own for _, own in pairs),
            "ms per run of the peer": 1e3 * statistics.median(other for other, _ in pairs),
            "times faster": statistics.median(other / own for other, own in pairs),
        }
    )
    benchmark.pedantic(together, rounds=1)


SIZES = [(4, 3), (4, 5), (4, 7), (26, 3)]


@pytest.mark.parametrize("kind", [TabularPolicy, GRUPolicy])
@pytest.mark.parametrize("size", SIZES)
def test_exact_gradient_steps(benchmark: Any, kind: Any, size: tuple[int, int]) -> None:
    """Steps per second of 16 runs whose gradients are sums over all sequences."""
    num_runs, num_steps = 16, 2 if benchmark.disabled else 50
    policy = kind(vocab_size=size[0], length=size[1])
    params = policy.init(key=jax.random.key(1))
    reward = jnp.asarray(reward_of(size[0] ** size[1]))

    def train() -> jax.Array:
        return fine_tune(
            policy,
            params,
            reward,
            Recipe(),
            beta=jnp.linspace(0.1, 1.0, num_runs),
            learning_rate=LEARNING_RATE,
            num_steps=num_steps,
            history_every=None,
            gradient_tol=0.0,
        ).log_probs

    if not benchmark.disabled:
        train()
    benchmark(lambda: jax.block_until_ready(train()))
    if not benchmark.disabled:
        benchmark.extra_info.update(
            {
                "policy": kind.__name__,
                "sequences": size[0] ** size[1],
                "steps of one run per second": num_runs * num_steps / benchmark.stats.stats.median,
            }
        )
