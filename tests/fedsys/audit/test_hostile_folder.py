"""A folder made to harm anyone who audits it does not."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import socket
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsys import report
from fedsys.audit import audit_run, to_json
from fedsys.audit.wording import plain
from fedsys.errors import AuditInputError, FedsysError, MechanismError
from fedsys.privacy import PrivacyPlan, Signer
from tests.fedsys.audit.conftest import failed
from tests.fedsys.audit.forge import (
    close_again,
    edit_json,
    entries,
    replace_text,
    sign_again,
    sparse,
)
from tests.reading import reads_at_most

TEN_GIGABYTES = 10 << 30
FILES = ["ledger.jsonl", "private.jsonl", "summary.json", "config.toml", "metrics.jsonl"]
SCRIPT = "<script>alert(1)</script>\x1b[31m\u202e\x00\x07\u2028"


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.write_text, (self.path, "caught")


@pytest.mark.parametrize("name", FILES)
def test_a_ten_gigabyte_line_is_refused_unread(run: Path, name: str) -> None:
    sparse(run / name, TEN_GIGABYTES)
    with reads_at_most(256):
        assert failed(run)


def test_a_ten_gigabyte_model_is_refused_unread(run: Path) -> None:
    sparse(run / "model.pt", TEN_GIGABYTES)
    with reads_at_most(256):
        assert failed(run) == {"Model file"}


def state_as(run: Path, signer: Signer, content: bytes) -> set[str]:
    """What an audit refuses where the coordinator itself signed these bytes as its model."""
    (run / "model.pt").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit_json(run, lambda body: body.update(model_sha256=digest))
    close_again(run, signer)
    return failed(run)


def bomb(content: bytes, *, compressed: bool) -> bytes:
    """The same archive with a gigabyte of zeros in a record, or compressed as it is."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.infolist():
            zeros = compressed and entry.filename.endswith("data/0")
            data = bytes(64 << 20) if zeros else old.read(entry)
            new.writestr(entry.filename, data, zipfile.ZIP_DEFLATED if zeros else None)
    return made.getvalue()


def test_a_model_made_to_be_opened_is_not(run: Path, signer: Signer, tmp_path: Path) -> None:
    """Bombs, traps and impostors of tensors, each signed as the run's own model."""
    whole = (run / "model.pt").read_bytes()
    assert state_as(run, signer, whole) == set()
    assert state_as(run, signer, bomb(whole, compressed=False)) == set()
    trap = tmp_path / "trap"
    unsafe = io.BytesIO()
    torch.save({"weight": Trap(trap)}, unsafe)
    wide = io.BytesIO()
    torch.save({"weight": torch.zeros(1).expand(1 << 40)}, wide)
    spoiled: dict[str, bytes] = {
        "bomb": bomb(whole, compressed=True),
        "trap": unsafe.getvalue(),
        "wide": wide.getvalue(),
        "cut": whole[: len(whole) // 2],
        "list": _saved([torch.zeros(3)]),
        "other": _saved({name: tensor + 1 for name, tensor in _state(whole).items()}),
        "sparse": _saved({"weight": torch.zeros(5, 5).to_sparse()}),
        "large": _saved({"weight": torch.zeros(10_000_000)}),
        "nothing": b"",
    }
    for name, content in spoiled.items():
        assert state_as(run, signer, content) == {"Model weights"}, name
    assert not trap.exists()


def _state(content: bytes) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(io.BytesIO(content), weights_only=True)
    return state


def _saved(value: object) -> bytes:
    made = io.BytesIO()
    torch.save(value, made)
    return made.getvalue()


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("l")])
def test_a_long_line_within_the_file_s_limit_is_refused(run: Path, name: str) -> None:
    with (run / name).open("ab") as file:
        file.write(b"[" * (3 << 20))
    assert failed(run)


@pytest.mark.parametrize("name", [*FILES, "model.pt"])
def test_links_are_not_followed(run: Path, tmp_path: Path, name: str) -> None:
    """Even to the very file that belongs there."""
    target = tmp_path / "elsewhere"
    (run / name).rename(target)
    (run / name).symlink_to(target)
    named = failed(run)
    assert named
    said = to_json(audit_run(run))
    assert "symbolic link" in said or name == "ledger.jsonl"


