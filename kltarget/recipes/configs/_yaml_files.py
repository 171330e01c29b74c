"""YAML of unknown origin: plain data alone, of bounded size after all its aliases."""

from __future__ import annotations

from typing import Any

_MOST_NODES, _MOST_DEPTH = 50_000, 60


def yaml_data(text: str) -> Any:
    """What a YAML file says, as dictionaries, lists, texts and numbers.

    Raises:
        ImportError: PyYAML is not installed.
        ValueError: broken YAML, a tag that would make an object, or a file that its aliases would
            blow up.
    """
    try:
        import yaml
    except ImportError:
        raise ImportError('reading YAML needs PyYAML: pip install "kltarget[config]"') from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_size(yaml, yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or 'broken YAML'}: mend the file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{' '.join(str(error).split())}: mend the file") from None


def _check_size(yaml: Any, events: Any) -> None:
    """Counts nodes as they will be once every alias is replaced by what it stands for."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    count = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in opened):
                raise ValueError(f"*{event.anchor} stands inside itself: write it out")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
        if count > _MOST_NODES:
            raise ValueError(
                f"more than {_MOST_NODES:,} entries once its aliases (*name) are written out: "
                "no trainer's configuration is as large"
            )
        if len(opened) > _MOST_DEPTH:
            raise ValueError(f"nested deeper than {_MOST_DEPTH}: mend the file")
