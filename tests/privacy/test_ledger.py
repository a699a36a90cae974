"""The ledger: every tampering is caught and named, every crash leaves the truth or worse."""

from __future__ import annotations

import base64
import contextlib
import importlib
import importlib.resources
import json
import os
import stat
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsys.errors import LedgerError
from fedsys.privacy import (
    Ledger,
    LedgerView,
    Signer,
    ledger_header,
    load_public_key,
    make_plan,
    read_ledger,
    replay,
)
from fedsys.privacy.ledger import Line, canonical, read_private
from fedsys.privacy.ledger.files import MAX_FILE_BYTES
from fedsys.privacy.ledger.packing import pack, pack_increasing, unpack, unpack_increasing
from fedsys.privacy.ledger.private import check_commitments
from fedsys.privacy.plan import PrivacyPlan


def _entropy(seed: int) -> Callable[[int], bytes]:
    from fedsys.privacy import AesCtrStream

    return AesCtrStream(seed.to_bytes(32, "big"))


SIGNER = Signer.generate(entropy=_entropy(1))
OTHER = Signer.generate(entropy=_entropy(2))


@pytest.fixture(scope="module")
def plan() -> PrivacyPlan:
    return make_plan(
        mechanism="distributed-skellam",
        population=1437,
        expected_cohort=100,
        rounds=40,
        dimension=650,
        clip=0.3,
        delta=1e-5,
        noise_multiplier=0.7,
    )


def _create(folder: Path, plan: PrivacyPlan, signer: Signer = SIGNER) -> Ledger:
    return Ledger.create(
        folder / "ledger.jsonl",
        folder / "private.jsonl",
        signer=signer,
        header=ledger_header(plan, name="test"),
        entropy=_entropy(3),
    )


def _open(folder: Path, signer: Signer = SIGNER) -> Ledger:
    return Ledger.open(folder / "ledger.jsonl", folder / "private.jsonl", signer=signer)


def _run(folder: Path, plan: PrivacyPlan, rounds: int = 5, *, close: bool = True) -> str:
    """A job with an early abort in round 2 and a late one in round 4."""
    with _create(folder, plan) as ledger:
        for number in range(1, rounds + 1):
            ledger.reserve(number, {"event": plan.event().to_json()})
            cohort = list(range(number, number + 90))
            if number in (2, 4):
                ledger.abort(number, {"reason": "x"}, sampled=cohort, before_unmask=number == 2)
            else:
                ledger.commit(
                    number,
                    {"weights_sha256": "ab" * 32},
                    sampled=cohort,
                    survivors=cohort[:-4],
                    private={"seconds": {"train": 0.5}},
                )
        if close:
            ledger.close("completed")
        return ledger.head


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_bytes().splitlines()]


def _write(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "ledger.jsonl").write_bytes(b"".join(canonical(line) + b"\n" for line in lines))


def _rechained(lines: list[dict[str, Any]], signer: Signer) -> list[dict[str, Any]]:
    """The lines with sequence, hashes and signatures made to fit: what a forger can do."""
    import hashlib

    link = "0" * 64
    result = []
    for seq, line in enumerate(lines):
        body, kind = line["body"], line["kind"]
        digest = Line.hash_of(seq=seq, prev_hash=link, kind=kind, body=body)
        raw = Line.encode(
            seq=seq,
            prev_hash=link,
            kind=kind,
            body=body,
            digest=digest,
            signature=signer.sign(digest),
        )
        link = hashlib.sha256(raw).hexdigest()
        result.append(json.loads(raw))
    return result


