"""A folder made by somebody else runs nothing here: neither resumed, nor replayed, nor tuned."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedsys
from fedsys.cli.app import app
from fedsys.config import Config, load
from fedsys.config.named_code import NamedCode
from fedsys.errors import ConfigError, LedgerError, RunFolderError
from fedsys.privacy import Signer
from simulations import harness, tuning
from simulations.asking import asking_tree, spec_settings
from simulations.declaring import declared_by
from simulations.personal import evaluate_clients
from simulations.population import Population
from simulations.replay import replay
from simulations.search import Search
from tests.fedsys.audit.forge import entries, sign_again

Configure = Callable[..., Config]

TRAP = """
from pathlib import Path
Path("caught").write_text("caught")
from fedsys.tasks.digits import Digits
from server.strategies import STRATEGIES
class Task(Digits):
    def __init__(self):
        super().__init__({})
Step = STRATEGIES["fedavgm"]
"""
NAMES = {
    "a task": ('name = "digits"', 'name = "trap:Task"', "--task trap:Task"),
    "a strategy": ('strategy = "fedavgm"', 'strategy = "trap:Step"', "--strategy trap:Step"),
    "a partition": ('partition = "one-each"', 'partition = "trap:Split"', "--code trap:Split"),
    "a procedure": ('procedure = ""', 'procedure = "trap:Local"', "--code trap:Local"),
    "a metric": ("metrics = []", 'metrics = ["trap:Step"]', "--code trap:Step"),
    "a command": ('name = "digits"', 'name = "subprocess:Popen"', "--task subprocess:Popen"),
}


class Stop(BaseException):
    """Ends a run as a crash would."""


@pytest.fixture(autouse=True)
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that a module leaves behind when it is imported."""
    (tmp_path / "trap.py").write_text(TRAP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a command ran"))
    yield tmp_path / "caught"
    sys.modules.pop("trap", None)


def begun(configure: Configure, out: Path) -> Path:
    """A run without noise that was interrupted in its second round."""
    train = Population.train

    def dies(self: Population, *arguments: object, round: int, **more: object) -> object:
        if round == 2:
            raise Stop
        return train(self, *arguments, round=round, **more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Population, "train", dies)
        with pytest.raises(Stop):
            harness.run(configure("privacy.mechanism=none", "evaluation.data=none"), out=out)
    return out


def named(run: Path, old: str, new: str, signer: Signer) -> None:
    """The folder with another name in its configuration, whose hash its ledger signs."""
    config = run / "config.toml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    lines = entries(run)
    lines[0][1]["config_sha256"] = hashlib.sha256(config.read_bytes()).hexdigest()
    sign_again(run, lines, signer)


@pytest.mark.parametrize("what", NAMES)
def test_no_name_in_a_folder_is_imported(
    what: str, configure: Configure, tmp_path: Path, trap: Path
) -> None:
    """Not even where this coordinator's own key signed it, unless its user names it too."""
    run = begun(configure, tmp_path / "run")
    old, new, option = NAMES[what]
    named(run, old, new, Signer.load_or_create())
    before = (run / "ledger.jsonl").read_bytes()
    for command in (["--resume", str(run)], ["--replay", str(run)]):
        done = CliRunner().invoke(app, ["simulate", *command])
        assert isinstance(done.exception, ConfigError), done.output
        assert str(done.exception).endswith(f"names custom code; if you trust it, add {option}")
    with pytest.raises(ConfigError, match="names custom code"):
        fedsys.resume(run, progress=False)
    assert (run / "ledger.jsonl").read_bytes() == before
    assert not trap.exists()
    if what not in ("a command", "a metric"):  # which nothing is evaluated with
        CliRunner().invoke(app, ["simulate", "--replay", str(run), *option.split()])
        assert trap.exists(), "the trap is one"


def test_hashes_and_signatures_are_compared_before_anything_is_imported(
    configure: Configure, tmp_path: Path, trap: Path
) -> None:
    run = begun(configure, tmp_path / "run")
    old, new, _ = NAMES["a task"]
    trusted = NamedCode(task="trap:Task")
    stranger = Path(shutil.copytree(run, tmp_path / "stranger"))
    named(stranger, old, new, Signer.generate())
    with pytest.raises(LedgerError, match="is signed by"):
        harness.resume(stranger, named=trusted)
    config = run / "config.toml"
    config.write_text(config.read_text().replace(old, new))
    for again in (harness.resume, replay):
        with pytest.raises(RunFolderError, match="not the one that the ledger signed"):
            again(run, named=trusted)
    assert not trap.exists()


def test_a_search_s_folder_imports_nothing_either(tmp_path: Path, trap: Path) -> None:
    Search.of(load("quickstart"), ["local.learning_rate=0.1..1"], "accuracy").store(tmp_path / "s")
    config = tmp_path / "s" / "config.toml"
    config.write_text(config.read_text().replace(*NAMES["a task"][:2]))
    with pytest.raises(ConfigError, match="names custom code; if you trust it, add --task trap"):
        tuning.tune(None, tmp_path / "s", trials=1)
    assert not trap.exists()


def test_nothing_that_starts_from_a_run_imports_what_it_names(
    configure: Configure, tmp_path: Path, trap: Path
) -> None:
    """A stranger's run may pass its own audit: its task is code all the same."""
    run = begun(configure, tmp_path / "run")
    named(run, *NAMES["a task"][:2], Signer.generate())
    with pytest.raises(ConfigError, match="names custom code; if you trust it, add --task trap"):
        declared_by(run)
    with pytest.raises(ConfigError, match="its task trap:Task is custom code"):
        evaluate_clients(run, lambda *_: 0.0)
    dealt = begun(configure, tmp_path / "dealt")
    named(dealt, *NAMES["a partition"][:2], Signer.generate())
    with pytest.raises(ConfigError, match="its partition trap:Split is custom code"):
        evaluate_clients(dealt, lambda *_: 0.0)
    with pytest.raises(ConfigError, match="was made with the custom code trap:Split"):
        asking_tree({"questions": [{"ask": "count", "name": "n"}]}, "questions", dealt)
    spec = tmp_path / "spec.toml"
    spec.write_text('[[questions]]\nask = "count"\nname = "n"\n')
    with pytest.raises(ConfigError, match="was made with the custom code trap:Task"):
        spec_settings(spec, task=None, of=run)
    spec.write_text('[task]\nname = "trap:Task"\n' + spec.read_text())
    assert spec_settings(spec, task=None, of=run)["task"]["name"] == "trap:Task"
    done = CliRunner().invoke(app, ["task", "from-query", str(run), "--task", "trap:Other"])
    assert "was made with trap:Task" in str(done.exception)
    assert not trap.exists()


def test_a_population_that_no_roster_holds_is_refused_before_anything_is_allocated(
    configure: Configure, tmp_path: Path
) -> None:
    run = begun(configure, tmp_path / "run")
    lines = entries(run)
    header = lines[0][1]
    header["plan"]["population"] = 1 << 28
    header["population"] = {"clients": 1 << 28, "roster_version": 1}
    sign_again(run, lines, Signer.generate())
    with pytest.raises(LedgerError, match=r"ledger of 268435456 devices; a roster has 1000000"):
        replay(run)
