"""Trains clients by a local procedure, each on a model of its own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.procedure.loading import Plain, Procedure
from client.training.procedure.local import Local, optimizer_named
from client.training.procedure.visit import Visit
from client.training.selfcheck import spread_rows
from fedsys.errors import ConfigError, FedsysError, TrainingError
from fedsys.privacy.encoding.parts import Block, Parts
from fedsys.tasks import Examples, Task, seeded

__all__ = ["ProcedurePath"]

_TRIED = 16
_TOLERANCE = 1e-5
_MOST_STATE = 1 << 29


class ProcedurePath:
    """One client after the other. Each has a fresh copy of the model, so that nothing that a
    procedure does to it, frozen weights, buffers and attributes included, reaches the next one.

    Args:
        task: Provides the loss.
        model: As ``init_model`` made it; never written.
        local: Hyper-parameters.
        procedure: Trains a client.

    Raises:
        ConfigError: the model has trainable parameters of 16 bits. A procedure trains the model in
            place, so the steps would be rounded away: there are no float32 masters to add them to.
    """

    def __init__(
        self, task: Task, model: nn.Module, local: LocalConfig, procedure: Procedure
    ) -> None:
        self._task, self._model, self._local = task, model, local
        self._procedure = procedure
        optimizer_named(local.optimizer)
        self._layout = FlatLayout.of(model)
        for name, dtype in zip(self._layout.names, self._layout.dtypes, strict=True):
            if torch.finfo(dtype).bits < 32:
                raise ConfigError(
                    f"{procedure.name} trains a model in place, but its parameter {name!r} is "
                    f"{dtype}, too coarse to add small steps to: leave out the conversion to 16 "
                    f"bits, or [local]'s procedure, schedules, gradient_clip and other optimizers"
                )
        self._checked = False

    @property
    def stateless(self) -> bool:
        """Whether clients keep nothing from round to round."""
        return isinstance(self._procedure.object, Plain) and "epochs" not in self._local.options

    @functools.cached_property
    def parts(self) -> Parts:
        """What lies where in a row: the update, then the blocks that the procedure declares.

        Raises:
            ConfigError: the declaration is not one.
        """
        blocks = self._procedure.sends(self._model, self._local)
        return Parts(dimension=self._layout.dimension, blocks=blocks)

    def train(
        self,
        start: Tensor,
        examples: Examples,
        client_rows: Sequence[NDArray[np.int64]],
        seeds: Sequence[int],
        names: Sequence[Any],
        visit: Visit,
        out: NDArray[np.float32],
    ) -> None:
        """Write each client's update and blocks into `out` (K, width); zeros without examples.

        Raises:
            TrainingError: the procedure failed; names the client and the cause.
        """
        if not self._checked:
            self._refuse_carryover(start, examples, visit)
            self._checked = True
        for row, rows, seed, name in zip(out, client_rows, seeds, names, strict=True):
            if not len(rows):
                row[:] = 0
                continue
            row[:] = self._one(start, examples, rows, seed, name, visit)

    def _one(
        self,
        start: Tensor,
        examples: Examples,
        rows: NDArray[np.int64],
        seed: int,
        name: Any,
        visit: Visit,
    ) -> NDArray[np.float32]:
        model = copy.deepcopy(self._model)
        self._layout.write(model, start)
        model.train()
        own = examples.take(torch.from_numpy(np.asarray(rows)))
        stored = visit.states is not None and visit.round > 0
        kept = visit.states.load(name, visit.round) if visit.states and stored else {}
        local = Local(
            self._task,
            self._local,
            seed=seed,
            visit=visit,
            state=dict(kept),
            shared={key: _tensor(it, start.device) for key, it in visit.shared.items()},
            blocks=self.parts.blocks,
        )
        try:
            with seeded(seed), torch.enable_grad():
                self._procedure.run(model, own, local)
        except FedsysError as error:
            raise type(error)(f"client {name}: {error}") from error
        except (Exception, SystemExit) as error:  # whatever a user's code raises
            raise TrainingError(
                f"client {name}: {self._procedure.name} on its {len(own)} examples failed: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error
        found = self._row(model, start, local)
        state = _checked_state(local.state, name)
        if visit.states and stored and (state or kept):
            visit.states.save(name, visit.round, state)
        return found

    def _row(self, model: nn.Module, start: Tensor, local: Local) -> NDArray[np.float32]:
        trained = dict(model.named_parameters())
        for name, shape in zip(self._layout.names, self._layout.shapes, strict=True):
            if name not in trained or tuple(trained[name].shape) != shape:
                raise TrainingError(
                    f"{self._procedure.name}: the parameter {name} {shape} is not in the model any "
                    f"more; a procedure trains the model in place, and keeps its parameters"
                )
        update = (self._layout.read(model).to(start) - start).cpu().numpy()
        parts = [update]
        for name, block in self.parts.blocks.items():
            sent = local.sent.get(name)
            parts.append(_zeros(block) if sent is None else sent.numpy().reshape(-1))
        return np.concatenate(parts).astype(np.float32, copy=False)

    def _refuse_carryover(self, start: Tensor, examples: Examples, visit: Visit) -> None:
        """Train a client before and after another; its rows must be equal.

        Raises:
            TrainingError: they are not: something outlives the client, or is drawn elsewhere.
        """
        some = spread_rows(examples, _TRIED)
        if not len(some):
            return
        half = np.arange(max(1, len(some) // 2))
        trial = replace(visit, round=0, states=None)
        try:
            one, _, again = (
                self._one(start, some, rows, 11, "of the trial", trial)
                for rows in (half, half[::-1] + len(some) - len(half), half)
            )
        except (Exception, SystemExit):
            return  # a few rows need not suffice; real training names the client that fails
        worst = float(np.abs(np.nan_to_num(one - again)).max(initial=0.0))
        scale = float(np.abs(np.nan_to_num(one)).max(initial=0.0))
        if worst > _TOLERANCE * max(scale, 1e-6):
            raise TrainingError(
                f"{self._procedure.name}: the same client's update changes by up to {worst:.1e} "
                f"(it is up to {scale:.1e}) when another trains before it: draw from local.rng or "
                f"torch's generator, and keep what must last in local.state"
            )


def _zeros(block: Block) -> NDArray[np.float32]:
    return np.zeros(block.size, dtype=np.float32)


def _tensor(values: NDArray[np.float32], device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32)).to(device)


def _checked_state(state: Any, name: Any) -> dict[str, Tensor]:
    """The state as it is kept: tensors on the CPU.

    Raises:
        TrainingError: it is no dict of tensors, or too large.
    """
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(each, Tensor) for key, each in state.items()
    ):
        raise TrainingError(f"client {name}: local.state has to be a dict of names to tensors")
    kept = {key: each.detach().cpu().clone() for key, each in state.items()}
    held = sum(each.numel() * each.element_size() for each in kept.values())
    if held > _MOST_STATE:
        raise TrainingError(
            f"client {name}: local.state holds {held / 1e6:.0f} MB; at most "
            f"{_MOST_STATE / 1e6:.0f} MB are kept for a client"
        )
    return kept