def test_a_sound_ledger_reads_back(tmp_path: Path, plan: PrivacyPlan) -> None:
    head = _run(tmp_path, plan)
    view = read_ledger(tmp_path / "ledger.jsonl", key=SIGNER.public_key)
    assert view.head == head
    assert view.closed == {"reason": "completed", "lines": 12}
    assert [record.outcome for record in view.rounds] == [
        "commit",
        "abort",
        "commit",
        "abort",
        "commit",
    ]
    assert [record.refunds_server for record in view.rounds] == [False, True, False, False, False]
    private, torn = read_private(tmp_path / "private.jsonl")
    assert torn == b""
    assert sorted(private) == [1, 2, 3, 4, 5]
    for record in view.rounds:
        check_commitments(record, private[record.round])
    assert private[3]["participations"][:3] == [2, 2, 2]  # clients 3, 4, 5 were in round 1 too
    assert stat.S_IMODE((tmp_path / "private.jsonl").stat().st_mode) == 0o600
    assert b"sampled" not in (tmp_path / "ledger.jsonl").read_bytes().replace(b'"sampled":"', b"")


def test_replay_gives_what_the_run_was_charged(tmp_path: Path, plan: PrivacyPlan) -> None:
    from fedsys.privacy import ViewAccountant

    _run(tmp_path, plan)
    accountant = ViewAccountant(plan)
    for number in range(1, 6):
        cohort = range(number, number + 90)
        survivors = {2: (), 4: None}.get(number, cohort[:-4])
        accountant.charge(plan.event(), cohort, survivors)
    view = read_ledger(tmp_path / "ledger.jsonl")
    private, _ = read_private(tmp_path / "private.jsonl")
    assert replay(view, private)[1] == accountant.spent()
    outside = replay(view, None)[1]
    assert outside.outsider == accountant.spent().outsider
    assert (outside.participant, outside.server) == (None, None)


