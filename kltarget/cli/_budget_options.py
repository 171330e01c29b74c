"""What may be asked of a target in place of a β: a KL, an expected reward, or best-of-n's KL."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np

from kltarget import tasks
from kltarget._core.checks import ArgumentError
from kltarget._core.words import decimal
from kltarget.cli._arguments import beta_list, finite, options_of
from kltarget.cli._output import InputError, input_errors
from kltarget.divergences import Divergence
from kltarget.frontier import best_of_n, beta_for
from kltarget.objectives import Objective
from kltarget.tasks import Task

_OPTIONS = ("beta", "kl_budget", "expected_reward", "best_of")


class Asked(NamedTuple):
    """The β that do what was asked for, how that is said in words, and what JSON holds of it."""

    betas: list[float]
    sentences: tuple[str, ...] = ()
    record: dict[str, Any] | None = None


def add_betas(command: argparse.ArgumentParser) -> None:
    """Adds the options that say β, one of which must be given."""
    add = options_of(command.add_mutually_exclusive_group())
    add(
        "--beta β",
        "regularisation, reward units per nat: 0.1, a list 0.01,0.1,1, or log-spaced FROM:TO:COUNT",
        beta_list,
    )
    add("--kl-budget NATS", "or the β whose target has this KL(π‖π_ref), or a list", beta_list)
    add(
        "--expected-reward R",
        "or this expected reward, or a list; of a task also --reward R",
        _numbers,
    )
    add("--best-of N", "or the KL(π‖π_ref) that best-of-N has, or a list", _draws)


def _numbers(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or a list of them") from None
    if not np.isfinite(values).all():
        raise argparse.ArgumentTypeError(f"{text!r} is not finite")
    return values


def _draws(text: str) -> list[float]:
    values = [finite(part) for part in text.split(",")]
    if min(values) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 1, and one draw is the reference")
    return values


def take_reward_of_task(arguments: argparse.Namespace) -> None:
    """Of a task, which has no columns, ``--reward 0.9`` asks for an expected reward."""
    others = all(getattr(arguments, name) is None for name in _OPTIONS)
    if others and arguments.reward is not None and arguments.problem in tasks.names():
        try:
            arguments.expected_reward = _numbers(arguments.reward)
        except argparse.ArgumentTypeError as error:
            raise InputError(f"argument --reward: {error}") from None
        arguments.reward = None
    elif others:
        raise InputError(
            "the following arguments are required: --beta, or one of --kl-budget, "
            "--expected-reward and --best-of (see kltarget solve --help)"
        )


def asked_betas(task: Task, arguments: argparse.Namespace, divergence: Divergence) -> Asked:
    """The coefficients, or an error that names the option and what it can reach."""
    if arguments.beta is not None:
        return Asked(arguments.beta)
    option = next(name for name in _OPTIONS if getattr(arguments, name) is not None)
    flag = f"--{option.replace('_', '-')}"
    if arguments.threshold is not None:
        raise InputError(f"{flag} and --threshold: MARA's reward depends on β, so give --beta")
    values = getattr(arguments, option)
    make = {"kl_budget": _of_kl, "expected_reward": _of_reward, "best_of": _of_best}[option]
    with input_errors(arguments.problem):
        objective = task.objective(1.0, divergence=divergence)
        try:
            # Of one value no index is named.
            return make(objective, np.array(values if len(values) > 1 else values[0]))
        except ArgumentError as error:
            raise InputError(f"{arguments.problem}: {error.with_option(flag)}") from None


def _of_kl(objective: Objective, values: np.ndarray) -> Asked:
    betas = np.atleast_1d(beta_for(objective, kl=values)).tolist()
    asked = np.atleast_1d(values).tolist()
    said = (f"KL(π‖π_ref) is {x:g} nats at β = {b:.6g}" for x, b in zip(asked, betas, strict=True))
    return Asked(betas, tuple(said), {"kl": asked})


def _of_reward(objective: Objective, values: np.ndarray) -> Asked:
    betas = np.atleast_1d(beta_for(objective, expected_reward=values)).tolist()
    asked = np.atleast_1d(values).tolist()
    said = (
        f"the expected reward is {x:g} at β = {b:.6g}" for x, b in zip(asked, betas, strict=True)
    )
    return Asked(betas, tuple(said), {"expected_reward": asked})


def _of_best(objective: Objective, values: np.ndarray) -> Asked:
    draws = np.atleast_1d(values)
    best = best_of_n(objective.reward, objective.log_ref, draws)
    try:
        betas = np.asarray(beta_for(objective, kl=best.kl)).tolist()
    except ArgumentError:
        most = float(np.max(np.asarray(best.kl)))
        raise ArgumentError(
            f"{{}}: its KL(π‖π_ref), {most:.4g} nats, is more than any β reaches here",
            "n",
            f"{draws.max():g}",
        ) from None
    names = ("kl", "kl_bound", "expected_reward", "win_rate")
    record = {name: np.asarray(getattr(best, name)).tolist() for name in names}
    sentences = []
    for k, (n, beta) in enumerate(zip(draws.tolist(), betas, strict=True)):
        kl, bound, reward, wins = (record[name][k] for name in names)
        sentences.append(
            f"best-of-{n:g} has KL(π‖π_ref) {decimal(kl)} (at most log n − (n − 1)/n = "
            f"{decimal(bound)}) and expected reward {decimal(reward)}, and beats one draw with "
            f"probability {decimal(wins)}, ties counted ½; the target has that KL at β = {beta:.6g}"
        )
    return Asked(betas, tuple(sentences), {"best_of": draws.tolist(), **record})
