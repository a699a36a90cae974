"""All constants of a job: what an agent's owner agrees to before anything is spent."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from fedsys.errors import MechanismError, ProtocolError
from fedsys.privacy import PrivacyPlan
from fedsys.wire.canonical import decode_object, encode_object
from fedsys.wire.roster import MAX_MEMBERS
from fedsys.wire.turns import Turns
from secure_agg.committee import SUITE_NAMES
from secure_agg.params import MAX_COHORT

__all__ = ["MAX_ROUNDS", "Buffering", "Terms"]

MAX_ROUNDS = 1_000_000
"""The most rounds of a job that devices are asked to agree to."""

_TEXTS = ("name", "task", "task_sha256", "graph_sha256", "path", "roster_hash")
_OPTIONAL = frozenset({"evaluate_every", "frozen_sha256", "members", "suite"})
"""Fields that are left out where they say nothing."""
_NUMBERS = ("seed", "roster_version", "dimension", "shared", "weight_cap")
_SHA256 = re.compile("[0-9a-f]{64}")
_MOST_TEXT = 200
"""Characters of a name, which people will read in logs and on terminals."""


_USUAL_SUITE = "x25519"
_MOST_BUFFERS = 10_000
_MOST_STALE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Buffering:
    """Constants of buffered rounds besides the plan, whose `cap` is the size of a buffer.

    Attributes:
        concurrency: number of devices that train at a time.
        epoch: number of buffers that one committee serves with the same sealing keys.
        max_staleness: most versions of the model that may be released while a device trains.

    Raises:
        ProtocolError: a number is out of its range.
    """

    concurrency: int
    epoch: int
    max_staleness: int

    def __post_init__(self) -> None:
        ranges = {
            "concurrency": (2, MAX_MEMBERS),
            "epoch": (2, _MOST_BUFFERS),
            "max_staleness": (0, _MOST_STALE),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ProtocolError(f"{name} is {value!r}: an integer from {least} to {most}")

    def largest_epoch(self, plan: PrivacyPlan) -> int:
        """The most members that an epoch may invite: those that train at its beginning, and one
        for each upload that its buffers take, up to secure aggregation's `MAX_COHORT`."""
        wanted = self.concurrency + self.epoch * plan.cap
        return min(plan.population, wanted, MAX_COHORT)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Constants of a job; an assignment identifies them by their digest.

    Attributes:
        job: 32 bytes that name the job.
        name: the job's name for people.
        task: the task's name, which the agent must have installed.
        options: the task's options.
        task_sha256: SHA-256 of the coordinator's copy of the task's code, as hex.
        graph_sha256: SHA-256 of the graph of the task's gradient, as hex, for devices that train
            from it instead of from the code; empty for none.
        local: local training, by field name.
        path: path of local training.
        dimension: d, weights of the model; adaptive clipping adds to the vectors of the plan.
        example_clip: norm of one example's gradient, where examples are the unit.
        plan: the privacy parameters.
        seed: seed from which clients derive their batch order.
        roster_version: version of the list of members from which cohorts are drawn.
        roster_hash: hash of that list, as hex.
        answer: when uploads may leave at the earliest: ``at-once``, ``bucketed`` or
            ``at-deadline``; see `client.answer_time`.
        buffering: constants of buffered rounds; None where rounds are synchronous.
        shared: numbers that the coordinator sends with each model, for a local procedure.
        weight_cap: number of examples at which a client's weight is 1; 0 where clients count alike.
        kind: what rounds ask for: ``train``, ``query`` or ``evaluate``.
        questions: of a round that asks, as `fedsys.queries.parse` reads them; each device checks
            them itself.
        evaluate_every: rounds of training after which, and after the last, one round asks these
            questions of the model; 0 where only rounds of training come.
        held_out: fraction of a device's rows that it does not train on and keeps for evaluations.
        members: increasing node ids of those on that list who take part; none stand for all.
        frozen_sha256: SHA-256 of the frozen weights and buffers of the coordinator's copy of the
            model, as hex, for devices that build it from the task's code; empty where it has none.
        suite: how shares of keys are sealed, as `secure_agg.committee.SUITE_NAMES` calls it.
    """

    job: bytes
    name: str
    task: str
    options: Mapping[str, Any]
    task_sha256: str
    local: Mapping[str, Any]
    path: str
    dimension: int
    example_clip: float
    plan: PrivacyPlan
    seed: int
    roster_version: int
    roster_hash: str
    answer: Literal["at-once", "bucketed", "at-deadline"] = "bucketed"
    graph_sha256: str = ""
    buffering: Buffering | None = None
    shared: int = 0
    weight_cap: int = 0
    kind: Literal["train", "query", "evaluate"] = "train"
    questions: Sequence[Mapping[str, Any]] = ()
    held_out: float = 0.0
    evaluate_every: int = 0
    members: tuple[int, ...] = ()
    frozen_sha256: str = ""
    suite: str = _USUAL_SUITE

    @property
    def secagg_suite(self) -> int:
        """The suite's number in `secure_agg`."""
        return SUITE_NAMES[self.suite]

    def kind_of(self, round: int) -> Literal["train", "query", "evaluate"]:
        """What a round of this job asks for."""
        turns = Turns(rounds=self.plan.rounds, every=self.evaluate_every)
        return "evaluate" if turns.evaluates(round) else self.kind

    @property
    def row_length(self) -> int:
        """Coordinates of a client's vector, before adaptive clipping adds its bits."""
        adds = self.kind == "train" and self.plan.adaptive_clip
        return self.dimension if adds else self.plan.dimension

    @property
    def largest_cohort(self) -> int:
        """The most members that are invited together."""
        return self.plan.cap if self.buffering is None else self.buffering.largest_epoch(self.plan)

    @cached_property
    def encoded(self) -> bytes:
        """Canonical bytes."""
        body = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        buffering = None if self.buffering is None else dataclasses.asdict(self.buffering)
        part = {
            key: value for key in _OPTIONAL if (value := body.pop(key)) and value != _USUAL_SUITE
        }
        return encode_object(
            {
                **body,
                **part,
                "job": self.job.hex(),
                "plan": self.plan.to_json(),
                "buffering": buffering,
                "questions": list(self.questions),
            }
        )

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes."""
        return hashlib.sha256(b"fedsys terms v1\x00" + self.encoded).digest()

    @classmethod
    def decode(cls, data: bytes) -> Terms:
        """The terms that these bytes encode.

        Raises:
            ProtocolError: they are not terms, or those of an impossible job.
        """
        keys = frozenset(item.name for item in dataclasses.fields(cls))
        body = decode_object(data, "a job's terms", keys - _OPTIONAL, optional=_OPTIONAL)
        try:
            job = bytes.fromhex(body["job"])
            texts = [body[key] for key in _TEXTS]
            numbers = [body[key] for key in _NUMBERS]
            tables = [body[key] for key in ("options", "local")]
            if (
                len(job) != 32
                or not all(type(each) is str for each in texts)
                or not all(type(each) is int and 0 <= each < 2**63 for each in numbers)
                or not all(type(each) is dict for each in tables)
                or type(body["example_clip"]) is not float
                or not body["example_clip"] > 0
                or body["answer"] not in ("at-once", "bucketed", "at-deadline")
            ):
                raise ValueError("a value of the wrong type")
            _check_asking(body)
            if not all(each.isprintable() and len(each) <= _MOST_TEXT for each in texts):
                raise ValueError("a name that is too long or not printable")
            members = tuple(body.get("members", ()))
            if not all(type(each) is int and 0 <= each < 2**31 for each in members):
                raise ValueError("members that are no node ids")
            if "members" in body and not members:
                raise ValueError("an empty list of members")
            if _SHA256.fullmatch(body.get("frozen_sha256", "0" * 64)) is None:
                raise ValueError("a hash of frozen weights that is none")
            suite = body.get("suite", _USUAL_SUITE)
            if "suite" in body and (suite not in SUITE_NAMES or suite == _USUAL_SUITE):
                raise ValueError(f"suite {suite!r}, which this version does not know")
            plan = _plan(body["plan"])
            buffering = body["buffering"]
            if buffering is not None:
                buffering = Buffering(**buffering)
            if (buffering is not None) != (plan.sampling == "arrivals"):
                raise ValueError("buffered rounds require arrivals as cohorts, and vice versa")
            if plan.sampling == "chosen":
                raise ValueError("cohorts that the coordinator chooses, instead of drawing them")
        except (
            ProtocolError,
            MechanismError,
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise ProtocolError(f"a job's terms: {error}") from None
        made = {"job": job, "plan": plan, "buffering": buffering, "members": members}
        return cls(**{**body, **made, "questions": tuple(body["questions"])})


def _check_asking(body: Mapping[str, Any]) -> None:
    """Raise ValueError unless what rounds ask for is of the right type and in one piece."""
    kind, questions, held_out = body["kind"], body["questions"], body["held_out"]
    every = body.get("evaluate_every", 0)
    if "evaluate_every" in body and not (type(every) is int and 0 < every <= MAX_ROUNDS):
        raise ValueError("evaluations after no number of rounds")
    if every and (kind != "train" or body["buffering"] is not None or not held_out):
        raise ValueError("evaluations between rounds that do not train, or of no rows")
    if (
        kind not in ("train", "query", "evaluate")
        or type(questions) is not list
        or not all(type(each) is dict for each in questions)
        or (kind == "train" and not every) != (not questions)
        or type(held_out) is not float
        or not 0 <= held_out < 1
    ):
        raise ValueError("rounds that ask for something unknown")
    if kind != "train" and (body["buffering"] is not None or body["plan"]["rounds"] != 1):
        raise ValueError("questions that are asked more than once")


def _plan(body: Any) -> PrivacyPlan:
    """A plan that another party wrote; what bounds the work of checking is checked first."""
    most = {"population": MAX_MEMBERS, "expected_cohort": MAX_MEMBERS, "rounds": MAX_ROUNDS}
    for name, limit in most.items():
        if not 0 < body[name] <= limit:
            raise ValueError(f"{name} is {body[name]!r}: above 0 and at most {limit}")
    return PrivacyPlan.from_json(body)
