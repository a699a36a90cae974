"""A verifier of run folders, written from ``fedsys/privacy/LEDGER.md``; it imports nothing of ours.

`verify` refuses what does not hold, and returns what each view's epsilon is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.verifier import agents, chain, private, transparency, views
from tests.verifier.chain import Ledger, canonical, require
from tests.verifier.delta import Parts, check_parts, parts
from tests.verifier.epsilon import ORDERS, accountant, epsilon
from tests.verifier.plan import FIXED_SIZE, Plan, Step, close
from tests.verifier.private import commitment

UPDATE_OR_ZERO = "one client's update or zero"
SECRET = ("clients_trained", "train_seconds", "clients_per_second", "simulated", "files")
UNBOUND = ("ledger_head", "salt", *SECRET)
FILES = ("private.jsonl", "clients.json", "canaries.jsonl")
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Verified:
    """What a folder proves.

    Attributes:
        ledger: whose chain holds.
        plan: of its header.
        epsilon: by view; the outsider's alone where cohorts are not known.
        total: (epsilon, delta) with the tuning runs, where any are stated.
    """

    ledger: Ledger
    plan: Plan
    epsilon: dict[str, float]
    total: tuple[float, float] | None


def verify(run: Path, key: Ed25519PublicKey | None = None) -> Verified:
    """Everything that LEDGER.md's "What a verifier checks" lists, of a finished run.

    Raises:
        Refused: something does not hold.
    """
    ledger = chain.read(run / "ledger.jsonl", key)
    header = ledger.header
    plan = Plan(header)
    derived = parts(plan)
    check_parts(header, derived)
    _check_header(header, plan, derived)
    require(len(ledger.rounds) <= plan.rounds, "more rounds than planned")
    known: set[bytes] = set()
    for each in ledger.rounds:
        require(each.kind == _kind(header, plan, each.number), "a round of another kind")
        if each.outcome == "commit":
            what = "weights_sha256" if each.kind == "train" else "answer_sha256"
            released = [each.body.get(name) for name in ("aggregate_sha256", what)]
            require(all(map(_is_hash, released)), "no hash of a release")
        text = canonical(each.event)
        if text not in known:
            plan.check_event(each.event, first=each.number == 1)
            known.add(text)
    found = {"outsider": views.outsider(ledger, plan, derived)}
    cohorts: dict[int, private.Cohort] = {}
    if (run / "private.jsonl").exists():
        cohorts = private.read(run / "private.jsonl", ledger, plan)
        found["participant"] = views.participant(ledger, plan, derived, cohorts)
        found["server"] = views.server(ledger, plan, derived, cohorts)
    if (run / "countersignatures.jsonl").exists():
        agents.check(run, ledger, plan, cohorts)
    total = _total(header, plan, derived, ledger, found["outsider"])
    _check_closing(run, ledger, plan)
    _check_answer(run, ledger, plan)
    _check_between(run, ledger, plan)
    _check_summary(run, ledger, plan, derived, found, total)
    _check_secrets(run, (ledger.closed or {}).get("secrets"))
    if (run / "ledger.tlog-proof").exists():
        transparency.check_proof(run / "ledger.tlog-proof", ledger)
    return Verified(ledger=ledger, plan=plan, epsilon=found, total=total)


def _check_header(header: dict[str, Any], plan: Plan, derived: Parts) -> None:
    stated = header.get("accountants")
    require(isinstance(stated, dict), "no accountants")
    reported = accountant(Counter({plan.outsider: 1}), derived.of("outsider"))
    require((stated or {}).get("reported") == reported, "another accountant")
    require((stated or {}).get("rdp_orders") == ORDERS, "other Rényi orders")
    require(header.get("neighbours") == neighbours(plan), "other neighbours")
    require(header["population"]["clients"] == plan.population, "another number of clients")
    require(header["trust"]["dropout"] == plan.body["dropout"], "another chance of losses")
    require(header.get("release") is (header.get("protocol") != "float"), "a release, or none")
    protocol, body = header.get("protocol"), plan.body
    require(protocol in ("secure", "ideal", "float"), "an unknown protocol")
    secure = protocol == "secure"
    require((body["corrupt"] is not None) == secure, "a quorum, or none")
    require(not secure or header["trust"]["corrupt"] == body["corrupt"], "other colluders")
    require((body["encoding"] == "float") == (protocol == "float"), "another protocol's encoding")
    require(not secure or body["noise"] == "per-client", "noise drawn once under secure")
    require(_is_hash(header.get("initial_weights_sha256")), "no hash of the first model")
    withheld = header.get("preprocessing") == "data-dependent" or (
        header.get("preprocessing") == "client-local" and plan.body["unit"] == "example"
    )
    require((header.get("withheld") is not None) == withheld, "claims withheld, or not")


def neighbours(plan: Plan) -> dict[str, str]:
    every = ("outsider", "participant", "server")
    if plan.body["unit"] == "example":
        return dict.fromkeys(every, "add or remove one example of one client")
    if plan.sampling == "arrivals":
        same = f"{UPDATE_OR_ZERO}, with the same uploads arriving in the same order"
        return dict.fromkeys(every, same)
    found = {
        "outsider": "add or remove one client",
        "participant": f"{UPDATE_OR_ZERO}; invited members see who else was invited",
        "server": f"{UPDATE_OR_ZERO}; it takes part either way (half of replacement)",
    }
    if plan.sampling in FIXED_SIZE:
        found["outsider"] = (
            "replace one client by another: cohorts have a fixed size, so without one of them "
            "somebody else comes in"
        )
        found["participant"] = (
            "replace one client's update by any other; invited members see who else was invited"
        )
    return found


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def summary_digest(summary: dict[str, Any]) -> str:
    shown = {name: value for name, value in summary.items() if name not in UNBOUND}
    privacy = dict(shown["privacy"])
    privacy["epsilon"] = privacy["epsilon"] | {"participant": None, "server": None}
    return hashlib.sha256(canonical(shown | {"privacy": privacy})).hexdigest()


def _check_closing(run: Path, ledger: Ledger, plan: Plan) -> None:
    closed = ledger.closed or {}
    require(ledger.closed is not None, "the ledger is unfinished")
    require(closed.get("lines") == len(ledger.lines), "the closing line counts other lines")
    whole = len(ledger.rounds) == plan.rounds
    require(whole or closed.get("reason") != "completed", "rounds are missing at the end")
    summary = json.loads((run / "summary.json").read_text())
    require(closed.get("summary_sha256") == summary_digest(summary), "another summary")
    for name in ("model.pt", "metrics.jsonl"):
        stated = closed.get(f"{name.split('.')[0]}_sha256")
        require(stated == _sha256(run / name), f"another {name}")
    stated = ledger.header.get("config_sha256")
    require(stated == _sha256(run / "config.toml"), "another config.toml")


def _check_secrets(run: Path, stated: Any) -> None:
    """LEDGER.md, "Kinds": what is never published."""
    summary = json.loads((run / "summary.json").read_text())
    views = summary["privacy"]["epsilon"]
    told = {view: views[view] for view in ("participant", "server") if views.get(view) is not None}
    there = [name for name in ("data.json", *FILES[1:]) if (run / name).exists()]
    underived = told if not (run / "private.jsonl").exists() else {}
    if not (underived or there or any(name in summary for name in (*SECRET, "salt"))):
        return
    require(re.fullmatch("[0-9a-f]{64}", str(summary.get("salt"))), "no salt")
    value: dict[str, Any] = {
        "data_sha256": _sha256(run / "data.json"),
        "summary": {name: summary[name] for name in SECRET if name in summary},
    }
    if "files" in summary:
        value["epsilon"] = told
    found = commitment("secrets", value, bytes.fromhex(summary["salt"]))
    require(stated == found, "other counts, times or epsilons")
    for name in FILES:
        file = _sha256(run / name)
        require(
            file is None or "files" not in summary or file == summary["files"].get(name),
            f"another {name}",
        )


def _kind(header: dict[str, Any], plan: Plan, number: int) -> Any:
    """LEDGER.md, "Rounds that ask": of each round."""
    every = header.get("on_devices_every")
    if every is None:
        return header.get("kind")
    require(type(every) is int and every > 0 and header.get("kind") == "train", "no such turns")
    asks = number % (every + 1) == 0 or number == plan.rounds
    return "evaluate" if asks else "train"


def _check_between(run: Path, ledger: Ledger, plan: Plan) -> None:
    """LEDGER.md, "Rounds that ask": between rounds of training."""
    every = ledger.header.get("on_devices_every") or 0
    path = run / "answers.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = {line["round"]: line for line in lines}
    require(len(found) == len(lines), "a round answers twice")
    wanted = {
        each.number: each
        for each in ledger.rounds
        if each.outcome == "commit" and each.kind == "evaluate" and every
    }
    require(set(found) == set(wanted), "answers of other rounds")
    for number, each in wanted.items():
        line = found[number]
        vector = struct.pack(f"<{len(line['released'])}f", *line["released"])
        digest = hashlib.sha256(vector).hexdigest()
        require(digest == each.body.get("answer_sha256"), "another answer was committed")
        per_mean = each.event["scale"] * plan.cohort * plan.clip
        deviation = math.sqrt(each.event["total_variance"]) / per_mean
        require(close(line["deviation"], deviation, 1e-9), "noise")
        last = number == plan.rounds and number % (every + 1) != 0
        trained = number - number // (every + 1) - last
        require(line["trained"] == trained and line["kind"] == "evaluate", "another evaluation")


def _check_answer(run: Path, ledger: Ledger, plan: Plan) -> None:
    """LEDGER.md, "Rounds that ask"."""
    stated = json.loads((run / "summary.json").read_text()).get("query")
    kind = ledger.header.get("kind")
    require(kind in ("train", "query", "evaluate"), "rounds of an unknown kind")
    committed = [each for each in ledger.rounds if each.outcome == "commit"]
    if kind == "train" or not committed:
        require(stated is None, "answers, where nothing was asked")
        return
    require(isinstance(stated, dict) and stated["kind"] == kind, "no answers")
    require(plan.rounds == 1 and plan.clip == 1, "questions under another plan")
    vector = struct.pack(f"<{len(stated['released'])}f", *stated["released"])
    digest = hashlib.sha256(vector).hexdigest()
    require(digest == committed[0].body.get("answer_sha256"), "another answer was committed")
    event = committed[0].event
    per_mean = event["scale"] * plan.cohort
    require(
        close(stated["deviation"], math.sqrt(event["total_variance"]) / per_mean, 1e-9), "noise"
    )
    require(close(sum(each**2 for each in stated["shares"]), 1.0, 1e-9), "shares of another norm")


def _check_summary(
    run: Path,
    ledger: Ledger,
    plan: Plan,
    derived: Parts,
    found: dict[str, float],
    total: tuple[float, float] | None,
) -> None:
    summary = json.loads((run / "summary.json").read_text())
    require(summary.get("ledger_head") == ledger.head, "another head")
    privacy = summary["privacy"]
    for view, value in found.items():
        stated = privacy["epsilon"][view]
        published = stated is None and view != "outsider"
        require(published or same(stated, value), f"{view}: {stated}, derived {value}")
    budget = planned(plan, derived)
    stated = privacy["budget"]
    require(stated is None if budget is None else same(stated, budget), "another budget")
    said = privacy["total"]
    require((said is None) == (total is None), "a total, or none")
    if total is not None:
        require(same(said["epsilon"], total[0]) and same(said["delta"], total[1]), "another total")
        tuning = ledger.header["tuning"]
        require(said["runs"] == tuning["runs"], "other tuning runs")
        require(said["before"] == tuning["epsilon"], "another epsilon before")


def same(stated: Any, derived: float) -> bool:
    """Whether a stated epsilon agrees."""
    if stated == "inf":
        return math.isinf(derived)
    return close(stated, derived, TOLERANCE)


def planned(plan: Plan, derived: Parts) -> float | None:
    """The summary's budget."""
    if plan.mechanism == "none":
        return None
    if plan.body["budget"] is not None:
        return float(plan.body["budget"])
    view, steps = "outsider", views.outsider_steps(plan, plan.rounds)
    if plan.body["guarantee"] == "server":
        view, steps = "server", Counter({plan.server(): plan.own(plan.rounds)})
    found = epsilon(steps, derived.of(view))
    return found if found <= derived.covered[view] else math.inf


