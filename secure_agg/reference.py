"""The whole protocol in one function, which is its specification.

>>> inputs = {3: np.array([1, 2], np.uint32), 7: np.array([10, 20], np.uint32)}
>>> params = SecAggParams.derive(n=2, corrupt=0.0, dropout=0.0, modulus_bits=16, dimension=2)
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
from secure_agg.member import Member
from secure_agg.params import SecAggParams
from secure_agg.prekeys import SealingKeys
from secure_agg.result import SumResult
from secure_agg.roster import Entropy, Identity, Roster
from secure_agg.session import RoundContext, draw_committee
from secure_agg.shared import Shared

__all__ = ["STAGES", "secure_sum"]

STAGES: Final = ("upload", "endorse", "answer")
"""The stages, in order, by what a member sends in each."""


def secure_sum(
    inputs: Mapping[int, npt.NDArray[np.unsignedinteger[Any]]],
    params: SecAggParams,
    *,
    dropped: Mapping[str, Collection[int]] | None = None,
    entropy: Entropy = os.urandom,
    context: RoundContext | None = None,
    corrupt: int | None = None,
) -> SumResult:
    """Sum vectors with every party in this process.

    Args:
        inputs: The members' vectors: unsigned integers below 2^modulus_bits, shape (dimension,).
        params: With ``n == len(inputs)``.
        dropped: For each of `STAGES`, the ids that vanish before they send that stage's message.
            One lost at ``"upload"`` is not in the sum. The others concern the committee alone:
            anybody else is done after its upload.
        entropy: Asked by increasing id for each identity (32 bytes), then for each committee
            member's sealing key (32 or 96), then for each member's upload (32).
        context: What the round is about.
        corrupt: Colluders that the roster assumes, an absolute number.

    Returns:
        The sum and who is in it.

    Raises:
        SecureAggError: A party refused, or too few were left.
    """
    dropped = {} if dropped is None else dropped
    if not set(dropped) <= set(STAGES):
        raise ParameterError(f"stages {sorted(set(dropped) - set(STAGES))}: one of {STAGES}")
    if len(inputs) != params.n:
        raise ParameterError(f"{len(inputs)} inputs: params.n is {params.n}")
    context = RoundContext(job=b"secure_sum", round=0) if context is None else context
    shared, cohort = Shared(), sorted(inputs)
    identities = {id_: Identity.generate(entropy) for id_ in cohort}
    publics = {id_: identity.public_bytes for id_, identity in identities.items()}
    roster = Roster(publics, corrupt=corrupt)

    # Before the round: the committee's members have handed out signed single-use sealing keys.
    committee = draw_committee(cohort, params.committee, context, roster.hash)
    sealing = {
        id_: SealingKeys(identities[id_], suite=params.suite, entropy=entropy) for id_ in cohort
    }
    prekeys = {id_: sealing[id_].issue(1)[0] for id_ in committee}

    aggregator = Aggregator(
        roster=roster,
        params=params,
        context=context,
        cohort=cohort,
        prekeys=prekeys,
        shared=shared,
    )
    members: dict[int, Member] = {}
    gone: set[int] = set()
    messages: Mapping[int, bytes] = aggregator.begin()
    while messages:
        gone.update(dropped.get(aggregator.stage.name.lower(), ()))
        for id_ in messages:
            if id_ in gone:
                continue
            if id_ not in members:
                members[id_] = Member(
                    identity=identities[id_],
                    id=id_,
                    roster=roster,
                    params=params,
                    context=context,
                    sealing=sealing[id_],
                    entropy=entropy,
                    shared=shared,
                )
                members[id_].provide(inputs[id_])
            aggregator.receive(id_, members[id_].handle(messages[id_]))
            if id_ not in prekeys:
                del members[id_]  # done after its one message
        messages = aggregator.close_stage()
    return aggregator.result
