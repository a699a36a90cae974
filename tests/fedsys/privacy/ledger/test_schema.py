"""Every line that is written fits the published schema."""

from __future__ import annotations

import importlib
import importlib.resources
import json
from pathlib import Path
from typing import Any

import pytest

from fedsys.privacy import make_plan, read_ledger, replay
from fedsys.privacy.plan import PrivacyPlan
from tests.fedsys.privacy.ledger.ledgers import create, read_lines, reopen, write_run
from tests.fedsys.privacy.plans import FORTY_ROUNDS


def test_every_line_fits_the_schema(tmp_path: Path, plan: PrivacyPlan) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    source = importlib.resources.files("fedsys.privacy").joinpath("ledger.schema.json")
    schema = json.loads(source.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    write_run(tmp_path, plan, close=False)
    reopen(tmp_path).close("completed")
    lines = read_lines(tmp_path)
    assert {line["kind"] for line in lines} == {
        "header",
        "reserve",
        "commit",
        "abort",
        "resume",
        "closed",
    }
    for line in lines:
        validator.validate(line)
    for change in ({"kind": "note"}, {"seq": -1}, {"hash": "xyz"}, {"extra": 1}):
        assert not validator.is_valid(lines[1] | change)
    bad = json.loads(json.dumps(lines[1]))
    bad["body"]["event"]["mechanism"] = "magic"
    assert not validator.is_valid(bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"mechanism": "central-gaussian"},
        {"mechanism": "local-gaussian"},
        {"mechanism": "none", "noise_multiplier": None},
        {"encoding": "narrow", "modulus_bits": 16},
        {"mechanism": "example-gaussian", "example_rate": 0.1, "steps": 4},
        {"mechanism": "banded-mf", "min_separation": 8},
        {"guarantee": "server", "max_participations": 5},
        {"sampling": "fixed"},
        {"sampling": "min-separation", "min_separation": 4, "max_participations": 3},
        {"sampling": "chosen", "max_participations": 3},
    ],
)
def test_every_mechanisms_lines_fit_the_schema(changes: dict[str, Any], tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    source = importlib.resources.files("fedsys.privacy").joinpath("ledger.schema.json")
    plan = make_plan(**FORTY_ROUNDS | changes)
    with create(tmp_path, plan) as ledger:
        ledger.reserve(1, {"event": plan.event().to_json()})
    for line in read_lines(tmp_path):
        jsonschema.validate(line, json.loads(source.read_text(encoding="utf-8")))
    accountant, spent = replay(read_ledger(tmp_path / "ledger.jsonl"), None)
    assert accountant.plan == plan
    assert spent.outsider > 0
