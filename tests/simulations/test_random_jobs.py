"""Jobs drawn at random from everything that a configuration permits.

Each is either refused with one line before anything is made, or it runs, is audited, reported,
replayed where it has no noise, and goes on after a crash at any write to the disk. A failure names
the seed: ``check(seed, folder)`` repeats it.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsys.cli.finish import audit_and_report
from fedsys.config import Config, load, validate
from fedsys.durable import DurableFile
from fedsys.errors import FedsysError
from fedsys.privacy import MECHANISMS, plan_of, read_ledger, replay
from fedsys.privacy.accounting.server import worst_server
from fedsys.privacy.ledger import read_private
from simulations import harness
from simulations.population import Population
from simulations.replay import replay as replay_to_the_bit

STRATEGIES = ("fedavg", "fedavgm", "fedprox", "fedadagrad", "fedadam", "fedyogi")
PARTITIONS = ("one-each", "iid", "dirichlet", "shards", "resampled")

Tree = dict[str, dict[str, Any]]


class Crash(BaseException):
    """What ``kill -9`` leaves behind: nothing after this point runs."""


def draw(dice: random.Random) -> Tree:
    """A small job; most values fit together, some do not."""

    def seldom(chance: float = 0.2) -> bool:
        return dice.random() < chance

    mechanism = dice.choice(MECHANISMS)
    protocols = (
        ("ideal", "secure") if mechanism == "example-gaussian" else ("float", "ideal", "secure")
    )
    protocol = dice.choice(protocols)
    expected = dice.choice((20, 40, 60, 60))
    clients = dice.choice((60, 100, 150))
    synthetic = seldom()
    tree: Tree = {
        "job": {"seed": dice.randrange(2**31)},
        "task": {
            "name": "synthetic" if synthetic else "digits",
            "options": {"examples": 400, "hidden": 4}
            if synthetic
            else {"hidden": dice.choice((0, 3))},
        },
        "population": {
            "partition": dice.choice(PARTITIONS),
            "clients": clients,
            "alpha": dice.choice((0.05, 0.5, 10.0)),
            "shards": dice.choice((1, 2)),
            "examples": dice.choice((1, 4)),
        },
        "cohort": {"expected": expected},
        "rounds": {"count": dice.choice((1, 2, 3))},
        "local": {
            "epochs": dice.choice((1, 2)),
            "batch_size": dice.choice((1, 4, 1000)),
            "optimizer": dice.choice(("sgd", "adam")),
            "learning_rate": dice.choice((0.01, 0.1, 1.0, 1e30)) if seldom() else 0.1,
            "momentum": 0.0,
            "weight_decay": dice.choice((0.0, 0.01)),
            "proximal_mu": dice.choice((0.0, 0.1)),
        },
        "server": {"strategy": dice.choice(STRATEGIES)},
        "privacy": {
            "mechanism": mechanism,
            "delta": dice.choice((1e-5, 1e-3)),
            "clip": dice.choice((1e-3, 0.3, 1.0, 50.0)),
            "unit": "example" if (mechanism == "example-gaussian") != seldom(0.02) else "client",
        },
        "aggregation": {"protocol": protocol},
        "evaluation": {
            "data": dice.choice(("test", "test", "none")),
            "every": dice.choice((1, 2, 5)),
        },
        "engine": {
            "path": dice.choice(("auto", "batched", "loop", "dual")),
            "chunk": dice.choice((0, 1, 7, 64)),
            "threads": dice.choice((0, 1)),
            "processes": 2 if seldom(0.04) else 1,
        },
    }
    cohort, privacy, aggregation = tree["cohort"], tree["privacy"], tree["aggregation"]
    if mechanism != "none" or seldom(0.02):
        if seldom(0.6) or mechanism == "example-gaussian":
            privacy["noise_multiplier"] = dice.choice((0.3, 1.0, 1.5, 4.0, 1e4))
        if "noise_multiplier" not in privacy or seldom(0.3):
            privacy["epsilon"] = dice.choice((0.5, 2.0, 8.0, 100.0))
    if mechanism == "banded-mf" or seldom(0.15):
        cohort["sampling"] = dice.choice(("min-separation", "fixed", "poisson"))
        if cohort["sampling"] == "min-separation" or seldom():
            cohort["min_separation"] = dice.choice((1, 2, 3))
        if cohort["sampling"] == "min-separation" or seldom():
            privacy["max_participations"] = dice.choice((1, 2, 3))
    if seldom(0.3):
        privacy["guarantee"] = "server"
        privacy["max_participations"] = dice.choice((1, 2, 3))
        privacy["max_colluders"] = dice.choice((0, 1, 5))
    if mechanism == "example-gaussian":
        privacy["example_clip"] = dice.choice((0.1, 1.0))
        if seldom():
            privacy["example_rate"] = dice.choice((0.1, 1.0))
    if seldom(0.25):
        privacy["adaptive_quantile"] = dice.choice((0.2, 0.5, 0.9))
        privacy["adaptive_layers"] = dice.choice(("flat", "per-layer"))
    if seldom():
        cohort["participation"] = dice.choice((0.3, 0.8))
    if seldom():
        cohort["min_survivors"] = dice.choice((1, 5, expected))
    if seldom():
        cohort["cap"] = dice.choice((expected, 2 * expected, clients))
    if seldom(0.4) and protocol != "secure":
        aggregation["noise"] = "once"
    if seldom():
        aggregation["encoding"] = "narrow"
        aggregation["modulus_bits"] = dice.choice((8, 12, 16, 20))
    elif seldom():
        aggregation["modulus_bits"] = dice.choice((16, 24, 40, 64))
    if seldom():
        aggregation["dropout"] = dice.choice((0.0, 0.3))
        aggregation["corrupt"] = dice.choice((0.0, 0.1))
    if seldom(0.4):
        tree["faults"] = {
            "dropout": dice.choice((0.0, 0.1, 0.4)),
            "availability": dice.choice((1.0, 0.8)),
            "diurnal": dice.choice((0.0, 1.0)),
            "speed_spread": dice.choice((0.0, 2.0)),
            "seconds_per_example": dice.choice((0.0, 60.0)),
            "deadline": dice.choice((0.0, 30.0)),
        }
    return tree


@contextmanager
def crashing(dice: random.Random, kind: str) -> Iterator[None]:
    """Ends what runs within, at some write to the disk or in some chunk's training."""
    left = dice.randrange(1, 40 if kind == "disk" else 6)
    before = dice.random() < 0.5
    owner: Any = os if kind == "disk" else Population
    name = "fsync" if kind == "disk" else "train"
    genuine = getattr(owner, name)

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and before:
            raise KeyboardInterrupt if kind == "interrupt" else Crash
        result = genuine(*args, **kwargs)
        if left == 0:
            raise KeyboardInterrupt if kind == "interrupt" else Crash
        return result

    opened: list[DurableFile] = []
    genuine_open = DurableFile.__init__

    def remembered(file: DurableFile, *args: Any, **kwargs: Any) -> None:
        genuine_open(file, *args, **kwargs)
        opened.append(file)

    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(owner, name, stand_in)
            patched.setattr(DurableFile, "__init__", remembered)
            yield
    finally:
        for file in opened:  # as the end of a process does
            with suppress(OSError):
                file.close()


