"""The page: what it states, what it keeps to itself, and that a hostile folder does it no harm."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedsys.errors import RunFolderError
from fedsys.records import AuditResult, Claim, EpsilonPoint, Epsilons, Total
from fedsys.report import build
from tests.reading import reads_at_most

MakeAudit = Callable[..., AuditResult]
MakeSummary = Callable[[], dict[str, Any]]
VOID = {"meta", "link", "br", "hr", "img", "input"}
OPTIONAL_END = {"li", "p", "dt", "dd", "tr", "td", "th"}


class Page(HTMLParser):
    """A page taken apart: its elements, identifiers, links and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "text"):
            self.words.append(data)

    def values(self, name: str) -> list[str]:
        """Every value of an attribute."""
        return [value for key, value in self.attributes if key == name]


def _page(run: Path, audit: AuditResult, *, private: bool = True) -> Page:
    return Page(build(run, audit, private=private).read_text(encoding="utf-8"))


def _edit(run: Path, **changes: Any) -> None:
    path = run / "summary.json"
    content = json.loads(path.read_text())
    privacy = changes.pop("privacy", {})
    path.write_text(json.dumps(content | changes | {"privacy": content["privacy"] | privacy}))


def _constant(epsilons: Epsilons, rounds: int = 3) -> tuple[EpsilonPoint, ...]:
    return tuple(EpsilonPoint(round=t, spent=epsilons) for t in range(1, rounds + 1))


@pytest.fixture(scope="module")
def private_page(
    tmp_path_factory: pytest.TempPathFactory,
    write_run: Callable[[Path], Path],
    make_audit: MakeAudit,
) -> str:
    """The page of a sound run, built once."""
    run = write_run(tmp_path_factory.mktemp("page") / "quickstart")
    return build(run, make_audit(), private=True).read_text(encoding="utf-8")


