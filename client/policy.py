"""The owner's policy: what a coordinator may ask of this device. A refusal says why.

``policy.toml`` in the device's folder is a `Policy`, key by key; it is read again before every job
and every round, so that a change takes effect at once, also in a job that was agreed to before.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fedsys.errors import Cause, ConfigError, PolicyRefusal
from fedsys.privacy import PrivacyPlan, event_from_json
from fedsys.queries import EVALUATED, Question, parse
from fedsys.transparency import NoteError, VerifierKey
from fedsys.transparency.cosignature import require_witness
from fedsys.wire import Assignment
from fedsys.wire.roster import RosterStatement
from fedsys.wire.terms import Terms

__all__ = ["ApprovedTask", "Policy", "QueryPolicy", "own_noise"]

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class ApprovedTask:
    """A task that the owner approved, by the hash of its installed code or of its graph.

    Attributes:
        sha256: SHA-256 of its code, as `fedsys.tasks.code` computes it, or of its graph's file.
        options: The options with which it may run; no others are allowed.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    sha256: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class QueryPolicy:
    """What rounds may ask besides training. Their epsilon counts with that of all jobs.

    Attributes:
        allow: Kinds of rounds that are answered, of ``query`` and ``evaluate``; training is always
            allowed.
        columns: Columns that may be read, besides loss, accuracy, prediction and confidence in an
            evaluation. If left out, all of the task's.
        min_bins: Fewest bins of a question that counts rows by bin; one bin alone could single out
            a person that the coordinator describes.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    allow: tuple[Literal["query", "evaluate"], ...] = ("query", "evaluate")
    columns: tuple[str, ...] | None = None
    min_bins: Count = 0

    def check(self, kind: str, questions: Sequence[Question]) -> None:
        """Raise PolicyRefusal unless a round of this kind may ask these questions.

        Args:
            kind: ``query`` or ``evaluate``.
            questions: as `fedsys.queries.parse` returned them.

        Raises:
            PolicyRefusal: the message names the limit, its value and what was asked.
        """
        if kind not in self.allow:
            raise PolicyRefusal(
                f"a job of kind '{kind}', where the owner's queries.allow is {list(self.allow)}",
                cause=Cause.QUESTION,
            )
        for each in questions:
            known = EVALUATED if kind == "evaluate" else frozenset()
            allowed = None if self.columns is None else known.union(self.columns)
            barred = set() if allowed is None else set(each.columns_used) - allowed
            if barred:
                raise PolicyRefusal(
                    f"question '{each.name}' reads column '{min(barred)}', which is not among the "
                    f"owner's queries.columns",
                    cause=Cause.QUESTION,
                )
            if each.bins_used is not None and each.bins_used < self.min_bins:
                raise PolicyRefusal(
                    f"question '{each.name}' has {each.bins_used} bins, fewer than the owner's "
                    f"queries.min_bins {self.min_bins}",
                    cause=Cause.QUESTION,
                )


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Limits that an agent checks before it computes anything.

    The defaults limit nothing, which suits a simulation's virtual clients; a device starts with
    `fresh`.

    Attributes:
        tasks: Tasks that may run, by name, each with the hash of the code that was approved and
            the options it may run with. If left out, every installed task may run.
        min_cohort: Minimum number of members that a round must have invited.
        corrupt: Minimum fraction of a cohort's members that secure aggregation must withstand as
            colluders. It bounds them only if the coordinator samples cohorts honestly.
        colluders: Minimum number of colluding devices, out of all, that it must withstand whatever
            cohorts the coordinator chooses.
        max_clip: Largest clipping norm.
        min_noise_multiplier: Minimum noise multiplier of a whole cohort; 0 allows no noise at all.
        min_own_noise: Minimum standard deviation of this device's own noise, in clipping norms.
        max_participations: Maximum number of rounds of one job in which this client takes part.
        epsilon: Maximum epsilon that it spends over all jobs, by its own count.
        epsilon_view: The view whose epsilon is counted; ``guarantee`` is the view that each job
            promises.
        max_roster_version: Newest roster version that this device accepts. If left out, every
            signed successor is accepted.
        witnesses: Verifier keys of the witnesses that the owner knows, as ``fedsys witness init``
            prints them.
        witness_threshold: How many of these witnesses must have cosigned a ledger in which the
            round is reserved, before anything is computed for it.
        hours: Local times at which the device works, such as ``"22:00-06:00"``; empty for always.
        only_idle: Whether it works only while its processors are mostly idle.
        only_on_mains: Whether it works only on mains power.
        when_unknown: What to do if the device cannot determine whether a condition holds.
        threads: Processor threads for training.
        nice: Niceness that is added to the process.
        min_free_memory_mb: Minimum free memory, in MB, with which the device works.
        gpu: Whether a GPU may be used.
        answer: The earliest time at which an upload leaves; a job may be stricter. ``at-once``
            reveals how long training took, and so how much data there is; ``bucketed`` waits for
            one of a few times that follow from the job alone; ``at-deadline`` waits for the end of
            the stage.
        explain: Whether the coordinator may read why this device declines. Such a reason names the
            owner's limits, what other jobs have spent and the device's state; without it, a
            refusal carries its cause and nothing else.
        queries: What rounds may ask besides training.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    tasks: Mapping[str, ApprovedTask] | None = None
    min_cohort: Count = 2
    corrupt: float = 0.0
    colluders: int = 0
    max_clip: float = math.inf
    min_noise_multiplier: float = 0.0
    min_own_noise: float = 0.0
    max_participations: Count | None = None
    epsilon: float = math.inf
    epsilon_view: Literal["guarantee", "outsider", "server"] = "guarantee"
    max_roster_version: Count | None = None
    witnesses: tuple[str, ...] = ()
    witness_threshold: int = 0
    hours: tuple[str, ...] = ()
    only_idle: bool = False
    only_on_mains: bool = False
    when_unknown: Literal["allow", "refuse"] = "refuse"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    min_free_memory_mb: Count = 0
    gpu: bool = False
    answer: Literal["at-once", "bucketed", "at-deadline"] = "at-once"
    explain: bool = False
    queries: QueryPolicy = field(default_factory=QueryPolicy)

    def __post_init__(self) -> None:
        for name in ("max_clip", "min_noise_multiplier", "min_own_noise", "epsilon"):
            value = getattr(self, name)
            if not value >= 0:  # also refuses NaN, with which every comparison is false
                raise ConfigError(f"{name} = {value}: a limit is a number that is not below 0")
        if not 0 <= self.corrupt < 1:
            raise ConfigError(f"corrupt = {self.corrupt}: a fraction from 0 to below 1")
        if self.colluders < 0:
            raise ConfigError(f"colluders = {self.colluders}: a number of devices from 0")
        try:
            keys = [require_witness(VerifierKey.parse(each)) for each in self.witnesses]
        except NoteError as error:
            raise ConfigError(f"witnesses: {error}") from None
        known = len({key.public for key in keys})
        if known < len(keys):
            raise ConfigError("witnesses: two of them have the same key")
        if not 0 <= self.witness_threshold <= known:
            raise ConfigError(
                f"witness_threshold = {self.witness_threshold}: a number from 0 to that of the "
                f"witnesses, {known}"
            )

    @classmethod
    def fresh(cls, task: str, approved: ApprovedTask, *, corrupt: float = 0.1) -> Policy:
        """The policy of a new device: one task, cohorts of at least three, of which a fraction
        `corrupt` may collude, and epsilon 10 in total."""
        return cls(
            tasks={task: approved},
            min_cohort=3,
            corrupt=corrupt,
            epsilon=10.0,
            answer="bucketed",
            queries=QueryPolicy(allow=()),
        )

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read ``policy.toml``.

        Raises:
            ConfigError: it cannot be read; the message names the key.
        """
        try:
            return _ADAPTER.validate_python(tomllib.loads(path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from None
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            shown = repr(problem["input"])
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            raise ConfigError(f"{path}: {where} = {shown}: {problem['msg'].lower()}") from None

    def dump(self) -> str:
        """The policy as TOML, with comments."""
        tree = _ADAPTER.dump_python(self, mode="python", exclude_none=True)
        return _HEADER + tomli_w.dumps(tree)

    def check(self, assignment: Assignment, *, participations: int) -> None:
        """Raise unless the assignment is within these limits.

        Args:
            assignment: what the coordinator asks for.
            participations: rounds of this job already taken part in, by the client's own count.

        Raises:
            PolicyRefusal: the message names the limit, its value and what was asked.
        """
        self.check_task(assignment.task)
        self.check_mechanism(assignment.mechanism)
        if self.max_participations is not None and participations >= self.max_participations:
            raise PolicyRefusal(
                f"already took part in {participations} rounds of this job, the owner's "
                f"max_participations",
                cause=Cause.PARTICIPATION,
            )

    def check_terms(self, terms: Terms, roster: RosterStatement, sha256: str) -> None:
        """Raise unless what a job's terms ask is within these limits.

        A job may run for long, so this is checked when it is offered and again whenever its next
        contribution is asked for: a limit counts as soon as it is written.

        Args:
            terms: the terms offered, or agreed to before.
            roster: those of the job's list who take part.
            sha256: of the task's code or graph that this device has.

        Raises:
            PolicyRefusal: the message names the limit, its value and what was asked.
        """
        plan, newest = terms.plan, self.max_roster_version
        if newest is not None and roster.version > newest:
            raise PolicyRefusal(
                f"the job uses roster version {roster.version}, the owner's max_roster_version "
                f"is {newest}",
                cause=Cause.ROSTER,
            )
        if self.witness_threshold and terms.buffering is not None:
            raise PolicyRefusal(
                f"buffered rounds do not prove that witnesses saw their reservations, which the "
                f"owner's witness_threshold {self.witness_threshold} requires",
                cause=Cause.WITNESSES,
            )
        self.check_task(terms.task, terms.options, sha256)
        if plan.expected_cohort < self.min_cohort:
            raise PolicyRefusal(
                f"cohorts of {plan.expected_cohort:g} are below the owner's min_cohort "
                f"{self.min_cohort}",
                cause=Cause.COHORT,
            )
        self.check_colluders(plan, roster.colluders)
        self.check_mechanism(plan.event().to_json())
        if terms.kind != "train" or terms.evaluate_every:
            try:
                asked = parse(terms.questions)
            except ConfigError as error:
                raise PolicyRefusal(str(error), cause=Cause.QUESTION) from None
            self.queries.check("evaluate" if terms.evaluate_every else terms.kind, asked)

    def check_task(
        self,
        task: str,
        options: Mapping[str, Any] | None = None,
        sha256: str | None = None,
    ) -> None:
        """Raise PolicyRefusal unless this task, with these options and this code, may run."""
        if self.tasks is None:
            return
        approved = self.tasks.get(task)
        if approved is None:
            raise PolicyRefusal(
                f"task '{task}' is not on the owner's list "
                f"({', '.join(sorted(self.tasks)) or 'empty'})",
                cause=Cause.TASK,
            )
        if options is not None and dict(options) != dict(approved.options):
            raise PolicyRefusal(
                f"task '{task}' is approved with options {dict(approved.options)}, but asked for "
                f"with {dict(options)}",
                cause=Cause.TASK,
            )
        if sha256 is not None and sha256 != approved.sha256:
            raise PolicyRefusal(
                f"the code or graph of task '{task}' here ({sha256}) is not what the owner "
                f"approved ({approved.sha256}); the owner has to approve it again",
                cause=Cause.TASK,
            )

    def check_mechanism(self, mechanism: Mapping[str, Any]) -> None:
        """Raise PolicyRefusal unless clipping norm and noise are within the limits."""
        clip = float(mechanism.get("clip", math.inf))
        if not clip <= self.max_clip:
            raise PolicyRefusal(
                f"clip {clip:g} is above the owner's max_clip {self.max_clip:g}",
                cause=Cause.MECHANISM,
            )
        noise = float(mechanism.get("noise_multiplier") or 0.0)
        if not noise >= self.min_noise_multiplier:
            raise PolicyRefusal(
                f"noise multiplier {noise:g} is below the owner's min_noise_multiplier "
                f"{self.min_noise_multiplier:g}",
                cause=Cause.MECHANISM,
            )
        if self.min_own_noise > 0 and not (own := own_noise(mechanism)) >= self.min_own_noise:
            raise PolicyRefusal(
                f"this device's own noise would be {own:.3g} clipping norms, below the owner's "
                f"min_own_noise {self.min_own_noise:g}",
                cause=Cause.MECHANISM,
            )

    def check_cohort(self, size: int) -> None:
        """Raise PolicyRefusal for a round with too few members."""
        if size < self.min_cohort:
            raise PolicyRefusal(
                f"a cohort of {size} is below the owner's min_cohort {self.min_cohort}",
                cause=Cause.COHORT,
            )

    def check_colluders(self, plan: PrivacyPlan, roster: int) -> None:
        """Raise PolicyRefusal if a job withstands fewer colluders than the owner assumes.

        Args:
            plan: the job's plan.
            roster: number of colluders that the roster's authority states.
        """
        corrupt = plan.corrupt
        if corrupt is None or not corrupt >= self.corrupt:
            stated = "no" if corrupt is None else f"{corrupt:g} as the"
            raise PolicyRefusal(
                f"the job takes {stated} fraction of a cohort for colluders, aggregation.corrupt, "
                f"where the owner's policy says corrupt = {self.corrupt:g}",
                cause=Cause.COHORT,
            )
        if plan.colluders < max(self.colluders, roster):
            raise PolicyRefusal(
                f"the job withstands {plan.colluders} colluders, privacy.max_colluders, where the "
                f"owner's policy says colluders = {self.colluders} and the roster {roster}",
                cause=Cause.COHORT,
            )

    def check_epsilon(self, *, others: float, after: float) -> None:
        """Raise PolicyRefusal if a job would bring the device's total over its limit.

        Args:
            others: epsilon spent in other jobs.
            after: epsilon of this job after what is asked.
        """
        total = others + after
        if not total <= self.epsilon * (1 + 1e-9):
            raise PolicyRefusal(
                f"epsilon would reach {total:.4g} ({others:.4g} of it in other jobs), over the "
                f"owner's total of {self.epsilon:g}",
                cause=Cause.EPSILON,
            )


def own_noise(mechanism: Mapping[str, Any]) -> float:
    """Standard deviation of one client's own noise, in clipping norms.

    Args:
        mechanism: an event as JSON, as assignments hold it.

    Raises:
        MechanismError: it is not an event, or of an unknown mechanism.
    """
    return event_from_json(mechanism).own_noise


_ADAPTER = TypeAdapter(Policy)
_HEADER = """\
# What the owner of this device allows. Read again before every job and every round.
# tasks:         what may run, with the SHA-256 of the code that was approved
# min_cohort:    minimum number of members of a round
# corrupt:       fraction of a round's members that may collude with the coordinator without
#                learning more than a sum, provided that the coordinator samples as it promises
# colluders:     the same as a number of devices, whatever cohorts the coordinator chooses
# epsilon:       privacy spent in total over all jobs, by this device's own count;
#                epsilon_view says in which view: guarantee (the job's promise), outsider or server
# witnesses:     keys of witnesses, of which witness_threshold must have cosigned the coordinator's
#                ledger with this round's reservation in it, before anything is computed
# answer:        at-once, bucketed or at-deadline: whether the time of an upload may reveal how much
#                data it was trained on
# explain:       true lets the coordinator read why this device declines: limits, numbers, paths
# queries:       allow: kinds of rounds that are answered besides training (query, evaluate);
#                columns: what they may read; min_bins: fewest bins of a histogram
# hours:         e.g. ["22:00-06:00"]; only_idle, only_on_mains; when_unknown: allow or refuse
"""
