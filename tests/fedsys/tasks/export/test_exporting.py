"""What is exported, what is refused by name, and that the same task gives the same bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fedsys.errors import ConfigError
from fedsys.graphs import Interpreter, Limits, Vetted
from fedsys.tasks import Examples
from fedsys.tasks.export import export_task
from tests.client.graphs.zoo import Mixing, Norms, Reading, Small, Transformer, rows, sequences

_ROOT = Path(__file__).parents[4]


class Lambda(nn.Module):
    """A linear layer, then anything."""

    def __init__(self, then: Callable[[Tensor], Tensor], sizes: tuple[int, int] = (6, 3)) -> None:
        super().__init__()
        self.layer, self._then = nn.Linear(*sizes), then

    def forward(self, x: Tensor) -> Tensor:
        return self._then(self.layer(x))


def _export(model: Callable[[], nn.Module], examples: Examples, **options: Any) -> Vetted:
    task: Any = options.pop("task", None) or Small("small", model, examples)
    return export_task(
        task, examples, **{"name": "small", "options": {}, "batch_size": 4, **options}
    )


@pytest.mark.parametrize(
    "then",
    [
        pytest.param(lambda x: functional.gelu(x), id="gelu"),
        pytest.param(lambda x: functional.gelu(x, approximate="tanh"), id="gelu-tanh"),
        pytest.param(lambda x: functional.silu(x), id="silu"),
        pytest.param(lambda x: functional.elu(x), id="elu"),
        pytest.param(lambda x: functional.selu(x), id="selu"),
        pytest.param(lambda x: functional.softplus(x, beta=2), id="softplus"),
        pytest.param(lambda x: functional.mish(x), id="mish"),
        pytest.param(lambda x: functional.hardtanh(x), id="hardtanh"),
        pytest.param(lambda x: functional.hardswish(x), id="hardswish"),
        pytest.param(lambda x: functional.leaky_relu(x, 0.2), id="leaky relu"),
        pytest.param(lambda x: functional.layer_norm(x, (3,)), id="layer norm"),
        pytest.param(lambda x: functional.normalize(x, dim=1), id="normalize"),
        pytest.param(lambda x: functional.pad(x, (1, -1)), id="pad and crop"),
        pytest.param(lambda x: torch.cat([x[:, 1:], x[:, :1]], 1), id="slices"),
        pytest.param(lambda x: x.sigmoid() * x.tanh() / (1 + x.abs()).sqrt(), id="arithmetic"),
        pytest.param(lambda x: x.exp().log1p() + torch.expm1(x * 1e-3), id="log1p, expm1"),
        pytest.param(lambda x: x.clamp(-0.5, 0.5) + x.cos() - x.sin() ** 3, id="clamp, powers"),
        pytest.param(lambda x: x - x.amax(1, keepdim=True) + x.var(1, keepdim=True), id="maximum"),
        pytest.param(lambda x: torch.einsum("bi,bj->bj", x, x), id="einsum"),
        pytest.param(lambda x: torch.where(x > 0, x, x.roll(1, 1)).tril(), id="where, roll"),
        pytest.param(lambda x: x.repeat(1, 2)[:, 1:4].flip(1), id="repeat, flip"),
        pytest.param(lambda x: x.index_select(1, torch.tensor([2, 0, 2])), id="index_select"),
        pytest.param(lambda x: x[:, torch.tensor([2, 0, 2])], id="index"),
        pytest.param(lambda x: x.cumsum(1), id="cumsum"),
    ],
)
def test_what_models_do_can_be_said(then: Callable[[Tensor], Tensor]) -> None:
    """Exporting compares gradients with torch's on full and padded batches."""
    _export(lambda: Lambda(then), rows(6))


@pytest.mark.parametrize(
    "loss",
    [
        functional.mse_loss,
        functional.smooth_l1_loss,
        functional.binary_cross_entropy_with_logits,
        lambda o, y, reduction: functional.cross_entropy(
            torch.stack([o, -o], 1), y.long(), reduction=reduction, label_smoothing=0.1
        ),
    ],
)
def test_losses(loss: Callable[..., Tensor]) -> None:
    class Task(Small):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return loss(outputs[:, 0], targets, reduction="none")

    given = rows(6)
    examples = Examples(x=given.x, y=(given.y > 0).float())
    task = Task("losses", lambda: nn.Linear(6, 1), examples)
    _export(lambda: nn.Linear(6, 1), examples, task=task)


