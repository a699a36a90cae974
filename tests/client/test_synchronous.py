"""The one vector that a device provides in a round."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client.synchronous import provide
from fedsys.privacy import AdaptiveClipping, AesCtrStream, from_ring, make_plan

ADAPTIVE = AdaptiveClipping.start(layers=(3,), clip=1.0)


@pytest.mark.parametrize("clipping", [None, ADAPTIVE.to_json()])
@pytest.mark.parametrize("before", [0, 1])
def test_who_contributed_often_enough_sends_zeros_in_every_coordinate(
    before: int, clipping: dict[str, Any] | None
) -> None:
    plan = make_plan(
        mechanism="none",
        population=10,
        expected_cohort=10.0,
        rounds=3,
        delta=1e-5,
        dimension=3 if clipping is None else ADAPTIVE.length,
        clip=1.0,
        max_participations=1,
        sampling="fixed",
        cap=10,
        min_survivors=1,
    )
    provided: list[Any] = []
    current: Any = SimpleNamespace(
        terms=SimpleNamespace(plan=plan, row_length=3),
        client=0,
        assignment=SimpleNamespace(job=bytes(32), round=2, clipping=clipping, digest=b"d"),
        mechanism=plan.build_mechanism(),
        agent=SimpleNamespace(provide=provided.append),
    )
    worker: Any = SimpleNamespace(train=lambda *_: np.ones((1, 3), dtype=np.float32))
    journal: Any = SimpleNamespace(others=lambda job, round: before)
    provide(current, worker, journal, AesCtrStream(bytes(32)))
    (vector,) = provided
    sent = from_ring(vector, bits=plan.modulus_bits)
    assert sent.all() if before == 0 else not sent.any()
