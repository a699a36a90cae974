"""DP-SGD inside each client, by Opacus: each update is differentially private in each example.

Abadi et al. 2016 (arXiv:1607.00133), algorithm 1. `EntropyEngine` has Opacus assemble it from
Opacus' clipping, as ghost clipping where that is faster (`client.training.example.gradients`), and
its optimizer. Batches and noise come from AES-CTR streams keyed by the caller's entropy; clipped
gradients are added as integers and the noise is round(sigma N)
(`client.training.example.optimizer`).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training.example_privacy import ExamplePrivacy
from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.selfcheck import spread_rows
from fedsys.errors import TrainingError
from fedsys.privacy.randomness import AesCtrStream, Entropy
from fedsys.tasks import Examples, Task, seeded
from fedsys.tasks.examples import Values
from fedsys.tasks.modelling import conformed, init_model

__all__ = ["ExamplePrivacy", "ExamplePrivateTrainer"]

_log = logging.getLogger(__name__)
_GHOST_BATCH = 256
_TRIED = 3


class ExamplePrivateTrainer:
    """Trains clients one after the other with example-level differential privacy.

    Args:
        task: Model and loss. An example's loss must not depend on other examples of its batch.
        local: Optimizer, learning rate, momentum, weight decay and FedProx; ``epochs`` and
            ``batch_size`` are replaced by the privacy's steps and rate.
        privacy: The guarantee.
        device: Where gradients are computed; noise is drawn on the host.
        seed: Seed of the initial weights.
        mode: Opacus' mode for per-example gradients, ``"ghost"`` or ``"no_op"`` (torch.func); by
            default chosen for the model at the first call.
        sample: at least one example, which gives lazy modules their shapes.

    A client's number of examples is taken to be public: it divides the summed gradients.

    One trainer serves any number of clients and rounds, and no client's data influences the next
    client: each starts from the given weights and the model's initial buffers, with an optimizer
    and a stream of its own. The noise sampler is stateless.

    Raises:
        TrainingError: the model has a layer without per-example gradients.
    """

    def __init__(
        self,
        task: Task,
        local: LocalConfig,
        privacy: ExamplePrivacy,
        device: str | torch.device = "cpu",
        seed: int = 0,
        *,
        mode: str | None = None,
        sample: Examples | None = None,
    ) -> None:
        from client.training.example.engine import EntropyEngine
        from client.training.example.gradients import refuse_mixing

        self._task, self._local, self._privacy = task, local, privacy
        self._device, self._seed, self._mode = torch.device(device), seed, mode
        self._sample = None if sample is None else sample[:1]
        self._renew()
        refuse_mixing(self._model)
        self._layout = FlatLayout.of(self._model)
        if not self._layout.uniform:
            raise TrainingError(
                "mechanism 'example-gaussian' clips and steps in the parameters' own dtype, which "
                "has to be float32 or float64 for all of them; leave out the conversion to 16 bits"
            )
        self._engine = EntropyEngine(privacy.noise_multiplier)

    @property
    def dimension(self) -> int:
        """d, the length of the flat weight vector."""
        return self._layout.dimension

    @property
    def mode(self) -> str | None:
        """Opacus' grad_sample_mode; None before the first call."""
        return self._mode

    def opacus_epsilon(self, delta: float) -> float:
        """Epsilon by Opacus' own accountant, as if one client had taken the steps of all."""
        return float(self._engine.get_epsilon(delta))

    def train(
        self,
        weights: NDArray[np.float32],
        examples: Examples,
        client_rows: Sequence[NDArray[np.int64]],
        entropy: Entropy,
        *,
        names: Sequence[object] | None = None,
    ) -> NDArray[np.float32]:
        """(K, d) w_local - w_global, each differentially private in the client's examples.

        Args:
            weights: (d,) the clients' initial weights.
            examples: The pool of training examples.
            client_rows: Each client's rows of the pool; a client without rows gets a zero update.
            entropy: Keys the streams of batches and noise.
            names: The clients' names in errors; their positions by default.

        Raises:
            TrainingError: training failed; the message names the client and the cause.
        """
        updates = np.zeros((len(client_rows), self.dimension), dtype=np.float32)
        start = torch.from_numpy(np.array(weights, dtype=np.float32)).to(self._device)
        examples = conformed(self._model, examples)
        for client, rows in enumerate(client_rows):
            if not len(rows):
                continue
            name = client if names is None else names[client]
            stream = AesCtrStream.from_entropy(entropy)
            try:
                trained = self._train_one(start, examples, rows, stream)
            except TrainingError as error:
                self._renew()
                raise TrainingError(f"client {name}: {error}") from error
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                self._renew()
                text = " ".join(str(error).split())[:300]
                raise TrainingError(
                    f"client {name}: example-private training failed: {type(error).__name__}: "
                    f"{text}"
                ) from error
            updates[client] = (trained - start).float().cpu().numpy()
        return updates

    def _renew(self) -> None:
        """Make a fresh model, without Opacus' hooks."""
        made = init_model(self._task, self._seed, self._sample)
        self._model: nn.Module = made.to(self._device).train()
        self._private: nn.Module = self._model
        self._buffers = {name: each.clone() for name, each in self._model.named_buffers()}

    def _train_one(
        self, start: Tensor, examples: Examples, rows: NDArray[np.int64], stream: AesCtrStream
    ) -> Tensor:
        from client.training.example.engine import PoissonBatches
        from client.training.example.gradients import PerExampleLoss, step_of
        from client.training.example.optimizer import proximal_hook

        privacy = self._privacy
        self._layout.write(self._model, start)
        for name, made in self._buffers.items():
            self._model.get_buffer(name).copy_(made)
        # A dropout mask may follow a fixed seed: privacy rests on batches and noise alone.
        with seeded(0), _without_hints():
            mode = self._choose(examples)
            params = [p for p in self._model.parameters() if p.requires_grad]
            made = self._engine.make_private(
                module=self._private,
                optimizer=self._optimizer(params),
                criterion=PerExampleLoss(self._task),
                data_loader=PoissonBatches(
                    rows, rate=privacy.example_rate, steps=privacy.steps, stream=stream
                ),
                noise_multiplier=privacy.noise_multiplier,
                max_grad_norm=privacy.clip,
                grad_sample_mode=mode,
                stream=stream,
                examples=privacy.example_rate * len(rows),
            )
            self._private, optimizer, batches = made[0], made[1], made[-1]
            count = self._engine.accountant.get_optimizer_hook_fn(sample_rate=batches.rate)
            pull = proximal_hook(
                params, [p.detach().clone() for p in params], self._local.proximal_mu
            )
            optimizer.attach_step_hook(lambda o: (count(o), pull(o)))
            gradients = step_of(mode, self._task, self._model, self._private, made[2], optimizer)
            for batch in batches:
                for x, y, last in self._physical(examples, rows, batch):
                    optimizer.signal_skip_step(not last)
                    optimizer.zero_grad()
                    gradients(x, y)
                    optimizer.step()
            optimizer.zero_grad(set_to_none=True)  # no example's gradient outlives the round
        return self._layout.read(self._model)

    def _optimizer(self, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        local = self._local
        if local.optimizer == "adam":
            return torch.optim.Adam(params, lr=local.learning_rate, weight_decay=local.weight_decay)
        return torch.optim.SGD(
            params,
            lr=local.learning_rate,
            momentum=local.momentum,
            weight_decay=local.weight_decay,
        )

    def _physical(
        self, examples: Examples, rows: NDArray[np.int64], batch: NDArray[np.bool_]
    ) -> Iterator[tuple[Values, Values, bool]]:
        """A Poisson batch in parts (x, y, whether it is the last) that fit into memory.

        A part holds what was sampled of a fixed range of the client's rows, so that an example in
        or out of the batch changes the floating-point sum of one part and no other.
        """
        most = max(1, (256 << 20) // (4 * self.dimension))
        if self._mode == "ghost":
            most = _GHOST_BATCH
        width = math.floor(most / self._privacy.example_rate)
        for at in range(0, len(rows), width):
            some = rows[at : at + width][batch[at : at + width]]
            yield *self._take(examples, some), at + width >= len(rows)

    def _take(self, examples: Examples, rows: NDArray[np.int64]) -> tuple[Values, Values]:
        some = examples.take(torch.from_numpy(np.ascontiguousarray(rows))).to(self._device)
        return some.x, some.y

    def _choose(self, examples: Examples) -> str:
        """Opacus' mode for this model, tried on finite examples from all over the data, so that it
        does not depend on which client is the first, and then kept."""
        if self._mode is None:
            from client.training.example.gradients import form_for

            some = spread_rows(examples, _TRIED).to(self._device)
            if not len(some):
                self._private = self._model
                return "no_op"
            self._private = self._model
            self._mode, why = form_for(self._task, self._model, some.x, some.y)
            _tell(self._mode, why, self._privacy, self._local, self._seed, self.dimension)
        return self._mode


@lru_cache(maxsize=64)
def _tell(mode: str, why: str, *_job: object) -> None:
    """Log the mode once per job, though a device may make several trainers for it: the arguments
    that identify the job are the cache's key."""
    _log.info("gradients of examples: %s, %s", mode, why)


@contextmanager
def _without_hints() -> Iterator[None]:
    """Silence torch's warnings about Opacus, on which the user of a job cannot act."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield
