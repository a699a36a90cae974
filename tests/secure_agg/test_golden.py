"""The golden transcripts: every byte as written down, every bad message refused by its name."""

from __future__ import annotations

import json

import pytest

from secure_agg import SecAggParams, errors
from secure_agg.messages import Kind
from tests.secure_agg.golden import BAD, FOLDER, ROUNDS, VICTIM, play, world_of
from tests.secure_agg.world import exact_sum


@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_repeats_to_the_byte(name: str) -> None:
    good = json.loads((FOLDER / f"{name}.json").read_text())
    assert play(name) == good
    params = SecAggParams.decode(bytes.fromhex(good["params"]))
    inputs = {int(i): v for i, v in good["inputs"].items()}
    world, _ = world_of(name)
    assert {i: v.tolist() for i, v in world.inputs.items()} == inputs
    assert good["total"] == exact_sum(world.inputs, good["included"], params.modulus_bits)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_is_refused_by_name(name: str) -> None:
    case = json.loads((FOLDER / "bad.json").read_text())[name]
    world, absent = world_of("everybody")
    kind = Kind[case["instead_of"]]
    good = world.until(kind, absent)[VICTIM]
    with pytest.raises(getattr(errors, case["error"])):
        world.members[VICTIM].handle(bytes.fromhex(case["message"]))
    assert world.members[VICTIM].handle(good)  # and the good one is still answered
