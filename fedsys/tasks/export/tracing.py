"""A task's gradient as one flat graph of ATen operators."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedsys.graphs.graph import Kind
from fedsys.tasks.base import Task
from fedsys.tasks.export.decompositions import decompositions
from fedsys.tasks.export.lowering import UnsupportedError

__all__ = ["plain_kernels", "trace", "trainable"]

aten = torch.ops.aten
_Gradient = Callable[..., tuple[Tensor, Tensor]]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the flat weight vector consists of, in order: trainable parameters by name."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention in its mathematical form, and no fused kernels of a processor's own library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what other processors could do
        flags = torch.backends.mkldnn.flags(enabled=False)
        flags.__enter__()
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flags.__exit__(None, None, None)


def trace(
    task: Task, model: nn.Module, x: Tensor, y: Tensor, kind: Kind
) -> tuple[fx.GraphModule, Tensor]:
    """The gradient's graph, and the flat weights (d,) at which it was traced.

    Args:
        task: for its loss.
        model: in training mode.
        x: (B, ...) inputs of one batch; the graph is one of their shapes.
        y: (B, ...) targets.
        kind: one gradient of the batch, or one an example.

    Raises:
        UnsupportedError: the gradient's course depends on the data.
    """
    weights = torch.cat([each.detach().reshape(-1) for each in trainable(model).values()])
    arguments = [weights, x, y]
    if kind == "gradient":
        arguments.append(torch.full((len(x),), 1 / len(x)))
    gradient = (_of_batch if kind == "gradient" else _of_examples)(task, model)
    with plain_kernels(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Twice: functionalize has no rule for autograd.Function, so that is traced away first.
            flat = make_fx(gradient)(*arguments)
            pure = functionalize(flat, remove="mutations")
            module = make_fx(pure, decomposition_table=decompositions())(*arguments)
        except RuntimeError as error:
            text = " ".join(str(error).split())
            if "aten::item" in text or "_local_scalar_dense" in text or "out of a tracing" in text:
                raise UnsupportedError(
                    "control flow that depends on the data (an if or a while on a tensor's value)"
                ) from None
            raise UnsupportedError(f"tracing failed: {text[:300]}") from error
    _drop_ties(module)
    return module, weights


def _parameters(model: nn.Module, weights: Tensor) -> dict[str, Tensor]:
    own = trainable(model)
    parts = torch.split(weights, [each.numel() for each in own.values()])
    return {
        name: part.view(each.shape) for part, (name, each) in zip(parts, own.items(), strict=True)
    }


def _constants(model: nn.Module) -> dict[str, Tensor]:
    frozen = {n: each.detach() for n, each in model.named_parameters() if not each.requires_grad}
    return {**dict(model.named_buffers()), **frozen}


def _of_batch(task: Task, model: nn.Module) -> _Gradient:
    fixed = _constants(model)

    def gradient(weights: Tensor, x: Tensor, y: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        def objective(parameters: dict[str, Tensor]) -> Tensor:
            outputs = functional_call(model, {**parameters, **fixed}, (x,))
            losses = task.loss(outputs, y)
            _check_losses(losses, len(x))
            return (losses * counts).sum()

        grads, loss = grad_and_value(objective)(_parameters(model, weights))
        return torch.cat([each.reshape(-1) for each in grads.values()]), loss

    return gradient


def _of_examples(task: Task, model: nn.Module) -> _Gradient:
    fixed = _constants(model)

    def gradient(weights: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        def objective(parameters: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
            outputs = functional_call(model, {**parameters, **fixed}, (one[None],))
            return task.loss(outputs, target[None]).sum()

        of_each = vmap(grad_and_value(objective), in_dims=(None, 0, 0), randomness="different")
        grads, losses = of_each(_parameters(model, weights), x, y)
        return torch.cat([each.reshape(len(x), -1) for each in grads.values()], 1), losses

    return gradient


def _check_losses(losses: Tensor, batch: int) -> None:
    if tuple(losses.shape) != (batch,):
        raise UnsupportedError(
            f"a loss of shape {tuple(losses.shape)} for {batch} examples: a task's loss is one "
            f"value an example"
        )


def _drop_ties(module: fx.GraphModule) -> None:
    """Takes out what only autograd needs, so that transposes are seen by their products."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in (aten.detach.default, aten.alias.default):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
