"""What a trainer logged once a step, reward and KL and entropy, as one frame of curves."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kltarget._core.words import counted
from kltarget.rollouts._rollout import RolloutError
from kltarget.rollouts._scalar_files import Logged, ScalarFile, scalar_file
from kltarget.rollouts._scalar_names import NAMES, STEP_NAMES, found_among, kl_is_of_answers
from kltarget.rollouts._select import listed, some

if TYPE_CHECKING:
    import pandas as pd

Path = str | os.PathLike[str]

# Of so many names an error lists the first.
_LISTED = 12


def are_scalars(paths: Path | Iterable[Path], *, columns: Mapping[str, str] | None = None) -> bool:
    """Whether files hold what was logged once a step, and no rollouts.

    Args:
        paths: a file, a folder, or several.
        columns: as in :func:`read_scalars`.

    Returns:
        True if :func:`read_scalars` reads them: every file that was named is one of scalars, or a
        folder has such files and no table of anything else.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    kinds = _kinds(given, columns or {})
    others = [x for x, (kind, named) in kinds.items() if kind is None and (named or _may_be(x))]
    return bool(kinds) and not others and any(kind for kind, _ in kinds.values())


def read_scalars(
    paths: Path | Iterable[Path],
    *,
    columns: Mapping[str, str] | None = None,
    run: str | None = None,
) -> pd.DataFrame:
    """Reads the curves of a run: what its trainer logged once a step.

    =================  ==============================  ============================================
    format             files                           written by
    =================  ==============================  ============================================
    ``trainer-state``  ``trainer_state.json``          TRL and whatever else is a transformers
                                                       ``Trainer``, in every checkpoint
    ``tensorboard``    ``events.out.tfevents.*``       any trainer that reports to TensorBoard;
                                                       takes the extra ``tensorboard``
    ``verl``           ``.jsonl`` of ``step, data``    verl, ``trainer.logger=["file"]``
    ``trackio``        ``.db``, exported parquet       Trackio
    ``table``          ``.csv``, ``.jsonl``,           Weights & Biases: a panel's export or
                       ``.json``, ``.parquet``         ``run.history()``; tables of your own
    =================  ==============================  ============================================

    Args:
        paths: a file, a folder, or several of one run.
        columns: what the files call them, of ``reward``, ``reward_deviation``, ``kl``, ``entropy``,
            ``zero_std``, ``length`` and ``beta``, where it is not what trainers do.
        run: which run, where the files hold several.

    Returns:
        A row per logged step, in order. Columns: ``step``, the mean ``reward``, its standard
        deviation ``reward_deviation``, the estimated ``kl`` of policy to reference in nats, the
        ``entropy`` of a token in nats, the share ``zero_std`` of groups whose rewards are equal,
        the mean ``length`` of an answer in tokens, and the coefficient ``beta`` if it is logged;
        NaN where a step has none. ``attrs["notes"]`` says what was read, ``attrs["kl_per"]``
        whether the KL is that of a "token" or of an "answer".

    Raises:
        RolloutError: nothing to read, several runs, or a file that is not what its name says.

    Example:
        >>> import json, pathlib, tempfile
        >>> from kltarget.rollouts import read_scalars
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "trainer_state.json"
        >>> history = [{"step": 1, "reward": 0.2, "kl": 0.0}, {"step": 2, "reward": 0.5, "kl": 0.1}]
        >>> _ = path.write_text(json.dumps({"log_history": history}))
        >>> read_scalars(path)[["step", "reward", "kl"]]
           step  reward   kl
        0     1     0.2  0.0
        1     2     0.5  0.1
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    called = dict(columns or {})
    for name in called:
        if name not in NAMES:
            raise RolloutError(f"{{}}: {name!r} is none of {', '.join(NAMES)}", "columns")
    kinds = {path: kind for path, (kind, _) in _kinds(given, called).items() if kind is not None}
    if not kinds:
        raise RolloutError(f"{some(given)}: no curves of a run: no step with a reward or a KL")
    where, formats = some(kinds), {kind.format for kind in kinds.values()}
    logged = [x for path, kind in kinds.items() for x in kind.read(path)]
    records, of_several = _one_run(logged, run, called, where)
    found, steps = _names(records, called, where)
    frame = _frame(records, found, steps)
    if not len(frame):
        raise RolloutError(f"{where}: no step with a number")
    listing = ", ".join(f"{name} from {theirs!r}" for name, theirs in found.items())
    notes = [f"format {', '.join(sorted(formats))!r}: {counted(len(kinds), 'file')}", listing]
    per = "answer" if kl_is_of_answers(found.get("kl", "")) else "token"
    notes += [of_several] if of_several else []
    frame.attrs = {"format": "+".join(sorted(formats)), "kl_per": per, "notes": notes}
    return frame


def _one_run(
    logged: list[Logged], run: str | None, called: Mapping[str, str], where: str
) -> tuple[list[Mapping[str, Any]], str]:
    """The entries of one run, and what to say if there are others."""
    runs = list(dict.fromkeys(x.run for x in logged if found_among(list(x.entries), called)))
    known = some([repr(x) for x in runs])
    if run is None and len(runs) > 1:
        raise RolloutError(
            f"{where}: {len(runs)} runs, {known}: give {{}}", "run", python="one of them as run"
        )
    if run is not None and run not in runs:
        raise RolloutError(f"{{}} is none of {known}", "run", run)
    only = run if run is not None else next(iter(runs), None)
    remark = f"run {run!r} of {len(runs)}" if run is not None and len(runs) > 1 else ""
    return [x.entries for x in logged if only in (None, x.run)], remark


def _names(
    records: list[Mapping[str, Any]], called: Mapping[str, str], where: str
) -> tuple[dict[str, str], str]:
    """What the files call our columns, and the steps."""
    every = list(dict.fromkeys(name for entries in records for name in entries))
    if not every:
        raise RolloutError(f"{where}: nothing is logged yet")
    found = found_among(every, called)
    steps = next((name for name in reversed(STEP_NAMES) if name in every), None)
    missing = [name for name in found.values() if name not in every]
    listed = some(every, _LISTED)
    if missing:
        raise RolloutError(f"{{}}: nothing is called {missing[0]!r}, only {listed}", "columns")
    if not found or steps is None:
        raise RolloutError(
            f"{where}: nothing is called as trainers call a reward or a KL, only {listed}: "
            "give {}",
            "columns",
            python="columns={'reward': …, 'kl': …}",
        )
    return found, steps


def _frame(records: list[Mapping[str, Any]], found: Mapping[str, str], steps: str) -> Any:
    import pandas as pd

    def numbers(name: str) -> Any:
        return pd.to_numeric(pd.Series([x.get(name) for x in records]), errors="coerce")

    table: Any = pd.DataFrame(
        {ours: numbers(theirs) for ours, theirs in found.items()}, dtype=float
    )
    table.insert(0, "step", numbers(steps))
    kept = table["step"].notna() & table[list(found)].notna().any(axis=1)
    # Of a step that is logged twice, as by a run that was resumed, the later entries count.
    last = table[kept].groupby("step", as_index=False).last()
    return last.reindex(columns=["step", *NAMES]).astype({"step": int})


def _kinds(
    given: Iterable[Path], columns: Mapping[str, str]
) -> dict[pathlib.Path, tuple[ScalarFile | None, bool]]:
    return {path: (scalar_file(path, columns), named) for path, named in listed(given).items()}


def _may_be(path: pathlib.Path) -> bool:
    """Whether a file of a folder could be one of rollouts."""
    return path.suffix in (".parquet", ".jsonl", ".csv", ".tsv", ".eval", ".arrow", ".gz")
