"""Reads a run's folder for display: bounded, no links followed, nothing executed.

The folder is untrusted. Anything missing, too large or malformed becomes one line in
`RunContents.problems`, because a page that shows nine files out of ten is more useful than an
exception. The audit decides whether the run's claims hold, not this module.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedsys.bounded_toml import parse_toml
from fedsys.errors import LedgerError, RunFolderError
from fedsys.printable import printable
from fedsys.privacy.ledger.files import open_regular
from fedsys.privacy.ledger.packing import unpack
from fedsys.report.answers import LARGEST, Count, DeviceEvaluation, QueryStated
from fedsys.report.answers import Number as FiniteNumber

__all__ = ["PrivacySummary", "RoundDiagnostics", "RunContents", "Summary", "read"]

MAX_DOCUMENT_BYTES = 1 << 20
MAX_LINE_BYTES = 16 << 20
MAX_LINES_BYTES = 1 << 30
MAX_ROUNDS = 1_000_000
MAX_METRICS = 8
_ANY_SIZE = 1 << 62


def _infinite(value: object) -> object:
    """A number's own text for infinity, and what is too large to be drawn, as infinity."""
    if value == "inf":
        return math.inf
    if isinstance(value, int | float) and abs(value) > LARGEST:
        return math.copysign(math.inf, 1 if value > 0 else -1)
    return value


Text = Annotated[str, BeforeValidator(lambda value: printable(value))]
Number = Annotated[float, BeforeValidator(_infinite)]
Epsilon = Annotated[Number, Field(ge=0)]


class _Tolerant(BaseModel):
    """Reads known keys and ignores others, such as those of a newer version."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class PrivacySummary(_Tolerant):
    """``summary.json``'s ``privacy``: what the run claims."""

    mechanism: Text | None = None
    unit: Text | None = None
    delta: FiniteNumber | None = None
    noise_multiplier: FiniteNumber | None = None
    clip: FiniteNumber | None = None
    guarantee: Text | None = None
    epsilon: dict[Text, Epsilon | None] = Field(default_factory=dict)
    budget: Epsilon | None = None


class SimulatedTime(_Tolerant):
    """``summary.json``'s ``simulated``: the clock of a simulated federation."""

    seconds: FiniteNumber | None = None
    to_accuracy: dict[Text, FiniteNumber] = Field(default_factory=dict)


class Stopped(_Tolerant):
    """``summary.json``'s ``stopped``: why a run ended early."""

    metric: Text | None = None
    best_round: Count | None = None
    best: Number | None = None
    planned_rounds: Count | None = None
    planned_epsilon: Epsilon | None = None


class Summary(_Tolerant):
    """``summary.json``; every field may be absent."""

    name: Text | None = None
    status: Text | None = None
    rounds: Count | None = None
    metrics: dict[Text, Number | None] = Field(default_factory=dict)
    privacy: PrivacySummary = Field(default_factory=PrivacySummary)
    clients_trained: Count | None = None
    train_seconds: FiniteNumber | None = None
    clients_per_second: FiniteNumber | None = None
    model_sha256: Text | None = None
    ledger_head: Text | None = None
    signer: Text | None = None
    protocol: Text | None = None
    versions: dict[Text, Text] = Field(default_factory=dict)
    reproducible: bool = False
    simulated: SimulatedTime | None = None
    stopped: Stopped | None = None
    query: QueryStated | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundDiagnostics:
    """One line of ``private.jsonl``, reduced to the counts that a plot needs: no client ids."""

    round: int
    sampled: int | None
    survivors: int | None
    dropped: Mapping[str, int]
    clipped_fraction: float | None
    noise_to_signal: float | None
    simulated_seconds: float | None = None
    not_finite: int | None = None


class ClientFigures(_Tolerant):
    """One metric of ``clients.json``."""

    mean: FiniteNumber | None = None
    worst_decile: FiniteNumber | None = None
    values: list[FiniteNumber] = Field(default_factory=list, max_length=100_000)


class ByClientFigures(_Tolerant):
    """``clients.json``: figures of single clients, in a simulation's private copy alone."""

    rows: Text = ""
    clients: Count | None = None
    metrics: dict[Text, ClientFigures] = Field(default_factory=dict, max_length=64)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContents:
    """What could be read from a run's folder.

    Attributes:
        config: the parsed ``config.toml``, empty if it could not be read.
        config_text: its text, for display.
        metrics: name -> (rounds, values), a pair of equally long lists for each metric.
        on_devices: evaluations between rounds of training, in their order.
        diagnostics: None in a public report.
        clients: figures of single clients; None in a public report, or where there are none.
        problems: one line for each thing that could not be read.
    """

    name: str
    summary: Summary
    config: Mapping[str, Any]
    config_text: str
    metrics: Mapping[str, tuple[list[int], list[float]]]
    diagnostics: tuple[RoundDiagnostics, ...] | None
    clients: ByClientFigures | None = None
    problems: tuple[str, ...] = field(default=())
    on_devices: tuple[DeviceEvaluation, ...] = field(default=())

    def setting(self, section: str, key: str) -> Any:
        """Returns ``section.key`` of the config, or None."""
        table = self.config.get(section)
        return table.get(key) if isinstance(table, dict) else None


