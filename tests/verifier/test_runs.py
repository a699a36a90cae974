"""The second verifier against runs of every kind: the same epsilons, with nothing of ours."""

from __future__ import annotations

import ast
import json
import math
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.privacy import Signer
from fedsys.release.publication import publish_run
from tests.verifier.chain import Refused
from tests.verifier.runs import KINDS, Make
from tests.verifier.schemas import check
from tests.verifier.verify import TOLERANCE, verify

OF_THE_TESTS = {"conftest.py", "runs.py", "schemas.py"}
"""Modules here that are no part of the verifier."""


def parts_of_the_verifier() -> list[Path]:
    here = Path(__file__).parent
    return [
        path
        for path in sorted(here.glob("*.py"))
        if path.name not in OF_THE_TESTS and not path.name.startswith("test_")
    ]


def test_the_verifier_imports_nothing_of_the_product() -> None:
    ours = {path.stem for path in parts_of_the_verifier()}
    assert "verify" in ours
    libraries = {"cryptography", "dp_accounting", "mpmath", "numpy", "scipy"}
    allowed = libraries | set(sys.stdlib_module_names) - {"importlib", "runpy", "subprocess"}
    for path in parts_of_the_verifier():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, "relative imports are not used here"
                module = str(node.module)
                names = [module]
                if module == "tests.verifier":
                    names = [f"{module}.{each.name}" for each in node.names]
            for name in names:
                mine = name.startswith("tests.verifier.") and name.split(".")[2] in ours
                assert mine or name.split(".")[0] in allowed, f"{path.name} imports {name}"
            if isinstance(node, ast.Name | ast.Attribute):
                called = node.id if isinstance(node, ast.Name) else node.attr
                assert called not in ("__import__", "import_module", "exec", "eval"), path.name


@pytest.mark.parametrize("kind", KINDS)
def test_every_view_of_every_kind_of_run(
    kind: str, run_of: Make, home: Path, tmp_path: Path
) -> None:
    run = run_of(kind)
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(Signer.load_or_create(home).public_hex))
    found = verify(run, key)
    stated = json.loads((run / "summary.json").read_text())["privacy"]["epsilon"]
    assert set(found.epsilon) == {"outsider", "participant", "server"}
    for view, epsilon in found.epsilon.items():
        wanted = math.inf if stated[view] == "inf" else stated[view]
        assert epsilon == pytest.approx(wanted, rel=TOLERANCE), view
    public = {"ledger", "summary"} if kind == "query" else {"ledger", "metrics", "summary"}
    assert check(run) >= {"private", *public}
    if kind != "canaries":  # never published
        publish_run(run, tmp_path / "public")
        seen = verify(tmp_path / "public", key).epsilon
        assert seen == {"outsider": found.epsilon["outsider"]}
        assert check(tmp_path / "public") == public


def test_the_runs_are_what_they_are_called(run_of: Make) -> None:
    def outcomes(kind: str) -> list[str | None]:
        return [each.outcome for each in verify(run_of(kind)).ledger.rounds]

    assert "abort" in outcomes("aborted rounds")
    assert outcomes("resumed")[1] is None
    adaptive = verify(run_of("adaptive clipping")).ledger.rounds
    assert len({each.event["clip"] for each in adaptive}) > 1
    packed = (run_of("packed cohorts") / "private.jsonl").read_text().splitlines()[0]
    assert isinstance(json.loads(packed)["sampled"], str)
    for kind in ("tuned", "tuned, at another delta"):
        run = run_of(kind)
        total = verify(run).total
        assert total is not None
        stated = json.loads((run / "summary.json").read_text())["privacy"]["total"]
        assert (stated["epsilon"], stated["delta"]) == pytest.approx(total, rel=TOLERANCE)


def test_another_key_is_refused(run_of: Make, tmp_path: Path) -> None:
    other = Ed25519PublicKey.from_public_bytes(
        bytes.fromhex(Signer.load_or_create(tmp_path).public_hex)
    )
    with pytest.raises(Refused, match="another key"):
        verify(run_of("none"), other)
