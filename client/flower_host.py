"""A device behind a Flower SuperNode: the same `Session` as over gRPC, one message at a time.

::

    flower-supernode --superlink HOST:PORT --node-config \\
        'fedsys-agent="/var/lib/fedsys" fedsys-data="digits" fedsys-shard="0/3"'

``fedsys-corrupt=0.0`` sets ``corrupt`` in the policy that the first message writes: see
`client.policy.Policy`.

The folder is one that `fedsys agent join` made: keys, roster, policy and counts are the owner's and
stay there. Flower carries bytes; it can neither read an update nor change a round unnoticed.
Each message may be handled by a process of its own; the folder is locked while one is answered.
State that must not reach a disk is kept on tmpfs between messages (see `client.volatile`): without
a tmpfs, a device with such short-lived processes can upload, but cannot serve on a committee.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from google.protobuf.message import DecodeError

from client.identity import Credentials
from client.lock import exclusive
from client.policy import ApprovedTask, Policy
from client.session import Dismissed, Session
from fedsys.errors import Cause, ConfigError, FedsysError, ProtocolError
from fedsys.logs import configure_unless_hosted
from fedsys.privacy import Entropy
from fedsys.secret_files import write_secret
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.flower import CHALLENGE, DOWN, NODE, PROOF, QUERY, RECORD, UP, hello_message
from fedsys.wire.limits import check_down
from fedsys.wire.services import MAX_PARCEL
from fedsys.wire.terms import Terms

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from client.local_data import LocalData

__all__ = ["RelaySession", "answer", "app", "open_session"]

_log = logging.getLogger(__name__)
_MODEL = "model"
_MOST_AT_ONCE = 1000
_REFUSED = 2
"""Flower's error code for an app that failed."""


@functools.lru_cache(maxsize=4)
def open_session(folder: str, data: str, shard: str, corrupt: float = 0.1) -> RelaySession:
    """The device's session; it stays open in a process that Flower keeps running.

    Args:
        folder: the folder that `fedsys agent join` made.
        data: ``TASK`` or ``TASK=FOLDER``.
        shard: ``I/N``, or empty.
        corrupt: for the policy, if there is none yet.

    Raises:
        ConfigError: the device has not joined, or its data cannot be found.
    """
    credentials = Credentials.load(Path(folder))
    worker = _LateWorker(data, shard, Path(folder) / "states")
    path = Path(folder) / "policy.toml"
    if not path.exists():
        approved = ApprovedTask(sha256=worker.sha256, options={})
        fresh = Policy.fresh(data.partition("=")[0], approved, corrupt=corrupt)
        write_secret(path, fresh.dump().encode())
    return RelaySession(credentials=credentials, worker=worker, policy=lambda: Policy.load(path))


class _LateWorker:
    """The owner's data, loaded on first use: most messages need neither data nor torch."""

    def __init__(self, data: str, shard: str, states: Path) -> None:
        self._source, self._states = (data, shard), states

    @functools.cached_property
    def _data(self) -> LocalData:
        from client.device_states import DeviceStates
        from client.local_data import DataSpec, LocalData

        data, shard = self._source
        states = DeviceStates(self._states)
        return LocalData(DataSpec.parse(data, shard or None), states=states)

    @property
    def sha256(self) -> str:
        """See `client.session.Worker`."""
        return self._data.sha256

    def check(self, terms: Terms) -> None:
        """See `client.session.Worker`."""
        self._data.check(terms)

    def train(
        self, terms: Terms, assignment: Assignment, client: int, entropy: Entropy
    ) -> NDArray[np.float32]:
        """See `client.session.Worker`."""
        return self._data.train(terms, assignment, client, entropy)


class RelaySession(Session):
    """A session that may continue in another process than the one that began it."""

    def recall(self, encoded: bytes) -> bool:
        """Restore terms to which this device agreed in an earlier process, without another check.

        A round's invitation is checked against the owner's policy all the same.

        Returns:
            Whether the device had agreed to them.
        """
        terms = Terms.decode(encoded)
        record = self.journal.jobs.get(terms.job.hex())
        roster = self.chain.find(terms.roster_version)
        node = self.credentials.node
        if record is None or record.terms != terms.digest.hex():
            return False
        if roster is None or roster.hash.hex() != terms.roster_hash or node not in roster.members:
            return False
        self._terms[terms.job] = (terms, roster.only(terms.members).nodes.index(node))
        return True


