"""What an attacker does to a run's folder, with or without the coordinator's key."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsys.privacy import Signer
from fedsys.privacy.ledger import Line
from fedsys.privacy.ledger.closing import FILES, closing_facts, file_sha256, hidden_files
from fedsys.privacy.ledger.lines import canonical
from tests.fedsys.privacy.ledger.ledgers import chained

Entry = tuple[str, dict[str, Any]]
"""(kind, body) of one ledger line."""


def entries(folder: Path) -> list[Entry]:
    lines = (folder / "ledger.jsonl").read_bytes().splitlines()
    return [(line["kind"], line["body"]) for line in map(json.loads, lines)]


def sign_again(folder: Path, new: list[Entry], signer: Signer) -> str:
    """Writes a ledger that is in order in itself, without the proof of the old one's head; returns
    its head."""
    kind, header = new[0]
    signed = [(kind, {**header, "signer": signer.public_hex}), *new[1:]]
    lines = list(chained(signed, lambda _, digest: signer.sign(digest)))
    (folder / "ledger.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "ledger.tlog-proof").unlink(missing_ok=True)
    return Line.parse(lines[-1], len(lines)).hash


def close_again(folder: Path, signer: Signer) -> str:
    """Makes the closing line bind the folder as it is now; returns the head, which the summary then
    states: what only the coordinator can do."""
    new = entries(folder)
    kind, closed = new[-1]
    if FILES in json.loads((folder / "summary.json").read_text()):
        edit_json(folder, lambda body: body.update({FILES: hidden_files(folder)}))
    summary = json.loads((folder / "summary.json").read_text())
    facts = closing_facts(
        summary=summary,
        metrics=folder / "metrics.jsonl",
        model_sha256=file_sha256(folder / "model.pt"),
        data=folder / "data.json",
    )
    head = sign_again(folder, [*new[:-1], (kind, {**closed, **facts})], signer)
    edit_json(folder, lambda body: body.update(ledger_head=head))
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
    path.write_bytes(b"".join(canonical(line) + b"\n" for line in lines))


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
