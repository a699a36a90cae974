"""A new version of a task, from its operator to an owner's approval."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.policy import Policy
from fedsys.cli import main
from fedsys.wire.bundle import read_bundle
from server.home.folder import Home
from server.home.state import State
from simulations.testbed.joining import join
from tests.fedsys.tasks.test_code import TASK

Fedsys = Callable[..., tuple[int, str]]


@pytest.fixture
def fedsys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fedsys]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str]:
        _forget()
        monkeypatch.setattr(sys, "argv", ["fedsys", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        code = leaving.value.code
        shown = capsys.readouterr()
        return (code if isinstance(code, int) else 0), shown.out + shown.err

    yield run
    _forget()


def _forget() -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == "ward"]:
        del sys.modules[name]


def device(root: Path, home: Home) -> Path:
    """A device that joined, without a socket."""
    from client.identity import Credentials, pem_of
    from fedsys.secret_files import write_secret

    state = State.open(home.path)
    joined = join(home.registry(state), "a")
    state.close()
    folder = root / "a"
    folder.mkdir(mode=0o700)
    write_secret(folder / "identity.ed25519", joined.identity.private_bytes())
    Credentials(
        folder=folder, node=1, name="a", coordinator="localhost:1", identity=joined.identity,
        ca=pem_of(joined.token.ca), roster_key=home.roster_key,
        signer=bytes.fromhex(home.signer.public_hex),
    ).store()  # fmt: skip
    return folder


def package(columns: str) -> Path:
    """The task's package in the current folder, and the wheel that installs it."""
    folder = Path("ward")
    folder.mkdir(exist_ok=True)
    for name, text in (("__init__", ""), ("task", TASK), ("columns", f"COLUMNS = {columns}\n")):
        (folder / f"{name}.py").write_text(text)
    later = os.stat("ward/columns.py").st_mtime + len(columns)
    os.utime("ward/columns.py", (later, later))
    wheel = Path("ward-1-py3-none-any.whl")
    with zipfile.ZipFile(wheel, "w") as archive:
        for each in sorted(folder.glob("*.py")):
            archive.write(each)
    return wheel


def test_a_version_is_bundled_approved_and_its_changes_are_shown(
    fedsys: Fedsys, tmp_path: Path
) -> None:
    home = Home.create(tmp_path / "hq", hosts=["localhost"])
    folder = device(tmp_path, home)
    wheel = package("['age']")
    bundle = ("task", "bundle", "ward.task:Risk", "--coordinator", "hq", "--wheel", wheel)
    assert fedsys(*bundle, "-o", "v1.bundle")[0] == 0
    sha256 = fedsys("task", "hash", "ward.task:Risk")[1].strip()
    assert len(sha256) == 64
    code, shown = fedsys("agent", "approve", folder, "v1.bundle")
    assert (code, sha256 in shown, "nothing was changed" in shown) == (0, True, True)
    assert not (folder / "policy.toml").exists()
    code, shown = fedsys("agent", "approve", folder, "v1.bundle", "--yes")
    assert code == 0
    assert f"pip install --no-deps {folder}/tasks/{sha256}/{wheel.name}" in shown
    policy = Policy.load(folder / "policy.toml")
    assert policy.tasks is not None
    assert policy.tasks["ward.task:Risk"].sha256 == sha256

    package("['age', 'temp']")
    code, shown = fedsys(*bundle[:-1], wheel, "-o", "v2.bundle")
    assert code == 0, shown
    text = (folder / "policy.toml").read_text().replace("epsilon = 10.0", "epsilon = 3.0")
    (folder / "policy.toml").write_text(text)
    code, shown = fedsys("agent", "approve", folder, "v2.bundle", "--yes")
    assert f"approved so far: {sha256}" in shown
    assert "~ ward/columns.py" in shown
    assert "ward/task.py" not in shown
    after = Policy.load(folder / "policy.toml")
    assert after.epsilon == 3.0, "the owner's other limits stay"
    assert after.tasks is not None
    assert after.tasks["ward.task:Risk"].sha256 != sha256


def test_a_bundle_of_others_and_a_changed_one_are_refused(fedsys: Fedsys, tmp_path: Path) -> None:
    home = Home.create(tmp_path / "hq", hosts=["localhost"])
    Home.create(tmp_path / "other", hosts=["localhost"])
    folder = device(tmp_path, home)
    wheel = package("['age']")
    words = ("task", "bundle", "ward.task:Risk", "--wheel", wheel, "--coordinator")
    assert fedsys(*words, "other", "-o", "forged")[0] == 0
    code, shown = fedsys("agent", "approve", folder, "forged", "--yes")
    assert code == 2
    assert "not signed by this device's coordinator" in shown
    assert fedsys(*words, "hq", "-o", "good")[0] == 0
    whole = bytearray(Path("good").read_bytes())
    at = whole.index(b"COLUMNS = ")
    whole[at] ^= 1
    Path("bad").write_bytes(whole)
    code, shown = fedsys("agent", "approve", folder, "bad", "--yes")
    assert (code, "Traceback" in shown) == (2, False)
    assert not (folder / "policy.toml").exists()
    assert read_bundle(Path("good"), bytes.fromhex(home.signer.public_hex)).task == "ward.task:Risk"

    stale = package("['temp']").rename("new.whl")
    package("['age']")
    code, shown = fedsys(*words[:3], "--coordinator", "hq", "--wheel", stale, "-o", "none")
    assert code == 2
    assert "ward/columns.py differ" in shown
