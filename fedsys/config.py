"""One TOML tree describes a job; loading it either yields a `Config` or one clear line.

>>> from fedsys.config import load
>>> config = load(None, ["rounds.count=3", "privacy.epsilon=4"])
>>> config.rounds.count, config.privacy.epsilon, config.privacy.noise_multiplier
(3, 4.0, None)

Keys that change the privacy guarantee live in ``[population]``, ``[cohort]``, ``[rounds]``,
``[privacy]`` and ``[aggregation]``; ``[engine]`` holds only what changes speed (and the last bits
of floating point), ``[faults]`` only what a simulation does to its virtual clients.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fedsys.errors import ConfigError

__all__ = ["Config", "dump", "load", "recipes"]

MAX_CONFIG_BYTES = 1 << 20
_EXCLUSIVE = {"epsilon": "noise_multiplier", "noise_multiplier": "epsilon"}

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
    """A built-in task's name, or ``"package.module:Attr"``; options go to the task itself."""

    name: str = "digits"
    options: dict[str, Any] = Field(default_factory=dict)


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
    """Who is asked in one round. `expected` is qN; `cap` and `min_survivors` None are derived."""

    sampling: Literal["poisson", "fixed", "min-separation"] = "poisson"
    expected: Count = 100
    cap: Count | None = None
    min_survivors: Count | None = None
    participation: Probability = 1.0
    min_separation: Count | None = None