Tamper = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def _edit_noise(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines[1]["body"]["event"]["noise_multiplier"] = 9.0
    return lines


def _edit_with_hash(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    line = _edit_noise(lines)[1]
    line["hash"] = Line.hash_of(
        seq=line["seq"], prev_hash=line["prev_hash"], kind=line["kind"], body=line["body"]
    )
    return lines


def _swap(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines[1], lines[3] = lines[3], lines[1]
    return lines


def _swap_signatures(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines[1]["signature"], lines[3]["signature"] = lines[3]["signature"], lines[1]["signature"]
    return lines


def _append(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*lines, {**lines[-1], "seq": len(lines)}]


TAMPERINGS: dict[str, tuple[Tamper, str]] = {
    "edit": (_edit_noise, "line 2 does not have the hash that it states"),
    "edit and hash": (_edit_with_hash, "line 3 does not follow"),
    "drop": (lambda lines: lines[:3] + lines[4:], "line 4 has sequence number 4 instead of 3"),
    "drop the header": (lambda lines: lines[1:], "line 1 has sequence number 1 instead of 0"),
    "swap": (_swap, "sequence number"),
    "swap signatures": (_swap_signatures, "does not follow"),
    "append": (_append, "does not have the hash"),
    "re-sign an edit": (
        lambda lines: _rechained(_edit_noise(lines), OTHER),
        "signature that is not",
    ),
    "rename the round": (
        lambda lines: _rechained(
            [
                {**line, "body": {**line["body"], "round": 1}}
                if line["kind"] == "reserve"
                else line
                for line in lines
            ],
            SIGNER,
        ),
        "not open|again",
    ),
    "go on after closing": (
        lambda lines: _rechained([*lines, lines[-1]], SIGNER),
        "after the closing line",
    ),
    "second header": (lambda lines: _rechained([lines[0], *lines], SIGNER), "second header"),
    "commit without reserve": (
        lambda lines: _rechained([lines[0], lines[2]], SIGNER),
        "which is not open",
    ),
    "nothing": (lambda lines: [], "empty"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_caught_and_named(name: str, tmp_path: Path, plan: PrivacyPlan) -> None:
    _run(tmp_path, plan)
    change, message = TAMPERINGS[name]
    _write(tmp_path, change(_lines(tmp_path)))
    with pytest.raises(LedgerError, match=message):
        read_ledger(tmp_path / "ledger.jsonl", key=SIGNER.public_key)


def test_truncation_shows_as_a_missing_closing_line(tmp_path: Path, plan: PrivacyPlan) -> None:
    _run(tmp_path, plan)
    _write(tmp_path, _lines(tmp_path)[:-2])
    assert read_ledger(tmp_path / "ledger.jsonl").closed is None


def test_signing_all_of_it_anew_is_caught_only_by_a_pinned_key(
    tmp_path: Path, plan: PrivacyPlan
) -> None:
    _run(tmp_path, plan)
    lines = _lines(tmp_path)
    lines[0]["body"]["signer"] = OTHER.public_hex
    _write(tmp_path, _rechained(lines, OTHER))
    assert read_ledger(tmp_path / "ledger.jsonl").signer == OTHER.public_hex
    with pytest.raises(LedgerError, match=r"is signed by .* not by"):
        read_ledger(tmp_path / "ledger.jsonl", key=SIGNER.public_key)


@pytest.mark.parametrize("name", ["sampled", "survivors", "participations", "salt"])
def test_private_lines_must_fit_their_commitments(
    name: str, tmp_path: Path, plan: PrivacyPlan
) -> None:
    _run(tmp_path, plan)
    view = read_ledger(tmp_path / "ledger.jsonl")
    private, _ = read_private(tmp_path / "private.jsonl")
    line = private[3]
    line[name] = "00" * 32 if name == "salt" else line[name][1:]
    with pytest.raises(LedgerError, match=r"round 3: .* is not what the ledger committed to"):
        check_commitments(view.rounds[2], line)
    del line[name]
    with pytest.raises(LedgerError, match="round 3"):
        check_commitments(view.rounds[2], line)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("population", 10**7),
        ("delta", 1e-3),
        ("noise_multiplier", 5.0),
        ("clip", 0.1),
        ("dropout", 0.5),
        ("mechanism", "central-gaussian"),
        ("rounds", 10**30),
        ("min_survivors", "x"),
        ("delta", float(2)),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    key: str, value: Any, tmp_path: Path, plan: PrivacyPlan
) -> None:
    """A coordinator that edits its own header and signs again contradicts itself."""
    _run(tmp_path, plan)
    lines = _lines(tmp_path)
    lines[0]["body"]["plan"][key] = value
    _write(tmp_path, _rechained(lines, SIGNER))
    view = read_ledger(tmp_path / "ledger.jsonl", key=SIGNER.public_key)
    with pytest.raises(LedgerError):
        replay(view, None)


@pytest.mark.parametrize(
    ("key", "value"), [("l2", 1.0), ("total_variance", 1e9), ("clip", 0.2), ("cap", 10**6)]
)
def test_an_event_that_contradicts_itself_or_the_plan_is_refused(
    key: str, value: Any, tmp_path: Path, plan: PrivacyPlan
) -> None:
    _run(tmp_path, plan)
    lines = _lines(tmp_path)
    lines[1]["body"]["event"][key] = value
    _write(tmp_path, _rechained(lines, SIGNER))
    with pytest.raises(LedgerError, match="round 1"):
        replay(read_ledger(tmp_path / "ledger.jsonl"), None)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"seq":NaN}',
        b'{"a":1,"a":2}',
        b"[" * 100_000,
        b'{"body":' * 50_000 + b"}" * 50_000,
        b'{"x":"' + b"a" * (1 << 20) + b'"}',
        b"9" * 5000,
    ],
    ids=range(11),
)
def test_malformed_lines_are_refused_quickly(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(raw + b"\n")
    started = time.process_time()
    with pytest.raises(LedgerError, match=r"line 1|empty"):
        read_ledger(path)
    assert time.process_time() - started < 10


def test_an_endless_line_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with path.open("wb") as file:
        file.truncate(900 << 20)  # sparse: zeros without a newline
    started = time.process_time()
    with pytest.raises(LedgerError, match="longer than"):
        read_ledger(path)
    assert time.process_time() - started < 10
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(LedgerError, match="regular file of at most"):
        read_ledger(path)


def test_links_pipes_and_folders_are_not_followed(tmp_path: Path, plan: PrivacyPlan) -> None:
    _run(tmp_path, plan)
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "ledger.jsonl")
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path, tmp_path / "missing"):
        with pytest.raises(LedgerError):
            read_ledger(path)


def test_every_line_fits_the_schema(tmp_path: Path, plan: PrivacyPlan) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    source = importlib.resources.files("fedsys.privacy").joinpath("ledger.schema.json")
    schema = json.loads(source.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    _run(tmp_path, plan, close=False)
    _open(tmp_path).close("completed")
    lines = _lines(tmp_path)
    assert {line["kind"] for line in lines} == {
        "header",
        "reserve",
        "commit",
        "abort",
        "resume",
        "closed",
    }
    for line in lines:
        validator.validate(line)
    for change in ({"kind": "note"}, {"seq": -1}, {"hash": "xyz"}, {"extra": 1}):
        assert not validator.is_valid(lines[1] | change)
    bad = json.loads(json.dumps(lines[1]))
    bad["body"]["event"]["mechanism"] = "magic"
    assert not validator.is_valid(bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"mechanism": "central-gaussian"},
        {"mechanism": "local-gaussian"},
        {"mechanism": "none", "noise_multiplier": None},
        {"encoding": "narrow", "modulus_bits": 16},
        {"mechanism": "example-gaussian", "example_rate": 0.1, "steps": 4},
        {"mechanism": "banded-mf", "min_separation": 8},
        {"guarantee": "server", "max_participations": 5},
        {"sampling": "fixed"},
        {"sampling": "min-separation", "min_separation": 4, "max_participations": 3},
    ],
)
def test_every_mechanisms_lines_fit_the_schema(changes: dict[str, Any], tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    source = importlib.resources.files("fedsys.privacy").joinpath("ledger.schema.json")
    parameters: dict[str, Any] = {
        "mechanism": "distributed-skellam",
        "population": 1437,
        "expected_cohort": 100,
        "rounds": 40,
        "dimension": 650,
        "clip": 0.3,
        "delta": 1e-5,
        "noise_multiplier": 0.7,
    }
    plan = make_plan(**parameters | changes)
    with _create(tmp_path, plan) as ledger:
        ledger.reserve(1, {"event": plan.event().to_json()})
    for line in _lines(tmp_path):
        jsonschema.validate(line, json.loads(source.read_text(encoding="utf-8")))
    accountant, spent = replay(read_ledger(tmp_path / "ledger.jsonl"), None)
    assert accountant.plan == plan
    assert spent.outsider > 0


class TestWriting:
    def test_one_writer(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        with _create(tmp_path, plan):
            with pytest.raises(LedgerError, match="in use by another process"):
                _open(tmp_path)
            with pytest.raises(LedgerError, match="File exists"):
                _create(tmp_path, plan)
        with _open(tmp_path):
            pass

    def test_a_round_number_is_used_once(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        event = {"event": plan.event().to_json()}
        with _create(tmp_path, plan) as ledger:
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
        with _open(tmp_path) as ledger:
            assert ledger.next_round == 3
            with pytest.raises(LedgerError, match="used before"):
                ledger.reserve(2, event)

    def test_nonsense_is_not_written(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        with _create(tmp_path, plan) as ledger:
            size = (tmp_path / "ledger.jsonl").stat().st_size
            for body in ({"x": float("nan")}, {"x": float("inf")}, {"x": object()}):
                with pytest.raises(LedgerError, match="plain finite JSON"):
                    ledger.reserve(1, body)
            assert (tmp_path / "ledger.jsonl").stat().st_size == size

    def test_survivors_are_among_the_sampled(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        with _create(tmp_path, plan) as ledger:
            ledger.reserve(1, {"event": plan.event().to_json()})
            for sampled, survivors in (([1, 2], [3]), ([1, 1], [1])):
                with pytest.raises(LedgerError, match="distinct and among"):
                    ledger.commit(1, {}, sampled=sampled, survivors=survivors)

    def test_a_closed_ledger_stays_closed(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        _run(tmp_path, plan)
        with pytest.raises(LedgerError, match="is closed"):
            _open(tmp_path)

    def test_another_signer_cannot_go_on(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        _run(tmp_path, plan, close=False)
        with pytest.raises(LedgerError, match="is signed by"):
            _open(tmp_path, OTHER)

    def test_resuming_keeps_counting(self, tmp_path: Path, plan: PrivacyPlan) -> None:
        _run(tmp_path, plan, close=False)
        with _open(tmp_path) as ledger:
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
        _run(tmp_path, plan, close=False)
        path = tmp_path / "private.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:2] + lines[3:]))
        with pytest.raises(LedgerError, match="lacks round 3"):
            _open(tmp_path)
        path.write_bytes(b"".join(lines).replace(b'"sampled":[3,4', b'"sampled":[2,4'))
        with pytest.raises(LedgerError, match="round 3: sampled is not what"):
            _open(tmp_path)
        path.unlink()
        with pytest.raises(LedgerError, match="cannot write"):
            _open(tmp_path)

    def test_a_full_disk_is_one_clear_line(
        self, tmp_path: Path, plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger = _create(tmp_path, plan)

        def full(_descriptor: int, _data: bytes) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("fedsys.privacy.ledger.writer.os.write", full)
            with pytest.raises(LedgerError, match=r"ledger\.jsonl.*No space left"):
                ledger.reserve(1, {"event": plan.event().to_json()})
        with pytest.raises(LedgerError):
            ledger.reserve(2, {"event": plan.event().to_json()})


class TestSigner:
    def test_a_key_is_made_once_and_private(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        first = Signer.load_or_create(home)
        assert Signer.load_or_create(home).public_hex == first.public_hex
        key = next(home.iterdir())
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        key.chmod(0o644)
        with pytest.raises(LedgerError, match="chmod 600"):
            Signer.load_or_create(home)
        key.chmod(0o600)
        key.write_bytes(b"short")
        with pytest.raises(LedgerError, match="instead of 32"):
            Signer.load_or_create(home)

    def test_the_environment_names_the_home(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "elsewhere"))
        Signer.load_or_create()
        assert (tmp_path / "elsewhere").is_dir()

    def test_secrets_stay_inside(self) -> None:
        assert SIGNER.public_hex in repr(SIGNER)
        with pytest.raises(TypeError):
            SIGNER.__reduce__()

    def test_public_keys_are_read_from_text_and_files(self, tmp_path: Path) -> None:
        path = tmp_path / "key.pub"
        path.write_text(SIGNER.public_hex + "\n")
        for text in (SIGNER.public_hex, str(path)):
            assert load_public_key(text).public_bytes_raw().hex() == SIGNER.public_hex
        for bad in ("", "zz" * 32, str(tmp_path), "ab" * 31):
            with pytest.raises(LedgerError, match="not a public key"):
                load_public_key(bad)


def test_any_torn_tail_is_cut_off(tmp_path: Path, plan: PrivacyPlan) -> None:
    """The file cut at every byte of its last lines: it opens, and nothing acknowledged is lost."""
    _run(tmp_path, plan, close=False)
    ledger, private = tmp_path / "ledger.jsonl", tmp_path / "private.jsonl"
    whole, hidden = ledger.read_bytes(), private.read_bytes()
    last_two = whole[:-1].rfind(b"\n", 0, whole[:-1].rfind(b"\n")) + 1
    last = whole[:-1].rfind(b"\n") + 1
    step = max(1, (len(whole) - last_two) // 60)
    for cut in {*range(last_two, len(whole), step), last_two, last, last + 1, len(whole) - 1}:
        ledger.write_bytes(whole[:cut])
        private.write_bytes(hidden)
        with (
            pytest.raises(LedgerError, match="unfinished")
            if cut
            not in (
                last_two,
                last,
            )
            else _nothing()
        ):
            read_ledger(ledger)
        with _open(tmp_path) as opened:
            assert opened.view is not None
            _, spent = replay(opened.view, opened.private_rounds)
            assert opened.next_round == 6  # round 5's private line is there: never used again
        view = read_ledger(ledger)
        reserved = 5 if cut >= last else 4
        assert len(view.rounds) == reserved
        if reserved == 5:
            assert view.rounds[-1].outcome is None
            # the lost round is charged at its worst to everybody
            assert spent.server is not None
            full = _charged(plan, tmp_path, whole, hidden)
            assert spent.server >= full


def _charged(plan: PrivacyPlan, folder: Path, whole: bytes, hidden: bytes) -> float:
    path = folder / "whole.jsonl"
    path.write_bytes(whole)
    rounds = {body["round"]: body for body in map(json.loads, hidden.splitlines())}
    server = replay(read_ledger(path), rounds)[1].server
    path.unlink()
    assert server is not None
    return server


class _nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_args: object) -> None:
        return None


_JOB = """
import os, signal, sys
from pathlib import Path
from fedsys.privacy import AesCtrStream, Ledger, Signer, ledger_header, make_plan
import fedsys.privacy.ledger.writer as writer

folder, fatal = Path(sys.argv[1]), int(sys.argv[2])
steps = 0

def dying(call):
    def wrapper(*args):
        global steps
        steps += 1
        if steps == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if call is os.write and steps + 1 == fatal:   # half of it reaches the file
            call(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)
    return wrapper

class DyingOs:
    write = staticmethod(dying(os.write))
    fsync = staticmethod(dying(os.fsync))
    def __getattr__(self, name):
        return getattr(os, name)

writer.os = DyingOs()
plan = make_plan(mechanism="distributed-skellam", population=1437, expected_cohort=100, rounds=40,
                 dimension=650, clip=0.3, delta=1e-5, noise_multiplier=0.7)
signer = Signer.generate(entropy=AesCtrStream((1).to_bytes(32, "big")))
ledger = Ledger.create(folder / "ledger.jsonl", folder / "private.jsonl", signer=signer,
                       header=ledger_header(plan))
for number in (1, 2):
    ledger.reserve(number, {"event": plan.event().to_json()})
    print(f"invited {number}", flush=True)
    cohort = list(range(10 * number, 10 * number + 60))
    ledger.commit(number, {}, sampled=cohort, survivors=cohort)
    print(f"released {number}", flush=True)
print("finished", flush=True)
"""


def _killed(folder: Path, fatal: int) -> list[str]:
    """What a job that dies at its ``fatal``-th write or flush told the outside before."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_JOB), str(folder), str(fatal)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.slow
def test_kill_minus_nine_at_every_step(tmp_path: Path) -> None:
    """No invitation without a durable reserve, no release without a durable commit, no round
    forgotten, no number used twice: wherever the process dies."""
    fatal = 1
    while True:
        folder = tmp_path / str(fatal)
        folder.mkdir()
        told = _killed(folder, fatal)
        _check_after_a_kill(folder, told)
        if told and told[-1] == "finished":
            break
        fatal += 1
    assert fatal > 12


def test_kill_minus_nine_between_private_line_and_commit(tmp_path: Path) -> None:
    """One of the points of the test above, always run: steps 1-4 open, 5-6 reserve, 7.. commit."""
    seen = set()
    for fatal in (6, 9, 10):
        folder = tmp_path / str(fatal)
        folder.mkdir()
        told = _killed(folder, fatal)
        seen.add(tuple(told))
        _check_after_a_kill(folder, told)
    assert seen


def _check_after_a_kill(folder: Path, told: list[str]) -> None:
    invited = [int(line.split()[1]) for line in told if line.startswith("invited")]
    released = [int(line.split()[1]) for line in told if line.startswith("released")]
    path = folder / "ledger.jsonl"
    try:
        view: LedgerView = read_ledger(path, allow_torn=True)
    except LedgerError:
        assert not told  # nothing was promised before the header was durable
        return
    reserved = {record.round for record in view.rounds}
    committed = {record.round for record in view.rounds if record.outcome == "commit"}
    assert set(invited) <= reserved
    assert set(released) <= committed
    private_path = folder / "private.jsonl"
    if not private_path.exists():
        assert not told
        return
    with _open(folder) as ledger:
        assert ledger.view is not None
        accountant, spent = replay(ledger.view, ledger.private_rounds)
        assert accountant.rounds == len(reserved)
        assert ledger.next_round > max([0, *invited, *reserved])
        _, private = replay(ledger.view, {})
        assert private.server is not None
        assert spent.server is not None
        assert private.server >= spent.server  # unknown cohorts cost more, never less
    assert read_ledger(path).resumes


def _long_ledger(folder: Path, rounds: int, plan: PrivacyPlan) -> None:
    """Written by hand: fsync of every line is what a real job waits for."""
    import hashlib

    link = "0" * 64
    event = plan.event().to_json()
    with (folder / "ledger.jsonl").open("wb") as file:
        header = {
            **ledger_header(plan),
            "format": "fedsys-ledger-1",
            "signer": SIGNER.public_hex,
        }
        bodies: list[tuple[str, dict[str, Any]]] = [("header", header)]
        for number in range(1, rounds + 1):
            bodies.append(("reserve", {"round": number, "event": event}))
            bodies.append(("commit", {"round": number, "commitments": {"sampled": "ab" * 32}}))
        for seq, (kind, body) in enumerate(bodies):
            digest = Line.hash_of(seq=seq, prev_hash=link, kind=kind, body=body)
            signed = seq == 0 or seq >= len(bodies) - 5000
            raw = Line.encode(
                seq=seq,
                prev_hash=link,
                kind=kind,
                body=body,
                digest=digest,
                signature=SIGNER.sign(digest) if signed else "00" * 64,
            )
            link = hashlib.sha256(raw).hexdigest()
            file.write(raw + b"\n")


def _peak_of_reading(folder: Path) -> int:
    tracemalloc.start()
    try:
        read_ledger(folder / "ledger.jsonl", key=SIGNER.public_key, newest_signatures=100)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_hundred_thousand_rounds_load_verify_and_replay_in_little_memory(
    tmp_path: Path, plan: PrivacyPlan
) -> None:
    _long_ledger(tmp_path, 100_000, plan)
    assert _peak_of_reading(tmp_path) < 100 << 20
    view = read_ledger(tmp_path / "ledger.jsonl", key=SIGNER.public_key)
    assert len(view.rounds) == 100_000
    accountant, _ = replay(view, None)
    assert accountant.rounds == 100_000


def test_a_long_ledger_costs_a_little_a_round(
    tmp_path: Path, plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is dear is done once for all rounds alike; a round is kept in few hundred bytes."""
    from fedsys.privacy import replay as replaying
    from fedsys.privacy.ledger import lines, reader

    _long_ledger(tmp_path, 1000, plan)
    short = _peak_of_reading(tmp_path)
    _long_ledger(tmp_path, 3000, plan)
    assert _peak_of_reading(tmp_path) - short < 2000 * 1000

    calls: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, call)

    counted(lines, "parse_object")
    counted(reader, "_check_signature")
    counted(importlib.import_module(replaying.__module__), "event_from_json")
    view = read_ledger(tmp_path / "ledger.jsonl", key=SIGNER.public_key, newest_signatures=100)
    assert replay(view, None)[0].rounds == 3000
    assert calls == {
        "parse_object": 3000 + 2,  # every commit, the header, one reserve for all
        "_check_signature": 1 + 100,
        "event_from_json": 1,
    }


class TestLargeCohorts:
    """Cohorts too long for a list are packed; the commitments are to the list all the same."""

    @pytest.mark.parametrize(
        ("cohort", "population"),
        [(1024, 10**6), (1025, 10**6), (10_000, 10**7), (200_000, 10**7), (100_000, 10**11)],
    )
    def test_they_read_back(
        self, cohort: int, population: int, tmp_path: Path, plan: PrivacyPlan
    ) -> None:
        step = population // cohort
        sampled = [number * step + number % 7 for number in range(cohort)]
        survivors = [client for client in sampled if client % 13]
        with _create(tmp_path, plan) as ledger:
            ledger.reserve(1, {"event": plan.event().to_json()})
            ledger.commit(1, {}, sampled=sampled, survivors=survivors)
        raw = (tmp_path / "private.jsonl").read_bytes()
        assert (b'"sampled":[' in raw) == (cohort <= 1024)
        assert len(raw) < 2000 + max(20 * 1024, 14 * cohort)
        private, torn = read_private(tmp_path / "private.jsonl")
        assert torn == b""
        assert private[1]["sampled"] == sampled
        assert private[1]["survivors"] == survivors
        assert private[1]["participations"] == [1] * len(survivors)
        with _open(tmp_path) as ledger:  # checks the commitments
            assert sum(ledger.participations.values()) == len(survivors)

    def test_packed_and_listed_cohorts_have_one_commitment(
        self, tmp_path: Path, plan: PrivacyPlan
    ) -> None:
        """A list that an earlier version wrote, longer than a ledger's line may be, is read too."""
        sampled = list(range(0, 500_000, 5))
        with _create(tmp_path, plan) as ledger:
            ledger.reserve(1, {"event": plan.event().to_json()})
            ledger.commit(1, {}, sampled=sampled, survivors=sampled)
        path = tmp_path / "private.jsonl"
        private, _ = read_private(path)
        packed = path.read_bytes()
        path.write_bytes(canonical(private[1]) + b"\n")
        assert len(path.read_bytes()) > 1 << 20 > len(packed)
        again, _ = read_private(path)
        assert again[1] == private[1]
        check_commitments(read_ledger(tmp_path / "ledger.jsonl").rounds[0], again[1])

    def test_what_cannot_be_read_back_is_not_written(
        self, tmp_path: Path, plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fedsys.privacy.ledger.private.MAX_PRIVATE_LINE_BYTES", 4000)
        with _create(tmp_path, plan) as ledger:
            ledger.reserve(1, {"event": plan.event().to_json()})
            with pytest.raises(LedgerError, match="round 1: its private line has"):
                ledger.commit(1, {}, sampled=range(2000), survivors=range(2000))
        assert (tmp_path / "private.jsonl").read_bytes() == b""

    @given(st.lists(st.integers(0, (1 << 42) - 1), max_size=50))
    def test_any_numbers_survive_packing(self, numbers: list[int]) -> None:
        assert unpack(pack(numbers)).tolist() == numbers
        ids = sorted(set(numbers))
        assert unpack_increasing(pack_increasing(ids)).tolist() == ids

    @given(st.binary(max_size=30))
    def test_a_text_that_unpacks_is_the_only_one(self, octets: bytes) -> None:
        text = base64.b64encode(octets).decode()
        with contextlib.suppress(LedgerError):
            assert pack(unpack(text)) == text

    @pytest.mark.parametrize(
        "text", ["A", "gA==", "gAA=", "AA", "AB==", " AA==", "é", "////////AQ=="]
    )
    def test_malformed_texts_are_refused(self, text: str) -> None:
        with pytest.raises(LedgerError, match="packed number"):
            unpack(text)

    @pytest.mark.parametrize("numbers", [[-1], [1 << 42], [3, 3], [4, 2]])
    def test_what_is_no_list_of_clients_is_not_packed(self, numbers: list[int]) -> None:
        with pytest.raises(LedgerError, match="packed numbers must be"):
            pack_increasing(numbers)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"x":"' + b'\\"' * 400_000,
        b'"' * 900_000,
        b"[{" * 400_000,
        b"[}" * 400_000,
        b'{"x":' + b"[]," * 300_000 + b"1}",
    ],
    ids=["escapes", "quotes", "open", "crossed", "flat"],
)
def test_what_is_slow_to_look_through_is_refused_quickly(raw: bytes) -> None:
    started = time.process_time()
    with pytest.raises(LedgerError, match=r"line 1 is (nested|not strict)"):
        Line.parse(raw, 1)
    assert time.process_time() - started < 20
