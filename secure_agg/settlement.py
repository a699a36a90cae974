"""The committee's part of one sum: check, endorse, answer, as the server drives it."""

from __future__ import annotations

from collections.abc import Mapping

from secure_agg import checks
from secure_agg.collection import Collection
from secure_agg.errors import SecureAggError, StageError
from secure_agg.messages import HEADER_SIZE, NAMES, U32, Complaint, Kind, unpack_complaints
from secure_agg.result import SumResult
from secure_agg.stages import AggregatorStage

__all__ = ["Settlement"]


_Stage = AggregatorStage


class Settlement:
    """What happens to a collection once its uploads are in.

    Args:
        collection: The uploads.
        blamed: Why, for each member caught cheating; added to.
        out: Members that no longer take part; added to.
        lost: Ids that vanished, by stage; added to.

    Attributes:
        stage: ENDORSE, ANSWER or DONE.
        awaited: Kind of message that the committee owes.
        result: The sum, once it is there.
    """

    def __init__(
        self,
        collection: Collection,
        *,
        blamed: dict[int, str],
        out: set[int],
        lost: dict[str, set[int]],
    ) -> None:
        self.collection = collection
        self.stage = _Stage.ENDORSE
        self.awaited = Kind.CHECKED
        self.result: SumResult | None = None
        self._blamed = blamed
        self._out = out
        self._lost = lost
        self._expected: set[int] = set()
        self._answers: dict[int, bytes] = {}
        self._endorsements: dict[int, bytes] = {}
        self._complaints: dict[int, list[Complaint]] = {}

    @property
    def waiting(self) -> frozenset[int]:
        """Committee members whose message for this step has not come."""
        return frozenset(self._expected - self._out - set(self._answers))

    def awaits(self, member: int) -> bool:
        """Whether a member is among those that are waited for, without listing them all."""
        return member in self._expected and member not in self._out and member not in self._answers

    def start(self) -> Mapping[int, bytes]:
        """Pass the shares on to every committee member that has a key and is not blamed.

        Raises:
            ThresholdNotMet: Too few uploads are in.
        """
        self._enough("were made")
        session = self.collection.session
        members = [session.committee[seat] for seat in session.seats]
        live = tuple(member for member in members if member not in self._out)
        return self._ask(Kind.CHECKED, _Stage.ENDORSE, self.collection.deliveries(live))

    def take(self, kind: Kind, sender: int, message: bytes) -> None:
        """Take a committee member's message, of an allowed size, that is awaited.

        Raises:
            SecureAggError: It is wrong.
        """
        body = message[HEADER_SIZE:]
        (number,) = U32.unpack_from(body)
        checks.numbered(number, self.collection.number, sender, f"{NAMES[kind]} of sum")
        params, answer = self.collection.session.params, b""
        if kind is Kind.CHECKED:
            self._complaints[sender] = unpack_complaints(body)[1]
        elif kind is Kind.ENDORSEMENT:
            # A certificate takes a quorum. What else is endorsed goes nowhere, and is not verified.
            if len(self._endorsements) < params.quorum:
                self._endorsements[sender] = self.collection.take_endorsement(sender, body)
        else:
            surplus = len(self._answers) >= params.threshold
            answer = self.collection.take_answer(sender, body, surplus=surplus)
        self._answers[sender] = answer

    def close(self) -> Mapping[int, bytes]:
        """Go on with those that answered; return the next messages, none when the sum is there.

        Raises:
            ThresholdNotMet: Too few answered: this sum is given up.
            DecodingError: More answers are wrong than can be corrected: the uploads are spent.
            ResidualError: A ciphertext does not match its shares: the uploads are spent.
            StageError: It is over.
        """
        if self.stage is _Stage.DONE:
            raise StageError("no stage to close: this sum is settled")
        self._lost.setdefault(self.stage.name.lower(), set()).update(self.waiting)
        try:
            if self.awaited is Kind.CHECKED:
                return self._propose()
            if self.awaited is Kind.ENDORSEMENT:
                return self._certify()
            return self._finish()
        except SecureAggError:
            self.stage = _Stage.DONE
            raise

    def _propose(self) -> Mapping[int, bytes]:
        """Settle the complaints, fix the set, and ask for endorsements."""
        needed = self.collection.session.params.needed
        checks.quorum(len(self._answers), needed, "committee members checked their shares")
        verdict = self.collection.judge(self._complaints)
        self._blamed.update(verdict.guilty)
        self._out |= set(verdict.guilty)
        self._lost["endorse"] |= set(verdict.ignored)
        self._enough("are left after the committee's check")
        message = self.collection.propose()
        gone = self._out | set(verdict.ignored)
        live = [member for member in self._answers if member not in gone]
        return self._ask(Kind.ENDORSEMENT, _Stage.ENDORSE, dict.fromkeys(live, message))

    def _certify(self) -> Mapping[int, bytes]:
        message = self.collection.certify(self._endorsements)
        return self._ask(Kind.ANSWER, _Stage.ANSWER, dict.fromkeys(self._answers, message))

    def _finish(self) -> Mapping[int, bytes]:
        for member, reason in self.collection.unsigned(self._answers).items():
            self._blamed[member] = reason
            self._out.add(member)
            del self._answers[member]
        total, liars = self.collection.finish(self._answers)
        for member in liars:
            self._blamed[member] = f"member {member} answered with a wrong sum of shares"
            self._out.add(member)
        self.stage = _Stage.DONE
        self._expected = set()
        self.result = SumResult(
            total=total,
            included=self.collection.uploaders,
            blamed=dict(self._blamed),
            left_out=dict(self.collection.left_out),
            dropped={stage: tuple(sorted(ids)) for stage, ids in self._lost.items() if ids},
        )
        return {}

    def _enough(self, what: str) -> None:
        least = self.collection.session.params.min_included
        checks.enough_included(len(self.collection.uploaders), least, what)

    def _ask(
        self, kind: Kind, stage: AggregatorStage, messages: Mapping[int, bytes]
    ) -> Mapping[int, bytes]:
        self.awaited, self.stage = kind, stage
        self._expected, self._answers = set(messages), {}
        return messages
