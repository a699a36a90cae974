"""Attacks 11 to 14, 25 and 26: the shares, on their way out and on their way back."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from secure_agg import SecAggParams, keys, shamir
from secure_agg import dealing as dealing_module
from secure_agg.errors import (
    DealerFault,
    MessageError,
    ShareError,
    ShareMismatch,
    ThresholdNotMet,
)
from secure_agg.messages import (
    COMMITMENTS_SIZE,
    DEALT_ROW,
    HEADER_SIZE,
    Kind,
    Release,
    frame,
    take_count,
    unpack_ids,
)
from secure_agg.store import present
from secure_agg.transcript import advert_digest, nonce_commitment
from tests.adversary.test_members import cohort_body, nonces_for, rows_of, session_of
from tests.secure_agg.world import World, exact_sum, fixed_entropy, released, without

VICTIM = 0
PARAMS = SecAggParams.derive(n=5, corrupt=0.2, dropout=0.2)


def sealed_at(world: World, holder: int, dealer: int, message: bytes) -> int:
    """Where in a DELIVERY message to ``holder`` the share from ``dealer`` starts."""
    _, end = take_count(message[HEADER_SIZE:], 0, 4, DEALT_ROW.size, "dealt")
    others = [i for i in world.ids if i != holder]
    step = keys.SEALED_SIZE + 2 + (len(world.ids) - 1) * COMMITMENTS_SIZE
    return HEADER_SIZE + end + others.index(dealer) * step


def replaced(message: bytes, at: int, data: bytes) -> bytes:
    return message[:at] + data + message[at + len(data) :]


def complaints(reply: bytes) -> list[int]:
    body = reply[HEADER_SIZE:]
    _, end = take_count(body, 0, 2, 4, "complaints")
    return unpack_ids(body[2:end], "complaints")


def unauthenticated(key: bytes, sealed: bytes, context: bytes, sender: int, receiver: int) -> bytes:
    """The decryption of RFC 8439 without its check: ChaCha20 from block 1."""
    counter = (1).to_bytes(4, "little") + sealed[: keys.NONCE_SIZE]
    plain = Cipher(algorithms.ChaCha20(key, counter), None).decryptor()
    return plain.update(sealed[keys.NONCE_SIZE : -16])


@contextmanager
def only(*checks_left: str) -> Iterator[None]:
    """Of the two that guard a share on its way, the seal and the commitment, leave these.

    Either refuses attacks 11 and 12 alone. To see one work, and to see the attack succeed once
    that one is gone too, the other has to be out of the way.
    """
    with ExitStack() as stack:
        if "commitment" not in checks_left:
            stack.enter_context(without("share_fits"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        if "authentication" not in checks_left:
            patch.setattr(keys, "unseal", unauthenticated)
        if "binding" not in checks_left:
            patch.setattr(keys, "associated_data", bare)
        yield


def test_11_ciphertext_modified() -> None:
    """One flipped bit in a sealed share: a holder would release a share that nobody dealt."""

    def attack() -> tuple[bytes, World]:
        world = World(PARAMS)
        message = world.until(Kind.DELIVERY)[VICTIM]
        at = sealed_at(world, VICTIM, 3, message) + keys.NONCE_SIZE
        tampered = replaced(message, at, bytes([message[at] ^ 1]))
        return world.members[VICTIM].handle(tampered), world

    for left in (("authentication", "binding", "commitment"), ("authentication", "binding"),
                 ("commitment",)):  # fmt: skip
        with only(*left):
            reply, world = attack()
        assert complaints(reply) == [3], left
        assert 3 not in world.members[VICTIM]._now.held
    with only("binding"):
        reply, world = attack()
    assert complaints(reply) == []
    share = world.members[VICTIM]._now.held[3][:32]
    assert share != dealt_share(world, 3, VICTIM)
    assert share[1:] == dealt_share(world, 3, VICTIM)[1:]


def dealt_share(world: World, dealer: int, holder: int) -> bytes:
    """The share of its seed that an honest dealer dealt."""
    own = world.secrets(dealer)
    secret = own.self_seed + own.mask
    randomness = own.shares_entropy((PARAMS.threshold - 1) * 64)
    shares = shamir.split(secret, 4, PARAMS.threshold, lambda size: randomness[:size])
    return shares[world.place(dealer, holder)][:32]


def bare(context: bytes, sender: int, receiver: int) -> bytes:
    """Associated data that binds nothing."""
    return b""


def test_12_share_redirected() -> None:
    """The victim's own share for member 3 comes back to it as if member 3 had dealt it."""

    def attack() -> tuple[bytes, World, bytes]:
        world = World(PARAMS)
        messages = world.until(Kind.DELIVERY)
        at = sealed_at(world, 3, VICTIM, messages[3])
        own = messages[3][at : at + keys.SEALED_SIZE]
        to = sealed_at(world, VICTIM, 3, messages[VICTIM])
        reflected = replaced(messages[VICTIM], to, own)
        mine = dealt_share(world, VICTIM, 3)
        return world.members[VICTIM].handle(reflected), world, mine

    for left in (("authentication", "binding", "commitment"), ("authentication", "binding"),
                 ("authentication", "commitment")):  # fmt: skip
        with only(*left):
            reply, world, _ = attack()
        assert complaints(reply) == [3], left
        assert 3 not in world.members[VICTIM]._now.held
    with only("authentication"):
        reply, world, mine = attack()
    assert complaints(reply) == []
    assert world.members[VICTIM]._now.held[3][:32] == mine  # its own share, in another's name


