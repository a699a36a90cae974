"""Ledgers of many rounds: little memory, little work a round."""

from __future__ import annotations

import importlib
import importlib.resources
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedsys.errors import LedgerError
from fedsys.privacy import ledger_header, read_ledger, replay
from fedsys.privacy.plan import PrivacyPlan
from tests.fedsys.privacy.ledger.ledgers import SIGNER, chained


def _long_ledger(folder: Path, rounds: int, plan: PrivacyPlan) -> None:
    """Written by hand: fsync of every line is what a real job waits for."""
    event = plan.event().to_json()
    with (folder / "ledger.jsonl").open("wb") as file:
        header = {
            **ledger_header(plan),
            "format": "fedsys-ledger-1",
            "signer": SIGNER.public_hex,
        }
        bodies: list[tuple[str, dict[str, Any]]] = [("header", header)]
        for number in range(1, rounds + 1):
            reserved = {"round": number, "event": event, "kind": "train", "seed_sha256": "cd" * 32}
            bodies.append(("reserve", reserved))
            bodies.append(("commit", {"round": number, "commitments": {"sampled": "ab" * 32}}))
        signed = {0, *range(max(0, len(bodies) - 5000), len(bodies))}
        for raw in chained(
            bodies, lambda seq, digest: SIGNER.sign(digest) if seq in signed else "00" * 64
        ):
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


def test_events_that_all_differ_are_kept_as_text(
    tmp_path: Path, plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text of empty lists takes twenty times as much memory as an object."""
    header = {**ledger_header(plan), "format": "fedsys-ledger-1", "signer": SIGNER.public_hex}
    bodies: list[tuple[str, dict[str, Any]]] = [("header", header)]
    for number in range(1, 9):
        event = {"round": number, "filling": [[]] * (1 << 14)}
        bodies.append(("reserve", {"round": number, "event": event}))
    raw = b"".join(line + b"\n" for line in chained(bodies, lambda _, it: SIGNER.sign(it)))
    (tmp_path / "ledger.jsonl").write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsys.privacy.ledger.reader._MOST_PARSED", 1 << 16)
        little = _peak_of_reading(tmp_path)
        view = read_ledger(tmp_path / "ledger.jsonl")
        patch.setattr("fedsys.privacy.ledger.reader._MOST_PARSED", 1 << 30)
        assert little < 0.5 * _peak_of_reading(tmp_path)
    assert [each.reserve["event"]["round"] for each in view.rounds] == list(range(1, 9))
    resumed = [*bodies[:1], *[("resume", {"filling": [0] * (1 << 14)})] * 4]
    raw = b"".join(line + b"\n" for line in chained(resumed, lambda _, it: SIGNER.sign(it)))
    (tmp_path / "ledger.jsonl").write_bytes(raw)
    monkeypatch.setattr("fedsys.privacy.ledger.reader._MOST_PARSED", 1 << 16)
    with pytest.raises(LedgerError, match="line 3: its resumptions state too much"):
        read_ledger(tmp_path / "ledger.jsonl")


def test_a_long_ledger_costs_a_little_a_round(
    tmp_path: Path, plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is costly is done once for all rounds alike; a round is kept in few hundred bytes."""
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
