"""Buffered rounds: who is asked, what is summed, what it costs, and what a crash leaves."""

from __future__ import annotations

import doctest
import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from client.privatize import staleness
from client.privatize.staleness import staleness_factor
from fedsys.audit import audit_run
from fedsys.config import Config, load
from fedsys.errors import ConfigError, MechanismError, ProtocolError
from fedsys.privacy import make_plan, read_ledger, replay
from fedsys.privacy.ledger import read_private
from fedsys.privacy.randomness import AesCtrStream
from fedsys.privacy.sampling.cohorts import least_first
from secure_agg import EpochAggregator
from server.coordinator import Coordinator
from simulations import canaries, harness
from simulations.buffered import arrivals
from simulations.buffered.arrivals import Crowd
from simulations.buffered.epoch import SecureEpoch
from simulations.buffered.rounds import BufferedRounds
from simulations.faults import FaultPlan
from simulations.population import Population
from simulations.randomness import SeededRandomness
from simulations.replay import replay as replayed

SIZE, TRAINING = 12, 20


def configure(*settings: str) -> Config:
    """Seven buffers of 12 of 20 clients that train at a time, among 1,437."""
    return load(
        "buffered",
        [
            f"rounds.buffer={SIZE}",
            f"rounds.concurrency={TRAINING}",
            "rounds.count=7",
            "privacy.max_participations=2",
            "aggregation.protocol=ideal",
            "engine.path=loop",
            "engine.processes=1",
            *settings,
        ],
    )


def seeded(folder: Path, *settings: str) -> harness.RunResult:
    config = configure(*settings)
    return harness.run(config, out=folder, randomness=SeededRandomness(b"buffered"))


def private_lines(folder: Path) -> dict[int, dict[str, Any]]:
    return {
        number: dict(line) for number, line in read_private(folder / "private.jsonl")[0].items()
    }


def committed(folder: Path) -> list[str]:
    rounds = read_ledger(folder / "ledger.jsonl").rounds
    return [record.body["weights_sha256"] for record in rounds if record.outcome == "commit"]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


# -- what a client does with a stale update --------------------------------------------------------


def test_the_examples_run() -> None:
    assert doctest.testmod(staleness) == (0, 1)
    assert doctest.testmod(arrivals) == (0, 4)


def test_a_stale_update_is_scaled_and_beyond_the_bound_it_is_zero() -> None:
    assert [staleness_factor(age, most=4) for age in (0, 1, 4)] == [
        1.0,
        pytest.approx(1 / math.sqrt(2)),
        pytest.approx(1 / math.sqrt(5)),
    ]
    assert staleness_factor(5, most=4) == 0.0
    assert staleness_factor(1, most=0) == 0.0
    assert staleness_factor(-1, most=4) == 0.0, "a server that contradicts itself"


# -- who is asked ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_no_upload_is_in_two_buffers_and_nobody_twice_in_one(seed: int) -> None:
    dice = np.random.default_rng(seed)
    faults = FaultPlan(
        dropout=float(dice.choice([0, 0.3])),
        availability=float(dice.choice([1, 0.6])),
        speed_spread=float(dice.choice([0, 2])),
        seconds_per_example=float(dice.choice([0, 5])),
        deadline=float(dice.choice([0, 20])),
        seed=seed,
    )
    training = int(dice.integers(3, 9))
    size = int(dice.integers(2, training + 1))
    crowd = Crowd(faults=faults, work_of=lambda client: 1 + client % 3, concurrency=training)
    began: Counter[tuple[int, int]] = Counter()
    now = 0.0
    for number in range(1, 15):
        if number % 4 == 1:
            busy = [it.client for it in crowd.training]
            others = [int(it) for it in dice.permutation(40) if it not in busy]
            crowd.invite([*busy, *others[: 2 * training]])
        crowd.begin_buffer()
        held: list[int] = []
        while len(held) < size:
            crowd.ask(buffer=number, version=number - 1, now=now)
            assert len(crowd.training) <= training
            assert len({it.client for it in crowd.training}) == len(crowd.training)
            assert not {it.client for it in crowd.training} & set(held)
            upload = crowd.next()
            if upload is None:
                # nobody else is reachable, or everybody was too slow
                assert faults.dropout or faults.deadline or faults.availability < 1
                break
            assert upload.finish >= now
            assert upload.version < number
            assert upload.buffer <= number
            now = upload.finish
            began[upload.buffer, upload.client] += 1
            if not upload.lost:
                held.append(upload.client)
        assert len(set(held)) == len(held)
    assert max(began.values()) == 1, "a client began twice under one buffer, so twice in all"


