"""One real, tiny run in process, copied for every test that spoils it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsys.audit import accountants, audit_run, opacus_accounting
from fedsys.config import Config, load
from fedsys.privacy import Signer
from fedsys.records import AuditResult
from simulations import harness

Spoil = Callable[[], Path]


def job(*settings: str) -> Config:
    """The quickstart, cut down to a second."""
    usual = ["rounds.count=4", "cohort.expected=40", "aggregation.protocol=ideal"]
    return load("quickstart", [*usual, "engine.path=batched", "engine.chunk=64", *settings])


@pytest.fixture(autouse=True, scope="session")
def _asked_once() -> Iterator[None]:
    """Other accountants are asked once about the same rounds: hundreds of audits are of one run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("second_opinion", "epsilon_at_least"):
            patch.setattr(accountants, name, _remembered(getattr(accountants, name)))
        patch.setattr(opacus_accounting, "prv_bounds", _remembered(opacus_accounting.prv_bounds))
        yield


def _remembered(function: Callable[[Any, float], Any]) -> Callable[[Any, float], Any]:
    found: dict[tuple[object, ...], Any] = {}

    def answer(steps: Any, delta: float) -> Any:
        steps = dict(steps) if isinstance(steps, Mapping) else list(steps)
        key = (repr(steps), delta)
        if key not in found:
            found[key] = function(steps, delta)
        return found[key]

    return answer


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _own_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(home))


@pytest.fixture
def signer(home: Path) -> Signer:
    """The coordinator's."""
    return Signer.load_or_create(home)


@pytest.fixture(scope="session")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; never to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(home))
        return harness.run(job(), out=tmp_path_factory.mktemp("runs") / "honest").folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def failures(result: AuditResult) -> set[str]:
    return {claim.name for claim in result.claims if claim.holds is False}


def failed(folder: Path, key: str | None = None) -> set[str]:
    """Names of the claims that an audit of the folder refuses."""
    return failures(audit_run(folder, key=key))
