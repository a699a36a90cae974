"""The sum of many vectors, and nothing else about them.

Secure aggregation in one message, against a malicious server that colludes with a fraction of the
members while another fraction vanishes: every member encrypts its vector under a key-additive
scheme, shares the key among a committee, and is done; the committee agrees on one set of uploads
and reveals the sum of their keys. Integers modulo 2^b. PROTOCOL.md has the messages, the argument
and what is not protected.

>>> import numpy as np
>>> params = SecAggParams.derive(n=5, corrupt=0.2, dropout=0.2, modulus_bits=16, dimension=4)
>>> inputs = {i: np.full(4, 10 * i, np.uint32) for i in range(5)}
>>> result = secure_sum(inputs, params, dropped={"upload": {2}})
>>> result.total.tolist(), result.included
([80, 80, 80, 80], (0, 1, 3, 4))

`Member` and `Aggregator` are the two sides as machines without input or output: a host carries
their messages. `secure_sum` drives both in one process and is the specification.
"""

from __future__ import annotations

from secure_agg.aggregator import Aggregator
from secure_agg.epoch import EpochAggregator
from secure_agg.errors import SecureAggError
from secure_agg.masking import packed_sum
from secure_agg.member import Member
from secure_agg.messages import Kind, Limits, kind_of
from secure_agg.params import SecAggParams
from secure_agg.prekeys import SealingKeys, check_prekey, prekey_suite
from secure_agg.reference import STAGES, secure_sum
from secure_agg.result import SumResult
from secure_agg.roster import Entropy, Identity, Roster
from secure_agg.session import RoundContext, draw_committee
from secure_agg.shared import Shared
from secure_agg.stages import AggregatorStage, MemberStage
from secure_agg.store import FileStore, MemoryStore, Store

__all__ = [
    "STAGES",
    "Aggregator",
    "AggregatorStage",
    "Entropy",
    "EpochAggregator",
    "FileStore",
    "Identity",
    "Kind",
    "Limits",
    "Member",
    "MemberStage",
    "MemoryStore",
    "Roster",
    "RoundContext",
    "SealingKeys",
    "SecAggParams",
    "SecureAggError",
    "Shared",
    "Store",
    "SumResult",
    "check_prekey",
    "draw_committee",
    "kind_of",
    "packed_sum",
    "prekey_suite",
    "secure_sum",
]
