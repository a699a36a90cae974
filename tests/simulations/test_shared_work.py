"""What the engines that are compared get: one work, dealt out and trained alike."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from client.training import LocalConfig, Trainer
from client.training.schedule import batches
from fedsys import config, tasks
from fedsys.config import Config
from fedsys.wire.assignment import batch_seed
from simulations.benchmarks.clients_per_second import flops_per_client
from simulations.benchmarks.peers.deal import deal
from simulations.benchmarks.peers.limits import refusals
from simulations.benchmarks.peers.work import Work, updates
from simulations.setting import partition_of

ROLES = {"ANNE": 30, "BIANCA": 170, "CLAUDIO": 95, "DORCAS": 420, "EMILIA": 61}
HIDDEN, LAYERS, EMBEDDING, SEQUENCE = 8, 2, 5, 10


@pytest.fixture(scope="module")
def plays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five roles that speak for between 30 and 420 characters."""
    folder = tmp_path_factory.mktemp("plays")
    letters = np.random.default_rng(7).integers(97, 123, size=sum(ROLES.values()), dtype=np.uint8)
    text = letters.tobytes().decode()
    starts = np.cumsum([0, *ROLES.values()])
    said = [text[a:b] for a, b in itertools.pairwise(starts.tolist())]
    table = pyarrow.table({"client_id": list(ROLES), "text": said})
    pyarrow.parquet.write_table(table, folder / "shakespeare.parquet")
    return folder


def _plays(*settings: str) -> Config:
    options = (
        f'{{cell="gru", hidden={HIDDEN}, layers={LAYERS}, embedding={EMBEDDING}, '
        f"sequence={SEQUENCE}}}"
    )
    small = [f"task.options={options}", "cohort.expected=5", "local.batch_size=4"]
    return config.load("w4", [*small, *settings])


def _dealt(job: Config, data: Path, folder: Path, *, rounds: int = 1) -> Work:
    return deal(job, data, folder, rounds=rounds, everyone=False)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        (["local.optimizer=sgd", "local.momentum=0.8", "local.learning_rate=0.3"], 1e-5),
        (["local.optimizer=sgd", "local.weight_decay=0.05", "local.epochs=3"], 1e-4),
        (["local.optimizer=sgd", "local.proximal_mu=0.7", "local.learning_rate=0.3"], 1e-5),
        (["local.optimizer=adam", "local.weight_decay=0.01", "local.epochs=2"], 2e-2),
        (["local.optimizer=adam", "local.proximal_mu=0.7"], 2e-2),
    ],
    ids=["momentum", "weight decay and epochs", "proximal", "adam", "adam and proximal"],
)
def test_the_plain_loop_trains_as_the_job_does(
    settings: list[str], allowed: float, plays: Path, tmp_path: Path
) -> None:
    """On clients of different sizes, last batches that are not full included."""
    job = _plays(*settings)
    work = _dealt(job, plays, tmp_path)
    held = work.task.clients(tasks.DataSource.locate(plays))
    partition = partition_of(job, held)
    sizes = [len(partition.indices_of(client)) for client in work.checked]
    assert len(set(sizes)) > 2
    assert any(size % job.local.batch_size for size in sizes)
    trainer = Trainer(
        work.task, LocalConfig(**job.local.model_dump()), path="loop", chunk=1, seed=work.seed
    )
    wanted = trainer.train(
        trainer.initial_weights(),
        held.train,
        [partition.indices_of(client) for client in work.checked],
        [batch_seed(work.seed, 1, client) for client in work.checked],
    )
    exact = updates(work, exact=True)
    for found in (exact, updates(work)):
        assert np.abs(found - wanted).max() < allowed * np.abs(exact).max()
    # The same without the settings is not the same.
    plain = _dealt(_plays("local.optimizer=sgd"), plays, tmp_path)
    assert np.abs(updates(plain, exact=True) - wanted).max() > 10 * allowed * np.abs(exact).max()


