"""A second call with the same shapes and divergence traces and compiles nothing."""

import threading

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import kltarget as kt
from kltarget import tasks

DTYPE = np.dtype(jnp.result_type(float))
REWARD = np.array([1.0, 0.5, 0.0], DTYPE)
LOG_REF = np.log(np.array([0.3, 0.1, 0.6], DTYPE))


TRACED = []


def _listen(event, _duration, **_):
    if event == "/jax/core/compile/jaxpr_trace_duration":
        TRACED.append(event)


jax.monitoring.register_event_duration_secs_listener(_listen)


def traces():
    """How many programs JAX has traced since this was last asked."""
    number = len(TRACED)
    TRACED.clear()
    return number


def test_new_programs_are_counted():
    traces()
    jax.jit(lambda x: x + 1)(1.0)
    assert traces() > 0


def solved(divergence, beta, reward=REWARD):
    return jax.block_until_ready(
        kt.solve(kt.Objective(reward, LOG_REF, np.array(beta, DTYPE), divergence))
    )


@pytest.mark.quick_only("divergence0", "divergence1", others="broad")
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL(), kt.ChiSquared()])
def test_solve_compiles_once_per_shape(divergence):
    solved(divergence, [0.3, 1.0])
    traces()
    solved(divergence, [0.01, 7.0], REWARD * 2)
    assert traces() == 0


@pytest.mark.broad
def test_parameters_of_a_divergence_are_data():
    solved(kt.Alpha(0.3), 0.5)
    traces()
    solved(kt.Alpha(0.7), 0.5)
    assert traces() == 0


def fine_tuned(beta, learning_rate, steps=5, every=100):
    policy = kt.TabularPolicy(3, 1)
    params = policy.init(key=jax.random.key(0))
    recipe = kt.Recipe("loss", "k3")
    return kt.fine_tune(
        policy,
        params,
        np.asarray(REWARD),
        recipe,
        beta=np.array(beta),
        learning_rate=learning_rate,
        num_steps=steps,
        history_every=every,
        key=jax.random.key(1),
    )


def test_fine_tune_compiles_once_per_recipe():
    fine_tuned([0.3, 1.0], 0.1)
    traces()
    fine_tuned([0.5, 2.0], 0.2)
    assert traces() == 0
    fine_tuned([0.5, 2.0], 0.2, steps=9, every=4)
    assert traces() == 0, "how long to train and how often to measure are data"


def test_a_sweep_compiles_once_whatever_its_chunks():
    task = tasks.load("one-two")
    kt.sweep(task, beta=np.geomspace(0.1, 1, 4), chunk_rows=2, divergence="reverse-kl")
    traces()
    kt.sweep(task, beta=np.geomspace(0.01, 1, 12), chunk_rows=2, divergence="reverse-kl")
    assert traces() == 0


def test_moves_of_the_explorer_compile_nothing():
    choice = ("reverse-kl", "forward-kl")
    explorer = kt.explore("bimodal", divergences=choice)
    for divergence in choice:
        explorer.divergence = divergence
        explorer.move(beta=0.3)
    traces()
    for divergence in choice:
        explorer.divergence, explorer.reward_scale = divergence, 3.0
        explorer.move(beta=0.7, odds=2, threshold=0.75)
    kt.explore("bimodal", divergences=choice).move(beta=0.2)
    assert traces() == 0


def test_scenes_of_an_explorer_that_is_shown_are_compiled_ahead():
    choice = ("total-variation", "reverse-kl")
    explorer = kt.explore((REWARD, LOG_REF), divergences=choice, beta=0.3)
    explorer._repr_mimebundle_()
    for thread in threading.enumerate():
        if thread.name == "compile ahead":
            thread.join()
    traces()
    for divergence in choice:
        explorer.move(divergence=divergence)
    assert traces() == 0
