"""Canaries: updates planted in a separate, unreleased run to attack its claimed epsilon.

Each canary is a virtual client alongside the real ones. If its fair coin included it, its update
is a vector at the full clipping norm in a direction of its own; otherwise its update is zero,
which in the release looks like absence, because the noise and the denominator are constant.
Directions are rows of a cosine transform with random signs: exactly orthogonal, so that canaries do
not disturb one another, and spread over all coordinates like random directions. The strategy is
plain averaging, so that the final model's change is the sum of all releases; any other strategy
would only post-process them. What the real clients contributed is subtracted, to the last integer,
before canaries are scored: an attacker of differential privacy may know everything but the coins.
The subtraction has to be exact, because later updates depend on the noise of earlier rounds, and a
remainder of them could hide that noise.

Coins and directions come from one seed. The hash of the audit's protocol, which commits to the
seed, goes into the ledger's header before anything is trained (`fedsys.audit.canary_protocol`).

Protocol ``secure`` is run as ``ideal``, which gives the same sums to the bit: canaries count among
the colluders, and no committee of secure aggregation withstands so many.

>>> import os
>>> canaries = Canaries.plant(3, dimension=8, norm=2.0, entropy=os.urandom)
>>> canaries.updates([0, 1, 2]).shape
(3, 8)
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct, idct

from client.privatize.integers import add_clipped_integers
from client.training import ClippedSum
from client.training.procedure.visit import Visit
from fedsys.audit.canary_claim import planned
from fedsys.audit.canary_outcome import CANARIES, CanaryOutcome, Scores, format_outcome
from fedsys.audit.canary_protocol import MOST_CANARIES, Coins, Protocol, commitment_to, register
from fedsys.audit.canary_scores import FEWEST_FREE
from fedsys.config import Cohort, Config, Privacy, Server
from fedsys.durable import write_atomically
from fedsys.errors import ConfigError
from fedsys.privacy import Entropy, read_ledger
from fedsys.privacy.encoding.clipping import wide_scale
from fedsys.privacy.randomness import KEY_BYTES
from fedsys.run_folder import RunFolder, disk_errors, free_name
from server.job import Job
from server.job_opening import JobSpec, start_job
from server.job_settings import plan_for
from simulations import harness
from simulations.attackable import require_attackable
from simulations.engine.base import InProcess
from simulations.engine.chunk import ChunkTrainer
from simulations.harness import Observer, RunResult
from simulations.population import Population
from simulations.randomness import Randomness, SystemRandomness
from simulations.setting import Setting, prepare

__all__ = ["Canaries", "CanaryPopulation", "run"]

_AT_ONCE = 64
_FLOAT32 = 2.0**-24
_ABOVE_CLIP = 1 + 2.0**-8
"""Canaries exceed the clipping norm by this factor, so that clipping leaves exactly that norm."""


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """m orthogonal directions in d dimensions, and which of them are included.

    Attributes:
        seed: 32 bytes that everything below is drawn from; secret until the run is over.
        rows: (m,) distinct rows of the cosine transform.
        signs: (d,) sign of every coordinate, 1 or -1.
        included: (m,) results of fair coins.
        norm: L2 norm of an included canary's update.
    """

    seed: bytes = field(repr=False)
    rows: NDArray[np.int64] = field(repr=False)
    signs: NDArray[np.float32] = field(repr=False)
    included: NDArray[np.bool_] = field(repr=False)
    norm: float

    @classmethod
    def plant(cls, count: int, *, dimension: int, norm: float, entropy: Entropy) -> Canaries:
        """Draw a seed, and directions and coins from it.

        Raises:
            ConfigError: There are more canaries than dimensions, or fewer than two.
        """
        if not 2 <= count <= min(dimension, MOST_CANARIES):
            raise ConfigError(
                f"--canaries {count} with a model of {dimension} parameters: they have to be "
                f"orthogonal; plant from 2 to {min(dimension, MOST_CANARIES)}"
            )
        seed = entropy(KEY_BYTES)
        coins = Coins.draw(seed, canaries=count, dimension=dimension)
        return cls(
            seed=seed, rows=coins.rows, signs=coins.signs, included=coins.included, norm=norm
        )

    @property
    def count(self) -> int:
        """Number of canaries, m."""
        return len(self.rows)

    @property
    def dimension(self) -> int:
        """Number of dimensions, d."""
        return len(self.signs)

    def updates(self, which: Sequence[int]) -> NDArray[np.float32]:
        """(K, d) the planted update of each canary; zero for those not included."""
        updates = np.zeros((len(which), self.dimension), dtype=np.float32)
        inside = np.flatnonzero(self.included[np.asarray(which, dtype=np.int64)])
        for start in range(0, len(inside), _AT_ONCE):
            some = inside[start : start + _AT_ONCE]
            # The inverse of an orthonormal transform keeps the norm, and maps different unit
            # vectors to orthogonal rows; signs change neither.
            spectrum = np.zeros((len(some), self.dimension), dtype=np.float32)
            spectrum[np.arange(len(some)), self.rows[np.asarray(which)[some]]] = self.norm
            updates[some] = idct(spectrum, axis=1, norm="ortho", overwrite_x=True) * self.signs
        return updates

    def scores(self, change: NDArray[np.float64]) -> NDArray[np.float64]:
        """(m,) inner products of each direction with a change (d,) of the model."""
        spectrum = dct(change.astype(np.float64) * self.signs, norm="ortho")
        scores: NDArray[np.float64] = spectrum[self.rows]
        return scores


@dataclass(kw_only=True)
class CanaryPopulation(Population):
    """The real clients 0..N-1, followed by the canaries N..N+M-1.

    Attributes:
        canaries: The canaries that are planted.
        clip: Clipping norm C.
        contributed: By round, (d,) sum of the real clients' clipped updates, in units of C.
        misplaced: By round, (d,) error of encoding the canaries' updates, in units of C.
        longest: Largest norm of the model before a round.
    """

    canaries: Canaries
    clip: float
    contributed: dict[int, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    misplaced: dict[int, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    longest: float = 0.0

    @property
    def real(self) -> int:
        """Number of real clients, N."""
        return self.partition.clients

    @property
    def size(self) -> int:
        """Number of clients and canaries, N + M."""
        return self.real + self.canaries.count

    def train(
        self,
        weights: NDArray[np.float32],
        clients: Sequence[int],
        *,
        round: int,
        visit: Visit | None = None,
    ) -> NDArray[np.float32]:
        """(K, d) updates; a canary's is the same in every round."""
        self.longest = max(self.longest, float(np.linalg.norm(weights)))
        planted = self.planted(clients)
        ids = np.asarray(clients, dtype=np.int64)
        updates = np.zeros((len(ids), len(weights)), dtype=np.float32)
        if planted.any():
            updates[planted] = self.canaries.updates((ids[planted] - self.real).tolist())
        if not planted.all():
            real = ids[~planted].tolist()
            updates[~planted] = super().train(weights, real, round=round, visit=visit)
        return updates

    def planted(self, clients: Sequence[int]) -> NDArray[np.bool_]:
        """(K,) which of these clients are canaries."""
        return np.asarray(clients, dtype=np.int64) >= self.real

    def note(
        self, updates: NDArray[np.float32], clients: Sequence[int], round: int, *, exact: bool
    ) -> None:
        """Record what these updates add to a round's sum once they are encoded.

        Args:
            updates: (K, d) the clients' updates, before clipping.
            clients: Ids of the clients, in the order of the rows.
            round: The round's number.
            exact: Whether the encoding is a deterministic function of the update and can be
                repeated to the last integer; otherwise floating-point clipping approximates it.
        """
        planted = self.planted(clients)
        add = self._encoded if exact else self._clipped
        self._add(self.contributed, round, add(updates[~planted]))
        inside = updates[planted].astype(np.float64) / self.canaries.norm
        self._add(self.misplaced, round, add(updates[planted]) - inside.sum(axis=0))

    def _encoded(self, updates: NDArray[np.float32]) -> NDArray[np.float64]:
        """(d,) sum of the clipped integers, in units of C."""
        total = torch.zeros(updates.shape[1], dtype=torch.float64)
        add_clipped_integers(total, torch.from_numpy(updates), clip=self.clip)
        unit = wide_scale(updates.shape[1], self.clip) * self.clip
        summed: NDArray[np.float64] = total.numpy() / unit
        return summed

    def _clipped(self, updates: NDArray[np.float32]) -> NDArray[np.float64]:
        """(d,) sum of the clipped updates, in units of C."""
        norms = np.linalg.norm(updates.astype(np.float64), axis=1)
        with np.errstate(divide="ignore"):
            factors = np.minimum(1.0, self.clip / norms)
        usable = np.isfinite(norms)
        summed: NDArray[np.float64] = factors[usable] @ updates[usable].astype(np.float64)
        return summed / self.clip

    @staticmethod
    def _add(sums: dict[int, NDArray[np.float64]], round: int, part: NDArray[np.float64]) -> None:
        sums[round] = sums.get(round, 0.0) + part

    def clipped_sum(
        self,
        weights: NDArray[np.float32],
        clients: Sequence[int],
        *,
        round: int,
        clip: float,
        visit: Visit | None = None,
    ) -> ClippedSum:
        """Always refused: floating-point sums are not a release.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("--canaries needs aggregation.protocol = 'secure' or 'ideal'")

    def chunks(
        self, clients: Sequence[int], most: int, *, processes: int = 1
    ) -> list[tuple[int, ...]]:
        """Real clients in chunks of equal size, then the canaries."""
        planted = [client for client in clients if client >= self.real]
        real = [client for client in clients if client < self.real]
        chunks = super().chunks(real, most, processes=processes) if real else []
        return chunks + [
            tuple(planted[start : start + _AT_ONCE]) for start in range(0, len(planted), _AT_ONCE)
        ]


class _WatchedTrainer(ChunkTrainer):
    """Records what each client contributes, after secret coins and scaling."""

    def __init__(self, population: CanaryPopulation, randomness: Randomness) -> None:
        super().__init__(population, randomness)
        self._watched = population

    def _updates(self, clients: Sequence[int]) -> NDArray[np.float32]:
        updates = super()._updates(clients)
        exact = self._mechanism.sums_integers
        self._watched.note(updates, clients, self._work.number, exact=exact)
        return updates


class _WatchedEngine(InProcess):
    """An in-process engine whose trainer records what clients contribute."""

    def __init__(self, population: CanaryPopulation, randomness: Randomness) -> None:
        super().__init__(population, randomness)
        self._trainer = _WatchedTrainer(population, randomness)


def run(
    config: Config,
    *,
    canaries: int,
    out: Path | None = None,
    data: Path | None = None,
    device: str = "auto",
    observer: Observer | None = None,
    randomness: Randomness | None = None,
    entropy: Entropy = os.urandom,
) -> RunResult:
    """Simulate a job with canaries in a folder of its own, which must never be released.

    Args:
        config: Configuration of the job under attack. Its strategy is replaced by plain averaging,
            canaries count among the colluders, and the population and cohort grow by the canaries
            at the same sampling rate.
        canaries: Number of canaries, M.
        out: The run's folder; by default the first free ``runs/<name>-canaries``.
        data: As for `harness.run`.
        device: As for `harness.run`.
        observer: As for `harness.run`.
        randomness: As for `harness.run`; for tests only.
        entropy: Source for the canaries' directions and coins.

    Raises:
        FedsysError: As for `harness.run`; or the canaries do not fit the model.
    """
    require_attackable(config)
    setting = _plant(config, canaries, data, device, randomness or SystemRandomness(), entropy)
    population = setting.population
    if not isinstance(population, CanaryPopulation):
        raise TypeError("a setting without canaries")
    with setting.engine:
        name = f"{config.job.name}-canaries"
        folder = RunFolder.create(out or free_name(Path("runs"), name))
        initial = population.trainer.initial_weights()
        protocol = register(
            planned(setting.plan),
            canaries=canaries,
            dimension=population.canaries.dimension,
            commitment=commitment_to(population.canaries.seed),
        )
        facts = replace(
            setting.facts,
            canaries=protocol.digest,
            population_known=f"simulated: exact; {canaries} of them are canaries, not for release",
        )
        with disk_errors(folder.path):
            spec = JobSpec(config=setting.config, plan=setting.plan, weights=initial, facts=facts)
            job = start_job(folder, spec)
        with job.ledger:
            return harness.run_rounds(
                setting,
                job,
                observer or _ignore,
                before_end=lambda: _store(folder, job, population, protocol, initial),
            )


def _ignore(_event: object) -> None:
    return None


def _plant(
    config: Config,
    count: int,
    data: Path | None,
    device: str,
    randomness: Randomness,
    entropy: Entropy,
) -> Setting:
    """The job's setting with canaries in its population.

    The data, the trainer and the engine's choices are those of the same job without privacy; the
    plan is derived again for N + M clients.
    """
    plain = config.model_copy(
        update={
            "privacy": Privacy(mechanism="none", clip=config.privacy.clip),
            "cohort": Cohort(expected=1),
            "aggregation": config.aggregation.model_copy(
                update={"protocol": "ideal", "encoding": "wide"}
            ),
        }
    )
    base = prepare(plain, data=data, device=device)
    if base.population.trainer.parts.blocks:
        raise ConfigError(
            f"--canaries with the blocks {', '.join(base.population.trainer.parts.blocks)} of a "
            f"local procedure: canaries are updates; audit the job with local.procedure = 'train'"
        )
    population = CanaryPopulation(
        train_set=base.population.train_set,
        partition=base.population.partition,
        by_client=base.population.by_client,
        trainer=base.population.trainer,
        seed=base.population.seed,
        canaries=Canaries.plant(
            count,
            dimension=base.population.trainer.dimension,
            norm=config.privacy.clip * _ABOVE_CLIP,
            entropy=entropy,
        ),
        clip=config.privacy.clip,
    )
    privacy = config.privacy.model_copy(
        update={"max_colluders": config.privacy.max_colluders + count}
    )
    expected = max(1, round(config.cohort.expected * population.size / population.real))
    config = config.model_copy(
        update={
            "privacy": privacy,
            "aggregation": config.aggregation.model_copy(update={"protocol": "ideal"}),
            "server": Server(strategy="fedavg", learning_rate=1.0, momentum=0.0),
            "cohort": config.cohort.model_copy(
                update={"expected": expected, "cap": None, "min_survivors": None}
            ),
            "population": config.population.model_copy(update={"clients": population.size}),
            "engine": base.config.engine,
        }
    )
    layers = population.trainer.layout.sizes
    plan = plan_for(config, population=population.size, layers=layers)
    if plan.protected:
        privacy = privacy.model_copy(update={"noise_multiplier": plan.noise_multiplier})
    resolved = config.model_copy(
        update={
            "privacy": privacy,
            "cohort": config.cohort.model_copy(
                update={"cap": plan.cap, "min_survivors": plan.min_survivors}
            ),
            "aggregation": config.aggregation.model_copy(
                update={"noise": plan.noise, "modulus_bits": plan.modulus_bits}
            ),
        }
    )
    base.engine.close()
    return replace(
        base,
        config=resolved,
        plan=plan,
        population=population,
        engine=_WatchedEngine(population, randomness),
        randomness=randomness,
    )


def _store(
    folder: RunFolder,
    job: Job,
    population: CanaryPopulation,
    protocol: Protocol,
    initial: NDArray[np.float32],
) -> None:
    """Write ``canaries.jsonl``, readable by its owner alone, like the cohorts; the line that closes
    the ledger binds it.

    Scores are in units of one clipped update: an included canary's score is the number of rounds
    that sampled it plus noise, any other's is noise alone.
    """
    canaries, plan = population.canaries, job.plan
    released = job.coordinator.weights.astype(np.float64) - initial.astype(np.float64)
    unit = plan.expected_cohort / plan.clip
    change = released * unit
    misplaced, rounds = np.zeros_like(change), 0
    for record in read_ledger(folder.ledger).rounds:
        if record.outcome == "commit":
            change -= population.contributed.get(record.round, 0.0)
            misplaced += population.misplaced.get(record.round, 0.0)
            rounds += 1
    longest = max(population.longest, float(np.linalg.norm(job.coordinator.weights)))
    # Weights and mean are each rounded to float32 once a round, with relative error at most 2^-24.
    stored = rounds * 2 * _FLOAT32 * longest * unit
    exact = job.coordinator.mechanism.sums_integers
    outcome = CanaryOutcome(
        ledger_head=job.ledger.head,
        protocol=protocol,
        seed=canaries.seed,
        found=Scores(
            included=canaries.included,
            scores=canaries.scores(change),
            length=_length_of_noise(change, canaries.scores(change)),
            dimension=canaries.dimension,
        ),
        slack=float(np.linalg.norm(misplaced)) + stored if exact else None,
    )
    with disk_errors(folder.path):
        write_atomically(folder.path / CANARIES, format_outcome(outcome), mode=0o600)


def _length_of_noise(change: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """L2 norm that a change would have without canaries.

    The change's energy outside the m orthonormal directions is noise in d - m dimensions, which is
    scaled up to d; with too few free dimensions the whole change's norm is used.
    """
    free = len(change) - len(scores)
    squared = float(np.square(change).sum())
    if free >= FEWEST_FREE:
        rest = max(squared - float(np.square(scores).sum()), 0.0)
        squared = rest * len(change) / free
    return math.sqrt(squared) or 1.0