@pytest.mark.parametrize("name", [*FILES, "model.pt"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_neither_waited_for_nor_read(run: Path, name: str, kind: str) -> None:
    (run / name).unlink()
    if kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "folder":
        (run / name).mkdir()
    else:
        (run / name).symlink_to("/dev/zero")
    assert failed(run)


def test_a_pickle_is_never_opened(run: Path, signer: Signer, tmp_path: Path) -> None:
    """Not even one whose hash the ledger and the summary state."""
    trap = tmp_path / "trap"
    content = pickle.dumps(Trap(trap))
    (run / "model.pt").write_bytes(content)
    assert failed(run) == {"Model file", "Model weights"}
    digest = hashlib.sha256(content).hexdigest()
    edit_json(run, lambda body: body.update(model_sha256=digest))
    close_again(run, signer)
    assert failed(run) == {"Model weights"}
    assert not trap.exists()
    pickle.loads(content)  # noqa: S301  the trap is one
    assert trap.exists()


def test_no_name_in_the_folder_is_imported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "booby.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    replace_text(run / "config.toml", 'name = "digits"', 'name = "booby:Task"')
    replace_text(run / "config.toml", 'strategy = "fedavgm"', 'strategy = "booby:Strategy"')
    assert failed(run) == {"Configuration file"}
    assert "booby" not in sys.modules


def test_words_from_the_folder_cannot_steer_a_terminal(run: Path, signer: Signer) -> None:
    lines = entries(run)
    lines[0][1].update(name=SCRIPT, randomness=SCRIPT, protocol=SCRIPT, config_sha256=SCRIPT)
    lines[0][1]["not_covered"] = [SCRIPT]
    lines[-1][1]["reason"] = SCRIPT
    head = sign_again(run, lines, signer)

    def spoil(body: dict[str, Any]) -> None:
        body.update(ledger_head=head, name=SCRIPT, status=SCRIPT, signer=SCRIPT)
        body["privacy"].update(mechanism=SCRIPT, clip=SCRIPT, unit=SCRIPT)
        body["privacy"]["epsilon"] = {SCRIPT: 1, "server": SCRIPT}

    edit_json(run, spoil)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"round": 5, SCRIPT: SCRIPT}) + "\n")
    result = audit_run(run)
    words = [result.run, *result.notes]
    for claim in result.claims:
        words += [claim.name, claim.claimed, claim.rederived, claim.by, claim.rests_on]
    assert any("<script>" in word for word in words)
    for word in words:
        assert word.isprintable(), word
        assert len(word) <= 400
    body = json.loads(to_json(result))
    assert all(text.isprintable() for text in body["notes"])


def test_printable_words() -> None:
    assert plain(SCRIPT) == "<script>alert(1)</script>�[31m" + 4 * "�"
    assert len(plain("x" * 10_000)) == 301
    assert plain("naïve 50 % ≤ ε") == "naïve 50 % ≤ ε"


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"version": 1, "rounds": ' + b"9" * 5000 + b"}",
        b'{"version": 1, "privacy": {"epsilon": {"outsider": 1e400}}}',
        b'{"version": 1, "privacy": {"epsilon": {"outsider": -1e400, "server": NaN}}}',
        b'{"version": 1, "rounds": ' + b"9" * 4000 + b', "metrics": ' + b"9" * 4000 + b"}",
        b"\xff\xfe{}",
        b"null",
        b"",
    ],
    ids=["deep", "digits", "huge", "nan", "numbers", "utf16", "null", "empty"],
)
def test_poisoned_summaries_are_refused(run: Path, content: bytes) -> None:
    (run / "summary.json").write_bytes(content)
    assert failed(run)


