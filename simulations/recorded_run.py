"""Reads what a replay needs from a run's folder, and refuses runs that cannot be replayed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsys.audit.canary_outcome import CANARIES
from fedsys.config import Config
from fedsys.errors import LedgerError, RunFolderError
from fedsys.privacy import LedgerView, PrivacyPlan, plan_of, read_ledger
from fedsys.privacy.ledger import read_private
from fedsys.privacy.ledger.files import open_regular
from fedsys.run_folder import RunFolder

__all__ = ["RecordedRun"]

_MOST_BYTES = 1 << 32


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """The parts of a run's folder that a replay needs.

    Attributes:
        path: Path of the folder.
        config: The configuration, whose hash the ledger signed.
        plan: The privacy plan in the signed header.
        view: The verified ledger.
        survivors: Clients whose updates are in the sum, by committed round.
        invited: Size of the cohort, by committed round.
        model_sha256: SHA-256 of the present ``model.pt``; None where there is none.
    """

    path: Path
    config: Config
    plan: PrivacyPlan
    view: LedgerView
    survivors: Mapping[int, tuple[int, ...]]
    invited: Mapping[int, int]
    model_sha256: str | None

    @classmethod
    def read(cls, path: Path) -> RecordedRun:
        """Read a run's folder, and refuse one that cannot be replayed.

        Raises:
            RunFolderError: There is no run, or it cannot be replayed; the message says why.
            LedgerError: The ledger does not verify.
        """
        folder = RunFolder(path)
        for needed in (folder.config, folder.ledger):
            if not needed.is_file():
                raise RunFolderError(f"{path}: no run to replay here ({needed.name} is missing)")
        view = read_ledger(folder.ledger, allow_torn=True)
        plan = plan_of(view.header)
        _refuse_secrets(path, plan)
        config = folder.signed_config(view.header)
        if config.engine.path == "auto" or not config.engine.chunk:
            raise RunFolderError(
                f"{path}: config.toml does not say which [engine] path and chunk ran, so floating "
                f"point cannot be repeated"
            )
        cohorts = dict(_cohorts(folder, view))
        return cls(
            path=path,
            config=config,
            plan=plan,
            view=view,
            survivors={round: survivors for round, (_, survivors) in cohorts.items()},
            invited={round: invited for round, (invited, _) in cohorts.items()},
            model_sha256=_sha256(folder.model),
        )

    @property
    def deployed(self) -> bool:
        """Whether devices ran it, whose clients are numbered by the roster."""
        population = self.view.header.get("population")
        return isinstance(population, dict) and "roster_version" in population


def _sha256(model: Path) -> str | None:
    if not model.is_file():
        return None
    digest = hashlib.sha256()
    with open_regular(model, _MOST_BYTES) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _refuse_secrets(path: Path, plan: PrivacyPlan) -> None:
    if plan.mechanism != "none":
        raise RunFolderError(
            f"{path}: mechanism '{plan.mechanism}' drew noise that nobody kept, so no second run "
            f"gives the same sums; only a run with privacy.mechanism = 'none' can be replayed"
        )
    if plan.participation < 1 or plan.adaptive_clip:
        which = "cohort.participation" if plan.participation < 1 else "privacy.adaptive_quantile"
        raise RunFolderError(
            f"{path}: with {which} clients draw secret coins that nobody kept, so no second run "
            f"gives the same sums"
        )
    if (path / CANARIES).exists():
        raise RunFolderError(
            f"{path}: the updates of planted canaries were not kept; replay a run without them"
        )


def _cohorts(
    folder: RunFolder, view: LedgerView
) -> Iterator[tuple[int, tuple[int, tuple[int, ...]]]]:
    """For each committed round, the number invited and the clients in the sum."""
    if not folder.private.is_file():
        raise RunFolderError(
            f"{folder.path}: private.jsonl is missing, which says whose updates each round summed; "
            f"a published run lacks it, replay the coordinator's own folder"
        )
    private, _torn = read_private(folder.private)
    for record in view.rounds:
        if record.outcome != "commit":
            continue
        line = private.get(record.round) or {}
        found, sampled = _ids(line.get("survivors")), _ids(line.get("sampled"))
        if found is None or sampled is None:
            raise LedgerError(
                f"{folder.private}: whose updates round {record.round} summed is missing"
            )
        yield record.round, (len(sampled), found)


def _ids(found: object) -> tuple[int, ...] | None:
    if not isinstance(found, list) or not all(isinstance(id, int) for id in found):
        return None
    return tuple(found)
