"""Recovers the privacy loss from a ledger, for resumed runs and for auditors.

>>> from fedsys.privacy.planning import make_plan
>>> plan = make_plan(mechanism="distributed-gaussian", population=1437, expected_cohort=100,
...     rounds=40, dimension=650, clip=0.3, delta=1e-5, noise_multiplier=0.7)
>>> header = ledger_header(plan, code_hash="00" * 32)
>>> sorted(header["delta_parts"])  # doctest: +NORMALIZE_WHITESPACE
['aborts', 'noise_outsider', 'noise_participant', 'noise_server', 'outsider', 'participant',
 'server']
>>> plan_of(header) == plan
True
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from fedsys.agreement import agrees
from fedsys.errors import LedgerError, MechanismError
from fedsys.privacy.accounting.accountant import ViewAccountant
from fedsys.privacy.accounting.pld import BIN_RULE
from fedsys.privacy.accounting.rdp import ORDERS
from fedsys.privacy.events import Event, event_from_json
from fedsys.privacy.ledger import LedgerView, RoundRecord
from fedsys.privacy.plan import PrivacyPlan
from fedsys.privacy.views import VIEWS, Epsilons

__all__ = [
    "CohortSource",
    "accountant_versions",
    "charge_rounds",
    "events_of",
    "ledger_header",
    "neighbours_of",
    "plan_of",
    "replay",
]

_EVENTS_AT_ONCE = 4096

_UPDATE_OR_ZERO = "one client's update or zero"
_NEIGHBOURS = {
    "outsider": "add or remove one client",
    "participant": f"{_UPDATE_OR_ZERO}; invited members see who else was invited",
    "server": f"{_UPDATE_OR_ZERO}; it takes part either way (half of replacement)",
}
_REPLACED = {
    "outsider": "replace one client by another: cohorts have a fixed size, so without one of them "
    "somebody else comes in",
    "participant": "replace one client's update by any other; invited members see who else was "
    "invited",
}
_ARRIVALS = f"{_UPDATE_OR_ZERO}, with the same uploads arriving in the same order"
_EXAMPLES = {str(view): "add or remove one example of one client" for view in VIEWS}
_NOT_COVERED = ["metrics", "evaluation", "timing", "traffic observers", "tuning on the same data"]


def accountant_versions() -> dict[str, str]:
    """The versions of the code that computes epsilon."""
    return dict(_accountant_versions())


@functools.cache
def _accountant_versions() -> dict[str, str]:
    return {
        "fedsys-rdp": "2",
        "fedsys-pld": "1",
        "numpy": importlib.metadata.version("numpy"),
    }


def ledger_header(plan: PrivacyPlan, **facts: Any) -> dict[str, Any]:
    """The body of a ledger's first line.

    Args:
        plan: the job's plan.
        **facts: further facts from the caller: trust (authority of the roster, quorum, c, gamma),
            hashes of code, configuration and initial model, earlier tuning runs, how N is known,
            the protocol.

    Returns:
        A JSON object, from which `plan_of` recovers the plan.
    """
    return {
        **facts,
        "plan": plan.to_json(),
        "unit": plan.unit,
        "neighbours": neighbours_of(plan),
        "delta": plan.delta,
        "delta_parts": _delta_parts(plan),
        "budget": plan.budget,
        "accountants": {
            "reported": plan.accountant,
            "versions": accountant_versions(),
            "rdp_orders": [float(order) for order in ORDERS],
            "pld_bins": BIN_RULE,
        },
        "samplers": "AES-256-CTR expansion; inversion of rounded Gaussians, up to 1024 bits a draw",
        "not_covered": list(_NOT_COVERED),
        **_factorization(plan),
    }


def _factorization(plan: PrivacyPlan) -> dict[str, Any]:
    """The coefficients with which rounds' noise is correlated, where it is."""
    stated = plan.event().factorization
    return {} if stated is None else {"factorization": dict(stated)}


def neighbours_of(plan: PrivacyPlan) -> dict[str, str]:
    """By view, which two data sets its epsilon compares."""
    if plan.unit == "example":
        return dict(_EXAMPLES)
    if plan.sampling == "arrivals":
        return {str(view): _ARRIVALS for view in VIEWS}
    return {**_NEIGHBOURS, **(_REPLACED if plan.event().sampling.replaces else {})}


def _delta_parts(plan: PrivacyPlan) -> dict[str, float]:
    parts = {"aborts": plan.delta_abort}
    if plan.corrupt is not None:
        parts["quorum"] = plan.delta_quorum  # included in the cost of aborts
    for view in VIEWS:
        parts[f"noise_{view}"] = plan.charges.of(view)
        parts[view] = plan.delta_of(view)
    return parts