def check(seed: int, folder: Path) -> str:
    """Draw the job of `seed`, run it and check it; what became of it, in a word.

    Raises:
        AssertionError: it did not do what every job does.
    """
    dice = random.Random(seed)
    tree, out = draw(dice), folder / f"job-{seed}"
    try:
        config = validate(tree)
        result = harness.run(config, out=out)
    except FedsysError as refused:
        line = str(refused)
        assert not out.exists(), line
        assert "\n" not in line, line
        assert re.search(r"\b[a-z]+\.[a-z_]+ ?=|engine\.path|--device", line), (
            f"names no key: {line}"
        )
        return f"refused: {line}"
    status = check_run(result.folder, config)
    if config.privacy.mechanism == "none" and config.cohort.participation == 1:
        found = replay_to_the_bit(out)
        assert found.difference is None, found.difference
        assert found.model_sha256 is not None
    check_crash(dice, config, folder / f"crashed-{seed}", out)
    return status


def check_run(out: Path, config: Config) -> str:
    """What holds of every run that ended."""
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] in ("completed", "budget-exhausted"), summary["status"]
    view = read_ledger(out / "ledger.jsonl")
    assert view.closed is not None
    private, torn = read_private(out / "private.jsonl")
    assert not torn
    assert [record.round for record in view.rounds] == list(range(1, len(view.rounds) + 1))
    if summary["status"] == "completed":
        assert len(view.rounds) == config.rounds.count
    assert summary["privacy"]["epsilon"] == replay(view, private)[1].to_json()
    checked = audit_and_report(out)
    assert checked.passed, [claim for claim in checked.claims if claim.holds is False]
    assert (out / "report.html").stat().st_size > 1000
    state = torch.load(out / "model.pt", weights_only=True)
    assert all(torch.isfinite(part).all() for part in state.values())
    return str(summary["status"])


