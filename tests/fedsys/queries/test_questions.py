"""Questions that somebody else wrote: what is refused, in one line that says what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from fedsys.errors import ConfigError
from fedsys.queries import parse, to_json

MEAN = {"ask": "mean", "name": "age", "column": "age", "low": 0, "high": 100}
AXIS = {"column": "age", "edges": [0, 50, 100]}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"ask": "median", "name": "a"}, "allowed are count, sum"),
        ({**MEAN, "low": 100}, "low must be below high"),
        ({**MEAN, "low": float("nan")}, "low"),
        ({**MEAN, "high": 1e300}, "high"),
        ({**MEAN, "rows": 0}, "rows"),
        ({**MEAN, "rows": 2.5}, "rows"),
        ({**MEAN, "weight": 0}, "weight"),
        ({**MEAN, "most": 3}, "unknown key"),
        ({**MEAN, "name": "a\x1b[31m"}, "name"),
        ({"ask": "histogram", "name": "h", **AXIS, "values": ["a"]}, "either edges or values"),
        ({"ask": "histogram", "name": "h", "column": "age", "edges": [1, 1]}, "must increase"),
        ({"ask": "histogram", "name": "h", "column": "age", "edges": [0] * 9999}, "edges"),
        ({**MEAN, "levels": 10}, "unknown key"),
        (
            {**MEAN, "ask": "quantiles", "branching": 16, "levels": 3},
            "at most 1024 are allowed",
        ),
        ({"ask": "top", "name": "t", "column": "w", "values": ["a", "a"]}, "must differ"),
        (
            {
                "ask": "crosstab",
                "name": "c",
                "axes": [
                    {"column": "a", "values": list(range(100))},
                    {"column": "b", "values": list(range(100))},
                ],
            },
            "10000 cells",
        ),
        ("count", "not a table"),
    ],
)
def test_what_cannot_be_asked_is_one_line_that_names_it(table: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([table])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_there_are_bounds_on_all_questions_together() -> None:
    with pytest.raises(ConfigError, match="two have the name"):
        parse([MEAN, MEAN])
    with pytest.raises(ConfigError, match="allowed are 1 to 64"):
        parse([])
    words = [f"{'a' * 150}{number}" for number in range(4000)]
    with pytest.raises(ConfigError, match="characters"):
        parse([{"ask": "top", "name": "t", "column": "w", "values": words}])


def test_questions_survive_being_written_and_read() -> None:
    asked = parse(
        [
            MEAN,
            {"ask": "histogram", "name": "h", **AXIS, "l2": 2, "rows": 3},
            {"ask": "top", "name": "t", "column": "w", "values": ["a", 1]},
            {"ask": "crosstab", "name": "c", "axes": [AXIS, {"column": "w", "values": ["a"]}]},
            {"ask": "correlation", "name": "r", "columns": [
                {"column": "a", "low": 0, "high": 1}, {"column": "b", "low": 0, "high": 1}]},
        ]
    )  # fmt: skip
    assert parse(to_json(asked)) == asked


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"ask": "sum", "name": "s", "column": "a", "low": 0, "high": 5e-324}, "at least 1e-100"),
        ({"ask": "devices", "name": "d", "low": 0, "high": 1e-320}, "at least 1e-100"),
        ({"ask": "count", "name": "c", "weight": 5e-324}, "weight = 5e-324"),
        ({"ask": "labels", "name": "l", "classes": 3, "l2": 1e-300}, "l2 = 1e-300"),
        ({"ask": "top", "name": "t", "column": "a", "values": [10**400]}, r"values\.0"),
        ({"ask": "top", "name": "t", "column": "a", "values": ["x" * 201]}, r"values\.0 = 'xxx"),
        ({"ask": "labels", "name": "l", "classes": 10**9}, "classes = 1000000000"),
        ({"ask": "mean", "name": "m", "column": "a", "low": float("nan"), "high": 1}, "low = nan"),
        ({"ask": "mean", "name": "m", "column": "a\x1b[31m", "low": 0, "high": 1}, "printable"),
    ],
)
def test_what_an_untrusted_coordinator_may_ask_is_refused_in_one_line(
    table: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        parse([table])
    assert "\n" not in str(refused.value)
    assert "function" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_tables_without_an_end_are_refused() -> None:
    deep: dict[str, Any] = {"ask": "count", "name": "n"}
    inner = deep
    for _ in range(50_000):
        inner["more"] = {}
        inner = inner["more"]
    with pytest.raises(ConfigError, match="without an end"):
        parse([deep])
    while deep:  # so that freeing it recurses nowhere
        deep = deep.pop("more", {})
