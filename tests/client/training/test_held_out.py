"""Rows that a client keeps for evaluations: by place alone, the same on every host."""

from __future__ import annotations

import numpy as np
import pytest

from client.training.held_out import is_held_out, kept_for


def test_which_rows_are_held_out_is_fixed() -> None:
    assert np.flatnonzero(is_held_out(np.arange(16), 0.5)).tolist() == [3, 4, 5, 7, 10, 11, 14]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.9])
def test_as_many_as_asked_for_and_the_same_whatever_else_is_looked_at(fraction: float) -> None:
    found = is_held_out(np.arange(10_000), fraction)
    assert found.mean() == pytest.approx(fraction, abs=0.02)
    some = np.array([7, 4, 9_999, 12])
    assert (is_held_out(some, fraction) == found[some]).all()


def test_training_and_evaluation_share_no_row_and_a_query_sees_all() -> None:
    rows = np.arange(3, 200, 2)
    trained, evaluated = kept_for("train", rows, 0.3), kept_for("evaluate", rows, 0.3)
    assert sorted([*trained, *evaluated]) == rows.tolist()
    assert len(trained) > len(evaluated) > 0
    assert kept_for("query", rows, 0.3) is rows
    assert kept_for("train", rows, 0.0) is rows
