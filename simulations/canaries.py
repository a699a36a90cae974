"""Canaries: updates planted in a separate, unreleased run to attack its claimed epsilon.

Each canary is a virtual client beside the real ones whose update, if a fair coin put it in, is a
vector of its own direction at the full clipping norm, and otherwise zero, which the release cannot
tell from absence: the noise and the denominator are constant. Directions are rows of a cosine
transform with random signs: exactly orthogonal, so that canaries do not disturb one another, and
spread over all coordinates like random ones. The strategy is plain averaging, so that the final
model's change is the sum of all releases; what a strategy makes of them is post-processing. What
the real clients contributed is taken off before canaries are looked for: who attacks differential
privacy may know everything but the coins.

Protocol ``secure`` is run as ``ideal``, which gives the same sums to the bit: canaries count among
the colluders, and no committee of secure aggregation withstands so many.

>>> import os
>>> canaries = Canaries.plant(3, dimension=8, norm=2.0, entropy=os.urandom)
>>> canaries.updates([0, 1, 2]).shape
(3, 8)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct

from client.training import ClippedSum
from fedsys.audit.canaries import default_guesses
from fedsys.audit.empirical import CANARIES
from fedsys.config import Cohort, Config, Privacy, Server
from fedsys.durable import write_atomically
from fedsys.errors import ConfigError
from fedsys.privacy import AesCtrStream, Entropy, read_ledger
from fedsys.run_folder import RunFolder, disk_errors, free_name
from server.job import Job
from server.job_opening import JobSpec, start_job
from server.job_settings import plan_for
from simulations import harness
from simulations.engine.base import InProcess
from simulations.harness import Observer, RunResult
from simulations.population import Population
from simulations.randomness import Randomness, SystemRandomness
from simulations.setting import Setting, prepare

__all__ = ["Canaries", "CanaryPopulation", "run"]

_AT_ONCE = 64
_FEW_DIMENSIONS = 30
_ABOVE_CLIP = 1 + 2.0**-8
"""Canaries exceed the clipping norm by this, so that clipping leaves them all of it."""


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """m orthogonal directions in d dimensions, and which of them are in.

    Attributes:
        rows: (m,) distinct rows of the cosine transform.
        signs: (d,) of every coordinate, 1 or -1.
        included: (m,) by fair coins.
        norm: of the updates of those that are in.
    """

    rows: NDArray[np.int64]
    signs: NDArray[np.float32]
    included: NDArray[np.bool_]
    norm: float

    @classmethod
    def plant(cls, count: int, *, dimension: int, norm: float, entropy: Entropy) -> Canaries:
        """Draws directions and coins.

        Raises:
            ConfigError: more canaries than dimensions, or fewer than two.
        """
        if not 2 <= count <= dimension:
            raise ConfigError(
                f"--canaries {count} with a model of {dimension} parameters: they have to be "
                f"orthogonal; plant from 2 to {dimension}"
            )
        stream = AesCtrStream.from_entropy(entropy)
        one = np.uint64(1)
        return cls(
            rows=np.argsort(stream.words(dimension), kind="stable")[:count].astype(np.int64),
            signs=np.where(stream.words(dimension) & one, 1, -1).astype(np.float32),
            included=(stream.words(count) & one).astype(np.bool_),
            norm=norm,
        )

    @property
    def count(self) -> int:
        """m."""
        return len(self.rows)

    @property
    def dimension(self) -> int:
        """d."""
        return len(self.signs)

    def updates(self, which: Sequence[int]) -> NDArray[np.float32]:
        """(K, d): the planted update of each, zero for those that are not in."""
        updates = np.zeros((len(which), self.dimension), dtype=np.float32)
        inside = np.flatnonzero(self.included[np.asarray(which, dtype=np.int64)])
        for start in range(0, len(inside), _AT_ONCE):
            some = inside[start : start + _AT_ONCE]
            spectrum = np.zeros((len(some), self.dimension), dtype=np.float32)
            spectrum[np.arange(len(some)), self.rows[np.asarray(which)[some]]] = self.norm
            updates[some] = idct(spectrum, axis=1, norm="ortho", overwrite_x=True) * self.signs
        return updates

    def scores(self, change: NDArray[np.float64]) -> NDArray[np.float64]:
        """(m,) inner products of a change (d,) of the model with each direction."""
        spectrum = dct(change.astype(np.float64) * self.signs, norm="ortho")
        scores: NDArray[np.float64] = spectrum[self.rows]
        return scores


@dataclass(kw_only=True)
class CanaryPopulation(Population):
    """The real clients 0..N-1 and behind them the canaries N..N+M-1.

    Attributes:
        canaries: what is planted.
        clip: C.
        contributed: (d,) by round, the sum of the real clients' clipped updates.
    """

    canaries: Canaries
    clip: float
    contributed: dict[int, NDArray[np.float64]] = field(default_factory=dict, repr=False)

    @property
    def real(self) -> int:
        """N, canaries left out."""
        return self.partition.clients

    @property
    def size(self) -> int:
        """N + M."""
        return self.real + self.canaries.count

    def train(
        self, weights: NDArray[np.float32], clients: Sequence[int], *, round: int
    ) -> NDArray[np.float32]:
        """(K, d) updates; a canary's is the same in every round."""
        ids = np.asarray(clients, dtype=np.int64)
        planted = ids >= self.real
        updates = np.zeros((len(ids), len(weights)), dtype=np.float32)
        if planted.any():
            updates[planted] = self.canaries.updates((ids[planted] - self.real).tolist())
        if not planted.all():
            real = ids[~planted].tolist()
            updates[~planted] = super().train(weights, real, round=round)
            self._note(updates[~planted], round)
        return updates

    def _note(self, updates: NDArray[np.float32], round: int) -> None:
        norms = np.linalg.norm(updates.astype(np.float64), axis=1)
        with np.errstate(divide="ignore"):
            factors = np.minimum(1.0, self.clip / norms)
        usable = np.isfinite(norms)
        part = factors[usable] @ updates[usable].astype(np.float64)
        self.contributed[round] = self.contributed.get(round, 0.0) + part

    def clipped_sum(
        self, weights: NDArray[np.float32], clients: Sequence[int], *, round: int, clip: float
    ) -> ClippedSum:
        """Refused: sums in floating point are no release.

        Raises:
            ConfigError: always.
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
    """Simulates a job with canaries in a folder of its own, which is never to be released.

    Args:
        config: of the job under attack; its strategy is replaced by plain averaging, its canaries
            count among the colluders, population and cohort grow by them at the same sampling
            rate.
        canaries: M.
        out: the run's folder; by default the first free ``runs/<name>-canaries``.
        data: as for `harness.run`.
        device: likewise.
        observer: likewise.
        randomness: for tests only, likewise.
        entropy: of the canaries' directions and coins.

    Raises:
        FedsysError: as `harness.run`; or the canaries do not fit the model.
    """
    _require_attackable(config)
    setting = _plant(config, canaries, data, device, randomness or SystemRandomness(), entropy)
    population = setting.population
    if not isinstance(population, CanaryPopulation):
        raise TypeError("a setting without canaries")
    with setting.engine:
        name = f"{config.job.name}-canaries"
        folder = RunFolder.create(out or free_name(Path("runs"), name))
        initial = population.trainer.initial_weights()
        facts = replace(
            setting.facts,
            population_known=f"simulated: exact; {canaries} of them are canaries, not for release",
        )
        with disk_errors(folder.path):
            spec = JobSpec(config=setting.config, plan=setting.plan, weights=initial, facts=facts)
            job = start_job(folder, spec)
        with job.ledger:
            result = harness.run_rounds(setting, job, observer or _ignore)
        if not result.interrupted:
            _store(folder, job, population, initial)
    return result


def _ignore(_event: object) -> None:
    return None


def _require_attackable(config: Config) -> None:
    if config.aggregation.protocol == "float":
        raise ConfigError("--canaries needs aggregation.protocol = 'secure' or 'ideal'")
    if config.privacy.adaptive_quantile is not None:
        raise ConfigError(
            f"--canaries with privacy.adaptive_quantile = {config.privacy.adaptive_quantile}: "
            f"canaries are planted at a fixed clipping norm; leave adaptive clipping out"
        )
    if config.rounds.mode == "buffered":
        raise ConfigError(
            "--canaries with rounds.mode = 'buffered': whether a canary is there must not move the "
            "other uploads; use 'synchronous'"
        )
    if config.privacy.unit == "example":
        raise ConfigError("--canaries attacks the unit 'client'; privacy.unit is 'example'")


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
    plan is made anew for N + M clients.
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
    population = CanaryPopulation(
        train_set=base.population.train_set,
        partition=base.population.partition,
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
        engine=InProcess(population, randomness),
        randomness=randomness,
    )


def _store(
    folder: RunFolder, job: Job, population: CanaryPopulation, initial: NDArray[np.float32]
) -> None:
    """Writes ``canaries.jsonl``: readable by its owner alone, like the cohorts.

    A score counts in clipped updates: that of a canary that is in deviates by noise from the number
    of rounds that sampled it, that of one that is not from zero.
    """
    canaries, plan = population.canaries, job.plan
    released = job.coordinator.weights.astype(np.float64) - initial.astype(np.float64)
    change = released * (plan.expected_cohort / plan.clip)
    for record in read_ledger(folder.ledger).rounds:
        if record.outcome == "commit":
            change -= population.contributed.get(record.round, 0.0) / plan.clip
    scores = canaries.scores(change)
    length = _length_of_noise(change, scores)
    lines: list[dict[str, object]] = [
        {
            "version": 1,
            "canaries": canaries.count,
            "guesses": default_guesses(canaries.count),
            "dimension": canaries.dimension,
            "ledger_head": job.ledger.head,
        }
    ]
    lines += [
        {"included": included, "score": score, "cosine": score / length}
        for included, score in zip(canaries.included.tolist(), scores.tolist(), strict=True)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with disk_errors(folder.path):
        write_atomically(folder.path / CANARIES, text.encode("ascii"), mode=0o600)


def _length_of_noise(change: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """How long a change would be without canaries: from the dimensions that they leave free."""
    free = len(change) - len(scores)
    squared = float(np.square(change).sum())
    if free >= _FEW_DIMENSIONS:
        rest = max(squared - float(np.square(scores).sum()), 0.0)
        squared = rest * len(change) / free
    return math.sqrt(squared) or 1.0
