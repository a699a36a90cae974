"""How the coordinator drew: LEDGER.md, "Openings", and NOISE.md, "The sampler"."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from tests.verifier.chain import Ledger, Round, require
from tests.verifier.noise import many, shifted, terms
from tests.verifier.plan import Plan

Integers = NDArray[np.int64]
KEYS = {"seed", "nonces", "cohort_key", "sum_sketch"}
DENOMINATOR = 20


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def framed(value: bytes) -> bytes:
    return u32(len(value)) + value


class Keystream:
    """AES-256 in counter mode from zero."""

    def __init__(self, key: bytes) -> None:
        self._next = Cipher(AES256(key), CTR(bytes(16))).encryptor().update

    def read(self, count: int) -> bytes:
        return self._next(bytes(count))

    def key(self) -> bytes:
        return self.read(32)

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self.read(8 * count), "<u8").astype(np.uint64)


def _hex(value: Any, octets: int) -> bytes:
    require(isinstance(value, str) and len(value) == 2 * octets, "octets of another length")
    return bytes.fromhex(value)


class Draws:
    """Draws every round's cohort and noise again; rounds are given in order."""

    def __init__(self, ledger: Ledger, plan: Plan) -> None:
        self._job, self._plan, self._ledger = bytes.fromhex(ledger.header["job"]), plan, ledger
        self._mix: tuple[int, bytes] = (0, b"")
        self._last: dict[int, int] = {}
        self._times: Counter[int] = Counter()
        self._lost = 0
        self._cohort: list[int] | None = None
        self._noise = _Correlated(plan) if plan.mechanism == "banded-mf" else None

    def check(self, body: dict[str, Any], reserved: Round, survivors: list[int]) -> None:
        """The private line of a round that the ledger concludes."""
        number, opening = reserved.number, body.get("opening")
        require(isinstance(opening, dict) and set(opening) <= KEYS, "another opening")
        found: dict[str, Any] = dict(opening or {})
        seed = _hex(found.get("seed"), 32)
        place = framed(self._job) + u32(number)
        committed = hashlib.sha256(b"fedsys round seed v1\0" + place + framed(seed)).hexdigest()
        require(reserved.seed == committed, "another seed than was committed to")
        nonces = base64.b64decode(found.get("nonces", "?"), validate=True)
        require(len(nonces) in (0, 16 * len(survivors)), "nonces of others")
        mixed = b"".join(
            u32(client) + framed(nonces[16 * at : 16 * at + 16])
            for at, client in enumerate(survivors if nonces else [])
        )
        mix = hashlib.sha256(
            b"fedsys round mix v1\0" + u32(number) + framed(seed) + u32(len(nonces) // 16) + mixed
        ).digest()
        before = self._mix if self._mix[0] == number - 1 > 0 else None
        require((before is None) == ("cohort_key" in found), "a cohort of another key")
        if before is None:
            key = _hex(found["cohort_key"], 32)
        else:
            key = hashlib.sha256(b"fedsys cohort v1\0" + before[1]).digest()
        self._forget_lost(number)
        self._cohort = self.cohort(number, Keystream(key))
        self._mix = (number, mix)
        require(("sum_sketch" in found) == (reserved.outcome == "commit"), "no sketch, or one")
        if reserved.outcome == "commit":
            self._check_noise(reserved, found, mix, len(survivors))

    def invited(self, sampled: list[int]) -> None:
        """The cohort of the round that was checked last, as its line has it."""
        require(self._cohort is None or sorted(self._cohort) == sampled, "a biased cohort")
        for client in sampled:
            self._last[client] = self._mix[0]
            self._times[client] += 1

    def _forget_lost(self, number: int) -> None:
        while self._lost < number - 1:
            self._lost += 1
            if self._ledger.rounds[self._lost - 1].outcome is None:
                for client in range(self._plan.population):
                    self._last[client] = self._lost
                    self._times[client] += 1

    # -- cohorts -----------------------------------------------------------------------------------

    def cohort(self, number: int, stream: Keystream) -> list[int] | None:
        plan = self._plan
        if plan.sampling in ("arrivals", "chosen"):
            return None
        if plan.sampling == "poisson":
            clients, rate = list(range(plan.population)), plan.rate
            if plan.cyclic and plan.apart is not None:
                clients = clients[(number - 1) % plan.apart :: plan.apart]
                rate = min(1.0, rate * plan.apart)
            above, below = rate.as_integer_ratio()
            least = (above << 64) // below
            words = Keystream(stream.key()).words(len(clients)).tolist()
            return [client for client, word in zip(clients, words, strict=True) if word < least]
        size = round(plan.cohort)
        if plan.sampling == "fixed":
            return _least(list(range(plan.population)), size, stream)
        apart, most = plan.apart or 1, plan.limit or plan.rounds
        free = [
            client
            for client in range(plan.population)
            if number - self._last.get(client, -apart) >= apart and self._times[client] < most
        ]
        require(len(free) >= size, "too few clients may be asked")
        level = sorted(self._times[client] for client in free)[size - 1]
        sure = [client for client in free if self._times[client] < level]
        equal = [client for client in free if self._times[client] == level]
        return sure + _least(equal, size - len(sure), stream)

    # -- noise -------------------------------------------------------------------------------------

    def _check_noise(
        self, reserved: Round, opening: dict[str, Any], mix: bytes, survivors: int
    ) -> None:
        event, plan, body = reserved.event, self._plan, reserved.body
        stream = Keystream(hashlib.sha256(b"fedsys top-up v1\0" + mix).digest())
        length = int(event["length"])
        noise = np.zeros(length, dtype=np.int64)
        if self._noise is not None:
            noise = self._noise.drawn(reserved.number, event, stream)
        elif plan.body["noise"] == "once" or plan.mechanism == "central-gaussian":
            if plan.mechanism != "none":
                read = Keystream(stream.key()).read
                noise = terms(read, length, math.sqrt(event["total_variance"]))
        elif plan.mechanism in ("distributed-gaussian", "local-gaussian"):
            sigma, missing = math.sqrt(event["share_variance"]), plan.cap - survivors
            if missing:
                noise = many(Keystream(stream.key()).read, length, sigma, missing)
        aggregate = _hex(body.get("aggregate_sha256"), 32)
        place = framed(self._job) + u32(reserved.number) + aggregate
        forms = Keystream(hashlib.sha256(b"fedsys sketch v2\0" + place).digest())
        bits = int(event["modulus_bits"])
        octets = 4 if bits <= 32 else 8
        words = np.frombuffer(forms.read(2 * length * octets), f"<u{octets}").astype(np.uint64)
        wanted = (words.reshape(2, length) * noise.view(np.uint64)).sum(axis=1, dtype=np.uint64)
        summed, released = _pair(opening["sum_sketch"]), _pair(body.get("aggregate_sketch"))
        for at in range(2):
            difference = (released[at] - summed[at] - int(wanted[at])) % (1 << bits)
            require(difference == 0, "other noise than was committed to")


def _pair(text: Any) -> tuple[int, int]:
    raw = _hex(text, 16)
    return int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:], "big")


