"""Claims about rounds that ask: their kind, and the answers that follow from what was released."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedsys.audit.evidence import Evidence
from fedsys.audit.wording import claim, value_text
from fedsys.errors import ConfigError, FedsysError
from fedsys.privacy import LedgerView, PrivacyPlan
from fedsys.queries import Sheet, parse
from fedsys.queries.statement import released_of, same_statement, statement_of
from fedsys.records import Claim

__all__ = ["asked_claims", "kind_of"]

_KINDS = ("train", "query", "evaluate")


def kind_of(view: LedgerView) -> object:
    """What the header says that rounds ask for."""
    return view.header.get("kind")


def asked_claims(evidence: Evidence, view: LedgerView, plan: PrivacyPlan | None) -> Iterator[Claim]:
    """The kind of the rounds, and the answers where they ask."""
    kind = kind_of(view)
    other = [each.round for each in view.rounds if each.reserve.get("kind") != kind]
    config = evidence.config.value
    asked = None if config is None else config.get("job.kind") or "train"
    words = f"{value_text(kind)} in the header"
    if other:
        found = view.rounds[other[0] - 1].reserve.get("kind")
        words += f"; round {other[0]} reserves {value_text(found)}"
    if asked is not None:
        words += f"; {value_text(asked)} in config.toml"
    yield claim(
        "Kind of rounds",
        kind in _KINDS and not other and asked in (None, kind),
        claimed=value_text(kind),
        rederived=words,
        by="the header, every reserve line and config.toml",
        rests_on="the coordinator having asked what it says; devices count what they agreed to",
    )
    if kind != "train" and plan is not None:
        yield _answers_claim(evidence, view, plan)


def _answers_claim(evidence: Evidence, view: LedgerView, plan: PrivacyPlan) -> Claim:
    """Whether the stated answers follow from the released sum, and that is what was committed."""
    summary = evidence.summary.value
    stated: Any = None if summary is None else summary.get("query")
    committed = [each for each in view.rounds if each.outcome == "commit"]
    wanted = committed[-1].body.get("answer_sha256") if committed else None
    holds: bool | None = None
    words = "no round was committed, and nothing is stated"
    if committed or stated is not None:
        try:
            holds, words = _derived(evidence, plan, stated, wanted)
        except FedsysError as error:
            holds, words = False, str(error)
    return claim(
        "Answers",
        holds,
        claimed=f"estimates from the sum with hash {value_text(wanted)}",
        rederived=words,
        by="estimating again from the released sum, the questions and the plan's noise",
        rests_on="this sum being the one that the round gave: the coordinator's word",
    )


def _derived(
    evidence: Evidence, plan: PrivacyPlan, stated: Any, wanted: object
) -> tuple[bool | None, str]:
    found = released_of(stated)
    config = evidence.config.value
    if found is None or config is None:
        return False, "summary.json states no released sum, or config.toml is missing"
    answer, digest = found
    if digest != wanted:
        return False, f"the sum in summary.json has hash {digest}"
    questions = config.get("query.questions")
    if not isinstance(questions, list):
        raise ConfigError("config.toml holds no questions")
    sheet = Sheet.of(parse(questions), dimension=plan.dimension)
    if len(answer) != sheet.size:
        return False, f"{len(answer)} coordinates, where the questions have {sheet.size}"
    derived = statement_of(
        sheet,
        str(stated.get("kind")),
        answer,
        deviation=plan.build_mechanism().noise_deviation,
        rate=plan.rate,
        population=plan.population,
    )
    if not same_statement(stated, derived):
        return False, "other answers follow from that sum"
    return True, f"{len(sheet.questions)} answers, as stated"
