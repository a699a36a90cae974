"""Pruned and quantized models: what they store, and that they compute it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import nn

from fedsys.cli.export_smaller import smaller
from fedsys.errors import ConfigError
from fedsys.release.formats import as_onnx, as_pt2
from fedsys.release.smaller import Int8, WithInt8, dequantized, pruned, quantized


def network() -> nn.Module:
    """A kernel, matrices, and one of them under two names."""
    torch.manual_seed(3)
    shared = nn.Linear(36, 36)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Flatten(), shared, nn.ReLU(), shared, nn.Linear(36, 3)
    )
    return model.eval()


@given(st.lists(st.floats(-50, 50, width=32), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_an_integer_is_the_nearest_one(numbers: list[float]) -> None:
    weight = torch.tensor(numbers).view(2, 3)
    found = Int8.of(weight)
    assert found.values.dtype == torch.int8
    assert bool((found.weight - weight).abs().le(found.scale / 2 * 1.0001 + 1e-30).all())


def test_pruning_sets_exactly_the_least_to_zero() -> None:
    state = network().state_dict()
    before = {name: value.clone() for name, value in state.items()}
    made = pruned(state, 0.4)
    matrices = ["0.weight", "2.weight", "5.weight"]
    zeros = sum(int((made[name] == 0).sum()) for name in matrices)
    assert zeros == int(0.4 * sum(state[name].numel() for name in matrices))
    gone = torch.cat([state[name][made[name] == 0].abs() for name in matrices])
    kept = torch.cat([made[name][made[name] != 0].abs() for name in matrices])
    assert gone.max() <= kept.min()
    assert torch.equal(made["2.weight"], made["4.weight"])
    assert torch.equal(made["0.bias"], state["0.bias"])
    assert all(torch.equal(state[name], value) for name, value in before.items())


def test_a_quantized_model_computes_what_its_integers_stand_for() -> None:
    model, x = network(), torch.randn(5, 1, 5, 5)
    state = model.state_dict()
    wanted = network()
    small = quantized(state)
    assert set(small) == {"0.weight", "2.weight", "4.weight", "5.weight"}
    assert small["2.weight"] is small["4.weight"]
    wanted.load_state_dict(dequantized(state, small))
    made = smaller(model, state, quantize=True, prune=None)
    assert torch.allclose(made.model(x), wanted(x), atol=1e-6)
    assert not torch.allclose(made.model(x), model(x), atol=1e-6)
    assert made.state["2.weight"].dtype == torch.int8
    assert made.state["2.weight.scale"].shape == (36, 1)
    assert sum(each.numel() for each in made.model.parameters()) == 4 + 36 + 3


@pytest.mark.slow
def test_formats_hold_the_integers_and_compute_the_same() -> None:
    model, x = network(), torch.randn(5, 1, 5, 5)
    made = smaller(model, model.state_dict(), quantize=True, prune=0.5)
    assert isinstance(made.model, WithInt8)
    assert set(made.facts) == {"fedsys.pruned", "fedsys.quantized"}
    wanted: NDArray[Any] = made.model(x).detach().numpy()
    content = as_onnx(made.model, x[:3], made.facts, optimize=False)
    stored = onnx.load_from_string(content).graph.initializer
    kinds = [each.data_type for each in stored]
    assert kinds.count(onnx.TensorProto.INT8) == 3
    (found,) = ReferenceEvaluator(content).run(None, {"input": x.numpy()})
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5)


@pytest.mark.slow
def test_a_program_holds_the_integers_too() -> None:
    made = smaller(network(), network().state_dict(), quantize=True, prune=None)
    x = torch.randn(5, 1, 5, 5)
    wanted: NDArray[Any] = made.model(x).detach().numpy()
    program = torch.export.load(io.BytesIO(as_pt2(made.model, x[:3], made.facts)))
    np.testing.assert_allclose(program.module()(x).detach().numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_other_fractions_are_one_line(fraction: float) -> None:
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        pruned(network().state_dict(), fraction)


def test_a_model_without_matrices_stays_as_it_is() -> None:
    with pytest.raises(ConfigError, match="no matrix to prune"):
        pruned({"bias": torch.ones(3)}, 0.5)
    with pytest.raises(ConfigError, match="no matrix to quantize"):
        quantized({"bias": torch.ones(3)})
    with pytest.raises(ConfigError, match="weight is not finite"):
        quantized({"weight": torch.full((2, 2), float("nan"))})
