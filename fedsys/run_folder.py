"""A run's folder: the product's file format, written here and nowhere else.

::

    config.toml    the resolved configuration, exactly what ran
    ledger.jsonl   hash-chained, signed privacy events (written by `fedsys.privacy.ledger`)
    private.jsonl  server-side secrets: cohorts, survivors, diagnostics, salts
    countersignatures.jsonl  server-side, in a deployment: agents' signatures on the ledger
    members.json   server-side, in a deployment: the signed roster, and the terms agreed to
    cosigned.jsonl what witnesses cosigned last, one line per witness
    ledger.tlog-proof  proof that the closing line is under the ledger's signed head
    data.json      server-side: what a simulation read, and how rows become features
    clients.json   a simulation's figures of single clients, never published
    metrics.jsonl  one line per evaluated round
    answers.jsonl  one line per round in which devices evaluated between rounds of training
    model.pt       final weights (a state_dict), and checkpoints/
    report.html    self-contained page
    summary.json   machine-readable result
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shlex
from collections.abc import Collection, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsys.bounded_toml import MAX_BYTES
from fedsys.config import Config, dump, parse
from fedsys.durable import append_lines, make_folder, write_atomically
from fedsys.errors import LedgerError, RunFolderError
from fedsys.privacy.ledger.cosigned import COSIGNED, PROOF
from fedsys.privacy.ledger.files import MEMBERS, open_regular, read_lines
from fedsys.privacy.ledger.lines import MAX_LINE_BYTES, parse_object

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FORMAT_VERSION", "RunFolder", "disk_errors", "free_name", "plain_json"]

FORMAT_VERSION = 1

_METRICS_BYTES = 1 << 28
_NOT_BEGUN = (
    "the run here never began (ledger.jsonl is missing), so nothing was spent; delete the folder, "
    "or choose another"
)


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and all writes except the ledger's.

    What is read may come from somebody else: every file is regular and bounded, no link is
    followed, and nothing that a file names is imported.
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def private(self) -> Path:
        return self.path / "private.jsonl"

    @property
    def members(self) -> Path:
        return self.path / MEMBERS

    @property
    def cosigned(self) -> Path:
        return self.path / COSIGNED

    @property
    def proof(self) -> Path:
        return self.path / PROOF

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def clients(self) -> Path:
        return self.path / "clients.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def answers(self) -> Path:
        return self.path / "answers.jsonl"

    @property
    def model(self) -> Path:
        return self.path / "model.pt"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def begun(self) -> bool:
        """Whether the ledger's header is complete. Before that nobody can have been invited, so a
        start that a crash interrupted may be discarded and repeated.

        Raises:
            RunFolderError: the ledger is not a file, or cannot be read.
        """
        if not os.path.lexists(self.ledger):
            return False
        try:
            with open_regular(self.ledger) as file:
                return file.readline(MAX_LINE_BYTES + 1).endswith(b"\n")
        except LedgerError as error:
            raise RunFolderError(f"{self.path}: {error}") from None

    @property
    def never_began(self) -> bool:
        """Whether a start wrote the configuration and ended before there was any ledger. A round
        in ``private.jsonl`` shows that there was one, which somebody removed."""
        if not self.config.is_file() or os.path.lexists(self.ledger):
            return False
        return not self.private.is_file() or not self.private.stat().st_size

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Create the folder, or use an existing empty one.

        Raises:
            RunFolderError: it is not empty, or cannot be created.
        """
        try:
            make_folder(path)
            occupied = any(path.iterdir())
        except OSError as error:
            raise RunFolderError(f"{path}: {_reason(error)}; choose another folder") from None
        folder = cls(path)
        if folder.ledger.is_file():
            raise RunFolderError(
                f"{path}: the folder is not empty; continue that run with --resume "
                f"{shlex.quote(str(path))}, or choose another folder"
            )
        if folder.never_began:
            raise RunFolderError(f"{path}: {_NOT_BEGUN}")
        if occupied:
            raise RunFolderError(f"{path}: the folder is not empty; choose another folder")
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            RunFolderError: there is no run here.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise RunFolderError(f"{path}: no run here ({folder.config.name} is missing)")
        if folder.never_began:
            raise RunFolderError(f"{path}: {_NOT_BEGUN}")
        if not folder.ledger.is_file():
            raise RunFolderError(f"{path}: no run here ({folder.ledger.name} is missing)")
        return folder

    def write_config(self, config: Config) -> None:
        """Store the resolved configuration."""
        write_atomically(self.config, dump(config).encode())

    def read_config(self) -> Config:
        """The stored configuration.

        Raises:
            RunFolderError: the file cannot be read.
            ConfigError: it is not a configuration.
        """
        return parse(self._read(self.config, MAX_BYTES), str(self.config))

    def signed_config(self, header: Mapping[str, Any]) -> Config:
        """The stored configuration, which the ledger's header must state the hash of.

        Args:
            header: the body of the verified ledger's first line.

        Raises:
            RunFolderError: the file cannot be read, or was edited or exchanged.
            ConfigError: it is not a configuration.
        """
        content = self._read(self.config, MAX_BYTES)
        if hashlib.sha256(content).hexdigest() != header.get("config_sha256"):
            raise RunFolderError(
                f"{self.path}: config.toml is not the one that the ledger signed the hash of; "
                f"restore that file, or start a new run"
            )
        return parse(content, str(self.config))

    def read_summary(self) -> dict[str, Any]:
        """``summary.json``, in which an infinite number is the string "inf".

        Raises:
            RunFolderError: there is none, or it does not read back.
        """
        return self.read_object(self.summary)

    def read_object(self, path: Path) -> dict[str, Any]:
        """A JSON document of the folder, of at most a mebibyte.

        Raises:
            RunFolderError: there is none, or it does not read back.
        """
        content = self._read(path, MAX_LINE_BYTES)
        try:
            return parse_object(content, path.name)
        except LedgerError as error:
            raise RunFolderError(f"{self.path}: {error}") from None

    def _read(self, path: Path, most: int) -> bytes:
        try:
            with open_regular(path, most) as file:
                return file.read(most)
        except LedgerError as error:
            raise RunFolderError(f"{self.path}: {error}") from None

    def append_metrics(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """Add one line to ``metrics.jsonl``; a torn last line is cut off first."""
        line = json.dumps({"round": round_number, **plain_json(metrics)}) + "\n"
        append_lines(self.metrics, line.encode())

    def append_answers(self, round_number: int, stated: Mapping[str, Any]) -> None:
        """Add one line to ``answers.jsonl``, durably; a torn last line is cut off first."""
        line = json.dumps({"round": round_number, **plain_json(stated)}) + "\n"
        append_lines(self.answers, line.encode())

    def keep_answers(self, rounds: Collection[int]) -> None:
        """Drop what is in ``answers.jsonl`` of all rounds but these, which are committed; the rest
        is durable then, name and content.

        Raises:
            RunFolderError: the file cannot be read.
        """
        if not self.answers.exists():
            return
        found = self._objects(self.answers)
        kept = [each for each in found if each.get("round") in rounds]
        text = "".join(json.dumps(each) + "\n" for each in kept)
        write_atomically(self.answers, text.encode())

    def last_metrics(self) -> dict[str, float]:
        """The newest complete line of ``metrics.jsonl`` without its round; empty if none exists."""
        for values in reversed(self.evaluations()):
            values.pop("round", None)
            return {str(key): float(value) for key, value in values.items()}
        return {}

    def evaluations(self) -> list[dict[str, Any]]:
        """The complete lines of ``metrics.jsonl``.

        Raises:
            RunFolderError: the file cannot be read.
        """
        return self._objects(self.metrics)

    def device_evaluations(self) -> list[dict[str, Any]]:
        """The complete lines of ``answers.jsonl``.

        Raises:
            RunFolderError: the file cannot be read.
        """
        return self._objects(self.answers)

    def _objects(self, path: Path) -> list[dict[str, Any]]:
        if not path.is_file():
            return []
        found = []
        try:
            with open_regular(path, _METRICS_BYTES) as file:
                for raw, _ended in read_lines(file, path.name):
                    with contextlib.suppress(LedgerError):
                        found.append(parse_object(raw, path.name))
        except LedgerError as error:
            raise RunFolderError(f"{self.path}: {error}") from None
        return found

    def write_data(self, reading: Mapping[str, Any]) -> None:
        """Store ``data.json``. It reveals rows that no noise covers: it is never published."""
        text = json.dumps(plain_json(reading), indent=2, allow_nan=False, ensure_ascii=False)
        write_atomically(self.data, text.encode() + b"\n")

    def write_clients(self, figures: Mapping[str, Any]) -> None:
        """Store ``clients.json``. It is about single clients: it is never published."""
        text = json.dumps(plain_json(figures), allow_nan=False)
        write_atomically(self.clients, text.encode() + b"\n", mode=0o600)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Store ``summary.json``; an infinite number is written as the string "inf"."""
        text = json.dumps(plain_json(summary), indent=2, allow_nan=False)
        write_atomically(self.summary, text.encode() + b"\n")


def free_name(parent: Path, name: str) -> Path:
    """``parent/name``, or the first ``parent/name-2``, ``-3``, ... that does not exist."""
    candidate, number = parent / name, 1
    while candidate.exists():
        number += 1
        candidate = parent / f"{name}-{number}"
    return candidate


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write a run into one line that says how to continue."""
    try:
        yield
    except (OSError, LedgerError) as error:
        reason = _reason(error) if isinstance(error, OSError) else str(error)
        raise RunFolderError(
            f"{path}: {reason}; what was written is intact: fix that, then continue with "
            f"--resume {shlex.quote(str(path))}"
        ) from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def plain_json(value: Any) -> Any:
    """The value in the form of a run's JSON files: an infinite or undefined number is a string."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
