"""Attacks 1 to 10 and 15: who takes part, in which round, under which parameters and graph.

Every test runs an attack twice: against the protocol, which refuses it by name, and against the
protocol without that one check, where it succeeds.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_agg import Floor, Identity, Participant, RoundContext, SecAggParams, checks, keys
from secure_agg import transcript as transcripts
from secure_agg.aggregator import Aggregator
from secure_agg.errors import (
    ContextMismatch,
    DuplicateMember,
    GraphMismatch,
    LateMessage,
    LowOrderPoint,
    MessageError,
    NonceMismatch,
    NonceWithheld,
    ParameterError,
    PolicyViolation,
    RosterError,
    SignatureMismatch,
    StaleRound,
)
from secure_agg.graph import Graph
from secure_agg.messages import (
    ADVERT_ROW,
    COMMITMENTS_SIZE,
    HEADER_SIZE,
    Kind,
    frame,
    pack_ids,
)
from secure_agg.roster import Roster
from secure_agg.shamir import combine
from secure_agg.store import MemoryStore, present
from secure_agg.transcript import Cohort, View, advert_digest, nonce_commitment, session_hash
from tests.secure_agg.world import World, exact_sum, fixed_entropy, without

VICTIM = 0
PARAMS = SecAggParams.derive(n=5, corrupt=0.2, dropout=0.2)


def sealed_shares(reply: bytes, holders: int) -> list[bytes]:
    """The sealed shares in a SHARES message."""
    body = reply[HEADER_SIZE + 96 + holders * COMMITMENTS_SIZE :]
    return [body[i : i + keys.SEALED_SIZE] for i in range(0, len(body), keys.SEALED_SIZE)]


def cohort_body(rows: list[tuple[Any, ...]]) -> bytes:
    return b"".join(ADVERT_ROW.pack(*row) for row in rows)


def rows_of(message: bytes) -> list[tuple[Any, ...]]:
    return list(ADVERT_ROW.iter_unpack(message[HEADER_SIZE:]))


def session_of(message: bytes) -> bytes:
    return message[2:HEADER_SIZE]


def nonces_for(
    world: World, cohort: bytes, nonces: list[bytes], neighbours: list[int] | None = None
) -> bytes:
    """A NONCES message to the victim over a cohort of the attacker's making."""
    session = session_of(cohort)
    built = Cohort(world.roster, world.params, session, cohort[HEADER_SIZE:], None)
    if neighbours is None:
        view = View(built, world.params, b"".join(nonces))
        neighbours = view.neighbour_ids(built.index[VICTIM])
    head = len(nonces).to_bytes(4, "little") + b"".join(nonces)
    return frame(Kind.NONCES, session, head, pack_ids(neighbours))


def context_of(view: bytes, reply: bytes, holders: int) -> bytes:
    """What the victim sealed its shares to, read from its SHARES message."""
    body = reply[HEADER_SIZE:]
    commitments = body[96 : 96 + holders * COMMITMENTS_SIZE]
    hashed = hashlib.sha256(commitments).digest()
    return transcripts.dealt_digest(view, VICTIM, body[:32], hashed)


def open_as(
    private: X25519PrivateKey,
    victim_key: bytes,
    session: bytes,
    context: bytes,
    sealed: bytes,
    to: int,
) -> bytes:
    """Open a share that the victim sealed, with whatever private key fits."""
    own = private.public_key().public_bytes_raw()
    secret = keys.agree(private, victim_key)
    key = keys.derive_key(secret, "seal", session, *sorted((own, victim_key)))
    return keys.unseal(key, sealed, context, VICTIM, to)