class TestSoundRun:
    """What a finished, sound run's private page shows."""

    def test_it_needs_nothing_from_outside_and_no_script(self, private_page: str) -> None:
        page = Page(private_page)
        assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "embed", "form"}
        assert "default-src 'none'" in "".join(page.values("content"))
        for reference in page.values("href") + page.values("src"):
            assert reference.startswith("#")
        assert re.findall(r"url\((?!#)", private_page) == []
        assert "@import" not in private_page
        assert not [name for name, _ in page.attributes if name.startswith("on")]

    def test_it_is_well_formed(self, private_page: str) -> None:
        page = Page(private_page)
        assert page.unbalanced == []
        assert page.open == []
        identifiers = page.values("id")
        assert len(identifiers) == len(set(identifiers))
        targets = {value[1:] for value in page.values("href") + page.values("xlink:href")}
        targets |= set(re.findall(r"url\(#([\w.-]+)\)", private_page))
        targets |= {each for value in page.values("aria-labelledby") for each in value.split()}
        assert targets <= set(identifiers)

    def test_its_drawings_take_every_colour_from_the_theme(self, private_page: str) -> None:
        drawings = re.findall(r'<svg class="chart".*?</svg>', private_page, flags=re.DOTALL)
        assert len(drawings) == 2 * 7  # a phone's and a desktop's of seven charts
        for drawing in drawings:
            assert not re.search(
                r"#[0-9a-fA-F]{3,8}\b(?!-)", re.sub(r"url\(#[^)]*\)|href=\"#[^\"]*\"", "", drawing)
            )
            assert "var(--c1)" in drawing
            assert "<style" not in drawing
            assert "font-family" not in drawing

    def test_it_states_the_three_figures_the_verdict_and_what_was_reached(
        self, private_page: str
    ) -> None:
        text = Page(private_page).text
        for expected in (
            "quickstart",
            "All 8 checked claims hold",
            "2 cannot be decided from this folder",
            "ε 8.59 reasonable",
            "ε 12.5 weak",
            "ε 37.7 weak",
            "δ = 10⁻⁵",
            "91.4 %",
            "0.321",
            "budget (outsider) 10.0",
            "40 rounds over 1,437 clients on digits",
            "distributed Gaussian noise and secure aggregation",
        ):
            assert expected in text

    def test_it_says_whether_the_time_of_an_answer_tells_of_the_data(
        self, run_folder: Path, make_audit: MakeAudit
    ) -> None:
        config = run_folder / "config.toml"
        text = config.read_text()
        for answer, said in (
            ("at-once", "reveals to the coordinator roughly how much data it holds"),
            ("bucketed", "one of a few times that depend on the job alone"),
            ("at-deadline", "at the end of their stage, whatever they trained on"),
        ):
            config.write_text(text.replace("[rounds]\n", f'[rounds]\nanswer = "{answer}"\n'))
            assert said in _page(run_folder, make_audit()).text

    def test_it_says_what_is_assumed_and_what_is_not_covered(self, private_page: str) -> None:
        text = Page(private_page).text
        for expected in (
            "add or remove one client",
            "one client's update or zero; it takes part either way",
            "one client's update or zero; it is known to take part",
            "who else was invited to them (it checks the draw of each round's committee)",
            "in one case is at most e to the ε times its probability in the other, plus δ",
            "It is not the probability that the bound fails",
            "Poisson sampling",
            "taken on trust, and so is the coordinator's word",
            "AES and ring learning with errors are secure",
            "evaluation data",
            "anyone who watches the network",
            "“fedsys audit A B --compose”",
        ):
            assert expected in text

    @pytest.mark.parametrize(
        ("dropout", "words"),
        [
            (
                "0.1",
                "10.0 % of a cohort colluding with the server, if the server sampled the cohort as "
                "stated, and each of its members being lost with probability at most 10.0 %, "
                "independently of the others.",
            ),
            ("0.0", "as stated, and none of its members being lost."),
        ],
    )
    def test_it_says_what_secure_aggregation_is_built_for(
        self, run_folder: Path, make_audit: MakeAudit, dropout: str, words: str
    ) -> None:
        """That each member is lost with a chance; a cohort may well lose a larger share."""
        path = run_folder / "config.toml"
        path.write_text(path.read_text().replace("dropout = 0.1", f"dropout = {dropout}"))
        assert words in _page(run_folder, make_audit(), private=False).text

    def test_it_answers_the_checklist(self, private_page: str) -> None:
        text = Page(private_page).text
        for item in (
            "DP setting Distributed",
            "Data accesses covered",
            "Final mechanism's output",
            "Unit of privacy One client",
            "Adjacency",
            "Accounting RDP (dp-accounting orders)",
            "Accounting assumptions",
            "Formal statement Outsider: (8.59, 10⁻⁵)-DP",
            "Transparency",
        ):
            assert item in text

    @pytest.mark.parametrize("private", [True, False])
    def test_it_states_the_total_with_tuning_runs(
        self, run_folder: Path, make_audit: MakeAudit, private: bool
    ) -> None:
        text = _page(run_folder, make_audit(private=private), private=private).text
        assert "the ledger's header states no tuning runs" in text
        total = Total(runs=20, before=6.1236, epsilon=11.234, delta=2e-5)
        audit = replace(make_audit(private=private), total=total)
        text = _page(run_folder, audit, private=private).text
        for words in (
            "With the 20 tuning runs that the ledger's header states, the outsider's total ε is "
            "11.3 at δ = 2 × 10⁻⁵.",
            "According to the ledger's header, 20 tuning runs before it cost an outsider's "
            "ε = 6.13; with this run the total is 11.3 at δ = 2 × 10⁻⁵.",
            "With the tuning runs before it: (11.3, 2 × 10⁻⁵)-DP for an outsider.",
            "that there were no more rests on the coordinator's word",
        ):
            assert words in text

    def test_it_shows_the_insides_of_the_rounds_as_counts(self, private_page: str) -> None:
        text = Page(private_page).text
        for title in ("Cohort", "Dropouts by stage", "Updates clipped", "Noise to signal"):
            assert title in text
        assert "Private copy." in text

    def test_it_has_the_configuration_versions_and_hashes(
        self, private_page: str, make_summary: MakeSummary
    ) -> None:
        text = Page(private_page).text
        summary = make_summary()
        assert 'partition = "one-each"' in text
        assert "torch 2.13.0" in text
        for key in ("ledger_head", "signer", "model_sha256"):
            assert summary[key] in text


