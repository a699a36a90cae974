"""Every change to a run's folder is caught, and the claim that fails names what was changed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsys.audit import audit_run
from fedsys.errors import AuditInputError
from fedsys.privacy import VIEWS, Ledger, Signer
from fedsys.privacy.accounting.from_ledger import plan_of
from fedsys.privacy.ledger import read_private
from simulations import harness
from tests.fedsys.audit.conftest import failed, job
from tests.fedsys.audit.forge import (
    close_again,
    edit_json,
    edit_private,
    entries,
    replace_text,
    sign_again,
)

CHAIN = "Ledger chain and signatures"
COMMITMENTS = "Private commitments (sampled, survivors, participations)"

Lines = list[bytes]


def rewrite(folder: Path, change: Callable[[Lines], Lines]) -> None:
    """Edits the ledger's raw lines."""
    path = folder / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


def swapped(lines: Lines) -> Lines:
    return [lines[0], lines[3], lines[4], lines[1], lines[2], *lines[5:]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda lines: [lines[0].replace(b'"clip":0.3', b'"clip":0.2'), *lines[1:]], {CHAIN}),
        (lambda lines: [*lines[:2], *lines[3:]], {CHAIN}),
        (lambda lines: lines[1:], {CHAIN}),
        (lambda lines: [*lines[:1], *lines[3:]], {CHAIN}),
        (swapped, {CHAIN}),
        (lambda lines: [*lines, lines[-1]], {CHAIN}),
        (lambda lines: [*lines, b'{"kind":"reserve"}\n'], {CHAIN}),
        (lambda lines: [*lines, b"not json\n"], {CHAIN}),
        (lambda lines: [*lines[:1], b"\n", *lines[1:]], {CHAIN}),
        (lambda lines: lines[:-1], {"Ledger head", "Status", "Model file"}),
        (
            lambda lines: lines[:-3],
            {"Ledger head", "Status", "Model file", "Rounds", "Metrics", COMMITMENTS},
        ),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], {CHAIN}),
        (lambda lines: [*lines[:-1], lines[-1][:200]], {CHAIN}),
        (lambda lines: [], {CHAIN}),
    ],
    ids=[
        "edit",
        "drop",
        "header-dropped",
        "round-dropped",
        "swap",
        "repeat",
        "append",
        "append-garbage",
        "blank-line",
        "cut-closing",
        "cut-round",
        "cut-newline",
        "cut-inside",
        "empty",
    ],
)
def test_the_ledger_cannot_be_changed(
    run: Path, change: Callable[[Lines], Lines], named: set[str]
) -> None:
    rewrite(run, change)
    assert named <= failed(run)


def test_a_line_signed_by_somebody_else_is_refused(run: Path, home: Path) -> None:
    """Appended in order and by the rules, with another key."""
    lines = entries(run)
    honest = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    sign_again(run, [*lines[:-1], ("resume", {})], Signer.generate())
    forged = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)[-1]
    stated = json.loads(forged)
    previous = json.loads(honest[-2])
    assert stated["seq"] == previous["seq"] + 1
    (run / "ledger.jsonl").write_bytes(b"".join([*honest[:-1], forged]))
    assert CHAIN in failed(run)


def test_signing_all_of_it_again_shows_where_the_signer_is_pinned(
    run: Path, signer: Signer
) -> None:
    mallory = Signer.generate()
    sign_again(run, entries(run), mallory)
    edit_json(run, lambda body: body.update(signer=mallory.public_hex))
    close_again(run, mallory)
    assert failed(run) == set()
    assert failed(run, signer.public_hex) == {"Signer"}


def test_signing_again_in_the_pinned_name_breaks_the_signatures(run: Path, signer: Signer) -> None:
    class Impostor(Signer):
        @property
        def public_hex(self) -> str:
            return signer.public_hex

    stranger = Impostor.generate()
    sign_again(run, entries(run), stranger)
    assert CHAIN in failed(run)
    assert CHAIN in failed(run, signer.public_hex)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("clip = 0.3", "clip = 0.2", "Clipping norm"),
        ("noise_multiplier = 0.7", "noise_multiplier = 0.9", "Noise multiplier"),
        ('mechanism = "distributed-gaussian"', 'mechanism = "none"', "Mechanism"),
        ("expected = 40", "expected = 41", "Other settings"),
        ("clients = 1437", "clients = 14370", "Other settings"),
        ("delta = 1e-05", "delta = 1e-06", "Other settings"),
        ("count = 4", "count = 3", "Other settings"),
        ('protocol = "ideal"', 'protocol = "secure"', "Other settings"),
        ('name = "quickstart"', 'name = "another"', "Other settings"),
        ("learning_rate = 4.0", "learning_rate = 5.0", "Configuration file"),
        ("[job]", "[job", "Configuration file"),
        ("[job]", "# a comment\n[job]", "Configuration file"),
    ],
)
def test_the_configuration_cannot_be_changed(run: Path, old: str, new: str, named: str) -> None:
    replace_text(run / "config.toml", old, new)
    assert failed(run) == {"Configuration file", named}


