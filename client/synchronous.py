"""The round in which a device takes part, and the one vector that it provides there."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from client.admission import Worker
from client.agent import Agent
from client.journal import Journal
from client.policy import Policy
from client.privatize import privatize
from client.privatize.contribution import contribution
from fedsys.errors import TrainingError
from fedsys.privacy import Entropy, Mechanism
from fedsys.wire import Assignment
from fedsys.wire.terms import Terms

__all__ = ["SynchronousRound", "provide"]

_log = logging.getLogger(__name__)


@dataclass
class SynchronousRound:
    """The round in which this device takes part."""

    terms: Terms
    client: int
    assignment: Assignment
    mechanism: Mechanism
    agent: Agent
    policy: Policy


def provide(current: SynchronousRound, worker: Worker, journal: Journal, entropy: Entropy) -> None:
    """Train, and hand the privatized update to the round's agent.

    Args:
        current: the round.
        worker: the owner's data.
        journal: this device's own count of its rounds.
        entropy: source of the noise and of the secret coin.

    Raises:
        TrainingError: training failed.
    """
    assignment = current.assignment
    most = current.terms.plan.max_participations
    exhausted = most is not None and journal.others(assignment.job, assignment.round) >= most
    try:
        if exhausted:
            # Contributed as often as agreed: send zeros and noise. A refusal would be visible.
            update = np.zeros((1, current.terms.row_length), dtype=np.float32)
        else:
            update = worker.train(current.terms, assignment, current.client, entropy)
    except (
        ArithmeticError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as e:
        raise TrainingError(f"training failed: {type(e).__name__}: {e}") from e
    contributed = contribution(
        update,
        participation=current.mechanism.event.sampling.participation,
        clipping=assignment.clipping,
        entropy=entropy,
        taking_part=[not exhausted],
    )
    privatized = privatize(current.mechanism, contributed, seed=assignment.digest, entropy=entropy)
    if privatized.unusable.any():
        _log.error(
            "round %d: the update is not finite; zeros and noise were sent", assignment.round
        )
    current.agent.provide(privatized.values[0])