def test_01_swapped_key() -> None:
    """The server gives the victim its own keys as everybody else's and reads all its shares."""

    def attack() -> tuple[bytes, bytes, World]:
        world = World(PARAMS)
        message = world.until(Kind.COHORT)[VICTIM]
        private = {
            i: X25519PrivateKey.from_private_bytes(bytes([i + 1]) * 32) for i in world.ids[1:]
        }
        rows = rows_of(message)
        for i in world.ids[1:]:
            mine = private[i].public_key().public_bytes_raw()
            rows[i] = (i, mine, bytes([i]) * 32, *rows[i][3:])
        cohort = frame(Kind.COHORT, session_of(message), cohort_body(rows))
        world.members[VICTIM].handle(cohort)
        nonces = [world.secrets(i).nonce for i in world.ids]
        reply = world.members[VICTIM].handle(nonces_for(world, cohort, nonces))
        view = context_of(present(world.members[VICTIM]._now.view).hash, reply, 4)
        session, key = session_of(message), world.secrets(VICTIM).cipher_public
        shares = {}
        for place, (i, sealed) in enumerate(
            zip(world.ids[1:], sealed_shares(reply, 4), strict=True)
        ):
            plain = open_as(private[i], key, session, view, sealed, i)
            shares[place] = plain[:32] + plain[64:96]
        secret = combine(shares, PARAMS.threshold)
        return secret[:32], secret[32:], world

    with pytest.raises(SignatureMismatch, match="member 1 on its advert"):
        attack()
    with without("signature"):
        seed, mask, world = attack()
    assert seed == world.secrets(VICTIM).self_seed
    assert mask == world.secrets(VICTIM).mask


def test_02_sybil() -> None:
    """The server fills an empty place with a member that it made up."""
    sybil = Identity.generate(fixed_entropy("sybil"))
    private = X25519PrivateKey.from_private_bytes(b"s" * 32)

    def attack() -> tuple[bytes, World]:
        world = World(PARAMS)
        message = world.until(Kind.COHORT, {Kind.BEGIN: [4]})[VICTIM]
        session = session_of(message)
        nonce = bytes(32)
        fields = (
            private.public_key().public_bytes_raw()
            + b"m" * 32
            + nonce_commitment(session, 99, nonce)
        )
        signature = sybil.sign(advert_digest(session, 99, fields))
        row = (99, fields[:32], fields[32:64], fields[64:], signature)
        cohort = frame(Kind.COHORT, session, cohort_body([*rows_of(message), row]))
        world.members[VICTIM].handle(cohort)
        nonces = [*(world.secrets(i).nonce for i in (0, 1, 2, 3)), nonce]
        reply = world.members[VICTIM].handle(nonces_for(world, cohort, nonces))
        view = context_of(present(world.members[VICTIM]._now.view).hash, reply, 4)
        key = world.secrets(VICTIM).cipher_public
        return open_as(private, key, session, view, sealed_shares(reply, 4)[3], 99), world

    with pytest.raises(RosterError, match="member 99 is not in the pinned roster"):
        attack()
    trusting = checks.enrolled

    def first_use(roster: Roster, member: int) -> bytes:
        return sybil.public_bytes if member == 99 else trusting(roster, member)

    with without("enrolled", first_use):
        plain, _ = attack()
    assert len(plain) == keys.PLAIN_SIZE


def test_03_replayed_round() -> None:
    """A finished round is opened again, for a second sum over other members."""

    def attack() -> bytes:
        world = World(PARAMS, stores=True)
        message = frame(
            Kind.BEGIN,
            session_of(world.until(Kind.COHORT)[VICTIM]),
            world.context.begin(PARAMS, world.roster, world.length, 0).body(),
        )
        again = world.member(VICTIM)  # a new process, the same store
        return again.handle(message)

    with pytest.raises(StaleRound, match="round 1, attempt 0 is not above the stored mark"):
        attack()
    with without("fresh"):
        assert attack()[1] == Kind.ADVERT


