"""A device gets exactly the lines that it lacks, in pieces, and then the outcome."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsys.privacy import Ledger, make_plan
from fedsys.wire import fleet_pb2
from server.deployed import ledger_news
from server.deployed.fleet import Fleet, Link
from server.deployed.ledger_news import LedgerNews
from tests.fedsys.privacy.ledger.ledgers import create

JOB = b"j" * 32
PLAN = make_plan(
    mechanism="none", population=2, expected_cohort=2, rounds=40, dimension=3, clip=1.0,
    delta=1e-5, sampling="fixed", cap=2, min_survivors=1,
)  # fmt: skip


def news_of(ledger: Ledger, folder: Path, fleet: Fleet) -> LedgerNews:
    return LedgerNews(
        ledger,
        folder / "ledger.jsonl",
        job=JOB,
        fleet=fleet,
        members=(3, 7),
        prekeys=lambda nodes: {node: node for node in nodes},
    )


def conclude(ledger: Ledger, number: int) -> fleet_pb2.Outcome:
    ledger.reserve(number, {"event": PLAN.event().to_json()})
    ledger.commit(number, {}, sampled=[0, 1], survivors=[0, 1])
    return fleet_pb2.Outcome(job=JOB, round=number, ledger_head=bytes.fromhex(ledger.head))


def heard(link: Link) -> tuple[list[bytes], list[fleet_pb2.Outcome]]:
    """What waits for a device: pieces of lines, and outcomes, which come last."""
    pieces = list[bytes]()
    outcomes = list[fleet_pb2.Outcome]()
    while not link.outgoing.empty():
        down = fleet_pb2.Down.FromString(link.outgoing.get_nowait() or b"")
        if down.HasField("lines"):
            assert not outcomes
            pieces.append(down.lines.lines)
        else:
            outcomes.append(down.outcome)
    return pieces, outcomes


def test_lines_come_once_and_before_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, link = Fleet(), Link(node=7)
    fleet.links[7] = link
    with create(tmp_path, PLAN) as ledger:
        news = news_of(ledger, tmp_path, fleet)
        for number in range(1, 11):
            over = conclude(ledger, number)
        path = tmp_path / "ledger.jsonl"
        news.consented(1, 4)
        assert not link.outgoing.qsize()
        monkeypatch.setattr(ledger_news, "MAX_LINES", 5000)
        news.tell(1, over)
        pieces, outcomes = heard(link)
        whole = path.read_bytes().splitlines(keepends=True)
        assert b"".join(pieces) == b"".join(whole[4:])
        assert len(pieces) > 2
        assert max(map(len, pieces)) <= 5000
        assert outcomes == [over]

        ledger.reserve(11, {"event": PLAN.event().to_json()})  # is not anybody's to know yet
        news.tell(1, over)
        assert heard(link) == ([], [over])
        monkeypatch.setattr(ledger_news, "_AT_ONCE", 1)
        news.consented(1, 0)  # another process of it, which has to come more often
        news.tell(1, over)
        first, _ = heard(link)
        news.tell(1, over)
        second, _ = heard(link)
        assert b"".join([*first, *second]) == b"".join(whole)[: len(b"".join([*first, *second]))]
        assert len(first) == len(second) == 1


def test_who_was_not_there_is_told_when_it_agrees_again(tmp_path: Path) -> None:
    fleet, link = Fleet(), Link(node=3)
    with create(tmp_path, PLAN) as ledger:
        news = news_of(ledger, tmp_path, fleet)
        news.owe(0, conclude(ledger, 1))
        conclude(ledger, 2)
        fleet.links[3] = link
        news.consented(0, 0)
        pieces, (over,) = heard(link)
        whole = (tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True)
        assert b"".join(pieces) == b"".join(whole[:3]), "up to the end of its round"
        assert (over.round, over.prekeys) == (1, 3)
        news.consented(0, 3)
        assert heard(link) == ([], [])
        assert news.knows(0)
        news.arrived(0)  # another session, in which it has said nothing yet
        assert not news.knows(0)
