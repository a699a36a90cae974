"""The published JSON Schemas, and a run's files against them."""

from __future__ import annotations

import functools
import importlib
import importlib.resources
import json
from pathlib import Path
from typing import Any

LINES = {
    "ledger.jsonl": "ledger",
    "private.jsonl": "private",
    "metrics.jsonl": "metrics",
    "canaries.jsonl": "canaries",
}
WHOLE = {"summary.json": "summary", "audit.json": "audit"}


@functools.cache
def validator(name: str) -> Any:
    """Of ``name.schema.json``, which is checked first."""
    jsonschema = importlib.import_module("jsonschema")  # it has no types
    source = importlib.resources.files("fedsys.privacy").joinpath(f"{name}.schema.json")
    schema = json.loads(source.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def documents(run: Path) -> list[tuple[str, Any]]:
    """(schema, document) of every file in a run's folder that has one."""
    found = []
    for name, schema in LINES.items():
        if (run / name).exists():
            lines = (run / name).read_text(encoding="utf-8").splitlines()
            found += [(schema, json.loads(line)) for line in lines]
    for name, schema in WHOLE.items():
        if (run / name).exists():
            found.append((schema, json.loads((run / name).read_text(encoding="utf-8"))))
    return found


def check(run: Path) -> set[str]:
    """Every document fits its schema; returns which schemas there were documents of."""
    found = documents(run)
    for schema, document in found:
        validator(schema).validate(document)
    return {schema for schema, _ in found}
