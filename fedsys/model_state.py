"""A model's ``state_dict`` as runs store it: trained weights first, then all that is frozen.

``model.pt`` lists the trained parameters in the order in which they travel, then the rest: second
names of parameters that several modules share, frozen parameters and buffers. The rounds' digests
cover the first part and the ledger's header the second, together with every entry's name and form.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fedsys.errors import FedsysError

__all__ = ["StateDigest", "StateError", "arranged", "digest_of"]

_BLOCK = 1 << 22
_DOMAIN = b"fedsys frozen state v1\x00"
_STORED, _TRAINED, _SHARED = b"\x00", b"\x01", b"\x02"


class StateError(FedsysError):
    """A state that cannot be stored, or is not as it is stored."""


@dataclass(frozen=True, kw_only=True)
class StateDigest:
    """The digests of a state, as ``fedsys/privacy/LEDGER.md`` defines them.

    Attributes:
        trained: SHA-256 (hex) of the trained weights, as the ledger's commits state it.
        frozen: SHA-256 (hex) of the form of every entry and the values of those not trained.
        numbers: how many numbers it holds, trained or not; shared ones count once.
    """

    trained: str
    frozen: str
    numbers: int


def arranged(
    state: Mapping[str, object], trained: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`state` copied to the CPU in the order of ``model.pt``; entries that share memory still do.

    Args:
        state: of a model that holds the trained weights.
        trained: the trained weights by name, in the order in which they travel. They replace those
            of 16 bits, which have rounded them.

    Raises:
        StateError: a trained parameter is missing from `state`, or an entry is no plain tensor.
    """
    made: dict[str, torch.Tensor] = {}
    copies: dict[object, torch.Tensor] = {}
    for name in (*trained, *(name for name in state if name not in trained)):
        value = state.get(name)
        if value is None and name in trained:
            raise StateError(
                f"the model's state_dict leaves out its trained parameter {name!r}, so that no "
                f"file could hold the model; keep the names of parameters"
            )
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise StateError(
                f"the model's state_dict holds {name!r}, which is no plain tensor; a run's model "
                f"is a file of tensors alone: leave get_extra_state out, or store it as a buffer"
            )
        value = value.detach()
        place = _place(value)
        if place not in copies or not value.numel():
            narrow = name in trained and value.dtype.itemsize == 2
            source = trained[name].detach() if narrow else value
            copies[place] = source.cpu().clone(memory_format=torch.contiguous_format)
        made[name] = copies[place]
    return made


def digest_of(
    state: Mapping[str, object], dimension: int, *, most_bytes: int | None = None
) -> StateDigest:
    """The digests of a state in the order of ``model.pt``, on the CPU.

    Args:
        state: untrusted.
        dimension: d, the number of trained weights.
        most_bytes: how much is hashed at most; entries that overlap could be hashed for ever.

    Raises:
        StateError: it is not such a state.
    """
    trained, frozen = hashlib.sha256(), hashlib.sha256(_DOMAIN)
    seen: dict[object, int] = {}
    numbers = left = 0
    for at, (name, value) in enumerate(state.items()):
        if not isinstance(name, str) or type(value) is not torch.Tensor:
            raise StateError("holds something other than plain tensors")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise StateError("holds something other than plain tensors")
        if not value.is_contiguous():
            raise StateError("holds a tensor that is not contiguous")
        frozen.update(_form(name, value))
        place = _place(value)
        if value.numel() and place in seen:
            frozen.update(_SHARED + seen[place].to_bytes(4, "big"))
            continue
        seen[place] = at
        left += value.numel() * value.itemsize
        if most_bytes is not None and left > most_bytes:
            raise StateError(f"holds more than {most_bytes} bytes of numbers")
        if numbers < dimension:
            if numbers + value.numel() > dimension:
                raise StateError(f"its first entries do not hold {dimension} trained weights")
            frozen.update(_TRAINED)
            _hash_trained(trained, name, value)
        else:
            frozen.update(_STORED)
            _hash_bytes(frozen, value)
        numbers += value.numel()
    if numbers < dimension:
        raise StateError(f"holds {numbers} numbers, fewer than the {dimension} trained weights")
    return StateDigest(trained=trained.hexdigest(), frozen=frozen.hexdigest(), numbers=numbers)


def _place(value: torch.Tensor) -> object:
    return (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())


def _form(name: str, value: torch.Tensor) -> bytes:
    called, kind = name.encode(), str(value.dtype).removeprefix("torch.").encode()
    sizes = b"".join(size.to_bytes(8, "big") for size in value.shape)
    return b"".join(
        [
            len(called).to_bytes(4, "big") + called,
            len(kind).to_bytes(4, "big") + kind,
            value.ndim.to_bytes(4, "big") + sizes,
        ]
    )


def _hash_trained(digest: hashlib._Hash, name: str, value: torch.Tensor) -> None:
    if value.dtype not in (torch.float32, torch.float64):
        raise StateError(f"holds {value.dtype} where trained weights are expected, in {name!r}")
    flat = value.detach().reshape(-1)
    for start in range(0, flat.numel(), _BLOCK):
        block = flat[start : start + _BLOCK].numpy()
        narrow = block.astype("<f4")
        if block.dtype != np.float32 and not np.array_equal(narrow, block, equal_nan=True):
            raise StateError(f"holds trained weights that are no float32 numbers, in {name!r}")
        digest.update(narrow.tobytes())


def _hash_bytes(digest: hashlib._Hash, value: torch.Tensor) -> None:
    flat = value.detach().reshape(-1).view(torch.uint8)
    for start in range(0, flat.numel(), 4 * _BLOCK):
        digest.update(flat[start : start + 4 * _BLOCK].numpy().data)
