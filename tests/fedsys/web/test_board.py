"""Sections: what changed is sent, a slow reader costs nothing, and nothing is read unwatched."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsys.web.board import Board
from tests.fedsys.web.pages import served

VALUES = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3))


@given(st.lists(VALUES, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_looking_now_and_then_ends_with_the_same_sections(
    shown: list[dict[str, int]], looks: list[bool]
) -> None:
    board, version = Board(dict), 0
    seen: dict[str, int] = {}

    def look() -> None:
        nonlocal version
        version, changed = board.since(version)
        for name, text in changed.items():
            if text == "null":
                seen.pop(name, None)
            else:
                seen[name] = int(text)

    for sections, looking in zip(shown, looks, strict=False):
        board.show(sections)
        if looking:
            look()
    look()
    assert seen == (shown[-1] if shown else {})
    assert {name: int(text) for name, text in board.since(0)[1].items()} == seen


def test_what_is_equal_is_not_sent_again_and_infinite_numbers_are_text() -> None:
    board = Board(dict)
    board.show({"a": math.inf, "b": 1})
    version, first = board.since(0)
    assert first == {"a": '"inf"', "b": "1"}
    board.show({"a": math.inf, "b": 1})
    assert board.since(version) == (version, {})
    board.show({"problem": "x"}, partly=True)
    assert board.since(version)[1] == {"problem": '"x"'}


def test_nothing_is_read_while_nobody_watches() -> None:
    async def run() -> list[int]:
        reads = [0]

        def read() -> Mapping[str, Any]:
            reads[0] += 1
            return {"n": reads[0]}

        board = Board(read, seconds=0.001)
        task = asyncio.create_task(board.follow())
        for _ in range(20):
            await asyncio.sleep(0)
        before = reads[0]
        with board:
            assert await board.changed(0, 60.0)
        assert not board.watchers
        version, _ = board.since(0)
        assert not await board.changed(version, 0.0)
        board.close()
        assert await board.changed(version, 60.0)
        task.cancel()
        return [before, min(reads[0], 1)]

    assert asyncio.run(run()) == [0, 1]


def test_a_page_that_cannot_be_read_says_so_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    state = {"fails": True}

    def read() -> Mapping[str, Any]:
        if state["fails"]:
            raise RuntimeError("secret of the machine")
        return {"page": 1}

    with caplog.at_level(logging.ERROR), served(read) as page, page.stream() as events:
        assert next(events) == ("problem", "RuntimeError; see the log")
        state["fails"] = False
        assert dict([next(events), next(events)]) == {"page": 1, "problem": None}
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
