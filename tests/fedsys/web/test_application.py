"""Routes, streams that come to an end, and questions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from fedsys.errors import RunFolderError
from fedsys.web.application import MOST_STREAMS
from tests.fedsys.web.pages import HOST, served


def test_the_page_its_files_and_its_health_hold_nothing_and_need_no_token() -> None:
    wrong: list[str] = []
    with served(dict, healthy=lambda: "".join(wrong)) as page:
        status, body, headers = page.get("/", HOST)
        assert status == 200
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert "/static/runs.js" in body
        assert page.get("/static/live.js", HOST)[2]["content-type"].startswith("text/javascript")
        assert page.get("/static/report.css", HOST)[1].startswith(":root")
        for name in ("runs.html", "..%2fguard.py", "%2e%2e/guard.py", "nothing.js"):
            assert page.get(f"/static/{name}", HOST)[0] in (401, 404)
        assert page.get("/health", HOST)[:2] == (200, '{"status":"serving"}')
        wrong.append("the disk is full")
        assert page.get("/health", HOST)[:2] == (503, '{"status":"the disk is full"}')


def test_a_stream_begins_with_everything_and_goes_on_with_what_changed() -> None:
    sections: dict[str, Any] = {"page": {"kind": "x"}, "run/<b>\n\ndata: 1": {"n": 1}}
    with served(lambda: dict(sections)) as page, page.stream() as events:
        found = dict([next(events), next(events)])
        assert found == sections, "whatever a section's name is"
        sections["page"] = {"kind": "y"}
        assert next(events) == ("page", {"kind": "y"})
        del sections["run/<b>\n\ndata: 1"]
        assert next(events) == ("run/<b>\n\ndata: 1", None)


def test_so_many_streams_and_no_more() -> None:
    with served(lambda: {"page": 1}) as page, contextlib.ExitStack() as streams:
        for _ in range(MOST_STREAMS):
            next(streams.enter_context(page.stream()))
        status, body, _ = page.get("/events")
        assert (status, body) == (503, f"{MOST_STREAMS} pages are open already; close one\n")
        assert page.get("/health", HOST)[0] == 200


def test_open_streams_end_when_the_page_stops() -> None:
    with contextlib.ExitStack() as later:
        with served(lambda: {"page": 1}) as page:
            events = later.enter_context(page.stream())
            next(events)
        assert list(events) == []


def test_questions_are_answered_and_refused_in_a_line() -> None:
    def ask(query: Mapping[str, list[str]]) -> Any:
        if "bad" in query:
            raise RunFolderError("bad: not one of these")
        return {"query": query, "infinite": float("inf")}

    with served(dict, questions={"one": ask}) as page:
        assert json.loads(page.get("/api/one?a=1&a=2&b=%20")[1]) == {
            "query": {"a": ["1", "2"], "b": [" "]},
            "infinite": "inf",
        }
        assert page.get("/api/one?bad=1")[:2] == (400, "bad: not one of these\n")
        assert page.get("/api/other")[0] == 404