def read(run: Path, *, private: bool) -> RunContents:
    """Reads a run's folder.

    Args:
        run: the folder.
        private: whether to open ``private.jsonl``; otherwise the result reveals no cohorts.

    Raises:
        RunFolderError: there is no such folder.
    """
    if not run.is_dir():
        raise RunFolderError(f"{run}: no such run folder; give one that `fedsys simulate` wrote")
    problems: list[str] = []
    summary = _summary(run / "summary.json", problems)
    config, config_text = _config(run / "config.toml", problems)
    on_devices = _on_devices(run / "answers.jsonl", problems)
    asked = frozenset(each.round for each in on_devices)
    return RunContents(
        name=printable(summary.name or run.resolve().name, 100),
        summary=summary,
        config=config,
        config_text=config_text,
        metrics=_metrics(run / "metrics.jsonl", problems),
        on_devices=on_devices,
        diagnostics=_diagnostics(run / "private.jsonl", problems, asked) if private else None,
        clients=_clients(run / "clients.json", problems) if private else None,
        problems=tuple(problems),
    )


def _document(path: Path) -> str:
    with open_regular(path, MAX_DOCUMENT_BYTES) as file:
        return file.read(MAX_DOCUMENT_BYTES).decode("utf-8")


def _complaint(path: Path, error: Exception) -> str:
    if not os.path.lexists(path):
        return f"{path.name} is missing"
    if isinstance(error, OSError):
        return f"{path.name} cannot be read: {error.strerror or 'input error'}"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{path.name} is not in its documented shape: {printable(where)}: {first['msg']}"
    return f"{path.name} cannot be read: {printable(error, 120)}"


_UNREADABLE = (LedgerError, OSError, ValueError, RecursionError)


def _summary(path: Path, problems: list[str]) -> Summary:
    try:
        return Summary.model_validate(json.loads(_document(path)))
    except _UNREADABLE as error:
        problems.append(_complaint(path, error))
        return Summary()


def _clients(path: Path, problems: list[str]) -> ByClientFigures | None:
    if not path.exists() and not path.is_symlink():
        return None
    try:
        return ByClientFigures.model_validate_json(_document(path))
    except _UNREADABLE as error:
        problems.append(_complaint(path, error))
        return None


def _config(path: Path, problems: list[str]) -> tuple[dict[str, Any], str]:
    try:
        text = _document(path)
        return parse_toml(text.encode()), "\n".join(printable(line) for line in text.splitlines())
    except _UNREADABLE as error:
        problems.append(_complaint(path, error))
        return {}, ""


def _lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON-lines file up to the first line that is not one."""
    try:
        with open_regular(path, _ANY_SIZE) as file:  # lines and their size are bounded below
            total = 0
            for number in range(1, MAX_ROUNDS + 1):
                line = file.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return
                total += len(line)
                if len(line) > MAX_LINE_BYTES or total > MAX_LINES_BYTES:
                    raise ValueError(f"line {number} or the file as a whole is too long")
                record = json.loads(line)
                if not isinstance(record, dict) or _whole(record.get("round")) is None:
                    raise ValueError(f"line {number} is not the record of a round")
                yield record
            raise ValueError(f"more than {MAX_ROUNDS:,} lines")
    except _UNREADABLE as error:
        problems.append(_complaint(path, error))


def _whole(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**63 else None


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= LARGEST else None


def _metrics(path: Path, problems: list[str]) -> dict[str, tuple[list[int], list[float]]]:
    series: dict[str, tuple[list[int], list[float]]] = {}
    for record in _lines(path, problems):
        for name, value in record.items():
            number = _finite(value)
            if name == "round" or number is None:
                continue
            shown = printable(name, 40)
            if shown not in series and len(series) >= MAX_METRICS:
                continue
            rounds, values = series.setdefault(shown, ([], []))
            rounds.append(record["round"])
            values.append(number)
    leading = ("accuracy", "loss")
    order = sorted(series, key=lambda name: leading.index(name) if name in leading else 2)
    return {name: series[name] for name in order}


def _on_devices(path: Path, problems: list[str]) -> tuple[DeviceEvaluation, ...]:
    if not os.path.lexists(path):
        return ()
    found = []
    for record in _lines(path, problems):
        try:
            found.append(DeviceEvaluation.model_validate(record))
        except ValidationError as error:
            problems.append(_complaint(path, error))
            break
    return tuple(found)


def _diagnostics(
    path: Path, problems: list[str], asked: Collection[int]
) -> tuple[RoundDiagnostics, ...]:
    """The rounds' counts; clipping and noise are of updates, so not of the rounds that asked."""
    found = []
    for record in _lines(path, problems):
        signal, noise = _finite(record.get("signal_norm")), _finite(record.get("noise_norm"))
        dropped = record.get("dropped")
        found.append(
            RoundDiagnostics(
                round=record["round"],
                sampled=_count(record.get("sampled")),
                survivors=_count(record.get("survivors")),
                dropped={
                    printable(stage, 40): count
                    for stage, value in (dropped.items() if isinstance(dropped, dict) else ())
                    if (count := _whole(value)) is not None
                },
                clipped_fraction=(
                    None if record["round"] in asked else _finite(record.get("clipped_fraction"))
                ),
                noise_to_signal=(
                    _finite(noise / signal)
                    if signal and noise is not None and record["round"] not in asked
                    else None
                ),
                simulated_seconds=_finite(record.get("simulated_seconds")),
                not_finite=_whole(record.get("not_finite")),
            )
        )
    return tuple(found)


def _count(ids: object) -> int | None:
    if isinstance(ids, str):
        try:
            return len(unpack(ids))
        except LedgerError:
            return None
    return len(ids) if isinstance(ids, list) else _whole(ids)
