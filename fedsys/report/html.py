"""``report.html``: one self-contained page that states what a run achieved and what it cost.

Nothing on it is fetched, scripted or unescaped: everything from the folder passes through
`fedsys.report.contents` (bounded, printable) and jinja2's autoescape, and the page forbids itself
every external resource. Every ε on it was derived by the audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsys import __version__
from fedsys.errors import RunFolderError
from fedsys.printable import printable
from fedsys.records import AuditResult, EpsilonPoint
from fedsys.report import figures
from fedsys.report.answers import shown
from fedsys.report.charts import client_charts, diagnostic_charts, epsilon_chart, metric_charts
from fedsys.report.contents import RunContents, read
from fedsys.report.facts import Facts, disclosable, gather, mechanism_title
from fedsys.report.pages import environment, figure, write
from fedsys.report.statement import state

__all__ = ["build", "render"]

MAX_CLAIMS = 200


def build(run: Path, audit: AuditResult, *, private: bool) -> Path:
    """Writes ``report.html`` into a run's folder.

    Args:
        run: the folder; anything in it that cannot be read is named on the page.
        audit: the audit of that same folder, with nothing pinned. For a public report, the audit
            of the published folder: this function cannot know which of the claims' text depends on
            secret cohorts.
        private: whether the page may show realised cohorts and the figures that depend on them.

    Returns:
        The page's path.

    Raises:
        RunFolderError: there is no such folder, a number in it cannot be shown, or it cannot be
            written to.
    """
    return write(run / "report.html", render(run, audit, private=private))


def render(run: Path, audit: AuditResult, *, private: bool) -> str:
    """The page's text: the same folder and audit yield the same page, so that it can be checked.

    Args:
        run: as for `build`.
        audit: as for `build`.
        private: as for `build`.

    Raises:
        RunFolderError: there is no such folder, or a number in it cannot be shown.
    """
    try:
        return _page(run, audit, private=private)
    except (ArithmeticError, ValueError) as error:
        said = printable(error, 120) or type(error).__name__
        raise RunFolderError(f"{run}: the report cannot be made: {said}") from error


def _page(run: Path, audit: AuditResult, *, private: bool) -> str:
    folder = read(run, private=private)
    facts = gather(folder, audit, private=private)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            version=__version__,
            private=private,
            folder=folder,
            summary=folder.summary,
            facts=facts,
            title=folder.name,
            verdict=_verdict(audit),
            intro=_intro(folder, facts),
            headline=_headline(folder, private=private),
            statement=state(folder, audit, facts),
            answers=shown(folder.summary.query),
            on_devices=shown(folder.on_devices[-1] if folder.on_devices else None),
            evaluations=folder.on_devices,
            training=[figure(chart, f"m{i}") for i, chart in enumerate(metric_charts(folder))],
            spending=[
                figure(chart, f"e{i}", wide=True)
                for i, chart in enumerate(epsilon_chart(_shown(audit, private), facts))
            ],
            diagnostics=[
                figure(chart, f"d{i}") for i, chart in enumerate(diagnostic_charts(folder))
            ],
            by_client=[figure(chart, f"k{i}") for i, chart in enumerate(client_charts(folder))],
            claims=[
                (
                    {None: "open", True: "holds", False: "fails"}[claim.holds],
                    [printable(text) for text in (claim.name, claim.claimed, claim.rederived)],
                    printable(claim.by),
                    printable(claim.rests_on),
                )
                for claim in sorted(
                    audit.claims[:MAX_CLAIMS], key=lambda claim: claim.holds is not False
                )
            ],
            more_claims=max(0, len(audit.claims) - MAX_CLAIMS),
            notes=[printable(note) for note in audit.notes[:MAX_CLAIMS]],
            provenance=_provenance(folder, audit),
        )
    )


def _shown(audit: AuditResult, private: bool) -> Sequence[EpsilonPoint]:
    """The curve, where it may be claimed; in a public report without what reveals cohorts."""
    if audit.withheld is not None:
        return []
    return [
        EpsilonPoint(round=point.round, spent=disclosable(point.spent, private))
        for point in audit.curve
    ]


def _verdict(audit: AuditResult) -> tuple[str, str, str]:
    """Tone, text and fine print of the audit's outcome."""
    held = sum(claim.holds is True for claim in audit.claims)
    failed = sum(claim.holds is False for claim in audit.claims)
    unsettled = sum(claim.holds is None for claim in audit.claims)
    word = "" if not unsettled else f"{unsettled} cannot be decided from this folder"
    if failed:
        checked = held + failed
        return "danger", f"{failed} of {checked} checked claims failed", word
    if not held:
        return "unknown", "Nothing could be checked", word
    claims = "The one checked claim holds" if held == 1 else f"All {held} checked claims hold"
    return "good", claims, word


def _intro(folder: RunContents, facts: Facts) -> str:
    """One sentence on what was run."""
    summary = folder.summary
    parts = []
    if summary.rounds is not None:
        parts.append(f"{figures.count(summary.rounds)} round{'' if summary.rounds == 1 else 's'}")
    clients = folder.setting("population", "clients")
    if isinstance(clients, int):
        parts.append(f"over {figures.count(clients)} clients")
    task = folder.setting("task", "name")
    if isinstance(task, str):
        parts.append(f"on {printable(task, 60)}")
    noise = (
        "no privacy mechanism" if facts.noiseless else f"{mechanism_title(facts.mechanism)} noise"
    )
    aggregation = {
        "secure": "secure aggregation",
        "ideal": "ideal aggregation (no encryption)",
        "float": "floating-point sums",
    }.get(facts.protocol)
    with_what = " and ".join(word for word in (noise, aggregation) if word)
    return f"{' '.join(parts) or 'A run'}, with {with_what}."


def _headline(folder: RunContents, *, private: bool) -> list[tuple[str, str, str]]:
    """Label, figure and fine print of what the run achieved.

    Counts of clients and training times reveal cohorts, so they are in a private copy only.
    """
    summary = folder.summary
    cards = [
        (name.replace("_", " "), figures.metric(name, value), "test data, last round")
        for name, value in summary.metrics.items()
        if name in ("accuracy", "loss")
    ]
    if not cards:
        cards = [
            (name.replace("_", " "), figures.metric(name, value), "test data, last round")
            for name, value in list(summary.metrics.items())[:2]
        ]
    if private and summary.clients_trained is not None:
        speed = summary.clients_per_second
        cards.append(
            (
                "clients trained" if summary.query is None else "clients that answered",
                figures.count(summary.clients_trained),
                f"{figures.plain(speed)} per second" if speed is not None else "over all rounds",
            )
        )
    if private and summary.train_seconds is not None:
        cards.append(("training time", figures.duration(summary.train_seconds), "all rounds"))
    return cards


def _provenance(folder: RunContents, audit: AuditResult) -> list[tuple[str, str]]:
    summary = folder.summary
    rows = [
        ("Ledger head", audit.ledger_head or summary.ledger_head),
        ("Signer", audit.signer or summary.signer),
        ("Model (SHA-256)", summary.model_sha256),
    ]
    return [(label, printable(value)) for label, value in rows if value]
