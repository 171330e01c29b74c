"""The command `kltarget`: targets of a table or of a shipped task.

Exit codes: 0 fine, 1 a solution failed, 2 bad input, with one line on stderr that says where.

`kltarget solve … --json OUT` writes these keys:

- `problem`, `divergence`, and `mara`: `null`, or its `threshold` and `method`;
- `notes`: what was guessed or changed while reading, a list of lines;
- `missing_mass`: reference mass that the table's rows leave out;
- `labels`, `reward`, `log_ref`, `modes`: the problem, a list with one entry per outcome;
- `targets`: a list with an entry for each β, in the order given, of `beta`; `log_probs`, a list
  with one entry per outcome; `expected_reward`, `kl_to_reference`, `entropy` (nats) and
  `effective_modes` under the problem as read; `value`, `multiplier` and `divergence_value` of the
  objective that was solved; `status`, a list of the names of its set bits.

Logarithms are natural. JSON has no infinities: they are the strings `"inf"` and `"-inf"`, and
`"nan"` stands where a solution failed. Equal inputs give equal bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import math
import os
import pathlib
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, NoReturn

# What imports JAX is imported where it is used, so that bad options are answered at once.
if TYPE_CHECKING:
    import numpy as np

    from kltarget.status import Status
    from kltarget.tasks import Task

_DIVERGENCES = {
    "reverse-kl": "ReverseKL",
    "forward-kl": "ForwardKL",
    "jensen-shannon": "JensenShannon",
    "alpha": "Alpha",
    "chi-squared": "ChiSquared",
    "neyman-chi-squared": "NeymanChiSquared",
    "squared-hellinger": "SquaredHellinger",
    "tsallis": "Tsallis",
    "chi-squared-kl": "ChiSquaredKL",
    "total-variation": "TotalVariation",
}
_WITH_PARAMETER = {"alpha": "0.5", "tsallis": "1.5"}

# More columns than this do not fit beside the outcomes; the table of β is never cut.
_MOST_COLUMNS = 5
_WIDTH = 96


class _InputError(Exception):
    """What the user gave cannot be used; the message is one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the program's name. Default: those of the process.

    Returns:
        The exit code: 0 fine, 1 a solution failed, 2 bad input. Errors are written to stderr.
    """
    try:
        arguments = _parser().parse_args(argv)
        return arguments.run(arguments)
    except SystemExit as stop:  # --help and --version end here, bad options too
        return stop.code if isinstance(stop.code, int) else 0
    except _InputError as error:
        print(f"kltarget: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, such as `head`, has gone; without this Python complains when it flushes at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            _say(message.splitlines())

    def error(self, message: str) -> NoReturn:
        raise _InputError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kltarget",
        description="Exact targets of regularised reward maximisation, "
        "max over π of E_π[r] − β·D(π, π_ref).",
        epilog="Exit codes: 0 fine, 1 a solution failed, 2 bad input.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    tasks = commands.add_parser(
        "tasks", help="list the shipped problems", description="List the shipped problems."
    )
    tasks.set_defaults(run=_tasks)

    solve = commands.add_parser(
        "solve",
        help="targets of a table or of a shipped task",
        description="Print the target of each β: what training with this reward aims at.",
        epilog="examples: kltarget solve words --beta 0.01,0.1,1 --plot words.png; "
        "kltarget solve answers.csv --beta 1e-3:1:7 --divergence forward-kl --json targets.json",
        allow_abbrev=False,
    )
    solve.add_argument(
        "problem",
        metavar="TABLE_OR_TASK",
        help="a .csv, .tsv, .json, .jsonl or .parquet file, a row per outcome, or a task's name",
    )
    solve.add_argument(
        "--beta",
        required=True,
        type=_option(_betas),
        metavar="β",
        help="regularisation, reward units per nat: 0.1, a list 0.01,0.1,1, or log-spaced "
        "FROM:TO:COUNT",
    )
    solve.add_argument(
        "--divergence",
        default="reverse-kl",
        type=_option(_divergence),
        metavar="NAME",
        help=", ".join(
            f"{name}:{_WITH_PARAMETER[name]}" if name in _WITH_PARAMETER else name
            for name in _DIVERGENCES
        )
        + " (default: reverse-kl)",
    )
    solve.add_argument(
        "--threshold",
        type=_option(_number),
        metavar="τ",
        help="apply MARA: all outcomes of reward τ or more become equally probable",
    )
    solve.add_argument(
        "--mara-method",
        choices=("augment", "substitute"),
        metavar="METHOD",
        help="augment (change the reward) or substitute (change reward and reference); default: "
        "augment for reverse-kl, substitute for the others, which augmenting does not equalise",
    )
    solve.add_argument(
        "--top", type=_option(_count), default=10, metavar="K", help="outcomes to print"
    )
    solve.add_argument("--json", type=pathlib.Path, metavar="OUT", help="write everything as JSON")
    solve.add_argument("--plot", type=pathlib.Path, metavar="OUT.png", help="draw the targets")

    columns = solve.add_argument_group("columns of a table (default: found by their names)")
    columns.add_argument("--outcome", metavar="COLUMN", help="the outcomes' names")
    columns.add_argument("--reward", metavar="COLUMN", help="their rewards")
    reference = columns.add_mutually_exclusive_group()
    reference.add_argument(
        "--log-ref", metavar="COLUMN", help="reference log-probabilities (natural)"
    )
    reference.add_argument("--prob", metavar="COLUMN", help="or reference probabilities")
    reference.add_argument("--count", metavar="COLUMN", help="or how often the reference gave each")
    columns.add_argument("--modes", metavar="COLUMN", help="equal entries are one mode")
    columns.add_argument(
        "--unseen-reward",
        type=_option(_number),
        metavar="R",
        help="keep reference mass that the rows leave out as one more outcome with this reward",
    )
    solve.set_defaults(run=_solve)
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"kltarget {version('kltarget')}")
        parser.exit()


def _option(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Lets a parser of option values say what is wrong, where argparse would name the function."""

    def parse_option(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_option


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if math.isnan(value):
        raise ValueError(f"{text!r} is not a number")
    return value


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a whole number above 0")
    return int(text)


def _betas(text: str) -> list[float]:
    span = text.split(":")
    if len(span) == 3:
        low, high, count = _number(span[0]), _number(span[1]), _count(span[2])
        betas = [_positive(low, span[0]), _positive(high, span[1])]
        if count > 1:
            step = math.log(high / low) / (count - 1)
            # The ends are exactly what was asked for.
            betas[1:1] = [low * math.exp(k * step) for k in range(1, count - 1)]
        return betas if count > 1 else betas[:1]
    if len(span) != 1:
        raise ValueError(f"{text!r} is neither a list such as 0.01,0.1,1 nor FROM:TO:COUNT")
    return [_positive(_number(part), part) for part in text.split(",")]


def _positive(value: float, text: str) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not a finite number above 0")
    return value


def _divergence(text: str) -> tuple[str, str, float | None]:
    """The name as given, the class in `kltarget` and its parameter."""
    name, colon, parameter = text.partition(":")
    if name not in _DIVERGENCES:
        raise ValueError(f"{text!r} is none of {', '.join(_DIVERGENCES)}")
    if name in _WITH_PARAMETER:
        if not colon:
            raise ValueError(f"{name} needs its parameter, such as {name}:{_WITH_PARAMETER[name]}")
        value = _number(parameter)
        if math.isinf(value):
            raise ValueError(f"{parameter!r} is not a finite number")
        return text, _DIVERGENCES[name], value
    if colon:
        raise ValueError(f"{name} has no parameter")
    return text, _DIVERGENCES[name], None


def _tasks(arguments: argparse.Namespace) -> int:
    from kltarget import tasks

    known = [tasks.load(name) for name in tasks.names()]
    rows = [["task", "outcomes"], *([task.name, f"{task.num_outcomes:,}"] for task in known)]
    descriptions = ["description", *(task.description for task in known)]
    lines = zip(_table(rows), descriptions, strict=True)
    _say([f"{line}   {description}" for line, description in lines])
    return 0


def _solve(arguments: argparse.Namespace) -> int:
    task, read = _load(arguments)
    for path in (arguments.json, arguments.plot):
        if path is not None and not path.parent.is_dir():
            raise _InputError(f"{path}: there is no folder {str(path.parent)!r}")
        if (
            path is not None
            and path.exists()
            and os.path.realpath(arguments.problem) == str(path.resolve())
        ):
            raise _InputError(f"{path}: this is the table itself: write elsewhere")
    if arguments.plot is not None:
        _check_drawable(arguments.plot)
    with _float64(), _without_device_warnings():
        solution = _solution(task, arguments)
        _say(_report(solution, read, arguments))
        if arguments.json is not None:
            _write(arguments.json, lambda file: file.write(_json(solution)))
        if arguments.plot is not None:
            _plot(arguments.plot, solution)
    for path in filter(None, (arguments.json, arguments.plot)):
        _say([f"wrote {path}"])
    from kltarget.status import FAILURES

    failed = 0
    for i, (beta, status) in enumerate(zip(solution.betas, solution.statuses, strict=True)):
        nan = any(map(math.isnan, solution.log_probs[i].tolist()))
        if status & FAILURES or nan:
            failed = 1
            why = ", ".join(_names(status & FAILURES)) or "the numbers overflow"
            print(f"kltarget: {arguments.problem}: β = {beta:g} failed: {why}", file=sys.stderr)
    return failed


def _load(arguments: argparse.Namespace) -> tuple[Task, tuple[str, ...]]:
    """The problem and what there is to say about reading it."""
    from kltarget import tables, tasks

    columns = {
        role: getattr(arguments, role)
        for role in ("outcome", "reward", "log_ref", "prob", "count", "modes", "unseen_reward")
    }
    if arguments.problem in tasks.names():
        for role, column in columns.items():
            if column is not None:
                option = role.replace("_", "-")
                raise _InputError(f"--{option} is for tables, but {arguments.problem!r} is a task")
        return tasks.load(arguments.problem), ()
    path = pathlib.Path(arguments.problem)
    if not path.suffix and not path.exists():
        raise _InputError(
            f"{arguments.problem!r} is neither a file nor a task: "
            f"the tasks are {', '.join(tasks.names())}"
        )
    try:
        table = tables.read_table(path, **columns)
    except (tables.TableError, ImportError) as error:
        raise _InputError(str(error)) from None
    return table, table.notes


@dataclasses.dataclass(frozen=True)
class _Solution:
    """One problem and its targets, a row per β; the measures begin with those of the reference."""

    task: Task
    betas: list[float]
    divergence: str
    divergence_name: str
    mara: dict[str, Any] | None
    right: np.ndarray
    modes: np.ndarray
    target: Any
    log_probs: np.ndarray
    measures: dict[str, list[float]]
    statuses: list[Status]


def _solution(task: Task, arguments: argparse.Namespace) -> _Solution:
    import jax
    import jax.numpy as jnp
    import numpy as np

    import kltarget as kt
    from kltarget.tasks import one_mode_each, right_outcomes

    text, class_name, parameter = arguments.divergence
    threshold, method = arguments.threshold, arguments.mara_method
    if method is not None and threshold is None:
        raise _InputError("--mara-method needs --threshold")
    try:
        divergence = getattr(kt, class_name)(*(() if parameter is None else (parameter,)))
        objective = task.objective(np.array(arguments.beta), divergence=divergence)
        solved = objective
        if threshold is not None:
            method = method or ("augment" if class_name == "ReverseKL" else "substitute")
            solved = kt.mara(objective, threshold, method=method)
        target = kt.solve(solved)
    except ValueError as error:
        raise _InputError(f"{arguments.problem}: {error}") from None

    right = task.reward >= threshold if threshold is not None else right_outcomes(task.reward)
    # Right outcomes that the table puts in no mode, which a threshold may add, are a mode each.
    apart = one_mode_each(right & (task.modes < 0))
    modes = np.where(right, np.where(apart < 0, task.modes, task.modes.max() + 1 + apart), -1)

    # Under jit the whole is compiled once, which is most of what the command takes.
    @jax.jit
    def measure(log_probs: jax.Array, reward: jax.Array, log_ref: jax.Array) -> dict[str, Any]:
        probs = jnp.exp(log_probs)
        gain = jnp.where(probs == 0, jnp.zeros_like(probs), probs * reward)
        return {
            "expected_reward": gain.sum(-1),
            "kl_to_reference": kt.kl(log_probs, log_ref),
            "entropy": kt.entropy(log_probs),
            "effective_modes": kt.effective_modes(log_probs, modes),
        }

    log_probs = np.asarray(target.log_probs)
    rows = np.vstack([task.log_ref, log_probs])
    measures = measure(rows, *(np.broadcast_to(x, rows.shape) for x in (task.reward, task.log_ref)))
    statuses = [kt.Status(status) for status in np.asarray(target.status).tolist()]
    return _Solution(
        task=task,
        betas=arguments.beta,
        divergence=text,
        divergence_name=divergence.name + ("" if parameter is None else f" ({text})"),
        mara=None if threshold is None else {"threshold": threshold, "method": method},
        right=right,
        modes=modes,
        target=target,
        log_probs=log_probs,
        measures={name: np.asarray(values).tolist() for name, values in measures.items()},
        statuses=statuses,
    )


def _names(status: Status) -> list[str]:
    return [str(bit.name) for bit in type(status) if bit & status]


_REMARKS = {
    "CONDENSED": "part of the target stands on outcomes without reference mass",
    "TRUNCATED": "the target is exactly 0 on outcomes that the reference can produce",
    "NOT_UNIQUE": "tied outcomes share a mass of which only the total is determined",
}


def _report(solution: _Solution, notes: Sequence[str], arguments: argparse.Namespace) -> list[str]:
    import numpy as np

    task, betas = solution.task, solution.betas
    rewards = task.reward[solution.right]
    if solution.mara is not None:
        what = f"reward ≥ {solution.mara['threshold']:g}"
    elif (rewards == rewards.max()).all():
        what = f"reward {rewards.max():.4g}"
    else:
        what = f"reward above {task.reward[np.isfinite(task.reward)].min():.4g}"
    right_mass = np.logaddexp.reduce(task.log_ref[solution.right])
    num_modes = len(np.unique(solution.modes[solution.right]))
    lines = [f"{task.name}: {task.description}", *(f"  {note}" for note in notes)]
    lines.append(
        f"{task.num_outcomes:,} outcomes, {solution.right.sum():,} right ({what}, reference mass "
        f"{_probability(right_mass)}); regularised by {solution.divergence_name}"
        + (f" with MARA ({solution.mara['method']})" if solution.mara else "")
    )

    rows = [["β", "expected reward", "KL(π‖π_ref)", "effective modes"]]
    for i, name in enumerate(["reference", *(f"{beta:g}" for beta in betas)]):
        row = {measure: values[i] for measure, values in solution.measures.items()}
        rows.append(
            [
                name,
                _decimal(row["expected_reward"]),
                _decimal(row["kl_to_reference"]),
                f"{_decimal(row['effective_modes'], 2)} of {num_modes:,}",
            ]
        )
    lines += ["", *_table(rows)]
    lines += ["", *_outcomes(solution, arguments.top)]
    lines.append("")
    for sentence in _sentences(solution):
        lines += textwrap.wrap(sentence, _WIDTH, subsequent_indent="    ", break_long_words=False)
    return lines


def _sentences(solution: _Solution) -> list[str]:
    """What happens, in words: the verdict on each β of the tables, or on MARA, and remarks."""
    import numpy as np

    lines = _mara_verdict(solution) if solution.mara is not None else _verdicts(solution)
    for status, text in _REMARKS.items():
        at = [
            f"{beta:g}"
            for beta, bits in zip(solution.betas, solution.statuses, strict=True)
            if status in _names(bits)
        ]
        if at:
            lines.append(f"Note: β = {', '.join(at)}: {text}")
    task = solution.task
    beyond = int(np.where(np.isneginf(task.log_ref), task.reward, -np.inf).argmax())
    others = np.where(np.isneginf(task.log_ref), -np.inf, task.reward)
    if task.reward[beyond] > others.max() and np.isneginf(solution.log_probs[:, beyond]).all():
        lines.append(
            f"Note: {_quoted(task.labels[beyond])} has the highest reward but no reference mass, "
            f"and {solution.divergence_name} keeps it impossible here"
        )
    return lines


def _verdicts(solution: _Solution) -> list[str]:
    import numpy as np

    import kltarget as kt

    task, target = solution.task, solution.target
    divergence = target.objective.divergence
    verdicts, flips = [], False
    for i in _columns(solution):
        one = kt.Target(
            task.objective(solution.betas[i], divergence=divergence),
            target.log_probs[i],
            target.multiplier[i],
            target.status[i],
        )
        summary = kt.summarize(one, solution.modes, labels=task.labels)
        verdicts.append(summary.verdict.split("; "))
        flips = flips or math.isfinite(summary.flip_beta)
    # What no β can change is said once.
    ends = {verdict[-1] for verdict in verdicts}
    common = sorted(ends) if len(verdicts) > 1 and len(ends) == 1 else []
    if common and common[0].endswith("at every β") and all(len(v) > 1 for v in verdicts):
        verdicts = [verdict[:-1] for verdict in verdicts]
    else:
        common = []
    lines = [
        f"β = {solution.betas[i]:g}: {'; '.join(verdict)}"
        for i, verdict in zip(_columns(solution), verdicts, strict=True)
    ]
    lines += common
    # The summary compares modes; the reference's favourite may be a wrong answer, in none of them.
    favourite = int(task.log_ref.argmax())
    possible = np.isfinite(task.log_ref) & np.isfinite(task.reward)
    best = int(np.lexsort((-task.log_ref, -np.where(possible, task.reward, -np.inf)))[0])
    if not flips and possible[favourite] and task.reward[favourite] < task.reward[best]:
        one = task.objective(solution.betas[0], divergence=divergence)
        flip = float(kt.flip_beta(one, favourite, best))
        if 0 < flip < math.inf:
            lines.append(
                f"{_quoted(task.labels[best])} overtakes the reference's favourite "
                f"{_quoted(task.labels[favourite])} below β = {flip:.4g}"
            )
    return lines


def _mara_verdict(solution: _Solution) -> list[str]:
    import numpy as np

    assert solution.mara is not None
    raised = solution.log_probs[:, solution.right & np.isfinite(solution.task.log_ref)]
    spread = np.exp(raised.max(axis=1) - raised.min(axis=1))
    at = int(spread.argmax())
    which = f"outcomes of reward {solution.mara['threshold']:g} or more"
    if spread.max() < 1 + 1e-6:
        return [f"MARA makes the {raised.shape[1]:,} {which} equally probable"]
    return [
        f"MARA leaves {which} unequal, by up to a factor {spread[at]:.3g} at "
        f"β = {solution.betas[at]:g}: use --mara-method substitute"
    ]


def _columns(solution: _Solution) -> list[int]:
    """Which β are shown in columns and judged in words: all, or some from end to end."""
    last = len(solution.betas) - 1
    count = min(last + 1, _MOST_COLUMNS)
    return sorted({round(k * last / max(count - 1, 1)) for k in range(count)})


def _outcomes(solution: _Solution, top: int) -> list[str]:
    """The most probable outcomes, and modes if they are not single outcomes, at up to five β."""
    import numpy as np

    task, betas = solution.task, solution.betas
    columns = _columns(solution)
    masses = np.vstack([task.log_ref, solution.log_probs[columns]])
    heads = ["reference", *(f"β = {betas[i]:g}" for i in columns)]

    chosen = _top(masses, top)
    labels = [_short(task.labels[i]) for i in chosen]
    rewards = [f"{task.reward[i]:.4g}" for i in chosen]
    lines = _mass_table(masses, chosen, heads, {"outcome": labels, "reward": rewards})

    modes = np.unique(solution.modes[solution.right])
    if len(modes) < solution.right.sum():
        members = [np.flatnonzero(solution.modes == mode) for mode in modes]
        if not solution.right.all():
            members.append(np.flatnonzero(~solution.right))
        by_mode = np.stack([np.logaddexp.reduce(masses[:, m], axis=1) for m in members], axis=1)
        kept = _top(by_mode, top)
        peaks = [task.labels[members[k][task.log_ref[members[k]].argmax()]] for k in kept]
        labels = [
            f"of “{_short(peak, 30)}”" if k < len(modes) else "not right"
            for k, peak in zip(kept, peaks, strict=True)
        ]
        sizes = [f"{len(members[k]):,}" for k in kept]
        lines += ["", *_mass_table(by_mode, kept, heads, {"mode": labels, "outcomes": sizes})]
    return lines


def _top(masses: np.ndarray, top: int) -> np.ndarray:
    """All columns in their order; of more than `top`, those that some target favours."""
    import numpy as np

    if masses.shape[1] <= top:
        return np.arange(masses.shape[1])
    best = np.where(np.isnan(masses[1:]), -np.inf, masses[1:]).max(axis=0)
    return np.lexsort((-masses[0], -best))[:top]


def _mass_table(
    masses: np.ndarray, chosen: np.ndarray, heads: Sequence[str], names: dict[str, list[str]]
) -> list[str]:
    """Two columns that name the chosen entries, then their mass in each row of `masses`."""
    import numpy as np

    rows = [[*names, *heads]]
    for i, *cells in zip(chosen, *names.values(), strict=True):
        rows.append([*cells, *map(_probability, masses[:, i])])
    rest = np.delete(masses, chosen, axis=1)
    if rest.shape[1]:
        total = np.logaddexp.reduce(rest, axis=1)
        rows.append([f"({rest.shape[1]:,} more)", "", *map(_probability, total)])
    return _table(rows)


def _short(label: str, room: int = 36) -> str:
    from kltarget.summary import _short

    return _short(label, room)


def _quoted(label: str) -> str:
    return f"“{_short(label)}”"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    from kltarget.summary import _aligned

    return _aligned([list(row) for row in rows])


def _decimal(value: float, digits: int = 4) -> str:
    if not math.isfinite(value):
        return f"{value:g}".replace("inf", "∞")
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.4g}"


