"""Draws that are not those committed to are refused by the second verifier too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsys.privacy import Signer
from fedsys.privacy.ledger import commitment
from tests.fedsys.audit.forge import close_again, edit_private, entries, sign_again
from tests.verifier.chain import Refused
from tests.verifier.runs import Make, copy
from tests.verifier.verify import verify

Body = dict[str, Any]


def other_noise(commit: Body, reserve: Body, line: Body) -> None:
    commit["aggregate_sketch"] = "00" * 16


def other_seed(commit: Body, reserve: Body, line: Body) -> None:
    line["opening"]["seed"] = "ab" * 32


def other_cohort(commit: Body, reserve: Body, line: Body) -> None:
    """One more, who was not drawn, and came to nothing."""
    stranger = next(client for client in range(1000) if client not in line["sampled"])
    line["sampled"] = sorted([*line["sampled"], stranger])


def fresh_key(commit: Body, reserve: Body, line: Body) -> None:
    line["opening"]["cohort_key"] = "ab" * 32


def no_seed(commit: Body, reserve: Body, line: Body) -> None:
    del reserve["seed_sha256"]


CHEATS: dict[Callable[[Body, Body, Body], None], str] = {
    other_noise: "other noise",
    other_seed: "another seed",
    other_cohort: "a biased cohort",
    fresh_key: "another key",
    no_seed: "no seed",
}


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda each: each.__name__)
def test_other_draws_are_refused(
    cheat: Callable[[Body, Body, Body], None], run_of: Make, home: Path, tmp_path: Path
) -> None:
    """The coordinator changes its third round, and signs and closes everything again."""
    run, signer = (
        copy(run_of("distributed-gaussian"), tmp_path / "run"),
        Signer.load_or_create(home),
    )
    lines = entries(run)
    reserve, commit = (body for _, body in lines if body.get("round") == 3)

    def change(line: Body) -> None:
        cheat(commit, reserve, line)
        salt = bytes.fromhex(line["salt"])
        commit["commitments"] = {
            name: commitment(name, line[name], salt) for name in commit["commitments"]
        }

    edit_private(run, 3, change)
    sign_again(run, lines, signer)
    close_again(run, signer)
    with pytest.raises(Refused, match=CHEATS[cheat]):
        verify(run)
    assert json.loads((run / "summary.json").read_text())["rounds"] == 4
