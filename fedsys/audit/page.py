"""``report.html`` against what was derived: its ledger head and the epsilons that people read.

The page is generated, so its figures are looked for in the one form in which they are written;
nothing in it is rendered or run.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from fedsys.audit.wording import claim, epsilon_text, plain
from fedsys.errors import LedgerError
from fedsys.privacy import VIEWS, Epsilons
from fedsys.privacy.ledger.files import open_regular
from fedsys.records import Claim

__all__ = ["page_claim"]

_PAGE_BYTES = 1 << 25
_FIGURE = re.compile(r'<p class="epsilon"><span class="symbol">ε</span> ([^<]{1,40}) <span')
_CELL = re.compile(r'</th><td class="figure">([^<]{1,40})</td>')
_UNKNOWN = "–"
_EXPONENT = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def page_claim(path: Path, *, head: str, spent: Epsilons) -> Claim | None:
    """Whether a report states what was derived; None where there is no report.

    Args:
        path: of ``report.html``.
        head: the ledger's.
        spent: epsilon by view; a page may leave out what it does not show to everybody.
    """
    if not path.exists() and not path.is_symlink():
        return None
    try:
        with open_regular(path, _PAGE_BYTES) as file:
            text = file.read().decode("utf-8")
        wrong = _differences(text, head, spent)
    except (LedgerError, UnicodeDecodeError) as error:
        wrong = str(error)
    return claim(
        "Report",
        wrong is None,
        claimed="report.html states what the ledger gives",
        rederived=wrong or "the same epsilons, rounded up, and ledger head",
        by="reading its figures; its other words are not checked",
    )


def _differences(text: str, head: str, spent: Epsilons) -> str | None:
    if head not in text:
        return "it was made for another state of the ledger"
    for found in (_FIGURE.findall(text), _CELL.findall(text)):
        if len(found) != len(VIEWS):
            return f"it states {len(found)} epsilons instead of one a view"
        for view, shown in zip(VIEWS, found, strict=True):
            derived = spent.of(view)
            if not _agrees(shown.strip(), derived):
                return f"{view} view: it states {plain(shown, 40)}, not {epsilon_text(derived)}"
    return None


def _agrees(shown: str, derived: float | None) -> bool:
    """Whether a figure is a derived one, rounded up as figures are."""
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
