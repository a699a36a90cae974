"""Metrics for Prometheus; ``METRICS.md`` next to this file lists them.

Every metric that reveals something about a realised cohort, such as who took part or how long it
took, is named ``fedsys_serverside_...``: anyone who reads it is in the server's view. The others
reveal no more than the published ledger, so one rule in a scraper (drop ``fedsys_serverside_.*``)
gives a page that anyone may see.
"""

from __future__ import annotations

import json
import math
import socket
import threading
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    make_wsgi_app,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector
from sqlalchemy.exc import DBAPIError

from fedsys.errors import ConfigError
from fedsys.privacy import Epsilons
from server.deployed.fleet import Fleet
from server.home.state import ACTIVE_JOB, PAUSED, State

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class Metrics:
    """A coordinator's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._server: Any = None
        self._state: State | None = None
        ProcessCollector(namespace="fedsys_serverside", registry=registry)
        self._jobs = Counter(
            "fedsys_jobs", "Jobs that ended, by status.", ["status"], registry=registry
        )
        self._rounds = Counter(
            "fedsys_rounds", "Rounds that ended, by outcome.", ["outcome"], registry=registry
        )
        self._connected = Gauge("fedsys_connected_agents", "Open sessions.", registry=registry)
        self._lacking = Gauge(
            "fedsys_job_lacks_agents",
            "Agents that must still agree and connect before a job goes on; 0 where it goes on.",
            ["job"],
            registry=registry,
        )
        self._epsilon = Gauge(
            "fedsys_epsilon",
            "Epsilon spent over all jobs by population and view; +Inf without protection.",
            ["population", "view"],
            registry=registry,
        )
        self._server_epsilon = Gauge(
            "fedsys_serverside_epsilon",
            "The same in the server's view, which depends on the realised cohorts.",
            ["population"],
            registry=registry,
        )
        self._stages = Histogram(
            "fedsys_serverside_stage_seconds",
            "Duration of the stages of committed rounds; reveals stragglers.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._refusals = Counter(
            "fedsys_serverside_refusals",
            "What agents declined: a whole job, or one of its rounds.",
            ["of"],
            registry=registry,
        )
        self._bytes = Counter(
            "fedsys_serverside_bytes",
            "Messages' bytes before framing and encryption, by direction and kind.",
            ["direction", "kind"],
            registry=registry,
        )

    def watch(self, state: State, fleet: Fleet) -> None:
        """Show the queue and the devices too, as they are in the database when somebody asks.

        Args:
            state: the coordinator's database.
            fleet: its open sessions.
        """
        self._state = state
        self.registry.register(_Standing(state, fleet))

    def why_unhealthy(self) -> str:
        """What is wrong with the coordinator, in a few words; empty if it serves."""
        if self._state is None:
            return ""
        try:
            self._state.check()
        except DBAPIError as error:
            return f"the database cannot be used: {error.orig}"
        return ""

    def serve(self, address: str) -> int:
        """Serve ``/metrics`` and ``/health`` at ``HOST:PORT``.

        Returns:
            the port, chosen by the OS where it is 0.

        Raises:
            ConfigError: The address is not valid, or cannot be listened on.
        """
        host, _, port = address.rpartition(":")
        try:
            found = socket.getaddrinfo(
                host.strip("[]") or "127.0.0.1",
                int(port),
                type=socket.SOCK_STREAM,
                flags=socket.AI_PASSIVE,
            )
            family, _kind, _protocol, _name, place = found[0]
            self._server = make_server(
                str(place[0]),
                int(port),
                self._application(),
                _Server6 if family == socket.AF_INET6 else ThreadingWSGIServer,
                handler_class=_Silent,
            )
        except (ValueError, OverflowError, OSError) as error:
            why = (error.strerror if isinstance(error, OSError) else "") or "no such address"
            raise ConfigError(
                f"metrics = '{address}' in coordinator.toml: cannot listen there: {why.lower()}; "
                f"give another HOST:PORT, e.g. 'localhost:9464', or '' for none"
            ) from None
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        return int(self._server.server_port)

    def _application(self) -> Callable[..., Iterable[bytes]]:
        """The metrics, and next to them whether the coordinator is well."""
        metrics: Any = make_wsgi_app(self.registry)

        def answer(environ: Mapping[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            if environ.get("PATH_INFO") != "/health":
                found: Iterable[bytes] = metrics(environ, start)
                return found
            wrong = self.why_unhealthy()
            status = "503 Service Unavailable" if wrong else "200 OK"
            start(status, [("Content-Type", "application/json")])
            return [json.dumps({"status": wrong or "serving"}).encode()]

        return answer

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def round_committed(self, seconds: Mapping[str, float]) -> None:
        """Count a round that ended with a model, and how long its stages took."""
        self._rounds.labels("committed").inc()
        for stage, duration in seconds.items():
            self._stages.labels(stage).observe(duration)

    def round_aborted(self) -> None:
        """Count a round that ended without a model."""
        self._rounds.labels("aborted").inc()

    def refused(self, round: int) -> None:
        """Count an agent's refusal of a round; 0 is the whole job."""
        self._refusals.labels("round" if round else "job").inc()

    def connected(self, agents: int) -> None:
        """Set the number of open sessions."""
        self._connected.set(agents)

    def lacking(self, job: str, agents: int) -> None:
        """Set how many agents a job waits for."""
        self._lacking.labels(job).set(agents)

    def job_ended(self, job: str, status: str) -> None:
        """Count a job that ended, or was paused."""
        with suppress(KeyError):
            self._lacking.remove(job)
        self._jobs.labels(status).inc()

    def spent(self, population: str, epsilons: Epsilons) -> None:
        """Set what all jobs spent; a view without a known epsilon counts as unprotected."""
        for view in ("outsider", "participant"):
            self._epsilon.labels(population, view).set(_or_infinite(getattr(epsilons, view)))
        self._server_epsilon.labels(population).set(_or_infinite(epsilons.server))

    def passed(self, direction: str, kind: str, size: int) -> None:
        """Count the bytes of a message that came ``in`` or went ``out``."""
        self._bytes.labels(direction, kind).inc(size)


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


