"""``canaries.jsonl``: the scores of planted canaries, and the protocol that was registered.

A first line {"version", "ledger_head", "protocol", "seed", "length", "slack"}, then one line
{"included", "score"} per canary, in the order of the seed's coins.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.audit.canary_protocol import Protocol
from fedsys.audit.wording import plain
from fedsys.errors import LedgerError
from fedsys.privacy.ledger.files import open_regular, read_lines
from fedsys.privacy.ledger.lines import parse_object

__all__ = ["CANARIES", "CanaryOutcome", "Scores", "format_outcome", "read_canaries"]

CANARIES = "canaries.jsonl"

_VERSION = 3
_FILE_BYTES = 1 << 28
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What the tests look at.

    Attributes:
        included: (m,) bool, the canaries whose update was sent.
        scores: (m,) how far the model moved along each canary, in clipping norms.
        length: L2 norm of the model's change without canaries, in clipping norms.
        dimension: d.
    """

    included: NDArray[np.bool_]
    scores: NDArray[np.float64]
    length: float
    dimension: int

    @property
    def inside(self) -> NDArray[np.float64]:
        """Scores of canaries that were in."""
        return self.scores[self.included]

    @property
    def outside(self) -> NDArray[np.float64]:
        """Scores of canaries that were left out."""
        return self.scores[~self.included]


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryOutcome:
    """The outcome of m planted canaries.

    Attributes:
        ledger_head: the ledger head of the run that they were in, before it was closed.
        protocol: the registered protocol.
        seed: the seed that the protocol commits to.
        found: what the tests look at.
        slack: bound on the L2 norm of what may depend on the noise, except the rounding of the
            noise; None where the law of the scores is not known.
    """

    ledger_head: str
    protocol: Protocol
    seed: bytes
    found: Scores
    slack: float | None


def format_outcome(outcome: CanaryOutcome) -> bytes:
    """The file's content."""
    head = {
        "version": _VERSION,
        "ledger_head": outcome.ledger_head,
        "protocol": outcome.protocol.to_json(),
        "seed": outcome.seed.hex(),
        "length": outcome.found.length,
        "slack": outcome.slack,
    }
    lines: list[dict[str, object]] = [head]
    included, scores = outcome.found.included.tolist(), outcome.found.scores.tolist()
    lines += [
        {"included": was, "score": score} for was, score in zip(included, scores, strict=True)
    ]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode("ascii")


def read_canaries(path: Path) -> CanaryOutcome:
    """Reads ``canaries.jsonl``.

    Raises:
        LedgerError: it is not one.
    """
    with open_regular(path, _FILE_BYTES) as file:
        lines = read_lines(file, path.name)
        raw, _ = next(lines, (b"", False))
        head = parse_object(raw, f"{path.name} line 1")
        if head.get("version") != _VERSION:
            raise LedgerError(f"{path.name} line 1 is not of version {_VERSION}")
        protocol = Protocol.from_json(head.get("protocol"))
        count = protocol.canaries
        included, scores = np.zeros(count, dtype=np.bool_), np.zeros(count)
        number = 0
        for number, (raw, ended) in enumerate(lines, start=1):
            if number > count or not ended:
                raise LedgerError(f"{path.name} does not hold the {count} canaries that it states")
            where = f"{path.name} line {number + 1}"
            line = parse_object(raw, where)
            if not isinstance(line.get("included"), bool):
                raise LedgerError(f"{where} does not say included or not")
            included[number - 1] = line["included"]
            scores[number - 1] = _number(line, "score", where)
        if number != count:
            raise LedgerError(f"{path.name} does not hold the {count} canaries that it states")
    where = f"{path.name} line 1"
    slack = None if head.get("slack") is None else _number(head, "slack", where)
    length = _number(head, "length", where)
    if length <= 0 or (slack is not None and slack < 0):
        raise LedgerError(f"{where}: length or slack is not a length")
    return CanaryOutcome(
        ledger_head=plain(head.get("ledger_head"), 80),
        protocol=protocol,
        seed=_seed(head, where),
        found=Scores(included=included, scores=scores, length=length, dimension=protocol.dimension),
        slack=slack,
    )


def _seed(body: dict[str, Any], where: str) -> bytes:
    value = body.get("seed")
    if not isinstance(value, str) or not _HEX64.fullmatch(value):
        raise LedgerError(f"{where}: seed is not 64 hexadecimal digits")
    return bytes.fromhex(value)


def _number(body: dict[str, Any], name: str, where: str) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise LedgerError(f"{where}: {name} is not a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise LedgerError(f"{where}: {name} is not a number")
    return found
