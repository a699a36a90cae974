"""What the key holder states in its header and commits, and nothing supports."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsys.privacy import PrivacyPlan, Signer, ledger_header
from simulations import harness
from tests.fedsys.audit.conftest import failed, job
from tests.fedsys.audit.forge import close_again, edit_json, entries, replace_text, sign_again

HEADER = "Header: neighbours, accountants, what is not covered"
HASHES = "Hashes of what was released"

Body = dict[str, Any]


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("header", lambda body: body.update(release=False), {HEADER}),
        ("header", lambda body: body.pop("release"), {HEADER}),
        ("header", lambda body: body["trust"].update(dropout=0.0), {HEADER}),
        ("header", lambda body: body["trust"].pop("dropout"), {HEADER}),
        ("header", lambda body: body["population"].update(clients=10**6), {HEADER}),
        ("header", lambda body: body.pop("population"), {HEADER}),
        ("header", lambda body: body["plan"].update(adaptive_clip=True), {"Other settings"}),
        ("header", lambda body: body["plan"].update(example_rate=0.5), {"Other settings"}),
        ("header", lambda body: body["plan"].update(steps=7), {"Other settings"}),
        ("header", lambda body: body.pop("initial_weights_sha256"), {HASHES}),
        ("header", lambda body: body.update(initial_weights_sha256="none"), {HASHES}),
        ("commit", lambda body: body.pop("weights_sha256"), {HASHES}),
        ("commit", lambda body: body.update(weights_sha256="AB" * 32), {HASHES}),
        ("commit", lambda body: body.update(weights_sha256=7), {HASHES}),
    ],
)
def test_what_the_key_holder_cannot_state(
    run: Path, signer: Signer, kind: str, change: Callable[[Body], object], named: set[str]
) -> None:
    lines = entries(run)
    change(next(body for name, body in lines if name == kind))
    sign_again(run, lines, signer)
    close_again(run, signer)
    assert failed(run) == named


@pytest.mark.parametrize("event", [None, {}, [], {"mechanism": []}, {"mechanism": "none"}])
def test_a_round_that_reserves_no_event_ends_no_audit(
    run: Path, signer: Signer, event: object
) -> None:
    lines = entries(run)
    lines[1][1].update(event=event)
    if event is None:
        del lines[1][1]["event"]
    sign_again(run, lines, signer)
    assert "Reserved events" in failed(run)


@pytest.mark.parametrize(
    ("setting", "label"),
    [
        ("protocol=ideal", "secure"),
        ("noise=once", "secure"),
        ("protocol=float", "secure"),
        ("protocol=float", "ideal"),
        ("protocol=ideal", "float"),
        ("protocol=secure", "ideal"),
        ("protocol=ideal", "none at all"),
    ],
)
def test_a_run_does_not_pass_for_one_of_another_protocol(
    tmp_path: Path, signer: Signer, setting: str, label: str
) -> None:
    """Header, configuration and summary are changed together, and bound again."""
    config = job(f"aggregation.{setting}", "cohort.expected=150", "rounds.count=1")
    run, was = tmp_path / "run", config.aggregation.protocol
    harness.run(config, out=run)
    replace_text(run / "config.toml", f'protocol = "{was}"', f'protocol = "{label}"')
    edit_json(run, lambda body: body.update(protocol=label))
    lines = entries(run)
    digest = hashlib.sha256((run / "config.toml").read_bytes()).hexdigest()
    lines[0][1].update(protocol=label, release=label != "float", config_sha256=digest)
    if setting == "noise=once":  # with all else that secure aggregation has
        header = lines[0][1]
        header["plan"]["corrupt"] = header["trust"]["corrupt"]
        plan = PrivacyPlan.from_json(header["plan"])
        header["delta_parts"] = ledger_header(plan)["delta_parts"]
    sign_again(run, lines, signer)
    close_again(run, signer)
    assert HEADER in failed(run)
