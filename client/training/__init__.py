"""Local training, batch-first."""

from typing import TYPE_CHECKING

from fedsys.lazy_names import on_use

if TYPE_CHECKING:
    from client.training.autotune import Choice
    from client.training.example.privacy import ExamplePrivacy
    from client.training.example.trainer import ExampleTrainer
    from client.training.flat import FlatLayout
    from client.training.local import LocalConfig
    from client.training.memory import keep_freed_memory
    from client.training.trainer import ClippedSum, Trainer
else:
    # On use: a device that trains from a graph takes the schedule from here, and has no torch.
    __getattr__, __dir__ = on_use(
        __name__,
        {
            "autotune": ("Choice",),
            "example.privacy": ("ExamplePrivacy",),
            "example.trainer": ("ExampleTrainer",),
            "flat": ("FlatLayout",),
            "local": ("LocalConfig",),
            "memory": ("keep_freed_memory",),
            "trainer": ("ClippedSum", "Trainer"),
        },
    )

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
