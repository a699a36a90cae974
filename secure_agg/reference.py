"""The whole protocol in one function, which is its specification.

>>> inputs = {3: np.array([1, 2], np.uint32), 7: np.array([10, 20], np.uint32)}
>>> params = SecAggParams.derive(n=2, corrupt=0.0, dropout=0.0)
>>> secure_sum(inputs, params).total
array([11, 22], dtype=uint32)
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from secure_agg.aggregator import Aggregator
from secure_agg.errors import ParameterError
from secure_agg.floor import Floor
from secure_agg.params import SecAggParams
from secure_agg.participant import Participant
from secure_agg.result import SumResult
from secure_agg.roster import Entropy, Identity, Roster
from secure_agg.shared import Shared
from secure_agg.transcript import RoundContext

__all__ = ["STAGES", "secure_sum"]

STAGES: Final = (
    "advertise",
    "reveal",
    "share_keys",
    "masked_input",
    "consistency",
    "unmask",
)
"""The stages, in order, by the message that a member sends in each."""


def secure_sum(
    inputs: Mapping[int, npt.NDArray[np.unsignedinteger[Any]]],
    params: SecAggParams,
    *,
    dropped: Mapping[str, Collection[int]] | None = None,
    entropy: Entropy = os.urandom,
    context: RoundContext | None = None,
    floor: Floor | None = None,
) -> SumResult:
    """Sum vectors with every party in this process.

    Args:
        inputs: The members' vectors: unsigned integers below 2^modulus_bits, all of one length.
        params: With ``n == len(inputs)``.
        dropped: For each of `STAGES`, the ids that vanish before they send that stage's message.
            One lost at ``"masked_input"`` is not in the sum, one lost at ``"unmask"`` is.
        entropy: Asked for 32 bytes at a time: each member's identity by increasing id, then each
            member's round secret in the same order, whence golden transcripts.
        context: What the round is about.
        floor: The members' local floor.

    Returns:
        The sum and who is in it.

    Raises:
        SecureAggError: A party refused, or too few were left.
    """
    dropped = {} if dropped is None else dropped
    if not set(dropped) <= set(STAGES):
        raise ParameterError(f"stages {sorted(set(dropped) - set(STAGES))}: one of {STAGES}")
    if not inputs:
        raise ParameterError("no inputs: at least two members are needed")
    context = RoundContext(job=b"secure_sum", round=0) if context is None else context
    length, shared = len(next(iter(inputs.values()))), Shared()
    identities = {id_: Identity.generate(entropy) for id_ in sorted(inputs)}
    roster = Roster({id_: identity.public_bytes for id_, identity in identities.items()})
    participants = {
        id_: Participant(
            identity=identity,
            id=id_,
            roster=roster,
            params=params,
            context=context,
            length=length,
            floor=floor,
            entropy=entropy,
            shared=shared,
        )
        for id_, identity in identities.items()
    }
    aggregator = Aggregator(
        roster=roster,
        params=params,
        context=context,
        length=length,
        cohort=inputs,
        shared=shared,
    )
    for id_, vector in inputs.items():
        participants[id_].provide(vector)
    gone: set[int] = set()
    messages = aggregator.begin()
    while messages:
        gone.update(dropped.get(aggregator.stage.name.lower(), ()))
        for id_, message in messages.items():
            if id_ not in gone:
                aggregator.receive(id_, participants[id_].handle(message))
        messages = aggregator.close_stage()
    return aggregator.result
