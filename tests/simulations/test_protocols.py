"""The three ways to sum: what equals what, and what each run's record says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsys.config import Config
from fedsys.errors import ConfigError
from fedsys.privacy import read_ledger
from fedsys.privacy.ledger import read_private
from server.coordinator import Coordinator
from simulations import harness
from simulations.randomness import SeededRandomness

Configure = Callable[..., Config]


def digests(folder: Path) -> list[str]:
    view = read_ledger(folder / "ledger.jsonl")
    return [record.body["weights_sha256"] for record in view.rounds if record.outcome == "commit"]


def header(folder: Path) -> dict[str, Any]:
    return dict(read_ledger(folder / "ledger.jsonl").header)


NARROW = ("aggregation.encoding=narrow", "aggregation.modulus_bits=16")


@pytest.mark.parametrize(
    "settings",
    [
        (),
        NARROW,
        ("privacy.mechanism=central-gaussian",),
        ("privacy.mechanism=none",),
    ],
    ids=["wide", "narrow", "central", "none"],
)
def test_secure_and_ideal_give_the_same_model_to_the_bit(
    settings: tuple[str, ...], configure: Configure, tmp_path: Path
) -> None:
    found: list[Any] = []
    # in other chunks too: a client's bits depend on nobody else
    for protocol, chunk in (("secure", 64), ("ideal", 11)):
        asked = [f"aggregation.protocol={protocol}", f"engine.chunk={chunk}", "engine.path=loop"]
        config = configure(*settings, *asked, "rounds.count=2", "cohort.expected=70")
        run = harness.run(config, out=tmp_path / protocol, randomness=SeededRandomness(b"test"))
        found.append(digests(run.folder))
        private, _ = read_private(run.folder / "private.jsonl")
        found.append([(line["sampled"], line["survivors"]) for line in private.values()])
    assert len(found[0]) == 2
    assert found[:2] == found[2:]


def test_a_narrow_run_from_one_seed_comes_out_the_same(
    configure: Configure, tmp_path: Path
) -> None:
    """Rounding at random included."""
    found: list[Any] = []
    for seed in (b"one", b"one", b"two"):
        folder = tmp_path / str(len(found))
        run = harness.run(configure(*NARROW), out=folder, randomness=SeededRandomness(seed))
        found.append((digests(run.folder), (run.folder / "model.pt").read_bytes()))
    assert found[0] == found[1]
    assert found[0][0][0] != found[2][0][0]


def test_the_same_seed_without_the_noise_gives_another_model(
    configure: Configure, tmp_path: Path
) -> None:
    """So the equality above is one of noise too."""
    noised = harness.run(
        configure("rounds.count=1"), out=tmp_path / "a", randomness=SeededRandomness(b"test")
    )
    other = harness.run(
        configure("rounds.count=1", "aggregation.noise=once"),
        out=tmp_path / "b",
        randomness=SeededRandomness(b"test"),
    )
    assert digests(noised.folder) != digests(other.folder)
    assert header(noised.folder)["plan"]["noise"] == "per-client"
    assert header(other.folder)["plan"]["noise"] == "once"


def means(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[np.ndarray[Any, Any], Path]:
    """The first round's decoded mean."""
    seen: list[np.ndarray[Any, Any]] = []
    finish = Coordinator.finish_round

    def spy(self: Coordinator, total: Any, survivors: Any, **rest: Any) -> Any:
        seen.append(self.mechanism.decode(total, seed=b"x" * 32))
        return finish(self, total, survivors, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(Coordinator, "finish_round", spy)
        run = harness.run(config, out=folder, randomness=SeededRandomness(b"cohort"))
    return seen[0], run.folder


def test_a_float_sum_is_the_integer_sum_up_to_rounding(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for protocol in ("ideal", "float"):
        config = configure(
            "privacy.mechanism=none", f"aggregation.protocol={protocol}", "rounds.count=1"
        )
        found[protocol], folder = means(config, tmp_path / protocol, monkeypatch)
        assert header(folder)["release"] is (protocol != "float")
    # each of about 40 clients rounds to a grid of C / (64 sqrt d), and the mean divides by 40
    step = 0.3 / (64 * np.sqrt(650))
    assert np.abs(found["float"] - found["ideal"]).max() < step
    assert np.linalg.norm(found["float"]) > 10 * step


@pytest.mark.parametrize("mechanism", ["distributed-gaussian", "central-gaussian"])
def test_a_float_run_has_more_noise_and_says_that_it_is_no_release(
    mechanism: str, configure: Configure, tmp_path: Path
) -> None:
    epsilons, variances = {}, {}
    for protocol in ("ideal", "float"):
        config = configure(
            f"privacy.mechanism={mechanism}", f"aggregation.protocol={protocol}", "rounds.count=1"
        )
        run = harness.run(config, out=tmp_path / protocol)
        summary = json.loads((run.folder / "summary.json").read_text())
        epsilons[protocol] = summary["privacy"]["epsilon"]["outsider"]
        view = read_ledger(run.folder / "ledger.jsonl")
        event = view.rounds[0].reserve["event"]
        variances[protocol] = event["total_variance"]
        assert event["encoding"] == ("float" if protocol == "float" else "wide")
        assert summary["protocol"] == protocol
    assert header(tmp_path / "float")["release"] is False
    stored = (tmp_path / "float" / "config.toml").read_text()
    assert 'noise = "once"' in stored
    # the deviation is z D2, so the larger D2 is paid in noise
    assert variances["float"] == pytest.approx(variances["ideal"] * (1 + 1e-4 + 1 / 64) ** 2)
    assert epsilons["float"] == pytest.approx(epsilons["ideal"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["aggregation.protocol=secure", "aggregation.noise=once"], "noise = 'once'"),
        (["aggregation.protocol=float", "aggregation.modulus_bits=48"], "modulus_bits = 48"),
        (
            [
                "aggregation.protocol=float",
                "aggregation.encoding=narrow",
                "aggregation.modulus_bits=16",
            ],
            "encoding = 'narrow'",
        ),
    ],
)
def test_combinations_that_make_no_sense(
    settings: list[str], said: str, configure: Configure
) -> None:
    with pytest.raises(ConfigError, match=said):
        configure(*settings)


@pytest.mark.parametrize("protocol", ["ideal", "secure"])
def test_exhausted_clients_stay_in_their_cohorts(
    protocol: str, configure: Configure, tmp_path: Path
) -> None:
    """They send zeros and their share of noise: no round is given up for want of them, which delta
    would not have paid for."""
    config = configure(
        f"aggregation.protocol={protocol}",
        "aggregation.dropout=0.02",
        "faults.dropout=0",
        "population.partition=iid",
        "population.clients=100",
        "cohort.expected=80",
        "rounds.count=6",
        "privacy.max_participations=2",
    )
    run = harness.run(config, out=tmp_path / "run")
    view = read_ledger(run.folder / "ledger.jsonl")
    assert [record.outcome for record in view.rounds] == ["commit"] * 6
    lines = [json.loads(line) for line in (run.folder / "private.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["survivors"] == line["sampled"]
    assert max(max(line["participations"]) for line in lines) > 2
    summary = json.loads((run.folder / "summary.json").read_text())
    trained = summary["clients_trained"]
    assert trained == sum(times <= 2 for line in lines for times in line["participations"])
    assert trained <= 200 < sum(len(line["sampled"]) for line in lines)
