"""The server's opening message: everything that a member checks before it uploads."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from secure_agg.errors import MessageError, ParameterError
from secure_agg.params import PARAMS_SIZE, SecAggParams
from secure_agg.prekeys import PREKEY_SIZE
from secure_agg.roster import Roster
from secure_agg.session import MAX_NAME, RoundContext, Session
from secure_agg.shared import Shared

__all__ = ["MAX_NAME", "OPENING", "SEAT", "Opening", "increasing"]

OPENING: Final = struct.Struct(f"<QI32s{PARAMS_SIZE}sBBB")
SEAT: Final = struct.Struct("<IB")


def increasing(ids: Sequence[int], what: str) -> None:
    """Raise MessageError where an id is followed by a lower one; names ``what``."""
    if any(a > b for a, b in itertools.pairwise(ids)):
        raise MessageError(f"{what}: the ids do not increase")


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The server's opening: the whole context, to be compared with one's own.

    Attributes:
        context: Job, round, buffers, model and policy.
        roster_hash: 32 bytes.
        params: Of the round.
        cohort: Increasing ids of those invited.
        committee: Increasing ids, by position.
        prekeys: Signed sealing key of each position, or empty.
    """

    context: RoundContext
    roster_hash: bytes
    params: SecAggParams
    cohort: tuple[int, ...]
    committee: tuple[int, ...]
    prekeys: tuple[bytes, ...]

    @staticmethod
    def of(session: Session) -> Opening:
        """Return the opening of a session."""
        return Opening(
            context=session.context,
            roster_hash=session.roster.hash,
            params=session.params,
            cohort=session.cohort,
            committee=session.committee,
            prekeys=session.prekeys,
        )

    def session(self, roster: Roster, shared: Shared | None = None) -> Session:
        """Return the session that this opens, with every check that it takes.

        Raises:
            SecureAggError: As `Session.build`.
        """
        return Session.build(
            params=self.params,
            context=self.context,
            roster=roster,
            cohort=self.cohort,
            committee=self.committee,
            prekeys=self.prekeys,
            shared=shared,
        )

    def body(self) -> bytes:
        """Encode."""
        names = (self.context.job, self.context.model_hash, self.context.policy)
        head = OPENING.pack(
            self.context.round,
            self.context.buffers,
            self.roster_hash,
            self.params.encode(),
            *map(len, names),
        )
        parts = [head, *names, struct.pack(f"<{len(self.cohort)}I", *self.cohort)]
        for member, prekey in zip(self.committee, self.prekeys, strict=True):
            parts += (SEAT.pack(member, bool(prekey)), prekey)
        return b"".join(parts)

    @staticmethod
    def parse(body: bytes) -> Opening:
        """Decode strictly; the parameters are checked by their own constructor.

        Raises:
            MessageError: On a wrong size, ids out of order or parameters that cannot work.
        """
        if len(body) < OPENING.size:
            raise MessageError(f"an OPENING message of {len(body)} bytes")
        round_, buffers, roster_hash, raw, *sizes = OPENING.unpack_from(body)
        at, names = OPENING.size, []
        for size in sizes:
            names.append(body[at : at + size])
            at += size
        try:
            params = SecAggParams.decode(raw)
            context = RoundContext(
                job=names[0],
                round=round_,
                model_hash=names[1],
                policy=names[2],
                buffers=buffers,
            )
        except ParameterError as error:
            raise MessageError(f"an OPENING message with impossible values: {error}") from None
        end = at + 4 * params.n
        if end > len(body):
            raise MessageError(f"an OPENING message that ends before its {params.n} members")
        cohort = struct.unpack(f"<{params.n}I", body[at:end])
        increasing(cohort, "an OPENING message's cohort")
        committee, prekeys, at = [], [], end
        for _ in range(params.committee):
            if at + SEAT.size > len(body):
                raise MessageError("an OPENING message that ends before its committee")
            member, present = SEAT.unpack_from(body, at)
            if present > 1:
                raise MessageError(f"an OPENING message with flag {present}: 0 or 1")
            at += SEAT.size
            size = PREKEY_SIZE[params.suite] if present else 0
            committee.append(member)
            prekeys.append(body[at : at + size])
            at += size
        if at != len(body):
            raise MessageError("an OPENING message whose committee does not fill it")
        return Opening(
            context=context,
            roster_hash=roster_hash,
            params=params,
            cohort=cohort,
            committee=tuple(committee),
            prekeys=tuple(prekeys),
        )
