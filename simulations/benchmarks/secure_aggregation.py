"""Secure aggregation, timed: ours, Flower's SecAgg+ as installed, and what the machine allows.

    python -m simulations.benchmarks.secure_aggregation [--quick] [--json FILE]

Both sides run the same n, k, t, d and dropouts on one core of the same process, alternating
(A B A B ...), and medians of CPU time are compared, so that a busy machine changes little.
Flower's stage functions are called directly, without its messages, processes or state files: what
is left is the cryptography. Where flwr is not installed only ours is timed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_agg import (
    Aggregator,
    Floor,
    Identity,
    Participant,
    Roster,
    RoundContext,
    SecAggParams,
    Shared,
    keys,
    shamir,
)
from secure_agg.prg import add_masks
from simulations.benchmarks import flower_secagg

__all__ = ["Row", "main", "run"]

FLOOR = Floor(secrecy_bits=0)  # raw parameters, equal on both sides


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: medians in CPU seconds, and how many times faster ours is."""

    name: str
    setting: str
    ours: float
    flower: float | None
    aim: float | None = None

    @property
    def ratio(self) -> float | None:
        """Flower's time over ours."""
        return None if self.flower is None else self.flower / self.ours


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What the machine allows, and how near we come."""

    name: str
    value: float
    unit: str


def timed(action: Callable[[], object]) -> float:
    """Return the CPU seconds that an action takes."""
    start = time.process_time()
    action()
    return time.process_time() - start


def alternate(
    ours: Callable[[], float], theirs: Callable[[], float] | None, repeats: int
) -> tuple[float, float | None]:
    """Run A B A B ...; return the two medians."""
    a, b = [], []
    for _ in range(repeats):
        a.append(ours())
        if theirs is not None:
            b.append(theirs())
    return statistics.median(a), statistics.median(b) if b else None


def raw(n: int, degree: int, threshold: int, dropouts: int) -> SecAggParams:
    """Parameters that both sides can be given."""
    return SecAggParams(
        n=n,
        degree=degree,
        threshold=threshold,
        quorum=n // 2 + 1,
        min_alive=n - dropouts,
        colluders=0,
        dropouts=dropouts,
        modulus_bits=32,
    )


class Round:
    """One of our rounds, all parties here.

    Args:
        params: The round's.
        length: d.
        fresh: Ids of participants that share no work with the others: their times are a device's.
    """

    def __init__(self, params: SecAggParams, length: int, fresh: Sequence[int] = ()) -> None:
        identities = {i: Identity.generate() for i in range(params.n)}
        roster = Roster({i: identity.public_bytes for i, identity in identities.items()})
        context, shared = RoundContext(job=b"benchmark", round=0), Shared()
        self.members = {
            i: Participant(
                identity=identity,
                id=i,
                roster=roster,
                params=params,
                context=context,
                length=length,
                floor=FLOOR,
                shared=None if i in fresh else shared,
            )
            for i, identity in identities.items()
        }
        self.server = Aggregator(
            roster=roster, params=params, context=context, length=length, cohort=identities
        )
        vector = np.arange(length, dtype=np.uint32)
        for member in self.members.values():
            member.provide(vector)
        self.seconds = {"server": 0.0, "checks": 0.0, "fresh": 0.0, "all": 0.0, "upload": 0.0}
        self.fresh = frozenset(fresh)

    def play(self, dropped: frozenset[int] = frozenset()) -> None:
        """Run the round; ``dropped`` vanish before their upload. Fills `seconds`."""
        began = time.process_time()
        messages = self.server.begin()
        while messages:
            uploading = self.server.stage.name == "MASKED_INPUT"
            replies = {}
            for i, message in messages.items():
                if uploading and i in dropped:
                    continue
                start = time.process_time()
                replies[i] = self.members[i].handle(message)
                took = time.process_time() - start
                if i in self.fresh:
                    self.seconds["fresh"] += took
                    if uploading:
                        self.seconds["upload"] = took
            with verifying_timed(self.seconds):
                start = time.process_time()
                for i, reply in replies.items():
                    self.server.receive(i, reply)
                messages = self.server.close_stage()
                self.seconds["server"] += time.process_time() - start
        self.seconds["all"] = time.process_time() - began
        expected = np.arange(len(self.server.result.total), dtype=np.uint32)
        expected *= np.uint32(len(self.server.result.included))
        if not np.array_equal(self.server.result.total, expected):
            raise RuntimeError("the sum is wrong: nothing that follows would mean anything")


@contextmanager
def verifying_timed(seconds: dict[str, float]) -> Iterator[None]:
    """Add the time of signature checks to ``seconds["checks"]``: Flower has none to compare."""
    verify = keys.verifies

    def timed_verify(*arguments: Any) -> bool:
        start = time.process_time()
        valid = verify(*arguments)
        seconds["checks"] += time.process_time() - start
        return valid

    with mock.patch.object(keys, "verifies", timed_verify):
        yield


def aes_rate(size: int = 1 << 17, blocks: int = 512) -> float:
    """Bytes a second of AES-256-CTR alone, through ``cryptography``, in blocks like ours."""
    zeros, buffer = bytes(size), bytearray(size)
    context = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()

    def expand() -> None:
        for _ in range(blocks):
            context.update_into(zeros, buffer)

    return size * blocks / timed(expand)


def memory_rate(size: int = 1 << 26) -> float:
    """Bytes a second of a large copy, read and written."""
    source = np.ones(size // 8)
    target = np.empty_like(source)
    return 2 * size / timed(lambda: np.copyto(target, source))


def expansion_bounds(length: int, masks: int, repeats: int) -> list[Bound]:
    """Mask expansion and addition against AES alone, alternating."""
    seeds = [os.urandom(32) for _ in range(masks)]
    out = []
    aes_median = 0.0
    for dtype in (np.uint32, np.uint16):
        total: npt.NDArray[np.unsignedinteger[Any]] = np.ones(length, dtype)
        add_masks(total, seeds)  # touch the memory
        ours, aes = [], []
        for _ in range(3 * repeats):
            ours.append(total.nbytes * masks / timed(lambda t=total: add_masks(t, seeds)))  # type: ignore[misc]
            aes.append(aes_rate())
        aes_median = statistics.median(aes)
        rate = statistics.median(ours)
        bits = total.itemsize * 8
        out += [
            Bound(
                name=f"mask expansion + add mod 2^{bits}, d={length}, k={masks}",
                value=1e9 * total.itemsize / rate,
                unit="ns per coordinate and mask",
            ),
            Bound(name=f"... over AES-256-CTR alone (mod 2^{bits})", value=aes_median / rate,
                  unit="times"),
        ]  # fmt: skip
    memory = statistics.median([memory_rate() for _ in range(repeats)])
    return [
        Bound(name="AES-256-CTR alone", value=aes_median / 1e9, unit="GB/s"),
        Bound(name="memory, copy", value=memory / 1e9, unit="GB/s"),
        *out,
    ]


def shamir_rows(count: int, threshold: int, repeats: int, with_flower: bool) -> list[Row]:
    """Share and reconstruct a member's two secrets."""
    setting = f"n={count}, t={threshold}, both secrets"
    secrets = os.urandom(32), os.urandom(32)
    shares = shamir.split(b"".join(secrets), count, threshold)
    kept = dict(list(enumerate(shares))[:threshold])

    def create() -> float:
        return timed(lambda: shamir.split(b"".join(secrets), count, threshold))

    def combine() -> float:
        return timed(lambda: shamir.combine(kept, threshold))

    theirs = flower_secagg.Sharing(count, threshold) if with_flower else None
    rows = []
    for name, ours, other in (
        ("Shamir create", create, theirs.create if theirs else None),
        ("Shamir combine", combine, theirs.combine if theirs else None),
    ):
        for _ in range(3):
            ours()  # fill the caches of powers and weights, as in a running server
        a, b = alternate(ours, other, repeats)
        rows.append(Row(name=name, setting=setting, ours=a, flower=b, aim=500))
    return rows


