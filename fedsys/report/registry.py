"""An entry for a registry of deployments of differential privacy, from a run's folder and audit.

The keys are those of the Differential Privacy Deployments Registry
(github.com/opendp/deployments-registry-data), which follows the hierarchical schema of Nanayakkara,
Ghazi and Vadhan, "Practitioners' Perspectives on a Differential Privacy Deployment Registry" (2025,
arXiv:2509.13509). What no folder can show begins with `ASK`; the operator replaces it.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from fedsys.errors import AuditInputError
from fedsys.printable import printable
from fedsys.privacy.ledger import read_header
from fedsys.records import AuditResult
from fedsys.report.contents import RunContents, read
from fedsys.report.facts import Facts, explain, gather, mechanism_title
from fedsys.report.pyramid import pyramid

__all__ = ["ASK", "SUFFIXES", "entry", "to_text"]

ASK = "OPERATOR: "
"""Begins each value that is the operator's to state."""
SUFFIXES = (".json", ".yaml", ".yml")

_BARE_EXPONENT = re.compile(r'^( *"\w+": -?\d+)(e[-+]\d+,?)$', re.MULTILINE)
"""A number such as 1e-05, which YAML 1.1 reads as text."""


def to_text(made: dict[str, Any]) -> str:
    """The entry as JSON, which is YAML too."""
    text = json.dumps(made, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _BARE_EXPONENT.sub(r"\1.0\2", text)


def entry(run: Path, audit: AuditResult) -> dict[str, Any]:
    """The entry of an audited run. It is for the public, so it holds the outsider's epsilon alone.

    Args:
        run: the run's folder, private or published.
        audit: the audit of that folder.

    Raises:
        AuditInputError: the audit fails, or the run is not finished, no release, or claims no
            differential privacy.
        RunFolderError: there is no such folder.
    """
    failed = [claim.name for claim in audit.claims if claim.holds is False]
    if failed:
        raise AuditInputError(f"{run}: no registry entry: its audit fails ({', '.join(failed)})")
    if audit.details.get("closed") is not True:
        raise AuditInputError(f"{run}: no registry entry: the run is not finished")
    folder = read(run, private=False)
    facts = gather(folder, audit, private=False)
    if facts.noiseless or facts.spent is None or math.isinf(facts.spent.outsider):
        raise AuditInputError(
            f"{run}: no registry entry: the run claims no differential privacy for an outsider"
        )
    if facts.protocol == "float":
        raise AuditInputError(
            f"{run}: no registry entry: sums in floating point are a simulation's, not a release's"
        )
    return {
        "url_slug": re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-") or "run",
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "product": _product(folder, _clients(run)),
            "dp_flavor": {
                "name": "Approximate DP",
                "data_domain": f"{ASK}which data sets are eligible for protection",
                "unprotected_quantities": "Evaluation metrics, timing and traffic; the number of "
                "rounds, the population's size and the expected cohort are public constants.",
            },
            "privacy_loss": _privacy_loss(audit, facts),
            "model": _model(folder, audit, facts),
            "accounting": {
                "post_processing": "Server optimizer, and every use of a released model.",
                "composition": "All reserved rounds, aborted and lost ones included, composed "
                "adaptively; derived again from the signed ledger.",
            },
            "implementation": _implementation(folder, audit, facts),
            "resources": {
                "sources": f"{ASK}where the published folder, its key and its ledger's head are",
                "registry_authors": [f"{ASK}who wrote this entry"],
            },
        },
    }


def _clients(run: Path) -> str:
    """Who was trained on, as the ledger's header says."""
    stated = read_header(run / "ledger.jsonl").get("population")
    population = stated if isinstance(stated, dict) else {}
    kind = "enrolled devices" if "roster_version" in population else "clients of a simulation"
    return f"{printable(population.get('clients', 'an unknown number of'), 20)} {kind}"


def _product(folder: RunContents, clients: str) -> dict[str, Any]:
    return {
        "name": folder.name,
        "data_curators": [f"{ASK}who publishes the model"],
        "intended_use": f"{ASK}what the model is for",
        "data_product_type": "Machine learning model",
        "data_product_region": f"{ASK}where the clients are",
        "description": f"A model trained by federated learning over {clients}: {ASK}what it does",
        "publication_date": f"{ASK}YYYY-MM-DD",
        "data_product_sector": f"{ASK}the sector",
    }


def _privacy_loss(audit: AuditResult, facts: Facts) -> dict[str, Any]:
    spent = facts.spent.outsider if facts.spent is not None else math.inf
    total = facts.total
    described = (
        "The outsider's view: anyone who sees released models. Derived from the ledger by fedsys "
        f"audit (head {audit.ledger_head}, signer {audit.signer}); the noise and the sampling "
        "themselves are the coordinator's and the clients' word."
    )
    if total is not None:
        described += (
            f" It includes {total.runs} tuning runs that the ledger's header states (epsilon "
            f"{total.before!r}); this run alone: {spent!r} at delta {facts.delta!r}."
        )
    return {
        "privacy_unit": "Example" if facts.unit == "example" else "Client",
        "privacy_unit_description": f"Neighbours: {facts.compared('outsider')}.",
        "privacy_parameters": {
            "epsilon": spent if total is None else total.epsilon,
            "delta": facts.delta if total is None else total.delta,
        },
        "privacy_parameters_description": described,
    }


def _model(folder: RunContents, audit: AuditResult, facts: Facts) -> dict[str, Any]:
    components = dict(pyramid(folder, audit, facts))
    local = facts.mechanism in ("local-gaussian", "example-gaussian")
    central = facts.mechanism in ("central-gaussian", "banded-mf")
    return {
        "model_name": "Local" if local else "Central" if central else "Federated",
        "actors": "Clients hold the data and train; the coordinator invites them and sums what "
        "they send; a committee of clients opens only sums; the roster's authority decides who "
        f"is a client. {components['Trust model']}",
        "release_type": "Many releases",
        "release_type_description": "The model after each round, up to "
        f"{printable(folder.setting('rounds', 'count') or 'the planned number of')} rounds. "
        f"{ASK}whether the same clients are used again",
        "access_type": "Non-interactive",
    }


def _implementation(folder: RunContents, audit: AuditResult, facts: Facts) -> dict[str, Any]:
    components = dict(pyramid(folder, audit, facts))
    versions = folder.summary.versions
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    tuned = (
        "The ledger's header states no tuning runs on the same clients."
        if facts.total is None
        else f"{facts.total.runs} tuning runs, stated in the header and included in epsilon."
    )
    return {
        "pre_processing_eda_hyperparameter_tuning": f"{tuned} {ASK}whether anybody looked at the "
        "data before",
        "mechanisms": f"{mechanism_title(facts.mechanism)}: {explain(facts)} Clipping norm "
        f"{facts.clip!r}, noise multiplier {facts.noise_multiplier!r}, {facts.sampling} sampling. "
        f"{components['Side channels']} Versions: {libraries or 'not stated'}.",
        "justification": f"{ASK}why these parameters",
    }
