"""One job in process: what repeats, what never does, and what a crash costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsys.audit import audit_run
from fedsys.config import Config
from fedsys.errors import ConfigError, RunFolderError
from fedsys.privacy import Ledger, read_ledger, replay
from fedsys.privacy.ledger import read_private
from fedsys.release.publication import publish_run
from fedsys.run_folder import RunFolder
from secure_agg import Aggregator, AggregatorStage, Member
from server.checkpoint import Checkpoints
from server.coordinator import Coordinator
from server.job import Job
from simulations import harness
from simulations.harness import RunResult
from simulations.population import Population

Configure = Callable[..., Config]


class Crash(BaseException):
    """What ``kill -9`` leaves behind: nothing after this point runs."""


def summary(run: RunResult | Path) -> dict[str, Any]:
    folder = run if isinstance(run, Path) else run.folder
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def cohorts(folder: Path) -> list[tuple[int, ...]]:
    rounds, _ = read_private(folder / "private.jsonl")
    return [tuple(line["sampled"]) for _, line in sorted(rounds.items())]


def test_a_run_without_privacy_repeats_to_the_bit(configure: Configure, tmp_path: Path) -> None:
    config = configure("privacy.mechanism=none", "aggregation.protocol=secure")
    first = harness.run(config, out=tmp_path / "a")
    second = harness.run(config, out=tmp_path / "b")
    other = harness.run(
        configure("privacy.mechanism=none", "aggregation.protocol=secure", "job.seed=1"),
        out=tmp_path / "c",
    )
    assert summary(first)["model_sha256"] == summary(second)["model_sha256"]
    assert summary(first)["model_sha256"] != summary(other)["model_sha256"]
    assert summary(first)["privacy"]["epsilon"] == dict.fromkeys(
        ("outsider", "participant", "server"), "inf"
    )


def test_the_stored_configuration_gives_the_same_run(configure: Configure, tmp_path: Path) -> None:
    first = harness.run(configure("privacy.mechanism=none"), out=tmp_path / "a")
    stored = RunFolder(tmp_path / "a").read_config()
    assert stored.engine.path == "batched"
    assert stored.population.clients == 1437
    second = harness.run(stored, out=tmp_path / "b")
    assert summary(first)["model_sha256"] == summary(second)["model_sha256"]


def test_with_a_mechanism_nothing_secret_follows_the_seed(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure("job.seed=5")
    first = harness.run(config, out=tmp_path / "a")
    second = harness.run(config, out=tmp_path / "b")
    assert cohorts(first.folder) != cohorts(second.folder)
    assert summary(first)["model_sha256"] != summary(second)["model_sha256"]


def test_a_figure_with_noise_can_be_computed_again_and_is_not_private(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure("job.reproducible=true", "rounds.count=2", "aggregation.dropout=0")
    said: list[str] = []
    runs = [
        harness.run(config, out=tmp_path / name, observer=lambda it: said.append(str(it))).folder
        for name in ("one", "two")
    ]
    assert len({(run / "model.pt").read_bytes() for run in runs}) == 1
    assert any(line.startswith("NOT PRIVATE: ") for line in said)
    audit = audit_run(runs[0])
    assert not audit.passed
    assert any("not private" in str(each) for each in audit.claims if each.holds is False)


def test_a_tampered_upload_is_left_out_of_the_sum(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(
        "privacy.mechanism=none",
        "aggregation.protocol=secure",
        "aggregation.modulus_bits=32",
        "rounds.count=1",
    )
    inputs: dict[int, np.ndarray[Any, Any]] = {}
    provide = Member.provide

    def keep(self: Member, vector: Any) -> None:
        inputs[self.id] = vector.astype(np.uint32)
        provide(self, vector)

    totals: list[np.ndarray[Any, Any]] = []
    finish = Coordinator.finish_round

    def spy(self: Coordinator, total: Any, survivors: Any, **rest: Any) -> Any:
        totals.append(total.copy())
        return finish(self, total, survivors, **rest)

    receive = Aggregator.receive
    tampered: list[int] = []

    def flip(self: Aggregator, sender: int, message: bytes) -> None:
        if self.stage is AggregatorStage.UPLOAD and not tampered:
            tampered.append(sender)
            message = message[:-4] + bytes([message[-4] ^ 1]) + message[-3:]
        receive(self, sender, message)

    monkeypatch.setattr(Member, "provide", keep)
    monkeypatch.setattr(Coordinator, "finish_round", spy)
    monkeypatch.setattr(Aggregator, "receive", flip)
    run = harness.run(config, out=tmp_path / "tampered")
    private, _ = read_private(run.folder / "private.jsonl")
    survivors = private[1]["survivors"]
    assert len(tampered) == 1
    assert tampered[0] not in survivors
    assert set(survivors) <= set(inputs)
    np.testing.assert_array_equal(totals[0], sum(inputs[client] for client in survivors))


def test_uploads_look_nothing_like_inputs(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(
        "privacy.mechanism=none",
        "aggregation.protocol=secure",
        "aggregation.modulus_bits=32",
        "rounds.count=1",
    )
    inputs: dict[int, np.ndarray[Any, Any]] = {}
    provide = Member.provide

    def keep(self: Member, vector: Any) -> None:
        inputs[self.id] = vector.astype(np.uint32)
        provide(self, vector)

    uploads: dict[int, np.ndarray[Any, Any]] = {}
    receive = Aggregator.receive

    def watch(self: Aggregator, sender: int, message: bytes) -> None:
        if self.stage is AggregatorStage.UPLOAD:
            start = len(message) - self.params.ciphertext_bytes
            uploads[sender] = np.frombuffer(message, "<u4", self.params.coefficients, start)
        receive(self, sender, message)

    monkeypatch.setattr(Member, "provide", keep)
    monkeypatch.setattr(Aggregator, "receive", watch)
    harness.run(config, out=tmp_path / "run")
    assert len(uploads) > 20
    for client, sent in uploads.items():
        assert len(sent) == 2048
        assert np.count_nonzero(inputs[client] == sent[: len(inputs[client])]) < 5
        # uniform words: the top bit of 2048 is set 1024 times, 8 deviations are 181
        assert abs(int((sent >> 31).sum()) - 1024) < 181


def _crash(*_: object, **__: object) -> None:
    raise Crash


def _crash_after(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    made = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        made.append(1)
        if len(made) == calls:
            raise Crash
        return result

    return wrapped


CRASH_POINTS = [
    pytest.param(Ledger, "reserve", id="after the reserve"),
    pytest.param(Population, "train", id="in training"),
    pytest.param(Coordinator, "begin_round", id="after the invitations"),
    pytest.param(Ledger, "commit", id="after the commit"),
    pytest.param(Coordinator, "finish_round", id="before the checkpoint"),
    pytest.param(Checkpoints, "save", id="between checkpoint and commit"),
    pytest.param(RunFolder, "append_metrics", id="after the evaluation"),
]


@pytest.mark.parametrize(("owner", "name"), CRASH_POINTS)
def test_a_crash_costs_a_round_and_nothing_else(
    owner: Any, name: str, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, _crash_after(getattr(owner, name), 2))
        with pytest.raises(Crash):
            harness.run(configure("rounds.count=5"), out=out)
    before = read_ledger(out / "ledger.jsonl", allow_torn=True)
    cohorts_before = cohorts(out)
    result = harness.resume(out)
    view = read_ledger(out / "ledger.jsonl")
    numbers = [record.round for record in view.rounds]
    assert numbers == [1, 2, 3, 4, 5]
    assert [r.round for r in before.rounds] == numbers[: len(before.rounds)]
    assert cohorts(out)[: len(cohorts_before)] == cohorts_before
    drawn = cohorts(out)
    assert len(set(drawn)) == len(drawn), "a cohort was sampled again"
    assert view.closed is not None
    spent = summary(result)["privacy"]["epsilon"]
    private, _ = read_private(out / "private.jsonl")
    again = replay(view, private)[1]
    assert spent == again.to_json()
    whole = harness.run(configure("rounds.count=5"), out=tmp_path / "whole")
    assert spent["outsider"] == summary(whole)["privacy"]["epsilon"]["outsider"]


def test_a_crash_in_the_middle_of_a_ledger_line(configure: Configure, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        crash = _crash_after(Coordinator.finish_round, 2)
        patched.setattr(Coordinator, "finish_round", crash)
        with pytest.raises(Crash):
            harness.run(configure("rounds.count=4"), out=out)
    ledger = out / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-1]) + lines[-1][:100])
    harness.resume(out)
    view = read_ledger(ledger)
    assert [record.outcome for record in view.rounds] == ["commit", None, "commit", "commit"]
    assert view.resumes[0]["torn_ledger_bytes"] == 100


def test_a_crash_between_the_closing_line_and_the_summary(
    configure: Configure, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Job, "close", _crash_after(Job.close, 1))
        with pytest.raises(Crash):
            harness.run(configure(), out=out)
    assert not (out / "summary.json").exists()
    result = harness.resume(out)
    assert not result.interrupted
    assert summary(result)["status"] == "completed"
    assert audit_run(out).passed


def test_interrupt_leaves_a_resumable_run(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Population, "train", interrupt)
        result = harness.run(configure(), out=out)
    assert result.interrupted
    assert summary(result)["status"] == "interrupted"
    assert summary(result)["rounds"] == 1
    assert not (out / "model.pt").exists()
    resumed = harness.resume(out)
    assert not resumed.interrupted
    assert summary(resumed)["status"] == "completed"


def test_a_budget_ends_the_run_with_its_model(configure: Configure, tmp_path: Path) -> None:
    full = harness.run(configure("rounds.count=6"), out=tmp_path / "full")
    total = summary(full)["privacy"]["epsilon"]["outsider"]
    notices: list[str] = []
    budget = 0.9 * total
    run = harness.run(
        configure("rounds.count=6", f"privacy.epsilon={budget}", "privacy.noise_multiplier=0.7"),
        out=tmp_path / "budget",
        observer=lambda event: notices.append(event) if isinstance(event, str) else None,
    )
    found = summary(run)
    assert found["status"] == "budget-exhausted"
    assert 0 < found["rounds"] < 6
    assert found["privacy"]["epsilon"]["outsider"] <= budget
    assert (run.folder / "model.pt").is_file()
    assert any("budget" in notice for notice in notices)


def test_epsilon_alone_derives_the_noise(configure: Configure, tmp_path: Path) -> None:
    run = harness.run(configure("privacy.epsilon=5"), out=tmp_path / "run")
    privacy = summary(run)["privacy"]
    assert privacy["epsilon"]["outsider"] == pytest.approx(5, rel=1e-4)
    assert privacy["epsilon"]["outsider"] <= 5
    assert RunFolder(run.folder).read_config().privacy.noise_multiplier == pytest.approx(
        privacy["noise_multiplier"]
    )


def test_folders_are_never_overwritten(configure: Configure, tmp_path: Path) -> None:
    out = tmp_path / "run"
    harness.run(configure("rounds.count=1"), out=out)
    content = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match="not empty; continue that run with --resume"):
        harness.run(configure(), out=out)
    with pytest.raises(Exception, match="closed"):
        harness.resume(out)
    with pytest.raises(RunFolderError, match="not empty; give a new folder to publish"):
        publish_run(out, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == content


def test_resume_needs_the_run_that_was_started(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run here"):
        harness.resume(tmp_path)
    early = tmp_path / "early"
    early.mkdir()
    (early / "config.toml").touch()
    with pytest.raises(RunFolderError, match="nothing was spent; delete the folder, or"):
        harness.resume(early)
    with pytest.raises(RunFolderError, match="nothing was spent; delete the folder, or"):
        harness.run(configure(), out=early)
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Checkpoints, "save", _crash)
        with pytest.raises(Crash):
            harness.run(configure(), out=out)
    config = out / "config.toml"
    config.write_text(config.read_text().replace("clip = 0.3", "clip = 0.4"))
    with pytest.raises(RunFolderError, match="not the one that the ledger signed the hash of"):
        harness.resume(out)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cohort.expected=2000", "more than the population of 1437"),
        ("task.name=digit", "no such task"),
        ("server.strategy=fedavgg", "fedavg"),
        ("cohort.expected=1", "a cohort of 1"),
        ("privacy.noise_multiplier=1e20", "more than any ring holds"),
    ],
)
def test_what_cannot_run_is_said_before_anything_is_written(
    setting: str, message: str, configure: Configure, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=message) as caught:
        harness.run(configure(setting, "aggregation.protocol=secure"), out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there(configure: Configure, tmp_path: Path) -> None:
    for device in ("cuda:99", "tpu", "mps"):
        with pytest.raises(ConfigError, match=f"--device {device}"):
            harness.run(configure(), out=tmp_path / "run", device=device)


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    save = Checkpoints.save
    calls: list[int] = []

    def full(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return save(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", full)
        with pytest.raises(RunFolderError, match=r"no space left on device.*--resume"):
            harness.run(configure(), out=out)
    resumed = harness.resume(out)
    assert summary(resumed)["status"] == "completed"
    assert [r.round for r in read_ledger(out / "ledger.jsonl").rounds] == [1, 2, 3]
