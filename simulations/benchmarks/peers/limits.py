"""Works that an engine cannot run, with the reason in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsys.config import Config

__all__ = ["refusals"]

_NO_RUNNER = {
    "blazefl": (
        "BlazeFL 3.0 needs Python 3.14 or newer (its metadata: `Requires-Python: >=3.14`), which "
        "was not there to write and check a comparison with; leave it out of --engines"
    )
}
_NOT_PLAIN = (
    "privacy.mechanism = 'example-gaussian' puts noise into local training itself, and plain "
    "training is what is compared; use --set privacy.mechanism=none"
)
_NODES = 100_000
_SECONDS = 300.0
_NODE_BYTES = 3000
_LOOK = 2e-6
"""Seconds that Flower 1.41 takes to check one message for one node (InMemoryLinkState's
``get_message_ins``, measured: 2.0 to 3.3 microseconds on an AMD EPYC)."""


def refusals(job: Config, engines: Sequence[str], peers: Mapping[str, Path]) -> dict[str, str]:
    """Engines that cannot run this work, and why.

    Args:
        job: The work.
        engines: The engines asked for.
        peers: By engine, the Python in its environment, where that is not this one.
    """
    if job.privacy.mechanism == "example-gaussian":
        return dict.fromkeys(engines, _NOT_PLAIN)
    found = {}
    for engine in engines:
        reason = _nodes(job) if engine == "flwr" else _NO_RUNNER.get(engine)
        if engine in peers and not peers[engine].exists():
            reason = f"{peers[engine]} is not there: `make bench` installs it"
        if reason is not None:
            found[engine] = reason
    return found


def _nodes(job: Config) -> str | None:
    """Why Flower cannot hold the population, or None: it registers every client as a node, and ten
    times a second looks through all of the round's messages for each node."""
    nodes, messages = job.population.clients or 0, job.cohort.expected
    looking = nodes * messages * _LOOK
    if nodes <= _NODES and looking <= _SECONDS:
        return None
    return (
        f"Flower keeps every client as a node ({nodes:,} take {nodes * _NODE_BYTES / 1e9:.2g} "
        f"GB) and looks through the round's {messages:,} messages for each of them (about "
        f"{looking:,.0f} s a round); ask for less, e.g. --set population.clients=10000 --set "
        "cohort.expected=1000"
    )