def test_13_share_replayed() -> None:
    """Shares dealt under one view of the cohort are delivered under another.

    A colluder signs two adverts, so that the victim sees another cohort than everybody else; the
    shares that the others dealt in theirs are replayed to it. Commitments do not name the view:
    what binds a share to it is its associated data alone.
    """

    def attack() -> bytes:
        world = World(PARAMS)
        honest = world.until(Kind.COHORT)
        session, rows = session_of(honest[VICTIM]), rows_of(honest[VICTIM])
        nonce = b"n" * 32
        second = [
            X25519PrivateKey.from_private_bytes(bytes([i]) * 32).public_key().public_bytes_raw()
            for i in (1, 2)
        ]
        fields = b"".join(second) + nonce_commitment(session, 4, nonce)
        signature = world.identities[4].sign(advert_digest(session, 4, fields))
        rows[4] = (4, *second, fields[64:], signature)
        other = frame(Kind.COHORT, session, cohort_body(rows))
        # everybody else, in the cohort as it is
        for i, reply in world.deliver(honest, absent=[VICTIM]).items():
            world.server.receive(i, reply)
        victim = world.members[VICTIM]
        reveal = frame(Kind.REVEAL, session, world.secrets(VICTIM).nonce)
        world.server.receive(VICTIM, reveal)
        dealt = world.deliver(world.server.close_stage(), absent=[VICTIM])
        # the victim, in the other
        victim.handle(other)
        nonces = [world.secrets(i).nonce for i in world.ids[:-1]]
        own = victim.handle(nonces_for(world, other, [*nonces, nonce]))[HEADER_SIZE:]
        bodies = {VICTIM: own} | {i: dealt[i][HEADER_SIZE:] for i in (1, 2, 3)}
        size = 4 * COMMITMENTS_SIZE
        broadcast = b"".join(
            DEALT_ROW.pack(i, body[:32], hashlib.sha256(body[96 : 96 + size]).digest(), body[32:96])
            for i, body in bodies.items()
        )
        personal = b"".join(
            body[96 + size :][: keys.SEALED_SIZE] + b"\x04\x00" + body[96 : 96 + size]
            for i, body in bodies.items()
            if i != VICTIM  # whose place among everybody's neighbours is the first
        )
        count = len(bodies).to_bytes(4, "little")
        return victim.handle(frame(Kind.DELIVERY, session, count, broadcast, personal))

    with pytest.raises(ThresholdNotMet, match="0 "):
        attack()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "associated_data", bare)
        reply = attack()
    assert reply[1] == Kind.MASKED
    assert complaints(reply) == []


def test_14_too_few_shares() -> None:
    """The server spoils the victim's shares and waits for its input all the same."""

    def attack() -> bytes:
        world = World(PARAMS)
        message = world.until(Kind.DELIVERY)[VICTIM]
        for dealer in (2, 3):
            at = sealed_at(world, VICTIM, dealer, message)
            message = replaced(message, at, bytes(keys.SEALED_SIZE))
        return world.members[VICTIM].handle(message)

    with pytest.raises(ThresholdNotMet, match="2 authentic shares received: 3 are needed"):
        attack()
    with without("enough_shares"):
        assert complaints(attack()) == [2, 3]


