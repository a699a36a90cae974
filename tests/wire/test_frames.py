"""Frames: whatever was split is put together; whatever is wrong is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsys.errors import ProtocolError
from fedsys.wire import fleet_pb2
from fedsys.wire.frames import Assembler, split


def frames(parcel: int, data: bytes, chunk: int = 4) -> list[fleet_pb2.Frame]:
    return [fleet_pb2.Frame.FromString(each) for each in split(parcel, data, chunk=chunk)]


def receive(sent: list[fleet_pb2.Frame]) -> None:
    assembler = Assembler(limit=100)
    for frame in sent:
        assembler.add(frame)


@given(st.lists(st.binary(max_size=50), max_size=6), st.integers(1, 9))
def test_parcels_arrive_whole_and_in_order(parcels: list[bytes], chunk: int) -> None:
    assembler, found = Assembler(limit=50), []
    for number, parcel in enumerate(parcels):
        for frame in frames(number, parcel, chunk):
            whole = assembler.add(frame)
            if whole is not None:
                found.append(whole)
    assert found == parcels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: setattr(f[0], "data", b"abcX"), "checksum"),
        (lambda f: setattr(f[0], "parcel", 1), "expected parcel 0"),
        (lambda f: f.reverse(), "expected parcel 0 at 0"),
        (lambda f: f.pop(0), "expected parcel 0 at 0"),
        (lambda f: f.insert(1, f[0]), "expected parcel 0 at 4"),
        (lambda f: setattr(f[1], "size", 11), "disagree about its size"),
        (lambda f: setattr(f[0], "size", 3), "disagree about its size"),
        (lambda f: setattr(f[0], "size", 101), "at most 100"),
        (lambda f: setattr(f[0], "data", b""), "empty frame"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(change: object, message: str) -> None:
    sent = frames(0, b"abcdefghij")
    assert callable(change)
    change(sent)
    with pytest.raises(ProtocolError, match=message):
        receive(sent)