class _Standing(Collector):
    """Jobs and devices as the database has them: read when it is asked for, by whichever thread."""

    def __init__(self, state: State, fleet: Fleet) -> None:
        self._state = state
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        """Queue, rounds and when devices were last seen; nothing where the database fails."""
        try:
            jobs, nodes = self._state.jobs(), self._state.nodes()
        except DBAPIError:
            return
        there = dict(self._fleet.links)
        counts = Counts(row.status for row in jobs)
        queue = GaugeMetricFamily(
            "fedsys_queue_jobs", "Jobs that are not over, by status.", labels=["status"]
        )
        for status in (*ACTIVE_JOB, PAUSED):
            queue.add_metric([status], counts[status])
        yield queue
        done = GaugeMetricFamily(
            "fedsys_job_round", "Rounds that a job which is not over has paid for.", labels=["job"]
        )
        planned = GaugeMetricFamily(
            "fedsys_job_rounds", "Rounds that a job which is not over asks for.", labels=["job"]
        )
        for row in jobs:
            if row.status in (*ACTIVE_JOB, PAUSED):
                done.add_metric([row.id], row.round)
                planned.add_metric([row.id], row.rounds)
        yield done
        yield planned
        connected = GaugeMetricFamily(
            "fedsys_serverside_device_connected", "1 while a device is.", labels=["device"]
        )
        seen = GaugeMetricFamily(
            "fedsys_serverside_device_last_seen_seconds",
            "When a device's session was last seen open, in seconds since 1970.",
            labels=["device"],
        )
        for node in nodes:
            if node.status != "revoked":
                connected.add_metric([node.name], float(node.id in there))
                if node.last_seen is not None:
                    seen.add_metric([node.name], node.last_seen)
        yield connected
        yield seen


class _Silent(WSGIRequestHandler):
    """Does not log requests."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class _Server6(ThreadingWSGIServer):
    """Of an IPv6 address."""

    address_family = socket.AF_INET6
