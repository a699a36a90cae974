"""Documents are true: what they name exists, what is generated is fresh, the site builds."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, Field

from docs import reference
from docs.conf import include_patterns

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in include_patterns
    for path in ROOT.glob(pattern)
    if path.suffix == ".md"
)
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
MADE = ("build", "data", "dist", "fleet", "runs", "silo-0", "public")
"""Folders that the documents' commands make, or that a user has."""
FILES = {"py", "md", "toml", "json", "proto", "lock", "yml", "sh", "ipynb", "png", "j2"}


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def named_paths(document: str) -> set[str]:
    """Paths in backticks that look like files or folders of the repository."""
    found = set()
    for code in CODE.findall(text_of(document)):
        if not PATH.fullmatch(code) or code.split("/")[0] in MADE:
            continue
        if code.endswith("/") or ("/" in code and code.rpartition(".")[2] in FILES):
            found.add(code)
    return found


def test_the_documents_are_all_there() -> None:
    assert {
        "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md",
        "docs/cli.md", "docs/configuration.md", "docs/glossary.md", "docs/releasing.md",
        "fedsys/THREATS.md", "fedsys/privacy/LEDGER.md", "fedsys/privacy/NOISE.md",
        "secure_agg/PROTOCOL.md", "server/METRICS.md", "simulations/RESULTS.md",
    } <= set(DOCUMENTS)  # fmt: skip


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_a_document_names_exists(document: str) -> None:
    here = (ROOT / document).parent
    missing = [
        path
        for path in sorted(named_paths(document))
        if not any((base / path).exists() for base in (ROOT, here))
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(document: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", text_of(document))
    here = (ROOT / document).parent
    relative = [each.partition("#")[0] for each in targets if "://" not in each]
    assert [each for each in relative if each and not (here / each).exists()] == []


def test_every_kind_of_input_names_tests_that_exist() -> None:
    rows = [line for line in text_of("docs/inputs.md").splitlines() if line.startswith("| ")]
    rows = [line for line in rows if not line.startswith(("| case |", "| --- |"))]
    assert len(rows) >= 45
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row.rpartition(" | ")[2])
        assert named, row
        for path, test in named:
            assert re.search(rf"^def {test}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE), row


def test_the_map_names_enough_to_be_one() -> None:
    assert len(named_paths("ARCHITECTURE.md")) >= 50
    assert len(named_paths("CONTRIBUTING.md")) >= 25


@pytest.mark.parametrize("page", reference.PAGES)
def test_the_reference_pages_are_what_the_code_says(page: str) -> None:
    assert text_of(f"docs/{page}") == reference.PAGES[page](), "run `make reference`"


def test_every_key_of_a_configuration_is_described() -> None:
    assert reference.undescribed() == []


def test_a_key_without_a_meaning_is_noticed() -> None:
    class Table(BaseModel):
        """A table.

        Attributes:
            known: Described here.
        """

        known: int = Field(default=1, ge=1, le=1 << 20)
        unknown: int = 2

    assert set(Table.model_fields) - set(reference.meanings(Table)) == {"unknown"}


def test_no_meaning_is_a_fragment() -> None:
    rows = re.findall(r"^\| `[^`]+` \|.*\| ([^|]+) \|$", text_of("docs/configuration.md"), re.M)
    assert len(rows) > 90
    wrong = [row for row in rows if not (row[0].isupper() or row[0] == "`") or row[-1] != "."]
    assert wrong == []


def test_what_contributing_says_of_make_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE))
    for document in ("CONTRIBUTING.md", "docs/releasing.md", "README.md"):
        for line in re.findall(r"`make ([^`]+)`|^\$ make ([^#\n]+)", text_of(document), re.M):
            words = " ".join(line).split()
            assert {word for word in words if "=" not in word} <= targets, document


def test_the_changelog_ends_at_this_version() -> None:
    heads = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text_of("CHANGELOG.md"), re.M)
    assert heads[0] == ("Unreleased", "")
    version = tomllib.loads(text_of("pyproject.toml"))["project"]["version"]
    assert heads[1][0] == version
    assert all(date for _, date in heads[1:])


def test_the_glossary_gives_a_word_one_meaning_and_forbids_none_that_it_uses() -> None:
    text, _, forbidden = text_of("docs/glossary.md").partition("## Forbidden words")
    words = [
        word
        for word in re.findall(r"^\| ([A-Za-z -]+) \|", text, re.M)
        if word not in ("Word", "---")
    ]
    assert len(words) > 40
    assert sorted(words) == sorted(set(words))
    banned = re.findall(r"^\| `([a-z]+)` \|", forbidden, flags=re.MULTILINE)
    assert banned == sorted(banned)
    assert len(banned) >= 8
    assert not {word.lower() for word in words} & set(banned)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_nothing_unfinished_or_private_is_in_a_document(document: str) -> None:
    wrong = re.compile(r"TODO|FIXME|(?<![\w.])/(?:tmp|home|root|work)/")
    assert wrong.findall(text_of(document)) == []


def test_the_commit_hooks_run_what_is_installed() -> None:
    hooks = yaml.safe_load(text_of(".pre-commit-config.yaml"))
    (local,) = hooks["repos"]
    assert local["repo"] == "local"
    assert all(hook["language"] == "system" for hook in local["hooks"])
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html",
            "-c", "docs", "-d", str(tmp_path / "doctrees"), ".", str(tmp_path / "site"),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {str(path.relative_to(tmp_path / "site")) for path in tmp_path.rglob("*.html")}
    assert {f"{document.removesuffix('.md')}.html" for document in DOCUMENTS} <= pages
    assert "PrivacyPlan" in (tmp_path / "site/docs/api/privacy.html").read_text("utf-8")
