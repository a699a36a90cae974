"""``report.html`` against the page that the folder yields, byte for byte.

The page is generated from the folder and its audit and nothing else, so it is made again and
compared: an added banner shows. Where a different version of the code is installed than the one
that made the run, or no torch, pages may differ; then the ledger head and the epsilons that people
read are searched for in the one form in which they are written. Nothing in the page is rendered or
run.
"""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

from fedsys.audit.wording import claim, epsilon_text, plain
from fedsys.errors import LedgerError, RunFolderError
from fedsys.privacy import VIEWS, Epsilons, LedgerView
from fedsys.privacy.ledger.files import open_regular
from fedsys.records import AuditResult, Claim
from fedsys.versions import code_hash

__all__ = ["PageMaker", "page_claim"]

_PAGE_BYTES = 1 << 25
_FIGURE = re.compile(r'<p class="epsilon"><span class="symbol">ε</span> ([^<]{1,40}) <span')
_CELL = re.compile(r'</th><td class="figure">([^<]{1,40})</td>')
_SHOWN_BY = ("torch", "opacus")
"""Packages without which fewer claims are decided, so that a page shows others."""
_UNKNOWN = "–"
_PRIVATE = " · private copy</p>"
_EXPONENT = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


class PageMaker(Protocol):
    """Makes the text of a report, as `fedsys.report.render` does."""

    def __call__(self, run: Path, audit: AuditResult, *, private: bool) -> str: ...


def page_claim(path: Path, audit: AuditResult, view: LedgerView, render: PageMaker) -> Claim | None:
    """Whether a report states what was derived; None where there is no report.

    Args:
        path: ``report.html``.
        audit: the audit of its folder, with nothing pinned.
        view: the folder's ledger.
        render: makes a report's text from a folder, its audit and whether cohorts may be shown.
    """
    if not path.exists() and not path.is_symlink():
        return None
    holds, words = _compared(path, audit, view, render)
    return claim(
        "Report",
        holds,
        claimed="report.html states what the folder supports, and nothing else",
        rederived=words,
        by="making the page again and comparing it",
    )


def _compared(
    path: Path, audit: AuditResult, view: LedgerView, render: PageMaker
) -> tuple[bool | None, str]:
    try:
        with open_regular(path, _PAGE_BYTES) as file:
            found = file.read().decode("utf-8")
    except (LedgerError, UnicodeDecodeError) as error:
        return False, str(error)
    if view.closed is None:
        return False, "the run is not finished: what it will state is not known yet"
    try:
        made = render(path.parent, audit, private=_PRIVATE in found)
    except RunFolderError as error:
        return False, f"the folder yields no page: {error}"
    if found == made:
        return True, f"the same page, byte for byte, at ledger head {view.head}"
    wrong = None
    if audit.curve:
        wrong = _differences(found, view.head, audit.curve[-1].spent)
    pairs = zip_longest(found.split("\n"), made.split("\n"))
    line = next(number for number, (ours, its) in enumerate(pairs, start=1) if ours != its)
    words = wrong or f"the page differs from line {line} on"
    if wrong is None and view.header.get("code_sha256") != code_hash():
        return None, f"{words}, and the installed code is not the version that made the run"
    lacking = next((name for name in _SHOWN_BY if find_spec(name) is None), None)
    if wrong is None and lacking is not None:
        return (
            None,
            f"{words}, and it may show what an audit finds with {lacking}, which is not here",
        )
    return False, f"{words}; delete it, or let `fedsys publish` make it again"


def _differences(text: str, head: str, spent: Epsilons) -> str | None:
    if head not in text:
        return "it was made for another state of the ledger"
    for found in (_FIGURE.findall(text), _CELL.findall(text)):
        if len(found) != len(VIEWS):
            return f"it states {len(found)} epsilons instead of one per view"
        for view, shown in zip(VIEWS, found, strict=True):
            derived = spent.of(view)
            if not _agrees(shown.strip(), derived):
                return f"{view} view: it states {plain(shown, 40)}, not {epsilon_text(derived)}"
    return None


def _agrees(shown: str, derived: float | None) -> bool:
    """Whether a figure is the derived epsilon, rounded up as the report rounds."""
    if shown == _UNKNOWN:
        return True
    value = _value(shown)
    if derived is None or value is None or math.isinf(derived) or math.isinf(value):
        return value is not None and value == derived
    if value >= 1e6:
        return derived * (1 - 1e-9) <= value <= derived * 1.0101
    step = 1.0 if value >= 100 else 0.1 if value >= 10 else 0.01 if value >= 0.1 else 0.0001
    return derived - 1e-9 <= value <= derived + step + 1e-9


def _value(shown: str) -> float | None:
    if shown == "∞":
        return math.inf
    mantissa, _, power = shown.replace(",", "").partition(" × 10")
    if shown.startswith("10") and not shown.isascii():
        mantissa, power = "1", shown.removeprefix("10")
    try:
        return float(mantissa) * (10.0 ** int(power.translate(_EXPONENT)) if power else 1.0)
    except (ValueError, OverflowError):
        return None
