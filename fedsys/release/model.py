"""The model that a run released, read back from a folder that an enemy may have made.

Nothing is unpickled but tensors, no code that the folder names is imported, and what is read is
what the ledger's last line names.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedsys.audit import audit_run
from fedsys.config import Config, load
from fedsys.errors import LedgerError, RunFolderError
from fedsys.privacy import read_ledger
from fedsys.privacy.ledger.files import open_regular
from fedsys.records import AuditResult

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ReleasedModel"]

_MOST_BYTES = 1 << 32


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """A run's final weights, and what is known of them.

    Attributes:
        config: of the run.
        state: its ``state_dict``.
        facts: words for whoever gets the model: privacy, ledger's head, hash; all as text.
    """

    config: Config
    state: Mapping[str, Tensor]
    facts: Mapping[str, str]

    @classmethod
    def of(cls, run: Path) -> ReleasedModel:
        """Audit a run's folder and read its model.

        Args:
            run: private or published.

        Raises:
            AuditInputError: it is no run's folder.
            RunFolderError: its audit fails, or its model is missing or not a plain ``state_dict``.
        """
        audit = audit_run(run)
        failed = [claim.name for claim in audit.claims if claim.holds is False]
        if failed:
            raise RunFolderError(f"{run}: its audit fails ({', '.join(failed)}); see fedsys audit")
        try:
            closed = read_ledger(run / "ledger.jsonl", allow_torn=True).closed or {}
            named = closed.get("model_sha256")
            if named is None or not (run / "model.pt").exists():
                raise RunFolderError(f"{run}: holds no finished model; finish the run first")
            with open_regular(run / "model.pt", _MOST_BYTES) as file:
                content = file.read(_MOST_BYTES)
        except LedgerError as error:
            raise RunFolderError(f"{run}: {error}") from None
        if hashlib.sha256(content).hexdigest() != named:
            raise RunFolderError(f"{run}: model.pt is not the model that the ledger names")
        config = load(run / "config.toml")
        if not audit.curve or audit.delta is None:
            raise RunFolderError(f"{run}: its epsilon cannot be derived; see fedsys audit")
        facts = {
            "name": config.job.name,
            "task": config.task.name,
            "mechanism": config.privacy.mechanism,
            "unit": config.privacy.unit,
            **_cost(audit),
            "epsilon_view": "outsider",
            "neighbours": audit.neighbours.get("outsider", ""),
            "ledger_head": audit.ledger_head or "",
            "signer": audit.signer or "",
            "model_sha256": named,
        }
        return cls(
            config=config,
            state=_tensors(content, f"{run}: model.pt"),
            facts={f"fedsys.{key}": value for key, value in facts.items() if value},
        )

    def fill(self, model: nn.Module) -> nn.Module:
        """`model` with these weights, in evaluation mode.

        Raises:
            RunFolderError: they are another model's.
        """
        expected = model.state_dict()
        for name in sorted(set(expected) | set(self.state)):
            there, wanted = self.state.get(name), expected.get(name)
            if there is None or wanted is None or _form(there) != _form(wanted):
                raise RunFolderError(
                    f"model.pt: {name} is {_form(there)}, task {self.config.task.name} has "
                    f"{_form(wanted)}: is this the task that the run was made with?"
                )
        model.load_state_dict(dict(self.state))
        return model.eval()


def _cost(audit: AuditResult) -> dict[str, str]:
    """What the model tells an outsider, tuning runs included, and what this run alone does."""
    spent, total = repr(audit.curve[-1].spent.outsider), audit.total
    if total is None:
        return {"epsilon": spent, "delta": repr(audit.delta), "tuning_runs": "0"}
    return {
        "epsilon": repr(total.epsilon),
        "delta": repr(total.delta),
        "tuning_runs": repr(total.runs),
        "epsilon_of_this_run": spent,
        "delta_of_this_run": repr(audit.delta),
    }


def _form(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"


def _tensors(content: bytes, where: str) -> dict[str, Tensor]:
    """A ``state_dict`` and nothing else; what it claims to hold must fit into its bytes."""
    import torch

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(content):
                raise ValueError("it inflates")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile archive makes torch raise anything
        reason = str(error).split("\n")[0][:120]
        raise RunFolderError(f"{where} is not a state_dict of tensors: {reason}") from None
    if not isinstance(state, dict) or not state:
        raise RunFolderError(f"{where} is not a state_dict of tensors")
    total = 0
    for name, tensor in state.items():
        if (
            not isinstance(name, str)
            or not isinstance(tensor, torch.Tensor)
            or tensor.layout != torch.strided
            or tensor.is_quantized
            or tensor.device.type != "cpu"
        ):
            raise RunFolderError(f"{where} is not a state_dict of plain tensors")
        total += tensor.numel() * tensor.element_size()
        if total > len(content):
            raise RunFolderError(f"{where}: claims more weights than it has bytes")
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
