"""Computes a run without noise a second time: the same survivors must give the same model.

Every round's sum is trained and added again, from the weights that the replay itself reached, and
its digest is compared with the one that the ledger committed; at the end, so is the model's. Rounds
in which devices evaluate the model are answered again from the rows that they hold out. Sums
are integers mod 2^b, so masks, stages, crashes and the host leave no trace in them: a run of
devices is replayed with virtual clients, and ``secure`` as ``ideal``. Only training uses floating
point, and it depends on the ``[engine]`` that ``config.toml`` states.

Nothing is written.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.local_data import shard_rows
from client.training.held_out import kept_for
from fedsys import tasks
from fedsys.config.named_code import NamedCode
from fedsys.errors import ConfigError, LedgerError, RunFolderError
from fedsys.tasks.partition import Compressed
from fedsys.versions import versions
from fedsys.wire.roster import MAX_MEMBERS
from server.asking import sheet_between, turns_of
from server.checkpoint import Checkpoints, model_bytes, sha256_of_aggregate, sha256_of_weights
from server.job_settings import parts_of, strategy_of
from server.strategy_base import ReceivingStrategy, Strategy, shared_by
from simulations.between import clients_between, working
from simulations.client_states import NAME as CLIENT_STATES
from simulations.client_states import ClientStates
from simulations.engine.base import Engine
from simulations.engine.chunk import RoundWork, in_ring
from simulations.engine.layout import cores, lay_out
from simulations.population import Population
from simulations.randomness import SystemRandomness
from simulations.recorded_run import RecordedRun
from simulations.setting import clients_at_once, device_for, partition_of, trainer_for

__all__ = ["Difference", "Replay", "replay"]

Weights = NDArray[np.float32]
_SHARD = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first thing that differs from what was recorded.

    Attributes:
        what: Its name, with its round.
        recorded: Its recorded SHA-256.
        replayed: Its SHA-256 in the replay.
    """

    what: str
    recorded: str
    replayed: str


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a replay found.

    Attributes:
        deployed: Whether devices ran it.
        clients: Size of the population.
        committed: Number of rounds that gave a model, or answers about it.
        lost: Number of rounds that gave neither.
        replayed: Number of committed rounds that came out equal.
        trained: Number of updates computed for them.
        answered: Number of devices' answers about the model computed for them.
        model_sha256: SHA-256 of the model, if it came out equal; None where the run has not ended,
            or something differs.
        difference: The first difference; None where everything is equal.
        other_versions: Libraries whose version is not the run's, as "torch 2.13.0 for 2.12.1".
    """

    deployed: bool
    clients: int
    committed: int
    lost: int
    replayed: int
    trained: int
    answered: int
    model_sha256: str | None
    difference: Difference | None
    other_versions: tuple[str, ...]


def replay(
    path: Path,
    *,
    data: Path | None = None,
    device: str = "auto",
    shards: Sequence[str] | None = None,
    observer: Callable[[int, int], None] | None = None,
    named: NamedCode | None = None,
) -> Replay:
    """Compute a run without noise again, and compare; stops at the first difference.

    Args:
        path: The run's folder: a simulation's, or one that `fedsys job fetch` made.
        data: Folder with data files, searched before ``$FEDSYS_DATA``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; for a run of devices, ``auto`` is the
            CPU.
        shards: Each device's ``--shard``, in the order in which the devices joined; by default
            ``i/N`` for device i of N. For a run of devices only.
        observer: Called, for each round that came out equal, with the number of rounds equal so
            far and the number of all committed rounds.
        named: Code of the user's own that the run uses, named by the user: the folder's word does
            not suffice.

    Raises:
        FedsysError: The run cannot be replayed, or not with this data; the message says why.
    """
    recorded = RecordedRun.read(path)
    if recorded.config.rounds.mode == "buffered":
        raise ConfigError(
            f"{path}: its rounds were buffered, and which model each client trained from is not "
            f"recorded; only synchronous rounds are replayed"
        )
    if recorded.config.job.kind != "train":
        raise ConfigError(
            f"{path}: its round asked questions; `fedsys audit` derives its answers again from the "
            f"sum, and only training is replayed"
        )
    if shards is not None and not recorded.deployed:
        raise ConfigError(
            f"--shards says what each device held; {path} is a simulation, whose partition is in "
            f"its config.toml"
        )
    if device == "auto" and recorded.deployed:
        device = "cpu"
    config, randomness = recorded.config, SystemRandomness()
    (named or NamedCode()).require(config, path)
    task = tasks.load(config.task.name, config.task.options)
    examples = tasks.read_data(task, tasks.DataSource.locate(data))
    trainer = trainer_for(config, task, device_for(device), randomness, examples.train)
    population = Population(
        train_set=trainer.conformed(examples.train),
        partition=_partition(recorded, examples, shards),
        trainer=trainer,
        by_client=examples.by_client,
        seed=config.job.seed,
    )
    between = clients_between(
        config,
        recorded.plan,
        population,
        examples,
        lambda _config, _held, kind: _partition(recorded, examples, shards, kind),
    )
    processes = min(max(1, config.engine.processes), cores())
    local = {"backend": "local", "processes": processes}
    here = config.model_copy(update={"engine": config.engine.model_copy(update=local)})
    at_once = clients_at_once(config.engine.chunk, population.trainer.dimension)
    with (
        lay_out(here, recorded.plan, population, randomness, at_once).engine as engine,
        tempfile.TemporaryDirectory(prefix="fedsys-replay-") as scratch,
    ):
        states = ClientStates(Path(scratch) / CLIENT_STATES)
        return _replay(recorded, population, between, engine, observer or _ignore, states)


def _ignore(_number: int, _of: int) -> None:
    return None


def _partition(
    recorded: RecordedRun,
    examples: tasks.FederatedData,
    shards: Sequence[str] | None,
    kind: str = "train",
) -> tasks.Partition:
    """Which examples each client looked at in rounds of a kind, by the configuration or the
    devices' ``--shard``.

    Raises:
        ConfigError: That gives another population than the run's.
        LedgerError: The ledger states more devices than a roster can have.
    """
    section, seed, clients = recorded.config.population, recorded.config.job.seed, 0
    if recorded.deployed:
        clients = recorded.plan.population
        if clients > MAX_MEMBERS:
            raise LedgerError(
                f"{recorded.path}: a ledger of {clients} devices; a roster has {MAX_MEMBERS} at "
                f"most"
            )
        given = shards or [f"{client}/{clients}" for client in range(clients)]
        rows = [
            kept_for(kind, shard_rows(examples, _shard(each), seed), section.held_out)
            for each in given
        ]
        sizes = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        partition: tasks.Partition = Compressed(offsets=sizes, indices=np.concatenate(rows))
    else:
        partition = partition_of(recorded.config, examples, kind)
    if partition.clients != recorded.plan.population:
        source = "--shards names" if recorded.deployed else "this data yields"
        raise ConfigError(
            f"{recorded.path}: the run counts {recorded.plan.population} clients, {source} "
            f"{partition.clients}"
        )
    return partition


def _shard(text: str) -> tuple[int, int]:
    found = _SHARD.fullmatch(text.strip())
    if found is None or not int(found[1]) < int(found[2]):
        raise ConfigError(f"--shards: '{text}' is not I/N with I from 0 to N-1, e.g. 0/3,1/3,2/3")
    return int(found[1]), int(found[2])


def _begun_with(recorded: RecordedRun, strategy: Strategy) -> Weights:
    """The weights of the run that a run started from; its strategy's state goes on in `strategy`.

    Raises:
        RunFolderError: The folder does not hold them.
    """
    stated = str(recorded.view.header.get("initial_weights_sha256"))
    if not (recorded.path / "checkpoints").is_dir():
        raise RunFolderError(
            f"{recorded.path}: started from another run's model, and holds no checkpoints with it; "
            f"replay the folder that the run itself wrote"
        )
    start = Checkpoints(recorded.path / "checkpoints").start(stated)
    if start.strategy:
        strategy.load(start.strategy)
    return start.weights


def _replay(
    recorded: RecordedRun,
    population: Population,
    between: Population | None,
    engine: Engine,
    observer: Callable[[int, int], None],
    states: ClientStates,
) -> Replay:
    view, mechanism = recorded.view, recorded.plan.build_mechanism()
    trainer = population.trainer
    strategy = strategy_of(recorded.config, recorded.plan, trainer.dimension)
    parts, weights = parts_of(recorded.config, trainer.parts), trainer.initial_weights()
    if "start" in view.header:
        if trainer.keeps_state:
            raise ConfigError(
                f"{recorded.path}: started from another run, and what its clients had kept by then "
                f"is not recorded; replay that run instead"
            )
        weights = _begun_with(recorded, strategy)
    turns = turns_of(recorded.config)
    stated = {record.round: record.body for record in view.rounds if record.outcome == "commit"}
    difference = _compared(
        "the initial model", view.header.get("initial_weights_sha256"), sha256_of_weights(weights)
    )
    replayed = trained = answered = 0
    for number, survivors in recorded.survivors.items():
        if difference is not None:
            break
        work = _work(recorded, number, weights)
        work = replace(
            work,
            shared=shared_by(strategy),
            states=str(states.path) if trainer.keeps_state else "",
            weight_cap=parts.weight_cap,
        )
        asks = turns.evaluates(number)
        with working(between if asks else None, population, engine, SystemRandomness()) as (
            clients,
            here,
        ):
            total = _total(recorded, clients, here, work)
        states.settle(number)
        body, mean = stated[number], mechanism.decode(total)
        difference = _compared(
            f"round {number}'s aggregate", body.get("aggregate_sha256"), sha256_of_aggregate(total)
        )
        if asks:
            difference = difference or _compared(
                f"round {number}'s answers", body.get("answer_sha256"), _answers(recorded, mean)
            )
        else:
            update, sent = parts.split(
                mean, clip=mechanism.event.clip, deviation=mechanism.noise_deviation
            )
            if sent and isinstance(strategy, ReceivingStrategy):
                strategy.receive(sent)
            weights = strategy.apply(weights, update).astype(np.float32)
        difference = difference or _compared(
            f"round {number}'s model", body.get("weights_sha256"), sha256_of_weights(weights)
        )
        if difference is None:
            replayed += 1
            trained, answered = (
                (trained, answered + len(survivors))
                if asks
                else (trained + len(survivors), answered)
            )
            observer(replayed, len(stated))
    model = None
    if difference is None and view.closed is not None and "model_sha256" in view.closed:
        content = model_bytes(population.trainer.state_dict(weights))
        model = hashlib.sha256(content).hexdigest()
        difference = _compared("the model", view.closed["model_sha256"], model) or _compared(
            "the file model.pt", recorded.model_sha256, model
        )
    return Replay(
        deployed=recorded.deployed,
        clients=population.size,
        committed=len(stated),
        lost=sum(record.outcome != "commit" for record in view.rounds),
        replayed=replayed,
        trained=trained,
        answered=answered,
        model_sha256=model if difference is None else None,
        difference=difference,
        other_versions=_other_versions(view.header),
    )


def _answers(recorded: RecordedRun, mean: NDArray[np.float64]) -> str:
    """SHA-256 of what devices answered, as a commit states it."""
    sheet = sheet_between(recorded.config, recorded.plan.dimension)
    asked = 0 if sheet is None else sheet.size
    return sha256_of_weights((mean[:asked] / recorded.plan.clip).astype(np.float32))


def _work(recorded: RecordedRun, number: int, weights: Weights) -> RoundWork:
    return RoundWork(
        number=number,
        weights=weights,
        seed=bytes(32),
        mechanism=recorded.plan.build_mechanism().event.to_json(),
        protocol="float" if recorded.config.aggregation.protocol == "float" else "ideal",
        rounds=recorded.plan.rounds,
    )


def _total(
    recorded: RecordedRun, population: Population, engine: Engine, work: RoundWork
) -> NDArray[Any]:
    """(length,) the sum mod 2^b of a round's survivors, in the chunks of the run."""
    config, mechanism = recorded.config, recorded.plan.build_mechanism()
    number = work.number
    survivors = recorded.survivors[number]
    if not all(0 <= client < population.size for client in survivors):
        raise LedgerError(f"round {number} summed a client that the population does not have")
    chunks = population.chunks(
        survivors,
        clients_at_once(config.engine.chunk, population.trainer.dimension),
        processes=max(1, config.engine.processes),
    )
    flat, _tally = engine.total(work, chunks, mechanism.length)
    return in_ring(flat, mechanism, work.protocol, invited=recorded.invited[number])


def _compared(what: str, recorded: object, replayed: str) -> Difference | None:
    if recorded == replayed:
        return None
    return Difference(what=what, recorded=str(recorded), replayed=replayed)


def _other_versions(header: Mapping[str, Any]) -> tuple[str, ...]:
    then = header.get("versions")
    stated = then if isinstance(then, dict) else {}
    return tuple(
        f"{name} {now} for {stated.get(name, 'none')}"
        for name, now in versions().items()
        if stated.get(name) != now
    )
