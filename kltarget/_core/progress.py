"""Bars that show how far something is."""

from __future__ import annotations

from typing import Any


def progress_bar(shown: bool, **options: Any) -> Any:
    """A tqdm bar, or one with the same methods that shows nothing."""
    # In notebooks that cannot draw bars, ``tqdm.auto`` warns even if none is shown.
    if shown:
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm(disable=not shown, **options)
