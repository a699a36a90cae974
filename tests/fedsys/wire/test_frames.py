"""Frames: whatever was split is put together; whatever is wrong is refused."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsys.errors import ProtocolError
from fedsys.wire.frames import CHUNK, Assembler, Frame, split


def frames(parcel: int, data: bytes, chunk: int = 4) -> list[bytes]:
    return list(split(parcel, data, chunk=chunk))


def receive(sent: list[bytes]) -> None:
    assembler = Assembler(limit=100, least=4)
    for frame in sent:
        assembler.add(frame)


def change(sent: list[bytes], at: int, **values: Any) -> None:
    sent[at] = replace(Frame.decode(sent[at]), **values).encode()


def test_a_frame_is_these_bytes() -> None:
    (frame,) = split(1, b"ab")
    assert frame.hex() == ("0100000000000000020000000000000000000000000000006d48839e6162")
    assert Frame.decode(frame) == Frame(parcel=1, size=2, offset=0, crc32=0x9E83486D, data=b"ab")


@given(st.lists(st.binary(max_size=50), max_size=6), st.integers(1, 9))
def test_parcels_arrive_whole_and_in_order(parcels: list[bytes], chunk: int) -> None:
    assembler, found = Assembler(limit=50, least=1), []
    for number, parcel in enumerate(parcels):
        for frame in frames(number, parcel, chunk):
            whole = assembler.add(frame)
            if whole is not None:
                found.append(whole)
    assert found == parcels


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: change(f, 0, data=b"abcX"), "checksum"),
        (lambda f: change(f, 0, crc32=0), "checksum"),
        (lambda f: change(f, 0, parcel=1), "expected parcel 0"),
        (lambda f: f.reverse(), "expected parcel 0 at 0"),
        (lambda f: f.pop(0), "expected parcel 0 at 0"),
        (lambda f: f.insert(1, f[0]), "expected parcel 0 at 4"),
        (lambda f: change(f, 1, size=11), "disagree about its size"),
        (lambda f: change(f, 0, size=3), "disagree about its size"),
        (lambda f: change(f, 0, size=101), "at most 100"),
        (lambda f: change(f, 0, data=b""), "empty frame"),
        (lambda f: f.insert(0, b""), "a frame of 0 bytes: its head takes 28"),
        (lambda f: f.insert(0, f[0][:27]), "a frame of 27 bytes"),
        (lambda f: f.append(b"abcd" * 8), "expected parcel 1 at 0"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(
    spoil: Callable[[list[bytes]], object], message: str
) -> None:
    sent = frames(0, b"abcdefghij")
    spoil(sent)
    with pytest.raises(ProtocolError, match=message):
        receive(sent)


def test_many_small_frames_are_refused_at_the_first() -> None:
    """Two bytes a frame would be held in ten million objects for 20 MiB."""
    assembler = Assembler(limit=20 << 20)
    crc32 = zlib.crc32(b"xx")
    sent = Frame(parcel=0, size=20 << 20, offset=0, crc32=crc32, data=b"xx").encode()
    with pytest.raises(ProtocolError, match="at least 16384 are sent before the last"):
        assembler.add(sent)
    assembler = Assembler(limit=20 << 20)
    data = bytes(CHUNK + 1)
    found = [assembler.add(each) for each in split(0, data)]
    assert found == [None, data]


def test_the_limit_goes_by_how_a_parcel_begins() -> None:
    def limit(begins: bytes) -> int:
        return 8 if begins.startswith(b"a") else 4

    assembler = Assembler(limit=limit, least=4)
    assert [assembler.add(each) for each in frames(0, b"abcdefgh")] == [None, b"abcdefgh"]
    with pytest.raises(ProtocolError, match="at most 4"):
        assembler.add(frames(1, b"bcdefgh")[0])


def test_what_is_no_longer_wanted_passes_without_being_held() -> None:
    """An upload that was on its way when its round was closed ends nobody's session."""
    assembler = Assembler(limit=4, passed=10, least=4)
    for frame in frames(0, b"abcdefghij"):
        assert assembler.add(frame) is None
        assert not assembler._parts
    assert assembler.parcels == 1
    assert assembler.add(frames(1, b"next")[0]) == b"next"
    with pytest.raises(ProtocolError, match="at most 4"):
        assembler.add(frames(2, b"abcdefghijk")[0])
