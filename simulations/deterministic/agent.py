"""An agent of a schedule: the product's `Session`, its journal and its stores, on failing disks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from client.answer_time import AnswerTime
from client.identity import Credentials
from client.policy import Policy
from client.session import Dismissed, Session
from client.volatile import VolatileStore
from fedsys.errors import FedsysError
from fedsys.privacy import Entropy, Signer
from fedsys.secret_files import write_secret
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.roster import RosterStatement, SignedStatement, signed_message
from fedsys.wire.terms import Terms
from secure_agg import Identity, SecureAggError
from secure_agg.marks import Marks
from simulations.deterministic.dice import Dice
from simulations.deterministic.storage import TMPFS, Disk

__all__ = ["CODE", "TASK", "AgentParty", "found", "roster_key", "roster_of", "signed_roster"]

DEVICE = "device"
TASK = "digits"
CODE = "c0de"

Said = Callable[[int, fleet_pb2.Up], None]


def roster_key(seed: int) -> Ed25519PrivateKey:
    """Of the roster's authority, who is neither the coordinator nor an agent."""
    return Ed25519PrivateKey.from_private_bytes(Dice(seed, "authority").bytes(32))


def ledger_signer(seed: int) -> Signer:
    """The coordinator's, which agents pin when they join."""
    return Signer.generate(entropy=Dice(seed, "ledger").bytes)


def signed_roster(roster: RosterStatement, seed: int) -> SignedStatement:
    """As the authority publishes it."""
    signature = roster_key(seed).sign(signed_message(roster.encoded))
    return SignedStatement(statement=roster.encoded, signature=signature)


def roster_of(identities: Sequence[Identity]) -> RosterStatement:
    """The first roster; client k is node k + 1."""
    members = {client + 1: each.public_bytes for client, each in enumerate(identities)}
    return RosterStatement(version=1, previous=b"", members=members, colluders=0)


def found(disk: Disk, client: int, identity: Identity, roster: RosterStatement, seed: int) -> None:
    """Make what a device that has joined has on its disk, durably."""
    folder = disk.root / DEVICE
    folder.mkdir()
    write_secret(folder / "identity.ed25519", identity.private_bytes())
    Credentials(
        folder=folder,
        node=client + 1,
        name=f"agent-{client}",
        coordinator="localhost:1",
        identity=identity,
        ca=b"",
        roster_key=roster_key(seed).public_key().public_bytes_raw(),
        signer=bytes.fromhex(ledger_signer(seed).public_hex),
    ).store([signed_roster(roster, seed)])
    disk.settle()


class _DiceWorker:
    """Updates as the dice fall, another one each time."""

    sha256 = CODE

    def __init__(self, dice: Dice) -> None:
        self._dice = dice

    def check(self, terms: Terms) -> None:
        """Everything can be trained."""

    def train(
        self, terms: Terms, assignment: Assignment, client: int, entropy: Entropy
    ) -> NDArray[np.float32]:
        """(1, d)."""
        raw = np.frombuffer(self._dice.bytes(2 * terms.dimension), "<i2")
        return (raw / 32768.0).astype(np.float32)[np.newaxis]


class AgentParty:
    """One agent over its restarts; `boot` is what a process does when it starts.

    Args:
        id: its client number.
        policy: its owner's.
        disk: of a device that has joined.
        dice: for its updates and all its secrets.
        dial: opens a connection, on which it is to say `hello`.
        say: takes what it sends.
    """

    def __init__(
        self,
        *,
        id: int,
        policy: Policy,
        disk: Disk,
        dice: Dice,
        dial: Callable[[int], None],
        say: Said,
    ) -> None:
        self.id = id
        self.disk = disk
        self._policy = policy
        self._dice = dice
        self._dial = dial
        self._say = say
        self._session: Session | None = None
        self._boots = 0

    def boot(self) -> None:
        """A fresh process: it has what disk and memory of its machine hold, and dials."""
        folder, memory = self.disk.root / DEVICE, self.disk.root / TMPFS
        memory.mkdir(exist_ok=True)
        self._boots += 1
        self._session = Session(
            credentials=Credentials.load(folder),
            worker=_DiceWorker(self._dice),
            policy=lambda: self._policy,
            noise=lambda _round: self._dice.bytes,
            keys=self._dice.bytes,
            volatile=VolatileStore(folder, memory),
            answer_time=AnswerTime(clock=lambda: 0.0, sleep=lambda _seconds: None),
        )
        self._session.instance = bytes([self.id]) * 8 + self._boots.to_bytes(8, "little")
        self._dial(self.id)

    def greet(self) -> None:
        """A connection is open."""
        if self._session is not None:
            self._say(self.id, self._session.hello())

    def take(self, message: fleet_pb2.Down) -> str:
        """A message arrives; says what was done about it, for the trace.

        Raises:
            Dismissed: the coordinator ends the connection.
        """
        if self._session is None:
            return "nobody is there"
        try:
            answer = self._session.handle(message)
        except Dismissed:
            raise
        except (SecureAggError, FedsysError) as error:
            return f"{type(error).__name__}: {error}"
        if answer is None:
            return "noted"
        self._say(self.id, answer)
        return "answered"

    # -- what a loss of power could not take -------------------------------------------------------

    def certain(self, path: str) -> bytes | None:
        """A file of its folder; None: maybe not even that is left."""
        return self.disk.durable(self.disk.root / DEVICE / path)

    @property
    def counted(self) -> tuple[frozenset[int], frozenset[int]]:
        """Rounds that it counts as joined, and those in which it knows that a vector left."""
        try:
            jobs = json.loads(self.certain("journal.json") or b"")["jobs"]
        except ValueError:
            return frozenset(), frozenset()
        joined = (number for job in jobs for number in job["joined"])
        return frozenset(joined), frozenset(n for job in jobs for n in job["uploaded"])

    @property
    def marks(self) -> Marks:
        """Secure aggregation's marks of what it did."""
        try:
            return Marks.unpack(self.certain("round.state") or b"")
        except SecureAggError:
            return Marks()
