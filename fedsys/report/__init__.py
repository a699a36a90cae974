"""What people look at: the HTML page, terminal tables, plots.

>>> from fedsys.report import build  # build(run, audit, private=True) writes run/report.html
"""

from __future__ import annotations

from fedsys.report.html import build, render

__all__ = ["build", "render"]
