"""Golden transcripts: rounds from fixed entropy, every byte written down.

Run ``python -m tests.secure_agg.golden`` to write the files anew, after a change of the protocol's
version only: they are what another implementation is tested against.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secure_agg import Floor, SecAggParams
from secure_agg.errors import SecureAggError
from secure_agg.messages import HEADER_SIZE, Kind
from tests.secure_agg.world import World

FOLDER = Path(__file__).parents[1] / "vectors" / "secure_agg"
VICTIM = 5

ROUNDS: dict[str, tuple[SecAggParams, list[int], dict[Kind, list[int]]]] = {
    "complete": (
        SecAggParams.derive(n=4, corrupt=0.0, dropout=0.25),
        [5, 6, 9, 2**32 - 1],
        {Kind.DELIVERY: [9]},
    ),
    "sparse_packed": (
        SecAggParams(
            n=6, degree=2, threshold=1, quorum=4, min_alive=4, colluders=0, dropouts=2,
            modulus_bits=20,
        ),
        [5, 10, 20, 30, 40, 50],
        {Kind.BEGIN: [40], Kind.UNMASK: [20]},
    ),
}  # fmt: skip


def flip(at: int) -> Callable[[bytes], bytes]:
    """Change one bit at an offset, from the end if negative."""

    def change(message: bytes) -> bytes:
        data = bytearray(message)
        data[at] ^= 1
        return bytes(data)

    return change


BAD: dict[str, tuple[Kind, Callable[[bytes], bytes]]] = {
    "version": (Kind.BEGIN, lambda m: b"\2" + m[1:]),
    "kind": (Kind.BEGIN, lambda m: m[:1] + b"\x0d" + m[2:]),
    "session_of_begin": (Kind.BEGIN, flip(5)),
    "round_of_begin": (Kind.BEGIN, flip(HEADER_SIZE)),
    "truncated_begin": (Kind.BEGIN, lambda m: m[:-1]),
    "advert_signature": (Kind.COHORT, flip(-1)),
    "advert_key": (Kind.COHORT, flip(HEADER_SIZE + 4 + 164)),
    "cohort_out_of_order": (
        Kind.COHORT,
        lambda m: m[:HEADER_SIZE] + m[-164:] + m[HEADER_SIZE:-164],
    ),
    "cohort_too_small": (Kind.COHORT, lambda m: m[: HEADER_SIZE + 2 * 164]),
    "nonce": (Kind.NONCES, flip(HEADER_SIZE + 4)),
    "neighbours": (Kind.NONCES, flip(-4)),
    "stage_skipped": (
        Kind.NONCES,
        lambda m: m[:1] + bytes((Kind.ALIVE,)) + m[2:HEADER_SIZE],
    ),
    "own_shares_altered": (Kind.DELIVERY, flip(HEADER_SIZE + 8)),
    "commitment": (Kind.DELIVERY, flip(-1)),
    "bytes_left_over": (Kind.DELIVERY, lambda m: m + b"\0"),
    "self_absent": (Kind.ALIVE, lambda m: m[:HEADER_SIZE] + m[HEADER_SIZE + 4 :]),
    "alive_stranger": (Kind.ALIVE, flip(-4)),
    "quorum_signature": (Kind.UNMASK, flip(HEADER_SIZE + 10)),
    "duplicated_signer": (
        Kind.UNMASK,
        lambda m: m[: HEADER_SIZE + 4] + m[HEADER_SIZE + 4 :][:68] * 2 + m[HEADER_SIZE + 4 + 136 :],
    ),
    "nobody_dropped": (Kind.UNMASK, lambda m: m[:-8] + bytes(4)),
}  # fmt: skip


def world_of(name: str) -> tuple[World, dict[Kind, list[int]]]:
    """The round of a transcript, ready to start."""
    params, ids, absent = ROUNDS[name]
    floor = Floor(secrecy_bits=0)
    return World(params, ids=ids, length=3, floor=floor, seed="golden " + name), absent


def play(name: str) -> dict[str, Any]:
    """Run a round and write down every message."""
    world, absent = world_of(name)
    steps = []
    gone: set[int] = set()
    messages = world.server.begin()
    while messages:
        kind = Kind(next(iter(messages.values()))[1])
        gone.update(absent.get(kind, ()))
        replies = world.deliver(messages, gone)
        steps.append(
            {
                "kind": kind.name,
                "to": {str(i): m.hex() for i, m in messages.items()},
                "from": {str(i): r.hex() for i, r in replies.items()},
            }
        )
        for i, reply in replies.items():
            world.server.receive(i, reply)
        messages = world.server.close_stage()
    return {
        "params": world.params.encode().hex(),
        "roster": {str(i): k.hex() for i, k in world.roster.items()},
        "inputs": {str(i): v.tolist() for i, v in world.inputs.items()},
        "steps": steps,
        "included": list(world.server.result.included),
        "total": world.server.result.total.tolist(),
    }


def refusal(name: str, good: dict[str, Any]) -> dict[str, str]:
    """Play a good transcript up to the bad message; return it and the refusal's name."""
    kind, change = BAD[name]
    world, _ = world_of("complete")
    member = world.members[VICTIM]
    for step in good["steps"]:
        message = bytes.fromhex(step["to"][str(VICTIM)])
        if step["kind"] == kind.name:
            bad = change(message)
            try:
                member.handle(bad)
            except SecureAggError as error:
                return {
                    "instead_of": kind.name,
                    "message": bad.hex(),
                    "error": type(error).__name__,
                }
            break
        member.handle(message)
    raise RuntimeError(f"{name}: the bad message was accepted")


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    good = {name: play(name) for name in ROUNDS}
    for name, transcript in good.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(transcript, indent=1) + "\n")
    bad = {name: refusal(name, good["complete"]) for name in BAD}
    (FOLDER / "bad.json").write_text(json.dumps(bad, indent=1) + "\n")


if __name__ == "__main__":
    main()
