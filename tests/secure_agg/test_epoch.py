"""Buffered rounds: many sums under one committee."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest

from secure_agg import EpochAggregator, RoundContext, SecAggParams
from secure_agg.errors import (
    InputError,
    LateMessage,
    ParameterError,
    ResidualError,
    SecureAggError,
    StageError,
    StaleRound,
)
from secure_agg.messages import U32, Kind, frame
from tests.secure_agg.world import World, exact_sum

BUFFERS = 4
PARAMS = dataclasses.replace(
    SecAggParams.derive(n=12, corrupt=0.1, dropout=0.2, modulus_bits=20, dimension=30),
    min_included=4,
)
CONTEXT = RoundContext(job=b"job", round=3, buffers=BUFFERS)


class Epoch(World):
    """An epoch whose members upload in an order that a die decides."""

    epoch: EpochAggregator

    def __init__(self, size: int = 5) -> None:
        super().__init__(PARAMS, context=CONTEXT)
        self.epoch = EpochAggregator(
            roster=self.roster,
            params=PARAMS,
            context=CONTEXT,
            cohort=self.ids,
            prekeys=self.prekeys,
            size=size,
        )
        self.dice = np.random.default_rng(1)
        self.sent: list[tuple[int, np.typing.NDArray[np.uint32]]] = []
        self.requests: dict[int, bytes] = {}

    def start(self) -> None:
        """Everybody enters the epoch; inputs come when they are ready."""
        self.requests = dict(self.epoch.begin())
        for id_, request in self.requests.items():
            self.members[id_]._vector = None
            with pytest.raises(InputError, match="no input was provided"):
                self.members[id_].handle(request)

    def vector(self) -> np.typing.NDArray[np.uint32]:
        limit = 2**19 // PARAMS.n
        return (self.dice.integers(-limit, limit, PARAMS.dimension) % 2**20).astype(np.uint32)

    def upload(self, id_: int) -> bytes:
        vector = self.vector()
        self.members[id_].provide(vector)
        request = self.requests.pop(id_, None) or self.epoch.next_upload(id_)
        reply = self.members[id_].handle(request)
        self.sent.append((id_, vector))
        return reply

    def fill(self) -> None:
        target = len(self.epoch._full) + 1
        while len(self.epoch._full) < target:
            ready = [
                id_ for id_ in self.ids if id_ not in self.epoch._filling.uploaders
                and id_ not in self.epoch._out
            ]  # fmt: skip
            id_ = int(self.dice.choice(ready))
            self.epoch.receive(id_, self.upload(id_))

    def settle(self) -> None:
        messages: Mapping[int, bytes] = self.epoch.settle()
        while messages:
            for id_, reply in self.deliver(messages).items():
                self.epoch.receive(id_, reply)
            messages = self.epoch.close_stage()

    def expect(self, number: int, size: int) -> None:
        rows = self.sent[number * size : (number + 1) * size]
        result = self.epoch.results[number]
        assert result is not None
        vectors = dict(enumerate(vector for _, vector in rows))
        assert result.total.tolist() == exact_sum(vectors, list(vectors), 20)
        assert result.included == tuple(sorted(id_ for id_, _ in rows))


def test_every_buffer_is_exact_and_each_upload_is_in_one() -> None:
    world = Epoch()
    world.start()
    for number in range(BUFFERS):
        world.fill()
        if number == 2:  # two buffers may be full at once
            continue
        world.settle()
        if number == 3:
            world.settle()
    assert world.epoch.done
    for number in range(BUFFERS):
        world.expect(number, 5)
    assert len(world.sent) == 20
    for member in world.members.values():
        assert member._now.private == b""
    with pytest.raises(StageError):
        world.epoch.next_upload(0)


def test_members_restart_within_an_epoch() -> None:
    world = Epoch()
    world.start()
    for number in range(BUFFERS):
        world.fill()
        messages: Mapping[int, bytes] = world.epoch.settle()
        while messages:
            for id_ in messages:
                world.restart(id_)
                world.epoch.receive(id_, world.members[id_].handle(messages[id_]))
            messages = world.epoch.close_stage()
        world.expect(number, 5)


def test_a_lost_upload_is_skipped_and_never_repeated() -> None:
    world = Epoch()
    world.start()
    lost = world.upload(3)
    world.sent.clear()
    again = world.epoch.next_upload(3)
    world.requests[3] = again
    world.epoch.receive(3, world.upload(3))
    with pytest.raises(StageError):
        world.epoch.receive(3, lost)
    world.members[3].provide(world.vector())
    with pytest.raises(StaleRound, match="upload 0 has left"):
        world.members[3].handle(frame(Kind.NEXT, world.epoch.session.hash, U32.pack(0)))


def test_uploads_arrive_while_a_buffer_is_settled() -> None:
    world = Epoch()
    world.start()
    world.fill()
    messages: Mapping[int, bytes] = world.epoch.settle()
    while messages:
        id_ = next(i for i in world.ids if i not in world.epoch._filling.uploaders)
        world.epoch.receive(id_, world.upload(id_))
        for member, reply in world.deliver(messages).items():
            world.epoch.receive(member, reply)
        messages = world.epoch.close_stage()
    world.expect(0, 5)
    world.fill()
    world.settle()
    world.expect(1, 5)


def test_a_spent_buffer_leaves_the_others() -> None:
    from secure_agg.messages import Upload
    from tests.adversary.test_dealers import resign

    world = Epoch()
    world.start()
    world.server._session = world.epoch.session
    reply = world.upload(0)
    upload = Upload.parse(reply, world.epoch.session)
    bent = bytearray(upload.ciphertext)
    bent[: len(bent) // 2] = bytes(len(bent) // 2)
    world.epoch.receive(0, resign(world, 0, dataclasses.replace(upload, ciphertext=bytes(bent))))
    world.fill()
    with pytest.raises(ResidualError):
        world.settle()
    assert world.epoch.results == [None]
    world.fill()
    world.settle()
    world.expect(1, 5)


def test_the_epoch_refuses_what_is_out_of_turn() -> None:
    world = Epoch()
    with pytest.raises(StageError, match="not open"):
        world.epoch.next_upload(0)
    with pytest.raises(StageError, match="no buffer to settle"):
        world.epoch.settle()
    with pytest.raises(StageError, match="no stage to close"):
        world.epoch.close_stage()
    world.start()
    reply = world.upload(0)
    world.epoch.receive(0, reply)
    with pytest.raises(StageError, match="its upload waits"):
        world.epoch.next_upload(0)
    with pytest.raises(SecureAggError):
        world.epoch.receive(0, reply)
    endorsement = frame(Kind.ENDORSEMENT, world.epoch.session.hash, bytes(68))
    with pytest.raises(LateMessage):
        world.epoch.receive(0, endorsement)
    for size, context in ((3, CONTEXT), (13, CONTEXT), (5, RoundContext(job=b"job", round=3))):
        with pytest.raises(ParameterError):
            EpochAggregator(
                roster=world.roster,
                params=PARAMS,
                context=context,
                cohort=world.ids,
                prekeys=world.prekeys,
                size=size,
            )


def test_forgetting_erases_the_key_and_the_member_abstains() -> None:
    world = Epoch()
    world.start()
    world.fill()
    messages = world.epoch.settle()
    for id_ in world.ids:
        world.sealing[id_].forget(CONTEXT.job_hash)
        assert world.sealing[id_].bound(CONTEXT.job_hash) is None
    member = world.restart(0)
    with pytest.raises(SecureAggError, match="abstains"):
        member.handle(messages[0])
