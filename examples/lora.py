"""LoRA: only low-rank adapters of a small transformer are trained and sent.

    python examples/lora.py [--quick]

The base model has learnt to continue sequences that count up (x, x+s, x+2s, ... modulo 16, for s
of 1, 2 and 3) and is frozen: frozen weights do not travel. Clients hold sequences that count down.
Each linear layer W within the transformer gets an adapter B A of rank 2 (Hu et al. 2021,
arXiv:2106.09685): W x + B A x, with B zero at first.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

import fedsys
from fedsys.tasks import DataSource, Examples, FederatedData, seeded

SYMBOLS, LENGTH, WIDTH = 16, 12, 96


class Adapted(nn.Module):
    """A frozen linear layer and its adapter."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """W x + B A x."""
        return self.base(x) + x @ self.a.T @ self.b.T


class Layer(nn.Module):
    """Causal self-attention with one head, and a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.deep = nn.Sequential(nn.Linear(WIDTH, 192), nn.GELU(), nn.Linear(192, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, WIDTH) to the same."""
        y = self.before(x)
        attended = nn.functional.scaled_dot_product_attention(
            self.q(y)[:, None], self.k(y)[:, None], self.v(y)[:, None], is_causal=True
        )
        x = x + self.o(attended[:, 0])
        return x + self.deep(self.between(x))


class Transformer(nn.Module):
    """The next symbol at every place."""

    def __init__(self) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, WIDTH)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)
        self.layers = nn.Sequential(Layer(), Layer())
        self.out = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) symbols to (B, T, SYMBOLS) logits."""
        return self.out(self.layers(self.symbols(x) + self.places[: x.shape[1]]))


def counting(steps: Tensor) -> Examples:
    """Sequences that count in these steps, each from a random symbol."""
    begin = torch.randint(SYMBOLS, (len(steps), 1))
    rows = (begin + steps[:, None] * torch.arange(LENGTH + 1)) % SYMBOLS
    return Examples(x=rows[:, :-1].contiguous(), y=rows[:, 1:].contiguous())


class Adapters:
    """Next-symbol prediction; `steps` of pretraining make the base model."""

    name = "lora"
    preprocessing = "fixed"

    def __init__(self, steps: int = 150) -> None:
        self._steps = steps
        self._base: dict[str, Tensor] | None = None

    def init_model(self, seed: int) -> nn.Module:
        """The pretrained base, frozen, with adapters."""
        with seeded(seed), torch.enable_grad():
            model = Transformer()
            if self._base is None:
                pretrain(model, self._steps)
                self._base = {name: each.clone() for name, each in model.state_dict().items()}
            model.load_state_dict(self._base)
            model.requires_grad_(False)
            for layer in model.layers:
                for name in ("q", "k", "v", "o"):
                    setattr(layer, name, Adapted(getattr(layer, name), rank=2))
                for place in (0, 2):
                    layer.deep[place] = Adapted(layer.deep[place], rank=2)
        return model

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) cross entropy over the places after the first, which cannot know the step."""
        each = nn.functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")
        return each[:, 1:].mean(1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """(B,) how many of those places are right."""
        return {"accuracy": (outputs.argmax(2) == targets)[:, 1:].float().mean(1)}

    def clients(self, source: DataSource) -> FederatedData:
        """32 clients; each counts down in one step from 1 to 3."""
        with seeded(0):
            whose = torch.arange(32).repeat_interleave(20)
            train = counting(-1 - whose % 3)
            test = counting(-1 - torch.arange(150) % 3)
        return FederatedData(train=train, test=test, natural=whose)


def pretrain(model: nn.Module, steps: int) -> None:
    """Counting up, from anywhere."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    task = Adapters()
    for _ in range(steps):
        batch = counting(torch.randint(1, 4, (64,)))
        optimizer.zero_grad()
        task.loss(model(batch.x), batch.y).mean().backward()
        optimizer.step()


def main(*, quick: bool = False) -> dict[str, float]:
    """Train the adapters, and say what they reach and what is sent."""
    settings: dict[str, Any] = {
        "job.name": "lora",
        "population.partition": "by-column",
        "population.clients": 32,
        "cohort.expected": 8,
        "cohort.sampling": "fixed",
        "rounds.count": 8 if quick else 20,
        "local.epochs": 2 if quick else 4,
        "local.batch_size": 10,
        "local.optimizer": "adam",
        "local.learning_rate": 0.01,
        "server.strategy": "fedavg",
        "server.learning_rate": 1.0,
        "privacy.mechanism": "none",
        "privacy.clip": 20.0,
        "aggregation.protocol": "float",
        "engine.path": "loop",
        "engine.processes": 1,
        "evaluation.every": 4,
    }
    task = Adapters(40 if quick else 150)
    test = task.clients(DataSource()).test
    model = task.init_model(0)
    with torch.no_grad():
        before = float(task.metrics(model(test.x), test.y)["accuracy"].mean())
    run = fedsys.simulate(settings, task=task)
    sent = sum(each.numel() for each in model.parameters() if each.requires_grad)
    whole = sum(each.numel() for each in model.parameters())
    found = {"before": before, "after": run.metrics["accuracy"], "sent": sent / whole}
    print(f"accuracy before {before:.3f}, after {found['after']:.3f}")
    print(f"each update has {sent} of {whole} numbers: {sent / whole:.1%}")
    return found


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
