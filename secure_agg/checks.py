"""Every refusal of the protocol, one small function each.

A function states a rule and raises the error that names what broke it. They are gathered here so
that the list of what is refused can be read in one place, and so that a test can take away exactly
one of them and watch the attack it stops succeed. Callers go through the module
(``checks.quorum(...)``), never around it.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Hashable, Iterable, Mapping

from secure_agg.errors import (
    AliveSetError,
    AlreadyReleased,
    AlreadySigned,
    ContextMismatch,
    DuplicateMember,
    GraphMismatch,
    InputError,
    KeyMismatch,
    LateMessage,
    LowOrderPoint,
    MessageError,
    NonceMismatch,
    NonceWithheld,
    OwnKeyChanged,
    PolicyViolation,
    QuorumNotMet,
    RosterError,
    ShareMismatch,
    SignatureMismatch,
    StageError,
    StaleRound,
    ThresholdNotMet,
)
from secure_agg.floor import Floor
from secure_agg.params import SecAggParams

# -- form -------------------------------------------------------------------------------------


def size(found: int, least: int, most: int, what: str) -> None:
    """Raise MessageError unless a size is one that the round allows; nothing is parsed before."""
    if not least <= found <= most:
        raise MessageError(f"a {what} message of {found} bytes: {least} to {most} are allowed")


def stage(found: str, expected: str, what: str) -> None:
    """Raise StageError unless a message is of the machine's stage; none is skipped or repeated."""
    if found != expected:
        raise StageError(f"a {what} message in stage {found}: it belongs to stage {expected}")


def awaited(stage_of_message: int, stage_now: int, sender: int, expected: bool) -> None:
    """A client's message arrives while the server waits for it; a late upload is discarded.

    A member that was declared dropped has had its mask key reconstructed: its upload must not
    enter anything any more.

    Raises:
        LateMessage: The stage of the message is over.
        StageError: It has not come, or nothing is expected of this member.
    """
    if stage_of_message < stage_now:
        raise LateMessage(f"member {sender}: the stage is closed; the message is discarded")
    if stage_of_message > stage_now or not expected:
        raise StageError(f"member {sender}: the server does not wait for this message")


def same_session(found: bytes, session: bytes, sender: int) -> None:
    """A client's message is of the session that is open now.

    One of another session proves nothing against its sender: it said so when it was asked, and the
    network kept it back while the round's graph was drawn again, or a replay brought it here.

    Raises:
        LateMessage: It is of another.
    """
    if found != session:
        raise LateMessage(f"member {sender}: a message of another session is discarded")


# -- round and policy ---------------------------------------------------------------------------


def context(agreed: Mapping[str, object], announced: Mapping[str, object]) -> None:
    """Job, round, model, policy, roster, parameters and length are those agreed upon.

    Raises:
        ContextMismatch: One of them is another.
    """
    for name, value in agreed.items():
        if announced[name] != value:
            raise ContextMismatch(f"the server announced another {name} than was agreed upon")


def fresh(mark: tuple[int, int] | None, round_: int, attempt: int) -> None:
    """Raise StaleRound unless a round, or an attempt within it, is above the stored mark."""
    if mark is not None and (round_, attempt) <= mark:
        raise StaleRound(
            f"round {round_}, attempt {attempt} is not above the stored mark "
            f"of round {mark[0]}, attempt {mark[1]}"
        )


def attempts(attempt: int, params: SecAggParams) -> None:
    """A graph is drawn no more often than the parameters were derived for.

    Args:
        attempt: Draws before this one.
        params: Of the round.

    Raises:
        PolicyViolation: It would be.
    """
    if attempt >= params.attempts:
        raise PolicyViolation(f"attempt {attempt + 1} of a round that allows {params.attempts}")


def floor_members(params: SecAggParams, floor: Floor) -> None:
    """Raise PolicyViolation if the cohort, or the smallest sum, is below the floor."""
    if params.n < floor.members:
        raise PolicyViolation(f"a cohort of {params.n}: at least {floor.members} are required here")
    if params.min_alive < floor.min_alive:
        raise PolicyViolation(
            f"a sum of {params.min_alive} inputs: at least {floor.min_alive} are required here"
        )