def _probability(log_mass: float) -> str:
    """A probability, also one too small for a float."""
    if math.isnan(log_mass):
        return "nan"
    if log_mass == -math.inf:
        return "0"
    if log_mass >= math.log(0.9999e-3):
        return f"{math.exp(log_mass):.4f}"
    from kltarget.summary import _scientific

    return _scientific(log_mass)


def _json(solution: _Solution) -> str:
    import numpy as np

    task, target = solution.task, solution.target
    fields = {
        **{name: values[1:] for name, values in solution.measures.items()},
        "value": target.value,
        "multiplier": target.multiplier,
        "divergence_value": target.divergence_value,
    }
    rows = {name: np.asarray(values).tolist() for name, values in fields.items()}
    content = {
        "problem": task.name,
        "divergence": solution.divergence,
        "mara": solution.mara,
        "notes": list(getattr(task, "notes", ())),
        "missing_mass": getattr(task, "missing_mass", 0.0),
        "labels": list(task.labels),
        "reward": task.reward.tolist(),
        "log_ref": task.log_ref.tolist(),
        "modes": task.modes.tolist(),
        "targets": [
            {
                "beta": beta,
                **{name: values[i] for name, values in rows.items()},
                "status": _names(solution.statuses[i]),
                "log_probs": solution.log_probs[i].tolist(),
            }
            for i, beta in enumerate(solution.betas)
        ],
    }
    return json.dumps(_strict(content), ensure_ascii=False, allow_nan=False) + "\n"


