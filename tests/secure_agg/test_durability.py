"""Crashes at every point: nothing is signed, released or reused twice, and the round goes on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from secure_agg import (
    Aggregator,
    FileStore,
    Floor,
    MemoryStore,
    Participant,
    RoundContext,
    SecAggParams,
)
from secure_agg.errors import (
    AlreadyReleased,
    AlreadySigned,
    InputError,
    StageError,
    StaleRound,
    StateError,
)
from secure_agg.messages import HEADER_SIZE, Kind, frame, pack_ids
from secure_agg.roster import Roster
from secure_agg.store import pack_fields, unpack_fields
from tests.secure_agg.world import World, exact_sum, vectors

PARAMS = SecAggParams.derive(n=5, corrupt=0.2, dropout=0.2, modulus_bits=20)
KINDS = [k for k in Kind if k % 2]
ME = 2


class Crash(Exception):
    """The machine loses power."""


class Failing(MemoryStore):
    """A store whose next write fails, before or after it took effect."""

    def __init__(self) -> None:
        super().__init__()
        self.fail: str | None = None

    def save(self, data: bytes) -> None:
        fail, self.fail = self.fail, None
        if fail == "before":
            raise Crash
        super().save(data)
        if fail == "after":
            raise Crash


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_around_any_write(kind: Kind, when: str) -> None:
    """The reply of the interrupted stage comes after the restart, or never; the sum is exact."""
    world = World(PARAMS, stores=True)
    store = Failing()
    world.stores[ME] = store
    world.members[ME] = world.member(ME)
    messages = world.server.begin()
    said: dict[Kind, set[bytes]] = {}
    lost = False
    while messages:
        now = Kind(messages[next(iter(messages))][1])
        for i, message in messages.items():
            if i == ME and lost:
                continue
            if i == ME and now is kind:
                store.fail = when
                with pytest.raises(Crash):
                    world.members[ME].handle(message)
                if store.data is None:
                    world.members[ME] = world.member(ME)
                else:
                    world.restart(ME)
                if world.members[ME].stage.value < 4:
                    world.members[ME].provide(world.inputs[ME])
                if now is Kind.UNMASK and when == "after":
                    lost = True  # released, as far as the record says: never again
                    with pytest.raises(AlreadyReleased):
                        world.members[ME].handle(message)
                    continue
            reply = world.members[i].handle(message)
            if i == ME:
                said.setdefault(now, set()).add(reply)
            world.server.receive(i, reply)
        messages = world.server.close_stage()
    assert all(len(replies) == 1 for replies in said.values())
    assert world.server.result.included == tuple(world.ids)
    assert world.server.result.total.tolist() == exact_sum(world.inputs, world.ids, 20)
    assert world.members[ME].participations == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_restart_after_any_stage_repeats_the_reply_and_goes_on(kind: Kind) -> None:
    world = World(PARAMS, stores=True)
    messages = world.until(kind)
    message = messages[ME]
    reply = world.members[ME].handle(message)
    again = world.restart(ME)
    assert again.to_bytes() == world.stores[ME].data
    if kind is Kind.UNMASK:
        with pytest.raises(AlreadyReleased):
            again.handle(message)
        assert again._now.secrets is None
        return
    assert again.handle(message) == reply
    world.server.receive(ME, reply)
    for i in world.server.waiting:
        world.server.receive(i, world.members[i].handle(messages[i]))
    messages = world.server.close_stage()
    while messages:
        messages = world.step(messages)
    assert world.server.result.total.tolist() == exact_sum(world.inputs, world.ids, 20)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_save_is_as_if_nothing_had_happened(kind: Kind, when: str) -> None:
    """The process lives on: state, counts and answers are as before, and it may be asked again."""
    world = World(PARAMS, stores=True)
    store = world.stores[ME] = Failing()
    world.members[ME] = world.member(ME)
    messages = world.until(kind)
    member = world.members[ME]
    before, count = member.to_bytes(), member.participations
    for _ in range(2):
        store.fail = when
        with pytest.raises(Crash):
            member.handle(messages[ME])
        assert member.to_bytes() == before
        assert member.participations == count
    while messages:
        messages = world.step(messages)
    assert world.server.result.blamed == {}
    assert world.server.result.total.tolist() == exact_sum(world.inputs, world.ids, 20)
    assert member.participations == 1


def test_a_signature_that_was_never_said_binds_nobody() -> None:
    """The store failed, so that no signature left: another alive set may be signed, once."""
    world = World(PARAMS, stores=True)
    store = world.stores[ME] = Failing()
    world.members[ME] = world.member(ME)
    message = world.until(Kind.ALIVE)[ME]
    member = world.members[ME]
    store.fail = "before"
    with pytest.raises(Crash):
        member.handle(message)
    other = frame(Kind.ALIVE, message[2:HEADER_SIZE], pack_ids([0, 1, 2, 3]))
    member.handle(other)
    for machine in (member, world.restart(ME)):
        with pytest.raises(AlreadySigned):
            machine.handle(message)


def test_a_masked_input_that_was_never_said_is_masked_again_the_same() -> None:
    world = World(PARAMS, stores=True)
    store = world.stores[ME] = Failing()
    world.members[ME] = world.member(ME)
    message = world.until(Kind.DELIVERY)[ME]
    member = world.members[ME]
    store.fail = "after"
    with pytest.raises(Crash):
        member.handle(message)
    written = member.from_bytes(
        store.data or b"", identity=world.identities[ME], roster=world.roster
    )
    assert member.handle(message) == written.handle(message)


def test_a_restored_machine_is_written_down_before_it_says_anything() -> None:
    """What the dead process saved may not have been durable; its successor makes it so."""
    world = World(PARAMS, stores=True)
    message = world.until(Kind.ALIVE)[ME]
    world.members[ME].handle(message)
    saved: list[bytes] = []

    class Counting(MemoryStore):
        def save(self, data: bytes) -> None:
            saved.append(data)
            super().save(data)

    blob = world.stores[ME].data
    assert blob is not None
    world.stores[ME] = Counting(blob)
    world.restart(ME)
    assert saved == [blob]
    store = world.stores[ME] = Failing()
    store.fail = "before"
    with pytest.raises(Crash):
        world.restart(ME, blob)


def test_a_state_that_the_store_has_left_behind_is_refused() -> None:
    """A backup restored over a newer store could sign, or mask, again."""
    world = World(PARAMS, stores=True)
    messages = world.until(Kind.DELIVERY)
    backup = world.stores[ME].data
    world.members[ME].handle(messages[ME])
    with pytest.raises(StateError, match="not the one in the store"):
        world.restart(ME, backup)
    assert world.restart(ME).stage.name == "MASKED"


def test_no_state_survives_a_release() -> None:
    """What a thief finds after the round opens nothing."""
    world = World(PARAMS, stores=True)
    messages = world.until(Kind.UNMASK)
    own = world.secrets(ME)
    secrets = [own.seed, own.self_seed, own.mask, *world.members[ME]._now.held.values()]
    assert own.seed in (world.stores[ME].data or b"")
    world.members[ME].handle(messages[ME])
    data = world.stores[ME].data or b""
    for secret in secrets:
        assert secret not in data


def test_reprs_and_errors_hold_no_secret() -> None:
    world = World(PARAMS)
    world.until(Kind.ALIVE)
    member, identity = world.members[ME], world.identities[ME]
    for thing in (member, identity, world.server, world.roster, world.secrets(ME)):
        text = repr(thing) + str(thing)
        for secret in (world.secrets(ME).seed, world.secrets(ME).mask, identity.private_bytes()):
            assert secret.hex() not in text
            assert repr(secret) not in text


def test_another_vector_never_meets_the_same_mask() -> None:
    """After a crash between record and upload, the recorded upload is all there is."""
    world = World(PARAMS, stores=True)
    message = world.until(Kind.DELIVERY)[ME]
    reply = world.members[ME].handle(message)
    again = world.restart(ME)
    with pytest.raises(InputError, match="there is one a round"):
        again.provide(vectors([ME], world.length, 20, "other")[ME])
    assert again.handle(message) == reply


def test_without_a_store_nothing_is_repeated() -> None:
    world = World(PARAMS)
    message = world.until(Kind.COHORT)[ME]
    world.members[ME].handle(message)
    with pytest.raises(StageError):
        world.members[ME].handle(message)


def test_marks_of_each_job_only_rise() -> None:
    world = World(PARAMS, stores=True)
    store = world.stores[ME]

    def begin(job: bytes, round_: int) -> Participant:
        context = RoundContext(job=job, round=round_)
        server = Aggregator(
            roster=world.roster, params=PARAMS, context=context, length=8, cohort=world.ids
        )
        member = world.member(ME, context)
        member.handle(server.begin()[ME])
        return member

    begin(b"a", 5)
    begin(b"b", 1)
    begin(b"a", 6)
    for job, round_ in ((b"a", 6), (b"a", 5), (b"a", 0), (b"b", 1), (b"b", 0)):
        with pytest.raises(StaleRound):
            begin(job, round_)
    begin(b"b", 2)
    assert store.data is not None


def test_participations_are_counted_across_rounds() -> None:
    world = World(PARAMS, stores=True)
    for round_ in range(1, 4):
        context = RoundContext(job=b"job", round=round_)
        world.members = {i: world.member(i, context) for i in world.ids}
        world.server = Aggregator(
            roster=world.roster, params=PARAMS, context=context, length=8, cohort=world.ids
        )
        world.until(None)
        assert world.members[ME].participations == round_


@pytest.mark.parametrize("kind", KINDS)
def test_the_aggregator_resumes_anywhere(kind: Kind) -> None:
    world = World(PARAMS)
    messages = world.until(kind, {Kind.DELIVERY: [4]})
    for i, reply in world.deliver(messages, absent=[4]).items():
        blob = world.server.to_bytes()
        world.server = Aggregator.from_bytes(blob, roster=world.roster)
        assert world.server.to_bytes() == blob
        world.server.receive(i, reply)
    if kind in (Kind.BEGIN, Kind.COHORT, Kind.NONCES):
        for i, reply in world.deliver({4: messages[4]}).items():
            world.server.receive(i, reply)
    messages = world.server.close_stage()
    while messages:
        world.server = Aggregator.from_bytes(world.server.to_bytes(), roster=world.roster)
        messages = world.step(messages)
    world.server = Aggregator.from_bytes(world.server.to_bytes(), roster=world.roster)
    included = world.server.result.included
    assert set(included) >= {0, 1, 2, 3}
    assert world.server.result.total.tolist() == exact_sum(world.inputs, included, 20)


def test_blame_survives_a_restart_of_the_aggregator() -> None:
    world = World(PARAMS)
    messages = world.until(Kind.COHORT)
    reply = world.deliver(messages)[ME]
    with pytest.raises(Exception, match="differs from its commitment"):
        world.server.receive(ME, reply[:-1] + bytes([reply[-1] ^ 1]))
    again = Aggregator.from_bytes(world.server.to_bytes(), roster=world.roster)
    assert again.blamed == world.server.blamed
    assert again.waiting == frozenset(set(world.ids) - {ME})
    with pytest.raises(StageError, match="does not wait"):
        again.receive(ME, reply)


def test_states_that_cannot_be_read() -> None:
    world = World(PARAMS, stores=True)
    world.until(Kind.ALIVE)
    blob = world.stores[ME].data
    assert blob is not None
    identity = world.identities[ME]
    for bad in (b"", b"x", blob[:-1], blob[:40] + b"?" + blob[41:], world.server.to_bytes()):
        with pytest.raises(StateError):
            Participant.from_bytes(bad, identity=identity, roster=world.roster)
        with pytest.raises(StateError):
            Aggregator.from_bytes(bad[:-1], roster=world.roster)
    other = Roster({ME: identity.public_bytes})
    with pytest.raises(StateError, match="another roster"):
        Participant.from_bytes(blob, identity=identity, roster=other)
    with pytest.raises(StateError, match="another roster"):
        Aggregator.from_bytes(world.server.to_bytes(), roster=other)
    with pytest.raises(StateError):
        Participant.from_bytes(
            pack_fields(b"secure_agg participant 1\n", [b""] * 3),
            identity=identity,
            roster=world.roster,
        )
    longer = pack_fields(b"m", [b"a"])[:-32] + b"left over"
    with pytest.raises(StateError, match="do not fill"):
        unpack_fields(b"m", longer + hashlib.sha256(longer).digest())


def test_signing_twice_is_impossible_across_many_restarts() -> None:
    world = World(PARAMS, stores=True)
    message = world.until(Kind.ALIVE)[ME]
    first = world.members[ME].handle(message)
    for _ in range(3):
        member = world.restart(ME)
        assert member.handle(message) == first
        other = frame(Kind.ALIVE, message[2:HEADER_SIZE], pack_ids([0, 1, 2, 3]))
        with pytest.raises(AlreadySigned):
            member.handle(other)


def test_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    store = FileStore(path)
    assert store.load() is None
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        events.append("fsync")
        fsync(handle)

    def noted_replace(a: Path, b: Path) -> None:
        events.append("replace")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    store.save(b"one")
    store.save(b"two")
    assert events == ["fsync", "replace", "fsync"] * 2  # the file, its name, the folder
    assert store.load() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["state"]

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="cannot be written: No space left"):
        store.save(b"three")
    assert store.load() == b"two"
    with pytest.raises(StateError, match="cannot be read"):
        FileStore(tmp_path).load()


def test_a_file_store_writes_through_nothing_that_was_planted(tmp_path: Path) -> None:
    """Whoever can make a name in the folder could otherwise read the round's keys."""
    path, mine = tmp_path / "state", tmp_path / "elsewhere"
    mine.write_bytes(b"")
    fresh = tmp_path / "state.new"
    for name in (fresh, path):
        for linked in (True, False):
            name.unlink(missing_ok=True)
            if linked:
                name.symlink_to(mine)
            else:
                name.write_bytes(b"planted")
                name.chmod(0o666)
            with name.open("rb") as planted:
                FileStore(path).save(b"a secret")
                assert b"secret" not in planted.read()
            assert not path.is_symlink()
            assert path.stat().st_mode & 0o777 == 0o600
            assert FileStore(path).load() == b"a secret"


def test_a_file_store_reads_no_link_and_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"somebody's choice")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(StateError, match="cannot be read"):
            FileStore(tmp_path / name).load()


def test_a_count_of_fields_that_no_blob_holds_is_refused_at_once() -> None:
    body = b"magic" + (2**32 - 1).to_bytes(4, "little")
    blob = body + hashlib.sha256(body).digest()
    with pytest.raises(StateError, match="do not fill it"):
        unpack_fields(b"magic", blob)


def test_a_round_on_files(tmp_path: Path) -> None:
    world = World(PARAMS, floor=Floor(corrupt=0.2))
    stores = {i: FileStore(tmp_path / str(i)) for i in world.ids}
    world.stores = stores  # type: ignore[assignment]
    world.members = {i: world.member(i) for i in world.ids}
    world.until(None)
    assert world.server.result.total.tolist() == exact_sum(world.inputs, world.ids, 20)
    assert all(store.load() for store in stores.values())