def answer(
    message: Message,
    context: Context,
    *,
    sessions: Callable[..., RelaySession] = open_session,
    patience: float = 20.0,
) -> Message:
    """Answer one message of the coordinator.

    Args:
        message: Flower's message, with the record of `fedsys.wire.flower`.
        context: Flower's context; its node configuration names the device's folder and data, its
            state keeps the round's model.
        sessions: opens the device's session.
        patience: seconds to wait for another process that works in the device's folder.

    Raises:
        ConfigError: the node's configuration or the device's folder is invalid, or the folder
            remains locked; nothing is answered or counted.
    """
    folder, data = _setting(context, "fedsys-agent"), _setting(context, "fedsys-data")
    whose = folder, data, str(context.node_config.get("fedsys-shard", ""))
    Credentials.load(Path(folder))  # fails if the folder is not, or no longer, a device's
    mark = _mark(*whose)
    with exclusive(Path(folder), "Flower's SuperNode", mark=mark, patience=patience) as same:
        if not same:  # another process may have counted rounds or pinned a roster
            open_session.cache_clear()
        return _answer(message, context, sessions(*whose, **_corrupt(context)))


@functools.cache
def _mark(_folder: str, _data: str, _shard: str) -> str:
    """The mark under which this process remembers a session."""
    return os.urandom(16).hex()


def _answer(message: Message, context: Context, session: RelaySession) -> Message:
    asked = message.content.config_records[RECORD]
    reply = ConfigRecord()
    challenge = asked.get(CHALLENGE)
    if isinstance(challenge, bytes):
        signed = hello_message(challenge, message.metadata.dst_node_id)
        reply[NODE] = session.credentials.node
        reply[PROOF] = session.credentials.identity.sign(signed)
        reply[UP] = [session.hello().SerializeToString()]
    else:
        reply[UP] = _handle(session, asked, context.state)
    return Message(RecordDict({RECORD: reply}), reply_to=message)


def _corrupt(context: Context) -> dict[str, float]:
    """The fraction for a fresh policy, if the node's configuration gives one."""
    value = context.node_config.get("fedsys-corrupt")
    if value is None:
        return {}
    if isinstance(value, bool | str) or not 0 <= value < 1:
        raise ConfigError(f"fedsys-corrupt = {value}: give a fraction from 0 to below 1")
    return {"corrupt": float(value)}


def _setting(context: Context, key: str) -> str:
    value = context.node_config.get(key)
    if not value:
        raise ConfigError(
            f"the SuperNode's --node-config lacks {key}; give "
            f'\'fedsys-agent="DIR" fedsys-data="TASK"\''
        )
    return str(value)


def _handle(session: RelaySession, asked: ConfigRecord, state: RecordDict) -> list[bytes]:
    answers: list[bytes] = []
    found = asked.get(DOWN)
    raws = found if isinstance(found, list) else []
    if len(raws) > _MOST_AT_ONCE:
        raise ProtocolError(f"{len(raws)} messages at once; at most {_MOST_AT_ONCE} are taken")
    limits = {**session.limits, "model": MAX_PARCEL}  # Flower has received the model by now
    downs = [(raw, _parsed(raw, limits)) for raw in raws]
    in_round = any(down.HasField("invitation") for _, down in downs)
    for raw, down in downs:
        kind = down.WhichOneof("content")
        if kind == "model":
            state[RECORD] = ConfigRecord({_MODEL: raw})
        elif kind == "invitation":
            _restore_model(session, down.invitation, state)
        elif kind == "offer" and in_round and session.recall(down.offer.terms):
            continue
        try:
            up = session.handle(down)
        except Dismissed as farewell:
            _log.warning("the coordinator says goodbye: %s", farewell)
            continue
        if up is not None:
            answers.append(up.SerializeToString())
    return answers


def _parsed(raw: object, limits: Mapping[str, int]) -> fleet_pb2.Down:
    if not isinstance(raw, bytes):
        raise ProtocolError("a message that is not bytes")
    check_down(raw, limits)
    try:
        down: fleet_pb2.Down = fleet_pb2.Down.FromString(raw)
    except DecodeError:
        raise ProtocolError("a message that cannot be read") from None
    return down


def _restore_model(session: Session, invitation: fleet_pb2.Invitation, state: RecordDict) -> None:
    """Give a session the round's model that this node keeps, if the session has lost it."""
    kept = state.config_records.get(RECORD)
    raw = None if kept is None else kept.get(_MODEL)
    if isinstance(raw, bytes):
        down = fleet_pb2.Down.FromString(raw)
        if (down.model.job, down.model.round) == (invitation.job, invitation.round):
            session.handle(down)


app = ClientApp()


@app.query(QUERY)  # type: ignore[untyped-decorator, unused-ignore]
def _query(message: Message, context: Context) -> Message:
    configure_unless_hosted()
    try:
        return answer(message, context)
    except FedsysError as error:  # a line; Flower would print a traceback
        _log.error("%s", error)
        # Paths and limits are the owner's business: they go to the log and nowhere else.
        return Message(Error(code=_REFUSED, reason=Cause.DEVICE.value), reply_to=message)