class Rounds(Section):
    """How many rounds are paid for; one lost to a crash counts."""

    count: Count = 40


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
    """What is done with a round's mean update; a name, or ``"package.module:Attr"``."""

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
        "distributed-skellam",
        "central-gaussian",
        "local-gaussian",
        "banded-mf",
        "example-gaussian",
        "none",
    ] = "distributed-skellam"
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

    `noise` "once" draws a simulated sum's noise at a stroke: the same distribution, less time.
    """

    protocol: Literal["secure", "ideal", "float"] = "secure"
    noise: Literal["per-client", "once"] = "per-client"
    encoding: Literal["wide", "narrow"] = "wide"
    modulus_bits: Annotated[int, Field(ge=8, le=64)] = 32
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


class Tuning(Section):
    """Runs on the same clients whose results chose these settings; `fedsys tune` fills it in.

    `epsilon` is what the outsider learned from all of them together, at `delta`; `heads` are those
    of their ledgers. The header of the ledger repeats it: it adds to what this run costs.
    """

    runs: Annotated[int, Field(ge=0)] = 0
    epsilon: Annotated[float, Field(ge=0)] | None = None
    delta: Annotated[Finite, Field(gt=0, lt=1)] | None = None
    heads: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=list, max_length=10_000
    )

    def to_json(self) -> dict[str, Any]:
        """For the ledger; an infinite epsilon is the string "inf"."""
        facts = self.model_dump(exclude_none=True)
        return facts | ({"epsilon": "inf"} if self.epsilon == math.inf else {})


class Config(Section):
    """A whole job. Immutable; `model_copy(update=...)` makes a variant."""

    job: Job = Field(default_factory=Job)
    task: TaskSection = Field(default_factory=TaskSection)
    population: Population = Field(default_factory=Population)
    cohort: Cohort = Field(default_factory=Cohort)
    rounds: Rounds = Field(default_factory=Rounds)
    local: Local = Field(default_factory=Local)
    server: Server = Field(default_factory=Server)
    privacy: Privacy = Field(default_factory=Privacy)
    aggregation: Aggregation = Field(default_factory=Aggregation)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    engine: Engine = Field(default_factory=Engine)
    faults: Faults = Field(default_factory=Faults)
    tuning: Tuning = Field(default_factory=Tuning)

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        for check in _COMBINATIONS:
            check(self)
        return self


def _needs_noise(config: Config) -> None:
    privacy = config.privacy
    if privacy.mechanism == "none":
        for key in ("epsilon", "noise_multiplier"):
            if getattr(privacy, key) is not None:
                raise ConfigError(
                    f"privacy.{key} = {getattr(privacy, key)} promises privacy that mechanism "
                    f"'none' does not give; remove it, or choose a mechanism"
                )
    elif privacy.epsilon is None and privacy.noise_multiplier is None:
        raise ConfigError(
            f"privacy.mechanism = '{privacy.mechanism}' needs privacy.epsilon (the noise is "
            f"derived) or privacy.noise_multiplier (epsilon is derived)"
        )


def _cohort_fits(config: Config) -> None:
    clients, cohort = config.population.clients, config.cohort
    if clients is not None and cohort.expected > clients:
        raise ConfigError(
            f"cohort.expected = {cohort.expected} is more than population.clients = {clients}; "
            f"ask for at most {clients}"
        )
    if cohort.cap is not None and cohort.cap < cohort.expected:
        raise ConfigError(
            f"cohort.cap = {cohort.cap} is below cohort.expected = {cohort.expected}; a cohort "
            f"that reaches the cap is given up, so raise it or leave it out"
        )
    if cohort.min_survivors is not None and cohort.min_survivors > cohort.expected:
        raise ConfigError(
            f"cohort.min_survivors = {cohort.min_survivors} is above cohort.expected = "
            f"{cohort.expected}; lower it or leave it out"
        )
    if cohort.sampling == "min-separation" and cohort.min_separation is None:
        raise ConfigError(
            "cohort.sampling = 'min-separation' needs cohort.min_separation (in rounds)"
        )


def _narrow_fits(config: Config) -> None:
    aggregation = config.aggregation
    if aggregation.encoding == "narrow" and aggregation.modulus_bits > 20:
        raise ConfigError(
            f"aggregation.modulus_bits = {aggregation.modulus_bits} with encoding 'narrow': "
            f"allowed are 8 to 20; use encoding = 'wide' for more"
        )
    if aggregation.dropout + aggregation.corrupt >= 0.5:
        raise ConfigError(
            f"aggregation.dropout + aggregation.corrupt = "
            f"{aggregation.dropout + aggregation.corrupt:g}: secure aggregation withstands less "
            f"than 0.5 in all"
        )


def _summed_fits(config: Config) -> None:
    aggregation = config.aggregation
    if aggregation.protocol == "secure" and aggregation.noise == "once":
        raise ConfigError(
            "aggregation.noise = 'once' with protocol 'secure': there every client adds its own "
            "share; use noise = 'per-client', or protocol = 'ideal'"
        )
    if aggregation.protocol != "float":
        return
    if aggregation.encoding != "wide" or aggregation.modulus_bits > 40:
        raise ConfigError(
            f"aggregation.encoding = '{aggregation.encoding}', modulus_bits = "
            f"{aggregation.modulus_bits} with protocol 'float': allowed are 'wide' and at most 40"
        )


def _protects_examples(config: Config) -> None:
    privacy = config.privacy
    if privacy.mechanism == "none" or (privacy.unit == "example") == (
        privacy.mechanism == "example-gaussian"
    ):
        if privacy.mechanism == "example-gaussian" and config.aggregation.protocol == "float":
            raise ConfigError(
                "aggregation.protocol = 'float' with privacy.mechanism = 'example-gaussian': use "
                "'ideal' or 'secure'"
            )
        return
    raise ConfigError(
        f"privacy.unit = '{privacy.unit}' with privacy.mechanism = '{privacy.mechanism}': "
        f"example-gaussian protects examples (unit = 'example'), the others protect clients"
    )


def _adapts(config: Config) -> None:
    privacy = config.privacy
    if privacy.adaptive_quantile is None:
        return
    where = f"privacy.adaptive_quantile = {privacy.adaptive_quantile:g}"
    if privacy.mechanism not in ("distributed-skellam", "central-gaussian", "local-gaussian"):
        raise ConfigError(
            f"{where}: mechanism '{privacy.mechanism}' has no noise to hide the clipping bits in, "
            f"or noise that fixes the norm; use distributed-skellam, central-gaussian or "
            f"local-gaussian"
        )
    if config.aggregation.protocol == "float":
        raise ConfigError(f"{where} with aggregation.protocol = 'float': use 'ideal' or 'secure'")


def _coin_is_added(config: Config) -> None:
    if config.cohort.participation < 1 and config.aggregation.protocol == "float":
        raise ConfigError(
            f"cohort.participation = {config.cohort.participation:g} with aggregation.protocol = "
            f"'float': use 'ideal' or 'secure'"
        )


_COMBINATIONS = (
    _needs_noise,
    _cohort_fits,
    _narrow_fits,
    _summed_fits,
    _protects_examples,
    _adapts,
    _coin_is_added,
)


def recipes() -> dict[str, str]:
    """The recipes that ship with the product: name to TOML text."""
    folder = resources.files("simulations") / "recipes"
    return {
        entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }


def load(source: Path | str | None, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration.

    Args:
        source: A TOML file, the name of a shipped recipe, or None for the quickstart.
        overrides: ``section.key=value`` each, applied in order; the value is read as TOML, and
            as a bare string where it is not valid TOML.

    Raises:
        ConfigError: one line naming the key, its value, what is allowed and the nearest name.
    """
    tree = _parse(*_read(source))
    given: set[str] = set()
    for override in overrides:
        _override(tree, override, given)
    return validate(tree)


