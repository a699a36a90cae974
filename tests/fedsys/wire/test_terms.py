"""Terms of buffered rounds: numbers in their ranges, and together with the plan that they need."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedsys.errors import ProtocolError
from fedsys.privacy import make_plan
from fedsys.wire.canonical import encode_object
from fedsys.wire.terms import Buffering, Terms

PLAN = make_plan(
    mechanism="distributed-gaussian",
    population=100,
    expected_cohort=20,
    rounds=2,
    dimension=650,
    clip=1.0,
    delta=1e-5,
    noise_multiplier=1.0,
    sampling="arrivals",
    max_participations=1,
)
BUFFERING = Buffering(concurrency=30, epoch=3, max_staleness=4)


def terms(**change: Any) -> Terms:
    values: dict[str, Any] = {
        "job": bytes(32),
        "name": "n",
        "task": "digits",
        "options": {},
        "task_sha256": "00",
        "local": {"epochs": 1},
        "path": "loop",
        "dimension": 650,
        "example_clip": 1.0,
        "plan": PLAN,
        "seed": 0,
        "roster_version": 1,
        "roster_hash": "00",
        "buffering": BUFFERING,
    }
    return Terms(**{**values, **change})


def test_buffering_reads_back_equal_and_is_in_the_digest() -> None:
    found = Terms.decode(terms().encoded)
    assert found == terms()
    assert found.buffering == BUFFERING
    other = Buffering(concurrency=30, epoch=3, max_staleness=5)
    assert terms(buffering=other).digest != found.digest


def test_a_suite_is_stated_where_it_is_not_the_usual_one() -> None:
    usual, hybrid = terms(), terms(suite="x25519-mlkem768")
    assert b"suite" not in usual.encoded
    assert Terms.decode(usual.encoded).secagg_suite == 1
    found = Terms.decode(hybrid.encoded)
    assert (found, found.secagg_suite) == (hybrid, 2)
    assert found.digest != usual.digest
    for stated in ("x25519", "mlkem", "", 2, None, ["x25519-mlkem768"]):
        body = {**json.loads(hybrid.encoded), "suite": stated}
        with pytest.raises(ProtocolError, match="a job's terms: "):
            Terms.decode(encode_object(body))


def test_an_epoch_invites_no_more_than_there_are_and_can_be_served() -> None:
    assert BUFFERING.largest_epoch(PLAN) == 30 + 3 * 20
    assert Buffering(concurrency=30, epoch=10, max_staleness=0).largest_epoch(PLAN) == 100
    assert terms().largest_cohort == 90
    assert terms(buffering=None).largest_cohort == PLAN.cap


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("concurrency", 1),
        ("concurrency", 10**400),
        ("epoch", 1),
        ("epoch", 10_001),
        ("max_staleness", -1),
        ("max_staleness", 10**7),
        ("max_staleness", True),
        ("max_staleness", 2.0),
        ("epoch", None),
        ("other", 1),
    ],
)
def test_numbers_outside_their_ranges_are_refused(key: str, value: object) -> None:
    body = json.loads(terms().encoded)
    body["buffering"][key] = value
    with pytest.raises(ProtocolError):
        Terms.decode(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize("value", [[], 3, "x", {}])
def test_buffering_is_an_object_of_its_own(value: object) -> None:
    body = json.loads(terms().encoded)
    body["buffering"] = value
    with pytest.raises(ProtocolError):
        Terms.decode(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def test_buffers_and_arrivals_go_together() -> None:
    with pytest.raises(ProtocolError, match="buffered rounds require arrivals as cohorts"):
        Terms.decode(terms(buffering=None).encoded)


def test_no_device_takes_part_where_the_coordinator_chooses() -> None:
    chosen = PLAN.changed(sampling="chosen", min_survivors=9)
    with pytest.raises(ProtocolError, match="cohorts that the coordinator chooses"):
        Terms.decode(terms(plan=chosen, buffering=None).encoded)


def test_a_hash_of_frozen_weights_is_left_out_or_whole() -> None:
    assert b"frozen" not in terms().encoded
    found = terms(frozen_sha256="ab" * 32)
    assert Terms.decode(found.encoded) == found
    assert found.digest != terms().digest
    for wrong in ("", "AB" * 32, "ab" * 31, 7):
        body = json.loads(found.encoded) | {"frozen_sha256": wrong}
        with pytest.raises(ProtocolError, match=r"frozen weights|terms"):
            Terms.decode(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
