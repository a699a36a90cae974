"""Virtual clients in the real protocol: who is in the sum, what a loss costs, what memory holds."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from client.agent import Agent
from fedsys.config import Config
from fedsys.privacy import AesCtrStream, Entropy, from_ring, read_ledger
from fedsys.privacy.ledger import read_private
from fedsys.wire.round_params import round_params
from secure_agg import SecAggParams, draw_committee, packed_sum
from simulations import harness, summation
from simulations.engine.chunk import in_ring, signed_sum
from simulations.faults import FaultPlan
from simulations.randomness import SeededRandomness
from simulations.setting import prepare

Configure = Callable[..., Config]
SECURE = ("aggregation.protocol=secure", "privacy.mechanism=none", "faults.dropout=0")
FIXED = ("cohort.sampling=fixed", "rounds.count=1", "evaluation.data=none")


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, int]], None]:
    """``losing({"upload": 2, "endorse": 3})``: the first two of a cohort, then the next three."""

    def lose(counts: dict[str, int]) -> None:
        def losses(self: summation.Cohort) -> dict[int, str | None]:
            found: dict[int, str | None] = dict.fromkeys(self.round.cohort)
            waiting = iter(self.round.cohort)
            for stage, count in counts.items():
                found |= {next(waiting): stage for _ in range(count)}
            return found

        monkeypatch.setattr(summation.Cohort, "losses", losses)

    return lose


def private(folder: Path) -> dict[str, Any]:
    lines, _ = read_private(folder / "private.jsonl")
    return dict(lines[1])


def test_who_is_lost_after_its_upload_is_in_the_sum(
    configure: Configure, tmp_path: Path, losing: Callable[[dict[str, int]], None]
) -> None:
    losing({"upload": 4, "endorse": 3, "answer": 2})
    found = {}
    for protocol in ("secure", "ideal"):
        config = configure(*SECURE, *FIXED, f"aggregation.protocol={protocol}")
        run = harness.run(config, out=tmp_path / protocol, randomness=SeededRandomness(b"one"))
        found[protocol] = private(run.folder)
    line = found["secure"]
    assert line["dropped"] == {"upload": 4, "endorse": 3, "answer": 2}
    assert line["survivors"] == line["sampled"][4:]
    assert found["ideal"]["survivors"] == line["survivors"]
    commits = [
        read_ledger(tmp_path / protocol / "ledger.jsonl").rounds[0].body["aggregate_sha256"]
        for protocol in ("secure", "ideal")
    ]
    assert commits[0] == commits[1]


def test_the_hybrid_suite_gives_the_same_sum(configure: Configure, tmp_path: Path) -> None:
    commits = []
    for settings in (
        ("aggregation.protocol=ideal",),
        ("aggregation.protocol=secure", "aggregation.suite=x25519-mlkem768"),
    ):
        config = configure(*SECURE, *FIXED, *settings, "cohort.expected=6")
        run = harness.run(config, out=tmp_path / settings[0], randomness=SeededRandomness(b"one"))
        commits.append(read_ledger(run.folder / "ledger.jsonl").rounds[0].body["aggregate_sha256"])
    assert commits[0] == commits[1]


@pytest.mark.parametrize(
    ("stage", "refunded"), [("upload", True), ("endorse", True), ("answer", False)]
)
def test_a_committee_below_its_quorum_gives_the_round_up(
    stage: str,
    refunded: bool,
    configure: Configure,
    tmp_path: Path,
    losing: Callable[[dict[str, int]], None],
) -> None:
    """Before its certificate a round told nobody anything; after it, it counts as told."""
    config = configure(*SECURE, *FIXED)
    setting = prepare(config)
    setting.engine.close()
    mechanism = setting.plan.build_mechanism()
    params = round_params(
        setting.plan, 40, length=mechanism.length, modulus_bits=mechanism.modulus_bits
    )
    enough = params.threshold if stage == "answer" else params.needed
    losing({stage: 40 - enough})
    run = harness.run(config, out=tmp_path / "enough")
    assert read_ledger(run.folder / "ledger.jsonl").rounds[0].outcome == "commit"
    losing({stage: 40 - enough + 1})
    run = harness.run(config, out=tmp_path / "short")
    record = read_ledger(run.folder / "ledger.jsonl").rounds[0]
    assert record.outcome == "abort"
    assert record.refunds_server is refunded


class _OneSource(SeededRandomness):
    """Like the operating system's: one stream serves all clients of all rounds."""

    def __init__(self) -> None:
        super().__init__(b"one")
        self.stream = AesCtrStream(bytes(32))

    def noise(self, round: int, client: int) -> Entropy:
        return self.stream

    def shared_noise(self) -> Entropy:
        return self.stream


