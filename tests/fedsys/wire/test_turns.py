"""Rounds of training are as many as were asked for, and the last one's model is evaluated."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedsys.wire.turns import Turns


@given(training=st.integers(1, 200), every=st.integers(0, 250))
def test_every_model_of_the_kth_round_is_evaluated_once(training: int, every: int) -> None:
    turns = Turns.of(training=training, every=every)
    numbers = range(1, turns.rounds + 1)
    asks = [number for number in numbers if turns.evaluates(number)]
    assert turns.trained(turns.rounds) == training
    assert [turns.trained(number) for number in numbers] == [
        sum(not turns.evaluates(each) for each in range(1, number + 1)) for number in numbers
    ]
    wanted = sorted({*range(every, training + 1, every), training}) if every else []
    assert [turns.trained(number) for number in asks] == wanted
