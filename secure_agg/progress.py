"""Where a member stands in its round, as a value: replaced as a whole, or not at all."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from secure_agg.checking import Held
from secure_agg.errors import StateError
from secure_agg.messages import Opening
from secure_agg.prekeys import Bound
from secure_agg.roster import Roster
from secure_agg.session import SET_ROW, Session
from secure_agg.shared import Shared
from secure_agg.stages import MemberStage
from secure_agg.store import pack_fields, unpack_fields

__all__ = ["Progress", "Work"]

_MAGIC = b"secure_agg member 2\n"


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What a committee member does for one sum.

    Attributes:
        held: The checked shares.
        chosen: Rows of the endorsed set; empty before.
    """

    held: Held
    chosen: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """A member's state in one round; `private` and the shares are secret.

    Attributes:
        stage: What was sent last.
        session: The round, once its opening was accepted.
        public: The sealing key that the session names for this member, or empty.
        private: Its private half; empty where it is not held, or erased.
        works: By the number of the sum; gone once it is answered.
        last: Hash of the message answered last, and the reply.
    """

    stage: MemberStage = MemberStage.IDLE
    session: Session | None = None
    public: bytes = b""
    private: bytes = field(default=b"", repr=False)
    works: Mapping[int, Work] = field(default_factory=dict, repr=False)
    last: tuple[bytes, bytes] | None = field(default=None, repr=False)

    def pack(self) -> bytes:
        """Encode all but the keys and the last reply, for the volatile store; secret."""
        opening = b"" if self.session is None else Opening.of(self.session).body()
        question = b"" if self.last is None else self.last[0]
        fields = [bytes((self.stage,)), opening, question]
        for number in sorted(self.works):
            work, held = self.works[number], self.works[number].held
            fields += (
                number.to_bytes(4, "little"),
                held.rows,
                held.shares.astype("<u2").tobytes(),
                np.array(work.chosen, "<u4").tobytes(),
            )
        return pack_fields(_MAGIC, fields)

    @staticmethod
    def unpack(bound: Bound, *, roster: Roster, shared: Shared | None) -> Progress:
        """Decode what `pack` wrote, with the keys and the reply that were kept with it.

        Raises:
            StateError: On anything else.
            SecureAggError: The opening in it is of another roster.
        """
        stage, body, question, *rest = unpack_fields(_MAGIC, bound.work)
        if len(rest) % 4:
            raise StateError("a stored round whose fields do not fill it")
        session = Opening.parse(body).session(roster, shared) if body else None
        works = {}
        if rest and session is None:
            raise StateError("a stored round with shares and without an opening")
        try:
            for at in range(0, len(rest), 4):
                number, rows, shares, chosen = rest[at : at + 4]
                dealers = list(SET_ROW.iter_unpack(rows))
                columns = 0 if session is None else session.params.columns
                held = Held(
                    dealers=tuple(row[0] for row in dealers),
                    sequences=tuple(row[1] for row in dealers),
                    rows=rows,
                    shares=np.frombuffer(shares, "<u2").reshape(len(dealers), columns),
                )
                picked = tuple(np.frombuffer(chosen, "<u4").tolist())
                works[int.from_bytes(number, "little")] = Work(held=held, chosen=picked)
            return Progress(
                stage=MemberStage(stage[0]),
                session=session,
                public=bound.public,
                private=bound.private,
                works=works,
                last=(question, bound.reply) if question else None,
            )
        except (ValueError, IndexError, struct.error) as error:
            raise StateError(f"a stored round that does not fit: {error}") from None