@pytest.mark.parametrize("randomness", [_OneSource(), SeededRandomness(b"one")])
def test_every_client_in_the_sum_has_its_noise_share(
    randomness: SeededRandomness,
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the shares are drawn together or one by one, their sum has n times their variance,
    and with the coordinator's noise n_cap times. False alarms: 1e-7 for each variance."""
    sums: list[summation.Summed] = []

    def seen(cohort: summation.Cohort) -> summation.Summed:
        sums.append(summation.summation(cohort))
        return sums[-1]

    monkeypatch.setattr("simulations.harness.summation", seen)
    config = configure(
        *FIXED,
        "privacy.mechanism=distributed-gaussian",
        "local.learning_rate=1e-30",
    )
    harness.run(config, out=tmp_path / "run", randomness=randomness)
    mechanism = prepare(config).plan.build_mechanism()
    (summed,) = sums
    assert summed.noise is not None
    share, bits = mechanism.event.share_variance, mechanism.modulus_bits
    for values, terms in (
        (from_ring(summed.total, bits=bits), len(summed.survivors)),
        (summed.noise, mechanism.event.cap - len(summed.survivors)),
    ):
        variance = terms * (share + 1 / 12)  # a rounding adds 1/12
        low, high = stats.chi2.ppf([5e-8, 1 - 5e-8], len(values)) / len(values)
        assert low < np.mean(values.astype(np.float64) ** 2) / variance < high


LARGE = ("cohort.expected=130", "engine.chunk=16")


def test_a_drawn_committee_serves_a_large_cohort(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sum to the bit; who is not on the committee is lost for its upload at most."""
    drawn: list[tuple[int, ...]] = []

    def seen(*args: Any) -> tuple[int, ...]:
        drawn.append(draw_committee(*args))
        return drawn[-1]

    monkeypatch.setattr("simulations.summation.draw_committee", seen)
    digests = []
    for protocol in ("secure", "ideal"):
        config = configure(*FIXED, *LARGE, f"aggregation.protocol={protocol}", "faults.dropout=0.2")
        run = harness.run(config, out=tmp_path / protocol, randomness=SeededRandomness(b"large"))
        record = read_ledger(run.folder / "ledger.jsonl").rounds[0]
        digests.append(record.body["weights_sha256"])
        line = private(run.folder)
        if protocol == "secure":
            plan = FaultPlan(seed=config.job.seed, dropout=0.2)
            lost = {client: plan.lost(round=1, client=client) for client in line["sampled"]}
            of_committee = [lost[client] for client in drawn[0]]
            assert len(of_committee) < len(lost)
            assert line["dropped"]["upload"] == list(lost.values()).count("upload")
            assert line["dropped"]["endorse"] == of_committee.count("endorse")
            assert len(line["survivors"]) == len(lost) - line["dropped"]["upload"]
    assert digests[0] == digests[1]


def test_memory_holds_the_committee_and_no_other_client(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Agent] = weakref.WeakSet()
    most: list[int] = []
    make, handle = Agent.__init__, Agent.handle

    def made(self: Agent, **values: Any) -> None:
        make(self, **values)
        alive.add(self)

    def handled(self: Agent, message: bytes) -> bytes:
        most.append(len(alive))
        return handle(self, message)

    monkeypatch.setattr(Agent, "__init__", made)
    monkeypatch.setattr(Agent, "handle", handled)
    setting = prepare(configure(*SECURE, *FIXED, *LARGE))
    setting.engine.close()
    length = setting.plan.build_mechanism().length
    size = round_params(setting.plan, 130, length=length, modulus_bits=32).committee
    assert size < 100
    harness.run(configure(*SECURE, *FIXED, *LARGE), out=tmp_path / "run")
    assert max(most) <= size + 2


@pytest.mark.parametrize(("bits", "together"), [(8, 4), (16, 2), (20, 2), (32, 1)])
def test_a_plain_sum_carries_where_the_encrypted_one_does(bits: int, together: int) -> None:
    """Of vectors whose sums exceed the modulus, so that digits carry into their neighbours."""
    mechanism: Any = SimpleNamespace(modulus_bits=bits, event=None)
    vectors = np.random.default_rng(bits).integers(0, 1 << bits, size=(9, 41), dtype=np.uint64)
    ring = vectors.astype(np.uint16 if bits <= 16 else np.uint32)
    params = SecAggParams.derive(n=9, corrupt=0.1, dropout=0.1, modulus_bits=bits, dimension=41)
    assert params.values_per_coefficient >= together
    expected = packed_sum(ring.astype(np.uint32), params)
    total = signed_sum(ring, bits)
    assert abs(total).max() >= 1 << (bits - 1)
    found = in_ring(total, mechanism, "ideal", invited=9)
    np.testing.assert_array_equal(found, expected)
    if together > 1:
        assert not np.array_equal(found, total % (1 << bits)), "something was carried"


@pytest.mark.parametrize("invited", [1, 9_180, 9_181, 10_000, 10_001])
def test_where_no_encrypted_sum_is_possible_each_value_wraps_by_itself(invited: int) -> None:
    """40 bits a value and the sum's noise do not fit a coefficient from 9,181 clients on."""
    mechanism: Any = SimpleNamespace(modulus_bits=40, event=None)
    total = np.array([1 << 39, -(1 << 41) - 3, 5, 0], dtype=np.int64)
    found = in_ring(total, mechanism, "ideal", invited=invited)
    np.testing.assert_array_equal(found, total % (1 << 40))


def test_large_vectors_are_encrypted_in_threads_with_the_same_sum(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summation, "LARGE", 1)
    monkeypatch.setattr(summation, "cores", lambda: 3)
    threads: set[str] = set()
    handle = Agent.handle

    def seen(self: Agent, message: bytes) -> bytes:
        threads.add(threading.current_thread().name)
        return handle(self, message)

    monkeypatch.setattr(Agent, "handle", seen)
    commits = []
    for protocol, processes in (("ideal", 1), ("secure", 1), ("secure", 2)):
        settings = (f"aggregation.protocol={protocol}", f"engine.processes={processes}")
        config = configure(*SECURE, *FIXED, *settings, "cohort.expected=6", "engine.chunk=2")
        out = tmp_path / f"{protocol} {processes}"
        run = harness.run(config, out=out, randomness=SeededRandomness(b"one"))
        commits.append(read_ledger(run.folder / "ledger.jsonl").rounds[0].body["aggregate_sha256"])
    assert commits[1:] == commits[:1] * 2
    assert any(name.startswith("dealer") for name in threads)


def test_what_an_upload_in_a_thread_raises_ends_the_round() -> None:
    def upload(id: int, vector: object) -> None:
        if id == 2:
            raise RuntimeError("out of memory")

    vectors = np.zeros((3, 1), np.uint32)
    with closing(summation._Dealers(upload, threads=2)) as dealers:
        dealers.deal((1, 2, 3), vectors)
        with pytest.raises(RuntimeError, match="out of memory"):
            dealers.wait()
