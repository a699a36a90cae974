"""Commands load what they need and no more: which modules, not how long it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Federation, federation

ROOT = Path(__file__).resolve().parents[3]
HEAVY = {
    "cryptography.x509", "fedsys.privacy", "grpc", "matplotlib", "numpy", "opacus", "pandas",
    "psutil", "pydantic", "scipy", "secure_agg", "sklearn", "sqlalchemy", "torch",
}  # fmt: skip
CODE = """
import sys
from fedsys.cli import main
try:
    main()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
print("LOADED", *sys.modules)
"""


def loaded(*words: str, folder: Path = ROOT) -> set[str]:
    """The heavy modules that a command loads."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    assert last.startswith("LOADED "), "a command that printed something else last"
    return HEAVY & set(last.split())


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("fed"), 1) as found:
        yield found


@pytest.mark.parametrize("group", [(), ("coordinator",), ("job",), ("agent",), ("privacy",)])
def test_help_loads_nothing(group: tuple[str, ...]) -> None:
    assert loaded(*group, "--help") == set()


OPERATORS = {
    "cryptography.x509", "fedsys.privacy", "numpy", "pydantic", "secure_agg", "sqlalchemy",
}  # fmt: skip


def test_keys_tokens_and_rosters_need_the_database_and_certificates(tmp_path: Path) -> None:
    for words in (
        ("init", "hq"),
        ("enroll", "hq", "ward"),
        ("roster", "hq"),
        ("rotate", "hq"),
    ):
        assert loaded("coordinator", *words, folder=tmp_path) <= OPERATORS
    assert loaded("coordinator", "sign-roster", "key", folder=tmp_path) <= {"numpy", "secure_agg"}


@pytest.mark.parametrize("words", [("job", "list"), ("coordinator", "nodes")])
def test_the_operators_questions_need_grpc_alone(fed: Federation, words: tuple[str, ...]) -> None:
    assert loaded(*words, fed.home.path.name, folder=fed.root) == {"grpc"}


@pytest.mark.parametrize("command", ["status", "pause", "resume"])
def test_the_owners_questions_need_certificates_alone(fed: Federation, command: str) -> None:
    found = loaded("agent", command, "a0", folder=fed.root)
    assert found <= {"cryptography.x509", "numpy", "secure_agg"}
