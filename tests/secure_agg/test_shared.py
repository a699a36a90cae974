"""Work that members of one process share: a hit is proved by the complete input."""

from __future__ import annotations

from secure_agg.shared import Large, Shared


def test_large_keys_are_compared_whole() -> None:
    middle = bytearray(1000)
    middle[500] = 1
    one, other = Large(bytes(1000)), Large(bytes(middle))
    assert hash(one) == hash(other)
    assert one != other
    assert one == Large(bytes(1000))
    assert one != bytes(1000)
    memo = Shared()
    assert memo.get(("rows", one), lambda: 1) == 1
    assert memo.get(("rows", other), lambda: 2) == 2
    assert memo.get(("rows", Large(bytes(1000))), lambda: 3) == 1