def test_those_who_had_fewer_turns_come_first() -> None:
    crowd = Crowd(faults=FaultPlan(), work_of=lambda client: 1, concurrency=1)
    crowd.invite([5, 3, 9])
    order = []
    for number in range(1, 7):
        crowd.begin_buffer()
        crowd.ask(buffer=number, version=0, now=0.0)
        upload = crowd.next()
        assert upload is not None
        order.append(upload.client)
    assert order == [5, 3, 9, 5, 3, 9]


def test_a_straggler_frees_its_place_at_the_deadline() -> None:
    faults = FaultPlan(seconds_per_example=10, deadline=15)
    crowd = Crowd(faults=faults, work_of=lambda client: 1 + client, concurrency=2)
    crowd.invite([1, 0])
    crowd.ask(buffer=1, version=0, now=100.0)
    first, second = crowd.next(), crowd.next()
    assert first is not None
    assert second is not None
    assert (first.client, first.finish, first.lost) == (0, 110.0, False)
    assert (second.client, second.finish, second.lost) == (1, 115.0, True)


# -- whole jobs ------------------------------------------------------------------------------------


def test_secure_and_ideal_give_the_same_models_to_the_bit(tmp_path: Path) -> None:
    found = []
    for protocol, chunk in (("secure", 3), ("ideal", 64)):
        folder = seeded(
            tmp_path / protocol, f"aggregation.protocol={protocol}", f"engine.chunk={chunk}"
        ).folder
        lines = private_lines(folder).values()
        clocks = [(line["sampled"], line["simulated_seconds"]) for line in lines]
        found.append((committed(folder), clocks))
    assert len(found[0][0]) == 7
    assert found[0] == found[1]


