"""Who was asked and summed: LEDGER.md, "private.jsonl"."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.verifier.chain import Ledger, Refused, Round, canonical, parse, require
from tests.verifier.draws import Draws
from tests.verifier.plan import BY_TURNS, Plan

MOST_BYTES = 1 << 23
LISTS = ("sampled", "survivors", "participations")


@dataclass(frozen=True)
class Cohort:
    sampled: tuple[int, ...]
    survivors: tuple[int, ...]


def read(path: Path, ledger: Ledger, plan: Plan) -> dict[int, Cohort]:
    """The cohort of every committed or aborted round, as the ledger committed to it."""
    raw = path.read_bytes()
    require(not raw or raw.endswith(b"\n"), "private.jsonl ends in a torn line")
    counts: Counter[int] = Counter()
    found: dict[int, Cohort] = {}
    last = 0
    seeds = {each.seed is not None for each in ledger.rounds}
    require(len(seeds) < 2, "some rounds have no seed")
    draws = Draws(ledger, plan) if True in seeds else None
    for line in raw[:-1].split(b"\n") if raw else []:
        body = parse(line, MOST_BYTES)
        number = body.get("round")
        if type(number) is not int or not last < number <= len(ledger.rounds):
            raise Refused("a private line is of another round")
        last, reserved = number, ledger.rounds[number - 1]
        if reserved.outcome is not None:
            cohort = _opened(body, reserved, plan, counts, seeded=draws is not None)
            found[number] = cohort
            if draws is not None:
                draws.check(body, reserved, list(cohort.survivors))
                draws.invited(list(cohort.sampled))
    missing = [r.number for r in ledger.rounds if r.outcome is not None and r.number not in found]
    require(not missing, f"private.jsonl lacks the rounds {missing[:3]}")
    _limits(found, ledger, plan)
    if plan.sampling in BY_TURNS and plan.limit is not None:
        require(max(counts.values(), default=0) <= plan.limit, "a client took part too often")
    return found


def _opened(
    body: dict[str, Any], reserved: Round, plan: Plan, counts: Counter[int], *, seeded: bool
) -> Cohort:
    stated = reserved.body.get("commitments")
    named = [*LISTS, "rest", *(["opening"] if seeded else [])]
    require(isinstance(stated, dict) and set(stated) == set(named), "other commitments")
    require(re.fullmatch("[0-9a-f]{64}", str(body.get("salt"))), "a salt is not 32 octets")
    salt = bytes.fromhex(body["salt"])
    lists = {name: _numbers(body.get(name), gaps=name != "participations") for name in LISTS}
    told: dict[str, Any] = {**lists, **({"opening": body.get("opening")} if seeded else {})}
    told["rest"] = {key: body[key] for key in body if key not in (*told, "round", "salt")}
    for name, value in told.items():
        digest = commitment(name, value, salt)
        require(digest == (stated or {})[name], f"{name} is not what was committed to")
    for name in ("sampled", "survivors"):
        ids = lists[name]
        require(ids == sorted(set(ids)), f"{name} does not increase")
        require(not ids or (ids[0] >= 0 and ids[-1] < plan.population), "no such client")
    sampled, survivors = lists["sampled"], lists["survivors"]
    require(set(survivors) <= set(sampled), "a survivor was not asked")
    if reserved.outcome == "abort":
        wanted = [] if reserved.body.get("before_unmask") is True else sampled
        require(survivors == wanted, "survivors of an aborted round")
    counts.update(survivors)
    require(lists["participations"] == [counts[i] for i in survivors], "other participations")
    return Cohort(sampled=tuple(sampled), survivors=tuple(survivors))


def commitment(name: str, value: Any, salt: bytes) -> str:
    """LEDGER.md, "A commitment is"."""
    content = (
        b"fedsys ledger commitment v1\0"
        + len(salt).to_bytes(4, "big")
        + salt
        + len(name).to_bytes(4, "big")
        + name.encode()
        + canonical(value)
    )
    return hashlib.sha256(content).hexdigest()


def _numbers(value: Any, *, gaps: bool) -> list[int]:
    if isinstance(value, list):
        require(all(type(each) is int for each in value), "a list of something else")
        return value
    require(isinstance(value, str), "neither a list nor a packed one")
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("a packed list is no base64") from None
    require(base64.b64encode(raw).decode() == value, "base64 in another form")
    numbers, number, place = [], 0, 0
    for octet in raw:
        number |= (octet & 0x7F) << (7 * place)
        place += 1
        require(place <= 6, "a packed number is too long")
        if octet < 0x80:
            require(octet or place == 1, "a packed number in another form")
            numbers.append(number)
            number, place = 0, 0
    require(place == 0, "a packed list ends within a number")
    if gaps:
        last = -1
        for index, gap in enumerate(numbers):
            last += gap + 1
            numbers[index] = last
    return numbers


def _limits(cohorts: dict[int, Cohort], ledger: Ledger, plan: Plan) -> None:
    last: dict[int, int] = {}
    for number, cohort in cohorts.items():
        is_committed = ledger.rounds[number - 1].outcome == "commit"
        size = len(cohort.sampled)
        if is_committed:
            require(size <= plan.cap, "a cohort over the cap")
            require(len(cohort.survivors) >= plan.least, "too few survivors")
        if plan.sampling != "poisson":
            small = plan.sampling == "arrivals" and not is_committed and size < plan.cohort
            require(size == round(plan.cohort) or small, "a cohort of another size")
        if plan.cyclic and plan.apart is not None:
            turn = (number - 1) % plan.apart
            require(all(i % plan.apart == turn for i in cohort.sampled), "a client out of turn")
        if plan.sampling == "min-separation" and plan.apart is not None:
            early = [i for i in cohort.sampled if number - last.get(i, -plan.apart) < plan.apart]
            require(not early, "a client came back too early")
            last.update(dict.fromkeys(cohort.sampled, number))
