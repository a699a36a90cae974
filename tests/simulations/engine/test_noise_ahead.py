"""Noise that is drawn beforehand is what its round would have drawn, and serves no other."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsys.config import Config
from fedsys.privacy import AesCtrStream, read_ledger
from simulations import harness
from simulations.engine.noise_ahead import NoiseAhead
from simulations.engine.processes import Processes
from simulations.randomness import SeededRandomness
from simulations.setting import prepare
from tests.simulations.engine.works import work_of

Configure = Callable[..., Config]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_has_the_same_bits_with_noise_drawn_beforehand(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    config = configure("aggregation.protocol=float", f"engine.processes={processes}")
    taken: list[bool] = []
    take = NoiseAhead.take

    def noted(self: NoiseAhead, round: int) -> object:
        noise = take(self, round)
        taken.append(noise is not None)
        return noise

    monkeypatch.setattr(NoiseAhead, "take", noted)
    digests = []
    for name in ("ahead", "inline"):
        if name == "inline":
            monkeypatch.setattr(NoiseAhead, "take", lambda self, round: None)
        run = harness.run(config, out=tmp_path / name, randomness=SeededRandomness(b"ahead"))
        rounds = read_ledger(run.folder / "ledger.jsonl").rounds
        digests.append([record.body["weights_sha256"] for record in rounds])
    assert digests[0] == digests[1]
    assert taken == [False, True, True]


def test_noise_is_handed_out_once_and_to_its_round_alone(configure: Configure) -> None:
    setting = prepare(configure("aggregation.protocol=float"))
    setting.engine.close()
    mechanism, key = setting.plan.build_mechanism(), b"k" * 32
    ahead = NoiseAhead(mechanism, setting.engine, possible=True)
    ahead.begin(5, lambda: key)
    assert ahead.take(6) is None
    assert ahead.take(5) is None, "another round asked: it is gone"
    ahead.begin(7, lambda: key)
    found = ahead.take(7)
    assert found is not None
    np.testing.assert_array_equal(found, mechanism.top_up(1, AesCtrStream(key)))
    assert ahead.take(7) is None
    ahead.close()


def test_shares_of_single_clients_are_not_drawn_beforehand(configure: Configure) -> None:
    setting = prepare(configure("aggregation.noise=per-client"))
    setting.engine.close()
    ahead = NoiseAhead(setting.plan.build_mechanism(), setting.engine, possible=False)
    ahead.begin(1, lambda: bytes(32))
    assert ahead.take(1) is None
    ahead.close()


@pytest.mark.slow
def test_a_process_that_died_took_its_noise_with_it(configure: Configure) -> None:
    setting = prepare(configure("aggregation.protocol=float", "engine.processes=2"))
    with setting.engine as engine:
        assert isinstance(engine, Processes)
        assert not engine.draw_ahead(1, bytes(32)), "it has not heard of a mechanism yet"
        length = setting.plan.build_mechanism().length
        engine.total(work_of(setting, number=1), [(0, 1), (2, 3)], length)
        assert engine.draw_ahead(2, bytes(32))
        assert engine.take_drawn(2) is None, "nobody has said yet that it is done"
        engine.total(work_of(setting, number=2), [(0, 1), (2, 3)], length)
        drawn = engine.take_drawn(2)
        assert drawn is not None
        assert np.abs(drawn).max() > 0
        assert engine.take_drawn(2) is None
        assert engine.draw_ahead(3, bytes(32))
        os.kill(engine.pids[0], signal.SIGKILL)
        engine.total(work_of(setting, number=3), [(0, 1), (2, 3)], length)
        assert engine.take_drawn(3) is None
