"""What a participant must not forget, as bytes: its store's one blob."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secure_agg import keys
from secure_agg.errors import MessageError, StateError
from secure_agg.messages import Begin, pack_ids, unpack_ids
from secure_agg.store import pack_fields, unpack_fields

__all__ = ["Marks", "Record"]

_MAGIC = b"secure_agg participant 1\n"
_MARK = 41

Marks = Mapping[bytes, tuple[int, int]]
"""The last round and attempt joined, by the SHA-256 of the job's name."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The whole of a participant; its bytes are secret until the round is over.

    Attributes:
        marks: The high-water mark of each job; never forgotten.
        participations: Rounds in which this member uploaded; never forgotten.
        id: The member's id.
        begin: What the round is about, with its attempt.
        stage: Number of the stage.
        seed: What the round's secrets grow from; empty before the round and after the release.
        cohort: Body of the COHORT message accepted, or empty, as all that follow.
        nonces: All nonces.
        own_dealt: Own row of stage 1.
        dealt: All rows of stage 1.
        held: Opened shares by dealer.
        alive: The alive set that was signed.
        signed: Its digest.
        vector: The packed input while it waits to be masked, else None.
        last: Hash of the message answered last, and the answer.
    """

    marks: Marks
    participations: int
    id: int
    begin: Begin
    stage: int
    seed: bytes = b""
    cohort: bytes = b""
    nonces: bytes = b""
    own_dealt: bytes = b""
    dealt: bytes = b""
    held: Mapping[int, bytes] = field(default_factory=dict)
    alive: list[int] = field(default_factory=list)
    signed: bytes = b""
    vector: bytes | None = None
    last: tuple[bytes, bytes] | None = None

    def __repr__(self) -> str:
        return f"Record(id={self.id}, stage={self.stage})"

    def pack(self) -> bytes:
        """Encode."""
        marks = b"".join(
            job + round_.to_bytes(8, "little") + bytes((attempt,))
            for job, (round_, attempt) in sorted(self.marks.items())
        )
        return pack_fields(
            _MAGIC,
            (
                marks,
                self.participations.to_bytes(8, "little"),
                self.id.to_bytes(4, "little"),
                self.begin.body(),
                bytes((self.stage,)),
                self.seed,
                self.cohort,
                self.nonces,
                self.own_dealt,
                self.dealt,
                b"".join(id_.to_bytes(4, "little") + self.held[id_] for id_ in self.held),
                pack_ids(self.alive),
                self.signed,
                b"" if self.vector is None else b"\1" + self.vector,
                b"" if self.last is None else b"".join(self.last),
            ),
        )

    @staticmethod
    def unpack(data: bytes) -> Record:
        """Decode what `pack` wrote.

        Raises:
            StateError: On anything else.
        """
        fields = unpack_fields(_MAGIC, data)
        try:
            marks, count, id_, begin, stage, seed, cohort, nonces, own_dealt, *rest = fields
            dealt, held, alive, signed, vector, last = rest
            step = 4 + keys.PLAIN_SIZE
            entries = [held[at : at + step] for at in range(0, len(held), step)]
            return Record(
                marks={
                    marks[at : at + 32]: (
                        int.from_bytes(marks[at + 32 : at + 40], "little"),
                        marks[at + 40],
                    )
                    for at in range(0, len(marks), _MARK)
                },
                participations=int.from_bytes(count, "little"),
                id=int.from_bytes(id_, "little"),
                begin=Begin.parse(begin),
                stage=stage[0],
                seed=seed,
                cohort=cohort,
                nonces=nonces,
                own_dealt=own_dealt,
                dealt=dealt,
                held={int.from_bytes(entry[:4], "little"): entry[4:] for entry in entries},
                alive=unpack_ids(alive, "stored alive set"),
                signed=signed,
                vector=vector[1:] if vector else None,
                last=(last[:32], last[32:]) if last else None,
            )
        except (MessageError, ValueError, IndexError) as error:
            raise StateError(f"a stored state that does not fit: {error}") from None
