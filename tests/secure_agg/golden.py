"""Golden transcripts: rounds from fixed entropy, every byte written down.

Run ``python -m tests.secure_agg.golden`` to write the files again, after a change of the protocol's
version only: they are what another implementation is tested against. Suite 1 alone: the
encapsulations of ML-KEM draw randomness that cannot be fixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from secure_agg import RoundContext, SecAggParams
from secure_agg.errors import SecureAggError
from secure_agg.messages import HEADER_SIZE, Kind
from tests.secure_agg.world import World

FOLDER = Path(__file__).parents[1] / "vectors" / "secure_agg"
VICTIM = 6
LARGE = 2048

ROUNDS: dict[str, tuple[SecAggParams, list[int], dict[Kind, list[int]]]] = {
    "everybody": (
        SecAggParams.derive(n=5, corrupt=0.2, dropout=0.2, modulus_bits=20, dimension=3),
        [5, 6, 9, 70, 2**32 - 1],
        {Kind.OPENING: [9]},
    ),
    "drawn": (
        SecAggParams(
            n=8, dimension=3, modulus_bits=32, committee=6, colluders=1, quorum=4, threshold=4,
            packing=3, errors=0, min_included=5, values_per_coefficient=1, log_q=44,
            dropped_bits=2, scale_bits=10,
        ),
        [1, 2, 3, 6, 10, 20, 30, 40],
        {Kind.OPENING: [3], Kind.DELIVERY: [1]},
    ),
}  # fmt: skip


def flip(at: int) -> Callable[[bytes], bytes]:
    """Change one bit at an offset, from the end if negative."""

    def change(message: bytes) -> bytes:
        data = bytearray(message)
        data[at] ^= 1
        return bytes(data)

    return change


def without_one(message: bytes) -> bytes:
    """Leave one dealer out of a proposed set."""
    data = bytearray(message)
    data[-1] &= data[-1] - 1
    return bytes(data)


def without_first(message: bytes) -> bytes:
    """A certificate without its first endorsement."""
    start = HEADER_SIZE + 4
    bits = message[start]
    return message[:start] + bytes((bits & (bits - 1),)) + message[start + 1 + 64 :]


BAD: dict[str, tuple[Kind, Callable[[bytes], bytes]]] = {
    "version": (Kind.OPENING, lambda m: b"\1" + m[1:]),
    "kind": (Kind.OPENING, lambda m: m[:1] + b"\x0d" + m[2:]),
    "session_of_opening": (Kind.OPENING, flip(5)),
    "round_of_opening": (Kind.OPENING, flip(HEADER_SIZE)),
    "roster_of_opening": (Kind.OPENING, flip(HEADER_SIZE + 12)),
    "parameters_of_opening": (Kind.OPENING, flip(HEADER_SIZE + 44)),
    "truncated_opening": (Kind.OPENING, lambda m: m[:-1]),
    "prekey_signature": (Kind.OPENING, flip(-1)),
    "prekey": (Kind.OPENING, flip(-65)),
    "prekey_flag": (Kind.OPENING, flip(-98)),
    "stage_skipped": (
        Kind.DELIVERY,
        lambda m: m[:1] + bytes((Kind.PROPOSAL,)) + m[2:HEADER_SIZE] + bytes(5),
    ),
    "dealer_signature": (Kind.DELIVERY, flip(HEADER_SIZE + 8 + 136)),
    "dealer_key": (Kind.DELIVERY, flip(HEADER_SIZE + 8 + 8)),
    "dealer_proof": (Kind.DELIVERY, flip(HEADER_SIZE + 8 + 200)),
    "dealer_id": (Kind.DELIVERY, flip(HEADER_SIZE + 8)),
    "sum_of_delivery": (Kind.DELIVERY, flip(HEADER_SIZE)),
    "count_of_delivery": (Kind.DELIVERY, flip(HEADER_SIZE + 4)),
    "bytes_left_over": (Kind.DELIVERY, lambda m: m + b"\0"),
    "small_set": (Kind.PROPOSAL, without_one),
    "absent_dealer": (Kind.PROPOSAL, flip(-1)),
    "bit_beyond_the_cohort": (Kind.PROPOSAL, lambda m: m[:-1] + bytes((m[-1] | 128,))),
    "certificate_signature": (Kind.CERTIFICATE, flip(-1)),
    "certificate_short": (Kind.CERTIFICATE, without_first),
    "certificate_signer": (Kind.CERTIFICATE, flip(HEADER_SIZE + 4)),
}


def world_of(name: str) -> tuple[World, dict[Kind, list[int]]]:
    """The round of a transcript, ready to start."""
    params, ids, absent = ROUNDS[name]
    context = RoundContext(job=b"golden", round=7, model_hash=b"model", policy=b"policy")
    return World(params, ids=ids, context=context, seed="golden " + name), absent


def play(name: str) -> dict[str, Any]:
    """Run a round and write down every message."""
    world, absent = world_of(name)
    steps = []
    gone: set[int] = set()
    messages: Mapping[int, bytes] = world.server.begin()
    while messages:
        kind = Kind(messages[next(iter(messages))][1])
        gone.update(absent.get(kind, ()))
        replies = world.deliver(messages, gone)
        steps.append(
            {
                "kind": kind.name,
                "to": written(messages, kind is Kind.OPENING),
                "from": {str(i): packed(r) for i, r in replies.items()},
            }
        )
        for i, reply in replies.items():
            world.server.receive(i, reply)
        messages = world.server.close_stage()
    return {
        "params": world.params.encode().hex(),
        "roster": {str(i): k.hex() for i, k in world.roster.items()},
        "committee": list(world.committee),
        "prekeys": {str(i): k.hex() for i, k in world.prekeys.items()},
        "inputs": {str(i): v.tolist() for i, v in world.inputs.items()},
        "steps": steps,
        "included": list(world.server.result.included),
        "total": world.server.result.total.tolist(),
    }


def written(messages: Mapping[int, bytes], same: bool) -> dict[str, str]:
    """Messages by receiver; the opening, which everybody gets, once."""
    ids: Collection[int] = list(messages)[:1] if same else messages
    return {"*" if same else str(i): packed(messages[i]) for i in ids}


def packed(message: bytes) -> str:
    """A message in hexadecimal, or its SHA-256 where it is large."""
    if len(message) <= LARGE:
        return message.hex()
    return "sha256 " + hashlib.sha256(message).hexdigest()


def refusal(name: str) -> dict[str, str]:
    """Play a good round up to the bad message; return it and the refusal's name."""
    kind, change = BAD[name]
    world, absent = world_of("everybody")
    bad = change(world.until(kind, absent)[VICTIM])
    try:
        world.members[VICTIM].handle(bad)
    except SecureAggError as error:
        return {"instead_of": kind.name, "message": bad.hex(), "error": type(error).__name__}
    raise RuntimeError(f"{name}: the bad message was accepted")


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in ROUNDS:
        (FOLDER / f"{name}.json").write_text(json.dumps(play(name), indent=1) + "\n")
    bad = {name: refusal(name) for name in BAD}
    (FOLDER / "bad.json").write_text(json.dumps(bad, indent=1) + "\n")


if __name__ == "__main__":
    main()
