"""Sources of secrets: what a randomness says of itself is so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedsys.config import Config
from fedsys.privacy import Entropy
from simulations.randomness import Randomness, SeededRandomness, SystemRandomness
from simulations.setting import prepare
from tests.simulations.engine.works import work_of


@pytest.mark.parametrize(
    "randomness",
    [SystemRandomness(), SeededRandomness(b"one"), SeededRandomness(b"one", everything=False)],
)
def test_a_randomness_knows_whether_all_noise_has_one_source(randomness: Randomness) -> None:
    sources = [randomness.noise(round, client) for round in (1, 2) for client in (0, 7)]
    shared = randomness.shared_noise()
    assert (shared is not None) == (len(set(sources)) == 1)
    assert shared in (None, *sources)


def test_no_two_purposes_share_a_stream(configure: Callable[..., Config]) -> None:
    """Nonces and coins repeat no octets of the noise."""

    class NoNoise(SeededRandomness):
        def noise(self, round: int, client: int) -> Entropy:
            raise AssertionError("noise is drawn, or something else is drawn from its stream")

    one = SeededRandomness(b"one")
    kinds = (one.noise, one.coin, one.nonce, one.keys)
    drawn = [kind(round, client)(16) for kind in kinds for round in (1, 2) for client in (0, 7)]
    drawn += [one.job()(16), one.sampling(1)(16), one.sampling(2)(16)]
    assert len(set(drawn)) == len(drawn)
    setting = prepare(configure("cohort.participation=0.5"), randomness=NoNoise(b"one"))
    work, length = work_of(setting, shares=False), setting.plan.build_mechanism().length
    with setting.engine as engine:
        total, _ = engine.total(work, [(0, 1, 2, 3)], length)
    assert total.any()
    assert set(setting.nonces(1, (0, 7))) == {0, 7}
