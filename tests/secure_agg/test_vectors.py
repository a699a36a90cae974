"""Published vectors, through the very functions that the protocol uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure_agg import Identity, keys, prg
from secure_agg.errors import LowOrderPoint, ShareError

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/secure_agg/rfc.json").read_text()
)


def private(scalar: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(scalar))


@pytest.mark.parametrize("case", VECTORS["rfc7748"])
def test_rfc7748_x25519(case: dict[str, str]) -> None:
    found = keys.agree(private(case["scalar"]), bytes.fromhex(case["point"]))
    assert found.hex() == case["output"]


def test_rfc7748_x25519_iterated() -> None:
    case = VECTORS["rfc7748_iterated"]
    k = u = case["start"]
    for i in range(1000):
        k, u = keys.agree(private(k), bytes.fromhex(u)).hex(), k
        if i == 0:
            assert k == case["1"]
    assert k == case["1000"]


ENCODINGS = [
    u + shift + high_bit
    for u in sorted(keys._LOW_ORDER)
    for shift in (0, keys._PRIME)
    for high_bit in (0, 2**255)
    if u + shift < 2**255
]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_low_order_points_in_every_encoding(encoding: int) -> None:
    """As in Wycheproof's x25519 vectors: also not reduced, also with the unused bit set."""
    public = encoding.to_bytes(32, "little")
    assert keys.is_low_order(public)
    with pytest.raises(LowOrderPoint):
        keys.agree(private("77" * 32), public)


def test_ordinary_points_are_not_low_order() -> None:
    assert not keys.is_low_order(bytes([9]) + bytes(31))
    for i in range(50):
        assert not keys.is_low_order(keys.public_of(bytes([i]) * 32))


@pytest.mark.parametrize("case", VECTORS["rfc8032"])
def test_rfc8032_ed25519(case: dict[str, str]) -> None:
    identity = Identity(bytes.fromhex(case["secret"]))
    message, signature = bytes.fromhex(case["message"]), bytes.fromhex(case["signature"])
    assert identity.public_bytes.hex() == case["public"]
    assert identity.sign(message) == signature
    assert keys.verifies(identity.public_bytes, signature, message)
    assert not keys.verifies(identity.public_bytes, signature, message + b"x")
    assert not keys.verifies(identity.public_bytes, bytes([signature[0] ^ 1]) + signature[1:], b"")
    assert not keys.verifies(identity.public_bytes, signature[:-1], message)


def test_ed25519_refuses_a_signature_whose_scalar_is_not_reduced() -> None:
    """As in Wycheproof: s + L verifies under a sloppy verifier, and two signatures are one."""
    identity = Identity(bytes.fromhex(VECTORS["rfc8032"][0]["secret"]))
    signature = identity.sign(b"message")
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(signature[32:], "little") + order
    assert not keys.verifies(
        identity.public_bytes, signature[:32] + s.to_bytes(32, "little"), b"message"
    )


@pytest.mark.parametrize("case", VECTORS["rfc5869"])
def test_rfc5869_hkdf(case: dict[str, str]) -> None:
    ikm, salt, info = (bytes.fromhex(case[name]) for name in ("ikm", "salt", "info"))
    size = len(case["okm"]) // 2
    hkdf = HKDF(algorithm=hashes.SHA256(), length=size, salt=salt or None, info=info)
    assert hkdf.derive(ikm).hex() == case["okm"]
    if not salt:
        assert keys.hkdf(ikm, info).hex() == case["okm"][:64]


def test_rfc8439_chacha20_poly1305() -> None:
    case = {name: bytes.fromhex(value) for name, value in VECTORS["rfc8439"].items()}
    aad = case["aad"]
    view = aad[:4], int.from_bytes(aad[4:8], "little"), int.from_bytes(aad[8:], "little")
    sealed = keys.seal(case["key"], case["nonce"], case["plaintext"], *view)
    assert sealed == case["nonce"] + case["ciphertext"] + case["tag"]
    assert keys.unseal(case["key"], sealed, *view) == case["plaintext"]
    for at in range(len(sealed)):
        flipped = sealed[:at] + bytes([sealed[at] ^ 0x80]) + sealed[at + 1 :]
        with pytest.raises(ShareError):
            keys.unseal(case["key"], flipped, *view)
    with pytest.raises(ShareError):
        keys.unseal(case["key"], sealed[:20], *view)


def test_sp800_38a_aes256_ctr(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {name: bytes.fromhex(value) for name, value in VECTORS["sp800_38a_f55"].items()}
    monkeypatch.setattr(prg, "_COUNTER", modes.CTR(case["counter"]))
    stream = prg.stream(case["key"], 64)
    plain = np.frombuffer(case["plaintext"], np.uint8)
    assert (np.frombuffer(stream, np.uint8) ^ plain).tobytes() == case["ciphertext"]


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4", "<u8"])
@pytest.mark.parametrize("length", [1, 7, 1000, 70_000, 300_001])
@pytest.mark.parametrize("threads", [1, 3])
def test_masks_are_the_stream_whatever_the_blocks(dtype: str, length: int, threads: int) -> None:
    plus = [bytes([i]) * 32 for i in range(4)]
    minus = [bytes([i]) * 32 for i in range(100, 103)]
    total = np.arange(length).astype(dtype)
    expected = total.copy()
    for key in plus:
        expected += np.frombuffer(prg.stream(key, total.nbytes), dtype)
    for key in minus:
        expected -= np.frombuffer(prg.stream(key, total.nbytes), dtype)
    prg.add_masks(total, plus, minus, threads=threads)
    assert np.array_equal(total, expected)
