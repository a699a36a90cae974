"""Signed lists of members on their way to devices, in messages of a bounded size."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.identity import Credentials
from fedsys.wire.roster import RosterStatement, SignedStatement
from fedsys.wire.roster_chain import RosterChain
from tests.e2e.deployment import running_port
from tests.e2e.test_deployment_enrollment import channel_of, converse, hello


def test_a_device_joins_a_fleet_whose_lists_fill_many_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_port(tmp_path / "coordinator") as port:
        for number in range(12):
            port.enroll(f"n{number}", tmp_path / f"n{number}")
        monkeypatch.setattr("server.deployed.roster_news._MOST", 600)
        monkeypatch.setattr("server.grpc_host._MOST_AT_ENROLMENT", 600)
        credentials = port.enroll("last", tmp_path / "last")
        assert credentials.roster_chain().version == 0, (
            "a list too large for this message comes later"
        )
        with channel_of(credentials) as channel:
            answers = converse(channel, hello(credentials.node))
        (first,) = answers[0].welcome.roster
        assert len(RosterStatement.decode(first.statement).members) == 13
        oldest = Credentials.load(tmp_path / "n0")
        with channel_of(oldest) as channel:
            answers = converse(channel, hello(oldest.node))
        assert len(answers) > 2
        news = [*answers[0].welcome.roster]
        news += [each for down in answers[1:] for each in down.roster.roster]
        assert len(news) == 13
        chain = RosterChain(key=oldest.roster_key)
        chain.extend(SignedStatement(statement=s.statement, signature=s.signature) for s in news)
        assert chain.version == 13