def privacy(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["privacy"].update(values)


def epsilon(view: str, factor: float) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        body["privacy"]["epsilon"][view] *= factor

    return change


def claimed(view: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["privacy"]["epsilon"].update({view: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (epsilon("outsider", 0.999), "Epsilon, outsider view"),
        (epsilon("outsider", 1.001), "Epsilon, outsider view"),
        (epsilon("participant", 0.9), "Epsilon, participant view"),
        (epsilon("server", 0.5), "Epsilon, server view"),
        (claimed("server", "inf"), "Epsilon, server view"),
        (claimed("server", "3"), "Epsilon, server view"),
        (claimed("outsider", None), "Epsilon, outsider view"),
        (claimed("outsider", True), "Epsilon, outsider view"),
        (claimed("outsider", {}), "Epsilon, outsider view"),
        (claimed("insider", 0.1), "Epsilon of other views"),
        (lambda body: body["privacy"].pop("epsilon"), "Epsilon, outsider view"),
        (privacy(delta=1e-6), "Other settings"),
        (privacy(unit="example"), "Other settings"),
        (privacy(guarantee="server"), "Other settings"),
        (privacy(clip=0.1), "Clipping norm"),
        (privacy(noise_multiplier=1.7), "Noise multiplier"),
        (privacy(mechanism="local-gaussian"), "Mechanism"),
        (privacy(budget=1.0), "Budget in the summary"),
        (privacy(budget=None), "Budget in the summary"),
        (lambda body: body.update(privacy=None), "Epsilon, outsider view"),
        (lambda body: body.update(rounds=3), "Rounds"),
        (lambda body: body.update(rounds=True), "Rounds"),
        (lambda body: body.update(status="budget-exhausted"), "Status"),
        (lambda body: body.update(status="interrupted"), "Status"),
        (lambda body: body.update(ledger_head="0" * 64), "Ledger head"),
        (lambda body: body.update(signer="0" * 64), "Signer in the summary"),
        (lambda body: body.update(model_sha256="0" * 64), "Model file"),
        (lambda body: body.update(protocol="secure"), "Other settings"),
        (lambda body: body.update(name="another"), "Other settings"),
        (lambda body: body.update(reproducible=True), "Randomness"),
        (lambda body: body["versions"].update(fedsys="9"), "Versions"),
        (lambda body: body["metrics"].update(accuracy=0.99), "Metrics"),
    ],
)
def test_the_summary_cannot_be_changed(
    run: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    edit_json(run, change)
    assert named in failed(run)


def test_an_unreadable_summary_is_refused(run: Path) -> None:
    (run / "summary.json").write_text('{"version": 1, "version": 1}')
    assert "Summary" in failed(run)


def exchange_one(body: dict[str, Any]) -> None:
    outsider = next(id for id in range(2000) if id not in body["sampled"])
    body["survivors"][0] = outsider


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["survivors"].pop(),
        lambda body: body["sampled"].append(1436),
        lambda body: body["participations"].__setitem__(0, 9),
        lambda body: body.update(salt="00" * 32),
        lambda body: body.update(salt="zz"),
        lambda body: body.pop("survivors"),
        lambda body: body.update(round=1),
        lambda body: body.update(round=99),
        lambda body: body.update(round="3"),
        exchange_one,
    ],
)
def test_who_took_part_cannot_be_changed(
    run: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_private(run, 3, change)
    assert failed(run) == {COMMITMENTS}


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:-1],
        lambda lines: lines[1:],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines, lines[0]],
        lambda lines: [*lines, b"garbage\n"],
        lambda lines: [*lines[:-1], lines[-1][:50]],
        lambda lines: [],
    ],
    ids=["cut", "drop", "swap", "repeat", "garbage", "torn", "empty"],
)
def test_private_lines_cannot_be_moved(run: Path, change: Callable[[Lines], Lines]) -> None:
    path = run / "private.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    assert failed(run) == {COMMITMENTS}


def test_another_model_is_refused(run: Path) -> None:
    (run / "model.pt").write_bytes(b"another model")
    assert failed(run) == {"Model file", "Model weights"}


@pytest.mark.parametrize(
    "text",
    [
        '{"round": 99, "accuracy": 0.9}\n',
        '{"round": 0, "accuracy": 0.9}\n',
        '{"round": 2, "accuracy": 0.9}\n{"round": 1, "accuracy": 0.9}\n',
        '{"accuracy": 0.9}\n',
        '{"round": 1, "accuracy": NaN}\n',
        '{"round": 1, "accu',
    ],
)
def test_metrics_outside_the_ledger_are_refused(run: Path, text: str) -> None:
    (run / "metrics.jsonl").write_text(text)
    assert failed(run) == {"Metrics"}


