"""A registry's entry holds what the evidence supports, and asks for the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsys.errors import AuditInputError
from fedsys.privacy import Epsilons, Signer
from fedsys.privacy.ledger import Ledger
from fedsys.records import AuditResult, EpsilonPoint, Terms, Total
from fedsys.report import render
from fedsys.report.registry import ASK, entry, to_text

MakeAudit = Callable[..., AuditResult]

KEYS = {
    "product": "name data_curators intended_use data_product_type data_product_region description "
    "publication_date data_product_sector",
    "dp_flavor": "name data_domain unprotected_quantities",
    "privacy_loss": "privacy_unit privacy_unit_description privacy_parameters "
    "privacy_parameters_description",
    "model": "model_name actors release_type release_type_description access_type",
    "accounting": "post_processing composition",
    "implementation": "pre_processing_eda_hyperparameter_tuning mechanisms justification",
    "resources": "sources registry_authors",
}
"""Those of published entries of the registry, which allows no others."""


@pytest.fixture
def run(run_folder: Path) -> Path:
    """A finished run of devices."""
    header = {"population": {"clients": 1437, "roster_version": 3}}
    Ledger.create(
        run_folder / "ledger.jsonl",
        run_folder.with_name("elsewhere.jsonl"),
        signer=Signer.generate(),
        header=header,
    ).close("completed")
    return run_folder


def audited(make_audit: MakeAudit, **changes: Any) -> AuditResult:
    return replace(make_audit(), details={"closed": True}, **changes)


def strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)
    elif isinstance(value, str):
        yield value


def test_it_has_the_registry_s_keys_and_reads_back_as_yaml(
    run: Path, make_audit: MakeAudit
) -> None:
    made = entry(run, audited(make_audit))
    assert list(made) == ["url_slug", "status", "tier", "deployment"]
    assert {name: " ".join(part) for name, part in made["deployment"].items()} == KEYS
    assert yaml.safe_load(to_text(made)) == json.loads(to_text(made)) == made
    assert "1437 enrolled devices" in made["deployment"]["product"]["description"]


def test_only_the_outsider_s_figures_are_in_it(run: Path, make_audit: MakeAudit) -> None:
    """The others depend on who took part when, which is secret."""
    audit = audited(make_audit)
    loss = entry(run, audit)["deployment"]["privacy_loss"]
    spent = audit.curve[-1].spent
    assert loss["privacy_parameters"] == {"epsilon": spent.outsider, "delta": 1e-5}
    text = to_text(entry(run, audit))
    assert repr(spent.participant) not in text
    assert repr(spent.server) not in text
    total = Total(runs=20, before=6.1236, epsilon=11.234, delta=2e-5)
    loss = entry(run, replace(audit, total=total))["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"] == {"epsilon": 11.234, "delta": 2e-5}
    assert "20 tuning runs" in loss["privacy_parameters_description"]


def test_what_no_folder_shows_is_asked_for(run: Path, make_audit: MakeAudit) -> None:
    deployment = entry(run, audited(make_audit))["deployment"]
    for part in ("dp_flavor", "product", "implementation", "resources"):
        assert any(ASK in text for text in strings(deployment[part])), part
    assert not any(ASK in text for text in strings(deployment["privacy_loss"]))


@pytest.mark.parametrize("summary", ["missing", "of another shape", "of a client"])
def test_what_the_epsilon_is_of_is_what_was_signed(
    summary: str, run: Path, make_audit: MakeAudit
) -> None:
    """Whatever the summary says, or whether a report can read it at all."""
    terms = Terms(
        mechanism="example-gaussian",
        unit="example",
        guarantee="server",
        protocol="ideal",
        clip=0.125,
        noise_multiplier=2.25,
        reproducible=True,
    )
    path = run / "summary.json"
    if summary == "missing":
        path.unlink()
    elif summary == "of another shape":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"stopped": 5}))
    audit = audited(make_audit, terms=terms)
    made = entry(run, audit)["deployment"]
    assert made["privacy_loss"]["privacy_unit"] == "Example"
    assert made["model"]["model_name"] == "Local"
    implementation = made["implementation"]["mechanisms"]
    assert "Clipping norm 0.125, noise multiplier 2.25" in implementation
    page = render(run, audit, private=False)
    assert "one example of one client" in page
    assert "One client: its whole contribution" not in page
    assert "Reproducible, not private" in page
    assert "Ideal aggregation" in page


def test_a_run_without_a_claim_gets_no_entry(run: Path, make_audit: MakeAudit) -> None:
    endless = EpsilonPoint(
        round=40, spent=Epsilons(outsider=math.inf, participant=math.inf, server=math.inf)
    )
    for audit, said in (
        (make_audit(failed=True), "its audit fails"),
        (replace(audited(make_audit), details={}), "not finished"),
        (audited(make_audit, withheld="the task looked at the data"), "no differential privacy"),
        (audited(make_audit, curve=(endless,)), "no differential privacy"),
    ):
        with pytest.raises(AuditInputError, match=said):
            entry(run, audit)
    config = run / "config.toml"
    config.write_text(config.read_text().replace('protocol = "secure"', 'protocol = "float"'))
    with pytest.raises(AuditInputError, match="in floating point"):
        entry(run, audited(make_audit))