def test_04_duplicate_id_or_key() -> None:
    """One colluder takes two places among the victim's share holders."""

    def twice_the_id() -> bytes:
        world = World(PARAMS)
        message = world.until(Kind.COHORT, {Kind.BEGIN: [4]})[VICTIM]
        rows = rows_of(message)
        body = cohort_body([*rows, rows[-1]])
        return world.members[VICTIM].handle(frame(Kind.COHORT, session_of(message), body))

    def twice_the_key() -> tuple[int, World]:
        world = World(PARAMS)
        message = world.until(Kind.COHORT)[VICTIM]
        session, rows = session_of(message), rows_of(message)
        fields = rows[3][1] + rows[3][2] + rows[4][3]
        rows[4] = (
            4, *rows[3][1:3], rows[4][3],
            world.identities[4].sign(advert_digest(session, 4, fields)),
        )  # fmt: skip
        cohort = frame(Kind.COHORT, session, cohort_body(rows))
        world.members[VICTIM].handle(cohort)
        nonces = [world.secrets(i).nonce for i in world.ids]
        reply = world.members[VICTIM].handle(nonces_for(world, cohort, nonces))
        view = context_of(present(world.members[VICTIM]._now.view).hash, reply, 4)
        sealed, opened = sealed_shares(reply, 4), 0
        for place, holder in ((2, 3), (3, 4)):
            key = world.secrets(VICTIM).cipher_public
            open_as(world.secrets(3).cipher, key, session, view, sealed[place], holder)
            opened += 1
        return opened, world

    with pytest.raises(DuplicateMember, match="one id twice"):
        twice_the_id()
    with pytest.raises(DuplicateMember, match="one public key twice"):
        twice_the_key()
    with without("distinct"):
        assert twice_the_id()[1] == Kind.REVEAL
        assert twice_the_key()[0] == 2  # one private key, two shares


@pytest.mark.parametrize("u", sorted(keys._LOW_ORDER))
def test_05_low_order_point(u: int) -> None:
    """A colluder's key makes the agreed secret zero, which the server knows too."""

    def attack() -> tuple[bytes, World]:
        world = World(PARAMS)
        message = world.until(Kind.COHORT)[VICTIM]
        session, rows = session_of(message), rows_of(message)
        point = u.to_bytes(32, "little")
        fields = point + rows[4][2] + rows[4][3]
        rows[4] = (
            4, point, *rows[4][2:4],
            world.identities[4].sign(advert_digest(session, 4, fields)),
        )  # fmt: skip
        cohort = frame(Kind.COHORT, session, cohort_body(rows))
        world.members[VICTIM].handle(cohort)
        nonces = [world.secrets(i).nonce for i in world.ids]
        reply = world.members[VICTIM].handle(nonces_for(world, cohort, nonces))
        view = context_of(present(world.members[VICTIM]._now.view).hash, reply, 4)
        pair = b"".join(sorted((point, world.secrets(VICTIM).cipher_public)))
        key = keys.derive_key(bytes(32), "seal", session, pair)
        return keys.unseal(key, sealed_shares(reply, 4)[3], view, VICTIM, 4), world

    with pytest.raises(LowOrderPoint):
        attack()
    with without("contributory"):
        assert len(attack()[0]) == keys.PLAIN_SIZE


@pytest.mark.parametrize("high_bit", [0, 2**255])
def test_05_low_order_point_is_blamed_on_its_sender(high_bit: int) -> None:
    world = World(PARAMS)
    replies = world.deliver(world.server.begin())
    session = world.server._session
    for u in keys._LOW_ORDER:
        fields = (u | high_bit).to_bytes(32, "little") + replies[4][HEADER_SIZE + 32 :][:64]
        signature = world.identities[4].sign(advert_digest(session, 4, fields))
        world.server.blamed.clear()
        world.server._attendance.out.clear()
        with pytest.raises(LowOrderPoint, match="member 4"):
            world.server.receive(4, frame(Kind.ADVERT, session, fields, signature))
        assert list(world.server.blamed) == [4]


def test_06_threshold_outside_its_bounds() -> None:
    """A threshold that the colluders reach alone."""
    weak = dataclasses.replace(PARAMS, threshold=1)

    def attack() -> World:
        world = World(weak)
        world.until(Kind.ALIVE)
        return world

    with pytest.raises(PolicyViolation, match=r"threshold 1 of 4 neighbours gives 0\.0 bits"):
        attack()
    with without("floor_threshold"):
        world = attack()
    share = world.members[4]._now.held[VICTIM][:32]  # one colluder's share is the secret
    assert combine({world.place(VICTIM, 4): share}, 1) == world.secrets(VICTIM).self_seed


