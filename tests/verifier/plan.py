"""A plan, and what a reserved event must be: LEDGER.md, "An event" and "A plan that is none"."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

from tests.verifier.chain import Refused, canonical, require

COPIED = (
    "mechanism",
    "encoding",
    "dimension",
    "modulus_bits",
    "noise_multiplier",
    "expected_cohort",
    "cap",
    "min_survivors",
    "sampling",
    "participation",
    "guarantee",
    "colluders",
)
KEYS = {
    *COPIED,
    "population",
    "rounds",
    "clip",
    "delta",
    "dropout",
    "max_participations",
    "budget",
    "unit",
    "min_separation",
    "example_rate",
    "steps",
    "noise",
    "adaptive_clip",
    "corrupt",
}
ONCE = ("distributed-gaussian", "central-gaussian", "none")
ENCODINGS = {
    "distributed-gaussian": ("wide", "narrow", "float"),
    "central-gaussian": ("wide", "narrow", "float"),
    "local-gaussian": ("wide", "narrow"),
    "banded-mf": ("wide",),
    "example-gaussian": ("wide",),
    "none": ("wide", "float"),
}
FIXED_SIZE = ("fixed", "min-separation", "chosen")
BY_TURNS = ("min-separation", "chosen", "arrivals")


@dataclass(frozen=True, order=True)
class Step:
    """Gaussian mechanisms that one round shows to a view."""

    multiplier: float
    rate: float = 1.0
    replaces: bool = False
    count: int = 1


def worst(steps: list[Step]) -> Step:
    return Step(
        multiplier=min(step.multiplier for step in steps),
        rate=max(step.rate for step in steps),
        replaces=any(step.replaces for step in steps),
        count=max(step.count for step in steps),
    )


def close(found: Any, wanted: float, tolerance: float) -> bool:
    if isinstance(found, bool) or not isinstance(found, int | float):
        return False
    return math.isclose(found, wanted, rel_tol=tolerance, abs_tol=0.0)


class Plan:
    """The constants of a job, checked."""

    def __init__(self, header: dict[str, Any]) -> None:
        body = header.get("plan")
        require(isinstance(body, dict), "no plan")
        self.body: dict[str, Any] = dict(body or {})
        require(set(self.body) == KEYS, "a plan has other keys")
        plan = self.body
        for name in ("delta", "budget", "unit"):
            require(header.get(name) == plan[name], f"the header has another {name}")
        self.mechanism: str = plan["mechanism"]
        self.sampling: str = plan["sampling"]
        require(self.mechanism in ENCODINGS, "an unknown mechanism")
        self.population = _whole(plan, "population", 1, 1 << 28)
        self.rounds = _whole(plan, "rounds", 1)
        self.dimension = _whole(plan, "dimension", 1, 1 << 36)
        self.cap = _whole(plan, "cap", 1, self.population)
        self.least = _whole(plan, "min_survivors", 1, self.cap)
        self.colluders = _whole(plan, "colluders", 0)
        self.bits = _whole(plan, "modulus_bits", 2, 64)
        self.cohort = _number(plan, "expected_cohort", 0.0, self.population)
        self.clip = _number(plan, "clip", 0.0)
        self.participation = _number(plan, "participation", 0.0, 1.0)
        self.delta = _number(plan, "delta", 0.0, math.nextafter(1.0, 0.0))
        self.z = _number(plan, "noise_multiplier", -1.0)
        self.dropout = _number(plan, "dropout", -1.0, math.nextafter(1.0, 0.0))
        require(min(self.z, self.dropout) >= 0, "a number is below 0")
        self.limit = (
            None if plan["max_participations"] is None else (_whole(plan, "max_participations", 1))
        )
        self.apart = None if plan["min_separation"] is None else _whole(plan, "min_separation", 1)
        self.corrupt = None if plan["corrupt"] is None else _number(plan, "corrupt", -1.0, 0.999999)
        require(self.corrupt is None or self.corrupt >= 0, "corrupt is below 0")
        self.rate = self.cohort / self.population
        self.honest = max(self.least - self.colluders, 1)
        self.curious = max(self.colluders, 1)
        self.cyclic = self.mechanism == "banded-mf" and self.sampling == "poisson"
        self._check()
        self.coefficients = _coefficients(header, self) if self.mechanism == "banded-mf" else []
        if self.mechanism != "banded-mf":
            require("factorization" not in header, "a factorization of nothing")

    def _check(self) -> None:
        plan, mechanism, sampling = self.body, self.mechanism, self.sampling
        require(plan["encoding"] in ENCODINGS[mechanism], "an encoding that does not go with it")
        require(sampling in ("poisson", *FIXED_SIZE, "arrivals"), "an unknown sampling")
        require(plan["guarantee"] in ("outsider", "server"), "an unknown guarantee")
        require(plan["noise"] == "per-client" or mechanism in ONCE, "noise that is none")
        require(plan["noise"] in ("per-client", "once"), "an unknown noise")
        require(plan["encoding"] != "float" or plan["noise"] == "once", "float without once")
        require(self.z == 0 if mechanism == "none" else self.z >= 0.01, "no such noise multiplier")
        require((plan["unit"] == "example") == (mechanism == "example-gaussian"), "another unit")
        if plan["guarantee"] == "server":
            require(self.limit is not None and self.least > self.colluders, "no server guarantee")
            require(mechanism not in ("central-gaussian", "banded-mf", "none"), "no such guarantee")
        if sampling == "min-separation":
            require(self.limit is not None and self.apart is not None, "no separation")
        if sampling in ("arrivals", "chosen"):
            require(self.limit is not None and self.apart is None, f"{sampling} without a limit")
        if sampling == "arrivals":
            require(self.participation == 1, "arrivals with a coin")
            require(self.cap == self.least == self.cohort, "buffers of several sizes")
            require(
                mechanism not in ("banded-mf", "example-gaussian"), "arrivals do not go with it"
            )
        if mechanism == "banded-mf":
            require(self.apart is not None, "no separation")
            require(sampling in ("poisson", "min-separation"), "banded-mf of another sampling")
            require(self.participation == 1, "banded-mf with a coin")
            require(not self.cyclic or self.rate * (self.apart or 1) <= 1, "too large a cohort")
        if mechanism == "example-gaussian":
            _number(plan, "example_rate", 0.0, 1.0)
            _whole(plan, "steps", 1)

    # -- an event ---------------------------------------------------------------------------------

    @property
    def share(self) -> float:
        """a: deviation of what each client adds, over D2."""
        if self.mechanism == "local-gaussian":
            return self.z
        if self.mechanism != "distributed-gaussian":
            return 0.0
        server = self.body["guarantee"] == "server"
        return self.z / math.sqrt(self.honest if server else self.cap)

    @property
    def total(self) -> float:
        """A: deviation of a release's noise, over D2."""
        if self.mechanism in ("distributed-gaussian", "local-gaussian"):
            return self.share * math.sqrt(self.cap)
        if self.mechanism == "central-gaussian":
            return self.z
        if self.mechanism == "banded-mf":
            gain = math.fsum(each**2 for each in _inverse(self.coefficients, self.rounds))
            return self.z * self.norm * math.sqrt(gain)
        return 0.0

    @property
    def norm(self) -> float:
        return math.sqrt(math.fsum(each**2 for each in self.coefficients))

    def geometry(self, clip: float) -> tuple[int, float, float]:
        """(length, s, D2)"""
        d, encoding = self.dimension, self.body["encoding"]
        if encoding == "narrow":
            require(self.bits <= 20, "a narrow ring has at most 20 bits")
            padded = 1 << (d - 1).bit_length()
            room = 4.0**self.bits - 16 * self.cohort
            require(room > 0, "no room in the ring")
            spread = self.cohort**2 / padded + self.total**2
            scale = math.sqrt(room / (64 * clip**2 * spread))
            norm = scale * clip
            rounded = math.sqrt(norm**2 + padded / 4 + norm + math.sqrt(padded) / 2)
            return padded, scale, min(norm + math.sqrt(padded), rounded)
        norm = 64 * math.sqrt(d)
        if encoding == "float":
            norm = norm * (1 + 1e-4) + math.sqrt(d)
        return d, 64 * math.sqrt(d) / clip, norm

    def event(self, clip: float) -> dict[str, Any]:
        """What a round at this clipping norm reserves."""
        length, scale, norm = self.geometry(clip)
        variance = (self.total * norm) ** 2
        if self.body["encoding"] != "narrow":
            largest = self.cap * norm + 12 * math.sqrt(variance)
            require(largest < 2.0 ** (self.bits - 1), "the sum may wrap around")
        found = {name: self.body[name] for name in COPIED} | {
            "clip": clip,
            "length": length,
            "scale": scale,
            "l2": norm,
            "sampling_rate": self.rate,
            "share_variance": (self.share * norm) ** 2,
            "total_variance": variance,
        }
        if self.mechanism == "distributed-gaussian":
            found["noise"] = self.body["noise"]
        if self.mechanism == "example-gaussian":
            found |= {name: self.body[name] for name in ("example_rate", "steps")}
        if self.mechanism == "banded-mf":
            found |= {
                "horizon": self.rounds,
                "min_separation": self.apart,
                "strategy": self.strategy,
                "bands": len(self.coefficients),
                "white_deviation": self.white(norm),
            }
        return found

    strategy = ""

    def white(self, norm: float) -> float:
        return self.z * norm * self.norm

    def check_event(self, event: dict[str, Any], *, first: bool) -> None:
        clip = event.get("clip")
        usable = isinstance(clip, int | float) and not isinstance(clip, bool)
        require(usable and math.isfinite(clip or 0) and (clip or 0) > 0, "no clipping norm")
        same = close(clip, self.clip, 1e-9) if self.body["adaptive_clip"] else clip == self.clip
        require(same or (self.body["adaptive_clip"] and not first), "another clipping norm")
        wanted = self.event(float(clip or 0))
        require(set(event) == set(wanted), "an event has other keys")
        for name, value in wanted.items():
            found = event[name]
            if name in COPIED or not isinstance(value, float):
                agrees = found == value and isinstance(found, bool) == isinstance(value, bool)
            else:
                agrees = close(found, value, 1e-9)
            require(agrees, f"an event's {name} is {found}, not {value}")

    # -- what views see ---------------------------------------------------------------------------

    def _towards(self, multiplier: float, rate: float) -> Step:
        if self.sampling in FIXED_SIZE:
            return Step(multiplier / 2, rate, replaces=True)
        return Step(multiplier, rate)

    @property
    def _local(self) -> Step | None:
        if self.mechanism != "example-gaussian":
            return None
        return Step(self.z, self.body["example_rate"], count=self.body["steps"])

    @property
    def outsider(self) -> Step:
        if self._local is not None:
            return self._local
        if self.mechanism == "banded-mf":
            rate = min(1.0, self.rate * (self.apart or 1)) if self.cyclic else 1.0
            return self._towards(self.z, rate)
        rate = self.participation * (1.0 if self.sampling in BY_TURNS else self.rate)
        return self._towards(self.total, rate)

    @property
    def shared(self) -> Step:
        if self._local is not None:
            return self._local
        if self.mechanism == "banded-mf":
            return self._towards(self.z, 1.0)
        left = self.total**2 - min(self.curious, self.cap - 1) * self.share**2
        return self._towards(math.sqrt(max(left, 0.0)), self.participation)

    def server(self, survivors: int | None = None) -> Step:
        if self._local is not None:
            return self._local
        if self.mechanism == "local-gaussian":
            return Step(self.z, self.participation)
        if self.mechanism != "distributed-gaussian":
            return Step(0.0)
        known = survivors is not None and self.participation == 1
        honest = max((survivors or 0) - self.colluders, 1) if known else self.honest
        return Step(self.share * math.sqrt(honest), self.participation)

    @property
    def by_turns(self) -> bool:
        return self.sampling in BY_TURNS or self.body["unit"] == "example"

    def turns(self, rounds: int) -> int:
        separated = self.sampling == "min-separation" or self.cyclic
        turns = -(-rounds // (self.apart or 1)) if separated else rounds
        return min(turns, self.limit) if self.by_turns and self.limit is not None else turns

    def own(self, rounds: int) -> int:
        turns = self.turns(rounds)
        return turns if self.limit is None else min(turns, self.limit)


def _whole(plan: dict[str, Any], name: str, least: int, most: int | None = None) -> int:
    value = plan[name]
    require(type(value) is int and value >= least, f"{name} is {value!r}")
    require(most is None or value <= most, f"{name} is {value!r}")
    return int(value)


def _number(plan: dict[str, Any], name: str, above: float, most: float = math.inf) -> float:
    value = plan[name]
    require(isinstance(value, int | float) and not isinstance(value, bool), f"{name} is no number")
    require(above < value <= most and math.isfinite(value), f"{name} is {value!r}")
    return float(value)


def _coefficients(header: dict[str, Any], plan: Plan) -> list[float]:
    stated = header.get("factorization")
    if not isinstance(stated, dict) or set(stated) != {"horizon", "bands", "numerators"}:
        raise Refused("no factorization")
    horizon, bands, numerators = stated["horizon"], stated["bands"], stated["numerators"]
    require(type(horizon) is int and horizon >= plan.rounds, "a factorization of fewer rounds")
    require(isinstance(numerators, list) and len(numerators) == bands, "other bands")
    require(all(type(each) is int for each in numerators), "a coefficient is no number")
    require(1 <= bands <= (plan.apart or 0), "more bands than rounds between participations")
    require(numerators[0] == 1 << 20, "the first coefficient is not 1")
    digest = hashlib.sha256(canonical([horizon, bands, numerators])).hexdigest()
    plan.strategy = digest
    return [each / (1 << 20) for each in numerators]


def _inverse(coefficients: list[float], length: int) -> list[float]:
    found = [1.0]
    for t in range(1, length):
        terms = coefficients[1 : t + 1]
        found.append(-math.fsum(c * found[t - j] for j, c in enumerate(terms, start=1)))
    return found
