"""Training beside the conversation."""

from __future__ import annotations

import threading

from client.background import Background


def test_one_thing_runs_at_a_time_and_the_newest_of_what_waits() -> None:
    background, gate, ran = Background(), threading.Event(), list[str]()
    over = threading.Event()

    def first() -> None:
        assert gate.wait(10)
        ran.append("first")

    def third() -> None:
        ran.append("third")
        over.set()

    background.run(first)
    background.run(lambda: ran.append("second"))
    background.run(third)
    assert ran == []
    gate.set()
    assert over.wait(10)
    assert ran == ["first", "third"]


def test_its_thread_ends_with_its_work_and_begins_again() -> None:
    background = Background()
    for _ in range(3):
        over = threading.Event()
        background.run(over.set)
        assert over.wait(10)
        for thread in threading.enumerate():
            if thread.name == "training":
                thread.join(10)
    assert "training" not in [thread.name for thread in threading.enumerate()]
