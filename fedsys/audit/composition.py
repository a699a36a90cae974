"""What several runs on one population cost together: ``fedsys audit A B ... --compose``.

In each view the losses are those of all rounds together, by an accountant that applies to all of
them, stated at the largest of the runs' deltas (`fedsys.privacy.accounting.adding` quotes the
theorem). In the participant's and the server's view each run counts at its worst client, since that
of each run may be the same. Where client numbers mean the same clients in every run, the server's
losses are also added client by client, and the worst client's total is smaller. All of this holds
for a client that is in every run's population, and for runs whose noise was not chosen from what an
earlier one showed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsys.audit.page import PageMaker
from fedsys.audit.rederive import Audit, counted_part, examine_with_page
from fedsys.audit.start import links
from fedsys.audit.wording import claim, epsilon_text, plain
from fedsys.errors import AuditInputError
from fedsys.privacy import VIEWS, Epsilons, LedgerView, View, load_public_key
from fedsys.privacy.accounting.adding import (
    Part,
    cost_together,
    covered,
    replaces,
    together,
    usable,
)
from fedsys.privacy.accounting.exact_gaussian import composed_epsilon
from fedsys.records import AuditResult, Claim, EpsilonPoint

__all__ = ["compose"]

_NEEDED = 2
_CLIENTS_AT_ONCE = 1 << 14
_HOW = {False: "all rounds together", True: "adding up"}


def compose(
    runs: Sequence[Path], *, key: str | None = None, page: PageMaker | None = None
) -> AuditResult:
    """The total epsilon of several runs, each audited first.

    The result has one claim per run (its audit) and one per view (the total); its curve holds only
    the totals, by number of runs.

    Args:
        runs: their folders.
        key: the public key that signed all of them, as for `audit_run`.
        page: makes a report's text, so that each run's ``report.html`` is checked too.

    Raises:
        AuditInputError: fewer than two runs, one of them given twice, units or neighbours that do
            not add up, or a folder that holds no run or no plan.
        LedgerError: ``key`` is not a public key.
    """
    if len(runs) < _NEEDED:
        raise AuditInputError("--compose needs at least two runs")
    pinned = None if key is None else load_public_key(key)
    audits = [examine_with_page(run, pinned, page=page) for run in runs]
    names = [plain(run.resolve().name or run, 60) for run in runs]
    _require_comparable(audits, names)
    curve = [
        EpsilonPoint(round=count, spent=_total(audits[:count]))
        for count in range(1, len(audits) + 1)
    ]
    total, deltas = curve[-1].spent, {view: _together(audits, view)[1] for view in VIEWS}
    return AuditResult(
        run=plain(" + ".join(names), 200),
        claims=(
            *map(_audit_claim, audits, names),
            *links(_views(audits, names)),
            *_total_claims(audits, total, deltas),
        ),
        curve=tuple(curve),
        delta=deltas["outsider"],
        notes=tuple(_notes(audits)),
        details={
            "runs": names,
            "heads": [_head(audit) for audit in audits],
            "delta": deltas,
            "server_by_client": _server_by_client(audits),
            "outsider_part": outsider_part(audits),
        },
        withheld=next((audit.withheld for audit in audits if audit.withheld is not None), None),
    )


def _require_comparable(audits: Sequence[Audit], names: Sequence[str]) -> None:
    jobs: dict[object, str] = {}
    for audit, name in zip(audits, names, strict=True):
        if audit.plan is None or audit.spending is None or audit.evidence.ledger.value is None:
            raise AuditInputError(f"{name}: its rounds cannot be accounted for; audit it alone")
        job = plain(audit.evidence.ledger.value.header.get("job"), 100)
        if job in jobs:
            raise AuditInputError(f"{name} and {jobs[job]} are the same run: give each run once")
        jobs[job] = name
    first = audits[0].plan
    for audit, name in zip(audits, names, strict=True):
        plan = audit.plan
        if plan is None or first is None or plan.unit != first.unit:
            raise AuditInputError(
                f"{name} protects a different unit than {names[0]}: their epsilons do not add up"
            )
        if replaces(plan, "outsider") != replaces(first, "outsider"):
            raise AuditInputError(
                f"{name} and {names[0]} define neighbours differently (replace, or add or remove): "
                "their epsilons do not add up"
            )


def _views(audits: Sequence[Audit], names: Sequence[str]) -> list[tuple[str, LedgerView]]:
    found = [audit.evidence.ledger.value for audit in audits]
    return [(name, view) for name, view in zip(names, found, strict=True) if view is not None]


def _delta(audit: Audit) -> float:
    return audit.plan.delta if audit.plan is not None else 1.0


def _head(audit: Audit) -> str | None:
    view = audit.evidence.ledger.value
    return view.head if view is not None else None


def _total(audits: Sequence[Audit]) -> Epsilons:
    return Epsilons(
        outsider=cost_together(parts_of(audits, "outsider"))[0],
        participant=_together(audits, "participant")[0],
        server=_together(audits, "server")[0],
    )


def _together(audits: Sequence[Audit], view: View) -> tuple[float | None, float]:
    """(epsilon, delta) of all runs; epsilon is None where that of a run is not known and none is
    infinite.

    So many runs that nothing of the largest delta is left for their rounds are added up instead,
    deltas too, but for the outsider, whose delta is that of the whole result.
    """
    spent = [audit.spending.spent.of(view) for audit in audits if audit.spending is not None]
    deltas = [_delta(audit) for audit in audits]
    known = [epsilon for epsilon in spent if epsilon is not None]
    if math.inf in known or len(known) < len(spent):
        return (math.inf if math.inf in known else None), max(deltas)
    epsilon, delta = cost_together(parts_of(audits, view))
    if math.isinf(epsilon) and view != "outsider":
        return math.fsum(known), math.fsum(deltas)
    return epsilon, delta


def outsider_part(audits: Sequence[Audit]) -> dict[str, Any]:
    """All runs' rounds as a later run's header states them."""
    return together(parts_of(audits, "outsider")).to_json()


def parts_of(audits: Sequence[Audit], view: View) -> list[Part]:
    """Each run's part; the runs' cohorts are known, or the view is the outsider's."""
    return [counted_part(audit, view) for audit in audits if audit.spending is not None]


