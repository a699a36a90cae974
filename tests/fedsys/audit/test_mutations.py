"""Whatever single thing is changed in a folder, without a key, the audit fails or what was changed
is no claim: the few changes of that kind are listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsys import report
from fedsys.audit import audit_run
from fedsys.errors import FedsysError
from fedsys.release.publication import publish_run
from tests.fedsys.audit.mutations import Mutation, changed, mutations

FOR_THE_READER_TO_MISS = {
    "private.jsonl": "a folder without it claims less, and says so",
    "model.pt": "nothing is said of a model that is not here",
    "report.html": "nothing is said of a page that is not here",
    "summary.json": "nothing is claimed but what the ledger derives",
    "ledger.tlog-proof": "a convenience: the ledger proves the same",
}
"""Files whose absence makes a folder claim less, and nothing else."""
SPELLINGS = {
    ("summary.json", how) for how in ("reordered", "spaced", "longer", "cut", "a line more")
}
"""Other texts of the same JSON document, which is bound in its canonical form."""
LEFT_OUT = {
    ("summary.json", f"privacy/epsilon/{view}: missing") for view in ("participant", "server")
}
"""A published summary states no epsilon that depends on cohorts, as a number or not at all."""


def is_no_claim(name: str, how: str, *, private: bool) -> bool:
    if how == "missing" and name in FOR_THE_READER_TO_MISS:
        return True
    return (name, how) in (SPELLINGS if private else SPELLINGS | LEFT_OUT)


def passes(folder: Path, *, private: bool) -> bool:
    """Whether an audit holds; the attacker makes the page again, if it is only that which fails."""
    try:
        if not audit_run(folder).passed:
            return False
        if audit_run(folder, page=report.render).passed:
            return True
        page = folder / "report.html"
        if not page.is_file() or page.is_symlink():
            return False
        report.build(folder, audit_run(folder), private=private)
        return audit_run(folder, page=report.render).passed
    except FedsysError:
        return False


@pytest.fixture(scope="module")
def folders(finished: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The private and the published folder of one run, each with its report; never changed."""
    out = tmp_path_factory.mktemp("reported")
    private = changed(finished, ("", "", lambda run: run), out / "private")
    report.build(private, audit_run(private), private=True)
    public = publish_run(private, out / "public").path
    report.build(public, audit_run(public), private=False)
    return [private, public]


def survivors(folder: Path, chosen: list[Mutation], scratch: Path) -> list[tuple[str, str]]:
    """The changes that an audit does not notice, though it should."""
    private = folder.name == "private"
    page_alone = {"report.html"}
    found = []
    for each in chosen:
        name, how, _ = each
        copy = changed(folder, each, scratch / folder.name)
        held = passes(copy, private=private)
        if name in page_alone and held and how != "missing":
            # the page was made again, which undoes the change
            held = (copy / name).read_bytes() != (folder / name).read_bytes()
        if held != is_no_claim(name, how, private=private):
            found.append((name, how))
    return found


def test_one_change_in_a_hundred(folders: list[Path], tmp_path: Path) -> None:
    for folder in folders:
        chosen = list(mutations(folder))
        assert len(chosen) > 800
        assert not survivors(folder, chosen[7::100], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("at", [0, 1], ids=["private", "published"])
def test_every_single_change(at: int, folders: list[Path], tmp_path: Path) -> None:
    assert not survivors(folders[at], list(mutations(folders[at])), tmp_path)
