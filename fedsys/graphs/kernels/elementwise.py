"""Element by element, and along one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsys.graphs.graph import ELEMENT_TYPES, Node, TensorType
from fedsys.graphs.inference import Value
from fedsys.graphs.kernels.base import Array, Kernel, Make, always

__all__ = ["KERNELS", "erf"]

# Rational approximations of erf for |x| <= 0.46875 and of exp(x^2) erfc(x) beyond:
# W. J. Cody, "Rational Chebyshev approximations for the error function", Mathematics of
# Computation 23 (1969), tables I (n = 4) and II (n = 8); highest power first.
_SMALL_P = (
    1.85777706184603153e-1,
    3.16112374387056560e00,
    1.13864154151050156e02,
    3.77485237685302021e02,
    3.20937758913846947e03,
)
_SMALL_Q = (
    1.0,
    2.36012909523441209e01,
    2.44024637934444173e02,
    1.28261652607737228e03,
    2.84423683343917062e03,
)
_LARGE_P = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594e00,
    6.61191906371416295e01,
    2.98635138197400131e02,
    8.81952221241769090e02,
    1.71204761263407058e03,
    2.05107837782607147e03,
    1.23033935479799725e03,
)
_LARGE_Q = (
    1.0,
    1.57449261107098347e01,
    1.17693950891312499e02,
    5.37181101862009858e02,
    1.62138957456669019e03,
    3.29079923573345963e03,
    4.36261909014324716e03,
    3.43936767414372164e03,
    1.23033935480374942e03,
)
_BREAK = 0.46875
_FLAT = 6.0
"""From here on erf is 1 in float64."""
_TILE = 1 << 13
"""Elements at once: what is in between stays in a processor's cache."""


def _polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    total = np.full_like(x, coefficients[0])
    for each in coefficients[1:]:
        total *= x
        total += x.dtype.type(each)
    return total


def erf(x: Array) -> Array:
    """The error function, in the type of `x`.

    >>> float(erf(np.array(0.5)).round(12))
    0.520499877813
    """
    x = np.asarray(x)
    made = np.empty(x.size, x.dtype)
    flat = x.reshape(-1)
    for start in range(0, x.size, _TILE):
        made[start : start + _TILE] = _erf(flat[start : start + _TILE])
    return made.reshape(x.shape)


def _erf(x: Array) -> Array:
    size = np.minimum(np.abs(x), x.dtype.type(_FLAT))
    squares = size * size
    found = _polynomial(squares, _SMALL_P)
    found /= _polynomial(squares, _SMALL_Q)
    found *= size
    tail = _polynomial(size, _LARGE_P)
    tail /= _polynomial(size, _LARGE_Q)
    np.exp(np.negative(squares, out=squares), out=squares)
    tail *= squares
    np.subtract(1, tail, out=tail)
    np.copyto(found, tail, where=size > _BREAK)
    return np.copysign(found, x, out=found)


def _sigmoid(x: Array) -> Any:
    # By tanh, which overflows nowhere.
    half = x.dtype.type(0.5)
    found = np.tanh(np.multiply(x, half))
    found = np.multiply(found, half)
    return np.add(found, half)


def _softplus(x: Array) -> Any:
    return np.logaddexp(x, x.dtype.type(0))


def _relu(x: Array) -> Any:
    return np.maximum(x, x.dtype.type(0))


def _cast(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    dtype = ELEMENT_TYPES[node.attributes["to"]]
    return lambda x: x.astype(dtype)


def _log_softmax(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    axis = node.attributes["axis"]

    def run(x: Array) -> Array:
        shifted: Array = x - np.maximum.reduce(x, axis=axis, keepdims=True)
        total = np.add.reduce(np.exp(shifted), axis=axis, keepdims=True)
        shifted -= np.log(total)
        return shifted

    return run


def _softmax(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    axis = node.attributes["axis"]

    def run(x: Array) -> Array:
        powers: Array = x - np.maximum.reduce(x, axis=axis, keepdims=True)
        np.exp(powers, out=powers)
        powers /= np.add.reduce(powers, axis=axis, keepdims=True)
        return powers

    return run


KERNELS: Mapping[str, Make] = {
    "Abs": always(np.abs),
    "Add": always(np.add),
    "And": always(np.logical_and),
    "Cast": _cast,
    "Cos": always(np.cos),
    "Div": always(np.divide),
    "Equal": always(np.equal),
    "Erf": always(erf),
    "Exp": always(np.exp),
    "Floor": always(np.floor),
    "Greater": always(np.greater),
    "GreaterOrEqual": always(np.greater_equal),
    "Identity": always(lambda x: x),
    "Less": always(np.less),
    "LessOrEqual": always(np.less_equal),
    "Log": always(np.log),
    "LogSoftmax": _log_softmax,
    "Max": always(np.maximum),
    "Min": always(np.minimum),
    "Mul": always(np.multiply),
    "Neg": always(np.negative),
    "Not": always(np.logical_not),
    "Or": always(np.logical_or),
    "Pow": always(np.power),
    "Reciprocal": always(np.reciprocal),
    "Relu": always(_relu),
    "Sigmoid": always(_sigmoid),
    "Sign": always(np.sign),
    "Sin": always(np.sin),
    "Softmax": _softmax,
    "Softplus": always(_softplus),
    "Sqrt": always(np.sqrt),
    "Sub": always(np.subtract),
    "Tanh": always(np.tanh),
    "Where": always(np.where),
}
