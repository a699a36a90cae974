"""Ledgers to read, to break and to forge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedsys.privacy import AesCtrStream, Ledger, Signer, ledger_header
from fedsys.privacy.ledger import GENESIS, canonical
from fedsys.privacy.plan import PrivacyPlan


def fixed_entropy(seed: int) -> Callable[[int], bytes]:
    """Reproducible, for tests only."""
    return AesCtrStream(seed.to_bytes(32, "big"))


SIGNER = Signer.generate(entropy=fixed_entropy(1))
OTHER = Signer.generate(entropy=fixed_entropy(2))


def create(folder: Path, plan: PrivacyPlan, signer: Signer = SIGNER) -> Ledger:
    """A ledger with its header, open."""
    return Ledger.create(
        folder / "ledger.jsonl",
        folder / "private.jsonl",
        signer=signer,
        header=ledger_header(plan, name="test"),
        entropy=fixed_entropy(3),
    )


def reopen(folder: Path, signer: Signer = SIGNER) -> Ledger:
    """The folder's ledger, taken up again."""
    return Ledger.open(folder / "ledger.jsonl", folder / "private.jsonl", signer=signer)


def write_run(folder: Path, plan: PrivacyPlan, rounds: int = 5, *, close: bool = True) -> str:
    """A job with an early abort in round 2 and a late one in round 4."""
    with create(folder, plan) as ledger:
        for number in range(1, rounds + 1):
            ledger.reserve(number, {"event": plan.event().to_json()})
            cohort = list(range(number, number + 90))
            if number in (2, 4):
                ledger.abort(number, {"reason": "x"}, sampled=cohort, before_unmask=number == 2)
            else:
                ledger.commit(
                    number,
                    {"weights_sha256": "ab" * 32},
                    sampled=cohort,
                    survivors=cohort[:-4],
                    private={"seconds": {"train": 0.5}},
                )
        if close:
            ledger.close("completed")
        return ledger.head


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The ledger as objects, nothing verified."""
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_bytes().splitlines()]


def write_lines(folder: Path, lines: list[dict[str, Any]]) -> None:
    """These instead of the ledger that is there."""
    (folder / "ledger.jsonl").write_bytes(b"".join(canonical(line) + b"\n" for line in lines))


def hash_of(line: Mapping[str, Any]) -> str:
    """A line's hash, as LEDGER.md defines it."""
    content = {name: line[name] for name in ("body", "kind", "prev_hash", "seq")}
    return hashlib.sha256(canonical(content)).hexdigest()


def chained(
    entries: Iterable[tuple[str, dict[str, Any]]], sign: Callable[[int, str], str]
) -> Iterator[bytes]:
    """Raw lines of these kinds and bodies, in order in themselves.

    Args:
        entries: (kind, body) of each line.
        sign: the signature of a line's sequence number and hash.
    """
    link = GENESIS
    for seq, (kind, body) in enumerate(entries):
        line = {"seq": seq, "prev_hash": link, "kind": kind, "body": body}
        digest = hash_of(line)
        raw = canonical({**line, "hash": digest, "signature": sign(seq, digest)})
        link = hashlib.sha256(raw).hexdigest()
        yield raw


def rechained(lines: list[dict[str, Any]], signer: Signer) -> list[dict[str, Any]]:
    """The lines with sequence, hashes and signatures made to fit: what a forger can do."""
    entries = ((line["kind"], line["body"]) for line in lines)
    return [json.loads(raw) for raw in chained(entries, lambda _, digest: signer.sign(digest))]
