"""What a member must never do twice, as data: one mark for each job, and how marks are merged.

Marks are kept in the durable store and with the sealing keys. Whichever copy somebody put back,
the other still knows: a member acts on the union of both.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from secure_agg.errors import StateError
from secure_agg.store import pack_fields, unpack_fields

__all__ = ["Mark", "Marks"]

_MAGIC = b"secure_agg marks 2\n"
_HEAD = struct.Struct("<32sQ32sIIII")
_ENDORSED = struct.Struct("<I32s")
_NUMBER = struct.Struct("<I")
_LAST = struct.Struct("<II")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What was done in the last round of one job.

    Attributes:
        round: Its number.
        session: The session that was entered in it; 32 bytes. There is one a round.
        uploads: One more than the highest sequence number of an upload made in it.
        endorsed: Digest of the endorsed set, for each buffer.
        answered: Buffers for which the answer was given.
        last: Highest sequence number of each dealer in an endorsed set. Kept in epochs, where sets
            must be disjoint.
    """

    round: int
    session: bytes
    uploads: int = 0
    endorsed: Mapping[int, bytes] = field(default_factory=dict)
    answered: frozenset[int] = frozenset()
    last: Mapping[int, int] = field(default_factory=dict)

    def merge(self, other: Mark) -> Mark:
        """Return the mark of somebody who did what either of two marks says.

        Of two sessions in one round the one with an upload is kept: this member did not enter the
        other, a clone of it did.
        """
        if self.round != other.round:
            return self if self.round > other.round else other
        if self.session != other.session:
            first = (self.uploads, bool(self.endorsed))
            return self if first >= (other.uploads, bool(other.endorsed)) else other
        last = dict(self.last)
        for dealer, sequence in other.last.items():
            last[dealer] = max(sequence, last.get(dealer, -1))
        return Mark(
            round=self.round,
            session=self.session,
            uploads=max(self.uploads, other.uploads),
            endorsed={**other.endorsed, **self.endorsed},
            answered=self.answered | other.answered,
            last=last,
        )


@dataclass(frozen=True, kw_only=True)
class Marks:
    """All of a member's marks.

    Attributes:
        jobs: By the SHA-256 of the job's name.
        participations: Uploads in all rounds of all jobs.
    """

    jobs: Mapping[bytes, Mark] = field(default_factory=dict)
    participations: int = 0

    def merge(self, other: Marks) -> Marks:
        """Return the union of two copies."""
        if other is self:
            return self
        jobs = dict(self.jobs)
        for job, mark in other.jobs.items():
            jobs[job] = jobs[job].merge(mark) if job in jobs else mark
        count = max(self.participations, other.participations)
        return Marks(jobs=jobs, participations=count)

    def put(self, job: bytes, mark: Mark, participations: int) -> Marks:
        """Return these marks with one replaced."""
        return Marks(jobs={**self.jobs, job: mark}, participations=participations)

    def pack(self) -> bytes:
        """Encode."""
        fields = [self.participations.to_bytes(8, "little")]
        for job, mark in sorted(self.jobs.items()):
            endorsed = [_ENDORSED.pack(b, mark.endorsed[b]) for b in sorted(mark.endorsed)]
            answered = [_NUMBER.pack(b) for b in sorted(mark.answered)]
            last = [_LAST.pack(d, mark.last[d]) for d in sorted(mark.last)]
            counts = len(endorsed), len(answered), len(last)
            head = _HEAD.pack(job, mark.round, mark.session, mark.uploads, *counts)
            fields.append(b"".join((head, *endorsed, *answered, *last)))
        return pack_fields(_MAGIC, (fields[0], b"".join(fields[1:])))

    @staticmethod
    def unpack(data: bytes) -> Marks:
        """Decode what `pack` wrote.

        Raises:
            StateError: On anything else.
        """
        try:
            count, body = unpack_fields(_MAGIC, data)
            jobs, at = {}, 0
            while at < len(body):
                job, round_, session, uploads, *counts = _HEAD.unpack_from(body, at)
                at += _HEAD.size
                parts = []
                for layout, rows in zip((_ENDORSED, _NUMBER, _LAST), counts, strict=True):
                    end = at + rows * layout.size
                    parts.append(list(layout.iter_unpack(body[at:end])))
                    at = end
                if at > len(body):
                    raise StateError("stored marks that end before their rows")
                jobs[job] = Mark(
                    round=round_,
                    session=session,
                    uploads=uploads,
                    endorsed=dict(parts[0]),
                    answered=frozenset(row[0] for row in parts[1]),
                    last=dict(parts[2]),
                )
        except (ValueError, struct.error) as error:
            raise StateError(f"stored marks that do not fit: {error}") from None
        return Marks(jobs=jobs, participations=int.from_bytes(count, "little"))
