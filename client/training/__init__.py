"""Local training, batch-first."""

from client.training.autotune import Choice
from client.training.example.privacy import ExamplePrivacy
from client.training.example.trainer import ExampleTrainer
from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.memory import keep_freed_memory
from client.training.trainer import ClippedSum, Trainer

__all__ = [
    "Choice",
    "ClippedSum",
    "ExamplePrivacy",
    "ExampleTrainer",
    "FlatLayout",
    "LocalConfig",
    "Trainer",
    "keep_freed_memory",
]
