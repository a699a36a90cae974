"""Golden vectors: what was once encoded, drawn and committed comes out the same for ever."""

from __future__ import annotations

import json

import pytest

from tests.vectors.privacy.generate import PATH, build

STORED = json.loads(PATH.read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", sorted(STORED))
def test_vectors_come_out_the_same(part: str) -> None:
    assert json.loads(json.dumps(build()[part])) == STORED[part]


def test_every_part_is_stored() -> None:
    assert sorted(build()) == sorted(STORED)
