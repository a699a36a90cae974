"""Every refusal of the protocol, one small function each.

A function states a rule and raises the error that names what broke it. They are gathered here so
that the list of what is refused can be read in one place, and so that a test can take away exactly
one of them and watch the attack it stops succeed. Callers go through the module
(``checks.quorum(...)``), never around it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Final

from secure_agg import hypergeometric
from secure_agg.committee import SECRECY_BITS
from secure_agg.errors import (
    AlreadyAnswered,
    AlreadyEndorsed,
    CommitteeMismatch,
    ContextMismatch,
    DuplicateMember,
    InputError,
    LateMessage,
    LowOrderPoint,
    MessageError,
    PolicyViolation,
    ProofError,
    QuorumNotMet,
    ResidualError,
    RosterError,
    SetError,
    ShareError,
    SignatureMismatch,
    StageError,
    StaleRound,
    StateError,
    ThresholdNotMet,
    UploadReused,
)
from secure_agg.params import SecAggParams

MAX_SEQUENCE: Final = 2**31

# -- form -------------------------------------------------------------------------------------


def size(found: int, least: int, most: int, what: str) -> None:
    """Raise MessageError unless a size is one that the round allows; nothing is parsed before."""
    if not least <= found <= most:
        raise MessageError(f"a {what} message of {found} bytes: {least} to {most} are allowed")


def this_session(found: bytes, session: bytes, what: str) -> None:
    """Raise MessageError unless a message is of the session that is open."""
    if found != session:
        raise MessageError(f"a {what} message of another session")


def same_session(found: bytes, session: bytes, sender: int) -> None:
    """A member's message is of the session that is open now.

    One of another session proves nothing against its sender: the network kept it back, or a replay
    brought it here.

    Raises:
        LateMessage: It is of another.
    """
    if found != session:
        raise LateMessage(f"member {sender}: a message of another session is discarded")


def awaited(step: int, now: int, sender: int, expected: bool, what: str) -> None:
    """A member's message arrives while the server waits for it; a late upload is discarded.

    Args:
        step: To which a message belongs.
        now: The step that is open.
        sender: The member.
        expected: Whether this member's message for the open step is still to come.
        what: The message's name.

    Raises:
        LateMessage: Its step is closed; an upload must not enter a set that is fixed.
        StageError: Its step has not come, or nothing is expected of this member.
    """
    if step < now:
        raise LateMessage(f"member {sender}: a {what} message after its step was closed")
    if step > now or not expected:
        raise StageError(f"member {sender}: no {what} message is expected of it now")


def numbered(found: int, next_one: int, sender: int, what: str) -> None:
    """Raise StageError unless a message carries the number that is its turn."""
    if found != next_one:
        raise StageError(f"member {sender}: {what} {found} where {next_one} is awaited")


# -- what the server announces ------------------------------------------------------------------


def context(agreed: Mapping[str, object], announced: Mapping[str, object]) -> None:
    """Job, round, model, policy, roster and parameters are those agreed upon.

    Raises:
        ContextMismatch: One of them is another.
    """
    for name, value in agreed.items():
        if announced[name] != value:
            raise ContextMismatch(f"the server announced another {name} than was agreed upon")


def fresh(round_: int, mark: int | None) -> None:
    """Raise StaleRound on a round below the last one that this member entered."""
    if mark is not None and round_ < mark:
        raise StaleRound(f"round {round_} is below the stored mark of round {mark}")


def one_session(session: bytes, entered: bytes | None, round_: int) -> None:
    """Raise StaleRound on a second session in one round: another committee, cohort or key."""
    if entered is not None and session != entered:
        raise StaleRound(f"round {round_} was entered in another session; there is no second one")


def upload_once(sequence: int, uploads: int) -> None:
    """Raise StaleRound unless an upload is the next one of this session, across restarts too."""
    if sequence < uploads:
        raise StaleRound(f"upload {sequence} has left in this round; there is no second one")


def next_upload(sequence: int, epoch: bool) -> None:
    """Raise StageError on a further upload outside an epoch, or on a number without a successor."""
    if not epoch:
        raise StageError(f"upload {sequence} is asked for: there is one in a synchronous round")
    if sequence >= MAX_SEQUENCE:
        raise StageError(f"upload {sequence} is asked for: numbers are below {MAX_SEQUENCE}")


def roster_colluders(params: SecAggParams, assumed: int | None) -> None:
    """The parameters hold against as many colluders as the roster assumes.

    The server chooses the cohort, and could invite them all. Of those in the cohort the committee
    then holds more than ``params.colluders`` with chance 2^-104 at most, and a sum contains at
    least two inputs that are not theirs.

    Raises:
        PolicyViolation: They hold against fewer.
    """
    if assumed is None:
        return
    present = min(assumed, params.n - 2)
    drawn = hypergeometric.upper(
        population=params.n, marked=present, draws=params.committee, bits=SECRECY_BITS
    )
    if params.colluders < drawn:
        raise PolicyViolation(
            f"{params.colluders} colluders tolerated in a committee of {params.committee}: the "
            f"roster assumes {assumed} of all members, of whom it may hold {drawn}"
        )
    if params.min_included < present + 2:
        raise PolicyViolation(
            f"a sum of {params.min_included} inputs: the roster assumes {assumed} colluders, so "
            f"that {present + 2} are needed"
        )


def invited(places: Mapping[int, int], member: int) -> None:
    """Raise RosterError unless a member belongs to the cohort."""
    if member not in places:
        raise RosterError(f"member {member} is not in the cohort of this round")


def committee(drawn: tuple[int, ...], announced: tuple[int, ...]) -> None:
    """Raise CommitteeMismatch unless the committee is the one that the cohort determines."""
    if drawn != announced:
        raise CommitteeMismatch("the committee is not the one that the cohort determines")


def suite(found: int, agreed: int, member: int) -> None:
    """Raise MessageError unless a sealing key is of the round's suite."""
    if found != agreed:
        raise MessageError(f"member {member}'s sealing key is of suite {found}, not {agreed}")


