"""What a device keeps survives its process, and a round that is repeated starts where it did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from client.device_states import DeviceStates
from fedsys.errors import TrainingError


def test_a_repeated_round_starts_from_the_round_before(tmp_path: Path) -> None:
    def own() -> DeviceStates:
        return DeviceStates(tmp_path / "states")

    job, other = bytes([1]) * 32, bytes([2]) * 32
    assert own().of(job).load("this device", 1) == {}
    for number in (1, 4, 4):
        states = own().of(job)
        before = states.load("this device", number).get("n", torch.zeros(()))
        states.save("this device", number, {"n": before + 1})
    assert own().of(job).load("this device", 9) == {"n": torch.tensor(2.0)}
    assert own().of(job).load("this device", 4) == {"n": torch.tensor(1.0)}
    assert own().of(other).load("this device", 9) == {}
    path = tmp_path / "states" / f"{job.hex()}.pt"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"torn")
    with pytest.raises(TrainingError, match="delete the file to begin again"):
        own().of(job).load("this device", 9)
