"""What survives a crash, and what must not: stores, marks, sealing keys."""

from __future__ import annotations

import copy
import dataclasses
import gc
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from secure_agg import (
    FileStore,
    Identity,
    MemoryStore,
    RoundContext,
    SealingKeys,
    SecAggParams,
    check_prekey,
    prekey_suite,
)
from secure_agg.errors import (
    LowOrderPoint,
    MessageError,
    ParameterError,
    SecureAggError,
    SignatureMismatch,
    StaleRound,
    StateError,
)
from secure_agg.marks import Mark, Marks
from secure_agg.messages import HEADER_SIZE, Delivery, Kind, frame, unpack_complaints
from secure_agg.prekeys import (
    MAX_BOUND,
    MAX_OUTSTANDING,
    PREKEY_SIZE,
    Bound,
    _statement,
    public_key,
)
from secure_agg.store import pack_fields, unpack_fields
from tests.secure_agg.world import World, fixed_entropy

PARAMS = SecAggParams.derive(n=5, corrupt=0.2, dropout=0.2, modulus_bits=16, dimension=4)


class Broken(MemoryStore):
    """A store that fails from some write on, after or instead of writing."""

    def __init__(self, data: bytes | None, writes: int, *, torn: bool) -> None:
        super().__init__(data)
        self.left = writes
        self.torn = torn

    def save(self, data: bytes) -> None:
        if not self.left:
            if self.torn:
                self.data = data
            raise StateError("the disk is gone")
        self.left -= 1
        self.data = data


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("what", ["disks", "tmpfs"])
@pytest.mark.parametrize("kind", [Kind.OPENING, Kind.DELIVERY, Kind.PROPOSAL, Kind.CERTIFICATE])
def test_a_death_at_any_write_never_says_two_things(kind: Kind, what: str, torn: bool) -> None:
    """The write fails before or after it happened; the process starts again.

    It gives the same answer as it would have, or abstains.
    """
    world = World(PARAMS)
    messages = world.until(kind)
    twin = copy.deepcopy(world.members[1]._now)
    stores = getattr(world, what)
    stores[1] = Broken(stores[1].data, 0, torn=torn)
    world.sealing[1]._store = world.tmpfs[1]
    world.members[1]._store = world.disks[1]
    with pytest.raises(StateError, match="the disk is gone"):
        world.members[1].handle(messages[1])
    assert world.members[1]._now.stage == twin.stage
    stores[1] = MemoryStore(stores[1].data)
    world.restart(1)
    try:
        reply = world.members[1].handle(messages[1])
    except SecureAggError:
        reply = b""
    left = {id_: message for id_, message in messages.items() if id_ != 1}
    for id_, one in world.deliver(left).items():
        world.server.receive(id_, one)
    if reply:
        world.server.receive(1, reply)
    following = world.server.close_stage()
    absent = () if reply else {1}
    while following:
        following = world.step(following, absent)
    included = world.server.result.included
    assert world.server.result.total.tolist() == world.exact(included)


