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
from client.session import Session
from client.volatile import VolatileStore
from fedsys.errors import FedsysError
from fedsys.privacy import Entropy
from fedsys.secret_files import write_secret
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.roster import RosterStatement, SignedStatement, signed_message
from fedsys.wire.terms import Terms
from secure_agg import Identity, SecureAggError
from secure_agg.marks import Marks
from simulations.deterministic.dice import Dice
from simulations.deterministic.storage import TMPFS, Disk

__all__ = ["AgentParty", "found", "roster_of"]

DEVICE = "device"
TASK = "digits"
CODE = "c0de"

Said = Callable[[int, fleet_pb2.Up], None]


def roster_of(identities: Sequence[Identity]) -> RosterStatement:
    """The first roster; client k is node k + 1."""
    members = {client + 1: each.public_bytes for client, each in enumerate(identities)}
    return RosterStatement(version=1, previous=b"", members=members, colluders=0)


def found(disk: Disk, client: int, identity: Identity, roster: RosterStatement, seed: int) -> None:
    """Make what a device that has joined has on its disk, durably."""
    authority = Ed25519PrivateKey.from_private_bytes(Dice(seed, "authority").bytes(32))
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
        roster_key=authority.public_key().public_bytes_raw(),
        signer=bytes(32),
    ).store(
        [
            SignedStatement(
                statement=roster.encoded, signature=authority.sign(signed_message(roster.encoded))
            )
        ]
    )
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
        most: rounds in which its owner lets it take part.
        disk: of a device that has joined.
        dice: for its updates and all its secrets.
        say: takes what it sends.
    """

    def __init__(self, *, id: int, most: int | None, disk: Disk, dice: Dice, say: Said) -> None:
        self.id = id
        self.disk = disk
        self._policy = Policy(max_participations=most, explain=True)
        self._dice = dice
        self._say = say
        self._session: Session | None = None

    def boot(self) -> None:
        """A fresh process: it has what disk and memory of its machine hold, and says hello."""
        folder, memory = self.disk.root / DEVICE, self.disk.root / TMPFS
        memory.mkdir(exist_ok=True)
        self._session = Session(
            credentials=Credentials.load(folder),
            worker=_DiceWorker(self._dice),
            policy=lambda: self._policy,
            noise=lambda _round: self._dice.bytes,
            keys=self._dice.bytes,
            volatile=VolatileStore(folder, memory),
            answer_time=AnswerTime(clock=lambda: 0.0, sleep=lambda _seconds: None),
        )
        self._say(self.id, self._session.hello())

    def take(self, messages: Sequence[fleet_pb2.Down]) -> str:
        """Messages arrive, in this order; says what was done about them, for the trace."""
        if self._session is None:
            return "nobody is there"
        answers = 0
        for message in messages:
            try:
                answer = self._session.handle(message)
            except (SecureAggError, FedsysError) as error:
                return f"{type(error).__name__}: {error}"
            if answer is not None:
                answers += 1
                self._say(self.id, answer)
        return "answered" if answers else "noted"

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