def lying_holder(world: World, holder: int, change: Callable[[bytes], bytes]) -> None:
    """Run to the end; ``holder`` changes the first share that it releases."""
    messages = world.until(Kind.UNMASK, {Kind.DELIVERY: [VICTIM]})
    for i, reply in world.deliver(messages).items():
        if i == holder:
            answer = released(reply)
            dealer, kind, share, opening = answer.rows[0]
            assert dealer == VICTIM
            rows = [(dealer, kind, change(share), opening), *answer.rows[1:]]
            lie = Release(own_seed=answer.own_seed, rows=rows)
            reply = frame(Kind.RELEASE, reply[2:HEADER_SIZE], lie.body())
            try:
                world.server.receive(i, reply)
            except ShareMismatch:
                continue
        else:
            world.server.receive(i, reply)
    world.server.close_stage()


def test_25_bad_share_of_a_holder() -> None:
    """A holder releases another share than it was dealt, and would have the dealer blamed."""

    def attack() -> World:
        world = World(PARAMS)
        lying_holder(world, 1, lambda share: share[:8] + bytes([share[8] ^ 1]) + share[9:])
        return world

    world = attack()
    assert list(world.server.result.blamed) == [1]
    assert "a share dealt by member 0" in world.server.result.blamed[1]
    assert world.server.result.included == (1, 2, 3, 4)
    assert world.server.result.total.tolist() == exact_sum(world.inputs, [1, 2, 3, 4], 32)
    with without("share_fits"), pytest.raises(DealerFault) as error:
        attack()
    assert error.value.blamed == {VICTIM}  # framed


def dealing(world: World, dealer: int, wrong: int, holders: int) -> None:
    """Make ``dealer`` commit to ``wrong`` shares off its polynomial."""
    honest = shamir.split

    def crooked(secret: bytes, count: int, threshold: int, entropy: object) -> list[bytes]:
        shares = honest(secret, count, threshold, entropy)  # type: ignore[arg-type]
        if secret[:32] == world.secrets(dealer).self_seed:
            for i in range(wrong):
                shares[i] = bytes(b ^ (17, 90, 211)[i] for b in shares[i])
        return shares

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dealing_module, "split", crooked)
        messages = world.until(Kind.DELIVERY)
    messages = world.step(messages, absent=[dealer])
    while messages:
        messages = world.step(messages)


def test_25_inconsistent_dealer() -> None:
    """A dealer commits to shares of nothing, then vanishes."""

    def attack() -> World:
        world = World(PARAMS)
        dealing(world, VICTIM, wrong=2, holders=4)
        return world

    with pytest.raises(DealerFault, match=r"members \[0\] do not determine") as error:
        attack()
    assert error.value.blamed == {VICTIM}
    with without("key_matches"):
        world = attack()  # silently wrong
    assert world.server.result.total.tolist() != exact_sum(world.inputs, [1, 2, 3, 4], 32)


@pytest.mark.parametrize(("threshold", "wrong"), [(3, 1), (3, 2), (2, 2)])
def test_25_inconsistent_shares_are_corrected_up_to_the_bound(threshold: int, wrong: int) -> None:
    """Floor((m - t) / 2) of m shares: the round ends well, and the dealer is blamed."""
    params = SecAggParams(
        n=7, degree=6, threshold=threshold, quorum=5, min_alive=5, colluders=1, dropouts=2,
        modulus_bits=32,
    )  # fmt: skip
    world = World(params)
    assert shamir.correctable(6, 3) == 1
    assert shamir.correctable(6, 2) == 2
    if wrong > shamir.correctable(6, threshold):
        with pytest.raises(DealerFault):
            dealing(world, VICTIM, wrong, 6)
        assert list(world.server.blamed) == [VICTIM]
        return
    dealing(world, VICTIM, wrong, 6)
    result = world.server.result
    assert list(result.blamed) == [VICTIM]
    assert "inconsistent shares" in result.blamed[VICTIM]
    assert result.total.tolist() == exact_sum(world.inputs, range(1, 7), 32)


def test_25_complaints_frame_nobody_until_an_honest_member_complains() -> None:
    """Colluders complain falsely about the victim: blame needs one complaint more than them."""

    def attack(liars: list[int]) -> World:
        world = World(PARAMS)
        messages = world.until(Kind.DELIVERY)
        for liar in liars:
            at = sealed_at(world, liar, VICTIM, messages[liar])
            messages[liar] = replaced(messages[liar], at, bytes(keys.SEALED_SIZE))
        messages = world.step(messages)
        while messages:
            messages = world.step(messages)
        return world

    world = attack([4])
    assert world.server.result.blamed == {}
    assert world.server.result.total.tolist() == exact_sum(world.inputs, world.ids, 32)
    world = attack([3, 4])
    assert list(world.server.result.blamed) == [VICTIM]


