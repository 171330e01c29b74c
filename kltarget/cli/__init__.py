"""The command ``kltarget``; a file per sub-command.

``kltarget solve --json OUT`` writes these keys:

- ``problem``, ``divergence``, and ``mara``: ``null``, or its ``threshold`` and ``method``;
- ``asked``: ``null`` if β was given; else what it was asked for in place of it, a list with one
  entry per target: ``kl``, ``expected_reward``, or ``best_of``, n, with the ``kl``, ``kl_bound``,
  ``expected_reward`` and ``win_rate`` of best-of-n itself;
- ``notes``: what was guessed or changed while reading, a list of lines;
- ``missing_mass``: reference mass that the table's rows leave out;
- ``labels``, ``reward``, ``log_ref``, ``modes``: the problem, a list with one entry per outcome;
- ``targets``: a list with an entry for each β, in the order given, of ``beta``; ``log_probs``, a
  list with one entry per outcome; ``expected_reward``, ``kl_to_reference``, ``entropy`` (nats) and
  ``effective_modes`` under the problem as read; ``value``, ``multiplier`` and ``divergence_value``
  of the objective that was solved; ``status``, a list of the names of its set bits.

Logarithms are natural. JSON has no infinities: they are the strings ``"inf"`` and ``"-inf"``, and
``"nan"`` stands where a solution failed. Equal inputs give equal bytes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kltarget.cli._entry_point import command

if TYPE_CHECKING:
    from kltarget.cli._main import main

__all__ = ["command", "main"]


def __getattr__(name: str) -> Any:
    # The program is ready for Ctrl-C before it imports anything that takes time.
    if name == "main":
        return importlib.import_module("kltarget.cli._main").main
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "main"]
