"""Single-use sealing keys: signed statements that a member hands out before it is needed.

A committee member's shares are sealed to one of these keys, and to no other round's. The private
halves never reach a disk: they live in this process, or in a volatile store on a tmpfs, so that a
copied or restored disk cannot open anything. A key leaves the pool when a round that names it is
entered, belongs to that session alone, and is erased after the answer.

>>> keys = SealingKeys(Identity(bytes(32)))
>>> prekey, = keys.issue(1)
>>> check_prekey(Identity(bytes(32)).public_bytes, prekey)
>>> keys.outstanding
1
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from secure_agg import checks
from secure_agg.digests import digest
from secure_agg.errors import MessageError, ParameterError, StateError
from secure_agg.marks import Marks
from secure_agg.roster import Entropy, Identity
from secure_agg.sealing import (
    PRIVATE_SIZE,
    PUBLIC_SIZE,
    is_encapsulation_key,
    is_low_order,
    public_of,
    require_suite,
)
from secure_agg.shared import Shared
from secure_agg.signatures import SIGNATURE_SIZE, verifies
from secure_agg.store import Store, pack_fields, unpack_fields

__all__ = [
    "MAX_OUTSTANDING",
    "PREKEY_SIZE",
    "SealingKeys",
    "check_prekey",
    "prekey_suite",
    "public_key",
]

MAX_OUTSTANDING: Final = 64
"""Most keys in a pool; the oldest is dropped, and its private half with it."""
MAX_BOUND: Final = 16
"""Most jobs whose open session keeps a key; the one entered first is dropped."""
PREKEY_SIZE: Final = {suite: 1 + size + SIGNATURE_SIZE for suite, size in PUBLIC_SIZE.items()}
_MAGIC: Final = b"secure_agg sealing keys 2\n"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a member keeps of one job's open session; secret.

    Attributes:
        session: 32 bytes.
        public: The public sealing key that the session uses up, or empty.
        private: Its private half; empty once erased, or where the member has no position.
        work: The member's working state, opaque here.
        reply: What it sent last, which may be a whole upload.
    """

    session: bytes
    public: bytes = b""
    private: bytes = field(default=b"", repr=False)
    work: bytes = field(default=b"", repr=False)
    reply: bytes = field(default=b"", repr=False)


