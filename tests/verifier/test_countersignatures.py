"""The bytes under an agent's countersignature, put together from LEDGER.md."""

from __future__ import annotations

from fedsys.wire.countersign import message


def test_parts_are_framed_as_the_document_says() -> None:
    job, head = bytes(range(32)), bytes(range(32, 64))
    framed = (
        b"fedsys countersignature v1\x00"
        + (32).to_bytes(4, "big")
        + job
        + (258).to_bytes(4, "big")
        + (32).to_bytes(4, "big")
        + head
        + (3).to_bytes(4, "big")
    )
    assert message(job=job, round=258, ledger_head=head, participations=3) == framed
