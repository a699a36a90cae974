"""Random kills and pauses for a while: nothing is lost, nothing leaks, the job ends."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from fedsys.audit import audit_run
from fedsys.privacy import read_ledger
from tests.e2e.processes import Federation, federation, silos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
AGENTS = 5
SECONDS = float(os.environ.get("FEDSYS_SOAK_SECONDS", "60"))


def endless(fed: Federation) -> str:
    for number in range(AGENTS):
        fed.allow_anything(number)
        fed.start_agent(number, AGENTS)
    fed.wait_connected()
    return fed.submit(
        silos(
            "population.clients=5",
            "cohort.expected=4",
            "cohort.cap=5",
            "cohort.min_survivors=2",
            "aggregation.dropout=0.2",
            "privacy.mechanism=none",
            "rounds.count=1000000",
            "evaluation.data=none",
        )
    )


def cancel(fed: Federation, job: str) -> None:
    fed.state.update_job(job, cancelled=True)
    assert fed.wait(job, seconds=120).status == "cancelled", fed.log("coordinator")


def test_kills_and_pauses_lose_nothing(tmp_path: Path) -> None:
    dice = random.Random(20)
    with federation(tmp_path, AGENTS) as fed:
        fed.configure(reconnect=2.0, stage=5.0, training=10.0)
        fed.restart_coordinator()
        job = endless(fed)
        fed.wait(job, until="running")
        end, kills = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            time.sleep(dice.uniform(0.5, 3.0))
            what = dice.choice(("agent", "agent", "pause", "coordinator"))
            if what == "coordinator":
                assert fed.coordinator is not None
                fed.coordinator.kill()
                fed.coordinator.join(10)
                fed.start_coordinator()
            else:
                number = dice.randrange(AGENTS)
                process = fed.agents[number]
                assert process.pid is not None
                assert process.is_alive(), fed.log(f"a{number}")
                if what == "agent":
                    process.kill()
                    process.join(10)
                    fed.start_agent(number, AGENTS)
                else:
                    os.kill(process.pid, signal.SIGSTOP)
                    time.sleep(dice.uniform(0.1, 6.0))
                    os.kill(process.pid, signal.SIGCONT)
            kills += 1
        done = len(fed.commits(job))
        patience = time.monotonic() + 60
        while len(fed.commits(job)) < done + 3:  # it still makes progress
            assert time.monotonic() < patience, fed.log("coordinator")
            time.sleep(0.2)
        cancel(fed, job)
        run = fed.home.jobs / job
        view = read_ledger(run / "ledger.jsonl")
        assert [each.round for each in view.rounds] == list(range(1, len(view.rounds) + 1))
        assert kills > 5
        assert len(fed.commits(job)) > len(view.rounds) / 4
        assert audit_run(run).passed


def test_memory_threads_and_descriptors_stay_flat(tmp_path: Path) -> None:
    with federation(tmp_path, AGENTS) as fed:
        job = endless(fed)
        fed.wait(job, until="running")
        everybody = [fed.coordinator, *fed.agents.values()]
        processes = [psutil.Process(each.pid) for each in everybody if each is not None]

        def look() -> list[tuple[int, int, int]]:
            return [
                (each.memory_info().rss, each.num_threads(), each.num_fds()) for each in processes
            ]

        time.sleep(SECONDS / 3)
        before, rounds = look(), fed.state.job(job).round
        time.sleep(SECONDS)
        after, more = look(), fed.state.job(job).round
        cancel(fed, job)
        assert more - rounds > 10
        for (rss, threads, fds), (rss_after, threads_after, fds_after) in zip(
            before, after, strict=True
        ):
            per_round = (rss_after - rss) / (more - rounds)
            assert per_round < 50_000, f"{per_round:.0f} bytes a round"
            assert threads_after <= threads + 4
            assert fds_after <= fds + 4
