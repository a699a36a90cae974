"""What every finished run gets: an audit of its folder and the page that states the result."""

from __future__ import annotations

from pathlib import Path

from fedsys.records import AuditResult

__all__ = ["audit_and_report"]


def audit_and_report(run: Path, *, private: bool = True) -> AuditResult:
    """Audit `run`, and write its ``report.html`` from what the audit re-derived."""
    from fedsys import report
    from fedsys.audit import audit_run, write

    checked = audit_run(run)
    write(run, checked)
    report.build(run, checked, private=private)
    return checked
