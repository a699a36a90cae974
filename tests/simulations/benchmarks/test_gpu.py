"""The benchmark of one device, on the only one that is always there."""

from __future__ import annotations

import json

import pytest

from fedsys.errors import ConfigError
from simulations.benchmarks.gpu import main

SMALL = ["--work", "quickstart", "--rounds", "2"]


def test_a_small_work(capsys: pytest.CaptureFixture[str]) -> None:
    main([*SMALL, "--device", "cpu", "--set", "engine.path=graph", "--set", "engine.chunk=10"])
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == "cpu"
    assert found["protocol"] == "ideal", "masks are no part of it"
    assert found["engine"] == {"path": "graph", "chunk": 10}
    assert found["clients_per_second"] > 0
    assert found["per_client"]["flops"] > 0
    assert found["per_client"]["parameter_bytes"] % (4 * 650) == 0
    assert 0 < found["fraction_of_arithmetic"] < 1


def test_a_gpu_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--device cuda:77"):
        main([*SMALL, "--device", "cuda:77"])
