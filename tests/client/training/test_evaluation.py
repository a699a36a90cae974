"""An evaluation reads its examples and changes nothing of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from client.training import LocalConfig, Trainer
from fedsys.tasks import DataSource, Examples, load


class Standardising(nn.Module):
    """Writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x -= 1.0
        outputs: Tensor = self.readout(x)
        return outputs


def last_first(outputs: Tensor, targets: Tensor) -> float:
    targets[0] = targets[-1]
    return 0.0


def test_the_held_examples_stay_as_they_are(tmp_path: Path) -> None:
    """Those of a file that is mapped for reading cannot even be written."""
    task = load("digits")
    test = task.clients(DataSource()).test
    np.save(tmp_path / "x.npy", test.x.numpy())
    mapped = Examples(x=np.load(tmp_path / "x.npy", mmap_mode="r"), y=test.y.clone())
    task.init_model = lambda seed: Standardising()  # type: ignore[method-assign]
    trainer = Trainer(task, LocalConfig())
    weights = trainer.initial_weights()
    first, again = (trainer.evaluate(weights, mapped, [f"{__name__}:last_first"]) for _ in range(2))
    assert first == again
    assert torch.equal(mapped.x, test.x)
    assert torch.equal(mapped.y, test.y)
