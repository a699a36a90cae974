"""The tables of a configuration: what each key is called, may be, and is by default."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = [
    "Aggregation",
    "Cohort",
    "Engine",
    "Evaluation",
    "Faults",
    "Job",
    "Local",
    "Population",
    "Privacy",
    "Rounds",
    "Section",
    "Server",
    "TaskSection",
    "Tuning",
]

Count = Annotated[int, Field(ge=1, le=10**9)]


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
Positive = Annotated[Finite, Field(gt=0)]
NonNegative = Annotated[Finite, Field(ge=0)]
Fraction = Annotated[Finite, Field(ge=0, lt=1)]
Probability = Annotated[Finite, Field(gt=0, le=1)]


class Section(BaseModel):
    """A table of the configuration; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Job(Section):
    """What the run is called; `seed` feeds initial weights, partition and batch order only."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "quickstart"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class TaskSection(Section):
    """A built-in task's name, or ``"package.module:Attr"``; options go to the task itself.

    `graph_sha256` is what ``fedsys task export`` prints: devices without the task's code train from
    the graph of this hash.
    """

    name: str = "digits"
    options: dict[str, Any] = Field(default_factory=dict)
    graph_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")


class Population(Section):
    """Who could be asked; `clients` None takes what the partition yields."""

    clients: Count | None = None
    partition: Literal["one-each", "iid", "dirichlet", "shards", "by-column", "resampled"] = (
        "one-each"
    )
    alpha: Positive = 0.5
    shards: Count = 2
    examples: Count = 10


class Cohort(Section):
    """Who is asked in one round. `expected` is qN; `cap` and `min_survivors` None are derived.

    In buffered rounds `sampling` is "arrivals" and the other three are `rounds.buffer`.
    """

    sampling: Literal["poisson", "fixed", "min-separation", "arrivals"] = "poisson"
    expected: Count = 100
    cap: Count | None = None
    min_survivors: Count | None = None
    participation: Probability = 1.0
    min_separation: Count | None = None


class Rounds(Section):
    """How many rounds are paid for; one lost to a crash counts.

    `answer` says when a device's upload leaves, unless its owner wants it held back more: "at-once"
    shows how long it trained, and so how much data it has; "bucketed" waits for one of a few times
    that follow from the job alone; "at-deadline" for the end of its stage.

    In `mode` "buffered" clients upload when they are ready, and a round is a buffer: it closes at
    its `buffer`-th upload. `concurrency` clients train at a time. A client scales its update down
    by the versions of the model that came out while it trained, and sends zeros and noise where
    they are more than `max_staleness`. `epoch` is how many buffers one committee serves under the
    same keys, which are erased at its end.
    """

    count: Count = 40
    answer: Literal["at-once", "bucketed", "at-deadline"] = "bucketed"
    mode: Literal["synchronous", "buffered"] = "synchronous"
    buffer: Annotated[int, Field(ge=2, le=10_000)] | None = None
    concurrency: Count | None = None
    max_staleness: Annotated[int, Field(ge=0, le=10**6)] = 10
    epoch: Annotated[int, Field(ge=2, le=10_000)] = 4

    @property
    def epoch_clients(self) -> int:
        """Clients that an epoch invites: those that train at its beginning, and one for each upload
        that its buffers take."""
        return (self.concurrency or 0) + self.epoch * (self.buffer or 0)


class Local(Section):
    """Training on one client."""

    epochs: Count = 1
    batch_size: Count = 10
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 0.1
    momentum: Fraction = 0.0
    weight_decay: NonNegative = 0.0
    proximal_mu: NonNegative = 0.0


class Server(Section):
    """What is done with a round's mean update; a name, or ``"package.module:Attr"``.

    The mean is unweighted under every `strategy`, "fedavg" included: each client counts alike,
    however many examples it has, and the sum is divided by the expected cohort. A weight would be a
    number of the client's own that no noise hides, and would let some clients move the sum further
    than the clipping norm that is paid for.
    """

    strategy: str = "fedavgm"
    learning_rate: Positive = 1.0
    momentum: Fraction = 0.9
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    tau: Positive = 1e-3


class Privacy(Section):
    """`epsilon` alone calibrates the noise; `noise_multiplier` alone sets it; with both, epsilon
    is the budget at which the run stops."""

    mechanism: Literal[
        "distributed-gaussian",
        "central-gaussian",
        "local-gaussian",
        "banded-mf",
        "example-gaussian",
        "none",
    ] = "distributed-gaussian"
    epsilon: Positive | None = None
    noise_multiplier: Positive | None = None
    delta: Annotated[Finite, Field(gt=0, lt=1)] = 1e-5
    clip: Positive = 1.0
    unit: Literal["client", "example"] = "client"
    guarantee: Literal["outsider", "server"] = "outsider"
    max_colluders: Annotated[int, Field(ge=0)] = 0
    max_participations: Count | None = None
    example_clip: Positive = 1.0
    example_rate: Probability | None = None
    adaptive_quantile: Annotated[Finite, Field(gt=0, lt=1)] | None = None
    adaptive_rate: Positive = 0.2
    adaptive_layers: Literal["flat", "per-layer"] = "flat"


class Aggregation(Section):
    """How updates become a sum.

    `dropout` is the chance that a member of a cohort is lost: secure aggregation withstands more
    losses than that makes likely, and delta pays for the rest. `corrupt` is the fraction that may
    collude with the server.

    `noise` "once" draws a simulated sum's noise at a stroke, which takes less time. `modulus_bits`
    0 is the least ring of 16, 20, 24, 32 and more bits that holds the largest sum and its noise (16
    if narrow).
    """

    protocol: Literal["secure", "ideal", "float"] = "secure"
    noise: Literal["per-client", "once"] = "per-client"
    encoding: Literal["wide", "narrow"] = "wide"
    modulus_bits: Annotated[int, Field(ge=0, le=64)] = 0
    dropout: Fraction = 0.1
    corrupt: Fraction = 0.1


class Evaluation(Section):
    """`data` is "test" or "none"; `every` counts rounds."""

    data: Literal["test", "none"] = "test"
    every: Count = 1


class Engine(Section):
    """Speed only. Zero means "measure and choose"; the choice is stored with the run.

    `deadline` is how many seconds a chunk of clients may take before the run gives up. `backend`
    "ray" trains on a cluster, `address` says where it is (empty: one on this machine). Path "graph"
    is for GPUs.
    """

    path: Literal["auto", "graph", "dual", "batched", "loop"] = "auto"
    chunk: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0
    processes: Annotated[int, Field(ge=0, le=1024)] = 0
    deadline: Positive = 900.0
    backend: Literal["local", "ray"] = "local"
    address: str = ""


class Faults(Section):
    """What a simulation does to its virtual clients, see `simulations.faults.FaultPlan`.

    `dropout` is the chance that a member of a cohort vanishes; `availability` and `diurnal` say who
    is reachable; `speed_spread`, `seconds_per_example` and `deadline` drive a simulated clock.
    """

    dropout: Fraction = 0.0
    availability: Probability = 1.0
    diurnal: Annotated[Finite, Field(ge=0, le=1)] = 0.0
    speed_spread: Annotated[Finite, Field(ge=0, le=5)] = 0.0
    seconds_per_example: NonNegative = 0.0
    deadline: NonNegative = 0.0


class TuningPart(Section):
    """Rounds of tuning runs as `fedsys tune` found them in their ledgers: Gaussian steps
    (multiplier, rate, 1 if neighbours are replaced, how many) and what delta pays beside them."""

    delta: Annotated[Finite, Field(gt=0, lt=1)]
    beside: Fraction
    aside: Fraction
    log_distance: Finite
    steps: Annotated[list[list[float]], Field(min_length=1, max_length=4096)]


class Tuning(Section):
    """Runs on the same clients whose results chose these settings; `fedsys tune` fills it in.

    `epsilon` is what the outsider learned from all of them together, at `delta`; `part` are their
    rounds, from which the total with this run is composed (without them, epsilons and deltas are
    added); `heads` are those of their ledgers. The header of the ledger repeats it, and summary,
    report, audit and export state the total.
    """

    runs: Annotated[int, Field(ge=0)] = 0
    epsilon: Annotated[float, Field(ge=0)] | None = None
    delta: Annotated[Finite, Field(gt=0, lt=1)] | None = None
    heads: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=list, max_length=10_000
    )

    part: TuningPart | None = None

    def to_json(self) -> dict[str, Any]:
        """For the ledger; an infinite epsilon is the string "inf"."""
        facts = self.model_dump(exclude_none=True)
        return facts | ({"epsilon": "inf"} if self.epsilon == math.inf else {})
