"""Metrics for Prometheus; ``METRICS.md`` next to this file lists them.

Every metric that reveals something about a realised cohort, such as who took part or how long it
took, is named ``fedsys_serverside_...``: anyone who reads it is in the server's view. The others
reveal no more than the published ledger, so one rule in a scraper (drop ``fedsys_serverside_.*``)
gives a page that anyone may see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from fedsys.errors import ConfigError
from fedsys.privacy import Epsilons

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class Metrics:
    """A coordinator's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._server: Any = None
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

    def serve(self, address: str) -> int:
        """Serve ``/metrics`` at ``HOST:PORT``; returns the port, chosen by the OS where it is 0.

        Raises:
            ConfigError: The address is not valid, or cannot be listened on.
        """
        host, _, port = address.rpartition(":")
        try:
            self._server, _thread = start_http_server(
                int(port), addr=host.strip("[]") or "127.0.0.1", registry=self.registry
            )
        except (ValueError, OverflowError, OSError) as error:
            why = (error.strerror if isinstance(error, OSError) else "") or "no such address"
            raise ConfigError(
                f"metrics = '{address}' in coordinator.toml: cannot listen there: {why.lower()}; "
                f"give another HOST:PORT, e.g. 'localhost:9464', or '' for none"
            ) from None
        return int(self._server.server_port)

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
