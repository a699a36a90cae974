"""Where a participant stands: all that a stage changes, kept apart so that a stage can be undone.

A participant works on a copy and adopts it when the stage is done and, with a store, written down;
a refusal or a store that fails leaves what was there before.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secure_agg import keys
from secure_agg.dealing import Dealing
from secure_agg.record import Marks, Record
from secure_agg.ring import Ring, Vector
from secure_agg.stages import ParticipantStage
from secure_agg.store import present
from secure_agg.transcript import Cohort, Dealt, View, session_hash

if TYPE_CHECKING:
    from secure_agg.messages import Begin
    from secure_agg.params import SecAggParams
    from secure_agg.roster import Roster
    from secure_agg.shared import Shared

__all__ = ["Progress"]


@dataclass(kw_only=True, slots=True, repr=False)
class Progress:
    """One participant between two messages. No stage changes a value in place; it sets another.

    Attributes:
        marks: The high-water mark of each job.
        participations: Rounds, of all jobs, in which this member uploaded.
        stage: What it sent last.
        attempt: Which drawing of the graph this is.
        session: Stands for everything agreed upon before the first message.
        secrets: The round's secrets; None before the round and after the release.
        cohort: The adverts of stage 0.
        view: The cohort with its graph.
        own_dealt: Own row of stage 1.
        dealing: What this member does with its neighbours; None once its input is masked.
        dealt: Stage 1's set.
        held: Opened shares by dealer.
        alive: The alive set that was signed.
        signed: Its digest.
        vector: The input while it waits to be masked.
        last: Hash of the message answered last, and the answer; only where there is a store.
    """

    marks: Marks = field(default_factory=dict)
    participations: int = 0
    stage: ParticipantStage = ParticipantStage.IDLE
    attempt: int = 0
    session: bytes = bytes(32)
    secrets: keys.RoundSecrets | None = None
    cohort: Cohort | None = None
    view: View | None = None
    own_dealt: bytes = b""
    dealing: Dealing | None = None
    dealt: Dealt | None = None
    held: dict[int, bytes] = field(default_factory=dict)
    alive: list[int] = field(default_factory=list)
    signed: bytes | None = None
    vector: Vector | None = None
    last: tuple[bytes, bytes] | None = None

    def copy(self) -> Progress:
        """For a stage to work on."""
        return dataclasses.replace(self)

    def record(self, *, id: int, begin: Begin, ring: Ring) -> Record:
        """What a store keeps of it."""
        secrets, cohort, view, dealt = self.secrets, self.cohort, self.view, self.dealt
        return Record(
            marks=self.marks,
            participations=self.participations,
            id=id,
            begin=begin,
            stage=self.stage.value,
            seed=b"" if secrets is None else secrets.seed,
            cohort=b"" if cohort is None else cohort.body,
            nonces=b"" if view is None else view.nonces,
            own_dealt=self.own_dealt,
            dealt=b"" if dealt is None else dealt.body,
            held=self.held,
            alive=self.alive,
            signed=self.signed or b"",
            vector=None if self.vector is None else ring.pack(self.vector),
            last=self.last,
        )

    @staticmethod
    def of(
        record: Record,
        *,
        roster: Roster,
        params: SecAggParams,
        length: int,
        ring: Ring,
        shared: Shared | None,
    ) -> Progress:
        """Restore what `record` keeps.

        Raises:
            SecureAggError: It does not fit the roster or the parameters.
            ValueError: It does not fit itself.
        """
        self = Progress(
            marks=dict(record.marks),
            participations=record.participations,
            stage=ParticipantStage(record.stage),
            attempt=record.begin.attempt,
            session=session_hash(record.begin),
            own_dealt=record.own_dealt,
            held=dict(record.held),
            alive=record.alive,
            signed=record.signed or None,
            last=record.last,
        )
        if record.seed:
            self.secrets = keys.RoundSecrets(record.seed)
        if record.cohort:
            self.cohort = Cohort.read(roster, params, self.session, record.cohort, shared)
        if record.nonces:
            self.view = View.read(present(self.cohort), params, record.nonces, shared)
        if record.dealt:
            self.dealt = Dealt.read(present(self.view), params, record.dealt, shared)
        elif self.view is not None:
            self.dealing = Dealing(
                me=record.id,
                own=present(self.secrets),
                view=self.view,
                threshold=params.threshold,
                shared=shared,
            )
        if record.vector is not None:
            self.vector = ring.unpack(record.vector, length).copy()
        return self