def upload_row(length: int, degree: int, repeats: int, with_flower: bool, aim: float) -> Row:
    """A client's step from the delivery of shares to its masked input."""
    params = raw(degree + 1, degree, 2, 0)

    def ours() -> float:
        played = Round(params, length, fresh=[degree // 2])
        played.play()
        return played.seconds["upload"]

    theirs = flower_secagg.Upload(degree, length).run if with_flower else None
    a, b = alternate(ours, theirs, repeats)
    return Row(
        name="client, upload step", setting=f"d={length}, k={degree}", ours=a, flower=b, aim=aim
    )


def round_rows(
    n: int, length: int, degree: int, dropped: int, repeats: int, with_flower: bool
) -> list[Row]:
    """A whole round: the server alone, one client alone, all parties in one process."""
    params = raw(n, degree, degree // 2 + 1, dropped)
    gone = frozenset(range(dropped))
    fresh = [n - 1]
    ours: dict[str, list[float]] = {"server": [], "bare": [], "client": [], "all": []}
    theirs: dict[str, list[float]] = {"server": [], "bare": [], "client": [], "all": []}
    for _ in range(repeats):
        played = Round(params, length, fresh)
        played.play(gone)
        ours["server"].append(played.seconds["server"])
        ours["bare"].append(played.seconds["server"] - played.seconds["checks"])
        ours["client"].append(played.seconds["fresh"])
        ours["all"].append(played.seconds["all"] - played.seconds["fresh"])
        if with_flower:
            other = flower_secagg.whole_round(n, length, degree, gone)
            other["bare"] = other["server"]
            for part, values in theirs.items():
                values.append(other[part])
    setting = f"n={n}, d={length}, k={degree}, {dropped} dropped"
    names = {
        "server": ("server, whole round", 100.0),
        "bare": ("... less its signatures", 100.0),
        "client": ("one client, whole round", None),
        "all": ("all parties, one process", None),
    }
    return [
        Row(
            name=names[part][0],
            setting=setting,
            ours=statistics.median(values),
            flower=statistics.median(theirs[part]) if theirs[part] else None,
            aim=names[part][1],
        )
        for part, values in ours.items()
    ]


def run(*, quick: bool, with_flower: bool, repeats: int) -> tuple[list[Bound], list[Row]]:
    """Measure everything.

    Args:
        quick: Small sizes: a minute rather than ten, and no figures to quote.
        with_flower: Also time flwr.
        repeats: Alternations, whose medians are taken.
    """
    if quick:
        bounds = expansion_bounds(100_000, 10, repeats)
        rows = shamir_rows(20, 11, repeats, with_flower)
        rows.append(upload_row(20_000, 10, repeats, with_flower, 12))
        rows += round_rows(20, 20_000, 10, 2, 1, with_flower)
        return bounds, rows
    bounds = expansion_bounds(1_000_000, 50, repeats)
    rows = shamir_rows(100, 51, repeats, with_flower)
    rows.append(upload_row(1_000_000, 50, repeats, with_flower, 8))
    rows.append(upload_row(100_000, 50, repeats, with_flower, 12))
    rows += round_rows(100, 100_000, 20, 10, repeats, with_flower)
    return bounds, rows


def table(bounds: Sequence[Bound], rows: Sequence[Row]) -> str:
    """Return both lists as text."""
    lines = [f"{b.name:<58} {b.value:>10.3f} {b.unit}" for b in bounds]
    lines += ["", f"{'':<26} {'':<40} {'ours':>11} {'Flower':>11} {'ratio':>8} {'aim':>6}"]
    for r in rows:
        flower = "-" if r.flower is None else f"{1e3 * r.flower:.2f} ms"
        ratio = "-" if r.ratio is None else f"{r.ratio:.1f}x"
        aim = "" if r.aim is None else f"{r.aim:.0f}x"
        lines.append(
            f"{r.name:<26} {r.setting:<40} {1e3 * r.ours:>8.2f} ms {flower:>11} {ratio:>8} {aim:>6}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=3, help="alternations (default 3)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}: at least 1 is needed")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    version = flower_secagg.version()
    logging.disable(logging.WARNING)  # Flower tells how it goes along
    if version is None:
        print("flwr is not installed: only ours is timed", file=sys.stderr)
    bounds, rows = run(
        quick=options.quick, with_flower=version is not None, repeats=options.repeats
    )
    print(table(bounds, rows))
    if options.json is not None:
        record = {
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "flwr": version,
            "cores": 1,
            "repeats": options.repeats,
            "bounds": [asdict(b) for b in bounds],
            "rows": [{**asdict(r), "ratio": r.ratio} for r in rows],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
