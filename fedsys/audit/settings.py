"""Claims about settings: header, ``config.toml`` and ``summary.json`` must agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedsys.agreement import agrees
from fedsys.audit.asked import turns_of
from fedsys.audit.evidence import Config, Evidence
from fedsys.audit.wording import claim, value_text
from fedsys.privacy import LedgerView, PrivacyPlan, ledger_header
from fedsys.records import Claim
from fedsys.versions import code_hash

__all__ = ["config_claims", "header_claims", "origin_claims", "plan_claim"]

_WRITER = "the coordinator having run what it says"

_OTHER_KEYS = {
    "privacy.delta": "delta",
    "privacy.unit": "unit",
    "privacy.guarantee": "guarantee",
    "privacy.max_colluders": "colluders",
    "privacy.max_participations": "max_participations",
    "privacy.epsilon": "budget",
    "privacy.example_rate": "example_rate",
    "population.clients": "population",
    "cohort.sampling": "sampling",
    "cohort.expected": "expected_cohort",
    "cohort.cap": "cap",
    "cohort.min_survivors": "min_survivors",
    "cohort.participation": "participation",
    "cohort.min_separation": "min_separation",
    "rounds.count": "rounds",
    "aggregation.encoding": "encoding",
    "aggregation.modulus_bits": "modulus_bits",
    "aggregation.dropout": "dropout",
    "aggregation.noise": "noise",
}
_PROTOCOLS = ("secure", "ideal", "float")
_SUMMARY_KEYS = {"delta": "delta", "unit": "unit", "guarantee": "guarantee"}


def plan_claim(problem: str | None, plan: PrivacyPlan | None) -> Claim:
    """Whether the header holds a consistent plan."""
    words = problem or "nothing"
    if plan is not None:
        words = (
            f"{plan.mechanism}: N={plan.population}, cohort {plan.expected_cohort:g}, "
            f"{plan.rounds} rounds, z={plan.noise_multiplier:.6g}, C={plan.clip:.6g}"
        )
    return claim(
        "Privacy plan",
        problem is None,
        claimed="the header's constants are consistent",
        rederived=words,
        by="building the plan again",
        rests_on="the coordinator's word for N",
    )


def header_claims(header: Mapping[str, Any], plan: PrivacyPlan) -> Iterator[Claim]:
    """Delta and its parts, and what the header says about neighbours and accountants."""
    again = ledger_header(plan)
    stated, parts = _table(header, "delta_parts"), again["delta_parts"]
    yield claim(
        "Delta and its parts",
        set(stated) == set(parts)
        and all(_equal(stated[name], value) for name, value in parts.items())
        and header.get("delta") == plan.delta,
        claimed=_parts_text(stated),
        rederived=_parts_text(parts),
        by="exact tails of aborts; the noise's distance from a Gaussian",
        rests_on=_losses(plan),
    )
    wrong = [
        key
        for key in ("unit", "neighbours", "budget", "samplers", "not_covered")
        if header.get(key) != again[key]
    ]
    accountants = _table(header, "accountants")
    wrong += [
        f"accountants.{key}"
        for key, value in again["accountants"].items()
        if key != "versions" and accountants.get(key) != value
    ]
    trust, population = _table(header, "trust"), _table(header, "population")
    protocol = header.get("protocol")
    secure, floats = protocol == "secure", protocol == "float"
    for name, found, wanted in (
        ("population.clients", population.get("clients"), plan.population),
        ("trust.dropout", trust.get("dropout"), plan.dropout),
        ("release", header.get("release"), not floats),
        # A simulation must not pass for a run of secure aggregation, nor the reverse.
        ("plan.corrupt", plan.corrupt is not None, secure),
        ("trust.corrupt", trust.get("corrupt"), plan.corrupt if secure else trust.get("corrupt")),
        ("plan.encoding", plan.encoding == "float", floats),
        ("plan.noise", plan.noise == "once" and secure, False),
    ):
        wrong += [] if _equal(found, wanted) else [name]
    wrong += [] if protocol in _PROTOCOLS else ["protocol"]
    yield claim(
        "Header: neighbours, accountants, what is not covered",
        not wrong,
        claimed="as fedsys states them for this plan",
        rederived="differs: " + ", ".join(wrong) if wrong else "the same",
        by="writing the header again",
    )


def _losses(plan: PrivacyPlan) -> str:
    """The assumption behind the probability that a round is aborted."""
    if plan.dropout == 0:
        return "no member of a cohort being lost"
    return (
        f"each member of a cohort being lost with probability at most {plan.dropout:g}, "
        "independently of the others"
    )


def _parts_text(parts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value_text(value)}" for name, value in sorted(parts.items())[:8])


def config_claims(evidence: Evidence, view: LedgerView, plan: PrivacyPlan) -> Iterator[Claim]:
    """``config.toml`` against its hash and, key by key, against the plan."""
    config, stated = evidence.config.value, view.header.get("config_sha256")
    problem = "config.toml is missing" if evidence.config.missing else evidence.config.problem
    yield claim(
        "Configuration file",
        config is not None and config.sha256 == stated,
        claimed=value_text(stated),
        rederived=problem or (config.sha256 if config else ""),
        by="SHA-256 of config.toml against the header",
        rests_on=_WRITER,
    )
    summary = _table(evidence.summary.value, "privacy")
    for name, key, value in (
        ("Mechanism", "mechanism", plan.mechanism),
        ("Noise multiplier", "noise_multiplier", plan.noise_multiplier),
        ("Clipping norm", "clip", plan.clip),
    ):
        stated_by = {}
        if config is not None:
            stated_by["config.toml"] = config.get(f"privacy.{key}")
            if key == "noise_multiplier" and not plan.protected:
                stated_by["config.toml"] = stated_by["config.toml"] or 0.0
        if evidence.summary.value is not None:
            stated_by["summary.json"] = summary.get(key)
        yield claim(
            name,
            all(_equal(found, value) for found in stated_by.values()),
            claimed=", ".join(f"{value_text(v)} in {file}" for file, v in stated_by.items())
            or "nowhere but in the ledger",
            rederived=f"{value_text(value)} in the ledger",
            by="config.toml and summary.json against the plan",
            rests_on="the noise really being added: the coordinator's word"
            if key == "noise_multiplier"
            else _WRITER,
        )
    yield _others(config, summary, evidence, view, plan)


def _others(
    config: Config | None,
    summary: Mapping[str, Any],
    evidence: Evidence,
    view: LedgerView,
    plan: PrivacyPlan,
) -> Claim:
    facts, wrong = plan.to_json(), []

    def compare(where: str, found: Any, wanted: Any) -> None:
        if not _equal(found, wanted):
            wrong.append(f"{where} = {value_text(found)}, not {value_text(wanted)}")

    if config is not None:
        for key, fact in _OTHER_KEYS.items():
            wanted = facts.get(fact)
            if key == "aggregation.encoding" and plan.encoding == "float":
                wanted = "wide"  # protocol "float" has no encoding of its own
            if key == "rounds.count":
                wanted = turns_of(view, plan).trained(plan.rounds)
            found = config.get(key)
            if key == "cohort.sampling" and ":" in str(found):
                found = "chosen"  # by the code that the configuration names
            compare(key, found, wanted)
        every = config.get("evaluation.on_devices_every") or 0
        compare("evaluation.on_devices_every", every, turns_of(view, plan).every)
        quantile = config.get("privacy.adaptive_quantile")
        compare("adaptive clipping", quantile is not None, facts["adaptive_clip"])
        if config.get("privacy.example_rate") is None:
            compare("steps of an example's noise", facts["steps"], None)
        compare("job.name", config.get("job.name"), view.header.get("name"))
        compare(
            "aggregation.protocol", config.get("aggregation.protocol"), view.header.get("protocol")
        )
        trust = _table(view.header, "trust")
        compare("aggregation.corrupt", config.get("aggregation.corrupt"), trust.get("corrupt"))
    if evidence.summary.value is not None:
        for key, fact in _SUMMARY_KEYS.items():
            compare(f"summary privacy.{key}", summary.get(key), facts[fact])
        for key in ("name", "protocol"):
            compare(f"summary {key}", evidence.summary.value.get(key), view.header.get(key))
    return claim(
        "Other settings",
        not wrong,
        claimed="config.toml and summary.json as in the ledger",
        rederived="; ".join(wrong[:4]) or "the same",
        by="comparing key by key",
        rests_on=_WRITER,
    )


def origin_claims(evidence: Evidence, view: LedgerView, plan: PrivacyPlan) -> Iterator[Claim]:
    """The code that ran, its dependencies' versions, and where its randomness came from."""
    header, summary = view.header, evidence.summary.value
    stated, here = header.get("code_sha256"), code_hash()
    well_formed = isinstance(stated, str) and len(stated) == 64
    same = stated == here
    yield claim(
        "Code",
        True if same else None if well_formed else False,
        claimed=value_text(stated),
        rederived=here if same else f"{here} is installed here: another version, not decidable",
        by="SHA-256 of the installed packages against the header",
        rests_on=_WRITER,
    )
    yield from _resumed_claims(view)
    if summary is not None:
        versions = header.get("versions")
        same = summary.get("versions") == versions
        yield claim(
            "Versions",
            True if same else None if view.resumes else False,
            claimed="those of the header",
            rederived="the same"
            if same
            else "the run was resumed under other versions"
            if view.resumes
            else "summary.json names other versions",
            by="summary.json against the header",
            rests_on=_WRITER,
        )
    yield _randomness(header, summary, plan)


