"""What a local procedure is given besides the model and the examples.

::

    def local_update(model, examples, local):
        optimizer = local.optimizer(model)
        for batch in local.batches(examples):
            optimizer.zero_grad()
            local.loss(model, batch).backward()
            optimizer.step()
        local.state["rounds"] = local.state.get("rounds", torch.zeros(())) + 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.training.local import LocalConfig
from client.training.procedure.visit import Visit
from client.training.schedule import batches
from client.training.splitmix import state_of
from fedsys.errors import ConfigError, TrainingError
from fedsys.privacy.encoding.parts import Block
from fedsys.tasks import Examples, Task

__all__ = ["Generators", "Local", "optimizer_named"]

_CLOSURES = frozenset({"LBFGS", "SparseAdam", "Optimizer"})


@dataclass(frozen=True, kw_only=True)
class Generators:
    """Random numbers of one client in one round. Torch's global generator is seeded too.

    Attributes:
        torch: For ``generator=`` arguments of torch, on the CPU.
        numpy: A numpy generator.
    """

    torch: torch.Generator
    numpy: np.random.Generator

    @classmethod
    def of(cls, seed: int) -> Generators:
        """Those of a client's seed."""
        return cls(
            torch=torch.Generator().manual_seed(seed % 2**63),
            numpy=np.random.default_rng([0x6C6F63616C, seed]),
        )


