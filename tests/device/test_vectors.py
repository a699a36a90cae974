"""A second implementation, in JavaScript, reproduces the vectors of a device."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vectors.device import generate

NODE = shutil.which("node")
CHECK = Path(__file__).with_name("node") / "check.mjs"
needs_node = pytest.mark.skipif(
    NODE is None, reason="needs Node 18 or newer: apt-get install nodejs"
)


def _check(vectors: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(NODE), str(CHECK), str(vectors)], capture_output=True, text=True, check=False
    )


def test_the_vectors_are_what_the_code_makes() -> None:
    kept = json.loads(generate.PATH.read_text("utf-8"))
    made = json.loads(json.dumps(generate.build(kept["training"])))
    assert made == kept
    training = kept["training"]
    x = np.frombuffer(bytes.fromhex(training["x"]), "<f4").reshape(-1, 64)
    update, losses = generate.trained(bytes.fromhex(training["graph"]), x, np.array(training["y"]))
    wanted = np.frombuffer(bytes.fromhex(training["update"]), "<f4")
    np.testing.assert_allclose(update, wanted, rtol=0, atol=training["tolerance"])
    np.testing.assert_allclose(losses, training["losses"], rtol=0, atol=training["tolerance"])


@needs_node
def test_javascript_reproduces_them() -> None:
    done = _check(generate.PATH)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" agrees ") == len(json.loads(generate.PATH.read_text("utf-8")))


def _last_reply(vectors: dict[str, Any]) -> None:
    step = vectors["round"]["steps"][-1]
    step["reply"] = step["reply"][:-2] + ("00" if step["reply"][-2:] != "00" else "01")


def _a_draw(vectors: dict[str, Any]) -> None:
    vectors["noise"][3]["drawn"][-1] += 1


def _a_ledger(vectors: dict[str, Any]) -> None:
    vectors["ledger"]["wrong"]["none"] = vectors["ledger"]["lines"]


@needs_node
@pytest.mark.parametrize("change", [_last_reply, _a_draw, _a_ledger])
def test_javascript_notices_a_difference(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    vectors = json.loads(generate.PATH.read_text("utf-8"))
    change(vectors)
    (tmp_path / "changed.json").write_text(json.dumps(vectors))
    assert _check(tmp_path / "changed.json").returncode == 1
