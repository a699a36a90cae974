"""The tables of a configuration: each key's name, allowed values and default."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field

from fedsys.config.section import (
    Count,
    Finite,
    Fraction,
    NonNegative,
    Norm,
    Positive,
    Probability,
    Section,
)

__all__ = [
    "Aggregation",
    "Cohort",
    "Engine",
    "Faults",
    "Job",
    "Local",
    "Population",
    "Privacy",
    "Query",
    "Rounds",
    "Section",
    "Server",
    "TaskSection",
]


class Job(Section):
    """The job's name and seed.

    Attributes:
        name: Name of the job. A simulation writes to ``runs/<name>`` by default.
        seed: Seeds the initial weights, the partition and the order of batches, never cohorts,
            keys or noise: those come from the operating system. A run without noise
            (``privacy.mechanism = "none"``) also derives its cohorts from the seed, so that it can
            be repeated.
        kind: What rounds ask of clients. ``train``: updates of a model. ``query``: answers about
            their data. ``evaluate``: how good a model is on their data. The latter two take one
            round, whose questions are in ``[query]``.
        reproducible: Whether a simulation draws cohorts, noise and keys from the seed too, so that
            a figure with noise can be computed again. Anybody who knows the seed can then subtract
            the noise: NOTHING IS PRIVATE, the ledger says so, and the audit fails.
        start: Head of the ledger of the run whose model this one starts from; ``fedsys simulate
            --from`` writes it. That run's rounds count in the total, as those in ``[tuning]`` do.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "quickstart"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    kind: Literal["train", "query", "evaluate"] = "train"
    reproducible: bool = False
    start: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


class Query(Section):
    """What a round of kind ``query`` or ``evaluate`` asks; [Ask before you train](ask.md) has the
    questions.

    Attributes:
        questions: The questions, one table each, with ``ask`` and ``name``.
        model: Folder of the run whose model is evaluated.
    """

    questions: list[dict[str, Any]] = Field(default_factory=list)
    model: str = ""


class TaskSection(Section):
    """What is learned: a model, its data, its loss and its metrics.

    Attributes:
        name: Name of a built-in task (digits, mnist, cifar10, shakespeare, tabular, images, leaf,
            hf, synthetic), or ``"package.module:Attr"`` for a task of your own.
        options: Passed to the task. Each task documents and checks its own options.
        graph_sha256: SHA-256 that ``fedsys task export`` prints. Devices without the task's code
            train from the graph with this hash; empty for none.
    """

    name: str = "digits"
    options: dict[str, Any] = Field(default_factory=dict)
    graph_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")


class Population(Section):
    """Which clients exist, and which examples each of them holds.

    Attributes:
        clients: Number of clients. If left out, it is what the partition yields, which works for
            ``one-each`` and ``by-column``; the other partitions need it.
        partition: How a simulation assigns the training examples. ``one-each``: one example per
            client. ``iid``: equal random parts. ``dirichlet``: equal sizes, each client's mix of
            classes drawn from a Dirichlet distribution. ``shards``: sorted by class, cut into
            pieces, ``shards`` pieces per client. ``by-column``: the clients that the data names.
            ``resampled``: ``examples`` rows per client, drawn with replacement, for measuring
            systems rather than accuracy. ``"package.module:Attr"``: a function of your own of
            (data, clients, seed) that returns each client's rows.
        alpha: Concentration of ``dirichlet``; the smaller it is, the more the clients differ.
        shards: Pieces per client under ``shards``.
        examples: Rows per client under ``resampled``.
        held_out: Fraction of each client's examples that it does not train on and keeps for
            evaluations (``job.kind = "evaluate"``). A row's place in the data decides, so that a
            training job and an evaluation with the same fraction agree.
        devices: In a deployment, the devices that take part: their names, labels that they were
            given when they enrolled, or patterns such as ``"ward-*"``, separated by blanks. If left
            out, all of them do.
    """

    clients: Count | None = None
    partition: str = "one-each"
    alpha: Positive = 0.5
    shards: Count = 2
    examples: Annotated[int, Field(ge=1, le=10**6)] = 10
    held_out: Fraction = 0.0
    devices: Annotated[str, Field(pattern=r"^[A-Za-z0-9._=*?\[\]! -]{0,1000}$")] = ""


