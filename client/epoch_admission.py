"""The checks that an epoch of buffered rounds, and each of its buffers, must pass on a device.

A device receives every version number of the model while it is connected, and the newest one when
it reconnects. So it knows by itself how stale its update is when it is asked for, and a coordinator
that announces another staleness contradicts itself.
"""

from __future__ import annotations

from client.admission import check_budget, check_concluded, check_participation
from client.journal import Journal
from client.policy import Policy
from fedsys.errors import Cause, PolicyRefusal
from fedsys.privacy import event_from_json
from fedsys.wire import Assignment
from fedsys.wire.terms import Terms

__all__ = ["check_buffer", "check_epoch", "check_staleness", "check_version"]


def check_epoch(
    assignment: Assignment,
    size: int,
    version: int,
    terms: Terms,
    *,
    policy: Policy,
    journal: Journal,
) -> None:
    """Check an epoch of buffered rounds before it is entered.

    Args:
        assignment: the assignment of its first buffer, whose number is the epoch's.
        size: number of members invited.
        version: number of versions of the model so far, as announced.
        terms: the terms agreed to.
        policy: the owner's policy.
        journal: this device's own count.

    Raises:
        PolicyRefusal: a check failed; the message names the limit, its value and what was asked.
    """
    plan, number = terms.plan, assignment.round
    record = journal.jobs[terms.job.hex()]
    if number > plan.rounds:
        raise PolicyRefusal(f"buffer {number} of a job of {plan.rounds} buffers", cause=Cause.TERMS)
    if number <= record.over or number < record.epoch:
        raise PolicyRefusal(
            f"epoch {number} is asked for again: epoch {record.epoch} was entered"
            + (f", and epoch {record.over} is over" if record.over else ""),
            cause=Cause.PARTICIPATION,
        )
    policy.check_cohort(size)
    least, most = max(2, plan.min_survivors), terms.largest_cohort
    if not least <= size <= most:
        raise PolicyRefusal(
            f"an epoch of {size} members, where at least {least} and at most {most} were agreed to",
            cause=Cause.COHORT,
        )
    if not plan.covers(event_from_json(assignment.mechanism)):
        raise PolicyRefusal("the epoch's mechanism is not the one agreed to", cause=Cause.TERMS)
    last = number - 1 + (0 if terms.buffering is None else terms.buffering.epoch)
    if not record.version <= version <= last:
        raise PolicyRefusal(
            f"version {version} of the model is announced in epoch {number}, but this device knows "
            f"of version {record.version}",
            cause=Cause.STALE,
        )


def check_buffer(
    number: int,
    version: int,
    epoch: int,
    terms: Terms,
    *,
    policy: Policy,
    journal: Journal,
) -> None:
    """Check a buffer to which this device is to contribute, before it trains and before it uploads.

    Args:
        number: number of the buffer that is being filled.
        version: version of the newest model, as announced.
        epoch: the epoch, by the number of its first buffer.
        terms: the terms agreed to.
        policy: the owner's policy.
        journal: this device's own count.

    Raises:
        PolicyRefusal: a check failed; the message names the limit, its value and what was asked.
    """
    plan, record = terms.plan, journal.jobs[terms.job.hex()]
    buffering = terms.buffering
    last = epoch - 1 + (0 if buffering is None else buffering.epoch)
    if not epoch <= number <= min(last, plan.rounds):
        raise PolicyRefusal(
            f"buffer {number} is outside the epoch's, which are {epoch} to {last}, or the job's "
            f"{plan.rounds}",
            cause=Cause.TERMS,
        )
    if number < record.highest:
        raise PolicyRefusal(
            f"buffer {number} comes after buffer {record.highest}", cause=Cause.PARTICIPATION
        )
    check_concluded(record, number)
    check_budget(record, number)
    if version != record.version or version >= number:
        raise PolicyRefusal(
            f"version {version} of the model is announced as the newest in buffer {number}, but "
            f"this device knows of version {record.version}",
            cause=Cause.STALE,
        )
    others = len([joined for joined in record.joined if joined != number])
    check_participation(plan, number, others + 1)
    wanted = policy.epsilon_view
    spent = journal.spent(wanted, without=record)
    adds = journal.adds(wanted, record.standing(wanted, after=number), without=record)
    policy.check_epsilon(others=spent, after=adds)


def check_staleness(announced: int, version: int, base: int, terms: Terms) -> int:
    """The staleness of an update, if it is as announced and within the terms.

    Args:
        announced: staleness by the coordinator's account.
        version: version of the newest model that this device knows of.
        base: version of the model that it trained from.
        terms: the terms agreed to.

    Raises:
        PolicyRefusal: the two differ, or the staleness is more than was agreed to.
    """
    staleness = version - base
    if announced != staleness:
        raise PolicyRefusal(
            f"a staleness of {announced} is announced for an update of version {base}, but this "
            f"device knows of version {version}",
            cause=Cause.STALE,
        )
    most = 0 if terms.buffering is None else terms.buffering.max_staleness
    if not 0 <= staleness <= most:
        raise PolicyRefusal(
            f"an update that is {staleness} versions old, where {most} were agreed to",
            cause=Cause.STALE,
        )
    return staleness


def check_version(version: int, *, committed: bool, terms: Terms, journal: Journal) -> None:
    """Check the version that is announced at the end of a buffer: only a sum makes a new one.

    Raises:
        PolicyRefusal: it does not follow the version that this device knows of.
    """
    known = journal.jobs[terms.job.hex()].version
    if version != known + int(committed):
        raise PolicyRefusal(
            f"version {version} of the model is announced after version {known}, by a buffer that "
            f"gave {'one' if committed else 'none'}",
            cause=Cause.STALE,
        )
