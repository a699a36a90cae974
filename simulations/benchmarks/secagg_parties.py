"""Parties of our secure aggregation, timed one by one; see `secure_aggregation`."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from secure_agg import (
    Aggregator,
    Identity,
    Member,
    Roster,
    RoundContext,
    SealingKeys,
    SecAggParams,
    Shared,
    draw_committee,
)
from secure_agg.aggregator import open_session, openings
from secure_agg.collection import Collection as Uploads
from secure_agg.errors import InputError
from secure_agg.session import endorsement_digest

__all__ = ["Device", "Fleet", "Played", "device", "peak_mb", "play", "timed"]


def timed(action: Callable[[], object]) -> float:
    """Return the CPU seconds that an action takes."""
    start = time.process_time()
    action()
    return time.process_time() - start


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MiB.

    `getrusage` also counts what the parent held when it started this process; Linux knows better.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1 << 20 if sys.platform == "darwin" else 1 << 10)


@dataclass
class Fleet:
    """Members with keys, and what the server holds before a round.

    Attributes:
        params: of the round.
        shared: work that members share, but for those that are timed as devices.
        vector: what every member provides; so many of them fit the ring.
    """

    params: SecAggParams
    shared: Shared = field(default_factory=Shared)
    identities: dict[int, Identity] = field(init=False)
    roster: Roster = field(init=False)
    context: RoundContext = field(init=False)
    sealing: dict[int, SealingKeys] = field(init=False)
    prekeys: dict[int, bytes] = field(init=False)
    vector: np.ndarray[tuple[int], np.dtype[np.uint32]] = field(init=False)

    def __post_init__(self) -> None:
        self.identities = {id: Identity.generate() for id in range(self.params.n)}
        self.roster = Roster({id: each.public_bytes for id, each in self.identities.items()})
        self.context = RoundContext(job=b"benchmark", round=1)
        drawn = draw_committee(
            sorted(self.identities), self.params.committee, self.context, self.roster.hash
        )
        self.sealing = {id: SealingKeys(self.identities[id]) for id in drawn}
        self.prekeys = {id: keys.issue(1)[0] for id, keys in self.sealing.items()}
        least = 1 << max(1, self.params.modulus_bits - 1 - self.params.n.bit_length())
        self.vector = np.arange(self.params.dimension, dtype=np.uint32) % np.uint32(least)

    def member(self, id: int, *, alone: bool) -> Member:
        """One member; `alone` it shares no work with anybody, like a device."""
        return Member(
            identity=self.identities[id],
            id=id,
            roster=self.roster,
            params=self.params,
            context=self.context,
            sealing=self.sealing.get(id) or SealingKeys(self.identities[id]),
            shared=None if alone else self.shared,
        )


def enter(member: Member, opening: bytes) -> float:
    """CPU seconds of a member's check of a round, for which it has no vector yet."""

    def check() -> None:
        with suppress(InputError):
            member.handle(opening)

    return timed(check)


@dataclass(frozen=True, kw_only=True)
class Played:
    """CPU seconds of one round.

    Attributes:
        server: everything that the aggregator did, hashing and signatures included.
        entry: a device's check of the round and of its committee's keys, before it trains.
        upload: its upload, from the trained vector on.
        device: all that this device, which is on the committee, did.
        everybody: all parties in one process, sharing work, this device left out.
    """

    server: float
    entry: float
    upload: float
    device: float
    everybody: float


