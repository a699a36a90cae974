"""What an attacker does to a run's folder, with or without the coordinator's key."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsys.privacy import Signer
from fedsys.privacy.ledger import Line
from tests.fedsys.privacy.ledger.ledgers import chained

Entry = tuple[str, dict[str, Any]]
"""(kind, body) of one ledger line."""


def entries(folder: Path) -> list[Entry]:
    lines = (folder / "ledger.jsonl").read_bytes().splitlines()
    return [(line["kind"], line["body"]) for line in map(json.loads, lines)]


def sign_again(folder: Path, new: list[Entry], signer: Signer) -> str:
    """Writes a ledger that is in order in itself; returns its head."""
    kind, header = new[0]
    signed = [(kind, {**header, "signer": signer.public_hex}), *new[1:]]
    lines = list(chained(signed, lambda _, digest: signer.sign(digest)))
    (folder / "ledger.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return Line.parse(lines[-1], len(lines)).hash


def edit_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edits ``summary.json``."""
    path = folder / "summary.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def edit_private(folder: Path, round: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Edits one line of ``private.jsonl``."""
    path = folder / "private.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(next(line for line in lines if line["round"] == round))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    if old not in text:
        raise ValueError(f"{old!r} is not in {path.name}")
    path.write_text(text.replace(old, new, 1))


def sparse(path: Path, size: int) -> None:
    """A file of ``size`` zero bytes that takes no room."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)