def _least(clients: list[int], size: int, stream: Keystream) -> list[int]:
    source = Keystream(stream.key())
    if size == len(clients):
        return clients
    while True:
        words = source.words(len(clients)).tolist()
        order = sorted(range(len(clients)), key=words.__getitem__)
        if words[order[size - 1]] != words[order[size]]:
            return [clients[at] for at in order[:size]]


class _Correlated:
    """The noise of ``banded-mf``, round after round."""

    def __init__(self, plan: Plan) -> None:
        scale = 1 << DENOMINATOR
        self._numerators = [round(value * scale) for value in plan.coefficients]
        self._past: list[Integers] = []

    def drawn(self, number: int, event: dict[str, Any], stream: Keystream) -> Integers:
        while len(self._past) < number - 1:
            self._draw(event, stream)
        return self._draw(event, stream)

    def _draw(self, event: dict[str, Any], stream: Keystream) -> Integers:
        length = int(event["length"])
        carried = np.zeros(length, dtype=np.int64)
        for back, past in enumerate(reversed(self._past), start=1):
            if back < len(self._numerators):
                carried -= self._numerators[back] * past
        fraction = (carried & ((1 << DENOMINATOR) - 1)).astype(np.float64) * 2.0**-DENOMINATOR
        source = Keystream(stream.key())
        noise = shifted(source.read, event["white_deviation"], fraction)
        noise += carried >> DENOMINATOR
        self._past.append(noise)
        return noise
