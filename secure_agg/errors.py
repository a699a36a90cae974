"""One base for every error of the package; leaves are named by cause.

No message ever contains a secret: keys, seeds, shares and vectors do not reach an exception.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "AliveSetError",
    "AlreadyReleased",
    "AlreadySigned",
    "ContextMismatch",
    "DealerFault",
    "DuplicateMember",
    "GraphMismatch",
    "InputError",
    "KeyMismatch",
    "LateMessage",
    "LowOrderPoint",
    "MessageError",
    "NonceMismatch",
    "NonceWithheld",
    "OwnKeyChanged",
    "ParameterError",
    "PolicyViolation",
    "QuorumNotMet",
    "RosterError",
    "SecureAggError",
    "ShareError",
    "ShareMismatch",
    "SignatureMismatch",
    "StageError",
    "StaleRound",
    "StateError",
    "ThresholdNotMet",
]


class SecureAggError(Exception):
    """Base class. The message names the thing, its value and what was expected, on one line."""


class ParameterError(SecureAggError):
    """Parameters that are inconsistent, or for which no secure choice exists."""


class PolicyViolation(SecureAggError):
    """Parameters weaker than the participant's own local floor."""


class ContextMismatch(SecureAggError):
    """The server's round, model, policy, roster or parameters are not the ones agreed upon."""


class StaleRound(SecureAggError):
    """A round or attempt at or below the participant's stored high-water mark."""


class MessageError(SecureAggError):
    """Bytes that are not a well-formed message of the expected type, size and session."""


class StageError(SecureAggError):
    """A message that does not belong to the stage the machine is in."""


class LateMessage(StageError):
    """A client's message for a stage already closed or for another session; it is discarded."""


class RosterError(SecureAggError):
    """An id that the pinned roster does not contain."""


class SignatureMismatch(SecureAggError):
    """A signature that does not verify against the roster's key."""


class DuplicateMember(SecureAggError):
    """An id or a public key that occurs twice."""


class OwnKeyChanged(SecureAggError):
    """The server shows this participant's advert missing or altered."""


class LowOrderPoint(SecureAggError):
    """An X25519 public key of low order: the agreed secret would be known to everyone."""


class NonceMismatch(SecureAggError):
    """A graph nonce that differs from its commitment."""


class NonceWithheld(SecureAggError):
    """A committed graph nonce was never revealed; the graph must be drawn afresh."""


class GraphMismatch(SecureAggError):
    """The server's neighbours are not those that the revealed nonces determine."""


class ShareError(SecureAggError):
    """A sealed share that does not authenticate, or one that misses its commitment."""


class ShareMismatch(ShareError):
    """An opened or revealed share that differs from the dealer's commitment."""


class KeyMismatch(SecureAggError):
    """A reconstructed secret that does not fit its public key or its signed hash."""


class AliveSetError(SecureAggError):
    """An alive or dropped set that no honest server would send."""


class AlreadySigned(SecureAggError):
    """A second alive set in a round; a participant signs one."""


class AlreadyReleased(SecureAggError):
    """A second request for shares in a round; a participant answers one."""


class InputError(SecureAggError):
    """A vector of the wrong type, length or range, or none at all."""


class StateError(SecureAggError):
    """A stored state that cannot be read or does not belong here."""


class ThresholdNotMet(SecureAggError):
    """Fewer members, shares or answers than the threshold; nothing was revealed beyond it."""


class QuorumNotMet(ThresholdNotMet):
    """Fewer valid signatures over one alive set than the quorum."""


class DealerFault(SecureAggError):
    """Committed shares that do not determine the dealer's secret: the round cannot finish.

    Attributes:
        blamed: The dealers to exclude next time.
    """

    def __init__(self, message: str, blamed: Iterable[int]) -> None:
        super().__init__(message)
        self.blamed = frozenset(blamed)