def test_07_tiny_cohort() -> None:
    """A sum of two, one of them the server's."""

    def attack() -> World:
        world = World(SecAggParams.derive(n=2, corrupt=0.0, dropout=0.0), floor=Floor(members=3))
        world.until(None)
        return world

    with pytest.raises(PolicyViolation, match="a cohort of 2: at least 3"):
        attack()
    with without("floor_members"):
        world = attack()
    total = world.server.result.total
    assert (total - world.inputs[1]).tolist() == world.inputs[VICTIM].tolist()


def test_08_modulus_or_clip_changed() -> None:
    """A ring too narrow for the sum, or another clipping norm than was agreed."""
    narrow = dataclasses.replace(PARAMS, modulus_bits=8)

    def another_ring() -> World:
        world = World(narrow, floor=Floor(modulus_bits=32))
        world.until(None)
        return world

    def another_clip() -> bytes:
        world = World(PARAMS, context=RoundContext(job=b"job", round=1, policy=b"clip=1000"))
        victim = world.member(VICTIM, RoundContext(job=b"job", round=1, policy=b"clip=1"))
        return victim.handle(world.server.begin()[VICTIM])

    with pytest.raises(PolicyViolation, match="a ring of 8 bits: 32 are required"):
        another_ring()
    with pytest.raises(ContextMismatch, match="policy"):
        another_clip()
    with without("floor_modulus"):
        world = another_ring()
        wrapped = world.server.result.total.astype(int)
        assert wrapped.max() < 2**8
    with without("context"):
        assert another_clip()[1] == Kind.ADVERT


def sparse(n: int, degree: int, colluders: int = 0) -> SecAggParams:
    return SecAggParams(
        n=n,
        degree=degree,
        threshold=2,
        quorum=(n + colluders) // 2 + 1,
        min_alive=n,
        colluders=colluders,
        dropouts=0,
        modulus_bits=32,
    )


def test_09_server_chosen_graph() -> None:
    """The server surrounds the victim with colluders."""
    params = sparse(12, 4)
    colluders = [8, 9, 10, 11]

    def attack() -> tuple[bytes, World]:
        world = World(params, floor=Floor(secrecy_bits=0))
        cohort = world.until(Kind.COHORT)[VICTIM]
        world.deliver(dict.fromkeys(world.ids, cohort))
        nonces = [world.secrets(i).nonce for i in world.ids]
        reply = world.members[VICTIM].handle(nonces_for(world, cohort, nonces, colluders))
        view = context_of(present(world.members[VICTIM]._now.view).hash, reply, 4)
        key = world.secrets(VICTIM).cipher_public
        shares = {}
        for place, (i, sealed) in enumerate(zip(colluders, sealed_shares(reply, 4), strict=True)):
            own = world.secrets(i).cipher
            shares[place] = open_as(own, key, session_of(cohort), view, sealed, i)[:32]
        return combine(shares, 2), world

    with pytest.raises(GraphMismatch):
        attack()
    with without("graph"):
        seed, world = attack()
    assert seed == world.secrets(VICTIM).self_seed


def test_10_nonce_differs_from_its_commitment() -> None:
    """A colluder tries nonces until the graph surrounds the victim."""
    params = sparse(8, 2)
    colluders = {6, 7}

    def attack() -> list[int]:
        world = World(params, floor=Floor(secrecy_bits=0))
        cohort = world.until(Kind.COHORT)[VICTIM]
        world.deliver(dict.fromkeys(world.ids, cohort))
        session = session_of(cohort)
        built = Cohort(world.roster, params, session, cohort[HEADER_SIZE:], None)
        nonces = [world.secrets(i).nonce for i in world.ids]
        for guess in range(2000):
            nonces[7] = hashlib.sha256(guess.to_bytes(4, "little")).digest()
            with without("nonce"):
                view = View(built, params, b"".join(nonces))
            if set(view.neighbour_ids(VICTIM)) == colluders:
                break
        message = nonces_for(world, cohort, nonces, sorted(colluders))
        world.members[VICTIM].handle(message)
        return present(world.members[VICTIM]._now.view).neighbour_ids(VICTIM)

    with pytest.raises(NonceMismatch, match="member 7"):
        attack()
    with without("nonce"):
        assert set(attack()) == colluders


