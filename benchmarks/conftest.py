"""Configuration of the benchmarks."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Untimed, to see that they run, one case of each benchmark does."""
    if not config.getoption("benchmark_disable", default=False):
        return
    first: dict[tuple[str, str], pytest.Item] = {}
    for item in items:
        name = getattr(item, "originalname", item.name)
        first.setdefault((str(item.path), name), item)
    kept = [x for x in items if x in first.values() or "benchmarks" not in str(x.path)]
    config.hook.pytest_deselected(items=[x for x in items if x not in kept])
    items[:] = kept
