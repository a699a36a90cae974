"""The claim about how the data was preprocessed before training."""

from __future__ import annotations

from typing import Any

from fedsys.audit.evidence import Evidence
from fedsys.audit.wording import claim, value_text
from fedsys.preprocessing import builtin, covers, why_withheld
from fedsys.privacy import LedgerView, PrivacyPlan
from fedsys.records import Claim

__all__ = ["PREPARATION", "preparation_claim", "withheld"]

PREPARATION = "Preparation of the data"
"""The claim's name."""

_AUTHOR = "the task author's word: the task's code is not inspected"


def withheld(evidence: Evidence, view: LedgerView, plan: PrivacyPlan) -> str | None:
    """Why no epsilon covers the preprocessing; None if one may, or if no privacy is promised.

    Considers both what the configuration's task is known to do and what the header declares.
    """
    if not plan.protected:
        return None
    for declared in (view.header.get("preprocessing"), _known(evidence)):
        reason = why_withheld(declared, plan.unit)
        if reason is not None:
            return reason
    stated = view.header.get("withheld")
    return None if stated is None else value_text(stated)


def preparation_claim(evidence: Evidence, view: LedgerView, plan: PrivacyPlan) -> Claim:
    """Whether rows were preprocessed in a way that a privacy claim covers."""
    declared, known = view.header.get("preprocessing"), _known(evidence)
    name = _task(evidence).get("name")
    reason = withheld(evidence, view, plan)
    holds, words, rests_on = covers(declared, plan.unit), value_text(declared), _AUTHOR
    if known is not None:
        words, rests_on = f"{known}: what task {value_text(name)} does with its options", ""
    if known is not None and declared != known:
        holds, words = False, f"{words}; the header says {value_text(declared)}"
    elif not plan.protected:
        holds, words = True, f"{words}; no privacy is claimed"
    elif reason is not None:
        holds, words = False, f"{words}: {reason}"
    elif known is None:
        holds = None
        if covers(declared, plan.unit) is None:
            words = "the task declares nothing"
    return claim(
        PREPARATION,
        holds,
        claimed=f"{value_text(declared)}, by the header",
        rederived=words,
        by="the header against the configuration's task",
        rests_on=rests_on or "the coordinator and the clients having run that task",
    )


def _task(evidence: Evidence) -> dict[str, Any]:
    config = evidence.config.value
    found = config.tables.get("task") if config is not None else None
    return found if isinstance(found, dict) else {}


def _known(evidence: Evidence) -> str | None:
    task = _task(evidence)
    options = task.get("options", {})
    return builtin(task.get("name"), options if isinstance(options, dict) else {})
