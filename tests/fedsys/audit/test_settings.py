"""What the key holder states in its header and commits, and nothing supports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsys.privacy import Signer
from tests.fedsys.audit.conftest import failed
from tests.fedsys.audit.forge import close_again, entries, sign_again

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
