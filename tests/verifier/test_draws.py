"""Draws that are not those committed to are refused by the second verifier too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsys.privacy import AesCtrStream, Signer
from fedsys.privacy.ledger import commitment
from fedsys.privacy.ledger.private import told
from fedsys.privacy.noise import noise_sampler
from tests.fedsys.audit.forge import close_again, edit_private, entries, sign_again
from tests.verifier.chain import Refused
from tests.verifier.draws import Keystream
from tests.verifier.noise import Rounded, many, shifted
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
            name: commitment(name, value, salt) for name, value in told(line).items()
        }

    edit_private(run, 3, change)
    sign_again(run, lines, signer)
    close_again(run, signer)
    with pytest.raises(Refused, match=CHEATS[cheat]):
        verify(run)
    assert json.loads((run / "summary.json").read_text())["rounds"] == 4


@pytest.mark.parametrize(
    ("sigma", "length", "count"),
    [
        (0.3, 5000, 3),
        (88.2, 1000, 300),  # in groups of 131
        (300.5, (1 << 17) + 9, 2),  # in two blocks
        (5000.0, 70_000, 3),  # on two grids
        (2.0**20 + 0.25, 20_000, 2),  # without a table
        (30.0, 1 << 15, 109),  # in lumps
        (180_000.0, 1 << 16, 34),  # of which the largest are without a table
    ],
)
def test_noise_is_drawn_in_the_order_that_is_written_down(
    sigma: float, length: int, count: int
) -> None:
    total, stream, source = (
        np.zeros(length, np.int64),
        AesCtrStream(bytes(32)),
        Keystream(bytes(32)),
    )
    noise_sampler(sigma).add_many(total, count, stream)
    np.testing.assert_array_equal(total, many(source.read, length, sigma, count))
    assert stream(8) == source.read(8)


@pytest.mark.parametrize("sigma", [700.0, 2.0**34])
def test_shifted_noise_is_too(sigma: float) -> None:
    """With the larger deviation floating point leaves one draw in a thousand open."""
    shift = (np.arange(40_000) % 1024).astype(np.float64) * 2.0**-10
    stream, source = AesCtrStream(bytes(32)), Keystream(bytes(32))
    drawn = noise_sampler(sigma).draw(shift.shape, stream, shift)
    np.testing.assert_array_equal(drawn, shifted(source.read, sigma, shift))
    assert stream(8) == source.read(8)


@pytest.mark.parametrize("word", [0, 1, 1 << 20, (1 << 63) + 5, (1 << 64) - 1, None])
@pytest.mark.parametrize("shift", [None, 0.25])
def test_words_that_do_not_decide_are_settled_alike(word: int | None, shift: float | None) -> None:
    sigma, further, offset = 12.5, bytes(range(120)), shift or 0.0
    asked: list[int] = []

    class Fixed(AesCtrStream):
        def fill(self, out: Any) -> None:
            out[:] = wanted >> 48 if out.dtype == np.dtype("<u2") else rest

        def __call__(self, count: int) -> bytes:
            asked.append(count)
            return further

    law = Rounded(sigma)
    wanted = law.below(3, offset, 64) if word is None else word
    rest = wanted if shift is not None else (wanted & ((1 << 48) - 1)) << 16
    moved = None if shift is None else np.array([shift])
    drawn = noise_sampler(sigma).draw((1,), Fixed(bytes(32)), moved)[0]

    def read(count: int) -> bytes:
        asked.append(-count)
        return further

    assert law.exact(wanted, int(drawn), offset, read) == drawn
    assert sum(asked) == 0
    around = [law.below(k, offset, 64) for k in range(int(drawn) - 2, int(drawn) + 2)]
    assert bool(asked) == (wanted in around)
