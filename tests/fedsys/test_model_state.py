"""The digests of a model's file against LEDGER.md's words, written out again."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedsys.model_state import StateError, arranged, digest_of


def model() -> nn.Module:
    """12 trained weights, one name of them twice; 9 frozen, a buffer, a counter."""
    made = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    made[1].weight = made[0].weight
    made[1].bias.requires_grad_(False)
    made[2].weight.requires_grad_(False)
    made.register_buffer("seen", torch.tensor(7))
    made.register_buffer("waves", torch.ones(2, dtype=torch.bfloat16))
    return made


def stored(made: nn.Module) -> dict[str, Tensor]:
    trained = {name: each for name, each in made.named_parameters() if each.requires_grad}
    return arranged(made.state_dict(), trained)


def by_the_page(state: dict[str, Tensor], trained: set[str]) -> str:
    digest = hashlib.sha256(b"fedsys frozen state v1\x00")
    names = list(state)
    for name, value in state.items():
        kind = str(value.dtype)[6:].encode()
        digest.update(struct.pack(">I", len(name.encode())) + name.encode())
        digest.update(struct.pack(">I", len(kind)) + kind)
        digest.update(struct.pack(f">I{value.ndim}Q", value.ndim, *value.shape))
        same = [each for each in names if state[each] is value]
        if same[0] != name:
            digest.update(b"\x02" + struct.pack(">I", names.index(same[0])))
        elif name in trained:
            digest.update(b"\x01")
        else:
            digest.update(b"\x00" + bytes(value.reshape(-1).view(torch.uint8).tolist()))
    return digest.hexdigest()


def test_the_digests_are_the_pages_through_a_file_too(tmp_path: Path) -> None:
    state = stored(model())
    assert list(state)[:2] == ["0.weight", "0.bias"]
    assert state["1.weight"] is state["0.weight"]
    found = digest_of(state, 12)
    assert found.frozen == by_the_page(state, {"0.weight", "0.bias"})
    weights = torch.cat([state["0.weight"].reshape(-1), state["0.bias"]])
    assert found.trained == hashlib.sha256(weights.numpy().astype("<f4").tobytes()).hexdigest()
    assert found.numbers == 12 + 3 + 9 + 1 + 2
    torch.save(state, tmp_path / "model.pt")
    assert digest_of(torch.load(tmp_path / "model.pt", mmap=True), 12) == found


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["2.weight"].view(-1)[4].add_(1e-6),
        lambda state: state["seen"].add_(1),
        lambda state: state["1.bias"].neg_(),
        lambda state: state.update(seen=state["seen"].int()),
        lambda state: state.update(seen=state["seen"].view(1)),
        lambda state: state.update({"1.weight": state["1.weight"].clone()}),
        lambda state: state.update(more=torch.zeros(0)),
        lambda state: state.update(other=state.pop("waves")),
    ],
)
def test_whatever_of_the_rest_changes_changes_the_digest(
    change: Callable[[dict[str, Tensor]], object],
) -> None:
    torch.manual_seed(0)
    state = stored(model())
    before = digest_of(state, 12)
    change(state)
    after = digest_of(state, 12)
    assert after.trained == before.trained
    assert after.frozen != before.frozen


def test_float64_weights_are_float32_numbers() -> None:
    exact = {"w": torch.tensor([0.5, 0.25], dtype=torch.float64)}
    assert digest_of(exact, 2).trained == digest_of({"w": torch.tensor([0.5, 0.25])}, 2).trained
    with pytest.raises(StateError, match="no float32 numbers, in 'w'"):
        digest_of({"w": torch.tensor([0.5, 0.1], dtype=torch.float64)}, 2)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w": torch.zeros(3)}, "do not hold 2 trained weights"),
        ({"w": torch.zeros(1)}, "fewer than the 2 trained weights"),
        ({"w": torch.zeros(2, dtype=torch.int32)}, r"torch\.int32 where trained weights"),
        ({"w": torch.zeros(2), "x": 3}, "other than plain tensors"),
        ({0: torch.zeros(2)}, "other than plain tensors"),
        ({"w": torch.zeros(2, 2).t()[:1].t()}, "not contiguous"),
        ({"w": torch.zeros(2), "x": torch.zeros(1).expand(1 << 40)}, "not contiguous"),
    ],
)
def test_what_is_no_such_state(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(StateError, match=message):
        digest_of(state, 2)


def test_overlapping_entries_are_not_hashed_for_ever() -> None:
    base = torch.zeros(1000)
    state = {"w": torch.zeros(2), **{f"x{at}": base[: 1000 - at] for at in range(500)}}
    with pytest.raises(StateError, match="more than 8000 bytes"):
        digest_of(state, 2, most_bytes=8000)


def test_what_no_file_can_hold() -> None:
    weight = {"w": torch.zeros(1)}
    with pytest.raises(StateError, match="leaves out its trained parameter 'w'"):
        arranged({}, weight)
    with pytest.raises(StateError, match="'_extra_state', which is no plain tensor"):
        arranged({**weight, "_extra_state": {"step": 3}}, weight)
