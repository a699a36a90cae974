"""The ledger as a log: LEDGER.md, "The ledger as a transparency log"."""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.verifier.chain import Ledger, Refused, require


def leaf(line: bytes) -> bytes:
    return hashlib.sha256(b"\0" + line).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return _node(root(leaves[:split]), root(leaves[split:]))


def check_proof(path: Path, ledger: Ledger) -> None:
    """``ledger.tlog-proof``: the closing line is the last leaf under the log's signed head."""
    try:
        head, _, note = path.read_bytes().decode().partition("\n\n")
        first, index, *siblings = head.split("\n")
        path_up = [base64.b64decode(each, validate=True) for each in siblings]
    except (UnicodeDecodeError, binascii.Error, ValueError):
        raise Refused("a proof that is none") from None
    require(first == "c2sp.org/tlog-proof@v1", "a proof of another kind")
    require(index == f"index {len(ledger.lines) - 1}", "a proof of another line")
    size, top = signed_head(note, ledger)
    require(size == len(ledger.lines), "a head of another size")
    require(top == root([leaf(line) for line in ledger.lines]), "a head of another tree")
    # the last leaf's siblings are all to its left
    found = leaf(ledger.lines[-1])
    for sibling in path_up:
        found = _node(sibling, found)
    require(found == top, "the path leads elsewhere")


def signed_head(note: str, ledger: Ledger) -> tuple[int, bytes]:
    """(size, root) of a note that the log signed."""
    text, blank, signatures = note.partition("\n\n")
    text += "\n"
    lines = text.split("\n")
    require(blank and len(lines) == 4, "a note that is none")
    origin = f"fedsys/ledger/v1/{ledger.header['signer']}/{ledger.header['job']}"
    require(lines[0] == origin, "another log's note")
    require(str(int(lines[1])) == lines[1], "a size that is none")
    key = bytes.fromhex(ledger.header["signer"])
    key_id = hashlib.sha256(origin.encode() + b"\n\1" + key).digest()[:4]
    for line in signatures.splitlines():
        _, name, encoded = line.split(" ")
        raw = base64.b64decode(encoded, validate=True)
        if name == origin and raw[:4] == key_id:
            try:
                Ed25519PublicKey.from_public_bytes(key).verify(raw[4:], text.encode())
            except InvalidSignature:
                raise Refused("the log did not sign this note") from None
            return int(lines[1]), base64.b64decode(lines[2], validate=True)
    raise Refused("the log did not sign this note")