def _server_by_client(audits: Sequence[Audit]) -> float | None:
    """The server's total for the worst client, if a number means the same client in all runs.

    Each client's rounds are added up as unamplified Gaussian mechanisms, and stated at the largest
    of the runs' deltas. None where cohorts are not known, or where populations differ in size, so
    that numbers cannot mean the same clients.
    """
    losses = []
    for audit in audits:
        if audit.plan is None or audit.spending is None or audit.cohorts is None:
            return None
        losses.append(audit.spending.accountant.server)
    if len({audit.plan.population for audit in audits if audit.plan is not None}) > 1:
        return None
    parts = parts_of(audits, "server")
    delta = usable(parts)
    if delta <= 0:
        return math.inf
    clients = functools.reduce(np.union1d, (loss.clients for loss in losses))
    worst = 0.0
    for start in range(0, len(clients), _CLIENTS_AT_ONCE):
        some = clients[start : start + _CLIENTS_AT_ONCE]
        total = np.sum([loss.squares(some) for loss in losses], axis=0)
        worst = max(worst, float(total.max()))
    epsilon = math.inf if math.isinf(worst) else composed_epsilon(delta, worst)
    return covered(parts, epsilon)


def _audit_claim(audit: Audit, name: str) -> Claim:
    failed = [found.name for found in audit.claims if found.holds is False]
    spent = audit.spending.spent.outsider if audit.spending is not None else None
    return claim(
        f"Run {name}",
        not failed,
        claimed="its own audit holds",
        rederived=", ".join(failed) or f"epsilon {epsilon_text(spent)} for the outsider",
        by="auditing it alone",
        rests_on="see its own audit",
    )


def _total_claims(
    audits: Sequence[Audit], total: Epsilons, deltas: Mapping[View, float]
) -> list[Claim]:
    parts = [audit.spending.spent for audit in audits if audit.spending is not None]
    largest = max(_delta(audit) for audit in audits)
    by_client = _server_by_client(audits)
    claims = [
        claim(
            f"Total epsilon, {view} view",
            None,
            claimed=" and ".join(epsilon_text(part.of(view)) for part in parts),
            rederived=epsilon_text(total.of(view)) if total.of(view) is not None else "not known",
            by=f"{_HOW[deltas[view] > largest]}, at delta = {deltas[view]:g}",
            rests_on="no further run on this population: the coordinator's word",
        )
        for view in VIEWS
    ]
    if by_client is not None:
        claims.append(
            claim(
                "Total epsilon, server view, client by client",
                None,
                claimed=epsilon_text(total.server),
                rederived=f"{epsilon_text(by_client)} for the worst client",
                by=f"each client's own rounds in all runs, at delta = {largest:g}",
                rests_on="a number meaning the same client in every run, and no further run: the "
                "coordinator's word",
            )
        )
    return claims


def _notes(audits: Sequence[Audit]) -> list[str]:
    notes = [
        "the total holds for a client that is in every run's population, and for runs whose noise, "
        "sampling and number of rounds were not chosen from what an earlier run showed"
    ]
    sizes = sorted({audit.plan.population for audit in audits if audit.plan is not None})
    if len(sizes) > 1:
        notes.append(f"the populations differ in size: {', '.join(map(str, sizes))}")
    signers = {
        audit.evidence.ledger.value.signer
        for audit in audits
        if audit.evidence.ledger.value is not None
    }
    if len(signers) > 1:
        notes.append("the runs have different signers")
    return notes
