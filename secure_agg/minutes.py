"""What an aggregator must not forget, as bytes; nothing that the server does not know anyway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from secure_agg.errors import MessageError, ParameterError, StateError
from secure_agg.messages import Begin, pack_ids, unpack_ids
from secure_agg.stages import AggregatorStage
from secure_agg.store import pack_fields, unpack_fields

__all__ = ["Minutes"]

_MAGIC = b"secure_agg aggregator 1\n"
_PART = b"part\n"


@dataclass(frozen=True, kw_only=True)
class Minutes:
    """The whole of an aggregator.

    Attributes:
        begin: What the round is about, with its attempt.
        stage: Which message it waits for.
        invited: Everybody.
        expected: Those still in the round.
        alive: Those whose inputs are in the sum.
        out: Those that sent something wrong in this stage.
        cohort: Body of the COHORT message, or empty, as all that follow.
        nonces: All nonces.
        dealt: All rows of stage 1.
        total: The running sum in the ring's own type.
        blamed: Why, by member.
        dropped: Ids by the stage whose message they did not send.
        answers: What members sent, by stage and in the order of arrival.
    """

    begin: Begin
    stage: AggregatorStage
    invited: list[int]
    expected: list[int]
    alive: list[int]
    out: list[int]
    cohort: bytes
    nonces: bytes
    dealt: bytes
    total: bytes
    blamed: Mapping[int, str]
    dropped: Mapping[str, tuple[int, ...]]
    answers: Mapping[AggregatorStage, Mapping[int, bytes]]

    def pack(self) -> bytes:
        """Encode."""
        blamed = [m.to_bytes(4, "little") + why.encode() for m, why in self.blamed.items()]
        dropped = [x for name, ids in self.dropped.items() for x in (name.encode(), pack_ids(ids))]
        return pack_fields(
            _MAGIC,
            (
                self.begin.body(),
                bytes((self.stage,)),
                pack_ids(self.invited),
                pack_ids(self.expected),
                pack_ids(self.alive),
                pack_ids(self.out),
                self.cohort,
                self.nonces,
                self.dealt,
                self.total,
                pack_fields(_PART, blamed),
                pack_fields(_PART, dropped),
                *(
                    pack_fields(_PART, (pack_ids(self.answers[s]), *self.answers[s].values()))
                    for s in AggregatorStage
                ),
            ),
        )

    @staticmethod
    def unpack(data: bytes) -> Minutes:
        """Decode what `pack` wrote.

        Raises:
            StateError: On anything else.
        """
        fields = unpack_fields(_MAGIC, data)
        try:
            begin, stage, invited, expected, alive, out, cohort, nonces, dealt, *rest = fields
            total, blamed, dropped, *answers = rest
            pairs = unpack_fields(_PART, dropped)
            return Minutes(
                begin=Begin.parse(begin),
                stage=AggregatorStage(stage[0]),
                invited=unpack_ids(invited, "stored cohort"),
                expected=unpack_ids(expected, "stored members"),
                alive=unpack_ids(alive, "stored alive set"),
                out=unpack_ids(out, "stored offenders"),
                cohort=cohort,
                nonces=nonces,
                dealt=dealt,
                total=total,
                blamed={
                    int.from_bytes(entry[:4], "little"): entry[4:].decode()
                    for entry in unpack_fields(_PART, blamed)
                },
                dropped={
                    name.decode(): tuple(unpack_ids(ids, "stored dropouts"))
                    for name, ids in zip(pairs[::2], pairs[1::2], strict=True)
                },
                answers={
                    of: _answers(raw) for of, raw in zip(AggregatorStage, answers, strict=True)
                },
            )
        except (MessageError, ParameterError, ValueError, IndexError) as error:
            raise StateError(f"a stored state that does not fit: {error}") from None


def _answers(raw: bytes) -> dict[int, bytes]:
    """Answers in the order in which they came, which need not be that of the ids."""
    ids, *bodies = unpack_fields(_PART, raw)
    order = [int.from_bytes(ids[i : i + 4], "little") for i in range(0, len(ids), 4)]
    return dict(zip(order, bodies, strict=True))
