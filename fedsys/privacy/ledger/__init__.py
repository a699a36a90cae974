"""The privacy ledger: a hash-chained, signed record of every round, written before it is spent.

``LEDGER.md`` in the parent package specifies the format, for anyone who writes a verifier.
"""

from fedsys.privacy.ledger.lines import GENESIS, Line, canonical, commitment
from fedsys.privacy.ledger.private import PrivateRounds, read_private
from fedsys.privacy.ledger.reader import LedgerView, RoundRecord, read_header, read_ledger
from fedsys.privacy.ledger.signer import Signer, load_public_key
from fedsys.privacy.ledger.writer import Ledger

__all__ = [
    "GENESIS",
    "Ledger",
    "LedgerView",
    "Line",
    "PrivateRounds",
    "RoundRecord",
    "Signer",
    "canonical",
    "commitment",
    "load_public_key",
    "read_header",
    "read_ledger",
    "read_private",
]
