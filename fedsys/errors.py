"""One base for every error that a user can act on; leaves are named by cause.

The command line prints ``str(error)`` on one line and exits with ``error.exit_code``.
"""

from __future__ import annotations

import enum

__all__ = [
    "AuditInputError",
    "BudgetExceeded",
    "Cause",
    "ConfigError",
    "DataError",
    "EnrollmentError",
    "FedsysError",
    "LedgerClosed",
    "LedgerError",
    "MechanismError",
    "PolicyRefusal",
    "ProtocolError",
    "RunFolderError",
    "TrainingError",
]


class FedsysError(Exception):
    """Base class. The message names the thing, its value and the fix, on one line."""

    exit_code: int = 2


class ConfigError(FedsysError):
    """A key, type or combination in a configuration that cannot run."""


class DataError(FedsysError):
    """Data that is missing, unreadable or unusable."""


class EnrollmentError(FedsysError):
    """A device that may not join or act: unknown, revoked, expired or somebody else's."""


class MechanismError(FedsysError):
    """Parameters of a privacy mechanism or accountant outside what its proof covers."""


class LedgerError(FedsysError):
    """A privacy ledger that cannot be read, verified or written."""


class LedgerClosed(LedgerError):
    """A ledger whose job is over; `reason` is the reason in its closing line."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class BudgetExceeded(FedsysError):
    """A round whose cost would exceed the privacy budget; nothing was asked of any client."""


class Cause(enum.Enum):
    """The kind of a refusal: all that leaves a device whose owner keeps limits, numbers and
    circumstances private. The value is the text that anybody may read."""

    UNSPECIFIED = "declined; the device's own log says why"
    PAUSED = "paused by its owner"
    CONDITIONS = "not now"
    TASK = "its task, options or code are not what this device was given"
    COHORT = "its cohorts are too small, or too easily corrupted"
    MECHANISM = "its clipping norm or its noise is outside the owner's limits"
    EPSILON = "it would spend more than the owner allows"
    PARTICIPATION = "this device was asked too often, or in the wrong order"
    ROSTER = "its roster is not one that this device accepts"
    TERMS = "it is not what was agreed to"
    WITNESSES = "its ledger is not cosigned by the witnesses that the owner asks for"
    LEDGER = "its ledger contradicts itself, or what this device did"
    TRAINING = "local training failed"
    SECURE_AGGREGATION = "a step of secure aggregation was refused"
    PROTOCOL = "a message that does not fit the state of the round"
    DEVICE = "this device cannot take part; its own log says why"
    QUESTION = "its owner does not allow such a question"
    STALE = "a version of the model that is too old, or not the one that was announced"


class PolicyRefusal(FedsysError):
    """An agent declines what it was asked; the message is its reason, for the owner's eyes.

    Attributes:
        cause: what others may learn about it.
    """

    def __init__(self, message: str, *, cause: Cause = Cause.UNSPECIFIED) -> None:
        super().__init__(message)
        self.cause = cause


class ProtocolError(FedsysError):
    """A message that does not fit the state of the round."""


class TrainingError(FedsysError):
    """Local training failed; the message names the client, the cause and the remedy."""


class RunFolderError(FedsysError):
    """A run's folder that cannot be created, read or resumed."""


class AuditInputError(FedsysError):
    """The audit's input is not a run that it can read."""
