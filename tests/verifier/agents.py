"""What devices sign: LEDGER.md, "members.json" and "countersignatures.jsonl"."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.verifier.chain import Ledger, Refused, Round, canonical, parse, require
from tests.verifier.plan import Plan
from tests.verifier.private import Cohort

LENGTHS = {
    "key": 32,
    "terms": 32,
    "ledger_head": 32,
    "previous": 32,
    "weights": 32,
    "nonce": 16,
    "signature": 64,
}
NUMBERS = ("round", "client", "invitations", "uploads")
MEMBERS = {"authority", "signature", "statement", "terms"}


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def framed(value: bytes) -> bytes:
    return u32(len(value)) + value


def message(job: bytes, said: dict[str, Any]) -> bytes:
    """The bytes under a countersignature."""
    octets = {name: framed(bytes.fromhex(said[name])) for name in LENGTHS}
    return (
        b"fedsys countersignature v2\0"
        + framed(job)
        + octets["terms"]
        + u32(said["round"])
        + octets["ledger_head"]
        + octets["previous"]
        + octets["weights"]
        + u32(1 if said["uploaded"] else 0)
        + octets["nonce"]
        + u32(said["invitations"])
        + u32(said["uploads"])
    )


def _signed(key: str, signature: str, text: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(
            bytes.fromhex(signature), text
        )
    except (InvalidSignature, ValueError):
        raise Refused("a device's or an authority's signature does not hold") from None


def members(path: Path, ledger: Ledger, plan: Plan) -> tuple[list[str], str]:
    """By client, its key; and the digest of the terms."""
    found = json.loads(path.read_bytes())
    require(set(found) == MEMBERS, "members.json has other keys")
    statement, text = found["statement"].encode(), found["terms"].encode()
    _signed(found["authority"], found["signature"], b"fedsys roster v1\0" + statement)
    roster, terms = json.loads(statement), json.loads(text)
    digest = hashlib.sha256(statement).hexdigest()
    stated = ledger.header["population"]
    require(stated["roster_sha256"] == digest, "another roster")
    require(stated["roster_version"] == roster["version"], "another version of the roster")
    part = terms.get("members")
    require(part is None or (part and part == sorted(set(part))), "members in another order")
    chosen = [each for each in sorted(roster["members"]) if part is None or each[0] in part]
    require(part is None or len(chosen) == len(part), "members who are not on the roster")
    require(len(chosen) == plan.population, "another population")
    require(terms["job"] == ledger.header["job"], "terms of another job")
    require(canonical(terms["plan"]) == canonical(ledger.header["plan"]), "another plan agreed to")
    require(terms["roster_hash"] == digest, "another roster agreed to")
    keys = [key for _, key in chosen]
    return keys, hashlib.sha256(b"fedsys terms v1\0" + text).hexdigest()


def check(run: Path, ledger: Ledger, plan: Plan, cohorts: dict[int, Cohort]) -> None:
    """Every statement of a device agrees with the ledger, its own others, and the cohorts."""
    keys, terms = members(run / "members.json", ledger, plan)
    ends = {each.head: each for each in ledger.rounds if each.outcome is not None}
    job, seen = bytes.fromhex(ledger.header["job"]), list[dict[str, Any]]()
    raw = (run / "countersignatures.jsonl").read_bytes()
    for line in raw.split(b"\n")[:-1]:
        said = parse(line, 2048)
        require(set(said) == {*LENGTHS, *NUMBERS, "uploaded"}, "other keys")
        require(all(len(said[name]) == 2 * size for name, size in LENGTHS.items()), "a length")
        require(all(type(said[name]) is int for name in NUMBERS), "no number")
        require(0 <= said["client"] < plan.population, "no such client")
        require(said["key"] == keys[said["client"]], "an invented agent")
        require(said["terms"] == terms, "other terms")
        _signed(said["key"], said["signature"], message(job, said))
        end = ends.get(said["ledger_head"])
        require(end is not None and end.number == said["round"], "two histories")
        _sent(said, ledger.rounds, plan)
        before = ends.get(said["previous"])
        first = said["previous"] == "0" * 64
        require(first or (before and before.number < said["round"]), "two histories before")
        said["follows"] = before.number if before else 0
        seen.append(said)
    places = {(said["round"], said["client"]) for said in seen}
    require(len(places) == len(seen), "a statement appears twice")
    _own(seen)
    if cohorts:
        _against(seen, ledger, plan, cohorts)


def _sent(said: dict[str, Any], rounds: list[Round], plan: Plan) -> None:
    until = rounds[: said["round"]]
    models = {each.model for each in until} if plan.sampling == "arrivals" else {until[-1].model}
    require(said["weights"] in models, "another model was sent")
    ordered = said["uploaded"] <= said["uploads"] <= said["invitations"] <= said["round"]
    require(ordered and said["invitations"] > 0, "impossible counts")
    require(said["uploaded"] or said["nonce"] == "0" * 32, "a nonce without an upload")


def _own(seen: list[dict[str, Any]]) -> None:
    newest: dict[int, dict[str, Any]] = {}
    for said in sorted(seen, key=lambda each: each["round"]):
        before = newest.get(said["client"])
        if before is not None:
            goes_on = (
                said["follows"] >= before["round"]
                and said["invitations"] > before["invitations"]
                and said["uploads"] >= before["uploads"] + said["uploaded"]
            )
            require(goes_on, "a device's statement does not continue its own")
        newest[said["client"]] = said


def _against(
    seen: list[dict[str, Any]], ledger: Ledger, plan: Plan, cohorts: dict[int, Cohort]
) -> None:
    asked, summed, lost = Counter[int](), Counter[int](), 0
    for each in ledger.rounds:
        if each.outcome is None:
            lost += 1
            continue
        cohort = cohorts[each.number]
        survivors = cohort.survivors if each.outcome == "commit" else ()
        asked.update(cohort.sampled)
        summed.update(survivors)
        for said in (one for one in seen if one["round"] == each.number):
            client = said["client"]
            require(client in cohort.sampled, "a signer outside the cohort")
            require(client not in survivors or said["uploaded"], "a survivor that sent nothing")
            require(said["uploads"] >= summed[client], "more was summed than sent")
            hidden = plan.sampling != "arrivals" and said["invitations"] > asked[client] + lost
            require(not hidden, "hidden invitations")