def play(params: SecAggParams, lost: Collection[int] = (), *, apart: bool = True) -> Played:
    """Run a round in which `lost` vanish before they upload.

    Args:
        params: of the round.
        lost: ids.
        apart: whether one committee member is timed as a device.

    Raises:
        RuntimeError: the sum is wrong.
    """
    fleet = Fleet(params)
    aggregator = Aggregator(
        roster=fleet.roster,
        params=params,
        context=fleet.context,
        cohort=fleet.identities,
        prekeys=fleet.prekeys,
    )
    alone = max(id for id in fleet.prekeys if id not in lost) if apart else -1
    members: dict[int, Member] = {}
    server = entry = upload = device = 0.0
    began = start = time.process_time()
    messages: Mapping[int, bytes] = aggregator.begin()
    server += time.process_time() - start
    while messages:
        for id in messages:
            if id in lost:
                continue
            start = time.process_time()
            message = messages[id]
            server += time.process_time() - start
            start = time.process_time()
            if id not in members:
                members[id] = fleet.member(id, alone=id == alone)
                if id == alone:
                    entry = enter(members[id], message)
                members[id].provide(fleet.vector)
            reply = members[id].handle(message)
            if id == alone:
                device += time.process_time() - start
                upload = upload or device - entry
            if id not in fleet.prekeys:
                del members[id]
            start = time.process_time()
            aggregator.receive(id, reply)
            server += time.process_time() - start
        start = time.process_time()
        messages = aggregator.close_stage()
        server += time.process_time() - start
    everybody = time.process_time() - began - device
    result = aggregator.result
    expected = fleet.vector.astype(np.uint64) * np.uint64(len(result.included))
    expected &= np.uint64((1 << params.modulus_bits) - 1)
    if len(result.included) != params.n - len(lost) or not np.array_equal(result.total, expected):
        raise RuntimeError("the sum is wrong: nothing that follows would mean anything")
    return Played(server=server, entry=entry, upload=upload, device=device, everybody=everybody)


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one device sends, receives and computes in a round; CPU in milliseconds, sizes in bytes.

    Attributes:
        n: members invited.
        committee: of them on the committee.
        entry_ms: the check of the round and of its committee's keys, before training.
        upload_ms: the upload, after which an ordinary device is done.
        upload_bytes: sent.
        opening_bytes: received, without the model.
        duties_ms: what a committee member does besides: check, endorse, answer.
        duties_sent: bytes.
        duties_received: bytes.
    """

    n: int
    committee: int
    entry_ms: float
    upload_ms: float
    upload_bytes: int
    opening_bytes: int
    duties_ms: float
    duties_sent: int
    duties_received: int


def device(n: int, dimension: int, bits: int, *, dealers: tuple[int, int] = (24, 72)) -> Device:
    """Time a device in a cohort of n with a tenth corrupt and a tenth lost.

    A committee member's duties are measured for two numbers of dealers and go on in a straight line
    to n; so they are at any n, for nothing in them but the dealers' rows grows with it.
    """
    params = SecAggParams.derive(
        n=n, corrupt=0.1, dropout=0.1, modulus_bits=bits, dimension=dimension
    )
    few, many = (min(count, n) for count in dealers)
    first, second = _measured(params, few), _measured(params, many)
    slope = (n - few) / max(many - few, 1)
    duties = [a + (b - a) * slope for a, b in zip(first[4:], second[4:], strict=True)]
    return Device(
        n=n,
        committee=params.committee,
        entry_ms=round(1e3 * min(first[0], second[0]), 2),
        upload_ms=round(1e3 * min(first[1], second[1]), 2),
        upload_bytes=round(first[2]),
        opening_bytes=round(first[3]),
        duties_ms=round(1e3 * duties[0], 2),
        duties_sent=round(duties[1]),
        duties_received=round(duties[2]),
    )


def _measured(params: SecAggParams, dealers: int) -> tuple[float, ...]:
    """Of a committee member in a round with so many dealers: seconds of its entry and its upload,
    bytes of the upload and the opening; seconds, bytes sent and bytes received of its duties."""
    fleet = Fleet(dataclasses.replace(params, min_included=2))
    session = open_session(
        roster=fleet.roster,
        params=fleet.params,
        context=fleet.context,
        cohort=fleet.identities,
        prekeys=fleet.prekeys,
        blamed={},
        shared=fleet.shared,
    )
    opening, uploads = openings(session)[0], Uploads(session, 0, fleet.shared)
    me = max(session.committee)
    for id in [each for each in fleet.identities if each != me][: dealers - 1]:
        dealer = fleet.member(id, alone=False)
        dealer.provide(fleet.vector)
        uploads.take_upload(id, dealer.handle(opening), 0)
    member = fleet.member(me, alone=True)
    entry = enter(member, opening)
    member.provide(fleet.vector)
    start = time.process_time()
    upload = member.handle(opening)
    uploading = time.process_time() - start
    uploads.take_upload(me, upload, 0)
    received, sent, seconds = [uploads.deliveries((me,))[me]], [], 0.0
    while True:
        start = time.process_time()
        sent.append(member.handle(received[-1]))
        seconds += time.process_time() - start
        if len(received) == 1:
            received.append(uploads.propose())
        elif len(received) == 2:
            signed = endorsement_digest(uploads._digest)
            received.append(
                uploads.certify({id: fleet.identities[id].sign(signed) for id in session.committee})
            )
        else:
            break
    sizes = sum(map(len, sent)), sum(map(len, received))
    return entry, uploading, len(upload), len(opening), seconds, *sizes
