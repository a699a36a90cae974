"""DP-SGD inside each client: what leaves it hides every single example of its data.

Abadi et al. 2016 (arXiv:1607.00133), algorithm 1, as Opacus does it, with two differences. Batches
and noise come from AES-CTR streams keyed by the caller's entropy. Each example's clipped gradient
is truncated to integers (units of clip / 2^20), so that their sum is exact, its sensitivity is at
most the clip, and the noise is round(sigma N): floating point gives nothing away.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.optimizer import Stepper
from fedsys.errors import ConfigError, TrainingError
from fedsys.privacy.randomness import AesCtrStream, Entropy
from fedsys.privacy.samplers.gaussian import RoundedGaussian
from fedsys.tasks import Examples, Task, seeded

__all__ = ["ExamplePrivacy", "ExamplePrivateTrainer"]

_UNITS = float(1 << 20)
# Float32 norms of millions of coordinates are off by less; clipping to a hair less makes up for it.
_SLACK = 1.0 - 1e-5


@dataclass(frozen=True, kw_only=True)
class ExamplePrivacy:
    """What the accountant of ``example-gaussian`` charges for; the same for every client.

    Attributes:
        clip: C, the norm to which each example's gradient is clipped.
        noise_multiplier: z; a step's summed gradient gets noise of standard deviation z C.
        example_rate: Probability with which an example is in a step's batch, independently.
        steps: Local steps a round.
    """

    clip: float
    noise_multiplier: float
    example_rate: float
    steps: int

    def __post_init__(self) -> None:
        for name in ("clip", "noise_multiplier"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"privacy.{name} = {value}: must be a positive number")
        if not 0 < self.example_rate <= 1:
            raise ConfigError(f"example_rate = {self.example_rate}: must be in (0, 1]")
        if self.steps < 1:
            raise ConfigError(f"steps = {self.steps}: at least 1 is needed")


class ExamplePrivateTrainer:
    """Trains clients one after the other with example-level differential privacy.

    Args:
        task: Model and loss. An example's loss must not depend on the others of its batch.
        local: Optimizer, learning rate, momentum, weight decay and FedProx; ``epochs`` and
            ``batch_size`` are replaced by the privacy's steps and rate.
        privacy: What is guaranteed.
        device: Where gradients are computed; noise is drawn on the host.
        seed: Of the initial weights.

    A client's number of examples is taken to be public: it divides the summed gradients.
    """

    def __init__(
        self,
        task: Task,
        local: LocalConfig,
        privacy: ExamplePrivacy,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        self._local, self._privacy, self._device = local, privacy, torch.device(device)
        self._model = task.init_model(seed).to(self._device).train()
        self._layout = FlatLayout.of(self._model)
        self._noise = RoundedGaussian(float(privacy.noise_multiplier * _UNITS))
        model: nn.Module = self._model

        def loss_of(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            outputs = functional_call(model, params, (x.unsqueeze(0),))
            return task.loss(outputs, y.unsqueeze(0)).sum()

        self._gradients = vmap(grad(loss_of), in_dims=(None, 0, 0), randomness="different")

    @property
    def dimension(self) -> int:
        """d, the length of the flat weight vector."""
        return self._layout.dimension

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
            weights: (d,) where the clients start.
            examples: The pool of training examples.
            client_rows: Each client's rows; one without rows gets a zero update.
            entropy: Keys the batches' and the noise's streams.
            names: What an error calls the clients; their positions by default.

        Raises:
            TrainingError: names the client, the cause and the remedy.
        """
        updates = np.zeros((len(client_rows), self.dimension), dtype=np.float32)
        start = torch.from_numpy(np.array(weights, dtype=np.float32)).to(self._device)
        for client, rows in enumerate(client_rows):
            if not len(rows):
                continue
            stream = AesCtrStream.from_entropy(entropy)
            try:
                trained = self._train_one(start, examples, rows, stream)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                name = client if names is None else names[client]
                text = " ".join(str(error).split())[:300]
                raise TrainingError(
                    f"client {name}: example-private training failed: {type(error).__name__}: "
                    f"{text}; the model must run under torch.func.vmap"
                ) from error
            updates[client] = (trained - start).cpu().numpy()
        return updates

    def _train_one(
        self, start: Tensor, examples: Examples, rows: NDArray[np.int64], stream: AesCtrStream
    ) -> Tensor:
        flat = start.clone()
        stepper = Stepper(self._local, [start], [flat])
        expected = self._privacy.example_rate * len(rows)
        # A dropout mask may follow a fixed seed: privacy rests on batches and noise alone.
        with seeded(0), torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            for _ in range(self._privacy.steps):
                batch = rows[_chosen(stream, len(rows), self._privacy.example_rate)]
                total = self._clipped_sum(flat, examples, batch)
                total += self._noise.draw(total.shape, stream)
                gradient = total * (self._privacy.clip / _UNITS / expected)
                stepper.step([torch.from_numpy(gradient).to(flat)])
        return flat

    def _clipped_sum(
        self, flat: Tensor, examples: Examples, batch: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """(d,) the sum of the batch's clipped gradients, in units of clip / 2^20."""
        total = np.zeros(self.dimension, dtype=np.int64)
        most = max(1, (256 << 20) // (4 * self.dimension))
        for at in range(0, len(batch), most):
            rows = torch.from_numpy(batch[at : at + most]).to(examples.x.device)
            x = examples.x.index_select(0, rows).to(self._device)
            y = examples.y.index_select(0, rows).to(self._device)
            grads = self._gradients(self._layout.views(flat), x, y)
            each = torch.cat([grads[name].flatten(1) for name in self._layout.names], dim=1)
            norms = torch.linalg.vector_norm(each, dim=1)
            # A gradient that is not finite counts as zero: refusing would tell of its example.
            each[~torch.isfinite(norms)] = 0
            norms = torch.nan_to_num(norms, nan=0.0, posinf=0.0)
            factors = (self._privacy.clip / norms.clamp_min(1e-30)).clamp_max(1.0)
            each *= (factors * (_SLACK * _UNITS / self._privacy.clip)).unsqueeze(1)
            total += each.trunc_().sum(0, dtype=torch.float64).cpu().numpy().astype(np.int64)
        return total


def _chosen(stream: AesCtrStream, count: int, rate: float) -> NDArray[np.bool_]:
    """(count,) independent coins that are true with probability `rate` to within 2^-64."""
    if rate >= 1:
        return np.ones(count, dtype=np.bool_)
    return stream.words(count) < np.uint64(math.floor(rate * 2.0**64))
