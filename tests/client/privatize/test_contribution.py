"""What a client sends: its update with what travels behind it, or zeros in all of these places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client.privatize.contribution import contribution
from fedsys.privacy import AdaptiveClipping, AesCtrStream
from fedsys.privacy.encoding.parts import Parts

ADAPTIVE = AdaptiveClipping.start(layers=(2, 1), clip=1.0, bit_fraction=0.5)
BEHIND: dict[str, dict[str, Any]] = {
    "nothing": {"clipping": None},
    "bits": {"clipping": ADAPTIVE.to_json()},
    "a weight": {
        "clipping": None,
        "parts": Parts(dimension=3, weight_cap=10),
        "clip": 1.0,
        "examples": [5] * 400,
    },
}


@pytest.mark.parametrize("behind", BEHIND)
def test_who_does_not_take_part_sends_zeros_in_every_coordinate(behind: str) -> None:
    updates = np.full((400, 3), 10, dtype=np.float32)
    updates[::7, 1] = np.nan
    given = BEHIND[behind] | {"entropy": AesCtrStream(bytes(32))}
    everybody = contribution(updates, participation=1.0, **given)
    assert everybody[:, 1:].any(axis=1).all()
    tossed = contribution(updates, participation=0.3, **given)
    some = contribution(updates, participation=1.0, **given, taking_part=[True, False] * 200)
    neither = contribution(updates, participation=0.3, **given, taking_part=[False] * 400)
    for rows in (tossed, some, neither):
        taking_part = rows.any(axis=1)
        np.testing.assert_array_equal(rows[taking_part], everybody[taking_part])
        assert not rows[~taking_part].any()
    # five and a half deviations of a binomial: less than 1e-7
    assert abs(tossed.any(axis=1).mean() - 0.3) < 5.5 * np.sqrt(0.3 * 0.7 / 400)
    np.testing.assert_array_equal(some.any(axis=1), [True, False] * 200)
    assert not neither.any()
    assert np.isfinite(updates[1]).all(), "the caller's updates are left alone"


def test_taking_part_changes_a_vector_by_the_clipping_norm_at_most() -> None:
    """What accounting charges: its distance from zeros, which is what others send."""
    updates = np.random.default_rng(0).normal(0, 5, (50, 3)).astype(np.float32)
    given: dict[str, Any] = {"clipping": ADAPTIVE.to_json(), "entropy": AesCtrStream(bytes(32))}
    taking = contribution(updates, participation=1.0, **given)
    not_taking = contribution(updates, participation=1.0, **given, taking_part=[False] * 50)
    distances = np.linalg.norm(taking.astype(np.float64) - not_taking, axis=1)
    assert distances.max() <= ADAPTIVE.clip * (1 + 1e-6)
