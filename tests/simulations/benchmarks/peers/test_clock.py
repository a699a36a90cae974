"""A clock that another process reads for a whole tree."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from simulations.benchmarks.peers.clock import Clock, process_tree


def test_the_first_round_may_begin_in_another_process(tmp_path: Path) -> None:
    clock = Clock()
    clock.start(time.perf_counter() - 100)
    clock.lap(3, 30)
    clock.write(tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert 100 <= found["seconds"][0] < 160
    assert (found["clients"], found["examples"]) == ([3], [30])


def test_a_tree_is_counted_from_its_root(tmp_path: Path) -> None:
    """The parent's tree holds this process, so its memory is larger."""
    clock = Clock(root=os.getppid())
    clock.lap(1, 1)
    clock.write(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["memory"] > process_tree(os.getpid())[1]
