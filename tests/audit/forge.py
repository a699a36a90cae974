"""What an attacker does to a run's folder, with or without the coordinator's key."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsys.privacy import Signer
from fedsys.privacy.ledger import GENESIS, Line

Entry = tuple[str, dict[str, Any]]
"""(kind, body) of one ledger line."""


def entries(folder: Path) -> list[Entry]:
    lines = (folder / "ledger.jsonl").read_bytes().splitlines()
    return [(line["kind"], line["body"]) for line in map(json.loads, lines)]


def sign_again(folder: Path, new: list[Entry], signer: Signer) -> str:
    """Writes a ledger that is in order in itself; returns its head."""
    link, head, raw_lines = GENESIS, GENESIS, []
    for seq, (kind, body) in enumerate(new):
        if seq == 0:
            body = {**body, "signer": signer.public_hex}
        digest = Line.hash_of(seq=seq, prev_hash=link, kind=kind, body=body)
        raw = Line.encode(
            seq=seq,
            prev_hash=link,
            kind=kind,
            body=body,
            digest=digest,
            signature=signer.sign(digest),
        )
        line = Line.parse(raw, seq + 1)
        link, head = line.link, line.hash
        raw_lines.append(raw)
    (folder / "ledger.jsonl").write_bytes(b"\n".join(raw_lines) + b"\n")
    return head


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
