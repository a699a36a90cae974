"""Who may read a page: this machine's names, a token in a header, GET; nobody else's pages."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from fedsys.web import guard
from tests.fedsys.web.pages import HOST, KNOWN, TOKEN, Page, served

STATIC = Path(guard.__file__).parent / "static"
FILES = [f"/static/{path.name}" for path in sorted(STATIC.iterdir()) if path.suffix != ".html"]


@pytest.fixture(scope="module")
def page() -> object:
    with served(lambda: {"page": {"kind": "runs"}}, questions={"sum": lambda _: 7}) as found:
        yield found


def test_the_examples_run() -> None:
    assert doctest.testmod(guard).failed == 0


@pytest.mark.parametrize("path", ["/events", "/api/sum", "/api/other", "/nothing", "/static"])
@pytest.mark.parametrize(
    "given",
    [
        "",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}0",
        f"bearer {TOKEN}",
        TOKEN,
        f"Basic {TOKEN}",
        "Bearer ",
        "Bearer \xff",
    ],
)
def test_nothing_is_told_without_the_token(page: Page, path: str, given: str) -> None:
    headers = {**HOST, **({"authorization": given} if given else {})}
    status, body, found = page.get(path, headers)
    assert (status, body) == (401, "the token is missing or wrong\n")
    assert found["www-authenticate"] == "Bearer"


def test_the_token_counts_in_no_address(page: Page) -> None:
    assert page.get(f"/api/sum?token={TOKEN}", HOST)[0] == 401
    assert page.get("/api/sum")[:2] == (200, "7")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "localhost:80:80",
        "127.0.0.1.evil.example",
        "[::1].evil",
        "10.0.0.1",
        "localhost:",
        "localhost:x",
        "localhost:٣",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/health", "/api/sum", "/static/live.js"])
def test_other_names_of_this_machine_are_refused(page: Page, host: str, path: str) -> None:
    """DNS rebinding: the attacker's own name leads here, and its page reads what it likes."""
    try:
        host.encode("ascii")
    except UnicodeEncodeError:
        host = host.encode().decode("latin-1")
    expected = 200 if host == "localhost:" else 421
    assert page.get(path, {**KNOWN, "host": host})[0] == expected


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:7480", "[::1]:9"])
def test_names_of_the_loopback_are_taken(page: Page, host: str) -> None:
    assert page.get("/api/sum", {**KNOWN, "host": host})[0] == 200


def test_without_the_check_of_the_host_the_attack_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard, "host_is_here", lambda _host: True)
    with served(dict) as open_page:
        assert open_page.get("/health", {"host": "evil.example"})[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_a_page_only_reads(page: Page, method: str) -> None:
    status, _, headers = page.get("/api/sum", method=method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_pages_get_nothing(page: Page, site: str) -> None:
    assert page.get("/", {**KNOWN, "sec-fetch-site": site})[0] == 403


@pytest.mark.parametrize("path", ["/", "/health", "/events?", "/nothing", *FILES])
def test_every_answer_forbids_what_the_page_does_not_need(page: Page, path: str) -> None:
    headers = {"host": "evil.example"} if path == "/nothing" else HOST
    found = page.get(path, headers)[2]
    policy = dict(
        each.strip().split(" ", 1) for each in found["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert {policy[each] for each in ("script-src", "style-src", "connect-src", "img-src")} == {
        "'self'"
    }
    assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in found["content-security-policy"]
    assert found["cache-control"] == "no-store"
    assert found["referrer-policy"] == "no-referrer"
    assert found["x-content-type-options"] == "nosniff"
    assert not any(name.startswith("access-control") for name in found)


def test_no_script_writes_markup_and_no_file_names_another_host() -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc"
    for path in STATIC.iterdir():
        text = path.read_text("utf-8")
        assert not re.search(sinks, text), path
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path
        if path.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", text), path
