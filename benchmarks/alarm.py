"""Fails where a ratio of a benchmark's run is more than 1.5 times the one that is stored.

    pytest benchmarks --benchmark-json=bench.json
    python benchmarks/alarm.py bench.json           # compares
    python benchmarks/alarm.py bench.json --store   # takes these for the ones to compare with

Ratios only: times belong to a machine. One run of short functions on a shared machine scatters, so
a ratio that looks worse is to be measured again before it is believed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

STORED = Path(__file__).with_name("ratios.json")
ALLOWED = 1.5


def ratios(path: str | Path) -> dict[str, float]:
    """The ratio of every benchmark that has one, by its name."""
    runs = json.loads(Path(path).read_text(encoding="utf-8"))["benchmarks"]
    return {
        x["fullname"].split("/")[-1]: x["extra_info"]["ratio"]
        for x in runs
        if "ratio" in x["extra_info"]
    }


def worse(measured: dict[str, float], stored: dict[str, float]) -> list[str]:
    """A line for each ratio that has grown too much."""
    return [
        f"{name}: {measured[name]:.2f}, was {was:.2f}"
        for name, was in stored.items()
        if name in measured and measured[name] > ALLOWED * was
    ]


def main(arguments: list[str]) -> int:
    paths = [x for x in arguments if x != "--store"]
    if len(paths) != 1:
        print(__doc__)
        return 2
    measured = ratios(paths[0])
    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    if "--store" in arguments:
        kept = {k: round(v, 4) for k, v in sorted((stored | measured).items())}
        STORED.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{len(measured)} ratios stored in {STORED.name}")
        return 0
    compared = [x for x in stored if x in measured]
    if not compared:
        print(f"none of the {len(measured)} ratios measured is among those stored", file=sys.stderr)
        return 2
    lines = worse(measured, stored)
    print(*lines, sep="\n")
    print(f"{len(lines)} of {len(compared)} ratios have grown by more than {ALLOWED:g} times")
    return int(bool(lines))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
