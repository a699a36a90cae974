"""What every request passes first: its host, its method, its token; and what every answer says.

- Only names of this machine are taken as host, so that a page of somebody else's cannot reach this
  one by having its own name resolve to the loopback (DNS rebinding).
- The token comes in a header that the page's script sets. A browser adds it to no request by
  itself, so nobody else's page can make one that counts, and it is in no URL that is sent.
- Answers forbid the page everything that it does not need: code and styles from elsewhere and
  inline, frames, forms, and scripts that write text as markup.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HEADERS", "Guard", "host_is_here"]

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


def host_is_here(host: str) -> bool:
    """Whether a Host header names this machine; any port, since `ssh -L` may give another.

    >>> host_is_here("localhost:7480"), host_is_here("[::1]"), host_is_here("evil.example:7480")
    (True, True, False)
    """
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    return name.lower() in _NAMES and (not port or (port.isascii() and port.isdecimal()))


class Guard:
    """Wraps an application.

    Args:
        app: answers what passes.
        token: the current token; asked at each request.
        is_open: whether a path needs no token, because it holds nothing.
    """

    def __init__(
        self, app: ASGIApp, *, token: Callable[[], str], is_open: Callable[[str], bool]
    ) -> None:
        self._app = app
        self._token = token
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        if scope["type"] != "http":
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = self._why_not(scope)
        await (refused or self._app)(scope, receive, marked)

    def _why_not(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not host_is_here(hosts[0]):
            return PlainTextResponse("this page is for localhost alone\n", status_code=421)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse(
                "this page only reads\n", status_code=405, headers={"allow": "GET, HEAD"}
            )
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return PlainTextResponse("not for other pages\n", status_code=403)
        if self._is_open(scope["path"]) or self._knows(headers.get("authorization", "")):
            return None
        return PlainTextResponse(
            "the token is missing or wrong\n",
            status_code=401,
            headers={"www-authenticate": "Bearer"},
        )

    def _knows(self, given: str) -> bool:
        expected = f"Bearer {self._token()}"
        return hmac.compare_digest(given.encode(), expected.encode())
