"""The finished run of the notebook's tests."""

from __future__ import annotations

from tests.fedsys.api.conftest import _own_home, finished

__all__ = ["_own_home", "finished"]