# -- keys and signatures ------------------------------------------------------------------------


def enrolled(roster: Mapping[int, bytes], member: int) -> bytes:
    """Return the Ed25519 public key of a member of the pinned roster, 32 bytes.

    Raises:
        RosterError: The roster has no such member.
    """
    public = roster.get(member)
    if public is None:
        raise RosterError(f"member {member} is not in the pinned roster")
    return public


def own_identity(expected: bytes, found: bytes) -> None:
    """Raise RosterError unless the roster holds this member's own key under its id."""
    if found != expected:
        raise RosterError("the roster holds another public key for this member than its own")


def signature(valid: bool, member: int, what: str) -> None:
    """Raise SignatureMismatch unless a signature verified under the roster's key."""
    if not valid:
        raise SignatureMismatch(f"the signature of member {member} on its {what} does not verify")


def sealing_key_signature(valid: bool, owner: bytes) -> None:
    """Raise SignatureMismatch unless a sealing key was signed by its owner."""
    if not valid:
        raise SignatureMismatch(
            f"a sealing key's signature does not verify under identity {owner.hex()[:16]}"
        )


def distinct(values: Iterable[Hashable], count: int, what: str) -> None:
    """Raise DuplicateMember unless ``values`` are ``count`` different ones."""
    if len(set(values)) != count:
        raise DuplicateMember(f"one {what} occurs twice")


def high_order(low: bool, what: str) -> None:
    """Raise LowOrderPoint if a public X25519 key is of low order."""
    if low:
        raise LowOrderPoint(f"{what} of low order: the agreed secret would be known to all")


def encapsulation_key(good: bool) -> None:
    """Raise MessageError unless the ML-KEM half of a sealing key is one."""
    if not good:
        raise MessageError("a sealing key whose ML-KEM half is malformed")


def contributory(secret: bytes) -> None:
    """Raise LowOrderPoint if an agreed X25519 secret is zero (RFC 7748, section 6.1)."""
    if not any(secret):
        raise LowOrderPoint("a public key of low order: the agreed secret would be known to all")


# -- shares ---------------------------------------------------------------------------------------


def share_opens(plain: bytes | None, dealer: int) -> None:
    """Raise ShareError unless a sealed share opens under the key agreed with its dealer."""
    if plain is None:
        raise ShareError(f"the share dealt by member {dealer} does not open")


def share_in_field(largest: int, prime: int, dealer: int) -> None:
    """Raise ShareError unless all of a share's values are elements of the field."""
    if largest >= prime:
        raise ShareError(f"the share dealt by member {dealer} is not of the field")


def low_degree(good: bool, dealer: int) -> None:
    """Raise ProofError unless a share lies on the polynomials that its dealer's proof shows."""
    if not good:
        raise ProofError(f"the share dealt by member {dealer} fails the low-degree test")


def complaints(unproven: int, colluders: int, member: int) -> None:
    """A member that complains without evidence about more dealers than may be corrupt is ignored.

    Raises:
        ShareError: It does.
    """
    most = max(3, colluders)
    if unproven > most:
        raise ShareError(
            f"member {member} complains about {unproven} dealers without evidence: at most {most}"
        )


