"""One base for every error of the package; leaves are named by cause.

No message ever contains a secret: keys, seeds, shares and vectors do not reach an exception.
"""

from __future__ import annotations

__all__ = [
    "AlreadyAnswered",
    "AlreadyEndorsed",
    "CommitteeMismatch",
    "ContextMismatch",
    "DecodingError",
    "DuplicateMember",
    "InputError",
    "LateMessage",
    "LowOrderPoint",
    "MessageError",
    "ParameterError",
    "PolicyViolation",
    "ProofError",
    "QuorumNotMet",
    "ResidualError",
    "RosterError",
    "SecureAggError",
    "SetError",
    "ShareError",
    "SignatureMismatch",
    "StageError",
    "StaleRound",
    "StateError",
    "ThresholdNotMet",
    "UploadReused",
]


class SecureAggError(Exception):
    """Base class. The message names the thing, its value and what was expected, on one line."""


class ParameterError(SecureAggError):
    """Parameters that are inconsistent, or for which no secure choice exists."""


class PolicyViolation(SecureAggError):
    """Parameters that tolerate fewer colluders than the member's roster assumes."""


class ContextMismatch(SecureAggError):
    """The server's round, model, policy, roster or parameters are not the ones agreed upon."""


class StaleRound(SecureAggError):
    """A round at or below the member's stored mark, or a second upload in one round."""


class MessageError(SecureAggError):
    """Bytes that are not a well-formed message of the expected type, size and session."""


class StageError(SecureAggError):
    """A message that does not belong to the stage the machine is in."""


class LateMessage(StageError):
    """A message for a stage already closed or for another session; it is discarded."""


class RosterError(SecureAggError):
    """An id that the pinned roster does not contain, or contains with another key."""


class SignatureMismatch(SecureAggError):
    """A signature that does not verify against the roster's key."""


class DuplicateMember(SecureAggError):
    """An id, a key or a signer that occurs twice."""


class CommitteeMismatch(SecureAggError):
    """A committee that is not the one that the cohort determines."""


class LowOrderPoint(SecureAggError):
    """An X25519 public key of low order: the agreed secret would be known to everyone."""


class ShareError(SecureAggError):
    """A sealed share that does not open, or that opens to something that is no share."""


class ProofError(ShareError):
    """A share that does not lie on the polynomials of its dealer's low-degree proof."""


class SetError(SecureAggError):
    """A proposed set that names a dealer without a checked share, or a stranger."""


class AlreadyEndorsed(SecureAggError):
    """A second set for one sum; a committee member endorses one."""


class AlreadyAnswered(SecureAggError):
    """A second request for an answer; a committee member gives one for each sum."""


class UploadReused(SecureAggError):
    """An upload that is in an earlier endorsed set already: it may be in one sum only."""


class InputError(SecureAggError):
    """A vector of the wrong type, length or range, or none at all."""


class StateError(SecureAggError):
    """A stored state that cannot be read or written, or that was lost."""


class ThresholdNotMet(SecureAggError):
    """Too few uploads, endorsements or answers; nothing was revealed."""


class QuorumNotMet(ThresholdNotMet):
    """Fewer valid endorsements of one set than the quorum."""


class DecodingError(SecureAggError):
    """More wrong answers than the redundancy can correct: the round is spent."""


class ResidualError(SecureAggError):
    """A decrypted sum whose noise is not that of honest ciphertexts: the round is spent."""
