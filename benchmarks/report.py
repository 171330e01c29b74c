"""Prints the ``extra_info`` of benchmark JSON files as Markdown tables, one per benchmark."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path


def cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2e}" if 0 < abs(value) < 1e-2 else f"{value:.2f}"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {cell(v)}" for k, v in value.items())
    return str(value)


def main(paths: list[str]) -> None:
    groups = defaultdict(list)
    for path in paths:
        for run in json.loads(Path(path).read_text(encoding="utf-8"))["benchmarks"]:
            row = dict(run["extra_info"])
            row["median ms"] = 1e3 * run["stats"]["median"]
            groups[run["name"].split("[")[0]].append(row)
    for name, rows in groups.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        print(f"\n### {name}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in rows:
            print(f"| {' | '.join(cell(row.get(c, '')) for c in columns)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
