"""A run's folder as the coordinator writes it, made up but of realistic size and shape."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsys.records import AuditResult, Claim, EpsilonPoint, Epsilons

ROUNDS, POPULATION, EXPECTED, DELTA, BUDGET = 40, 1437, 100, 1e-5, 10.0

CONFIG = """\
[job]
name = "quickstart"
seed = 0

[task]
name = "digits"

[population]
clients = 1437
partition = "one-each"

[cohort]
sampling = "poisson"
expected = 100
cap = 148
min_survivors = 58
participation = 1.0

[rounds]
count = 40

[local]
epochs = 1
batch_size = 10
optimizer = "sgd"
learning_rate = 0.1

[server]
strategy = "fedavgm"
learning_rate = 4.0
momentum = 0.9

[privacy]
mechanism = "distributed-gaussian"
noise_multiplier = 0.7
delta = 1e-05
clip = 0.3
unit = "client"
guarantee = "outsider"
max_colluders = 0

[aggregation]
protocol = "secure"
encoding = "wide"
modulus_bits = 32
dropout = 0.1
corrupt = 0.1
"""


def spent(t: int) -> Epsilons:
    """Costs of the size that this job has after t rounds."""
    return Epsilons(
        outsider=2.1 + 6.49 * math.sqrt(t / ROUNDS) * (0.6 + 0.4 * t / ROUNDS),
        participant=2.9 + 9.6 * math.sqrt(t / ROUNDS),
        server=8.7 + 29.0 * math.sqrt(min(9, math.ceil(t / 4)) / 9),
    )


def summary() -> dict[str, Any]:
    last = spent(ROUNDS)
    return {
        "version": 1,
        "name": "quickstart",
        "status": "completed",
        "rounds": ROUNDS,
        "metrics": {"accuracy": 0.9201, "loss": 0.3127},
        "privacy": {
            "mechanism": "distributed-gaussian",
            "unit": "client",
            "delta": DELTA,
            "noise_multiplier": 0.7,
            "clip": 0.3,
            "guarantee": "outsider",
            "epsilon": {
                "outsider": last.outsider,
                "participant": last.participant,
                "server": last.server,
            },
            "budget": BUDGET,
        },
        "clients_trained": 3811,
        "train_seconds": 41.3,
        "clients_per_second": 94.6,
        "model_sha256": "9f2b7c61d04e5a8833c1b1ab5f6e0d77a2c94c1be08f34d5a6b7c8d9e0f1a2b3",
        "ledger_head": "4be1c07d92aa3f518c66d70e1f2a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c",
        "signer": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "protocol": "secure",
        "versions": {
            "fedsys": "0.1.0",
            "python": "3.11.9",
            "torch": "2.13.0",
            "numpy": "2.4.0",
            "cryptography": "50.0.0",
            "dp-accounting": "0.6.0",
            "opacus": "1.6.0",
        },
        "reproducible": False,
    }


def audit(*, failed: bool = False, private: bool = True) -> AuditResult:
    last = spent(ROUNDS)
    server = "–" if not private else f"{last.server:.4f}"
    claims = [
        Claim(
            name="ledger chain",
            claimed="83 entries",
            rederived="83 entries, closed",
            by="SHA-256",
            rests_on="the ledger",
            holds=True,
        ),
        Claim(
            name="ledger signatures",
            claimed="d75a980182b10ab7…",
            rederived="d75a980182b10ab7…",
            by="Ed25519",
            rests_on="signer not pinned: re-signing is undetectable",
            holds=True,
        ),
        Claim(
            name="epsilon, outsider",
            claimed=f"{last.outsider:.4f}",
            rederived=f"{last.outsider * (1.31 if failed else 1):.4f}",
            by="RDP (dp-accounting orders), cross-check: own mpmath",
            rests_on="noise really added, sampling really Poisson, N",
            holds=not failed,
        ),
        Claim(
            name="epsilon, participant",
            claimed=f"{last.participant:.4f}" if private else "withheld",
            rederived=f"{last.participant:.4f}" if private else "–",
            by="RDP over the worst co-participation",
            rests_on="private.jsonl" if private else "needs private.jsonl",
            holds=True if private else None,
        ),
        Claim(
            name="epsilon, server",
            claimed=f"{last.server:.4f}" if private else "withheld",
            rederived=server,
            by="RDP filter at m survivors",
            rests_on="private.jsonl" if private else "needs private.jsonl",
            holds=True if private else None,
        ),
        Claim(
            name="budget",
            claimed="10",
            rederived="never exceeded",
            by="RDP",
            rests_on="the ledger",
            holds=True,
        ),
        Claim(
            name="configuration",
            claimed="sha256 61f0…",
            rederived="sha256 61f0…",
            by="SHA-256",
            rests_on="config.toml",
            holds=True,
        ),
        Claim(
            name="model",
            claimed="sha256 9f2b…",
            rederived="sha256 9f2b…",
            by="SHA-256",
            rests_on="model.pt",
            holds=True,
        ),
        Claim(
            name="noise really added",
            claimed="z = 0.7",
            rederived="–",
            by="–",
            rests_on="the clients, and the coordinator's word for who stayed",
            holds=None,
        ),
        Claim(
            name="cohorts really Poisson",
            claimed="q = 0.0696",
            rederived="–",
            by="–",
            rests_on="the coordinator's word",
            holds=None,
        ),
    ]
    full = [EpsilonPoint(round=t, spent=spent(t)) for t in range(1, ROUNDS + 1)]
    curve = (
        full
        if private
        else [
            EpsilonPoint(
                round=point.round,
                spent=Epsilons(outsider=point.spent.outsider, participant=None, server=None),
            )
            for point in full
        ]
    )
    return AuditResult(
        run="quickstart",
        claims=tuple(claims),
        curve=tuple(curve),
        delta=DELTA,
        ledger_head=summary()["ledger_head"],
        signer=summary()["signer"],
        notes=("signer not pinned: give --key to detect that somebody else signed the ledger",),
        neighbours={
            "outsider": "add or remove one client",
            "participant": "one client's update or zero; it takes part either way",
            "server": "one client's update or zero; it is known to take part",
        },
    )


def write(folder: Path) -> Path:
    """Writes the files that a report reads."""
    generator = np.random.default_rng(3)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(CONFIG)
    metrics, private = [], []
    for t in range(1, ROUNDS + 1):
        progress = 1 - math.exp(-t / 6)
        metrics.append(
            {
                "round": t,
                "accuracy": round(0.1 + 0.82 * progress + float(generator.normal(0, 0.008)), 4),
                "loss": round(0.31 + 2.0 * (1 - progress) + float(generator.normal(0, 0.02)), 4),
            }
        )
        cohort = generator.choice(POPULATION, generator.binomial(POPULATION, EXPECTED / POPULATION))
        gone = [int(generator.binomial(len(cohort), p)) for p in (0.012, 0.018, 0.02)]
        survivors = [int(client) for client in cohort[gone[0] :]]
        private.append(
            {
                "round": t,
                "sampled": [int(client) for client in cohort],
                "survivors": survivors,
                "salt": bytes(generator.integers(0, 256, 32, dtype=np.uint8)).hex(),
                "dropped": dict(zip(("upload", "endorse", "answer"), gone, strict=True)),
                "clipped_fraction": round(
                    min(1.0, 0.98 - 0.012 * t + generator.normal(0, 0.02)), 4
                ),
                "signal_norm": 0.21 * (1 - 0.015 * t),
                "noise_norm": 0.093 + float(generator.normal(0, 0.001)),
                "seconds": {"train": 0.12, "secure_agg": 0.84},
            }
        )
    last = {name: value for name, value in metrics[-1].items() if name != "round"}
    (folder / "summary.json").write_text(json.dumps(summary() | {"metrics": last}, indent=2))
    for name, lines in (("metrics.jsonl", metrics), ("private.jsonl", private)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run, private part included."""
    return write(tmp_path / "quickstart")


@pytest.fixture(scope="session")
def write_run() -> Callable[[Path], Path]:
    """Writes a finished run into a folder."""
    return write


@pytest.fixture(scope="session")
def make_audit() -> Callable[..., AuditResult]:
    """Builds the audit of `run_folder`: ``make_audit(failed=..., private=...)``."""
    return audit


@pytest.fixture(scope="session")
def make_summary() -> Callable[[], dict[str, Any]]:
    """Builds the content of ``summary.json``."""
    return summary
