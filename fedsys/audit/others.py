"""Files in a run's folder that no audit examines: named, so that nobody takes their word for it.

A file that a person added next to a model, or that only looks like one of the run's, is vouched for
by nothing in the folder.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from fedsys.audit.wording import claim, plain
from fedsys.records import Claim

__all__ = ["others_claim"]

_EXAMINED = frozenset(
    {
        "answers.jsonl",
        "canaries.jsonl",
        "clients.json",
        "config.toml",
        "cosigned.jsonl",
        "countersignatures.jsonl",
        "data.json",
        "ledger.jsonl",
        "ledger.tlog-proof",
        "members.json",
        "metrics.jsonl",
        "model.pt",
        "private.jsonl",
        "report.html",
        "summary.json",
    }
)
_OWN = re.compile(
    r"audit\.json|\.audit\.[0-9a-f]{16}\.partial|checkpoints|states|.*\.pending\.json"
)
"""What this audit wrote itself, and what a run keeps for going on."""
_MOST = 10_000
_SHOWN = 6


def others_claim(run: Path) -> Claim | None:
    """The claim that names them, which is open; None where there are none.

    Args:
        run: the folder, untrusted.
    """
    try:
        with os.scandir(run) as entries:
            names = sorted(each.name for each in itertools.islice(entries, _MOST))
    except OSError:
        return None
    found = [name for name in names if name not in _EXAMINED and not _OWN.fullmatch(name)]
    if not found:
        return None
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return claim(
        "Other files",
        None,
        claimed="whatever they say",
        rederived=f"not examined: {', '.join(plain(name, 40) for name in found[:_SHOWN])}{more}",
        by="listing the folder",
        rests_on="the party that handed over the folder",
    )
