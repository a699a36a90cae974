"""Claims about rounds that ask: their kind, and the answers that follow from what was released."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedsys.audit.evidence import Config, Evidence
from fedsys.audit.wording import claim, value_text
from fedsys.errors import ConfigError, FedsysError
from fedsys.privacy import LedgerView, PrivacyPlan
from fedsys.queries import Sheet, parse
from fedsys.queries.statement import released_of, same_statement, statement_of
from fedsys.records import Claim
from fedsys.wire.turns import Turns

__all__ = ["asked_claims", "kind_of", "turns_of"]

_KINDS = ("train", "query", "evaluate")


def kind_of(view: LedgerView) -> object:
    """What the header says that rounds ask for."""
    return view.header.get("kind")


def turns_of(view: LedgerView, plan: PrivacyPlan | None) -> Turns:
    """Which rounds the header says train, and which ask devices how good the model is."""
    stated, rounds = view.header.get("on_devices_every"), 0 if plan is None else plan.rounds
    between = kind_of(view) == "train" and type(stated) is int and stated > 0
    return Turns(rounds=rounds, every=stated if between and type(stated) is int else 0)


def asked_claims(evidence: Evidence, view: LedgerView, plan: PrivacyPlan | None) -> Iterator[Claim]:
    """The kind of the rounds, and the answers where they ask."""
    kind, turns = kind_of(view), turns_of(view, plan)
    other = [
        each.round
        for each in view.rounds
        if each.reserve.get("kind") != ("evaluate" if turns.evaluates(each.round) else kind)
    ]
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
    stated = (evidence.summary.value or {}).get("query")
    if kind == "train" and stated is not None:
        yield claim(
            "Answers",
            False,
            claimed=value_text(stated),
            rederived="rounds of training answer no question in summary.json",
            by="the header",
        )
    elif kind != "train" and plan is not None:
        yield _answers_claim(evidence, view, plan)
    if plan is not None and (turns.every or not evidence.answers.missing):
        yield _between_claim(evidence, view, plan, turns)


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
            holds, words = _derived(evidence, view, plan, stated, wanted)
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
    evidence: Evidence, view: LedgerView, plan: PrivacyPlan, stated: Any, wanted: object
) -> tuple[bool | None, str]:
    found = released_of(stated)
    config = evidence.config.value
    if found is None or config is None:
        return False, "summary.json states no released sum, or config.toml is missing"
    answer, digest = found
    if digest != wanted:
        return False, f"the sum in summary.json has hash {digest}"
    sheet = _sheet(config, "query.questions", plan)
    if len(answer) != sheet.size:
        return False, f"{len(answer)} coordinates, where the questions have {sheet.size}"
    derived = statement_of(
        sheet,
        str(kind_of(view)),
        answer,
        deviation=plan.build_mechanism().noise_deviation,
        rate=plan.rate,
        population=plan.population,
    )
    if not same_statement(stated, derived):
        return False, "other answers follow from that sum"
    return True, f"{len(sheet.questions)} answers, as stated"


def _sheet(config: Config, key: str, plan: PrivacyPlan) -> Sheet:
    """The questions in a configuration.

    Raises:
        ConfigError: there are none, or they are not questions.
    """
    questions = config.get(key)
    if not isinstance(questions, list):
        raise ConfigError("config.toml holds no questions")
    return Sheet.of(parse(questions), dimension=plan.dimension)


def _between_claim(evidence: Evidence, view: LedgerView, plan: PrivacyPlan, turns: Turns) -> Claim:
    """Whether every committed evaluation between rounds of training is stated, and follows from
    the sum that was committed."""
    try:
        holds, words = _between(evidence, view, plan, turns)
    except FedsysError as error:
        holds, words = False, str(error)
    return claim(
        "Evaluations on devices",
        holds,
        claimed=f"one after every {turns.every} rounds of training, and after the last",
        rederived=words,
        by="estimating again from each released sum, the questions and the plan's noise",
        rests_on="these sums being those that the rounds gave: the coordinator's word",
    )


def _between(
    evidence: Evidence, view: LedgerView, plan: PrivacyPlan, turns: Turns
) -> tuple[bool | None, str]:
    committed = {
        each.round: each.body.get("answer_sha256")
        for each in view.rounds
        if each.outcome == "commit" and turns.evaluates(each.round)
    }
    if moved := _moved(view, turns):
        return False, f"round {moved} asked, but committed another model than the round before"
    answers, config = evidence.answers.value, evidence.config.value
    if answers is None and committed:
        return False, evidence.answers.problem or "answers.jsonl is missing"
    lines = [] if answers is None else list(answers.lines())
    if answers is not None and answers.torn and view.closed is not None:
        return False, "answers.jsonl ends in an unfinished line"
    stated = {line["round"]: line for line in lines}
    if view.closed is None:  # a round that was not committed is dropped when the job goes on
        stated = {number: line for number, line in stated.items() if number in committed}
    elif len(stated) != len(lines):
        return False, "answers.jsonl states a round twice"
    if set(stated) != set(committed):
        wrong = min(set(stated) ^ set(committed))
        return False, f"round {value_text(wrong)} is in answers.jsonl or in the ledger, not in both"
    if config is None:
        return False, "config.toml is missing"
    sheet = _sheet(config, "evaluation.questions", plan)
    deviation = plan.build_mechanism().noise_deviation / plan.clip
    for number, line in stated.items():
        found = released_of(line)
        if found is None or found[1] != committed[number] or len(found[0]) != sheet.size:
            return False, f"round {number}: another sum than was committed"
        derived = statement_of(
            sheet,
            "evaluate",
            found[0],
            deviation=deviation,
            rate=plan.rate,
            population=plan.population,
        )
        wanted = {"round": number, "trained": turns.trained(number), **derived}
        if not same_statement(line, wanted):
            return False, f"round {number}: other answers follow from its sum"
    return True, f"{len(stated)} evaluations of {len(sheet.questions)} answers each, as stated"


def _moved(view: LedgerView, turns: Turns) -> int:
    """The first round that asked and yet committed another model; 0 where none did."""
    model = view.header.get("initial_weights_sha256")
    for each in view.rounds:
        if each.outcome != "commit":
            continue
        stated = each.body.get("weights_sha256")
        if turns.evaluates(each.round) and stated != model:
            return each.round
        model = stated
    return 0