class TestPublicReport:
    """Realised cohorts, and what follows from them, stay with the server."""

    def test_cohorts_and_figures_that_follow_them_are_absent(
        self, run_folder: Path, make_audit: MakeAudit
    ) -> None:
        audit = replace(make_audit(private=False), curve=make_audit(private=True).curve)
        page = _page(run_folder, audit, private=False)
        assert "Inside the rounds" not in page.text
        assert "Private copy" not in page.text
        for secret in (
            "3,811",
            "41.3 s",
            "clients invited",
            "survived",
            "Noise to signal",
            "12.5",
            "37.7",
        ):
            assert secret not in page.text
        assert "ε 8.59" in page.text
        assert "stays with the server" in page.text

    def test_private_jsonl_is_not_even_opened(
        self, run_folder: Path, make_audit: MakeAudit
    ) -> None:
        path = run_folder / "private.jsonl"
        path.unlink()
        os.mkfifo(path)  # reading it would be reported as a problem
        assert "private.jsonl" not in _page(
            run_folder, make_audit(private=False), private=False
        ).text.replace("anyone who holds private.jsonl", "").replace("needs private.jsonl", "")

    def test_no_protection_against_the_server_is_said_all_the_same(
        self, run_folder: Path, make_audit: MakeAudit
    ) -> None:
        _edit(run_folder, privacy={"mechanism": "central-gaussian"})
        spent = Epsilons(outsider=2.0, participant=3.0, server=math.inf)
        page = _page(run_folder, replace(make_audit(), curve=_constant(spent)), private=False)
        assert "ε ∞ none No limit on what can be learned." in page.text
        assert "infinite: server" in page.text
        assert "ε 3.00" not in page.text


class TestWarnings:
    """What must not be overlooked is said loudly, whichever source says it."""

    @pytest.mark.parametrize("where", ["summary", "config"])
    def test_mechanism_none(self, run_folder: Path, make_audit: MakeAudit, where: str) -> None:
        if where == "summary":
            _edit(run_folder, privacy={"mechanism": "none", "epsilon": {"outsider": "inf"}})
        else:
            path = run_folder / "config.toml"
            path.write_text(path.read_text().replace('"distributed-gaussian"', '"none"'))
        endless = Epsilons(outsider=math.inf, participant=math.inf, server=math.inf)
        page = _page(run_folder, replace(make_audit(), curve=_constant(endless)))
        assert "No differential privacy." in page.text
        assert page.text.count("No limit on what can be learned.") == 3
        assert "No guarantee" in page.text
        assert "banner tone-danger" in page.values("class")

    def test_reproducible_float_and_ideal(self, run_folder: Path, make_audit: MakeAudit) -> None:
        _edit(run_folder, reproducible=True, protocol="float")
        text = _page(run_folder, make_audit(), private=False).text
        assert "Reproducible, not private." in text
        assert "operating system's random numbers" not in text
        assert "here the simulation added it, without encryption" in text
        assert "Not a release." in text
        _edit(run_folder, reproducible=False, protocol="secure")
        path = run_folder / "config.toml"
        path.write_text(path.read_text().replace('"secure"', '"ideal"'))
        text = _page(run_folder, make_audit(), private=False).text
        assert "Ideal aggregation." in text
        assert "Not a release." not in text

    @pytest.mark.parametrize(
        ("status", "words"),
        [("budget-exhausted", "Stopped at the privacy budget."), ("interrupted", "Interrupted.")],
    )
    def test_status(self, run_folder: Path, make_audit: MakeAudit, status: str, words: str) -> None:
        _edit(run_folder, status=status)
        assert words in _page(run_folder, make_audit(), private=False).text

    def test_a_failed_claim_leads(self, run_folder: Path, make_audit: MakeAudit) -> None:
        page = _page(run_folder, make_audit(failed=True), private=False)
        assert "1 of 8 checked claims failed" in page.text
        assert "✕ fails" in page.text
        assert page.text.index("✕ fails") < page.text.index("✓ holds")
        assert "verdict tone-danger" in page.values("class")


