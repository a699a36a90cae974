"""Every component of SP 800-226's pyramid is answered, and nothing is said that is not so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedsys.records import AuditResult
from fedsys.report.contents import read
from fedsys.report.facts import gather
from fedsys.report.pyramid import pyramid

MakeAudit = Callable[..., AuditResult]


def rows(folder: Path, audit: AuditResult, **changes: object) -> dict[str, str]:
    contents = read(folder, private=False)
    facts = replace(gather(contents, audit, private=False), **changes)  # type: ignore[arg-type]
    return dict(pyramid(contents, audit, facts))


def test_from_top_to_bottom(run_folder: Path, make_audit: MakeAudit) -> None:
    found = rows(run_folder, make_audit())
    assert list(found) == [
        "Privacy parameters (ε, δ)",
        "Unit of privacy",
        "Algorithms and correctness",
        "Utility",
        "Bias",
        "Trust model",
        "Side channels",
        "Security and access control",
        "Data collection exposure",
    ]
    assert found["Privacy parameters (ε, δ)"].startswith("(8.59, 10⁻⁵)-DP for an outsider")
    assert "accuracy" in found["Utility"]
    assert "claims fail" in rows(run_folder, make_audit(failed=True))["Algorithms and correctness"]


@pytest.mark.parametrize(
    ("changes", "component", "said"),
    [
        ({"mechanism": "none"}, "Privacy parameters (ε, δ)", "None: no noise was added"),
        ({"withheld": "it looked"}, "Privacy parameters (ε, δ)", "Not claimed: it looked"),
        ({"unit": "example"}, "Unit of privacy", "event level"),
        (
            {"mechanism": "central-gaussian"},
            "Trust model",
            "Central: the coordinator sees each sum",
        ),
        ({"mechanism": "local-gaussian"}, "Trust model", "Local: each client adds its own noise"),
        ({"protocol": "ideal"}, "Trust model", "One machine simulated everybody"),
        ({"protocol": "ideal"}, "Data collection exposure", "A simulation"),
    ],
)
def test_what_a_run_does_not_promise_is_said(
    run_folder: Path,
    make_audit: MakeAudit,
    changes: dict[str, object],
    component: str,
    said: str,
) -> None:
    assert said in rows(run_folder, make_audit(), **changes)[component]
