"""One tiny run of every kind, made by the product, for the verifier to look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsys.config import load
from fedsys.privacy import Ledger
from simulations import canaries, harness
from simulations.search import Search
from simulations.tuning import tune

USUAL = (
    "rounds.count=4",
    "cohort.expected=40",
    "aggregation.protocol=ideal",
    "engine.path=batched",
    "engine.chunk=64",
    "engine.processes=1",
    "evaluation.every=100",
)
BANDED = ("privacy.mechanism=banded-mf", "cohort.min_separation=2")
TURNS = ("cohort.sampling=min-separation", "privacy.max_participations=2")

KINDS: dict[str, tuple[str, ...]] = {
    "distributed-gaussian": (),
    "noise drawn once": ("aggregation.noise=once",),
    "narrow": ("aggregation.encoding=narrow",),
    "narrow and coarse": ("aggregation.encoding=narrow", "aggregation.modulus_bits=8"),
    "float": ("aggregation.protocol=float",),
    "secure": ("aggregation.protocol=secure", "cohort.expected=60", "rounds.count=1"),
    "secure, drawn committee": (
        "aggregation.protocol=secure",
        "cohort.expected=130",
        "rounds.count=1",
    ),
    "central-gaussian": ("privacy.mechanism=central-gaussian",),
    "local-gaussian": ("privacy.mechanism=local-gaussian", "privacy.noise_multiplier=1"),
    "banded-mf": (*BANDED, *TURNS),
    "banded-mf, cyclic": BANDED,
    "example-gaussian": (
        "privacy.mechanism=example-gaussian",
        "privacy.unit=example",
        "privacy.example_rate=0.2",
        "population.partition=iid",
        "population.clients=60",
        "cohort.expected=30",
        "rounds.count=1",
        "engine.path=loop",
    ),
    "none": ("privacy.mechanism=none",),
    "fixed": ("cohort.sampling=fixed",),
    "min-separation": (*TURNS, "cohort.min_separation=2"),
    "chosen": (
        "cohort.sampling=tests.fedsys.privacy.sampling.test_drawing:by_turns",
        "privacy.max_participations=2",
    ),
    "secret participation": ("cohort.participation=0.5",),
    "guarantee server": (
        "privacy.guarantee=server",
        "privacy.max_participations=2",
        "privacy.max_colluders=3",
        "privacy.epsilon=30",
    ),
    "adaptive clipping": ("privacy.adaptive_quantile=0.5",),
    "aborted rounds": ("faults.availability=0.2", "rounds.count=6"),
    "packed cohorts": (
        "population.partition=resampled",
        "population.clients=5000",
        "population.examples=1",
        "cohort.expected=1100",
        "rounds.count=2",
    ),
    "buffered": (
        "rounds.buffer=12",
        "rounds.concurrency=20",
        "cohort.expected=12",
        "privacy.max_participations=2",
    ),
    "resumed": ("rounds.count=3",),
    "canaries": ("rounds.count=2", "privacy.noise_multiplier=4"),
    "query": ("rounds.count=1", "job.kind=query", "evaluation.data=none", "privacy.clip=1"),
    "tuned": ("rounds.count=2", "cohort.expected=30"),
    "tuned, at another delta": ("rounds.count=2", "cohort.expected=30", "privacy.delta=1e-6"),
}

Make = Callable[[str], Path]


class _Crash(BaseException):
    """As if the process had been killed."""


def make(kind: str, out: Path) -> Path:
    """Simulates one kind of run in a folder."""
    recipe = "buffered" if kind == "buffered" else "quickstart"
    settings = [*USUAL, *KINDS[kind]]
    if kind == "query":
        asked = [
            {"ask": "labels", "name": "classes", "classes": 10},
            {"ask": "mean", "name": "ink", "column": "x20", "low": 0, "high": 1, "weight": 4},
        ]
        return harness.run(load(recipe, settings, {"query.questions": asked}), out=out).folder
    if kind.startswith("tuned"):
        best = _searched(out.parent / "search")
        config = load(best, [each for each in settings if "delta" in each])
        return harness.run(config, out=out).folder
    if kind == "canaries":
        return canaries.run(load(recipe, settings), canaries=40, out=out).folder
    if kind == "resumed":
        return _resumed(settings, out)
    return harness.run(load(recipe, settings), out=out).folder


def _searched(folder: Path) -> Path:
    """The configuration that one trial found, made once."""
    if not folder.exists():
        quick = [*USUAL, *KINDS["tuned"]]
        search = Search.of(load("quickstart", quick), ["server.momentum=0..0.9"], "accuracy")
        tune(search, folder, trials=1)
    return folder / "best.toml"


def _resumed(settings: list[str], out: Path) -> Path:
    """Killed once its second round was reserved, and then taken up again."""
    reserve = Ledger.reserve

    def dying(self: Ledger, round: int, body: Any) -> None:
        reserve(self, round, body)
        self.settle()
        if round == 2:
            raise _Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "reserve", dying)
        with pytest.raises(_Crash):
            harness.run(load("quickstart", settings), out=out)
    return harness.resume(out).folder


def copy(run: Path, to: Path) -> Path:
    """A copy that may be spoiled."""
    return Path(shutil.copytree(run, to))