def test_every_epsilon_is_the_audits_not_the_runs(run_folder: Path, make_audit: MakeAudit) -> None:
    lies = {"outsider": 0.1234, "participant": 0.1235, "server": 0.1236}
    _edit(run_folder, privacy={"epsilon": lies})
    text = _page(run_folder, make_audit()).text
    assert "0.123" not in text
    assert "0.124" not in text
    assert "ε 8.59" in text
    nothing = replace(make_audit(), curve=())
    text = _page(run_folder, nothing).text
    assert "0.12" not in text
    assert text.count("The audit could not derive it from this folder.") == 3


class TestHostileFolder:
    """Whatever is in the folder, the page is built from it safely, or says what is wrong."""

    def test_markup_stays_text(self, run_folder: Path, make_audit: MakeAudit) -> None:
        evil = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\u202egnp.exe\x1b[2J"
        _edit(
            run_folder,
            name=evil,
            protocol=evil,
            metrics={evil: 0.5},
            versions={evil: evil},
            model_sha256=evil,
            privacy={"mechanism": evil, "guarantee": evil, "unit": evil},
        )
        (run_folder / "config.toml").write_text(
            f"[task]\nname = {json.dumps(evil)}\n[cohort]\nsampling = {json.dumps(evil)}\n"
        )
        (run_folder / "metrics.jsonl").write_text(json.dumps({"round": 1, evil: 0.5}) + "\n")
        record = {"round": 1, "sampled": [1], "survivors": [1], "dropped": {evil: 1}}
        (run_folder / "private.jsonl").write_text(json.dumps(record) + "\n")
        claim = Claim(name=evil, claimed=evil, rederived=evil, by=evil, rests_on=evil, holds=False)
        audit = replace(make_audit(), claims=(claim,), notes=(evil,), ledger_head=evil, signer=evil)
        html = build(run_folder, audit, private=True).read_text(encoding="utf-8")
        page = Page(html)
        assert "alert(1)" in page.text
        assert not set(page.tags) & {"script", "img"}
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        assert html.count("</style>") == 1
        assert "\u202e" not in html
        assert "\x1b" not in html

    def test_links_pipes_and_folders_in_place_of_files_are_named_not_followed(
        self, run_folder: Path, make_audit: MakeAudit, tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_text('{"name": "topsecret"}')
        for name in ("summary.json", "config.toml", "metrics.jsonl", "private.jsonl"):
            (run_folder / name).unlink()
        (run_folder / "summary.json").symlink_to(secret)
        (run_folder / "config.toml").symlink_to("/dev/zero")
        os.mkfifo(run_folder / "metrics.jsonl")
        (run_folder / "private.jsonl").mkdir()
        text = _page(run_folder, make_audit()).text
        assert "topsecret" not in text
        assert "Not everything could be read." in text
        for name in ("summary.json", "config.toml", "metrics.jsonl", "private.jsonl"):
            assert f"{name} cannot be read" in text

    def test_a_link_in_place_of_the_page_is_replaced(
        self, run_folder: Path, make_audit: MakeAudit, tmp_path: Path
    ) -> None:
        precious = tmp_path / "precious"
        precious.write_text("mine")
        (run_folder / "report.html").symlink_to(precious)
        path = build(run_folder, make_audit(), private=False)
        assert precious.read_text() == "mine"
        assert not path.is_symlink()
        assert [each.name for each in run_folder.iterdir() if each.name.startswith(".")] == []

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"rounds": ' + b"9" * 5000 + b"}",
            b'{"rounds": {"a": []}}',
            b"[1, 2]",
            b" " * (1 << 20) + b"{}",
        ],
        ids=["empty", "not-utf8", "deep", "long-number", "wrong-type", "a-list", "too-large"],
    )
    def test_a_summary_that_is_none(
        self, run_folder: Path, make_audit: MakeAudit, content: bytes
    ) -> None:
        (run_folder / "summary.json").write_bytes(content)
        (run_folder / "metrics.jsonl").unlink()
        text = _page(run_folder, make_audit(), private=False).text
        assert re.search(r"summary\.json (cannot be read|is not in its documented shape)", text)
        assert "metrics.jsonl is missing" in text
        assert "ε 8.59" in text

    def test_a_bad_line_ends_its_file_and_is_named(
        self, run_folder: Path, make_audit: MakeAudit
    ) -> None:
        (run_folder / "metrics.jsonl").write_text(
            '{"round": 1, "accuracy": 0.5}\n{"round": 2, "accuracy": NaN, "loss": 1e999}\n'
            '{"round": 3, "accuracy": true}\n{"round": -1}\n{"round": 5, "accuracy": 0.9}\n'
        )
        text = _page(run_folder, make_audit(), private=False).text
        assert "metrics.jsonl cannot be read: line 4 is not the record of a round" in text
        assert "test data 50.0 %" in text

    def test_a_line_without_end_is_not_read_into_memory(
        self, run_folder: Path, make_audit: MakeAudit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fedsys.report import contents

        monkeypatch.setattr(contents, "MAX_LINE_BYTES", 1000)
        with (run_folder / "metrics.jsonl").open("wb") as file:
            file.truncate(1 << 34)  # sparse
        with reads_at_most(64):
            text = _page(run_folder, make_audit(), private=False).text
        assert "line 1 or the file as a whole is too long" in text

    def test_an_empty_folder_still_gets_a_page(self, tmp_path: Path, make_audit: MakeAudit) -> None:
        nothing = AuditResult(run="x", claims=())
        page = _page(tmp_path, nothing)
        assert "Nothing could be checked" in page.text
        assert page.unbalanced == []


def test_a_long_run_gives_a_page_of_bounded_size(run_folder: Path, make_audit: MakeAudit) -> None:
    rounds = 20_000
    with (run_folder / "metrics.jsonl").open("w") as file:
        for t in range(1, rounds + 1):
            file.write(json.dumps({"round": t, "accuracy": t / rounds, "loss": 1 / t}) + "\n")
    with (run_folder / "private.jsonl").open("w") as file:
        for t in range(1, rounds + 1):
            record = {"round": t, "sampled": [1, 2], "survivors": [1], "dropped": {"upload": 1}}
            file.write(json.dumps(record) + "\n")
    spent = Epsilons(outsider=1.0, participant=2.0, server=3.0)
    audit = replace(make_audit(), curve=_constant(spent, rounds))
    path = build(run_folder, audit, private=True)
    assert path.stat().st_size < 400_000
    assert "test data 100.0 %" in Page(path.read_text(encoding="utf-8")).text


def test_no_folder_and_a_page_that_cannot_be_written_are_one_line(
    tmp_path: Path, run_folder: Path, make_audit: MakeAudit
) -> None:
    with pytest.raises(RunFolderError, match="no such run folder"):
        build(tmp_path / "nowhere", make_audit(), private=True)
    (run_folder / "report.html").mkdir()
    with pytest.raises(RunFolderError, match="report cannot be written") as caught:
        build(run_folder, make_audit(), private=False)
    assert "\n" not in str(caught.value)
    assert [each.name for each in run_folder.iterdir() if each.name.startswith(".")] == []


def test_what_is_compared_is_what_the_header_declares(
    run_folder: Path, make_audit: MakeAudit
) -> None:
    """Whatever the configuration's sampling may suggest."""
    neighbours = {"outsider": "replace one client", "participant": "<b>", "server": "its update"}
    audit = replace(make_audit(), neighbours=neighbours)
    page = _page(run_folder, audit).text
    assert "Outsider: replace one client. Participant: <b>. Server: its update." in page
    assert "add or remove one client" not in page
    silent = _page(run_folder, replace(make_audit(), neighbours={})).text
    assert silent.count("not declared by the ledger's header") == 7


def test_withheld_claims_leave_no_figure(run_folder: Path, make_audit: MakeAudit) -> None:
    reason = "the data is prepared from all clients' rows together"
    page = _page(run_folder, replace(make_audit(), withheld=reason))
    assert "No privacy claim holds. The data is prepared from all" in page.text
    assert page.text.count(f"Withheld: {reason}.") == 3
    assert "Formal statement No statement can be made" in page.text
    for figure in ("8.59", "12.5", "37.7"):
        assert figure not in page.text.partition("Audit Claims of the run")[0]
