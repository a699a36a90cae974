"""Names of jobs' ledgers as logs: one log per job, identified by its coordinator's key.

>>> origin_of(signer="ab" * 32, job="cd" * 32) == "fedsys/ledger/v1/" + "ab" * 32 + "/" + "cd" * 32
True
"""

from __future__ import annotations

import re

from fedsys.transparency.note import ED25519, VerifierKey

__all__ = ["log_key", "origin_of", "signer_of"]

_PREFIX = "fedsys/ledger/v1/"
_ORIGIN = re.compile(re.escape(_PREFIX) + r"([0-9a-f]{64})/([0-9a-f]{64})")


def origin_of(*, signer: str, job: str) -> str:
    """A checkpoint's first line.

    Args:
        signer: the coordinator's public key, 64 hex digits.
        job: the header's ``job``, 64 hex digits.
    """
    origin = f"{_PREFIX}{signer}/{job}"
    if _ORIGIN.fullmatch(origin) is None:
        raise ValueError("a signer and a job are 64 lower-case hexadecimal digits each")
    return origin


def signer_of(origin: str) -> str | None:
    """The signer of the ledger that an origin names; None if it is not a job's ledger."""
    found = _ORIGIN.fullmatch(origin)
    return None if found is None else found[1]


def log_key(origin: str) -> VerifierKey:
    """The key that signs the checkpoints of a job's ledger.

    Raises:
        ValueError: the origin is not that of a job's ledger.
    """
    signer = signer_of(origin)
    if signer is None:
        raise ValueError("not the origin of a job's ledger")
    return VerifierKey(name=origin, algorithm=ED25519, public=bytes.fromhex(signer))
