"""Why a graph is refused."""

from __future__ import annotations

from fedsys.errors import FedsysError

__all__ = ["GraphError"]


class GraphError(FedsysError):
    """A file that is no training graph, or one that a device does not run."""
