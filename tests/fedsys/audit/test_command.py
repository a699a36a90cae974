"""``fedsys audit`` as people call it: words, files and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedsys.cli.app import app
from fedsys.errors import FedsysError
from fedsys.privacy import Signer
from simulations import harness
from tests.fedsys.audit.conftest import job
from tests.fedsys.audit.forge import edit_json


def call(*arguments: str, command: str = "audit") -> tuple[int, str]:
    """Exit code and output; known errors end as they do in ``fedsys.cli.main``."""
    result = CliRunner().invoke(app, [command, *arguments])
    if isinstance(result.exception, FedsysError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_a_sound_run_exits_0_and_leaves_audit_json(run: Path, signer: Signer) -> None:
    code, output = call(str(run))
    assert code == 0
    assert "re-signing is undetectable" in output
    assert json.loads((run / "audit.json").read_text())["passed"] is True
    code, output = call(str(run), "--key", signer.public_hex)
    assert code == 0
    assert "re-signing is undetectable" not in output


def test_json_is_what_audit_json_holds(run: Path) -> None:
    code, output = call(str(run), "--json")
    assert code == 0
    assert json.loads(output) == json.loads((run / "audit.json").read_text())


def test_an_inconsistent_run_exits_1_and_says_where(run: Path) -> None:
    edit_json(run, lambda body: body.update(rounds=3))
    code, output = call(str(run))
    assert code == 1
    assert output.startswith("FAILS  Rounds: claimed 3, derived 4")
    (run / "ledger.jsonl").write_text("no json\n")
    assert call(str(run))[0] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "no such run folder"),
        (("{run}", "{run}"), "--compose"),
        (("{run}", "--compose"), "at least two"),
        (("{run}", "--compose", "--empirical"), "leave out"),
        (("{run}", "--empirical"), "fedsys simulate --canaries"),
        (("{run}", "--key", "00"), "not a public key"),
        (("{run}", "--registry", "{run}/entry.txt"), "ends in .json, .yaml, .yml"),
        (("{run}", "--registry", "{run}/summary.json"), "already exists; give a new file"),
        (("{run}", "--registry", "{run}/no/entry.json"), "there is no folder"),
        (("{run}", "{run}", "--compose", "--registry", "e.json"), "leave out --compose"),
    ],
)
def test_what_cannot_be_audited_exits_2(run: Path, arguments: tuple[str, ...], words: str) -> None:
    code, output = call(*(argument.format(run=run) for argument in arguments))
    assert code == 2
    assert words in output


def test_a_registry_s_entry_is_written_of_a_run_whose_claims_hold(run: Path) -> None:
    file = run.parent / "entry.yaml"
    code, output = call(str(run), "--registry", str(file))
    assert code == 0
    assert "12 values begin with 'OPERATOR:': state them yourself" in output
    made = yaml.safe_load(file.read_text())
    spent = json.loads((run / "audit.json").read_text())["epsilon"]["outsider"]
    loss = made["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"] == {"epsilon": spent, "delta": 1e-5}
    assert "1437 clients of a simulation" in made["deployment"]["product"]["description"]
    edit_json(run, lambda body: body.update(rounds=3))
    code, output = call(str(run), "--registry", str(run.parent / "other.json"))
    assert (code, "not written, because a claim fails" in output) == (1, True)
    assert not (run.parent / "other.json").exists()


def test_a_folder_that_cannot_be_written_to_is_a_note(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fedsys.audit.write", refuse)
    code, output = call(str(run))
    assert code == 0
    assert "audit.json was not written: permission denied" in output
    assert not (run / "audit.json").exists()


def test_the_head_is_printed_for_anchoring(run: Path, signer: Signer, tmp_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    code, text = call("head", str(run), "--key", signer.public_hex, command="ledger")
    assert code == 0
    assert text.split()[0] == summary["ledger_head"]
    code, text = call("head", str(run), "--key", "ab" * 32, command="ledger")
    assert code != 0
    assert "is signed by" in text or "not a public key" in text
    code, text = call("head", str(tmp_path), command="ledger")
    assert code != 0
    assert "holds no ledger.jsonl" in text


def test_compose_prints_totals(run: Path, tmp_path: Path) -> None:
    second = harness.run(job(), out=tmp_path / "second").folder
    code, output = call(str(run), str(second), "--compose", "--json")
    assert code == 0
    body = json.loads(output)
    assert body["run"] == "run + second"
    assert body["epsilon"]["outsider"] > 0
    assert not (run / "audit.json").exists()
