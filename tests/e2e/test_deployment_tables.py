"""Tables on devices: one declaration for all, refusals that name a column and quote nothing."""

from __future__ import annotations

import logging
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from client.local_data import DataSpec, LocalData
from client.task_model import TaskModel
from fedsys.cli import main
from fedsys.cli.task_options import options_in
from fedsys.config import load
from fedsys.errors import ConfigError, DataError
from fedsys.preprocessing import why_not_deployed

DECLARED: dict[str, Any] = {
    "path": "people.csv",
    "label": "finding",
    "classes": ["benign", "malignant"],
    "ranges": {"marker": [-5, 5]},
    "values": {"sex": ["f", "m"]},
}
INFERRED = {"path": "people.csv", "label": "finding"}


def silo(
    folder: Path, classes: tuple[str, str] = ("benign", "malignant"), sexes: str = "fm"
) -> Path:
    folder.mkdir()
    rows = [f"{k / 10},{sexes[k % len(sexes)]},{classes[k % 2]}\n" for k in range(-20, 20)]
    (folder / "people.csv").write_text("marker,sex,finding\n" + "".join(rows))
    return folder


def held(folder: Path, options: dict[str, Any]) -> LocalData:
    return LocalData(DataSpec(task="tabular", folder=folder), options=options)


def test_silos_that_fit_hold_the_same_columns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        one, other = (held(silo(tmp_path / name), DECLARED) for name in "ab")
    assert one.data.train.x.shape[1] == other.data.train.x.shape[1] == 3
    assert "read people.csv" in caplog.text
    assert "malignant" not in caplog.text


@pytest.mark.parametrize(
    ("classes", "sexes", "column"),
    [
        (("normal", "cancer"), "fm", "finding"),
        (("0", "1"), "fm", "finding"),
        (("malignant", "terminal"), "fm", "finding"),
        (("Benign", "malignant"), "fm", "finding"),
        (("benign", "malignant"), "wm", "sex"),
        (("benign", "malignant"), "fmx", "sex"),
    ],
)
def test_a_silo_with_other_words_refuses(
    tmp_path: Path, classes: tuple[str, str], sexes: str, column: str
) -> None:
    with pytest.raises(DataError) as refused:
        held(silo(tmp_path / "a", classes, sexes), DECLARED)
    said = str(refused.value).replace(str(tmp_path), "")
    assert f"column '{column}', row " in said
    for word in {*classes, *sexes} - {"benign", "malignant", "f", "m"}:
        assert not re.search(rf"'{word}'", said), said


def test_a_silo_that_lacks_a_class_takes_part(tmp_path: Path) -> None:
    data = held(silo(tmp_path / "a", ("benign", "benign"), "f"), DECLARED).data
    assert data.train.x.shape[1] == 3
    assert set(data.train.y.tolist()) == {0}


def test_columns_that_each_silo_would_find_for_itself_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task tabular cannot run on a device: .*declare"):
        held(silo(tmp_path / "a"), INFERRED)
    config = load(None, ["task.name=tabular", "task.options={path='people.csv', label='finding'}"])
    with pytest.raises(ConfigError, match=r"task tabular cannot run on devices: .*declare"):
        TaskModel(config)
    for declared in ("fixed", "row-local", "client-local", "undeclared", None):
        assert why_not_deployed(declared) is None


def test_such_a_job_is_refused_where_it_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "task.name=tabular", "--set", "task.options={path='p.csv', label='y'}"]
    command = ["fedsys", "job", "submit", str(tmp_path), "quickstart", *settings]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as leaving:
        main()
    said = capsys.readouterr().err
    assert (leaving.value.code, said.count("\n")) == (2, 1)
    assert "task tabular cannot run on devices" in said


def test_options_come_from_the_file_that_a_schema_is(tmp_path: Path) -> None:
    path = tmp_path / "people.toml"
    path.write_text('[task]\nname = "tabular"\n[task.options]\npath = "p.csv"\nlabel = "y"\n')
    assert options_in(path, "tabular") == {"path": "p.csv", "label": "y"}
    with pytest.raises(ConfigError, match="is for task tabular, not digits"):
        options_in(path, "digits")
    for content, message in (
        ("[job]\n", r"has no table \[task\]"),
        ("[task\n", "not TOML"),
        ("[task]\nnam = 'x'\n", r"task\.nam"),
        ("task = 3\n", "task"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            options_in(path, "tabular")
    with pytest.raises(ConfigError, match="no such file"):
        options_in(tmp_path / "nowhere.toml", "tabular")


def test_options_that_lack_something_say_where_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"path is missing: .*from --options FILE"):
        held(silo(tmp_path / "a"), {})


def test_options_within_a_source_are_told_apart() -> None:
    """A unit's ${VARIABLE} is one word, spaces and all."""
    with pytest.raises(ConfigError, match="which is split at spaces"):
        DataSpec.parse("tabular=/srv/ward-1 --option path=people.csv", None)


def test_the_shipped_unit_takes_options_as_words() -> None:
    """systemd splits $NAME at spaces, and not ${NAME}."""
    unit = (resources.files("fedsys") / "templates/deploy/fedsys-agent@.service").read_text("utf-8")
    (start,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert " --data ${FEDSYS_SOURCE} $FEDSYS_OPTIONS " in start
    assert "FEDSYS_OPTIONS=--options /etc/fedsys/people.toml" in unit
