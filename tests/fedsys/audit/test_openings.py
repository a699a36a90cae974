"""What a coordinator draws is drawn again from what it committed to, and anything else is named."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import server.coordinator
from fedsys.audit import openings
from fedsys.audit.cohorts import Cohorts
from fedsys.audit.countersigned import Countersigned, Said
from fedsys.audit.openings import opening_claims, reuse_claim
from fedsys.config import load
from fedsys.privacy import Ledger, Signer, plan_of, read_ledger
from fedsys.privacy.ledger import commitment
from fedsys.privacy.ledger.openings import NONCE_BYTES
from fedsys.privacy.ledger.private import told
from fedsys.records import Claim
from fedsys.run_folder import RunFolder
from server.coordinator import Coordinator
from server.job import Job, JobFacts
from server.job_opening import JobSpec, restore_job, start_job
from server.job_settings import plan_for
from tests.fedsys.audit.forge import edit_private, entries, sign_again

D, CLIENTS, ROUNDS = 30, 60, 6
FACTS = JobFacts(population_known="a test", roster="none", randomness="os.urandom")
COHORTS, NOISE = "Cohorts drawn as committed to", "Noise added as committed to"
SETTINGS = (
    f"population.clients={CLIENTS}",
    f"rounds.count={ROUNDS}",
    "cohort.expected=20",
    "aggregation.protocol=ideal",
)
KINDS: dict[str, tuple[str, ...]] = {
    "poisson": (),
    "fixed": ("cohort.sampling=fixed",),
    "apart": (
        "cohort.sampling=min-separation",
        "cohort.min_separation=2",
        "privacy.max_participations=3",
    ),
    "cyclic": ("privacy.mechanism=banded-mf", "cohort.min_separation=2"),
    "central": ("privacy.mechanism=central-gaussian",),
}


@pytest.fixture(autouse=True)
def _own_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(home))


def job_of(folder: Path, *settings: str, again: bool = False) -> Job:
    config = load("quickstart", [*SETTINGS, *settings])
    plan = plan_for(config, population=CLIENTS, layers=(D,))
    weights = np.zeros(D, dtype=np.float32)
    spec = JobSpec(config=config, plan=plan, weights=weights, facts=FACTS)
    if again:
        return restore_job(RunFolder.open(folder), spec)
    return start_job(RunFolder.create(folder), spec)


def nonce(client: int) -> bytes:
    return bytes([client + 1] * NONCE_BYTES)


def play(coordinator: Coordinator, *, nonces: bool = True) -> None:
    """A round in which everybody but one sends zeros."""
    open_ = coordinator.begin_round(os.urandom)
    survivors = open_.cohort[1:]
    total = np.zeros(coordinator.mechanism.length, dtype=np.uint32)
    sent = {client: nonce(client) for client in survivors} if nonces else {}
    coordinator.finish_round(total, survivors, nonces=sent, diagnostics={})


def claims(folder: Path, said: Countersigned | None = None) -> dict[str, Claim]:
    view = read_ledger(folder / "ledger.jsonl")
    cohorts = Cohorts(folder / "private.jsonl", view, plan_of(view.header), said)
    cohorts.finish()
    assert cohorts.problems == []
    return {each.name: each for each in opening_claims(cohorts.openings)}


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_coordinators_draws_are_drawn_again(kind: str, tmp_path: Path) -> None:
    """With a round that gave no model, one that a crash took, and one without nonces."""
    folder = tmp_path / "run"
    job = job_of(folder, *KINDS[kind])
    with job.ledger:
        play(job.coordinator)
        job.coordinator.begin_round(os.urandom)
        job.coordinator.abort_round("a test: nobody came", before_unmask=True)
        play(job.coordinator)
        lost = kind != "apart"  # who may have been in a lost cohort has to keep its distance
        if lost:
            job.coordinator.begin_round(os.urandom)  # killed
    job = job_of(folder, *KINDS[kind], again=True)
    with job.ledger:
        play(job.coordinator, nonces=False)
        play(job.coordinator)
    found = claims(folder)
    assert found[COHORTS].holds is True, found[COHORTS].rederived
    assert found[COHORTS].rederived == (
        f"5 cohorts drawn again: {2 - lost} from a seed and nonces of the round before, "
        f"2 after a round without nonces, {1 + lost} from a fresh key"
    )
    assert found[NOISE].holds is True, found[NOISE].rederived
    assert "in 4 of 4 releases" in found[NOISE].rederived


Cheat = Callable[[pytest.MonkeyPatch, Job], None]


def no_top_up(patch: pytest.MonkeyPatch, job: Job) -> None:
    patch.setattr(server.coordinator, "add_noise", lambda values, noise, bits: values)


def half_of_it(patch: pytest.MonkeyPatch, job: Job) -> None:
    kind = type(job.coordinator.mechanism)
    top_up = kind.top_up
    patch.setattr(kind, "top_up", lambda self, n, entropy: top_up(self, n, entropy) // 2)


def fresh_noise(patch: pytest.MonkeyPatch, job: Job) -> None:
    """Of the right size, and its own choice."""
    patch.setattr(server.coordinator, "noise_key", lambda mix: bytes(32))


def favourites(patch: pytest.MonkeyPatch, job: Job) -> None:
    sampler = job.coordinator._sampler
    draw = sampler.draw
    patch.setattr(sampler, "draw", lambda number, entropy: tuple({*draw(number, entropy), 3, 4}))


def fresh_cohorts(patch: pytest.MonkeyPatch, job: Job) -> None:
    """As if every round before had been lost."""
    reserve = Ledger.reserve

    def forgetful(self: Ledger, round: int, body: Mapping[str, Any]) -> None:
        reserve(self, round, body)
        job.coordinator._mix = None

    patch.setattr(Ledger, "reserve", forgetful)


CHEATS: dict[Cheat, tuple[str, str]] = {
    no_top_up: (NOISE, "not its sum with the noise"),
    half_of_it: (NOISE, "not its sum with the noise"),
    fresh_noise: (NOISE, "not its sum with the noise"),
    favourites: (COHORTS, "a biased cohort"),
    fresh_cohorts: (COHORTS, "not drawn from the round before"),
}


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda each: each.__name__)
def test_other_draws_are_named(cheat: Cheat, tmp_path: Path) -> None:
    job = job_of(tmp_path / "run")
    with job.ledger, pytest.MonkeyPatch.context() as patch:
        play(job.coordinator)
        cheat(patch, job)
        play(job.coordinator)
        play(job.coordinator)
    name, why = CHEATS[cheat]
    found = claims(tmp_path / "run")[name]
    assert found.holds is False
    assert "round 2" in found.rederived or "round 3" in found.rederived
    assert why in found.rederived


@pytest.fixture
def played(tmp_path: Path) -> Path:
    job = job_of(tmp_path / "run")
    with job.ledger:
        for _ in range(3):
            play(job.coordinator)
    return tmp_path / "run"


def test_a_nonce_that_was_left_out_contradicts_its_member(played: Path) -> None:
    view = read_ledger(played / "ledger.jsonl")
    line = json.loads((played / "private.jsonl").read_text().splitlines()[1])
    client = line["survivors"][0]
    word = Said(follows=0, uploaded=True, nonce=nonce(client), invitations=1, uploads=2)
    honest = Countersigned(concluded=3, said={2: {client: word}})
    claims(played, honest)
    assert honest.problem is None
    other = dataclasses.replace(word, nonce=bytes([255] * NONCE_BYTES))
    told = Countersigned(concluded=3, said={2: {client: other}})
    claims(played, told)
    assert str(told.problem).startswith(f"round 2: client {client} says that it sent the nonce ff")
    assert view.rounds[1].outcome == "commit"


def test_another_seed_is_not_what_was_committed_to(played: Path, signer: Signer) -> None:
    edit_private(played, 2, lambda line: line["opening"].update(seed="00" * 32))
    view = read_ledger(played / "ledger.jsonl")
    cohorts = Cohorts(played / "private.jsonl", view, plan_of(view.header))
    cohorts.finish()
    assert "opening is not what the ledger committed to" in cohorts.problems[0]

    lines = entries(played)
    for _, body in lines:
        if body.get("round") == 2 and "seed_sha256" in body:
            body["seed_sha256"] = "ab" * 32
    edit_private(played, 2, lambda line: line["opening"].update(seed=seed_of(played, 1)))
    sign_again(played, committed_again(played, lines), signer)
    assert "the seed is not the one committed to" in claims(played)[COHORTS].rederived


def seed_of(folder: Path, round: int) -> str:
    line = json.loads((folder / "private.jsonl").read_text().splitlines()[round - 1])
    return str(line["opening"]["seed"])


def committed_again(folder: Path, lines: list[Any]) -> list[Any]:
    """The ledger with commitments to what the private file says now."""
    private = [json.loads(line) for line in (folder / "private.jsonl").read_text().splitlines()]
    for line in private:
        body = next(b for k, b in lines if k == "commit" and b["round"] == line["round"])
        salt = bytes.fromhex(line["salt"])
        body["commitments"] = {
            name: commitment(name, value, salt) for name, value in told(line).items()
        }
    return lines


def test_without_seeds_nothing_is_claimed(played: Path, signer: Signer) -> None:
    lines = [
        (kind, {name: value for name, value in body.items() if name != "seed_sha256"})
        for kind, body in entries(played)
    ]
    sign_again(played, lines, signer)
    (found,) = claims(played).values()
    assert found.holds is None
    assert "the coordinator's word" in found.rests_on


def test_one_sum_that_is_released_twice_is_named(played: Path, signer: Signer) -> None:
    lines = entries(played)
    first = next(body for kind, body in lines if kind == "commit")
    for kind, body in lines:
        if kind == "commit" and body["round"] == 3:
            body["aggregate_sha256"] = first["aggregate_sha256"]
    plan = plan_of(read_ledger(played / "ledger.jsonl").header)
    assert reuse_claim(read_ledger(played / "ledger.jsonl"), plan).holds is True
    sign_again(played, lines, signer)
    found = reuse_claim(read_ledger(played / "ledger.jsonl"), plan)
    assert found.holds is False
    assert "round 3 releases the sum of round 1" in found.rederived


def test_noise_that_takes_too_long_is_not_drawn_again(
    played: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(read_ledger(played / "ledger.jsonl").header)
    each = (plan.cap - plan.min_survivors) * plan.dimension
    monkeypatch.setattr(openings, "_MOST_DRAWS", each)
    found = claims(played)[NOISE]
    assert found.holds is True
    assert "in 1 of 3 releases; 2 would take too long" in found.rederived
    monkeypatch.setattr(openings, "_MOST_DRAWS", each - 1)
    found = claims(played)[NOISE]
    assert found.holds is None
    assert "in 0 of 3 releases; 3 would take too long" in found.rederived
