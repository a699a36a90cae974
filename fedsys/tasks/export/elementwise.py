"""Rules for operators that work element by element, for constants and for dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from fedsys.tasks.export.lowering import Lowering, Rule, lowers, numpy_dtype

__all__: list[str] = []

aten, prims = torch.ops.aten, torch.ops.prims


def _binary(kind: str) -> Rule:
    def rule(low: Lowering, a: Any, b: Any, alpha: float = 1, rounding_mode: Any = None) -> str:
        if rounding_mode is not None:
            low.refuse("division with rounding")
        right = low.value(b, low.dtype())
        if alpha != 1:
            right = low.op("Mul", right, low.number(alpha))
        return low.op(kind, low.value(a, low.dtype()), right)

    return rule


for _kind, _targets in {
    "Add": (aten.add.Tensor, aten.add.Scalar),
    "Sub": (aten.sub.Tensor, aten.sub.Scalar),
    "Mul": (aten.mul.Tensor, aten.mul.Scalar),
    "Div": (aten.div.Tensor, aten.div.Scalar),
    "Max": (aten.maximum.default,),
    "Min": (aten.minimum.default,),
    "Pow": (aten.pow.Tensor_Tensor,),
}.items():
    lowers(*_targets)(_binary(_kind))


@lowers(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(low: Lowering, a: Any, b: Any, alpha: float = 1) -> Any:
    if alpha != 1:
        low.refuse(f"alpha = {alpha}")
    return _binary("Sub")(low, b, a)


@lowers(aten.pow.Tensor_Scalar)
def _pow(low: Lowering, x: Any, power: float) -> str:
    base = low.value(x, low.dtype())
    if power == 1:
        return base
    if power in (2, 3):
        square = low.op("Mul", base, base)
        return square if power == 2 else low.op("Mul", square, base)
    if power in (0.5, -0.5):
        root = low.op("Sqrt", base)
        return root if power > 0 else low.op("Reciprocal", root)
    return low.op("Pow", base, low.number(power))


def _unary(kind: str) -> Rule:
    return lambda low, x: low.op(kind, low.value(x, low.dtype()))


for _kind, _target in {
    "Abs": aten.abs.default,
    "Cos": aten.cos.default,
    "Erf": aten.erf.default,
    "Exp": aten.exp.default,
    "Floor": aten.floor.default,
    "Log": aten.log.default,
    "Neg": aten.neg.default,
    "Not": aten.logical_not.default,
    "Reciprocal": aten.reciprocal.default,
    "Relu": aten.relu.default,
    "Sigmoid": aten.sigmoid.default,
    "Sign": aten.sign.default,
    "Sin": aten.sin.default,
    "Sqrt": aten.sqrt.default,
    "Tanh": aten.tanh.default,
}.items():
    lowers(_target)(_unary(_kind))
lowers(aten.sgn.default)(_unary("Sign"))


@lowers(aten.bitwise_not.default)
def _bitwise_not(low: Lowering, x: Any) -> str:
    if low.dtype() != torch.bool:
        low.refuse("bits of integers")
    return low.op("Not", low.value(x))


@lowers(aten.rsqrt.default)
def _rsqrt(low: Lowering, x: Any) -> str:
    return low.op("Reciprocal", low.op("Sqrt", low.value(x)))


@lowers(aten.log1p.default)
def _log1p(low: Lowering, x: Any) -> str:
    # Kahan's: log1p(x) = x log(u) / (u - 1) with u = fl(1 + x), and x where u is 1.
    value, one = low.value(x, low.dtype()), low.number(1)
    u = low.op("Add", value, one)
    exact = low.op("Equal", u, one)
    apart = low.op("Where", exact, one, low.op("Sub", u, one))
    scaled = low.op("Div", low.op("Mul", value, low.op("Log", u)), apart)
    return low.op("Where", exact, value, scaled)


@lowers(aten.expm1.default)
def _expm1(low: Lowering, x: Any) -> str:
    # expm1(x) = 2 sinh(x/2) exp(x/2) = tanh(x/2) (exp(x) + 1), which cancels nowhere.
    value = low.value(x, low.dtype())
    half = low.op("Tanh", low.op("Mul", value, low.number(0.5)))
    return low.op("Mul", half, low.op("Add", low.op("Exp", value), low.number(1)))


@lowers(aten.softplus.default)
def _softplus(low: Lowering, x: Any, beta: float = 1, threshold: float = 20) -> str:
    value = low.value(x)
    if beta == 1:
        return low.op("Softplus", value)
    soft = low.op("Softplus", low.op("Mul", value, low.number(beta)))
    return low.op("Mul", soft, low.number(1 / beta))


@lowers(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default)
def _clamp(low: Lowering, x: Any, least: Any = None, most: Any = None) -> str:
    if low.node.target is aten.clamp_max.default:
        least, most = None, least
    value = low.value(x, low.dtype())
    if least is not None:
        value = low.op("Max", value, low.value(least, low.dtype()))
    if most is not None:
        value = low.op("Min", value, low.value(most, low.dtype()))
    return value


def _compare(kind: str, *, negated: bool = False) -> Rule:
    def rule(low: Lowering, a: Any, b: Any) -> str:
        operands = [each.meta["val"] if isinstance(each, fx.Node) else each for each in (a, b)]
        dtype = torch.result_type(*operands)
        if dtype == torch.bool and kind != "Equal":
            dtype = torch.int32
        found = low.op(kind, low.value(a, dtype), low.value(b, dtype))
        return low.op("Not", found) if negated else found

    return rule


for _packet, _rule in {
    aten.eq: _compare("Equal"),
    aten.ne: _compare("Equal", negated=True),
    aten.gt: _compare("Greater"),
    aten.ge: _compare("GreaterOrEqual"),
    aten.lt: _compare("Less"),
    aten.le: _compare("LessOrEqual"),
}.items():
    lowers(_packet.Tensor, _packet.Scalar)(_rule)


def _logical(kind: str) -> Rule:
    def rule(low: Lowering, a: Any, b: Any) -> str:
        if low.dtype() != torch.bool:
            low.refuse("bits of integers")
        return low.op(kind, low.value(a, torch.bool), low.value(b, torch.bool))

    return rule


lowers(aten.logical_and.default, aten.bitwise_and.Tensor, aten.__and__.Tensor)(_logical("And"))
lowers(aten.logical_or.default, aten.bitwise_or.Tensor, aten.__or__.Tensor)(_logical("Or"))


@lowers(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(low: Lowering, condition: Any, a: Any, b: Any) -> str:
    kept = low.value(condition, torch.bool)
    return low.op("Where", kept, low.value(a, low.dtype()), low.value(b, low.dtype()))


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(low: Lowering, x: Any, mask: Any, value: Any) -> str:
    return low.op("Where", low.value(mask), low.value(value, low.dtype()), low.value(x))


@lowers(aten.lerp.Tensor, aten.lerp.Scalar)
def _lerp(low: Lowering, a: Any, b: Any, weight: Any) -> str:
    start = low.value(a)
    way = low.op("Sub", low.value(b), start)
    return low.op("Add", start, low.op("Mul", low.value(weight, low.dtype()), way))


@lowers(aten.addcmul.default)
def _addcmul(low: Lowering, x: Any, a: Any, b: Any, value: float = 1) -> str:
    product = low.op("Mul", low.value(a), low.value(b))
    if value != 1:
        product = low.op("Mul", product, low.number(value))
    return low.op("Add", low.value(x), product)


@lowers(aten.threshold_backward.default)
def _threshold_backward(low: Lowering, grad: Any, x: Any, threshold: float) -> str:
    above = low.op("Greater", low.value(x), low.number(threshold))
    return low.op("Where", above, low.value(grad), low.number(0))


@lowers(aten.sigmoid_backward.default)
def _sigmoid_backward(low: Lowering, grad: Any, output: Any) -> str:
    y = low.value(output)
    slope = low.op("Mul", y, low.op("Sub", low.number(1), y))
    return low.op("Mul", low.value(grad), slope)


@lowers(aten.tanh_backward.default)
def _tanh_backward(low: Lowering, grad: Any, output: Any) -> str:
    y = low.value(output)
    slope = low.op("Sub", low.number(1), low.op("Mul", y, y))
    return low.op("Mul", low.value(grad), slope)


# -- types, copies, constants ------------------------------------------------------------------


@lowers(aten._to_copy.default, aten.to.dtype, prims.convert_element_type.default)
def _convert(low: Lowering, x: Any, *_: Any, **__: Any) -> str:
    return low.value(x, low.dtype())


@lowers(
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
)
def _same(low: Lowering, x: Any, *_: Any, **__: Any) -> str:
    return low.value(x)


@lowers(
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_zeros.default,
    aten.zeros.default,
    aten.zeros_like.default,
)
def _zeros(low: Lowering, *_: Any, **__: Any) -> str:
    return low.filled(0, low.shape())


@lowers(aten.new_ones.default, aten.ones.default, aten.ones_like.default)
def _ones(low: Lowering, *_: Any, **__: Any) -> str:
    return low.filled(1, low.shape())


@lowers(aten.full.default, aten.full_like.default)
def _full(low: Lowering, _: Any, value: float, **__: Any) -> str:
    return low.filled(value, low.shape())


@lowers(aten.new_full.default)
def _new_full(low: Lowering, _: Any, size: Any, value: float, **__: Any) -> str:
    return low.filled(value, low.shape())


@lowers(aten.scalar_tensor.default)
def _scalar_tensor(low: Lowering, value: float, **_: Any) -> str:
    return low.number(value)


@lowers(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _arange(low: Lowering, *bounds: Any, **_: Any) -> str:
    return low.array(np.arange(*bounds).astype(numpy_dtype(low.dtype())))


@lowers(prims.iota.default)
def _iota(low: Lowering, length: int, *, start: int = 0, step: int = 1, **_: Any) -> str:
    return low.array((start + step * np.arange(length)).astype(numpy_dtype(low.dtype())))


# -- dropout: the masks become inputs, the device draws them ------------------------------------


@lowers(aten.bernoulli.p)
def _bernoulli(low: Lowering, x: Any, keep: float, generator: Any = None) -> str:
    return low.cast(low.mask(low.shape(), float(keep)), low.dtype())


@lowers(aten.native_dropout.default)
def _native_dropout(low: Lowering, x: fx.Node, rate: float, train: Any) -> list[str]:
    keep = 1 - float(rate)
    if train is False or not 0 < keep <= 1:
        low.refuse(f"a rate of {rate}")
    mask = low.mask(low.shape(x), keep)
    dtype = low.dtype(x)
    kept = low.op("Mul", low.value(x), low.cast(mask, dtype))
    return [low.op("Mul", kept, low.number(1 / keep, dtype)), mask]
