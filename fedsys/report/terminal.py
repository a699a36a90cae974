"""What a command prints at the end: results with all three ε, and the table of claims.

On a terminal these are aligned, coloured tables; anywhere else plain lines of text without boxes,
colours or width limits, so that a log keeps the full text.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsys.printable import printable
from fedsys.records import AuditResult, Claim
from fedsys.report import figures
from fedsys.report.comparison import Comparison
from fedsys.report.contents import RunContents, read
from fedsys.report.facts import Facts, gather, mechanism_title
from fedsys.report.views import tier

__all__ = ["print_audit", "print_comparison", "print_run"]

_VIEWS = (
    ("outsider", "sees the released models and nothing else"),
    ("participant", "also takes part, and looks at what it is sent"),
    ("server", "runs the coordinator honestly, and looks at everything"),
)
_STYLE = {"good": "green", "warning": "yellow", "danger": "bold red", "unknown": "dim"}
_VERDICT = {True: ("holds", "green"), False: ("FAILS", "bold red"), None: ("open", "dim")}
PLAIN_WIDTH = 100_000


def print_run(run: Path, audit: AuditResult, *, file: IO[str] | None = None) -> None:
    """Prints what a run achieved, what it cost in every view, and where its folder is.

    Args:
        run: its folder.
        audit: the audit of that folder; every printed ε comes from it.
        file: where to print; standard output if None.

    Raises:
        RunFolderError: there is no such folder.
    """
    console = _console(file)
    folder = read(run, private=False)
    facts = gather(folder, audit, private=True)
    rows = _results(folder)
    rows += [("mechanism", mechanism_title(facts.mechanism), _protocol(facts), "")]
    if facts.noiseless and facts.clip is not None:
        rows.append(
            ("clipping norm", f"{facts.clip:g}", "longer updates are scaled down to it", "")
        )
    for view, explanation in _VIEWS:
        value = getattr(facts.spent, view) if facts.spent is not None else None
        word, tone = tier(value)
        if facts.withheld is not None:
            word = "withheld"
        shown = figures.epsilon(value)
        rows.append((f"ε {view}", shown, f"{word}: {explanation}", _STYLE[tone]))
    if facts.budget is not None and facts.withheld is None:
        rows.append(("budget", figures.epsilon(facts.budget), f"for the {facts.guarantee}", ""))
    rows.append(
        (
            "δ",
            figures.small(facts.delta),
            "added to every probability that e to the ε bounds",
            "",
        )
    )
    if facts.total is not None:
        rows.append(
            (
                "ε with tuning",
                figures.epsilon(facts.total.epsilon),
                f"outsider, with runs before this one: {figures.count(facts.total.runs)}, at δ = "
                f"{figures.small(facts.total.delta)}",
                _STYLE[tier(facts.total.epsilon)[1]],
            )
        )
    rows.append(_outcome(audit))
    rows.append(("run folder", str(run), "", "bold"))
    _print_rows(console, rows)
    if facts.noiseless:
        console.print(
            Text("No differential privacy: mechanism “none” adds no noise.", style="bold red")
        )
    if facts.withheld is not None:
        console.print(Text(f"No privacy claim holds: {facts.withheld}.", style="bold red"))
    if facts.reproducible:
        console.print(
            Text("Reproducible, not private: its noise comes from a seed.", style="bold red")
        )
    if facts.protocol == "float":
        console.print(
            Text("Not a release: updates were summed without secure aggregation.", style="bold red")
        )


def print_audit(audit: AuditResult, *, file: IO[str] | None = None) -> None:
    """Prints every claim with its outcome, failures first, and the verdict last."""
    console = _console(file)
    claims = sorted(audit.claims, key=lambda claim: claim.holds is not False)
    if console.is_terminal:
        console.print(_claims_table(claims))
    else:
        for claim in claims:
            name, claimed, rederived, by, rests_on = _words(claim)
            console.print(
                f"{_VERDICT[claim.holds][0]:5}  {name}: claimed {claimed}, derived {rederived} "
                f"({by}); rests on {rests_on}",
                markup=False,
                highlight=False,
            )
    for note in audit.notes:
        console.print(Text(f"note: {printable(note)}", style="dim"))
    _, words, detail, style = _outcome(audit)
    console.print(Text(f"{words}; {detail}" if detail else words, style=style))


def print_comparison(page: Comparison, *, file: IO[str] | None = None) -> None:
    """Prints a comparison's tables and findings; every cell is in the output, however narrow it is.

    Args:
        page: what to print.
        file: where to print; standard output if None.
    """
    console = _console(file)
    for found in page.tables:
        rows = [(name, *(cell for cell, _fine in cells)) for name, cells in found.rows]
        if console.is_terminal:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
            for at, heading in enumerate(found.columns):
                table.add_column(heading, overflow="fold", justify="right" if at else "left")
            for row in rows:
                table.add_row(Text(row[0], style="bold"), *map(Text, row[1:]))
            console.print(table)
        else:
            lines = [tuple(found.columns), *rows]
            widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
            for line in lines:
                cells = (f"{cell:{width}}" for cell, width in zip(line, widths, strict=True))
                console.print("  ".join(cells).rstrip(), markup=False)
        console.print()
    for tone, word, text in page.findings:
        console.print(Text(f"{word}: {text}", style=_STYLE.get(tone, "")))


def _console(file: IO[str] | None) -> Console:
    target = file if file is not None else sys.stdout
    console = Console(file=target, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(file=target, highlight=False, width=PLAIN_WIDTH, no_color=True)
    return console


def _print_rows(console: Console, rows: Sequence[tuple[str, str, str, str]]) -> None:
    if console.is_terminal:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_column(style="dim")
        for label, value, explanation, style in rows:
            table.add_row(label, Text(value, style=style), explanation)
        console.print(table)
        return
    spelled = {"ε": "epsilon", "δ": "delta"}
    labels = [" ".join(spelled.get(word, word) for word in label.split()) for label, *_ in rows]
    width = max(map(len, labels))
    for plain, (_, value, explanation, _) in zip(labels, rows, strict=True):
        line = f"{plain:{width}}  {value}" + (f"  ({explanation})" if explanation else "")
        console.print(line, markup=False)


def _on_devices(folder: RunContents) -> list[tuple[str, str, str, str]]:
    """The figures of the last evaluation on devices; bins and matrices are on the page."""
    if not folder.on_devices:
        return []
    last = folder.on_devices[-1]
    found = []
    for answer in last.answers:
        for each in answer.estimates:
            if (
                each.low is None
                or each.high is None
                or (each.label and "quantile" not in each.label)
            ):
                continue
            ends = f"{figures.plain(each.low)} to {figures.plain(each.high)}"
            name = " ".join(word for word in (answer.name, each.label) if word)
            words = f"{ends}, devices' own rows after {figures.count(last.trained)} rounds"
            found.append((name, figures.plain(each.value), words, "bold"))
    return found[:8]


def _results(folder: RunContents) -> list[tuple[str, str, str, str]]:
    summary = folder.summary
    status = (summary.status or "").replace("-", " ")
    rows = [("rounds", figures.count(summary.rounds), status, "")]
    rows += [
        (name, figures.metric(name, value), "test data, last round", "bold")
        for name, value in list(summary.metrics.items())[:8]
    ]
    rows += _on_devices(folder)
    if summary.clients_trained is not None:
        speed = summary.clients_per_second
        rows.append(
            (
                "clients trained" if summary.query is None else "clients that answered",
                figures.count(summary.clients_trained),
                f"{figures.plain(speed)} per second" if speed is not None else "",
                "",
            )
        )
    if summary.train_seconds is not None:
        rows.append(("training time", figures.duration(summary.train_seconds), "", ""))
    if summary.simulated is not None and summary.simulated.seconds is not None:
        reached = list(summary.simulated.to_accuracy.items())[-1:]
        rows.append(
            (
                "simulated time",
                figures.duration(summary.simulated.seconds),
                "".join(f"accuracy {at} after {figures.duration(end)}" for at, end in reached),
                "",
            )
        )
    return rows


def _protocol(facts: Facts) -> str:
    return {
        "secure": "through secure aggregation",
        "ideal": "ideal aggregation: updates added without encryption",
        "float": "floating-point sums: not a release",
    }.get(facts.protocol, "")


def _outcome(audit: AuditResult) -> tuple[str, str, str, str]:
    held = sum(claim.holds is True for claim in audit.claims)
    failed = [claim for claim in audit.claims if claim.holds is False]
    unsettled = len(audit.claims) - held - len(failed)
    detail = f"{unsettled} more cannot be decided here" if unsettled else ""
    if failed:
        names = ", ".join(printable(claim.name, 60) for claim in failed[:5])
        return "audit", f"{len(failed)} of {held + len(failed)} claims FAIL", names, "bold red"
    if not held:
        return "audit", "nothing could be checked", detail, "yellow"
    noun = "claim holds" if held == 1 else "claims hold"
    return "audit", f"{held} checked {noun}", detail, "green"


def _words(claim: Claim) -> tuple[str, str, str, str, str]:
    name, claimed, rederived, by, rests_on = (
        printable(text)
        for text in (claim.name, claim.claimed, claim.rederived, claim.by, claim.rests_on)
    )
    return name, claimed, rederived, by, rests_on


def _claims_table(claims: Sequence[Claim]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("verdict", "claim", "claimed", "derived again", "by", "rests on"):
        table.add_column(heading, overflow="fold")
    for claim in claims:
        word, style = _VERDICT[claim.holds]
        name, claimed, rederived, by, rests_on = _words(claim)
        table.add_row(
            Text(word, style=style),
            Text(name, style="bold"),
            Text(claimed),
            Text(rederived),
            Text(by, style="dim"),
            Text(rests_on, style="dim"),
        )
    return table
