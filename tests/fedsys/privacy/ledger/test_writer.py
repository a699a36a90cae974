"""The one writer: what it refuses, what it takes up again."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from fedsys.errors import LedgerError
from fedsys.privacy import read_ledger
from fedsys.privacy.ledger import read_private
from fedsys.privacy.plan import PrivacyPlan
from tests.fedsys.privacy.ledger.ledgers import OTHER, create, reopen, write_run


class TestWriting:
    def test_one_writer(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        with create(tmp_path, plan):
            with pytest.raises(LedgerError, match="in use by another process"):
                reopen(tmp_path)
            with pytest.raises(LedgerError, match="File exists"):
                create(tmp_path, plan)
        with reopen(tmp_path):
            pass

    def test_a_round_number_is_used_once(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        event = {"event": plan.event().to_json()}
        with create(tmp_path, plan) as ledger:
            ledger.reserve(1, event)
            with pytest.raises(LedgerError, match="still open"):
                ledger.reserve(2, event)
            with pytest.raises(LedgerError, match="round 2 is not open"):
                ledger.commit(2, {}, sampled=[1], survivors=[1])
            ledger.commit(1, {}, sampled=[1, 2], survivors=[1])
            with pytest.raises(LedgerError, match="not open"):
                ledger.commit(1, {}, sampled=[1], survivors=[1])
            with pytest.raises(LedgerError, match="used before"):
                ledger.reserve(1, event)
            ledger.reserve(2, event)
        with reopen(tmp_path) as ledger:
            assert ledger.next_round == 3
            with pytest.raises(LedgerError, match="used before"):
                ledger.reserve(2, event)

    def test_nonsense_is_not_written(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        with create(tmp_path, plan) as ledger:
            size = (tmp_path / "ledger.jsonl").stat().st_size
            for body in ({"x": float("nan")}, {"x": float("inf")}, {"x": object()}):
                with pytest.raises(LedgerError, match="plain finite JSON"):
                    ledger.reserve(1, body)
            assert (tmp_path / "ledger.jsonl").stat().st_size == size

    def test_survivors_are_among_the_sampled(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        with create(tmp_path, plan) as ledger:
            ledger.reserve(1, {"event": plan.event().to_json()})
            for sampled, survivors in (([1, 2], [3]), ([1, 1], [1])):
                with pytest.raises(LedgerError, match="distinct and among"):
                    ledger.commit(1, {}, sampled=sampled, survivors=survivors)

    def test_a_closed_ledger_stays_closed(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        write_run(tmp_path, plan)
        with pytest.raises(LedgerError, match="is closed"):
            reopen(tmp_path)

    def test_another_signer_cannot_go_on(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        write_run(tmp_path, plan, close=False)
        with pytest.raises(LedgerError, match="is signed by"):
            reopen(tmp_path, OTHER)

    def test_resuming_keeps_counting(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        write_run(tmp_path, plan, close=False)
        with reopen(tmp_path) as ledger:
            assert ledger.participations[50] == 4  # rounds 1, 3, 5 and the late abort 4
            assert ledger.next_round == 6
            assert ledger.view is not None
            assert len(ledger.private_rounds) == 5
        assert read_ledger(tmp_path / "ledger.jsonl").resumes == (
            {"torn_ledger_bytes": 0, "torn_private": False},
        )

    def test_a_missing_or_edited_private_file_stops_resuming(
        self, tmp_path: Path, plan: PrivacyPlan
    ) -> None:
        write_run(tmp_path, plan, close=False)
        path = tmp_path / "private.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:2] + lines[3:]))
        with pytest.raises(LedgerError, match="lacks round 3"):
            reopen(tmp_path)
        path.write_bytes(b"".join(lines).replace(b'"sampled":[3,4', b'"sampled":[2,4'))
        with pytest.raises(LedgerError, match="round 3: sampled is not what"):
            reopen(tmp_path)
        path.unlink()
        with pytest.raises(LedgerError, match="cannot write"):
            reopen(tmp_path)

    def test_a_full_disk_is_one_clear_line(
        self, tmp_path: Path, plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger = create(tmp_path, plan)

        def full(_descriptor: int, _data: bytes) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("fedsys.durable.os.write", full)
            with pytest.raises(LedgerError, match=r"ledger\.jsonl.*No space left"):
                ledger.reserve(1, {"event": plan.event().to_json()})
        with pytest.raises(LedgerError):
            ledger.reserve(2, {"event": plan.event().to_json()})


class TestCommitAfterSomething:
    def test_it_waits_for_that_and_for_the_next_line(
        self, tmp_path: Path, plan: PrivacyPlan
    ) -> None:
        event = {"event": plan.event().to_json()}
        done: list[int] = []

        def outcomes() -> list[str | None]:
            return [it.outcome for it in read_ledger(tmp_path / "ledger.jsonl").rounds]

        with create(tmp_path, plan) as ledger:
            for number, settle in ((1, False), (2, True), (3, False)):
                ledger.reserve(number, event)
                assert done == list(range(1, number))
                told = partial(done.append, number)
                ledger.commit(number, {}, sampled=[1], survivors=[1], after=told)
                assert outcomes() == ["commit"] * (number - 1) + [None]
                assert number not in done
                if settle:
                    ledger.settle()
                    assert outcomes() == ["commit"] * number
        assert done == [1, 2, 3]
        assert outcomes() == ["commit"] * 3

    def test_it_is_lost_where_that_fails_and_nothing_follows_it(
        self, tmp_path: Path, plan: PrivacyPlan
    ) -> None:
        event = {"event": plan.event().to_json()}

        def fail() -> None:
            raise OSError(28, "No space left on device")

        with create(tmp_path, plan) as ledger:
            ledger.reserve(1, event)
            ledger.commit(1, {}, sampled=[1], survivors=[1], after=fail)
            with pytest.raises(LedgerError, match=r"ledger\.jsonl.*No space left"):
                ledger.reserve(2, event)
            with pytest.raises(LedgerError, match="an earlier write"):
                ledger.reserve(2, event)
        assert [it.outcome for it in read_ledger(tmp_path / "ledger.jsonl").rounds] == [None]
        with reopen(tmp_path) as ledger:
            assert ledger.next_round == 2

    @pytest.mark.parametrize("fails", [False, True])
    def test_its_private_line_is_on_disk_first_wherever_it_is_written(
        self, tmp_path: Path, plan: PrivacyPlan, fails: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        event, may, names = {"event": plan.event().to_json()}, Event(), dict[int, str]()
        public, private, flush = "ledger.jsonl", "private.jsonl", os.fsync
        flushed: list[str] = []

        def watched(descriptor: int) -> None:
            name = names.get(os.fstat(descriptor).st_ino, "")
            if name == private:
                assert may.wait(20)
                if fails:
                    raise OSError(28, "No space left on device")
            flush(descriptor)
            flushed.append(name)

        with create(tmp_path, plan) as ledger, ThreadPoolExecutor(1) as disk:
            ledger.in_background(disk)
            names.update({(tmp_path / name).stat().st_ino: name for name in (public, private)})
            ledger.reserve(1, event)
            monkeypatch.setattr(os, "fsync", watched)
            done: list[int] = []
            ledger.commit(1, {}, sampled=[1], survivors=[1], after=partial(done.append, 1))
            assert (flushed, done) == ([], [])  # and the caller goes on meanwhile
            may.set()
            if not fails:
                ledger.reserve(2, event)
                assert flushed == [private, public]
            else:
                with pytest.raises(LedgerError, match=r"private\.jsonl.*No space left"):
                    ledger.reserve(2, event)
        view = read_ledger(tmp_path / public)
        assert [it.outcome for it in view.rounds] == ([None] if fails else ["commit", None])
        assert done == [1]

    def test_it_is_not_written_where_the_private_line_could_not_even_be_begun(
        self, tmp_path: Path, plan: PrivacyPlan
    ) -> None:
        class NoThread(Executor):
            def submit(self, *_: object, **__: object) -> Future[Any]:
                raise RuntimeError("can't start new thread")

        done: list[int] = []
        with create(tmp_path, plan) as ledger:
            ledger.in_background(NoThread())
            ledger.reserve(1, {"event": plan.event().to_json()})
            with pytest.raises(RuntimeError, match="new thread"):
                ledger.commit(1, {}, sampled=[1], survivors=[1], after=partial(done.append, 1))
        assert not done
        assert [it.outcome for it in read_ledger(tmp_path / "ledger.jsonl").rounds] == [None]
        with reopen(tmp_path) as ledger:
            assert ledger.next_round == 2

    def test_the_private_line_is_waited_for_though_the_ledgers_own_cannot_be_written(
        self, tmp_path: Path, plan: PrivacyPlan
    ) -> None:
        class Begun(Executor):
            def submit(self, work: Callable[..., Any], /, *given: Any, **_: Any) -> Future[Any]:
                found: Future[Any] = Future()
                found.result = lambda timeout=None: work(*given)  # type: ignore[method-assign]
                return found

        with create(tmp_path, plan) as ledger:
            ledger.in_background(Begun())
            ledger.reserve(1, {"event": plan.event().to_json()})
            with pytest.raises(LedgerError, match="plain finite JSON"):
                ledger.commit(1, {"x": math.nan}, sampled=[1], survivors=[1], after=list)
        assert list(read_private(tmp_path / "private.jsonl")[0]) == [1]
        assert [it.outcome for it in read_ledger(tmp_path / "ledger.jsonl").rounds] == [None]
