"""The sum of many vectors, and nothing else about them.

Secure aggregation against a malicious server that colludes with a fraction of the members, while
another fraction vanishes: the protocol of Bell, Bonawitz, Gascon, Lepoint and Raykova (CCS 2020)
with a pinned roster, over integers modulo 2^b. PROTOCOL.md has the messages, the proofs and what is
not protected.

>>> import numpy as np
>>> params = SecAggParams.derive(n=3, corrupt=0.0, dropout=0.3)
>>> inputs = {i: np.full(4, 10 * i, np.uint32) for i in (1, 2, 3)}
>>> result = secure_sum(inputs, params, dropped={"masked_input": {2}})
>>> result.total.tolist(), result.included
([40, 40, 40, 40], (1, 3))

`Participant` and `Aggregator` are the two sides as machines without input or output: a host carries
their messages. `secure_sum` drives both in one process and is the specification.
"""

from __future__ import annotations

from secure_agg.aggregator import Aggregator
from secure_agg.errors import SecureAggError
from secure_agg.floor import Floor
from secure_agg.params import SecAggParams
from secure_agg.participant import Participant
from secure_agg.reference import STAGES, secure_sum
from secure_agg.result import SumResult
from secure_agg.roster import Entropy, Identity, Roster
from secure_agg.shared import Shared
from secure_agg.stages import AggregatorStage, ParticipantStage
from secure_agg.store import FileStore, MemoryStore, Store
from secure_agg.transcript import RoundContext

__all__ = [
    "STAGES",
    "Aggregator",
    "AggregatorStage",
    "Entropy",
    "FileStore",
    "Floor",
    "Identity",
    "MemoryStore",
    "Participant",
    "ParticipantStage",
    "Roster",
    "RoundContext",
    "SecAggParams",
    "SecureAggError",
    "Shared",
    "Store",
    "SumResult",
    "secure_sum",
]
