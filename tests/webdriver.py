"""A small WebDriver client for headless Chromium: https://www.w3.org/TR/webdriver2/ over urllib."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["INSTALL", "Browser", "chromium", "missing"]

INSTALL = "apt-get install -y chromium chromium-driver"
_SECONDS = 120.0
"""How long anything may take on a loaded machine."""
_POLL = 0.1
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"tab": "\ue004", "enter": "\ue007", "left": "\ue012", "right": "\ue014", "escape": "\ue00c"}


def missing() -> str:
    """Why no browser can be started; empty if one can."""
    lacks = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"needs {' and '.join(lacks)}: {INSTALL}" if lacks else ""


class WebDriverError(Exception):
    """The browser refused a command."""


class Browser:
    """One tab.

    Args:
        url: of the session.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One command of the protocol; its value.

        Raises:
            WebDriverError: the browser refused it.
        """
        return _call(f"{self._url}{path}", method, body)

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Emulate a screen, in CSS pixels."""
        self._devtools(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("POST", "/url", {"url": url})

    def script(self, code: str, *arguments: Any) -> Any:
        """The value that a function's body returns."""
        return self.call("POST", "/execute/sync", {"script": code, "args": list(arguments)})

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that match, as they are seen."""
        code = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)"
        found: list[str] = self.script(code, selector)
        return found

    def text(self, selector: str = "body") -> str:
        """The text of the first element that matches; empty without one."""
        return next(iter(self.texts(selector)), "")

    def wait_for(self, selector: str, text: str = "", *, seconds: float = _SECONDS) -> str:
        """Wait until an element that matches contains a text; that element's text."""
        end, found = time.monotonic() + seconds, [""]
        while time.monotonic() < end:
            found = self.texts(selector)
            for each in found:
                if text in each:
                    return each
            time.sleep(_POLL)
        raise AssertionError(f"no {selector} with {text!r} came: {found[:20]}")

    def click(self, selector: str) -> None:
        """Click the first element that matches, as a pointer does."""
        self.script("document.querySelector(arguments[0]).scrollIntoView()", selector)
        self.call("POST", f"/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into the first element that matches."""
        self.call("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Press keys, by name (``tab``, ``enter``, ...) or as characters, where the focus is."""
        strokes = [
            {"type": kind, "value": KEYS.get(key, key)}
            for key in keys
            for kind in ("keyDown", "keyUp")
        ]
        actions = [{"type": "key", "id": "keyboard", "actions": strokes}]
        self.call("POST", "/actions", {"actions": actions})

    def focused(self) -> str:
        """The text or label of what has the focus."""
        code = "const e = document.activeElement; return e.ariaLabel || e.innerText || e.tagName"
        return str(self.script(code))

    def log(self, kind: str = "browser") -> list[dict[str, Any]]:
        """What was logged since this was asked last: ``browser`` (the console), ``performance``."""
        found: list[dict[str, Any]] = self.call("POST", "/se/log", {"type": kind})
        return found

    def requested(self) -> list[str]:
        """The addresses that pages requested since this was asked last. Chromium's own, such as
        the one it begins with (``chrome:``, ``chrome-untrusted:``), are none of ours."""
        messages = [json.loads(each["message"])["message"] for each in self.log("performance")]
        sent = [
            each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"
        ]
        return [
            each["request"]["url"]
            for each in sent
            if not each["documentURL"].startswith("chrome")
            and not each["request"]["url"].startswith("chrome")
        ]

    def picture(self, *, full: bool = False) -> bytes:
        """A PNG of the screen, or of the whole page."""
        options = {"format": "png", "captureBeyondViewport": full}
        if full:
            self.script("scrollTo(0, 0)")
            size = self._devtools("Page.getLayoutMetrics", {})["cssContentSize"]
            options["clip"] = {**size, "x": 0, "y": 0, "scale": 1}
        return base64.b64decode(self._devtools("Page.captureScreenshot", options)["data"])

    def _find(self, selector: str) -> str:
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        return str(found[_ELEMENT])

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser with a profile of its own, which is removed."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        log = Path(profile, "driver.log")
        with log.open("wb") as out:
            driver = subprocess.Popen(
                ["chromedriver", "--port=0"], stdout=out, stderr=subprocess.STDOUT
            )
        try:
            base = f"http://127.0.0.1:{_port(driver, log)}"
            found = _call(f"{base}/session", "POST", {"capabilities": _capabilities(profile)})
            browser = Browser(f"{base}/session/{found['sessionId']}")
            try:
                yield browser
            finally:
                browser.call("DELETE", "")
        finally:
            driver.terminate()
            driver.wait(60)


def _capabilities(profile: str) -> dict[str, Any]:
    arguments = [
        "--headless=new",
        "--no-sandbox",  # containers run tests as root
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "about:blank",
        "--hide-scrollbars",
        "--force-color-profile=srgb",
        f"--user-data-dir={profile}/profile",
    ]
    return {
        "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "timeouts": {"script": 60_000, "pageLoad": 120_000, "implicit": 0},
        }
    }


def _port(driver: subprocess.Popen[bytes], log: Path) -> int:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and driver.poll() is None:
        found = re.search(r"started successfully on port (\d+)", log.read_text("utf-8", "replace"))
        if found:
            return int(found[1])
        time.sleep(_POLL)
    raise AssertionError(f"chromedriver did not start: {log.read_text('utf-8', 'replace')[-2000:]}")


def _call(url: str, method: str, body: Any = None) -> Any:
    data = None if method in ("GET", "DELETE") else json.dumps(body or {}).encode()
    request = urllib.request.Request(
        url, data=data, method=method, headers={"content-type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        value = json.load(error)["value"]
        raise WebDriverError(f"{value['error']}: {value['message'][:500]}") from None
