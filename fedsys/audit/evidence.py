"""Reads an untrusted run's folder: bounded, no links, nothing executed.

No file is unpickled, no name in a file is imported, no symbolic link inside the folder is followed,
no device or pipe is opened. What cannot be read becomes a sentence in `Piece.problem`, because the
audit has to name what is wrong rather than stop at it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from fedsys.audit.wording import plain, value_text
from fedsys.bounded_toml import parse_toml
from fedsys.errors import AuditInputError, LedgerError
from fedsys.privacy.ledger.files import open_regular, read_lines
from fedsys.privacy.ledger.lines import FORMAT, MAX_LINE_BYTES, parse_object
from fedsys.privacy.ledger.reader import LedgerView, read_ledger

__all__ = ["SUMMARY_VERSION", "Config", "Evidence", "Metrics", "Piece", "gather"]

SUMMARY_VERSION = 1
"""The version of run folders that this audit reads."""

_DOCUMENT_BYTES = 1 << 20
_LINES_BYTES = 1 << 28
_MODEL_BYTES = 1 << 32
_MOST_EVALUATIONS = 1_000_000

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece(Generic[T]):
    """One file's content, or why there is none.

    Attributes:
        value: the content; None if the file is missing or bad.
        problem: what is wrong with it; None if nothing, or if the file is missing.
    """

    value: T | None = None
    problem: str | None = None

    @property
    def missing(self) -> bool:
        """Whether no such file exists."""
        return self.value is None and self.problem is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """``config.toml``: its tables and its hash."""

    tables: dict[str, Any]
    sha256: str

    def get(self, key: str) -> Any:
        """``section.name``, or None."""
        section, _, name = key.partition(".")
        table = self.tables.get(section)
        return table.get(name) if isinstance(table, dict) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """``metrics.jsonl``, which is read once: whatever is claimed of it, it is these bytes.

    Attributes:
        rounds: the round of each complete line.
        newest: the last complete line's values.
        torn: whether an unfinished line follows.
        sha256: of the file.
        raw: the complete lines, which take less memory than their objects.
    """

    rounds: list[int]
    newest: dict[str, Any]
    torn: bool
    sha256: str
    raw: list[bytes] = field(repr=False)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The objects of the complete lines."""
        for each in self.raw:
            yield parse_object(each, "a line that was read before")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything in a folder that the audit reads.

    Attributes:
        run: the folder.
        ledger: with chain, form and signatures verified under the key that its header names.
        summary: ``summary.json``.
        config: ``config.toml``.
        metrics: ``metrics.jsonl``.
        answers: ``answers.jsonl``, which has the same form.
        model: SHA-256 of ``model.pt``.
        has_private: whether there is a ``private.jsonl``.
    """

    run: Path
    ledger: Piece[LedgerView]
    summary: Piece[dict[str, Any]]
    config: Piece[Config]
    metrics: Piece[Metrics]
    answers: Piece[Metrics]
    model: Piece[str]
    has_private: bool


def gather(run: Path) -> Evidence:
    """Reads a run's folder, except ``private.jsonl``, which is checked line by line later.

    Raises:
        AuditInputError: there is no such folder, it is not a run's folder, or this audit does not
            read its version.
    """
    if not run.is_dir():
        raise AuditInputError(f"{plain(run)}: no such run folder; give one that holds ledger.jsonl")
    _require_known_ledger(run / "ledger.jsonl")
    evidence = Evidence(
        run=run,
        ledger=_piece(run / "ledger.jsonl", lambda path: read_ledger(path, allow_torn=True)),
        summary=_piece(run / "summary.json", _json),
        config=_piece(run / "config.toml", _toml),
        metrics=_piece(run / "metrics.jsonl", _metrics),
        answers=_piece(run / "answers.jsonl", _metrics),
        model=_piece(run / "model.pt", _sha256),
        has_private=_exists(run / "private.jsonl"),
    )
    if evidence.ledger.missing and evidence.summary.missing and evidence.config.missing:
        raise AuditInputError(
            f"{plain(run)}: not a run's folder: it holds no ledger.jsonl, config.toml or "
            "summary.json"
        )
    version = (evidence.summary.value or {}).get("version", SUMMARY_VERSION)
    if version != SUMMARY_VERSION or isinstance(version, bool):
        raise AuditInputError(
            f"{plain(run)}: summary.json has version {value_text(version)}; this audit reads "
            f"version {SUMMARY_VERSION}: use the fedsys that wrote it"
        )
    return evidence


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _piece(path: Path, read: Callable[[Path], T]) -> Piece[T]:
    if not _exists(path):
        return Piece()
    try:
        return Piece(value=read(path))
    except (LedgerError, OSError, ValueError, RecursionError) as error:
        return Piece(problem=plain(error) or type(error).__name__)


def _require_known_ledger(path: Path) -> None:
    """A newer format is "unsupported", not "damaged"."""
    if not _exists(path):
        return
    try:
        with open_regular(path, _LINES_BYTES << 2) as file:
            first = file.readline(MAX_LINE_BYTES + 1)
        body = parse_object(first.rstrip(b"\n"), "ledger line 1").get("body")
    except LedgerError:
        return  # damaged: the full read says how
    stated = body.get("format") if isinstance(body, dict) else None
    family = FORMAT.rpartition("-")[0]
    if isinstance(stated, str) and stated.rpartition("-")[0] == family and stated != FORMAT:
        raise AuditInputError(
            f"ledger.jsonl has format {plain(stated, 40)}; this audit reads {FORMAT}: use the "
            "fedsys that wrote it"
        )


def _document(path: Path) -> bytes:
    with open_regular(path, _DOCUMENT_BYTES) as file:
        return file.read(_DOCUMENT_BYTES + 1)


def _json(path: Path) -> dict[str, Any]:
    return parse_object(_document(path), path.name)


def _toml(path: Path) -> Config:
    content = _document(path)
    try:
        tables = parse_toml(content)
    except ValueError as error:
        raise LedgerError(f"{path.name} is not TOML: {error}") from None
    return Config(tables=tables, sha256=hashlib.sha256(content).hexdigest())


def _metrics(path: Path) -> Metrics:
    found: list[int] = []
    lines: list[bytes] = []
    newest: dict[str, Any] = {}
    digest, torn = hashlib.sha256(), False
    with open_regular(path, _LINES_BYTES) as file:
        for number, (raw, ended) in enumerate(read_lines(file, path.name), start=1):
            digest.update(raw + b"\n" if ended else raw)
            if not ended:
                torn = True
                break
            if number > _MOST_EVALUATIONS:
                raise LedgerError(f"{path.name} has more than {_MOST_EVALUATIONS} lines")
            newest = parse_object(raw, f"{path.name} line {number}")
            round = newest.pop("round", None)
            if type(round) is not int or abs(round) >= 1 << 63:
                raise LedgerError(f"{path.name} line {number} has no round number")
            found.append(round)
            lines.append(raw)
    return Metrics(rounds=found, newest=newest, torn=torn, sha256=digest.hexdigest(), raw=lines)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path, _MODEL_BYTES) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