class Local:
    """One client in one round.

    Attributes:
        config: ``[local]`` of the configuration: epochs, batch size, learning rate...
        options: ``[local.options]``, the procedure's own.
        round: The round's number, from 1.
        rounds: Number of rounds of the job.
        rng: Generators of this client in this round; see `Generators`.
        state: Tensors that stay with this client: what the last round left here. Never sent.
        shared: Tensors that the server sent with the model, equal for all clients.
    """

    def __init__(
        self,
        task: Task,
        config: LocalConfig,
        *,
        seed: int,
        visit: Visit,
        state: dict[str, Tensor],
        shared: Mapping[str, Tensor],
        blocks: Mapping[str, Block],
    ) -> None:
        self.config, self.options = config, config.options
        self.round, self.rounds = visit.round, visit.rounds
        self.rng = Generators.of(seed)
        self.state, self.shared = state, shared
        self._task, self._seed, self._blocks = task, seed, blocks
        self._sent: dict[str, Tensor] = {}
        self._passes = 0

    @property
    def sent(self) -> Mapping[str, Tensor]:
        """The blocks sent so far."""
        return self._sent

    def send(self, name: str, tensor: Tensor | float) -> None:
        """Send a block with the update, clipped to its norm. One that is not sent is zeros.

        Args:
            name: As declared by ``sends``.
            tensor: Of the declared shape; for the shape (), a number will do.

        Raises:
            TrainingError: the block was not declared, or has another shape.
        """
        declared = self._blocks.get(name)
        if declared is None:
            known = ", ".join(self._blocks) or "none"
            raise TrainingError(
                f"local.send({name!r}, ...): no such block was declared (declared: {known}); the "
                f"vector's length is agreed before training, so name it in sends"
            )
        value = torch.as_tensor(tensor, dtype=torch.float32).detach().cpu()
        if tuple(value.shape) != declared.shape:
            raise TrainingError(
                f"local.send({name!r}, ...): a tensor of shape {tuple(value.shape)}, declared as "
                f"{declared.shape}"
            )
        self._sent[name] = value

    def batches(self, examples: Examples, epochs: int | None = None) -> Iterator[Examples]:
        """The client's batches: ``local.epochs`` passes, each in an order of its own that depends
        on the seed alone. A second call in the same round gives other orders."""
        config = self.config
        if epochs is not None:
            config = LocalConfig(batch_size=config.batch_size, epochs=epochs)
        rows = np.arange(len(examples), dtype=np.int64)
        for batch in batches(rows, self._seed_of_pass(), config):
            yield _taken(examples, batch)

    def loss(self, model: nn.Module, batch: Examples) -> Tensor:
        """The task's loss, averaged over the batch."""
        return self._task.loss(model(batch.x), batch.y).mean()

    def optimizer(self, model: nn.Module | Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer that ``[local]`` names, over a model's trainable parameters."""
        params = model.parameters() if isinstance(model, nn.Module) else model
        config = self.config
        kind = optimizer_named(config.optimizer)
        options: dict[str, Any] = {"lr": config.learning_rate, **config.optimizer_options}
        if config.momentum:
            options["momentum"] = config.momentum
        if config.weight_decay:
            options["weight_decay"] = config.weight_decay
        try:
            return kind([each for each in params if each.requires_grad], **options)
        except (TypeError, ValueError) as error:
            raise TrainingError(
                f"local.optimizer = {config.optimizer!r} cannot be made with "
                f"{', '.join(options)}: {error}; change local.optimizer_options"
            ) from None

    def train(
        self,
        model: nn.Module,
        examples: Examples,
        *,
        epochs: int | None = None,
        loss: Callable[[nn.Module, Examples], Tensor] | None = None,
        correct: Callable[[str, nn.Parameter, Tensor], Tensor] | None = None,
    ) -> int:
        """Train as ``[local]`` says: its optimizer, schedules, gradient clipping and FedProx.

        Args:
            model: Trained in place.
            examples: The client's examples.
            epochs: Passes; ``local.epochs`` by default.
            loss: The objective of a batch; the task's loss by default.
            correct: Called with each parameter's name, the parameter and its gradient, after
                gradient clipping; returns the gradient to use.

        Returns:
            The number of steps taken.
        """
        config, objective = self.config, loss or self.loss
        optimizer = self.optimizer(model)
        named = {name: each for name, each in model.named_parameters() if each.requires_grad}
        params = list(named.values())
        start = [each.detach().clone() for each in params] if config.proximal_mu else []
        passes = config.epochs if epochs is None else epochs
        steps, step = passes * -(-len(examples) // config.batch_size), 0
        for step, batch in enumerate(self.batches(examples, passes), 1):
            rate = config.rate(round=self.round, rounds=self.rounds, step=step, steps=steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            objective(model, batch).backward()  # type: ignore[no-untyped-call]
            for each, begin in zip(params, start, strict=False):
                if each.grad is not None:
                    each.grad.add_(each.detach() - begin, alpha=config.proximal_mu)
            if config.gradient_clip:
                nn.utils.clip_grad_norm_(params, config.gradient_clip)
            if correct is not None:
                for name, each in named.items():
                    if each.grad is not None:
                        each.grad = correct(name, each, each.grad)
            optimizer.step()
        return step

    def epochs(self) -> int:
        """Passes of this client in a round: ``local.epochs``, or one of the numbers of the option
        ``epochs``, drawn in the client's first round and kept, as of faster and slower devices."""
        choices = self.options.get("epochs")
        if choices is None:
            return self.config.epochs
        if "epochs" not in self.state:
            drawn = int(self.rng.numpy.choice(np.asarray(choices, dtype=np.int64)))
            self.state["epochs"] = torch.tensor(drawn)
        return int(self.state["epochs"])

    def _seed_of_pass(self) -> int:
        self._passes += 1
        if self._passes == 1:
            return self._seed
        other = np.array([self._seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
        return int(state_of(other, 1000 + self._passes).ravel()[0])


def optimizer_named(name: str) -> type[torch.optim.Optimizer]:
    """The class in ``torch.optim`` of this name, in any case.

    Raises:
        ConfigError: there is none, or it cannot take single steps.
    """
    found = {
        each.lower(): kind
        for each, kind in vars(torch.optim).items()
        if isinstance(kind, type)
        and issubclass(kind, torch.optim.Optimizer)
        and each not in _CLOSURES
    }
    if name.lower() not in found:
        raise ConfigError(
            f"local.optimizer = {name!r}: allowed are {', '.join(sorted(found))} of torch.optim"
        )
    return found[name.lower()]


def _taken(examples: Examples, rows: Any) -> Examples:
    return examples.take(torch.from_numpy(rows))