def _total(
    header: dict[str, Any], plan: Plan, derived: Parts, ledger: Ledger, spent: float
) -> tuple[float, float] | None:
    tuning = header.get("tuning") or {}
    if not tuning.get("runs") or plan.mechanism == "none":
        return None
    before = tuning.get("epsilon")
    summed = (math.inf if before in (None, "inf") else float(before)) + spent
    sums = summed, (tuning.get("delta") or 0.0) + plan.delta
    part = tuning.get("part")
    if part is None or math.isinf(summed):
        return sums
    steps: Counter[Step] = views.outsider_steps(plan, len(ledger.rounds))
    for multiplier, rate, replaces, count in part["steps"]:
        steps[Step(multiplier, rate, bool(replaces))] += int(count)
    largest = max(part["delta"], plan.delta)
    left = largest - part["overhead"] - (plan.delta - derived.of("outsider"))
    if left <= 0:
        return sums
    found = epsilon(steps, left * (1 - 1e-9))
    aside = derived.of("noise_outsider")
    distances = [part["log_distance"]]
    if aside > 0:
        distances.append(math.log(aside) - _log1p_exp(derived.covered["outsider"]))
    needed = math.log(sum(math.exp(each - max(distances)) for each in distances))
    needed += max(distances) + _log1p_exp(found)
    paid = math.log(part["aside"] + aside + 1e-9 * left)
    return (found, largest) if needed <= paid else sums


def _log1p_exp(x: float) -> float:
    return x + math.log1p(math.exp(-x))