def evidence(fails: bool, member: int, dealer: int) -> None:
    """Raise ShareError if the key that a complaint reveals shows a share that is good, or none."""
    if not fails:
        raise ShareError(f"member {member} accuses dealer {dealer}, and its evidence shows nothing")


# -- the set --------------------------------------------------------------------------------------


def enough_included(count: int, least: int, what: str) -> None:
    """Raise ThresholdNotMet on a set of fewer than m uploads."""
    if count < least:
        raise ThresholdNotMet(f"{count} uploads {what}: at least {least} are needed")


def held(good: bool, dealer: int) -> None:
    """Raise SetError if a set contains a dealer whose share was not delivered, or failed."""
    if not good:
        raise SetError(f"the set contains dealer {dealer}, of whom no checked share is held")


def endorses_once(endorsed: bytes | None, asked: bytes) -> None:
    """Raise AlreadyEndorsed on a second set for one sum, across restarts too."""
    if endorsed is not None and endorsed != asked:
        raise AlreadyEndorsed("another set was endorsed for this sum; there is no second one")


def disjoint(sequence: int, last: int | None, dealer: int) -> None:
    """Raise UploadReused if an upload is, or precedes, one in an earlier endorsed set."""
    if last is not None and sequence <= last:
        raise UploadReused(f"upload {sequence} of dealer {dealer} is not after those summed before")


def delivered_once(buffer: int, done: Collection[int]) -> None:
    """Raise StageError on a second delivery for one sum, or one out of order."""
    if done and buffer <= max(done):
        raise StageError(f"the shares of sum {buffer} were delivered already")


def buffer_of_epoch(buffer: int, buffers: int) -> None:
    """Raise StageError on a sum that the session does not provide for."""
    if buffer >= buffers:
        raise StageError(f"sum {buffer} of a session of {buffers}")


# -- endorsements and answers ---------------------------------------------------------------------


def quorum(count: int, least: int, what: str = "endorsements of the set") -> None:
    """Raise QuorumNotMet on fewer valid endorsements of one set than q > (C + c) / 2."""
    if count < least:
        raise QuorumNotMet(f"{count} {what}: {least} are needed")


def answers_once(answered: Collection[int], buffer: int) -> None:
    """Raise AlreadyAnswered if this sum's answer was given, across restarts too."""
    if buffer in answered:
        raise AlreadyAnswered("the answer for this sum was given; there is no second one")


def enough_answers(count: int, least: int) -> None:
    """Raise ThresholdNotMet on fewer answers than t, which do not determine the sum."""
    if count < least:
        raise ThresholdNotMet(f"{count} answers: {least} are needed")


def answer_in_field(largest: int, prime: int, member: int) -> None:
    """Raise MessageError unless all of an answer's values are elements of the field."""
    if largest >= prime:
        raise MessageError(f"the answer of member {member} is not of the field")


# -- the sum --------------------------------------------------------------------------------------


def secret_bound(largest: int, limit: float, count: int) -> None:
    """Raise ResidualError if a sum of secrets is larger than that of honest dealers."""
    if largest > limit:
        raise ResidualError(
            f"the sum of {count} secrets has a coefficient above {limit:.0f}: the shares do not "
            "add up to honest secrets"
        )


def residual(params: SecAggParams, count: int, worst: int, rms: float) -> None:
    """What is left below the values is the noise of honest ciphertexts.

    Args:
        params: Of the round.
        count: Ciphertexts in the sum.
        worst: Largest absolute value of the noise.
        rms: Its root mean square.

    Raises:
        ResidualError: It is larger: a ciphertext does not match its shares.
    """
    sigma, limit = params.noise_sigma(count), params.noise_limit(count)
    if rms > 1.25 * sigma + 1 or worst > limit + 1:
        raise ResidualError(
            f"the noise of {count} ciphertexts has root mean square {rms:.0f} and maximum {worst}, "
            f"expected {sigma:.0f} and at most {limit:.0f}: a ciphertext does not match its shares"
        )


# -- a member's own state -------------------------------------------------------------------------


def state_kept(kept: bool, what: str) -> None:
    """Raise StateError where what a step needs was lost with the memory: the member abstains."""
    if not kept:
        raise StateError(f"{what} was lost with the memory, or never held: this member abstains")


def input_range(largest: int, bits: int) -> None:
    """Raise InputError unless an input lies in the ring, without saying by how much it does not."""
    if largest >> bits:
        raise InputError(f"an element of the vector does not fit in {bits} bits")