def floor_threshold(params: SecAggParams, floor: Floor) -> None:
    """The threshold is inside its bounds: the colluders of a neighbourhood stay below it.

    Raises:
        PolicyViolation: Threshold, neighbours or bits of secrecy are below the floor.
    """
    least = max(floor.threshold, floor.threshold_fraction * params.degree)
    if params.threshold < least:
        raise PolicyViolation(f"threshold {params.threshold}: at least {least:g} is required here")
    if params.degree < floor.degree_fraction * (params.n - 1):
        raise PolicyViolation(
            f"{params.degree} neighbours: at least "
            f"{floor.degree_fraction * (params.n - 1):g} are required here"
        )
    if params.secrecy_bits < floor.secrecy_bits:
        raise PolicyViolation(
            f"threshold {params.threshold} of {params.degree} neighbours gives "
            f"{params.secrecy_bits:.1f} bits of secrecy: {floor.secrecy_bits:g} are required here"
        )


def floor_quorum(params: SecAggParams, floor: Floor) -> None:
    """No two alive sets can both reach the quorum, and enough colluders are tolerated.

    Raises:
        PolicyViolation: Two could, or the quorum or the colluders are below the floor.
    """
    least = max(floor.quorum_fraction * params.n, (params.n + params.colluders) // 2 + 1)
    if params.quorum < least:
        raise PolicyViolation(f"a quorum of {params.quorum}: at least {least:g} is required here")
    if params.colluders < floor.corrupt * params.n - 1e-9:
        raise PolicyViolation(
            f"{params.colluders} colluders of {params.n} tolerated: a fraction of "
            f"{floor.corrupt:g} is required here"
        )


def floor_roster(params: SecAggParams, corrupt: int | None) -> None:
    """Raise PolicyViolation if fewer colluders are tolerated than the roster assumes."""
    if corrupt is not None and params.colluders < min(corrupt, params.n - 1):
        raise PolicyViolation(
            f"{params.colluders} colluders tolerated: the roster assumes up to {corrupt}"
        )


def floor_modulus(params: SecAggParams, floor: Floor) -> None:
    """Raise PolicyViolation unless the ring is the one that the encoder was made for."""
    if floor.modulus_bits is not None and params.modulus_bits != floor.modulus_bits:
        raise PolicyViolation(
            f"a ring of {params.modulus_bits} bits: {floor.modulus_bits} are required here"
        )


# -- members and graph ----------------------------------------------------------------------------


def enrolled(roster: Mapping[int, bytes], member: int) -> bytes:
    """Return the Ed25519 public key of a member of the pinned roster, 32 bytes.

    Raises:
        RosterError: The roster has no such member.
    """
    public = roster.get(member)
    if public is None:
        raise RosterError(f"member {member} is not in the pinned roster")
    return public


def signature(valid: bool, member: int, what: str) -> None:
    """Raise SignatureMismatch unless a signature verified under the roster's key."""
    if not valid:
        raise SignatureMismatch(f"the signature of member {member} on its {what} does not verify")


def distinct(values: Iterable[Hashable], count: int, what: str) -> None:
    """Raise DuplicateMember unless ``values`` are ``count`` different ones."""
    if len(set(values)) != count:
        raise DuplicateMember(f"the cohort contains one {what} twice")


def own_entry(expected: bytes, found: bytes | None, what: str) -> None:
    """Raise OwnKeyChanged unless the server shows everybody what this participant sent."""
    if found != expected:
        raise OwnKeyChanged(f"the server shows this participant's {what} missing or altered")


def contributory(secret: bytes) -> None:
    """Raise LowOrderPoint if an agreed X25519 secret is zero (RFC 7748, section 6.1)."""
    if not any(secret):
        raise LowOrderPoint("a public key of low order: the agreed secret would be known to all")


def high_order(low: bool, member: int) -> None:
    """Raise LowOrderPoint if an advertised X25519 key is of low order."""
    if low:
        raise LowOrderPoint(f"member {member} advertised a public key of low order")


def enough_members(count: int, params: SecAggParams, what: str) -> None:
    """A set of members is as large as the smallest sum, and not larger than the cohort.

    Raises:
        ThresholdNotMet: It is smaller.
        AliveSetError: It is larger.
    """
    if count < params.min_alive:
        raise ThresholdNotMet(f"{count} members {what}: at least {params.min_alive} are needed")
    if count > params.n:
        raise AliveSetError(f"{count} members {what}: {params.n} were invited")


def nonces_revealed(count: int, members: int) -> None:
    """Raise NonceWithheld unless every committed nonce was revealed."""
    if count != members:
        raise NonceWithheld(f"{count} graph nonces for {members} members: each must be revealed")


def nonce(commitment: bytes, found: bytes, member: int) -> None:
    """Raise NonceMismatch unless a revealed graph nonce fits its commitment."""
    if commitment != found:
        raise NonceMismatch(f"the graph nonce of member {member} differs from its commitment")


def graph(own: list[int], announced: list[int]) -> None:
    """Raise GraphMismatch unless the server's neighbours are those that the nonces determine."""
    if own != announced:
        raise GraphMismatch("the server's neighbours are not those that the nonces determine")


# -- shares ---------------------------------------------------------------------------------------


def enough_shares(count: int, threshold: int) -> None:
    """Raise ThresholdNotMet on fewer authentic shares than t: then nothing is uploaded."""
    if count < threshold:
        raise ThresholdNotMet(f"{count} authentic shares received: {threshold} are needed")


def share_fits(commitment: bytes, found: bytes, dealer: int) -> None:
    """Raise ShareMismatch unless a share is the one that its dealer committed to."""
    if commitment != found:
        raise ShareMismatch(f"a share dealt by member {dealer} misses its commitment")


def key_matches(expected: bytes, found: bytes, member: int, what: str) -> None:
    """Raise KeyMismatch unless a reconstructed secret fits what its owner published."""
    if not hmac.compare_digest(expected, found):
        raise KeyMismatch(f"the reconstructed {what} of member {member} does not fit")


def input_range(largest: int, bits: int) -> None:
    """Raise InputError unless an input lies in the ring, without saying by how much it does not."""
    if largest >> bits:
        raise InputError(f"an element of the vector does not fit in {bits} bits")


# -- alive set and release ------------------------------------------------------------------------


def alive_subset(alive: Collection[int], dealt: Collection[int]) -> None:
    """Raise AliveSetError unless whoever is alive dealt shares before."""
    if not set(alive) <= set(dealt):
        raise AliveSetError("the alive set names a member that dealt no shares")


def self_alive(own: int, alive: Collection[int]) -> None:
    """Raise AliveSetError unless the sum contains this participant's own input."""
    if own not in alive:
        raise AliveSetError("the alive set leaves this participant out although it sent its input")


def signs_once(signed: bytes | None, asked: bytes) -> None:
    """Raise AlreadySigned on a second alive set in one round, across restarts too."""
    if signed is not None and signed != asked:
        raise AlreadySigned("another alive set was signed in this round; there is no second one")


def distinct_signers(signers: list[int]) -> None:
    """Raise DuplicateMember if a signer would count twice."""
    if len(set(signers)) != len(signers):
        raise DuplicateMember("the quorum counts one signer twice")


def signers_alive(signers: Collection[int], alive: Collection[int]) -> None:
    """Raise AliveSetError unless only members of the alive set signed it."""
    if not set(signers) <= set(alive):
        raise AliveSetError("the quorum counts a signer outside the alive set")


def quorum(count: int, params: SecAggParams) -> None:
    """Raise QuorumNotMet on fewer valid signatures over one alive set than q > (n + c) / 2."""
    if count < params.quorum:
        raise QuorumNotMet(f"{count} signatures over the alive set: {params.quorum} are needed")


def partition(
    dealt: Collection[int], alive: Collection[int], dropped: Collection[int]
) -> frozenset[int]:
    """Return who dropped: stage 1's set minus the alive, computed here; the server's list agrees.

    Never both shares of one id: an id in both lists would give the server everything.

    Raises:
        AliveSetError: The server's list is another.
    """
    own = frozenset(dealt) - frozenset(alive)
    if own != frozenset(dropped) or len(own) != len(dropped):
        raise AliveSetError("the dropped list is not stage 1's set minus the alive set")
    return own


def not_released(released: bool) -> None:
    """Raise AlreadyReleased if shares were released in this round, across restarts too."""
    if released:
        raise AlreadyReleased("the shares of this round were released; there is no second time")
