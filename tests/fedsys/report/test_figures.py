"""Numbers are written sensibly, and a privacy cost is never written smaller than it is."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsys.report import figures
from fedsys.report.views import meaning, tier


@given(st.floats(min_value=1e6, max_value=1e300))
def test_a_huge_epsilon_is_rounded_up_too(value: float) -> None:
    mantissa, _, power = figures.epsilon(value).partition(" × 10")
    if not power:
        mantissa, power = "1", mantissa.removeprefix("10")
    exponent = int(power.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")))
    shown = Decimal(mantissa) * Decimal(10) ** exponent
    assert Decimal(value) * (1 - Decimal("1e-15")) <= shown <= Decimal(value) * Decimal("1.0101")


@given(st.floats(min_value=1e-4, max_value=9e5))
def test_epsilon_is_rounded_up_and_not_by_much(value: float) -> None:
    shown = float(Decimal(figures.epsilon(value).replace(",", "")))
    assert shown >= value
    assert shown - value <= (1.0 if value >= 100 else 0.1 if value >= 10 else 0.01)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (0.0, "0.0000"),
        (0.05, "0.0500"),
        (8.59, "8.59"),
        (8.591, "8.60"),
        (9.999, "10.00"),
        (51.2301, "51.3"),
        (1234.5, "1,235"),
        (2.5e7, "2.5 × 10⁷"),
    ],
)
def test_epsilon(value: float | None, shown: str) -> None:
    assert figures.epsilon(value) == shown


def test_other_numbers() -> None:
    assert figures.small(1e-5) == "10⁻⁵"
    assert figures.small(2.94e-4) == "2.94 × 10⁻⁴"
    assert figures.small(0.0696) == "0.0696"
    assert figures.small(None) == "–"
    assert figures.plain(0.31270001) == "0.3127"
    assert figures.plain(-12345.6) == "-12,346"
    assert figures.plain(1e300) == "10³⁰⁰"
    assert figures.percent(0.92034) == "92.0 %"
    assert figures.percent(math.inf) == "–"
    assert figures.metric("accuracy", 0.5) == "50.0 %"
    assert figures.metric("accuracy", 50.0) == "50"
    assert figures.metric("loss", 0.5) == "0.5"
    assert figures.count(1437) == "1,437"
    assert figures.count(None) == "–"
    assert figures.count(10**400) == "10³⁰⁰"
    assert figures.duration(41.27) == "41.3 s"
    assert figures.duration(100) == "1 min 40 s"
    assert figures.duration(7215) == "2 h 0 min"
    assert figures.duration(-1) == "–"
    assert figures.duration(math.nan) == "–"


@given(st.floats(min_value=0.0, max_value=800.0), st.sampled_from([1e-12, 1e-5, 1e-3, 0.05, 0.3]))
def test_what_an_epsilon_means_is_never_understated(value: float, delta: float) -> None:
    """Randomised response that also tells the truth with probability delta reaches the bound."""
    said = meaning(value, delta)
    exact = delta + (1 - delta) / (1 + math.exp(-value))
    if "more than" in said:
        assert exact > 0.99989
        return
    success = float(said.split("at most ")[1].split(" %")[0]) / 100
    assert exact - 1e-12 <= success <= exact + 0.011


def test_nothing_is_said_without_a_delta() -> None:
    assert meaning(1.0, None) == ""
    assert meaning(1.0, 0.5) != meaning(1.0, 1e-5), "delta is a part of what can be learned"


def test_tiers() -> None:
    assert [
        tier(value)[0] for value in (0.5, 1.0, 1.01, 10.0, 10.01, math.inf, None, math.nan)
    ] == [
        "strong",
        "strong",
        "reasonable",
        "reasonable",
        "weak",
        "none",
        "not stated",
        "not stated",
    ]


def test_no_number_of_a_folder_is_too_large_to_be_written() -> None:
    for value in (10**400, -(10**400)):
        assert figures.count(value).endswith("10³⁰⁰")
    for number in (1.7e308, -1.7e308):
        assert figures.epsilon(number)
        assert figures.plain(number)