def _strict(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _strict(entry) for name, entry in content.items()}
    if isinstance(content, list):
        return [_strict(entry) for entry in content]
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    return content


def _check_drawable(path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    if _kind(path) not in Figure().canvas.get_supported_filetypes():
        raise _InputError(
            f"{path}: cannot draw a {path.suffix or 'file without extension'}: "
            "use .png, .pdf or .svg"
        )


def _kind(path: pathlib.Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _plot(path: pathlib.Path, solution: _Solution) -> None:
    import matplotlib.style

    from kltarget import plot

    ax = plot.target(solution.target, problem=solution.task)
    with matplotlib.style.context(plot.STYLE):
        ax.set_title(solution.task.name)
    figure: Any = ax.figure
    _write(path, lambda file: figure.savefig(file, format=_kind(path)), binary=True)


def _write(path: pathlib.Path, fill: Callable[[IO[Any]], Any], *, binary: bool = False) -> None:
    """Writes a file that appears complete or not at all."""
    mode, encoding = ("wb", None) if binary else ("w", "utf-8")
    try:
        with tempfile.NamedTemporaryFile(
            mode, encoding=encoding, dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            try:
                fill(file)
                file.close()
                # The temporary file is private; the result gets the permissions of any new file.
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(file.name, 0o666 & ~umask)
                os.replace(file.name, path)
            except BaseException:
                file.close()
                os.unlink(file.name)
                raise
    except OSError as error:
        raise _InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def _say(lines: Sequence[str]) -> None:
    text = "\n".join(lines) + "\n"
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        # A terminal without Greek still gets every number.
        for sign, plain in {"β": "b", "π": "pi", "‖": "||", "∞": "inf", "…": "~", "−": "-"}.items():
            text = text.replace(sign, plain)
        text = text.encode(encoding, "replace").decode(encoding)
    sys.stdout.write(text)
    sys.stdout.flush()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _float64() -> contextlib.AbstractContextManager[Any]:
    """Double precision for this command only; a caller of `main` keeps its own setting."""
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]

    return enable_x64(True)


@contextlib.contextmanager
def _without_device_warnings() -> Iterator[None]:
    """JAX remarks on accelerators that it finds and cannot use; here that is noise."""
    logger = logging.getLogger("jax")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