def validate(tree: Mapping[str, Any]) -> Config:
    """Build a `Config` from a parsed tree; raises ConfigError as `load` does."""
    try:
        return Config.model_validate(_widen(dict(tree), Config))
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def dump(config: Config) -> str:
    """The configuration as TOML; `load` of it gives an equal `Config`."""
    return tomli_w.dumps(config.model_dump(exclude_none=True))


def _read(source: Path | str | None) -> tuple[str, str]:
    if source is None:
        source = "quickstart"
    path = Path(source)
    shipped = recipes()
    if isinstance(source, str) and source in shipped and not path.exists():
        return shipped[source], f"recipe {source}"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than 1 MiB, which no configuration is")
        return path.read_text(encoding="utf-8"), str(path)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; a configuration is a TOML file") from None
    except OSError as error:
        nearest = _nearest(str(source), shipped)
        raise ConfigError(
            f"{path}: {(error.strerror or 'cannot be read').lower()}; give a TOML file or one of "
            f"the recipes {', '.join(shipped)}{nearest}"
        ) from None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from None


def _override(tree: dict[str, Any], override: str, given: set[str]) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        raise ConfigError(f"--set {override}: expected section.key=value")
    try:
        value = tomllib.loads(f"v = {text.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {part} is a value, not a section")
        node = child
    node[parts[-1]] = value
    given.add(key.strip())
    if parts[0] == "privacy" and len(parts) == 2 and parts[1] in _EXCLUSIVE:
        other = _EXCLUSIVE[parts[1]]
        if f"privacy.{other}" not in given:
            node.pop(other, None)
    if parts == ["privacy", "mechanism"] and value == "none":
        for name in _EXCLUSIVE:
            if f"privacy.{name}" not in given:
                node.pop(name, None)


def _widen(tree: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Integers where a float is expected become floats (TOML writes 4 for 4.0)."""
    widened = {}
    for key, value in tree.items():
        field = model.model_fields.get(key)
        if field is not None:
            kind = field.annotation
            if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
                value = _widen(value, kind)
            elif type(value) is int and _wants_float(kind):
                value = float(value)
        widened[key] = value
    return widened


def _wants_float(kind: Any) -> bool:
    if kind is float:
        return True
    return get_origin(kind) is not None and any(_wants_float(arg) for arg in get_args(kind))


def _explain(error: ValidationError) -> str:
    """The first problem as one line."""
    problem = error.errors(include_url=False)[0]
    location = [str(part) for part in problem["loc"]]
    where = ".".join(location)
    if problem["type"] == "extra_forbidden":
        model: type[BaseModel] = Config
        if len(location) > 1:
            annotation = Config.model_fields[location[0]].annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                model = annotation
        known = list(model.model_fields)
        what = "key" if len(location) > 1 else "section"
        return (
            f"{where}: unknown {what}{_nearest(location[-1], known)}; allowed are "
            f"{', '.join(known)}"
        )
    value = problem["input"]
    if problem["type"] == "literal_error":
        allowed = _literals(location)
        return (
            f"{where} = {value!r}: allowed are {', '.join(allowed)}{_nearest(str(value), allowed)}"
        )
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    return f"{where} = {shown}: {message}"


def _literals(location: list[str]) -> list[str]:
    annotation: Any = Config
    for part in location:
        annotation = annotation.model_fields[part].annotation
    return [str(value) for value in get_args(annotation)]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