@pytest.mark.parametrize(
    "content",
    [
        b"x = " + b"[" * 50_000,
        b"x = " + b"{a=" * 50_000,
        b"\xff",
        b"a = 1\na = 2",
        b"a." * 120_000 + b"a = 1",
        b"[" + b"a." * 120_000 + b"a]",
        b"x = " + b"9" * 250_000,
        b"x = 1\n" + b"# comment\n" * 40_000,
        b"privacy = 3\ncohort = [1]\n",
        b"x = 1e400\nprivacy.clip = inf\nprivacy.delta = nan\n",
    ],
    ids=[
        "arrays",
        "tables",
        "bytes",
        "twice",
        "dots",
        "deep",
        "digits",
        "long",
        "types",
        "numbers",
    ],
)
def test_poisoned_configurations_are_refused(run: Path, content: bytes) -> None:
    (run / "config.toml").write_bytes(content)
    assert "Configuration file" in failed(run)


MANY_TERMS = {"sampling": "fixed", "min_survivors": 1, "modulus_bits": 64, "dimension": 100}
"""Of a plan whose noise may be the sum of any number of terms up to its cap."""


@pytest.mark.parametrize(
    "change",
    [
        {"population": 10**9, "expected_cohort": 100.0},
        {"noise_multiplier": 1e-9},
        {"noise_multiplier": 1e300},
        {"rounds": 10**9},
        {"dimension": 1 << 36, "modulus_bits": 64},
        {"colluders": 10**9},
        {"max_participations": 10**18},
        {"mechanism": "central-gaussian", "noise_multiplier": 1e-3},
        {"mechanism": "banded-mf", "rounds": 10**9, "min_separation": 5},
        {"mechanism": "example-gaussian", "unit": "example", "steps": 10**9, "example_rate": 0.5},
        {"delta": 5e-324},
        {"clip": 5e-324},
        {"clip": 1e308},
        {"budget": 5e-324},
        {"population": 1 << 27},  # at so small a rate, a grid as fine as the loss has 10^7 bins
        {"population": 1 << 28},
        {"corrupt": 0.0, "dropout": 0.5, "population": 1 << 26, "min_survivors": 1},
        MANY_TERMS | {"cap": 10**12},
        MANY_TERMS | {"cap": 1 << 28, "population": 1 << 28},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_plans_made_to_be_dear_cost_nothing(
    run: Path, signer: Signer, change: dict[str, Any]
) -> None:
    """Numbers at which accountants would take hours, or all of the memory."""
    lines = entries(run)
    header = lines[0][1]
    header["plan"].update(change)
    header.update({k: change[k] for k in ("delta", "budget", "unit") if k in change})
    event = lines[1][1]["event"]
    with contextlib.suppress(
        MechanismError, ArithmeticError
    ):  # else a plan that cannot be, which has to be said
        event = PrivacyPlan.from_json(header["plan"]).event().to_json()
    for kind, body in lines:
        if kind == "reserve":
            body["event"] = event
    sign_again(run, lines, signer)
    assert failed(run)


@pytest.mark.parametrize(
    "steps",
    [[[1.0, 0.5, 0.0, 2.0**50]], [[0.5 + kind / 4096, 0.01, 0.0, 5.0] for kind in range(4096)]],
    ids=["many", "many kinds"],
)
def test_tuning_runs_made_to_be_dear_cost_nothing(
    run: Path, signer: Signer, steps: list[list[float]]
) -> None:
    """Hours, if a loss distribution were made of every step; they are not composed but added."""
    lines = entries(run)
    part = {"delta": 1e-5, "overhead": 1e-6, "aside": 0.0, "log_distance": -1e308, "steps": steps}
    stated = {"runs": 3, "epsilon": 1.0, "delta": 1e-5, "heads": [], "part": part}
    lines[0][1]["tuning"] = stated
    sign_again(run, lines, signer)
    said = {claim.name: claim for claim in audit_run(run).claims}
    assert said["Tuning runs and the total with them"].holds is False


def _put(name: str, content: bytes) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).write_bytes(content)

    return change


def _add(name: str, content: bytes) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        with (run / name).open("ab") as file:
            file.write(content)

    return change


def _sockets(run: Path) -> None:
    """Short names from within: a socket's path has a hundred bytes at most."""
    with contextlib.chdir(run):
        for name in (*FILES[1:], "model.pt", "report.html", "countersignatures.jsonl"):
            Path(name).unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(name)


def _loops(run: Path) -> None:
    for name in (*FILES[1:], "model.pt", "report.html", "countersignatures.jsonl"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(name)


def _sparse(run: Path) -> None:
    for name in (*FILES, "model.pt", "report.html", "countersignatures.jsonl"):
        sparse(run / name, TEN_GIGABYTES)


ATTACKS: dict[str, Callable[[Path], None]] = {
    "sockets": _sockets,
    "loops": _loops,
    "sparse files": _sparse,
    "a key twice": _put("summary.json", b'{"version": 1, "version": 1}'),
    "halves of characters": _put("summary.json", b'{"version":1,"name":"\\ud800\\udfff"}'),
    "a million views": _put(
        "summary.json",
        json.dumps(
            {"version": 1, "privacy": {"epsilon": dict.fromkeys(range(50_000), 1)}}
        ).encode(),
    ),
    "digits of a number": _put(
        "summary.json",
        b'{"version":1,"privacy":{"budget":%(n)s,"clip":%(n)s,"epsilon":{"outsider":%(n)s,'
        b'"participant":-%(n)s,"server":%(n)s}}}' % {b"n": b"9" * 4000},
    ),
    "digits of a float": _put(
        "summary.json", b'{"version":1,"privacy":{"delta":1.' + b"1" * 900_000 + b"}}"
    ),
    "names of metrics": _add(
        "metrics.jsonl",
        json.dumps({"round": 4, **dict.fromkeys(map(str, range(50_000)), 1)}).encode(),
    ),
    "infinite metrics": _add("metrics.jsonl", b'{"round":5,"loss":1e400,"accuracy":-1e400}\n'),
    "packed bomb": _add("private.jsonl", b'{"round":5,"sampled":"' + b"A" * (4 << 20) + b'"}\n'),
    "packed numbers": _add(
        "private.jsonl", b'{"round":5,"sampled":"' + b"/////38A" * (1 << 18) + b'"}\n'
    ),
    "deep cohort": _add("private.jsonl", b'{"round":5,"sampled":' + b"[" * (4 << 20) + b"}\n"),
    "blank lines": _add("private.jsonl", b"\n" * 100_000),
    "long number": _add("ledger.jsonl", b'{"body":{"round":' + b"9" * 900_000 + b"}}\n"),
    "no text": _add("ledger.jsonl", b"\xff" * 1000 + b"\n"),
    "page of beginnings": _put(
        "report.html", b'<p class="epsilon"><span class="symbol">' * 100_000
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_audit_and_page_survive_what_was_made_to_harm_them(run: Path, name: str) -> None:
    """Both end soon and say what is wrong; the page holds nothing of the attacker's making."""
    ATTACKS[name](run)
    result = audit_run(run, page=report.render)
    assert not result.passed
    assert all("\n" not in claim.rederived for claim in result.claims)
    with contextlib.suppress(FedsysError):
        page = report.build(run, result, private=True)
        assert page.stat().st_size < 8 << 20


@pytest.mark.parametrize("kind", ["pipe", "link to itself", "device", "file"])
def test_what_is_no_folder_is_not_audited(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "file":
        path.write_text("{}")
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(AuditInputError, match="no such run folder"):
        audit_run(path)


def test_markup_in_every_string_stays_text(run: Path, signer: Signer) -> None:
    """In all that the folder says, signed by the coordinator itself."""
    evil = "</style><script>alert(1)</script>"

    def spoiled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoiled(item) for key, item in value.items()}
        return evil if isinstance(value, str) else value

    lines = entries(run)
    header = lines[0][1]
    kept = {key: header[key] for key in ("plan", "format", "signer", "job", "unit", "neighbours")}
    lines[0] = ("header", spoiled(header) | kept)
    lines[-1] = (lines[-1][0], spoiled(lines[-1][1]))
    head = sign_again(run, lines, signer)
    edit_json(run, lambda body: body.update(spoiled(body)))
    edit_json(run, lambda body: body.update(ledger_head=head))
    (run / "config.toml").write_text(f'[job]\nname = "{evil}"\n[task]\n"{evil}" = "{evil}"\n')
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"round": 4, evil: 1.0}) + "\n")
    page = report.build(run, audit_run(run), private=True).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("</style>") == 1
    assert "&lt;script&gt;" in page
