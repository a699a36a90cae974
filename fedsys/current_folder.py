"""Where modules of the user's own are looked for, besides those that are installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["importable_here"]


@contextmanager
def importable_here() -> Iterator[None]:
    """Import from the current folder too, as ``python -m`` would, while this lasts."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
