"""``fedsys init``: a working project with a custom task."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedsys.cli.terminal import say

__all__ = ["init", "write_project"]

_SUFFIX = ".tmpl"


def init(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The new project's folder; new or empty.")
    ],
) -> None:
    """Write a project to start from: a model, data, a configuration, a test."""
    written = write_project(directory)
    say(f"wrote {', '.join(sorted(path.name for path in written))} in {directory}")
    say(f"next: cd {shlex.quote(str(directory))} && fedsys simulate config.toml")


def write_project(directory: Path) -> list[Path]:
    """Writes the project's files.

    Args:
        directory: created if it does not exist; its name becomes the job's.

    Returns:
        The files written.

    Raises:
        RunFolderError: `directory` is not empty, or cannot be written to.
    """
    from importlib import resources
    from string import Template

    from fedsys.errors import RunFolderError

    name = _job_name(directory.resolve().name)
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise RunFolderError(
                f"{directory}: not empty; give a new folder, so that nothing is overwritten"
            )
        templates = resources.files("fedsys") / "templates" / "project"
        for template in sorted(templates.iterdir(), key=lambda entry: entry.name):
            if template.name.endswith(_SUFFIX):
                text = Template(template.read_text(encoding="utf-8")).substitute(name=name)
                target = directory / template.name.removesuffix(_SUFFIX)
                with target.open("x", encoding="utf-8") as file:
                    file.write(text)
                written.append(target)
    except OSError as error:
        reason = (error.strerror or "cannot be written to").lower()
        raise RunFolderError(f"{directory}: {reason}; give a folder that can be created") from error
    return written


def _job_name(folder: str) -> str:
    """A name that a configuration accepts: letters, digits, dots, dashes, underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("._-")[:100] or "project"