def test_every_engine_gets_the_jobs_batches(plays: Path, tmp_path: Path) -> None:
    job = _plays("local.epochs=3")
    work = _dealt(job, plays, tmp_path)
    held = work.task.clients(tasks.DataSource.locate(plays))
    partition = partition_of(job, held)
    local = LocalConfig(**job.local.model_dump())
    for client in range(5):
        wanted = batches(partition.indices_of(client), batch_seed(work.seed, 1, client), local)
        found = list(work.batches(*work.data(client)))
        assert len(found) == len(wanted) == local.steps(work.examples([client]))
        for (x, y), rows in zip(found, wanted, strict=True):
            torch.testing.assert_close(x, held.train.x[torch.from_numpy(rows)])
            torch.testing.assert_close(y, held.train.y[torch.from_numpy(rows)])
    sizes = [len(partition.indices_of(client)) for client in range(5)]
    assert work.examples(range(5)) == sum(sizes)
    assert work.examples_per_client == pytest.approx(np.mean(sizes))


def test_the_arithmetic_of_recurrent_layers_is_counted_for_an_average_client(
    plays: Path, tmp_path: Path
) -> None:
    """Forward each map costs 2 x inputs x outputs a character, and backward twice that: once for
    its weights, once for what goes in."""
    work = _dealt(_plays(), plays, tmp_path)
    of_inputs = 3 * HIDDEN * (EMBEDDING + (LAYERS - 1) * HIDDEN)
    of_states = 3 * HIDDEN * HIDDEN * LAYERS
    readout = HIDDEN * 97
    a_character = 3 * 2 * (of_inputs + of_states + readout)
    wanted = a_character * SEQUENCE * work.examples_per_client
    assert flops_per_client(work) == pytest.approx(wanted, rel=1e-12)
    assert work.examples([work.checked[0]]) != work.examples_per_client


def test_a_million_clients_are_an_index(tmp_path: Path) -> None:
    """Only who is in a cohort is listed; an engine that draws its own gets everybody."""
    job = config.load("w5", ["cohort.expected=100", 'task.options={"examples"=50}'])
    work = _dealt(job, tmp_path, tmp_path, rounds=3)
    drawn = list(work.cohorts(3))
    assert work.clients == 1_000_000
    assert work.ids.tolist() == sorted({client for cohort in drawn for client in cohort})
    assert work.examples(drawn[2]) == 100 * 50
    assert work.examples_per_client == 50
    assert max(work.ids) > 900_000
    small = config.load("w5", ["cohort.expected=10", "population.clients=30"])
    everyone = deal(small, tmp_path, tmp_path, rounds=1, everyone=True)
    assert everyone.ids.tolist() == list(range(30))
    assert len(list(everyone.batches(*everyone.data(29)))) == 5


def test_the_peers_scripts_need_nothing_but_the_tasks() -> None:
    """Whatever else they imported would be counted as the peers' memory."""
    code = (
        "import sys, simulations.benchmarks.peers.work, simulations.benchmarks.peers.clock; "
        "print([m for m in sys.modules if m.startswith(('client', 'server', 'secure_agg'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"


HERE = dict.fromkeys(("pfl", "flwr"), Path(sys.executable))
"""Peers whose environment is there."""


class TestRefusals:
    def test_flower_cannot_hold_a_million(self) -> None:
        job = config.load("w5")
        found = refusals(job, ["fedsys", "pfl", "flwr", "loop"], HERE)
        assert set(found) == {"flwr"}
        assert "1,000,000 take 3 GB" in found["flwr"]
        assert "\n" not in found["flwr"]
        fewer = config.load("w5", ["population.clients=10000", "cohort.expected=1000"])
        assert refusals(fewer, ["flwr"], HERE) == {}

    @pytest.mark.parametrize("work", ["w1", "w2", "w3", "w4"])
    def test_the_other_works_are_for_everybody(self, work: str) -> None:
        engines = ["fedsys", "ideal", "engine", "pfl", "flwr", "loop", "bound"]
        assert refusals(config.load(work), engines, HERE) == {}

    def test_peers_that_are_not_installed(self, tmp_path: Path) -> None:
        nowhere = dict.fromkeys(HERE, tmp_path / "none")
        found = refusals(config.load("w2"), ["fedsys", "pfl", "flwr", "loop"], nowhere)
        assert set(found) == {"pfl", "flwr"}
        assert all("make bench" in reason for reason in found.values())

    def test_privacy_of_examples_is_no_plain_training(self) -> None:
        settings = ["privacy.mechanism=example-gaussian", "privacy.unit=example"]
        job = config.load("w2", [*settings, "aggregation.protocol=ideal"])
        found = refusals(job, ["fedsys", "pfl", "bound"], HERE)
        assert set(found) == {"fedsys", "pfl", "bound"}