class Cohort(Section):
    """Who is invited to a round.

    Attributes:
        sampling: ``poisson`` invites each client independently. ``fixed`` draws a uniform subset of
            constant size. ``min-separation`` lets at least ``min_separation`` rounds pass before a
            client returns, and claims no amplification. ``arrivals`` is for buffered rounds, where
            a cohort consists of the clients whose uploads come first. ``"package.module:Attr"``: a
            function of your own, in simulations, of (round, clients with turns left, expected,
            random numbers) that returns a cohort. Nothing is claimed from how it chooses: every
            client counts as being in ``privacy.max_participations`` rounds.
        expected: Expected size of a cohort, the constant that every sum is divided by. In buffered
            rounds it is ``rounds.buffer``.
        cap: Largest cohort; a larger one aborts its round. If left out, it is derived so that such
            rounds are rare enough to cost only a small part of delta.
        min_survivors: Fewest survivors; with fewer a round is aborted. If left out, it is derived
            like ``cap``.
        participation: Probability that an invited client contributes its update; otherwise it
            secretly contributes zeros and its share of the noise.
        weighting: Whether a client's update counts by its number of examples. ``none``: clients
            count alike, the mean is unweighted. ``examples``: weights up to ``weight_cap``
            examples, which travel as one more noised coordinate and never in the clear; it takes
            half of ``privacy.clip``, which leaves 87% of it to the update.
        weight_cap: Number of examples at which a client's weight is 1, under ``examples``. It must
            not be derived from the clients' data.
        min_separation: Fewest rounds between two participations of one client. Required by
            ``min-separation`` and by ``banded-mf``; under ``banded-mf`` with Poisson sampling it is
            the number of groups that take turns.
    """

    sampling: str = "poisson"
    expected: Count = 100
    cap: Count | None = None
    min_survivors: Count | None = None
    participation: Probability = 1.0
    weighting: Literal["none", "examples"] = "none"
    weight_cap: Count | None = None
    min_separation: Count | None = None

    @property
    def kind(self) -> Literal["poisson", "fixed", "min-separation", "chosen", "arrivals"]:
        """How cohorts come about, as a privacy plan calls it."""
        if ":" in self.sampling:
            return "chosen"
        return cast(Literal["poisson", "fixed", "min-separation", "arrivals"], self.sampling)