def test_an_embedding_larger_than_one_hot_rows_with_padding() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(900, 4, padding_idx=3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(self.embed(x).mean(1))
            return found

    x = torch.randint(0, 5, (20, 6), generator=torch.Generator().manual_seed(0))
    made = _export(Model, Examples(x=x, y=torch.arange(20) % 3))
    assert "ScatterND" in {node.operator for node in made.graph.nodes}


@pytest.mark.parametrize("kind", ["gradient", "example-gradients"])
def test_batches_of_one_are_exported(kind: str) -> None:
    """Comparing with torch is part of exporting; sums over one example become scalars."""
    made = _export(lambda: nn.Linear(6, 3), rows(6), batch_size=1, kind=kind)
    assert made.graph.batch_size == 1


def _compare_examples(task: Any, examples: Examples, model: nn.Module) -> None:
    made = export_task(task, examples, name="x", options={}, batch_size=5, kind="example-gradients")
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    flat = torch.cat([each.detach().reshape(-1) for each in parameters.values()])
    found, losses = Interpreter(made).run(
        {"weights": flat.numpy(), "x": examples.x[:5].numpy(), "y": examples.y[:5].numpy()}
    )
    for at in range(5):
        outputs = functional_call(model, parameters, (examples.x[at : at + 1],))
        loss = task.loss(outputs, examples.y[at : at + 1]).sum()
        grads = torch.autograd.grad(loss, list(parameters.values()))
        expected = torch.cat([each.reshape(-1) for each in grads])
        np.testing.assert_allclose(found[at], expected.numpy(), atol=2e-5)
        np.testing.assert_allclose(losses[at], loss.item(), rtol=1e-5)


@pytest.mark.slow
def test_gradients_of_single_examples_are_torchs() -> None:
    examples = rows(3, 12, 12, classes=5)
    task = Small("norms", Norms, examples)
    _compare_examples(task, examples, task.init_model(0))


@pytest.mark.parametrize(
    ("model", "examples", "why"),
    [
        (Mixing, rows(6), "mixes the examples of a batch"),
        (
            lambda: Lambda(lambda x: x if x.sum() > 0 else -x),
            rows(6),
            "control flow that depends on the data",
        ),
        (
            lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)),
            rows(1, 4, 4),
            "convolution_backward.*the gradient of a transposed convolution",
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 2, 1),
                nn.AvgPool2d(2, divisor_override=3),
                nn.Flatten(),
                nn.Linear(8, 3),
            ),
            rows(1, 4, 4),
            "avg_pool2d.*divisor",
        ),
        (
            lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
            rows(6),
            "keeps running statistics",
        ),
        (
            lambda: Lambda(lambda x: torch.linalg.qr(x @ x.T)[0][:, :3]),
            rows(6),
            "no rule: .*linalg_qr",
        ),
        (
            lambda: Lambda(lambda x: x + torch.randn_like(x)),
            rows(6),
            "no rule: .*rand",
        ),
        (lambda: Lambda(lambda x: x.double().float()[:, :3].half().float()), rows(6), "float16"),
    ],
    ids=["mixing", "control flow", "transposed", "divisor", "statistics", "qr", "noise", "half"],
)
def test_what_cannot_be_said_is_refused_by_name(
    model: Callable[[], nn.Module], examples: Examples, why: str
) -> None:
    with pytest.raises(ConfigError, match=rf"task small cannot be exported: .*{why}"):
        _export(model, examples)


def test_limits_of_devices_hold_when_exporting() -> None:
    with pytest.raises(ConfigError, match="smaller --batch-size"):
        _export(lambda: nn.Linear(6, 3), rows(6), limits=Limits(memory=200))
    with pytest.raises(ConfigError, match="--batch-size 0: at least 1"):
        _export(lambda: nn.Linear(6, 3), rows(6), batch_size=0)


def test_a_loss_that_is_no_value_an_example_is_refused() -> None:
    class Task(Small):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return functional.cross_entropy(outputs, targets)

    task = Task("mean", lambda: nn.Linear(6, 3), rows(6))
    with pytest.raises(ConfigError, match=r"a loss of shape \(\) for 4 examples"):
        _export(lambda: nn.Linear(6, 3), rows(6), task=task)


@pytest.mark.slow
def test_the_same_task_gives_the_same_bytes_in_every_process() -> None:
    code = "from tests.fedsys.tasks.export.test_exporting import _hash\nprint(_hash(), end='')"
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout == _hash()


def _hash() -> str:
    examples = sequences()
    task: Any = Reading("transformer", lambda: Transformer(0.1), examples)
    made = export_task(task, examples, name="transformer", options={"a": 1}, batch_size=3)
    return made.sha256


def test_neither_weights_nor_data_are_in_the_file() -> None:
    few, many = rows(6, count=10), rows(6, count=30)
    first = _export(lambda: nn.Linear(6, 3), few)
    second = _export(
        lambda: nn.Sequential(nn.Linear(6, 3)), Examples(x=many.x * 2 + 1, y=many.y.flip(0))
    )
    assert first.encoded == second.encoded
