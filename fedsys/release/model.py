"""The model that a run released, read from an untrusted folder.

Nothing but tensors is unpickled, no code that the folder names is imported, and the model must be
the one that the ledger's last line names.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedsys.audit import audit_run
from fedsys.config import Config
from fedsys.errors import LedgerError, RunFolderError
from fedsys.privacy import read_ledger
from fedsys.privacy.ledger.files import open_regular
from fedsys.records import AuditResult
from fedsys.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ReleasedModel"]

_MOST_BYTES = 1 << 32


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """A run's final weights, and the facts about them.

    Attributes:
        config: the run's configuration.
        state: the model's ``state_dict``.
        facts: what goes with the model as metadata: privacy, ledger head, hash; all as text.
    """

    config: Config
    state: Mapping[str, Tensor]
    facts: Mapping[str, str]

    @classmethod
    def of(cls, run: Path) -> ReleasedModel:
        """Audits a run's folder and reads its model.

        Args:
            run: the folder, private or published.

        Raises:
            AuditInputError: it is not a run's folder.
            RunFolderError: its audit fails, or its model is missing or not a plain ``state_dict``.
        """
        audit = audit_run(run)
        failed = [claim.name for claim in audit.claims if claim.holds is False]
        if failed:
            raise RunFolderError(f"{run}: its audit fails ({', '.join(failed)}); see fedsys audit")
        try:
            view = read_ledger(run / "ledger.jsonl", allow_torn=True)
            named = (view.closed or {}).get("model_sha256")
            if named is None or not (run / "model.pt").exists():
                raise RunFolderError(f"{run}: holds no finished model; finish the run first")
            with open_regular(run / "model.pt", _MOST_BYTES) as file:
                content = file.read(_MOST_BYTES)
        except LedgerError as error:
            raise RunFolderError(f"{run}: {error}") from None
        if hashlib.sha256(content).hexdigest() != named:
            raise RunFolderError(f"{run}: model.pt is not the model that the ledger names")
        config = RunFolder(run).signed_config(view.header)
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
            "preparation": _preparation(config, run),
        }
        return cls(
            config=config,
            state=_tensors(content, f"{run}: model.pt"),
            facts={f"fedsys.{key}": value for key, value in facts.items() if value},
        )

    def fill(self, model: nn.Module) -> nn.Module:
        """`model` with these weights, in evaluation mode.

        Raises:
            RunFolderError: they are not this model's weights.
        """
        expected = model.state_dict()
        for name in sorted(set(expected) | set(self.state)):
            there, wanted = self.state.get(name), expected.get(name)
            if there is None or wanted is None or not _fits(there, wanted):
                raise RunFolderError(
                    f"model.pt: {name} is {_form(there)}, task {self.config.task.name} has "
                    f"{_form(wanted)}: is this the task that the run was made with?"
                )
        model.load_state_dict(dict(self.state))
        return model.eval()


def _cost(audit: AuditResult) -> dict[str, str]:
    """The outsider's epsilon including tuning runs, and that of this run alone."""
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


def _preparation(config: Config, run: Path) -> str:
    """How a table's rows become the model's inputs, as JSON; empty if the task reads no table."""
    from fedsys.tasks.tables.stored import columns_of

    columns = columns_of(config.task.name, config.task.options, run / "data.json")
    return "" if columns is None else json.dumps(columns.to_json(), ensure_ascii=False)


def _fits(there: Tensor, wanted: Tensor) -> bool:
    """Same form; a parameter of 16 bits was trained, and is stored, as its float32 master."""
    master = str(there.dtype) == "torch.float32" and wanted.dtype.itemsize == 2
    same = there.dtype == wanted.dtype or (master and wanted.is_floating_point())
    return same and there.shape == wanted.shape


def _form(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"


def _tensors(content: bytes, where: str) -> dict[str, Tensor]:
    """A ``state_dict`` and nothing else; the sizes that it states must fit into its bytes."""
    import torch

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(content):
                raise ValueError("it inflates")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a malicious archive makes torch raise anything
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
