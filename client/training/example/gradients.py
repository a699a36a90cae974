"""The clipped gradients of a batch's examples, in one of two forms, both by Opacus.

``ghost``: ghost and fast gradient clipping (Li et al. 2022, arXiv:2110.05679, section 4; Opacus
mode "ghost"). One backward pass computes the norm of every example's gradient from activations and
backpropagated signals; a second adds the gradients weighted by their clipping factors. No example's
gradient of the whole model is built. ``functional``: each example's gradient by ``torch.func``
(Opacus mode "no_op"), for any module that runs under vmap, including recurrent ones.

Ghost clipping is used for models of more than 8,192 parameters whose layers Opacus supports. CPU ms
per batch of 64 (functional, ghost): softmax regression of 650 parameters 2.8, 0.9; perceptron of
51k 17, 2.1; convolutions of 109k 94, 28; perceptron of 400k 425, 8; convolutions of 1.6M 1360, 250.
For smaller models, the exact sum of the functional form is worth more than the time. Linear layers
over sequences are excluded: ghost clipping computes their norms from differences.

Norms are added up in float64, by `norms_of` and `GhostModule`: a sum of a million squares in
float32 can be too small by 10^-3, and the clipped gradient longer than C by as much.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.layers import DPGRU, DPLSTM, DPRNN
from opacus.layers.dp_rnn import RNNLinear
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.training.selfcheck import without_dropout
from fedsys.errors import TrainingError
from fedsys.tasks import Examples, Task
from fedsys.tasks.examples import Values, parts_of, transformed

__all__ = [
    "GhostModule",
    "Gradients",
    "PerExampleLoss",
    "form_for",
    "norms_of",
    "refuse_mixing",
    "step_of",
]

_FEW_PARAMETERS = 8192
_TOLERANCE = 1e-4  # float32 gradients, relative to their norm
_REMEDIES: dict[type[nn.Module], str] = {
    nn.GRU: "opacus.layers.DPGRU",
    nn.LSTM: "opacus.layers.DPLSTM",
    nn.RNN: "opacus.layers.DPRNN",
    nn.MultiheadAttention: "opacus.layers.DPMultiheadAttention",
}

_BLOCK = 128

Gradients = Callable[[Values, Values], None]
Sampler = Callable[[nn.Module, list[Tensor], Tensor], dict[nn.Parameter, Tensor]]


def norms_of(rows: Tensor) -> Tensor:
    """(B,) float64, the L2 norms of `rows` (B, d), to 4e-6 of each.

    Blocks of 128 numbers are squared and added in the rows' own dtype: whatever the order, the
    error of such a norm is at most (128 + 2) / 2 roundings, in float32 of 2^-24 (Higham 2002,
    section 3.1). The blocks are added in float64. To convert all rows takes far longer.
    """
    cut = rows.shape[1] - rows.shape[1] % _BLOCK
    blocks = torch.linalg.vector_norm(
        rows[:, :cut].reshape(len(rows), cut // _BLOCK, _BLOCK), dim=2
    )
    rest = torch.linalg.vector_norm(rows[:, cut:], dim=1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(torch.cat([blocks, rest], dim=1).double(), dim=1)
    return norms


def _in_float64(sampler: Sampler) -> Sampler:
    """Opacus' rules compute in the dtype of the backpropagated signals."""
    return lambda layer, given, signals: sampler(layer, given, signals.double())


def _norms_by(sampler: Sampler) -> Sampler:
    def norms(layer: nn.Module, given: list[Tensor], signals: Tensor) -> dict[nn.Parameter, Tensor]:
        found = sampler(layer, given, signals)
        return {param: norms_of(each.flatten(1)) for param, each in found.items()}

    return norms


class GhostModule(GradSampleModuleFastGradientClipping):  # type: ignore[misc]
    """Opacus' module for ghost clipping, with norms in float64.

    A recurrent cell adds up its gradients over time first, in float64 then. Any other layer that is
    called twice gets wrong norms, which `form_for` finds.
    """

    _rules = GradSampleModuleFastGradientClipping
    NORM_SAMPLERS: ClassVar[dict[type[nn.Module], Sampler]] = {
        **{kind: _norms_by(rule) for kind, rule in _rules.GRAD_SAMPLERS.items()},
        **{kind: _in_float64(rule) for kind, rule in _rules.NORM_SAMPLERS.items()},
    }
    GRAD_SAMPLERS: ClassVar[dict[type[nn.Module], Sampler]] = {**_rules.GRAD_SAMPLERS}
    GRAD_SAMPLERS[RNNLinear] = _in_float64(GRAD_SAMPLERS[RNNLinear])
    del NORM_SAMPLERS[RNNLinear]


