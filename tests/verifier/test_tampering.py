"""What the second verifier must refuse, by somebody without the key and by one with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsys.privacy import Signer
from tests.fedsys.audit.forge import close_again, edit_json, entries, sign_again
from tests.verifier.chain import Refused, canonical
from tests.verifier.delta import parts
from tests.verifier.plan import Plan
from tests.verifier.runs import Make, copy
from tests.verifier.verify import verify

Body = dict[str, Any]


@pytest.fixture
def signer(home: Path) -> Signer:
    return Signer.load_or_create(home)


def _ledger(run: Path) -> list[Body]:
    return [json.loads(line) for line in (run / "ledger.jsonl").read_bytes().splitlines()]


def _write(run: Path, lines: list[Body]) -> None:
    (run / "ledger.jsonl").write_bytes(b"".join(canonical(line) + b"\n" for line in lines))


# -- without the key -------------------------------------------------------------------------------


def _cut(run: Path) -> None:
    _write(run, _ledger(run)[:-1])


def _drop(run: Path) -> None:
    lines = _ledger(run)
    _write(run, lines[:3] + lines[4:])


def _edit(run: Path) -> None:
    lines = _ledger(run)
    lines[1]["body"]["event"]["noise_multiplier"] = 7.0
    _write(run, lines)


def _space(run: Path) -> None:
    path = run / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"seq":1,', b'"seq": 1,', 1))


def _tear(run: Path) -> None:
    path = run / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-1])


def _other_file(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / name
        path.write_bytes(path.read_bytes() + b"\n")

    return change


def _understate(run: Path) -> None:
    edit_json(run, lambda body: body["privacy"]["epsilon"].update(server=0.5))


def _private(change: Callable[[Body], object]) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        path = run / "private.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        change(lines[0])
        path.write_bytes(b"".join(canonical(line) + b"\n" for line in lines))

    return edit


def _private_space(run: Path) -> None:
    path = run / "private.jsonl"
    path.write_text("".join(json.dumps(json.loads(x)) + "\n" for x in path.read_text().split()))


def _private_cut(run: Path) -> None:
    path = run / "private.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _proof(run: Path) -> None:
    path = run / "ledger.tlog-proof"
    path.write_text(path.read_text().replace("index 9", "index 8"))


WITHOUT_A_KEY: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut off": (_cut, "unfinished"),
    "a line dropped": (_drop, "out of place"),
    "a line edited": (_edit, "another hash"),
    "a space": (_space, "not canonical"),
    "torn": (_tear, "torn"),
    "another model": (_other_file("model.pt"), "model"),
    "other metrics": (_other_file("metrics.jsonl"), "metrics"),
    "another configuration": (_other_file("config.toml"), "config"),
    "an epsilon understated": (_understate, "server: 0.5"),
    "a survivor more": (_private(lambda line: line["survivors"].pop()), "committed to"),
    "another salt": (_private(lambda line: line.update(salt="00" * 32)), "committed to"),
    "spaces among private lines": (_private_space, "canonical|no JSON"),
    "a private line dropped": (_private_cut, "lacks"),
    "another proof": (_proof, "another line"),
}


@pytest.mark.parametrize("name", WITHOUT_A_KEY)
def test_tampering_without_the_key(name: str, run_of: Make, tmp_path: Path) -> None:
    run = copy(run_of("distributed-gaussian"), tmp_path / "run")
    verify(run)
    change, message = WITHOUT_A_KEY[name]
    change(run)
    with pytest.raises(Refused, match=message):
        verify(run)


# -- with it: every line is signed again, and the closing line binds what is there -----------------


def _of_all_events(change: Callable[[Body], object]) -> Callable[[list[tuple[str, Body]]], None]:
    def edit(lines: list[tuple[str, Body]]) -> None:
        for kind, body in lines:
            if kind == "reserve":
                change(body["event"])

    return edit


def _of_header(change: Callable[[Body], object]) -> Callable[[list[tuple[str, Body]]], None]:
    def edit(lines: list[tuple[str, Body]]) -> None:
        change(lines[0][1])

    return edit


def _number_again(lines: list[tuple[str, Body]]) -> None:
    for _, body in lines[3:-1]:
        body["round"] += 1


def _twice(lines: list[tuple[str, Body]]) -> None:
    lines[3:3] = lines[1:3]


def _loosen(header: Body) -> None:
    header["delta_parts"]["aborts"] = 0.0
    header["delta_parts"]["outsider"] = header["delta"]


def _more_delta(header: Body) -> None:
    header["plan"]["delta"] = header["delta"] = 1e-4


def _uncorrupted(header: Body) -> None:
    header.update(protocol="secure")
    header["trust"].update(corrupt=None)


def _once(header: Body) -> None:
    header["plan"]["noise"] = "once"
    header["delta_parts"] = parts(Plan(header)).stated


def _released(header: Body) -> None:
    header.update(protocol="ideal", release=True)


def _cheaper(lines: list[tuple[str, Body]]) -> None:
    lines[0][1]["plan"]["noise_multiplier"] = 1.4
    _of_all_events(lambda event: event.update(noise_multiplier=1.4))(lines)


WITH_THE_KEY: dict[str, tuple[str, Callable[[list[tuple[str, Body]]], None], str]] = {
    "more noise in events alone": (
        "distributed-gaussian",
        _of_all_events(lambda event: event.update(noise_multiplier=1.4)),
        "noise_multiplier",
    ),
    "more noise everywhere": ("distributed-gaussian", _cheaper, "is"),
    "another scale": (
        "distributed-gaussian",
        _of_all_events(lambda event: event.update(scale=event["scale"] * 1.001)),
        "scale",
    ),
    "an unknown key in events": (
        "distributed-gaussian",
        _of_all_events(lambda event: event.update(more=1)),
        "other keys",
    ),
    "a round dropped": (
        "distributed-gaussian",
        lambda lines: lines.__delitem__(slice(1, 3)),
        "number",
    ),
    "a gap": ("distributed-gaussian", _number_again, "another number"),
    "a round twice": ("distributed-gaussian", _twice, "another number"),
    "a commit dropped": (
        "distributed-gaussian",
        lambda lines: lines.__delitem__(2),
        "participations|another key",  # the latter if the two rounds have no client in common
    ),
    "delta's parts": ("distributed-gaussian", _of_header(_loosen), "delta_parts"),
    "another delta": ("distributed-gaussian", _of_header(_more_delta), "delta_parts"),
    "other neighbours": (
        "fixed",
        _of_header(lambda h: h["neighbours"].update(outsider="add or remove one client")),
        "neighbours",
    ),
    "ideal, as secure": ("fixed", _of_header(lambda h: h.update(protocol="secure")), "a quorum"),
    "ideal, as secure without colluders": ("fixed", _of_header(_uncorrupted), "a quorum"),
    "secure, as ideal": ("secure", _of_header(lambda h: h.update(protocol="ideal")), "a quorum"),
    "other colluders": (
        "secure",
        _of_header(lambda h: h["trust"].update(corrupt=0.2)),
        "other colluders",
    ),
    "float, as ideal": ("float", _of_header(_released), "encoding"),
    "ideal, as float": (
        "fixed",
        _of_header(lambda h: h.update(protocol="float", release=False)),
        "encoding",
    ),
    "drawn once, under secure": (
        "secure",
        _of_header(_once),
        "drawn once",
    ),
    "an unknown protocol": ("fixed", _of_header(lambda h: h.update(protocol="x")), "unknown"),
    "another accountant": (
        "fixed",
        _of_header(lambda h: h["accountants"].update(reported="pld")),
        "accountant",
    ),
    "other coefficients": (
        "banded-mf",
        _of_header(lambda h: h["factorization"]["numerators"].__setitem__(1, 0)),
        "delta_parts|total_variance|strategy",
    ),
    "more bands": (
        "banded-mf",
        _of_header(lambda h: h["factorization"].update(bands=3, numerators=[1 << 20, 9, 9])),
        "bands",
    ),
    "no factorization": ("banded-mf", _of_header(lambda h: h.pop("factorization")), "no factor"),
    "other tuning runs": (
        "tuned",
        _of_header(lambda h: h["tuning"].update(epsilon=0.1)),
        "another",
    ),
    "no tuning runs": ("tuned", _of_header(lambda h: h.update(tuning={"runs": 0})), "a total"),
    "claims withheld": (
        "fixed",
        _of_header(lambda h: h.update(preprocessing="data-dependent")),
        "withheld",
    ),
    "more lines than there are": (
        "fixed",
        lambda lines: lines[-1][1].update(lines=99),
        "counts other lines",
    ),
}


@pytest.mark.parametrize("name", WITH_THE_KEY)
def test_tampering_with_the_key(name: str, run_of: Make, signer: Signer, tmp_path: Path) -> None:
    kind, change, message = WITH_THE_KEY[name]
    run = copy(run_of(kind), tmp_path / "run")
    lines = entries(run)
    change(lines)
    sign_again(run, lines, signer)
    close_again(run, signer)
    with pytest.raises(Refused, match=message):
        verify(run)


def test_signing_again_changes_nothing_that_is_not_changed(
    run_of: Make, signer: Signer, tmp_path: Path
) -> None:
    run = copy(run_of("distributed-gaussian"), tmp_path / "run")
    before = verify(run).epsilon
    sign_again(run, entries(run), signer)
    close_again(run, signer)
    assert verify(run).epsilon == before


def test_another_key_cannot_sign_the_same_lines(run_of: Make, tmp_path: Path) -> None:
    run = copy(run_of("none"), tmp_path / "run")
    lines = _ledger(run)
    lines[2]["signature"] = lines[3]["signature"]
    _write(run, lines)
    with pytest.raises(Refused, match="signature"):
        verify(run)