class Rounds(Section):
    """How many rounds a job pays for, and when a round closes.

    Attributes:
        count: Number of rounds. Delta is split over them, and a round lost to a crash counts.
            Rounds in which devices evaluate (``evaluation.on_devices_every``) are added to it.
        answer: When a device sends its upload, unless its owner requires a later time. ``at-once``
            reveals how long it trained, and so how much data it has. ``bucketed`` waits for one of
            a few times that depend on the job alone. ``at-deadline`` waits for the end of the
            stage.
        mode: In ``synchronous`` rounds a cohort is invited and awaited. In ``buffered`` rounds,
            which do not run over Flower, clients upload when they are ready, and a round closes
            with its ``buffer``-th upload.
        buffer: Number of uploads that close a buffered round.
        concurrency: Number of clients that train at a time in buffered rounds.
        max_staleness: Most model versions that may be released while a client trains. A client
            scales its update by 1 / sqrt(1 + s) where s is their number. Above this limit a
            simulated client sends zeros and its share of the noise, and a device is not asked.
        epoch: Number of buffers that one committee serves with the same keys, which are erased
            afterwards.
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
        """Number of clients that an epoch invites: those that train at its beginning, and one for
        each upload that its buffers take."""
        return (self.concurrency or 0) + self.epoch * (self.buffer or 0)


class Local(Section):
    """How one client trains.

    Attributes:
        epochs: Passes over the client's examples in a round.
        batch_size: Examples in a batch. Under ``example-gaussian`` it is the average size, from
            which ``privacy.example_rate`` is derived.
        optimizer: Optimizer of the local steps: sgd, adam, or the name of any other in
            ``torch.optim``, such as adamw, which trains clients one by one.
        optimizer_options: Further arguments of such an optimizer.
        learning_rate: Step size.
        momentum: Momentum of SGD.
        weight_decay: Coefficient of the L2 penalty that is added to the gradient.
        proximal_mu: Strength of FedProx's pull back to the round's model; 0 turns it off.
        gradient_clip: L2 norm to which a batch's gradient is scaled down; 0 for none. It has
            nothing to do with privacy.
        schedule: How the step size changes from the job's first round to its last: ``constant``,
            ``linear``, ``cosine`` or ``exponential``.
        final_factor: The last round's step size over the first's.
        step_schedule: The same over the steps of one client's round.
        step_final_factor: The last step's step size over the first's.
        warmup_steps: Number of steps of a client's round over which the step size rises.
        procedure: How clients train, where it is more than steps of an optimizer: ``scaffold``,
            ``fednova``, ``train`` (as this section says, even if the task has a procedure of its
            own), or ``"package.module:Attr"`` for a procedure of your own. It trains clients one by
            one. Devices run it only where it is installed and their owner named it.
        options: The procedure's own options.
    """

    epochs: Count = 1
    batch_size: Count = 10
    optimizer: Literal[
        "sgd",
        "adam",
        "adadelta",
        "adafactor",
        "adagrad",
        "adamax",
        "adamw",
        "asgd",
        "muon",
        "nadam",
        "radam",
        "rmsprop",
        "rprop",
    ] = "sgd"
    optimizer_options: dict[str, Any] = Field(default_factory=dict)
    learning_rate: Positive = 0.1
    momentum: Fraction = 0.0
    weight_decay: NonNegative = 0.0
    proximal_mu: NonNegative = 0.0
    gradient_clip: NonNegative = 0.0
    schedule: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    final_factor: Probability = 0.1
    step_schedule: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    step_final_factor: Probability = 0.1
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 0
    procedure: str = ""
    options: dict[str, Any] = Field(default_factory=dict)


class Server(Section):
    """What the server does with a round's mean update.

    The mean is unweighted under every strategy, including ``fedavg``: each client counts equally,
    however many examples it has, and the sum is divided by the expected cohort size. A weight in
    the clear would be a private number of the client that no noise hides, and would let some
    clients move the sum by more than the clipping norm that is paid for; ``cohort.weighting =
    "examples"`` weights within the noised vector.

    Attributes:
        strategy: Server optimizer: fedavg, fedavgm, fedprox, fedadagrad, fedadam or fedyogi;
            scaffold or fednova, with the local procedure of that name; or
            ``"package.module:Attr"`` for one of your own.
        learning_rate: Step size of the server.
        momentum: Momentum of ``fedavgm``; the other strategies ignore it.
        beta1: Decay of the first moment (fedadagrad, fedadam, fedyogi).
        beta2: Decay of the second moment (fedadam, fedyogi).
        tau: Adaptivity, the smallest scale that counts as signal (fedadagrad, fedadam, fedyogi).
        options: Options of a strategy of your own.
    """

    strategy: str = "fedavgm"
    learning_rate: Positive = 1.0
    momentum: Fraction = 0.9
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    tau: Positive = 1e-3
    options: dict[str, Any] = Field(default_factory=dict)


class Privacy(Section):
    """The privacy guarantee, and the noise that provides it.

    ``epsilon`` alone calibrates the noise; ``noise_multiplier`` alone sets it, and epsilon is
    derived; with both, epsilon is the budget at which the run stops.

    Attributes:
        mechanism: ``distributed-gaussian``: every client adds a share of the noise.
            ``central-gaussian``: the coordinator adds the noise to the sum. ``local-gaussian``:
            every client adds all of the noise. ``banded-mf``: the coordinator's noise is correlated
            over rounds. ``example-gaussian``: DP-SGD within each client, for few large clients.
            ``none``: no noise and no privacy claim.
        epsilon: Epsilon that the guaranteed view must not exceed.
        noise_multiplier: Standard deviation of the noise over the sensitivity of the sum.
        delta: Delta of the whole job, in every view.
        clip: L2 norm to which a client's update is clipped; with adaptive clipping, the norm of the
            first round. Under mechanism ``none`` a simulation clips only if this is given; if not,
            it takes a norm far above the updates of a few clients.
        unit: What neighbouring data sets differ in: a ``client``, or an ``example``
            (``example-gaussian`` only).
        guarantee: View for which the noise is calibrated and the budget holds. ``outsider`` sees
            released models, ``server`` also sees every cohort.
        max_colluders: Number of clients that may collude, whatever cohorts the coordinator
            chooses. The epsilons of participant and server assume them.
        max_participations: Most rounds to which one client contributes; in later rounds it sends
            zeros and its share of the noise, and buffered rounds do not ask it. Required by the
            server guarantee, by ``min-separation``, by cohorts that code of your own chooses and by
            buffered rounds.
        example_clip: L2 norm to which an example's gradient is clipped under ``example-gaussian``.
        example_rate: Probability that an example is in a local batch under ``example-gaussian``. If
            left out, it is derived from ``local.batch_size`` and the average number of examples per
            client.
        adaptive_quantile: Fraction of updates that should stay below the clipping norm. If given,
            the norm adapts to it from round to round; otherwise it is fixed.
        adaptive_rate: Step size of that adaptation.
        adaptive_layers: Whether one norm clips the whole update (``flat``) or each parameter of the
            model has its own (``per-layer``).
    """

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
    clip: Norm = 1.0
    unit: Literal["client", "example"] = "client"
    guarantee: Literal["outsider", "server"] = "outsider"
    max_colluders: Annotated[int, Field(ge=0)] = 0
    max_participations: Count | None = None
    example_clip: Norm = 1.0
    example_rate: Probability | None = None
    adaptive_quantile: Annotated[Finite, Field(gt=0, lt=1)] | None = None
    adaptive_rate: Positive = 0.2
    adaptive_layers: Literal["flat", "per-layer"] = "flat"


class Aggregation(Section):
    """How updates become one sum.

    Attributes:
        protocol: ``secure`` runs secure aggregation with every client's keys, shares and losses.
            ``ideal`` adds the same integers in the clear, with bit-identical sums. ``float`` adds
            clipped updates in floating point, for speed; it is not a release.
        noise: ``per-client`` makes noise of one share for each client, drawn apart from the others
            except under ``ideal`` without a seed, where the sum of the shares is drawn in fewer
            draws by the same law. ``once`` makes the noise of a simulated sum one term.
        encoding: ``wide`` scales and rounds updates in a wide ring. ``narrow`` first rotates them
            and then rounds at random, for at most 20 bits per coordinate.
        modulus_bits: Bits of the ring in which integers are added. 0 chooses the smallest of 16,
            20, 24, 32 and more that holds the largest sum with its noise (16 under ``narrow``).
        dropout: Probability that a member of a cohort is lost. Secure aggregation withstands more
            losses than this makes likely, and delta pays for the rest.
        corrupt: Fraction of a cohort that may collude with the coordinator, which bounds the
            colluders only if cohorts are sampled honestly.
        suite: How shares of keys are sealed to the committee. ``x25519-mlkem768`` adds ML-KEM-768,
            so that uploads recorded today stay secret from a quantum computer; an upload grows by
            1,088 bytes and a sealing key by 1,184 for each committee member.
    """

    protocol: Literal["secure", "ideal", "float"] = "secure"
    noise: Literal["per-client", "once"] = "per-client"
    encoding: Literal["wide", "narrow"] = "wide"
    modulus_bits: Annotated[int, Field(ge=0, le=64)] = 0
    dropout: Fraction = 0.1
    corrupt: Fraction = 0.1
    suite: Literal["x25519", "x25519-mlkem768"] = "x25519"


class Engine(Section):
    """How a simulation is computed: nothing here changes the privacy guarantee.

    Zero and ``auto`` mean "measure and choose"; the choice is stored with the run.

    Attributes:
        path: How clients are trained: one by one (``loop``), many at once (``batched``), through
            Gram matrices where the model is linear enough (``dual``), or as a recorded CUDA graph
            (``graph``, GPUs only).
        chunk: Number of clients trained at once.
        threads: Threads per training process; 0 means one.
        processes: Number of training processes.
        deadline: Seconds that a chunk of clients may take before the run gives up.
        backend: ``local`` trains on this machine, ``ray`` on a Ray cluster.
        address: Address of the Ray cluster; empty starts one on this machine.
    """

    path: Literal["auto", "graph", "dual", "batched", "loop"] = "auto"
    chunk: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0
    processes: Annotated[int, Field(ge=0, le=1024)] = 0
    deadline: Positive = 900.0
    backend: Literal["local", "ray"] = "local"
    address: str = ""


class Faults(Section):
    """What a simulation does to its virtual clients.

    All faults are derived from ``job.seed``, so they can be repeated.

    Attributes:
        dropout: Probability that a member of a cohort vanishes, at a stage drawn at random.
        availability: Probability that a client can be reached at its best hour.
        diurnal: How far that probability falls at a client's worst hour, from 0 (not at all) to 1
            (to zero).
        speed_spread: Sigma of the log-normal factor by which clients are faster or slower.
        seconds_per_example: Simulated seconds that a client of median speed takes per example.
        deadline: Simulated seconds after which a round continues without stragglers; 0 waits for
            all.
    """

    dropout: Fraction = 0.0
    availability: Probability = 1.0
    diurnal: Annotated[Finite, Field(ge=0, le=1)] = 0.0
    speed_spread: Annotated[Finite, Field(ge=0, le=5)] = 0.0
    seconds_per_example: NonNegative = 0.0
    deadline: NonNegative = 0.0