def test_a_file_store_is_private_and_atomic(tmp_path: Path) -> None:
    path = tmp_path / "round.state"
    store = FileStore(path)
    assert store.load() is None
    before = os.umask(0)
    try:
        store.save(b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.save(b"two")
    assert store.load() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["round.state"]
    with pytest.raises(StateError, match="cannot be written"):
        FileStore(tmp_path / "missing" / "x").save(b"")


def test_fields_are_bounded_and_strict() -> None:
    data = pack_fields(b"magic\n", (b"a", b"", b"bc"))
    assert unpack_fields(b"magic\n", data) == [b"a", b"", b"bc"]
    for bad in (b"", data[:-1], data + b"x", b"other\n" + data[6:]):
        with pytest.raises(StateError):
            unpack_fields(b"magic\n", bad)
    body = b"magic\n" + (2**31).to_bytes(4, "little")
    with pytest.raises(StateError, match="do not fill it"):
        unpack_fields(b"magic\n", body + hashlib.sha256(body).digest())


def test_marks_merge_to_the_union() -> None:
    one = Mark(round=3, session=b"s" * 32, uploads=1, last={1: 4, 2: 0})
    two = Mark(
        round=3, session=b"s" * 32, endorsed={0: b"d" * 32}, answered=frozenset({0}), last={1: 2}
    )
    merged = one.merge(two)
    assert merged == two.merge(one)
    assert merged.uploads == 1
    assert merged.endorsed == {0: b"d" * 32}
    assert merged.answered == {0}
    assert merged.last == {1: 4, 2: 0}
    older = Mark(round=2, session=b"t" * 32, uploads=9)
    assert one.merge(older) == older.merge(one) == one
    fork = Mark(round=3, session=b"u" * 32)
    assert one.merge(fork) == fork.merge(one) == one
    marks = Marks(jobs={b"j" * 32: merged, b"k" * 32: older}, participations=7)
    assert Marks.unpack(marks.pack()) == marks
    assert Marks.unpack(Marks().pack()) == Marks()
    with pytest.raises(StateError):
        Marks.unpack(b"junk")
    assert marks.merge(Marks(participations=9)).participations == 9


@pytest.mark.parametrize("suite", [1, 2])
def test_sealing_keys_are_signed_bounded_and_survive_in_memory_alone(suite: int) -> None:
    identity, store = Identity(b"i" * 32), MemoryStore()
    keys = SealingKeys(identity, suite=suite, entropy=fixed_entropy("keys"), store=store)
    first = keys.issue(3)
    assert {len(prekey) for prekey in first} == {PREKEY_SIZE[suite]}
    for prekey in first:
        check_prekey(identity.public_bytes, prekey)
        assert prekey_suite(prekey) == suite
    keys.issue(MAX_OUTSTANDING)
    assert keys.outstanding == MAX_OUTSTANDING
    assert not keys.pooled(public_key(first[0]))
    again = SealingKeys(identity, suite=suite, store=store)
    assert again._pool == keys._pool
    assert SealingKeys(identity, suite=suite).outstanding == 0
    for count in (0, MAX_OUTSTANDING + 1):
        with pytest.raises(ParameterError):
            keys.issue(count)
    with pytest.raises(ParameterError, match="suite is 3"):
        SealingKeys(identity, suite=3)
    other = SealingKeys(identity, suite=3 - suite, store=store)
    assert other._pool == keys._pool
    assert prekey_suite(other.issue(1)[0]) == 3 - suite
    assert other.outstanding == MAX_OUTSTANDING + 1, "the keys of one suite leave the other's alone"
    blob = store.data
    assert blob is not None
    (public, *_), short = other._pool, MemoryStore()
    damaged = SealingKeys(identity, store=short)
    damaged._save({public: b"short"}, {}, damaged.marks)
    with pytest.raises(StateError, match="of no known suite"):
        SealingKeys(identity, store=short)
    for secret in keys._pool.values():
        assert secret.hex() not in repr(keys)


def test_worthless_statements_are_refused_by_name() -> None:
    identity, other = Identity(b"i" * 32), Identity(b"o" * 32)
    (prekey,) = SealingKeys(identity).issue(1)
    with pytest.raises(SignatureMismatch):
        check_prekey(other.public_bytes, prekey)
    with pytest.raises(SignatureMismatch):
        check_prekey(identity.public_bytes, prekey[:-1] + bytes((prekey[-1] ^ 1,)))
    for bad in (b"", b"\1", prekey[:-1], prekey + b"\0", b"\2" + prekey[1:], b"\0" + prekey[1:]):
        with pytest.raises(MessageError):
            check_prekey(identity.public_bytes, bad)
    low = bytes(32)
    signed = b"\1" + low + identity.sign(_statement(identity.public_bytes, low))
    with pytest.raises(LowOrderPoint):
        check_prekey(identity.public_bytes, signed)


def test_only_so_many_open_sessions_keep_a_key() -> None:
    keys = SealingKeys(Identity(b"i" * 32), store=MemoryStore())
    for number in range(MAX_BOUND + 3):
        bound = Bound(session=bytes(32), private=b"p" * 32)
        keys.commit(bytes([number]) * 32, bound, Marks())
    assert keys.bound(bytes(32)) is None
    assert keys.bound(bytes([MAX_BOUND + 2]) * 32) is not None
    keys.forget(bytes([MAX_BOUND + 2]) * 32)
    assert keys.bound(bytes([MAX_BOUND + 2]) * 32) is None
    assert "p" * 32 not in repr(bound)


def test_participations_count_uploads_and_survive() -> None:
    world = World(PARAMS)
    for round_ in (1, 2, 3):
        world.open(RoundContext(job=b"job", round=round_))
        world.until(None)
    assert world.restart(0).participations == 3
    assert world.restart(0, memory=False).participations == 3


def reachable(*roots: object) -> Iterator[object]:
    """What is of a class of this package, through whatever holds it."""
    seen, rest = set[int](), list(roots)
    while rest:
        each = rest.pop()
        if id(each) in seen or isinstance(each, type | ModuleType | FunctionType):
            continue
        seen.add(id(each))
        if type(each).__module__.startswith("secure_agg"):
            yield each
        rest += gc.get_referents(each)


@pytest.mark.parametrize(
    "kind", [Kind.OPENING, Kind.DELIVERY, Kind.PROPOSAL, Kind.CERTIFICATE, None]
)
def test_no_secret_in_any_representation(kind: Kind | None) -> None:
    """Of anything that a member, its keys or the server hold, whatever the stage."""
    world = World(PARAMS)
    secrets = [one.private_bytes() for one in world.identities.values()]
    for keys in world.sealing.values():
        secrets += keys._pool.values()
    vectors = [*world.inputs.values()]
    world.until(kind)
    for member in world.members.values():
        secrets += [member._now.private] if member._now.private else []
        shares = [work.held.shares for work in member._now.works.values()]
        secrets += [each.tobytes()[:16] for each in shares]
        vectors += [each[0] for each in shares]
    found = [*reachable(world.members, world.sealing, world.identities, world.server)]
    kinds = {type(each).__name__ for each in found}
    assert {"Member", "Progress", "SealingKeys", "Identity", "Session", "Aggregator"} <= kinds
    if kind is Kind.PROPOSAL:
        assert {"Bound", "Mark", "Marks", "Work", "Held"} <= kinds
    shown = "".join(map(repr, found))
    assert shown
    for secret in secrets:
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    numbers = re.sub(r"\s+", "", shown)
    for values in vectors:
        assert ",".join(map(str, values[:3].tolist())) not in numbers


def test_two_machines_of_one_member_know_of_each_other() -> None:
    """Made before either acted, of one job or of two: no second upload, no mark lost."""
    world = World(PARAMS)
    first, second = world.member(1), world.member(1)
    other = world.member(1, context=RoundContext(job=b"other", round=9))
    opening = world.server.begin()[1]
    first.handle(opening)
    with pytest.raises(StaleRound):
        second.handle(opening)
    here = world.aggregator(context=RoundContext(job=b"other", round=9), prekeys=fresh(world))
    other.handle(here.begin()[1])
    assert {m.participations for m in (first, second, other)} == {2}
    marks = Marks.unpack(world.disks[1].data or b"")
    assert len(marks.jobs) == 2
    assert marks.participations == 2


def fresh(world: World) -> dict[int, bytes]:
    return {id_: world.sealing[id_].issue(1)[0] for id_ in world.ids}


def test_a_file_store_writes_through_nothing_that_was_planted(tmp_path: Path) -> None:
    """Anyone who can make a name in the folder could otherwise read the round's keys."""
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


@pytest.mark.parametrize("what", ["of nothing", "of junk"])
def test_a_delivery_in_which_no_share_opens_is_answered_by_name(what: str) -> None:
    world = World(SecAggParams.derive(n=5, corrupt=0, dropout=0, modulus_bits=20, dimension=6))
    good = world.until(Kind.DELIVERY)[1]
    delivery = Delivery.parse(good[HEADER_SIZE:], world.params)
    if what == "of nothing":
        delivery = dataclasses.replace(delivery, rows=b"", sealed=b"", count=0)
    else:
        delivery = dataclasses.replace(delivery, sealed=bytes(len(delivery.sealed)))
    member = world.members[1]
    reply = member.handle(frame(Kind.DELIVERY, good[2:HEADER_SIZE], *delivery.parts()))
    complaints = unpack_complaints(reply[HEADER_SIZE:])[1]
    assert [each.dealer for each in complaints] == list(range(delivery.count))
    assert not any(each.proven for each in complaints)
    assert world.restart(1).stage is member.stage, "its state is read back"
