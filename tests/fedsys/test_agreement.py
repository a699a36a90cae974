"""Numbers of untrusted files against derived ones: no number of a file stops the comparison."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsys.agreement import agrees, is_finite
from fedsys.audit.population import _close
from fedsys.audit.stopping import _same
from fedsys.audit.tuning import Before, _same_total
from fedsys.privacy.accounting.adding import Part
from fedsys.queries.statement import same_statement
from fedsys.records import Total

HUGE = 10**400
TOTAL = Total(runs=1, before=1.0, epsilon=2.0, delta=1e-5)

ANYTHING = st.one_of(
    st.integers(),
    st.integers(min_value=10**308, max_value=10**400),
    st.floats(),
    st.booleans(),
    st.text(max_size=3),
    st.none(),
    st.lists(st.integers(), max_size=2),
)


@given(stated=ANYTHING, derived=st.floats(allow_nan=False))
def test_only_a_number_agrees_and_nothing_raises(stated: object, derived: float) -> None:
    found = agrees(stated, derived, relative=1e-6)
    assert not found or type(stated) in (int, float)
    assert agrees(derived, derived, relative=0.0)
    assert not found or math.isinf(derived) == (stated == derived and not is_finite(stated))


def test_rounding_is_allowed_and_no_more() -> None:
    assert agrees(1 + 1e-7, 1.0, relative=1e-6)
    assert not agrees(1 + 1e-5, 1.0, relative=1e-6)
    assert agrees(1e-10, 0.0, relative=1e-6, absolute=1e-9)
    assert not agrees(math.nan, math.nan, relative=1.0)
    assert not agrees(HUGE, math.inf, relative=1.0)


@pytest.mark.parametrize("number", [HUGE, -HUGE])
def test_wherever_a_file_is_compared(number: int) -> None:
    assert not _close(number, 1.0)
    assert not _same(number, 1.0)
    assert not same_statement(number, 1.0)
    assert not _same_total({**TOTAL.to_json(), "epsilon": number}, TOTAL)
    with pytest.raises(ValueError, match="not a number"):
        Before.of({"runs": 1, "epsilon": number, "delta": 1e-5})
    steps = [[number, 0.5, 0.0, 1.0]]
    body = {"delta": 1e-5, "overhead": 0.0, "aside": 0.0, "log_distance": -1.0, "steps": steps}
    assert Part.from_json(body) is None
