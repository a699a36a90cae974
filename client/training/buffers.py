"""Buffers that training must leave as they are."""

from __future__ import annotations

import torch
from torch import nn

from fedsys.errors import TrainingError

__all__ = ["UnwrittenBuffers"]


class UnwrittenBuffers:
    """A model's persistent buffers, watched for writes.

    What stays out of ``state_dict`` is a cache by declaration: whether it changes an update is
    asked by `client.training.carryover`.

    Args:
        model: as it is before it trains.
    """

    def __init__(self, model: nn.Module) -> None:
        self._watched = [
            (name, module, key, buffer, buffer._version, buffer.detach().clone())
            for name, module in model.named_modules()
            for key, buffer in module.named_buffers(recurse=False)
            if key not in module._non_persistent_buffers_set and not buffer.is_inference()
        ]

    def check(self) -> None:
        """They hold what they held.

        Raises:
            TrainingError: names the module and the buffer.
        """
        for name, module, key, buffer, version, value in self._watched:
            now = getattr(module, key, None)
            if now is buffer and now._version == version:
                continue
            if isinstance(now, torch.Tensor) and torch.equal(now, value):
                continue
            raise TrainingError(
                f"the model's {type(module).__name__} {name!r} writes its buffer {key!r} while it "
                f"trains: clients would not send it, one client's data would reach the next one's "
                f"update, and evaluation would use the initial value; compute it from the batch "
                f"alone, or leave it out"
            )
