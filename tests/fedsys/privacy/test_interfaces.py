"""Functions that can be read, rings that fit, and hosts that ask mechanisms rather than types."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsys.privacy
from fedsys.errors import MechanismError
from fedsys.privacy import from_ring, make_plan, to_ring
from fedsys.privacy.encoding.rings import RINGS
from fedsys.privacy.events import build_event, least_ring

ROOT = Path(fedsys.privacy.__path__[0]).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fedsys.privacy.__path__, prefix="fedsys.privacy.")
    if module.name != "fedsys.privacy.tables.build"
)


@pytest.mark.parametrize("name", ["fedsys.privacy", *MODULES])
def test_no_function_has_more_than_ten_parameters(name: str) -> None:
    """Constructors that dataclasses generate included."""
    module = importlib.import_module(name)
    members = [member for _, member in inspect.getmembers(module)]
    for kind in [member for member in members if inspect.isclass(member)]:
        members += [member for _, member in inspect.getmembers(kind, inspect.isfunction)]
    for member in members:
        if inspect.isfunction(member) and member.__module__.startswith("fedsys.privacy"):
            own = [p for p in inspect.signature(member).parameters if p != "self"]
            assert len(own) <= 10, f"{member.__module__}.{member.__qualname__}: {len(own)}"


@pytest.mark.parametrize("folder", ["fedsys/privacy", "server", "client", "simulations"])
def test_nobody_asks_what_kind_an_event_or_a_mechanism_is(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                text = ast.unparse(node.args[1])
                assert not any(
                    part.strip("()[] ").endswith(("Mechanism", "Gaussian", "Noise"))
                    or part.strip("()[] ") in _EVENT_TYPES
                    for part in text.replace("|", ",").split(",")
                ), f"{path}:{node.lineno}: {text}"


_EVENT_TYPES = {kind.__name__ for kind in set(fedsys.privacy.events.EVENTS.values())} | {"SumEvent"}

JOB: dict[str, Any] = {
    "mechanism": "distributed-gaussian",
    "population": 1000,
    "expected_cohort": 50,
    "rounds": 10,
    "clip": 1.0,
    "delta": 1e-5,
    "noise_multiplier": 1.0,
}


@pytest.mark.parametrize(
    ("dimension", "bits"), [(4, 16), (650, 20), (60_000, 24), (10_000_000, 32)]
)
def test_the_least_ring_holds_the_largest_sum(dimension: int, bits: int) -> None:
    plan = make_plan(**JOB, dimension=dimension)
    event = plan.event()
    largest = event.cap * event.l2 + 12 * math.sqrt(event.total_variance)
    assert plan.modulus_bits == bits
    assert largest < 2 ** (bits - 1)
    narrower = [other for other in RINGS if other < bits]
    assert not narrower or largest >= 2 ** (narrower[-1] - 1)
    assert make_plan(**JOB, dimension=dimension, modulus_bits=0) == plan
    assert make_plan(**JOB, dimension=dimension, modulus_bits=64).modulus_bits == 64


def test_no_ring_holds_everything() -> None:
    assert least_ring(cap=1000, l2=1e8, deviation=1e9) == 40
    with pytest.raises(MechanismError, match="more than any ring holds"):
        least_ring(cap=10, l2=1e30, deviation=0.0)
    narrow = make_plan(**JOB, dimension=100, encoding="narrow")
    assert narrow.modulus_bits == 16
    with pytest.raises(MechanismError, match=r"raise aggregation\.modulus_bits, leave it at 0"):
        make_plan(**JOB, dimension=60_000, modulus_bits=20)


@pytest.mark.parametrize("bits", RINGS)
def test_rings_of_all_widths_lift_what_they_reduced(bits: int) -> None:
    edge = 1 << (bits - 1)
    values = np.array([-edge, -edge + 1, -1, 0, 1, edge - 1], dtype=np.int64)
    reduced = to_ring(values, bits=bits)
    assert bits == 64 or int(reduced.max()) < 1 << bits
    np.testing.assert_array_equal(from_ring(reduced, bits=bits), values)


def test_missing_choices_are_one_clear_line() -> None:
    with pytest.raises(MechanismError, match="mechanism='none' needs cap"):
        build_event("none", dimension=5, clip=1.0, expected_cohort=1.0, population=5)
