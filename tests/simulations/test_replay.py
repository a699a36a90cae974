"""A run without noise is computed again from its folder, to the bit, or refused with the reason."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsys.cli.app import app
from fedsys.config import Config
from fedsys.errors import ConfigError, FedsysError, LedgerError, RunFolderError
from fedsys.privacy.ledger.lines import canonical
from fedsys.release.publication import publish_run
from simulations import harness
from simulations.population import Population
from simulations.replay import replay

Configure = Callable[..., Config]
PLAIN = ("privacy.mechanism=none", "evaluation.data=none", "faults.dropout=0.1")


@pytest.fixture
def run(configure: Configure, tmp_path: Path) -> Path:
    """Three rounds without noise."""
    return harness.run(configure(*PLAIN), out=tmp_path / "run").folder


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def edit_private(run: Path, round: int, change: Callable[[dict[str, Any]], None]) -> None:
    path = run / "private.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines[round - 1])
    path.write_bytes(b"".join(canonical(line) + b"\n" for line in lines))


@pytest.mark.parametrize(
    "settings",
    [
        ("aggregation.protocol=secure", "cohort.expected=15", "faults.dropout=0"),
        ("aggregation.protocol=ideal", "server.strategy=fedadam", "server.learning_rate=0.05"),
        ("aggregation.protocol=float", "engine.path=dual", "engine.chunk=16"),
        pytest.param(
            ("engine.processes=2", "population.partition=dirichlet", "population.clients=200"),
            marks=pytest.mark.slow,  # starts processes
        ),
    ],
    ids=["secure", "ideal", "float", "two processes"],
)
def test_a_run_is_equal_to_the_bit(
    settings: tuple[str, ...],
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = harness.run(configure(*PLAIN, *settings), out=tmp_path / "run").folder
    before = contents(run)
    monkeypatch.setattr("simulations.replay.cores", lambda: 1)  # fewer than the run may have had
    seen: list[tuple[int, int]] = []
    found = replay(run, observer=lambda number, of: seen.append((number, of)))
    assert found.difference is None
    assert (found.committed, found.replayed, found.lost) == (3, 3, 0)
    assert found.model_sha256 == json.loads((run / "summary.json").read_text())["model_sha256"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert contents(run) == before, "nothing is written"


def test_rounds_that_gave_no_model_are_left_out(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    train = Population.train

    def dies(self: Population, weights: Any, clients: Any, *, round: int, visit: Any) -> Any:
        if round == 2:
            raise Killed
        return train(self, weights, clients, round=round, visit=visit)

    with monkeypatch.context() as patch:
        patch.setattr(Population, "train", dies)
        with pytest.raises(Killed):
            harness.run(configure(*PLAIN), out=tmp_path / "run")
    unfinished = replay(tmp_path / "run")
    assert (unfinished.difference, unfinished.model_sha256) == (None, None)
    assert (unfinished.replayed, unfinished.lost) == (1, 1)
    harness.resume(tmp_path / "run")
    found = replay(tmp_path / "run")
    assert found.difference is None
    assert (found.replayed, found.lost) == (2, 1)
    assert found.model_sha256 is not None


def test_the_first_round_that_differs_is_named(run: Path) -> None:
    edit_private(run, 2, lambda line: line["survivors"].pop())
    found = replay(run)
    assert found.difference is not None
    assert found.difference.what == "round 2's aggregate"
    assert found.difference.recorded != found.difference.replayed
    assert found.replayed == 1
    assert found.model_sha256 is None


def test_another_model_file_differs(run: Path) -> None:
    (run / "model.pt").write_bytes(b"another")
    found = replay(run)
    assert found.difference is not None
    assert found.difference.what == "the file model.pt"


def publish(run: Path) -> Path:
    return publish_run(run, run.with_name("public")).path


def set_chunk(run: Path) -> Path:
    config = run / "config.toml"
    config.write_text(config.read_text().replace("chunk = 64", "chunk = 32"))
    return run


def forget_round(run: Path) -> Path:
    path = run / "private.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    return run


def stranger(run: Path) -> Path:
    edit_private(run, 1, lambda line: line["survivors"].append(10**6))
    return run


def plant(run: Path) -> Path:
    (run / "canaries.jsonl").touch()
    return run


def empty(run: Path) -> Path:
    shutil.rmtree(run)
    return run


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (publish, RunFolderError, "private.jsonl is missing"),
        (set_chunk, RunFolderError, "config.toml is not the one"),
        (forget_round, LedgerError, "whose updates round 1 summed is missing"),
        (stranger, LedgerError, "round 1 summed a client that the population does not have"),
        (plant, RunFolderError, "planted canaries"),
        (empty, RunFolderError, "no run to replay here"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    spoil: Callable[[Path], Path], error: type[FedsysError], words: str, run: Path
) -> None:
    with pytest.raises(error, match=words) as refusal:
        replay(spoil(run))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("privacy.noise_multiplier=1",), "drew noise that nobody kept"),
        (("privacy.mechanism=none", "cohort.participation=0.5"), "secret coins"),
    ],
)
def test_what_secrets_decided_is_refused(
    settings: tuple[str, ...], words: str, configure: Configure, tmp_path: Path
) -> None:
    run = harness.run(configure(*settings, "evaluation.data=none"), out=tmp_path / "run").folder
    with pytest.raises(RunFolderError, match=words):
        replay(run)


def test_shards_are_for_devices(run: Path) -> None:
    with pytest.raises(ConfigError, match="is a simulation"):
        replay(run, shards=["0/1"])


def test_the_command_prints_a_table_and_its_exit_tells(run: Path) -> None:
    command = CliRunner()
    done = command.invoke(app, ["simulate", "--replay", str(run)])
    assert done.exit_code == 0, done.output
    assert "3 rounds are bit-identical" in done.output
    assert re.search(r"model +bit-identical: [0-9a-f]{64}", done.output)
    edit_private(run, 1, lambda line: line["survivors"].pop())
    done = command.invoke(app, ["simulate", "--replay", str(run)])
    assert done.exit_code == 1
    assert re.search(r"DIFFERS +round 1's aggregate", done.output)
    done = command.invoke(app, ["simulate", "--replay", str(run), "--json"])
    assert json.loads(done.stdout)["difference"]["what"] == "round 1's aggregate"
    for extra in (["quickstart"], ["--out", "x"], ["--seed", "1"], ["--resume", "x"]):
        done = command.invoke(app, ["simulate", "--replay", str(run), *extra])
        assert isinstance(done.exception, ConfigError)
    done = command.invoke(app, ["simulate", "--shards", "0/1"])
    assert isinstance(done.exception, ConfigError)
