"""Every file and command of docs/ask.md, in its order."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.policy import Policy
from fedsys.cli.app import app
from fedsys.queries import KINDS

PAGE = (Path(__file__).resolve().parents[2] / "docs/ask.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_page_names_every_question() -> None:
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]+) \|", PAGE, re.MULTILINE))))
    assert named - {"ask"} == set(KINDS)


@pytest.mark.slow
def test_the_page_as_a_reader_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    policies = []
    for text in blocks("toml"):
        first = text.partition("\n")[0]
        if not first.startswith("# "):
            policies.append(text)
            continue
        path = tmp_path / first.removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (policy,) = policies
    (tmp_path / "policy.toml").write_text(policy)
    assert Policy.load(tmp_path / "policy.toml").queries.min_bins == 5
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert len(commands) == 7
    for line in commands:
        words = shlex.split(line.removeprefix("$ "))
        assert words[0] == "fedsys"
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, (line, done.output)
    stated = json.loads((tmp_path / "runs/ask/summary.json").read_text())
    assert stated["privacy"]["epsilon"]["outsider"] <= 1.0
    names = [each["name"] for each in stated["query"]["answers"]]
    assert names == ["rows on a device", "digits", "ink in one pixel"]
    page = (tmp_path / "runs/ask/report.html").read_text()
    assert "rows on a device" in page
    assert '<svg class="bar"' in page
    assert "Population" in CliRunner().invoke(app, ["audit", "people"]).output
