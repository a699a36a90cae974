"""``members.json``: whose keys count in a deployed run, as the roster's authority signed them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedsys.audit.wording import claim
from fedsys.errors import LedgerError, ProtocolError
from fedsys.privacy import LedgerView, PrivacyPlan
from fedsys.privacy.ledger.files import MEMBERS
from fedsys.records import Claim
from fedsys.wire.members import Members, read_members

__all__ = ["KnownMembers", "is_deployed", "known_members", "members_claims"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownMembers:
    """What ``members.json`` proves.

    Attributes:
        keys: by client, the Ed25519 public key that the roster gives it.
        nodes: by client, the roster's number of it.
        terms: digest of the terms that devices agreed to.
        authority: the authority's public key (hex), which signed the roster.
        problem: why the file proves nothing; None if it is sound.
    """

    keys: Mapping[int, bytes] = field(default_factory=dict)
    nodes: tuple[int, ...] = ()
    terms: bytes = b""
    authority: str = ""
    problem: str | None = None

    def name(self, client: int) -> str:
        """A client, for people: by both of its numbers."""
        known = 0 <= client < len(self.nodes)
        return f"client {client}" + (f" (node {self.nodes[client]})" if known else "")


def is_deployed(view: LedgerView) -> bool:
    """Whether a ledger's header says that its clients are devices on a roster."""
    population = view.header.get("population")
    return isinstance(population, dict) and "roster_version" in population


def known_members(run: Path, view: LedgerView, plan: PrivacyPlan) -> KnownMembers | None:
    """Reads and checks a run's file; None if it has none. Never raises for its content.

    Args:
        run: the folder.
        view: its verified ledger.
        plan: the plan in its header.
    """
    try:
        members = read_members(run)
        return None if members is None else _checked(members, view, plan)
    except (LedgerError, ProtocolError) as error:
        return KnownMembers(problem=str(error))


def _checked(members: Members, view: LedgerView, plan: PrivacyPlan) -> KnownMembers:
    roster, terms = members.roster(), members.agreed()
    population = view.header.get("population")
    stated = population if isinstance(population, dict) else {}
    listed = (roster.version, roster.hash.hex())
    if listed != (stated.get("roster_version"), stated.get("roster_sha256")):
        raise LedgerError("the roster is not the one that the ledger's header names")
    roster = roster.only(terms.members)
    if len(roster.members) != plan.population:
        raise LedgerError(f"the roster has {len(roster.members)} members, not {plan.population}")
    same = (
        terms.job.hex() == view.header.get("job")
        and terms.plan == plan
        and (terms.roster_version, terms.roster_hash) == listed
    )
    if not same:
        raise LedgerError("the terms that devices agreed to are not those of the ledger's header")
    return KnownMembers(
        keys={client: roster.members[node] for client, node in enumerate(roster.nodes)},
        nodes=roster.nodes,
        terms=terms.digest,
        authority=members.authority.hex(),
    )


def members_claims(
    found: KnownMembers | None, view: LedgerView, authority: str | None
) -> Iterator[Claim]:
    """Whose keys count, and on whose word; nothing where a run had no devices.

    Args:
        found: what `known_members` returned.
        view: the ledger.
        authority: the authority's public key (hex), if the auditor knows it.
    """
    if found is None and not is_deployed(view):
        return
    problem = f"{MEMBERS} is not here" if found is None else found.problem
    signed_by = "" if found is None else found.authority
    holds = None if found is None else problem is None
    rests_on = "the authority's key being that of somebody independent: give it with --authority"
    if authority is not None and problem is None:
        rests_on = "where the key given with --authority came from"
        if signed_by != authority:
            holds, problem = False, f"the roster is signed by {signed_by}, not by {authority}"
    yield claim(
        "Members",
        holds,
        claimed="devices on the signed roster, which agreed to the terms of this ledger",
        rederived=problem or f"{len(found.keys) if found else 0} devices, signed by {signed_by}",
        by="Ed25519 by the roster's authority; the header's hash of the roster",
        rests_on=rests_on,
    )
