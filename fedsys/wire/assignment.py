"""What one round asks of a client; the same value for every client of the cohort."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_agg import RoundContext

__all__ = ["Assignment"]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One round's work.

    Attributes:
        job: 32 bytes that name the job.
        round: 1-based number; never used twice for a job.
        task: the task's name, which the client must have installed.
        weights: (d,) float32, the current model.
        local: local training (see `client.training.LocalConfig`), by field name.
        mechanism: arguments of `fedsys.privacy.build_mechanism`, by name.
        seed: from which each client derives its batch order.
    """

    job: bytes
    round: int
    task: str
    weights: NDArray[np.float32]
    local: Mapping[str, Any]
    mechanism: Mapping[str, Any]
    seed: int

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all of it: what every client of the cohort must have been given alike.

        It is bound into the mask keys (the model hash of secure aggregation), so a coordinator
        that hands out different models or parameters gets masks that do not cancel.
        """
        head = json.dumps(
            {
                "job": self.job.hex(),
                "round": self.round,
                "task": self.task,
                "local": dict(self.local),
                "mechanism": dict(self.mechanism),
                "seed": self.seed,
            },
            sort_keys=True,
            separators=(",", ":"),
        ).encode()
        digest = hashlib.sha256(b"fedsys assignment v1\x00")
        digest.update(len(head).to_bytes(8, "big"))
        digest.update(head)
        digest.update(np.ascontiguousarray(self.weights, dtype="<f4").tobytes())
        return digest.digest()

    @property
    def context(self) -> RoundContext:
        """What secure aggregation binds into every signature and every mask of this round."""
        return RoundContext(job=self.job, round=self.round, model_hash=self.digest)
