"""A model in the formats that other programs read; each carries the privacy cost of its training.

``.safetensors`` holds the weights, ``.pt2`` and ``.onnx`` the whole computation for batches of any
size. A model that loops over a sequence is unrolled step by step, which takes torch minutes,
longest for ``.onnx``.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedsys.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedsys.tasks.examples import Values

__all__ = ["FORMATS", "METADATA_FILE", "as_onnx", "as_pt2", "as_safetensors"]

FORMATS = (".onnx", ".pt2", ".safetensors")
METADATA_FILE = "fedsys.json"
"""The extra file in a ``.pt2`` that holds the facts."""


def as_safetensors(state: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """Weights by name; `facts` are the file's metadata. One that goes by several names is written
    under each of them, because the format shares no memory."""
    import safetensors.torch

    apart = {name: value.clone() for name, value in state.items()}
    return bytes(safetensors.torch.save(apart, metadata=dict(facts)))


def as_pt2(model: nn.Module, example: Values, facts: Mapping[str, str]) -> bytes:
    """A program for ``torch.export.load``; `facts` are its extra file ``fedsys.json``.

    Args:
        model: in evaluation mode.
        example: (B, ...) an input, B at least 2.
        facts: to carry.

    Raises:
        ConfigError: torch cannot trace the model.
    """
    import torch

    with _quiet("torch.export"):
        program = torch.export.export(model, (example,), dynamic_shapes=(_any_numbers(example),))
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(dict(facts))})
    return buffer.getvalue()


def as_onnx(
    model: nn.Module, example: Values, facts: Mapping[str, str], *, optimize: bool = True
) -> bytes:
    """An ONNX model from ``input`` (or the inputs' own names, or ``input_0``...) to ``output``;
    `facts` are its metadata properties.

    Args:
        model: in evaluation mode.
        example: (B, ...) an input, B at least 2.
        facts: to carry.
        optimize: whether constants may be computed in advance, which would undo 8-bit weights.

    Raises:
        ConfigError: torch cannot trace the model.
    """
    import torch

    with _quiet("torch.onnx"):
        program = torch.onnx.export(
            model,
            (example,),
            kwargs={},  # else a dict would be taken for the model's keyword arguments
            dynamo=True,
            dynamic_shapes=(_any_numbers(example),),
            input_names=_names(example),
            output_names=["output"],
            verbose=False,
            optimize=optimize,
        )
        if program is None:
            raise RuntimeError("torch.onnx gave no program")
        program.model.metadata_props.update(facts)
        return bytes(program.model_proto.SerializeToString())


def _any_numbers(example: Values) -> Values:
    from torch.export import Dim

    from fedsys.tasks.examples import transformed

    batch = {0: Dim("batch", min=1, max=1 << 20)}
    return transformed(example, lambda _: batch)


def _names(example: Values) -> list[str]:
    from fedsys.tasks.examples import parts_of

    if isinstance(example, dict):
        return list(example)
    count = len(parts_of(example))
    return ["input"] if count == 1 else [f"input_{at}" for at in range(count)]


@contextmanager
def _quiet(what: str) -> Iterator[None]:
    """Silences torch's exporters' internal warnings, and turns any error into a ConfigError."""
    noisy = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines()]
        reason = next(filter(None, lines), "")[:200]
        raise ConfigError(
            f"{what} cannot trace this model ({type(error).__name__}: {reason}); export its "
            f"weights as .safetensors"
        ) from error
    finally:
        noisy.setLevel(level)
