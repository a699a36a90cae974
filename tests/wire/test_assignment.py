"""Assignments and terms read back equal, strictly."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from fedsys.errors import ProtocolError
from fedsys.privacy import make_plan
from fedsys.wire import Assignment
from fedsys.wire.assignment import batch_seed
from fedsys.wire.terms import Terms, decode_params, encode_params
from secure_agg import SecAggParams

ASSIGNMENT = Assignment(
    job=bytes(range(32)),
    round=3,
    task="digits",
    weights=np.linspace(-1, 1, 7, dtype=np.float32),
    local={"learning_rate": 0.1, "epochs": 2},
    mechanism={"clip": 0.3},
    seed=5,
    terms=bytes(32),
)


def test_an_assignment_reads_back_equal() -> None:
    found = Assignment.decode(ASSIGNMENT.head, ASSIGNMENT.weights_bytes)
    assert found.digest == ASSIGNMENT.digest
    assert np.array_equal(found.weights, ASSIGNMENT.weights)
    assert found.context == ASSIGNMENT.context


@pytest.mark.parametrize(
    "change",
    [
        {"round": 4},
        {"task": "mnist"},
        {"seed": 6},
        {"terms": b"\1" + bytes(31)},
        {"mechanism": {"clip": 0.30000000000000004}},
        {"weights": np.linspace(-1, 1.0000002, 7, dtype=np.float32)},
    ],
)
def test_the_digest_depends_on_everything(change: dict[str, Any]) -> None:
    assert dataclasses.replace(ASSIGNMENT, **change).digest != ASSIGNMENT.digest


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("round", 0),
        ("round", 1.0),
        ("round", True),
        ("seed", -1),
        ("job", "00"),
        ("terms", "zz"),
        ("task", 1),
        ("local", []),
        ("extra", 1),
    ],
)
def test_a_malformed_assignment_is_refused(key: str, value: object) -> None:
    body = json.loads(ASSIGNMENT.head)
    body[key] = value
    head = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(ProtocolError):
        Assignment.decode(head, ASSIGNMENT.weights_bytes)
    with pytest.raises(ProtocolError, match="float32"):
        Assignment.decode(ASSIGNMENT.head, ASSIGNMENT.weights_bytes[:-1])


def test_devices_and_simulations_draw_batches_alike() -> None:
    for client in (0, 1, 99):
        assert ASSIGNMENT.batch_seed(client) == batch_seed(5, 3, client)
    # pinned: stored runs are repeated by it
    assert batch_seed(5, 3, 0) == 16066093920273978821
    assert batch_seed(0, 1, 1436) == 14345073529836995889


def test_terms_read_back_equal() -> None:
    terms = Terms(
        job=bytes(32),
        name="n",
        task="digits",
        options={"hidden": 3},
        task_sha256="00",
        local={"epochs": 1},
        path="loop",
        dimension=650,
        example_clip=1.0,
        plan=make_plan(
            mechanism="distributed-gaussian",
            population=100,
            expected_cohort=20,
            rounds=2,
            dimension=650,
            clip=1.0,
            delta=1e-5,
            noise_multiplier=1.0,
        ),
        seed=0,
        roster_version=1,
        roster_hash="00",
    )
    assert Terms.decode(terms.encoded) == terms
    assert Terms.decode(terms.encoded).digest == terms.digest
    with pytest.raises(ProtocolError):
        Terms.decode(terms.encoded.replace(b'"seed":0', b'"seed":-1'))
    with pytest.raises(ProtocolError):
        Terms.decode(terms.encoded.replace(b'"rounds":2', b'"rounds":0'))


def test_parameters_read_back_equal() -> None:
    params = SecAggParams.derive(n=100, corrupt=0.1, dropout=0.1)
    assert decode_params(encode_params(params)) == params
    for wrong in (b"{}", encode_params(params).replace(b'"n":100', b'"n":1')):
        with pytest.raises(ProtocolError):
            decode_params(wrong)
