"""What a coordinator draws in a round: committed to beforehand, mixed with what members send.

A round's seed is chosen and committed to in its ``reserve`` line. Members that upload send nonces,
which nobody knew before. Both together, the *mix*, give the coordinator's own noise in that round
and the cohort of the next one. So neither can be chosen by the coordinator, and ``private.jsonl``
opens both to an auditor.

>>> seed = bytes(32)
>>> mix = mixed(1, seed, {3: b"n" * 16})
>>> mix != mixed(1, seed, {})
True
>>> noise_key(mix) != cohort_key(mix)
True
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import LedgerError
from fedsys.privacy.randomness import AesCtrStream

__all__ = [
    "NONCE_BYTES",
    "SEED_BYTES",
    "Opening",
    "cohort_key",
    "difference",
    "mixed",
    "noise_key",
    "seed_commitment",
    "sketch",
    "sketch_key",
    "sketches",
]

SEED_BYTES = 32
NONCE_BYTES = 16
"""What a member adds to a round's randomness, with its upload."""

_FORMS = 2
_BLOCK = 1 << 16
_NARROW = 32
"""The widest ring, in bits, whose sketches have coefficients of 32 bits instead of 64."""


def seed_commitment(job: bytes, round: int, seed: bytes) -> str:
    """SHA-256 in a ``reserve`` line, as hex."""
    place = _framed(job) + round.to_bytes(4, "big")
    return hashlib.sha256(b"fedsys round seed v1\x00" + place + _framed(seed)).hexdigest()


def mixed(round: int, seed: bytes, nonces: Mapping[int, bytes]) -> bytes:
    """The 32 bytes that a round's seed and its members' nonces, by client, give."""
    digest = hashlib.sha256(b"fedsys round mix v1\x00" + round.to_bytes(4, "big"))
    digest.update(_framed(seed) + len(nonces).to_bytes(4, "big"))
    for client in sorted(nonces):
        digest.update(client.to_bytes(4, "big") + _framed(nonces[client]))
    return digest.digest()


def noise_key(mix: bytes) -> bytes:
    """Key of the stream from which the coordinator's noise in the mix's round is drawn."""
    return hashlib.sha256(b"fedsys top-up v1\x00" + mix).digest()


def cohort_key(mix: bytes) -> bytes:
    """Key of the stream from which the cohort of the round after the mix's is drawn."""
    return hashlib.sha256(b"fedsys cohort v1\x00" + mix).digest()


def sketch(vector: NDArray[Any], key: bytes, bits: int) -> str:
    """Two random linear forms of a vector mod 2^b, as hex: linear, so sketches can be subtracted.

    Vectors that differ by 2^v y mod 2^b, with y odd somewhere, have one sketch under 4^-(b-v) of
    all coefficients: a form of y takes every value mod 2^(b-v) equally often.

    Args:
        vector: (n,) integers.
        key: 32 bytes, from which the coefficients are drawn.
        bits: b.
    """
    return sketches([vector], key, bits)[0]


def sketches(vectors: Sequence[NDArray[Any]], key: bytes, bits: int) -> list[str]:
    """The `sketch` of each of these vectors (n,), for which the coefficients are drawn once."""
    word = np.dtype("<u4" if bits <= _NARROW else "<u8")
    stream, length = AesCtrStream(key), len(vectors[0])
    held = [vector.astype(word, copy=False) for vector in vectors]  # modulo the word, as is exact
    found = [[0] * _FORMS for _ in vectors]
    for form in range(_FORMS):
        for start in range(0, length, _BLOCK):
            coefficients = np.empty(min(_BLOCK, length - start), dtype=word)
            stream.fill(coefficients)
            for sums, vector in zip(found, held, strict=True):
                # Not a dot product, which NumPy computes one integer at a time.
                terms = vector[start : start + _BLOCK] * coefficients
                sums[form] += int(terms.sum(dtype=word))
    mask = (1 << bits) - 1
    return ["".join(f"{each & mask:016x}" for each in sums) for sums in found]


def sketch_key(job: bytes, round: int, aggregate_sha256: str) -> bytes:
    """The key of a round's sketches, which depends on what is released."""
    place = _framed(job) + round.to_bytes(4, "big") + bytes.fromhex(aggregate_sha256)
    return hashlib.sha256(b"fedsys sketch v2\x00" + place).digest()


def difference(one: str, other: str, bits: int) -> str:
    """The sketch of the difference of two vectors, from theirs."""
    first, second = (np.frombuffer(bytes.fromhex(each), ">u8") for each in (one, other))
    apart = first.astype(np.uint64) - second.astype(np.uint64)
    return (apart & np.uint64((1 << bits) - 1)).astype(">u8").tobytes().hex()


def _framed(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a round's private line says about how the coordinator drew.

    Attributes:
        seed: the round's seed.
        nonces: by survivor, what it sent; empty if nobody sent any.
        cohort: key of the stream that gave the round's cohort, where no round before gave it.
        sum_sketch: sketch of the sum before the coordinator's noise; None where none was released.
    """

    seed: bytes
    nonces: Mapping[int, bytes]
    cohort: bytes | None = None
    sum_sketch: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for the line."""
        joined = b"".join(self.nonces[client] for client in sorted(self.nonces))
        body: dict[str, Any] = {
            "seed": self.seed.hex(),
            "nonces": base64.b64encode(joined).decode(),
        }
        if self.cohort is not None:
            body["cohort_key"] = self.cohort.hex()
        if self.sum_sketch is not None:
            body["sum_sketch"] = self.sum_sketch
        return body

    @classmethod
    def parse(cls, body: Any, survivors: Sequence[int], where: str) -> Opening:
        """Reads a line's opening strictly.

        Args:
            body: the value, untrusted.
            survivors: the line's survivors.
            where: begins an error's message.

        Raises:
            LedgerError: it is malformed.
        """
        try:
            if not {"seed", "nonces"} <= set(body) <= _KEYS:
                raise ValueError("has other keys than an opening")
            joined = base64.b64decode(body["nonces"], validate=True)
            if len(joined) not in (0, NONCE_BYTES * len(survivors)):
                raise ValueError("does not have one nonce for each survivor")
            cohort, summed = body.get("cohort_key"), body.get("sum_sketch")
            found = cls(
                seed=_exactly(body["seed"], SEED_BYTES),
                nonces={
                    client: joined[NONCE_BYTES * at : NONCE_BYTES * (at + 1)]
                    for at, client in enumerate(sorted(survivors) if joined else ())
                },
                cohort=None if cohort is None else _exactly(cohort, SEED_BYTES),
                sum_sketch=None if summed is None else _exactly(summed, 8 * _FORMS).hex(),
            )
            if found.to_json() != body:
                raise ValueError("is not in canonical form")
        except (TypeError, ValueError, AttributeError, binascii.Error) as error:
            raise LedgerError(f"{where}: the opening {error}") from None
        return found


_KEYS = {"seed", "nonces", "cohort_key", "sum_sketch"}


def _exactly(value: Any, length: int) -> bytes:
    raw = bytes.fromhex(value)
    if len(raw) != length:
        raise ValueError(f"does not have {length} bytes of hex")
    return raw
