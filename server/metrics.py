"""Counters for Prometheus. Nothing here tells a realised cohort but what is marked so."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class Metrics:
    """What an operator watches; each coordinator has a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._rounds = Counter(
            "fedsys_rounds", "Rounds by outcome.", ["outcome"], registry=self.registry
        )
        self._stages = Histogram(
            "fedsys_stage_seconds",
            "Duration of the stages of committed rounds. Server-side: tells of stragglers.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._refusals = Counter(
            "fedsys_refusals", "Jobs and rounds that agents declined.", registry=self.registry
        )
        self._connected = Gauge("fedsys_connected_agents", "Open sessions.", registry=self.registry)
        self._jobs = Counter("fedsys_jobs", "Jobs by status.", ["status"], registry=self.registry)

    def serve(self, address: str) -> None:
        """Answer ``/metrics`` at ``HOST:PORT``."""
        host, _, port = address.rpartition(":")
        start_http_server(int(port), addr=host or "127.0.0.1", registry=self.registry)

    def round_committed(self, seconds: Mapping[str, float]) -> None:
        """A round ended with a model."""
        self._rounds.labels("committed").inc()
        for stage, duration in seconds.items():
            self._stages.labels(stage).observe(duration)

    def round_aborted(self) -> None:
        """A round ended without one."""
        self._rounds.labels("aborted").inc()

    def refused(self) -> None:
        """An agent declined."""
        self._refusals.inc()

    def connected(self, agents: int) -> None:
        """So many sessions are open."""
        self._connected.set(agents)

    def job_ended(self, status: str) -> None:
        """A job is over."""
        self._jobs.labels(status).inc()
