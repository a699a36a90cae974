"""Local training, batch-first."""

from client.training.autotune import Choice
from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.trainer import Trainer

__all__ = ["Choice", "FlatLayout", "LocalConfig", "Trainer"]