def test_the_number_of_processes_changes_no_bit(tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        settings = (f"engine.processes={processes}", "engine.chunk=5", "rounds.count=4")
        folder = seeded(tmp_path / str(processes), *settings).folder
        found.append(committed(folder))
    assert len(found[0]) == 4
    assert found[0] == found[1]


def test_every_upload_is_in_one_buffer_of_the_real_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[EpochAggregator] = []
    begin = EpochAggregator.begin

    def spy(self: EpochAggregator) -> dict[int, bytes]:
        epochs.append(self)
        return begin(self)

    monkeypatch.setattr(EpochAggregator, "begin", spy)
    folder = seeded(tmp_path / "run", "aggregation.protocol=secure").folder
    assert [len(epoch.results) for epoch in epochs] == [4, 3]
    included = [result.included for epoch in epochs for result in epoch.results if result]
    lines = private_lines(folder)
    assert [tuple(line["survivors"]) for line in lines.values()] == included
    assert {len(ids) for ids in included} == {SIZE}
    uploads = Counter(itertools.chain.from_iterable(included))
    assert max(uploads.values()) <= 2


def test_float_is_the_integers_up_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled, clipped and summed in floating point, stale updates included."""
    noiseless = tmp_path / "noiseless.toml"
    text = (Path(harness.__file__).parent / "recipes" / "buffered.toml").read_text()
    noiseless.write_text(
        text.replace("noise_multiplier = 1.0\n", "").replace('"distributed-gaussian"', '"none"')
    )
    means: dict[str, list[np.ndarray[Any, Any]]] = {"ideal": [], "float": []}
    finish = Coordinator.finish_round
    for protocol, seen in means.items():

        def spy(
            self: Coordinator,
            total: Any,
            survivors: Any,
            seen: list[np.ndarray[Any, Any]] = seen,
            **rest: Any,
        ) -> Any:
            seen.append(self.mechanism.decode(total, seed=b""))
            return finish(self, total, survivors, **rest)

        config = load(
            noiseless,
            [
                "rounds.count=4",
                f"rounds.buffer={SIZE}",
                f"rounds.concurrency={TRAINING}",
                f"aggregation.protocol={protocol}",
                "engine.path=loop",
                "engine.processes=1",
            ],
        )
        with monkeypatch.context() as patched:
            patched.setattr(Coordinator, "finish_round", spy)
            run = harness.run(config, out=tmp_path / protocol, randomness=SeededRandomness(b"x"))
        lines = private_lines(run.folder).values()
        assert max(line["most_staleness"] for line in lines) >= 2
    step = 0.3 / (64 * np.sqrt(650))
    for exact, close in zip(means["ideal"], means["float"], strict=True):
        assert np.abs(exact).max() > 40 * step
        np.testing.assert_allclose(exact, close, atol=2 * step)


def test_what_is_too_stale_adds_noise_alone(tmp_path: Path) -> None:
    """With no staleness allowed, only those who began under the newest model train at all."""
    folder = seeded(tmp_path / "run", "rounds.max_staleness=0").folder
    lines = private_lines(folder)
    late = sum(line["too_stale"] for line in lines.values())
    assert late > 0
    assert summary(folder)["clients_trained"] == 7 * SIZE - late
    assert all(len(line["sampled"]) == SIZE for line in lines.values()), "they count all the same"


def test_a_buffer_is_reserved_before_anybody_uploads_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, seen = tmp_path / "run" / "ledger.jsonl", []
    following = Crowd.next

    def spy(self: Crowd) -> Any:
        upload = following(self)
        seen.append(ledger.read_bytes().count(b'"kind":"reserve"'))
        return upload

    monkeypatch.setattr(Crowd, "next", spy)
    folder = seeded(tmp_path / "run").folder
    assert sorted(set(seen)) == list(range(1, 8)), "no upload comes before its buffer's reserve"
    lost = sum(line["dropped"].get("upload", 0) for line in private_lines(folder).values())
    assert Counter(seen).total() == 7 * SIZE + lost


# -- what it costs ---------------------------------------------------------------------------------


def exact_epsilon(mu: float, delta: float) -> float:
    """Of one Gaussian mechanism (Balle and Wang 2018, Theorem 8), solved here once more."""

    def excess(epsilon: float) -> float:
        first = norm.cdf(mu / 2 - epsilon / mu)
        second = math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return float(first - second - delta)

    return float(brentq(excess, 0, 200, xtol=1e-10))


def test_each_views_epsilon_is_that_of_a_naive_count(tmp_path: Path) -> None:
    folder = seeded(
        tmp_path / "run", "privacy.max_participations=3", "privacy.max_colluders=2"
    ).folder
    view = read_ledger(folder / "ledger.jsonl")
    plan = view.header["plan"]
    z, delta = plan["noise_multiplier"], plan["delta"]
    uploads = Counter(
        client for line in private_lines(folder).values() for client in line["survivors"]
    )
    spent = summary(folder)["privacy"]["epsilon"]
    # the rounding of noise takes a millionth of delta or less, and aborts none of it
    assert view.header["delta_parts"]["aborts"] == 0.0
    outsider = exact_epsilon(math.sqrt(3 / z**2), delta)
    assert spent["outsider"] == pytest.approx(outsider, rel=1e-4)
    participant = exact_epsilon(math.sqrt(3 * SIZE / ((SIZE - 2) * z**2)), delta)
    assert spent["participant"] == pytest.approx(participant, rel=1e-4)
    most = max(uploads.values())
    server = exact_epsilon(math.sqrt(most * SIZE / ((SIZE - 2) * z**2)), delta)
    assert spent["server"] == pytest.approx(server, rel=1e-4)


def test_the_servers_guarantee_holds_with_colluders() -> None:
    plan = make_plan(
        mechanism="distributed-gaussian", population=500, expected_cohort=20, rounds=30,
        dimension=100, clip=1.0, delta=1e-6, noise_multiplier=1.5, sampling="arrivals",
        max_participations=4, guarantee="server", colluders=5,
    )  # fmt: skip
    assert (plan.cap, plan.min_survivors, plan.delta_abort) == (20, 20, 0.0)
    event = plan.event()
    assert event.server_step().multiplier == pytest.approx(1.5)
    assert event.outsider_step().multiplier == pytest.approx(1.5 * math.sqrt(20 / 15))
    assert (plan.turns(3), plan.turns(30), plan.contributions(30)) == (3, 4, 4)


def test_the_plan_refuses_what_no_buffer_can_be() -> None:
    usual: dict[str, Any] = {
        "mechanism": "distributed-gaussian", "population": 500, "expected_cohort": 20,
        "rounds": 30, "dimension": 100, "clip": 1.0, "delta": 1e-6, "noise_multiplier": 1.5,
        "sampling": "arrivals", "max_participations": 4,
    }  # fmt: skip
    for wrong, words in (
        ({"max_participations": None}, "needs max_participations"),
        ({"cap": 21}, "a buffer has one size"),
        ({"min_survivors": 19}, "a buffer has one size"),
        ({"participation": 0.5}, "no amplification"),
        ({"min_separation": 2}, "min_separation"),
        ({"mechanism": "banded-mf", "min_separation": 2}, "does not go with mechanism"),
    ):
        with pytest.raises(MechanismError, match=words):
            make_plan(**usual | wrong)


def test_the_audit_holds_and_notices_a_buffer_of_another_size(tmp_path: Path) -> None:
    run = harness.run(configure("aggregation.protocol=secure"), out=tmp_path / "run")
    result = audit_run(run.folder)
    assert result.passed
    names = {claim.name: claim for claim in result.claims}
    assert "uploads that come first" in names["Cohorts look sampled"].claimed
    assert all("same uploads arriving" in words for words in result.neighbours.values())
    admit = Coordinator.admit
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("server.coordinator._unfit", lambda *_: None)
        patched.setattr(Coordinator, "admit", lambda self, ids: admit(self, [*ids, 1436]))
        spoilt = harness.run(configure("rounds.count=1"), out=tmp_path / "spoilt")
    failed = {claim.name for claim in audit_run(spoilt.folder).claims if claim.holds is False}
    assert failed == {"Cohort limits"}


def test_the_audit_notices_a_client_that_was_asked_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BufferedRounds, "_allowed", lambda self, client: client < TRAINING + 5)
    monkeypatch.setattr("simulations.buffered.rounds.BudgetExceeded", RuntimeError)
    run = harness.run(configure(), out=tmp_path / "run")
    claims = {claim.name: claim for claim in audit_run(run.folder).claims}
    assert claims["Cohort limits"].holds is False
    assert "over the limit 2" in claims["Cohort limits"].rederived


# -- where it ends ---------------------------------------------------------------------------------


def test_clients_contribute_as_often_as_they_may_and_then_the_job_ends(tmp_path: Path) -> None:
    """60 uploads of 30 clients fill five buffers of 12; of those who are lost nobody waits."""
    notices: list[str] = []
    config = configure(
        "population.partition=resampled", "population.clients=30", "rounds.count=5",
        "aggregation.corrupt=0.0", "faults.dropout=0.0",
    )  # fmt: skip
    run = harness.run(
        config,
        out=tmp_path / "run",
        observer=lambda event: notices.append(event) if isinstance(event, str) else None,
    )
    uploads = Counter(
        client for line in private_lines(run.folder).values() for client in line["survivors"]
    )
    assert max(uploads.values()) <= 2
    found = summary(run.folder)
    if found["status"] == "budget-exhausted":
        assert any("fewer than a buffer takes" in notice for notice in notices)
        assert run.rounds < 5
    else:
        assert uploads == Counter(dict.fromkeys(range(30), 2))
    assert audit_run(run.folder).passed


def test_a_buffer_that_cannot_fill_is_given_up_and_its_keys_are_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    following, calls = Crowd.next, itertools.count()
    monkeypatch.setattr(Crowd, "next", lambda self: None if next(calls) == 30 else following(self))
    kept: list[tuple[int, int]] = []
    erase = SecureEpoch.erase

    def spy(self: SecureEpoch) -> None:
        def keys() -> int:
            return sum(keys.bound(self._job) is not None for keys in self._sealing.values())

        before = keys()
        erase(self)
        kept.append((before, keys()))

    monkeypatch.setattr(SecureEpoch, "erase", spy)
    folder = seeded(tmp_path / "run", "aggregation.protocol=secure").folder
    view = read_ledger(folder / "ledger.jsonl")
    outcomes = [record.outcome for record in view.rounds]
    assert outcomes.count("abort") == 1
    given_up = next(record for record in view.rounds if record.outcome == "abort")
    assert given_up.refunds_server
    assert given_up.body["reason"] == "a buffer could not be filled", "and no number in public"
    line = private_lines(folder)[given_up.round]
    assert 0 < len(line["sampled"]) < SIZE
    assert line["survivors"] == []
    assert len(kept) == 2, "two epochs: the one that was given up, and one of four buffers"
    assert kept[0][0] > 0
    assert {after for _, after in kept} == {0}
    assert summary(folder)["status"] == "completed"


class Crash(Exception):
    """The process ends."""


@pytest.mark.parametrize("protocol", ["ideal", "secure"])
def test_a_crash_costs_the_open_buffer_and_the_job_goes_on(protocol: str, tmp_path: Path) -> None:
    out, config = tmp_path / "run", configure(f"aggregation.protocol={protocol}")
    with pytest.MonkeyPatch.context() as patched:
        finish, calls = Coordinator.finish_round, itertools.count(1)

        def crash(self: Coordinator, *args: Any, **rest: Any) -> Any:
            if next(calls) == 3:
                raise Crash
            return finish(self, *args, **rest)

        patched.setattr(Coordinator, "finish_round", crash)
        with pytest.raises(Crash):
            harness.run(config, out=out)
    before = private_lines(out)
    result = harness.resume(out)
    view = read_ledger(out / "ledger.jsonl")
    assert [record.outcome for record in view.rounds] == ["commit"] * 2 + [None] + ["commit"] * 4
    lines = private_lines(out)
    assert {number: lines[number] for number in before} == before
    seconds = [line["simulated_seconds"] for line in lines.values()]
    assert seconds == sorted(seconds), "the clock goes on from where it stood"
    uploads = Counter(client for line in lines.values() for client in line["survivors"])
    assert max(uploads.values()) <= 1, "anybody may have been in the buffer that was lost"
    assert (
        summary(out)["privacy"]["epsilon"]
        == replay(view, read_private(out / "private.jsonl")[0])[1].to_json()
    )
    assert not result.interrupted
    assert audit_run(out).passed


def test_an_interrupt_leaves_a_resumable_run(tmp_path: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Population, "train", interrupt)
        assert harness.run(configure(), out=out).interrupted
    assert summary(out)["status"] == "interrupted"
    assert not harness.resume(out).interrupted
    assert summary(out)["rounds"] == 7


# -- what is refused before anything runs ----------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["rounds.buffer=21"], "rounds.buffer = 21 is more than rounds.concurrency = 20"),
        (["cohort.sampling=poisson"], "use 'arrivals'"),
        (["cohort.expected=13"], "cohort.expected = 13 with rounds.buffer = 12"),
        (["cohort.cap=13"], "cohort.cap = 13 with rounds.buffer = 12"),
        (["cohort.participation=0.5"], "claims no amplification"),
        (["rounds.mode=synchronous"], "rounds.buffer = 12 with rounds.mode = 'synchronous'"),
        (["aggregation.encoding=narrow"], "use 'wide'"),
        (["privacy.adaptive_quantile=0.5"], "use a fixed privacy.clip"),
        (["privacy.mechanism=banded-mf"], "privacy.mechanism = 'banded-mf'"),
        (["population.clients=15"], "more than population.clients = 15"),
        (["rounds.epoch=1"], "rounds.epoch = 1"),
    ],
)
def test_one_line_a_mistake(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(*settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["rounds.buffer", "rounds.concurrency", "privacy.max_participations"]
)
def test_what_buffered_rounds_need_is_said(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load("buffered", values={key: None})


def test_arrivals_need_buffered_rounds() -> None:
    with pytest.raises(ConfigError, match=r"rounds\.mode = 'synchronous'"):
        load(None, ["cohort.sampling=arrivals"])


def test_more_buffers_than_uploads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need 1440 clients"):
        harness.run(
            configure("rounds.count=120", "privacy.max_participations=1"), out=tmp_path / "run"
        )


def test_a_buffer_that_colluders_could_fill_is_refused(tmp_path: Path) -> None:
    config = configure("aggregation.protocol=secure", "rounds.epoch=30")
    with pytest.raises(ConfigError, match="may collude under aggregation") as caught:
        harness.run(config, out=tmp_path / "run")
    assert "rounds.epoch" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_knows_only_cohorts_refuses_buffers(tmp_path: Path) -> None:
    noiseless = {"privacy.mechanism": "none", "privacy.noise_multiplier": None}
    job = {"rounds.count": 1, "engine.processes": 1, **noiseless}
    run = harness.run(load("buffered", values=job), out=tmp_path / "run")
    with pytest.raises(ConfigError, match="only synchronous rounds are replayed"):
        replayed(run.folder)
    with pytest.raises(ConfigError, match="--canaries with rounds"):
        canaries.run(configure(), canaries=10, out=tmp_path / "canaries")


def test_admission_is_for_buffers_alone(tmp_path: Path) -> None:
    seen: list[str] = []
    begin = Coordinator.begin_round

    def spy(self: Coordinator, entropy: Any) -> Any:
        open_ = begin(self, entropy)
        for ids in ([0], [0, 0]):
            try:
                self.admit(ids)
            except ProtocolError as error:
                seen.append(str(error))
        return open_

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Coordinator, "begin_round", spy)
        synchronous = ["rounds.count=1", "aggregation.protocol=ideal", "engine.processes=1"]
        harness.run(load("quickstart", synchronous), out=tmp_path / "synchronous")
        assert seen == ["round 1 has a cohort that was drawn"] * 2
        seen.clear()
        harness.run(configure("rounds.count=1"), out=tmp_path / "buffered")
        assert seen == ["round 1: a client's upload is there twice"]


def test_those_who_contributed_least_come_first() -> None:
    counts, clients = np.array([2, 0, 1, 0, 2, 0]), np.array([0, 1, 2, 3, 5])
    orders = set()
    for key in range(40):
        found = least_first(counts, clients, AesCtrStream(bytes([key]) * 32)).tolist()
        assert sorted(found[:3]) == [1, 3, 5]
        assert found[3:] == [2, 0]
        orders.add(tuple(found[:3]))
    assert len(orders) == 6, "each order of the three is likelier than 1 - 6 (5/6)^40"
