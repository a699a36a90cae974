"""The roster's authority signs one list under each number, whatever it is asked and forgets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsys.cli.app import app
from fedsys.errors import ConfigError, FedsysError, ProtocolError
from fedsys.wire.roster import RosterStatement, fingerprint
from fedsys.wire.roster_authority import RosterAuthority, read_signed, write_signed
from fedsys.wire.roster_chain import RosterChain
from secure_agg import Identity

KEYS = {node: Identity.generate().public_bytes for node in range(1, 6)}
ONE = RosterStatement(version=1, previous=b"", members={1: KEYS[1], 2: KEYS[2]})
FORK = dataclasses.replace(ONE, members={1: KEYS[1], 3: KEYS[3]})


def after(before: RosterStatement, *nodes: int) -> RosterStatement:
    members = {node: KEYS[node] for node in nodes}
    return RosterStatement(version=before.version + 1, previous=before.hash, members=members)


TWO = after(ONE, 1, 3)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "authority.key"


def sign(key: Path, *statements: RosterStatement, recalling: str | None = None) -> None:
    with RosterAuthority.opened(key, after=recalling) as authority:
        chain = RosterChain(key=authority.public_key)
        for each in statements:
            signed = authority.sign(each)
            if each.version == chain.version + 1:
                assert chain.accept(signed) == each


def test_each_list_is_signed_after_the_one_before_and_again_if_it_is_the_same(key: Path) -> None:
    sign(key, ONE, TWO)
    sign(key, ONE, TWO, after(TWO, 1, 3, 4))
    with RosterAuthority.opened(key) as authority:
        assert sorted(authority.signed) == [1, 2, 3]
        assert "authority.key" in repr(authority)
        assert key.read_bytes().hex() not in repr(authority)


@pytest.mark.parametrize(
    ("proposed", "reason"),
    [
        (FORK, "signed another list with that version"),
        (after(FORK, 1, 2, 3), "signed another list with that version"),
        (after(after(FORK, 1), 1), "not a successor"),
        (after(after(TWO, 1), 1), "does not follow 2"),
        (
            dataclasses.replace(after(TWO, 1, 3), members={1: KEYS[4], 3: KEYS[3]}),
            "gives node 1 another key",
        ),
    ],
)
def test_a_fork_of_what_was_signed_is_refused(
    key: Path, proposed: RosterStatement, reason: str
) -> None:
    sign(key, ONE, TWO)
    with pytest.raises(ProtocolError, match=reason):
        sign(key, proposed)


def test_it_is_remembered_before_it_is_signed(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power loss between the two may cost a signature, and never lets two lists be signed."""
    sign(key, ONE)
    with monkeypatch.context() as patch:
        patch.setattr("fedsys.wire.roster_authority.signed_message", None)
        with pytest.raises(TypeError):
            sign(key, TWO)
    with pytest.raises(ProtocolError, match="signed another list"):
        sign(key, after(ONE, 2))
    sign(key, TWO)


def test_a_key_that_lost_its_memory_signs_nothing(key: Path, tmp_path: Path) -> None:
    sign(key, ONE)
    last = tmp_path / "two.signed"
    with RosterAuthority.opened(key) as authority:
        write_signed(last, authority.sign(TWO))
    memory = key.with_name("authority.key.signed")
    memory.unlink()
    with pytest.raises(ConfigError, match=r"missing; it records what authority\.key has signed"):
        sign(key, FORK)
    with pytest.raises(ConfigError, match="not a list that this key signed"):
        sign(key, FORK, recalling=str(key))
    sign(tmp_path / "other.key", ONE)
    with RosterAuthority.opened(tmp_path / "other.key") as other:
        write_signed(tmp_path / "one.signed", other.sign(ONE))
    with pytest.raises(ConfigError, match="not a list that this key signed"):
        sign(key, FORK, recalling=str(tmp_path / "one.signed"))
    with pytest.raises(ProtocolError):
        sign(key, after(ONE, 2), recalling=str(last))
    sign(key, after(TWO, 1, 3, 4), recalling=str(last))
    sign(key, after(TWO, 1, 3, 4))


@pytest.mark.parametrize(
    "memory", [b"", b"{}", b'{"signed":[[1,"00"]],"newest":null}', b'{"signed":[],"newest":"x"}']
)
def test_a_damaged_memory_stops_it(key: Path, memory: bytes) -> None:
    sign(key, ONE)
    path = key.with_name("authority.key.signed")
    path.write_bytes(memory)
    with pytest.raises(ConfigError, match="damaged"):
        sign(key, ONE)


def test_the_authority_sees_who_comes_and_goes_before_it_signs(key: Path, tmp_path: Path) -> None:
    def fedsys(*words: str) -> str:
        found = CliRunner().invoke(app, ["coordinator", "sign-roster", str(key), *words])
        if isinstance(found.exception, FedsysError):
            raise found.exception
        assert found.exit_code == 0, found.output
        return found.output

    proposal = tmp_path / "next.json"
    for statement in (ONE, TWO):
        proposal.write_bytes(statement.encoded)
        shown = fedsys(str(proposal), "--show")
        assert "nothing was signed" in shown
        assert not proposal.with_suffix(".signed").exists() or statement is TWO
        assert shown.splitlines()[0] in fedsys(str(proposal))
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert f"- node 2 {fingerprint(KEYS[2])}" in lines
    assert f"+ node 3 {fingerprint(KEYS[3])}" in lines
    assert f"node 1 {fingerprint(KEYS[1])}" in lines
    assert read_signed(proposal.with_suffix(".signed")).statement == TWO.encoded
    proposal.write_bytes(FORK.encoded)
    with pytest.raises(ProtocolError, match="a fork"):
        fedsys(str(proposal))
