"""What all tests share: a place that stands for a device's runtime folder, and is removed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest

from client.volatile import volatile_folder

hypothesis.settings.register_profile("fedsys", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("fedsys")


@pytest.fixture(autouse=True, scope="session")
def runtime_directory() -> Iterator[None]:
    """Agents keep their sealing keys here, in processes that tests start too."""
    place = volatile_folder()
    found = tempfile.mkdtemp(prefix="tests-", dir=place)
    before = os.environ.get("RUNTIME_DIRECTORY")
    os.environ["RUNTIME_DIRECTORY"] = found
    yield
    shutil.rmtree(found, ignore_errors=True)
    if before is None:
        del os.environ["RUNTIME_DIRECTORY"]
    else:
        os.environ["RUNTIME_DIRECTORY"] = before