def check_crash(dice: random.Random, config: Config, out: Path, whole: Path) -> None:
    """The same job, ended somewhere: it goes on, and keeps what it had reserved."""
    kind = dice.choice(("disk", "disk", "crash", "interrupt"))
    try:
        with crashing(dice, kind):
            result = harness.run(config, out=out)
        if not result.interrupted:
            return
    except (Crash, KeyboardInterrupt):
        pass
    if not (out / "ledger.jsonl").exists() or not (out / "ledger.jsonl").read_bytes().count(b"\n"):
        return  # nothing began
    before = read_ledger(out / "ledger.jsonl", allow_torn=True)
    drawn_before = {
        n: line["sampled"] for n, line in read_private(out / "private.jsonl")[0].items()
    }
    if before.closed is None or not (out / "summary.json").exists():
        harness.resume(out)
    check_run(out, config)
    after = read_ledger(out / "ledger.jsonl")
    assert [r.round for r in after.rounds][: len(before.rounds)] == [r.round for r in before.rounds]
    drawn = {n: line["sampled"] for n, line in read_private(out / "private.jsonl")[0].items()}
    assert {n: drawn[n] for n in drawn_before} == drawn_before
    if config.cohort.sampling == "poisson" and config.rounds.count == len(after.rounds):
        spent = json.loads((out / "summary.json").read_text())["privacy"]["epsilon"]["outsider"]
        once = json.loads((whole / "summary.json").read_text())
        aborted = any(r.outcome != "commit" for r in read_ledger(whole / "ledger.jsonl").rounds)
        aborted |= any(r.outcome == "abort" for r in after.rounds)
        if once["status"] == "completed" and not aborted and config.privacy.mechanism != "none":
            assert float(spent) >= float(once["privacy"]["epsilon"]["outsider"]) * (1 - 1e-9)


def test_noise_that_cannot_be_drawn_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for noise in ("once", "per-client"):
        config = load(
            "quickstart",
            [
                "privacy.noise_multiplier=1e10",
                "aggregation.protocol=ideal",
                f"aggregation.noise={noise}",
                "aggregation.modulus_bits=64",
            ],
        )
        with pytest.raises(FedsysError, match=r"deviation must be in .*lower the noise multiplier"):
            harness.run(config, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_cohorts_that_do_not_exist_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    config = load(
        "quickstart",
        [
            "population.partition=resampled",
            "population.clients=150",
            "cohort.expected=60",
            "cohort.sampling=min-separation",
            "cohort.min_separation=3",
            "privacy.mechanism=banded-mf",
            "privacy.max_participations=2",
            "aggregation.protocol=ideal",
        ],
    )
    with pytest.raises(FedsysError, match="needs 180 clients"):
        harness.run(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("protocol", ["ideal", "secure"])
def test_a_client_that_contributed_often_enough_sends_zeros_and_is_charged_no_more(
    protocol: str, tmp_path: Path
) -> None:
    config = load(
        "quickstart",
        [
            "population.partition=iid",
            "population.clients=60",
            "cohort.expected=50",
            "cohort.min_survivors=1",
            "privacy.guarantee=server",
            "privacy.max_participations=2",
            "privacy.delta=1e-3",
            "rounds.count=4",
            f"aggregation.protocol={protocol}",
        ],
    )
    harness.run(config, out=tmp_path / "run")
    check_run(tmp_path / "run", config)
    rounds, _ = read_private(tmp_path / "run" / "private.jsonl")
    times = Counter(id for line in rounds.values() for id in line["survivors"])
    assert max(times.values()) > 2, "it stays in its cohorts"
    assert len(rounds) == 4
    view = read_ledger(tmp_path / "run" / "ledger.jsonl")
    assert all(record.outcome == "commit" for record in view.rounds)
    plan = plan_of(view.header)
    spent = json.loads((tmp_path / "run" / "summary.json").read_text())["privacy"]["epsilon"]
    assert (
        spent["server"]
        <= worst_server(plan, 2)
        < worst_server(plan.changed(max_participations=4), 4)
    )


@pytest.mark.parametrize(
    "seed",
    [
        *range(0, 24, 2),
        1073,
        1139,
        *(pytest.param(seed, marks=pytest.mark.slow) for seed in (*range(1, 24, 2), 57)),
    ],
)
def test_a_job_runs_or_is_refused(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)