def test_10_nonce_withheld() -> None:
    """A colluder withholds its nonce, so that the graph is drawn until it suits the server."""
    params = sparse(8, 2)
    colluders = {6, 7}

    def attack(draws: int) -> int:
        world = World(params, floor=Floor(secrecy_bits=0))
        victim = world.members[VICTIM]
        for attempt in range(draws):
            begin = world.context.begin(params, world.roster, world.length, attempt)
            session = session_hash(begin)
            opening = frame(Kind.BEGIN, session, begin.body())
            adverts = world.deliver(dict.fromkeys(world.ids, opening))
            body = b"".join(i.to_bytes(4, "little") + adverts[i][HEADER_SIZE:] for i in world.ids)
            cohort = frame(Kind.COHORT, session, body)
            victim.handle(cohort)
            nonces = [world.secrets(i).nonce for i in world.ids]
            built = Cohort(world.roster, params, session, body, None)
            neighbours = View(built, params, b"".join(nonces)).neighbour_ids(VICTIM)
            if set(neighbours) == colluders:
                victim.handle(nonces_for(world, cohort, nonces))
                return attempt
        return draws

    with pytest.raises(PolicyViolation, match="attempt 2 of a round that allows 1"):
        attack(400)
    with without("attempts"):
        assert 0 < attack(200) < 200  # (20/21)^200 < 1e-4; the seed is fixed


def test_10_missing_nonce_is_refused_and_draws_anew_only_so_often() -> None:
    world = World(dataclasses.replace(sparse(8, 2), min_alive=6, dropouts=2, attempts=2))
    world.members = {i: world.members[i] for i in world.ids}
    floor = Floor(secrecy_bits=0)
    world = World(world.params, floor=floor)
    cohort = world.until(Kind.COHORT)
    world.deliver(cohort)
    nonces = [world.secrets(i).nonce for i in world.ids[:-1]]
    with pytest.raises(NonceWithheld, match="7 graph nonces for 8 members"):
        world.members[VICTIM].handle(nonces_for(world, cohort[VICTIM], nonces, [1, 2]))
    world = World(world.params, floor=floor)
    messages = world.step(world.until(Kind.COHORT), absent=[7])
    assert Kind(messages[VICTIM][1]) is Kind.BEGIN
    assert sorted(messages) == [0, 1, 2, 3, 4, 5, 6]
    messages = world.step(messages)
    with pytest.raises(NonceWithheld, match="attempt 2 of 2"):
        world.step(messages, absent=[6])


def test_15_different_models() -> None:
    """The server gives the victim another model and reads its update from the sum's shift."""

    def attack() -> World:
        world = World(PARAMS, context=RoundContext(job=b"job", round=1, model_hash=b"common"))
        world.members[VICTIM] = world.member(
            VICTIM, RoundContext(job=b"job", round=1, model_hash=b"crafted")
        )
        messages = world.server.begin()
        begin = RoundContext(job=b"job", round=1, model_hash=b"crafted").begin(
            PARAMS, world.roster, world.length, 0
        )
        messages[VICTIM] = frame(Kind.BEGIN, transcripts.session_hash(begin), begin.body())
        while messages:
            replies = world.deliver(messages)
            for i, reply in replies.items():  # the server forwards under its own header
                world.server.receive(i, reply[:2] + world.server._session + reply[HEADER_SIZE:])
            messages = world.server.close_stage()
            if messages:
                session = world.members[VICTIM]._now.session
                message = messages[VICTIM]
                messages[VICTIM] = message[:2] + session + message[HEADER_SIZE:]
        return world

    with pytest.raises(SignatureMismatch):
        attack()
    bound = transcripts.session_hash

    def unbound(begin: Any) -> bytes:
        return bound(dataclasses.replace(begin, model_hash=b""))

    with pytest.MonkeyPatch.context() as patch:
        for module in ("transcript", "participant", "aggregator"):
            patch.setattr(f"secure_agg.{module}.session_hash", unbound)
        world = attack()
    total = world.server.result.total.tolist()
    assert total == exact_sum(world.inputs, world.ids, 32)  # over two different models


