"""The deployment's benchmark: its table, and short runs of what it measures."""

from __future__ import annotations

import importlib.util

import pytest

from simulations.benchmarks import flower_superlink, secure_round, wire
from simulations.benchmarks.deployment import Figures, compare, table


def test_engines_take_turns_and_medians_count(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[str, int, list[int]]] = []

    def ours(agents: int, *, megabytes: list[int]) -> Figures:
        asked.append(("ours", agents, megabytes))
        return {"agents": agents, "empty_stage_ms": 1.0 + len(asked)}

    def theirs(agents: int, *, megabytes: list[int]) -> Figures:
        asked.append(("theirs", agents, megabytes))
        return {"agents": agents, "empty_stage_ms": 5000.0 + len(asked)}

    lines = compare({"ours": ours, "theirs": theirs}, [3, 20], turns=3, megabytes=[10])
    assert [name for name, _, _ in asked] == ["ours", "theirs"] * 6
    # models are sent with the first number of agents alone
    assert {agents: sizes for _, agents, sizes in asked} == {3: [10], 20: []}
    assert len(capsys.readouterr().out.splitlines()) == len(lines) == 12
    rows = table(lines).splitlines()
    assert (
        rows[0] == "| | ours, 3 agents | theirs, 3 agents | ours, 20 agents | theirs, 20 agents |"
    )
    # ours at 3 agents was asked first, fifth and ninth
    assert rows[2] == "| empty stage, median, ms | 6 | 5,006 | 8 | 5,008 |"
    assert len(rows) == 3


@pytest.mark.slow
def test_the_wire_is_measured() -> None:
    found = wire.measure(3, stages=3, megabytes=[1])
    assert found["agents"] == 3
    assert 0 < found["empty_stage_ms"] <= found["empty_stage_worst_ms"]
    assert found["1_mb_down_s"] > 0


@pytest.mark.slow
def test_a_secure_round_is_measured() -> None:
    found = secure_round.measure(5, dimension=1000, rounds=1)
    assert found["round_s"] == pytest.approx(sum(found["stages_s"].values()), abs=0.1)
    assert found["agent_cpu_s"] > 0
    assert found["coordinator_peak_mb"] > 50


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None, reason="needs flwr, of requirements.lock"
)
def test_flowers_superlink_is_measured() -> None:
    found = flower_superlink.measure(2, stages=1, megabytes=[1])
    assert found["agents"] == 2
    assert found["empty_stage_ms"] > 0
    assert found["1_mb_down_and_up_s"] > 0
