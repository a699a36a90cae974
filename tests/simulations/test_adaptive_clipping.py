"""Adaptive clipping and secret participation through a whole job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.privatize.contribution import contribution
from fedsys.audit import audit_run
from fedsys.config import Config
from fedsys.errors import ConfigError
from fedsys.privacy import AesCtrStream, Entropy, read_ledger
from server.coordinator import Coordinator, OpenRound
from simulations import harness

Configure = Callable[..., Config]

ADAPTIVE = ("privacy.adaptive_quantile=0.5", "privacy.adaptive_rate=0.5", "privacy.clip=5.0")


def clips(run: Path) -> list[float]:
    return [record.reserve["event"]["clip"] for record in read_ledger(run / "ledger.jsonl").rounds]


@pytest.mark.parametrize(
    ("protocol", "start", "direction"),
    [("ideal", 20.0, -1), ("secure", 20.0, -1), ("ideal", 0.1, 1)],
)
def test_a_norm_moves_towards_the_quantile(
    protocol: str, start: float, direction: int, configure: Configure, tmp_path: Path
) -> None:
    cohort = "cohort.expected=70"
    settings = (*ADAPTIVE, cohort, f"aggregation.protocol={protocol}", "rounds.count=6")
    harness.run(configure(*settings, f"privacy.clip={start}"), out=tmp_path / "run")
    norms = clips(tmp_path / "run")
    assert norms[0] == pytest.approx(start)
    # updates have norms near 2: every bit says the same, so C moves by exp(0.25) a round
    assert norms[-1] == pytest.approx(start * np.exp(direction * 0.25 * 5), rel=0.3)
    assert audit_run(tmp_path / "run").passed


def test_layers_adapt_apart_and_a_resumed_run_goes_on(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(*ADAPTIVE, "privacy.adaptive_layers=per-layer", "rounds.count=5")
    begin, calls = Coordinator.begin_round, 0

    def interrupted(self: Coordinator, entropy: Entropy) -> OpenRound:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return begin(self, entropy)

    with monkeypatch.context() as patched:
        patched.setattr(Coordinator, "begin_round", interrupted)
        assert harness.run(config, out=tmp_path / "run").interrupted
    before = clips(tmp_path / "run")
    harness.resume(tmp_path / "run")
    norms = clips(tmp_path / "run")
    assert len(norms) == 5
    assert norms[:3] == before
    assert abs(np.log(norms[3] / norms[2])) < 0.5, "the norm started over"
    assert norms[3] != norms[0]
    assert audit_run(tmp_path / "run").passed
    plan = read_ledger(tmp_path / "run" / "ledger.jsonl").header["plan"]
    assert plan["dimension"] == 650 + 2
    assert plan["adaptive_clip"] is True


def test_a_secret_coin_keeps_the_share_that_it_should(configure: Configure, tmp_path: Path) -> None:
    updates = np.ones((4000, 3), dtype=np.float32)
    coin = AesCtrStream(bytes(32))
    kept = contribution(updates, participation=0.3, clipping=None, entropy=coin)
    share = float(kept[:, 0].mean())
    assert set(np.unique(kept)) == {0.0, 1.0}
    # five and a half deviations of a binomial: less than 1e-7
    assert abs(share - 0.3) < 5.5 * np.sqrt(0.3 * 0.7 / 4000)
    assert updates.all(), "the caller's updates are left alone"
    run = harness.run(configure("cohort.participation=0.5"), out=tmp_path / "run")
    epsilon = json.loads((run.folder / "summary.json").read_text())["privacy"]["epsilon"]
    everybody = harness.run(configure(), out=tmp_path / "everybody")
    all_in = json.loads((everybody.folder / "summary.json").read_text())["privacy"]["epsilon"]
    assert epsilon["outsider"] < all_in["outsider"]


def test_the_norm_finds_its_quantile_from_those_that_take_part(
    configure: Configure, tmp_path: Path
) -> None:
    """All updates exceed the norm: all that take part send that bit, the others send zeros."""
    settings = (*ADAPTIVE, "cohort.expected=70", "cohort.participation=0.3", "rounds.count=6")
    harness.run(configure(*settings, "privacy.clip=0.1"), out=tmp_path / "run")
    assert clips(tmp_path / "run")[-1] > 0.15
    assert audit_run(tmp_path / "run").passed


@pytest.mark.parametrize(
    "settings",
    [
        ("privacy.adaptive_quantile=0.5", "privacy.mechanism=none"),
        ("privacy.adaptive_quantile=0.5", "aggregation.protocol=float"),
        ("privacy.adaptive_quantile=1.5",),
        ("cohort.participation=0.5", "aggregation.protocol=float"),
    ],
)
def test_what_does_not_go_together_is_refused(
    settings: tuple[str, ...], configure: Configure
) -> None:
    with pytest.raises(ConfigError):
        configure(*settings)
