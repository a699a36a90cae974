"""``fedsys audit``: re-derive every claim that a run's folder can support."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from fedsys.records import AuditResult

__all__ = ["audit"]


def audit(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="A run's folder, private or published, or a population's."
        ),
    ],
    key: Annotated[
        str | None,
        typer.Option(help="The signer's public key (64 hex digits) or a file that holds it."),
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="A witness's key, or a file of keys: each must vouch for the ledger.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A checkpoint of this ledger from elsewhere, such as a witness."
        ),
    ] = None,
    authority: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Public key (64 hex digits, or a file) of the authority that signs the roster.",
        ),
    ] = None,
    compose: Annotated[
        bool, typer.Option("--compose", help="Compose several runs on one population.")
    ] = False,
    empirical: Annotated[
        bool, typer.Option("--empirical", help="Attack the run through its planted canaries.")
    ] = False,
    registry: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a deployment registry's entry: a new .json or .yaml file."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print audit.json.")] = False,
) -> None:
    """Check a run: exit 0 if every claim holds, 1 if one does not, 2 if there is no run."""
    from fedsys.audit import to_json
    from fedsys.errors import AuditInputError

    if compose and empirical:
        raise AuditInputError("--compose composes accounted runs; leave out --empirical")
    if len(runs) > 1 and not compose:
        raise AuditInputError(f"{len(runs)} runs given: audit one at a time, or add --compose")
    if (compose or empirical) and (witness or checkpoint or authority):
        raise AuditInputError(
            "--witness, --checkpoint and --authority apply to the audit of one run; leave out "
            "--compose and --empirical"
        )
    whole = False
    if len(runs) == 1 and not compose and not empirical:
        from fedsys.audit.population import is_population

        whole = is_population(runs[0])
    if registry is not None:
        _check_entry(registry, several=compose or empirical or whole)
    if whole:
        from fedsys.audit.population import audit_population
        from fedsys.report import render

        result = audit_population(runs[0], key=key, page=render)
    elif compose or empirical:
        result = _several_or_empirical(runs, key, compose=compose)
    else:
        result = _audited(runs[0], key, witness or [], checkpoint or [], authority)
    if not compose and not whole:
        _store(runs[0], result)
    if json:
        typer.echo(to_json(result), nl=False)
    else:
        from fedsys.report.terminal import print_audit

        print_audit(result)
    if not result.passed:
        if registry is not None:
            say(f"--registry {registry}: not written, because a claim fails", err=True)
        raise typer.Exit(1)
    if registry is not None:
        _write_entry(registry, runs[0], result)


def _check_entry(path: Path, *, several: bool) -> None:
    from fedsys.errors import AuditInputError
    from fedsys.report.registry import SUFFIXES

    if several:
        raise AuditInputError("--registry describes one run; leave out --compose and --empirical")
    if path.suffix not in SUFFIXES:
        raise AuditInputError(f"--registry {path}: give a file that ends in {', '.join(SUFFIXES)}")
    if path.exists() or not path.parent.is_dir():
        reason = "already exists" if path.exists() else f"there is no folder {path.parent}"
        raise AuditInputError(f"--registry {path}: {reason}; give a new file")


def _write_entry(path: Path, run: Path, result: AuditResult) -> None:
    from fedsys.durable import write_atomically
    from fedsys.errors import AuditInputError
    from fedsys.report.registry import ASK, entry, to_text

    text = to_text(entry(run, result))
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise AuditInputError(f"--registry {path}: {reason}") from None
    say(
        f"{path}: {text.count(ASK)} values begin with '{ASK.strip()}': state them yourself",
        err=True,
    )


def _several_or_empirical(runs: list[Path], key: str | None, *, compose: bool) -> AuditResult:
    from fedsys import audit as audits
    from fedsys.report import render

    if not compose:
        return audits.audit_canaries(runs[0], key=key, page=render)
    return audits.compose(runs, key=key, page=render)


def _audited(
    run: Path,
    key: str | None,
    witnesses: list[str],
    checkpoints: list[Path],
    authority: str | None,
) -> AuditResult:
    from fedsys.audit import audit_run
    from fedsys.report import render

    return audit_run(
        run,
        key=key,
        page=render,
        witnesses=witnesses,
        checkpoints=checkpoints,
        authority=authority,
    )


def _store(run: Path, result: AuditResult) -> None:
    """Writes ``audit.json`` into the folder where that is possible."""
    from fedsys.audit import write

    try:
        write(run, result)
    except OSError as error:
        reason = (error.strerror or "not writable").lower()
        say(f"note: audit.json was not written: {reason}", err=True)