def test_25_complaint_about_a_stranger_is_refused() -> None:
    world = World(PARAMS)
    messages = world.until(Kind.DELIVERY, {Kind.NONCES: [4]})
    reply = world.deliver(messages)[1]
    body = reply[HEADER_SIZE + 2 :]
    lie = frame(Kind.MASKED, reply[2:HEADER_SIZE], b"\1\0", (4).to_bytes(4, "little"), body)
    with pytest.raises(MessageError, match="member 1 complains about one that dealt it no share"):
        world.server.receive(1, lie)
    assert list(world.server.blamed) == [1]


def test_25_holder_releases_more_than_it_was_asked_for() -> None:
    world = World(PARAMS)
    replies = world.deliver(world.until(Kind.UNMASK))
    answer = released(replies[1])
    fewer = Release(own_seed=answer.own_seed, rows=answer.rows[1:])
    session = replies[1][2:HEADER_SIZE]
    with pytest.raises(ShareError, match="member 1 released other shares"):
        world.server.receive(1, frame(Kind.RELEASE, session, fewer.body()))
    assert list(world.server.blamed) == [1]


def test_26_wrong_reconstructed_key() -> None:
    """A dealer deals good shares of a key that is not its advertised one, then vanishes."""

    def attack() -> World:
        world = World(PARAMS)
        honest = shamir.split

        def crooked(secret: bytes, count: int, threshold: int, entropy: object) -> list[bytes]:
            if secret[:32] == world.secrets(VICTIM).self_seed:
                secret = secret[:32] + fixed_entropy("other")(32)
            return honest(secret, count, threshold, entropy)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dealing_module, "split", crooked)
            messages = world.until(Kind.DELIVERY)
        messages = world.step(messages, absent=[VICTIM])
        while messages:
            messages = world.step(messages)
        return world

    with pytest.raises(DealerFault, match="members") as error:
        attack()
    assert error.value.blamed == {VICTIM}
    with without("key_matches"):
        world = attack()
    assert world.server.result.total.tolist() != exact_sum(world.inputs, [1, 2, 3, 4], 32)


def test_26_blames_the_holder_of_a_wrong_own_seed() -> None:
    world = World(PARAMS)
    replies = world.deliver(world.until(Kind.UNMASK))
    for i, reply in replies.items():
        if i == 1:
            lie = dataclasses.replace(released(reply), own_seed=bytes(32))
            with pytest.raises(Exception, match="self-mask seed of member 1 does not fit"):
                world.server.receive(1, frame(Kind.RELEASE, reply[2:HEADER_SIZE], lie.body()))
        else:
            world.server.receive(i, reply)
    world.server.close_stage()
    assert list(world.server.result.blamed) == [1]
    assert world.server.result.total.tolist() == exact_sum(world.inputs, world.ids, 32)


def test_11_dealer_row_altered() -> None:
    """Another H(b) in a dealer's broadcast row: its shares, sealed to the row, do not open."""

    def attack() -> tuple[bytes, World]:
        world = World(PARAMS)
        message = world.until(Kind.DELIVERY)[VICTIM]
        at = HEADER_SIZE + 4 + 3 * DEALT_ROW.size + 4
        return world.members[VICTIM].handle(replaced(message, at, bytes([message[at] ^ 1]))), world

    reply, world = attack()
    assert complaints(reply) == [3]
    assert present(world.members[VICTIM]._now.dealt).transcript != world.dealt.transcript
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "associated_data", bare)
        reply, _ = attack()
    assert complaints(reply) == []


def test_25_unsigned_dealing_is_pinned_on_the_dealer() -> None:
    """A dealer withholds the evidence, deals well and vanishes: named, and the sum is exact."""
    world = World(PARAMS)
    replies = world.deliver(world.until(Kind.NONCES))
    for i, reply in replies.items():
        at = HEADER_SIZE + 32
        unsigned = replaced(reply, at, bytes(64))
        world.server.receive(i, unsigned if i == VICTIM else reply)
    messages = world.server.close_stage()
    messages = world.step(messages, absent=[VICTIM])
    while messages:
        messages = world.step(messages)
    assert list(world.server.result.blamed) == [VICTIM]
    assert "on its shares does not verify" in world.server.result.blamed[VICTIM]
    assert world.server.result.total.tolist() == exact_sum(world.inputs, [1, 2, 3, 4], 32)
