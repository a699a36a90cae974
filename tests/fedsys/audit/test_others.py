"""Files next to a run's own are named, so that nobody takes them for examined."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsys import report
from fedsys.audit import audit_run
from fedsys.audit.others import others_claim


def test_files_that_no_audit_examines_are_named(run: Path) -> None:
    assert others_claim(run) is None
    report.build(run, audit_run(run), private=True)
    (run / "Summary.json").write_text("{}")
    (run / "approved.html").write_text("<h1>by everybody</h1>")
    result = audit_run(run, page=report.render)
    said = next(each for each in result.claims if each.name == "Other files")
    assert (said.holds, said.rederived) == (None, "not examined: Summary.json, approved.html")
    assert result.passed


@pytest.mark.parametrize("name", ["summary.json\u200b", "s\u0443mmary.json", "a\x1b[31m.txt"])
def test_names_that_look_alike_are_others(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    said = others_claim(tmp_path)
    assert said is not None
    assert said.rederived.isprintable()


def test_of_many_files_a_few_are_named(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"note-{number}").write_text("")
    said = others_claim(tmp_path)
    assert said is not None
    assert said.rederived.endswith("note-5 and 3 more")
    assert others_claim(tmp_path / "nowhere") is None
