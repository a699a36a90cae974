"""Buffered rounds over Flower: there are none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("flwr")

from fedsys.config import dump, load
from fedsys.errors import ConfigError
from server.flower_host import run_job
from server.home.folder import Home


def test_a_buffered_job_is_refused_in_one_line_before_anything_is_written(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "c", hosts=["localhost"])
    before = sorted(tmp_path.rglob("*"))
    text = dump(load("buffered", ["aggregation.protocol=secure"]))
    with pytest.raises(ConfigError) as caught:
        asyncio.run(run_job(cast(Any, None), home, text, models=cast(Any, None)))
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("rounds.mode = 'buffered' over Flower")
    assert "use 'synchronous', or run the job with `fedsys coordinator run`" in line
    assert sorted(tmp_path.rglob("*")) == before
