"""A device's refusals: a cause for the coordinator, the full reason for its owner's log."""

from __future__ import annotations

import logging

from fedsys.errors import (
    Cause,
    ConfigError,
    FedsysError,
    MechanismError,
    PolicyRefusal,
    ProtocolError,
    TrainingError,
)
from fedsys.printable import printable
from fedsys.wire import fleet_pb2
from secure_agg import SecureAggError

__all__ = ["cause_of", "refusal"]

_log = logging.getLogger(__name__)
_MOST = 500
_CAUSES = (
    (MechanismError, Cause.MECHANISM),
    (TrainingError, Cause.TRAINING),
    (ProtocolError, Cause.PROTOCOL),
    (ConfigError, Cause.DEVICE),
    (SecureAggError, Cause.SECURE_AGGREGATION),
)


def refusal(
    job: bytes,
    round: int,
    error: FedsysError | SecureAggError,
    *,
    explain: bool,
    passing: bool = False,
) -> fleet_pb2.Up:
    """A refusal, whose full reason is written to this device's log.

    Args:
        job: the job that is declined.
        round: the round that is declined; 0 for the whole job.
        error: the reason.
        explain: whether the owner lets the coordinator read the reason. Errors from training are
            never sent, since they may quote the data.
        passing: whether the coordinator may ask again in a later round.
    """
    what = f"round {round}" if round else f"job {job.hex()[:16]}" if job else "a roster"
    _log.log(logging.INFO if passing else logging.WARNING, "%s is refused: %s", what, error)
    cause = cause_of(error)
    told = explain and cause is not Cause.TRAINING
    return fleet_pb2.Up(
        refusal=fleet_pb2.Refusal(
            job=job,
            round=round,
            reason=printable(error, _MOST) if told else "",
            passing=passing,
            cause=fleet_pb2.Refusal.Cause.Value(cause.name),
        )
    )


def cause_of(error: FedsysError | SecureAggError) -> Cause:
    """The part of an error that anybody may know."""
    if isinstance(error, PolicyRefusal):
        return error.cause
    return next((cause for kind, cause in _CAUSES if isinstance(error, kind)), Cause.UNSPECIFIED)
