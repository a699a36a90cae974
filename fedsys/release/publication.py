"""What may be published: the part of a run's folder that the outsider's epsilon covers."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedsys.errors import LedgerError, RunFolderError
from fedsys.privacy.ledger.closing import public_summary
from fedsys.privacy.ledger.cosigned import COSIGNED, PROOF
from fedsys.privacy.ledger.files import open_regular
from fedsys.run_folder import RunFolder, disk_errors

__all__ = ["publish_run"]

_RESULTS = ("metrics.jsonl", "answers.jsonl", "model.pt")
_COPIED = ("config.toml", "ledger.jsonl", COSIGNED, PROOF, *_RESULTS)
_MOST_BYTES = 1 << 32


def publish_run(run: Path, out: Path) -> RunFolder:
    """Copies `run` to the new folder `out` without anything that reveals realised cohorts.

    Raises:
        RunFolderError: `run` is not a finished run, or `out` is not empty.
    """
    source = RunFolder.open(run)
    asked = source.read_config().job.kind != "train"  # and so gave answers, no model
    for needed in (source.summary,) if asked else (source.summary, source.model):
        if not needed.is_file():
            raise RunFolderError(
                f"{run}: not a finished run ({needed.name} is missing); finish it with "
                f"`fedsys simulate --resume {run}`"
            )
    if (run / "canaries.jsonl").exists():
        raise RunFolderError(
            f"{run}: a run with canaries is only for its audit; publish one without --canaries"
        )
    summary = public_summary(source.read_summary())
    if out.is_dir() and any(out.iterdir()):
        raise RunFolderError(f"{out}: not empty; give a new folder to publish")
    target = RunFolder.create(out)
    with disk_errors(out):
        for name in _COPIED:
            if (run / name).is_file():
                _copy(run / name, out / name)
        target.write_summary(summary)
    return target


def _copy(source: Path, target: Path) -> None:
    """Copies a regular file; a link in the run's folder may lead to anything.

    Raises:
        RunFolderError: it is not a regular file.
    """
    try:
        file = open_regular(source, _MOST_BYTES)
    except LedgerError as error:
        raise RunFolderError(f"{source.parent}: {error}") from None
    with file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy)