class SealingKeys:
    """A member's pool of sealing keys, and what it keeps in memory of open rounds.

    Use one object for all rounds of a member in a process.

    Args:
        identity: Signs the statements.
        suite: 1 for X25519, 2 for X25519 with ML-KEM-768: of the keys that `issue` draws unless it
            is told otherwise. The pool holds keys of both.
        entropy: Asked once for each key: 32 bytes, or 96 in suite 2.
        store: A volatile one, on a tmpfs, so that a restarted process goes on. Never on a disk.

    Raises:
        ParameterError: On another suite.
        StateError: When the store's content cannot be read.
    """

    __slots__ = ("_bound", "_entropy", "_identity", "_pool", "_store", "marks", "suite")

    def __init__(
        self,
        identity: Identity,
        *,
        suite: int = 1,
        entropy: Entropy = os.urandom,
        store: Store | None = None,
    ) -> None:
        _require_known(suite)
        self.suite = suite
        self.marks = Marks()
        self._identity = identity
        self._entropy = entropy
        self._store = store
        self._pool: dict[bytes, bytes] = {}
        self._bound: dict[bytes, Bound] = {}
        data = None if store is None else store.load()
        if data is not None:
            self._unpack(data)

    @property
    def outstanding(self) -> int:
        """Keys in the pool: handed out and not yet used."""
        return len(self._pool)

    def issue(self, count: int, suite: int | None = None) -> list[bytes]:
        """Draw keys and return their signed public statements, to be sent to the server.

        The pool keeps the MAX_OUTSTANDING newest of a suite; a round that names an older one goes
        on without this member on its committee.

        Args:
            count: How many.
            suite: Of these; by default that of this object.

        Raises:
            ParameterError: On a count outside 1 to MAX_OUTSTANDING, or a suite that is not known or
                that this machine cannot compute.
            StateError: The store could not be written; no key was issued.
        """
        suite = self.suite if suite is None else suite
        _require_known(suite)
        require_suite(suite)
        if not 1 <= count <= MAX_OUTSTANDING:
            raise ParameterError(f"{count} sealing keys: from 1 to {MAX_OUTSTANDING} at once")
        pool, statements = dict(self._pool), []
        for _ in range(count):
            private = self._entropy(PRIVATE_SIZE[suite])
            public = public_of(private, suite)
            pool[public] = private
            signature = self._identity.sign(_statement(self._identity.public_bytes, public))
            statements.append(bytes((suite,)) + public + signature)
        alike = [public for public in pool if len(public) == PUBLIC_SIZE[suite]]
        for public in alike[: max(len(alike) - MAX_OUTSTANDING, 0)]:
            del pool[public]
        self._save(pool, self._bound, self.marks)
        return statements

    # -- for the member's machine -----------------------------------------------------------------

    def pooled(self, public: bytes) -> bytes:
        """Return the private half of a key that is in the pool, or nothing."""
        return self._pool.get(public, b"")

    def bound(self, job: bytes) -> Bound | None:
        """Return what is kept of a job's open session."""
        return self._bound.get(job)

    def commit(self, job: bytes, bound: Bound, marks: Marks) -> None:
        """Replace what is kept of a job's session; a key that it uses leaves the pool for good.

        Raises:
            StateError: The store could not be written; nothing has changed.
        """
        pool = {key: value for key, value in self._pool.items() if key != bound.public}
        kept = {name: value for name, value in self._bound.items() if name != job}
        kept[job] = bound
        while len(kept) > MAX_BOUND:
            del kept[next(iter(kept))]
        self._save(pool, kept, marks.merge(self.marks))

    def forget(self, job: bytes) -> None:
        """Erase what is kept of a job's session: call it when the round, or the epoch, is over.

        It is erased anyway after the last answer, and when another round of the job is entered.

        Args:
            job: `RoundContext.job_hash`.

        Raises:
            StateError: The store could not be written.
        """
        if job in self._bound:
            kept = {name: value for name, value in self._bound.items() if name != job}
            self._save(self._pool, kept, self.marks)

    def _save(
        self, pool: Mapping[bytes, bytes], bound: Mapping[bytes, Bound], marks: Marks
    ) -> None:
        if self._store is not None:
            fields = [bytes((self.suite,)), marks.pack(), len(pool).to_bytes(4, "little")]
            fields += [part for row in pool.items() for part in row]
            for job, one in bound.items():
                fields += (job, one.session, one.public, one.private, one.work, one.reply)
            self._store.save(pack_fields(_MAGIC, fields))
        self._pool, self._bound, self.marks = dict(pool), dict(bound), marks

    def _unpack(self, data: bytes) -> None:
        fields = unpack_fields(_MAGIC, data)
        if len(fields) < 3:
            raise StateError("stored sealing keys whose fields do not fill them")
        _suite, marks, count, *rest = (
            fields  # both suites are kept; which was the usual one is moot
        )
        split = 2 * int.from_bytes(count, "little")
        pool, bound = rest[:split], rest[split:]
        if len(pool) != split or len(bound) % 6:
            raise StateError("stored sealing keys whose fields do not fill them")
        self._pool = dict(zip(pool[::2], pool[1::2], strict=True))
        sizes = {(PUBLIC_SIZE[suite], PRIVATE_SIZE[suite]) for suite in PUBLIC_SIZE}
        if any((len(public), len(private)) not in sizes for public, private in self._pool.items()):
            raise StateError("stored sealing keys of no known suite")
        for at in range(0, len(bound), 6):
            job, session, public, private, work, reply = bound[at : at + 6]
            self._bound[job] = Bound(
                session=session, public=public, private=private, work=work, reply=reply
            )
        self.marks = Marks.unpack(marks)

    def __repr__(self) -> str:
        return f"SealingKeys({self.outstanding} outstanding, suite={self.suite})"


def _require_known(suite: int) -> None:
    if suite not in PUBLIC_SIZE:
        raise ParameterError(f"suite is {suite}: 1 is X25519, 2 is X25519 with ML-KEM-768")


def prekey_suite(prekey: bytes) -> int:
    """Return the suite of a statement whose size is that suite's.

    Raises:
        MessageError: On any other bytes.
    """
    suite = prekey[0] if prekey else 0
    if len(prekey) != PREKEY_SIZE.get(suite):
        raise MessageError(f"a sealing key of {len(prekey)} bytes: no suite makes one")
    return suite


def public_key(prekey: bytes) -> bytes:
    """Return the public key in a statement of the right size."""
    return prekey[1:-SIGNATURE_SIZE]


def check_prekey(identity_public: bytes, prekey: bytes, shared: Shared | None = None) -> None:
    """Check that a statement was signed by the owner of an identity, and can be sealed to.

    Raises:
        MessageError: On a size that no suite has, or an ML-KEM half that is no key.
        SignatureMismatch: Another identity signed it, or none.
        LowOrderPoint: Its X25519 half is of low order.
    """
    prekey_suite(prekey)
    public, signature = public_key(prekey), prekey[-SIGNATURE_SIZE:]
    valid = verifies(identity_public, signature, _statement(identity_public, public), shared)
    checks.sealing_key_signature(valid, identity_public)
    checks.high_order(is_low_order(public[:32]), "a sealing key")
    checks.encapsulation_key(is_encapsulation_key(public[32:]))


def _statement(identity_public: bytes, public: bytes) -> bytes:
    return digest("sealing key", identity_public, public)
