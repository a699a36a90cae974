"""A run's folder may come from anybody: what is read of it is bounded and nothing is followed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsys.config import dump, load
from fedsys.errors import ConfigError, FedsysError, RunFolderError
from fedsys.privacy import Epsilons
from fedsys.release.publication import publish_run
from fedsys.run_folder import RunFolder
from fedsys.runs.comparison import compare
from fedsys.runs.run import Run
from tests.reading import reads_at_most

GIGABYTES = 10 << 30
DOTS = "a." * 120_000 + "a = 1"
"""Over which Python's own reader of TOML takes minutes."""


def spoiled(folder: Path, name: str, how: str) -> Path:
    """The folder with one file that nobody should read."""
    path = folder / name
    path.unlink(missing_ok=True)
    if how == "large":
        with path.open("wb") as file:
            os.truncate(file.fileno(), GIGABYTES)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "link":
        (folder / "elsewhere").write_text("{}")
        path.symlink_to(folder / "elsewhere")
    return folder


READERS: dict[str, Callable[[RunFolder], Any]] = {
    "ledger.jsonl": lambda folder: folder.begun,
    "summary.json": RunFolder.read_summary,
    "config.toml": RunFolder.read_config,
    "metrics.jsonl": RunFolder.evaluations,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("how", ["large", "pipe", "link"])
def test_what_is_no_plain_small_file_is_refused_unread(tmp_path: Path, name: str, how: str) -> None:
    folder = RunFolder(spoiled(tmp_path, name, how))
    if (name, how) == ("metrics.jsonl", "pipe"):
        assert folder.evaluations() == []
        return
    with reads_at_most(64), pytest.raises(RunFolderError, match=name) as refusal:
        READERS[name](folder)
    assert "\n" not in str(refusal.value)


def test_toml_that_takes_hours_is_refused_at_once(tmp_path: Path) -> None:
    """By everybody who shows or compares a run's settings."""
    (tmp_path / "config.toml").write_text(DOTS)
    nothing = Epsilons(outsider=0.0, participant=None, server=None)
    run = Run(
        folder=tmp_path, summary={}, metrics={}, epsilon=nothing, delta=1e-5, interrupted=False
    )
    started = time.process_time()
    for read in (RunFolder(tmp_path).read_config, lambda: compare([run])):
        with pytest.raises(FedsysError):
            read()
    assert time.process_time() - started < 30


def test_a_configuration_is_read_only_if_the_ledger_signed_its_hash(tmp_path: Path) -> None:
    content = dump(load("quickstart")).encode()
    (tmp_path / "config.toml").write_bytes(content)
    header = {"config_sha256": hashlib.sha256(content).hexdigest()}
    folder = RunFolder(tmp_path)
    assert folder.signed_config(header) == folder.read_config() == load("quickstart")
    (tmp_path / "config.toml").write_bytes(content + b"\n")
    with pytest.raises(RunFolderError, match="not the one that the ledger signed the hash of"):
        folder.signed_config(header)
    (tmp_path / "config.toml").write_text("[job]\nseed = -1\n")
    with pytest.raises(ConfigError, match=r"config\.toml: job\.seed"):
        folder.read_config()


def test_a_published_folder_holds_no_file_that_a_link_led_to(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("ledger.jsonl", "model.pt"):
        (run / name).write_text("")
    (run / "config.toml").write_text("privacy.noise_multiplier = 1.0\n")
    (run / "summary.json").write_text("{}")
    (tmp_path / "secret").write_text("private")
    (run / "metrics.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl is a symbolic link"):
        publish_run(run, tmp_path / "public")
