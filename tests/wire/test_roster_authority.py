"""What an authority signs: every key is shown, and a fork is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.errors import ConfigError, ProtocolError
from fedsys.wire.roster import RosterChain, RosterStatement
from fedsys.wire.roster_authority import RosterAuthority, decode_signed, encode_signed
from secure_agg import Identity

KEYS = {node: Identity.generate().public_bytes for node in range(1, 6)}


def statement(before: RosterStatement | None, *nodes: int, colluders: int = 0) -> RosterStatement:
    return RosterStatement(
        version=1 if before is None else before.version + 1,
        previous=b"" if before is None else before.hash,
        members={node: KEYS[node] for node in nodes},
        colluders=colluders,
    )


class Desk:
    """An authority's machine, at which it sits down again and again."""

    def __init__(self, folder: Path) -> None:
        self.private = Ed25519PrivateKey.generate()
        self.record = folder / "authority.key.last"

    def sit(self, previous: Path | None = None) -> RosterAuthority:
        return RosterAuthority(self.private, self.record, previous=previous)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_one_list_after_the_other_is_signed_and_devices_take_them(desk: Desk) -> None:
    one = statement(None, 1, 2)
    two = statement(one, 1, 2, 3)
    signed = [desk.sit().sign(one), desk.sit().sign(two)]
    chain = RosterChain(key=desk.private.public_key().public_bytes_raw())
    assert chain.extend(signed) == [one, two]
    assert desk.sit().last == two
    again = desk.sit().sign(two)  # the file was lost on its way
    assert again == signed[1]
    assert decode_signed(encode_signed(again)) == again


@pytest.mark.parametrize("fork", ["same version", "older version", "other parent", "gap", "key"])
def test_a_fork_of_what_was_signed_is_refused(desk: Desk, fork: str) -> None:
    one = statement(None, 1, 2)
    two = statement(one, 1, 2, 3)
    for each in (one, two):
        desk.sit().sign(each)
    other = statement(None, 1, 2, 4)
    proposed = {
        "same version": statement(one, 1, 2, 4),
        "older version": other,
        "other parent": statement(statement(other, 1, 2, 3), 1, 2, 3),
        "gap": statement(statement(two, 1), 1),
        "key": RosterStatement(
            version=3, previous=two.hash, members={1: KEYS[5], 2: KEYS[2], 3: KEYS[3]}
        ),
    }[fork]
    with pytest.raises(ConfigError, match="nothing was signed"):
        desk.sit().sign(proposed)
    assert desk.sit().last == two


def test_every_key_and_every_change_is_shown(desk: Desk) -> None:
    one = statement(None, 1, 2)
    desk.sit().sign(one)
    lines = list(desk.sit().describe(statement(one, 2, 3, colluders=1)))
    assert lines[0].startswith("version 2, ")
    assert "2 members, 1 of them expected to collude" in lines[0]
    assert lines[1] == "colluders were 0"
    assert lines[2:] == [
        f"- node 1      {KEYS[1].hex()}",
        f"  node 2      {KEYS[2].hex()}",
        f"+ node 3      {KEYS[3].hex()}",
    ]


def test_a_lost_record_is_not_begun_anew(desk: Desk, tmp_path: Path) -> None:
    one = statement(None, 1, 2)
    two = statement(one, 1, 2, 3)
    last = tmp_path / "one.signed"
    last.write_bytes(encode_signed(desk.sit().sign(one)))
    desk.record.unlink()
    with pytest.raises(ConfigError, match="--previous"):
        desk.sit().sign(two)
    desk.sit(previous=last).sign(two)
    assert desk.sit().last == two


def test_a_record_that_this_key_did_not_sign_is_refused(desk: Desk, tmp_path: Path) -> None:
    other = Desk(tmp_path / "other")
    (tmp_path / "other").mkdir()
    other.sit().sign(statement(None, 1, 2))
    with pytest.raises(ConfigError, match="not signed with this key"):
        desk.sit(previous=other.record)
    desk.record.write_bytes(b"{}")
    with pytest.raises(ConfigError, match="not a signed roster"):
        desk.sit()


def test_the_record_is_written_before_a_signature_is_handed_out(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            desk.sit().sign(statement(None, 1, 2))
    assert desk.sit().last is None


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b'{"statement":1,"signature":""}', b"[" * 9999]
)
def test_what_is_no_signed_list_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a signed roster"):
        decode_signed(text)
