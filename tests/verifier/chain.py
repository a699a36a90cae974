"""Lines, chain, signatures, grammar: LEDGER.md, "A line" and "What a verifier checks", 1 to 4."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FORMAT = "fedsys-ledger-1"
KEYS = {"body", "hash", "kind", "prev_hash", "seq", "signature"}
MOST_BYTES, MOST_LEVELS = 1 << 20, 12


class Refused(Exception):
    """What was handed over is not what it says it is."""


def require(holds: object, message: str) -> None:
    if not holds:
        raise Refused(message)


def canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def _no_constant(text: str) -> NoReturn:
    raise Refused(f"{text} is no JSON")


def _levels(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_levels, value.values()), default=0)
    return 1 + max(map(_levels, value), default=0) if isinstance(value, list) else 0


def parse(raw: bytes, most: int = MOST_BYTES) -> dict[str, Any]:
    """An object whose bytes are the canonical form of what they say."""
    require(len(raw) <= most, "a line is too long")
    require(raw.count(b"[") + raw.count(b"{") < 1 << 16, "a line has too many brackets")
    try:
        value = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused("a line is no JSON") from None
    require(isinstance(value, dict) and _levels(value) <= MOST_LEVELS, "a line is no flat object")
    require(canonical(value) == raw, "a line is not canonical")
    return dict(value)


@dataclass
class Round:
    """A reserved round, the model that it began with, and what became of it: `head` is the hash of
    the line that concludes it."""

    number: int
    event: dict[str, Any]
    kind: object = None
    outcome: str | None = None
    body: dict[str, Any] = field(default_factory=dict)
    head: str = ""
    seed: Any = None
    model: Any = None


@dataclass
class Ledger:
    """A ledger whose form, chain, signatures and grammar hold."""

    lines: list[bytes]
    header: dict[str, Any]
    rounds: list[Round]
    closed: dict[str, Any] | None
    head: str


def read(path: Path, key: Ed25519PublicKey | None = None) -> Ledger:
    """Checks every line; the key is the header's own where none is given."""
    raw = path.read_bytes()
    require(raw.endswith(b"\n"), "the ledger ends in a torn line")
    lines = raw[:-1].split(b"\n")
    bodies: list[tuple[str, dict[str, Any], str]] = []
    link, head = "0" * 64, ""
    for seq, line in enumerate(lines):
        found = parse(line)
        require(set(found) == KEYS, "a line has other keys")
        for name, digits in (("hash", 64), ("prev_hash", 64), ("signature", 128)):
            require(re.fullmatch(f"[0-9a-f]{{{digits}}}", str(found[name])), f"{name} is no hex")
        require(type(found["seq"]) is int and found["seq"] == seq, "a line is out of place")
        require(found["prev_hash"] == link, "a line does not follow from the one before")
        content = {name: found[name] for name in ("body", "kind", "prev_hash", "seq")}
        head = hashlib.sha256(canonical(content)).hexdigest()
        require(head == found["hash"], "a line has another hash")
        body = found["body"]
        require(isinstance(body, dict), "a body is no object")
        if seq == 0:
            require(found["kind"] == "header" and body.get("format") == FORMAT, "no header")
            key = _signer(body, key)
        _verify(key, found["signature"], b"fedsys ledger line v1\0" + bytes.fromhex(head))
        bodies.append((found["kind"], body, head))
        link = hashlib.sha256(line).hexdigest()
    rounds, closed = _grammar(bodies[1:], bodies[0][1].get("initial_weights_sha256"))
    return Ledger(lines=lines, header=bodies[0][1], rounds=rounds, closed=closed, head=head)


def _signer(header: dict[str, Any], pinned: Ed25519PublicKey | None) -> Ed25519PublicKey:
    try:
        stated = Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(header.get("signer"))))
    except ValueError:
        raise Refused("the header names no key") from None
    same = pinned is None or pinned.public_bytes_raw() == stated.public_bytes_raw()
    require(same, "another key signed")
    return stated


def _verify(key: Ed25519PublicKey | None, signature: str, message: bytes) -> None:
    require(key is not None, "no key")
    try:
        if key is not None:
            key.verify(bytes.fromhex(signature), message)
    except InvalidSignature:
        raise Refused("a signature is not the signer's") from None


def _grammar(
    lines: list[tuple[str, dict[str, Any], str]], model: Any
) -> tuple[list[Round], dict[str, Any] | None]:
    rounds: list[Round] = []
    is_open, closed = False, None
    for kind, body, head in lines:
        require(closed is None, "a line follows the closing line")
        number = body.get("round")
        if kind == "reserve":
            require(type(number) is int and number == len(rounds) + 1, "a round has another number")
            event = body.get("event")
            require(isinstance(event, dict), "a reserve holds no event")
            rounds.append(
                Round(
                    number=len(rounds) + 1,
                    event=dict(event or {}),
                    kind=body.get("kind"),
                    model=model,
                    seed=body.get("seed_sha256"),
                )
            )
        elif kind in ("commit", "abort"):
            require(is_open and type(number) is int and number == len(rounds), "no such open round")
            rounds[-1].outcome, rounds[-1].body, rounds[-1].head = kind, body, head
            model = body.get("weights_sha256") if kind == "commit" else model
        elif kind == "closed":
            closed = body
        else:
            require(kind == "resume", "a line of an unknown kind")
        is_open = kind == "reserve"
    return rounds, closed
