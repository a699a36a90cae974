"""What a device is sent of the roster grows as the fleet does."""

from __future__ import annotations

from simulations.benchmarks.rosters import measure


def test_what_a_device_is_sent_grows_as_the_fleet_does() -> None:
    small, large = measure(40), measure(80)
    assert large.first < 2.1 * small.first
    assert large.newest < 2.1 * small.newest
    assert large.whole > 3.5 * small.whole, "as whole lists it grows as the square"
    assert large.first < 200 * 80
