"""What may be published: the part of a run's folder that the outsider's epsilon covers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fedsys.errors import RunFolderError
from fedsys.privacy.ledger.closing import public_summary
from fedsys.privacy.ledger.cosigned import COSIGNED, PROOF
from fedsys.run_folder import RunFolder, disk_errors

__all__ = ["publish_run"]

_COPIED = ("config.toml", "ledger.jsonl", COSIGNED, PROOF, "metrics.jsonl", "model.pt")


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
    summary = public_summary(json.loads(source.summary.read_text(encoding="utf-8")))
    target = RunFolder.create(out)
    with disk_errors(out):
        for name in _COPIED:
            if (run / name).is_file():
                shutil.copyfile(run / name, out / name)
        target.write_summary(summary)
    return target
