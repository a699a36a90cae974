"""The coordinator as a Flower ServerApp: the same deployment, carried by Flower's Grid.

::

    flwr run . --run-config 'fedsys-home="DIR" fedsys-job="silo"'

DIR is a coordinator's folder (`fedsys coordinator init`) that the devices have joined; jobs,
ledgers and results are kept where they are over gRPC. Secure aggregation is ours: SuperLink and
nodes forward messages that they cannot open. A run that Flower loses is resumed by the next run
of the same job, from the coordinator's own ledger and checkpoint.

Flower's nodes are polled every few seconds, so a stage takes at least that long; every wait has a
deadline.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pkgutil
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedsys.bounded_toml import parse_toml
from fedsys.config import dump, load, validate
from fedsys.errors import ConfigError, FedsysError, ProtocolError
from fedsys.improvement import STOPPED
from fedsys.logs import configure_unless_hosted
from fedsys.printable import printable
from fedsys.wire import fleet_pb2
from fedsys.wire.flower import CHALLENGE, DOWN, NODE, PROOF, QUERY, RECORD, UP, hello_message
from fedsys.wire.limits import kind_of_down
from server.deployed.fleet import Fleet, Link
from server.deployed.job_model import ModelSource
from server.deployed.lost_rosters import compare_greeting, take_back
from server.deployed.queue import Deployment, submit
from server.deployed.roster_news import roster_news
from server.deployed.round import Randomness
from server.home.enrollment import Registry
from server.home.folder import Home
from server.home.state import ACTIVE_JOB, JobRow, State
from server.ingress import MOST_AT_ONCE, Ingress
from server.metrics import Metrics
from server.operator_side import operator_side

__all__ = ["GridFleet", "app", "run_job"]

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Relay:
    """One Flower node, and the device that proved to be behind it.

    Attributes:
        id: Flower's id of the node.
        challenge: Unpredictable bytes for the device behind it to sign.
        link: The device's session, once the device is recognised.
        ingress: Filter that the device's messages pass.
        pending: Flower's id of the message that is not answered yet.
        since: When that message was sent, or when the node last failed (monotonic seconds).
        offer: The job's offer, as it was last sent.
        invitation: The round's invitation, as it was last sent.
    """

    id: int
    challenge: bytes = field(default_factory=lambda: os.urandom(32))
    link: Link | None = None
    ingress: Ingress | None = None
    pending: str | None = None
    since: float = float("-inf")
    offer: bytes | None = None
    invitation: fleet_pb2.Invitation | None = None


class GridFleet:
    """Carries a fleet's messages over Flower's Grid: one open message for each node at a time.

    Args:
        grid: Flower's connection to its nodes.
        fleet: Where the recognised devices' sessions are registered.
        registry: Knows which devices may take part.
        poll: Seconds between two polls of the Grid.
        patience: Seconds after which an unanswered message means that its node is gone.
    """

    def __init__(
        self,
        grid: Grid,
        fleet: Fleet,
        registry: Registry,
        *,
        poll: float = 1.0,
        patience: float = 900.0,
    ) -> None:
        self._grid = grid
        self._fleet = fleet
        self._registry = registry
        self._poll = poll
        self._patience = patience
        self._relays: dict[int, _Relay] = {}
        self._pushing = False

    @property
    def busy(self) -> bool:
        """Whether anything is on its way to a device that is connected."""
        relays = (relay for relay in self._relays.values() if relay.link is not None)
        return self._pushing or any(
            r.pending or (r.link and not r.link.outgoing.empty()) for r in relays
        )

    async def serve(self) -> None:
        """Poll until cancelled."""
        while True:
            await self.step()
            await asyncio.sleep(self._poll)

    async def step(self) -> None:
        """Poll once: find nodes that came or went, send what is queued, read the replies."""
        present = set(await asyncio.to_thread(lambda: list(self._grid.get_node_ids())))
        for gone in self._relays.keys() - present:
            self._lost(self._relays.pop(gone))
        for id in sorted(present - self._relays.keys()):
            self._relays[id] = _Relay(id=id)
        self._follow_registry()
        now = time.monotonic()
        for relay in self._relays.values():
            if relay.pending is not None and now - relay.since > self._patience:
                self._lost(relay)
        await self._push(now)
        await self._pull()

    # -- to the devices ---------------------------------------------------------------------------

    async def _push(self, now: float) -> None:
        ready: list[tuple[_Relay, Message]] = []
        for relay in self._relays.values():
            if relay.pending is not None:
                continue
            record = self._batch(relay, now)
            if record is not None:
                content = RecordDict({RECORD: record})
                ready.append((relay, self._message(content, relay.id)))
        if not ready:
            return
        messages = [message for _, message in ready]
        self._pushing = True  # no longer in a queue, and not yet pending
        try:
            ids = await asyncio.to_thread(lambda: list(self._grid.push_messages(messages)))
        finally:
            self._pushing = False
        for (relay, _), id in zip(ready, ids, strict=True):
            if id:
                relay.pending, relay.since = id, now
            else:
                self._lost(relay)

    def _message(self, content: RecordDict, node: int) -> Message:
        return Message(
            content, dst_node_id=node, message_type=f"query.{QUERY}", ttl=2 * self._patience
        )

    def _batch(self, relay: _Relay, now: float) -> ConfigRecord | None:
        if relay.link is None:
            if now - relay.since < 5 * self._poll:
                return None
            return ConfigRecord({CHALLENGE: relay.challenge})
        downs: list[bytes] = []
        while not relay.link.outgoing.empty():
            raw = relay.link.outgoing.get_nowait()
            if raw is None:  # another node proved to be the same device
                self._lost(relay)
                return None
            downs += self._for_one_that_forgets(relay, raw)
        for each in downs:  # counted as sent, which is more than was queued
            self._fleet.counted("out", kind_of_down(each), len(each))
        return ConfigRecord({DOWN: downs}) if downs else None

    def _for_one_that_forgets(self, relay: _Relay, raw: bytes) -> Iterable[bytes]:
        """A message together with all that a fresh process needs to act on it: Flower may start
        a new process for every message, which remembers no offer and no invitation."""
        down = fleet_pb2.Down.FromString(raw)
        kind = down.WhichOneof("content")
        if kind == "offer":
            relay.offer = raw
        elif kind == "invitation":
            relay.invitation = down.invitation
        elif kind == "stage" and relay.invitation is not None:
            relay.invitation.stage.CopyFrom(down.stage)
        if kind == "lines" and relay.offer is not None:
            return [relay.offer, raw]
        if kind not in ("invitation", "stage") or relay.invitation is None:
            return [raw]
        again = fleet_pb2.Down(invitation=relay.invitation).SerializeToString()
        return [again] if relay.offer is None else [relay.offer, again]

    # -- from the devices -------------------------------------------------------------------------

    async def _pull(self) -> None:
        pending = {r.pending: r for r in self._relays.values() if r.pending is not None}
        if not pending:
            return
        await self._fleet.room()
        replies = await asyncio.to_thread(lambda: list(self._grid.pull_messages(list(pending))))
        for reply in replies:
            relay = pending.get(reply.metadata.reply_to_message_id)
            if relay is None or relay.pending != reply.metadata.reply_to_message_id:
                continue
            relay.pending = None
            try:
                self._take(relay, reply)
            except (FedsysError, InvalidSignature, KeyError, TypeError) as error:
                _log.warning("Flower node %d: %s", relay.id, error or type(error).__name__)
                self._lost(relay)

    def _take(self, relay: _Relay, reply: Message) -> None:
        if reply.has_error():
            _log.warning("Flower node %d: %s", relay.id, printable(reply.error.reason))
            self._lost(relay)
            return
        record = reply.content.config_records[RECORD]
        ups = record[UP]
        if not isinstance(ups, list) or len(ups) > MOST_AT_ONCE:
            raise ProtocolError("an answer without its list, or with too long a one")
        if relay.link is None:
            self._recognise(relay, record)
        link, ingress = relay.link, relay.ingress
        if link is None or ingress is None:
            raise ProtocolError("an answer of nobody")
        for raw in ups:
            if not isinstance(raw, bytes):
                raise ProtocolError("an answer that is no bytes")
            if ingress.limit(raw) < len(raw) <= ingress.passed(raw):
                continue  # an answer that came too late
            up = ingress.take(raw)
            self._registry.prekeys.keep(link.node, up)
            kind = up.WhichOneof("content")
            if kind == "hello":
                self._greet(link, up.hello)
            elif kind == "roster":
                take_back(self._registry, link, up.roster)
            elif kind != "prekeys":
                ingress.hand_on(up, len(raw))

    def _recognise(self, relay: _Relay, record: ConfigRecord) -> None:
        """Find the device whose roster identity signed the challenge.

        Raises:
            FedsysError: The device is not on the roster.
            InvalidSignature: The claimed device did not sign the challenge.
        """
        node, proof = record[NODE], record[PROOF]
        roster = self._registry.chain().newest
        if not isinstance(node, int) or not isinstance(proof, bytes):
            raise TypeError("a greeting without its proof")
        if roster is None or node not in roster.members:
            raise ConfigError(f"node {node} is not on the roster")
        public = Ed25519PublicKey.from_public_bytes(roster.members[node])
        public.verify(proof, hello_message(relay.challenge, relay.id))
        relay.link = Link(node=node, repeats_offers=True)
        relay.ingress = Ingress(relay.link, self._fleet)

    def _greet(self, link: Link, hello: fleet_pb2.Hello) -> None:
        link.version = hello.version
        link.roster = min(hello.roster_version, self._registry.roster_version())
        if self._fleet.links.get(link.node) is not link:
            self._announce(link)
            compare_greeting(self._registry, link, hello)
            self._fleet.open(link)

    def _announce(self, link: Link) -> None:
        for part in roster_news(self._registry, link.node, link.roster):
            link.send(fleet_pb2.Down(roster=fleet_pb2.RosterNews(roster=part)))
        link.roster = self._registry.roster_version()

    def _follow_registry(self) -> None:
        """Announce a new roster, and drop the devices that are no longer on it."""
        newest = self._registry.roster_version()
        behind = [link for link in self._fleet.links.values() if link.roster < newest]
        roster = self._registry.chain().newest if behind else None
        for relay in self._relays.values():
            if relay.link in behind and roster is not None and relay.link is not None:
                if relay.link.node in roster.members:
                    self._announce(relay.link)
                else:
                    self._lost(relay)

    def _lost(self, relay: _Relay) -> None:
        """The device behind this node is gone until it answers a fresh challenge."""
        link, relay.link, relay.pending = relay.link, None, None
        relay.challenge, relay.since = os.urandom(32), time.monotonic()
        relay.offer = relay.invitation = relay.ingress = None
        if link is not None:
            self._fleet.closed(link)


async def run_job(
    grid: Grid,
    home: Home,
    text: str,
    *,
    models: ModelSource,
    poll: float = 1.0,
    randomness: Randomness | None = None,
    metrics: Metrics | None = None,
) -> JobRow:
    """Run one job over the Grid to its end; an interrupted one is resumed.

    Args:
        grid: Flower's connection to its nodes.
        home: The coordinator's folder.
        text: The job's configuration, as TOML.
        models: Builds the model of a configuration.
        poll: Seconds between two polls of the Grid.
        randomness: Replaces the OS's randomness in tests.
        metrics: Metrics to count into; served at the address in ``coordinator.toml`` until the
            job is over.

    Raises:
        ConfigError: Another coordinator runs on this folder, the operator's side cannot be served
            as ``coordinator.toml`` says, or the job's rounds are buffered.
    """
    if validate(parse_toml(text.encode())).rounds.mode == "buffered":
        raise ConfigError(
            "rounds.mode = 'buffered' over Flower, whose nodes cannot train besides their "
            "messages: use 'synchronous', or run the job with `fedsys coordinator run`"
        )
    with home.alone():
        metrics = Metrics() if metrics is None else metrics
        state, fleet = State.open(home.path), Fleet(counted=metrics.passed)
        registry, settings = home.registry(state), home.settings()
        deployment = Deployment(
            home=home,
            state=state,
            registry=registry,
            fleet=fleet,
            models=models,
            metrics=metrics,
            randomness=randomness,
        )
        carrier = GridFleet(
            grid, fleet, registry, poll=poll, patience=settings.training + settings.stage
        )
        active = [row for row in state.jobs() if row.status in ACTIVE_JOB and row.config == text]
        id = (active[0] if active else submit(state, text)).id
        operator = operator_side(
            home=home, state=state, fleet=fleet, deployment=deployment, metrics=metrics
        )
        tasks: list[asyncio.Task[None]] = []
        try:
            async with operator as presence:
                try:
                    tasks += map(asyncio.create_task, (deployment.serve(), carrier.serve()))
                    while state.job(id).status in ACTIVE_JOB:
                        done, _ = await asyncio.wait(
                            {presence, *tasks}, timeout=poll, return_when=asyncio.FIRST_COMPLETED
                        )
                        for task in done:
                            task.result()
                    # For the last round's countersignatures:
                    ends = time.monotonic() + settings.stage
                    while carrier.busy and time.monotonic() < ends:
                        await asyncio.sleep(poll)
                    deployment.take_late()
                finally:
                    await _cancelled(tasks)
            return state.job(id)
        finally:
            state.close()


async def _cancelled(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks repeatedly until they end: before Python 3.12 a `wait_for` may swallow a
    cancellation that arrives together with its result."""
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=1.0)


app = ServerApp()


@app.main()  # type: ignore[untyped-decorator, unused-ignore]
def _main(grid: Grid, context: Context) -> None:
    configure_unless_hosted()
    settings = context.run_config
    if not settings.get("fedsys-home"):
        raise ConfigError(
            "the run lacks fedsys-home; give --run-config 'fedsys-home=\"DIR\"', a folder that "
            "`fedsys coordinator init` made"
        )
    config = load(str(settings.get("fedsys-job", "silo")))
    models: ModelSource = pkgutil.resolve_name(str(settings["fedsys-models"]))
    home = Home.open(Path(str(settings["fedsys-home"])))
    row = asyncio.run(run_job(grid, home, dump(config), models=models))
    _log.info("job %s: %s", row.id, row.status)
    if row.status not in ("completed", "budget-exhausted", STOPPED):
        raise FedsysError(f"job {row.id}: {row.status}: {row.reason}")
