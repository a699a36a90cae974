"""What this device agreed to and has spent, by its own count; durable before it answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from client.ledger_copy import LedgerCopy, Sent
from fedsys.errors import Cause, ConfigError, LedgerError, MechanismError, PolicyRefusal
from fedsys.privacy import PrivacyPlan, View, ViewAccountant, guaranteed_epsilon
from fedsys.privacy.accounting.adding import Standing, composed, part_of
from fedsys.secret_files import write_secret
from fedsys.wire import fleet_pb2
from fedsys.wire.countersign import Countersignature
from fedsys.wire.terms import Terms

__all__ = ["JobRecord", "Journal"]

Counted = Literal["guarantee"] | View
"""The view whose epsilon an owner counts; ``guarantee``: the one that each job promises."""

_VERSION = 2
_MOST_TOLD = 32
_LOST = (
    "it counts what this device has spent of its owner's epsilon, and a new one would begin at 0: "
    "restore it from a backup, or leave (`fedsys agent leave DIR`) and join again under a new name"
)


@dataclass
class JobRecord:
    """One job, as this device saw it.

    Attributes:
        job: the job's identifier, hex.
        name: the job's name for people.
        terms: digest of the terms agreed to, hex.
        plan: the job's privacy plan.
        joined: rounds whose assignment was accepted; each counts as spent.
        highest: highest round number joined.
        uploaded: rounds in which this device sent an encrypted vector.
        answered: rounds whose sum this device helped to open, as far as they are not covered by
            its newest countersignature.
        version: in buffered rounds, the newest version of the model that was announced to it.
        epoch: in buffered rounds, the newest epoch that it entered.
        over: in buffered rounds, the newest epoch that was announced as over.
        signer: public key, hex, that signs the ledgers of the job's coordinator.
        sent: by round, what was sent in rounds that were not countersigned yet.
        copy: the ledger's lines that were checked when a round was countersigned last.
        signed: the newest countersignature; None before the first.
        dispute: why this device says that the ledger cannot be trusted; empty while it can.
    """

    job: str
    name: str
    terms: str
    plan: PrivacyPlan
    joined: list[int] = field(default_factory=list)
    highest: int = 0
    uploaded: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    version: int = 0
    epoch: int = 0
    over: int = 0
    signer: str = ""
    sent: dict[int, Sent] = field(default_factory=dict)
    copy: LedgerCopy = field(default_factory=LedgerCopy)
    signed: Countersignature | None = None
    dispute: str = ""
    _accountant: ViewAccountant | None = field(default=None, repr=False)
    _charged: int = field(default=0, repr=False)
    _promised: float | None = field(default=None, repr=False)

    @property
    def promised(self) -> float | None:
        """The most epsilon that the job's coordinator promised to spend; None for no limit."""
        if self._promised is None and self.plan.protected:
            budget = self.plan.budget
            self._promised = guaranteed_epsilon(self.plan) if budget is None else budget
        return self._promised

    def view(self, wanted: Counted) -> View:
        """The view whose epsilon is counted."""
        return self.plan.guarantee if wanted == "guarantee" else wanted

    def spent(self, wanted: Counted) -> float:
        """Epsilon of this job so far; rounds not joined count in the outsider's view."""
        if not self.joined:
            return 0.0
        if not self.plan.protected:
            return float("inf")
        value = self._up_to(self.highest).spent().of(self.view(wanted))
        return float("inf") if value is None else value

    def standing(self, wanted: Counted, *, after: int | None = None) -> Standing:
        """What this job has spent, or will have once this device has taken part in a round, for a
        total with other jobs."""
        epsilon = self.spent(wanted) if after is None else self.after(after, wanted)
        view, plan = self.view(wanted), self.plan
        if not plan.protected:
            return Standing(part=None, epsilon=epsilon)
        counted = self._up_to(self.highest if after is None else after - 1)
        steps = counted.steps_in(view, None if after is None else plan.event())
        return Standing.of(plan, view, part_of(plan, view, steps), epsilon)

    def after(self, round: int, wanted: Counted) -> float:
        """Epsilon of this job after this device has also taken part in `round`."""
        if not self.plan.protected:
            return float("inf")
        accountant = self._up_to(round - 1)
        value = accountant.after_next(self.plan.event()).of(self.view(wanted))
        return float("inf") if value is None else value

    def require_budget(self, round: int) -> None:
        """Refuse a round at which the job's coordinator, who promised a budget, has to end it.

        Raises:
            BudgetExceeded: the rounds up to this one would cost more.
        """
        self._up_to(round - 1).require_budget(self.plan.event())

    def _up_to(self, round: int) -> ViewAccountant:
        if self._accountant is None or self._charged > round:
            self._accountant, self._charged = ViewAccountant(self.plan), 0
        event, joined = self.plan.event(), set(self.joined)
        for number in range(self._charged + 1, round + 1):
            if number in joined:
                # The worst case: a device does not know the cohort and the survivors.
                self._accountant.charge(event)
            else:
                self._accountant.charge(event, (), ())
        self._charged = round
        return self._accountant

    def to_json(self) -> dict[str, Any]:
        """Plain values for the file."""
        return {
            "job": self.job,
            "name": self.name,
            "terms": self.terms,
            "plan": self.plan.to_json(),
            "joined": self.joined,
            "highest": self.highest,
            "uploaded": self.uploaded,
            "answered": self.answered,
            "version": self.version,
            "epoch": self.epoch,
            "over": self.over,
            "signer": self.signer,
            "sent": {str(round): dataclasses.asdict(each) for round, each in self.sent.items()},
            "copy": dataclasses.asdict(self.copy),
            "signed": None if self.signed is None else self.signed.encode().decode(),
            "dispute": self.dispute,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> JobRecord:
        """The inverse of `to_json`."""
        signed = body["signed"]
        return cls(
            **{
                **body,
                "plan": PrivacyPlan.from_json(body["plan"]),
                "sent": {int(round): Sent(**each) for round, each in body["sent"].items()},
                "copy": LedgerCopy(**body["copy"]),
                "signed": signed and Countersignature.parse(signed.encode(), "a countersignature"),
            }
        )


class Journal:
    """All jobs of this device. It begins when the device joins, once: see `begin`.

    Args:
        path: ``journal.json``, mode 0600.

    Raises:
        ConfigError: the file is lost or damaged; without it the device cannot know what it has
            spent, so no new one is created.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.jobs: dict[str, JobRecord] = {}
        # A process that was killed may have written the file without making it durable: its
        # contents are relied on only after this process has written them again.
        self._certain = False
        try:
            body = json.loads(path.read_text("utf-8"))
            if body["version"] != _VERSION:
                raise ConfigError(
                    f"{path}: made by another version of fedsys (format {body['version']}, this "
                    f"one reads {_VERSION}); go on with the version that made it"
                )
            self.jobs = {each["job"]: JobRecord.from_json(each) for each in body["jobs"]}
        except FileNotFoundError:
            raise ConfigError(f"{path}: is gone; {_LOST}") from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"{path}: {reason}; the agent must own its folder") from None
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            MechanismError,
            LedgerError,
        ) as error:
            raise ConfigError(f"{path}: damaged ({error}); {_LOST}") from None

    @classmethod
    def begin(cls, path: Path) -> Journal:
        """The journal of a device that joins: an empty one, durable when this returns, or the one
        that an earlier membership left, which is continued.

        Raises:
            ConfigError: an existing one is damaged, or a new one cannot be written.
        """
        if not path.exists():
            try:
                write_secret(path, _encode(()))
            except OSError as error:
                raise _unwritten(path, error) from error
        return cls(path)

    def agree(self, terms: Terms, *, signer: bytes = b"") -> JobRecord:
        """Pin a job's terms; the same terms may be agreed to again.

        Args:
            terms: the job's.
            signer: public key that signs the ledgers of its coordinator.

        Raises:
            PolicyRefusal: other terms were agreed to for this job.
            ConfigError: the journal cannot be written.
        """
        job, digest = terms.job.hex(), terms.digest.hex()
        record = self.jobs.get(job)
        if record is None:
            record = JobRecord(
                job=job, name=terms.name, terms=digest, plan=terms.plan, signer=signer.hex()
            )
            self.jobs[job] = record
            try:
                self._save()
            except BaseException:
                del self.jobs[job]
                raise
        elif record.terms != digest:
            raise PolicyRefusal(
                "the terms of this job differ from those agreed to before", cause=Cause.TERMS
            )
        return record

    def others(self, job: bytes, round: int) -> int:
        """The number of rounds of an agreed job that were joined, not counting `round`."""
        return len(set(self.jobs[job.hex()].joined) - {round})

    def join(self, job: bytes, round: int) -> None:
        """Count a round of an agreed job as spent; durable when this returns.

        Raises:
            ConfigError: the journal cannot be written; nothing was counted, and the round must not
                be answered.
        """
        record = self.jobs[job.hex()]
        if round not in record.joined or not self._certain:
            joined = sorted({*record.joined, round})
            self._change(record, joined=joined, highest=max(record.highest, round))

    def receive(self, job: bytes, round: int, sent: Sent, *, one_model: bool = True) -> None:
        """Note what was sent in a round that is about to be joined, which makes it durable.

        The nonce that was noted first stays.

        Args:
            job: an agreed job.
            round: whose vector was not uploaded yet.
            sent: what the vector will be computed from.
            one_model: whether all that is sent in a round is the same, as in synchronous rounds. In
                buffered ones, a device that lost its update may begin again from a newer model.

        Raises:
            PolicyRefusal: the round was joined with another model or price.
        """
        record = self.jobs[job.hex()]
        noted = record.sent.get(round)
        if noted is not None and round in record.joined:
            sent = dataclasses.replace(sent, nonce=noted.nonce)
            if sent.event != noted.event or (one_model and sent.weights != noted.weights):
                raise PolicyRefusal(
                    f"round {round} is announced with another model or price than this device was "
                    f"sent in it before",
                    cause=Cause.TERMS,
                )
        record.sent[round] = sent

    def countersign(self, job: bytes, copy: LedgerCopy, signed: Countersignature) -> None:
        """Note a countersignature that is about to be sent; durable when this returns.

        Args:
            job: an agreed job.
            copy: the ledger that it covers.
            signed: the countersignature.

        Raises:
            ConfigError: it cannot be written.
        """
        record = self.jobs[job.hex()]
        later = {each: sent for each, sent in record.sent.items() if each > signed.round}
        answered = [each for each in record.answered if each > signed.round]
        self._change(record, copy=copy, signed=signed, sent=later, answered=answered)

    def dispute(self, job: bytes, reason: str) -> None:
        """Note that the ledger of an agreed job cannot be trusted; durable when this returns.

        Raises:
            ConfigError: it cannot be written.
        """
        self._change(self.jobs[job.hex()], dispute=reason)

    def upload(self, job: bytes, round: int) -> None:
        """Note that an encrypted vector is about to be sent; durable when this returns.

        Raises:
            ConfigError: it cannot be written.
        """
        record = self.jobs[job.hex()]
        if round not in record.uploaded or not self._certain:
            self._change(record, uploaded=sorted({*record.uploaded, round}))

    def answer(self, job: bytes, round: int) -> None:
        """Note that a sum is about to be opened with this device's shares; durable when this
        returns.

        Raises:
            ConfigError: it cannot be written.
        """
        record = self.jobs[job.hex()]
        if round not in record.answered or not self._certain:
            self._change(record, answered=sorted({*record.answered, round}))

    def note_version(self, job: bytes, version: int) -> None:
        """Note how many versions of a job's model there are; durable when this returns.

        Raises:
            ConfigError: it cannot be written.
        """
        record = self.jobs[job.hex()]
        if record.version != version or not self._certain:
            self._change(record, version=version)

    def enter_epoch(self, job: bytes, epoch: int) -> None:
        """Note that an epoch was entered; durable when this returns.

        Raises:
            ConfigError: it cannot be written.
        """
        record = self.jobs[job.hex()]
        if record.epoch != epoch or not self._certain:
            self._change(record, epoch=epoch)

    def end_epoch(self, job: bytes) -> None:
        """Note that the epoch entered last is over; durable when this returns.

        Raises:
            ConfigError: it cannot be written.
        """
        record = self.jobs[job.hex()]
        if record.over != record.epoch or not self._certain:
            self._change(record, over=record.epoch)

    def spent_with(self, signer: bytes) -> list[fleet_pb2.Spent]:
        """The newest jobs of one coordinator that this device spent on, for it to compare.

        Args:
            signer: public key that signs its ledgers.
        """
        own = [each for each in self.jobs.values() if each.signer == signer.hex() and each.highest]
        return [
            fleet_pb2.Spent(
                job=bytes.fromhex(each.job),
                round=each.highest,
                promised=each.promised,
            )
            for each in own[-_MOST_TOLD:]
        ]

    def _change(self, record: JobRecord, **values: Any) -> None:
        """Change a record and save it, or change nothing."""
        before = {name: getattr(record, name) for name in values}
        for name, value in values.items():
            setattr(record, name, value)
        try:
            self._save()
        except BaseException:
            for name, value in before.items():
                setattr(record, name, value)
            raise

    def spent(self, wanted: Counted, *, without: JobRecord | None = None) -> float:
        """Epsilon over all jobs but `without`: their rounds composed, whatever they asked for."""
        return composed(self._others(wanted, without))

    def adds(
        self, wanted: Counted, standing: Standing, *, without: JobRecord | None = None
    ) -> float:
        """What a job adds to the total of all the others, once it stands so."""
        others = self._others(wanted, without)
        total = composed([*others, standing])
        return total - composed(others) if total < float("inf") else total

    def _others(self, wanted: Counted, without: JobRecord | None) -> list[Standing]:
        return [each.standing(wanted) for each in self.jobs.values() if each is not without]

    def _save(self) -> None:
        try:
            write_secret(self._path, _encode(self.jobs.values()))
        except OSError as error:
            self._certain = False
            raise _unwritten(self._path, error) from error
        self._certain = True


def _encode(jobs: Iterable[JobRecord]) -> bytes:
    return json.dumps({"version": _VERSION, "jobs": [each.to_json() for each in jobs]}).encode()


def _unwritten(path: Path, error: OSError) -> ConfigError:
    reason = (error.strerror or str(error)).lower()
    return ConfigError(f"{path.name}: cannot be written: {reason}")
