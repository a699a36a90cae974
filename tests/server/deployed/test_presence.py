"""When devices were last seen outlives the coordinator."""

from __future__ import annotations

from pathlib import Path

from server.deployed.fleet import Fleet, Link
from server.deployed.presence import Presence
from server.home.state import NodeRow, State


def test_coming_staying_and_leaving_are_written(tmp_path: Path) -> None:
    state, fleet, now = State.create(tmp_path), Fleet(), [1000.0]
    with state.transaction() as session:
        for number in (1, 2):
            identity = bytes([number]) * 32
            session.add(
                NodeRow(
                    id=number,
                    name=f"n{number}",
                    identity=identity,
                    status="active",
                    enrolled_at=0.0,
                )
            )
    presence = Presence(state, fleet, now=lambda: now[0])

    def seen() -> list[tuple[float | None, str]]:
        presence.note()
        return [(row.last_seen, row.version) for row in state.nodes()]

    assert seen() == [(None, ""), (None, "")]
    link = Link(node=1, version="1.2")
    fleet.open(link)
    assert seen() == [(1000.0, "1.2"), (None, "")]
    now[0] = 1030.0
    assert seen()[0] == (1000.0, "1.2"), "not with every look"
    now[0] = 1061.0
    assert seen()[0] == (1061.0, "1.2")
    fleet.closed(link)
    now[0] = 1075.0
    assert seen()[0] == (1075.0, "1.2"), "the version of its last session"
    now[0] = 2000.0
    assert seen()[0] == (1075.0, "1.2")
    fleet.open(Link(node=2, version="1.3"))
    assert seen()[1] == (2000.0, "1.3")
    now[0] = 2010.0
    presence.note(last=True)
    assert [row.last_seen for row in state.nodes()] == [1075.0, 2010.0]
    state.close()


def test_a_database_that_fails_is_tried_again(tmp_path: Path) -> None:
    state, fleet = State.create(tmp_path), Fleet()
    identity = bytes(32)
    with state.transaction() as session:
        row = NodeRow(id=1, name="n", identity=identity, status="active", enrolled_at=0.0)
        session.add(row)
    presence = Presence(state, fleet, now=lambda: 5.0)
    fleet.open(Link(node=1))
    state.close()
    (tmp_path / "state.sqlite").rename(tmp_path / "away")
    (tmp_path / "state.sqlite").mkdir()
    presence.note()
    (tmp_path / "state.sqlite").rmdir()
    (tmp_path / "away").rename(tmp_path / "state.sqlite")
    presence.note()
    assert state.nodes()[0].last_seen == 5.0
    state.close()
