"""What a device is sent and keeps of the roster, in a fleet whose devices enrol one by one.

    python -m simulations.benchmarks.rosters

The first device is sent every version. It is compared with whole lists, of which each version would
be one if it were not sent as what it changes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.wire import fleet_pb2
from fedsys.wire.roster import RosterStatement, SignedStatement, signed_message
from fedsys.wire.roster_chain import RosterChain, shortest

__all__ = ["Cost", "measure"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one device's rosters cost.

    Attributes:
        devices: that enrolled, one after the other.
        whole: bytes of the messages, had each version been a whole list.
        first: bytes that the first device was sent.
        newest: bytes that the last device was sent.
        seconds: to verify all of the first device's versions, as at each start.
    """

    devices: int
    whole: int
    first: int
    newest: int
    seconds: float


def measure(devices: int) -> Cost:
    """Enrol so many devices."""
    authority = Ed25519PrivateKey.generate()
    news: list[SignedStatement] = []
    whole, before = 0, None
    for statement in _versions(devices):
        signature = authority.sign(signed_message(statement.encoded))
        full = SignedStatement(statement=statement.encoded, signature=signature)
        whole += _size(full)
        text = shortest(before, statement)
        news.append(SignedStatement(statement=text, signature=signature))
        before = statement
    chain = RosterChain(key=authority.public_key().public_bytes_raw())
    began = time.perf_counter()
    chain.extend(news)
    return Cost(
        devices=devices,
        whole=whole,
        first=sum(map(_size, news)),
        newest=_size(full),
        seconds=time.perf_counter() - began,
    )


def _versions(devices: int) -> Iterator[RosterStatement]:
    members: dict[int, bytes] = {}
    previous = b""
    seed = os.urandom(16)
    for node in range(1, devices + 1):
        members = {**members, node: hashlib.sha256(seed + node.to_bytes(4)).digest()}
        statement = RosterStatement(version=node, previous=previous, members=members)
        previous = statement.hash
        yield statement


def _size(signed: SignedStatement) -> int:
    message = fleet_pb2.SignedRoster(statement=signed.statement, signature=signed.signature)
    return int(message.ByteSize())


def main() -> None:
    """Print a table."""
    print("| devices | as whole lists | first device | last device | to verify |")
    print("| --- | --- | --- | --- | --- |")
    for devices in (10, 100, 1000):
        cost = measure(devices)
        sizes = " | ".join(
            f"{each / 1e3:,.1f} kB" for each in (cost.whole, cost.first, cost.newest)
        )
        print(f"| {devices:,} | {sizes} | {cost.seconds:.2g} s |")


if __name__ == "__main__":
    main()
