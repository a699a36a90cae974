"""A device with a graph does what one with the task's code does, or says why not."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.graphs.answers import answers
from client.graphs.worker import GraphData
from client.local_data import DataSpec, LocalData
from fedsys import tasks
from fedsys.errors import DataError, PolicyRefusal
from fedsys.privacy import make_plan
from fedsys.queries import Sheet, parse
from fedsys.tasks.export import export_task
from fedsys.wire import Assignment
from fedsys.wire.terms import Terms
from tests.fedsys.graphs.samples import softmax_regression

QUESTIONS: list[dict[str, Any]] = [
    {"ask": "labels", "name": "classes", "classes": 10, "rows": 500},
    {"ask": "mean", "name": "ink", "column": "x20", "low": 0, "high": 1, "rows": 500},
    {"ask": "count", "name": "rows", "rows": 2000},
]


def _terms(kind: str = "train", **change: Any) -> Terms:
    asked = kind == "query"
    size = Sheet.of(parse(QUESTIONS), population=3).dimension if asked else 650
    plan = make_plan(
        mechanism="none",
        population=3,
        expected_cohort=3,
        rounds=1,
        dimension=size,
        clip=1.0,
        delta=1e-5,
        cap=3,
        min_survivors=2,
    )
    values: dict[str, Any] = {
        "job": bytes(32),
        "name": "n",
        "task": "digits",
        "options": {},
        "task_sha256": "",
        "local": {"batch_size": 32},
        "path": "loop",
        "dimension": 0 if asked else 650,
        "example_clip": 1.0,
        "plan": plan,
        "seed": 7,
        "roster_version": 1,
        "roster_hash": "",
        "kind": kind,
        "questions": QUESTIONS if asked else (),
    }
    return Terms(**{**values, **change})


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> GraphData:
    examples = tasks.load("digits").clients(tasks.DataSource()).train
    made = export_task(tasks.load("digits"), examples, name="digits", options={}, batch_size=32)
    path = tmp_path_factory.mktemp("rows") / "digits.npz"
    np.savez(path, x=examples.x.numpy(), y=examples.y.numpy())
    return GraphData(made, str(path))


def _sent(worker: GraphData | LocalData, terms: Terms) -> NDArray[np.float32]:
    assignment = Assignment(
        job=terms.job,
        round=1,
        task="digits",
        weights=np.zeros(terms.dimension, dtype=np.float32),
        local={},
        mechanism={},
        seed=terms.seed,
    )
    worker.check(terms)
    return worker.train(terms, assignment, 1, os.urandom)


def test_questions_are_answered_to_the_bit_as_by_the_tasks_code(device: GraphData) -> None:
    terms = _terms("query")
    found = _sent(device, terms)
    assert np.array_equal(found, _sent(LocalData(DataSpec(task="digits")), terms))
    assert np.linalg.norm(found) > 0.1


@pytest.mark.parametrize(
    ("column", "known"), [("x64", "label, x0 to x63"), ("age", "label, x0 to x63")]
)
def test_a_column_that_is_not_there_is_named(device: GraphData, column: str, known: str) -> None:
    asked = [{"ask": "mean", "name": "m", "column": column, "low": 0, "high": 1, "rows": 9}]
    with pytest.raises(PolicyRefusal, match=f"column '{column}': task digits has {known}"):
        device.check(_terms("query", questions=asked))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dimension": 650}, "a query takes no weights"),
        ({"weight_cap": 10}, "a cap of 10 examples"),
        ({"questions": [{"ask": "guess", "name": "x"}]}, "questions cannot be answered here"),
        ({"task": "mnist"}, "the graph here is of 'digits'"),
        ({"kind": "evaluate"}, "a graph trains and does not predict"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    device: GraphData, change: dict[str, Any], why: str
) -> None:
    with pytest.raises(PolicyRefusal, match=why):
        device.check(dataclasses.replace(_terms("query"), **change))


def test_the_target_of_a_table_has_units_that_a_graph_does_not_know() -> None:
    graph = dataclasses.replace(softmax_regression(features=2), task="tabular")
    asked = [{"ask": "mean", "name": "m", "column": "label", "low": 0, "high": 1, "rows": 9}]
    terms, x = _terms("query", questions=asked), np.ones((3, 2), dtype=np.float32)
    assert answers(graph, terms, x, np.array([0, 1, 1]), seed=1).any()
    with pytest.raises(DataError, match="column 'label': task tabular has x0 to x1"):
        answers(graph, terms, x, np.array([0.1, 0.2, 0.3], dtype=np.float32), seed=1)


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_rows_that_are_held_out_are_not_trained_on(device: GraphData, held_out: float) -> None:
    terms = _terms(held_out=held_out)
    found = _sent(device, terms)
    expected = _sent(LocalData(DataSpec(task="digits")), terms)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    assert np.abs(expected).max() > 1e-3
