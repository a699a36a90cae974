"""A clock that another process reads for a whole tree."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from simulations.benchmarks.peers.clock import Clock, peaks_of, process_tree


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


def test_a_command_is_watched_until_it_ends_or_a_file_is_there(tmp_path: Path) -> None:
    seen: list[int] = []
    mark = tmp_path / "done"
    code = f"import time; time.sleep(.5); open({str(mark)!r}, 'w'); time.sleep(.7); print('out')"

    def look(pid: int) -> dict[str, float]:
        seen.append(pid)
        return {"calls": float(len(seen)), "falling": 9.0 - len(seen)}

    peaks, printed = peaks_of([sys.executable, "-S", "-c", code], look, until=mark)
    assert printed == "out\n"
    assert peaks == {"calls": len(seen), "falling": 8.0}
    assert 1 <= len(seen) <= 5


def test_a_command_that_fails_is_told_with_what_it_said() -> None:
    code = "import sys; sys.exit('no memory')"
    with pytest.raises(SystemExit, match="failed:\nno memory"):
        peaks_of([sys.executable, "-S", "-c", code], lambda _: {})