def _resumed_claims(view: LedgerView) -> Iterator[Claim]:
    """Whether the job was resumed with the code and versions that started it."""
    if not view.resumes:
        return
    began, versions = view.header.get("code_sha256"), view.header.get("versions")
    other = [
        (place, line["code_sha256"])
        for place, line in enumerate(view.resumes, start=1)
        if "code_sha256" in line and line["code_sha256"] != began
    ]
    silent = sum("code_sha256" not in line for line in view.resumes)
    moved = sum("versions" in line and line["versions"] != versions for line in view.resumes)
    said = [f"resumption {place} ran other code: {value_text(code)}" for place, code in other[:3]]
    said += [f"{moved} ran under other versions"] if moved else []
    said += [f"{silent} do not say what they ran"] if silent else []
    malformed = any(not isinstance(code, str) or len(code) != 64 for _, code in other)
    yield claim(
        "Code after resuming",
        False if malformed else None if said else True,
        claimed=value_text(began),
        rederived="; ".join(said) or f"the same in all {len(view.resumes)} resumptions",
        by="the resume lines against the header",
        rests_on=_WRITER,
    )


def _randomness(
    header: Mapping[str, Any], summary: Mapping[str, Any] | None, plan: PrivacyPlan
) -> Claim:
    seeded = header.get("reproducible") is not False
    agreed = summary is None or summary.get("reproducible") == header.get("reproducible")
    source = value_text(header.get("randomness"))
    holds = agreed and not (seeded and plan.protected)
    words = source
    if not agreed:
        words = "summary.json contradicts the header"
    elif seeded and plan.protected:
        words = f"reproducible, not private ({source}): its noise can be regenerated"
    elif seeded:
        words = f"{source}; no privacy is claimed"
    return claim(
        "Randomness",
        holds,
        claimed="nobody can regenerate noise and cohorts"
        if plan.protected
        else "no privacy is claimed",
        rederived=words,
        by="the header",
        rests_on="the coordinator's and the clients' word",
    )


def _table(body: Mapping[str, Any] | None, key: str) -> Mapping[str, Any]:
    found = (body or {}).get(key)
    return found if isinstance(found, dict) else {}


def _equal(found: Any, wanted: Any) -> bool:
    """Equality in which True is not 1 and floats may differ in their last bits."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, (int, float)) and isinstance(wanted, (int, float)):
        return agrees(found, wanted, relative=1e-12)
    return type(found) is type(wanted) and bool(found == wanted)