def plan_of(header: Mapping[str, Any]) -> PrivacyPlan:
    """The plan that a header states, after checking the header's other figures against it.

    Raises:
        LedgerError: there is no usable plan, or another figure disagrees with it.
    """
    body = header.get("plan")
    if not isinstance(body, dict):
        raise LedgerError("the ledger's header holds no privacy plan")
    try:
        plan = PrivacyPlan.from_json(body)
    except (MechanismError, TypeError) as error:
        raise LedgerError(f"the ledger's header holds no usable privacy plan: {error}") from None
    if header.get("delta") != plan.delta or header.get("budget") != plan.budget:
        raise LedgerError("the ledger's header states another delta or budget than its plan")
    if header.get("unit") != plan.unit:
        raise LedgerError("the ledger's header states another unit than its plan")
    if header.get("factorization") != _factorization(plan).get("factorization"):
        raise LedgerError("the ledger's header states another factorization than its plan's")
    stated, derived = header.get("delta_parts"), _delta_parts(plan)
    if not isinstance(stated, dict) or set(stated) != set(derived):
        raise LedgerError("the ledger's header does not state the parts of its delta")
    for name, value in derived.items():
        if not _close(stated[name], value):
            raise LedgerError(
                f"the ledger's header states delta_parts.{name}={stated[name]!r}, its plan gives "
                f"{value!r}"
            )
    return plan


def _close(stated: object, derived: float) -> bool:
    """Equality up to differences between versions of scipy."""
    return agrees(stated, derived, relative=1e-6)


class CohortSource(Protocol):
    """Private lines by round: a mapping, or a file that is read while its rounds are charged."""

    def get(self, round: int, /) -> Mapping[str, Any] | None:
        """A round's ``sampled`` and ``survivors``, or None; rounds are requested in order."""


def events_of(view: LedgerView, plan: PrivacyPlan) -> Iterator[tuple[RoundRecord, Event]]:
    """Yields each round's event, which is derived only once for rounds of equal cost.

    Raises:
        LedgerError: a reserve line has no event, or one that the plan does not cover.
    """
    known: dict[int, tuple[object, Event]] = {}  # by identity: the ledger's rounds share events
    for record in view.rounds:
        body = record.reserve.get("event")
        if not isinstance(body, dict):
            raise LedgerError(f"round {record.round} reserves no event")
        found = known.get(id(body))
        if found is None:
            if len(known) >= _EVENTS_AT_ONCE:
                known.clear()
            found = known[id(body)] = body, _event_of(record.round, body, plan)
        yield record, found[1]


def _event_of(round: int, body: Mapping[str, Any], plan: PrivacyPlan) -> Event:
    try:
        event = event_from_json(body)
        covered = plan.covers(event)
    except (MechanismError, TypeError, ValueError, OverflowError) as error:
        raise LedgerError(f"round {round} cannot be accounted: {error}") from None
    if not covered:
        raise LedgerError(f"round {round} reserves an event that the header's plan does not cover")
    return event


def charge_rounds(
    accountant: ViewAccountant, view: LedgerView, private: CohortSource | None
) -> Iterator[int]:
    """Charges a ledger's rounds one by one and yields each number once it is charged.

    Args:
        accountant: an accountant for the ledger's plan.
        view: the ledger.
        private: private lines by round, already checked against their commitments. None charges
            cohorts as unknown, and then only the outsider's epsilon is meaningful.

    Raises:
        LedgerError: a reserve line has no event or one that the plan does not cover, or a private
            line does not fit its round.
    """
    for record, event in events_of(view, accountant.plan):
        line = None if private is None else private.get(record.round)
        try:
            if record.outcome is None or line is None:
                accountant.charge(event)
            elif record.outcome == "abort" and not record.refunds_server:
                accountant.charge(event, line["sampled"])
            else:
                accountant.charge(event, line["sampled"], line["survivors"])
        except (MechanismError, TypeError, ValueError, OverflowError, KeyError) as error:
            raise LedgerError(f"round {record.round} cannot be accounted: {error}") from None
        yield record.round


def replay(view: LedgerView, private: CohortSource | None) -> tuple[ViewAccountant, Epsilons]:
    """The accountant after all of a ledger's rounds, and the epsilons that they cost.

    Without private lines, only the outsider's epsilon is known.

    Raises:
        LedgerError: as for `plan_of` and `charge_rounds`.
    """
    accountant = ViewAccountant(plan_of(view.header))
    for _ in charge_rounds(accountant, view, private):
        pass
    if private is None:
        spent = Epsilons(outsider=accountant.outsider.epsilon(), participant=None, server=None)
        return accountant, spent
    return accountant, accountant.spent()
