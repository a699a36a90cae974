"""A round of secure aggregation over real sockets: 100 agents, a million weights.

    python -m simulations.benchmarks.secure_round --agents 100 --dimension 1000000

The coordinator is the deployed one, the agents are real sessions with updates of zeros (see
`simulations.testbed.crowd`). Keys, shares, encryption, uploads, the committee's part and the commit
are included; training and noise are not, and no upload is delayed to hide how long training took.
All parties share this machine's cores, and there are two processes of agents for each, so that one
process works while a device of another waits for the disk.

Next to the round's cost stands the cost of what it cannot do without, at rates that are measured
first: every signature and key agreement, the encryption and clipping of each vector, one SHA-256 of
each model and of each upload at either end, and AES-GCM at both ends of what is sent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from fedsys.config import Config
from fedsys.wire.round_params import round_params
from secure_agg import Identity
from secure_agg.masking import Accumulator, PublicPolynomials, encrypt, sample_secret
from secure_agg.messages import Limits
from server.job_settings import plan_for
from simulations.testbed.crowd import Crowd, crowd_job

__all__ = ["bound", "measure"]

_PARTS = ("coordinator_user", "coordinator_system", "agents_user", "agents_system")


def measure(agents: int, *, dimension: int, rounds: int = 3, processes: int = 4) -> dict[str, Any]:
    """Seconds and memory of a round in which every agent takes part.

    The coordinator's memory at rest is its peak until all agents were connected.

    Args:
        agents: Number of agents in the population and in every cohort.
        dimension: Number of the model's weights, d.
        rounds: Number of rounds; seconds are medians over them, by stage.
        processes: Number of processes that run the agents.

    Raises:
        RuntimeError: The job did not complete.
    """
    config = crowd_job(agents, agents, rounds=rounds)
    least = bound(config, agents, dimension=dimension)
    with (
        tempfile.TemporaryDirectory() as folder,
        Crowd.make(Path(folder), agents, dimension=dimension, processes=processes) as crowd,
    ):
        crowd.wait_connected()
        before, at_rest = _cpu(crowd), _peak(crowd.coordinator.pid)
        row = crowd.run(config)
        if row.status != "completed":
            raise RuntimeError(f"{row.status}: {row.reason}")
        spent = _cpu(crowd) - before
        stages = crowd.seconds(row.id)
        cpu = dict(zip(_PARTS, np.round(spent / rounds, 2).tolist(), strict=True))
        found: dict[str, Any] = {
            "agents": agents,
            "dimension": dimension,
            "round_s": round(statistics.median(sum(each.values()) for each in stages), 2),
            "stages_s": {
                name: round(statistics.median(each[name] for each in stages), 2)
                for name in stages[0]
            },
            "cpu_s": cpu,
            "coordinator_cpu_s": round(float(spent[:2].sum()) / rounds, 2),
            "agent_cpu_s": round(float(spent[2:].sum()) / rounds / agents, 3),
            "bound_cpu_s": {name: round(value, 2) for name, value in least.items()},
            "of_bound": round(sum(least.values()) / (float(spent.sum()) / rounds), 2),
            "upload_kb": round(_upload_bytes(config, agents, dimension) / 1024, 1),
            "coordinator_at_rest_mb": at_rest,
            "coordinator_peak_mb": _peak(crowd.coordinator.pid),
            "agents_peak_mb": round(sum(_peak(each.pid) for each in crowd.holders), 1),
        }
        return found


def bound(config: Config, agents: int, *, dimension: int) -> dict[str, float]:
    """CPU seconds of what a round with every agent cannot do without, on this machine.

    Args:
        config: The job's configuration.
        agents: Number of agents in the population and in the cohort.
        dimension: Number of the model's weights, d.

    Returns:
        Seconds by kind of work, for all agents and the coordinator together.
    """
    plan = plan_for(config, population=agents, layers=(dimension,))
    mechanism = plan.build_mechanism()
    params = round_params(
        plan, agents, length=mechanism.length, modulus_bits=mechanism.modulus_bits
    )
    seats, model, upload = params.committee, 4 * dimension, Limits(params).largest_upload
    identity, agreement = Identity.generate(), X25519PrivateKey.generate()
    signature, statement = identity.sign(bytes(32)), bytes(32)
    ours, theirs = Ed25519PublicKey.from_public_bytes(identity.public_bytes), agreement.public_key()
    vector = np.zeros(mechanism.length, np.uint32)
    updates = np.zeros((1, dimension), np.float32)
    secret, public = sample_secret(bytes(32)), PublicPolynomials(bytes(32), params)
    ciphertext = bytearray(params.ciphertext_bytes)
    accumulator = Accumulator(params)
    data, cipher, nonce = bytes(1 << 20), AESGCM(bytes(16)), bytes(12)

    def encryption() -> None:
        encrypt(vector, secret, public, bytes(32), ciphertext)

    # Every member verifies the committee's sealing keys and a certificate; every committee member
    # verifies the dealers' signatures too. The coordinator verifies each of these once, except the
    # certificate, which it makes itself.
    verified = agents * (seats + params.quorum) + seats * agents + 3 * seats + agents
    moved = agents * (model + upload)
    return {
        "Ed25519": verified * _seconds(lambda: ours.verify(signature, statement)),
        "X25519": 2 * agents * seats * _seconds(lambda: agreement.exchange(theirs)),
        "encryption": agents * _seconds(encryption),
        "clipping": agents * _seconds(lambda: mechanism.encode(updates, seed=bytes(32))),
        "sum": agents * _seconds(lambda: accumulator.add(ciphertext)),
        "SHA-256": agents
        * (model + 2 * upload)
        * _seconds(lambda: hashlib.sha256(data).digest())
        / len(data),
        "AES-GCM": 2 * moved * _seconds(lambda: cipher.encrypt(nonce, data, None)) / len(data),
    }


def _upload_bytes(config: Config, agents: int, dimension: int) -> int:
    """Bytes of the largest upload that is allowed."""
    plan = plan_for(config, population=agents, layers=(dimension,))
    mechanism = plan.build_mechanism()
    bits = mechanism.modulus_bits
    params = round_params(plan, agents, length=mechanism.length, modulus_bits=bits)
    return Limits(params).largest_upload


def _seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call in this thread, the least of five measurements."""
    work()
    least, calls = math.inf, 1
    for _ in range(5):
        while True:
            started = time.thread_time()
            for _ in range(calls):
                work()
            taken = time.thread_time() - started
            if taken > 0.05:
                break
            calls *= 2
        least = min(least, taken / calls)
    return least


def _cpu(crowd: Crowd) -> NDArray[np.float64]:
    """CPU seconds so far of each of `_PARTS`."""
    found = np.zeros((2, 2))
    for process in [crowd.coordinator, *crowd.holders]:
        times = psutil.Process(process.pid).cpu_times()
        found[int(process is not crowd.coordinator)] += times.user, times.system
    return found.reshape(-1)


def _peak(pid: int | None) -> float:
    """Largest resident memory so far, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return 0.0


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2 * (os.cpu_count() or 2))
    given = parser.parse_args()
    found = measure(
        given.agents,
        dimension=given.dimension,
        rounds=given.rounds,
        processes=given.processes,
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
