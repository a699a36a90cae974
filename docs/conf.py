"""How Sphinx builds the site: ``make docs``.

The source folder is the repository itself, so documents that lie besides the code are pages at
their own paths, and a link that leads nowhere in the repository is a warning. Warnings are errors.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = PROJECT["name"]
release = PROJECT["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/api/*.md",
    "fedsys/THREATS.md",
    "fedsys/privacy/*.md",
    "fedsys/wire/*.md",
    "secure_agg/PROTOCOL.md",
    "server/METRICS.md",
    "simulations/RESULTS.md",
]
exclude_patterns = ["build", ".venv*"]

default_role = "code"  # `name` in a docstring is code, as it is in Markdown
autodoc_default_options = {"members": True, "imported-members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"{project} {release}"
html_extra_path = ["site"]
html_copy_source = False
html_show_copyright = False


_COLON = "\ufdd0"  # no character


def _with_contents(_app: Sphinx, name: str, source: list[str]) -> None:
    """The overview is the README, with the table of contents that only the site needs."""
    if name == root_doc:
        source[0] += (HERE / "contents.txt").read_text(encoding="utf-8")


def _hide_colon(_app: Sphinx, what: str, *rest: Any) -> None:
    """Napoleon reads "b: vectors are added" above a property as its type, which the code states."""
    lines = rest[-1]
    if what == "property" and lines:
        lines[0] = lines[0].replace(":", _COLON)


def _show_colon(_app: Sphinx, what: str, *rest: Any) -> None:
    lines = rest[-1]
    if what == "property" and lines:
        lines[0] = lines[0].replace(_COLON, ":")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _with_contents)
    app.connect("autodoc-process-docstring", _hide_colon, priority=400)  # Napoleon has 500
    app.connect("autodoc-process-docstring", _show_colon, priority=600)
