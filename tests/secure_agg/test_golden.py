"""Golden transcripts, good and bad, replayed from the files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from secure_agg import errors
from tests.secure_agg.golden import BAD, FOLDER, ROUNDS, VICTIM, world_of


def read(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return data


@pytest.mark.parametrize("name", ROUNDS)
def test_good_transcript(name: str) -> None:
    """The participants answer the recorded server with the recorded bytes, and it them."""
    golden = read(name)
    world, _ = world_of(name)
    assert world.params.encode().hex() == golden["params"]
    assert {str(i): k.hex() for i, k in world.roster.items()} == golden["roster"]
    messages = world.server.begin()
    for step in golden["steps"]:
        assert {str(i): m.hex() for i, m in messages.items()} == step["to"]
        for i, reply in step["from"].items():
            assert world.members[int(i)].handle(bytes.fromhex(step["to"][i])).hex() == reply
            world.server.receive(int(i), bytes.fromhex(reply))
        messages = world.server.close_stage()
    assert world.server.result.total.tolist() == golden["total"]
    assert list(world.server.result.included) == golden["included"]
    columns = zip(*(golden["inputs"][str(i)] for i in golden["included"]), strict=True)
    assert [sum(c) % 2**world.params.modulus_bits for c in columns] == golden["total"]


@pytest.mark.parametrize("name", BAD)
def test_bad_transcript(name: str) -> None:
    """The recorded bad message is refused for the recorded cause, and the good one then taken."""
    golden, bad = read("complete"), read("bad")[name]
    world, _ = world_of("complete")
    member = world.members[VICTIM]
    for step in golden["steps"]:
        message = bytes.fromhex(step["to"][str(VICTIM)])
        if step["kind"] == bad["instead_of"]:
            with pytest.raises(getattr(errors, bad["error"])) as error:
                member.handle(bytes.fromhex(bad["message"]))
            assert type(error.value).__name__ == bad["error"]
            assert member.handle(message).hex() == step["from"][str(VICTIM)]
            return
        member.handle(message)
    pytest.fail("the transcript lacks the stage of the bad message")
