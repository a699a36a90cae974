"""Makes a task's model whole, and its inputs such as the model takes.

Layers without a size get theirs from an example's shape; floating-point inputs get the dtype of the
model's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedsys.errors import ConfigError, FedsysError
from fedsys.tasks.base import Task, seeded
from fedsys.tasks.examples import Examples, parts_of, transformed

__all__ = ["conformed", "init_model"]


def init_model(
    task: Task, seed: int, sample: Examples | Callable[[], Examples] | None = None
) -> nn.Module:
    """``task.init_model(seed)``, with its lazy modules materialised.

    They are called once with zeros shaped like one example, in evaluation mode and with torch's
    generator seeded, so that the weights remain a function of `seed` alone and no data can reach
    them.

    Args:
        task: whose model.
        seed: of the initial weights.
        sample: at least one example, or a function that returns it; needed for lazy modules only.

    Raises:
        ConfigError: it is no module, has lazy modules and there is no sample, or the model does
            not take it.
    """
    model = task.init_model(seed)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"task {task.name}: init_model returned {type(model).__name__}; it has to return a "
            f"torch.nn.Module"
        )
    lazy = _lazy(model)
    if not lazy:
        return model
    if sample is None:
        raise ConfigError(
            f"task {task.name}: init_model's {lazy[0]} is lazy and has no shape yet, and there is "
            f"no example here that would give it one: state its size"
        )
    some = sample if isinstance(sample, Examples) else sample()
    was_training = model.training
    model.eval()
    try:
        with seeded(seed), torch.no_grad():
            model(conformed(model, some[:1].zeros()).x)
    except FedsysError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        words = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"task {task.name}: init_model's {lazy[0]} is lazy and could not be given a shape by "
            f"calling the model with zeros like one example: {type(error).__name__}: {words}"
        ) from error
    finally:
        model.train(was_training)
    unused = _lazy(model)
    if unused:
        raise ConfigError(
            f"task {task.name}: init_model's {unused[0]} is lazy and forward does not reach it, "
            f"so it has no shape; state its size, or leave it out"
        )
    return model


def conformed(model: nn.Module, examples: Examples) -> Examples:
    """`examples` with floating-point inputs in the dtype of the model's weights, where those agree
    on one; the same object where nothing has to change."""
    kinds = {each.dtype for each in model.parameters() if each.is_floating_point()}
    if len(kinds) != 1:
        return examples
    (kind,) = kinds

    def fitting(part: Tensor) -> Tensor:
        return part.to(kind) if part.is_floating_point() else part

    if all(part.dtype == kind for part in parts_of(examples.x) if part.is_floating_point()):
        return examples
    return Examples(x=transformed(examples.x, fitting), y=examples.y)


def _lazy(model: nn.Module) -> list[str]:
    return [
        name
        for name, value in chain(model.named_parameters(), model.named_buffers())
        if is_lazy(value)
    ]