def test_31_a_message_of_another_session_frames_nobody() -> None:
    """The network keeps an honest advert back until the graph is drawn again, to frame its sender.

    The same holds for a message of a whole other round that somebody recorded.
    """

    def attack() -> World:
        world = World(
            SecAggParams(
                n=8, degree=2, threshold=1, quorum=5, min_alive=5, colluders=0, dropouts=3,
                modulus_bits=32, attempts=2,
            ),
            floor=Floor(secrecy_bits=0),
        )  # fmt: skip
        first = world.deliver(world.server.begin())
        for i, advert in first.items():
            world.server.receive(i, advert)
        again = world.step(world.server.close_stage(), absent=[7])  # withholds its nonce
        assert Kind(again[VICTIM][1]) is Kind.BEGIN
        with pytest.raises(LateMessage, match="member 0: a message of another session"):
            world.server.receive(VICTIM, first[VICTIM])
        assert VICTIM in world.server.waiting
        messages = world.step(again)
        while messages:
            messages = world.step(messages)
        return world

    world = attack()
    assert world.server.result.blamed == {}
    assert world.server.result.included == (0, 1, 2, 3, 4, 5, 6)
    assert world.server.result.total.tolist() == exact_sum(world.inputs, range(7), 32)
    with without("same_session"), pytest.raises(MessageError, match="of another session"):
        attack()  # and that error means blame:
    world = World(PARAMS)
    stranger = World(PARAMS, context=RoundContext(job=b"job", round=2))
    replies = world.deliver(world.server.begin())
    recorded = stranger.deliver(stranger.server.begin())[VICTIM]
    with pytest.raises(LateMessage):
        world.server.receive(VICTIM, recorded)
    assert world.server.blamed == {}
    world.server.receive(VICTIM, replies[VICTIM])  # the member's own word still counts
    with without("same_session"), pytest.raises(MessageError):
        world.server.receive(1, recorded)
    assert list(world.server.blamed) == [1]


def test_15_masks_of_different_views_do_not_cancel() -> None:
    a, b = (X25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2))
    publics = [k.public_key().public_bytes_raw() for k in (a, b)]
    secret = keys.agree(a, publics[1])
    assert secret == keys.agree(b, publics[0])
    one, another = b"one transcript".ljust(32), b"another".ljust(32)
    mine = keys.pair_key("mask", lambda: secret, publics[0], publics[1], one)
    theirs = keys.pair_key("mask", lambda: secret, publics[1], publics[0], one)
    other = keys.pair_key("mask", lambda: secret, publics[1], publics[0], another)
    assert mine == theirs != other


def test_roster_bound_is_kept_whatever_the_server_invites() -> None:
    """A server that may choose the cohort could invite every colluder of the roster."""
    ids = list(range(5))
    identities = {i: Identity.generate(fixed_entropy(str(i))) for i in ids}
    roster = Roster({i: k.public_bytes for i, k in identities.items()}, corrupt=2)
    context = RoundContext(job=b"job", round=0)
    server = Aggregator(roster=roster, params=PARAMS, context=context, length=1, cohort=ids)
    victim = Participant(
        identity=identities[0],
        id=0,
        roster=roster,
        params=PARAMS,
        context=context,
        length=1,
        store=MemoryStore(),
    )
    message = server.begin()[0]
    with pytest.raises(PolicyViolation, match="1 colluders tolerated: the roster assumes up to 2"):
        victim.handle(message)
    with without("floor_roster"):
        assert victim.handle(message)[1] == Kind.ADVERT


def test_a_graph_is_what_its_seed_says() -> None:
    graphs = [Graph(slots=20, degree=4, members=20, seed=bytes([i]) * 32) for i in (1, 1, 2)]
    assert graphs[0].neighbours == graphs[1].neighbours != graphs[2].neighbours
    with pytest.raises(ParameterError, match="it must be even"):
        SecAggParams(
            n=20, degree=3, threshold=1, quorum=11, min_alive=2, colluders=0, dropouts=0,
            modulus_bits=8,
        )  # fmt: skip