class PerExampleLoss:
    """The task's loss as the criterion that Opacus expects: one value per example, which Opacus
    reduces itself."""

    def __init__(self, task: Task) -> None:
        self._loss = task.loss
        self.reduction = "mean"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) losses."""
        return self._loss(outputs, targets)


def refuse_mixing(model: nn.Module) -> None:
    """Raise TrainingError if a layer has no per-example gradients; the message names the remedy."""
    for name, module in model.named_modules():
        checks: Iterable[object] = ()
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            check = ModuleValidator.VALIDATORS.get(type(module))
            checks = check(module) if check is not None else ()
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        if mixes or list(checks):
            raise TrainingError(
                f"the model's {type(module).__name__} {name!r} cannot train under mechanism "
                f"'example-gaussian': {_why(module)}"
            )


def _why(module: nn.Module) -> str:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "it mixes a batch's examples; use torch.nn.GroupNorm or LayerNorm"
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return "it keeps running statistics; use track_running_stats=False"
    remedy = _REMEDIES.get(type(module), "a layer that Opacus supports (ModuleValidator.fix)")
    return f"it hides its gradients from Opacus; use {remedy}"


def form_for(task: Task, model: nn.Module, x: Values, y: Values) -> tuple[str, str]:
    """("ghost" | "no_op", why): Opacus' mode for this model, tried on a few examples.

    Raises:
        TrainingError: an example's gradient cannot be computed, or depends on its batch.
    """
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if size <= _FEW_PARAMETERS:
        why = f"{size} parameters are too few for ghost clipping to pay"
    else:
        refused = _ghost_refused(task, model, x, y)
        if refused is None:
            return "ghost", f"{size} parameters in layers for which Opacus has ghost clipping"
        why = f"no ghost clipping: {refused}"
    twin = without_dropout(copy.deepcopy(model))
    try:
        found = _functional(task, twin)(x, y)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise TrainingError(
            f"the gradients of single examples cannot be computed ({why}; torch.func: "
            f"{_line(error)}); use layers that Opacus supports or that run under torch.func.vmap"
        ) from error
    expected = _one_by_one(task, twin, x, y)
    worst = float((found - expected).norm())
    if not worst <= _TOLERANCE * max(float(expected.norm()), 1e-3):
        raise TrainingError(
            "an example's gradient differs when it is alone in its batch: the model mixes examples"
        )
    return "no_op", why


def step_of(
    mode: str, task: Task, model: nn.Module, private: nn.Module, criterion: Any, optimizer: Any
) -> Gradients:
    """A function that computes a physical batch's gradients and stores them where `optimizer`
    expects them.

    Args:
        mode: Opacus' grad_sample_mode.
        task: Provides the loss.
        model: The bare model.
        private: The same model, as returned by `make_private`.
        criterion: As returned by `make_private`; used in ghost clipping only.
        optimizer: As returned by `make_private`.
    """
    if mode == "ghost":
        return _ghost_step(private, criterion, optimizer)
    gradients = _by_name(task, model)

    def functional(x: Values, y: Values) -> None:
        if not _count(x):
            _nothing(optimizer)
            return
        found = gradients(x, y)
        for name, param in model.named_parameters():
            if param.requires_grad:
                param.grad_sample = found[name]  # type: ignore[attr-defined]

    return functional


def _ghost_step(private: Any, criterion: Any, optimizer: Any) -> Gradients:
    def ghost(x: Values, y: Values) -> None:
        if not _count(x):
            _nothing(optimizer)
            return
        criterion(private(x), y).backward()
        finite = torch.isfinite(private.per_sample_gradient_norms)
        # A gradient that is not finite counts as zero: a refusal would reveal its example.
        if not bool(finite.all()):
            optimizer.zero_grad()
            some = Examples(x=x, y=y)[finite]
            ghost(some.x, some.y)

    return ghost


def _nothing(optimizer: DPOptimizer) -> None:
    for param in optimizer.params:
        param.grad_sample = param.new_zeros((0, *param.shape))
        param.grad = torch.zeros_like(param)


def _ghost_refused(task: Task, model: nn.Module, x: Values, y: Values) -> str | None:
    """The reason against ghost clipping; None if its norms equal those of plain autograd."""
    twin = without_dropout(copy.deepcopy(model))
    expected = norms_of(_one_by_one(task, twin, x, y))
    sequences: list[str] = []
    for name, module in twin.named_modules():
        own = any(p.requires_grad for p in module.parameters(recurse=False))
        if own and type(module) not in (*GradSampleModule.GRAD_SAMPLERS, DPGRU, DPLSTM, DPRNN):
            return f"Opacus has no rule for {type(module).__name__} {name!r}"
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda _m, given, _o, name=name: (
                    sequences.append(name) if given[0].dim() > 2 else None
                )
            )
    try:
        ghost = GhostModule(twin, loss_reduction="sum")
        task.loss(ghost(x), y).sum().backward()  # type: ignore[no-untyped-call]
        found = ghost.get_norm_sample()
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        return _line(error)
    if sequences:
        return f"Linear {sequences[0]!r} is applied to sequences"
    if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=1e-7):
        return "its norms differ from those of single examples (is a parameter used twice?)"
    return None


def _by_name(task: Task, model: nn.Module) -> Callable[[Values, Values], dict[str, Tensor]]:
    """Gradients (B, *shape) of the losses of a batch's examples, by parameter."""

    def loss_of(params: dict[str, Tensor], x: Values, y: Values) -> Tensor:
        outputs = functional_call(model, params, (transformed(x, _alone),))
        return task.loss(outputs, transformed(y, _alone)).sum()

    each = vmap(grad(loss_of), in_dims=(None, 0, 0), randomness="different")

    def gradients(x: Values, y: Values) -> dict[str, Tensor]:
        params = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        found: dict[str, Tensor] = each(params, x, y)
        return found

    return gradients


def _alone(example: Tensor) -> Tensor:
    return example.unsqueeze(0)


def _functional(task: Task, model: nn.Module) -> Callable[[Values, Values], Tensor]:
    gradients = _by_name(task, model)

    def flat(x: Values, y: Values) -> Tensor:
        found = gradients(x, y)
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        return torch.cat([found[name].flatten().view(_count(x), -1) for name in names], dim=1)

    return flat


def _count(x: Values) -> int:
    return len(parts_of(x)[0])


def _one_by_one(task: Task, model: nn.Module, x: Values, y: Values) -> Tensor:
    """(B, d) gradients by plain autograd, one example at a time."""
    params = [p for p in model.parameters() if p.requires_grad]
    rows = []
    some = Examples(x=x, y=y)
    for at in range(len(some)):
        one = some[at : at + 1]
        loss = task.loss(model(one.x), one.y).sum()
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    p.new_zeros(p.numel()) if g is None else g.flatten()
                    for p, g in zip(params, grads, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
