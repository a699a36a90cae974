"""What reads back, and every tampering caught and named."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsys.errors import LedgerError
from fedsys.privacy import read_ledger, replay
from fedsys.privacy.ledger import Line, read_private
from fedsys.privacy.ledger.files import MAX_FILE_BYTES
from fedsys.privacy.ledger.private import check_commitments
from fedsys.privacy.plan import PrivacyPlan
from tests.fedsys.privacy.ledger.ledgers import (
    OTHER,
    SIGNER,
    hash_of,
    read_lines,
    rechained,
    write_lines,
    write_run,
)
from tests.reading import reads_at_most


def test_a_sound_ledger_reads_back(tmp_path: Path, plan: PrivacyPlan) -> None:
    head = write_run(tmp_path, plan)
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

    write_run(tmp_path, plan)
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
    line["hash"] = hash_of(line)
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
        lambda lines: rechained(_edit_noise(lines), OTHER),
        "signature that is not",
    ),
    "rename the round": (
        lambda lines: rechained(
            [
                {**line, "body": {**line["body"], "round": 1}}
                if line["kind"] == "reserve"
                else line
                for line in lines
            ],
            SIGNER,
        ),
        "not open|is next",
    ),
    "go on after closing": (
        lambda lines: rechained([*lines, lines[-1]], SIGNER),
        "after the closing line",
    ),
    "second header": (lambda lines: rechained([lines[0], *lines], SIGNER), "second header"),
    "commit without reserve": (
        lambda lines: rechained([lines[0], lines[2]], SIGNER),
        "which is not open",
    ),
    "nothing": (lambda lines: [], "empty"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_caught_and_named(name: str, tmp_path: Path, plan: PrivacyPlan) -> None:
    write_run(tmp_path, plan)
    change, message = TAMPERINGS[name]
    write_lines(tmp_path, change(read_lines(tmp_path)))
    with pytest.raises(LedgerError, match=message):
        read_ledger(tmp_path / "ledger.jsonl", key=SIGNER.public_key)


def test_truncation_shows_as_a_missing_closing_line(tmp_path: Path, plan: PrivacyPlan) -> None:
    write_run(tmp_path, plan)
    write_lines(tmp_path, read_lines(tmp_path)[:-2])
    assert read_ledger(tmp_path / "ledger.jsonl").closed is None


def test_signing_all_of_it_anew_is_caught_only_by_a_pinned_key(
    tmp_path: Path, plan: PrivacyPlan
) -> None:
    write_run(tmp_path, plan)
    lines = read_lines(tmp_path)
    lines[0]["body"]["signer"] = OTHER.public_hex
    write_lines(tmp_path, rechained(lines, OTHER))
    assert read_ledger(tmp_path / "ledger.jsonl").signer == OTHER.public_hex
    with pytest.raises(LedgerError, match=r"is signed by .* not by"):
        read_ledger(tmp_path / "ledger.jsonl", key=SIGNER.public_key)


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
    write_run(tmp_path, plan)
    lines = read_lines(tmp_path)
    lines[0]["body"]["plan"][key] = value
    write_lines(tmp_path, rechained(lines, SIGNER))
    view = read_ledger(tmp_path / "ledger.jsonl", key=SIGNER.public_key)
    with pytest.raises(LedgerError):
        replay(view, None)


@pytest.mark.parametrize(
    ("key", "value"), [("l2", 1.0), ("total_variance", 1e9), ("clip", 0.2), ("cap", 10**6)]
)
def test_an_event_that_contradicts_itself_or_the_plan_is_refused(
    key: str, value: Any, tmp_path: Path, plan: PrivacyPlan
) -> None:
    write_run(tmp_path, plan)
    lines = read_lines(tmp_path)
    lines[1]["body"]["event"][key] = value
    write_lines(tmp_path, rechained(lines, SIGNER))
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
def test_malformed_lines_are_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(raw + b"\n")
    with pytest.raises(LedgerError, match=r"line 1|empty"):
        read_ledger(path)


def test_an_endless_line_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with path.open("wb") as file:
        file.truncate(900 << 20)  # sparse: zeros without a newline
    with reads_at_most(64), pytest.raises(LedgerError, match="longer than"):
        read_ledger(path)
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(LedgerError, match="regular file of at most"):
        read_ledger(path)


def test_links_pipes_and_folders_are_not_followed(tmp_path: Path, plan: PrivacyPlan) -> None:
    write_run(tmp_path, plan)
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "ledger.jsonl")
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path, tmp_path / "missing"):
        with pytest.raises(LedgerError):
            read_ledger(path)


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
def test_what_is_slow_to_look_through_is_refused(raw: bytes) -> None:
    with pytest.raises(LedgerError, match=r"line 1 is (nested|not strict)"):
        Line.parse(raw, 1)