class TestTheKeyHolderLies:
    """The coordinator signs whatever it likes; what contradicts itself is still caught."""

    def sign(self, run: Path, signer: Signer, lines: list[tuple[str, dict[str, Any]]]) -> set[str]:
        head = sign_again(run, lines, signer)
        edit_json(run, lambda body: body.update(ledger_head=head))
        return failed(run, signer.public_hex)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("clip", 0.1),
            ("noise_multiplier", 1.4),
            ("total_variance", 1e9),
            ("share_variance", 1.0),
            ("sampling_rate", 0.001),
            ("l2", 1.0),
            ("cap", 5000),
            ("mechanism", "none"),
            ("mechanism", "wishful"),
            ("dimension", 10),
            ("dimension", "650"),
            ("sampling", "fixed"),
            ("colluders", 3),
        ],
    )
    def test_about_a_round(self, run: Path, signer: Signer, key: str, value: Any) -> None:
        lines = entries(run)
        lines[3][1]["event"][key] = value
        assert "Reserved events" in self.sign(run, signer, lines)

    @pytest.mark.parametrize("adaptive", [False, True])
    def test_about_every_round_s_clip(self, run: Path, signer: Signer, adaptive: bool) -> None:
        lines = entries(run)
        lines[0][1]["plan"]["adaptive_clip"] = adaptive
        event = plan_of(lines[0][1]).event(clip=0.1).to_json()
        for _, body in (line for line in lines if line[0] == "reserve" and line[1]["round"] > 1):
            body["event"] = event
        costs = {"Budget in the summary", *map("Epsilon, {} view".format, VIEWS)}
        wrong = {"Other settings"} if adaptive else {"Reserved events"} | costs
        assert self.sign(run, signer, lines) == wrong
        lines[1][1]["event"] = event
        assert self.sign(run, signer, lines) == wrong | {"Reserved events"}

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("population", 14370),
            ("noise_multiplier", 1.4),
            ("delta", 1e-4),
            ("rounds", 2),
            ("mechanism", "none"),
            ("cap", 41),
            ("dimension", 0),
            ("sampling", "sometimes"),
            ("rounds", 10**12),
            ("population", 10**15),
            ("clip", 0.1),
            ("clip", None),
            ("expected_cohort", "40"),
        ],
    )
    def test_about_the_plan(self, run: Path, signer: Signer, key: str, value: Any) -> None:
        lines = entries(run)
        lines[0][1]["plan"][key] = value
        assert self.sign(run, signer, lines) & {
            "Privacy plan",
            "Reserved events",
            "Delta and its parts",
        }

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda header: header["delta_parts"].update(aborts=0.0), "Privacy plan"),
            (lambda header: header.pop("delta_parts"), "Privacy plan"),
            (lambda header: header["neighbours"].update(server="nobody"), "Header"),
            (lambda header: header["not_covered"].clear(), "Header"),
            (lambda header: header["accountants"].update(reported="clt"), "Header"),
            (lambda header: header.update(config_sha256="0" * 64), "Configuration file"),
            (lambda header: header.update(protocol="secure"), "Other settings"),
            (lambda header: header.update(reproducible=True), "Randomness"),
            (lambda header: header.pop("reproducible"), "Randomness"),
            (lambda header: header.pop("code_sha256"), "Code"),
            (lambda header: header.pop("plan"), "Privacy plan"),
            (lambda header: header.update(delta=1e-7), "Privacy plan"),
        ],
    )
    def test_in_the_header(
        self, run: Path, signer: Signer, change: Callable[[dict[str, Any]], object], named: str
    ) -> None:
        lines = entries(run)
        change(lines[0][1])
        assert any(name.startswith(named) for name in self.sign(run, signer, lines))

    def test_another_code_hash_is_named_and_left_open(self, run: Path, signer: Signer) -> None:
        lines = entries(run)
        lines[0][1]["code_sha256"] = "ab" * 32
        assert self.sign(run, signer, lines) == set()
        said = next(claim for claim in audit_run(run).claims if claim.name == "Code")
        assert said.holds is None
        assert "another version" in said.rederived

    def test_more_rounds_than_delta_was_split_for(self, run: Path, signer: Signer) -> None:
        lines = entries(run)
        extra = {**lines[1][1], "round": 5}
        closing = {**lines[-1][1], "lines": len(lines) + 1}
        failures = self.sign(run, signer, [*lines[:-1], ("reserve", extra), ("closed", closing)])
        assert {"Rounds within the plan", "Rounds", "Epsilon, outsider view"} <= failures

    def test_a_round_left_out(self, run: Path, signer: Signer) -> None:
        lines = [line for line in entries(run) if line[1].get("round") != 2]
        lines[-1][1]["lines"] = len(lines)
        assert self.sign(run, signer, lines) >= {CHAIN}, "a gap is no ledger"
        for line in lines[3:-1]:
            line[1]["round"] -= 1
        failures = self.sign(run, signer, lines)
        assert {"Rounds", COMMITMENTS, "Epsilon, outsider view"} <= failures

    def test_another_commitment(self, run: Path, signer: Signer) -> None:
        lines = entries(run)
        lines[2][1]["commitments"]["survivors"] = "ab" * 32
        assert self.sign(run, signer, lines) == {COMMITMENTS}

    def forge(
        self, finished: Path, run: Path, cohorts: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> set[str]:
        """Honest commitments to cohorts and survivors of the key holder's own choosing."""
        signer = Signer.generate()
        lines = entries(finished)
        run.mkdir()
        with Ledger.create(
            run / "ledger.jsonl", run / "private.jsonl", signer=signer, header=lines[0][1]
        ) as ledger:
            for number, (sampled, survivors) in enumerate(cohorts, start=1):
                ledger.reserve(number, {"event": lines[1][1]["event"]})
                ledger.commit(number, {}, sampled=sampled, survivors=survivors)
            ledger.close("completed")
        assert read_private(run / "private.jsonl")[0][1]["sampled"] == list(cohorts[0][0])
        return failed(run)

    def test_a_cohort_beyond_the_limits(self, finished: Path, tmp_path: Path) -> None:
        plan = entries(finished)[0][1]["plan"]
        usual = range(40)
        most, least = range(plan["cap"] + 1), range(plan["min_survivors"] - 1)
        assert "Cohort limits" in self.forge(finished, tmp_path / "a", [(most, most)])
        assert "Cohort limits" in self.forge(finished, tmp_path / "b", [(usual, least)])
        assert "Cohort limits" not in self.forge(finished, tmp_path / "c", [(usual, usual)])

    def test_a_client_that_comes_back_too_early(self, tmp_path: Path) -> None:
        config = job(
            "cohort.sampling=min-separation",
            "cohort.min_separation=3",
            "privacy.max_participations=2",
        )
        honest = harness.run(config, out=tmp_path / "run").folder
        early = [(range(40), range(40)), (range(40, 80), range(40, 80)), (range(40), range(40))]
        late = [*early[:2], (range(80, 120), range(80, 120)), early[0]]
        assert "Cohort limits" in self.forge(honest, tmp_path / "early", early)
        assert "Cohort limits" not in self.forge(honest, tmp_path / "late", late)

    def test_cohorts_that_were_not_sampled(self, finished: Path, tmp_path: Path) -> None:
        """The same clients again, or many more than the sampling rate gives."""
        again = [(range(40), range(40))] * 2
        many = [(range(start, start + 75), range(start, start + 75)) for start in range(4)]
        few = [(range(start, start + 20), range(start, start + 20)) for start in range(4)]
        rng = np.random.default_rng(4)
        fair = [(each, each) for each in (_drawn(rng, 40 / 1437) for _ in range(4))]
        name = "Cohorts look sampled"
        assert name in self.forge(finished, tmp_path / "again", again)
        assert name in self.forge(finished, tmp_path / "many", many)
        assert name in self.forge(finished, tmp_path / "few", few)
        assert name not in self.forge(finished, tmp_path / "fair", fair)


def _drawn(rng: np.random.Generator, rate: float) -> list[int]:
    return [int(client) for client in np.flatnonzero(rng.random(1437) < rate)]


@given(data=st.data())
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_no_byte_of_the_ledger_is_free(finished: Path, run: Path, data: st.DataObject) -> None:
    raw = bytearray((finished / "ledger.jsonl").read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    (run / "ledger.jsonl").write_bytes(bytes(raw))
    # The digit of the format's version alone makes it another, unsupported one.
    with contextlib.suppress(AuditInputError):
        assert CHAIN in failed(run)


@given(data=st.data())
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_garbage_never_stops_the_audit(finished: Path, run: Path, data: st.DataObject) -> None:
    """Whatever replaces a piece of a file, the audit ends with a result or says it is no run."""
    name = data.draw(
        st.sampled_from(
            ["ledger.jsonl", "private.jsonl", "summary.json", "config.toml", "metrics.jsonl"]
        )
    )
    raw = (finished / name).read_bytes()
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, min(len(raw), start + 40)))
    filling = data.draw(st.binary(max_size=40))
    (run / name).write_bytes(raw[:start] + filling + raw[end:])
    with contextlib.suppress(AuditInputError):
        assert audit_run(run).claims
    (run / name).write_bytes(raw)
